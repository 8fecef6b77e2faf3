//! Names that mean the same to every server of a service. A server's own numbers (sockets, attached
//! processes) mean nothing elsewhere; these do.

use crate::socket_id::SocketId;

/// A server that owns flows, counted over the transport servers of the plan from 0.
pub type ServerNumber = u16;

/// A process that uses the service. It has one home: the transport server through which it says
/// that it accepts, and whose connection manager it is local to.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessName(u64);

impl ProcessName {
    /// The process that its home knows by `number`.
    pub const fn new(home: ServerNumber, number: u32) -> ProcessName {
        ProcessName((home as u64) << 32 | number as u64)
    }

    /// Its home.
    pub const fn home(self) -> ServerNumber {
        (self.0 >> 32) as ServerNumber
    }

    /// Its number there.
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// As one word, for messages.
    pub const fn word(self) -> u64 {
        self.0
    }

    /// From the word of a message: every word names a process, though perhaps none that lives.
    pub const fn from_word(word: u64) -> ProcessName {
        ProcessName(word & 0xffff_ffff_ffff)
    }
}

/// An accept queue: one listening socket, or all sockets of a trust domain that share an address by
/// `SO_REUSEPORT`. The same in every server.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerName(pub u64);

/// A connection, with the server that owns its flow.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionName {
    /// The owner.
    pub server: ServerNumber,
    /// Its name there.
    pub id: SocketId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_survives_its_word() {
        let name = ProcessName::new(65_535, u32::MAX);
        assert_eq!((name.home(), name.number()), (65_535, u32::MAX));
        assert_eq!(ProcessName::from_word(name.word()), name);
        assert_eq!(ProcessName::from_word(u64::MAX), name);
    }
}
