//! The types that cross the seam between the shard and a TCP connection.
//!
//! Owns what a connection is made from ([`Setup`], [`TcpLimits`]), what its steps answer
//! ([`Disposition`], [`TimerOutcome`]), what it counts ([`TcpCounters`]) and what it shows
//! ([`TcpInfo`]). No behaviour.

use std::net::SocketAddr;

use super::segment::{Outgoing, SeqNumber};
use crate::SocketOptions;
use crate::carry::carried;

/// What the shard gives a new connection.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Initial send sequence number, keyed as RFC 6528 asks.
    pub iss: SeqNumber,
    /// Added to the millisecond clock to give TSval, keyed per connection (RFC 7323 section 5.4).
    pub timestamp_offset: u32,
    /// Largest payload of a segment without options: path MTU less IP and TCP headers
    /// (RFC 6691). It is what we announce, and bounds what we send.
    pub mss: u16,
    /// Socket options; a listener's template for a passive connection.
    pub options: SocketOptions,
    /// Sizes and time limits.
    pub limits: &'a TcpLimits,
}

/// Sizes and time limits of TCP that an operator may choose.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct TcpLimits {
    /// Largest receive window in bytes; also decides the window scale we announce.
    pub receive_buffer_max: u32,
    /// Most bytes of the send stream kept beyond the first unacknowledged one.
    pub send_buffer_max: u32,
    /// Retransmission time-out before the first sample, in microseconds (RFC 6298 section 2.1).
    pub rto_initial_us: u64,
    /// Least variance term of the retransmission time-out, in microseconds (Linux: 200 ms).
    pub rto_min_us: u64,
    /// Largest retransmission time-out, in microseconds (Linux: 120 s).
    pub rto_max_us: u64,
    /// Longest delay of an acknowledgement, in microseconds (Linux's quick one: 40 ms).
    pub delayed_ack_us: u64,
    /// SACK is offered and taken (Linux tcp_sack).
    pub sack: bool,
    /// Challenge acknowledgements a second for one connection (RFC 5961 section 7).
    pub challenge_acks_per_second: u32,
    /// SYN retransmissions before an active open fails (Linux tcp_syn_retries).
    pub syn_retries: u8,
    /// SYN-ACK retransmissions before a passive open is dropped (Linux tcp_synack_retries).
    pub synack_retries: u8,
    /// Doublings of the least time-out that unanswered data may wait (Linux tcp_retries2).
    pub retries: u8,
    /// The same for a connection that its owner has closed (Linux tcp_orphan_retries).
    pub orphan_retries: u8,
    /// How long a connection that was closed by its owner may stay in FIN-WAIT-2, in microseconds
    /// (Linux tcp_fin_timeout).
    pub fin_wait_2_us: u64,
}

impl Default for TcpLimits {
    fn default() -> TcpLimits {
        TcpLimits {
            receive_buffer_max: crate::limits::RECEIVE_BUFFER_MAX,
            send_buffer_max: crate::limits::SEND_BUFFER_MAX,
            rto_initial_us: 1_000_000,
            rto_min_us: 200_000,
            rto_max_us: 120_000_000,
            delayed_ack_us: 40_000,
            sack: true,
            challenge_acks_per_second: 10,
            syn_retries: 6,
            synack_retries: 5,
            retries: 15,
            orphan_retries: 8,
            fin_wait_2_us: 60_000_000,
        }
    }
}

/// The limits and options that a connection's timers need, in a quarter of the space.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Parameters {
    pub(super) receive_buffer_max: u32,
    pub(super) send_buffer_max: u32,
    pub(super) rto_initial_us: u32,
    pub(super) rto_min_us: u32,
    pub(super) rto_max_us: u32,
    pub(super) delayed_ack_us: u32,
    pub(super) challenge_interval_us: u32,
    pub(super) fin_wait_2_ms: u32,
    pub(super) syn_retries: u8,
    pub(super) synack_retries: u8,
    pub(super) retries: u8,
    pub(super) orphan_retries: u8,
}

