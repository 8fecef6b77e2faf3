//! What a socket is ready for, as poll(2) and epoll(7) say it: read from the shared record and the
//! offers at hand, without a message. Used by `poll.rs` and `epoll.rs`.

use std::sync::atomic::Ordering;

use haypile_shm::messages::RequestBody;
use haypile_shm::messages::ready::{ERR, HUP, IN, OUT, PRI, RDHUP};
use haypile_shm::stream::status;
use haypile_shm::{AppStream, Errno};

use crate::attach;
use crate::entry::{Phase, Socket, flag};
use crate::following::{ELSEWHERE_OR_OVER, Followed};
use crate::{accept, datagram};

/// `POLLRDNORM`, `POLLRDBAND`, `POLLWRNORM`, `POLLWRBAND`.
const RDNORM: u32 = 0x40;
const WRNORM: u32 = 0x100;

/// What a Haypile socket is ready for now, of what is `wanted` and more. (A dual listener's kernel
/// half is asked elsewhere.) Whoever finds no room to write has asked for it with that, so that
/// its return is reported although no write has failed.
pub(crate) fn of_socket(socket: &Socket, wanted: u32) -> u32 {
    let connection = socket.phase() == Phase::Stream && !socket.has(flag::DATAGRAM);
    // A UDP socket may come back with this look: first, so that what is said is said of the socket as it is then.
    let over_before = socket.has(flag::DATAGRAM) && is_over(socket);
    let bits = match socket.phase() {
        Phase::Kernel => return 0,
        // Before anything is said about its server: it may be with another by now.
        _ if connection => of_connection(socket, wanted),
        _ if socket.has(flag::DATAGRAM) => datagram::readiness(socket, wanted),
        Phase::Fresh | Phase::Bound if socket.has(flag::SHUT_READ) => IN | OUT | HUP | RDHUP,
        Phase::Fresh | Phase::Bound => OUT | HUP,
        Phase::Listening if accept::has_offer(socket) => IN,
        Phase::Listening if accept::has_ended(socket) => OUT | HUP,
        _ => 0,
    };
    let gone = if socket.has(flag::DATAGRAM) { over_before } else { is_over(socket) };
    // A UDP socket without a record has no part in the service, and a connection that is elsewhere none in
    // the fate of the server it was at.
    let gone = gone
        && (socket.has_record() || !socket.has(flag::DATAGRAM))
        && !(connection && socket.is_moved());
    expand(if gone { bits | IN | OUT | ERR | HUP | RDHUP } else { bits })
}

/// Whether no server will ever keep the socket again, and nobody was told.
fn is_over(socket: &Socket) -> bool {
    // A UDP socket whose server has left is opened at another.
    let goes_on = |server| socket.has(flag::DATAGRAM) && attach::goes_on_without(server);
    let over = |attachment: attach::Current| {
        attachment.fate() == attach::Fate::Over && !goes_on(attachment.server())
    };
    !socket.has(flag::GONE_TOLD)
        && match socket.has(flag::EVERYWHERE) {
            true => accept::is_over(socket),
            false => socket.attachment().is_ok_and(over),
        }
}

fn of_connection(socket: &Socket, wanted: u32) -> u32 {
    let Some(mut stream) = socket.stream() else { return IN | OUT | ERR | HUP | RDHUP };
    // One whose server is dead has failed.
    stream.is_dead();
    let mut state = stream.status();
    while state & ELSEWHERE_OR_OVER != 0 {
        match socket.follow(stream) {
            Followed::NotNow | Followed::Interrupted => return 0,
            followed => {
                let Some(next) = socket.stream() else { return 0 };
                stream = next;
                stream.is_dead();
                state = stream.status();
                if followed == Followed::Here {
                    break;
                }
            }
        }
    }
    let bits = of_stream(&stream, state, socket);
    let full = state & status::CONNECTED != 0 && bits & OUT == 0;
    if full && wanted & (OUT | WRNORM) != 0 && stream.want_tx() {
        // A service that is gone shows in the next look.
        let _: Result<(), Errno> = stream.kick(RequestBody::WantTx);
    }
    bits
}

fn of_stream(stream: &AppStream, state: u32, socket: &Socket) -> u32 {
    if state & status::CLOSED != 0 {
        return IN | OUT | HUP | RDHUP;
    }
    let error = if stream.has_error() { ERR } else { 0 };
    if state & status::FAILED != 0 {
        return IN | OUT | HUP | RDHUP | error;
    }
    if state & status::CONNECTED == 0 {
        return error;
    }
    let read_end = state & (status::RX_FIN | status::RX_SHUT) != 0 || socket.has(flag::SHUT_READ);
    let write_end = state & status::TX_SHUT != 0 || socket.has(flag::SHUT_WRITE);
    let mut bits = error;
    if read_end {
        bits |= IN | RDHUP;
    } else if stream.readable() >= u64::from(socket.receive_low.load(Ordering::Relaxed)) {
        bits |= IN;
    }
    if read_end && write_end || state & status::FINISHED != 0 {
        bits |= HUP;
    }
    // What could be had for the asking does not count: a write that does not wait would not find it,
    // and whoever tries again at once keeps the service from granting it.
    if write_end || stream.writable() > 0 {
        bits |= OUT;
    }
    bits
}

/// The other names that poll(2) has for reading and writing.
fn expand(bits: u32) -> u32 {
    let mut expanded = bits;
    if bits & IN != 0 {
        expanded |= RDNORM;
    }
    if bits & OUT != 0 {
        expanded |= WRNORM;
    }
    expanded
}

/// What the service is asked to report, for a set of wanted bits in any of their names.
pub(crate) fn watch_mask(wanted: u32) -> u32 {
    let mut mask = wanted & (IN | PRI | OUT | RDHUP) | ERR | HUP;
    if wanted & RDNORM != 0 {
        mask |= IN;
    }
    if wanted & WRNORM != 0 {
        mask |= OUT;
    }
    mask
}
