//! Many seeds: each on a thread of its own, what they counted added up.
//!
//! Owns: threads, panics, which seeds, the sums.
//! Leaves to others: the course of a seed (`run`), telling a person (`report`).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use kiseki_core::marks::Mark;
use kiseki_core::planted;
use madsim::Config;
use madsim::runtime::Runtime;
use tracing::subscriber;

use crate::faults::{Counts, Fault};
use crate::plan::Plan;
use crate::run::{Outcome, run};
use crate::trace::{Logger, Trace};
use crate::world::Switches;

/// Simulated time within which a seed must come to its end.
const TIME_LIMIT: Duration = Duration::from_secs(6 * 3600);
/// How the threads of seeds are called.
const THREAD: &str = "seed ";

thread_local! {
    /// Where this thread panicked last.
    static PANICKED_AT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps panics of seeds off the screen: they are reported with their seed.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if thread::current().name().is_some_and(|name| name.starts_with(THREAD)) {
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                PANICKED_AT.with(|at| drop(at.replace(place)));
            } else {
                usual(info);
            }
        }));
    });
}

/// Carries out one plan on a fresh thread. A panic counts as a violation.
pub fn simulate(plan: &Plan, switches: Switches, trace: Trace) -> Outcome {
    catch_panics();
    let (plan, inner) = (plan.clone(), trace.clone());
    // `HashMap` keys and the simulator's state are per thread.
    let thread = thread::Builder::new().name(format!("{THREAD}{}", plan.seed)).stack_size(16 << 20).spawn(move || {
        let logger = Logger(inner.clone());
        planted::plant(switches.planted);
        subscriber::with_default(logger, || {
            let mut runtime = Runtime::with_seed_and_config(plan.seed, Config::default());
            runtime.set_time_limit(TIME_LIMIT);
            let course = AssertUnwindSafe(|| runtime.block_on(run(plan, switches, inner)));
            std::panic::catch_unwind(course).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
                let (text, place) = (text.unwrap_or_default(), PANICKED_AT.with(|at| at.take()));
                Outcome { violation: Some(format!("panic: {text} at {place}")), ..Outcome::default() }
            })
        })
    });
    let mut outcome = thread.expect("a thread can be started").join().expect("panics are caught");
    outcome.marks = trace.marks();
    outcome
}

/// What one seed came to, for the median.
#[derive(Clone, Copy, Debug)]
pub struct Seed {
    /// Operations that returned.
    pub completed: u64,
    /// Those of them that succeeded.
    pub succeeded: u64,
    /// Crashes survived.
    pub crashes: u64,
    /// Kinds of fault that struck.
    pub kinds: u64,
}

/// What a number of seeds came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// One entry each.
    pub seeds: Vec<Seed>,
    /// Simulated time of all.
    pub elapsed: Duration,
    /// Of all.
    pub counts: Counts,
    /// Per mark: how often it was reached, and in how many seeds.
    pub marks: Vec<(u64, u64)>,
    /// Steps lost in crashes.
    pub lost: u64,
    /// Promises of durability that a crash tried.
    pub tried: u64,
    /// Seeds that failed, and why.
    pub failures: Vec<(u64, String)>,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            seeds: Vec::new(),
            elapsed: Duration::ZERO,
            counts: Counts::default(),
            marks: vec![(0, 0); Mark::ALL.len()],
            lost: 0,
            tried: 0,
            failures: Vec::new(),
        }
    }
}

/// Runs the seeds, on all processors.
pub fn sweep(seeds: Range<u64>, switches: Switches) -> Summary {
    sweep_until(seeds, None, switches)
}

/// The same, but begins no seed after `end`.
pub fn sweep_until(seeds: Range<u64>, end: Option<Instant>, switches: Switches) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let summary = Mutex::new(Summary::default());
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || end.is_some_and(|end| Instant::now() >= end) {
                        break;
                    }
                    let outcome = simulate(&Plan::of(seed), switches, Trace::default());
                    summary.lock().unwrap().add(seed, outcome);
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap();
    summary.failures.sort();
    summary
}

/// The first of the seeds that fails while these faults are off, and why; seeds after it may not have been run.
pub fn first_failure(seeds: Range<u64>, off: &BTreeSet<Fault>, switches: Switches) -> Option<(u64, String)> {
    let next = AtomicU64::new(seeds.start);
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let found: Mutex<Option<(u64, String)>> = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    // A seed below the one found may still be running on another thread.
                    if seeds.end <= seed || found.lock().unwrap().is_some() {
                        break;
                    }
                    let plan = Plan { off: off.clone(), ..Plan::of(seed) };
                    let outcome = simulate(&plan, switches, Trace::default());
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
        self.seeds.push(Seed {
            completed: outcome.completed,
            succeeded: outcome.succeeded,
            crashes: outcome.crashes,
            kinds: outcome.counts.faults.len() as u64,
        });
        self.elapsed += outcome.elapsed;
        self.counts.merge(&outcome.counts);
        for ((reached, seeds), count) in self.marks.iter_mut().zip(&outcome.marks) {
            *reached += count;
            *seeds += u64::from(*count > 0);
        }
        self.lost += outcome.lost;
        self.tried += outcome.tried;
        if let Some(violation) = outcome.violation {
            // At once: what is told at the end of an hour may be an hour old.
            eprintln!("seed {seed} fails: {violation}");
            self.failures.push((seed, violation));
        }
    }

    /// Adds what other seeds came to.
    pub fn merge(&mut self, other: Self) {
        self.seeds.extend(other.seeds);
        self.elapsed += other.elapsed;
        self.counts.merge(&other.counts);
        for (mine, more) in self.marks.iter_mut().zip(other.marks) {
            *mine = (mine.0 + more.0, mine.1 + more.1);
        }
        self.lost += other.lost;
        self.tried += other.tried;
        self.failures.extend(other.failures);
    }

    /// The marks that no seed has reached.
    pub fn unreached(&self) -> Vec<Mark> {
        Mark::ALL.iter().zip(&self.marks).filter(|(_, (reached, _))| *reached == 0).map(|(mark, _)| *mark).collect()
    }

    /// What the median seed had, of each.
    pub fn median(&self) -> Seed {
        let middle = |of: fn(&Seed) -> u64| {
            let mut all: Vec<u64> = self.seeds.iter().map(of).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied().unwrap_or(0)
        };
        Seed {
            completed: middle(|seed| seed.completed),
            succeeded: middle(|seed| seed.succeeded),
            crashes: middle(|seed| seed.crashes),
            kinds: middle(|seed| seed.kinds),
        }
    }
}
