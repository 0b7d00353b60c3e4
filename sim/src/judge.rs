//! The judge of one application: the model beside it, compared after every step, and the history that a crash is
//! judged by.
//!
//! Owns: the comparison, the history of a life, what was promised to be durable.
//! Leaves to others: looking (`observe`), which of the past states a crash may leave (`recovery`).
//!
//! Invariants
//! - `history[i]` is the model after the i-th change of this life; `history[0]` is what the life began with.
//! - An operation under way, or one that failed without telling whether it had an effect, is in `doubt`.

use std::collections::BTreeMap;
use std::time::Duration;

use kiseki_core::errno::Errno;
use kiseki_core::testkit::model::{Model, Node, NodeId, Stamp, with_mode};
use kiseki_core::testkit::ops::{Habits, Op};
use kiseki_core::types::{FileType, Ino};

use crate::observe::{Seen, Tree};
use crate::world::clock::Clock;

/// A state that the application has seen, and the operation that led to it.
#[derive(Clone, Debug)]
pub struct Step {
    /// The tree after the operation.
    pub model: Model,
    /// The operation; none at the beginning.
    pub op: Option<Op>,
    /// When it began.
    pub start: Duration,
    /// When it had returned; none if it never did.
    pub end: Option<Duration>,
}

/// Something that a successful call has made durable, as of the step with that number.
#[derive(Clone, Copy, Debug)]
pub enum Durable {
    /// A file's contents and attributes, and the names that lead to it.
    File(NodeId, usize),
    /// A directory's entries, and the names that lead to it.
    Directory(NodeId, usize),
    /// Everything.
    All(usize),
}

/// An operation whose effect is not known.
#[derive(Clone, Debug)]
pub struct Doubt {
    /// The operation.
    pub op: Op,
    /// When it began.
    pub start: Duration,
}

/// What the judge knows of one application.
#[derive(Debug)]
pub struct Judge {
    /// The application.
    pub habits: Habits,
    /// The tree as it must be.
    pub model: Model,
    /// The states of this life, in order.
    pub history: Vec<Step>,
    /// What was promised in this life.
    pub durable: Vec<Durable>,
    /// The operation that may or may not have had its effect.
    pub doubt: Option<Doubt>,
    /// Which inode is which node.
    pub inos: BTreeMap<NodeId, Ino>,
    /// Every inode number that was ever seen, and for what.
    used: BTreeMap<Ino, NodeId>,
    /// Operations that returned, and those that succeeded.
    pub completed: (u64, u64),
    /// What the times of changes come from.
    pub clock: Clock,
}

/// How exactly the tree must equal the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// In everything.
    Live,
    /// But for the contents and attributes of regular files, which have an order of their own.
    Namespace,
}

impl Judge {
    /// A judge of an application that finds the tree as in `model`.
    pub fn new(habits: Habits, model: Model, clock: Clock) -> Self {
        let history = vec![Step { model: model.clone(), op: None, start: Duration::ZERO, end: Some(Duration::ZERO) }];
        Self {
            habits,
            model,
            history,
            durable: Vec::new(),
            doubt: None,
            inos: BTreeMap::new(),
            used: BTreeMap::new(),
            completed: (0, 0),
            clock,
        }
    }

    /// The application is about to do `op`.
    pub fn begin(&mut self, op: &Op, start: Duration) {
        assert!(self.doubt.is_none());
        self.doubt = Some(Doubt { op: op.clone(), start });
    }

    /// The operation has returned at `end`.
    pub fn finish(&mut self, result: &Result<Vec<u8>, Errno>, end: Duration) -> Result<(), String> {
        let doubt = self.doubt.take().expect("an operation was under way");
        self.completed.0 += 1;
        if matches!(result, Err(Errno::EIO | Errno::ENOSPC)) {
            // The world failed for too long, or was full. Whether there was an effect, the next look will tell.
            self.doubt = Some(doubt);
            return Ok(());
        }
        let mut after = self.model.clone();
        let expected = after.apply(&doubt.op, self.clock.span(doubt.start));
        if *result != expected {
            return Err(match (result, &expected) {
                (Ok(seen), Ok(expected)) => format!("{:?} read {}", doubt.op, byte_difference(expected, seen)),
                _ => format!("{:?} answered {:?}, should have been {:?}", doubt.op, short(result), short(&expected)),
            });
        }
        if expected.is_ok() {
            self.completed.1 += 1;
            self.step(after, doubt, Some(end));
        }
        Ok(())
    }

