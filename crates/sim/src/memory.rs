//! Where the bytes of a simulated host's connections live: the send side is a pattern computed from the position,
//! the receive side remembers every byte and which of them were written. Implements the engine's `Streams` for
//! [`crate::host`].

use haypile_engine::{Datagram, SocketId, Streams};
use std::collections::HashMap;

/// The byte at `position` of the stream with this `key`: every stream has its own sequence, so that a byte that
/// strays between connections or directions is noticed.
pub fn pattern(key: u64, position: u64) -> u8 {
    let mixed = (position ^ key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as u8 ^ (mixed >> 24) as u8
}

/// A datagram that arrived.
pub struct Received {
    /// At which socket.
    pub id: SocketId,
    /// From where to where.
    pub datagram: Datagram,
    /// What it carried.
    pub payload: Vec<u8>,
}

/// The receive side of one connection.
#[derive(Debug, Default)]
struct Stream {
    bytes: Vec<u8>,
    written: Vec<bool>,
}

/// The streams of a connection, on their way to another host of the same service.
#[derive(Debug)]
pub struct Moving {
    received: Option<Stream>,
    send_key: Option<u64>,
}

/// All streams of one host.
#[derive(Default)]
pub struct Memory {
    received: HashMap<SocketId, Stream>,
    send_keys: HashMap<SocketId, u64>,
    /// When set, one write in so many stores only half of its bytes, as a host short of memory would.
    pub short_write_every: Option<u64>,
    writes: u64,
    /// Datagrams that arrived, in order.
    pub datagrams: Vec<Received>,
}

impl Memory {
    /// Says which pattern the connection sends.
    pub fn set_send_key(&mut self, id: SocketId, key: u64) {
        self.send_keys.insert(id, key);
    }

    /// Takes a connection's streams out.
    pub fn take(&mut self, id: SocketId) -> Moving {
        Moving { received: self.received.remove(&id), send_key: self.send_keys.remove(&id) }
    }

    /// Puts streams that were taken elsewhere under the connection's name here.
    pub fn put(&mut self, id: SocketId, moving: Moving) {
        let Moving { received, send_key } = moving;
        self.received.extend(received.map(|received| (id, received)));
        self.send_keys.extend(send_key.map(|key| (id, key)));
    }

    /// Forgets a connection.
    pub fn forget(&mut self, id: SocketId) {
        self.received.remove(&id);
        self.send_keys.remove(&id);
    }

    /// Checks that bytes `from..to` of the connection were all written and follow the pattern of `key`.
    ///
    /// # Errors
    /// The first position that is missing or wrong.
    pub fn check(&self, id: SocketId, key: u64, from: u64, to: u64) -> Result<(), String> {
        for position in from..to {
            let index = position as usize;
            let found = self.received.get(&id).filter(|r| r.written.get(index) == Some(&true));
            match found.map(|received| received.bytes[index]) {
                Some(byte) if byte == pattern(key, position) => {}
                Some(byte) => {
                    return Err(format!(
                        "byte {position} is {byte}, not {}",
                        pattern(key, position)
                    ));
                }
                None => return Err(format!("byte {position} was reported but never written")),
            }
        }
        Ok(())
    }
}

impl Streams for Memory {
    fn write(&mut self, id: SocketId, position: u64, data: &[u8]) -> usize {
        self.writes += 1;
        let short = self.short_write_every.is_some_and(|every| self.writes.is_multiple_of(every));
        let stored = if short { data.len() / 2 } else { data.len() };
        let received = self.received.entry(id).or_default();
        let start = position as usize;
        let end = start + stored;
        if received.bytes.len() < end {
            received.bytes.resize(end, 0);
            received.written.resize(end, false);
        }
        received.bytes[start..end].copy_from_slice(&data[..stored]);
        received.written[start..end].fill(true);
        stored
    }

    fn read(&mut self, id: SocketId, position: u64, out: &mut [u8]) {
        let key = self.send_keys.get(&id).copied().unwrap_or(0);
        for (offset, byte) in out.iter_mut().enumerate() {
            *byte = pattern(key, position + offset as u64);
        }
    }

    fn write_datagram(&mut self, id: SocketId, datagram: &Datagram, payload: &[u8]) -> bool {
        self.datagrams.push(Received { id, datagram: *datagram, payload: payload.to_vec() });
        true
    }
}
