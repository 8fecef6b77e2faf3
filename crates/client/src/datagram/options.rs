//! Options of UDP sockets. The placeholder keeps them all and checks them as the kernel does, so that
//! they hold in both worlds and survive `exec`; here is what Haypile's half must hear of. Of the
//! addresses of interfaces and groups only those of the kernel's are the placeholder's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use haypile_shm::Errno;
use haypile_shm::messages::RequestBody;
use haypile_shm::sys;
use libc::{IPPROTO_IP, IPPROTO_IPV6, SOL_SOCKET, SOL_UDP};

use super::control::{UDP_SEGMENT, want};
use super::routes::{self, Route};
use super::{World, send};
use crate::entry::{Phase, Pinned, flag};
use crate::errno::TO_KERNEL;
use crate::socket;

/// What an option does here.
#[derive(Copy, Clone, Debug)]
enum Effect {
    /// The service acts on it.
    Service,
    /// This control data is wanted.
    Wants(u32),
    /// The service acts on it, and this control data is wanted.
    Both(u32),
    /// Kept in this process.
    Local,
}

use Effect::{Both, Local, Service, Wants};

/// `IP_MULTICAST_ALL` and names like it that libc does not have.
const IP_MULTICAST_ALL: i32 = 49;
const IPV6_RECVORIGDSTADDR: i32 = 74;
const UDP_CORK: i32 = 1;

const TABLE: [(i32, i32, Effect); 31] = [
    (SOL_SOCKET, libc::SO_RCVBUF, Service),
    (SOL_SOCKET, libc::SO_SNDBUF, Service),
    (SOL_SOCKET, libc::SO_BROADCAST, Service),
    (SOL_SOCKET, libc::SO_REUSEADDR, Service),
    (SOL_SOCKET, libc::SO_TIMESTAMP, Both(want::TIMESTAMP)),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS, Both(want::TIMESTAMP_NS)),
    (SOL_SOCKET, libc::SO_RXQ_OVFL, Wants(want::DROPS)),
    (IPPROTO_IP, libc::IP_TOS, Service),
    (IPPROTO_IP, libc::IP_TTL, Service),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER, Service),
    (IPPROTO_IP, libc::IP_RECVERR, Service),
    (IPPROTO_IP, libc::IP_MULTICAST_TTL, Service),
    (IPPROTO_IP, libc::IP_MULTICAST_LOOP, Service),
    (IPPROTO_IP, IP_MULTICAST_ALL, Service),
    (IPPROTO_IP, libc::IP_PKTINFO, Wants(want::PKTINFO)),
    (IPPROTO_IP, libc::IP_RECVTTL, Wants(want::TTL)),
    (IPPROTO_IP, libc::IP_RECVTOS, Wants(want::TOS)),
    (IPPROTO_IP, libc::IP_RECVORIGDSTADDR, Wants(want::ORIGDST)),
    (IPPROTO_IPV6, libc::IPV6_V6ONLY, Local),
    (IPPROTO_IPV6, libc::IPV6_TCLASS, Service),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, Service),
    (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, Service),
    (IPPROTO_IPV6, libc::IPV6_RECVERR, Service),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, Service),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, Service),
    (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, Wants(want::PKTINFO_V6)),
    (IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, Wants(want::HOP_LIMIT)),
    (IPPROTO_IPV6, libc::IPV6_RECVTCLASS, Wants(want::TRAFFIC_CLASS)),
    (IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, Wants(want::ORIGDST_V6)),
    (SOL_UDP, UDP_SEGMENT, Local),
    (SOL_UDP, UDP_CORK, Local),
];

const _: () = assert!(TABLE.len() <= 32, "one bit each");

fn number(level: i32, name: i32) -> u16 {
    (level as u16) << 8 | (name as u16 & 0xff)
}

/// An integer option of the placeholder.
fn read(fd: RawFd, level: i32, name: i32) -> Option<i32> {
    let mut value = [0; 4];
    // IP_MULTICAST_TTL and the like may answer with one byte.
    match sys::getsockopt(fd, level, name, &mut value) {
        Ok(4) => Some(i32::from_ne_bytes(value)),
        Ok(1) => Some(i32::from(value[0])),
        _ => None,
    }
}

/// Whether an option of the placeholder is on.
pub(super) fn is_on(fd: RawFd, level: i32, name: i32) -> bool {
    read(fd, level, name).is_some_and(|value| value != 0)
}

