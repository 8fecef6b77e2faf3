//! Applications that write nonsense: only their own sockets suffer.

use std::sync::atomic::Ordering;

use haypile_shm::limits::slot_offset;
use haypile_shm::messages::RequestBody;

use super::harness::{App, Sock, World};

/// Two domains with a connection each.
struct Pair {
    world: World,
    bad: App,
    bad_socket: Sock,
    bad_peer: haypile_engine::SocketId,
    good: App,
    good_socket: Sock,
    good_peer: haypile_engine::SocketId,
}

fn pair() -> Pair {
    let mut world = World::new();
    let (mut bad, mut good) = (world.app(), world.app());
    bad.listen(&mut world, 80);
    good.listen(&mut world, 81);
    let (bad_peer, good_peer) = (world.dial(80), world.dial(81));
    let bad_socket = bad.accept(&mut world).unwrap();
    let good_socket = good.accept(&mut world).unwrap();
    Pair { world, bad, bad_socket, bad_peer, good, good_socket, good_peer }
}

impl Pair {
    /// Scribbles over a word of the bad application's record.
    fn scribble(&mut self, offset: usize, value: u64) {
        let core = &mut self.world.server.core;
        let key = core.store.domains.join(self.bad.domain, 1, 1);
        let table = core.store.domains.get_mut(key).unwrap().table.segment(0).unwrap();
        let at = slot_offset(self.bad_socket.slot) + offset;
        table.atomic_u64(at).unwrap().store(value, Ordering::Relaxed);
    }

    /// The bad one is gone, the good one is not.
    fn check(mut self) {
        let world = &mut self.world;
        assert!(world.peer.progress(self.bad_peer).error.is_some(), "reset");
        assert!(world.server.core.processes.get(self.bad.process_id).is_none());
        assert_eq!(world.server.core.counters.hostile_processes, 1);
        assert!(world.peer.progress(self.good_peer).error.is_none());
        if self.good_socket.stream.writable() == 0 {
            // Its memory was taken back while it was idle; asking brings it.
            assert_eq!(self.good.write(world, &self.good_socket, b"unharmed"), 0);
        }
        assert_eq!(self.good.write(world, &self.good_socket, b"unharmed"), 8);
        assert_eq!(world.peer_received(self.good_peer), b"unharmed");
    }
}

const RX_HEAD: usize = 64;
const TX_TAIL: usize = 72;
const OFFER: usize = 136;

#[test]
fn an_impossible_receive_position() {
    for value in [1, u64::MAX, u64::MAX / 2] {
        let mut pair = pair();
        pair.scribble(RX_HEAD, value);
        pair.bad.tell(&mut pair.world, &pair.bad_socket, RequestBody::KickRx);
        pair.check();
    }
}

#[test]
fn an_impossible_send_position() {
    for value in [u64::MAX, 1 << 40] {
        let mut pair = pair();
        pair.scribble(TX_TAIL, value);
        pair.bad.tell(&mut pair.world, &pair.bad_socket, RequestBody::KickTx);
        pair.check();
    }
}

#[test]
fn nonsense_that_is_found_at_the_close() {
    let mut pair = pair();
    pair.scribble(TX_TAIL, u64::MAX);
    pair.bad.tell(&mut pair.world, &pair.bad_socket, RequestBody::Close { abort: false });
    assert!(pair.world.peer.progress(pair.bad_peer).error.is_some());
    assert_eq!(pair.good.write(&mut pair.world, &pair.good_socket, b"ok"), 2);
}

#[test]
fn nonsense_that_is_found_by_housekeeping() {
    let mut pair = pair();
    pair.scribble(RX_HEAD, 77);
    pair.world.run_for(5_000_000);
    pair.check();
}

#[test]
fn a_message_of_no_kind() {
    let mut pair = pair();
    pair.bad.channel.sender().send_now(&[u64::MAX; 8]).unwrap();
    pair.world.settle();
    assert_eq!(pair.world.server.core.counters.malformed_requests, 1);
    pair.check();
}

#[test]
fn a_claim_of_what_was_not_offered() {
    let mut pair = pair();
    // A second connection, offered to the bad application and not claimed by its word.
    pair.world.dial(80);
    let offered = pair.bad.next_offer().unwrap();
    pair.bad.tell(&mut pair.world, &offered, RequestBody::Claim);
    pair.check();
}

