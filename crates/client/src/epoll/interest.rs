//! What an epoll object waits for on Haypile sockets: one registration for each descriptor, the
//! list of those that may be ready, and the watchers that the service reports to, one for each
//! server that knows one of the sockets (`posts.rs`).
//!
//! A registration is on the ready list once its socket was reported, added or modified. A wait
//! looks at the socket's present state, so the list may hold too many but never too few:
//! level-triggered registrations stay on it until they are found not ready, edge-triggered ones
//! leave it when they are given out, one-shot ones are disarmed. Nothing here is linear in the
//! number of registrations but walks over one socket's own.

mod registration;

use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;

use haypile_shm::Errno;
use haypile_shm::sys::{self, EpollEvent};

use registration::Registration;

use super::posts::{self, Name, Posts};
use super::{ALARM, MARK, mark};
use crate::attach;
use crate::entry::{self, Phase, Pinned, Socket, flag};
use crate::internal::{Bell, Internal};
use crate::{accept, datagram, following, fork, readiness};

const EDGE: u32 = libc::EPOLLET as u32;
const ONE_SHOT: u32 = libc::EPOLLONESHOT as u32;
const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
const NONE: u32 = u32::MAX;

pub(super) type Map<K, V = u32> = HashMap<K, V, foldhash::fast::RandomState>;

/// The interest of one epoll object.
#[derive(Debug, Default)]
pub(super) struct Interest {
    registrations: Vec<Registration>,
    free: Vec<u32>,
    /// By descriptor and socket, the kernel's own key.
    by_key: Map<(RawFd, u32)>,
    /// First registration of a socket.
    by_socket: Map<u32>,
    ready: VecDeque<u32>,
    /// Those whose connection has moved to another server and could not be followed yet.
    behind: Vec<u32>,
    /// UDP sockets that are to be opened at another server. That is done without the lock of the set, which whoever
    /// opens them takes to have them watched there.
    stranded: Vec<u32>,
    /// Listeners, to register as an acceptor of.
    listeners: Vec<u32>,
    posts: Posts,
    /// Records of listeners at further servers: whose, and which.
    further: Vec<(u32, Name)>,
    alarm: Option<Alarm>,
    alarm_is_set: bool,
    /// Whose watchers and alarm these are ([`fork::generation`]).
    generation: u32,
}

/// A doorbell of which this process holds both ends.
#[derive(Debug)]
struct Alarm {
    bell: Bell,
    rope: Internal,
}

impl Interest {
    // --- the watcher and the alarm -------------------------------------------------------------

    /// Puts the watchers in order: their servers may have died, or be another process's.
    pub(super) fn ensure_watchers(&mut self, epoll: RawFd) -> Result<(), Errno> {
        let generation = fork::generation();
        if std::mem::replace(&mut self.generation, generation) != generation {
            self.forget_watchers();
        }
        if self.posts.is_empty() {
            // The home has a post even while no socket is known anywhere.
            let home = match attach::current() {
                Err(errno) if attach::is_awaited_by_child(errno) => attach::home(),
                attachment => attachment?.server(),
            };
            self.posts.expect(home);
            return self.ensure_post(epoll, home);
        }
        for at in (0..self.posts.len()).rev() {
            match self.posts.server_at(at) {
                Some(server) if attach::has_left(server) => self.close_post(epoll, server),
                Some(server) => self.ensure_post(epoll, server)?,
                None => {}
            }
        }
        Ok(())
    }

    /// A server has left: nobody reports from there, and what its sockets are now shows in themselves.
    fn close_post(&mut self, epoll: RawFd, server: u16) {
        self.posts.close(epoll, server);
        self.further.retain(|(_, name)| name.server != server);
        self.push_all();
    }