/// setsockopt(2) on a UDP socket.
///
/// # Errors
/// The errno.
pub(crate) fn set(
    socket: &Pinned,
    fd: RawFd,
    level: i32,
    name: i32,
    value: &[u8],
) -> Result<(), Errno> {
    if let Some(done) = multicast(socket, fd, level, name, value) {
        return done;
    }
    if (level, name) == (SOL_SOCKET, libc::SO_RCVTIMEO)
        || (level, name) == (SOL_SOCKET, libc::SO_SNDTIMEO)
    {
        return crate::options::set_timeout(socket, name, value);
    }
    // Refused as by kernels before 4.7, as long as it may become ours: programs do without. Off it is anyway.
    let looks_on = (level, name) == (SOL_SOCKET, libc::SO_PEEK_OFF)
        && value.last().is_some_and(|byte| *byte < 0x80);
    if looks_on && socket.phase() != Phase::Kernel && !socket.has(flag::KERNEL_PEER) {
        return Err(Errno::EOPNOTSUPP);
    }
    sys::setsockopt(fd, level, name, value)?;
    if (level, name) == (SOL_SOCKET, libc::SO_BINDTODEVICE) && value.iter().any(|byte| *byte != 0) {
        // Devices are the kernel's, and so is a socket that is bound to one.
        return match socket::become_kernel(socket, fd) {
            Err(TO_KERNEL) => Ok(()),
            other => other,
        };
    }
    let (level, name) = match (level, name) {
        (SOL_SOCKET, libc::SO_RCVBUFFORCE) => (SOL_SOCKET, libc::SO_RCVBUF),
        (SOL_SOCKET, libc::SO_SNDBUFFORCE) => (SOL_SOCKET, libc::SO_SNDBUF),
        other => other,
    };
    let known = TABLE.iter().position(|(of, known, _)| (*of, *known) == (level, name));
    if let Some(place) = known {
        socket.datagram.set.fetch_or(1 << place, Ordering::Relaxed);
        apply(socket, fd, place);
        if (level, name) == (SOL_UDP, UDP_CORK) && !is_on(fd, level, name) {
            send::uncork(socket)?;
        }
    }
    Ok(())
}

/// Takes an option over from the placeholder, which has the value that holds, and tells the service.
fn apply(socket: &Pinned, fd: RawFd, place: usize) {
    let (level, name, effect) = TABLE[place];
    if let Some(value) = take(socket, fd, place)
        && let Service | Both(_) = effect
        && socket.has_record()
    {
        let body = RequestBody::SetOption { option: number(level, name), value: value.into() };
        // A service that is gone shows in the next call.
        let _: Result<(), Errno> = socket.tell(body);
    }
}

/// Takes an option over from the placeholder; its value.
fn take(socket: &Pinned, fd: RawFd, place: usize) -> Option<i32> {
    let (level, name, effect) = TABLE[place];
    let value = read(fd, level, name)?;
    let state = &socket.datagram;
    match (level, name) {
        (SOL_UDP, UDP_SEGMENT) => state.segment.store(value.max(0) as u32, Ordering::Relaxed),
        (SOL_UDP, UDP_CORK) => state.corked.store(value != 0, Ordering::Relaxed),
        (IPPROTO_IPV6, libc::IPV6_V6ONLY) => state.v6only.store(value != 0, Ordering::Relaxed),
        (SOL_SOCKET, libc::SO_BROADCAST) => state.broadcast.store(value != 0, Ordering::Relaxed),
        (IPPROTO_IP, libc::IP_MTU_DISCOVER) | (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) => {
            state.mtu_discover.store(value, Ordering::Relaxed);
        }
        _ => {}
    }
    if let Wants(bit) | Both(bit) = effect {
        match value {
            0 => state.wants.fetch_and(!bit, Ordering::Relaxed),
            _ => state.wants.fetch_or(bit, Ordering::Relaxed),
        };
    }
    Some(value)
}

/// Tells the service of a new record every option that was set before.
pub(super) fn replay(socket: &Pinned) {
    let set = socket.datagram.set.load(Ordering::Relaxed);
    for place in (0..TABLE.len()).filter(|place| set & 1 << place != 0) {
        apply(socket, socket.number(), place);
    }
    let Ok(groups) = socket.datagram.groups.lock() else { return };
    for (group, interface) in groups.iter() {
        let _: Result<(), Errno> = change_group(socket, true, *group, *interface);
    }
}

/// Takes everything that this process must know over from an adopted placeholder. The service knows
/// its part.
pub(super) fn read_back(socket: &Pinned, fd: RawFd) {
    for (place, (level, name, effect)) in TABLE.iter().enumerate() {
        let local = match effect {
            Wants(_) | Both(_) | Local => true,
            // The default of the family that was not chosen must not undo the other's.
            Service => {
                matches!(*name, libc::SO_BROADCAST if *level == SOL_SOCKET)
                    || (*level, *name) == discover(socket.domain())
            }
        };
        if local && (*level != IPPROTO_IPV6 || socket.domain() == libc::AF_INET6) {
            take(socket, fd, place);
        }
    }
}

