//! The supervisor's servers: started with everything that they need, introduced to each other,
//! heard, buried and started again. The second half of `Supervisor`; read `seat` and `orders` first.
//!
//! Servers learn of each other from here alone. When one runs (again), it and each living server
//! that it talks to are given a fresh segment of rings; when one ends, the others are told. Nobody's
//! rings outlive either end, so that each side knows where the other starts: at nothing.

use std::os::fd::RawFd;

use haypile_engine::Instant;
use haypile_shm::epoch;
use haypile_shm::peer::PeerSegment;
use haypile_shm::sys::{self, Errno, Fd};

use super::backoff::{self, Delay};
use super::growth::Phase;
use super::orders::{self, Order, Report, Start};
use super::seat::{Seat, Waking};
use super::{LISTENERS_MAX, Parts, Supervisor, complain};
use crate::diag;
use crate::error::Error;
use crate::event_loop::now;
use crate::poller::Token;
use crate::roles;
use crate::sandbox::{self, Cell};

impl Supervisor {
    pub(super) fn start_server(&mut self, server: usize, now: Instant) -> Result<(), Error> {
        let fail = |why: std::io::Error| Error::new("start a server", why, "raise the limits");
        let life = self.seats[server].start(now).map_err(fail)?;
        let [pidfd, channel] = life.descriptors();
        let added = self.poller.add(pidfd, Token::Exit(server as u32));
        let added = added.and_then(|()| self.poller.add(channel, Token::Channel(server as u32)));
        let told = added.and_then(|()| self.tell_start(&self.seats[server], channel));
        told.map_err(|errno| fail(errno.into()))
    }

    /// Everything that a server needs, and the listeners that it is to hold.
    fn tell_start(&self, seat: &Seat, channel: i32) -> Result<(), Errno> {
        let Parts { config, link, attach, owner, .. } = &self.parts;
        let (number, confine) = (seat.number(), &config.confine);
        let core = sandbox::choose_core(&confine.cores, u32::from(number), std::process::id());
        let queues = link.share(seat.spec.link);
        let attach = seat.spec.transport.and_then(|transport| attach.get(usize::from(transport)));
        let epoch = seat.spec.transport.map(|transport| self.epoch.of(transport).get());
        let start = Order::Start(Box::new(Start {
            config: config.clone(),
            roster: self.roster.clone(),
            server: number,
            open: self.open,
            link: link.facts.clone(),
            link_descriptors: queues.len() as u16,
            secret: self.parts.secret,
            attaches: attach.is_some(),
            epoch: epoch::next_up(epoch.unwrap_or_default()),
            cell: Cell { user: self.user, core, filter: confine.filter },
            tell_processes: owner.is_some(),
        }));
        // The channel is fresh, but may be full of listeners: the server takes them as it starts.
        let patient = |order: &Order, fds: &[i32]| {
            sys::send_fds(channel, &orders::encode(order), fds, 0).map(drop)
        };
        sys::fcntl_setfl(channel, 0)?;
        let of_transport = attach.map(Fd::raw).zip(seat.ledger());
        let of_transport = of_transport.into_iter().flat_map(<[RawFd; 2]>::from);
        let fds: Vec<RawFd> = [self.epoch.fd()].into_iter().chain(of_transport).collect();
        patient(&start, &fds)?;
        for fds in queues.chunks(orders::LINK_FDS_MAX) {
            patient(&Order::Link { count: fds.len() }, fds)?;
        }
        for order in self.listeners_for(seat) {
            patient(&order, &[])?;
        }
        patient(&Order::Run {}, &[])?;
        sys::fcntl_setfl(channel, libc::O_NONBLOCK)
    }

    /// The listeners that a server is to hold: those of its life before, or those that the others have if it
    /// is new among them.
    fn listeners_for(&self, seat: &Seat) -> Vec<Order> {
        let joins = seat.spec.transport.is_some_and(|transport| transport >= self.open);
        let order = |listener| match joins {
            true => Order::Beside { listener, open: true },
            false => Order::Listener(listener),
        };
        seat.listeners.values().cloned().map(order).collect()
    }

