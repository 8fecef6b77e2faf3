//! Misses of caches over the fixed trace of `haypile-cost`: what Cachegrind would count, told apart by
//! component (PIKA, figure 12). Valgrind's Lackey tells every address that the server touches; caches
//! of all sizes are simulated on it in one pass, once with one cache for all components and once with
//! one for each. Cachegrind itself has one cache only, and the made-up peer and application of the
//! trace would use it as well: here they touch none.
//!
//! [`elf`] finds functions in the program, [`trace`] follows who calls whom, [`simulator`] has the
//! caches. Called by `experiments::cache`.

pub mod elf;
pub mod simulator;
pub mod trace;
