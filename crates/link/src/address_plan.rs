//! Owns the choice of addresses for a private service: a free 198.18.N.0/24 (RFC 2544's range for
//! benchmarks) and its IPv6 twin 2001:2:0:N::/64 (RFC 5180's). Called by `haypile run` and the demo
//! when no addresses are configured. [`choose`] is pure; [`plan`] reads the machine and reserves the
//! choice, so that two services that start at once do not take the same one.

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::error::LinkError;
use crate::netlink::list::bits;
use crate::netlink::{Address, Netlink, Route};

/// Routes at least this long that overlap a candidate mean that somebody uses it; shorter ones
/// (default routes, halves of the world through a tunnel) do not.
const ROUTE_PREFIX_MIN_V4: u8 = 8;
const ROUTE_PREFIX_MIN_V6: u8 = 16;

/// The addresses of one private service: network number N of both ranges.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct AddressPlan {
    /// N of 198.18.N.0/24 and 2001:2:0:N::/64.
    pub number: u8,
}

impl AddressPlan {
    /// Prefix length of the IPv4 network.
    pub const PREFIX_LEN_V4: u8 = 24;
    /// Prefix length of the IPv6 network.
    pub const PREFIX_LEN_V6: u8 = 64;

    /// The host's addresses with their prefix lengths: 198.18.N.1/24 and 2001:2:0:N::1/64.
    pub fn host(&self) -> [(IpAddr, u8); 2] {
        self.with_host_part(1)
    }

    /// The service's addresses with their prefix lengths: 198.18.N.2/24 and 2001:2:0:N::2/64.
    pub fn service(&self) -> [(IpAddr, u8); 2] {
        self.with_host_part(2)
    }

    fn with_host_part(&self, host: u8) -> [(IpAddr, u8); 2] {
        let v4 = Ipv4Addr::new(198, 18, self.number, host);
        let v6 = Ipv6Addr::new(0x2001, 2, 0, u16::from(self.number), 0, 0, 0, u16::from(host));
        [(v4.into(), AddressPlan::PREFIX_LEN_V4), (v6.into(), AddressPlan::PREFIX_LEN_V6)]
    }

    /// Whether a network of either family overlaps this one.
    fn overlaps(&self, address: IpAddr, prefix_len: u8) -> bool {
        self.host()
            .into_iter()
            .any(|(own, own_len)| same_prefix(own, address, own_len.min(prefix_len)))
    }
}

/// A plan that this process holds: no other [`plan`] in this network namespace chooses it until the
/// reservation is dropped or the process ends.
#[derive(Debug)]
pub struct Reservation {
    plan: AddressPlan,
    /// Bound to a name that says the number; names of this kind belong to the network namespace.
    _name: UnixDatagram,
}

impl Reservation {
    /// What was reserved.
    pub fn plan(&self) -> AddressPlan {
        self.plan
    }
}

/// The first plan that no address and no route of the machine overlaps and that `refused` does not
/// hold against; `None` when there is none.
pub fn choose(
    addresses: &[Address],
    routes: &[Route],
    mut refused: impl FnMut(AddressPlan) -> bool,
) -> Option<AddressPlan> {
    (0..=u8::MAX).map(|number| AddressPlan { number }).find(|plan| {
        let taken = addresses.iter().any(|taken| plan.overlaps(taken.address, taken.prefix_len))
            || routes.iter().any(|route| {
                let v4 = route.destination.is_ipv4();
                let shortest = if v4 { ROUTE_PREFIX_MIN_V4 } else { ROUTE_PREFIX_MIN_V6 };
                route.prefix_len >= shortest && plan.overlaps(route.destination, route.prefix_len)
            });
        !taken && !refused(*plan)
    })
}

/// Reads the addresses and routes of the calling thread's network namespace, chooses a plan and
/// reserves it.
///
/// # Errors
/// When the lists cannot be read, or all 256 networks are taken (EADDRNOTAVAIL).
pub fn plan() -> Result<Reservation, LinkError> {
    let mut netlink = Netlink::open()?;
    let (addresses, routes) = (netlink.addresses()?, netlink.routes()?);
    let mut reserved = None;
    let chosen = choose(&addresses, &routes, |plan| match reserve(plan) {
        Ok(name) => {
            reserved = Some(name);
            false
        }
        Err(_) => true,
    });
    match (chosen, reserved) {
        (Some(plan), Some(name)) => Ok(Reservation { plan, _name: name }),
        _ => Err(LinkError::from_errno(
            "find a free network in 198.18.0.0/16 and 2001:2::/48",
            libc::EADDRNOTAVAIL,
        )),
    }
}

fn reserve(plan: AddressPlan) -> io::Result<UnixDatagram> {
    let name = format!("haypile-network-{}", plan.number);
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// Whether two addresses are of the same family and agree in their first `len` bits.
fn same_prefix(one: IpAddr, other: IpAddr, len: u8) -> bool {
    let difference = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => u128::from(u32::from(one) ^ u32::from(other)) << 96,
        (IpAddr::V6(one), IpAddr::V6(other)) => u128::from(one) ^ u128::from(other),
        _ => return false,
    };
    difference.leading_zeros() >= u32::from(len.min(bits(one)))
}
