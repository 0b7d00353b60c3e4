//! Telling a person what a sweep came to, and what a failure means.
//!
//! Owns: the words of the summary, which judge and which promise a violation belongs to, how a run is replayed.

use std::fmt;

use kiseki_core::marks::Mark;

use crate::faults::{Ending, Fault};
use crate::plan::Plan;
use crate::sweep::Summary;

/// Who objected, and to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The module that judges.
    pub judge: &'static str,
    /// The promise that was broken.
    pub promise: &'static str,
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "judge {}: {}", self.judge, self.promise)
    }
}

/// How each judge begins, or what only it says. The first that fits counts.
const JUDGES: &[(&str, &str, &str)] = &[
    ("panic: ", "asserts", "the code's own invariants hold"),
    ("a broken promise was logged", "trace", "nothing is logged at level ERROR"),
    ("was deleted though", "world", "nothing live is deleted"),
    ("a commit of ", "world", "only durable bytes are committed"),
    ("was overwritten by other bytes", "world", "an object is never replaced by other bytes"),
    ("the crew", "crew", "calls at once have an order, and a crash leaves a part of it"),
    ("rival", "rivals", "several handles see one order of writes, and a crash leaves a prefix of it"),
    ("was not told", "kernel", "errors are kept until each handle was told"),
    ("a read took", "kernel", "every wait has a deadline"),
    ("the bystander", "spy", "a racing reader sees a state of during its call"),
    ("explains what was found", "recovery", "a crash leaves what was synced, in order, with no invented bytes"),
    ("was lost though", "recovery", "nothing survives what came before it and was lost"),
    ("limits: ", "rest", "a volume takes what its limits allow, and no more"),
    ("that it may", "rest", "a volume takes what its limits allow, and no more"),
    ("findings, such as", "rest", "the metadata is whole after each crash"),
    ("though nothing ever failed", "apps", "nothing fails where no fault has struck"),
    ("application ", "judge", "each step shows what POSIX says"),
    ("things are left", "rest", "the store holds exactly what is referred to"),
    ("after the last unmount", "run", "the store holds exactly what is referred to"),
    ("a client spins", "world", "nothing waits by trying again and again"),
    ("after a sync there are still", "rest", "memory, permits and queues come back"),
];

/// Who raised this violation.
pub fn judge_of(violation: &str) -> Judged {
    let found = JUDGES.iter().find(|(words, ..)| violation.contains(words));
    let (_, judge, promise) = found.unwrap_or(&("", "run", "nothing hangs and nothing is refused without a fault"));
    Judged { judge, promise }
}

/// The command that shows a run again.
pub fn replay(plan: &Plan) -> String {
    format!("ci/sim.sh replay {plan}")
}

/// The two lines that end every sweep.
pub fn last_lines(summary: &Summary) -> String {
    let ops: u64 = summary.seeds.iter().map(|seed| seed.completed).sum();
    let crashes: u64 = summary.seeds.iter().map(|seed| seed.crashes).sum();
    let faults: u64 = summary.counts.faults.values().sum();
    let reached = Mark::ALL.len() - summary.unreached().len();
    format!(
        "sim: seeds={} hours={:.1} ops={ops} crashes={crashes} faults={faults} failures={}\nmarks: reached={reached}/{}",
        summary.seeds.len(),
        summary.elapsed.as_secs_f64() / 3600.0,
        summary.failures.len(),
        Mark::ALL.len(),
    )
}

/// Everything that was counted.
pub fn tables(summary: &Summary) -> String {
    let mut lines = Vec::new();
    for fault in Fault::ALL {
        lines.push(format!("  {:>9} {fault:?}: {}", summary.counts.of(*fault), fault.text()));
    }
    for (call, count) in &summary.counts.calls {
        lines.push(format!("  {count:>9} {call}"));
    }
    for (mark, (reached, seeds)) in Mark::ALL.iter().zip(&summary.marks) {
        lines.push(format!("  {reached:>9} in {seeds:>5} seeds, {mark:?}: {}", mark.text()));
    }
    let median = summary.median();
    let of = |ending| summary.counts.endings.get(&ending).copied().unwrap_or(0);
    lines.push(format!(
        "median: operations={} succeeded={} crashes={} kinds_of_fault={}; in all: kills={} power_cuts={} unmounts={} \
         lost_steps={} promises_tried={}",
        median.completed,
        median.succeeded,
        median.crashes,
        median.kinds,
        of(Ending::Kill),
        of(Ending::PowerCut) + of(Ending::MetaPowerCut),
        of(Ending::Unmount),
        summary.lost,
        summary.tried,
    ));
    lines.join("\n")
}

/// What struck how often, in one line for a ledger.
pub fn fault_line(summary: &Summary) -> String {
    let counts: Vec<String> =
        Fault::ALL.iter().map(|fault| format!("{fault:?}={}", summary.counts.of(*fault))).collect();
    format!("faults: {}", counts.join(" "))
}

/// What a sweep of some thousand seeds must have tried, or it claims more than it did: what is missing.
pub fn missing(summary: &Summary) -> Vec<String> {
    let mut missing = Vec::new();
    for fault in Fault::ALL {
        if summary.counts.of(*fault) == 0 {
            missing.push(format!("{fault:?} never struck ({})", fault.text()));
        }
    }
    for mark in summary.unreached() {
        missing.push(format!("mark {mark:?} was never reached ({})", mark.text()));
    }
    for ending in [Ending::Kill, Ending::PowerCut, Ending::MetaPowerCut, Ending::Unmount] {
        if !summary.counts.endings.contains_key(&ending) {
            missing.push(format!("no life ended with {ending:?}"));
        }
    }
    let median = summary.median();
    let mut at_least = |what: &str, found: u64, wanted: u64| {
        if found < wanted {
            missing.push(format!("{what}: {found}, should be at least {wanted}"));
        }
    };
    at_least("operations of the median seed", median.completed, 200);
    at_least("successful operations of the median seed", median.succeeded, median.completed.div_ceil(2));
    at_least("crashes of the median seed", median.crashes, 1);
    at_least("kinds of fault of the median seed", median.kinds, 3);
    let share = |faults: &[Fault], call: &str| {
        let struck: u64 = faults.iter().map(|fault| summary.counts.of(*fault)).sum();
        struck * 100 / summary.counts.called(call).max(1)
    };
    let puts = [Fault::PutFailed, Fault::PutAnswerLost, Fault::PutLate, Fault::PutHangs, Fault::PutFull];
    let commits = [Fault::CommitRefused, Fault::CommitAnswerLost, Fault::CommitUnknown];
    at_least("percent of puts that were struck", share(&puts, "put"), 3);
    at_least("percent of commits that were struck", share(&commits, "data commit"), 2);
    missing
}
