//! The name of a listener or a connection inside one shard.
//!
//! Made by the slab, handed out in events and by `listen` and `connect`, given back in commands. A
//! name whose socket is gone never reaches another socket: the generation tells them apart.

/// Slab index and generation of a socket. Listeners and connections share one space of indices.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SocketId {
    index: u32,
    generation: u32,
}

impl SocketId {
    /// Puts a name together; one that the shard did not give out is harmless and names nothing.
    pub const fn new(index: u32, generation: u32) -> SocketId {
        SocketId { index, generation }
    }

    /// Place in the slab; dense from 0, used again after the socket is gone.
    pub const fn index(self) -> u32 {
        self.index
    }

    /// How often the place was given out; starts at 1, never 0.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}
