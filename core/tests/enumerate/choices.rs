//! What sequences are made of: operations on two folders with three names each, and the call that follows one.
//!
//! Owns: the instances, their names, what sequences start from. Leaves to others: which sequences there are (`explore`).
//!
//! An instance is one thing that a program does, with the opening and closing around it. Instance and position in the
//! sequence determine every byte and time, so that equal states of different sequences are equal.

use kiseki_core::file::machine::Fallocate;
use kiseki_core::meta::XattrMode;
use kiseki_core::testkit::ops::{AclEntries, Op, RenameFlag};
use kiseki_core::types::FileType;

/// Holds what is opened for one instance.
const SLOT: usize = 0;
/// Holds what stays open from one instance to the next.
const HELD: usize = 1;
/// Holds what is copied to.
const COPY: usize = 2;
/// Writes of one position in the sequence at most; their numbers are apart from those of the others.
const WRITES_MAX: u64 = 8;

/// What is done: some operations, and what they touch.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) name: String,
    ops: Vec<Op>,
    /// The file that an fsync after it is for.
    file: Target,
    /// The folder that an fsync after it is for.
    folder: &'static str,
    /// Whether it is part of the sequences of three.
    pub(crate) reduced: bool,
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Path(&'static str),
    Held,
}

/// What follows an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing.
    Nothing,
    /// fsync of the file.
    Fsync,
    /// fsync of the folder.
    FsyncDir,
    /// sync.
    Sync,
    /// A flush by the mount itself, of which the commits are still under way during what comes next.
    WriteBack,
    /// What the mount does by itself now and then: flushes what is aged, deletes what was given up. Promises nothing.
    Background,
}

impl After {
    pub(crate) const ALL: [Self; 6] =
        [Self::Nothing, Self::Fsync, Self::FsyncDir, Self::Sync, Self::WriteBack, Self::Background];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Fsync => "+fsync",
            Self::FsyncDir => "+fsyncdir",
            Self::Sync => "+sync",
            Self::WriteBack => "+writeback",
            Self::Background => "+background",
        }
    }
}

/// One place of a sequence.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    instance: Instance,
    pub(crate) after: After,
}

impl Choice {
    /// Every instance with everything that may follow it.
    pub(crate) fn all(instances: &[Instance]) -> Vec<Self> {
        let with = |instance: &Instance| After::ALL.map(|after| Self { instance: instance.clone(), after });
        instances.iter().flat_map(with).collect()
    }

    /// As in a sequence that a failure shows.
    pub(crate) fn name(&self) -> String {
        format!("{}{}", self.instance.name, self.after.name())
    }

    /// The operations at `position` of a sequence.
    pub(crate) fn ops(&self, position: usize) -> Vec<Op> {
        let mut ops = self.instance.ops.clone();
        let mut writes = 1 + position as u64 * WRITES_MAX;
        for op in &mut ops {
            if let Op::Write { number, .. } = op {
                *number = writes;
                writes += 1;
            }
        }
        ops
    }

    /// The operations that follow; none for what is no call.
    pub(crate) fn calls_after(&self) -> Vec<Op> {
        match (self.after, self.instance.file) {
            (After::Nothing | After::WriteBack | After::Background, _) => vec![],
            (After::Fsync, Target::Path(path)) => vec![open(path, SLOT), Op::Fsync { slot: SLOT }, close(SLOT)],
            (After::Fsync, Target::Held) => vec![Op::Fsync { slot: HELD }],
            (After::FsyncDir, _) => vec![Op::FsyncDir { path: self.instance.folder.into() }],
            (After::Sync, _) => vec![Op::Sync],
        }
    }
}

/// What every sequence starts from: a file of three blocks, one that is inline, one with an attribute and privileges.
pub(crate) fn base() -> Vec<Op> {
    let folder = |path: &str| Op::Mkdir { path: path.into(), mode: 0o755 };
    let file = |path: &'static str, len, number| {
        [create(path, SLOT), Op::Write { slot: SLOT, offset: 0, len, number, drop_privileges: false }, close(SLOT)]
    };
    let mut ops = vec![folder("/A"), folder("/B")];
    ops.extend(file("/A/x", 40, 1001));
    ops.extend(file("/A/y", 3, 1002));
    ops.extend(file("/B/x", 20, 1003));
    ops.push(Op::Sync);
    ops.push(Op::SetXattr { path: "/B/x".into(), name: "user.b".into(), value: "0".into(), mode: XattrMode::Either });
    ops.push(Op::Chmod { path: "/B/x".into(), mode: 0o6755 });
    ops
}

