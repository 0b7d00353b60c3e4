//! Which names a writer's folder may hold after a crash.
//!
//! Owns: the namespace operations of one writer since the last one that an fsync covered, and the verdict on the
//! names found. Leaves to others: what is in the files (`content`).
//!
//! Invariants
//! - `now` is `base` with all operations applied, while every one of them was answered.
//! - Only the last operation may be unanswered.
//! - The folder may be found as `base` with any prefix of the operations applied, and in no other state.
//! - Operations are numbered from 0 through the whole run; `base` holds those below `base_number`.

use std::collections::BTreeMap;

use crate::content::Wrong;

/// What stands at a name. Inode 0 is that of a creation whose answer never came: it matches any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) ino: u64,
    pub(crate) dir: bool,
}

/// Path below the writer's folder -> what stands there.
pub(crate) type Tree = BTreeMap<String, Node>;

#[derive(Clone, Debug)]
pub(crate) enum NameOp {
    Add {
        path: String,
        node: Node,
    },
    Remove {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    /// Two files change places.
    Exchange {
        a: String,
        b: String,
    },
}

#[derive(Clone, Debug)]
struct Logged {
    op: NameOp,
    /// Ticks of the run's clock around the call. (end: `None` until answered)
    start: u64,
    end: Option<u64>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    base: Tree,
    base_number: u64,
    /// Start of the last operation in `base`.
    base_start: u64,
    ops: Vec<Logged>,
    now: Tree,
    /// Inode -> number of the last operation on one of its names.
    touched: BTreeMap<u64, u64>,
}

/// What a crash kept of a writer's operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Operations below this number are certainly in what was found.
    pub(crate) below: u64,
    /// When the last of those began.
    pub(crate) last_start: u64,
    /// When the first answered operation that is certainly not in what was found ended.
    pub(crate) first_lost_end: Option<u64>,
}

impl Names {
    pub(crate) fn now(&self) -> &Tree {
        &self.now
    }

    /// Operations that no fsync has covered.
    pub(crate) fn pending(&self) -> usize {
        self.ops.len()
    }

    /// Number of the next operation.
    pub(crate) fn next(&self) -> u64 {
        self.base_number + self.ops.len() as u64
    }

    pub(crate) fn begin(&mut self, op: NameOp, start: u64) {
        self.ops.push(Logged { op, start, end: None });
    }

    /// The last operation begun was answered; a creation made `ino`.
    pub(crate) fn answered(&mut self, ino: Option<u64>, end: u64) {
        let number = self.next() - 1;
        let logged = self.ops.last_mut().expect("an operation was begun");
        logged.end = Some(end);
        if let (NameOp::Add { node, .. }, Some(ino)) = (&mut logged.op, ino) {
            node.ino = ino;
        }
        for ino in inodes(&self.now, &logged.op) {
            self.touched.insert(ino, number);
        }
        apply(&mut self.now, &logged.op);
    }

