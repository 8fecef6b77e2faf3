//! The switch between the servers of a plan: which server a frame from the link is for, and the
//! frames that cross from one server to another.
//!
//! Owned by `link_server`, which asks it about each frame where there are several transport servers
//! or this one has no link; a service of one server has none. What decides is
//! `haypile_engine::steering`, what carries is `frame_peers`. Four things cross:
//!
//! * frames from a link server to the transport server that they are for (superframes and
//!   unfinished checksums as the link gave them);
//! * frames that a transport server without a link sends, to the link server that sends for it;
//! * packets put together from fragments, or sent to ourselves, to their owner;
//! * what the speaker has learned of the network, to the others, and their groups, to the speaker;
//! * buckets whose flows move, and what belongs to that (`aside`): it may not be lost, and keeps its place
//!   among the frames.
//!
//! A frame handed over is not asked about again, so that none goes in circles. One that finds no room
//! is dropped and counted, as on a full link; one to be sent waits, as for a full link.

#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use haypile_engine::control::names::ServerNumber;
use haypile_engine::steering::{Destination, Rule, SPEAKER, Steering};
use haypile_engine::{Forward, ForwardKind, Instant, NetworkUpdate, RxMeta, Shard, Steered};
use haypile_link::port::{PartialChecksum, Port, TX_HEADROOM, TxFrame};
use haypile_shm::peer::PEER_FRAME_LINES;
use haypile_shm::record_ring::Record;

use crate::aside::{Aside, Inward, Outboxes, Outward, Sayer, Switched};
use crate::frame_peers::{FramePeers, PushFrame};
use crate::link_server::{BURST, LinkServer};
use crate::managers::wire::FlowsMoved;
use crate::roles::Roles;
use crate::roster::Roster;

/// The longest record: a packet of 64 KiB with its Ethernet header and a VLAN tag.
const RECORD_MAX: usize = 65_535 + 18;
/// Bytes of an address among groups: its family, and itself.
const GROUP_LEN: usize = 17;

/// Who is who among the servers of a plan. Numbers of servers count transport servers, numbers of
/// processes all servers of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// Which transport server we are, if we are one.
    pub own: Option<ServerNumber>,
    /// We have a queue of the link.
    pub has_link: bool,
    /// The process of each transport server.
    pub transports: Vec<u16>,
    /// The process that sends for us, if we do not ourselves.
    pub sends_over: Option<u16>,
}

impl Members {
    /// As one server sees it. `None` where nothing has to be switched: the only transport server has
    /// the link, or this is a connection manager alone.
    pub fn of(roles: &Roles) -> Option<Members> {
        let members = Members::all(roles);
        let alone = members.transports.len() == 1 && members.own.is_some() && members.has_link;
        let stranger = members.own.is_none() && !members.has_link;
        (!alone && !stranger).then_some(members)
    }

    fn all(roles: &Roles) -> Members {
        let transports = 0..roles.transport_count();
        let sender = roles.transport().and_then(|own| roles.process_of_link(roles.link_of(own)));
        Members {
            own: roles.transport(),
            has_link: roles.link().is_some(),
            transports: transports.filter_map(|one| roles.process_of_transport(one)).collect(),
            sends_over: sender.filter(|process| *process != roles.own().number),
        }
    }
}

/// What a plan with several transport servers, or links of their own, adds to one of its servers.
#[derive(Debug, Default)]
pub struct Switching {
    /// What its shard owns; `None`: everything.
    pub steered: Option<Steered>,
    /// What its link server asks; `None`: everything is for its shard.
    pub switch: Option<Switch>,
}

impl Switching {
    /// For one server. All servers of a service have the same `secret`.
    pub fn of(roles: &Roles, rule: Rule, secret: &[u8; 32]) -> Switching {
        Switching::with(Members::of(roles), roles, (rule, secret), false)
    }

    /// For one that is there while servers come and go. One whose shard has been one of several stays so even if
    /// it is the only one left: what it knows of moves stays true.
    pub fn following(roles: &Roles, rule: Rule, secret: &[u8; 32], was_steered: bool) -> Switching {
        let members = if was_steered { Some(Members::all(roles)) } else { Members::of(roles) };
        Switching::with(members, roles, (rule, secret), was_steered)
    }

