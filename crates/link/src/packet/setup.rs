//! Owns opening a packet port: the pair and its namespace, the socket and its options. Called by
//! `packet.rs`, when a port is opened or taken over; nothing here runs once per frame.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::{Attachment, PacketConfig, PacketFacts};
use crate::error::LinkError;
use crate::netlink::{Netlink, PeerNamespace};
use crate::netns::{self, Namespace};
use crate::sys::packet as sys;

/// Names of host ends that are tried: `haypile0` and so on.
const NAMES_MAX: u32 = 1024;
/// Name of our end, in a namespace where nobody else is.
const OUR_END: &str = "haypile";
/// Room for what waits in either direction, in bytes. The kernel gives less without privileges.
const BUFFER_LEN: i32 = 16 << 20;
/// Switches the kernel's IPv6 off in the namespace of our end.
const NO_IPV6: &str = "/proc/sys/net/ipv6/conf/all/disable_ipv6";

/// Opens the socket, and makes the pair if one is wanted.
pub(super) fn open(config: &PacketConfig) -> Result<(OwnedFd, PacketFacts), LinkError> {
    if cfg!(target_endian = "big") {
        // Its header is in the machine's order, that of a TAP is not.
        return Err(LinkError::from_errno("open a packet port", libc::EOPNOTSUPP));
    }
    match &config.attachment {
        Attachment::Pair(addresses) => open_pair(config, addresses),
        Attachment::Interface(name) => open_interface(config, name),
    }
}

fn open_pair(
    config: &PacketConfig,
    addresses: &[(std::net::IpAddr, u8)],
) -> Result<(OwnedFd, PacketFacts), LinkError> {
    let mut netlink = Netlink::open()?;
    let inside = Namespace::create()?;
    let name = make_pair(&mut netlink, &inside)?;
    // From here on an error drops the namespace, and the pair with it.
    let (socket, bound_to) =
        netns::run_in(inside.as_fd(), || open_our_end(&name, u32::from(config.mtu)))??;
    let index = netlink.link_by_name(&name)?.index;
    netlink.set_mtu(index, u32::from(config.mtu))?;
    netlink.set_up(index)?;
    for &(address, prefix_len) in addresses {
        netlink.add_address(index, address, prefix_len)?;
    }
    // Our end was up first, so that its carrier came late: what it sent before would be lost.
    netlink.wait_until_running(index)?;
    netns::run_in(inside.as_fd(), || Netlink::open()?.wait_until_running(bound_to))??;
    for &(address, _) in addresses {
        netlink.wait_until_local(address)?;
    }
    Ok((socket, facts(config, name, index, bound_to, true)))
}

/// Makes the pair under the first free name.
fn make_pair(netlink: &mut Netlink, inside: &Namespace) -> Result<String, LinkError> {
    let mut number = 0;
    loop {
        let name = format!("haypile{number}");
        let peer = PeerNamespace::Descriptor(inside.as_fd());
        match netlink.create_veth(&name, OUR_END, peer) {
            Ok(()) => return Ok(name),
            Err(error) if error.errno() == Some(libc::EEXIST) && number < NAMES_MAX => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// In the namespace of our end: sets it up, with a socket on it.
fn open_our_end(name: &str, mtu: u32) -> Result<(OwnedFd, u32), LinkError> {
    // The kernel would speak IPv6 of its own there; where it cannot be told not to, nobody answers.
    drop(std::fs::write(NO_IPV6, "1"));
    let mut netlink = Netlink::open()?;
    let index = netlink.link_by_name(OUR_END)?.index;
    netlink.set_mtu(index, mtu)?;
    netlink.set_up(index)?;
    let socket = open_socket(name, index)?;
    // A veth has no queue that could be passed by: saves a lookup. Not known to old kernels.
    let _: io::Result<()> =
        sys::set_option(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1);
    Ok((socket, index))
}

fn open_interface(config: &PacketConfig, name: &str) -> Result<(OwnedFd, PacketFacts), LinkError> {
    let mut netlink = Netlink::open()?;
    let link = netlink.link_by_name(name)?;
    let fail = |errno| LinkError::from_errno(format!("use the interface {name}"), errno);
    if link.mac.is_none() || link.is_loopback() {
        return Err(fail(libc::EPROTONOSUPPORT));
    }
    if link.mtu < u32::from(config.mtu) {
        return Err(fail(libc::EMSGSIZE));
    }
    let socket = open_socket(name, link.index)?;
    if !link.is_up() {
        netlink.set_up(link.index).map_err(|_| fail(libc::ENETDOWN))?;
    }
    netlink.wait_until_noted(link.index)?;
    sys::be_promiscuous(socket.as_fd(), link.index)
        .map_err(|error| LinkError::new(format!("make {name} promiscuous"), error))?;
    Ok((socket, facts(config, link.name, link.index, link.index, false)))
}

fn facts(
    config: &PacketConfig,
    name: String,
    index: u32,
    bound_to: u32,
    is_pair: bool,
) -> PacketFacts {
    let (mtu, mac, offload) = (config.mtu, config.mac, config.offload);
    PacketFacts { name, index, bound_to, is_pair, mtu, mac, offload }
}

/// A socket that receives what comes on the interface, and not what is sent there.
fn open_socket(name: &str, index: u32) -> Result<OwnedFd, LinkError> {
    let fail = |error| LinkError::new(format!("open a packet socket on {name}"), error);
    let socket = sys::socket().map_err(fail)?;
    let wanted = [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING, libc::PACKET_AUXDATA];
    for option in wanted {
        sys::set_option(socket.as_fd(), libc::SOL_PACKET, option, 1).map_err(fail)?;
    }
    let buffers =
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)];
    for (force, ask) in buffers {
        let set = |option| sys::set_option(socket.as_fd(), libc::SOL_SOCKET, option, BUFFER_LEN);
        set(force).or_else(|_| set(ask)).map_err(fail)?;
    }
    sys::bind(socket.as_fd(), index).map_err(fail)?;
    // An interface that is down is said as an error of the socket.
    let _: io::Result<i32> = sys::option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR);
    Ok(socket)
}

/// Whether a descriptor is what its facts say.
pub(super) fn check_socket(socket: &OwnedFd, facts: &PacketFacts) -> Result<(), LinkError> {
    let attempt = || format!("take over the packet socket on {}", facts.name);
    let failed = |error| LinkError::new(attempt(), error);
    is_bound(socket, facts).map_err(failed)?;
    let (level, option) = (libc::SOL_PACKET, libc::PACKET_VNET_HDR);
    match sys::option(socket.as_fd(), level, option).map_err(failed)? {
        1 => Ok(()),
        _ => Err(LinkError::from_errno(attempt(), libc::EBADFD)),
    }
}

/// Whether the interface is still there.
pub(super) fn is_bound(socket: &OwnedFd, facts: &PacketFacts) -> io::Result<()> {
    match sys::bound_to(socket.as_fd())? {
        index if index == facts.bound_to => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ENODEV)),
    }
}
