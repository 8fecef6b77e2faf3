//! A hostile application: random bytes over everything it can write (tables, arenas, channel),
//! between operations of the service. The service never panics, never leaves its memory, and the
//! private state of other sockets stays right: their bytes arrive from and leave the right chunks
//! of the books, and every chunk comes back.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::tests::{Host, bytes};
use super::*;
use crate::channel::{CHANNEL_SIZE, ServiceChannel};
use crate::doorbell::Doorbell;
use crate::limits::{ARENA_SIZE, BLOCK_SIZE, NO_CHUNK};
use crate::messages::{Offer, Ready, Request, SocketReply};
use crate::segment::Segment;

const SOCKETS: usize = 4;
const BUFFER: u64 = 300_000;

#[derive(Clone, Debug)]
enum Step {
    /// Words of one block, by place.
    ScribbleBlock {
        socket: usize,
        word: usize,
        value: u64,
    },
    ScribbleTable {
        seed: u64,
    },
    ScribbleArena {
        at: usize,
        seed: u64,
    },
    ScribbleChannel {
        at: usize,
        seed: u64,
    },
    Receive {
        socket: usize,
        ahead: u64,
        len: usize,
    },
    Commit {
        socket: usize,
    },
    Observe {
        socket: usize,
    },
    Transmit {
        socket: usize,
        len: usize,
    },
    Acknowledge {
        socket: usize,
        bytes: u64,
    },
    Want {
        socket: usize,
    },
    Reclaim {
        socket: usize,
    },
    Owners {
        socket: usize,
    },
    Renew {
        socket: usize,
    },
    Channel {
        number: u32,
    },
}

/// Values that hurt: small ones, near the limits, any.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..4,
        0u64..2_000_000,
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(u64::MAX / 2),
        any::<u64>()
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let socket = || 0..SOCKETS;
    let step = prop_oneof![
        6 => (socket(), 0..BLOCK_SIZE / 8, value())
            .prop_map(|(socket, word, value)| Step::ScribbleBlock { socket, word, value }),
        2 => any::<u64>().prop_map(|seed| Step::ScribbleTable { seed }),
        1 => (0..ARENA_SIZE - 4096, any::<u64>())
            .prop_map(|(at, seed)| Step::ScribbleArena { at, seed }),
        3 => (0..CHANNEL_SIZE - 4096, any::<u64>())
            .prop_map(|(at, seed)| Step::ScribbleChannel { at: at * 7 % 200_000, seed }),
        3 => (socket(), prop_oneof![Just(0u64), value()], 0usize..200_000)
            .prop_map(|(socket, ahead, len)| Step::Receive { socket, ahead, len }),
        3 => socket().prop_map(|socket| Step::Commit { socket }),
        4 => socket().prop_map(|socket| Step::Observe { socket }),
        3 => (socket(), 0usize..100_000).prop_map(|(socket, len)| Step::Transmit { socket, len }),
        2 => (socket(), value()).prop_map(|(socket, bytes)| Step::Acknowledge { socket, bytes }),
        2 => socket().prop_map(|socket| Step::Want { socket }),
        2 => socket().prop_map(|socket| Step::Reclaim { socket }),
        1 => socket().prop_map(|socket| Step::Owners { socket }),
        1 => socket().prop_map(|socket| Step::Renew { socket }),
        3 => (0u32..200).prop_map(|number| Step::Channel { number }),
    ];
    prop::collection::vec(step, 0..80)
}

/// A socket with what the service believes about it.
struct Socket {
    service: ServiceStream,
    received: u64,
    sent: u64,
}

struct World {
    host: Host,
    sockets: Vec<Socket>,
    channel: ServiceChannel,
    channel_memory: Segment,
    _doorbells: Vec<Doorbell>,
}

fn socket(host: &mut Host) -> Socket {
    let (mut service, _) = host.stream();
    service.grant_tx(BUFFER, &mut host.arena);
    Socket { service, received: 0, sent: 0 }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    bytes(seed >> 1, len)
}

impl World {
    fn new() -> World {
        let mut host = Host::new();
        let sockets = (0..SOCKETS).map(|_| socket(&mut host)).collect();
        let mut channel = ServiceChannel::create().unwrap();
        let fd = crate::sys::dup_at_least(channel.fd(), 3).unwrap();
        let channel_memory = Segment::from_fd(fd, CHANNEL_SIZE, false).unwrap();
        let mut doorbells = Vec::new();
        for watcher in 0..3 {
            let (ours, theirs) = Doorbell::pair().unwrap();
            channel.open_watcher(watcher, ours).unwrap();
            doorbells.push(theirs);
        }
        World { host, sockets, channel, channel_memory, _doorbells: doorbells }
    }

