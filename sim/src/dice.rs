//! Seeded chance. Each part of a simulation has a stream of its own, so that a change in one leaves the others alone.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiseki_core::testkit::ops::Source;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// A stream of chance; clones share it.
#[derive(Clone, Debug)]
pub struct Dice(Arc<Mutex<ChaCha8Rng>>);

impl Dice {
    /// Stream `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(Arc::new(Mutex::new(rng)))
    }

    /// A number in `0..bound`. (bound >= 1)
    pub fn below(&self, bound: u64) -> u64 {
        assert!(bound > 0);
        self.0.lock().unwrap().next_u64() % bound
    }

    /// True in `per_mille` of 1000 cases.
    pub fn chance(&self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// A length of time up to `most`.
    pub fn time_below(&self, most: Duration) -> Duration {
        Duration::from_nanos(self.below(most.as_nanos() as u64 + 1))
    }

    /// A length of time around `usual`: mostly below twice that, one in a hundred up to thirty times.
    pub fn latency(&self, usual: Duration) -> Duration {
        let factor = if self.chance(10) { 30 } else { 2 };
        self.time_below(usual * factor)
    }
}

impl Source for Dice {
    fn below(&mut self, bound: u64) -> u64 {
        Self::below(self, bound)
    }
}