    /// Makes the watcher for a server, if there is none, and tells the server of everything that it
    /// knows.
    fn ensure_post(&mut self, epoll: RawFd, server: u16) -> Result<(), Errno> {
        let attachment = match attach::of(server) {
            Ok(attachment) => attachment,
            Err(_) if server != attach::home() => return Ok(()),
            Err(errno) if attach::is_awaited_by_child(errno) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        if self.posts.is_kept(&attachment) {
            return Ok(());
        }
        if attachment.is_gone() {
            // There is nobody to report to one. That there never will be is told once.
            if attachment.fate() == attach::Fate::Over && self.posts.tell_of_end(server) {
                self.push_all();
            }
            return Ok(());
        }
        self.posts.leave(epoll, server);
        self.tie_all(&attachment);
        match self.posts.enter(epoll, &attachment) {
            // It has died, too.
            Err(_) if attachment.is_gone() => return Ok(()),
            entered => entered?,
        }
        for index in 0..self.registrations.len() as u32 {
            let registration = &self.registrations[index as usize];
            if registration.live && self.knows(registration.socket, registration.name, server) {
                self.watch(index);
                self.push_ready(index);
            }
        }
        Ok(())
    }

    /// Whether a server knows the socket of a registration, or nobody does yet.
    fn knows(&self, socket: u32, name: Option<Name>, server: u16) -> bool {
        name.is_none_or(|name| name.server == server)
            || self.further.iter().any(|(of, name)| *of == socket && name.server == server)
    }

    /// The names of records at the server of this attachment are those that it gives them now.
    fn tie_all(&mut self, attachment: &attach::Attachment) {
        let server = attachment.server();
        self.posts.forget_names(server);
        self.further.retain(|(_, name)| name.server != server);
        for index in 0..self.registrations.len() {
            let registration = &self.registrations[index];
            let Some(socket) = entry::pin(registration.socket).filter(|_| registration.live) else {
                continue;
            };
            let name = Name::of(&socket, attachment);
            if socket.has(flag::EVERYWHERE) && socket.server() != server {
                self.note_further(socket.index(), name);
            } else if socket.server() == server || !socket.has_record() {
                self.registrations[index].name = name;
                self.posts.tie(name, socket.index());
            }
        }
    }

    fn note_further(&mut self, socket: u32, name: Option<Name>) {
        if let Some(name) = name {
            self.posts.tie(Some(name), socket);
            if !self.further.contains(&(socket, name)) {
                self.further.push((socket, name));
            }
        }
    }

    /// In a forked child: the watchers are the parent's, and their bells stay in the kernel's set.
    fn forget_watchers(&mut self) {
        self.posts.forget();
        self.alarm = None;
        self.alarm_is_set = false;
    }

    /// Takes the rings of the doorbells. `heard`: the kernel has just said that one of them rings.
    pub(super) fn quiet(&mut self, epoll: RawFd, heard: bool) {
        // Every socket has something to say about the death of a server.
        if self.posts.quiet(epoll, heard) {
            self.push_all();
        }
    }

    fn push_all(&mut self) {
        for index in 0..self.registrations.len() as u32 {
            self.push_ready(index);
        }
    }

    /// Takes the alarm back.
    pub(super) fn silence(&mut self) {
        if let Some(alarm) = &self.alarm {
            alarm.bell.drain();
        }
        self.alarm_is_set = false;
    }

    /// Makes the set readable while events are at hand and `others` wait for it, and has the
    /// service ring for what comes.
    pub(super) fn settle(&mut self, epoll: RawFd, others: bool) {
        if !others {
            if self.alarm_is_set {
                self.silence();
            }
            return;
        }
        if !self.posts.any_watcher() {
            return;
        }
        self.posts.prepare_sleep();
        let at_hand = self.posts.has_news() || self.is_any_ready(epoll);
        if at_hand && !self.alarm_is_set {
            self.ring_alarm(epoll);
        } else if !at_hand && self.alarm_is_set {
            self.silence();
        }
    }

    fn ring_alarm(&mut self, epoll: RawFd) {
        if self.alarm.is_none() {
            let (Ok((bell, rope)), Ok(attachment)) = (Bell::pair(), attach::current()) else {
                return;
            };
            let (events, data) = (libc::EPOLLIN as u32, mark(ALARM, attachment.process_mark()));
            if sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, bell.raw(), events, data).is_err() {
                return;
            }
            self.alarm = Some(Alarm { bell, rope: Internal::new(rope) });
        }
        if let Some(alarm) = &self.alarm {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            self.alarm_is_set = sys::send(alarm.rope.raw(), &[1], flags).is_ok();
        }
    }

    /// Announces sleep. False: there is something to look at first.
    pub(super) fn prepare_sleep(&mut self) -> bool {
        self.posts.prepare_sleep();
        !self.posts.has_news() && self.ready.is_empty()
    }

    /// Whether waits are to be short: a server is dead, and what follows is not known yet, or a
    /// connection is out of reach.
    pub(super) fn is_uncertain(&self) -> bool {
        self.posts.is_uncertain() || !self.behind.is_empty() || !self.stranded.is_empty()
    }

