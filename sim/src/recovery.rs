//! Judging a crash: which of the states of a life may be found after it.
//!
//! Owns: promises 1 (fsync), 2 (prefix), 3 (no invented bytes) and 4 (replace by rename), as tests.
//! Leaves to others: the history (`judge`), looking (`observe`).
//!
//! A crash leaves, of one application:
//! - the names as they were after one of its steps, at or after every step that made names durable;
//! - each file as it was after one of the steps up to there, at or after the last one that made it durable, and at or
//!   after the one before a surviving rename over an existing name.
//!
//! Of two applications: if an operation of one survived, so did all that had returned to the other before it began.

use kiseki_core::testkit::model::{Model, Node, NodeId, Stamp};
use kiseki_core::testkit::ops::{Op, RenameFlag};
use kiseki_core::types::FileType;

use crate::judge::{Durable, Exactness, Judge, Step, file_difference};
use crate::observe::Tree;

/// A state that explains what was found.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Number of the last step whose names survived.
    pub step: usize,
    /// The tree as it is from here on.
    pub model: Model,
    /// Steps lost.
    pub lost: usize,
}

/// The states of `judge`'s history that explain `tree`, the latest first; or why there is none.
pub fn explain(judge: &Judge, tree: &Tree) -> Result<Vec<Verdict>, String> {
    let history = with_doubt(judge);
    let floor = namespace_floor(judge, &history);
    let mut verdicts = Vec::new();
    let mut why = None;
    for step in (floor..history.len()).rev() {
        if let Some(difference) = judge.difference(&history[step].model, tree, Exactness::Namespace) {
            why.get_or_insert_with(|| format!("as of step {step} ({:?}): {difference}", history[step].op));
            continue;
        }
        match files(judge, &history, step, tree) {
            Ok(model) => verdicts.push(Verdict { step, model, lost: history.len() - 1 - step }),
            Err(difference) => {
                let text = format!("as of step {step} the names are right, but {difference}");
                // More telling than a difference in names.
                if verdicts.is_empty() && why.as_ref().is_none_or(|why| !why.contains("names are right")) {
                    why = Some(text);
                }
            }
        }
    }
    if verdicts.is_empty() {
        let why = why.unwrap_or_default();
        return Err(format!("no step from {floor} to {} explains what was found; {why}", history.len() - 1));
    }
    Ok(verdicts)
}

/// Picks one explanation of each of two applications so that nothing survived what came before it and was lost.
pub fn agree(judges: [&Judge; 2], verdicts: [&[Verdict]; 2]) -> Result<(usize, usize), String> {
    let mut why = String::new();
    for (a, first) in verdicts[0].iter().enumerate() {
        for (b, second) in verdicts[1].iter().enumerate() {
            let steps = [first.step, second.step];
            match overtaken(judges, steps, 0).or_else(|| overtaken(judges, steps, 1)) {
                None => return Ok((a, b)),
                Some(text) => why = text,
            }
        }
    }
    Err(why)
}

/// An operation of `judges[lost]` that returned before a surviving one of the other began, and is lost.
fn overtaken(judges: [&Judge; 2], steps: [usize; 2], lost: usize) -> Option<String> {
    let (loser, winner) = (judges[lost], judges[1 - lost]);
    let changes = |history: &[Step], at: usize| at > 0 && names(&history[at].model) != names(&history[at - 1].model);
    let last = (1..=steps[1 - lost].min(winner.now())).rev().find(|&at| changes(&winner.history, at))?;
    let first = (steps[lost] + 1..=loser.now()).find(|&at| changes(&loser.history, at))?;
    let (survivor, victim) = (&winner.history[last], &loser.history[first]);
    (victim.end? < survivor.start)
        .then(|| format!("{:?} was lost though {:?}, which began after it, was not", victim.op, survivor.op))
}

/// All names, and which nodes they lead to.
fn names(model: &Model) -> Vec<(String, NodeId)> {
    let mut found = Vec::new();
    model.for_each(|path, id, _| found.push((path.to_string(), id)));
    found
}

/// The history, and after it the operation that may have had its effect.
fn with_doubt(judge: &Judge) -> Vec<Step> {
    let mut history = judge.history.clone();
    if let Some(doubt) = &judge.doubt {
        let mut model = judge.model.clone();
        if model.apply(&doubt.op, judge.clock.span(doubt.start)).is_ok() {
            history.push(Step { model, op: Some(doubt.op.clone()), start: doubt.start, end: None });
        }
    }
    history
}

/// The first step whose names satisfy all that was made durable.
fn namespace_floor(judge: &Judge, history: &[Step]) -> usize {
    let floors = judge.durable.iter().map(|durable| match *durable {
        Durable::All(step) => step,
        Durable::File(node, step) => since(history, step, |model| way(model, node, false)),
        Durable::Directory(node, step) => since(history, step, |model| way(model, node, true)),
    });
    floors.max().unwrap_or(0)
}

