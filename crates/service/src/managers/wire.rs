//! Messages about accepting, and about flows that have moved, as they travel between servers: the types of
//! `haypile_engine::control::messages` as lines of `haypile_shm::messages`, and back.

use haypile_engine::SocketId;
use haypile_engine::control::messages::{BetweenManagers, ToManager, ToTransport};
use haypile_engine::control::names::{ConnectionName, ListenerName, ProcessName, ServerNumber};
use haypile_engine::steering::BUCKETS;
use haypile_shm::Message;
use haypile_shm::messages::{
    Malformed, ServerConnection, ServerMessage, ServerMessageKind as Kind,
};

/// A message of another server.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// For [`Core::for_manager`](crate::server::Core::for_manager).
    ToManager(ToManager),
    /// For [`Core::from_manager`](crate::server::Core::from_manager).
    ToTransport(ToTransport),
    /// For [`Core::between_managers`](crate::server::Core::between_managers).
    BetweenManagers(BetweenManagers),
    /// For whoever steers.
    FlowsMoved(FlowsMoved),
    /// For whoever steers: the sender has told all moves that it knows of.
    MovesTold,
}

/// The TCP flows of a bucket have moved.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FlowsMoved {
    /// Which bucket, 0..[`BUCKETS`].
    pub bucket: u16,
    /// The number of the move, 1 at least.
    pub version: u32,
    /// Who has them.
    pub server: ServerNumber,
}

impl Incoming {
    /// From a line.
    ///
    /// # Errors
    /// [`Malformed`]: no server of this version says so.
    pub fn decode(message: &Message) -> Result<Incoming, Malformed> {
        let message = ServerMessage::decode(message)?;
        let listener = ListenerName(message.listener);
        let group = ListenerName(message.group);
        let process = ProcessName::from_word(message.process);
        let ServerConnection { server, index, generation } = message.connection;
        let connection = ConnectionName { server, id: SocketId::new(index, generation) };
        let (server, service_time_us) = (message.server, message.time_us);
        let told = match message.kind {
            Kind::ListenerOpened => ToManager::ListenerOpened { listener, group, server },
            Kind::ListenerClosed => ToManager::ListenerClosed { listener, server },
            Kind::Acceptor => ToManager::Acceptor { listener, process },
            Kind::NotAcceptor => ToManager::NotAcceptor { listener, process },
            Kind::Arrived => ToManager::Arrived { listener, connection },
            Kind::Claimed => ToManager::Claimed { connection, counts: message.group != 0 },
            Kind::Revoked => ToManager::Revoked { connection },
            Kind::Refused => ToManager::Refused { connection },
            Kind::OfferFailed => ToManager::OfferFailed { connection },
            Kind::Gone => ToManager::Gone { connection },
            Kind::Served => ToManager::Served { listener, process, service_time_us, server },
            Kind::Open => ToManager::Open { listener, process, open: index, server },
            Kind::ProcessDied => ToManager::ProcessDied { process },
            Kind::ServerGone => ToManager::ServerGone { server },
            Kind::Offer => {
                let offer = ToTransport::Offer { listener, connection, process };
                return Ok(Incoming::ToTransport(offer));
            }
            Kind::Revoke => {
                return Ok(Incoming::ToTransport(ToTransport::Revoke { connection, process }));
            }
            Kind::Best => {
                let best = BetweenManagers::Best { group, listener, process, service_time_us };
                return Ok(Incoming::BetweenManagers(best));
            }
            Kind::Busy => {
                let busy = BetweenManagers::Busy { group, listener, process };
                return Ok(Incoming::BetweenManagers(busy));
            }
            Kind::Nobody => {
                return Ok(Incoming::BetweenManagers(BetweenManagers::Nobody { group }));
            }
            Kind::MovesTold => return Ok(Incoming::MovesTold),
            Kind::FlowsMoved => {
                let bucket = u16::try_from(index).ok().filter(|one| usize::from(*one) < BUCKETS);
                let version = generation;
                return match bucket {
                    Some(bucket) if version > 0 => {
                        Ok(Incoming::FlowsMoved(FlowsMoved { bucket, version, server }))
                    }
                    _ => Err(Malformed),
                };
            }
        };
        Ok(Incoming::ToManager(told))
    }

    /// As a line.
    pub fn encode(&self) -> Message {
        match *self {
            Incoming::ToManager(message) => to_manager(message),
            Incoming::ToTransport(message) => to_transport(message),
            Incoming::BetweenManagers(message) => between_managers(message),
            Incoming::MovesTold => ServerMessage::new(Kind::MovesTold),
            Incoming::FlowsMoved(FlowsMoved { bucket, version, server }) => {
                let index = u32::from(bucket);
                let connection = ServerConnection { server: 0, index, generation: version };
                ServerMessage { connection, server, ..ServerMessage::new(Kind::FlowsMoved) }
            }
        }
        .encode()
    }
}

