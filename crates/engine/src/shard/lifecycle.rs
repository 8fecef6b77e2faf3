//! What becomes of connections: announced, settled after each step, in TIME-WAIT, forgotten.
//!
//! Whoever steps a connection (`tcp.rs`, `timers.rs`, `commands.rs`, `transmit.rs`) calls
//! [`Shard::settle`] afterwards: it queues the connection for sending, its event, and its timer.

use super::Shard;
use super::entry::{Socket, Stage};
use crate::counters::Counter;
use crate::event::Event;
use crate::flow_table::FlowOwner;
use crate::socket_id::SocketId;
use crate::tcp::{State, TcpInfo};
use crate::time_wait_table::Waiting;
use crate::trace::TraceKind;

/// An event that waits to be fetched.
#[derive(Clone, Debug)]
pub(super) enum QueuedEvent {
    /// As it will be told.
    Ready(Event),
    /// Progress, told as of the moment it is fetched.
    Progress(SocketId),
}

impl Shard {
    /// The next event. Drain it after each burst and each command.
    pub fn poll_event(&mut self) -> Option<Event> {
        while let Some(event) = self.events.pop_front() {
            match event {
                QueuedEvent::Ready(event) => {
                    self.network_event_queued &= event != Event::NetworkChanged;
                    return Some(event);
                }
                QueuedEvent::Progress(id) => {
                    let socket = self.sockets.get_mut(id);
                    if let Some(entry) = socket.and_then(Socket::connection_mut) {
                        entry.event_queued = false;
                        let progress = entry.connection.progress();
                        return Some(Event::Progress { id, progress });
                    }
                }
            }
        }
        None
    }

