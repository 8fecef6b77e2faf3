//! Socket addresses between the application's view and the service's: an AF_INET6 socket shows IPv4
//! as v4-mapped, the service knows plain IPv4 only.
//!
//! Used by `socket.rs` and `accept.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address as the service wants it: v4-mapped becomes IPv4.
pub(crate) fn to_service(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// An address as a socket of this domain shows it.
pub(crate) fn to_application(address: SocketAddr, domain: i32) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) if domain == libc::AF_INET6 => {
            SocketAddr::new(v4.to_ipv6_mapped().into(), address.port())
        }
        _ => address,
    }
}

/// The unspecified address of a domain, port 0: the name of a socket without one.
pub(crate) fn unspecified(domain: i32) -> SocketAddr {
    if domain == libc::AF_INET6 {
        SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0)
    } else {
        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)
    }
}

/// Whether binding to this address means every address (`::ffff:0.0.0.0` too).
pub(crate) fn is_wildcard(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_go_both_ways() {
        let mapped: SocketAddr = "[::ffff:198.18.0.1]:80".parse().unwrap();
        let plain: SocketAddr = "198.18.0.1:80".parse().unwrap();
        assert_eq!(to_service(mapped), plain);
        assert_eq!(to_application(plain, libc::AF_INET6), mapped);
        assert_eq!(to_application(plain, libc::AF_INET), plain);
        assert!(is_wildcard(&"[::ffff:0.0.0.0]:80".parse().unwrap()));
        assert!(is_wildcard(&unspecified(libc::AF_INET6)));
        assert!(!is_wildcard(&mapped));
    }
}