    /// An fsync of the inode at `path` returned 0: the names that lead to it are durable, and so is all before them.
    /// Returns how many operations that covers.
    pub(crate) fn synced_path(&mut self, path: &str) -> u64 {
        let mut number = 0;
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let Some(node) = self.now.get(&path[..at]) else { continue };
            number = number.max(self.touched.get(&node.ino).map_or(0, |last| last + 1));
        }
        self.advance(number)
    }

    /// An fsync of a folder of this writer returned 0; `path` is empty for the writer's own.
    /// Covers the last operation in that folder, and so all before it.
    pub(crate) fn synced_folder(&mut self, path: &str) -> u64 {
        let own = self.synced_path(path);
        let inside = |name: &str| name.rsplit_once('/').map_or("", |(folder, _)| folder) == path;
        let last = self.ops.iter().rposition(|logged| match &logged.op {
            NameOp::Add { path, .. } | NameOp::Remove { path } => inside(path),
            NameOp::Rename { from: a, to: b } | NameOp::Exchange { a, b } => inside(a) || inside(b),
        });
        own + last.map_or(0, |index| self.advance(self.base_number + index as u64 + 1))
    }

    fn advance(&mut self, number: u64) -> u64 {
        let count = number.saturating_sub(self.base_number).min(self.ops.len() as u64);
        for logged in self.ops.drain(..count as usize) {
            apply(&mut self.base, &logged.op);
            self.base_start = logged.start;
        }
        self.base_number += count;
        count
    }

    /// Inodes that some allowed state holds: what a crash may bring back.
    pub(crate) fn reachable(&self) -> Vec<u64> {
        let mut inodes: Vec<u64> = self.base.values().map(|node| node.ino).collect();
        for logged in &self.ops {
            if let NameOp::Add { node, .. } = &logged.op {
                inodes.push(node.ino);
            }
        }
        inodes
    }

    /// Judges the names found after a crash, and goes on from there.
    pub(crate) fn settle(&mut self, seen: &Tree) -> Result<Kept, Wrong> {
        let mut state = self.base.clone();
        let mut matching = Vec::new();
        for count in 0..=self.ops.len() {
            if count > 0 {
                apply(&mut state, &self.ops[count - 1].op);
            }
            if matches(&state, seen) {
                matching.push(count);
            }
        }
        let (Some(first), Some(last)) = (matching.first().copied(), matching.last().copied()) else {
            return Err(self.explain(seen));
        };
        let kept = Kept {
            below: self.base_number + first as u64,
            last_start: first.checked_sub(1).map_or(self.base_start, |index| self.ops[index].start),
            first_lost_end: self.ops.get(last).and_then(|logged| logged.end),
        };
        self.ops.truncate(last);
        for logged in &mut self.ops {
            if let NameOp::Add { path, node } = &mut logged.op
                && node.ino == 0
            {
                node.ino = seen.get(path).map_or(0, |found| found.ino);
            }
        }
        let next = self.next();
        for node in seen.values() {
            let last = self.touched.entry(node.ino).or_insert(next);
            *last = (*last).min(next.saturating_sub(1));
        }
        self.now.clone_from(seen);
        Ok(kept)
    }

    fn explain(&self, seen: &Tree) -> Wrong {
        let mut state = self.base.clone();
        let mut states = vec![state.clone()];
        for logged in &self.ops {
            apply(&mut state, &logged.op);
            states.push(state.clone());
        }
        let known =
            |path: &String, node: &Node| states.iter().any(|state| state.get(path).is_some_and(|n| same(n, node)));
        let invented = seen.iter().find(|(path, node)| !known(path, node));
        let lost = self.base.iter().find(|(path, node)| {
            states.iter().all(|state| state.get(*path) == Some(*node)) && seen.get(*path) != Some(*node)
        });
        let last = &self.ops[self.ops.len().saturating_sub(4)..];
        match (lost, invented) {
            (Some((path, node)), _) => {
                Wrong::Lost(format!("{path} {node:?} was synced, found {:?}; last: {last:?}", seen.get(path)))
            }
            (None, Some((path, node))) => Wrong::Invented(format!("{path} {node:?} was never there; last: {last:?}")),
            (None, None) => Wrong::Lost(format!(
                "names that no prefix of the operations gives: {seen:?}; base {:?}; ops {:?}",
                self.base, self.ops
            )),
        }
    }
}

fn same(model: &Node, seen: &Node) -> bool {
    model.dir == seen.dir && (model.ino == seen.ino || model.ino == 0)
}

fn matches(model: &Tree, seen: &Tree) -> bool {
    model.len() == seen.len() && model.iter().zip(seen).all(|((a, node), (b, found))| a == b && same(node, found))
}

fn inodes(tree: &Tree, op: &NameOp) -> Vec<u64> {
    match op {
        NameOp::Add { node, .. } => vec![node.ino],
        NameOp::Remove { path } => tree.get(path).map(|node| node.ino).into_iter().collect(),
        NameOp::Rename { from: a, to: b } | NameOp::Exchange { a, b } => {
            [a, b].into_iter().filter_map(|path| tree.get(path)).map(|node| node.ino).collect()
        }
    }
}