    /// After a step of a connection: is there something to send, to tell, to wait for, or an end?
    pub(super) fn settle(&mut self, id: SocketId) {
        let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut) else { return };
        if entry.gone {
            return;
        }
        if entry.connection.state() == State::Closed {
            self.conclude(id);
            return;
        }
        if entry.connection.take_changed()
            && matches!(entry.stage, Stage::Unclaimed(_) | Stage::Owned)
            && !entry.event_queued
        {
            entry.event_queued = true;
            self.events.push_back(QueuedEvent::Progress(id));
        }
        if entry.parked.is_none() && entry.connection.wants_transmit(self.now) {
            self.ready_links.push_back(&mut self.ready, id.index());
        }
        match entry.connection.next_timeout() {
            Some(timeout) => self.wheel.schedule(id.index(), timeout),
            None => self.wheel.cancel(id.index()),
        }
    }

    /// The handshake of a connection is complete.
    pub(super) fn handle_established(&mut self, id: SocketId) {
        let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut) else { return };
        let Stage::HalfOpen(listener_id) = entry.stage else { return };
        let (local, remote) = (entry.key.local(), entry.key.remote());
        entry.stage = Stage::Unclaimed(listener_id);
        let announced = Event::Accepted { listener: listener_id, id, local, remote };
        self.events.push_back(QueuedEvent::Ready(announced));
        if !entry.event_queued {
            entry.event_queued = true;
            self.events.push_back(QueuedEvent::Progress(id));
        }
        self.half_open -= 1;
        if let Some(listener) = self.sockets.get_mut(listener_id).and_then(Socket::listener_mut) {
            self.queue_links.remove(&mut listener.half_open, id.index());
            self.queue_links.push_back(&mut listener.accept_queue, id.index());
        }
    }

    /// A connection leaves its listener's queues.
    pub(super) fn leave_listener(&mut self, id: SocketId) {
        let Some(entry) = self.sockets.get(id).and_then(Socket::connection) else { return };
        let (Stage::HalfOpen(listener_id) | Stage::Unclaimed(listener_id)) = entry.stage else {
            return;
        };
        let half_open = matches!(entry.stage, Stage::HalfOpen(_));
        self.half_open -= u32::from(half_open);
        if let Some(listener) = self.sockets.get_mut(listener_id).and_then(Socket::listener_mut) {
            let list = if half_open { &mut listener.half_open } else { &mut listener.accept_queue };
            self.queue_links.remove(list, id.index());
        }
    }

    /// The flow of a connection is over. A connection with an owner stays until it is closed, so
    /// that what it received can still be read.
    pub(super) fn conclude(&mut self, id: SocketId) {
        let Some(entry) = self.sockets.get(id).and_then(Socket::connection) else { return };
        if entry.gone {
            return;
        }
        let key = entry.key;
        self.flows.remove(&key, FlowOwner::Connection(id));
        self.retire(id);
    }

    /// The flow of a connection is left to a TIME-WAIT record.
    pub(super) fn enter_time_wait(&mut self, id: SocketId) {
        let Some(entry) = self.sockets.get(id).and_then(Socket::connection) else { return };
        if entry.gone {
            return;
        }
        let waiting = Waiting {
            key: entry.key,
            record: entry.connection.time_wait_record(),
            expires: self.now,
            type_of_service: entry.type_of_service,
            hop_limit: entry.hop_limit,
        };
        let key = entry.key;
        if self.time_wait.is_full()
            && let Some((name, oldest)) = self.time_wait.pop_oldest()
        {
            self.counters.count(Counter::TcpTimeWaitEvicted);
            self.flows.remove(&oldest.key, FlowOwner::TimeWait(name));
        }
        match self.time_wait.insert(self.now, waiting) {
            Some(name) => self.flows.replace(key, FlowOwner::TimeWait(name)),
            None => self.flows.remove(&key, FlowOwner::Connection(id)),
        }
        self.counters.count(Counter::TcpTimeWaitEntered);
        self.retire(id);
    }

    /// A TIME-WAIT record makes way.
    pub(super) fn forget_time_wait(&mut self, name: SocketId) {
        if let Some(waiting) = self.time_wait.remove(name) {
            self.flows.remove(&waiting.key, FlowOwner::TimeWait(name));
        }
    }

    /// A connection has no flow any more: it sends nothing and waits for nothing.
    fn retire(&mut self, id: SocketId) {
        self.trace_event(id, TraceKind::Ended);
        self.stop_sending(id);
        self.wheel.cancel(id.index());
        let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut) else { return };
        entry.gone = true;
        match entry.stage {
            Stage::HalfOpen(_) => {
                self.counters.count(Counter::TcpAttemptFails);
                self.leave_listener(id);
                let _ = self.sockets.remove(id);
            }
            Stage::Orphan => self.release(id),
            Stage::Unclaimed(_) | Stage::Owned => {
                if !entry.connection.progress().connected {
                    self.counters.count(Counter::TcpAttemptFails);
                }
                if !entry.event_queued {
                    entry.event_queued = true;
                    self.events.push_back(QueuedEvent::Progress(id));
                }
            }
        }
    }

    /// Forgets a connection whose flow is over and whose owner has closed it.
    pub(super) fn release(&mut self, id: SocketId) {
        if self.sockets.remove(id).is_some() {
            self.events.push_back(QueuedEvent::Ready(Event::Released { id }));
        }
    }

    /// Takes a connection out of the ready list, or out of the list of those that wait for a
    /// neighbour.
    pub(super) fn stop_sending(&mut self, id: SocketId) {
        let Some(entry) = self.sockets.get_mut(id).and_then(Socket::connection_mut) else { return };
        let list = match entry.parked.take() {
            Some(neighbour) => self.neighbours.waiting(neighbour),
            None => Some(&mut self.ready),
        };
        if let Some(list) = list {
            self.ready_links.remove(list, id.index());
        }
    }

    /// Packets and connections whose neighbour is known now, or will never be, go on. To be called
    /// after every step of the neighbour cache.
    pub(super) fn release_neighbours(&mut self) {
        while let Some(mut released) = self.neighbours.poll_released() {
            while let Some(index) = self.ready_links.pop_front(&mut released.waiting) {
                let Some(id) = self.sockets.id_at(index) else { continue };
                let socket = self.sockets.get_mut(id);
                let Some(entry) = socket.and_then(Socket::connection_mut) else { continue };
                entry.parked = None;
                entry.unreachable = released.mac.is_none();
                self.ready_links.push_back(&mut self.ready, index);
            }
            for packet in released.pending {
                self.release_packet(released.mac, packet);
            }
        }
    }

    /// Inner numbers of a connection.
    pub fn tcp_info(&self, id: SocketId) -> Option<TcpInfo> {
        let entry = self.sockets.get(id)?.connection()?;
        Some(entry.connection.info(self.now))
    }
}
