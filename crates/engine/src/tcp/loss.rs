//! What acknowledgements say: progress, loss, and how to repair it.
//!
//! Told as one quantity, the bytes thought to be in the network ("pipe"), and one set of marks, the
//! scoreboard of `scoreboard.rs`. With SACK it is RFC 6675: `sack.rs` fills the scoreboard and finds
//! losses. Without, it is RFC 5681 and RFC 6582 (NewReno): a duplicate acknowledgement means that a
//! segment has left the network (`departed`, which is what RFC 6582 calls inflating the window, and
//! gives limited transmit of RFC 3042 for free). Called by `receive.rs` and `timers.rs`;
//! `transmit.rs` asks [`Connection::pipe`] and the scoreboard.

use super::connection::Connection;
use super::scoreboard::{DUPLICATE_THRESHOLD, Scoreboard};
use super::seam::TcpCounters;
use super::sequence_space::SYN_OFFSET;
use super::tail_probe::TailProbe;
use super::timers::Timer;
use crate::Instant;
use crate::carry::carried;

/// An echo that is older than this many milliseconds is garbage.
const ECHO_AGE_MS_MAX: u32 = 1 << 24;

/// Where a connection is in repairing losses.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Nothing is known to be lost.
    Open,
    /// Fast recovery until `recover` is acknowledged.
    Recovery,
    /// After a time-out, until `recover` is acknowledged.
    Loss,
}

/// Loss state of one connection.
#[derive(Debug)]
pub(super) struct Loss {
    /// What is known of the data in flight, once something is; see [`Loss::board`].
    pub(super) board: Option<Box<Scoreboard>>,
    /// RecoveryPoint: what was sent when the last repair began; a new one needs progress beyond it.
    /// While a tail probe is out, TLP.end_seq.
    pub(super) recover: u64,
    /// Bytes that left the network by the word of duplicate acknowledgements without SACK.
    departed: u32,
    /// Segments sent again over the connection's life.
    pub(super) retransmits: u32,
    /// DupAcks: duplicate acknowledgements since the last progress.
    pub(super) duplicates: u16,
    /// When new data was last sent; the low half of its microseconds.
    pub(super) new_data_sent_us: u32,
    /// The most segments that something arrived late by, at least DupThresh.
    pub(super) reordering: u16,
    pub(super) phase: Phase,
    /// Time-outs in a row.
    pub(super) backoff: u8,
    /// The first retransmission of fast recovery goes out whatever the window says.
    pub(super) retransmit_now: bool,
    /// The end of the flight may be sent again, once in a recovery (RFC 6675, NextSeg rule 4).
    pub(super) rescue: Rescue,
    /// What asks for an acknowledgement of the end of the flight (RFC 8985 section 7).
    pub(super) tail_probe: TailProbe,
}

/// The rescue retransmission of a recovery.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Rescue {
    /// The end of the flight may still arrive by itself.
    Waits,
    /// It should have arrived by now.
    Due,
    /// Sent.
    Done,
}

impl Loss {
    /// All well.
    pub(super) fn new() -> Loss {
        Loss {
            board: None,
            recover: SYN_OFFSET,
            departed: 0,
            retransmits: 0,
            duplicates: 0,
            new_data_sent_us: 0,
            reordering: DUPLICATE_THRESHOLD,
            phase: Phase::Open,
            backoff: 0,
            retransmit_now: false,
            rescue: Rescue::Waits,
            tail_probe: TailProbe::None,
        }
    }

    /// Linux's number for the phase, as `tcp_info` shows it.
    pub(super) fn linux_state(&self) -> u8 {
        match self.phase {
            Phase::Open if self.duplicates > 0 || !self.board().is_empty() => 1,
            Phase::Open => 0,
            Phase::Recovery => 3,
            Phase::Loss => 4,
        }
    }

    /// The scoreboard, to look at.
    pub(super) fn board(&self) -> &Scoreboard {
        static EMPTY: Scoreboard = Scoreboard::new();
        self.board.as_deref().unwrap_or(&EMPTY)
    }