impl Parameters {
    /// Takes what a connection keeps from the shard's limits and its own options.
    pub(super) fn new(limits: &TcpLimits, options: &SocketOptions) -> Parameters {
        let us = |us: u64| us.clamp(1, u64::from(u32::MAX)) as u32;
        let retries = |count: u8| count.min(127);
        let syn_retries = match options.syn_count {
            0 => retries(limits.syn_retries),
            count => count,
        };
        let fin_wait_2_ms = match options.fin_wait_2_s {
            0 => us(limits.fin_wait_2_us / 1000),
            seconds => seconds.saturating_mul(1000),
        };
        Parameters {
            receive_buffer_max: limits.receive_buffer_max,
            send_buffer_max: limits.send_buffer_max,
            rto_initial_us: us(limits.rto_initial_us),
            rto_min_us: us(limits.rto_min_us),
            rto_max_us: us(limits.rto_max_us),
            delayed_ack_us: us(limits.delayed_ack_us),
            challenge_interval_us: 1_000_000 / limits.challenge_acks_per_second.max(1),
            fin_wait_2_ms,
            syn_retries,
            synack_retries: retries(limits.synack_retries),
            retries: retries(limits.retries),
            orphan_retries: retries(limits.orphan_retries),
        }
    }

    /// How long `retries` doublings of the least time-out take, in microseconds: Linux turns its
    /// retry counts into times this way, so that the round trip does not matter.
    pub(super) fn retry_time_us(&self, retries: u8) -> u64 {
        let mut total_us = 0;
        let mut rto_us = u64::from(self.rto_min_us);
        for _ in 0..=retries {
            total_us += rto_us;
            rto_us = (rto_us * 2).min(u64::from(self.rto_max_us));
        }
        total_us
    }
}

/// State of a connection, RFC 9293 section 3.3.2. LISTEN is the shard's; TIME-WAIT lives on as a
/// [`super::TimeWait`] record.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Hash)]
pub enum State {
    /// SYN sent, nothing heard.
    SynSent,
    /// SYN sent and received, ours not acknowledged.
    SynReceived,
    /// Both directions open.
    Established,
    /// Our side closed, its FIN not yet acknowledged (possibly not yet sent).
    FinWait1,
    /// Our FIN is acknowledged, the peer's side is open.
    FinWait2,
    /// The peer closed, our side is open.
    CloseWait,
    /// Both closed at the same time, our FIN not yet acknowledged.
    Closing,
    /// The peer closed first, our FIN not yet acknowledged (possibly not yet sent).
    LastAck,
    /// Both FINs acknowledged; the record answers for this connection.
    TimeWait,
    /// Gone: reset, timed out, or closed in order.
    Closed,
}

carried!(struct Parameters {
    receive_buffer_max,
    send_buffer_max,
    rto_initial_us,
    rto_min_us,
    rto_max_us,
    delayed_ack_us,
    challenge_interval_us,
    fin_wait_2_ms,
    syn_retries,
    synack_retries,
    retries,
    orphan_retries,
});
carried!(
    enum State {
        SynSent = 0,
        SynReceived = 1,
        Established = 2,
        FinWait1 = 3,
        FinWait2 = 4,
        CloseWait = 5,
        Closing = 6,
        LastAck = 7,
        TimeWait = 8,
        Closed = 9,
    }
);

/// The few figures of a connection that the event trace keeps.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Vitals {
    /// State.
    pub state: State,
    /// As [`TcpInfo::congestion_state`].
    pub congestion_state: u8,
    /// Time-outs in a row.
    pub backoff: u8,
    /// Congestion window in bytes.
    pub cwnd: u32,
    /// Slow start threshold in bytes; `u32::MAX` before the first loss.
    pub ssthresh: u32,
    /// Smoothed round trip in microseconds, zero before the first sample.
    pub srtt_us: u32,
    /// Retransmission time-out in microseconds.
    pub rto_us: u32,
    /// Segments sent again over the connection's life.
    pub retransmits: u32,
}

impl Default for Vitals {
    /// Of no connection.
    fn default() -> Vitals {
        Vitals {
            state: State::Closed,
            congestion_state: 0,
            backoff: 0,
            cwnd: 0,
            ssthresh: u32::MAX,
            srtt_us: 0,
            rto_us: 0,
            retransmits: 0,
        }
    }
}

