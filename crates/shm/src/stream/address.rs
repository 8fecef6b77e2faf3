//! An IP address and port in five shared words. Written by the service before the message that
//! makes an application look, so that a torn read means nothing worse than a wrong address.

use core::sync::atomic::{AtomicU32, Ordering};
use std::net::SocketAddr;

use crate::messages::{decode_address, encode_address};

/// Family and port, then 16 bytes of address; all zero: none.
#[repr(C)]
pub(super) struct SharedAddress([AtomicU32; 5]);

impl SharedAddress {
    pub(super) fn store(&self, address: Option<SocketAddr>) {
        for (word, value) in self.0.iter().zip(encode_address(address)) {
            word.store(value, Ordering::Release);
        }
    }

    pub(super) fn load(&self) -> Option<SocketAddr> {
        let words = core::array::from_fn(|index| self.0[index].load(Ordering::Acquire));
        decode_address(words).ok().flatten()
    }
}
