//! Episodes that the simulator's own generator draws: what it knows is its model, not what the reference side answered.
//!
//! Owns: an operation of the simulator as system calls of one process. Leaves to others: choosing it
//! (`kiseki_core::testkit::ops`), making the calls (`worker`).

use std::collections::VecDeque;

use kiseki_core::file::machine::{Fallocate, Whence};
use kiseki_core::meta::XattrMode;
use kiseki_core::testkit::model::{Model, Stamp};
use kiseki_core::testkit::ops::{Generator, Habits, Op, RenameFlag};
use kiseki_core::types::{FileType, Timestamp};

use crate::call::{At, Base, Call, SLOTS, Sync, Target};
use crate::draw::Dice;
use crate::kinds;

/// The slot that the simulator's application does not have: for what it does by path and Linux by descriptor.
const SPARE: usize = SLOTS - 1;
/// A major number of devices that nobody drives: they do no harm when they are opened.
const NO_DRIVER: u32 = 4000;
const WHEN: Timestamp = Timestamp { secs: 0, nanos: 0 };

/// An application of the simulator.
#[derive(Debug)]
pub(crate) struct Simulator<'a> {
    generator: Generator<Dice>,
    model: Model,
    without: &'a [String],
    /// Calls of the operation that is being made.
    next: VecDeque<(&'static str, Call)>,
}

impl<'a> Simulator<'a> {
    /// `without`: kinds that are left out.
    pub(crate) fn new(dice: Dice, without: &'a [String]) -> Self {
        let habits = Habits {
            letter: 's',
            homes: vec!["/home".into()],
            length_max: 5 << 20,
            borders: vec![4096, 131_072, 1 << 20, 4 << 20],
        };
        let home = Op::Mkdir { path: "/home".into(), mode: 0o777 };
        let mut simulator = Self {
            generator: Generator::new(habits, dice, 0),
            model: Model::new(Stamp::exactly(WHEN)),
            without,
            next: VecDeque::new(),
        };
        simulator.take(&home, |_| false);
        simulator
    }

    /// The next call, and its kind. A kind that has failed too often is `careful`: none that the model refuses is made.
    pub(crate) fn call(&mut self, careful: impl Fn(&str) -> bool) -> (&'static str, Call) {
        loop {
            if let Some(next) = self.next.pop_front() {
                return next;
            }
            let op = self.generator.draw(&self.model);
            self.take(&op, &careful);
        }
    }

    /// What Linux would make of it is what the sides are compared in; the model only has to know roughly.
    fn take(&mut self, op: &Op, careful: impl Fn(&str) -> bool) {
        let calls: Vec<_> = self.calls(op).into_iter().map(|call| (kind(&call), call)).collect();
        let left_out = |kind: &str| self.without.iter().any(|without| without == kind);
        if calls.is_empty() || calls.iter().any(|(kind, _)| left_out(kind)) {
            return;
        }
        let done = self.model.apply(op, Stamp::exactly(WHEN)).is_ok();
        if done || !calls.iter().any(|(kind, _)| careful(kind)) {
            self.next.extend(calls);
        }
    }