    /// The scoreboard, to write on; it takes memory from now on.
    pub(super) fn board_mut(&mut self) -> &mut Scoreboard {
        self.board.get_or_insert_default()
    }

    /// Forgets duplicates.
    fn settle(&mut self) {
        self.departed = 0;
        self.duplicates = 0;
    }
}

impl Connection {
    /// Bytes thought to be in the network.
    pub(super) fn pipe(&self) -> u32 {
        let out = self.loss.board().pipe(self.in_flight());
        out.saturating_sub(self.loss.departed.into()).min(u64::from(u32::MAX)) as u32
    }

    /// SND.UNA moves to `ack`, which acknowledges something new. `echo` is the timestamp echoed.
    pub(super) fn advance_una(&mut self, now: Instant, ack: u64, echo: Option<u32>) {
        let acked = (ack - self.send.una).min(u64::from(u32::MAX)) as u32;
        self.send.una = ack;
        self.waiting_since = now;
        self.loss.backoff = 0;
        self.soft_error = None;
        self.changed = true;
        self.take_round_trip_sample(now, echo);
        let held = self.loss.board().sacked();
        self.advance_scoreboard(now, ack);
        // What was told by blocks before left the network then, and made room then.
        let news = acked.saturating_sub((held - self.loss.board().sacked()) as u32);
        match self.loss.phase {
            Phase::Open => {
                self.loss.settle();
                let mss = self.segment_payload_max();
                self.congestion.on_ack(now, ack, news, mss, self.rtt.srtt_us);
            }
            Phase::Recovery => self.advance_in_recovery(ack, acked),
            Phase::Loss => self.advance_in_loss(ack, acked),
        }
        // RFC 6298 section 5.2 and 5.3.
        if self.in_flight() == 0 {
            self.timers.stop(Timer::Retransmission);
        } else {
            self.timers.set(Timer::Retransmission, self.retransmission_deadline(now));
        }
        self.schedule_tail_probe(now);
    }

    /// RFC 6298 section 3 and RFC 7323 section 4.1: our own clock where it applies, the echo where
    /// something was sent again. When acknowledgements were lost an echo can be as old as the longest
    /// back-off, so what it says is bounded: a path that has really become that slow is learnt in a
    /// few steps.
    fn take_round_trip_sample(&mut self, now: Instant, echo: Option<u32>) {
        if let Some(rtt_us) = self.rtt.take_timing(self.send.una, now) {
            self.rtt.sample(rtt_us, &self.parameters);
        } else if let Some(echo) = echo
            && self.loss.phase != Phase::Open
        {
            let age_ms = self.timestamps.value(now).wrapping_sub(echo);
            if age_ms < ECHO_AGE_MS_MAX {
                let bound_us = u64::from(self.rtt.rto_us) * 4;
                self.rtt.sample((u64::from(age_ms) * 1000).min(bound_us), &self.parameters);
            }
        }
    }

    /// RFC 6582 section 3.2 steps 2 and 3; RFC 6675 section 5 step A.
    fn advance_in_recovery(&mut self, ack: u64, acked: u32) {
        let mss = self.segment_payload_max();
        if ack >= self.loss.recover {
            let flight = self.in_flight().min(u64::from(u32::MAX)) as u32;
            self.loss.phase = Phase::Open;
            self.loss.settle();
            if self.sack_permitted {
                self.congestion.on_recovered_with_sack();
            } else {
                self.congestion.on_recovered(flight, mss);
                self.loss.board_mut().forget();
            }
            return;
        }
        if self.sack_permitted {
            return self.loss.settle();
        }
        // A partial acknowledgement: the segment after it is lost too. Deflate by what it
        // acknowledged, less the segment that is sent now.
        self.loss.departed = self.loss.departed.saturating_sub(acked);
        if acked >= mss {
            self.loss.departed += mss;
        }
        let end = (ack + u64::from(mss)).min(self.send.nxt);
        self.loss.board_mut().mark_lost(ack, ack, end);
        self.loss.retransmit_now = true;
    }