/// The first of the steps that end with `step` and look alike.
fn since<T: PartialEq>(history: &[Step], step: usize, look: impl Fn(&Model) -> T) -> usize {
    let wanted = look(&history[step].model);
    (0..step).rev().find(|&at| look(&history[at].model) != wanted).map_or(0, |at| at + 1)
}

/// What leads to `node`: its names with the directories on the way, and if asked for its entries.
fn way(model: &Model, node: NodeId, entries: bool) -> Vec<(String, Vec<NodeId>)> {
    let mut paths = model.names_of(node);
    if entries && let Some(directory) = model.try_node(node) {
        let here = paths.first().cloned().unwrap_or_default();
        paths.extend(directory.entries.keys().map(|name| format!("{here}/{name}")));
    }
    let chain = |path: &String| {
        let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
        ends.filter_map(|end| model.find(&path[..end]).ok()).collect()
    };
    let mut way: Vec<(String, Vec<NodeId>)> = paths.iter().map(|path| (path.clone(), chain(path))).collect();
    if let Some(node) = model.try_node(node) {
        // Extended attributes, ACLs and flags are written like names: at once.
        let Node { xattrs, access_acl, default_acl, flags, .. } = node;
        way.push((format!("{xattrs:?} {access_acl:?} {default_acl:?} {flags}"), Vec::new()));
    }
    way
}

/// The model of what was found, if every file is as after one of the steps that it may be left at.
fn files(judge: &Judge, history: &[Step], step: usize, tree: &Tree) -> Result<Model, String> {
    let mut model = history[step].model.clone();
    // Changes of files move no names: whatever came before the next change of names may have survived with this one.
    let last = (step..history.len())
        .take_while(|&at| names(&history[at].model) == names(&history[step].model))
        .last()
        .unwrap_or(step);
    for (path, seen) in tree {
        let id = model.find(path).map_err(|errno| format!("{path}: {errno:?}"))?;
        if seen.attr.kind == FileType::Regular {
            let floor = file_floor(judge, history, step, id);
            let candidates = (floor..=last).rev().filter_map(|at| left_by(judge, &history[at], id));
            let mut why = None;
            let mut found = None;
            for node in candidates {
                match file_difference(&node, seen, &judge.clock) {
                    None => {
                        found = Some(node);
                        break;
                    }
                    Some(difference) => drop(why.get_or_insert(difference)),
                }
            }
            let Some(found) = found else {
                let why = why.unwrap_or_default();
                return Err(format!("{path} is as after none of the steps {floor} to {last}; the last: {why}"));
            };
            let node = model.node_mut(id);
            (node.data, node.mode, node.uid, node.gid) = (found.data, found.mode, found.uid, found.gid);
            node.atime = found.atime;
        }
        let node = model.node_mut(id);
        (node.mtime, node.ctime) = (Stamp::exactly(seen.attr.mtime), Stamp::exactly(seen.attr.ctime));
    }
    model.close_all();
    for step in history {
        model.number_above(&step.model);
    }
    Ok(model)
}

/// File `id` as `step` may have left it.
fn left_by(judge: &Judge, step: &Step, id: NodeId) -> Option<Node> {
    let mut node = step.model.try_node(id)?.clone();
    // A copy that is tried again may be lost in part: its first try did the same, at another time.
    if let Some(Op::CopyRange { .. }) = step.op {
        let span = judge.clock.span(step.start);
        node.mtime = Stamp { from: node.mtime.from.min(span.from), to: node.mtime.to.max(span.to) };
    }
    Some(node)
}

/// The first step that file `id` may be left at, if the names are those after `step`.
fn file_floor(judge: &Judge, history: &[Step], step: usize, id: NodeId) -> usize {
    let durable = judge.durable.iter().filter_map(|durable| match *durable {
        Durable::All(at) => Some(at),
        Durable::File(node, at) if node == id => Some(at),
        Durable::File(..) | Durable::Directory(..) => None,
    });
    // A rename over an existing name waits until the renamed file's bytes are safe; an exchange waits for both.
    let renamed = (1..=step).filter(|&at| {
        let Some(Op::Rename { from, to, flag }) = &history[at].op else { return false };
        let before = &history[at - 1].model;
        let (moved, target) = (before.find(from), before.find(to));
        let over = target.is_ok() && target != moved;
        over && (moved == Ok(id) || *flag == RenameFlag::Exchange && target == Ok(id))
    });
    durable.chain(renamed.map(|at| at - 1)).max().unwrap_or(0)
}
