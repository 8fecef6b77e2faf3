//! Attaching processes: the control connections, from HELLO to the descriptors of memory.
//!
//! Called by `event_loop` when a control connection or the attach socket is readable. Every message
//! is one datagram of a known size; whoever sends another loses the connection. The life after
//! attaching is in `life`.

use std::os::fd::RawFd;

use haypile_shm::control::Received;
use haypile_shm::messages::{CHOSEN_HOME, ControlReply, ControlRequest};
use haypile_shm::spin;
use haypile_shm::sys::{self, Errno, Fd};
use haypile_shm::{BUILD_VERSION, Doorbell, Message, PROTOCOL_VERSION};

use crate::domains::Token as DomainToken;
use crate::homes::Place;
use crate::poller::{Poller, Token};
use crate::processes::{Connection, Process, program_name};
use crate::server::Core;
use crate::slab::Key;
use haypile_engine::control::connection_manager::ProcessId;
use haypile_engine::control::names::ProcessName;

/// File name of the attach socket in the control directory. It is transport server 0's; the others
/// have theirs beside it (`control::attach_path`).
pub const ATTACH_SOCKET: &str = "attach.sock";
/// New connections taken in one turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Messages read from one control connection in one turn.
const MESSAGES_PER_TURN: usize = 64;
/// Control connections in all, for each process that may attach.
const CONNECTIONS_PER_PROCESS: usize = 2;
/// How long a blocked call of an application spins before it sleeps, where there is more than one
/// core. (docs/decisions/0006)
const SPIN_US: u32 = 20;

/// A question about a placeholder that is answered after all rings have been drained once more.
#[derive(Debug)]
pub(crate) struct Adoption {
    connection: Key,
    placeholder: Fd,
    /// It is about a listener held since the server before; whether others may have it too.
    restores: Option<bool>,
}

/// Who says HELLO.
struct Guest {
    program: String,
    domain: DomainToken,
    /// Its name, or 0, and what it shows with it.
    name: u64,
    proof: u64,
}

impl Core {
    /// Takes new control connections from the attach socket.
    pub(crate) fn accept_connections(&mut self, attach: RawFd, poller: &Poller) {
        for _ in 0..ACCEPTS_PER_TURN {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            match sys::accept4(attach, flags) {
                Ok((fd, _)) => self.add_connection(fd, poller),
                Err(_) => return,
            }
        }
    }

    /// Takes a new control connection, from the attach socket, a parent or the supervisor's door.
    pub(crate) fn add_connection(&mut self, fd: Fd, poller: &Poller) {
        let most = self.limits.processes as usize * CONNECTIONS_PER_PROCESS;
        if self.processes.connections.len() >= most {
            self.counters.refused_attaches += 1;
            return;
        }
        let raw = fd.raw();
        let key =
            self.processes.connections.insert(Connection { fd, process: None, sent_home: false });
        if poller.add(raw, Token::Connection(key.index())).is_err() {
            self.processes.connections.remove(key);
        }
    }

    /// Reads what came on a control connection.
    pub(crate) fn read_connection(&mut self, index: u32, poller: &Poller) {
        let Some((key, connection)) = self.processes.connections.at(index) else { return };
        let fd = connection.fd.raw();
        for _ in 0..MESSAGES_PER_TURN {
            let outcome = match receive(fd) {
                Ok(received) => self.handle_control(key, received, poller),
                Err(Errno::EAGAIN) => return,
                Err(errno) => Err(errno),
            };
            if outcome.is_err() {
                return self.drop_connection(key, poller);
            }
        }
    }

    /// Gives a control connection up. The process that used it lives on.
    pub(crate) fn drop_connection(&mut self, key: Key, poller: &Poller) {
        if let Some(connection) = self.processes.connections.remove(key) {
            // A child may hold a copy of the descriptor's file.
            poller.remove(connection.fd.raw());
        }
    }

