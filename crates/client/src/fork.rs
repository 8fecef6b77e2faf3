//! What happens around `fork`, `exec` and `posix_spawn`.
//!
//! Before: every socket that the other process may get is marked as shared, with the cookie of its
//! placeholder, so that the service ends it by the kernel's word alone; then all locks are taken,
//! so that the child's copy of the books is whole. After, in the child: the channel, the watchers
//! and the offers are the parent's. The child attaches anew when it first needs the service, or at
//! once if it has a connection that it keeps over `exec`: such a child often locks itself in
//! (seccomp, chroot) before it uses it.
//!
//! Forks that bypass the hooks are noticed by a word in memory that the kernel wipes in a child.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use haypile_shm::sys;

use crate::attach::{self, Attachment};
use crate::descriptors::{self, Owner};
use crate::entry::{self, Phase, SOCKETS, flag};
use crate::{datagram, epoll, following, placeholder, places, poll, watchers};

/// A word that reads 0 in a child that no hook has run for.
static MARK: OnceLock<&'static AtomicU32> = OnceLock::new();

/// This process has made another while it was attached, or was made so.
static HAS_FORKED: AtomicBool = AtomicBool::new(false);

/// How many forks lie between this process and the one that loaded the library.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Tells what a process made from what it has of its parent.
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Whether another process may hold copies of our own descriptors.
pub(crate) fn has_forked() -> bool {
    HAS_FORKED.load(Ordering::Relaxed)
}

/// Gives the word in wiped memory; it is set here.
pub fn set_wiped_word(word: &'static AtomicU32) {
    word.store(1, Ordering::Relaxed);
    let _: Result<(), &AtomicU32> = MARK.set(word);
}

/// Notices a fork that ran no hooks.
#[inline]
pub(crate) fn notice_unseen() {
    if let Some(word) = MARK.get()
        && word.load(Ordering::Relaxed) == 0
    {
        unseen();
    }
}

#[cold]
fn unseen() {
    become_child();
}

/// `pthread_atfork`, prepare.
pub fn before_fork() {
    if !attach::is_attached() {
        return;
    }
    notice_unseen();
    HAS_FORKED.store(true, Ordering::Relaxed);
    placeholder::begin_spawn(true);
    epoll::hold_for_fork();
    poll::hold_for_fork();
    datagram::hold_for_fork();
    following::hold_for_fork();
    watchers::hold_for_fork();
    attach::hold_for_fork();
    placeholder::hold_for_fork();
    SOCKETS.hold_for_fork();
    places::hold_for_fork();
}

fn release() {
    places::release_after_fork();
    SOCKETS.release_after_fork();
    placeholder::release_after_fork();
    attach::release_after_fork();
    watchers::release_after_fork();
    following::release_after_fork();
    datagram::release_after_fork();
    poll::release_after_fork();
    epoll::release_after_fork();
}

/// `pthread_atfork`, parent.
pub fn after_fork_in_parent() {
    if attach::is_attached() {
        release();
        placeholder::end_spawn();
    }
}

/// `pthread_atfork`, child.
pub fn after_fork_in_child() {
    if attach::is_attached() {
        release();
        become_child();
        for server in servers_of_kept_connections() {
            // What goes wrong now goes wrong again, with an error, when the service is needed.
            let _: Result<attach::Current, haypile_shm::Errno> = attach::near(server);
        }
    }
}

fn become_child() {
    if let Some(word) = MARK.get() {
        word.store(1, Ordering::Relaxed);
    }
    HAS_FORKED.store(true, Ordering::Relaxed);
    GENERATION.fetch_add(1, Ordering::Relaxed);
    placeholder::forget_spawns();
    attach::set_forked();
    SOCKETS.for_each(|_, socket| {
        socket.end_naming();
        // Most are marked: what is not written is not copied.
        if socket.has_record() && !socket.has(flag::SHARED) {
            socket.set(flag::SHARED);
        }
    });
}

/// The servers of the open connections that would survive `exec`.
fn servers_of_kept_connections() -> Vec<u16> {
    let mut servers = Vec::new();
    descriptors::for_each_in(0, u32::MAX, |fd, owner| {
        if let Owner::Socket(index) = owner
            && let Some(socket) = entry::pin(index)
            && socket.phase() == Phase::Stream
            && sys::fcntl_getfd(fd).is_ok_and(|flags| flags & libc::FD_CLOEXEC == 0)
        {
            // One that has moved is looked for at once, too.
            if socket.is_moved() {
                drop(socket.present());
            }
            if !servers.contains(&socket.server()) {
                servers.push(socket.server());
            }
        }
    });
    servers
}

/// The child has a home of its own.
pub(crate) fn attached_in_child() {
    poll::forget_all();
    epoll::attached_in_child();
}

/// A process, or a child for itself, is attached to a server for the first time.
pub(crate) fn attached_to(attachment: &Attachment) {
    let server = attachment.server();
    watchers::forget_all(server);
    SOCKETS.for_each(|_, socket| {
        if let Some(stream) = socket.stream()
            && stream.memory.server() == server
        {
            stream.reset_after_fork(attachment.process_id());
        }
    });
}

/// This process has a new channel with a server: the old one's descriptors were lost, or its server
/// is dead. What is held by locks that another thread has is put in order when that looks at it
/// next.
pub(crate) fn attached_again(server: u16) {
    watchers::forget_all(server);
    poll::forget_all();
    epoll::attached_again();
}

/// Before `exec`: what survives it is marked as shared.
pub fn before_exec() {
    before_spawn(false);
}

/// Before another program is started: what it may inherit is marked as shared; everything, if file
/// actions may move descriptors.
pub fn before_spawn(all: bool) {
    if attach::is_attached() {
        placeholder::begin_spawn(all);
    }
}

/// After it was started, or an `exec` has failed.
pub fn after_spawn() {
    if attach::is_attached() {
        placeholder::end_spawn();
    }
}

/// Looks for placeholders among the descriptors that this process was started with.
pub fn adopt_inherited() {
    if !attach::is_attached() {
        return;
    }
    const BLOCK: usize = 1024;
    let limit = sys::rlimit_nofile().map_or(1024, |(soft, _)| soft).min(1 << 20) as usize;
    for first in (0..limit).step_by(BLOCK) {
        let mut fds: Vec<sys::PollFd> = (first..limit.min(first + BLOCK))
            .map(|fd| sys::PollFd { fd: fd as i32, events: 0, revents: 0 })
            .collect();
        if sys::ppoll(&mut fds, Some(std::time::Duration::ZERO)).is_err() {
            return;
        }
        let mut open = false;
        for entry in fds.iter().filter(|entry| entry.revents & libc::POLLNVAL == 0) {
            if descriptors::is_kernel(entry.fd) {
                open = true;
                placeholder::adopt(entry.fd);
            }
        }
        // Numbers are handed out from below: an empty block is the end of them.
        if !open {
            return;
        }
    }
}