    /// After a time-out everything is sent again in slow start; what was not lost is skipped as
    /// acknowledgements jump over it.
    fn advance_in_loss(&mut self, ack: u64, acked: u32) {
        let mss = self.segment_payload_max();
        self.congestion.on_ack_in_loss(acked, mss);
        self.loss.settle();
        if ack >= self.loss.recover {
            self.loss.phase = Phase::Open;
        }
    }

    /// A duplicate acknowledgement, RFC 5681 section 2, from a peer without SACK.
    pub(super) fn handle_duplicate_ack(&mut self, counters: &mut TcpCounters) {
        counters.duplicate_acks_received += 1;
        if self.loss.phase == Phase::Loss {
            return;
        }
        let mss = self.segment_payload_max();
        self.loss.duplicates = self.loss.duplicates.saturating_add(1);
        let limit = self.in_flight().min(u64::from(u32::MAX)) as u32;
        self.loss.departed = self.loss.departed.saturating_add(mss).min(limit);
        let enough = self.loss.duplicates == DUPLICATE_THRESHOLD;
        // RFC 6582 section 3.2 step 1: duplicates of data that an earlier repair sent in vain are
        // no news.
        let is_news = self.send.una > self.loss.recover;
        if self.loss.phase == Phase::Open && enough && is_news {
            self.enter_recovery(counters);
        }
    }

    /// RFC 5681 section 3.2, RFC 6582, RFC 6675 section 5 step 4: back off once, and send the first
    /// hole whatever the window says.
    pub(super) fn enter_recovery(&mut self, counters: &mut TcpCounters) {
        counters.fast_retransmits += 1;
        let mss = self.segment_payload_max();
        let flight = self.in_flight().min(u64::from(u32::MAX)) as u32;
        self.congestion.on_loss(flight, mss);
        self.loss.phase = Phase::Recovery;
        self.forget_tail_probe();
        self.loss.recover = self.send.nxt;
        self.loss.rescue = Rescue::Waits;
        self.loss.retransmit_now = true;
        let una = self.send.una;
        if !self.loss.board().has_waiting() {
            let end = self.loss.board().first_sacked(self.send.nxt).min(una + u64::from(mss));
            self.loss.board_mut().mark_lost(una, una, end);
        }
        self.rtt.abandon_timing();
    }

    /// The retransmission timer ran out: all in flight counts as lost, and what the peer said it
    /// holds too, as it may have given that up (RFC 2018 section 8).
    pub(super) fn start_loss_recovery(&mut self) {
        let mss = self.segment_payload_max();
        let flight = self.in_flight().min(u64::from(u32::MAX)) as u32;
        let again = self.loss.phase == Phase::Loss && self.loss.backoff > 0;
        self.congestion.on_timeout(flight, mss, again);
        self.loss.settle();
        self.loss.phase = Phase::Loss;
        self.forget_tail_probe();
        self.loss.recover = self.send.nxt;
        self.loss.board_mut().forget();
        self.loss.board_mut().mark_all_lost(self.send.una, self.send.nxt);
        self.loss.retransmit_now = true;
    }

    /// The path takes smaller segments only: what is in flight was dropped for its size, which says
    /// nothing about congestion (RFC 1191 section 6.5).
    pub(super) fn resend_for_smaller_segments(&mut self) {
        if self.in_flight() == 0 || !self.connected {
            return;
        }
        self.loss.settle();
        if self.loss.phase == Phase::Open {
            self.loss.phase = Phase::Loss;
        }
        self.loss.recover = self.send.nxt;
        self.loss.board_mut().mark_all_lost(self.send.una, self.send.nxt);
        self.loss.retransmit_now = true;
        self.rtt.abandon_timing();
    }
}

carried!(
    enum Phase {
        Open = 0,
        Recovery = 1,
        Loss = 2,
    }
);
carried!(
    enum Rescue {
        Waits = 0,
        Due = 1,
        Done = 2,
    }
);
carried!(struct Loss {
    board,
    recover,
    departed,
    retransmits,
    duplicates,
    new_data_sent_us: low_half,
    reordering,
    phase,
    backoff,
    retransmit_now,
    rescue,
    tail_probe,
});
