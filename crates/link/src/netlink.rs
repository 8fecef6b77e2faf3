//! Owns a small rtnetlink client: lists links, addresses and routes; makes and changes links; adds
//! addresses, routes and neighbours. Called by `tap.rs`, `netns.rs`, `address_plan.rs` and by
//! whoever builds the namespaces of a demo or a test. Read `netlink/message.rs` for the bytes and
//! `netlink/list.rs` for the values. Every error names the object and what to do.

mod constants;
pub(crate) mod list;
mod message;
#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::LinkError;
use crate::sys;
use constants::*;
pub use list::{Address, Link, Route};
use message::{HEADER_LEN, Message, Request, attributes, messages, text, u32_at};

/// Larger than any datagram the kernel makes for a list (32 KiB, or one message if that is longer).
const RECEIVE_BUFFER_LEN: usize = 64 * 1024;
/// The kernel answers while the request is being sent; this only bounds the unthinkable.
const TIMEOUT_S: i64 = 30;
/// A list that changed while it was read is read again at most this often.
const DUMP_ATTEMPTS: u32 = 16;
/// Datagrams looked at before giving up on an answer (a list of 100,000 addresses fits).
const DATAGRAMS_MAX: u32 = 10_000;
/// The longest wait for what the kernel puts off: a new address to receive, a carrier to be noted.
/// It takes less than a millisecond as a rule, but waits for a free core.
const PATIENCE: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(1);

/// Where the far end of a veth pair is put.
#[derive(Copy, Clone, Debug)]
pub enum PeerNamespace<'a> {
    /// In the same namespace as the near end.
    Same,
    /// In the network namespace behind this descriptor.
    Descriptor(BorrowedFd<'a>),
    /// In the network namespace of the process (or thread) with this id.
    Process(u32),
}

