//! What of a socket crosses when its connection moves to another server, beside the engine's state.
//!
//! [`Hands`] is what the engine's `migration` sees of a server: the streams of its connections, and the [`Freight`]
//! of those that move. Called by the engine while a bucket is exported and imported, and by `server` each turn as
//! the shard's streams. Read first: decision 0013, and `haypile_engine::migration`.

use haypile_engine::control::names::ServerNumber;
use haypile_engine::{Datagram, Freight, Positions, SocketId, Streams};

use crate::processes::Processes;
use crate::server::Core;
use crate::sockets::Store;

/// A server's sockets and processes, in the hands of its shard.
#[derive(Debug)]
pub struct Hands<'a> {
    /// The sockets, with their bytes.
    pub store: &'a mut Store,
    /// The processes that have them.
    pub processes: &'a mut Processes,
}

/// A bucket has a connection that cannot leave now; it may a moment later.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Busy;

impl Streams for Hands<'_> {
    #[inline]
    fn write(&mut self, id: SocketId, position: u64, data: &[u8]) -> usize {
        self.store.write(id, position, data)
    }

    #[inline]
    fn write_datagram(&mut self, id: SocketId, datagram: &Datagram, payload: &[u8]) -> bool {
        Streams::write_datagram(self.store, id, datagram, payload)
    }

    #[inline]
    fn read(&mut self, id: SocketId, position: u64, out: &mut [u8]) {
        self.store.read(id, position, out);
    }
}

impl Freight for Hands<'_> {
    fn pack(&mut self, _id: SocketId, _out: &mut Vec<u8>) {}

    fn check(&mut self, _baggage: &[u8]) -> bool {
        false
    }

    fn unpack(&mut self, _id: SocketId, _baggage: &[u8]) -> Positions {
        Positions::default()
    }

    fn receipt(&mut self) -> Option<Vec<u8>> {
        None
    }

    fn deliver(&mut self, _from: ServerNumber, _receipt: &[u8]) {}
}

impl Core {
    /// Makes everything of a bucket ready to leave, before the bucket is given away.
    ///
    /// # Errors
    /// [`Busy`]; nothing has changed.
    pub fn prepare_move(&mut self, bucket: u16) -> Result<(), Busy> {
        match self.shard.connections_in_bucket(bucket).is_empty() {
            true => Ok(()),
            false => Err(Busy),
        }
    }
}