fn open(path: &str, slot: usize) -> Op {
    Op::Open { path: path.into(), slot, create: None, exclusive: false, append: false, sync: false, truncate: false }
}

fn create(path: &str, slot: usize) -> Op {
    Op::Open {
        path: path.into(),
        slot,
        create: Some(0o644),
        exclusive: false,
        append: false,
        sync: false,
        truncate: false,
    }
}

fn close(slot: usize) -> Op {
    Op::Close { slot }
}

fn write(slot: usize, offset: u64, len: u32) -> Op {
    Op::Write { slot, offset, len, number: 0, drop_privileges: false }
}

/// All instances. A name tells the kind of operation and what it is done to.
pub(crate) fn instances() -> Vec<Instance> {
    let mut all = Instances(Vec::new());
    all.names();
    all.contents();
    all.attributes();
    all.0
}

struct Instances(Vec<Instance>);

/// Whether an instance is part of the sequences of three.
#[derive(Clone, Copy, PartialEq, Eq)]
enum In {
    Pairs,
    Triples,
}
use In::{Pairs, Triples};

impl Instances {
    fn add(&mut self, within: In, name: impl Into<String>, file: Target, folder: &'static str, ops: Vec<Op>) {
        self.0.push(Instance { name: name.into(), ops, file, folder, reduced: within == Triples });
    }

    /// Something at a path; the folder is that of the path.
    fn at(&mut self, within: In, kind: &str, path: &'static str, ops: Vec<Op>) {
        let folder = if path.starts_with("/A/") {
            "/A"
        } else if path.starts_with("/B/") {
            "/B"
        } else {
            "/"
        };
        self.add(within, format!("{kind}({path})"), Target::Path(path), folder, ops);
    }

    /// Something done to the open file.
    fn on_file(&mut self, within: In, kind: &str, path: &'static str, ops: Vec<Op>) {
        let ops = [vec![open(path, SLOT)], ops, vec![close(SLOT)]].concat();
        self.at(within, kind, path, ops);
    }

    fn names(&mut self) {
        self.at(Triples, "create", "/A/z", vec![create("/A/z", SLOT), close(SLOT)]);
        self.at(Triples, "create-write", "/A/z", vec![create("/A/z", SLOT), write(SLOT, 0, 20), close(SLOT)]);
        self.at(Pairs, "create-write-inline", "/A/z", vec![create("/A/z", SLOT), write(SLOT, 0, 3), close(SLOT)]);
        self.at(Pairs, "create", "/B/z", vec![create("/B/z", SLOT), close(SLOT)]);
        for path in ["/A/z", "/B/y"] {
            self.at(Pairs, "mkdir", path, vec![Op::Mkdir { path: path.into(), mode: 0o755 }]);
        }
        self.at(Pairs, "symlink", "/A/z", vec![Op::Symlink { path: "/A/z".into(), target: "x".into() }]);
        let fifo = Op::Mknod { path: "/A/z".into(), kind: FileType::Fifo, mode: 0o600, rdev: 0 };
        self.at(Pairs, "mkfifo", "/A/z", vec![fifo]);
        for (within, from, to) in [(Triples, "/A/x", "/B/z"), (Pairs, "/A/x", "/A/y"), (Pairs, "/A/z", "/A/y")] {
            let ops = vec![Op::Link { from: from.into(), to: to.into() }];
            self.at(within, &format!("link-from-{from}"), to, ops);
        }
        for (within, path) in [(Triples, "/A/x"), (Pairs, "/A/y"), (Pairs, "/B/x"), (Pairs, "/A/z")] {
            self.at(within, "unlink", path, vec![Op::Unlink { path: path.into() }]);
        }
        for path in ["/A/z", "/B"] {
            self.at(Pairs, "rmdir", path, vec![Op::Rmdir { path: path.into() }]);
        }
        for (within, from, to, flag) in [
            (Pairs, "/A/x", "/A/z", RenameFlag::Replace),
            (Triples, "/A/x", "/B/x", RenameFlag::Replace),
            (Pairs, "/A/y", "/A/x", RenameFlag::Replace),
            (Triples, "/A/z", "/A/x", RenameFlag::Replace),
            (Pairs, "/A/z", "/B/z", RenameFlag::Replace),
            (Pairs, "/B", "/A/z", RenameFlag::Replace),
            (Pairs, "/A/x", "/B/x", RenameFlag::NoReplace),
            (Pairs, "/A/x", "/B/z", RenameFlag::NoReplace),
            (Triples, "/A/x", "/A/y", RenameFlag::Exchange),
            (Pairs, "/A/x", "/B/x", RenameFlag::Exchange),
            (Pairs, "/A/z", "/B", RenameFlag::Exchange),
            (Pairs, "/A/x", "/B/z", RenameFlag::Whiteout),
            (Pairs, "/A/x", "/B/x", RenameFlag::Whiteout),
            (Pairs, "/B", "/A/z", RenameFlag::Whiteout),
        ] {
            let kind = match flag {
                RenameFlag::Replace => "rename",
                RenameFlag::NoReplace => "rename-noreplace",
                RenameFlag::Exchange => "exchange",
                RenameFlag::Whiteout => "rename-whiteout",
            };
            let ops = vec![Op::Rename { from: from.into(), to: to.into(), flag }];
            self.at(within, &format!("{kind}-from-{from}"), to, ops);
        }
    }