fn to_manager(message: ToManager) -> ServerMessage {
    let of = ServerMessage::new;
    let about = |kind, connection| of(kind).with_connection(connection);
    match message {
        ToManager::ListenerOpened { listener, group, server } => {
            let (listener, group) = (listener.0, group.0);
            ServerMessage { listener, group, server, ..of(Kind::ListenerOpened) }
        }
        ToManager::ListenerClosed { listener, server } => {
            ServerMessage { listener: listener.0, server, ..of(Kind::ListenerClosed) }
        }
        ToManager::Acceptor { listener, process } => {
            let (listener, process) = (listener.0, process.word());
            ServerMessage { listener, process, ..of(Kind::Acceptor) }
        }
        ToManager::NotAcceptor { listener, process } => {
            let (listener, process) = (listener.0, process.word());
            ServerMessage { listener, process, ..of(Kind::NotAcceptor) }
        }
        ToManager::Arrived { listener, connection } => {
            ServerMessage { listener: listener.0, ..about(Kind::Arrived, connection) }
        }
        ToManager::Claimed { connection, counts } => {
            ServerMessage { group: u64::from(counts), ..about(Kind::Claimed, connection) }
        }
        ToManager::Revoked { connection } => about(Kind::Revoked, connection),
        ToManager::Refused { connection } => about(Kind::Refused, connection),
        ToManager::OfferFailed { connection } => about(Kind::OfferFailed, connection),
        ToManager::Gone { connection } => about(Kind::Gone, connection),
        ToManager::Served { listener, process, service_time_us, server } => {
            let (listener, process, time_us) = (listener.0, process.word(), service_time_us);
            ServerMessage { listener, process, time_us, server, ..of(Kind::Served) }
        }
        ToManager::Open { listener, process, open, server } => {
            let (listener, process) = (listener.0, process.word());
            let connection = ServerConnection { index: open, ..ServerConnection::default() };
            ServerMessage { listener, process, connection, server, ..of(Kind::Open) }
        }
        ToManager::ProcessDied { process } => {
            ServerMessage { process: process.word(), ..of(Kind::ProcessDied) }
        }
        ToManager::ServerGone { server } => ServerMessage { server, ..of(Kind::ServerGone) },
    }
}

fn to_transport(message: ToTransport) -> ServerMessage {
    match message {
        ToTransport::Offer { listener, connection, process } => {
            let (listener, process) = (listener.0, process.word());
            let about = ServerMessage::new(Kind::Offer).with_connection(connection);
            ServerMessage { listener, process, ..about }
        }
        ToTransport::Revoke { connection, process } => {
            let about = ServerMessage::new(Kind::Revoke).with_connection(connection);
            ServerMessage { process: process.word(), ..about }
        }
    }
}

fn between_managers(message: BetweenManagers) -> ServerMessage {
    match message {
        BetweenManagers::Best { group, listener, process, service_time_us } => {
            let (group, listener, process) = (group.0, listener.0, process.word());
            let best = ServerMessage::new(Kind::Best);
            ServerMessage { group, listener, process, time_us: service_time_us, ..best }
        }
        BetweenManagers::Busy { group, listener, process } => {
            let (group, listener, process) = (group.0, listener.0, process.word());
            ServerMessage { group, listener, process, ..ServerMessage::new(Kind::Busy) }
        }
        BetweenManagers::Nobody { group } => {
            ServerMessage { group: group.0, ..ServerMessage::new(Kind::Nobody) }
        }
    }
}

/// What a connection is called in a line.
trait WithConnection {
    fn with_connection(self, connection: ConnectionName) -> Self;
}

impl WithConnection for ServerMessage {
    fn with_connection(self, connection: ConnectionName) -> ServerMessage {
        let ConnectionName { server, id } = connection;
        let (index, generation) = (id.index(), id.generation());
        ServerMessage { connection: ServerConnection { server, index, generation }, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_the_line() {
        let listener = ListenerName(u64::MAX - 1);
        let group = ListenerName(3);
        let process = ProcessName::new(9, 77);
        let connection = ConnectionName { server: 5, id: SocketId::new(1 << 20, u32::MAX) };
        let (server, service_time_us) = (63, 1500);
        let to_manager = [
            ToManager::ListenerOpened { listener, group, server },
            ToManager::ListenerClosed { listener, server },
            ToManager::Acceptor { listener, process },
            ToManager::NotAcceptor { listener, process },
            ToManager::Arrived { listener, connection },
            ToManager::Claimed { connection, counts: true },
            ToManager::Claimed { connection, counts: false },
            ToManager::Revoked { connection },
            ToManager::Refused { connection },
            ToManager::OfferFailed { connection },
            ToManager::Gone { connection },
            ToManager::Served { listener, process, service_time_us, server },
            ToManager::Open { listener, process, open: u32::MAX, server },
            ToManager::ProcessDied { process },
            ToManager::ServerGone { server },
        ];
        let to_transport = [
            ToTransport::Offer { listener, connection, process },
            ToTransport::Revoke { connection, process },
        ];
        let between = [
            BetweenManagers::Best { group, listener, process, service_time_us },
            BetweenManagers::Busy { group, listener, process },
            BetweenManagers::Nobody { group },
        ];
        let all = to_manager.map(Incoming::ToManager).into_iter();
        let all = all.chain(to_transport.map(Incoming::ToTransport));
        let all = all.chain(between.map(Incoming::BetweenManagers));
        let moved = |bucket, version| FlowsMoved { bucket, version, server: 3 };
        let of_moves = [Incoming::FlowsMoved(moved(4095, u32::MAX - 1)), Incoming::MovesTold];
        for message in all.chain(of_moves) {
            assert_eq!(Incoming::decode(&message.encode()), Ok(message));
        }
        for nonsense in [moved(4096, 1), moved(4095, 0)] {
            let line = Incoming::FlowsMoved(nonsense).encode();
            assert_eq!(Incoming::decode(&line), Err(Malformed), "{nonsense:?}");
        }
        assert_eq!(Incoming::decode(&[7; 8]), Err(Malformed));
    }
}