    fn calls(&self, op: &Op) -> Vec<Call> {
        let one = |call| vec![call];
        match op {
            Op::Mkdir { path, mode } => one(Call::Mkdir { at: at(path), mode: u32::from(*mode) }),
            Op::Mknod { path, kind, mode, rdev } => {
                let mode = file_type(*kind) | u32::from(*mode);
                let device = matches!(kind, FileType::CharDevice | FileType::BlockDevice);
                let rdev = if device { (NO_DRIVER, rdev & 0xF_FFFF) } else { (0, 0) };
                one(Call::Mknod { at: at(path), mode, rdev })
            }
            Op::Symlink { path, target } => one(Call::Symlink { at: at(path), target: target.clone() }),
            Op::Link { from, to } => one(Call::Link { from: at(from), to: at(to), flags: 0 }),
            Op::Unlink { path } => one(Call::Unlink { at: at(path) }),
            Op::Rmdir { path } => one(Call::Rmdir { at: at(path) }),
            // ext4 makes the whiteout first: one that fails then leaves its trace in the times of the folder.
            Op::Rename { to, flag: RenameFlag::Whiteout, .. } if self.is_directory(to) => vec![],
            Op::Rename { from, to, flag } => {
                let flags = match flag {
                    RenameFlag::Replace => 0,
                    RenameFlag::NoReplace => libc::RENAME_NOREPLACE,
                    RenameFlag::Exchange => libc::RENAME_EXCHANGE,
                    RenameFlag::Whiteout => libc::RENAME_WHITEOUT,
                };
                one(Call::Rename { from: at(from), to: at(to), flags })
            }
            Op::Open { path, slot, create, exclusive, append, sync, truncate } => {
                let mut flags = libc::O_RDWR | libc::O_NOFOLLOW | libc::O_NONBLOCK;
                for (set, flag) in [
                    (create.is_some(), libc::O_CREAT),
                    (*exclusive, libc::O_EXCL),
                    (*append, libc::O_APPEND),
                    (*sync, libc::O_SYNC),
                    (*truncate, libc::O_TRUNC),
                ] {
                    flags |= if set { flag } else { 0 };
                }
                one(Call::Open { at: at(path), flags, mode: create.map_or(0, u32::from), slot: *slot })
            }
            Op::Close { slot } => one(Call::Close { slot: *slot }),
            Op::Write { slot, offset, len, number, drop_privileges: _ } => {
                one(Call::Pwrite { slot: *slot, offset: *offset, len: *len, number: *number })
            }
            Op::Read { slot, offset, len } => one(Call::Pread { slot: *slot, offset: *offset, len: *len }),
            Op::Fsync { slot } => one(Call::Sync { slot: *slot, how: Sync::Fsync }),
            Op::FsyncDir { path } => with_directory(path, Call::Sync { slot: SPARE, how: Sync::Fsync }),
            Op::Sync => with_directory("/", Call::Sync { slot: SPARE, how: Sync::Filesystem }),
            Op::Truncate { path, length } => one(Call::Truncate { at: at(path), length: *length as i64 }),
            Op::Ftruncate { slot, length } => one(Call::Ftruncate { slot: *slot, length: *length as i64 }),
            Op::Fallocate { slot, what, offset, len } => {
                let mode = match what {
                    Fallocate::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    Fallocate::Zero { extend } => libc::FALLOC_FL_ZERO_RANGE | keeping(*extend),
                    Fallocate::Reserve { extend } => keeping(*extend),
                };
                one(Call::Fallocate { slot: *slot, mode, offset: *offset as i64, len: *len as i64 })
            }
            Op::Seek { slot, whence, offset } => {
                let whence = match whence {
                    Whence::Data => libc::SEEK_DATA,
                    Whence::Hole => libc::SEEK_HOLE,
                };
                one(Call::Lseek { slot: *slot, offset: *offset as i64, whence })
            }
            Op::CopyRange { from, to, from_offset, to_offset, len } => one(Call::CopyRange {
                from: *from,
                to: *to,
                from_offset: *from_offset,
                to_offset: *to_offset,
                len: *len,
            }),
            Op::Chmod { path, mode } => one(Call::Chmod { at: at(path), mode: u32::from(*mode) }),
            Op::Chown { path, uid, gid } => {
                one(Call::Chown { at: at(path), uid: *uid, gid: *gid, flags: libc::AT_SYMLINK_NOFOLLOW })
            }
            Op::Utimes { path, secs } => {
                let time = (*secs, 0);
                one(Call::Utimes { at: at(path), atime: time, mtime: time, flags: libc::AT_SYMLINK_NOFOLLOW })
            }
            Op::SetXattr { path, name, value, mode } => {
                let flags = match mode {
                    XattrMode::Either => 0,
                    XattrMode::Create => libc::XATTR_CREATE,
                    XattrMode::Replace => libc::XATTR_REPLACE,
                    XattrMode::Neither => libc::XATTR_CREATE | libc::XATTR_REPLACE,
                };
                let number = value.parse().unwrap_or(0);
                one(Call::SetXattr { on: Target::Link(at(path)), name: name.clone(), len: 8, number, flags })
            }
            Op::RemoveXattr { path, name } => one(Call::RemoveXattr { on: Target::Link(at(path)), name: name.clone() }),
            Op::SetAcl { path, default, entries } => {
                one(Call::SetAcl { at: at(path), default: *default, entries: entries.clone() })
            }
            // What FUSE's kernel cannot know of files that are open is documented. (README.md, "Flags")
            Op::SetFlags { .. } if (0..SPARE).any(|slot| self.model.is_open(slot)) => vec![],
            Op::SetFlags { path, flags } => {
                let linux = [(1, kinds::IMMUTABLE), (2, kinds::APPEND_ONLY), (4, kinds::NODUMP)];
                let flags = linux.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, flag)| flag).sum();
                let open = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
                spare(path, open, Call::SetFlags { slot: SPARE, flags })
            }
        }
    }

    fn is_directory(&self, path: &str) -> bool {
        self.model.find(path).is_ok_and(|node| self.model.node(node).kind == FileType::Directory)
    }
}