    pub(super) fn restart(&mut self, server: usize, now: Instant) {
        self.seats[server].restarts += 1;
        // The link is a link server's to lose.
        let renewed = match self.seats[server].spec.link {
            Some(_) => self.parts.link.renew(&self.parts.config, &self.parts.secret),
            None => Ok(()),
        };
        if let Err(error) = renewed.and_then(|()| self.start_server(server, now)) {
            complain(&error.to_string());
            self.seats[server].fail_to_start(now);
        }
    }

    pub(super) fn server_ended(&mut self, server: usize) {
        self.read_reports(server);
        if let Some(life) = &self.seats[server].life {
            let [pidfd, channel] = life.descriptors();
            self.poller.remove(pidfd);
            self.poller.remove(channel);
        }
        let had_begun = self.seats[server].has_begun();
        let Some(death) = self.seats[server].bury(now()) else { return };
        self.say_gone(server, had_begun);
        if self.is_dismissed(server) {
            self.leave_to_its_end(server);
            return self.go_on_without(server);
        }
        self.go_on_without(server);
        if self.starting {
            let remedy = "look at what it said above";
            let error = || Error::new("start a server", death.why, remedy);
            self.refusal.get_or_insert_with(error);
            return;
        }
        if self.ending.is_some() {
            self.end_the_others();
        }
        if self.ending.is_some() && death.clean {
            return;
        }
        let (pid, why, Delay { us, is_loop }) = (death.pid, death.why, death.delay);
        if self.ending.is_some() {
            return complain(&format!("server {server} (process {pid}) ended: {why}"));
        }
        let wait_ms = us / 1000;
        complain(&format!(
            "server {server} (process {pid}) ended: {why}; starting it again in {wait_ms} ms"
        ));
        if is_loop {
            let longest_s = backoff::LONGEST_US / 1_000_000;
            complain(&format!(
                "server {server} dies again and again; going on, every {longest_s} s in the end"
            ));
        }
    }

    /// Everyone who used a server hears that it is gone.
    fn say_gone(&mut self, server: usize, had_begun: bool) {
        if let Some(transport) = self.seats[server].spec.transport {
            let epoch = self.epoch.of(transport);
            if epoch::is_up(epoch.get()) {
                epoch.set(epoch.get() + 1);
            }
        }
        if !had_begun {
            return;
        }
        let gone = &self.seats[server].spec;
        for seat in self.seats.iter().filter(|seat| seat.has_begun()) {
            if roles::talk(&seat.spec, gone) {
                tell(seat, &Order::PeerGone { server: gone.number }, &[]);
            }
        }
    }

    /// Link servers and managers that are nothing else end when no transport server needs them any
    /// more.
    pub(super) fn end_the_others(&self) {
        let lives = |seat: &&Seat| seat.life.is_some();
        if self.seats.iter().filter(lives).any(|seat| seat.spec.transport.is_some()) {
            return;
        }
        for seat in self.seats.iter().filter(lives) {
            tell(seat, &Order::End { patience_us: 0 }, &[]);
        }
    }

    pub(super) fn read_reports(&mut self, server: usize) {
        loop {
            let Some(life) = &self.seats[server].life else { return };
            match orders::receive(life.channel.raw(), orders::decode_report) {
                Ok((report, fds)) => self.take_report(server, report, fds),
                Err(Errno::EAGAIN) => return,
                // Its end follows.
                Err(Errno::EPIPE) => return self.poller.remove(life.channel.raw()),
                Err(_) => {
                    complain(&format!("server {server} speaks nonsense; ending it"));
                    life.kill();
                    return self.poller.remove(life.channel.raw());
                }
            }
        }
    }

