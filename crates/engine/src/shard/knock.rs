//! Knocking: what a server does about a flow of which it knows nothing but its ends, because whoever had it is dead.
//!
//! A peer that waits for an answer says nothing by itself, so that it would wait for ever. An acknowledgement out of
//! nowhere makes it say what it knows (RFC 9293 section 3.10.7.4, first step), and that is answered with RST, as all
//! segments of no connection are. Where the flow lives after all, at another server, what the peer says goes there and
//! does no harm. Called by the service after the death of a server, see `obituary` there.

use std::net::SocketAddr;

use super::Shard;
use super::headers::HOP_LIMIT;
use crate::counters::Counter;
use crate::flow_table::FlowKey;
use crate::tcp::segment::{Flags, Options, Outgoing, SeqNumber, Timestamps};
use crate::tcp::timestamp_at;
use crate::time::Instant;

/// What came of [`Shard::knock`].
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Knocked {
    /// The peer will be asked.
    Sent,
    /// There is no need: the flow is here, or one of our ends is not ours any more.
    Needless,
    /// Too much waits to be sent now.
    NoRoom,
}

impl Shard {
    /// Asks the peer of a flow that may be nobody's any more to say something about it.
    pub fn knock(&mut self, now: Instant, local: SocketAddr, remote: SocketAddr) -> Knocked {
        self.now = now;
        let key = FlowKey::new(local, remote);
        let is_ours = self.owns_address(local.ip());
        if !is_ours || !self.routes_to(remote.ip()) || self.flows.lookup(&key).is_some() {
            return Knocked::Needless;
        }
        // Out of the window, but for one number in thousands. Without a timestamp a peer that has agreed on them may
        // drop it (RFC 7323 section 3.2), and one older than the last it has got Linux drops where the number is old,
        // too: so it is that of now, which all servers would say of these two hosts.
        let offset = self.keys.timestamp_offset(local.ip(), remote.ip());
        let timestamps = Timestamps { value: timestamp_at(now, offset), echo: 0 };
        let options = Options { timestamps: Some(timestamps), ..Options::default() };
        let [seq, ack] = [(); 2].map(|()| SeqNumber::new(self.keys.draw() as u32));
        let question = Outgoing { seq, ack, flags: Flags::ACK, options, ..Outgoing::default() };
        if !self.reply_segment(&key, &question, 0, HOP_LIMIT) {
            return Knocked::NoRoom;
        }
        self.counters.count(Counter::TcpKnocks);
        Knocked::Sent
    }
}