    fn with(
        members: Option<Members>,
        roles: &Roles,
        (rule, secret): (Rule, &[u8; 32]),
        was_steered: bool,
    ) -> Switching {
        let Some(members) = members else { return Switching::default() };
        let steering = Arc::new(steering_of(roles.roster(), rule, secret));
        let steered = members.own.filter(|_| was_steered || members.transports.len() > 1);
        let steered = steered.map(|server| Steered { server, steering: Arc::clone(&steering) });
        Switching { steered, switch: Some(Switch::new(members, steering)) }
    }
}

/// How the frames of a link are spread over the transport servers, before any bucket has moved.
pub fn steering_of(roster: &Roster, rule: Rule, secret: &[u8; 32]) -> Steering {
    roster.steering(Steering::key_of(secret), rule)
}

/// What happened at a switch. All count upwards.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct SwitchCounters {
    /// Frames from the link for this server.
    pub here: u64,
    /// Frames from the link that were handed to another server, copies counted each.
    pub forwarded: u64,
    /// Frames and packets that another server handed to this one.
    pub taken: u64,
    /// Frames of other servers that were sent over our link.
    pub sent_for_others: u64,
    /// Frames and packets dropped because their server had no room or was not there.
    pub dropped: u64,
    /// Bursts cut short because whoever sends for us took no more for now.
    pub blocked: u64,
    /// Dropped because they were nothing that this server takes.
    pub misdirected: u64,
}

impl SwitchCounters {
    /// Every counter with its name, in a fixed order.
    pub fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("here", self.here),
            ("forwarded", self.forwarded),
            ("taken", self.taken),
            ("sent_for_others", self.sent_for_others),
            ("dropped", self.dropped),
            ("blocked", self.blocked),
            ("misdirected", self.misdirected),
        ]
    }
}

/// One server's part of the switch.
#[derive(Debug)]
pub struct Switch {
    members: Members,
    /// Asked where no shard has a map: only one who owns flows follows those that move there.
    steering: Arc<Steering>,
    counters: SwitchCounters,
    /// What found no room and may not be lost.
    outboxes: Outboxes,
    /// Processes that have yet to be told what we know.
    untold: Vec<u16>,
    /// Room for what comes from another server.
    room: Vec<u8>,
}

/// Where a frame from the link goes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// To our own shard.
    Here,
    /// To another transport server.
    Server(ServerNumber),
    /// To ours, if we have one, and all others.
    Everyone,
}

/// What a record on a ring of frames is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Crossing {
    /// A frame for the shard.
    Received(RxMeta),
    /// A frame for the link.
    ToSend { checksum: Option<PartialChecksum>, segment_size: u16 },
    /// A packet for the shard.
    Packet(ForwardKind),
    /// A [`NetworkUpdate`].
    Network,
    /// The groups of the sender's sockets.
    Groups,
    /// No frame.
    Aside(Aside),
}

const KIND_SHIFT: u32 = 56;
const UNFINISHED: u64 = 1 << 48;
const CHECKSUM_VALID: u64 = 1 << 49;
const FROM_WIRE: u64 = 1 << 48;

impl Crossing {
    fn encode(self) -> u64 {
        let (kind, rest) = match self {
            Crossing::Received(meta) => {
                let valid = if meta.checksum_valid { CHECKSUM_VALID } else { 0 };
                (1, u64::from(meta.segment_size) | valid)
            }
            Crossing::ToSend { checksum, segment_size } => {
                let checksum = checksum.map_or(0, |PartialChecksum { start, offset }| {
                    UNFINISHED | u64::from(start) << 16 | u64::from(offset) << 32
                });
                (2, u64::from(segment_size) | checksum)
            }
            Crossing::Packet(ForwardKind::Reassembled) => (3, 0),
            Crossing::Packet(ForwardKind::Own) => (4, 0),
            Crossing::Packet(ForwardKind::Moved { wire, times, segment_size }) => {
                let wire = if wire { FROM_WIRE } else { 0 };
                (7, u64::from(segment_size) | u64::from(times) << 16 | wire)
            }
            Crossing::Packet(ForwardKind::Move(_)) | Crossing::Aside(Aside::Move) => (8, 0),
            Crossing::Aside(Aside::Notice) => (9, 0),
            Crossing::Aside(Aside::Switched) => (10, 0),
            Crossing::Network => (5, 0),
            Crossing::Groups => (6, 0),
        };
        kind << KIND_SHIFT | rest
    }