    fn step(&mut self, after: Model, doubt: Doubt, end: Option<Duration>) {
        self.model = after;
        self.history.push(Step { model: self.model.clone(), op: Some(doubt.op), start: doubt.start, end });
    }

    /// A new life begins, with the tree as in `model`.
    pub fn restart(&mut self, model: Model) {
        self.model = model;
        self.history =
            vec![Step { model: self.model.clone(), op: None, start: Duration::ZERO, end: Some(Duration::ZERO) }];
        self.durable.clear();
        self.doubt = None;
    }

    /// Number of the last step.
    pub fn now(&self) -> usize {
        self.history.len() - 1
    }

    /// Compares everything with what the application sees: names, and by slot the open files that have none.
    /// `now` is the time after the look.
    pub fn look(&mut self, tree: &Tree, unlinked: &[(usize, Seen)], now: Duration) -> Result<(), String> {
        let compare = |judge: &Self, model: &Model| {
            let named = judge.difference(model, tree, Exactness::Live);
            named.or_else(|| {
                unlinked.iter().find_map(|(slot, seen)| unlinked_difference(model, *slot, seen, &judge.clock))
            })
        };
        let mut difference = compare(self, &self.model);
        if let Some(doubt) = self.doubt.take() {
            let mut after = self.model.clone();
            // An operation that failed half way may still have had its effect.
            if difference.is_some() && after.apply(&doubt.op, self.clock.span(doubt.start)).is_ok() {
                difference = compare(self, &after);
                let mut half = self.model.clone();
                if difference.is_some() && half.apply_half(&doubt.op, self.clock.span(doubt.start)) {
                    difference = compare(self, &half);
                    after = half;
                }
                self.step(after, doubt, Some(now));
            }
        }
        if let Some(difference) = difference {
            return Err(difference);
        }
        self.adopt(tree)
    }

    /// Learns what only the real thing can know: inode numbers, and times more exactly.
    pub fn adopt(&mut self, tree: &Tree) -> Result<(), String> {
        for (path, seen) in tree {
            let id = self.model.find(path).expect("the trees are equal");
            self.inos.insert(id, seen.ino);
            if let Some(other) = self.used.insert(seen.ino, id)
                && other != id
            {
                return Err(format!("{:?} of {path} was the number of another file before ({other:?})", seen.ino));
            }
            let node = self.model.node_mut(id);
            (node.mtime, node.ctime) = (Stamp::exactly(seen.attr.mtime), Stamp::exactly(seen.attr.ctime));
        }
        let last = self.history.last_mut().expect("a life has a beginning");
        last.model = self.model.clone();
        Ok(())
    }

    /// How `tree` differs from `model`, if it does.
    pub fn difference(&self, model: &Model, tree: &Tree, exactness: Exactness) -> Option<String> {
        let mut paths: BTreeMap<String, NodeId> = BTreeMap::new();
        model.for_each(|path, id, _| {
            paths.insert(path.to_string(), id);
        });
        for path in paths.keys() {
            if !tree.contains_key(path) {
                return Some(format!("{path} is missing"));
            }
        }
        let mut inos: BTreeMap<NodeId, (Ino, &str)> = BTreeMap::new();
        for (path, seen) in tree {
            let Some(&id) = paths.get(path) else { return Some(format!("{path} should not exist")) };
            if let Some((other, path0)) = inos.insert(id, (seen.ino, path))
                && other != seen.ino
            {
                return Some(format!("{path} and {path0} should be one file"));
            }
            if let Some(known) = self.inos.get(&id)
                && *known != seen.ino
            {
                return Some(format!("{path} should be {known:?}, is {:?}", seen.ino));
            }
            let home = self.habits.homes.contains(path);
            if let Some(what) = namespace_difference(model, id, seen, home) {
                return Some(format!("{path}: {what}"));
            }
            let exact = exactness == Exactness::Live || seen.attr.kind != FileType::Regular;
            if exact && !home {
                let node = model.node(id);
                if let Some(what) = file_difference(node, seen, &self.clock) {
                    return Some(format!("{path}: {what}"));
                }
                if !self.clock.follows(node.ctime, seen.attr.ctime) {
                    return Some(format!("{path}: ctime should be in {:?}, is {:?}", node.ctime, seen.attr.ctime));
                }
            }
        }
        None
    }
}