fn at(path: &str) -> At {
    let path = path.trim_start_matches('/');
    At { base: Base::Root, path: if path.is_empty() { ".".into() } else { path.into() } }
}

fn with_directory(path: &str, call: Call) -> Vec<Call> {
    spare(path, libc::O_RDONLY | libc::O_DIRECTORY, call)
}

fn spare(path: &str, flags: i32, call: Call) -> Vec<Call> {
    vec![Call::Open { at: at(path), flags, mode: 0, slot: SPARE }, call, Call::Close { slot: SPARE }]
}

fn keeping(extend: bool) -> i32 {
    if extend { 0 } else { libc::FALLOC_FL_KEEP_SIZE }
}

fn file_type(kind: FileType) -> u32 {
    match kind {
        FileType::Regular => libc::S_IFREG,
        FileType::Directory => libc::S_IFDIR,
        FileType::Symlink => libc::S_IFLNK,
        FileType::Fifo => libc::S_IFIFO,
        FileType::CharDevice => libc::S_IFCHR,
        FileType::BlockDevice => libc::S_IFBLK,
        FileType::Socket => libc::S_IFSOCK,
    }
}

/// Under what a call is counted and what may differ in it.
#[expect(clippy::wildcard_enum_match_arm, reason = "the simulator has no others")]
fn kind(call: &Call) -> &'static str {
    match call {
        Call::Open { flags, .. } if flags & libc::O_CREAT != 0 => "open-create",
        Call::Open { flags, .. } if flags & libc::O_DIRECTORY != 0 => "open-directory",
        Call::Open { .. } => "open",
        Call::Close { .. } => "close",
        Call::Pread { .. } => "pread",
        Call::Pwrite { .. } => "pwrite",
        Call::Lseek { .. } => "lseek-data",
        Call::Truncate { .. } => "truncate",
        Call::Ftruncate { .. } => "ftruncate",
        Call::Fallocate { .. } => "fallocate",
        Call::Sync { .. } => "fsync",
        Call::CopyRange { .. } => "copy-range",
        Call::Mkdir { .. } => "mkdir",
        Call::Rmdir { .. } => "rmdir",
        Call::Unlink { .. } => "unlink",
        Call::Rename { flags: 0, .. } => "rename",
        Call::Rename { .. } => "renameat2",
        Call::Link { .. } => "link",
        Call::Symlink { .. } => "symlink",
        Call::Mknod { .. } => "mknod",
        Call::Chmod { .. } => "chmod",
        Call::Chown { .. } => "chown",
        Call::Utimes { .. } => "utimes",
        Call::SetXattr { .. } => "setxattr",
        Call::RemoveXattr { .. } => "removexattr",
        Call::SetAcl { .. } => "set-acl",
        Call::SetFlags { .. } => "set-flags",
        other => unreachable!("{other:?}"),
    }
}
