//! Many seeds: each on a thread of its own, what they counted added up.
//!
//! Owns: threads, panics, the report of a failure. Leaves to others: the course of a seed (`run`).

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use kiseki_core::planted;
use madsim::Config;
use madsim::runtime::Runtime;
use tracing::subscriber;

use crate::faults::Counts;
use crate::run::{Outcome, run};
use crate::trace::{Logger, Trace};
use crate::world::Switches;

/// Simulated time within which a seed must come to its end.
const TIME_LIMIT: Duration = Duration::from_secs(6 * 3600);

/// Runs one seed on a fresh thread. A panic counts as a violation.
pub fn simulate(seed: u64, switches: Switches) -> (Outcome, Trace) {
    let trace = Trace::default();
    let inner = trace.clone();
    // `HashMap` keys and the simulator's state are per thread.
    let thread = thread::Builder::new().name(format!("seed {seed}")).stack_size(16 << 20).spawn(move || {
        let logger = Logger(inner.clone());
        planted::plant(switches.planted);
        subscriber::with_default(logger, || {
            let mut runtime = Runtime::with_seed_and_config(seed, Config::default());
            runtime.set_time_limit(TIME_LIMIT);
            let course = AssertUnwindSafe(|| runtime.block_on(run(seed, switches, inner)));
            std::panic::catch_unwind(course)
        })
    });
    let ended = thread.expect("a thread can be started").join().unwrap_or_else(Err);
    let outcome = ended.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default();
        Outcome { violation: Some(format!("panic: {text}")), ..Outcome::default() }
    });
    (outcome, trace)
}

/// What a number of seeds came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Per seed: operations completed, operations that succeeded, crashes.
    pub seeds: Vec<(u64, u64, u64)>,
    /// Of all.
    pub counts: Counts,
    /// Steps lost in crashes.
    pub lost: u64,
    /// Promises of durability that a crash tried.
    pub tried: u64,
    /// Seeds that failed, and why.
    pub failures: Vec<(u64, String)>,
}

/// Runs `count` seeds from `first` on, `threads` at a time.
pub fn sweep(first: u64, count: u64, threads: usize, switches: Switches) -> Summary {
    let next = AtomicU64::new(first);
    let summary = Mutex::new(Summary::default());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let (outcome, _) = simulate(seed, switches);
                    summary.lock().unwrap().add(seed, outcome);
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap();
    summary.failures.sort();
    summary
}

/// The first of `count` seeds from `first` on that fails, and why; seeds after it may not have been run.
pub fn first_failure(first: u64, count: u64, threads: usize, switches: Switches) -> Option<(u64, String)> {
    let next = AtomicU64::new(first);
    let found: Mutex<Option<(u64, String)>> = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    // A seed below the one found may still be running on another thread.
                    if first + count <= seed || found.lock().unwrap().is_some() {
                        break;
                    }
                    let (outcome, _) = simulate(seed, switches);
                    let mut found = found.lock().unwrap();
                    if let Some(violation) = outcome.violation
                        && found.as_ref().is_none_or(|(other, _)| seed < *other)
                    {
                        *found = Some((seed, violation));
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds.push((outcome.completed, outcome.succeeded, outcome.crashes));
        self.counts.merge(&outcome.counts);
        self.lost += outcome.lost;
        self.tried += outcome.tried;
        if let Some(violation) = outcome.violation {
            self.failures.push((seed, violation));
        }
    }

    /// Of operations, of successes, of crashes: what the median seed had.
    pub fn median(&self) -> (u64, u64, u64) {
        let middle = |of: fn(&(u64, u64, u64)) -> u64| {
            let mut all: Vec<u64> = self.seeds.iter().map(of).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied().unwrap_or(0)
        };
        (middle(|seed| seed.0), middle(|seed| seed.1), middle(|seed| seed.2))
    }
}

/// How to see a seed again.
pub fn replay(seed: u64) -> String {
    format!("replay: KISEKI_SIM_SEED={seed} cargo test -p sim --test seeds -- --nocapture replay")
}