    fn handle_control(
        &mut self,
        key: Key,
        received: Received,
        poller: &Poller,
    ) -> Result<(), Errno> {
        let request = ControlRequest::decode(&received.message).map_err(|_| Errno::EPROTO)?;
        let [first, ..] = received.fds;
        let connection = self.processes.connections.get(key).ok_or(Errno::ENOENT)?;
        let (fd, process) = (connection.fd.raw(), connection.process);
        let attached = process.ok_or(Errno::EPROTO);
        match request {
            ControlRequest::Hello { version, build, program, domain, name, proof } => {
                let same = (version, build) == (PROTOCOL_VERSION, BUILD_VERSION);
                let program = program_name(&program);
                let guest = Guest { program, domain, name, proof };
                self.hello(key, if same { Ok(guest) } else { Err(Errno::EPROTO) }, poller)
            }
            ControlRequest::NewProgram { name } => {
                let (pid, _) = (self.peer_process)(fd)?;
                self.note_new_program(pid, ProcessName::from_word(name));
                Ok(())
            }
            ControlRequest::AttachChild => {
                self.add_connection(first.ok_or(Errno::EPROTO)?, poller);
                Ok(())
            }
            ControlRequest::MapTable { index } => {
                let domain = self.domain_of(attached?);
                let segment = domain.and_then(|domain| domain.table.segment(index)?.fd());
                let errno = if segment.is_some() { 0 } else { libc::ENOENT };
                let reply = ControlReply::TableMapped { index, errno };
                send(fd, &reply.encode(), segment.as_slice())
            }
            ControlRequest::MapArena { index } => {
                let domain = self.domain_of(attached?);
                let segment = domain.and_then(|domain| domain.arena.segment_ahead(index)?.fd());
                let errno = if segment.is_some() { 0 } else { libc::ENOENT };
                let reply = ControlReply::ArenaMapped { index, errno };
                send(fd, &reply.encode(), segment.as_slice())
            }
            ControlRequest::NewWatcher { watcher } => {
                let bell = first.ok_or(Errno::EPROTO)?;
                let made = self.processes.open_watcher(attached?, watcher, bell);
                let errno = made.err().map_or(0, |errno| errno.0);
                let reply = ControlReply::WatcherMade { watcher, errno };
                send(fd, &reply.encode(), &[])
            }
            ControlRequest::DropWatcher { watcher } => {
                self.processes.close_watcher(attached?, watcher);
                Ok(())
            }
            ControlRequest::Adopt => {
                attached?;
                let placeholder = first.ok_or(Errno::EPROTO)?;
                self.adoptions.push(Adoption { connection: key, placeholder, restores: None });
                Ok(())
            }
            ControlRequest::Restored => attached.map(|process| self.end_inherited_of(process)),
            // Said to the supervisor alone.
            ControlRequest::Enter { .. } => Err(Errno::EPROTO),
            ControlRequest::Restore { shared } => {
                attached?;
                let placeholder = first.ok_or(Errno::EPROTO)?;
                let restores = Some(shared);
                self.adoptions.push(Adoption { connection: key, placeholder, restores });
                Ok(())
            }
        }
    }

    fn domain_of(&mut self, process: ProcessId) -> Option<&mut crate::domains::Domain> {
        let domain = self.processes.get(process)?.domain;
        self.store.domains.get_mut(domain)
    }

    /// HELLO: a process comes in, and is given its memory, or sent to its home. `guest`: who it is,
    /// if it speaks our version.
    fn hello(
        &mut self,
        key: Key,
        guest: Result<Guest, Errno>,
        poller: &Poller,
    ) -> Result<(), Errno> {
        let connection = self.processes.connections.get_mut(key).ok_or(Errno::ENOENT)?;
        if connection.process.is_some() {
            return Err(Errno::EPROTO);
        }
        let fd = connection.fd.raw();
        if let Ok(guest) = &guest
            && guest.name == 0
            && guest.proof != CHOSEN_HOME
            && !std::mem::replace(&mut connection.sent_home, true)
        {
            let home = self.homes.deal(guest.domain);
            let Place { server, servers } = self.homes.place();
            if home != server {
                let reply = ControlReply::Home { server: home, servers };
                return send(fd, &reply.encode(), &[]);
            }
        }
        match guest.and_then(|guest| self.admit(fd, guest, poller)) {
            Ok((process, domain, wake)) => {
                if let Some(connection) = self.processes.connections.get_mut(key) {
                    connection.process = Some(process);
                }
                self.welcome(fd, process, domain, &wake)
            }
            Err(errno) => {
                self.counters.refused_attaches += 1;
                let (version, build) = (PROTOCOL_VERSION, BUILD_VERSION);
                let reply = ControlReply::Refused { errno: errno.0, version, build };
                send(fd, &reply.encode(), &[])
            }
        }
    }

    /// The process runs another program: its old memory is gone, and with it what it was under
    /// another name than `now`. (All processes that cannot be seen from here share the number 0.)
    fn note_new_program(&mut self, pid: i32, now: ProcessName) {
        let same = |old: &Process| old.pid == pid && pid != 0 && old.name != now;
        let before: Vec<ProcessId> =
            self.processes.iter().filter(|(_, old)| same(old)).map(|(id, _)| id).collect();
        for id in before {
            self.note_exec(id);
        }
    }

    /// The name of a process that comes in: the one that it shows, or a new one. Whoever had it has
    /// ended, or is this process, which has lost the way by which it was attached.
    fn name(&mut self, pid: i32, guest: &Guest) -> Result<ProcessName, Errno> {
        if guest.name == 0 {
            let processes = &self.processes;
            return Ok(self.homes.name(|name| processes.named(name).is_some()));
        }
        let name = self.homes.check(guest.name, guest.proof, pid)?;
        if let Some(before) = self.processes.named(name) {
            self.note_exec(before);
        }
        Ok(name)
    }

