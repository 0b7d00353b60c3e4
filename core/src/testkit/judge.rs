//! One application at a time: what it sees, and what a crash may leave of it: the states of the model after each
//! operation, and which of them were promised.
//!
//! Owns: promises 1 (fsync), 2 (prefix), 3 (no invented bytes) and 4 (replace by rename), as tests.
//! Leaves to others: doing the operations, which crashes there are (`core/tests/enumerate`, `fuzz/tests/client.rs`).
//! Several applications at once, and stores that fail, are judged by the simulator.
//!
//! A crash leaves the names as they were after one of the steps, at or after the last call that made names durable
//! (any fsync syncs the whole metadata log; a killed process has lost no name at all); and each file as it was after
//! one of the steps up to the next change of names, at or after the last call that made it durable, and at or after
//! the step before a surviving rename that put it in the place of something else.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use xxhash_rust::xxh3::xxh3_64;

use crate::errno::Errno;
use crate::testkit::model::{Model, Node, NodeId, Stamp, with_mode};
use crate::testkit::ops::{AclEntries, Op, RenameFlag, acl_bytes};
use crate::types::{Attr, FileType, Ino, Timestamp};

/// Something with a name, as an application sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its inode.
    pub ino: Ino,
    /// Its attributes.
    pub attr: Attr,
    /// Contents of a regular file, target of a symbolic link.
    pub data: Vec<u8>,
    /// Its extended attributes.
    pub xattrs: BTreeMap<String, String>,
    /// Its access and default ACL.
    pub acls: [Option<AclEntries>; 2],
}

/// All names.
pub type Tree = BTreeMap<String, Seen>;

/// The tree after an operation that changed something.
#[derive(Debug)]
struct Step {
    model: Model,
    /// None: what the sequence began with.
    op: Option<Op>,
    /// Files that this rename put in the place of something else: they are at least as before it.
    settled: Vec<NodeId>,
    /// Of all that a crash can show.
    hash: u64,
}

/// What calls that returned have made durable: steps, as places in `Judge::steps`.
#[derive(Clone, Debug, Default)]
struct Promises {
    /// Everything. (<= names)
    all: usize,
    names: usize,
    files: BTreeMap<NodeId, usize>,
}

/// What may be found after a crash at some moment.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Number of steps that had returned.
    returned: usize,
    /// The step that may have had its effect.
    doubt: Option<Arc<Step>>,
    promises: Promises,
}

/// How a crash came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process was killed: what was handed to the stores is there.
    Kill,
    /// The machine lost its power: what was not synced may be lost.
    PowerCut,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "killed",
            Self::PowerCut => "power cut",
        })
    }
}

/// The model beside a world.
#[derive(Clone, Debug)]
pub struct Judge {
    model: Model,
    steps: Vec<Arc<Step>>,
    promises: Promises,
    /// Which inode is which node, as far as it was seen.
    inos: BTreeMap<NodeId, Ino>,
}

impl Judge {
    /// A judge of an empty volume made at `when`.
    pub fn new(when: Timestamp) -> Self {
        let mut model = Model::new(Stamp::exactly(when));
        // Nothing there records accesses.
        model.set_noatime();
        Self::of(model)
    }

    /// A judge of what is durable and as in `model`.
    pub fn of(model: Model) -> Self {
        let steps = vec![Arc::new(Step::new(model.clone(), None))];
        Self { model, steps, promises: Promises::default(), inos: BTreeMap::new() }
    }

    /// What it holds to be there.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The operation is about to be done at `when`: what it should answer, and the judge after it.
    pub fn after(&self, op: &Op, when: Timestamp) -> (Result<Vec<u8>, Errno>, Self) {
        let mut after = self.clone();
        let answer = after.model.apply(op, Stamp::exactly(when));
        if answer.is_ok() {
            let mut step = Step::new(after.model.clone(), Some(op.clone()));
            if step.hash != self.last().hash {
                step.settled = settled(&self.model, op);
                after.steps.push(Arc::new(step));
            }
        }
        (answer, after)
    }

    fn last(&self) -> &Step {
        self.steps.last().expect("there is a first step")
    }

    /// Whether `other`, which came from this one, has another tree or other promises.
    pub fn differs(&self, other: &Self) -> bool {
        let promised = |judge: &Self| {
            let Promises { all, names, files } = &judge.promises;
            (*all, *names, files.clone())
        };
        self.steps.len() != other.steps.len() || promised(self) != promised(other)
    }

