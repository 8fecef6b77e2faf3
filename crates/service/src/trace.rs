//! The event trace as `haypile trace` reads it: rows made from the shard's records when somebody
//! asks, a bounded number at a time. Called by `event_loop`; never on the data path.

use haypile_engine::{Reason, Shard, TraceKind, TraceRecord};
use serde::{Deserialize, Serialize};

use crate::report::state_of;

/// Rows of one answer at most: more would hold the server.
pub const ROWS_MAX: usize = 256;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRow {
    /// Its number; numbers go on without gaps, so that a gap between answers shows what was lost.
    pub number: u64,
    /// Microseconds since the machine was started.
    pub at_us: u64,
    /// The connection's name inside the service; `None` when there was none.
    pub connection: Option<String>,
    /// Own address and port.
    pub local: String,
    /// The peer's.
    pub remote: String,
    /// received, sent, again, timer, ended or dropped.
    pub event: String,
    /// Why something was sent again or dropped.
    pub reason: Option<String>,
    /// Control bits of the segment; empty for events without one.
    pub flags: String,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Window as on the wire, not scaled.
    pub window: u16,
    /// State afterwards, as ss(8) names it.
    pub state: String,
    /// Congestion window in bytes.
    pub cwnd: u32,
    /// Slow start threshold in bytes; `None` before the first loss.
    pub ssthresh: Option<u32>,
    /// Smoothed round trip in microseconds, 0 before the first sample.
    pub srtt_us: u32,
    /// Retransmission time-out in microseconds.
    pub rto_us: u32,
    /// Segments sent again over the connection's life.
    pub retransmits: u32,
}

/// A part of the trace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracePart {
    /// Number to ask from the next time.
    pub next: u64,
    /// Whether there is more already.
    pub more: bool,
    /// Events overwritten before they could be read.
    pub lost: u64,
    /// Transport servers, each with a trace of its own; 0: not told.
    #[serde(default)]
    pub servers: u16,
    /// Oldest first.
    pub events: Vec<TraceRow>,
}

/// The events from number `since` on; `None` while the trace is off.
pub fn part(shard: &Shard, since: u64) -> Option<TracePart> {
    let end = shard.trace_next()?;
    let events: Vec<TraceRow> =
        shard.trace_since(since).take(ROWS_MAX).map(|(number, event)| row(number, event)).collect();
    let first = events.first().map_or(end, |row| row.number);
    let next = events.last().map_or(end, |row| row.number + 1);
    // Whoever asks from 0 wants what there is.
    let lost = if since == 0 { 0 } else { first.saturating_sub(since) };
    Some(TracePart { next, more: next < end, lost, servers: 0, events })
}

fn row(number: u64, record: &TraceRecord) -> TraceRow {
    let (event, reason) = words(record.kind);
    let vitals = &record.vitals;
    let segment = &record.segment;
    TraceRow {
        number,
        at_us: record.at.us(),
        connection: record.id.map(|id| format!("{}.{}", id.index(), id.generation())),
        local: record.local().to_string(),
        remote: record.remote().to_string(),
        event: event.to_string(),
        reason: reason.map(str::to_string),
        flags: flags(segment.flags.bits()),
        seq: segment.seq,
        ack: segment.ack,
        len: segment.len,
        window: segment.window,
        state: state_of(vitals.state).to_string(),
        cwnd: vitals.cwnd,
        ssthresh: (vitals.ssthresh != u32::MAX).then_some(vitals.ssthresh),
        srtt_us: vitals.srtt_us,
        rto_us: vitals.rto_us,
        retransmits: vitals.retransmits,
    }
}

fn words(kind: TraceKind) -> (&'static str, Option<&'static str>) {
    match kind {
        TraceKind::Received => ("received", None),
        TraceKind::Sent => ("sent", None),
        TraceKind::SentAgain(Reason::Timeout) => ("again", Some("timeout")),
        TraceKind::SentAgain(Reason::Recovery) => ("again", Some("recovery")),
        TraceKind::SentAgain(Reason::Probe) => ("again", Some("probe")),
        TraceKind::Timer => ("timer", None),
        TraceKind::Ended => ("ended", None),
        TraceKind::Dropped(reason) => ("dropped", Some(reason.name())),
    }
}

fn flags(bits: u8) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set = NAMES.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
}
