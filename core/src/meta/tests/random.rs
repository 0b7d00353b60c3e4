//! Random operations on names against a model, with every invariant checked after every step.

use alloc::collections::BTreeMap;

use super::*;

/// What the model knows of an inode.
#[derive(Clone, Debug)]
struct Node {
    kind: FileType,
    nlink: u32,
    /// Of a directory.
    children: BTreeMap<Bytes, Ino>,
    parent: Ino,
}

struct Model {
    nodes: BTreeMap<Ino, Node>,
}

impl Model {
    fn new() -> Self {
        let root = Node { kind: FileType::Directory, nlink: 2, children: BTreeMap::new(), parent: Ino::ROOT };
        Self { nodes: [(Ino::ROOT, root)].into() }
    }

    fn live(&self, dir: Ino) -> Result<&Node, Errno> {
        match self.nodes.get(&dir) {
            None => Err(Errno::ENOENT),
            Some(node) if node.kind != FileType::Directory => Err(Errno::ENOTDIR),
            Some(node) if node.nlink == 0 => Err(Errno::ENOENT),
            Some(node) => Ok(node),
        }
    }

    fn child(&self, dir: Ino, name: &Bytes) -> Result<Option<Ino>, Errno> {
        Ok(self.live(dir)?.children.get(name).copied())
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.nodes[&ino].kind == FileType::Directory
    }

    fn is_within(&self, mut ino: Ino, dir: Ino) -> bool {
        while ino != dir {
            if ino == Ino::ROOT {
                return false;
            }
            ino = self.nodes[&ino].parent;
        }
        true
    }

    fn node(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).unwrap()
    }

    fn attach(&mut self, dir: Ino, name: &Bytes, ino: Ino) {
        self.node(dir).children.insert(name.clone(), ino);
        if self.is_dir(ino) {
            self.node(ino).parent = dir;
            self.node(dir).nlink += 1;
        }
    }

    fn detach(&mut self, dir: Ino, name: &Bytes) -> Ino {
        let ino = self.node(dir).children.remove(name).unwrap();
        if self.is_dir(ino) {
            self.node(dir).nlink -= 1;
        }
        ino
    }

    fn create(&mut self, dir: Ino, name: &Bytes, ino: Ino, kind: FileType) -> Result<(), Errno> {
        if self.child(dir, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let nlink = if kind == FileType::Directory { 2 } else { 1 };
        self.nodes.insert(ino, Node { kind, nlink, children: BTreeMap::new(), parent: dir });
        self.attach(dir, name, ino);
        Ok(())
    }

    fn link(&mut self, ino: Ino, dir: Ino, name: &Bytes) -> Result<(), Errno> {
        if self.child(dir, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        match self.nodes.get(&ino) {
            None => return Err(Errno::ENOENT),
            Some(node) if node.kind == FileType::Directory => return Err(Errno::EPERM),
            Some(node) if node.nlink == 0 => return Err(Errno::ENOENT),
            Some(_) => {}
        }
        self.node(ino).nlink += 1;
        self.attach(dir, name, ino);
        Ok(())
    }

    /// One name less for an inode that was detached.
    fn unname(&mut self, ino: Ino) {
        let node = self.node(ino);
        node.nlink = if node.kind == FileType::Directory { 0 } else { node.nlink - 1 };
    }

    fn remove(&mut self, dir: Ino, name: &Bytes, directory: bool) -> Result<(), Errno> {
        let ino = self.child(dir, name)?.ok_or(Errno::ENOENT)?;
        match (directory, self.is_dir(ino)) {
            (false, true) => return Err(Errno::EISDIR),
            (true, false) => return Err(Errno::ENOTDIR),
            (true, true) if !self.nodes[&ino].children.is_empty() => return Err(Errno::ENOTEMPTY),
            (true, true) | (false, false) => {}
        }
        self.detach(dir, name);
        self.unname(ino);
        Ok(())
    }

    fn rename(&mut self, from: (Ino, &Bytes), to: (Ino, &Bytes), mode: RenameMode) -> Result<(), Errno> {
        self.live(from.0)?;
        self.live(to.0)?;
        let moved = self.child(from.0, from.1)?.ok_or(Errno::ENOENT)?;
        let target = self.child(to.0, to.1)?;
        if mode == RenameMode::NoReplace && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if mode == RenameMode::Exchange && target.is_none() {
            return Err(Errno::ENOENT);
        }
        if self.is_dir(moved) && self.is_within(to.0, moved) {
            return Err(Errno::EINVAL);
        }
        let Some(target) = target else {
            self.detach(from.0, from.1);
            self.attach(to.0, to.1, moved);
            return Ok(());
        };
        if target == moved {
            return Ok(());
        }
        if mode == RenameMode::Exchange {
            if self.is_dir(target) && self.is_within(from.0, target) {
                return Err(Errno::EINVAL);
            }
            self.detach(from.0, from.1);
            self.detach(to.0, to.1);
            self.attach(from.0, from.1, target);
            self.attach(to.0, to.1, moved);
            return Ok(());
        }
        match (self.is_dir(moved), self.is_dir(target)) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            (true, true) if !self.nodes[&target].children.is_empty() => return Err(Errno::ENOTEMPTY),
            (true, true) | (false, false) => {}
        }
        self.detach(to.0, to.1);
        self.unname(target);
        self.detach(from.0, from.1);
        self.attach(to.0, to.1, moved);
        Ok(())
    }
}

