//! Making a failure shorter: the same judge objects, with less going on before.
//!
//! Owns: what is tried, in which order. Leaves to others: what can be left out (`plan`), running it (`sweep`).
//!
//! What is left out of a plan changes all that follows, so nothing is sure to fail again: each attempt is a run, and
//! what fails by the same judge and has the shorter trace is kept.

use std::collections::BTreeSet;

use crate::faults::Fault;
use crate::plan::Plan;
use crate::report::judge_of;
use crate::sweep::simulate;
use crate::trace::Trace;
use crate::world::Switches;

/// More lives, and more steps in one, than any plan has: where halving begins.
const LIVES: u64 = 4;
const STEPS: u64 = 240;

/// The shortest failure found.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// How to run it.
    pub plan: Plan,
    /// What was wrong.
    pub violation: String,
    /// Lines of its trace, and of the trace that it was made from.
    pub lines: (u64, u64),
    /// Runs that it took.
    pub runs: u32,
}

struct Search {
    switches: Switches,
    best: Plan,
    violation: String,
    lines: u64,
    /// What struck in the best run.
    struck: BTreeSet<Fault>,
    runs: u32,
    runs_max: u32,
}

/// Looks for a shorter run that fails as `plan` does, in at most `runs_max` runs; `None` if `plan` does not fail.
pub fn shrink(plan: &Plan, switches: Switches, runs_max: u32) -> Option<Shrunk> {
    let (violation, lines, struck) = fail(plan, switches)?;
    let mut search =
        Search { switches, best: plan.clone(), violation, lines, struck, runs: 1, runs_max: runs_max.max(1) };
    loop {
        let before = search.best.clone();
        search.round();
        if search.best == before || search.runs >= search.runs_max {
            break;
        }
    }
    let Search { best: plan, violation, lines: shorter, runs, .. } = search;
    Some(Shrunk { plan, violation, lines: (shorter, lines), runs })
}

/// What is wrong in a run, how long its trace is, and which kinds of fault struck.
fn fail(plan: &Plan, switches: Switches) -> Option<(String, u64, BTreeSet<Fault>)> {
    let trace = Trace::default();
    let outcome = simulate(plan, switches, trace.clone());
    outcome.violation.map(|what| (what, trace.hash().1, outcome.counts.faults.into_keys().collect()))
}

impl Search {
    fn round(&mut self) {
        for app in [0, 1] {
            if self.best.alone.is_none() {
                self.attempt(|plan| plan.alone = Some(app));
            }
        }
        self.halve(LIVES, |plan| &mut plan.lives);
        self.halve(STEPS, |plan| &mut plan.steps);
        // All that struck, then halves of it, then each.
        let mut size = self.struck.len().max(1);
        loop {
            let struck: Vec<Fault> = self.struck.iter().copied().collect();
            for kinds in struck.chunks(size) {
                self.attempt(|plan| plan.off.extend(kinds));
            }
            if size == 1 {
                break;
            }
            size = size.div_ceil(2);
        }
    }

    /// Lowers a number to the least that still fails, by halving the interval.
    fn halve(&mut self, most: u64, number: impl Fn(&mut Plan) -> &mut Option<u64>) {
        let (mut passes, mut fails) = (0, number(&mut self.best).unwrap_or(most));
        while passes < fails {
            let middle = (passes + fails) / 2;
            if self.attempt(|plan| *number(plan) = Some(middle)) {
                fails = middle;
            } else {
                passes = middle + 1;
            }
        }
    }

    /// Tries the best plan with a change; keeps what fails by the same judge and is not longer.
    fn attempt(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        let mut plan = self.best.clone();
        change(&mut plan);
        if plan == self.best || self.runs >= self.runs_max {
            return false;
        }
        self.runs += 1;
        let Some((violation, lines, struck)) = fail(&plan, self.switches) else { return false };
        if lines > self.lines || judge_of(&violation) != judge_of(&self.violation) {
            return false;
        }
        (self.best, self.violation, self.lines, self.struck) = (plan, violation, lines, struck);
        true
    }
}