/// The option that says what to do about the path MTU, of a family.
fn discover(domain: i32) -> (i32, i32) {
    match domain {
        libc::AF_INET6 => (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
        _ => (IPPROTO_IP, libc::IP_MTU_DISCOVER),
    }
}

// --- multicast ---------------------------------------------------------------------------------

/// Options that name a group or an interface; `None`: another option.
fn multicast(
    socket: &Pinned,
    fd: RawFd,
    level: i32,
    name: i32,
    value: &[u8],
) -> Option<Result<(), Errno>> {
    let membership = match (level, name) {
        (IPPROTO_IP, libc::IP_ADD_MEMBERSHIP) => Some((true, group_v4(value))),
        (IPPROTO_IP, libc::IP_DROP_MEMBERSHIP) => Some((false, group_v4(value))),
        (IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP) => Some((true, group_v6(value))),
        (IPPROTO_IPV6, libc::IPV6_DROP_MEMBERSHIP) => Some((false, group_v6(value))),
        (IPPROTO_IP | IPPROTO_IPV6, libc::MCAST_JOIN_GROUP) => Some((true, group_any(value))),
        (IPPROTO_IP | IPPROTO_IPV6, libc::MCAST_LEAVE_GROUP) => Some((false, group_any(value))),
        _ => None,
    };
    if let Some((join, membership)) = membership {
        let Some(membership) = membership else {
            return Some(sys::setsockopt(fd, level, name, value));
        };
        return Some(change(socket, join, membership, || sys::setsockopt(fd, level, name, value)));
    }
    let interface = match (level, name) {
        (IPPROTO_IP, libc::IP_MULTICAST_IF) => interface_v4(value),
        (IPPROTO_IPV6, libc::IPV6_MULTICAST_IF) => Interface::Number(number_at(value, 0)?),
        _ => return None,
    };
    let ours = is_ours(&interface);
    socket.datagram.multicast_by_kernel.store(ours == Some(false), Ordering::Relaxed);
    // An address of ours is none to the kernel.
    Some(if ours == Some(true) { Ok(()) } else { sys::setsockopt(fd, level, name, value) })
}

/// How a program names an interface.
#[derive(Copy, Clone, Debug)]
enum Interface {
    Any,
    Address(IpAddr),
    Number(u32),
}

#[derive(Copy, Clone, Debug)]
struct Membership {
    group: IpAddr,
    interface: Interface,
}

fn number_at(value: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(at..at + 4)?.try_into().ok()?))
}

