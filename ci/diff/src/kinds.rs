//! The kinds of calls, and how each is drawn.
//!
//! Owns: what is in a call of each kind. Leaves to others: which kind is next, paths and numbers (`draw`).

use kiseki_core::testkit::ops::Source;

use crate::call::{Call, Sync, Target, Time};
use crate::draw::{Draw, LENGTH_MAX, OpenFile, PAGE};

/// Every kind. ACLs are drawn on volumes that have them.
pub(crate) const KINDS: [&str; 62] = [
    "open",
    "open-create",
    "open-directory",
    "open-path",
    "open-tmpfile",
    "reopen",
    "close",
    "pread",
    "read",
    "readv",
    "pwrite",
    "write",
    "writev",
    "lseek",
    "lseek-data",
    "truncate",
    "ftruncate",
    "fallocate",
    "fsync",
    "copy-range",
    "sendfile",
    "map-read",
    "map-write",
    "map-truncate",
    "advise",
    "mkdir",
    "rmdir",
    "unlink",
    "rename",
    "renameat2",
    "link",
    "link-slot",
    "symlink",
    "readlink",
    "mknod",
    "chmod",
    "fchmod",
    "chown",
    "fchown",
    "utimes",
    "futimes",
    "stat",
    "fstat",
    "access",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "set-acl",
    "get-acl",
    "list",
    "seekdir",
    "flock",
    "lock",
    "get-lock",
    "chdir",
    "statfs",
    "set-flags",
    "get-flags",
    "program",
    "run",
    "umask",
];

/// Kinds that only a volume with ACLs has.
pub(crate) const ACL_KINDS: [&str; 2] = ["set-acl", "get-acl"];

const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;

pub(crate) const IMMUTABLE: u32 = 0x10;
pub(crate) const APPEND_ONLY: u32 = 0x20;
pub(crate) const NODUMP: u32 = 0x40;

/// A path that is there, or none in the careful sense.
fn is_regular(open: &OpenFile) -> bool {
    open.is_regular()
}

fn can_write(open: &OpenFile) -> bool {
    open.is_regular() && open.can_write()
}

fn can_read(open: &OpenFile) -> bool {
    open.is_regular() && open.can_read()
}

/// Transfers of any alignment.
fn is_buffered(open: &OpenFile) -> bool {
    !open.is_direct()
}