/// A route socket in one network namespace: the one its maker's thread was in.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a route socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the process may open no more descriptors or the kernel has no netlink.
    pub fn open() -> Result<Netlink, LinkError> {
        let socket = sys::netlink_route_socket(TIMEOUT_S)
            .map_err(|error| LinkError::new("open a netlink socket", error))?;
        Ok(Netlink { socket, sequence: 0, buffer: vec![0; RECEIVE_BUFFER_LEN] })
    }

    /// All interfaces of the namespace.
    ///
    /// # Errors
    /// When the kernel refuses, or the list changes at every reading.
    pub fn links(&mut self) -> Result<Vec<Link>, LinkError> {
        let request = Request::new(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, &link_header(0, 0, 0))
            .attribute_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        self.dump("list the interfaces", request, RTM_NEWLINK, list::parse_link)
    }

    /// All addresses of all interfaces.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub fn addresses(&mut self) -> Result<Vec<Address>, LinkError> {
        let request = Request::new(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, &[0; 8]);
        self.dump("list the addresses", request, RTM_NEWADDR, list::parse_address)
    }

    /// All routes of all tables, without cached ones.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub fn routes(&mut self) -> Result<Vec<Route>, LinkError> {
        let request = Request::new(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, &[0; 12]);
        self.dump("list the routes", request, RTM_NEWROUTE, list::parse_listed_route)
    }

    /// The route that a packet to `address` would take; `None` when there is none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn route_to(&mut self, address: IpAddr) -> Result<Option<Route>, LinkError> {
        let mut header = [0; 12];
        header[0] = family(address);
        header[1] = list::bits(address);
        let request =
            Request::new(RTM_GETROUTE, NLM_F_REQUEST, &header).attribute(RTA_DST, &octets(address));
        self.get_route(request)
            .map_err(|refusal| refusal.during(format!("find the route to {address}")))
    }

    /// Waits, 10 s at most, until packets to `address` are delivered on this machine. A new IPv6
    /// address can be bound at once but receives only when the kernel has worked off a queue.
    ///
    /// # Errors
    /// ETIMEDOUT when that does not happen: its interface is down, or has no carrier.
    pub fn wait_until_local(&mut self, address: IpAddr) -> Result<(), LinkError> {
        let attempt = || format!("wait for the address {address} to receive");
        self.wait(PATIENCE, attempt, |netlink| {
            Ok(netlink.route_to(address)?.is_some_and(|route| route.is_local()))
        })
    }

    /// Waits, 10 s at most, until the interface sends. The kernel notes a carrier that comes after
    /// an interface was set up a little later, and drops without a word what is sent before: the
    /// first end of a veth pair needs that when the second is set up.
    ///
    /// # Errors
    /// ETIMEDOUT when that does not happen: it is down, or has no carrier; ENODEV when it is gone.
    pub fn wait_until_running(&mut self, index: u32) -> Result<(), LinkError> {
        let attempt = || format!("wait for the interface {index} to send");
        self.wait(PATIENCE, attempt, |netlink| Ok(netlink.link(index)?.is_running()))
    }

    /// As [`Netlink::wait_until_running`], if it has a carrier; without one, nothing is to wait for.
    ///
    /// # Errors
    /// ETIMEDOUT when the kernel does not note the carrier, ENODEV when the interface is gone.
    pub fn wait_until_noted(&mut self, index: u32) -> Result<(), LinkError> {
        let attempt = || format!("wait for the carrier of the interface {index} to be noted");
        self.wait(PATIENCE, attempt, |netlink| Ok(netlink.link(index)?.is_noted()))
    }

    /// Waits until `condition` holds, which is asked once at least.
    fn wait(
        &mut self,
        patience: Duration,
        attempt: impl FnOnce() -> String,
        mut condition: impl FnMut(&mut Netlink) -> Result<bool, LinkError>,
    ) -> Result<(), LinkError> {
        let deadline = Instant::now() + patience;
        while !condition(self)? {
            if Instant::now() >= deadline {
                return Err(LinkError::from_errno(attempt(), libc::ETIMEDOUT));
            }
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    fn link(&mut self, index: u32) -> Result<Link, LinkError> {
        let links = self.links()?;
        links.into_iter().find(|link| link.index == index).ok_or_else(|| {
            LinkError::from_errno(format!("find the interface {index}"), libc::ENODEV)
        })
    }

    /// The interface of this name.
    ///
    /// # Errors
    /// ENODEV when there is none.
    pub fn link_by_name(&mut self, name: &str) -> Result<Link, LinkError> {
        let links = self.links()?;
        links.into_iter().find(|link| link.name == name).ok_or_else(|| {
            LinkError::from_errno(format!("find the interface {name}"), libc::ENODEV)
        })
    }

    /// Sets the interface administratively up.
    ///
    /// # Errors
    /// When it does not exist or the caller may not.
    pub fn set_up(&mut self, index: u32) -> Result<(), LinkError> {
        let header = link_header(index, IFF_UP, IFF_UP);
        self.change_link(index, |name| format!("set the interface {name} up"), set_link(&header))
    }

    /// Sets the interface administratively down.
    ///
    /// # Errors
    /// As [`Netlink::set_up`].
    pub fn set_down(&mut self, index: u32) -> Result<(), LinkError> {
        let header = link_header(index, 0, IFF_UP);
        self.change_link(index, |name| format!("set the interface {name} down"), set_link(&header))
    }

    /// Sets the MTU in bytes (IP packet, without the Ethernet header).
    ///
    /// # Errors
    /// EINVAL when the driver does not take that size; else as [`Netlink::set_up`].
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), LinkError> {
        let request = set_link(&link_header(index, 0, 0)).attribute_u32(IFLA_MTU, mtu);
        self.change_link(index, |name| format!("set the MTU of {name} to {mtu}"), request)
    }

    /// Sets the length of the transmit queue, in frames. For a TAP it is how many frames wait for
    /// its reader before the kernel drops.
    ///
    /// # Errors
    /// As [`Netlink::set_up`].
    pub fn set_queue_len(&mut self, index: u32, frames: u32) -> Result<(), LinkError> {
        let request = set_link(&link_header(index, 0, 0)).attribute_u32(IFLA_TXQLEN, frames);
        self.change_link(
            index,
            |name| format!("set the queue of {name} to {frames} frames"),
            request,
        )
    }

    /// Has the kernel hand what it sends to the interface at once, without a queue of its own before
    /// that of the device: with many possible queues those would take a hundred megabytes.
    ///
    /// # Errors
    /// As [`Netlink::set_up`]; ENOENT where the kernel has no queueing disciplines.
    pub fn set_no_queue(&mut self, index: u32) -> Result<(), LinkError> {
        // struct tcmsg: family, three bytes of padding, interface, handle, parent, info.
        let words = [0, index, 0, TC_H_ROOT, 0];
        let header: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let request =
            Request::new(RTM_NEWQDISC, flags, &header).attribute_text(TCA_KIND, "noqueue");
        self.change_link(index, |name| format!("take the queue before {name} away"), request)
    }

    /// Sets the Ethernet address.
    ///
    /// # Errors
    /// EADDRNOTAVAIL for a group address; else as [`Netlink::set_up`].
    pub fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> Result<(), LinkError> {
        let request = set_link(&link_header(index, 0, 0)).attribute(IFLA_ADDRESS, &mac);
        self.change_link(index, |name| format!("set the Ethernet address of {name}"), request)
    }

    /// Renames the interface.
    ///
    /// # Errors
    /// EEXIST when the name is taken, EBUSY on older kernels when the interface is up.
    pub fn set_name(&mut self, index: u32, name: &str) -> Result<(), LinkError> {
        let request = set_link(&link_header(index, 0, 0)).attribute_text(IFLA_IFNAME, name);
        self.change_link(index, |old| format!("rename {old} to {name}"), request)
    }

    /// Adds an address with its on-link prefix. IPv6 addresses skip duplicate address detection
    /// (RFC 4862 section 5.4), so that they can be bound at once; when they also receive is what
    /// [`Netlink::wait_until_local`] tells.
    ///
    /// # Errors
    /// EEXIST when the interface has it already, EACCES when IPv6 is switched off there.
    pub fn add_address(
        &mut self,
        index: u32,
        address: IpAddr,
        prefix_len: u8,
    ) -> Result<(), LinkError> {
        let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
        let mut header = [family(address), prefix_len, flags as u8, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut request = Request::new(
            RTM_NEWADDR,
            NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            &header,
        )
        .attribute(IFA_LOCAL, &octets(address))
        .attribute(IFA_ADDRESS, &octets(address))
        .attribute_u32(IFA_FLAGS, flags);
        if let IpAddr::V4(address) = address
            && prefix_len < 31
        {
            let host_bits = u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
            let broadcast = u32::from(address) | host_bits;
            request = request.attribute(IFA_BROADCAST, &broadcast.to_be_bytes());
        }
        self.change_link(
            index,
            |name| format!("add the address {address}/{prefix_len} to {name}"),
            request,
        )
    }

    /// Adds a unicast route to the main table: by `gateway`, or on link without one.
    ///
    /// # Errors
    /// EEXIST when there is one, ENETUNREACH when the gateway is not on link, EINVAL when
    /// `destination` has bits beyond its prefix.
    pub fn add_route(
        &mut self,
        destination: IpAddr,
        prefix_len: u8,
        gateway: Option<IpAddr>,
        index: u32,
    ) -> Result<(), LinkError> {
        let on_link_v4 = gateway.is_none() && destination.is_ipv4();
        let scope = if on_link_v4 { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
        let mut header = [0; 12];
        header[..8].copy_from_slice(&[
            family(destination),
            prefix_len,
            0,
            0,
            RT_TABLE_MAIN,
            RTPROT_STATIC,
            scope,
            RTN_UNICAST,
        ]);
        let mut request = Request::new(
            RTM_NEWROUTE,
            NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            &header,
        )
        .attribute(RTA_DST, &octets(destination))
        .attribute_u32(RTA_OIF, index);
        if let Some(gateway) = gateway {
            request = request.attribute(RTA_GATEWAY, &octets(gateway));
        }
        self.change_link(
            index,
            |name| format!("add a route to {destination}/{prefix_len} by {name}"),
            request,
        )
    }

    /// Adds a route to one host on the interface's link whose TCP connections, in both directions of opening, use this
    /// congestion control (RTAX_CC_ALGO): that needs no right outside the namespace, and no word from the programs.
    ///
    /// # Errors
    /// EINVAL when the kernel has no such algorithm; else as [`Netlink::add_route`].
    pub fn add_host_route_with_congestion_control(
        &mut self,
        host: IpAddr,
        index: u32,
        algorithm: &str,
    ) -> Result<(), LinkError> {
        let bits = if host.is_ipv4() { 32 } else { 128 };
        let scope = if host.is_ipv4() { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
        let mut header = [0; 12];
        header[..8].copy_from_slice(&[
            family(host),
            bits,
            0,
            0,
            RT_TABLE_MAIN,
            RTPROT_STATIC,
            scope,
            RTN_UNICAST,
        ]);
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let request = Request::new(RTM_NEWROUTE, flags, &header)
            .attribute(RTA_DST, &octets(host))
            .attribute_u32(RTA_OIF, index)
            .nested(RTA_METRICS, &[], |metrics| metrics.attribute_text(RTAX_CC_ALGO, algorithm));
        let attempt = |name: &str| format!("add a route to {host} by {name} with {algorithm}");
        self.change_link(index, attempt, request)
    }

    /// Adds (or replaces) a permanent neighbour: `address` on that interface has this `mac`.
    ///
    /// # Errors
    /// As [`Netlink::set_up`].
    pub fn add_neighbour(
        &mut self,
        index: u32,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), LinkError> {
        let mut header = [0; 12];
        header[0] = family(address);
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let request = Request::new(RTM_NEWNEIGH, flags, &header)
            .attribute(NDA_DST, &octets(address))
            .attribute(NDA_LLADDR, &mac);
        self.change_link(index, |name| format!("add the neighbour {address} to {name}"), request)
    }

    /// Makes a veth pair: `name` in this namespace, `peer_name` in `peer_namespace`. Both are down.
    ///
    /// # Errors
    /// EEXIST when a name is taken, ESRCH or EBADF when the peer's namespace does not exist.
    pub fn create_veth(
        &mut self,
        name: &str,
        peer_name: &str,
        peer_namespace: PeerNamespace<'_>,
    ) -> Result<(), LinkError> {
        let header = link_header(0, 0, 0);
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let request = Request::new(RTM_NEWLINK, flags, &header)
            .attribute_text(IFLA_IFNAME, name)
            .nested(IFLA_LINKINFO, &[], |info| {
                info.attribute_text(IFLA_INFO_KIND, "veth").nested(IFLA_INFO_DATA, &[], |data| {
                    data.nested(VETH_INFO_PEER, &header, |peer| {
                        let peer = peer.attribute_text(IFLA_IFNAME, peer_name);
                        match peer_namespace {
                            PeerNamespace::Same => peer,
                            PeerNamespace::Descriptor(fd) => {
                                peer.attribute_u32(IFLA_NET_NS_FD, fd.as_raw_fd() as u32)
                            }
                            PeerNamespace::Process(id) => peer.attribute_u32(IFLA_NET_NS_PID, id),
                        }
                    })
                })
            });
        self.change(request)
            .map_err(|refusal| refusal.during(format!("make the veth pair {name} and {peer_name}")))
    }

    /// Removes an interface (with its peer, for a veth).
    ///
    /// # Errors
    /// ENODEV when it does not exist, EOPNOTSUPP for interfaces that cannot be removed.
    pub fn delete_link(&mut self, index: u32) -> Result<(), LinkError> {
        let header = link_header(index, 0, 0);
        let request = Request::new(RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, &header);
        self.change_link(index, |name| format!("remove the interface {name}"), request)
    }

    /// As [`Netlink::change`], for a request about one interface: its name is looked up only when
    /// the error text needs it.
    fn change_link(
        &mut self,
        index: u32,
        attempt: impl FnOnce(&str) -> String,
        request: Request,
    ) -> Result<(), LinkError> {
        self.change(request).map_err(|refusal| {
            let links = self.links().unwrap_or_default();
            let name = links.into_iter().find(|link| link.index == index).map(|link| link.name);
            refusal.during(attempt(&name.unwrap_or_else(|| format!("interface {index}"))))
        })
    }

    /// Sends a request that changes something and waits for its acknowledgement.
    fn change(&mut self, request: Request) -> Result<(), Refusal> {
        let request = request.finish(self.next_sequence());
        sys::netlink_send(self.socket.as_fd(), &request).map_err(Refusal::System)?;
        for _ in 0..DATAGRAMS_MAX {
            let len = self.receive().map_err(Refusal::System)?;
            for message in messages(&self.buffer[..len]) {
                let message = message.map_err(|_| Refusal::unreadable())?;
                if message.sequence == self.sequence && message.kind == NLMSG_ERROR {
                    return acknowledgement(&message);
                }
            }
        }
        Err(Refusal::unreadable())
    }

    /// Sends a request for one route and waits for the answer.
    fn get_route(&mut self, request: Request) -> Result<Option<Route>, Refusal> {
        let request = request.finish(self.next_sequence());
        sys::netlink_send(self.socket.as_fd(), &request).map_err(Refusal::System)?;
        for _ in 0..DATAGRAMS_MAX {
            let len = self.receive().map_err(Refusal::System)?;
            for message in messages(&self.buffer[..len]) {
                let message = message.map_err(|_| Refusal::unreadable())?;
                match message.kind {
                    _ if message.sequence != self.sequence => {}
                    RTM_NEWROUTE => return Ok(list::parse_route(message.payload)),
                    NLMSG_ERROR => {
                        return match acknowledgement(&message) {
                            Err(Refusal::Kernel(error, _)) if is_unreachable(&error) => Ok(None),
                            other => other.map(|()| None),
                        };
                    }
                    _ => {}
                }
            }
        }
        Err(Refusal::unreadable())
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Reads a whole list; again when the kernel says it changed meanwhile.
    fn dump<T>(
        &mut self,
        attempt: &str,
        request: Request,
        kind: u16,
        parse: fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, LinkError> {
        let mut request = request.finish(0);
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.next_sequence();
            message::set_sequence(&mut request, sequence);
            sys::netlink_send(self.socket.as_fd(), &request)
                .map_err(|error| LinkError::new(attempt, error))?;
            let list = self.receive_list(kind, parse).map_err(|refusal| refusal.during(attempt))?;
            if let Some(list) = list {
                return Ok(list);
            }
        }
        Err(LinkError::from_errno(attempt, libc::EAGAIN))
    }

    /// Receives the answers to the list request just sent; `None` when the list changed meanwhile.
    fn receive_list<T>(
        &mut self,
        kind: u16,
        parse: fn(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Refusal> {
        let mut list = Vec::new();
        let mut interrupted = false;
        for _ in 0..DATAGRAMS_MAX {
            let len = self.receive().map_err(Refusal::System)?;
            for message in messages(&self.buffer[..len]) {
                let message = message.map_err(|_| Refusal::unreadable())?;
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => return Ok((!interrupted).then_some(list)),
                    NLMSG_ERROR => acknowledgement(&message)?,
                    other if other == kind => list.extend(parse(message.payload)),
                    _ => {}
                }
            }
        }
        Err(Refusal::unreadable())
    }

    /// Receives one datagram from the kernel into the buffer; others' are passed over.
    fn receive(&mut self) -> io::Result<usize> {
        for _ in 0..DATAGRAMS_MAX {
            match sys::netlink_receive(self.socket.as_fd(), &mut self.buffer) {
                Ok((len, 0)) => return Ok(len),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EPROTO))
    }
}

/// Whether the kernel's answer is that no route leads there.
fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH))
}

/// Why a request came to nothing, before it is known how to name the attempt.
enum Refusal {
    /// Sending or receiving failed.
    System(io::Error),
    /// The kernel answered with an error, and perhaps a sentence.
    Kernel(io::Error, Option<String>),
}

impl Refusal {
    fn unreadable() -> Refusal {
        Refusal::System(io::Error::from_raw_os_error(libc::EPROTO))
    }

    fn during(self, attempt: impl Into<String>) -> LinkError {
        match self {
            Refusal::System(error) => LinkError::new(attempt, error),
            Refusal::Kernel(error, message) => {
                LinkError::new(attempt, error).with_kernel_message(message)
            }
        }
    }
}

/// The result an NLMSG_ERROR message carries (error 0 is success).
fn acknowledgement(message: &Message<'_>) -> Result<(), Refusal> {
    match u32_at(message.payload, 0) {
        None => Err(Refusal::unreadable()),
        Some(0) => Ok(()),
        Some(negated) => {
            let error = io::Error::from_raw_os_error((negated as i32).wrapping_neg());
            Err(Refusal::Kernel(error, extended_message(message)))
        }
    }
}

/// The kernel's sentence in an NLMSG_ERROR message, when it sent one.
fn extended_message(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let request_len = if message.flags & NLM_F_CAPPED != 0 {
        HEADER_LEN
    } else {
        (u32_at(message.payload, 4)? as usize).checked_next_multiple_of(4)?
    };
    attributes(message.payload.get(4..)?.get(request_len..)?)
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, value)| text(value))
}

/// `struct ifinfomsg`: any family, this index, these flags of those in `change`.
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = AF_UNSPEC;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn set_link(header: &[u8; 16]) -> Request {
    Request::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, header)
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