fn v4_at(value: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = value.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn v6_at(value: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = value.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

/// `in_addr`, `ip_mreq` or `ip_mreqn`, for `IP_MULTICAST_IF`.
fn interface_v4(value: &[u8]) -> Interface {
    let (at, number) = match value.len() {
        ..8 => (0, None),
        8..12 => (4, None),
        _ => (4, number_at(value, 8)),
    };
    named(v4_at(value, at), number)
}

fn named(address: Option<Ipv4Addr>, number: Option<u32>) -> Interface {
    match (number, address) {
        (Some(number), _) if number != 0 => Interface::Number(number),
        (_, Some(address)) if !address.is_unspecified() => Interface::Address(address.into()),
        _ => Interface::Any,
    }
}

fn group_v4(value: &[u8]) -> Option<Membership> {
    let group = v4_at(value, 0)?.into();
    let interface = named(v4_at(value, 4), number_at(value, 8));
    Some(Membership { group, interface })
}

fn group_v6(value: &[u8]) -> Option<Membership> {
    let group = v6_at(value, 0)?.into();
    Some(Membership { group, interface: by_number(number_at(value, 16)?) })
}

fn by_number(number: u32) -> Interface {
    if number == 0 { Interface::Any } else { Interface::Number(number) }
}

/// `struct group_req`: the number of the interface, and the group as a socket address.
fn group_any(value: &[u8]) -> Option<Membership> {
    let group = sys::decode_address(value.get(8..)?)?.ip();
    Some(Membership { group, interface: by_number(number_at(value, 0)?) })
}

/// Whether an interface is Haypile's; `None` if it was left open.
fn is_ours(interface: &Interface) -> Option<bool> {
    match interface {
        Interface::Any => None,
        Interface::Address(address) => Some(matches!(
            routes::find(*address),
            Ok(Route::Haypile(answer)) if answer.local
        )),
        Interface::Number(number) => Some(routes::interface() == *number),
    }
}

/// Joins or leaves a group in the worlds that the interface says: in both if it says none.
fn change(
    socket: &Pinned,
    join: bool,
    membership: Membership,
    kernel: impl FnOnce() -> Result<(), Errno>,
) -> Result<(), Errno> {
    let Membership { group, interface } = membership;
    let ours = is_ours(&interface);
    if ours == Some(false) || !group.is_multicast() {
        return kernel();
    }
    let interface = match interface {
        Interface::Address(address) => address,
        _ if group.is_ipv4() => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let done = if socket.has_record() {
        change_group(socket, join, group, interface)
    } else {
        remember(socket, join, group, interface)
    };
    // A membership in the kernel too, where it has an interface for it; the answer is ours.
    let by_kernel = if ours.is_none() { kernel() } else { Ok(()) };
    match (done, socket.world()) {
        (Ok(()), World::Kernel) if ours.is_none() && !socket.has_record() => by_kernel.or(Ok(())),
        (done, _) => done,
    }
}

fn change_group(
    socket: &Pinned,
    join: bool,
    group: IpAddr,
    interface: IpAddr,
) -> Result<(), Errno> {
    let (slot, generation) = socket.name();
    let body = RequestBody::Group { join, group, interface };
    match socket.attachment()?.ask_socket(slot, generation, body)?.errno {
        0 => Ok(()),
        errno => Err(Errno(errno)),
    }
}

/// Groups joined before there is a record, to be joined with it.
fn remember(socket: &Pinned, join: bool, group: IpAddr, interface: IpAddr) -> Result<(), Errno> {
    let mut groups = socket.datagram.groups.lock()?;
    let known = groups.iter().position(|one| *one == (group, interface));
    match (join, known) {
        (true, Some(_)) => Err(Errno::EADDRINUSE),
        (true, None) => {
            groups.push((group, interface));
            Ok(())
        }
        (false, Some(at)) => {
            groups.remove(at);
            Ok(())
        }
        (false, None) => Err(Errno::EADDRNOTAVAIL),
    }
}

// --- reading -----------------------------------------------------------------------------------

/// getsockopt(2) on a UDP socket. Returns the length of the value.
///
/// # Errors
/// The errno.
pub(crate) fn get(
    socket: &Pinned,
    fd: RawFd,
    level: i32,
    name: i32,
    out: &mut [u8],
) -> Result<usize, Errno> {
    match (level, name) {
        (SOL_SOCKET, libc::SO_ERROR) => {
            let error = crate::options::take_error(socket);
            if error != 0 {
                return crate::options::give_integer(error, out);
            }
        }
        (IPPROTO_IP, libc::IP_MTU) | (IPPROTO_IPV6, libc::IPV6_MTU)
            if socket.phase() == Phase::Stream && !socket.has(flag::KERNEL_PEER) =>
        {
            let remote = socket.stream().and_then(|stream| stream.remote_address());
            let remote = remote.ok_or(Errno::ENOTCONN)?;
            if let Route::Haypile(answer) = routes::find(remote.ip())? {
                return crate::options::give_integer(answer.mtu as i32, out);
            }
        }
        _ => {}
    }
    sys::getsockopt(fd, level, name, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_its_own_number() {
        let mut seen = std::collections::BTreeSet::new();
        for (level, name, _) in TABLE {
            assert!((0..256).contains(&level) && (0..256).contains(&name), "{level} {name}");
            assert!(seen.insert(number(level, name)), "{level} {name} twice");
        }
    }

    #[test]
    fn memberships_are_read_in_all_their_forms() {
        let short = group_v4(&[224, 0, 0, 251, 198, 18, 0, 2]).unwrap();
        assert_eq!(short.group, IpAddr::from([224, 0, 0, 251]));
        assert!(
            matches!(short.interface, Interface::Address(ip) if ip == IpAddr::from([198, 18, 0, 2]))
        );
        let long = group_v4(&[224, 0, 0, 251, 0, 0, 0, 0, 3, 0, 0, 0]).unwrap();
        assert!(matches!(long.interface, Interface::Number(3)));
        assert!(group_v4(&[224, 0, 0]).is_none() && group_v6(&[0; 19]).is_none());
        assert!(matches!(interface_v4(&[0; 4]), Interface::Any));
        let mut request = vec![0; 136];
        request[8..10].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        request[12..16].copy_from_slice(&[224, 1, 1, 1]);
        assert_eq!(group_any(&request).unwrap().group, IpAddr::from([224, 1, 1, 1]));
    }
}