    /// What may be found from here on, while the operation that leads to `after` is under way.
    pub fn claim(&self, after: Option<&Self>) -> Claim {
        let doubt = after.and_then(|after| after.steps.get(self.steps.len())).cloned();
        Claim { returned: self.steps.len(), doubt, promises: self.promises.clone() }
    }

    /// `op` has returned without an error; `is_sync`: what it is done to was opened so that writes are durable.
    pub fn promise(&mut self, op: &Op, is_sync: bool) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else there is promises nothing")]
        match op {
            Op::Fsync { slot } => self.promise_file(*slot),
            Op::Write { slot, .. } if is_sync => self.promise_file(*slot),
            Op::FsyncDir { .. } => self.promises.names = self.steps.len() - 1,
            Op::Sync => self.promise_all(),
            _ => {}
        }
    }

    /// An fsync of what is open in `slot` has returned.
    fn promise_file(&mut self, slot: usize) {
        let now = self.steps.len() - 1;
        self.promises.names = now;
        self.promises.files.extend(self.model.open_at(slot).map(|node| (node, now)));
    }

    /// A sync or an unmount has returned.
    pub fn promise_all(&mut self) {
        let now = self.steps.len() - 1;
        self.promises = Promises { all: now, names: now, files: BTreeMap::new() };
        let model = &self.model;
        self.inos.retain(|node, _| model.try_node(*node).is_some());
    }

    /// Compares everything with what an application sees without a crash; learns which inode is which.
    pub fn look(&mut self, tree: &Tree, open: &[Option<Seen>]) -> Result<(), String> {
        if let Some(difference) = self.difference(&self.model, tree, Exactness::Live) {
            return Err(difference);
        }
        for (slot, seen) in open.iter().enumerate() {
            match (self.model.open_at(slot), seen) {
                (Some(id), Some(seen)) => {
                    if let Some(difference) = file_difference(self.model.node(id), seen) {
                        return Err(format!("what is open in slot {slot}: {difference}"));
                    }
                }
                (None, None) => {}
                (model, _) => return Err(format!("slot {slot} should hold {model:?}")),
            }
        }
        for (path, seen) in tree {
            self.inos.insert(self.model.find(path).expect("the trees are equal"), seen.ino);
        }
        Ok(())
    }

    /// Everything that the verdict on a tree depends on.
    pub fn hash(&self, claim: &Claim) -> u64 {
        let Promises { all, names, files } = &claim.promises;
        let mut words: Vec<u64> = self.steps[*all..claim.returned].iter().map(|step| step.hash).collect();
        words.extend([u64::MAX, claim.doubt.as_ref().map_or(0, |step| step.hash), (names - all) as u64]);
        words.extend(files.iter().flat_map(|(node, step)| [node.0, (step - all) as u64]));
        words.push(u64::MAX);
        words.extend(self.inos.iter().flat_map(|(node, ino)| [node.0, ino.0]));
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        xxh3_64(&bytes)
    }

    /// The model of what was found, with nothing open; or why nothing that may be found explains it.
    pub fn explain(&self, claim: &Claim, crash: Crash, tree: &Tree) -> Result<Model, String> {
        let steps: Vec<&Step> = self.considered(claim);
        let floor = names_floor(claim, crash);
        let mut why = Vec::new();
        for at in (floor..steps.len()).rev() {
            match self.difference(&steps[at].model, tree, Exactness::Names) {
                Some(difference) => why.push(format!("not the names of step {at}: {difference}")),
                None => match found(claim, &steps, at, tree) {
                    Err(difference) => why.push(format!("the names of step {at}, but {difference}")),
                    Ok(model) => return Ok(model),
                },
            }
        }
        Err(why.join("\n    "))
    }

    fn considered<'a>(&'a self, claim: &'a Claim) -> Vec<&'a Step> {
        let doubt = claim.doubt.as_deref();
        self.steps[..claim.returned].iter().map(|step| &**step).chain(doubt).collect()
    }

    /// What may be found, in words.
    pub fn describe(&self, claim: &Claim, crash: Crash) -> String {
        let mut text = String::new();
        let all = claim.promises.all;
        for (at, step) in self.considered(claim).iter().enumerate().skip(all) {
            let op = match &step.op {
                Some(op) if at > all => format!("{op:?}"),
                Some(_) | None => "what was synced".into(),
            };
            let doubt = if at < claim.returned { "" } else { " (had not returned)" };
            writeln!(text, "    step {at}: {op}{doubt}").expect("text grows");
        }
        let floor = names_floor(claim, crash);
        writeln!(text, "    names: of step {floor} or later").expect("text grows");
        for (node, step) in &claim.promises.files {
            let names = self.steps[*step].model.names_of(*node);
            writeln!(text, "    the file {names:?}: of step {step} or later").expect("text grows");
        }
        write!(text, "    other files: of step {all} or later").expect("text grows");
        text
    }

    /// How `tree` differs from `model`, if it does.
    fn difference(&self, model: &Model, tree: &Tree, exactness: Exactness) -> Option<String> {
        let mut paths = BTreeMap::new();
        model.for_each(|path, id, _| _ = paths.insert(path.to_string(), id));
        if let Some(path) = paths.keys().find(|path| !tree.contains_key(*path)) {
            return Some(format!("{path} is missing"));
        }
        let mut inos = self.inos.clone();
        for (path, seen) in tree {
            let Some(&id) = paths.get(path) else { return Some(format!("{path} should not exist")) };
            let ino = *inos.entry(id).or_insert(seen.ino);
            if ino != seen.ino {
                return Some(format!("{path} should be {ino:?}, is {:?}", seen.ino));
            }
            let node = model.node(id);
            let whole = exactness == Exactness::Live || node.kind != FileType::Regular;
            let difference = names_difference(model, id, seen)
                .or_else(|| if whole { file_difference(node, seen) } else { None })
                .or_else(|| {
                    let differs = whole && !node.ctime.holds(seen.attr.ctime);
                    differs.then(|| format!("ctime should be {:?}, is {:?}", node.ctime.from, seen.attr.ctime))
                });
            if let Some(difference) = difference {
                return Some(format!("{path}: {difference}"));
            }
        }
        None
    }
}

