//! One TCP connection: its state, its owner's commands, and what it shows.
//!
//! The shard owns connections and calls them; after every call it looks at
//! [`Connection::take_changed`], [`Connection::wants_transmit`] and [`Connection::next_timeout`].
//! The work is spread over the neighbouring files, all of them `impl Connection`:
//! `handshake.rs` (opening), `receive.rs` (segments in), `loss.rs` (acknowledgements and repair),
//! `sack.rs` (selective acknowledgements, both ways), `scoreboard.rs` (what is known of the flight),
//! `window.rs` (receive window and acknowledgements we owe), `transmit.rs` (segments out),
//! `timers.rs`, `close.rs`, `icmp.rs`. Sequence numbers are offsets; see `sequence_space.rs`.
//!
//! ```text
//! send     una          nxt           tail         receive   consumed     nxt          edge
//!   acked   |  in flight | not sent    |             read     |  readable  | may arrive |
//! ```

use super::assembler::Assembler;
use super::congestion::{Congestion, CongestionControl};
use super::loss::Loss;
use super::rtt::RoundTrip;
use super::seam::{Parameters, Setup, State, TcpInfo, Vitals};
use super::segment::{SeqNumber, TIMESTAMPS_LEN};
use super::sequence_space::{FIRST_DATA, SYN_OFFSET, SequenceSpace, offset_of_position, position};
use super::time_wait::TimeWait;
use super::timers::{Timer, Timers};
use super::window::{RECEIVE_MSS_INITIAL, shift_for};
use crate::carry::carried;
use crate::{Instant, Progress, SocketError, SocketOption, SocketOptions};

/// Offsets stay below this whatever an application claims, so that sums never wrap.
pub(super) const OFFSET_MAX: u64 = 1 << 62;

/// Our half of the sequence space, RFC 9293 section 3.3.1.
#[derive(Debug)]
pub(super) struct SendSpace {
    /// SND.UNA: oldest offset not acknowledged.
    pub(super) una: u64,
    /// SND.NXT: one past the highest offset sent; never goes back.
    pub(super) nxt: u64,
    /// One past the last byte the application has written; the FIN's offset once `fin_queued`.
    pub(super) tail: u64,
    /// One past the last segment sent that was not full (Minshall's variant of Nagle).
    pub(super) small_end: u64,
    /// What lies before this goes out without waiting for more, cork or not.
    pub(super) push_end: u64,
    pub(super) space: SequenceSpace,
    /// SND.WND: bytes the peer takes beyond `una`.
    pub(super) window: u32,
    /// Largest window the peer has offered.
    pub(super) window_max: u32,
    /// SND.WL1 and SND.WL2 as the low halves of their offsets.
    pub(super) wl1: u32,
    pub(super) wl2: u32,
    /// Largest payload without options.
    pub(super) mss: u16,
    /// Shift of the windows that the peer sends.
    pub(super) shift: u8,
}

impl SendSpace {
    /// Nothing sent; `mss` is what our own link carries.
    fn new(iss: SeqNumber, mss: u16) -> SendSpace {
        SendSpace {
            una: SYN_OFFSET,
            nxt: SYN_OFFSET,
            tail: FIRST_DATA,
            small_end: 0,
            push_end: 0,
            space: SequenceSpace::new(iss),
            window: 0,
            window_max: 0,
            wl1: 0,
            wl2: 0,
            mss,
            shift: 0,
        }
    }
}

/// The peer's half of the sequence space.
#[derive(Debug)]
pub(super) struct ReceiveSpace {
    /// RCV.NXT: next offset expected.
    pub(super) nxt: u64,
    /// One past the last offset we promised to take; never goes back.
    pub(super) edge: u64,
    /// RCV.NXT of the last acknowledgement sent.
    pub(super) acked: u64,
    /// The application has read up to here.
    pub(super) consumed: u64,
    /// Offset of the peer's FIN, once seen; `u64::MAX` before.
    pub(super) fin_at: u64,
    /// Data from here on is discarded, after the receive side was shut down; `u64::MAX` before.
    pub(super) discard_from: u64,
    /// What lies beyond `nxt` already.
    pub(super) out_of_order: Assembler,
    /// What arrived a second time and the peer was not told of (RFC 2883); empty when nothing did.
    pub(super) duplicate: (SeqNumber, SeqNumber),
    /// Acknowledgements owed for segments out of order since `nxt` last moved, as far as counted.
    pub(super) duplicate_acks: u8,
    /// Start of the current measurement of the application's reading, and `consumed` then.
    pub(super) measured_at: Instant,
    pub(super) measured_from: u64,
    pub(super) space: SequenceSpace,
    /// Buffer the window is cut from; grows up to the limit unless the application fixed it.
    pub(super) buffer: u32,
    /// Largest payload the peer has sent, an estimate of its segment size.
    pub(super) mss: u16,
    /// What we announced.
    pub(super) mss_announced: u16,
    /// Most bytes that one segment of the frame being handled can have had.
    pub(super) segment_max: u16,
    /// The segment being handled ends what the peer's application wrote, as far as one can see.
    pub(super) pushed: bool,
    /// Shift of the windows that we send.
    pub(super) shift: u8,
}