fn apply(tree: &mut Tree, op: &NameOp) {
    match op {
        NameOp::Add { path, node } => {
            tree.insert(path.clone(), *node);
        }
        NameOp::Remove { path } => {
            tree.remove(path);
        }
        NameOp::Rename { from, to } => {
            let below = format!("{from}/");
            let moved: Vec<String> =
                tree.keys().filter(|path| *path == from || path.starts_with(&below)).cloned().collect();
            for path in moved {
                if let Some(node) = tree.remove(&path) {
                    tree.insert(format!("{to}{}", &path[from.len()..]), node);
                }
            }
        }
        NameOp::Exchange { a, b } => {
            if let (Some(first), Some(second)) = (tree.get(a).copied(), tree.get(b).copied()) {
                tree.insert(a.clone(), second);
                tree.insert(b.clone(), first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(names: &mut Names, path: &str, ino: u64, dir: bool) {
        let tick = names.next() * 2;
        names.begin(NameOp::Add { path: path.into(), node: Node { ino: 0, dir } }, tick);
        names.answered(Some(ino), tick + 1);
    }

    fn rename(names: &mut Names, from: &str, to: &str) {
        let tick = names.next() * 2;
        names.begin(NameOp::Rename { from: from.into(), to: to.into() }, tick);
        names.answered(None, tick + 1);
    }

    fn tree(entries: &[(&str, u64, bool)]) -> Tree {
        entries.iter().map(|(path, ino, dir)| ((*path).into(), Node { ino: *ino, dir: *dir })).collect()
    }

    /// d/, d/a (synced), b; then d -> e, and b over e/a.
    fn story() -> Names {
        let mut names = Names::default();
        add(&mut names, "d", 2, true);
        add(&mut names, "d/a", 3, false);
        assert_eq!(names.synced_path("d/a"), 2);
        add(&mut names, "b", 4, false);
        rename(&mut names, "d", "e");
        rename(&mut names, "b", "e/a");
        names
    }

    #[test]
    fn any_prefix_from_the_last_fsync_on_is_right() {
        let states = [
            (2, tree(&[("d", 2, true), ("d/a", 3, false)])),
            (3, tree(&[("b", 4, false), ("d", 2, true), ("d/a", 3, false)])),
            (4, tree(&[("b", 4, false), ("e", 2, true), ("e/a", 3, false)])),
            (5, tree(&[("e", 2, true), ("e/a", 4, false)])),
        ];
        for (below, state) in states {
            let kept = story().settle(&state).unwrap();
            assert_eq!(kept.below, below);
            assert_eq!(kept.last_start, (below - 1) * 2);
            assert_eq!(kept.first_lost_end, (below < 5).then_some(below * 2 + 1));
        }
    }

    #[test]
    fn a_synced_name_that_is_gone_is_lost() {
        assert!(matches!(story().settle(&tree(&[("d", 2, true)])), Err(Wrong::Lost(_))));
        assert!(matches!(story().settle(&tree(&[])), Err(Wrong::Lost(_))));
    }

    #[test]
    fn both_or_neither_name_of_a_rename_is_wrong() {
        let both = tree(&[("b", 4, false), ("e", 2, true), ("e/a", 4, false)]);
        assert!(story().settle(&both).is_err());
    }

    #[test]
    fn a_name_that_never_was_is_invented() {
        let state = tree(&[("d", 2, true), ("d/a", 3, false), ("x", 9, false)]);
        assert!(matches!(story().settle(&state), Err(Wrong::Invented(_))));
    }

    #[test]
    fn a_sync_of_a_file_covers_the_rename_of_its_folder() {
        let mut names = story();
        assert_eq!(names.synced_path("e/a"), 3);
        assert_eq!(names.pending(), 0);
    }

    #[test]
    fn an_unanswered_creation_may_show() {
        let mut names = story();
        names.begin(NameOp::Add { path: "new".into(), node: Node { ino: 0, dir: false } }, 99);
        let with = tree(&[("e", 2, true), ("e/a", 4, false), ("new", 77, false)]);
        assert_eq!(names.settle(&with).unwrap().below, 6);
        assert_eq!(names.now(), &with);
    }
}
