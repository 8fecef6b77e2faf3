//! What servers say to each other about accepting: transport server to connection manager and back,
//! and connection managers among themselves; and where flows have moved, to all who steer. One line, with a
//! version; which words a kind uses is
//! said at the kind, the others are zero. The service turns them into the types of its control.

use super::{Malformed, Message, pair, unpair};

/// Version of these messages. Servers of one service are one build; a stranger's are refused.
pub const SERVER_MESSAGE_VERSION: u32 = 1;

/// Kinds count from here, so that no kind is that of another ring's message.
const FIRST_KIND: u32 = 0x200;

/// What a message between servers says.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ServerMessageKind {
    /// `listener` of the accept queue `group` is open at `server`.
    ListenerOpened = FIRST_KIND,
    /// `listener` is closed at `server`.
    ListenerClosed,
    /// `process` accepts from `listener`.
    Acceptor,
    /// `process` accepts from `listener` no more.
    NotAcceptor,
    /// `connection` has come to `listener`.
    Arrived,
    /// `connection` is claimed; `group` is 1 where that counts it.
    Claimed,
    /// The offer of `connection` is taken back.
    Revoked,
    /// The process could not use `connection`.
    Refused,
    /// `connection` could not be offered.
    OfferFailed,
    /// `connection` is gone.
    Gone,
    /// `process` has served a connection of `server` that it took by `listener`, in `time_us`.
    Served,
    /// `process` is dead.
    ProcessDied,
    /// `server` is gone.
    ServerGone,
    /// To a transport server: offer `connection` to `process` by `listener`.
    Offer,
    /// To a transport server: take the offer of `connection` to `process` back.
    Revoke,
    /// Between managers: `process` by `listener` is the best for `group`, with `time_us`.
    Best,
    /// Between managers: there is no application for `group`.
    Nobody,
    /// To whoever steers: the TCP flows of the bucket `connection.index` are with `server`, by move number
    /// `connection.generation`.
    FlowsMoved,
    /// To whoever steers: that is all that the sender knows of moves.
    MovesTold,
    /// Between managers: `process` by `listener` keeps the sender waiting, who knows nobody else for `group`.
    Busy,
    /// `process` has `connection.index` connections of `server` that it took by `listener`.
    Open,
}

use ServerMessageKind as Kind;

/// Every kind, in the order of their numbers.
const KINDS: [Kind; 21] = [
    Kind::ListenerOpened,
    Kind::ListenerClosed,
    Kind::Acceptor,
    Kind::NotAcceptor,
    Kind::Arrived,
    Kind::Claimed,
    Kind::Revoked,
    Kind::Refused,
    Kind::OfferFailed,
    Kind::Gone,
    Kind::Served,
    Kind::ProcessDied,
    Kind::ServerGone,
    Kind::Offer,
    Kind::Revoke,
    Kind::Best,
    Kind::Nobody,
    Kind::FlowsMoved,
    Kind::MovesTold,
    Kind::Busy,
    Kind::Open,
];

/// A connection, by the server that owns it and its name there.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerConnection {
    /// The transport server.
    pub server: u16,
    /// Index there.
    pub index: u32,
    /// Generation there.
    pub generation: u32,
}

/// One message between servers.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ServerMessage {
    /// What it says.
    pub kind: ServerMessageKind,
    /// A listener's name.
    pub listener: u64,
    /// An accept queue's name.
    pub group: u64,
    /// A process's name.
    pub process: u64,
    /// A connection's name.
    pub connection: ServerConnection,
    /// A transport server.
    pub server: u16,
    /// A service time, in microseconds.
    pub time_us: u32,
}

impl ServerMessage {
    /// A message that says nothing of anything yet.
    pub fn new(kind: ServerMessageKind) -> ServerMessage {
        let connection = ServerConnection::default();
        ServerMessage { kind, listener: 0, group: 0, process: 0, connection, server: 0, time_us: 0 }
    }

    /// As a message.
    pub fn encode(&self) -> Message {
        let ServerMessage { kind, listener, group, process, connection, server, time_us } = *self;
        let servers = u32::from(server) << 16 | u32::from(connection.server);
        [
            pair(kind as u32, SERVER_MESSAGE_VERSION),
            listener,
            group,
            process,
            pair(connection.index, connection.generation),
            pair(servers, time_us),
            0,
            0,
        ]
    }

    /// From a message.
    ///
    /// # Errors
    /// [`Malformed`]: another version, an unknown kind, or something in the words nobody uses.
    pub fn decode(message: &Message) -> Result<ServerMessage, Malformed> {
        let [head, listener, group, process, connection, rest, 0, 0] = *message else {
            return Err(Malformed);
        };
        let (number, version) = unpair(head);
        let place = number.checked_sub(FIRST_KIND).ok_or(Malformed)? as usize;
        let kind = *KINDS.get(place).ok_or(Malformed)?;
        if version != SERVER_MESSAGE_VERSION {
            return Err(Malformed);
        }
        let (index, generation) = unpair(connection);
        let (servers, time_us) = unpair(rest);
        let connection = ServerConnection { server: servers as u16, index, generation };
        let server = (servers >> 16) as u16;
        Ok(ServerMessage { kind, listener, group, process, connection, server, time_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_survives() {
        for (place, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as u32 - FIRST_KIND, place as u32);
            let connection = ServerConnection { server: 65_535, index: 7, generation: u32::MAX };
            let message = ServerMessage {
                listener: u64::MAX,
                group: 1,
                process: 2,
                connection,
                server: 3,
                time_us: u32::MAX - 1,
                ..ServerMessage::new(kind)
            };
            assert_eq!(ServerMessage::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn other_versions_and_kinds_are_refused() {
        let good = ServerMessage::new(Kind::Nobody).encode();
        for (word, value) in [
            (0, pair(Kind::Nobody as u32, SERVER_MESSAGE_VERSION + 1)),
            (0, pair(Kind::Open as u32 + 1, SERVER_MESSAGE_VERSION)),
            (0, pair(FIRST_KIND - 1, SERVER_MESSAGE_VERSION)),
            (6, 1),
            (7, 1 << 63),
        ] {
            let mut bad = good;
            bad[word] = value;
            assert_eq!(ServerMessage::decode(&bad), Err(Malformed), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_decoded_is_encoded_again(words: [u64; 8], kind in 0x1f0_u32..0x220, version in 0_u32..3) {
            let head = [pair(kind, version), words[0]][usize::from(words[7] % 8 == 0)];
            for message in [words, [head, words[1], words[2], words[3], words[4], words[5], 0, 0]] {
                if let Ok(decoded) = ServerMessage::decode(&message) {
                    prop_assert_eq!(decoded.encode(), message);
                }
            }
        }
    }
}