    /// Makes the process's record; its number, domain, and the end of the wake socket to send it.
    fn admit(
        &mut self,
        fd: RawFd,
        guest: Guest,
        poller: &Poller,
    ) -> Result<(ProcessId, Key, Doorbell), Errno> {
        let (pid, pidfd) = (self.peer_process)(fd)?;
        let name = self.name(pid, &guest)?;
        self.note_new_program(pid, name);
        let Guest { program, domain: token, .. } = guest;
        if self.processes.len() >= self.limits.processes as usize {
            return Err(Errno::ENOBUFS);
        }
        let token = if token == DomainToken::default() { new_token()? } else { token };
        let (ours, theirs) = Doorbell::pair()?;
        let (wake_fd, pidfd_raw) = (ours.raw(), pidfd.raw());
        let domain_key = self.store.domains.join(
            token,
            self.limits.sockets_per_domain,
            self.limits.memory_per_domain,
        );
        let process = match Process::new(fd, pid, name, program, domain_key, pidfd, ours) {
            Ok(process) => process,
            Err(errno) => {
                self.store.domains.remove_if_unused(domain_key);
                return Err(errno);
            }
        };
        let id = self.processes.insert(process);
        if let Some(domain) = self.store.domains.get_mut(domain_key) {
            domain.processes += 1;
        }
        let added = poller
            .add(wake_fd, Token::Wake(id))
            .and_then(|()| poller.add(pidfd_raw, Token::Pidfd(id)));
        match added {
            Ok(()) => {
                self.tell_of_process(id);
                Ok((id, domain_key, theirs))
            }
            Err(errno) => {
                self.deaths.push(id);
                Err(errno)
            }
        }
    }

    fn welcome(
        &mut self,
        fd: RawFd,
        id: ProcessId,
        domain_key: Key,
        wake: &Doorbell,
    ) -> Result<(), Errno> {
        let status = self.status.fd();
        let domain = self.store.domains.get_mut(domain_key).ok_or(Errno::ENOENT)?;
        let token = domain.token;
        let table = domain.table.segment(0).and_then(|table| table.fd()).ok_or(Errno::ENOBUFS)?;
        let process = self.processes.get(id).ok_or(Errno::ENOENT)?;
        let Place { server, servers } = self.homes.place();
        let welcome = ControlReply::Welcome {
            epoch: self.era.epoch,
            process_id: id,
            spin_us: if spin::others_run() { SPIN_US } else { 0 },
            domain: token,
            server,
            servers,
            name: process.name.word(),
            proof: self.homes.proof(process.name, process.pid),
        };
        let fds = [process.channel.fd(), status, table, wake.raw(), self.era.fd()];
        send(fd, &welcome.encode(), &fds)
    }

    /// Answers questions about placeholders. Called after every ring has been drained since they
    /// were asked, because what was said about a socket before it was passed on is in a ring.
    pub(crate) fn answer_adoptions(&mut self, poller: &Poller) {
        for adoption in std::mem::take(&mut self.adoptions) {
            let Some(connection) = self.processes.connections.get(adoption.connection) else {
                continue;
            };
            let (fd, process) = (connection.fd.raw(), connection.process);
            let found = process.and_then(|process| match adoption.restores {
                Some(false) => self.restore(process, &adoption.placeholder),
                _ => self.adopt(process, &adoption.placeholder),
            });
            let reply = found.unwrap_or(ControlReply::Adopted {
                errno: libc::ENOENT,
                slot: haypile_shm::NO_SLOT,
                generation: 0,
                kind: haypile_shm::messages::SocketKind::Plain,
            });
            if send(fd, &reply.encode(), &[]).is_err() {
                self.drop_connection(adoption.connection, poller);
            }
        }
    }

    fn adopt(&mut self, process: ProcessId, placeholder: &Fd) -> Option<ControlReply> {
        let cookie = sys::so_cookie(placeholder.raw()).ok()?;
        let domain = self.processes.get(process)?.domain;
        let key = self.store.by_cookie_in(cookie, domain)?;
        // Without room in the witness the multicast alone has to tell the end.
        if self.diag.observe(placeholder).is_ok() {
            self.observed.insert(cookie);
        }
        self.inherited.take(key);
        self.share(process, key, cookie);
        let socket = self.store.sockets.get(key)?;
        let (slot, generation) = socket.name()?;
        Some(ControlReply::Adopted { errno: 0, slot, generation, kind: socket.kind })
    }
}

/// Receives a message without ever waiting: whether the descriptor blocks is not the service's to
/// say, because a child may have kept a copy of the end that it sent.
fn receive(socket: RawFd) -> Result<Received, Errno> {
    let mut bytes = [0; 64];
    let received = sys::recv_fds(socket, &mut bytes, libc::MSG_DONTWAIT)?;
    if received.len != bytes.len() || received.truncated {
        return Err(if received.len == 0 { Errno::EPIPE } else { Errno::EPROTO });
    }
    let mut message: Message = [0; 8];
    for (word, chunk) in message.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*chunk);
    }
    Ok(Received { message, fds: received.fds })
}

/// Sends a message without ever waiting. An application that leaves no room for its answers loses
/// the connection.
fn send(socket: RawFd, message: &Message, fds: &[RawFd]) -> Result<(), Errno> {
    let mut bytes = [0; 64];
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(message) {
        *chunk = word.to_ne_bytes();
    }
    sys::send_fds(socket, &bytes, fds, libc::MSG_DONTWAIT).map(drop)
}

/// A token that nobody can guess.
fn new_token() -> Result<DomainToken, Errno> {
    crate::server::random()
}
