//! Owns the one generator of random numbers that repeats: who is given a connection, made-up paths, simulations
//! and schedules of load take their chance from a seed. No secret hangs on it; what strangers must not guess comes
//! from keyed hashes. Pure. Called by `control`, by the link's faults, the simulation and the experiments.

/// A stream of numbers from a seed, the same on every machine: `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// The next 64 bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `low..=high`; `low` when the range is empty.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        match high.checked_sub(low) {
            Some(u64::MAX) => self.next_u64(),
            Some(span) => low + self.next_u64() % (span + 1),
            None => low,
        }
    }

    /// At least 0, below 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Above 0, up to 1: what a logarithm may be taken of.
    pub fn positive_fraction(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// True `parts_per_million` times in a million.
    pub fn chance(&mut self, parts_per_million: u32) -> bool {
        self.next_u64() % 1_000_000 < u64::from(parts_per_million)
    }
}

/// Spreads every bit over all: the finisher of `SplitMix64`, a permutation.
#[inline]
pub fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// 2^64 divided by the golden ratio, made odd.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    /// Seeds that failures print, schedules and figures mean these numbers for ever.
    #[test]
    fn seeds_keep_their_sequences() {
        let first = |seed| {
            let mut random = Random::new(seed);
            [random.next_u64(), random.next_u64(), random.next_u64()]
        };
        assert_eq!(first(0), [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
        let known = [0x599e_d017_fb08_fc85, 0x2c73_f084_5854_0fa5, 0x883e_bce5_a3f2_7c77];
        assert_eq!(first(1_234_567), known);
        assert_eq!(first(u64::MAX)[0], mix(STEP - 1));
    }

    #[test]
    fn drawn_numbers_keep_their_sequences() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (random.below(1000), random.between(10, 19), random.chance(500_000), random.fraction())
        };
        let (fraction, step) = (0x1f_1177_150e_4990_u64 as f64, (1_u64 << 53) as f64);
        assert_eq!(draw(0), (883, 10, false, fraction / step));
        assert_eq!(Random::new(0).positive_fraction(), Random::new(0).fraction() + 1.0 / step);
    }

    #[test]
    fn empty_and_whole_ranges_have_an_answer() {
        let mut random = Random::new(7);
        assert_eq!((random.below(0), random.below(1)), (0, 0));
        assert_eq!((random.between(5, 5), random.between(5, 4)), (5, 5));
        assert_ne!(random.between(0, u64::MAX), random.between(0, u64::MAX));
        assert!(!random.chance(0) && random.chance(1_000_000));
        for _ in 0..1000 {
            let (fraction, positive) = (random.fraction(), random.positive_fraction());
            assert!((0.0..1.0).contains(&fraction) && positive > 0.0 && positive <= 1.0);
        }
    }
}
