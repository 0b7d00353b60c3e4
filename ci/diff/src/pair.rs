//! Both sides of one episode, step by step.
//!
//! Owns: sending each call to both, looking at both trees after it. Leaves to others: which calls (`draw`), what counts
//! as the same (`judge`), what to do about a difference (`run`).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::call::{Answer, Call, Step};
use crate::judge::{self, Allowed, Disagreement, Seen, Verdict};
use crate::kinds::KINDS;
use crate::side::{OBSERVER, Side, USERS};
use crate::walk::Entry;
use crate::worker::Request;

/// Calls between two looks at all contents, which fill caches that a program would not fill.
const CONTENTS_EVERY: u64 = 150;

/// Where the trees are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) reference: PathBuf,
    pub(crate) tested: PathBuf,
}

/// What differs after a call.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    /// Two differences with one signature have one cause, as far as one can tell.
    pub(crate) signature: String,
    pub(crate) reference: String,
    pub(crate) tested: String,
}

/// What came of a step.
#[derive(Debug)]
pub(crate) struct Stepped {
    pub(crate) reference: Answer,
    pub(crate) tested: Answer,
    pub(crate) verdict: Verdict,
    pub(crate) difference: Option<Difference>,
}

/// Both sides.
#[derive(Debug)]
pub(crate) struct Pair {
    reference: Side,
    tested: Side,
    roots: (PathBuf, PathBuf),
    before: (Seen, Seen),
    begin: i128,
    steps: u64,
}

impl Pair {
    /// Begins in folders called `name`.
    pub(crate) fn begin(places: &Places, name: &str) -> Result<Self, String> {
        let roots = (below(&places.reference, name)?, below(&places.tested, name)?);
        let begin = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos()) as i128;
        let reference = Side::begin("reference", &roots.0)?;
        let tested = Side::begin("tested", &roots.1)?;
        let mut pair = Self { reference, tested, roots, before: Default::default(), begin, steps: 0 };
        pair.before = pair.look()?;
        Ok(pair)
    }

    /// The tree of the reference side, as it was last seen.
    pub(crate) fn tree(&self) -> &[Entry] {
        &self.before.0.tree
    }

    fn look(&mut self) -> Result<(Seen, Seen), String> {
        self.reference.send(OBSERVER, &Request::Walk)?;
        self.tested.send(OBSERVER, &Request::Walk)?;
        Ok((Seen::new(self.reference.tree()?), Seen::new(self.tested.tree()?)))
    }

    fn both(&mut self, worker: usize, call: &Call) -> Result<(Answer, Answer), String> {
        let request = Request::Do(call.clone());
        self.reference.send(worker, &request)?;
        self.tested.send(worker, &request)?;
        Ok((self.reference.answer(worker)?, self.tested.answer(worker)?))
    }

    /// Makes one call on both sides and compares what came of it.
    pub(crate) fn step(&mut self, kind: &str, step: &Step, allowed: &mut Allowed) -> Result<Stepped, String> {
        let (reference, tested) = self.both(step.worker, &step.call)?;
        let verdict = judge::answers(kind, &reference, &tested, allowed);
        let mut difference = (verdict == Verdict::Different).then(|| {
            let outcomes = (reference.outcome(), tested.outcome());
            Difference {
                signature: format!("{kind}: {} against {}", outcomes.0, outcomes.1),
                reference: reference.to_string(),
                tested: tested.to_string(),
            }
        });
        if let (Verdict::Allowed, Call::Open { slot, .. } | Call::Reopen { slot, .. }) = (verdict, &step.call) {
            self.both(step.worker, &Call::Close { slot: *slot })?;
        }
        let after = self.look()?;
        if difference.is_none() {
            let found = self.compare(&after, allowed);
            difference = found.map(|found| Difference {
                signature: format!("{kind}: {}", found.what),
                reference: format!("{:?}: {} {}", found.path, found.what, found.reference),
                tested: format!("{:?}: {} {}", found.path, found.what, found.tested),
            });
        }
        self.before = after;
        self.steps += 1;
        if difference.is_none() && self.steps.is_multiple_of(CONTENTS_EVERY) {
            difference = self.contents()?;
        }
        Ok(Stepped { reference, tested, verdict, difference })
    }

    fn compare(&self, after: &(Seen, Seen), allowed: &mut Allowed) -> Option<Disagreement> {
        judge::trees((&self.before.0, &self.before.1), (&after.0, &after.1), self.begin, allowed)
    }

    /// Compares all contents, and what the workers have open.
    pub(crate) fn contents(&mut self) -> Result<Option<Difference>, String> {
        let requests = (0..USERS.len()).map(|worker| (worker, Request::Slots));
        for (worker, request) in requests.chain([(OBSERVER, Request::Contents)]) {
            self.reference.send(worker, &request)?;
            self.tested.send(worker, &request)?;
            let (reference, tested) = (self.reference.lines(worker)?, self.tested.lines(worker)?);
            if let Some(found) = lines(worker, &reference, &tested) {
                return Ok(Some(found));
            }
        }
        // Looking has changed times of access.
        self.before = self.look()?;
        Ok(None)
    }

    /// Ends both sides and removes their trees.
    pub(crate) fn end(self) -> Result<(), String> {
        self.reference.end(&self.roots.0)?;
        self.tested.end(&self.roots.1)
    }
}

/// A folder two folders down: paths through `..` stay where both sides are alike.
fn below(place: &Path, name: &str) -> Result<PathBuf, String> {
    let folder = place.join("sides/of");
    fs::create_dir_all(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    Ok(folder.join(name))
}

fn lines(worker: usize, reference: &[String], tested: &[String]) -> Option<Difference> {
    let only = |a: &[String], b: &[String]| a.iter().filter(|line| !b.contains(line)).cloned().collect::<Vec<_>>();
    let (left, right) = (only(reference, tested), only(tested, reference));
    let what = if worker == OBSERVER { "contents" } else { "open files" };
    (!left.is_empty() || !right.is_empty()).then(|| Difference {
        signature: what.into(),
        reference: left.join("; "),
        tested: right.join("; "),
    })
}

/// The kind of a call that comes from a file.
pub(crate) fn known_kind(name: &str) -> Option<&'static str> {
    KINDS.iter().find(|kind| **kind == name).copied()
}
