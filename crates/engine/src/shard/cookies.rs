//! SYNs answered by cookies while a listener has too many half-open connections, and the
//! acknowledgements that come back.
//!
//! Called by `tcp.rs`. Nothing is kept for such a SYN: its answer is a reply like any other, bounded
//! by their queue. What a cookie is stands in `syn_cookies.rs` of the crate; read that first.

use super::Shard;
use super::entry::{Socket, Stage};
use crate::counters::Counter;
use crate::drop_reason::DropReason;
use crate::flow_table::FlowKey;
use crate::socket_id::SocketId;
use crate::streams::Streams;
use crate::syn_cookies::{self, Recalled};
use crate::tcp::{Connection, Flags, Segment, SeqNumber};

impl Shard {
    /// Answers a SYN with a cookie.
    pub(super) fn send_cookie(
        &mut self,
        listener_id: SocketId,
        key: FlowKey,
        syn: &Segment<'_>,
    ) -> Result<(), DropReason> {
        let Some(Socket::Listener(listener)) = self.sockets.get(listener_id) else {
            return Err(DropReason::TcpNoFlow);
        };
        let template = listener.template;
        let kept = syn_cookies::kept_of_syn(syn, key.remote().is_ipv6());
        let mut setup = self.setup(&key, template, None);
        setup.iss = syn_cookies::initial_sequence(&self.keys, self.now, &key, &kept);
        // It lives for this answer only: the one that will follow the cookie says the same.
        let mut connection = Connection::open_passive(self.now, setup, &kept);
        let Some(mut answer) = connection.poll_segment(self.now, &mut self.counters.tcp) else {
            return Err(DropReason::TcpNoFlow);
        };
        if let Some(timestamps) = &mut answer.options.timestamps {
            timestamps.value = syn_cookies::stamped(timestamps.value, &kept.options);
        }
        self.cookies_until = self.now.plus_us(syn_cookies::LIFE_US);
        if self.reply_segment(&key, &answer, template.type_of_service, template.hop_limit) {
            self.counters.count(Counter::TcpCookiesSent);
        }
        Ok(())
    }

    /// An ACK that belongs to nothing: it answers a cookie, or is a mistake.
    pub(super) fn handle_stray_acknowledgement(
        &mut self,
        key: FlowKey,
        segment: &Segment<'_>,
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        if self.now < self.cookies_until
            && !segment.flags.contains(Flags::SYN)
            && let Some(listener) = self.listener_for(&key)
        {
            self.check_accept_queue(listener)?;
            match syn_cookies::recall(&self.keys, self.now, &key, segment) {
                Recalled::Handshake { iss, syn } => {
                    let id = self.admit_by_cookie(listener, key, iss, &syn)?;
                    return self.complete(id, segment, streams);
                }
                // The peer sends again what is missing, and this.
                Recalled::Ahead => return Err(DropReason::TcpCookieAhead),
                Recalled::Nothing => self.counters.count(Counter::TcpCookiesRefused),
            }
        }
        self.send_reset(&key, segment);
        Err(DropReason::TcpNoFlow)
    }

    /// A full accept queue takes nobody. Nothing is judged then, and so nothing refused: what follows
    /// an acknowledgement that was dropped here must not reset its connection.
    fn check_accept_queue(&mut self, listener_id: SocketId) -> Result<(), DropReason> {
        if let Some(Socket::Listener(listener)) = self.sockets.get(listener_id)
            && listener.is_full()
        {
            self.counters.count(Counter::TcpListenOverflows);
            return Err(DropReason::TcpListenerFull);
        }
        Ok(())
    }

    /// The connection as it would be had it been kept when `syn` came.
    fn admit_by_cookie(
        &mut self,
        listener_id: SocketId,
        key: FlowKey,
        iss: SeqNumber,
        syn: &Segment<'_>,
    ) -> Result<SocketId, DropReason> {
        let next_hop = self.routing.next_hop(key.remote().ip()).ok_or(DropReason::TcpNoRoute)?;
        if self.sockets.is_full() {
            self.evict_half_open(listener_id)?;
        }
        let Some(Socket::Listener(listener)) = self.sockets.get(listener_id) else {
            return Err(DropReason::TcpNoFlow);
        };
        let template = listener.template;
        let mut setup = self.setup(&key, template, None);
        setup.iss = iss;
        let connection = Connection::open_answered(self.now, setup, syn);
        let stage = Stage::HalfOpen(listener_id);
        let mut entry = self.entry(connection, key, next_hop, stage, &template);
        // Who waits for data would have to be kept: established at once, as on Linux.
        entry.defer_accept_s = 0;
        let id = self.insert_half_open(listener_id, entry)?;
        self.counters.count(Counter::TcpCookiesValid);
        Ok(id)
    }

    /// The acknowledgement ends the handshake of its new connection. One that it left half-open would
    /// have no SYN-ACK to send again, and goes.
    fn complete(
        &mut self,
        id: SocketId,
        segment: &Segment<'_>,
        streams: &mut impl Streams,
    ) -> Result<(), DropReason> {
        let handled = self.handle_segment(id, segment, streams);
        let entry = self.sockets.get(id).and_then(Socket::connection);
        if entry.is_some_and(|entry| matches!(entry.stage, Stage::HalfOpen(_))) {
            self.conclude(id);
        }
        handled
    }
}
