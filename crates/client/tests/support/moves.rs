//! Connections that move between servers of the service: the old server keeps a stub, which says where the connection
//! is and hands on what it is told about it.

use std::sync::Mutex;

use haypile_shm::ServiceStream;
use haypile_shm::messages::{ELSEWHERE, OptionReply, RequestBody, SocketKind, SocketReply, ready};
use haypile_shm::stream::{NewPlace, status};

use super::{FAKES, Fake, SEND_BUFFER, Socket, State};

/// What stands for a connection that is about to leave, or has left.
#[derive(Default)]
pub struct Stub {
    /// Its server, slot and generation there.
    place: Option<(u16, u32, u32)>,
    /// What came while it was not known where it goes.
    late: Vec<RequestBody>,
}

/// Notices on their way between servers: to which, about which slot and generation.
static ON_THE_WAY: Mutex<Vec<(u16, u32, u32, RequestBody)>> = Mutex::new(Vec::new());

fn send_on(place: (u16, u32, u32), body: RequestBody) {
    let (server, slot, generation) = place;
    ON_THE_WAY.lock().unwrap().push((server, slot, generation, body));
    FAKES.get().unwrap()[usize::from(server)].poke();
}

impl Fake {
    /// A connection is about to leave: nobody reads or writes it until it has left or is thawed.
    pub fn freeze(&self, slot: u32) {
        while !self.settle().freeze(slot) {
            std::thread::yield_now();
        }
    }

    /// It stays.
    pub fn thaw(&self, slot: u32) {
        let mut state = self.settle();
        state.socket(slot).stream.thaw();
        if let Some(stub) = state.socket(slot).stub.take() {
            for body in stub.late {
                state.notice(slot, body);
            }
        }
        state.announce(slot, ready::ALL);
    }

    /// A frozen connection goes to another server; its slot there.
    pub fn hand_over(&self, slot: u32, to: &Fake) -> u32 {
        let baggage = self.lock().pack(slot);
        let (server, epoch, taken, generation) = {
            let mut there = to.settle();
            let (slot, generation) = there.unpack(baggage);
            (there.server, there.epoch.get(), slot, generation)
        };
        let place = NewPlace { server, epoch, slot: taken, generation };
        self.lock().deliver(slot, place);
        taken
    }

    /// A connection moves to another server; its slot there.
    pub fn move_to(&self, slot: u32, to: &Fake) -> u32 {
        self.freeze(slot);
        self.hand_over(slot, to)
    }

    /// A connection moves to another server and this one leaves, when somebody asks it something.
    pub fn leave_over_the_next_message(
        &'static self,
        slot: u32,
        to: &'static Fake,
    ) -> std::thread::JoinHandle<()> {
        self.over_the_next_message(move |fake| {
            let _: u32 = fake.move_to(slot, to);
            fake.die();
        })
    }

    /// Whether a process has said that it has followed a connection here.
    pub fn is_arrived(&self, slot: u32) -> bool {
        self.settle().socket(slot).arrived
    }
}

/// A connection between two servers.
struct Baggage {
    positions: haypile_shm::stream::StreamPositions,
    received: Vec<(u64, Vec<u8>)>,
    written: Vec<u8>,
    status: u32,
    error: i32,
    socket: [Option<std::net::SocketAddr>; 2],
    cookie: Option<u64>,
    taken: Vec<u8>,
}

impl State {
    fn freeze(&mut self, slot: u32) -> bool {
        let State { sockets, arena, .. } = self;
        let socket = sockets.get_mut(&slot).unwrap();
        let frozen = socket.stream.freeze(arena).unwrap();
        if frozen {
            socket.stub.get_or_insert_default();
        }
        frozen
    }

    fn pack(&mut self, slot: u32) -> Baggage {
        let State { sockets, arena, .. } = self;
        let Socket { stream, local, remote, cookie, received, .. } =
            sockets.get_mut(&slot).unwrap();
        let positions = stream.positions();
        let mut written = vec![0; (positions.tx_tail - positions.tx_head) as usize];
        assert!(written.is_empty() || stream.read_tx(positions.tx_head, &mut written, arena));
        let runs = stream.rx_runs().into_iter().map(|(at, len)| {
            let mut bytes = vec![0; len];
            assert!(stream.copy_run(at, &mut bytes, arena));
            (at, bytes)
        });
        Baggage {
            positions,
            received: runs.collect(),
            written,
            status: stream.status(),
            error: stream.pending_error(),
            socket: [*local, *remote],
            cookie: *cookie,
            taken: std::mem::take(received),
        }
    }