/// What the shard has to do after a segment. After every one of them it looks at
/// [`super::Connection::take_changed`], [`super::Connection::wants_transmit`] and
/// [`super::Connection::next_timeout`].
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Disposition {
    /// Nothing special.
    Continue,
    /// The handshake has just completed.
    Established,
    /// Send this now, a RST for a segment that belongs to no state of ours; nothing else changed.
    Reply(Outgoing),
    /// Both directions are done: take [`super::Connection::time_wait_record`], let the record
    /// answer from now on, and send this last acknowledgement if there is one.
    EnterTimeWait(Option<Outgoing>),
    /// The connection is over without a word to send: the peer reset or refused it.
    Reset,
    /// The connection is over in order: the peer acknowledged our FIN after its own.
    Closed,
    /// The connection is over by us; send this RST.
    Aborted(Outgoing),
}

/// What the shard has to do after timers.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum TimerOutcome {
    /// Look at [`super::Connection::wants_transmit`] and [`super::Connection::next_timeout`].
    Continue,
    /// The connection is over (timed out, or FIN-WAIT-2 lasted too long); send this RST if there
    /// is one. Progress carries the error.
    Closed(Option<Outgoing>),
}

/// Why a destination cannot be reached, from ICMP or ICMPv6.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Unreachable {
    /// No route to the network.
    Network,
    /// No route to the host; IPv4: or administratively prohibited.
    Host,
    /// Nobody listens on the port; a hard error (RFC 1122 section 4.2.3.9).
    Port,
    /// No TCP there; a hard error.
    Protocol,
    /// IPv6: administratively prohibited.
    Denied,
    /// Somebody complains about a field of the header.
    Header,
}

/// An ICMP error about a segment of ours, already matched to the connection.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum IcmpError {
    /// Destination unreachable, or hop limit exceeded (which counts as a host out of reach).
    Unreachable(Unreachable),
    /// Packet too big: `mss` is what the reported MTU leaves for TCP payload without options.
    PacketTooBig {
        /// The new largest payload.
        mss: u16,
    },
}

/// Declares the counters with their names and texts in one list.
macro_rules! tcp_counters {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// What connections count. Segment totals are the shard's; these are decisions.
        #[derive(Clone, PartialEq, Eq, Debug, Default)]
        pub struct TcpCounters {
            $($(#[doc = $text])+ pub $name: u64,)+
        }

        impl TcpCounters {
            /// Every counter as (name, text, value).
            pub fn list(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($text),+), self.$name),)+].into_iter()
            }
        }
    };
}

