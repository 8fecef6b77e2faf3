//! What other servers on the same link own: packets handed to them and taken from them, which flows and ports
//! are ours, what the speaker tells the others and hears from them.
//!
//! A shard without [`Steered`] owns everything. Packets come out of [`Shard::poll_forward`] and go
//! into [`Shard::handle_forwarded`] of their owner; who carries them between the two is the service's
//! affair. Which server is asked is decided in the crate's `steering.rs`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Shard;
use super::receive::Ingress;
use crate::control::names::ServerNumber;
use crate::counters::Counter;
use crate::flow_table::FlowKey;
use crate::migration::protocol::MoveMessage;
use crate::network::NetworkUpdate;
use crate::steering::{Destination, SPEAKER, Steering};
use crate::streams::Streams;
use crate::time::Instant;

/// One server of several on a link.
#[derive(Clone, Debug)]
pub struct Steered {
    /// Which one this shard is.
    pub server: ServerNumber,
    /// Who owns what.
    pub steering: Arc<Steering>,
}

impl Steered {
    /// See [`Steering::move_flows`]. Others who share the map keep it as it was.
    pub(super) fn move_flows(&mut self, bucket: u16, version: u32, server: ServerNumber) -> bool {
        let is_news = version > self.steering.version_of_flows(bucket);
        is_news && Arc::make_mut(&mut self.steering).move_flows(bucket, version, server)
    }
}

/// How a packet came to be handed over.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ForwardKind {
    /// It was put together from fragments.
    Reassembled,
    /// We sent it to an address of ours.
    Own,
    /// It came for a flow that has moved. Its checksums are verified.
    Moved {
        /// It is from outside.
        wire: bool,
        /// How often it has been sent after the flow, this time included.
        times: u8,
        /// As [`crate::RxMeta::segment_size`].
        segment_size: u16,
    },
    /// No packet: for the other server's [`crate::migration::protocol::Mover`]. It must not be dropped for lack of
    /// room, and nothing may overtake it.
    Move(MoveMessage),
}

/// An IP packet for another server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forward {
    /// Whom it is for.
    pub to: ServerNumber,
    /// How it came.
    pub kind: ForwardKind,
    /// The packet, up to 65,535 bytes. Give it back with [`Shard::recycle`].
    pub packet: Vec<u8>,
}

impl Shard {
    /// The next packet for another server.
    pub fn poll_forward(&mut self) -> Option<Forward> {
        self.forwards.pop_front()
    }

    /// The memory of a packet that was forwarded.
    pub fn recycle(&mut self, packet: Vec<u8>) {
        self.buffers.give(packet);
    }

    /// A packet that another server has found to be ours.
    pub fn handle_forwarded(
        &mut self,
        now: Instant,
        kind: ForwardKind,
        packet: &[u8],
        streams: &mut impl Streams,
    ) {
        self.now = now;
        let ingress = match kind {
            ForwardKind::Reassembled => Ingress::REASSEMBLED,
            ForwardKind::Own => Ingress::OWN,
            ForwardKind::Moved { wire, times, segment_size } => {
                Ingress { wire, segment_size, forwarded: times, ..Ingress::OWN }
            }
            // Not a packet: the caller's mistake.
            ForwardKind::Move(_) => return,
        };
        self.counters.count(Counter::PacketsTakenOver);
        if ingress.wire {
            self.counters.count(Counter::FramesReceived);
            self.counters.add(Counter::BytesReceived, packet.len() as u64);
        } else {
            self.counters.count(Counter::LoopbackPackets);
        }
        let verdict = self.handle_ip(ingress, packet, streams);
        self.tally(verdict);
    }

    /// Which server we are, and who owns what; `None` when everything is ours.
    pub fn steered(&self) -> Option<&Steered> {
        self.steered.as_ref()
    }

    /// There are other servers from now on, more or fewer, or others at all: what is ours stays ours until its bucket
    /// moves. `steered` is taken if we were alone; else the numbers of its servers, and of its buckets what is
    /// nobody's any more.
    pub fn set_servers(&mut self, steered: &Steered) {
        let servers = steered.steering.servers();
        match &mut self.steered {
            Some(own) => Arc::make_mut(&mut own.steering).follow(&steered.steering),
            none => *none = Some(steered.clone()),
        }
        self.groups.raise_limit(self.limits.groups as usize * usize::from(servers));
        // Those that come are told what there is by whoever carries it; what changes is told from now on.
        self.network_update_due |= self.is_speaker();
    }

