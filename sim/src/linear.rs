//! Judging calls that ran at once: is there an order of them, each somewhere between its call and its return, in which a
//! plain file system gives these answers? (Linearizability: Herlihy and Wing 1990; the search is that of Wing and Gong
//! 1993, which remembers where it was as in Lowe 2017.)
//!
//! Owns: the search. Leaves to others: making the calls, what a crash may leave (`crew`).

use std::collections::BTreeMap;

use kiseki_core::errno::Errno;
use kiseki_core::testkit::model::{Model, NodeId, Stamp};
use kiseki_core::testkit::ops::Op;
use kiseki_core::types::{FileType, Ino, Timestamp};

/// The model keeps times, which are of no concern here.
const NO_TIME: Stamp = Stamp { from: Timestamp { secs: 0, nanos: 0 }, to: Timestamp { secs: 0, nanos: 0 } };

/// What is called.
#[derive(Clone, Debug)]
pub enum Act {
    /// An operation on names.
    Change(Op),
    /// What a path leads to.
    Lookup(String),
    /// What a directory holds.
    List(String),
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done; the inode that was made or linked, if one was.
    Done(Option<Ino>),
    /// The inode and what it is.
    Found(Ino, FileType),
    /// The names.
    Listed(BTreeMap<String, Ino>),
    /// An error, which changed nothing.
    Failed(Errno),
}

/// A call of a burst.
#[derive(Clone, Debug)]
pub struct Call {
    /// What.
    pub act: Act,
    /// When it was made, in steps of the burst.
    pub start: u64,
    /// When it returned with which answer; none if nobody knows whether it had its effect.
    pub end: Option<(u64, Answer)>,
}

/// The tree, and which node is which inode.
#[derive(Clone, Debug)]
pub struct State {
    model: Model,
    inos: BTreeMap<NodeId, Ino>,
}

/// One name that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// What it leads to.
    pub ino: Ino,
    /// What that is.
    pub kind: FileType,
    /// How many names it has.
    pub nlink: u32,
}

/// The names of a state, and the inode that each leads to, or the node if its number is not known.
type Signature = BTreeMap<String, Result<Ino, NodeId>>;

/// A set of calls, one bit each.
pub type Calls = u32;

impl State {
    /// An empty tree.
    pub fn new() -> Self {
        Self { model: Model::new(NO_TIME), inos: BTreeMap::new() }
    }

    /// The state after `act` with `answer`, if that is what it answers here. Without an answer: with its effect.
    fn after(&self, act: &Act, answer: Option<&Answer>, full: bool) -> Option<Self> {
        match (act, answer) {
            (Act::Change(_), Some(Answer::Failed(Errno::ENOSPC))) => full.then(|| self.clone()),
            (Act::Change(op), answer) => self.changed(op, answer),
            (Act::Lookup(path), Some(answer)) => match (self.model.find(path), answer) {
                (Ok(id), Answer::Found(ino, kind)) if self.model.node(id).kind == *kind => self.with(id, *ino),
                (Err(here), Answer::Failed(there)) if here == *there => Some(self.clone()),
                (Ok(_) | Err(_), _) => None,
            },
            (Act::List(path), Some(Answer::Listed(seen))) => {
                let entries = &self.model.node(self.model.find(path).ok()?).entries;
                let named = |state: Self, (name, id): (&String, &NodeId)| state.with(*id, *seen.get(name)?);
                if entries.len() == seen.len() { entries.iter().try_fold(self.clone(), named) } else { None }
            }
            (Act::List(_), Some(_)) => None,
            (Act::Lookup(_) | Act::List(_), None) => Some(self.clone()),
        }
    }

    fn changed(&self, op: &Op, answer: Option<&Answer>) -> Option<Self> {
        let mut after = self.clone();
        let result = after.model.apply(op, NO_TIME);
        let ino = match (result, answer) {
            (Ok(_), Some(Answer::Done(ino))) => *ino,
            (Ok(_), None) => None,
            (Err(here), Some(Answer::Failed(there))) => return (here == *there).then_some(after),
            (Ok(_) | Err(_), _) => return None,
        };
        let made = if let Op::Mkdir { path, .. } | Op::Mknod { path, .. } | Op::Link { to: path, .. } = op {
            after.model.find(path).ok()
        } else {
            None
        };
        match (made, ino) {
            (Some(id), Some(ino)) => after.with(id, ino),
            (Some(_) | None, _) => Some(after),
        }
    }

    /// This state, knowing that `id` is inode `ino`: one number is one node, in the whole life of the volume.
    fn with(&self, id: NodeId, ino: Ino) -> Option<Self> {
        let mut known = self.clone();
        let number = *known.inos.entry(id).or_insert(ino);
        let taken = known.inos.iter().any(|(other, number)| *number == ino && *other != id);
        (number == ino && !taken).then_some(known)
    }

    /// What tells this state from others, however its nodes are numbered.
    fn signature(&self) -> Signature {
        let mut names = Signature::new();
        self.model.for_each(|path, id, _| {
            names.insert(path.to_string(), self.inos.get(&id).copied().ok_or(id));
        });
        names
    }