/// What a namespace operation sets. A home is shared: others change its links and times.
fn namespace_difference(model: &Model, id: NodeId, seen: &Seen, home: bool) -> Option<String> {
    let node = model.node(id);
    let attr = &seen.attr;
    let nlink = model.nlink(id);
    let target = if node.kind == FileType::Symlink { node.data.as_slice() } else { &[] };
    if attr.kind != node.kind {
        return Some(format!("should be a {:?}, is a {:?}", node.kind, attr.kind));
    }
    if !home && attr.nlink != nlink {
        return Some(format!("nlink should be {nlink}, is {}", attr.nlink));
    }
    if attr.rdev != node.rdev {
        return Some(format!("rdev should be {}, is {}", node.rdev, attr.rdev));
    }
    if seen.target.as_bytes() != target {
        return Some(format!("target should be {:?}, is {:?}", String::from_utf8_lossy(target), seen.target));
    }
    if seen.xattrs != node.xattrs {
        return Some(format!("extended attributes should be {:?}, are {:?}", node.xattrs, seen.xattrs));
    }
    if !home && attr.flags.bits() != node.flags {
        return Some(format!("flags should be {}, are {}", node.flags, attr.flags.bits()));
    }
    // The mode of a file has an order of its own, and the access ACL always agrees with it.
    let access = node.access_acl.as_ref().map(|acl| with_mode(acl, attr.mode));
    let acls = [access, node.default_acl.clone()];
    (seen.acls != acls).then(|| format!("ACLs should be {acls:?}, are {:?}", seen.acls))
}

/// What the open file in `slot`, which has no name, should be.
fn unlinked_difference(model: &Model, slot: usize, seen: &Seen, clock: &Clock) -> Option<String> {
    let node = model.node(model.open_at(slot)?);
    let what = if seen.attr.nlink == 0 { file_difference(node, seen, clock) } else { Some("it has a name".into()) };
    what.map(|what| format!("unlinked {:?} in slot {slot}: {what}", seen.ino))
}

/// What the ordered changes of one file set.
pub fn file_difference(node: &Node, seen: &Seen, clock: &Clock) -> Option<String> {
    let attr = &seen.attr;
    if (attr.mode, attr.uid, attr.gid) != (node.mode, node.uid, node.gid) {
        return Some(format!(
            "mode and owner should be {:o} {} {}, are {:o} {} {}",
            node.mode, node.uid, node.gid, attr.mode, attr.uid, attr.gid
        ));
    }
    if !clock.follows_reads(node.atime, attr.atime) {
        return Some(format!("atime should be in {:?}, is {:?}", node.atime, attr.atime));
    }
    let latest = node.kind == FileType::Directory && clock.follows(node.mtime, attr.mtime);
    if !latest && !node.mtime.holds(attr.mtime) {
        return Some(format!("mtime should be in {:?}, is {:?}", node.mtime, attr.mtime));
    }
    if node.kind != FileType::Regular {
        return None;
    }
    if attr.length != node.data.len() as u64 {
        return Some(format!("length should be {}, is {}", node.data.len(), attr.length));
    }
    match &seen.data {
        Some(data) if data != &*node.data => Some(format!("contents: {}", byte_difference(&node.data, data))),
        Some(_) | None => None,
    }
}

fn byte_difference(expected: &[u8], seen: &[u8]) -> String {
    let at = expected.iter().zip(seen).position(|(a, b)| a != b).unwrap_or(expected.len().min(seen.len()));
    let around = |bytes: &[u8]| bytes.iter().skip(at).take(8).copied().collect::<Vec<u8>>();
    let differ = expected.iter().zip(seen).filter(|(a, b)| a != b).count();
    format!(
        "{} bytes {:?} at {at}, should have been {} bytes {:?} ({differ} differ)",
        seen.len(),
        around(seen),
        expected.len(),
        around(expected)
    )
}

fn short(result: &Result<Vec<u8>, Errno>) -> Result<usize, Errno> {
    result.as_ref().map(Vec::len).map_err(|errno| *errno)
}