    fn decode(tag: u64) -> Option<Crossing> {
        let segment_size = tag as u16;
        Some(match tag >> KIND_SHIFT {
            1 => {
                let checksum_valid = tag & CHECKSUM_VALID != 0;
                Crossing::Received(RxMeta { checksum_valid, segment_size })
            }
            2 => {
                let (start, offset) = ((tag >> 16) as u16, (tag >> 32) as u16);
                let checksum = (tag & UNFINISHED != 0).then_some(PartialChecksum { start, offset });
                Crossing::ToSend { checksum, segment_size }
            }
            3 => Crossing::Packet(ForwardKind::Reassembled),
            4 => Crossing::Packet(ForwardKind::Own),
            7 => {
                let (times, wire) = ((tag >> 16) as u8, tag & FROM_WIRE != 0);
                Crossing::Packet(ForwardKind::Moved { wire, times, segment_size })
            }
            5 => Crossing::Network,
            6 => Crossing::Groups,
            8 => Crossing::Aside(Aside::Move),
            9 => Crossing::Aside(Aside::Notice),
            10 => Crossing::Aside(Aside::Switched),
            _ => return None,
        })
    }
}

impl Switch {
    /// The switch of one server.
    pub fn new(members: Members, steering: Arc<Steering>) -> Switch {
        Switch {
            members,
            steering,
            counters: SwitchCounters::default(),
            outboxes: Outboxes::default(),
            untold: Vec::new(),
            room: vec![0; RECORD_MAX],
        }
    }

