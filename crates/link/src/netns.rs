//! Owns network namespaces: making, entering and borrowing them, and a user namespace for callers
//! without root. Namespaces belong to threads (setns(2)), so whoever wants to keep its own works in
//! another one through [`run_in`]. Called by tests, the demo and benches; a namespace lives as long
//! as a process or a [`Namespace`] descriptor is in it. Read network_namespaces(7) first.

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use crate::error::LinkError;
use crate::netlink::Netlink;
use crate::sys;

/// The calling thread's network namespace, not the process's first thread's.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// A network namespace, kept alive by this descriptor.
#[derive(Debug)]
pub struct Namespace {
    descriptor: OwnedFd,
}

impl Namespace {
    /// Makes a new namespace (with its loopback down) without leaving the current one.
    ///
    /// # Errors
    /// EPERM without the right to; ENOSPC when the limit of namespaces is reached.
    pub fn create() -> Result<Namespace, LinkError> {
        on_own_thread(new_network_namespace)?
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// When /proc is not mounted or the process may open no more descriptors.
    pub fn open_current() -> Result<Namespace, LinkError> {
        Namespace::open(CURRENT)
    }

    /// The namespace behind a path: /proc/PID/ns/net or a name under /run/netns.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &str) -> Result<Namespace, LinkError> {
        let file = File::open(path)
            .map_err(|error| LinkError::new(format!("open the namespace {path}"), error))?;
        Ok(Namespace { descriptor: file.into() })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Moves the calling thread (and threads it starts later) into a new network namespace.
///
/// # Errors
/// EPERM without the right to (CAP_SYS_ADMIN); ENOSPC when the limit of namespaces is reached.
pub fn new_network_namespace() -> Result<Namespace, LinkError> {
    sys::unshare(libc::CLONE_NEWNET)
        .map_err(|error| LinkError::new("make a network namespace", error))?;
    Namespace::open_current()
}

/// Moves the whole process into a new user namespace, where its user and group stay who they are,
/// and a new network namespace that it owns. It has all capabilities there; programs that it
/// executes get none unless they are handed on (`capabilities`). Needs no privileges; the process
/// must be single-threaded. `docs/decisions/0009` says why the user is not mapped to root.
///
/// # Errors
/// EINVAL when the process has several threads; EPERM or ENOSPC where the system forbids or limits
/// user namespaces.
pub fn new_user_and_network_namespace() -> Result<Namespace, LinkError> {
    let (user, group) = sys::effective_user_and_group();
    sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)
        .map_err(|error| LinkError::new("make a user and network namespace", error))?;
    // Without privileges outside, setgroups must be given up before groups may be mapped
    // (user_namespaces(7)).
    write_proc("/proc/self/setgroups", "deny")?;
    write_proc("/proc/self/uid_map", &format!("{user} {user} 1"))?;
    write_proc("/proc/self/gid_map", &format!("{group} {group} 1"))?;
    Namespace::open_current()
}

/// Moves the calling thread into an existing network namespace.
///
/// # Errors
/// EPERM without the right to; EINVAL when the descriptor is not a network namespace.
pub fn enter(namespace: BorrowedFd<'_>) -> Result<(), LinkError> {
    sys::set_network_namespace(namespace)
        .map_err(|error| LinkError::new("enter the network namespace", error))
}

/// Sets the loopback interface of the calling thread's namespace up.
///
/// # Errors
/// When the caller may not.
pub fn loopback_up() -> Result<(), LinkError> {
    let mut netlink = Netlink::open()?;
    let loopback = netlink.link_by_name("lo")?;
    netlink.set_up(loopback.index)
}

/// Runs `work` in another network namespace, on a thread of its own, and waits for its result.
/// Sockets and ports that it opens stay in that namespace wherever they are used later.
///
/// # Errors
/// When the thread cannot be started or the namespace cannot be entered.
///
/// # Panics
/// When `work` panics, with the same payload.
pub fn run_in<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, LinkError> {
    on_own_thread(move || {
        enter(namespace)?;
        Ok(work())
    })?
}

/// Runs `work` on a thread that ends with it, so that the caller's namespace stays as it is.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("namespace".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|error| LinkError::new("start a thread for the namespace", error))?;
        match worker.join() {
            Ok(result) => Ok(result),
            Err(payload) => std::panic::resume_unwind(payload),
        }
    })
}

fn write_proc(path: &str, text: &str) -> Result<(), LinkError> {
    fs::write(path, text).map_err(|error| LinkError::new(format!("write {path}"), error))
}