impl Step {
    fn new(model: Model, op: Option<Op>) -> Self {
        let mut bytes = Vec::new();
        model.for_each(|path, id, node| {
            let Node { kind, mode, uid, gid, rdev, atime, mtime, ctime, data, entries: _, xattrs, .. } = node;
            bytes.extend_from_slice(path.as_bytes());
            let words = [id.0, *kind as u64, u64::from(*mode), u64::from(*uid), u64::from(*gid), u64::from(*rdev)];
            let times = [atime.from.secs as u64, mtime.from.secs as u64, ctime.from.secs as u64];
            words.iter().chain(&times).for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
            for (name, value) in xattrs {
                bytes.extend_from_slice(format!("{name}={value}\n").as_bytes());
            }
            bytes.push(node.flags);
            for acl in [&node.access_acl, &node.default_acl] {
                bytes.extend_from_slice(&acl.as_ref().map(acl_bytes).unwrap_or_default());
            }
            bytes.extend_from_slice(&(data.len() as u64).to_le_bytes());
            bytes.extend_from_slice(data);
        });
        Self { model, op, settled: Vec::new(), hash: xxh3_64(&bytes) }
    }
}

/// How exactly a tree must equal the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exactness {
    /// In everything.
    Live,
    /// But for the contents and attributes of regular files, which have an order of their own.
    Names,
}

/// The files that `op` shows in the place of something else, done to `before`.
fn settled(before: &Model, op: &Op) -> Vec<NodeId> {
    let Op::Rename { from, to, flag } = op else { return Vec::new() };
    match (before.find(from), before.find(to)) {
        (Ok(moved), Ok(target)) if *flag == RenameFlag::Exchange => vec![moved, target],
        (Ok(moved), Ok(_)) => vec![moved],
        (_, _) => Vec::new(),
    }
}

/// The first step whose names may be found.
fn names_floor(claim: &Claim, crash: Crash) -> usize {
    match crash {
        Crash::Kill => claim.returned - 1,
        Crash::PowerCut => claim.promises.names,
    }
}

/// All names, and which nodes they lead to.
fn names(model: &Model) -> Vec<(String, NodeId)> {
    let mut found = Vec::new();
    model.for_each(|path, id, _| found.push((path.to_string(), id)));
    found
}