    fn contents(&mut self) {
        for (within, kind, path, offset, len) in [
            (Triples, "write-head", "/A/x", 0, 10),
            (Pairs, "write-all", "/A/x", 0, 48),
            (Pairs, "write-middle", "/A/x", 20, 8),
            (Triples, "write-over-block-border", "/A/x", 12, 8),
            (Pairs, "write-over-chunk-border", "/A/x", 56, 16),
            (Pairs, "write-past-end", "/A/x", 100, 10),
            (Pairs, "write-inline", "/A/x", 30, 2),
            (Triples, "write-head", "/A/z", 0, 20),
            (Pairs, "write-head", "/B/x", 0, 4),
        ] {
            self.on_file(within, kind, path, vec![write(SLOT, offset, len)]);
        }
        for (within, path, len) in [(Triples, "/A/x", 10), (Pairs, "/A/y", 3)] {
            let appending = Op::Open {
                path: path.into(),
                slot: SLOT,
                create: None,
                exclusive: false,
                append: true,
                sync: false,
                truncate: false,
            };
            self.at(within, "append", path, vec![appending, write(SLOT, 0, len), close(SLOT)]);
        }
        let syncing = Op::Open {
            path: "/A/x".into(),
            slot: SLOT,
            create: None,
            exclusive: false,
            append: false,
            sync: true,
            truncate: false,
        };
        self.at(Pairs, "write-osync", "/A/x", vec![syncing, write(SLOT, 5, 20), close(SLOT)]);
        self.on_file(Pairs, "write-twice", "/A/x", vec![write(SLOT, 0, 24), write(SLOT, 8, 24)]);
        let dropping = Op::Write { slot: SLOT, offset: 2, len: 5, number: 0, drop_privileges: true };
        self.on_file(Pairs, "write-dropping-privileges", "/B/x", vec![dropping]);

        for (within, length) in [(Triples, 0), (Pairs, 20), (Pairs, 32), (Triples, 50), (Pairs, 130)] {
            let ops = vec![Op::Truncate { path: "/A/x".into(), length }];
            self.at(within, &format!("truncate-to-{length}"), "/A/x", ops);
        }
        for (within, kind, what, offset, len) in [
            (Triples, "punch", Fallocate::Punch, 10, 20),
            (Pairs, "punch-chunk", Fallocate::Punch, 0, 64),
            (Pairs, "zero-past-end", Fallocate::Zero { extend: true }, 30, 40),
            (Pairs, "reserve-past-end", Fallocate::Reserve { extend: true }, 20, 60),
            (Pairs, "reserve-keeping-size", Fallocate::Reserve { extend: false }, 20, 60),
        ] {
            self.on_file(within, kind, "/A/x", vec![Op::Fallocate { slot: SLOT, what, offset, len }]);
        }
        let copy = |to, to_offset| Op::CopyRange { from: SLOT, to, from_offset: 4, to_offset, len: 16 };
        self.on_file(Pairs, "copy-within", "/A/x", vec![copy(SLOT, 70)]);
        let ops = vec![create("/A/y", COPY), copy(COPY, 1), close(COPY)];
        self.on_file(Triples, "copy-to-/A/y-from", "/A/x", ops);
        let truncating = |path: &str| Op::Open {
            path: path.into(),
            slot: SLOT,
            create: Some(0o644),
            exclusive: false,
            append: false,
            sync: false,
            truncate: true,
        };
        self.at(Pairs, "open-truncate", "/A/x", vec![truncating("/A/x"), close(SLOT)]);
        let rewrite = vec![truncating("/A/x"), write(SLOT, 0, 20), close(SLOT)];
        self.at(Pairs, "rewrite", "/A/x", rewrite);
        let replace = Op::Rename { from: "/A/z".into(), to: "/A/x".into(), flag: RenameFlag::Replace };
        let ops = vec![truncating("/A/z"), write(SLOT, 0, 36), close(SLOT), replace];
        self.at(Triples, "write-and-rename", "/A/x", ops);

        let exchange = Op::Rename { from: "/A/x".into(), to: "/B/x".into(), flag: RenameFlag::Exchange };
        self.on_file(Pairs, "write-and-exchange", "/B/x", vec![write(SLOT, 0, 30), exchange]);

        let unlink = Op::Unlink { path: "/A/x".into() };
        let hold = vec![open("/A/x", HELD), unlink.clone()];
        self.add(Triples, "hold-and-unlink(/A/x)", Target::Held, "/A", hold);
        self.add(Pairs, "hold(/A/x)", Target::Held, "/A", vec![open("/A/x", HELD)]);
        self.add(Triples, "write-held", Target::Held, "/A", vec![write(HELD, 10, 30)]);
        self.add(Pairs, "ftruncate-held", Target::Held, "/A", vec![Op::Ftruncate { slot: HELD, length: 9 }]);
        self.add(Pairs, "close-held", Target::Path("/A/x"), "/A", vec![close(HELD)]);
        let ops = vec![unlink, write(SLOT, 8, 40), Op::Ftruncate { slot: SLOT, length: 24 }];
        self.on_file(Pairs, "unlink-and-use", "/A/x", ops);
    }