const KINDS: [FileType; 5] =
    [FileType::Regular, FileType::Directory, FileType::Directory, FileType::Symlink, FileType::Fifo];
const MODES: [RenameMode; 4] = [RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];

/// Compares everything that the model knows.
fn compare(world: &mut World, model: &Model) {
    assert_eq!(world.usage().inodes, model.nodes.len() as u64);
    for (&ino, node) in &model.nodes {
        let attr = world.attr(ino);
        assert_eq!((attr.kind, attr.nlink), (node.kind, node.nlink), "{ino:?}");
        if node.kind == FileType::Directory {
            let entries = world.read(|read| lookup::readdir(read, ino, 0, usize::MAX)).unwrap();
            let found: BTreeMap<_, _> = entries.into_iter().map(|entry| (entry.name, entry.ino)).collect();
            assert_eq!(found, node.children);
        }
    }
}

fn random_names(seed: u64, steps: usize) {
    let mut rng = Rng::new(seed);
    let mut world = World::new();
    let mut model = Model::new();
    let mut successes = 0;
    for step in 0..steps {
        let inos: Vec<Ino> = model.nodes.keys().copied().collect();
        let dirs: Vec<Ino> = inos.iter().copied().filter(|ino| model.is_dir(*ino)).collect();
        let ino = inos[rng.below(inos.len() as u64) as usize];
        // Now and then something that is no directory.
        let mut dir = || match rng.below(20) {
            0 => inos[rng.below(inos.len() as u64) as usize],
            _ => dirs[rng.below(dirs.len() as u64) as usize],
        };
        let (dir, other) = (dir(), dir());
        let mut name = || Bytes::from(alloc::format!("n{}", rng.below(4)));
        let (name, new_name) = (name(), name());
        let (actual, expected) = match rng.below(9) {
            0..=1 if model.nodes.len() < 40 => {
                let kind = KINDS[rng.below(5) as usize];
                let next = world.ino();
                world.inos.start -= 1;
                (world.create(dir, &name, kind).map(drop), model.create(dir, &name, next, kind))
            }
            2 => (
                world.run(|txn, ctx| create::link(txn, ctx, ino, dir, &name)).map(drop).map_err(errno),
                model.link(ino, dir, &name),
            ),
            3 => (
                world.run(|txn, ctx| remove::unlink(txn, ctx, dir, &name)).map(drop).map_err(errno),
                model.remove(dir, &name, false),
            ),
            4 => (
                world.run(|txn, ctx| remove::rmdir(txn, ctx, dir, &name)).map(drop).map_err(errno),
                model.remove(dir, &name, true),
            ),
            5 => {
                world.run(|txn, ctx| remove::reap(txn, ctx, ino, &[])).unwrap();
                model.nodes.retain(|at, node| *at != ino || node.nlink > 0);
                (Ok(()), Ok(()))
            }
            _ => {
                let mode = MODES[rng.below(4) as usize];
                (
                    world
                        .run(|txn, ctx| rename::rename(txn, ctx, dir, &name, other, &new_name, mode))
                        .map(drop)
                        .map_err(errno),
                    model.rename((dir, &name), (other, &new_name), mode),
                )
            }
        };
        assert_eq!(actual, expected, "seed {seed} step {step}");
        successes += usize::from(actual.is_ok());
        compare(&mut world, &model);
        world.check();
    }
    assert!(successes * 4 > steps, "{successes} of {steps} operations succeeded");
}

#[test]
fn names_match_the_model_and_keep_every_invariant() {
    for seed in 1..=8 {
        random_names(seed, 700);
    }
}