impl ReceiveSpace {
    /// Nothing heard; `mss` is what we announce, `buffer_max` what the window may grow to.
    fn new(now: Instant, buffer: u32, mss: u16, buffer_max: u32) -> ReceiveSpace {
        ReceiveSpace {
            nxt: SYN_OFFSET,
            edge: SYN_OFFSET,
            acked: SYN_OFFSET,
            consumed: FIRST_DATA,
            fin_at: u64::MAX,
            discard_from: u64::MAX,
            out_of_order: Assembler::default(),
            duplicate: Default::default(),
            duplicate_acks: 0,
            measured_at: now,
            measured_from: FIRST_DATA,
            space: SequenceSpace::new(SeqNumber::default()),
            buffer,
            mss: mss.min(RECEIVE_MSS_INITIAL),
            mss_announced: mss,
            segment_max: mss,
            pushed: false,
            shift: shift_for(buffer_max),
        }
    }
}

/// Timestamps, RFC 7323.
#[derive(Debug)]
pub(super) struct TimestampClock {
    /// Both sides use the option.
    pub(super) on: bool,
    /// Added to our milliseconds.
    pub(super) offset: u32,
    /// TS.Recent.
    pub(super) recent: u32,
    /// When TS.Recent was taken, in whole seconds.
    pub(super) recent_at_s: u32,
}

impl TimestampClock {
    /// TSval of this moment.
    pub(super) fn value(&self, now: Instant) -> u32 {
        timestamp_at(now, self.offset)
    }
}

/// TSval of a moment, in milliseconds, where the clock of two hosts has this offset (RFC 7323 section 5.4).
pub(crate) fn timestamp_at(now: Instant, offset: u32) -> u32 {
    offset.wrapping_add((now.us() / 1000) as u32)
}

/// An acknowledgement we owe.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum AckNeed {
    /// None.
    None,
    /// One, when the delay runs out or something else is sent.
    Delayed,
    /// One, at once.
    Now,
}

/// A probe to send.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Probe {
    /// None.
    None,
    /// The persist timer ran out: send what fits, or ask for the window.
    Window,
    /// The keep-alive timer ran out.
    KeepAlive,
}

/// One TCP connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) send: SendSpace,
    pub(super) receive: ReceiveSpace,
    pub(super) rtt: RoundTrip,
    pub(super) loss: Loss,
    pub(super) congestion: Congestion,
    pub(super) timers: Timers,
    pub(super) timestamps: TimestampClock,
    pub(super) options: SocketOptions,
    pub(super) parameters: Parameters,
    /// When a segment last arrived.
    pub(super) heard_at: Instant,
    /// When data was last sent and last received.
    pub(super) data_sent_at: Instant,
    pub(super) data_received_at: Instant,
    /// Since when the peer owes us progress: an acknowledgement, or an open window.
    pub(super) waiting_since: Instant,
    /// When the last challenge acknowledgement went out.
    pub(super) challenged_at: Instant,
    pub(super) state: State,
    /// Largest payload that the path carries: what our link does, or less by what a router said.
    pub(super) path_mss: u16,
    pub(super) error: Option<SocketError>,
    /// An ICMP error that explains a later time-out.
    pub(super) soft_error: Option<SocketError>,
    pub(super) ack: AckNeed,
    pub(super) probe: Probe,
    /// Segments received out of order that get an acknowledgement each.
    pub(super) duplicate_acks_due: u8,
    /// Acknowledgements still to be sent without delay.
    pub(super) quick_acks: u8,
    /// Probes in a row (window or keep-alive) without an answer.
    pub(super) probes_unanswered: u8,
    /// Doublings of the persist timer.
    pub(super) probe_backoff: u8,
    /// The application answers what it gets, so acknowledgements can ride on its data.
    pub(super) ping_pong: bool,
    /// A SYN or SYN-ACK has to go out.
    pub(super) syn_due: bool,
    /// The application has closed its side: a FIN sits at `send.tail`.
    pub(super) fin_queued: bool,
    /// The owner has let go: nobody reads any more.
    pub(super) orphaned: bool,
    /// The handshake has completed at some time.
    pub(super) connected: bool,
    /// The connection runs over IPv6.
    pub(super) ipv6: bool,
    /// The connection was opened by the peer.
    pub(super) passive: bool,
    /// Both SYNs carried the window scale option.
    pub(super) scaling: bool,
    /// Both SYNs allow SACK; before the peer's has arrived, ours.
    pub(super) sack_permitted: bool,
    /// The application fixed the receive buffer.
    pub(super) buffer_fixed: bool,
    /// Progress has changed.
    pub(super) changed: bool,
}