    fn attributes(&mut self) {
        for (within, path) in [(Triples, "/A/x"), (Pairs, "/A")] {
            self.at(within, "chmod", path, vec![Op::Chmod { path: path.into(), mode: 0o700 }]);
        }
        let change = Op::Chmod { path: "/A/x".into(), mode: 0o600 };
        self.on_file(Pairs, "write-and-chmod", "/A/x", vec![write(SLOT, 4, 20), change]);
        self.at(Pairs, "chown", "/A/x", vec![Op::Chown { path: "/A/x".into(), uid: 1, gid: 2 }]);
        for path in ["/A/x", "/A"] {
            self.at(Pairs, "utimes", path, vec![Op::Utimes { path: path.into(), secs: 77 }]);
            let set =
                Op::SetXattr { path: path.into(), name: "user.a".into(), value: "1".into(), mode: XattrMode::Create };
            self.at(Pairs, "setxattr", path, vec![set]);
        }
        self.acls();
        for (kind, path, flags) in [
            ("chattr+i", "/A/x", 1),
            ("chattr+a", "/A/x", 2),
            ("chattr+i", "/A", 1),
            ("chattr+a", "/A", 2),
            ("chattr+d", "/B", 4),
        ] {
            self.at(Pairs, kind, path, vec![Op::SetFlags { path: path.into(), flags }]);
        }
        let flags = [2, 0].map(|flags| Op::SetFlags { path: "/A/y".into(), flags });
        self.on_file(Pairs, "chattr-and-write", "/A/y", vec![flags[0].clone(), write(SLOT, 1, 5), flags[1].clone()]);
        let remove = Op::RemoveXattr { path: "/B/x".into(), name: "user.b".into() };
        self.at(Pairs, "removexattr", "/B/x", vec![remove]);
    }

    fn acls(&mut self) {
        let named = vec![(1, 6, u32::MAX), (2, 7, 5), (4, 1, u32::MAX), (16, 4, u32::MAX), (32, 2, u32::MAX)];
        let set = |path: &str, default, entries: &AclEntries| Op::SetAcl {
            path: path.into(),
            default,
            entries: entries.clone(),
        };
        for path in ["/A/x", "/A"] {
            self.at(Pairs, "setfacl", path, vec![set(path, false, &named)]);
            self.at(Pairs, "setfacl-none", path, vec![set(path, false, &vec![])]);
        }
        self.on_file(Pairs, "write-and-setfacl", "/A/x", vec![write(SLOT, 4, 20), set("/A/x", false, &named)]);
        let chmod = Op::Chmod { path: "/A/x".into(), mode: 0o751 };
        self.on_file(Pairs, "setfacl-write-chmod", "/A/x", vec![set("/A/x", false, &named), write(SLOT, 4, 20), chmod]);
        self.at(Pairs, "setfacl-default", "/A", vec![set("/A", true, &named)]);
        let inside = vec![set("/B", true, &named), create("/B/z", SLOT), write(SLOT, 0, 5), close(SLOT)];
        self.at(Pairs, "setfacl-default-and-create", "/B/z", inside);
    }
}
