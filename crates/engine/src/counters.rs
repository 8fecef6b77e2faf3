//! Everything that is counted: one number per [`DropReason`] and per [`Counter`].
//!
//! The shard and its connections add, the owner of the shard reads. Plain integers of one thread.

use crate::drop_reason::DropReason;
use crate::tcp::TcpCounters;

macro_rules! counters {
    ($($name:ident => $text:literal,)*) => {
        /// Something that is counted and is not the fate of a received frame.
        #[derive(Copy, Clone, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
        pub enum Counter {
            $(#[doc = $text] $name,)*
        }

        impl Counter {
            /// All counters, in order.
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)*];

            /// What is counted, in words.
            pub const fn text(self) -> &'static str {
                match self { $(Counter::$name => $text,)* }
            }

            /// The counter's name, as written here.
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$name => stringify!($name),)* }
            }
        }
    };
}

counters! {
    FramesReceived => "frames received, whatever became of them",
    FramesAccepted => "frames that were of use",
    BytesReceived => "bytes of frames received",
    FramesSent => "frames handed out for sending",
    BytesSent => "bytes of frames handed out for sending",
    LoopbackPackets => "packets to ourselves that were handled, whatever became of them",
    LoopbackDropped => "packets to ourselves that found their queue full",
    PacketsForwarded => "packets put together or sent here that another server owns",
    PacketsTakenOver => "packets of ours that another server put together or sent",
    ForwardsDropped => "packets for other servers that found their queue full",
    PacketsSentAfterFlows => "packets of flows that have moved, sent after them",
    PacketsHeld => "packets that waited for a bucket on its way to us",
    HeldDropped => "packets for a bucket on its way to us that found no room to wait",
    BucketsExported => "buckets handed to another server",
    BucketsImported => "buckets taken from another server",
    ConnectionsExported => "connections handed to another server",
    ConnectionsImported => "connections taken from another server",
    TimeWaitExported => "TIME-WAIT records handed to another server",
    TimeWaitImported => "TIME-WAIT records taken from another server",
    RepliesDropped => "replies that found their queue full",
    ArpRequestsSent => "ARP requests sent",
    ArpRepliesSent => "ARP replies sent",
    NeighbourSolicitationsSent => "neighbour solicitations sent",
    NeighbourAdvertisementsSent => "neighbour advertisements sent",
    NeighboursLearned => "neighbours whose address became known",
    NeighboursEvicted => "neighbours forgotten to make room",
    NeighboursFailed => "neighbours that never answered",
    NeighbourQueueDropped => "packets dropped because their neighbour's queue was full",
    NeighbourFailedDropped => "packets dropped because their neighbour never answered",
    NoRouteDropped => "packets of ours without a route",
    DuplicateProbesSent => "solicitations sent to find out whether an address is a duplicate",
    DuplicateAddresses => "addresses that somebody else has, so that we do not use them",
    RouterSolicitationsSent => "router solicitations sent",
    RouterAdvertisements => "router advertisements taken",
    DhcpMessagesSent => "DHCP messages sent",
    DhcpLeases => "DHCP leases got or prolonged",
    DhcpLeasesLost => "DHCP leases that ended",
    DnsQueriesSent => "questions sent to name servers",
    FragmentsReceived => "fragments received",
    DatagramsReassembled => "datagrams put together from fragments",
    ReassemblyTimeouts => "datagrams whose fragments did not all come in time",
    ReassemblyEvicted => "datagrams in reassembly given up to make room",
    FragmentsSent => "fragments sent",
    EchoRequestsReceived => "echo requests received",
    EchoRepliesSent => "echo replies sent",
    IcmpErrorsReceived => "ICMP errors received",
    IcmpErrorsSent => "ICMP errors sent",
    IcmpErrorsLimited => "ICMP errors not sent because of the rate limit",
    UdpDatagramsReceived => "datagrams received with a good checksum, whatever became of them",
    UdpDatagramsDelivered => "datagrams stored for a socket, copies for several counted each",
    UdpReceiveDropped => "datagrams that found their socket's memory full, copies counted each",
    UdpDatagramsSent => "datagrams taken from sockets for sending",
    UdpSendRefused => "datagrams that sockets could not send for an error of their caller",
    UdpSendBusy => "datagrams that found their send queue full",
    UdpErrorsReported => "ICMP errors reported to UDP sockets",
    PathMtusLearned => "smaller path MTUs that routers reported for datagrams",
    GroupsJoined => "multicast groups that became wanted here",
    GroupsRefused => "groups of other servers that found no room at the speaker",
    GroupReportsSent => "IGMP and MLD reports sent",
    GroupLeavesSent => "IGMP and MLD leave messages sent",
    TcpSegmentsReceived => "TCP segments received with a good checksum",
    TcpSegmentsSent => "TCP segments sent, retransmissions included",
    TcpActiveOpens => "connections opened by us",
    TcpPassiveOpens => "connections opened by a peer",
    TcpAttemptFails => "connections that failed before they were established",
    TcpResets => "established connections that ended by a reset of either side",
    TcpResetsSent => "RST segments sent",
    TcpKnocks => "peers asked about connections whose server has died",
    TcpListenOverflows => "final ACKs or SYNs refused because an accept queue was full",
    TcpCookiesSent => "SYNs answered with a cookie, for too many half-open connections",
    TcpCookiesValid => "connections made by a cookie that came back",
    TcpCookiesRefused => "ACKs of no connection that carried no good cookie while some were about",
    TcpHalfOpenEvicted => "half-open connections given up to make room",
    TcpHalfOpenTimeouts => "half-open connections that never completed",
    TcpTimeWaitEntered => "connections that entered TIME-WAIT",
    TcpTimeWaitReused => "TIME-WAIT records replaced by a new connection",
    TcpTimeWaitEvicted => "TIME-WAIT records forgotten to make room",
}

/// The numbers of one shard; they only grow.
#[derive(Clone, Debug)]
pub struct Counters {
    /// What connections decided about segments, timers and data.
    pub tcp: TcpCounters,
    counters: [u64; Counter::ALL.len()],
    drops: [u64; DropReason::ALL.len()],
    drops_total: u64,
}

impl Counters {
    /// All zero.
    pub fn new() -> Counters {
        Counters {
            tcp: TcpCounters::default(),
            counters: [0; Counter::ALL.len()],
            drops: [0; DropReason::ALL.len()],
            drops_total: 0,
        }
    }

    /// Counts one of `counter`.
    pub fn count(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds `amount` to `counter`.
    pub fn add(&mut self, counter: Counter, amount: u64) {
        self.counters[counter as usize] += amount;
    }

    /// Counts a frame dropped for `reason`. At most once for each frame.
    pub fn drop_frame(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
        self.drops_total += 1;
    }

    /// The value of `counter`.
    pub const fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    /// Frames dropped for `reason`.
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Frames dropped for any reason.
    pub const fn dropped_total(&self) -> u64 {
        self.drops_total
    }

    /// All counters with their values.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.iter().map(|&counter| (counter, self.get(counter)))
    }

    /// All drop reasons with their values.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.dropped(reason)))
    }
}

impl Default for Counters {
    fn default() -> Counters {
        Counters::new()
    }
}

#[cfg(test)]
mod tests;