carried!(struct SendSpace {
    una,
    nxt,
    tail,
    small_end,
    push_end,
    space,
    window,
    window_max,
    wl1,
    wl2,
    mss,
    shift,
});
carried!(struct ReceiveSpace {
    nxt,
    edge,
    acked,
    consumed,
    fin_at,
    discard_from,
    out_of_order,
    duplicate,
    duplicate_acks,
    measured_at,
    measured_from,
    space,
    buffer,
    mss,
    mss_announced,
    segment_max,
    pushed,
    shift,
});
carried!(struct TimestampClock { on, offset: clock, recent, recent_at_s: seconds });
carried!(
    enum AckNeed {
        None = 0,
        Delayed = 1,
        Now = 2,
    }
);
carried!(
    enum Probe {
        None = 0,
        Window = 1,
        KeepAlive = 2,
    }
);
carried!(struct Connection {
    send,
    receive,
    rtt,
    loss,
    congestion,
    timers,
    timestamps,
    options,
    parameters,
    heard_at,
    data_sent_at,
    data_received_at,
    waiting_since,
    challenged_at,
    state,
    path_mss,
    error,
    soft_error,
    ack,
    probe,
    duplicate_acks_due,
    quick_acks,
    probes_unanswered,
    probe_backoff,
    ping_pong,
    syn_due,
    fin_queued,
    orphaned,
    connected,
    ipv6,
    passive,
    scaling,
    sack_permitted,
    buffer_fixed,
    changed,
});

impl Connection {
    /// What both ways of opening share: nothing sent, nothing heard.
    pub(super) fn new(now: Instant, setup: &Setup<'_>, passive: bool) -> Connection {
        let parameters = Parameters::new(setup.limits, &setup.options);
        let options = setup.options;
        let announced = match options.max_segment {
            0 => setup.mss,
            limit => setup.mss.min(limit),
        };
        let buffer = options.receive_buffer.min(parameters.receive_buffer_max);
        Connection {
            send: SendSpace::new(setup.iss, announced),
            receive: ReceiveSpace::new(now, buffer, announced, parameters.receive_buffer_max),
            rtt: RoundTrip::new(&parameters),
            loss: Loss::new(),
            congestion: Congestion::new(CongestionControl::Cubic),
            timers: Timers::new(),
            timestamps: TimestampClock {
                on: true,
                offset: setup.timestamp_offset,
                recent: 0,
                recent_at_s: 0,
            },
            path_mss: setup.mss,
            options,
            parameters,
            heard_at: now,
            data_sent_at: now,
            data_received_at: now,
            waiting_since: now,
            challenged_at: Instant::default(),
            state: if passive { State::SynReceived } else { State::SynSent },
            error: None,
            soft_error: None,
            ack: AckNeed::None,
            probe: Probe::None,
            duplicate_acks_due: 0,
            quick_acks: 0,
            probes_unanswered: 0,
            probe_backoff: 0,
            ping_pong: false,
            syn_due: true,
            fin_queued: false,
            orphaned: false,
            connected: false,
            ipv6: setup.remote.is_ipv6(),
            passive,
            scaling: true,
            sack_permitted: setup.limits.sack,
            buffer_fixed: options.receive_buffer != crate::limits::RECEIVE_BUFFER_DEFAULT,
            changed: false,
        }
    }

