//! One core's network: everything between Ethernet frames and the streams of connections.
use std::net::{IpAddr, SocketAddr};

use crate::{
    Close, ConfigError, ConnectError, Counters, Event, Instant, ListenError, ListenOptions, RxMeta,
    ShardConfig, SocketId, SocketOption, SocketOptions, Streams, TcpInfo, TxMeta,
};

/// What a socket is doing, for display.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum SocketState {
    /// A listener.
    Listen,
    /// A connection or a TIME-WAIT record.
    Tcp(crate::State),
}

/// One line of a listing of sockets.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SocketSummary {
    /// Its name; a TIME-WAIT record has none.
    pub id: Option<SocketId>,
    /// What it is doing.
    pub state: SocketState,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's; none for a listener.
    pub remote: Option<SocketAddr>,
    /// Bytes received and not consumed; for a listener the connections that wait for `accept`.
    pub receive_queue: u64,
    /// Bytes not yet acknowledged, sent or not; for a listener its backlog.
    pub send_queue: u64,
    /// When its next timer is due.
    pub timeout: Option<Instant>,
}

/// One core's network.
pub struct Shard {
    counters: Counters,
}

#[allow(unused_variables, clippy::unimplemented)]
impl Shard {
    /// Makes a shard.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: ShardConfig, now: Instant) -> Result<Shard, ConfigError> {
        unimplemented!()
    }
    /// A frame arrived.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        frame: &[u8],
        meta: RxMeta,
        streams: &mut impl Streams,
    ) {
        unimplemented!()
    }
    /// Time has passed.
    pub fn handle_timers(&mut self, now: Instant, streams: &mut impl Streams) {
        unimplemented!()
    }
    /// The next frame to send.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        out: &mut [u8],
        streams: &mut impl Streams,
    ) -> Option<TxMeta> {
        unimplemented!()
    }
    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        unimplemented!()
    }
    /// When `handle_timers` wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        unimplemented!()
    }
    /// Opens a listener.
    pub fn listen(
        &mut self,
        local: SocketAddr,
        options: ListenOptions,
    ) -> Result<SocketId, ListenError> {
        unimplemented!()
    }
    /// Changes the backlog.
    pub fn set_backlog(&mut self, listener: SocketId, backlog: u32) {
        unimplemented!()
    }
    /// A connection left its listener's accept queue.
    pub fn claimed(&mut self, id: SocketId) {
        unimplemented!()
    }
    /// Opens a connection.
    pub fn connect(
        &mut self,
        now: Instant,
        local: Option<SocketAddr>,
        remote: SocketAddr,
        options: SocketOptions,
    ) -> Result<SocketId, ConnectError> {
        unimplemented!()
    }
    /// The application has written up to stream position `tail`.
    pub fn send_ready(&mut self, now: Instant, id: SocketId, tail: u64) {
        unimplemented!()
    }
    /// The application has read up to `position`.
    pub fn receive_consumed(&mut self, now: Instant, id: SocketId, position: u64) {
        unimplemented!()
    }
    /// FIN after all data.
    pub fn shutdown_send(&mut self, now: Instant, id: SocketId) {
        unimplemented!()
    }
    /// Later data is discarded.
    pub fn shutdown_receive(&mut self, now: Instant, id: SocketId) {
        unimplemented!()
    }
    /// The owner lets go of a socket.
    pub fn close(&mut self, now: Instant, id: SocketId, how: Close) {
        unimplemented!()
    }
    /// Changes an option.
    pub fn set_option(&mut self, now: Instant, id: SocketId, option: SocketOption) {
        unimplemented!()
    }
    /// Inner numbers of a connection.
    pub fn tcp_info(&self, id: SocketId) -> Option<TcpInfo> {
        unimplemented!()
    }
    /// Our address of a socket.
    pub fn local_address(&self, id: SocketId) -> Option<SocketAddr> {
        unimplemented!()
    }
    /// The peer's address of a connection.
    pub fn remote_address(&self, id: SocketId) -> Option<SocketAddr> {
        unimplemented!()
    }
    /// Whether an address is ours.
    pub fn owns_address(&self, addr: IpAddr) -> bool {
        unimplemented!()
    }
    /// Whether an address is ours or can be reached.
    pub fn routes_to(&self, addr: IpAddr) -> bool {
        unimplemented!()
    }
    /// The address of ours that packets to `remote` come from.
    pub fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
        unimplemented!()
    }
    /// All sockets and TIME-WAIT records.
    pub fn sockets(&self) -> impl Iterator<Item = SocketSummary> + '_ {
        std::iter::empty()
    }
    /// Everything counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
    /// Connections, half-open and orphaned ones included, TIME-WAIT records not.
    pub fn connection_count(&self) -> usize {
        unimplemented!()
    }
    /// Whether no connection is left that still has something to send.
    pub fn is_quiet(&self) -> bool {
        unimplemented!()
    }
}