    fn unpack(&mut self, baggage: Baggage) -> (u32, u32) {
        let place = self.table.allocate().unwrap();
        let (slot, generation) = (place.slot, place.generation);
        let arena = &mut self.arena;
        let mut stream = ServiceStream::resume(place, &baggage.positions);
        for (at, bytes) in &baggage.received {
            assert_eq!(stream.write_rx(*at, bytes, arena), bytes.len());
        }
        assert!(stream.restore_tx(&baggage.written, arena));
        stream.commit_rx(baggage.positions.rx_tail);
        stream.grant_tx(SEND_BUFFER, arena);
        let [local, remote] = baggage.socket;
        stream.set_local(local);
        stream.set_remote(remote);
        if baggage.error != 0 {
            stream.set_error(baggage.error);
        }
        stream.set_status(baggage.status);
        let socket = Socket {
            local,
            remote,
            cookie: baggage.cookie,
            received: baggage.taken,
            kind: SocketKind::Connection,
            ..Socket::new(stream)
        };
        self.sockets.insert(slot, socket);
        (slot, generation)
    }

    /// The connection is where it has gone to.
    fn deliver(&mut self, slot: u32, place: NewPlace) {
        let State { sockets, arena, .. } = self;
        let socket = sockets.get_mut(&slot).unwrap();
        let stub = socket.stub.as_mut().expect("a stub");
        stub.place = Some((place.server, place.slot, place.generation));
        for body in std::mem::take(&mut stub.late) {
            send_on((place.server, place.slot, place.generation), body);
        }
        socket.stream.release_all(arena);
        socket.stream.set_new_place(place);
        socket.stream.set_status(socket.stream.status() | status::MOVED);
        socket.stream.thaw();
        self.announce(slot, ready::ALL);
    }

    /// A request about a stub. `None`: the socket is none.
    pub(super) fn at_stub(
        &mut self,
        process: usize,
        slot: u32,
        body: &RequestBody,
    ) -> Option<Option<[u64; 7]>> {
        let stub = self.sockets.get_mut(&slot)?.stub.as_mut()?;
        let place = stub.place;
        match *body {
            RequestBody::GetOption { .. } | RequestBody::TcpInfo { .. } => {
                return Some(Some(OptionReply::failure(ELSEWHERE).encode()));
            }
            RequestBody::Arrive => {
                let server = place.map_or(self.server, |place| place.0);
                return Some(Some(SocketReply::elsewhere(server).encode()));
            }
            RequestBody::KickTx | RequestBody::KickRx | RequestBody::WantTx => {}
            RequestBody::Watch { watcher, mask, .. } => self.watch(process, slot, watcher, mask),
            RequestBody::Unwatch { watcher } => self.unwatch(process, slot, watcher),
            RequestBody::Left => {
                if self.socket(slot).cookie.is_none() {
                    self.drop_socket(slot);
                }
            }
            body => match place {
                None => stub.late.push(body),
                Some(place) => {
                    send_on(place, body);
                    if matches!(body, RequestBody::Close { .. }) {
                        self.drop_socket(slot);
                    }
                }
            },
        }
        Some(None)
    }

    /// A connection that has come is used by a process here.
    pub(super) fn arrive_at(&mut self, slot: u32) -> Option<[u64; 7]> {
        let socket = self.socket(slot);
        socket.arrived = true;
        let (generation, local) = (socket.stream.generation(), socket.local);
        Some(SocketReply { errno: 0, slot, generation, local }.encode())
    }

    /// Takes what other servers have handed on.
    pub(super) fn take_notices(&mut self) {
        let server = self.server;
        let notices: Vec<_> = {
            let mut all = ON_THE_WAY.lock().unwrap();
            all.extract_if(.., |(to, ..)| *to == server).collect()
        };
        for (_, slot, generation, body) in notices {
            if self.table.is_current(slot, generation) && self.sockets.contains_key(&slot) {
                self.log.push((slot, body));
                self.notice(slot, body);
            }
        }
    }

    /// A request without an answer.
    fn notice(&mut self, slot: u32, body: RequestBody) {
        if self.at_stub(usize::MAX, slot, &body).is_none() {
            self.handle_about(usize::MAX, slot, &body);
        }
    }
}