    /// Where a frame from the link goes, by the map of our shard if it has one.
    #[inline]
    pub fn way(&self, steered: Option<&Steered>, frame: &[u8]) -> Way {
        let steering = steered.map_or(&self.steering, |steered| &steered.steering);
        match steering.destination(frame) {
            Destination::Everyone => Way::Everyone,
            Destination::Server(server) if Some(server) == self.members.own => Way::Here,
            Destination::Server(server) => Way::Server(server),
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> SwitchCounters {
        self.counters
    }

    /// The map, where no shard has one.
    pub fn steering(&self) -> &Steering {
        &self.steering
    }

    /// There are other servers from now on; what has moved stays where it is.
    fn follow(&mut self, other: Switch) {
        self.members = other.members;
        Arc::make_mut(&mut self.steering).follow(&other.steering);
    }

    /// Who is who.
    pub fn members(&self) -> &Members {
        &self.members
    }

    fn process_of(&self, server: ServerNumber) -> Option<u16> {
        self.members.transports.get(usize::from(server)).copied()
    }

    /// The transport server that runs in a process.
    fn server_in(&self, process: u16) -> Option<ServerNumber> {
        let place = self.members.transports.iter().position(|other| *other == process)?;
        Some(place as ServerNumber)
    }

    /// Hands a record to a transport server; counts it when it is lost.
    fn hand(&mut self, peers: &mut FramePeers, to: ServerNumber, what: Crossing, bytes: &[u8]) {
        match self.process_of(to) {
            Some(process) => self.hand_to_process(peers, process, what, bytes),
            None => self.counters.dropped += 1,
        }
    }

    fn hand_to_process(
        &mut self,
        peers: &mut FramePeers,
        process: u16,
        what: Crossing,
        bytes: &[u8],
    ) {
        let precious = matches!(what, Crossing::Aside(_));
        match self.outboxes.push(peers, process, what.encode(), bytes, precious) {
            true => self.counters.forwarded += 1,
            false => self.counters.dropped += 1,
        }
    }

    /// Hands copies to all other transport servers.
    fn hand_to_others(&mut self, peers: &mut FramePeers, what: Crossing, bytes: &[u8]) {
        for server in 0..self.members.transports.len() as ServerNumber {
            if Some(server) != self.members.own {
                self.hand(peers, server, what, bytes);
            }
        }
    }

    /// A frame from the link, to those others that it is for. True if it is for our shard too.
    #[inline]
    pub(crate) fn pass(
        &mut self,
        peers: &mut FramePeers,
        way: Way,
        frame: &[u8],
        meta: RxMeta,
    ) -> bool {
        let ours = match way {
            Way::Here => true,
            Way::Server(server) => {
                self.hand(peers, server, Crossing::Received(meta), frame);
                false
            }
            Way::Everyone => {
                self.hand_to_others(peers, Crossing::Received(meta), frame);
                self.members.own.is_some()
            }
        };
        self.counters.here += u64::from(ours);
        ours
    }

    /// What the shard has for other servers, after its turn.
    fn collect(&mut self, peers: &mut FramePeers, shard: &mut Shard) {
        if !self.outboxes.is_empty() {
            self.counters.dropped += self.outboxes.flush(peers);
        }
        while let Some(Forward { to, kind, packet }) = shard.poll_forward() {
            match kind {
                ForwardKind::Move(message) => {
                    let bytes = message.encode(&packet);
                    self.hand(peers, to, Crossing::Aside(Aside::Move), &bytes);
                }
                _ => self.hand(peers, to, Crossing::Packet(kind), &packet),
            }
            shard.recycle(packet);
        }
        let mut to_tell = peers.take_joined();
        if shard.poll_network_update().is_some() || shard.poll_memberships().is_some() {
            to_tell.extend(&self.members.transports);
        }
        for process in to_tell {
            if self.tells(process) && !self.untold.contains(&process) {
                self.untold.push(process);
            }
        }
        if !self.untold.is_empty() {
            self.tell(peers, shard);
        }
    }

    /// What else this turn has for others, behind the frames that it had for them.
    fn send_aside(&mut self, peers: &mut FramePeers, shard: &mut Shard, outward: &mut Outward) {
        for (process, FlowsMoved { bucket, version, server }) in outward.heard.drain(..) {
            // A shard has heard of it.
            if shard.steered().is_none() {
                Arc::make_mut(&mut self.steering).move_flows(bucket, version, server);
            }
            // A link server tells what it knows, and waits for nobody.
            if self.server_in(process).is_some() {
                let answer = Switched { bucket, version }.encode();
                self.hand_to_process(peers, process, Crossing::Aside(Aside::Switched), &answer);
            }
        }
        for (server, notice) in outward.notices.drain(..) {
            self.hand(peers, server, Crossing::Aside(Aside::Notice), &notice);
        }
    }

    /// Whether a server hears from us what we know of the network: all others from the speaker, the
    /// speaker from all others.
    fn tells(&self, process: u16) -> bool {
        let Some(own) = self.members.own else { return false };
        match self.server_in(process) {
            Some(other) => other != own && (own == SPEAKER || other == SPEAKER),
            None => false,
        }
    }

    /// Tells everything to those who have yet to hear it. Who is not there hears it on joining.
    fn tell(&mut self, peers: &mut FramePeers, shard: &Shard) {
        let (what, bytes) = match self.members.own {
            Some(SPEAKER) => (Crossing::Network, shard.network_update().encode()),
            _ => (Crossing::Groups, encode_groups(&shard.memberships())),
        };
        let Switch { untold, counters, .. } = self;
        untold.retain(|process| {
            let pushed = peers.push_frame(*process, what.encode(), &bytes);
            counters.forwarded += u64::from(pushed == PushFrame::Written);
            pushed == PushFrame::Full
        });
    }

    /// What another server handed over, but for frames to be sent.
    fn take_in(
        &mut self,
        now: Instant,
        (from, what): (u16, Crossing),
        len: usize,
        shard: &mut Shard,
        streams: &mut impl Inward,
    ) {
        let bytes = &self.room[..len.min(self.room.len())];
        let from_speaker = self.server_in(from) == Some(SPEAKER);
        let understood = match what {
            _ if self.members.own.is_none() || len > self.room.len() => false,
            Crossing::Received(meta) => {
                shard.handle_frame(now, bytes, meta, streams);
                true
            }
            Crossing::Aside(what) => {
                let from = Sayer { process: from, server: self.server_in(from) };
                streams.handle_aside(now, from, what, bytes, shard)
            }
            Crossing::Packet(kind) => {
                shard.handle_forwarded(now, kind, bytes, streams);
                true
            }
            Crossing::Network if from_speaker => match NetworkUpdate::decode(bytes) {
                Some(update) => {
                    shard.adopt_network_update(now, &update);
                    true
                }
                None => false,
            },
            Crossing::Groups if self.members.own == Some(SPEAKER) => {
                match (self.server_in(from), decode_groups(bytes)) {
                    (Some(server), Some(groups)) => {
                        shard.set_memberships(now, server, &groups);
                        true
                    }
                    _ => false,
                }
            }
            Crossing::Network | Crossing::Groups | Crossing::ToSend { .. } => false,
        };
        match understood {
            true => self.counters.taken += 1,
            false => self.counters.misdirected += 1,
        }
    }
}

/// Moving frames between the rings, the shard and the link.
impl<P: Port> LinkServer<P> {
    /// Makes this the link server of one server among several.
    pub fn set_switch(&mut self, switch: Switch) {
        self.switch = Some(Box::new(switch));
    }

    /// There are other servers from now on: `switch` is that of a server that starts among them.
    pub fn follow(&mut self, switch: Switch) {
        match &mut self.switch {
            Some(own) => own.follow(switch),
            none => *none = Some(Box::new(switch)),
        }
    }

    /// The switch, where there is one.
    pub fn switch(&self) -> Option<&Switch> {
        self.switch.as_deref()
    }

    /// Takes what other servers have handed over, a burst of each; how many.
    pub(crate) fn receive_from_peers(
        &mut self,
        now: Instant,
        shard: &mut Shard,
        streams: &mut impl Inward,
    ) -> usize {
        let Some(mut switch) = self.switch.take() else { return 0 };
        let mut count = 0;
        for place in 0..self.peers.present().len() {
            let Some(process) = self.peers.present().get(place).copied() else { break };
            for _ in 0..BURST {
                let Some(record) = self.peers.front_frame(process) else { break };
                let what = Crossing::decode(record.tag);
                if let Some(Crossing::ToSend { checksum, segment_size }) = what {
                    if !self.take_to_send(&mut switch, process, record, (checksum, segment_size)) {
                        break;
                    }
                } else {
                    self.take_record(&mut switch, (process, what), record, now, shard, streams);
                }
                count += 1;
            }
        }
        self.switch = Some(switch);
        count
    }

    /// Takes all that a server has said, which is gone: what it wanted to be sent is not.
    pub(crate) fn hear_out(
        &mut self,
        process: u16,
        now: Instant,
        shard: &mut Shard,
        streams: &mut impl Inward,
    ) {
        let Some(mut switch) = self.switch.take() else { return };
        for _ in 0..PEER_FRAME_LINES {
            let Some(record) = self.peers.front_frame(process) else { break };
            let what = Crossing::decode(record.tag);
            let what = what.filter(|what| !matches!(what, Crossing::ToSend { .. }));
            self.take_record(&mut switch, (process, what), record, now, shard, streams);
        }
        self.switch = Some(switch);
    }

    /// A server is gone, with what waited for it.
    pub(crate) fn leave_peer(&mut self, process: u16) {
        self.peers.leave(process);
        if let Some(switch) = &mut self.switch {
            switch.outboxes.forget(process);
        }
    }

    fn take_record(
        &mut self,
        switch: &mut Switch,
        (process, what): (u16, Option<Crossing>),
        record: Record,
        now: Instant,
        shard: &mut Shard,
        streams: &mut impl Inward,
    ) {
        self.peers.take_frame(process, record, &mut switch.room);
        match what {
            Some(what) => {
                let len = record.len as usize;
                switch.take_in(now, (process, what), len, shard, streams);
            }
            None => switch.counters.misdirected += 1,
        }
    }

    /// Takes a frame that is to be sent over our link; false when there is no room for it now.
    fn take_to_send(
        &mut self,
        switch: &mut Switch,
        process: u16,
        record: Record,
        (checksum, segment_size): (Option<PartialChecksum>, u16),
    ) -> bool {
        let len = record.len as usize;
        if !switch.members.has_link || TX_HEADROOM + len > self.pool.frame_size() {
            switch.counters.misdirected += 1;
            self.peers.take_frame(process, record, &mut []);
            return true;
        }
        if self.to_send.len() >= BURST {
            return false;
        }
        let Some(mut frame) = self.pool.alloc() else { return false };
        let room = &mut self.pool.bytes_mut(&mut frame)[TX_HEADROOM..TX_HEADROOM + len];
        self.peers.take_frame(process, record, room);
        self.to_send.push(TxFrame { checksum, segment_size, ..TxFrame::new(frame, record.len) });
        switch.counters.sent_for_others += 1;
        true
    }

    /// Sends from the front of what is to be sent: over our link, or to whoever sends for us.
    ///
    /// # Errors
    /// When the port is of no more use.
    #[inline]
    pub(crate) fn send(&mut self) -> io::Result<()> {
        if let Some(switch) = &mut self.switch
            && !switch.members.has_link
        {
            let done = hand_to_link(switch, &mut self.peers, &self.pool, &self.to_send);
            for sent in self.to_send.drain(..done) {
                self.pool.free(sent.frame);
            }
            return Ok(());
        }
        self.port.tx_burst(&mut self.pool, &mut self.to_send).map(drop)
    }

    /// The end of a turn: what the shard has for others goes, and who sleeps is rung.
    #[inline]
    pub fn finish_turn(&mut self, shard: &mut Shard, outward: &mut Outward) {
        if let Some(switch) = &mut self.switch {
            switch.collect(&mut self.peers, shard);
            switch.send_aside(&mut self.peers, shard, outward);
            self.peers.flush();
        }
    }

    /// Whether somebody has yet to be told something and had no room for it.
    pub(crate) fn has_untold(&self) -> bool {
        let waits = |switch: &Switch| !switch.untold.is_empty() || !switch.outboxes.is_empty();
        self.switch.as_deref().is_some_and(waits)
    }
}

/// Hands frames to the link server that sends for us; how many are done with.
fn hand_to_link(
    switch: &mut Switch,
    peers: &mut FramePeers,
    pool: &haypile_shm::FramePool,
    frames: &[TxFrame],
) -> usize {
    let Some(process) = switch.members.sends_over else { return frames.len() };
    if switch.outboxes.has(process) {
        return 0;
    }
    for (done, frame) in frames.iter().enumerate() {
        let what = Crossing::ToSend { checksum: frame.checksum, segment_size: frame.segment_size };
        match peers.push_frame(process, what.encode(), frame.bytes(pool)) {
            PushFrame::Written => {}
            PushFrame::Full => {
                switch.counters.blocked += 1;
                // It rings when there is; if there is by now, the next turn finds it.
                let _: bool = peers.wait_for_room(process, frame.len as usize);
                return done;
            }
            PushFrame::Lost => switch.counters.dropped += 1,
        }
    }
    frames.len()
}

fn encode_groups(groups: &[IpAddr]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(groups.len() * GROUP_LEN);
    for group in groups.iter().take(RECORD_MAX / GROUP_LEN) {
        match group {
            IpAddr::V4(addr) => {
                bytes.push(4);
                bytes.extend(addr.octets());
                bytes.extend([0; 12]);
            }
            IpAddr::V6(addr) => {
                bytes.push(6);
                bytes.extend(addr.octets());
            }
        }
    }
    bytes
}

fn decode_groups(bytes: &[u8]) -> Option<Vec<IpAddr>> {
    let one = |bytes: &[u8]| match bytes.split_first()? {
        (4, octets) => Some(IpAddr::from(*octets.first_chunk::<4>()?)),
        (6, octets) => Some(IpAddr::from(*octets.first_chunk::<16>()?)),
        _ => None,
    };
    let chunks = bytes.chunks_exact(GROUP_LEN);
    if !chunks.remainder().is_empty() {
        return None;
    }
    chunks.map(one).collect()
}
