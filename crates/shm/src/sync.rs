//! The atomic words that the handshakes are written over. In the product they are plain atomics in
//! mapped memory; in the loom models (`cfg(loom)`) the very same code runs over loom's words:
//! `RUSTFLAGS="--cfg loom" cargo test -p haypile-shm --profile checks --lib loom`.

use core::sync::atomic::{AtomicU32, Ordering};

/// A 32-bit atomic word.
pub trait Word {
    /// Atomic load.
    fn load(&self, order: Ordering) -> u32;
    /// Atomic store.
    fn store(&self, value: u32, order: Ordering);
    /// Atomic swap.
    fn swap(&self, value: u32, order: Ordering) -> u32;
    /// Atomic wrapping addition; returns the old value.
    fn fetch_add(&self, value: u32, order: Ordering) -> u32;
    /// A sequentially consistent fence of the same memory model.
    fn fence();
}

impl Word for AtomicU32 {
    #[inline]
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }
    #[inline]
    fn store(&self, value: u32, order: Ordering) {
        self.store(value, order);
    }
    #[inline]
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        self.swap(value, order)
    }
    #[inline]
    fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        self.fetch_add(value, order)
    }
    #[inline]
    fn fence() {
        core::sync::atomic::fence(Ordering::SeqCst);
    }
}

#[cfg(loom)]
impl Word for loom::sync::atomic::AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        self.load(order)
    }
    fn store(&self, value: u32, order: Ordering) {
        self.store(value, order);
    }
    fn swap(&self, value: u32, order: Ordering) -> u32 {
        self.swap(value, order)
    }
    fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        self.fetch_add(value, order)
    }
    fn fence() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}
