//! Owns [`LinkError`], the one error of this crate's set-up calls: what was tried, on which object,
//! what the system said and what to do about it. Every function that makes or changes an interface,
//! a namespace or a socket returns it; the data path never does (it counts). Read `netlink.rs` and
//! `tap.rs` for its producers.

use std::fmt;
use std::io;

/// The system refused a step of setting up a port: what was tried, why it failed, what to do.
///
/// Displays as one line, `cannot WHAT: WHY; ADVICE`.
#[derive(Debug)]
pub struct LinkError {
    attempt: String,
    source: io::Error,
    kernel_message: Option<String>,
}

impl LinkError {
    /// An error from the attempt (continues the sentence "cannot ...") and what the system answered.
    pub fn new(attempt: impl Into<String>, source: io::Error) -> LinkError {
        LinkError { attempt: attempt.into(), source, kernel_message: None }
    }

    /// As [`LinkError::new`], from a positive errno value.
    pub(crate) fn from_errno(attempt: impl Into<String>, errno: i32) -> LinkError {
        LinkError::new(attempt, io::Error::from_raw_os_error(errno))
    }

    /// Adds the sentence the kernel sent along with the error (netlink's extended acknowledgement).
    pub(crate) fn with_kernel_message(mut self, message: Option<String>) -> LinkError {
        self.kernel_message = message;
        self
    }

    /// What was tried; continues the sentence "cannot ...".
    pub fn attempt(&self) -> &str {
        &self.attempt
    }

    /// The errno behind the error, when the system gave one.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// What to do about it: half a sentence for the end of the error line.
    pub fn advice(&self) -> &'static str {
        let tried = |words: &str| self.attempt.contains(words);
        match self.errno() {
            Some(libc::EPERM | libc::EACCES) if tried("user and network namespace") => {
                "this system keeps them from plain users: see `haypile doctor`, run as root, or take \
                 --link wire:, which needs nothing"
            }
            Some(libc::EPERM) if tried("make a network namespace") => {
                "this takes CAP_SYS_ADMIN: run as root, let `haypile run` make a user namespace, or \
                 take --link packet:INTERFACE, which takes CAP_NET_RAW alone"
            }
            Some(libc::EPERM) if tried("packet socket") => {
                "this takes CAP_NET_RAW: run as root, let `haypile run` make a user namespace, or \
                 take --link wire:NAME, which needs nothing"
            }
            Some(libc::EPERM) => {
                "this takes CAP_NET_ADMIN: run as root, let `haypile run` make a user namespace, or \
                 take --link wire:NAME, which needs nothing"
            }
            Some(libc::EACCES) if tried("/dev/net/tun") => {
                "this user may not open the device: run as root or give it the device, or take --link \
                 packet: or wire:NAME, which do without"
            }
            Some(libc::EMSGSIZE) if tried("use the interface") => {
                "its MTU is smaller than that of the service: raise it, or give a smaller --mtu"
            }
            Some(libc::ENETDOWN) if tried("use the interface") => {
                "it is down, and setting it up takes CAP_NET_ADMIN: ip link set it up before"
            }
            Some(libc::EPROTONOSUPPORT) if tried("use the interface") => {
                "it carries no Ethernet frames: take another one"
            }
            Some(libc::EACCES) => {
                "check the permissions of the file, or that IPv6 is not switched off on the interface"
            }
            Some(libc::ENOENT) if self.attempt.contains("/dev/net/tun") => {
                "load the kernel module tun, or make the device: mknod /dev/net/tun c 10 200"
            }
            Some(libc::EEXIST | libc::EBUSY) => {
                "it exists already: choose another name or address, or remove the old one"
            }
            Some(libc::ENODEV | libc::ENOENT) => "check that the interface and the name exist",
            Some(libc::EINVAL | libc::ERANGE) => "check the value: the kernel does not accept it",
            Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
                "this kernel was built or booted without it"
            }
            Some(libc::ETIMEDOUT) => "check that the interface is up and has a carrier",
            Some(libc::ENETUNREACH) => "give the interface an address that reaches the gateway",
            Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files (ulimit -n)",
            Some(libc::ENOSPC) => "raise the limit in /proc/sys/user",
            None if self.attempt.starts_with("open the wire") => "each wire has two equal ends",
            _ => "see `haypile doctor` for what this machine allows",
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot {}: {}", self.attempt, self.source)?;
        if let Some(message) = &self.kernel_message {
            write!(formatter, " (the kernel adds: {message})")?;
        }
        write!(formatter, "; {}", self.advice())
    }
}

impl std::error::Error for LinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<LinkError> for io::Error {
    fn from(error: LinkError) -> io::Error {
        io::Error::new(error.source.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_what_why_and_what_to_do() {
        let error = LinkError::from_errno("create the interface haypile0", libc::EPERM)
            .with_kernel_message(Some("no".to_owned()));
        assert_eq!(
            error.to_string(),
            "cannot create the interface haypile0: Operation not permitted (os error 1) \
             (the kernel adds: no); this takes CAP_NET_ADMIN: run as root, let `haypile run` make \
             a user namespace, or take --link wire:NAME, which needs nothing"
        );
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::PermissionDenied);
    }
}