/// The model of what was found, if the names are those after step `at`; or which file is as it was after none of the
/// steps that it may be left at.
fn found(claim: &Claim, steps: &[&Step], at: usize, tree: &Tree) -> Result<Model, String> {
    let mut model = steps[at].model.clone();
    let here = names(&model);
    // Changes of files move no names: whatever came before the next change of names may have survived with this one.
    let last = (at..steps.len()).take_while(|&later| names(&steps[later].model) == here).last().unwrap_or(at);
    for (path, seen) in tree {
        let id = model.find(path).expect("the names are equal");
        if seen.attr.kind == FileType::Regular {
            let synced = claim.promises.files.get(&id).copied().unwrap_or(0).max(claim.promises.all);
            let renamed = (1..=at).rev().find(|&step| steps[step].settled.contains(&id)).map_or(0, |step| step - 1);
            let floor = synced.max(renamed);
            let candidates = (floor..=last).rev().filter_map(|step| steps[step].model.try_node(id));
            let found = one_of(candidates, seen)
                .map_err(|why| format!("{path} is as after none of the steps {floor} to {last}; the last: {why}"))?;
            // The ordered changes alone: attributes that are written like names are those of step `at`.
            let node = model.node_mut(id);
            (node.data, node.mode, node.uid, node.gid) = (found.data.clone(), found.mode, found.uid, found.gid);
            node.atime = found.atime;
        }
        let node = model.node_mut(id);
        (node.mtime, node.ctime) = (Stamp::exactly(seen.attr.mtime), Stamp::exactly(seen.attr.ctime));
    }
    model.close_all();
    steps.iter().for_each(|step| model.number_above(&step.model));
    Ok(model)
}

/// The first of the states of a file that it may be in; or how it differs from the first of all.
fn one_of<'a>(candidates: impl Iterator<Item = &'a Node>, seen: &Seen) -> Result<&'a Node, String> {
    let mut why = None;
    for node in candidates {
        match file_difference(node, seen) {
            None => return Ok(node),
            Some(difference) => drop(why.get_or_insert(difference)),
        }
    }
    Err(why.unwrap_or_default())
}

/// What an operation on names sets.
fn names_difference(model: &Model, id: NodeId, seen: &Seen) -> Option<String> {
    let node = model.node(id);
    let (expected, found) =
        ((node.kind, model.nlink(id), node.rdev), (seen.attr.kind, seen.attr.nlink, seen.attr.rdev));
    if found != expected {
        return Some(format!("type, links and device should be {expected:?}, are {found:?}"));
    }
    if node.kind == FileType::Symlink && *node.data != seen.data {
        return Some(format!("target should be {:?}, is {:?}", node.data, seen.data));
    }
    if seen.xattrs != node.xattrs {
        return Some(format!("extended attributes should be {:?}, are {:?}", node.xattrs, seen.xattrs));
    }
    if seen.attr.flags.bits() != node.flags {
        return Some(format!("flags should be {}, are {}", node.flags, seen.attr.flags.bits()));
    }
    // The mode of a file has an order of its own, and the access ACL always agrees with it.
    let access = node.access_acl.as_ref().map(|acl| with_mode(acl, seen.attr.mode));
    let acls = [access, node.default_acl.clone()];
    (seen.acls != acls).then(|| format!("ACLs should be {acls:?}, are {:?}", seen.acls))
}

/// What the ordered changes of one file set.
fn file_difference(node: &Node, seen: &Seen) -> Option<String> {
    let attr = &seen.attr;
    if (attr.mode, attr.uid, attr.gid) != (node.mode, node.uid, node.gid) {
        let (found, expected) = ((attr.mode, attr.uid, attr.gid), (node.mode, node.uid, node.gid));
        return Some(format!("mode and owner should be {expected:?}, are {found:?}"));
    }
    if !node.atime.holds(attr.atime) {
        return Some(format!("atime should be {:?}, is {:?}", node.atime, attr.atime));
    }
    if !node.mtime.holds(attr.mtime) {
        return Some(format!("mtime should be {:?}, is {:?}", node.mtime.from, attr.mtime));
    }
    if node.kind != FileType::Regular {
        return None;
    }
    if attr.length != node.data.len() as u64 {
        return Some(format!("length should be {}, is {}", node.data.len(), attr.length));
    }
    if seen.data != *node.data {
        let at = seen.data.iter().zip(&*node.data).position(|(a, b)| a != b).unwrap_or(0);
        let differ = seen.data.iter().zip(&*node.data).filter(|(a, b)| a != b).count();
        let (found, expected) = (seen.data.get(at), node.data.get(at));
        return Some(format!("{differ} bytes differ, the first at {at}: should be {expected:?}, is {found:?}"));
    }
    None
}