tcp_counters! {
    /// Segments of new data or FIN sent.
    data_segments_sent,
    /// Bytes of new data sent.
    data_bytes_sent,
    /// Bytes received in order and stored.
    data_bytes_received,
    /// Segments sent again.
    retransmitted_segments,
    /// Retransmission time-outs.
    retransmission_timeouts,
    /// Fast retransmissions begun.
    fast_retransmits,
    /// Duplicate acknowledgements received.
    duplicate_acks_received,
    /// SACK blocks received that speak of what was never sent, or run backwards.
    sack_blocks_invalid,
    /// SACK blocks not taken because they would cut the flight into too many pieces.
    sack_blocks_refused,
    /// Times a peer no longer held what it had said it holds, RFC 2018 section 8.
    sack_reneged,
    /// Duplicates that peers told of, RFC 2883.
    dsacks_received,
    /// Duplicates that we told of, RFC 2883.
    dsacks_sent,
    /// Rescue retransmissions, RFC 6675 section 4.
    rescue_retransmissions,
    /// Segments sent again that were lost too and found without a time-out, RFC 8985.
    lost_retransmissions,
    /// Tail loss probes sent, RFC 8985 section 7.
    tail_loss_probes,
    /// Tail loss probes that repaired a loss which nothing else showed.
    tail_losses_repaired,
    /// Acknowledgements sent without data.
    pure_acks_sent,
    /// Acknowledgements sent because the delay ran out.
    delayed_acks_sent,
    /// Challenge acknowledgements sent, RFC 5961.
    challenge_acks_sent,
    /// Challenge acknowledgements not sent because of their rate limit.
    challenge_acks_limited,
    /// Zero window probes sent.
    window_probes_sent,
    /// Keep-alive probes sent.
    keepalive_probes_sent,
    /// Connections reset by the peer.
    resets_received,
    /// Connections given up for lack of an answer.
    timed_out,
    /// Established: active and passive handshakes completed.
    established,
    /// Segments taken by the established fast path.
    fast_path_segments,
    /// Data stored out of order, in bytes.
    out_of_order_bytes,
    /// Dropped: sequence number outside the window.
    drop_out_of_window,
    /// Dropped: older than the last timestamp, RFC 7323 section 5.
    drop_old_timestamp,
    /// Dropped: acknowledges what was never sent, or is too old (RFC 5961 section 5).
    drop_bad_ack,
    /// Dropped: neither ACK, SYN nor RST where one is needed.
    drop_no_ack,
    /// Dropped: RST whose sequence number does not match exactly, RFC 5961 section 3.
    drop_bad_reset,
    /// Dropped: SYN on a synchronised connection, RFC 5961 section 4.
    drop_unexpected_syn,
    /// Data dropped: memory for it is short.
    drop_no_memory,
    /// Data dropped: too many holes before it.
    drop_too_many_ranges,
    /// Data discarded after the application shut its receive side down.
    discarded_after_shutdown,
    /// Dropped: data for a connection the application has closed, or shut both ways; answered with RST.
    drop_after_close,
    /// Dropped: for a connection that is over.
    drop_over,
    /// Segments that brought only data received before.
    duplicate_data_segments,
    /// Times our window closed.
    zero_windows_sent,
    /// Reductions of the segment size taken from ICMP.
    path_mtu_reductions,
    /// ICMP errors ignored because their quoted sequence number is not in flight, RFC 5927.
    drop_bad_icmp,
}

/// A connection's inner numbers for display; the fields of Linux's `tcp_info` that exist here.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct TcpInfo {
    /// State.
    pub state: State,
    /// 0 open, 1 disorder, 3 recovery, 4 loss (Linux's tcpi_ca_state).
    pub congestion_state: u8,
    /// Time-outs in a row.
    pub backoff: u8,
    /// Timestamps are on.
    pub timestamps: bool,
    /// Both sides allowed SACK.
    pub sack_permitted: bool,
    /// Shift of the peer's window, and of ours, when scaling is on.
    pub window_scale: Option<(u8, u8)>,
    /// Retransmission time-out in microseconds.
    pub rto_us: u32,
    /// Smoothed round trip in microseconds, zero before the first sample.
    pub srtt_us: u32,
    /// Mean deviation of the round trip in microseconds.
    pub rttvar_us: u32,
    /// Smallest round trip seen, in microseconds; `u32::MAX` before the first sample.
    pub min_rtt_us: u32,
    /// Payload of a full segment we send.
    pub send_mss: u16,
    /// Estimate of the payload of a full segment of the peer.
    pub receive_mss: u16,
    /// MTU of the path in bytes: the link's, or less by what a router said.
    pub path_mtu: u32,
    /// Congestion window in bytes.
    pub cwnd: u32,
    /// Slow start threshold in bytes; `u32::MAX` before the first loss.
    pub ssthresh: u32,
    /// Window the peer offers, in bytes.
    pub send_window: u32,
    /// Window we offer, in bytes.
    pub receive_window: u32,
    /// Bytes sent and not acknowledged.
    pub unacknowledged: u64,
    /// Bytes written by the application and not sent.
    pub not_sent: u64,
    /// Bytes received in order and not consumed.
    pub receive_queue: u64,
    /// Bytes in flight that the peer holds by its SACK blocks.
    pub sacked: u64,
    /// Bytes in flight that are thought lost, sent again or not.
    pub lost: u64,
    /// Bytes in flight that were sent again.
    pub retransmitted: u64,
    /// The most segments that something arrived late by; 3 at least.
    pub reordering: u16,
    /// Segments sent again over the connection's life.
    pub retransmits: u32,
    /// Bytes acknowledged by the peer.
    pub bytes_acked: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Microseconds since data was last sent, and last received.
    pub last_data_sent_us: u64,
    /// Microseconds since data was last received.
    pub last_data_received_us: u64,
}