    fn take_report(&mut self, server: usize, report: Report, fds: orders::Fds) {
        let seat = &mut self.seats[server];
        match report {
            Report::Ready { confinement, link } => {
                if let (Some(life), [Some(status), Some(bell), ..]) = (&mut seat.life, fds) {
                    (life.confinement, life.link) = (Some(confinement), link);
                    life.waking = Some(Waking { status, bell });
                    self.server_ready(server);
                }
            }
            Report::Failed { what, why, remedy } => {
                let error = Error::new(what, why, remedy);
                match self.starting {
                    true => drop(self.refusal.get_or_insert(error)),
                    false => complain(&error.to_string()),
                }
            }
            Report::Listening(record) => {
                let (name, known) = ((record.domain, record.cookie), &mut seat.listeners);
                if known.len() < LISTENERS_MAX || known.contains_key(&name) {
                    known.insert(name, record.clone());
                    self.tell_beside(server, &record, true);
                }
            }
            Report::NotListening { domain, cookie } => {
                if let Some(record) = seat.listeners.remove(&(domain, cookie)) {
                    self.tell_beside(server, &record, false);
                }
            }
            Report::Known {} => self.note_known(server),
            Report::Opened {} => self.note_done(server, Phase::Opening),
            Report::Shared {} => self.note_done(server, Phase::Sharing),
            Report::Parted { buckets, stubs } => self.note_parted(server, buckets, stubs),
            Report::Moved { to, buckets } => self.note_moved(to, &buckets),
            Report::WantNotices { pid, namespace } => give_notices(seat, pid, namespace),
            Report::Attached {} => {
                if let [Some(pidfd), ..] = fds {
                    let id = self.users_seen;
                    self.users_seen += 1;
                    if self.poller.add(pidfd.raw(), Token::User(id)).is_ok() {
                        self.users.insert(id, pidfd);
                    }
                }
            }
            Report::Used { used } => seat.used = used,
            Report::Forbidden { number } => {
                if let Some(life) = &mut seat.life {
                    life.forbidden = Some(number);
                }
            }
        }
    }

    /// A server says that it runs. The first time all wait for each other, so that the first
    /// application finds them complete.
    fn server_ready(&mut self, server: usize) {
        if !self.starting {
            return self.join(server);
        }
        if self.seats.iter().all(Seat::is_ready) {
            self.starting = false;
            for one in 0..self.seats.len() {
                for other in 0..one {
                    self.introduce(other, one);
                }
            }
            for server in 0..self.seats.len() {
                self.begin(server);
            }
        }
    }

    /// A server joins those that run, once all of those know that there is such a one.
    pub(super) fn join(&mut self, server: usize) {
        if !self.all_know() {
            return;
        }
        for other in 0..self.seats.len() {
            if other != server && self.seats[other].has_begun() {
                self.introduce(server, other);
            }
        }
        self.begin(server);
        self.go_on_with(server);
    }

    /// A server's epoch begins.
    fn begin(&mut self, server: usize) {
        let seat = &mut self.seats[server];
        if let Some(transport) = seat.spec.transport {
            let epoch = self.epoch.of(transport);
            epoch.set(epoch::next_up(epoch.get()));
        }
        if let Some(life) = &mut seat.life {
            life.begun = true;
        }
        tell(seat, &Order::Begin {}, &[]);
    }

    /// Gives two servers that talk the rings between them.
    fn introduce(&self, one: usize, other: usize) {
        let (one, other) = (&self.seats[one], &self.seats[other]);
        if !roles::talk(&one.spec, &other.spec) {
            return;
        }
        let frames = roles::share_frames(&one.spec, &other.spec);
        let segment = match PeerSegment::create(frames) {
            Ok(segment) => segment,
            Err(errno) => {
                let (one, other) = (one.number(), other.number());
                return complain(&format!("servers {one} and {other} cannot talk: {errno}"));
            }
        };
        for (seat, peer) in [(one, other), (other, one)] {
            let waking = peer.life.as_ref().and_then(|life| life.waking.as_ref());
            let Some(Waking { status, bell }) = waking else { return };
            let order = Order::Peer { server: peer.number(), frames };
            tell(seat, &order, &[segment.fd(), status.raw(), bell.raw()]);
        }
    }
}

/// Says something to a server. One that does not listen is of no more use.
pub(super) fn tell(seat: &Seat, order: &Order, fds: &[RawFd]) {
    let Some(life) = &seat.life else { return };
    match orders::send(life.channel.raw(), order, fds) {
        // Its end follows.
        Ok(()) | Err(Errno::EPIPE) => {}
        Err(_) => {
            complain(&format!("server {} does not listen; ending it", seat.number()));
            life.kill();
        }
    }
}

/// The server may not open what tells the ends of sockets in a process's network namespace.
fn give_notices(seat: &Seat, pid: i32, namespace: u64) {
    let Some(life) = &seat.life else { return };
    let socket = diag::open_in(pid, namespace);
    let order = Order::Notices { granted: socket.is_some() };
    let fds: Vec<i32> = socket.iter().map(Fd::raw).collect();
    // One that does not listen hears its own time-out.
    let _: Result<(), Errno> = orders::send(life.channel.raw(), &order, &fds);
}
