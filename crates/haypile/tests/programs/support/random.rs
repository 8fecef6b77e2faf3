//! Random numbers from a seed, so that a failure can be repeated (xorshift64*, Vigna 2016).

use super::setting;

/// A sequence of random numbers.
pub struct Random(u64);

impl Random {
    /// The sequence of `HAYPILE_E2E_SEED` (1 unless set) and `purpose`.
    pub fn for_test(purpose: u64) -> Random {
        Random::new(setting("HAYPILE_E2E_SEED", 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ purpose)
    }

    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `limit` (at least 1).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