    /// The UDP sockets that are to be opened at another server.
    pub(super) fn take_stranded(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.stranded)
    }

    /// It was tried: those that could not be opened yet are to be tried again, the others have something to say.
    pub(super) fn give_back(&mut self, stranded: impl Iterator<Item = (u32, bool)>) {
        for (socket, done) in stranded {
            if done {
                self.chain_of(socket).into_iter().for_each(|index| self.push_ready(index));
            } else if !self.stranded.contains(&socket) {
                self.stranded.push(socket);
            }
        }
    }

    /// Sockets have changed while this set could not hear of it.
    pub(super) fn catch_up(&mut self, epoll: RawFd) {
        for index in 0..self.registrations.len() as u32 {
            let registration = &self.registrations[index as usize];
            let Some(socket) = entry::pin(registration.socket).filter(|_| registration.live) else {
                continue;
            };
            let listens = socket.phase() == Phase::Listening;
            if listens || !posts::is_tied(registration.name, socket.full_name()) {
                self.tie(epoll, index, &socket);
            }
        }
    }

    /// The sleep is over.
    pub(super) fn awake(&mut self) {
        self.posts.awake();
    }

    /// The doorbells' numbers.
    pub(super) fn bells(&self) -> Vec<RawFd> {
        self.posts.bells()
    }

    /// Whether a look is worth it.
    pub(super) fn has_news(&mut self) -> bool {
        !self.ready.is_empty() || self.posts.has_news()
    }

    // --- registrations -------------------------------------------------------------------------

    fn find(&self, fd: RawFd, socket: &Pinned) -> Option<u32> {
        self.by_key.get(&(fd, socket.index())).copied()
    }

    /// `EPOLL_CTL_ADD`
    pub(super) fn add(
        &mut self,
        epoll: RawFd,
        fd: RawFd,
        socket: &Pinned,
        events: u32,
        data: u64,
    ) -> Result<(), Errno> {
        if self.find(fd, socket).is_some() {
            return Err(Errno::EEXIST);
        }
        let registration = Registration {
            fd,
            socket: socket.index(),
            events,
            data,
            name: None,
            armed: true,
            queued: false,
            by_answer: false,
            given: None,
            live: true,
            in_kernel: false,
            kernel_ready: 0,
            next: NONE,
        };
        let index = self.place(registration);
        self.by_key.insert((fd, socket.index()), index);
        let next = self.by_socket.insert(socket.index(), index).unwrap_or(NONE);
        self.registrations[index as usize].next = next;
        self.tie(epoll, index, socket);
        Ok(())
    }

    fn place(&mut self, registration: Registration) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.registrations[index as usize] = registration;
                index
            }
            None => {
                self.registrations.push(registration);
                self.registrations.len() as u32 - 1
            }
        }
    }

    /// Ties a registration to the record of its socket, if there is one by now, and looks at it.
    fn tie(&mut self, epoll: RawFd, index: u32, socket: &Socket) {
        let attachment = socket.attachment();
        let name = attachment.ok().and_then(|attachment| Name::of(socket, &attachment));
        self.join(epoll, name);
        let registration = &mut self.registrations[index as usize];
        let number = registration.socket;
        let before = std::mem::replace(&mut registration.name, name);
        if before != name {
            self.posts.untie(before, number);
            self.posts.tie(name, number);
        }
        if socket.has(flag::EVERYWHERE) {
            self.tie_further(epoll, number, socket);
        }
        if socket.phase() == Phase::Listening {
            if !self.listeners.contains(&index) {
                self.listeners.push(index);
            }
            socket.set(flag::WATCHED);
            self.put_in_kernel(epoll, index, socket);
        } else if socket.has(flag::DATAGRAM) {
            self.put_in_kernel(epoll, index, socket);
        }
        self.watch(index);
        self.push_ready(index);
    }

    /// The connection of a registration may have moved to another server since it was tied, and a UDP socket may have
    /// been opened at another: that is to report it then, to all registrations of the socket. True: it has.
    #[inline]
    fn keep_up(&mut self, epoll: RawFd, index: u32, socket: &Pinned) -> bool {
        (following::count() != 0 || socket.has(flag::DATAGRAM))
            && self.keep_up_with_moves(epoll, index, socket)
    }

    fn keep_up_with_moves(&mut self, epoll: RawFd, index: u32, socket: &Pinned) -> bool {
        let name = self.registrations[index as usize].name;
        let moves = socket.phase() == Phase::Stream || socket.has(flag::DATAGRAM);
        let moved = moves && !posts::is_tied(name, socket.full_name());
        if moved {
            self.tie_anew(epoll, socket);
        }
        moved
    }

    #[cold]
    fn tie_anew(&mut self, epoll: RawFd, socket: &Pinned) {
        for index in self.chain_of(socket.index()) {
            self.tie(epoll, index, socket);
        }
    }

    /// A server reports to this set from now on.
    fn join(&mut self, epoll: RawFd, name: Option<Name>) {
        if let Some(name) = name
            && !self.posts.has(name.server)
        {
            // What cannot be watched is looked at, as while a server is dead.
            self.posts.expect(name.server);
            let _: Result<(), Errno> = self.ensure_post(epoll, name.server);
        }
    }

    /// Ties a listener to its records at further servers.
    fn tie_further(&mut self, epoll: RawFd, number: u32, socket: &Socket) {
        for server in attach::all_from_home().filter(|server| *server != socket.server()) {
            if !self.posts.has(server) {
                self.posts.expect(server);
                let _: Result<(), Errno> = self.ensure_post(epoll, server);
            }
            if let Ok(attachment) = attach::of(server) {
                self.note_further(number, Name::of(socket, &attachment));
            }
        }
    }

    /// The kernel's half of a dual listener or a UDP socket waits in the kernel's set.
    fn put_in_kernel(&mut self, epoll: RawFd, index: u32, socket: &Socket) {
        let registration = &mut self.registrations[index as usize];
        let wished = registration.events & !(EDGE | ONE_SHOT | EXCLUSIVE);
        let half = if socket.has(flag::DATAGRAM) {
            datagram::kernel_wish(socket, wished)
        } else {
            socket.has(flag::DUAL).then_some(wished & libc::EPOLLIN as u32)
        };
        let Some(half) = half else {
            if std::mem::take(&mut registration.in_kernel) {
                let fd = registration.fd;
                let _: Result<(), Errno> = sys::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, 0, 0);
            }
            return;
        };
        let events = half | registration.events & (EDGE | ONE_SHOT | EXCLUSIVE);
        let data = MARK | u64::from(index);
        let operation =
            if registration.in_kernel { libc::EPOLL_CTL_MOD } else { libc::EPOLL_CTL_ADD };
        let put = sys::epoll_ctl(epoll, operation, registration.fd, events, data);
        registration.in_kernel |= put.is_ok();
    }

    /// `EPOLL_CTL_MOD`
    pub(super) fn modify(
        &mut self,
        epoll: RawFd,
        fd: RawFd,
        socket: &Pinned,
        events: u32,
        data: u64,
        exclusive: bool,
    ) -> Result<(), Errno> {
        let index = self.find(fd, socket).ok_or(Errno::ENOENT)?;
        let registration = &mut self.registrations[index as usize];
        if exclusive || registration.events & EXCLUSIVE != 0 {
            return Err(Errno::EINVAL);
        }
        self.keep_up(epoll, index, socket);
        let before = self.wanted(index);
        let registration = &mut self.registrations[index as usize];
        registration.events = events;
        registration.data = data;
        registration.armed = true;
        if registration.in_kernel {
            self.put_in_kernel(epoll, index, socket);
        }
        if self.wanted(index) & !before != 0 {
            self.watch(index);
        }
        self.push_ready(index);
        Ok(())
    }

    /// `EPOLL_CTL_DEL`. True: no registration of the socket is left.
    pub(super) fn remove(
        &mut self,
        epoll: RawFd,
        fd: RawFd,
        socket: &Pinned,
    ) -> Result<bool, Errno> {
        let index = self.find(fd, socket).ok_or(Errno::ENOENT)?;
        self.take_out(epoll, index, true);
        Ok(!self.by_socket.contains_key(&socket.index()))
    }

    fn take_out(&mut self, epoll: RawFd, index: u32, tell: bool) {
        let registration = &mut self.registrations[index as usize];
        registration.live = false;
        let (fd, socket, name) = (registration.fd, registration.socket, registration.name);
        if registration.in_kernel {
            let _: Result<(), Errno> = sys::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, 0, 0);
        }
        if !registration.queued {
            self.free.push(index);
        }
        self.by_key.remove(&(fd, socket));
        self.listeners.retain(|listener| *listener != index);
        self.untie(index, socket);
        if !self.by_socket.contains_key(&socket) {
            self.give_up(name, socket, tell);
            while let Some(at) = self.further.iter().position(|(of, _)| *of == socket) {
                let (_, name) = self.further.swap_remove(at);
                self.give_up(Some(name), socket, tell);
            }
        }
    }

    /// A record is nothing to this set any more.
    fn give_up(&mut self, name: Option<Name>, socket: u32, tell: bool) {
        self.posts.untie(name, socket);
        if tell && let Some(name) = name {
            self.posts.unwatch(name);
        }
    }

    /// Takes a registration out of the chain of its socket.
    fn untie(&mut self, index: u32, socket: u32) {
        let after = self.registrations[index as usize].next;
        let Some(first) = self.by_socket.get(&socket).copied() else { return };
        if first == index {
            match after {
                NONE => drop(self.by_socket.remove(&socket)),
                after => drop(self.by_socket.insert(socket, after)),
            }
            return;
        }
        let mut at = first;
        while at != NONE {
            let next = self.registrations[at as usize].next;
            if next == index {
                self.registrations[at as usize].next = after;
                return;
            }
            at = next;
        }
    }

    /// What is wanted of the socket of a registration, over all of its registrations here.
    fn wanted(&self, index: u32) -> u32 {
        let mut wanted = self.registrations[index as usize].events;
        let mut at = self.first_of(self.registrations[index as usize].socket);
        while at != NONE {
            let registration = &self.registrations[at as usize];
            wanted |= registration.events;
            at = registration.next;
        }
        wanted
    }

    fn watch(&self, index: u32) {
        let registration = &self.registrations[index as usize];
        let mask = readiness::watch_mask(self.wanted(index));
        if let Some(name) = registration.name {
            self.posts.watch(name, mask);
        }
        for (_, name) in self.further.iter().filter(|(of, _)| *of == registration.socket) {
            self.posts.watch(*name, mask);
        }
    }

    fn first_of(&self, socket: u32) -> u32 {
        self.by_socket.get(&socket).copied().unwrap_or(NONE)
    }

    /// The registrations of a socket.
    fn chain_of(&self, socket: u32) -> Vec<u32> {
        let mut indices = Vec::new();
        let mut at = self.first_of(socket);
        while at != NONE {
            indices.push(at);
            at = self.registrations[at as usize].next;
        }
        indices
    }

    /// The socket is closed. (The service forgets its watches with it, unless it is shared.)
    pub(super) fn drop_socket(&mut self, epoll: RawFd, socket: u32) {
        let shared = entry::pin(socket).is_some_and(|pinned| pinned.has(flag::SHARED));
        for index in self.chain_of(socket) {
            self.take_out(epoll, index, shared);
        }
    }

    /// The socket is the kernel's: the kernel's set takes the registrations over.
    pub(super) fn hand_to_kernel(&mut self, epoll: RawFd, socket: u32) {
        for index in self.chain_of(socket) {
            let registration = &self.registrations[index as usize];
            let (fd, data) = (registration.fd, registration.data);
            let events = if registration.armed { registration.events } else { ONE_SHOT };
            self.take_out(epoll, index, false);
            let _: Result<(), Errno> = sys::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, events, data);
        }
    }

    /// The socket has a record now, or listens. False: nobody can be told to report it yet.
    pub(super) fn socket_changed(&mut self, epoll: RawFd, socket: u32) -> bool {
        let Some(pinned) = entry::pin(socket) else { return true };
        if self.ensure_watchers(epoll).is_err() {
            return false;
        }
        for index in self.chain_of(socket) {
            self.tie(epoll, index, &pinned);
        }
        true
    }

    /// The epoll object is gone.
    pub(super) fn clear(&mut self, epoll: u32) {
        for registration in self.registrations.iter().filter(|registration| registration.live) {
            if let Some(socket) = entry::pin(registration.socket) {
                socket.forget_epoll(epoll);
            }
        }
        // The watcher ends with all that it watched.
        *self = Interest::default();
    }

    // --- events --------------------------------------------------------------------------------

    fn push_ready(&mut self, index: u32) {
        let registration = &mut self.registrations[index as usize];
        registration.by_answer = false;
        if registration.live && registration.armed && !registration.queued {
            registration.queued = true;
            self.ready.push_back(index);
        }
    }

    /// The kernel reports the placeholder of a dual socket.
    pub(super) fn kernel_half_ready(&mut self, index: u32, events: u32) {
        let Some(registration) = self.registrations.get_mut(index as usize) else { return };
        registration.kernel_ready |= events;
        if let Some(socket) = entry::pin(registration.socket) {
            socket.set(flag::KERNEL_READY);
        }
        self.push_ready(index);
    }

    /// Takes what the service has reported, registers with listeners, and gives out up to
    /// `out.len()` events; returns how many.
    pub(super) fn collect(&mut self, epoll: RawFd, out: &mut [EpollEvent]) -> usize {
        self.register();
        self.take_reports();
        while let Some(index) = self.behind.pop() {
            self.push_ready(index);
        }
        let mut given = 0;
        // Once round the list: level-triggered registrations go back to its end.
        for _ in 0..self.ready.len() {
            if given == out.len() {
                break;
            }
            let Some(index) = self.ready.pop_front() else { break };
            if let Some(event) = self.event_of(epoll, index) {
                out[given] = event;
                given += 1;
            }
        }
        given
    }

    fn register(&mut self) {
        for index in &self.listeners {
            if let Some(socket) = entry::pin(self.registrations[*index as usize].socket) {
                let _: Result<(), Errno> = accept::register(&socket);
            }
        }
    }

    fn take_reports(&mut self) {
        let (registrations, ready) = (&mut self.registrations, &mut self.ready);
        let by_socket = &self.by_socket;
        self.posts.take_reports(|socket, happened| {
            let mut at = by_socket.get(&socket).copied().unwrap_or(NONE);
            while at != NONE {
                let registration = &mut registrations[at as usize];
                registration.by_answer &= !happened;
                if registration.armed && !registration.queued {
                    registration.queued = true;
                    registration.by_answer = !happened;
                    ready.push_back(at);
                }
                at = registration.next;
            }
        });
    }

    /// Whether a registration on the ready list is ready; takes those off that are not, up to the
    /// first that is.
    fn is_any_ready(&mut self, epoll: RawFd) -> bool {
        while let Some(index) = self.ready.front().copied() {
            let registration = &self.registrations[index as usize];
            if registration.live && registration.armed && self.bits_of(epoll, index) != 0 {
                return true;
            }
            self.ready.pop_front();
            self.registrations[index as usize].queued = false;
            if !self.registrations[index as usize].live {
                self.free.push(index);
            }
        }
        false
    }

    /// What the socket of a registration is ready for, of what is wanted.
    fn bits_of(&mut self, epoll: RawFd, index: u32) -> u32 {
        let registration = &self.registrations[index as usize];
        let Some(socket) = entry::pin(registration.socket) else { return 0 };
        let events = registration.events;
        let mut bits = readiness::of_socket(&socket, events);
        if self.keep_up(epoll, index, &socket) {
            // After whoever reports it now was told to.
            bits = readiness::of_socket(&socket, events);
        }
        // Whatever the old record showed: nobody reports it any more.
        if socket.is_moved() && !self.behind.contains(&index) {
            self.behind.push(index);
        }
        let stranded = socket.has(flag::DATAGRAM)
            && !socket.has(flag::UNOPENED)
            && datagram::is_stranded(&socket);
        if stranded && !self.stranded.contains(&socket.index()) {
            self.stranded.push(socket.index());
        }
        let registration = &self.registrations[index as usize];
        if socket.has(flag::DATAGRAM) {
            bits |= registration.kernel_ready;
        } else if registration.kernel_ready != 0 {
            bits |= libc::EPOLLIN as u32;
        }
        bits & (registration.events | ALWAYS)
    }

    /// What a registration from the ready list has to say now.
    fn event_of(&mut self, epoll: RawFd, index: u32) -> Option<EpollEvent> {
        let registration = &mut self.registrations[index as usize];
        if !registration.live {
            registration.queued = false;
            self.free.push(index);
            return None;
        }
        if !registration.armed {
            registration.queued = false;
            return None;
        }
        // It counts as queued meanwhile, so that nothing puts it on the list.
        let bits = self.bits_of(epoll, index);
        let registration = &mut self.registrations[index as usize];
        registration.queued = false;
        registration.kernel_ready = 0;
        if bits == 0 || registration.is_told(bits) {
            return None;
        }
        let data = registration.data;
        if registration.events & ONE_SHOT != 0 {
            registration.armed = false;
        } else if registration.events & EDGE == 0 {
            registration.queued = true;
            self.ready.push_back(index);
        }
        Some(EpollEvent { events: bits, u64: data })
    }
}