    fn table(&mut self) -> Arc<Segment> {
        Arc::clone(self.host.table.segment(0).unwrap())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::ScribbleBlock { socket, word, value } => {
                let slot = self.sockets[socket].service.slot();
                let at = crate::limits::slot_offset(slot) + word * 8;
                assert!(self.table().copy_in(at, &value.to_ne_bytes()));
            }
            Step::ScribbleTable { seed } => {
                let at = (seed % (2 * BLOCK_SIZE as u64)) as usize;
                assert!(self.table().copy_in(at, &noise(seed, SOCKETS * BLOCK_SIZE)));
            }
            Step::ScribbleArena { at, seed } => {
                let segment = self.host.arena.segment(0).unwrap();
                assert!(segment.copy_in(at % (2 << 20), &noise(seed, 4096)));
            }
            Step::ScribbleChannel { at, seed } => {
                assert!(self.channel_memory.copy_in(at, &noise(seed, 4096)));
            }
            Step::Channel { number } => self.use_channel(number),
            other => self.stream_step(other),
        }
    }

    fn stream_step(&mut self, step: Step) {
        let arena = &mut self.host.arena;
        match step {
            Step::Receive { socket, ahead, len } => {
                let socket = &mut self.sockets[socket];
                let position = socket.received.saturating_add(ahead);
                let stored = socket.service.write_rx(position, &vec![7; len], arena);
                assert!(stored <= len);
                if ahead == 0 {
                    socket.received += stored as u64;
                }
            }
            Step::Commit { socket } => {
                let socket = &mut self.sockets[socket];
                socket.service.commit_rx(socket.received);
                socket.service.wake();
            }
            Step::Observe { socket } => {
                let socket = &mut self.sockets[socket];
                if let Ok(head) = socket.service.observe_rx_head(arena) {
                    assert!(head <= socket.received);
                }
                if let Ok(tail) = socket.service.observe_tx_tail() {
                    assert!(
                        tail - socket.service.tx_head() <= FIFO_SLOTS as u64 * CHUNK_SIZE as u64
                    );
                }
                let _ = socket.service.offer_state();
            }
            Step::Transmit { socket, len } => {
                let socket = &mut self.sockets[socket];
                let left = (socket.service.tx_tail() - socket.sent) as usize;
                let mut out = vec![0; len.min(left)];
                assert!(socket.service.read_tx(socket.sent, &mut out, arena));
                socket.sent += out.len() as u64;
            }
            Step::Acknowledge { socket, bytes } => {
                let socket = &mut self.sockets[socket];
                let position = socket.service.tx_head().saturating_add(bytes).min(socket.sent);
                socket.service.acked(position, BUFFER, arena);
            }
            Step::Want { socket } => {
                let _ = self.sockets[socket].service.want_tx(BUFFER, arena);
            }
            Step::Reclaim { socket } => {
                let _ = self.sockets[socket].service.try_reclaim_idle(arena);
                arena.trim(100);
            }
            Step::Owners { socket } => {
                let service = &mut self.sockets[socket].service;
                service.clear_owner(7);
                service.offer();
                let _ = service.revoke();
                let _ = service.take_error();
            }
            Step::Renew { socket: index } => {
                let old = self.sockets.remove(index);
                let slot = old.service.slot();
                old.service.retire(&mut self.host.arena);
                self.host.table.free(slot);
                self.sockets.insert(index, socket(&mut self.host));
            }
            _ => {}
        }
    }

    fn use_channel(&mut self, number: u32) {
        let mut burst = [[0; 8]; 7];
        let count = self.channel.next_requests(&mut burst);
        for message in &burst[..count] {
            let _ = Request::decode(message);
        }
        let _ = self.channel.next_request().map(|message| Request::decode(&message));
        self.channel.complete(number, &SocketReply::failure(1).encode());
        let offer = Offer { listener: 0, listener_generation: 1, slot: number, generation: 1 };
        self.channel.push_offer(&offer);
        self.channel.wake_acceptors();
        let Some(watcher) = self.channel.watcher(number) else { return };
        if let Some(position) = watcher.push(&Ready { slot: 0, generation: 1, bits: 1 }) {
            let _: bool = watcher.is_pending(position);
        }
        assert!(watcher.free() <= crate::limits::WATCHER_RING);
        let _: bool = watcher.mark_backlog();
        let _ = watcher.wake();
        let _: bool = self.channel.is_corrupt();
    }

    /// No chunk belongs to two sockets, or to two places of one.
    fn check_books(&self) {
        let mut seen = HashSet::new();
        for socket in &self.sockets {
            for chunk in socket.service.chunks().filter(|chunk| *chunk != NO_CHUNK) {
                assert!(seen.insert(chunk), "chunk {chunk} is in two places");
            }
        }
        assert_eq!(seen.len(), self.host.arena.used_chunks() as usize);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn scribbling_hurts_nobody_else(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check_books();
        }
        let World { mut host, sockets, .. } = world;
        for socket in sockets {
            socket.service.retire(&mut host.arena);
        }
        prop_assert_eq!(host.arena.used_chunks(), 0);
    }
}

/// The application's end, too, survives any record: it is the service's memory that is broken then,
/// but a program is not to crash for it.
#[test]
fn the_application_survives_any_record() {
    let mut host = Host::new();
    let (_service, application) = host.stream();
    let chunk = host.arena.allocate().unwrap();
    assert_eq!(chunk, 0);
    let table = Arc::clone(host.table.segment(0).unwrap());
    for seed in 0..3000u64 {
        // Everything but the generation and the owner words, which would only make it wait.
        assert!(table.copy_in(4, &noise(seed << 20, 124)));
        assert!(table.copy_in(136, &noise(seed << 21, 376)));
        if seed % 3 == 0 {
            assert!(table.copy_in(16, &(seed * 7).to_ne_bytes()));
            assert!(table.copy_in(64, &[0; 16]));
            assert!(table.copy_in(32, &(seed * 11).to_ne_bytes()));
        }
        let mut out = [0; 9000];
        let _ = application.peek(&mut out, &host.arena);
        let _ = application.read(&mut out, &host.arena);
        let _ = application.write(&out, &host.arena);
        let _ = application.discard(seed);
        let _ = (application.status(), application.take_error(), application.claim());
        let _ = (application.local_address(), application.remote_address());
        let _ = (application.readable(), application.writable(), application.tx_room());
    }
}