impl Draw<'_> {
    /// A call of this kind; `None` if there is nothing to make it on.
    pub(crate) fn call(&mut self, kind: &'static str) -> Option<Call> {
        match kind {
            "open" | "open-create" | "open-directory" | "open-path" | "open-tmpfile" | "reopen" | "close" => {
                self.opening(kind)
            }
            "pread" | "read" | "readv" | "pwrite" | "write" | "writev" | "lseek" | "lseek-data" | "truncate"
            | "ftruncate" | "fallocate" | "fsync" | "copy-range" | "sendfile" | "map-read" | "map-write"
            | "map-truncate" | "advise" => self.data(kind),
            "mkdir" | "rmdir" | "unlink" | "rename" | "renameat2" | "link" | "link-slot" | "symlink" | "readlink"
            | "mknod" | "list" | "seekdir" | "chdir" => self.names(kind),
            "flock" | "lock" | "get-lock" | "program" | "run" | "umask" => self.processes(kind),
            _ => self.attributes(kind),
        }
    }

    fn opening(&mut self, kind: &'static str) -> Option<Call> {
        let slot = self.free_slot();
        let mut flags = self.one_of(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR]);
        // Never waits for the other end of a fifo.
        flags |= libc::O_NONBLOCK;
        for (flag, percent) in
            [(libc::O_APPEND, 15), (libc::O_SYNC, 4), (libc::O_DSYNC, 4), (libc::O_NOATIME, 6), (libc::O_NOFOLLOW, 8)]
        {
            if self.dice.chance(percent) {
                flags |= flag;
            }
        }
        match kind {
            "open" => {
                let at = if self.dice.chance(80) { self.regular()? } else { self.anything()? };
                if self.dice.chance(12) {
                    flags |= libc::O_TRUNC;
                }
                if self.dice.chance(12) && flags & libc::O_APPEND == 0 {
                    flags |= libc::O_DIRECT;
                }
                Some(Call::Open { at, flags, mode: 0, slot })
            }
            "open-create" => {
                flags |= libc::O_CREAT;
                if self.dice.chance(40) {
                    flags |= libc::O_EXCL;
                }
                if self.dice.chance(20) {
                    flags |= libc::O_TRUNC;
                }
                if self.dice.chance(5) && !self.careful {
                    flags |= libc::O_DIRECTORY;
                }
                let at = if self.dice.chance(75) { self.fresh() } else { self.anything()? };
                Some(Call::Open { at, flags, mode: self.mode(), slot })
            }
            "open-directory" => {
                let at = if self.dice.chance(85) { self.directory()? } else { self.anything()? };
                flags = libc::O_RDONLY | libc::O_DIRECTORY | (flags & (libc::O_NOATIME | libc::O_NOFOLLOW));
                Some(Call::Open { at, flags, mode: 0, slot })
            }
            "open-path" => {
                let at = self.anything()?;
                Some(Call::Open { at, flags: libc::O_PATH | (flags & libc::O_NOFOLLOW), mode: 0, slot })
            }
            "open-tmpfile" => {
                let at = self.directory()?;
                flags = libc::O_TMPFILE | libc::O_RDWR | (flags & libc::O_APPEND);
                Some(Call::Open { at, flags, mode: self.mode(), slot })
            }
            "reopen" => {
                let from = self.slot(|open| open.is_regular() || open.is_path_only())?;
                let slot = self.free_slot();
                flags &= !libc::O_NOFOLLOW;
                Some(Call::Reopen { from, flags, slot })
            }
            _ => Some(Call::Close { slot: self.slot(|_| true)? }),
        }
    }

    fn data(&mut self, kind: &'static str) -> Option<Call> {
        match kind {
            "pread" => {
                let slot = self.slot(can_read)?;
                Some(Call::Pread { slot, offset: self.offset(slot), len: self.len(slot) })
            }
            "read" => {
                let slot = self.slot(|open| can_read(open) && is_buffered(open))?;
                Some(Call::Read { slot, len: self.len(slot) })
            }
            "readv" => {
                let slot = self.slot(can_read)?;
                let lens = [self.len(slot), self.len(slot), self.len(slot)];
                Some(Call::Readv { slot, offset: self.offset(slot), lens })
            }
            "pwrite" => {
                let slot = self.slot(can_write)?;
                let (offset, len) = (self.offset(slot), self.len(slot));
                self.wrote(offset, len.into());
                Some(Call::Pwrite { slot, offset, len, number: self.number() })
            }
            "write" => {
                let slot = self.slot(|open| can_write(open) && is_buffered(open))?;
                Some(Call::Write { slot, len: self.len(slot), number: self.number() })
            }
            "writev" => {
                let slot = self.slot(can_write)?;
                let lens = [self.len(slot), self.len(slot), self.len(slot)];
                let offset = self.offset(slot);
                self.wrote(offset, lens.iter().map(|&len| u64::from(len)).sum());
                Some(Call::Writev { slot, offset, lens, number: self.number() })
            }
            "lseek" => {
                let slot = self.slot(is_regular)?;
                // Places in a directory are numbers of the file system's own.
                self.open_file(slot).filter(|open| !open.is_directory())?;
                let whence = self.one_of(&[libc::SEEK_SET, libc::SEEK_CUR, libc::SEEK_END]);
                let offset = self.offset(slot) as i64;
                let back = whence != libc::SEEK_SET && self.dice.chance(60);
                Some(Call::Lseek { slot, offset: if back { -offset / 4 } else { offset }, whence })
            }
            "lseek-data" => {
                let slot = self.slot(is_regular)?;
                self.open_file(slot).filter(|open| !open.is_directory())?;
                let offset = if self.careful { self.dice.below(self.length(slot).max(1)) } else { self.offset(slot) };
                Some(Call::Lseek {
                    slot,
                    offset: offset as i64,
                    whence: self.one_of(&[libc::SEEK_DATA, libc::SEEK_HOLE]),
                })
            }
            "truncate" => {
                let at = self.regular()?;
                Some(Call::Truncate { at, length: self.new_length(0) })
            }
            "ftruncate" => {
                let slot = self.slot(can_write)?;
                Some(Call::Ftruncate { slot, length: self.new_length(slot) })
            }
            "fallocate" => {
                let slot = self.slot(can_write)?;
                let mode = self.one_of(&[0, KEEP_SIZE, PUNCH, PUNCH, ZERO, ZERO | KEEP_SIZE, PUNCH & !KEEP_SIZE]);
                let len = i64::from(self.len(slot));
                Some(Call::Fallocate { slot, mode, offset: self.offset(slot) as i64, len })
            }
            "fsync" => {
                let slot = self.slot(|open| open.is_regular() || open.is_directory())?;
                let how = self.one_of(&[Sync::Fsync, Sync::Fsync, Sync::Fdatasync, Sync::Range, Sync::Filesystem]);
                Some(Call::Sync { slot, how })
            }
            "copy-range" | "sendfile" => {
                let to = self.slot(|open| can_write(open) && is_buffered(open) && !open.is_appending())?;
                Some(to).filter(|slot| !self.is_fixed(*slot))?;
                let from = self.companion(to)?;
                // Not into itself: where the ranges overlap, ext4 sends what it has just written.
                let same = self.open_file(from)?.ino == self.open_file(to)?.ino;
                Some(from).filter(|_| kind == "copy-range" || !same)?;
                let (from_offset, to_offset, len) = (self.offset(from), self.offset(to), u64::from(self.len(from)));
                self.wrote(to_offset, len);
                Some(match kind {
                    "copy-range" => Call::CopyRange { from, to, from_offset, to_offset, len },
                    _ => Call::Sendfile { from, to, offset: from_offset, len },
                })
            }
            "map-read" => {
                let slot = self.slot(can_read)?;
                Some(slot).filter(|slot| !self.is_fixed(*slot))?;
                Some(Call::MapRead { slot, offset: self.offset(slot) / PAGE * PAGE, len: self.map_len() })
            }
            "map-write" => {
                let slot = self.slot(|open| can_write(open) && open.can_read())?;
                Some(slot).filter(|slot| !self.is_fixed(*slot))?;
                let inside = if self.careful { self.length(slot).saturating_sub(PAGE) } else { self.offset(slot) };
                let len = if self.careful { PAGE as u32 } else { self.map_len() };
                let (offset, number, private) = (inside / PAGE * PAGE, self.number(), self.dice.chance(25));
                Some(Call::MapWrite { slot, offset, len, number, private })
            }
            "map-truncate" => {
                let slot = self.slot(|open| can_write(open) && open.can_read())?;
                Some(slot).filter(|slot| !self.is_fixed(*slot))?;
                let mapped = self.map_len();
                Some(Call::MapTruncate { slot, mapped, length: self.dice.below(u64::from(mapped)) as i64 })
            }
            _ => {
                let slot = self.slot(is_regular)?;
                let advice = self.dice.below(6) as i32;
                Some(Call::Advise { slot, offset: self.offset(slot), len: self.len(slot).into(), advice })
            }
        }
    }

    /// Pages, up to four.
    fn map_len(&mut self) -> u32 {
        (PAGE * (1 + self.dice.below(4))) as u32
    }

    /// Another readable file of the same worker, or the same.
    fn companion(&mut self, slot: usize) -> Option<usize> {
        let fits = |at: &usize| self.open_file(*at).is_some_and(|open| can_read(open) && is_buffered(open));
        let found: Vec<usize> = (0..crate::call::SLOTS).filter(fits).collect();
        let others: Vec<usize> = found.iter().copied().filter(|&at| at != slot).collect();
        let from = if others.is_empty() { &found } else { &others };
        if from.is_empty() { None } else { Some(self.one_of(from)) }
    }

    fn new_length(&mut self, slot: usize) -> i64 {
        match self.dice.below(100) {
            0 if !self.careful => -1,
            1 => 1 << 40,
            2..=19 => 0,
            _ => self.offset(slot) as i64,
        }
    }

    fn names(&mut self, kind: &'static str) -> Option<Call> {
        match kind {
            "mkdir" => {
                let at = self.fresh();
                Some(Call::Mkdir { at, mode: self.mode() })
            }
            "rmdir" => {
                let full = |path: &str, of: &[crate::walk::Entry]| {
                    of.iter().any(|entry| entry.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
                };
                let tree = self.tree.clone();
                let careful = self.careful;
                let path = self.existing(|entry| entry.is_directory() && !(careful && full(&entry.path, &tree)))?;
                Some(Call::Rmdir { at: self.at(&path) })
            }
            "unlink" => {
                let directory = !self.careful && self.dice.chance(5);
                let path = self.existing(|entry| entry.is_directory() == directory)?;
                Some(Call::Unlink { at: self.at(&path) })
            }
            "rename" | "renameat2" => {
                let from = self.existing(|_| true)?;
                let over = self.dice.chance(if kind == "rename" { 40 } else { 50 });
                let is_directory = self.tree.iter().any(|entry| entry.path == from && entry.is_directory());
                let to =
                    if over { self.existing(|entry| entry.is_directory() == is_directory)? } else { self.fresh_path() };
                let exists = self.tree.iter().any(|entry| entry.path == to);
                let flags = match (kind, exists) {
                    ("rename", _) => 0,
                    // ext4 makes the whiteout first: one that fails then leaves its trace in the times of the folder.
                    (_, true) if is_directory => libc::RENAME_EXCHANGE,
                    (_, true) => self.one_of(&[libc::RENAME_EXCHANGE, libc::RENAME_EXCHANGE, libc::RENAME_WHITEOUT]),
                    (_, false) => self.one_of(&[libc::RENAME_NOREPLACE, libc::RENAME_NOREPLACE, libc::RENAME_WHITEOUT]),
                };
                if self.careful {
                    self.worker = 0;
                }
                let flags = if !self.careful && self.dice.chance(3) {
                    match self.dice.below(16) as u32 {
                        // As above.
                        libc::RENAME_WHITEOUT if exists && is_directory => {
                            libc::RENAME_WHITEOUT | libc::RENAME_EXCHANGE
                        }
                        any => any,
                    }
                } else {
                    flags
                };
                Some(Call::Rename { from: self.at(&from), to: self.at(&to), flags })
            }
            "link" => {
                let from = self.existing(|entry| !entry.is_directory())?;
                let from = self.at(&from);
                let flags = if self.dice.chance(30) { libc::AT_SYMLINK_FOLLOW } else { 0 };
                Some(Call::Link { from, to: self.fresh(), flags })
            }
            "link-slot" => {
                let slot = self.slot(|open| open.kind == libc::S_IFREG)?;
                Some(Call::LinkSlot { slot, to: self.fresh() })
            }
            "symlink" => {
                let target = match self.dice.below(10) {
                    0 => "t".repeat(4095),
                    1 => "nowhere/at/all".into(),
                    2 => "..".into(),
                    3 if !self.careful => String::new(),
                    4 => "n1/".into(),
                    // A chain, or a loop.
                    _ => format!("n{}", self.dice.below(9)),
                };
                Some(Call::Symlink { at: self.fresh(), target })
            }
            "readlink" => {
                let path = self.existing(|entry| entry.kind() == libc::S_IFLNK)?;
                Some(Call::Readlink { at: self.at(&path) })
            }
            "mknod" => {
                let kinds = [libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFREG, libc::S_IFCHR, libc::S_IFBLK, 0];
                let kind = self.one_of(&kinds);
                // Devices that do no harm when they are opened: null, zero, and some that nobody drives.
                let rdev = match kind {
                    libc::S_IFCHR => self.one_of(&[(1, 3), (1, 5), (0, 0), (4000, 0xABCDE)]),
                    libc::S_IFBLK => self.one_of(&[(4000, 1), (4095, 0xF_FFFF)]),
                    _ => (0, 0),
                };
                Some(Call::Mknod { at: self.fresh(), mode: kind | self.mode(), rdev })
            }
            "list" => Some(Call::List { slot: self.slot(OpenFile::is_directory)? }),
            "seekdir" => {
                let slot = self.slot(OpenFile::is_directory)?;
                Some(Call::Seekdir { slot, skip: self.dice.below(12) as u32 })
            }
            _ => {
                if self.dice.chance(30) {
                    let slot = self.slot(|open| open.kind == libc::S_IFDIR)?;
                    return Some(Call::Fchdir { slot });
                }
                if self.dice.chance(15) {
                    return Some(Call::Getcwd);
                }
                Some(Call::Chdir { at: self.directory()? })
            }
        }
    }

    fn attributes(&mut self, kind: &'static str) -> Option<Call> {
        match kind {
            "chmod" => {
                let at = self.anything()?;
                Some(Call::Chmod { at, mode: self.mode() })
            }
            "fchmod" => {
                let slot = self.slot(|open| !open.is_path_only())?;
                Some(Call::Fchmod { slot, mode: self.mode() })
            }
            "chown" => {
                let at = self.anything()?;
                let flags = if self.dice.chance(40) { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
                Some(Call::Chown { at, uid: self.owner(), gid: self.group(), flags })
            }
            "fchown" => {
                let careful = self.careful;
                let slot = self.slot(|open| !open.is_path_only())?;
                // Others may change little.
                if careful && self.worker != 0 && self.dice.chance(80) {
                    return Some(Call::Fchown { slot, uid: u32::MAX, gid: u32::MAX });
                }
                Some(Call::Fchown { slot, uid: self.owner(), gid: self.group() })
            }
            "utimes" => {
                let at = self.anything()?;
                let flags = if self.dice.chance(40) { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
                Some(Call::Utimes { at, atime: self.time(), mtime: self.time(), flags })
            }
            "futimes" => {
                let slot = self.slot(|open| !open.is_path_only())?;
                Some(Call::Futimes { slot, atime: self.time(), mtime: self.time() })
            }
            "stat" => {
                let at = self.anything()?;
                let flags = if self.dice.chance(50) { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
                Some(Call::Stat { at, flags })
            }
            "fstat" => Some(Call::Fstat { slot: self.slot(|_| true)? }),
            "access" => {
                let at = self.anything()?;
                let flags = self.one_of(&[0, libc::AT_EACCESS, libc::AT_SYMLINK_NOFOLLOW]);
                Some(Call::Access { at, mode: self.dice.below(8) as i32, flags })
            }
            "setxattr" => {
                let on = self.target()?;
                let len = match self.dice.below(20) {
                    0 if !self.careful => 65_537,
                    1 => 65_536,
                    2 => 0,
                    3..=5 => self.dice.below(9000) as u32,
                    _ => self.dice.below(200) as u32,
                };
                let flags = if self.dice.chance(60) || self.careful { 0 } else { self.dice.below(4) as i32 };
                Some(Call::SetXattr { on, name: self.xattr_name(), len, number: self.number(), flags })
            }
            "getxattr" => {
                let (on, name) = self.attribute_or_name()?;
                let size = if self.careful { 65_536 } else { self.one_of(&[0, 65_536, 100]) };
                Some(Call::GetXattr { on, name, size })
            }
            "listxattr" => {
                let on = self.target()?;
                Some(Call::ListXattr { on, size: self.one_of(&[0, 4096, 4096, 5]) })
            }
            "removexattr" => {
                let (on, name) = self.attribute_or_name()?;
                Some(Call::RemoveXattr { on, name })
            }
            "set-acl" => {
                let default = self.dice.chance(40);
                let at = if default { self.directory()? } else { self.anything()? };
                Some(Call::SetAcl { at, default, entries: self.acl() })
            }
            "get-acl" => {
                if self.careful && !self.acls.is_empty() {
                    self.worker = 0;
                    let recent = self.acls.len().saturating_sub(8);
                    let index = recent + self.below(self.acls.len() - recent);
                    let (path, default) = self.acls[index].clone();
                    return Some(Call::GetAcl { at: self.at(&path), default });
                }
                let default = self.dice.chance(40);
                let at = if default { self.directory()? } else { self.anything()? };
                Some(Call::GetAcl { at, default })
            }
            "set-flags" => {
                let slot = self.slot(|open| open.is_regular() || open.is_directory())?;
                self.named(slot)?;
                let flags = self.one_of(&[0, 0, 0, 0, NODUMP, NODUMP, IMMUTABLE, APPEND_ONLY]);
                Some(Call::SetFlags { slot, flags })
            }
            "get-flags" => Some(Call::GetFlags { slot: self.slot(|open| open.is_regular() || open.is_directory())? }),
            "statfs" => Some(Call::Statfs { at: self.anything()? }),
            other => unreachable!("{other} is in the list of kinds"),
        }
    }

    fn time(&mut self) -> Time {
        match self.dice.below(10) {
            0..=2 => (0, libc::UTIME_NOW),
            3..=4 => (0, libc::UTIME_OMIT),
            5 => (-1, 999_999_999),
            // Before 1970, and after what 32 bits hold.
            6 => (-1_000_000_000, 1),
            7 => (5_000_000_000 + self.dice.below(1000) as i64, 123_456_789),
            8 if !self.careful => (1, 1_000_000_000),
            _ => (self.dice.below(1_000_000_000) as i64, self.dice.below(1_000_000_000) as i64),
        }
    }

    fn target(&mut self) -> Option<Target> {
        match self.dice.below(10) {
            0..=4 => {
                let path = self.existing(|entry| entry.is_directory() || entry.kind() == libc::S_IFREG)?;
                Some(Target::Path(self.at(&path)))
            }
            5..=6 => Some(Target::Link(self.anything()?)),
            _ => Some(Target::Slot(self.slot(|open| open.is_regular() || open.is_directory())?)),
        }
    }

    fn attribute_or_name(&mut self) -> Option<(Target, String)> {
        if self.careful || self.dice.chance(70) {
            if self.careful {
                self.worker = 0;
            }
            return self.attribute();
        }
        Some((self.target()?, self.xattr_name()))
    }

    /// Few names, so that they are there; all namespaces, and names that are none.
    fn xattr_name(&mut self) -> String {
        match self.dice.below(100) {
            0..=64 => format!("user.{}", self.dice.below(2)),
            65..=79 => format!("trusted.{}", self.dice.below(2)),
            80..=89 => format!("security.{}", self.dice.below(2)),
            90..=93 if !self.careful => "system.something".into(),
            94 if !self.careful => format!("user.{}", "z".repeat(250)),
            95 if !self.careful => format!("user.{}", "z".repeat(251)),
            96 if !self.careful => "nonsense".into(),
            97 if !self.careful => "user.".into(),
            _ => "user.\u{ff}\n".into(),
        }
    }

    /// Owner, group and others, sometimes a named user and group with a mask; rarely without one that must be there.
    fn acl(&mut self) -> Vec<(u16, u16, u32)> {
        let (user, group) = (self.owner(), self.group());
        let mut permissions = || self.dice.below(8) as u16;
        let mut entries = vec![(1, permissions() | 6, u32::MAX)];
        let named = permissions() < 6;
        if named {
            entries.push((2, permissions(), user.min(4_000_000_000)));
        }
        entries.push((4, permissions(), u32::MAX));
        if named {
            entries.push((8, permissions(), group.min(4_000_000_000)));
            entries.push((16, permissions(), u32::MAX));
        }
        entries.push((32, permissions(), u32::MAX));
        if !self.careful && self.dice.chance(5) {
            entries.pop();
        }
        entries
    }

    fn processes(&mut self, kind: &'static str) -> Option<Call> {
        match kind {
            "flock" => {
                let slot = self.slot(|open| !open.is_path_only())?;
                Some(Call::Flock { slot, operation: self.one_of(&[libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_UN]) })
            }
            "lock" => {
                let slot = self.slot(is_regular)?;
                let mut kind = self.one_of(&[libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK]);
                if self.careful && !self.open_file(slot).is_some_and(can_write) {
                    kind = libc::F_UNLCK;
                }
                let (start, len) = (self.dice.below(20) as i64, self.dice.below(10) as i64);
                Some(Call::Lock { slot, kind, start, len, description: self.dice.chance(50) })
            }
            "get-lock" => {
                let slot = self.slot(is_regular)?;
                let kind = self.one_of(&[libc::F_RDLCK, libc::F_WRLCK]);
                let (start, len) = (self.dice.below(20) as i64, self.dice.below(10) as i64);
                Some(Call::GetLock { slot, kind, start, len, description: self.dice.chance(50) })
            }
            "program" => {
                self.careful |= self.dice.chance(80);
                Some(Call::Program { at: self.fresh() })
            }
            "run" => {
                if self.holdings[self.worker].runs && self.dice.chance(50) {
                    return Some(Call::Stop);
                }
                // A program that nobody has changed, as far as one can see; at times anything.
                let programs = if self.dice.chance(90) { self.programs.clone() } else { vec![] };
                let path = self.existing(|entry| {
                    let program = programs.iter().any(|(path, len)| *path == entry.path && *len == entry.size);
                    (program || programs.is_empty()) && entry.kind() == libc::S_IFREG && entry.mode & 0o111 != 0
                })?;
                if self.careful {
                    self.worker = 0;
                }
                let at = self.at(&path);
                Some(if self.dice.chance(50) { Call::Run { at } } else { Call::Start { at } })
            }
            "umask" => {
                if self.dice.chance(40) {
                    let slot = self.slot(is_regular)?;
                    Some(slot).filter(|slot| !self.is_fixed(*slot))?;
                    let append = self.dice.chance(50) && !self.open_file(slot).is_some_and(OpenFile::is_direct);
                    let flags = libc::O_NONBLOCK | if append { libc::O_APPEND } else { 0 };
                    let direct = self.open_file(slot).is_some_and(OpenFile::is_direct);
                    let flags = if direct { flags | libc::O_DIRECT } else { flags };
                    return Some(Call::SetStatus { slot, flags });
                }
                Some(Call::Umask { mask: self.one_of(&[0, 0o022, 0o077, 0o002, 0o027]) })
            }
            other => unreachable!("{other} is in the list of kinds"),
        }
    }
}

// A write that begins at the last byte of the longest file still ends where `walk` looks.
const _: () = assert!(LENGTH_MAX + 3 * 300_000 < crate::walk::READ_MAX);
