//! What the shard writes into its event trace, and how its owner reads it. One branch each while the
//! trace is off. Called from where segments come and go; read `trace.rs` of the crate first.

use super::Shard;
use super::entry::Socket;
use crate::drop_reason::DropReason;
use crate::flow_table::{FlowKey, FlowOwner};
use crate::socket_id::SocketId;
use crate::tcp::{Outgoing, Segment, Vitals};
use crate::trace::{Trace, TraceKind, TraceRecord, TracedSegment, reason};

impl Shard {
    /// Switches the event trace on with room for `records` events, or off with 0. What was traced
    /// before is gone.
    pub fn set_trace(&mut self, records: usize) {
        self.trace = (records > 0).then(|| Box::new(Trace::new(records)));
    }

    /// The traced events from number `since` on that are still there, oldest first, with their
    /// numbers.
    pub fn trace_since(&self, since: u64) -> impl Iterator<Item = (u64, &TraceRecord)> {
        self.trace.iter().flat_map(move |trace| trace.since(since))
    }

    /// Number of the next traced event; `None` while the trace is off.
    pub fn trace_next(&self) -> Option<u64> {
        self.trace.as_ref().map(|trace| trace.next())
    }

    /// A segment was handled, or dropped.
    #[inline]
    pub(super) fn trace_received(
        &mut self,
        owner: Option<FlowOwner>,
        key: FlowKey,
        segment: &Segment<'_>,
        dropped: Option<DropReason>,
    ) {
        if self.trace.is_none() {
            return;
        }
        // A SYN has made a connection by now.
        let id = match owner.or_else(|| self.flows.lookup(&key)) {
            Some(FlowOwner::Connection(id)) => Some(id),
            _ => None,
        };
        let traced = TracedSegment {
            flags: segment.flags,
            seq: segment.seq.value(),
            ack: segment.ack.value(),
            len: segment.payload.len() as u32,
            window: segment.window,
        };
        let kind = dropped.map_or(TraceKind::Received, TraceKind::Dropped);
        let vitals = id.and_then(|id| self.vitals_of(id)).map(|(_, vitals)| vitals);
        self.trace_push(id, key, kind, traced, vitals.unwrap_or_default());
    }

    /// A connection sends; `before`: its figures before that, of a segment in its order.
    #[inline]
    pub(super) fn trace_sent(&mut self, id: SocketId, before: Option<Vitals>, sent: &Outgoing) {
        if self.trace.is_none() {
            return;
        }
        let Some((key, vitals)) = self.vitals_of(id) else { return };
        let kind = match before {
            Some(before) if vitals.retransmits != before.retransmits => {
                TraceKind::SentAgain(reason(&before))
            }
            _ => TraceKind::Sent,
        };
        let traced = TracedSegment {
            flags: sent.flags,
            seq: sent.seq.value(),
            ack: sent.ack.value(),
            len: sent.payload_len as u32,
            window: sent.window,
        };
        self.trace_push(Some(id), key, kind, traced, vitals);
    }

    /// Something without a segment happened to a connection.
    pub(super) fn trace_event(&mut self, id: SocketId, kind: TraceKind) {
        if self.trace.is_none() {
            return;
        }
        let Some((key, vitals)) = self.vitals_of(id) else { return };
        self.trace_push(Some(id), key, kind, TracedSegment::default(), vitals);
    }

    fn vitals_of(&self, id: SocketId) -> Option<(FlowKey, Vitals)> {
        let entry = self.sockets.get(id).and_then(Socket::connection)?;
        Some((entry.key, entry.connection.vitals()))
    }

    fn trace_push(
        &mut self,
        id: Option<SocketId>,
        key: FlowKey,
        kind: TraceKind,
        segment: TracedSegment,
        vitals: Vitals,
    ) {
        if let Some(trace) = &mut self.trace {
            trace.push(TraceRecord::new(self.now, id, key, kind, segment, vitals));
        }
    }
}
