//! Names that mean the same to every server of a service. A server's own numbers (sockets, attached
//! processes) mean nothing elsewhere; these do.

use core::hash::Hasher;
use std::net::SocketAddr;

use siphasher::sip::SipHasher24;

use crate::keys::{FOR_GROUPS, FOR_LISTENER_NUMBERS, FOR_PLACEHOLDERS, address_bits, choice_key};
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

    /// Its home while there are `servers` transport servers: that of its name, or another where that one has left.
    /// The client says the same of itself (`haypile_shm::messages::home_of_name`).
    pub const fn home_among(self, servers: u16) -> ServerNumber {
        match servers {
            0 => self.home(),
            servers => self.home() % servers,
        }
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

/// A listening socket, or an accept queue: that of one socket bears its name, that of all sockets of
/// a trust domain that share an address by `SO_REUSEPORT` has one of its own. The same in every
/// server.
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

/// Makes the names of listeners: the same in every server of a service, foreseen by nobody outside.
#[derive(Clone)]
pub struct ListenerNames {
    key: [u8; 16],
}

impl ListenerNames {
    /// From the secret of the service.
    pub fn new(secret: &[u8; 32]) -> ListenerNames {
        ListenerNames { key: choice_key(secret) }
    }

    /// The listener with this placeholder in the trust domain of this token.
    pub fn of_cookie(&self, domain: &[u8; 16], cookie: u64) -> ListenerName {
        self.hash(FOR_PLACEHOLDERS, domain, &cookie.to_le_bytes())
    }

    /// The accept queue of all listeners of the domain that share this address.
    pub fn of_group(&self, domain: &[u8; 16], address: SocketAddr) -> ListenerName {
        let mut bytes = [0; 18];
        bytes[..16].copy_from_slice(&address_bits(address.ip()).to_le_bytes());
        bytes[16..].copy_from_slice(&address.port().to_le_bytes());
        self.hash(FOR_GROUPS, domain, &bytes)
    }

    /// A listener whose placeholder nobody has named: known by its number at one server only.
    pub fn of_number(&self, domain: &[u8; 16], server: ServerNumber, number: u64) -> ListenerName {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..].copy_from_slice(&server.to_le_bytes());
        self.hash(FOR_LISTENER_NUMBERS, domain, &bytes)
    }

    fn hash(&self, purpose: u8, domain: &[u8; 16], bytes: &[u8]) -> ListenerName {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write_u8(purpose);
        hasher.write(domain);
        hasher.write(bytes);
        ListenerName(hasher.finish())
    }
}

impl std::fmt::Debug for ListenerNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ListenerNames")
    }
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

    #[test]
    fn a_listener_has_one_name_everywhere_and_others_have_others() {
        let (names, same) = (ListenerNames::new(&[3; 32]), ListenerNames::new(&[3; 32]));
        let address: SocketAddr = "10.0.0.1:80".parse().expect("address");
        let name = names.of_cookie(&[1; 16], 7);
        assert_eq!(name, same.of_cookie(&[1; 16], 7));
        let others = [
            names.of_cookie(&[1; 16], 8),
            names.of_cookie(&[2; 16], 7),
            names.of_number(&[1; 16], 0, 7),
            names.of_group(&[1; 16], address),
            names.of_group(&[2; 16], address),
            ListenerNames::new(&[4; 32]).of_cookie(&[1; 16], 7),
        ];
        assert!(others.iter().all(|other| *other != name));
    }
}
