//! Whose a destination is: the service is asked once and its answers are kept for a while, so that a
//! server with many clients does not ask for each datagram. One table for the process, by a hash of
//! the address; a newer address displaces an older one in its place.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;

use haypile_shm::Errno;
use haypile_shm::limits::NO_SLOT;
use haypile_shm::messages::{AddressAnswer, NOT_OURS, OptionReply, RequestBody, RouteAnswer};
use haypile_shm::sys;

use crate::attach;
use crate::lock::Lock;

/// Locks, and addresses remembered behind each.
const LOCKS: usize = 64;
const WAYS: usize = 16;
/// A service has no more addresses than this.
const ADDRESSES_MAX: u16 = 256;
/// How long an answer is believed: routes change.
const LIFE_NS: u64 = 1_000_000_000;

/// Who brings a datagram to its destination.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The kernel.
    Kernel,
    /// Haypile.
    Haypile(RouteAnswer),
}

#[derive(Copy, Clone, Debug)]
struct Known {
    destination: IpAddr,
    route: Route,
    until_ns: u64,
}

static KNOWN: [Lock<[Option<Known>; WAYS]>; LOCKS] = [const { Lock::new([None; WAYS]) }; LOCKS];

/// The place of an address: which lock, and where behind it.
fn place(destination: IpAddr) -> (usize, usize) {
    let bits = match destination {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let folded = bits as u64 ^ (bits >> 64) as u64;
    let hash = (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize;
    (hash % LOCKS, hash / LOCKS % WAYS)
}

/// Addresses that are the kernel's without asking: its own loopback, nothing, and link-local ones,
/// which say nothing without an interface.
fn is_kernels(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local(),
    }
}

/// Whose a destination is.
pub(crate) fn find(destination: IpAddr) -> Result<Route, Errno> {
    let destination = destination.to_canonical();
    if is_kernels(destination) {
        return Ok(Route::Kernel);
    }
    let now_ns = sys::clock_monotonic_ns();
    // In a signal handler that interrupts this very place the service is asked again.
    let (lock, way) = place(destination);
    if let Ok(known) = KNOWN[lock].lock()
        && let Some(known) = known[way]
        && known.destination == destination
        && known.until_ns > now_ns
    {
        return Ok(known.route);
    }
    let route = ask(destination)?;
    if let Ok(mut known) = KNOWN[lock].lock() {
        known[way] = Some(Known { destination, route, until_ns: now_ns + LIFE_NS });
    }
    Ok(route)
}

/// The number of the interface by which the kernel reaches Haypile; 0 if there is none.
pub(super) fn interface() -> u32 {
    static KNOWN: OnceLock<u32> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return *known;
    }
    match ask(Ipv4Addr::UNSPECIFIED.into()) {
        Ok(Route::Haypile(answer)) => *KNOWN.get_or_init(|| answer.interface),
        _ => 0,
    }
}

/// The addresses of the service, for programs that look for those of their host. None without a service.
pub fn own_addresses() -> Vec<AddressAnswer> {
    let ask = |index| {
        let reply = ask_home(RequestBody::Address { index })?;
        AddressAnswer::decode(reply.bytes()).map_err(|_| Errno::EPROTO)
    };
    (0..ADDRESSES_MAX).map_while(|index| ask(index).ok()).collect()
}

/// Asks the home; another one where that has left meanwhile.
fn ask_home(body: RequestBody) -> Result<OptionReply, Errno> {
    let home = attach::present()?;
    match home.ask_option(NO_SLOT, 0, body) {
        Err(errno) if home.has_left(errno) => attach::present()?.ask_option(NO_SLOT, 0, body),
        other => other,
    }
}

fn ask(destination: IpAddr) -> Result<Route, Errno> {
    let body = RequestBody::Route { remote: destination };
    match ask_home(body) {
        Ok(reply) => match RouteAnswer::decode(reply.bytes()) {
            Ok(answer) => Ok(Route::Haypile(answer)),
            Err(_) => Err(Errno::EPROTO),
        },
        Err(Errno(NOT_OURS)) => Ok(Route::Kernel),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn hold_for_fork() {
    KNOWN.iter().for_each(Lock::hold_for_fork);
}

pub(crate) fn release_after_fork() {
    KNOWN.iter().for_each(Lock::release_after_fork);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_link_local_addresses_are_the_kernels() {
        for text in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "fe80::1"] {
            assert_eq!(find(text.parse().unwrap()), Ok(Route::Kernel), "{text}");
        }
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
        assert_eq!(find(mapped), Ok(Route::Kernel));
    }

    #[test]
    fn addresses_spread_over_the_places() {
        let mut seen = std::collections::HashSet::new();
        for number in 0..500u32 {
            let destination = IpAddr::from((0xc612_0000 + number).to_be_bytes());
            seen.insert(place(destination));
        }
        assert!(seen.len() > 300, "{}", seen.len());
    }
}