    /// This state with the numbers of `found`, if that is what it looks like.
    pub fn is_seen_as(&self, found: &BTreeMap<String, Name>) -> Option<Self> {
        let mut names = BTreeMap::new();
        self.model.for_each(|path, id, node| {
            names.insert(path.to_string(), (id, node.kind));
        });
        if names.len() != found.len() {
            return None;
        }
        names.iter().zip(found).try_fold(self.clone(), |seen, ((path, (id, kind)), (other, name))| {
            let same = path == other && *kind == name.kind && self.model.nlink(*id) == name.nlink;
            if same { seen.with(*id, name.ino) } else { None }
        })
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// Every state that some valid order of `calls` goes through, from `first` on, with the calls that it is after; none if
/// there is no valid order. `full`: the volume may refuse what it has no room for.
pub fn orders(first: &State, calls: &[Call], full: bool) -> Vec<(Calls, State)> {
    assert!(calls.len() < 32);
    let answered = (0..calls.len()).filter(|&at| calls[at].end.is_some()).map(|at| 1 << at).sum();
    let mut search = Search { calls, full, answered, known: BTreeMap::new(), valid: Vec::new() };
    search.explore(0, first);
    search.valid
}

struct Search<'a> {
    calls: &'a [Call],
    full: bool,
    /// What a complete order holds at least.
    answered: Calls,
    /// Where the search was, and whether a complete order goes through there.
    known: BTreeMap<(Calls, Signature), bool>,
    valid: Vec<(Calls, State)>,
}

impl Search<'_> {
    fn explore(&mut self, done: Calls, state: &State) -> bool {
        let here = (done, state.signature());
        if let Some(leads_on) = self.known.get(&here) {
            return *leads_on;
        }
        let mut leads_on = done & self.answered == self.answered;
        for at in (0..self.calls.len()).filter(|at| done & 1 << at == 0) {
            let call = &self.calls[at];
            // Not before something that had returned when it was called.
            let first_end = self.calls.iter().enumerate().filter(|(other, _)| done & 1 << other == 0);
            let first_end = first_end.filter_map(|(_, other)| other.end.as_ref()).map(|(end, _)| *end).min();
            if first_end.is_some_and(|end| end < call.start) {
                continue;
            }
            let answer = call.end.as_ref().map(|(_, answer)| answer);
            if let Some(after) = state.after(&call.act, answer, self.full) {
                leads_on |= self.explore(done | 1 << at, &after);
            }
        }
        self.known.insert(here, leads_on);
        if leads_on {
            self.valid.push((done, state.clone()));
        }
        leads_on
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn mkdir(path: &str) -> Act {
        Act::Change(Op::Mkdir { path: path.into(), mode: 0o755 })
    }

    fn call(act: Act, start: u64, end: u64, answer: Answer) -> Call {
        Call { act, start, end: Some((end, answer)) }
    }

    fn done(ino: u64) -> Answer {
        Answer::Done(Some(Ino(ino)))
    }

    #[test]
    fn calls_at_once_have_any_order_and_others_their_own() {
        let exists = || Answer::Failed(Errno::EEXIST);
        let at_once = [call(mkdir("/a"), 0, 3, exists()), call(mkdir("/a"), 1, 2, done(7))];
        assert!(!orders(&State::new(), &at_once, false).is_empty());
        let one_by_one = [call(mkdir("/a"), 0, 1, exists()), call(mkdir("/a"), 2, 3, done(7))];
        assert!(orders(&State::new(), &one_by_one, false).is_empty());
        let both = [call(mkdir("/a"), 0, 3, done(6)), call(mkdir("/a"), 1, 2, done(7))];
        assert!(orders(&State::new(), &both, false).is_empty());
    }

    #[test]
    fn what_did_not_return_may_have_had_its_effect_or_not() {
        let lost = Call { act: mkdir("/a"), start: 0, end: None };
        for answer in [Answer::Failed(Errno::ENOENT), Answer::Listed(BTreeMap::new())] {
            let act =
                if matches!(answer, Answer::Listed(_)) { Act::List("/".into()) } else { Act::Lookup("/a".into()) };
            let states = orders(&State::new(), &[lost.clone(), call(act, 1, 2, answer)], false);
            let masks: BTreeSet<Calls> = states.iter().map(|(calls, _)| *calls).collect();
            assert_eq!(masks, BTreeSet::from([0, 2, 3]), "before, after the look, after both");
        }
        let dir = Name { ino: Ino(9), kind: FileType::Directory, nlink: 2 };
        let found = BTreeMap::from([("/a".to_string(), dir)]);
        let states = orders(&State::new(), &[lost], false);
        assert_eq!(states.iter().filter(|(_, state)| state.is_seen_as(&found).is_some()).count(), 1);
    }

    /// A power cut brought back a name that was removed, and the last call made one of that name and never returned.
    #[test]
    fn a_number_that_was_used_is_not_that_of_another_node() {
        let gone = Act::Change(Op::Rmdir { path: "/a".into() });
        let calls = [
            call(mkdir("/a"), 0, 1, done(7)),
            call(gone, 2, 3, Answer::Done(None)),
            Call { act: mkdir("/a"), start: 4, end: None },
        ];
        let found = BTreeMap::from([("/a".to_string(), Name { ino: Ino(7), kind: FileType::Directory, nlink: 2 })]);
        let states = orders(&State::new(), &calls, false);
        let seen: Vec<Calls> = states.iter().filter(|(_, s)| s.is_seen_as(&found).is_some()).map(|(c, _)| *c).collect();
        assert_eq!(seen, [1]);
    }

    #[test]
    fn only_a_full_volume_refuses() {
        let refused = [call(mkdir("/a"), 0, 1, Answer::Failed(Errno::ENOSPC))];
        assert!(orders(&State::new(), &refused, false).is_empty());
        assert_eq!(orders(&State::new(), &refused, true).len(), 2);
    }
}
