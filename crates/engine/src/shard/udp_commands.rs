//! What applications ask of UDP sockets: open, connect, options, groups, close.
//!
//! Called by the service between bursts. Sending is in `udp_send.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Shard;
use super::entry::Socket;
use super::udp::DatagramSocket;
use crate::counters::Counter;
use crate::datagram::{DatagramOption, DatagramOptions};
use crate::error::{ConnectError, GroupError, ListenError};
use crate::socket_id::SocketId;
use crate::time::Instant;

impl Shard {
    /// Opens a UDP socket at `local`. Port 0 lets the shard choose one of the ephemeral range; an
    /// unspecified address stands for all of ours of its family, and for IPv4 too if it is `::`
    /// without `v6only`. A multicast or broadcast address receives what is sent there.
    ///
    /// # Errors
    /// See [`ListenError`]; [`ListenError::NoPort`] when every port of the ephemeral range is taken,
    /// [`ListenError::Elsewhere`] when another server is home of the port.
    pub fn open_datagram(
        &mut self,
        local: SocketAddr,
        options: DatagramOptions,
    ) -> Result<SocketId, ListenError> {
        let addr = local.ip().to_canonical();
        let receives = match addr {
            IpAddr::V4(addr) => self.routing.is_broadcast(addr),
            IpAddr::V6(_) => false,
        };
        let possible = addr.is_unspecified() || addr.is_multicast() || receives;
        if !possible && !self.routing.is_ours(addr) {
            return Err(ListenError::AddressNotAvailable);
        }
        if self.sockets.is_full() {
            return Err(ListenError::TooManySockets);
        }
        let local = SocketAddr::new(addr, local.port());
        let mut socket = DatagramSocket {
            bound: local,
            local,
            remote: None,
            options,
            groups: Vec::new(),
            queued_bytes: 0,
        };
        if local.port() == 0 {
            if let Some(own) = &self.steered
                && !own.steering.has_ports(own.server)
            {
                return Err(ListenError::Elsewhere(own.steering.stand_in_for(own.server)));
            }
            let port = self.choose_datagram_port(&socket).ok_or(ListenError::NoPort)?;
            socket.bound.set_port(port);
            socket.local.set_port(port);
        } else if let Some(owner) = self.port_owner(local.port()) {
            return Err(ListenError::Elsewhere(owner));
        } else {
            self.datagrams.check(&socket.place(SocketId::new(0, 0)))?;
        }
        let mut place = socket.place(SocketId::new(0, 0));
        let id = self
            .sockets
            .insert_with(|_| Socket::Datagram(Box::new(socket)))
            .ok_or(ListenError::TooManySockets)?;
        place.id = id;
        self.datagrams.insert(place);
        self.datagram_count += 1;
        Ok(id)
    }

    /// Fixes the peer of a socket: it hears nobody else, sends there by default, and its source
    /// address is fixed too. `None` dissolves that.
    ///
    /// # Errors
    /// See [`ConnectError`]; the socket stays as it was.
    pub fn connect_datagram(
        &mut self,
        id: SocketId,
        remote: Option<SocketAddr>,
    ) -> Result<(), ConnectError> {
        let Some(socket) = self.sockets.get(id).and_then(Socket::datagram) else { return Ok(()) };
        let (before, bound, broadcast) = (socket.place(id), socket.bound, socket.options.broadcast);
        let (local, remote) = match remote {
            None => (bound, None),
            Some(remote) => {
                let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
                let source = self.source_of_connected(&before, bound, remote, broadcast)?;
                // One that listens to a group goes on doing so.
                let own = if bound.ip().is_unspecified() { source } else { bound.ip() };
                (SocketAddr::new(own, bound.port()), Some(remote))
            }
        };
        self.datagrams.remove(&before);
        if let Some(socket) = self.sockets.get_mut(id).and_then(Socket::datagram_mut) {
            socket.local = local;
            socket.remote = remote;
            self.datagrams.insert(socket.place(id));
        }
        Ok(())
    }

    /// Changes an option; names of other sockets are ignored.
    pub fn set_datagram_option(&mut self, id: SocketId, option: DatagramOption) {
        let Some(socket) = self.sockets.get_mut(id).and_then(Socket::datagram_mut) else { return };
        let before = socket.place(id);
        socket.options.set(option);
        let after = socket.place(id);
        if before.reuse_address != after.reuse_address {
            self.datagrams.remove(&before);
            self.datagrams.insert(after);
        }
    }

    /// All options of a UDP socket.
    pub fn datagram_options(&self, id: SocketId) -> Option<DatagramOptions> {
        self.sockets.get(id).and_then(Socket::datagram).map(|socket| socket.options)
    }

