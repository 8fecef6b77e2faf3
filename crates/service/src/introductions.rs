//! How a server comes to know the others: their rings are joined when the supervisor says that they
//! are there, and left when it says that they are gone. Called by `event_loop`; read
//! `supervisor::servers` for when, `rings` and `frame_peers` for what they are then.

use std::rc::Rc;

use haypile_engine::Instant;
use haypile_link::port::Port;
use haypile_shm::peer::{self, PeerBell, PeerSide};
use haypile_shm::{Errno, Fd};

use crate::roles::ProcessNumber;
use crate::server::Server;

impl<P: Port> Server<P> {
    /// Another server is there, for the first time or again: `given` are the segment of both, its
    /// status segment, and its doorbell.
    ///
    /// # Errors
    /// When they are not what they should be, or this server and that one have nothing to say to
    /// each other. The peer is absent then.
    pub fn join_peer(
        &mut self,
        now: Instant,
        server: ProcessNumber,
        frames: bool,
        given: [Fd; 3],
    ) -> Result<(), Errno> {
        self.leave_peer(now, server);
        let roles = self.core.rings.roles();
        if !roles.talks_to(server) || roles.shares_frames_with(server) != frames {
            return Err(Errno::EPROTO);
        }
        let side = match roles.own().number < server {
            true => PeerSide::First,
            false => PeerSide::Second,
        };
        let [segment, status, bell] = given;
        let (messages, frames) = peer::open(segment, side, frames)?;
        let bell = Rc::new(PeerBell::new(status, bell)?);
        self.core.rings.join(server, messages, Rc::clone(&bell));
        if let Some(frames) = frames {
            self.link.peers.join(server, frames, bell);
        }
        Ok(())
    }

    /// Another server is gone, with everything that it said and was not heard.
    pub fn leave_peer(&mut self, _now: Instant, server: ProcessNumber) {
        self.link.peers.leave(server);
        self.core.rings.leave(server);
    }
}