#[test]
fn an_offer_word_that_says_nothing_known() {
    let mut pair = pair();
    let peer = pair.world.dial(80);
    let offered = pair.bad.next_offer().unwrap();
    let bad_socket = std::mem::replace(&mut pair.bad_socket, offered);
    pair.scribble(OFFER, 0x1234_5678_9abc_def0);
    pair.bad.tell(&mut pair.world, &pair.bad_socket, RequestBody::Claim);
    assert!(pair.world.peer.progress(peer).error.is_some(), "its listener is gone, too");
    pair.bad_socket = bad_socket;
    pair.check();
}

#[test]
fn requests_about_sockets_of_others_reach_nothing() {
    let mut pair = pair();
    for slot in 0..64 {
        for generation in 0..4 {
            if (slot, generation) == (pair.bad_socket.slot, pair.bad_socket.generation) {
                continue;
            }
            let name = Sock { slot, generation, stream: pair.bad_socket.stream.clone() };
            pair.bad.tell(&mut pair.world, &name, RequestBody::KickTx);
        }
    }
    assert!(pair.world.server.core.counters.stale_requests > 100);
    assert!(pair.world.peer.progress(pair.good_peer).error.is_none());
    assert!(pair.world.peer.progress(pair.bad_peer).error.is_none());
}

#[test]
fn another_domains_cookie_cannot_be_taken_over() {
    let mut pair = pair();
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    let fd = haypile_shm::sys::socket(libc::AF_INET, kind, 0).unwrap();
    let cookie = haypile_shm::sys::so_cookie(fd.raw()).unwrap();
    // The bad one guesses the cookie and claims it first.
    pair.bad.tell(&mut pair.world, &pair.bad_socket, RequestBody::Shared { cookie });
    pair.good.tell(&mut pair.world, &pair.good_socket, RequestBody::Shared { cookie });
    let adopted = pair.good.adopt(&mut pair.world, fd.raw()).unwrap();
    assert_eq!(adopted.slot, pair.good_socket.slot);
    let good_peer = pair.good_peer;
    drop(fd);
    pair.world.look_until(|world| world.peer.progress(good_peer).rx_fin);
}

#[test]
fn a_child_that_makes_its_connection_block_stops_nobody() {
    use haypile_shm::messages::ControlRequest;
    use haypile_shm::{control, sys};
    let mut pair = pair();
    let (ours, theirs) = sys::socketpair_seqpacket().unwrap();
    let message = ControlRequest::AttachChild.encode();
    control::send(pair.bad.control.raw(), &message, &[theirs.raw()]).unwrap();
    pair.world.settle();
    // Its own copy of the end that the service reads: a plain read would wait for ever now.
    let flags = sys::fcntl_getfl(theirs.raw()).unwrap();
    sys::fcntl_setfl(theirs.raw(), flags & !libc::O_NONBLOCK).unwrap();
    control::send(ours.raw(), &ControlRequest::AttachChild.encode(), &[]).unwrap();
    pair.world.settle();
    assert_eq!(pair.good.write(&mut pair.world, &pair.good_socket, b"ok"), 2);
}

#[test]
fn registrations_of_the_dead_reach_nobody_else() {
    use haypile_shm::messages::ready;
    let mut pair = pair();
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    let fd = haypile_shm::sys::socket(libc::AF_INET, kind, 0).unwrap();
    let cookie = haypile_shm::sys::so_cookie(fd.raw()).unwrap();
    let shared = RequestBody::Shared { cookie };
    pair.good.tell(&mut pair.world, &pair.good_socket, shared);
    let child = pair.good.fork(&mut pair.world);
    let watcher = child.watcher(&mut pair.world, 0);
    child.watch(&mut pair.world, &watcher, &pair.good_socket, ready::IN);
    let number = child.process_id;
    child.die(&mut pair.world);
    // The next process gets the number of the dead one, and opens the same watcher.
    let next = pair.world.app();
    assert_eq!(next.process_id, number);
    let mut watcher = next.watcher(&mut pair.world, 0);
    pair.world.peer_sends(pair.good_peer, b"for the good one");
    assert_eq!(watcher.next(), None);
}
