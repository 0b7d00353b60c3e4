//! The sweep over seeds, the same seed twice, and the judges tried on worlds that break a promise.
#![cfg(madsim)]

use std::time::Instant;

use sim::faults::{Ending, Fault};
use sim::sweep::{Summary, replay, simulate, sweep};
use sim::world::Switches;

/// Seeds of a plain `cargo test`; `KISEKI_SIM_SEEDS` asks for more.
const SEEDS: u64 = 100;
/// Seeds at a time.
const THREADS: usize = 2;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

fn report(summary: &Summary) {
    for (fault, count) in &summary.counts.faults {
        println!("  {count:>7} {fault:?}: {}", fault.text());
    }
    for (call, count) in &summary.counts.calls {
        println!("  {count:>7} {call}");
    }
    for (seed, violation) in &summary.failures {
        println!("seed {seed}: {violation}\n  {}", replay(*seed));
    }
    let (operations, succeeded, crashes) = summary.median();
    let of = |ending| summary.counts.endings.get(&ending).copied().unwrap_or(0);
    println!(
        "sim: seeds={} failed={} operations={operations} succeeded={succeeded} crashes={crashes} kills={} power_cuts={} \
         lost_steps={} promises_tried={}",
        summary.seeds.len(),
        summary.failures.len(),
        of(Ending::Kill),
        of(Ending::PowerCut) + of(Ending::MetaPowerCut),
        summary.lost,
        summary.tried,
    );
}

#[test]
fn every_seed_keeps_the_promises() {
    let first = number("KISEKI_SIM_FIRST").unwrap_or(0);
    let count = number("KISEKI_SIM_SEEDS").unwrap_or(SEEDS);
    let started = Instant::now();
    let summary = sweep(first, count, THREADS, Switches::default());
    println!("{count} seeds in {:.1} s", started.elapsed().as_secs_f64());
    report(&summary);
    assert!(summary.failures.is_empty(), "{} of {count} seeds failed", summary.failures.len());
    if count < SEEDS {
        return;
    }
    let (operations, succeeded, crashes) = summary.median();
    assert!(operations >= 100);
    assert!(succeeded * 2 >= operations);
    assert!(crashes >= 1);
    // A sweep in which something declared never happened tried less than it claims.
    for fault in Fault::ALL {
        assert!(summary.counts.of(*fault) > 0, "{fault:?} never struck");
    }
    let share = |faults: &[Fault], calls: u64| {
        let struck: u64 = faults.iter().map(|fault| summary.counts.of(*fault)).sum();
        struck * 100 / calls
    };
    let puts = [Fault::PutFailed, Fault::PutAnswerLost, Fault::PutLate, Fault::PutHangs, Fault::PutFull];
    let commits = [Fault::CommitRefused, Fault::CommitAnswerLost, Fault::CommitUnknown];
    assert!(share(&puts, summary.counts.called("put")) >= 5);
    assert!(share(&commits, summary.counts.called("data commit")) >= 5);
    for ending in [Ending::Kill, Ending::PowerCut, Ending::MetaPowerCut, Ending::Unmount] {
        assert!(summary.counts.endings.contains_key(&ending), "no life ended with {ending:?}");
    }
}

/// Shows one seed: `KISEKI_SIM_SEED=N cargo test -p sim --test seeds -- --nocapture replay`.
#[test]
fn replay_is_the_same_run() {
    let seed = number("KISEKI_SIM_SEED").unwrap_or(7);
    let (outcome, trace) = simulate(seed, Switches::default());
    let (again, second) = simulate(seed, Switches::default());
    if std::env::var_os("KISEKI_SIM_SEED").is_some() {
        let lines = number("KISEKI_SIM_LINES").unwrap_or(200) as usize;
        trace.tail(lines).iter().for_each(|line| println!("{line}"));
        println!("sim: seed={seed} {:?} hash={:?}", outcome.violation, trace.hash());
    }
    assert_eq!(trace.hash(), second.hash());
    assert_eq!(outcome.violation, again.violation);
    assert_eq!(outcome.violation, None, "{}", replay(seed));
}

fn is_noticed(switches: Switches) {
    let summary = sweep(0, 40, THREADS, switches);
    assert!(!summary.failures.is_empty(), "{switches:?} went unnoticed");
    println!("sim: {switches:?}: {} of 40 seeds failed", summary.failures.len());
}

#[test]
fn a_barrier_that_does_nothing_is_noticed_by_the_contents() {
    is_noticed(Switches { barrier: false, oracles: false, ..Switches::default() });
}

#[test]
fn a_barrier_that_does_nothing_is_noticed_at_the_commit() {
    is_noticed(Switches { barrier: false, ..Switches::default() });
}

#[test]
fn a_sync_that_does_nothing_is_noticed() {
    is_noticed(Switches { sync: false, oracles: false, ..Switches::default() });
}
