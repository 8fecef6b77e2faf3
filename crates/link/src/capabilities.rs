//! Owns the capabilities of a process without root: which it has, and which of them a program that it
//! starts gets. Called by the `haypile` binary around a user namespace of its own. Read
//! capabilities(7) and user_namespaces(7) first.

use std::io;

use crate::sys;

/// A capability by its number in capabilities(7).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Capability {
    /// CAP_NET_ADMIN: interfaces, addresses, routes.
    NetAdmin = 12,
    /// CAP_NET_RAW: packet sockets.
    NetRaw = 13,
    /// CAP_SYS_ADMIN: namespaces.
    SysAdmin = 21,
}

impl Capability {
    fn bit(self) -> u64 {
        1 << self as u32
    }

    /// Whether the calling thread may use it now.
    pub fn is_effective(self) -> bool {
        sys::capabilities().is_ok_and(|sets| sets.effective & self.bit() != 0)
    }
}

/// Programs that the calling thread starts from now on get these, although their user is not root.
/// The thread must have them.
///
/// # Errors
/// EPERM when it has not.
pub fn hand_on(list: &[Capability]) -> io::Result<()> {
    let mut sets = sys::capabilities()?;
    sets.inheritable |= list.iter().fold(0, |bits, capability| bits | capability.bit());
    sys::set_capabilities(&sets)?;
    list.iter().try_for_each(|capability| sys::raise_ambient(*capability as u32))
}

/// Gives all of them up for the calling thread and whatever it starts from now on.
///
/// # Errors
/// None that is known.
pub fn give_up() -> io::Result<()> {
    sys::clear_ambient()?;
    sys::set_capabilities(&sys::CapabilitySets::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_gone() {
        let before = Capability::NetAdmin.is_effective();
        // Capabilities belong to threads.
        let worker = std::thread::spawn(move || {
            if before {
                hand_on(&[Capability::NetAdmin, Capability::NetRaw]).expect("ours to hand on");
            } else {
                hand_on(&[Capability::NetAdmin]).expect_err("not ours");
            }
            give_up().expect("given up");
            assert!(!Capability::NetAdmin.is_effective());
            hand_on(&[Capability::NetRaw]).expect_err("gone");
        });
        worker.join().expect("the worker's assertions hold");
        assert_eq!(Capability::NetAdmin.is_effective(), before);
    }
}