    /// Whether we answer for all servers on the link.
    pub fn is_speaker(&self) -> bool {
        self.steered.as_ref().is_none_or(|steered| steered.server == SPEAKER)
    }

    /// The other server that owns a TCP flow; `None` when it is ours. A flow of a bucket that is on its
    /// way to us is ours.
    pub fn flow_owner(&self, local: SocketAddr, remote: SocketAddr) -> Option<ServerNumber> {
        let steered = self.steered.as_ref()?;
        let owner = steered.steering.owner_of_flow(local, remote);
        (owner != steered.server).then_some(owner)
    }

    /// The other server that is home of a UDP port; `None` when we are.
    pub fn port_owner(&self, port: u16) -> Option<ServerNumber> {
        let steered = self.steered.as_ref()?;
        let owner = steered.steering.owner_of_port(port);
        (owner != steered.server).then_some(owner)
    }

    /// The other server that owns every flow to `remote`, whatever port we chose.
    pub(super) fn owner_of_all_flows_to(&self, remote: SocketAddr) -> Option<ServerNumber> {
        let steered = self.steered.as_ref()?;
        if steered.steering.depends_on_local_port() {
            return None;
        }
        self.flow_owner(SocketAddr::new(remote.ip(), 0), remote)
    }

    /// Whether a flow cannot be begun here: it is another server's, or of a bucket that is on its way to us.
    pub(super) fn is_elsewhere(&self, key: &FlowKey) -> bool {
        let Some(steered) = &self.steered else { return false };
        let bucket = steered.steering.bucket_of_flow(key.local(), key.remote());
        steered.steering.owner_of_flows(bucket) != steered.server
            || self.arriving.buckets.contains_key(&bucket)
    }

    /// Hands a packet to its owner; gives it back when that is us.
    pub(super) fn forward(&mut self, kind: ForwardKind, packet: Vec<u8>) -> Option<Vec<u8>> {
        let Some(steered) = &self.steered else { return Some(packet) };
        let to = match steered.steering.destination_of_packet(&packet) {
            Destination::Server(server) if server != steered.server => server,
            _ => return Some(packet),
        };
        self.queue_forward(Forward { to, kind, packet });
        None
    }

    /// Queues a packet for another server.
    pub(super) fn queue_forward(&mut self, forward: Forward) {
        if self.forwards.len() < self.limits.loopback_packets as usize {
            self.counters.count(Counter::PacketsForwarded);
            self.forwards.push_back(forward);
        } else {
            self.counters.count(Counter::ForwardsDropped);
            self.buffers.give(forward.packet);
        }
    }

    /// What the speaker has to tell the other servers since the last call, if anything.
    pub fn poll_network_update(&mut self) -> Option<NetworkUpdate> {
        std::mem::take(&mut self.network_update_due).then(|| self.network_update())
    }

    /// The whole of what a server that starts has to be told by the speaker.
    pub fn network_update(&self) -> NetworkUpdate {
        self.network.update()
    }

    /// The speaker has learned, or lost, addresses, routers or name servers.
    pub fn adopt_network_update(&mut self, now: Instant, update: &NetworkUpdate) {
        self.now = now;
        self.network.follow(update);
        self.adopt_network();
    }

    /// The groups that our sockets are in, when that has changed since the last call: the speaker
    /// reports them. Nothing from the speaker itself.
    pub fn poll_memberships(&mut self) -> Option<Vec<IpAddr>> {
        let due = !self.is_speaker() && self.groups.take_changed();
        due.then(|| self.memberships())
    }

    /// All groups that our sockets are in.
    pub fn memberships(&self) -> Vec<IpAddr> {
        self.groups.iter().collect()
    }

    /// The groups that sockets of another server are in, all of them: the speaker joins them too,
    /// and leaves those that it was told before and not now.
    pub fn set_memberships(&mut self, now: Instant, server: ServerNumber, groups: &[IpAddr]) {
        self.now = now;
        let known = self.foreign_groups.entry(server).or_default();
        let before = std::mem::take(known);
        let mut joined = Vec::with_capacity(groups.len());
        for group in groups {
            if !group.is_multicast() || joined.contains(group) {
                continue;
            }
            let random = self.keys.draw();
            match self.groups.join(now, *group, random) {
                Some(_) => joined.push(*group),
                None => self.counters.count(Counter::GroupsRefused),
            }
        }
        // After the new ones, so that nobody hears of a leave between the two.
        for group in before {
            self.groups.leave(group);
        }
        let _ = self.foreign_groups.insert(server, joined);
    }
}