    /// A socket joins a multicast group; routers are told (IGMPv2, MLDv1). `interface` is one of our
    /// addresses, or unspecified.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn join_group(
        &mut self,
        now: Instant,
        id: SocketId,
        group: IpAddr,
        interface: IpAddr,
    ) -> Result<(), GroupError> {
        self.now = now;
        let socket = self.group_member(id, group, interface)?;
        if socket.groups.contains(&group) {
            return Err(GroupError::AlreadyMember);
        }
        if socket.groups.len() >= self.limits.groups_per_socket as usize {
            return Err(GroupError::TooManyGroups);
        }
        let random = self.keys.draw();
        match self.groups.join(now, group, random) {
            None => return Err(GroupError::TooManyGroups),
            Some(true) => self.counters.count(Counter::GroupsJoined),
            Some(false) => {}
        }
        if let Some(socket) = self.sockets.get_mut(id).and_then(Socket::datagram_mut) {
            socket.groups.push(group);
        }
        Ok(())
    }

    /// A socket leaves a multicast group.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn leave_group(
        &mut self,
        now: Instant,
        id: SocketId,
        group: IpAddr,
        interface: IpAddr,
    ) -> Result<(), GroupError> {
        self.now = now;
        if !self.group_member(id, group, interface)?.groups.contains(&group) {
            return Err(GroupError::NotMember);
        }
        if let Some(socket) = self.sockets.get_mut(id).and_then(Socket::datagram_mut) {
            socket.groups.retain(|joined| *joined != group);
        }
        self.groups.leave(group);
        Ok(())
    }

    /// A UDP socket is gone at once, without an event; what it has sent still goes out.
    pub(super) fn close_datagram(&mut self, id: SocketId) {
        let Some(Socket::Datagram(socket)) = self.sockets.remove(id) else { return };
        self.datagrams.remove(&socket.place(id));
        self.datagram_count -= 1;
        for group in &socket.groups {
            self.groups.leave(*group);
        }
    }

    fn group_member(
        &self,
        id: SocketId,
        group: IpAddr,
        interface: IpAddr,
    ) -> Result<&DatagramSocket, GroupError> {
        let socket = self.sockets.get(id).and_then(Socket::datagram);
        let socket = socket.ok_or(GroupError::NoSocket)?;
        let family_fits = socket.bound.is_ipv6() || group.is_ipv4();
        if !group.is_multicast() || !family_fits {
            return Err(GroupError::NotMulticast);
        }
        if !interface.is_unspecified() && !self.routing.is_ours(interface) {
            return Err(GroupError::NoInterface);
        }
        Ok(socket)
    }

    /// The source address of a socket that is to be connected.
    fn source_of_connected(
        &self,
        place: &crate::datagram_table::Place,
        bound: SocketAddr,
        remote: SocketAddr,
        broadcast: bool,
    ) -> Result<IpAddr, ConnectError> {
        let is_broadcast = match remote.ip() {
            IpAddr::V4(addr) => self.routing.is_broadcast(addr),
            IpAddr::V6(_) => false,
        };
        if is_broadcast && !broadcast {
            return Err(ConnectError::BroadcastRefused);
        }
        if remote.port() == 0 || remote.ip().is_unspecified() {
            return Err(ConnectError::BadRemote);
        }
        if !family_fits(bound, place.v6only, remote.ip()) {
            return Err(ConnectError::FamilyMismatch);
        }
        if self.routing.next_hop(remote.ip()).is_none() {
            return Err(ConnectError::NetworkUnreachable);
        }
        if self.is_source(bound.ip()) {
            return Ok(bound.ip());
        }
        self.routing.source_for(remote.ip()).ok_or(ConnectError::NetworkUnreachable)
    }

    /// Whether a socket's own address can be the source of what it sends.
    pub(super) fn is_source(&self, addr: IpAddr) -> bool {
        !addr.is_unspecified() && self.routing.is_ours(addr)
    }

    /// A free port of the ephemeral range; where it starts to look only we can guess (RFC 6056).
    fn choose_datagram_port(&mut self, socket: &DatagramSocket) -> Option<u16> {
        let nobody = match socket.local.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let (_, counter) =
            self.keys.port_choice(socket.local.ip(), SocketAddr::new(nobody, socket.local.port()));
        let start = (self.keys.draw() as u32, counter);
        // Not even sockets that would share the port are to meet by chance.
        let mut place = socket.place(SocketId::new(0, 0));
        place.reuse_address = false;
        place.reuse_port = false;
        let (datagrams, steered) = (&self.datagrams, &self.steered);
        let is_home = |port| {
            steered.as_ref().is_none_or(|own| own.steering.owner_of_port(port) == own.server)
        };
        self.ports.choose(start, |port| {
            place.local.set_port(port);
            is_home(port) && datagrams.check(&place).is_ok()
        })
    }
}

/// Whether a socket of this address can have to do with a peer of that family.
pub(super) fn family_fits(bound: SocketAddr, v6only: bool, remote: IpAddr) -> bool {
    match (bound.ip(), remote) {
        (IpAddr::V6(own), IpAddr::V4(_)) => own.is_unspecified() && !v6only,
        (own, remote) => own.is_ipv4() == remote.is_ipv4(),
    }
}
