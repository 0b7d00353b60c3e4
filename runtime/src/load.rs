//! How many requests the kernel sends: what nobody waits for leaves the machine to them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::env::thread_number;

/// From so many requests a second on others are busy: more than a person, or a program that looks now and then, asks for.
const BUSY: u128 = 100;
/// They are counted over so long at least.
const SAMPLE: Duration = Duration::from_millis(20);
/// Threads that count apart from each other.
const LANES: usize = 16;

/// Counts requests.
#[derive(Debug)]
pub(crate) struct Load {
    lanes: [Lane; LANES],
    sample: Mutex<Sample>,
}

/// A cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Lane(AtomicU64);

#[derive(Debug)]
struct Sample {
    since: Instant,
    /// Requests before that.
    before: u64,
    /// Whether those of the last whole sample were many.
    busy: bool,
}

impl Load {
    pub(crate) fn new(now: Instant) -> Self {
        Self { lanes: Default::default(), sample: Mutex::new(Sample { since: now, before: 0, busy: false }) }
    }

    /// There is a request.
    pub(crate) fn note(&self) {
        self.lanes[thread_number() as usize % LANES].0.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether many have come since this was asked last, or shortly before that.
    pub(crate) fn is_busy(&self, now: Instant) -> bool {
        let mut sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let took = now.saturating_duration_since(sample.since);
        if SAMPLE <= took {
            let count = self.lanes.iter().map(|lane| lane.0.load(Ordering::Relaxed)).sum();
            let came = u128::from(count - sample.before);
            *sample = Sample { since: now, before: count, busy: BUSY * took.as_millis() <= 1000 * came };
        }
        sample.busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_requests_are_busy_and_few_are_not() {
        let start = Instant::now();
        let load = Load::new(start);
        let busy = |ms| load.is_busy(start + Duration::from_millis(ms));
        let note = |count| (0..count).for_each(|_| load.note());
        assert!(!busy(100));
        note(10);
        assert!(!busy(110), "too soon to say");
        assert!(busy(200), "ten in 100 ms");
        assert!(busy(210), "too soon to say that there are no more");
        note(9);
        assert!(!busy(300), "nine in 100 ms");
        std::thread::scope(|scope| _ = [0; 3].map(|_| scope.spawn(|| note(1000))));
        assert!(busy(1000), "from whatever thread");
        assert!(!busy(1100));
    }
}
