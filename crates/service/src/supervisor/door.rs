//! The door: a datagram socket of the supervisor's for processes that no path leads to a server's
//! attach socket any more, because they have changed their root, their mount namespace or their user.
//! They connected to it while the path still led here; what they send is one end of a socket pair,
//! which goes on to the transport server that they name. Decision 0023; the other side is the
//! client's `attach/door.rs`.

use haypile_shm::control;
use haypile_shm::messages::ControlRequest;
use haypile_shm::sys::{self, Errno, Fd};

use super::Supervisor;
use super::orders::Order;
use super::seat::Seat;

/// Datagrams taken in one turn.
const NEWCOMERS_PER_TURN: usize = 64;
/// Memory of messages that a server has not received, in bytes, beyond which newcomers are turned away: strangers may
/// not fill the channel by which it is given orders.
const UNRECEIVED_MAX: usize = 32 << 10;

/// What came to the door.
enum Knock {
    /// This is to be a control connection of that transport server.
    Enter(Fd, u16),
    /// A question whether the door is there, or nonsense.
    Nothing,
}

/// The next datagram.
///
/// # Errors
/// `EAGAIN` when there is none.
fn hear(door: &Fd) -> Result<Knock, Errno> {
    let received = match control::receive(door.raw()) {
        Ok(received) => received,
        Err(Errno::EPROTO | Errno::EPIPE) => return Ok(Knock::Nothing),
        Err(errno) => return Err(errno),
    };
    let [first, ..] = received.fds;
    match (ControlRequest::decode(&received.message), first) {
        (Ok(ControlRequest::Enter { server }), Some(end)) => Ok(Knock::Enter(end, server)),
        _ => Ok(Knock::Nothing),
    }
}

impl Supervisor {
    /// Hands on who is at the door. Whoever names a server that does not run, or has too much to do, hears the end of
    /// its connection.
    pub(super) fn open_door(&self) {
        for _ in 0..NEWCOMERS_PER_TURN {
            let (end, server) = match hear(&self.parts.door) {
                Ok(Knock::Enter(end, server)) => (end, server),
                Ok(Knock::Nothing) => continue,
                Err(_) => return,
            };
            let seat = self.seats.iter().find(|seat| seat.spec.transport == Some(server));
            if let Some(number) = seat.filter(|seat| has_room(seat)).map(Seat::number) {
                drop(self.give(number, &Order::Newcomer {}, end.raw()));
            }
        }
    }
}

/// Whether a server receives what it is sent.
fn has_room(seat: &Seat) -> bool {
    let waiting = seat.life.as_ref().map(|life| sys::unreceived(life.channel.raw()));
    waiting.is_some_and(|waiting| waiting.is_ok_and(|bytes| bytes < UNRECEIVED_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_descriptor_and_a_possible_server_enter_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("door.sock");
        let path = path.as_os_str().as_encoded_bytes();
        let door = sys::unix_bind_datagram(path).unwrap();
        let guest = sys::unix_connect_datagram(path).unwrap();
        let (_ours, theirs) = sys::socketpair_seqpacket().unwrap();
        let enter = ControlRequest::Enter { server: 3 }.encode();
        assert!(matches!(hear(&door), Err(Errno::EAGAIN)));
        control::send(guest.raw(), &enter, &[theirs.raw()]).unwrap();
        assert!(matches!(hear(&door), Ok(Knock::Enter(_, 3))));
        let nonsense = [
            (&enter, vec![]),
            (&ControlRequest::AttachChild.encode(), vec![theirs.raw()]),
            (&[u64::MAX; 8], vec![theirs.raw()]),
            (&[enter[0], u64::from(u16::MAX), 0, 0, 0, 0, 0, 0], vec![theirs.raw()]),
        ];
        for (message, fds) in nonsense {
            control::send(guest.raw(), message, &fds).unwrap();
            assert!(matches!(hear(&door), Ok(Knock::Nothing)), "{message:?}");
        }
        for bytes in [&b""[..], b"x", &[1; 65]] {
            sys::send_fds(guest.raw(), bytes, &[theirs.raw()], 0).unwrap();
            assert!(matches!(hear(&door), Ok(Knock::Nothing)), "{} bytes", bytes.len());
        }
        assert!(matches!(hear(&door), Err(Errno::EAGAIN)));
        drop(door);
        assert_eq!(control::send(guest.raw(), &enter, &[]), Err(Errno::ECONNREFUSED));
    }
}