    /// Chooses the congestion control; meant for before the handshake, as it forgets the window.
    pub fn set_congestion_control(&mut self, control: CongestionControl) {
        let mss = self.segment_payload_max();
        self.congestion = Congestion::new(control);
        if self.connected {
            self.congestion.start(mss, false);
        }
    }

    /// What the application should know.
    pub fn progress(&self) -> Progress {
        let received = self.receive.nxt.min(self.receive.fin_at).min(self.receive.discard_from);
        Progress {
            connected: self.connected,
            rx_end: position(received),
            rx_fin: self.fin_received(),
            tx_acked: position(self.send.una.min(self.send.tail)),
            tx_wish: if self.connected { self.congestion.cwnd.saturating_mul(2) } else { 0 },
            error: self.error,
            finished: self.is_over(),
        }
    }

    /// True when [`Connection::progress`] has changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// State.
    pub fn state(&self) -> State {
        self.state
    }

    /// The options as they are now.
    pub fn options(&self) -> &SocketOptions {
        &self.options
    }

    /// True when nothing will change any more.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Closed | State::TimeWait)
    }

    /// True when something the owner wrote, or a FIN, has not been acknowledged yet.
    pub fn has_unfinished_data(&self) -> bool {
        !self.is_over() && self.send.una < self.send.tail + u64::from(self.fin_queued)
    }

    /// When [`Connection::handle_timers`] wants to run next.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The application has written up to stream position `tail`; lower values are ignored. However
    /// high it is, no more than the send buffer limit goes out beyond what is acknowledged.
    pub fn send_ready(&mut self, now: Instant, tail: u64) {
        if self.fin_queued || self.is_over() {
            return;
        }
        let tail = offset_of_position(tail).min(OFFSET_MAX);
        if tail > self.send.tail {
            if self.send.tail == self.send.nxt && self.in_flight() == 0 {
                self.waiting_since = now;
            }
            self.send.tail = tail;
            self.arm_persist(now);
        }
    }

    /// The application has read up to stream position `position`; values beyond what has arrived
    /// are cut.
    pub fn receive_consumed(&mut self, now: Instant, position: u64) {
        let end = self.receive.nxt.min(self.receive.fin_at).min(self.receive.discard_from);
        let consumed = offset_of_position(position).min(end);
        if consumed > self.receive.consumed {
            self.receive.consumed = consumed;
            self.grow_receive_buffer(now);
            self.offer_wider_window();
        }
    }

    /// Changes one option.
    pub fn set_option(&mut self, now: Instant, option: SocketOption) {
        self.options.set(option);
        match option {
            SocketOption::KeepAlive(_) | SocketOption::KeepIdle(_) => self.arm_keep_alive(now),
            SocketOption::ReceiveBuffer(_) => {
                let limit = self.parameters.receive_buffer_max;
                self.receive.buffer = self.options.receive_buffer.min(limit);
                self.buffer_fixed = true;
                self.offer_wider_window();
            }
            SocketOption::QuickAck(on) => {
                self.ping_pong = !on;
                if on && self.ack == AckNeed::Delayed {
                    self.ack = AckNeed::Now;
                }
            }
            // tcp(7): setting it pushes what waits, even under a cork.
            SocketOption::NoDelay(true) => self.send.push_end = self.send.tail,
            SocketOption::MaxSegment(limit) if limit > 0 => {
                self.send.mss = self.send.mss.min(limit);
            }
            SocketOption::UserTimeout(_) => self.clamp_retransmission_timer(now),
            SocketOption::SynCount(count) if count > 0 => self.parameters.syn_retries = count,
            SocketOption::FinWait2(seconds) if seconds > 0 => {
                self.parameters.fin_wait_2_ms = seconds.saturating_mul(1000);
            }
            _ => {}
        }
        self.arm_persist(now);
    }

    /// The record that answers for this connection in TIME-WAIT.
    pub fn time_wait_record(&self) -> TimeWait {
        TimeWait {
            snd_nxt: self.send.space.wire(self.send.nxt),
            rcv_nxt: self.receive.space.wire(self.receive.nxt),
            receive_window: (self.receive.edge - self.receive.nxt) as u32,
            window_shift: self.shift_sent(),
            ts_recent: self.timestamps.on.then_some(self.timestamps.recent),
            timestamp_offset: self.timestamps.offset,
            answered_at: Instant::default(),
        }
    }

    /// Inner numbers for display.
    pub fn info(&self, now: Instant) -> TcpInfo {
        TcpInfo {
            state: self.state,
            congestion_state: self.loss.linux_state(),
            backoff: self.loss.backoff,
            timestamps: self.timestamps.on,
            sack_permitted: self.sack_permitted,
            window_scale: self.scaling.then_some((self.send.shift, self.receive.shift)),
            rto_us: self.rto_us().min(u64::from(u32::MAX)) as u32,
            srtt_us: self.rtt.srtt_us,
            rttvar_us: self.rtt.rttvar_us,
            min_rtt_us: self.rtt.min_us,
            send_mss: self.segment_payload_max() as u16,
            receive_mss: self.receive.mss,
            path_mtu: u32::from(self.path_mss) + if self.ipv6 { 60 } else { 40 },
            cwnd: self.congestion.cwnd,
            ssthresh: self.congestion.ssthresh,
            send_window: self.send.window,
            receive_window: (self.receive.edge - self.receive.nxt) as u32,
            unacknowledged: self.in_flight(),
            not_sent: self.send.tail.saturating_sub(self.send.nxt),
            receive_queue: self.progress().rx_end.saturating_sub(position(self.receive.consumed)),
            sacked: self.loss.board().sacked(),
            lost: self.loss.board().lost(),
            retransmitted: self.loss.board().resent(),
            reordering: self.loss.reordering,
            retransmits: self.loss.retransmits,
            bytes_acked: position(self.send.una.min(self.send.tail)),
            bytes_received: position(self.receive.nxt.min(self.receive.fin_at)),
            last_data_sent_us: now.since(self.data_sent_at),
            last_data_received_us: now.since(self.data_received_at),
        }
    }

    /// What the event trace keeps.
    pub fn vitals(&self) -> Vitals {
        Vitals {
            state: self.state,
            congestion_state: self.loss.linux_state(),
            backoff: self.loss.backoff,
            cwnd: self.congestion.cwnd,
            ssthresh: self.congestion.ssthresh,
            srtt_us: self.rtt.srtt_us,
            rto_us: self.rto_us().min(u64::from(u32::MAX)) as u32,
            retransmits: self.loss.retransmits,
        }
    }

    /// The peer's FIN has arrived with everything before it.
    pub(super) fn fin_received(&self) -> bool {
        self.receive.nxt > self.receive.fin_at
    }

    /// Our FIN was sent at least once.
    pub(super) fn fin_sent(&self) -> bool {
        self.fin_queued && self.send.nxt > self.send.tail
    }

    /// Bytes sent and not acknowledged, SYN and FIN included.
    pub(super) fn in_flight(&self) -> u64 {
        self.send.nxt - self.send.una
    }

    /// Payload of a full segment beside the options every segment carries.
    pub(super) fn segment_payload_max(&self) -> u32 {
        let options = if self.timestamps.on { TIMESTAMPS_LEN as u32 } else { 0 };
        u32::from(self.send.mss).saturating_sub(options).max(1)
    }

    /// The retransmission time-out with its back-off.
    pub(super) fn rto_us(&self) -> u64 {
        let rto_us = u64::from(self.rtt.rto_us) << self.loss.backoff.min(31);
        rto_us.min(u64::from(self.parameters.rto_max_us))
    }

    /// The connection is over; `error` tells why unless it ended in order.
    pub(super) fn finish(&mut self, state: State, error: Option<SocketError>) {
        self.state = state;
        self.error = self.error.or(error);
        self.timers.clear();
        self.receive.out_of_order.clear();
        self.loss.board = None;
        self.ack = AckNeed::None;
        self.probe = Probe::None;
        self.syn_due = false;
        self.changed = true;
    }

    /// Arms the keep-alive timer anew, or stops it.
    pub(super) fn arm_keep_alive(&mut self, now: Instant) {
        if self.options.keep_alive && self.connected && !self.is_over() {
            let idle_us = u64::from(self.options.keep_idle_s) * 1_000_000;
            self.timers.set(Timer::KeepAlive, self.heard_at.plus_us(idle_us).max(now));
        } else {
            self.timers.stop(Timer::KeepAlive);
        }
    }
}
