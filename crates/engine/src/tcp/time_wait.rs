//! TIME-WAIT as a small record: what outlives a connection for twice the maximum segment life.
//!
//! The shard keeps the records and asks [`TimeWait::handle_segment`] about every segment of such a
//! flow. Read first: RFC 9293 section 3.10.7.4 (TIME-WAIT), RFC 1337 (a RST must not end the
//! state), RFC 6191 (a newer SYN may take the pair of addresses over).

use super::connection::timestamp_at;
use super::segment::{Flags, Options, Outgoing, Segment, SeqNumber, Timestamps, WINDOW_SCALE_MAX};
use crate::Instant;
use crate::carry::{Refusal, carried, demand};

/// Least time between two answers to one record's stray segments, in microseconds.
const ANSWER_INTERVAL_US: u64 = 500_000;

/// What is left of a connection in TIME-WAIT.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct TimeWait {
    /// Next sequence number of ours.
    pub snd_nxt: SeqNumber,
    /// Next sequence number expected.
    pub rcv_nxt: SeqNumber,
    /// Window of the last acknowledgement, in bytes.
    pub receive_window: u32,
    /// Shift of the window field.
    pub window_shift: u8,
    /// Latest timestamp of the peer, when timestamps were on.
    pub ts_recent: Option<u32>,
    /// Added to the millisecond clock to give TSval.
    pub timestamp_offset: u32,
    /// When the last answer to a stray segment was sent.
    pub answered_at: Instant,
}

/// What a TIME-WAIT record says to a segment.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum TimeWaitAnswer {
    /// Nothing; the segment is dropped.
    Ignore,
    /// Send this acknowledgement, and start the wait anew when `restart`.
    Acknowledge {
        /// The segment to send.
        reply: Outgoing,
        /// The peer sent its FIN again: it has not heard us.
        restart: bool,
    },
    /// A new SYN that is certainly newer than the old connection (RFC 6191): forget the record and
    /// hand the SYN to the listener. The new initial sequence number must come after this one.
    Reuse {
        /// One past the last sequence number of the old connection.
        snd_nxt: SeqNumber,
    },
}

impl TimeWait {
    /// Answers a segment of this flow.
    pub fn handle_segment(&mut self, now: Instant, segment: &Segment<'_>) -> TimeWaitAnswer {
        let old_timestamp = self.is_old_timestamp(segment);
        if segment.flags.contains(Flags::RST) {
            // RFC 1337: a RST, genuine or not, does not shorten the wait.
            return TimeWaitAnswer::Ignore;
        }
        let bare_syn = segment.flags.contains(Flags::SYN) && !segment.flags.contains(Flags::ACK);
        if bare_syn && !old_timestamp && self.is_newer_syn(segment) {
            return TimeWaitAnswer::Reuse { snd_nxt: self.snd_nxt };
        }
        let fin = segment.flags.contains(Flags::FIN) && !segment.flags.contains(Flags::SYN);
        if fin && segment.seq + segment.sequence_len() == self.rcv_nxt {
            return TimeWaitAnswer::Acknowledge { reply: self.acknowledgement(now), restart: true };
        }
        let answers_nothing = segment.sequence_len() == 0 && segment.seq == self.rcv_nxt;
        if answers_nothing || now.since(self.answered_at) < ANSWER_INTERVAL_US {
            return TimeWaitAnswer::Ignore;
        }
        self.answered_at = now;
        TimeWaitAnswer::Acknowledge { reply: self.acknowledgement(now), restart: false }
    }

    /// True when PAWS (RFC 7323 section 5) tells the segment is older than the connection's end.
    fn is_old_timestamp(&self, segment: &Segment<'_>) -> bool {
        match (self.ts_recent, segment.options.timestamps) {
            (Some(recent), Some(timestamps)) => (timestamps.value.wrapping_sub(recent) as i32) < 0,
            _ => false,
        }
    }

    /// RFC 6191 section 2: newer by timestamp, or, without that, by sequence number.
    fn is_newer_syn(&self, segment: &Segment<'_>) -> bool {
        let newer_timestamp = match (self.ts_recent, segment.options.timestamps) {
            (Some(recent), Some(timestamps)) => (timestamps.value.wrapping_sub(recent) as i32) > 0,
            _ => false,
        };
        newer_timestamp || self.rcv_nxt.lt(segment.seq)
    }

    /// The acknowledgement that repeats where the connection ended.
    fn acknowledgement(&self, now: Instant) -> Outgoing {
        let timestamps = self.ts_recent.map(|recent| Timestamps {
            value: timestamp_at(now, self.timestamp_offset),
            echo: recent,
        });
        Outgoing {
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags: Flags::ACK,
            window: (self.receive_window >> self.window_shift).min(0xffff) as u16,
            options: Options { timestamps, ..Options::default() },
            payload_position: 0,
            payload_len: 0,
            segment_size: 0,
        }
    }
}

carried!(struct TimeWait {
    snd_nxt,
    rcv_nxt,
    receive_window,
    window_shift,
    ts_recent,
    timestamp_offset: clock,
    answered_at,
});

impl TimeWait {
    /// That nothing computed from what was read can go wrong.
    ///
    /// # Errors
    /// [`Refusal::Impossible`].
    pub fn check(&self) -> Result<(), Refusal> {
        demand(self.window_shift <= WINDOW_SCALE_MAX, "window scale of a TIME-WAIT record")
    }
}
