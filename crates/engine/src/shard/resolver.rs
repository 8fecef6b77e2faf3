//! Names looked up over the shard's own UDP sockets.
//!
//! What to ask whom is decided in the crate's `resolver.rs`; here each attempt gets a socket with a port
//! of its own, connected to its server, so that nobody else is heard. Called by `udp.rs` and
//! `udp_errors.rs` for what arrives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Shard;
use super::lifecycle::QueuedEvent;
use crate::counters::Counter;
use crate::datagram::{DatagramOptions, SendTo};
use crate::drop_reason::DropReason;
use crate::event::Event;
use crate::resolver::{Answer, Attempt, QueryId, RecordKind, ResolveError};
use crate::socket_id::SocketId;
use crate::time::Instant;

/// Port of name servers.
const SERVER_PORT: u16 = 53;

impl Shard {
    /// Asks for the records of a name; [`Event::Resolved`] tells when [`Shard::take_answer`] has the
    /// outcome. `servers` are asked before those learned from DHCP and routers.
    ///
    /// # Errors
    /// [`ResolveError::BadName`], [`ResolveError::NoServer`] and [`ResolveError::Busy`].
    pub fn look_up(
        &mut self,
        now: Instant,
        name: &str,
        kind: RecordKind,
        servers: &[IpAddr],
    ) -> Result<QueryId, ResolveError> {
        self.now = now;
        let mut all = servers.to_vec();
        all.extend(self.network.name_servers().filter(|server| !servers.contains(server)));
        let id = self.resolver.ask(now, name, kind, all)?;
        self.run_resolver();
        Ok(id)
    }

    /// The outcome of a question, once.
    pub fn take_answer(&mut self, id: QueryId) -> Option<Result<Answer, ResolveError>> {
        self.resolver.take(id)
    }

    pub(super) fn handle_resolver_timers(&mut self) {
        if self.resolver.next_timeout().is_some_and(|timeout| timeout <= self.now) {
            self.resolver.handle_timers(self.now);
            self.run_resolver();
        }
    }

    /// A datagram for a socket of the resolver.
    pub(super) fn handle_name_answer(
        &mut self,
        socket: SocketId,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        if !self.resolver.handle_message(self.now, socket, payload) {
            return Err(DropReason::DnsIgnored);
        }
        self.run_resolver();
        Ok(())
    }

    /// A server of the resolver cannot be reached.
    pub(super) fn handle_name_error(&mut self, socket: SocketId) {
        self.resolver.handle_error(socket);
        self.run_resolver();
    }

    /// Closes sockets, makes attempts and tells outcomes until nothing is left to do.
    fn run_resolver(&mut self) {
        while let Some(socket) = self.resolver.poll_socket() {
            self.close_datagram(socket);
        }
        let random = self.keys.draw();
        while let Some(attempt) = self.resolver.poll_attempt(self.now, random) {
            if self.make_attempt(&attempt).is_none() {
                self.resolver.fail_attempt(attempt.id);
            }
        }
        while let Some(id) = self.resolver.poll_finished() {
            self.events.push_back(QueuedEvent::Ready(Event::Resolved { id }));
        }
        while let Some(socket) = self.resolver.poll_socket() {
            self.close_datagram(socket);
        }
    }

    fn make_attempt(&mut self, attempt: &Attempt) -> Option<()> {
        let any = match attempt.server {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let options = DatagramOptions { receive_errors: true, ..DatagramOptions::default() };
        let socket = self.open_datagram(SocketAddr::new(any, 0), options).ok()?;
        self.resolver.set_socket(attempt.id, socket);
        let server = SocketAddr::new(attempt.server, SERVER_PORT);
        self.connect_datagram(socket, Some(server)).ok()?;
        let sent = self.send_datagram(self.now, socket, &SendTo::default(), &attempt.payload);
        self.counters.count(Counter::DnsQueriesSent);
        sent.ok()
    }
}
