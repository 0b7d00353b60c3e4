//! What an application does to a file system, as data, and a generator that draws such operations.
//!
//! Owns: `Op`, the bytes that a write carries, the choice of the next operation.
//! Leaves to others: what an operation should do (`model`), doing it (the simulator, the mounted tests).
//!
//! Invariants
//! - The next operation depends on the source of chance and on the model alone.
//! - Every written byte is non-zero and depends on the write's number, so that holes, old bytes and foreign bytes
//!   can all be told from the right ones.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::file::machine::{Fallocate, Whence};
use crate::meta::XattrMode;
use crate::testkit::model::Model;
use crate::types::FileType;

/// Number of files that one application holds open at most.
pub const SLOTS: usize = 4;

/// Bytes of a file that a burst of writes touches.
const BURST_WIDTH: u64 = 1024;
/// One in so many draws begins to scatter.
const SCATTER_RARE: u64 = 500;

/// Where choices come from: a seeded generator, or the bytes of a fuzzer.
pub trait Source {
    /// A number in `0..bound`. (bound >= 1)
    fn below(&mut self, bound: u64) -> u64;

    /// True in `percent` of 100 cases.
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The flags of rename(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameFlag {
    /// An existing target is replaced.
    Replace,
    /// An existing target is an error.
    NoReplace,
    /// Both names change places.
    Exchange,
    /// An existing target is replaced, and a whiteout stays under the old name.
    Whiteout,
}

/// The permission bits that no new inode gets, unless its directory has a default ACL.
pub const UMASK: u16 = 0o027;

/// Entries of an ACL as linux/posix_acl_xattr.h has them: tag, permissions, id. In the order of the tags.
pub type AclEntries = Vec<(u16, u16, u32)>;

/// Tags of entries: owner, named user, owning group, named group, mask, others.
pub const ACL_TAGS: [u16; 6] = [1, 2, 4, 8, 16, 32];

/// The value of an ACL's extended attribute.
pub fn acl_bytes(entries: &AclEntries) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// The entries in the value of an ACL's extended attribute; `None` if it is none.
pub fn acl_entries(bytes: &[u8]) -> Option<AclEntries> {
    let (entries, []) = bytes.strip_prefix(&2_u32.to_le_bytes())?.as_chunks::<8>() else { return None };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    Some(entries.iter().map(|e| (number(&e[..2]) as u16, number(&e[2..4]) as u16, number(&e[4..]))).collect())
}

/// One operation. Paths are absolute, `/`-separated, and no symbolic link in them is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the system call of that name")]
pub enum Op {
    Mkdir { path: String, mode: u16 },
    Mknod { path: String, kind: FileType, mode: u16, rdev: u32 },
    Symlink { path: String, target: String },
    Link { from: String, to: String },
    Unlink { path: String },
    Rmdir { path: String },
    Rename { from: String, to: String, flag: RenameFlag },
    Open { path: String, slot: usize, create: Option<u16>, exclusive: bool, append: bool, sync: bool, truncate: bool },
    Close { slot: usize },
    Write { slot: usize, offset: u64, len: u32, number: u64, drop_privileges: bool },
    Read { slot: usize, offset: u64, len: u32 },
    Fsync { slot: usize },
    FsyncDir { path: String },
    Sync,
    Truncate { path: String, length: u64 },
    Ftruncate { slot: usize, length: u64 },
    Fallocate { slot: usize, what: Fallocate, offset: u64, len: u64 },
    Seek { slot: usize, whence: Whence, offset: u64 },
    CopyRange { from: usize, to: usize, from_offset: u64, to_offset: u64, len: u64 },
    Chmod { path: String, mode: u16 },
    Chown { path: String, uid: u32, gid: u32 },
    Utimes { path: String, secs: i64 },
    SetXattr { path: String, name: String, value: String, mode: XattrMode },
    RemoveXattr { path: String, name: String },
    SetAcl { path: String, default: bool, entries: AclEntries },
    SetFlags { path: String, flags: u8 },
}

/// The bytes of write `number` at `offset`: never zero, and telling both.
pub fn written_bytes(number: u64, offset: u64, len: u32) -> Vec<u8> {
    let byte = |at: u64| {
        let mixed = (number << 32 ^ at).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((mixed >> 32) % 255) as u8 + 1
    };
    (offset..offset + u64::from(len)).map(byte).collect()
}

/// The parent of `path` and its last name.
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// How one application behaves.
#[derive(Clone, Debug)]
pub struct Habits {
    /// First letter of every name that it makes.
    pub letter: char,
    /// Directories it starts from; they exist and are never removed.
    pub homes: Vec<String>,
    /// Files end below this.
    pub length_max: u64,
    /// Sizes at whose borders it likes to begin and end, such as those of frames, blocks and chunks.
    pub borders: Vec<u64>,
}

/// Draws operations.
#[derive(Debug)]
pub struct Generator<S> {
    habits: Habits,
    source: S,
    writes: u64,
    /// Where recent writes began and ended: the next ones like to meet them.
    recent: [u64; 6],
    /// Draws left in which it hammers at one place of one open file.
    burst: u64,
    burst_slot: usize,
    burst_at: u64,
    /// Draws left in which it scatters short writes over one open file: more slices than one commit or one truncate
    /// likes to deal with.
    scatter: u64,
}

impl<S: Source> Generator<S> {
    /// A generator whose writes are numbered from `first_write`.
    pub fn new(habits: Habits, source: S, first_write: u64) -> Self {
        Self { habits, source, writes: first_write, recent: [0; 6], burst: 0, burst_slot: 0, burst_at: 0, scatter: 0 }
    }

    /// The source of chance, for what surrounds the operations.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }

    /// It scatters: what it draws next follows at once.
    pub fn is_hasty(&self) -> bool {
        self.scatter > 0
    }

    /// The next operation of an application that knows that the tree is as in `model`.
    pub fn draw(&mut self, model: &Model) -> Op {
        if self.burst == 0 && self.source.chance(3) {
            self.burst = 5 + self.source.below(20);
            self.burst_slot = self.source.below(SLOTS as u64) as usize;
            self.burst_at = self.source.below(self.habits.length_max - BURST_WIDTH);
        }
        if self.burst == 0 && self.scatter == 0 && self.source.below(SCATTER_RARE) == 0 {
            self.scatter = 70 + self.source.below(40);
            self.burst_slot = self.source.below(SLOTS as u64) as usize;
        }
        if self.scatter > 0 {
            self.scatter -= 1;
            if model.is_open(self.burst_slot) {
                return self.scatter();
            }
            self.scatter = 0;
        }
        self.burst = self.burst.saturating_sub(1);
        if self.burst > 0 && model.is_open(self.burst_slot) && self.source.chance(85) {
            return self.burst();
        }
        match self.source.below(100) {
            0..=24 => self.write(model),
            25..=27 => self.fallocate(model),
            28..=29 => self.copy(model),
            30..=31 => self.seek(model),
            32..=37 => self.with_slot(model, |g, slot| Op::Read { slot, offset: g.offset(), len: g.len() }),
            38..=45 => self.with_slot(model, |_, slot| Op::Fsync { slot }),
            46..=55 => self.open(model),
            56..=59 => self.with_slot(model, |_, slot| Op::Close { slot }),
            60..=63 => self.shorten(model),
            64..=72 => self.rename(model),
            73..=77 => self.make(model),
            78..=81 => Op::Unlink { path: self.existing(model, false) },
            82..=83 => Op::Rmdir { path: self.existing(model, true) },
            84..=86 => Op::Link { from: self.existing(model, false), to: self.fresh(model) },
            87..=94 => self.attributes(model),
            95..=97 => Op::FsyncDir { path: self.directory(model) },
            _ => Op::Sync,
        }
    }

    /// Short writes close together: slices that meet, grow and lie over each other before any is committed.
    fn burst(&mut self) -> Op {
        self.writes += 1;
        let offset = self.burst_at + self.source.below(BURST_WIDTH / 2);
        let len = 1 + self.source.below(BURST_WIDTH / 4) as u32;
        Op::Write { slot: self.burst_slot, offset, len, number: self.writes, drop_privileges: false }
    }

    /// One of many short writes that do not touch; then often a truncate of all of them, or a hole.
    fn scatter(&mut self) -> Op {
        let slot = self.burst_slot;
        if self.scatter == 0 && self.source.chance(30) {
            return Op::Fallocate { slot, what: Fallocate::Punch, offset: 0, len: self.habits.length_max };
        }
        if self.scatter == 0 && self.source.chance(70) {
            return Op::Ftruncate { slot, length: self.source.below(self.habits.borders[0]) };
        }
        self.writes += 1;
        let step = self.habits.length_max / 128;
        let offset = (self.scatter * step).min(self.habits.length_max - step);
        let len = 1 + self.source.below(step / 2) as u32;
        Op::Write { slot, offset, len, number: self.writes, drop_privileges: false }
    }

    fn write(&mut self, model: &Model) -> Op {
        self.with_slot(model, |g, slot| {
            g.writes += 1;
            let end = model.open_length(slot).unwrap_or(0);
            // Many writes go on where the file ends: these are what makes slices grow.
            let offset = if g.source.chance(35) { end.min(g.habits.length_max - 1) } else { g.offset() };
            let len = (u64::from(g.len()).min(g.habits.length_max - offset)) as u32;
            g.recent.rotate_right(2);
            (g.recent[0], g.recent[1]) = (offset, offset + u64::from(len));
            Op::Write { slot, offset, len, number: g.writes, drop_privileges: g.source.chance(30) }
        })
    }

    fn fallocate(&mut self, model: &Model) -> Op {
        let extend = self.source.chance(50);
        let what = match self.source.below(5) {
            0 | 1 => Fallocate::Punch,
            2 => Fallocate::Zero { extend },
            _ => Fallocate::Reserve { extend },
        };
        self.with_slot(model, |g, slot| {
            let offset = g.offset();
            let len = u64::from(g.len()).min(g.habits.length_max - offset);
            Op::Fallocate { slot, what, offset, len }
        })
    }

    fn copy(&mut self, model: &Model) -> Op {
        let to = self.source.below(SLOTS as u64) as usize;
        self.with_slot(model, |g, from| {
            let to = if model.is_open(to) { to } else { from };
            let (from_offset, to_offset) = (g.offset(), g.offset());
            let len = u64::from(g.len()).min(g.habits.length_max - to_offset);
            Op::CopyRange { from, to, from_offset, to_offset, len }
        })
    }

    fn seek(&mut self, model: &Model) -> Op {
        let whence = if self.source.chance(50) { Whence::Data } else { Whence::Hole };
        self.with_slot(model, |g, slot| Op::Seek { slot, whence, offset: g.offset() })
    }

    /// An operation on an open file, or the opening of one.
    fn with_slot(&mut self, model: &Model, op: impl FnOnce(&mut Self, usize) -> Op) -> Op {
        let open: Vec<usize> = (0..SLOTS).filter(|&slot| model.is_open(slot)).collect();
        if open.is_empty() {
            return self.open(model);
        }
        let slot = open[self.source.below(open.len() as u64) as usize];
        op(self, slot)
    }

    fn open(&mut self, model: &Model) -> Op {
        let Some(slot) = (0..SLOTS).find(|&slot| !model.is_open(slot)) else {
            return Op::Close { slot: self.source.below(SLOTS as u64) as usize };
        };
        let create = self.source.chance(70).then(|| 0o600 | self.source.below(0o100) as u16);
        let path = if create.is_some() && self.source.chance(50) { self.fresh(model) } else { self.file(model) };
        Op::Open {
            path,
            slot,
            create,
            exclusive: create.is_some() && self.source.chance(20),
            append: self.source.chance(10),
            sync: self.source.chance(5),
            truncate: self.source.chance(15),
        }
    }

    fn shorten(&mut self, model: &Model) -> Op {
        let length = self.offset();
        if self.source.chance(50) {
            return self.with_slot(model, |_, slot| Op::Ftruncate { slot, length });
        }
        Op::Truncate { path: self.file(model), length }
    }

    fn rename(&mut self, model: &Model) -> Op {
        let directory = self.source.chance(20);
        let from = self.existing(model, directory);
        let over = self.source.chance(50);
        let to = if over { self.existing(model, directory) } else { self.fresh(model) };
        let flag = match self.source.below(10) {
            0..=6 => RenameFlag::Replace,
            7 => RenameFlag::NoReplace,
            8 => RenameFlag::Exchange,
            _ => RenameFlag::Whiteout,
        };
        Op::Rename { from, to, flag }
    }

    fn make(&mut self, model: &Model) -> Op {
        let path = self.fresh(model);
        let mode = 0o700 | self.source.below(0o100) as u16;
        match self.source.below(10) {
            0..=5 => Op::Mkdir { path, mode: if self.source.chance(15) { mode | 0o2000 } else { mode } },
            6..=7 => Op::Symlink { path, target: format!("to/{}", self.source.below(1000)) },
            8 => {
                let kinds = [FileType::Fifo, FileType::Socket, FileType::CharDevice, FileType::BlockDevice];
                let kind = kinds[self.source.below(4) as usize];
                let device = matches!(kind, FileType::CharDevice | FileType::BlockDevice);
                let rdev = if device { self.source.below(1 << 32) as u32 } else { 0 };
                Op::Mknod { path, kind, mode, rdev }
            }
            _ => Op::Mknod { path, kind: FileType::Regular, mode, rdev: 0 },
        }
    }

    fn attributes(&mut self, model: &Model) -> Op {
        let directory = self.source.chance(30);
        let path = self.existing(model, directory);
        match self.source.below(11) {
            8..=9 => {
                let default = directory && self.source.chance(60);
                Op::SetAcl { path, default, entries: self.acl() }
            }
            10 => {
                // What is flagged refuses nearly everything, so it does not stay so for long.
                let flagged = model.flagged();
                if !flagged.is_empty() && self.source.chance(80) {
                    let path = flagged[self.source.below(flagged.len() as u64) as usize].clone();
                    return Op::SetFlags { path, flags: 0 };
                }
                Op::SetFlags { path, flags: self.source.below(16) as u8 }
            }
            0..=2 => Op::Chmod { path, mode: self.source.below(0o10000) as u16 },
            3 => Op::Chown { path, uid: self.source.below(3) as u32, gid: self.source.below(3) as u32 },
            4..=5 => Op::Utimes { path, secs: self.source.below(1_000_000) as i64 },
            6 => {
                let name = format!("user.{}", self.source.below(3));
                let mode = match self.source.below(10) {
                    0..=5 => XattrMode::Either,
                    6..=7 => XattrMode::Create,
                    8 => XattrMode::Replace,
                    _ => XattrMode::Neither,
                };
                Op::SetXattr { path, name, value: self.source.below(1000).to_string(), mode }
            }
            _ => Op::RemoveXattr { path, name: format!("user.{}", self.source.below(3)) },
        }
    }

    /// An ACL: mostly with named entries, now and then one that a mode can say, or none.
    fn acl(&mut self) -> AclEntries {
        let mut entries = AclEntries::new();
        let named = self.source.chance(70);
        if !named && self.source.chance(30) {
            return entries;
        }
        for tag in ACL_TAGS {
            let (there, id) = match tag {
                2 | 8 => (named && self.source.chance(60), self.source.below(3) as u32),
                16 => (named, u32::MAX),
                _ => (true, u32::MAX),
            };
            if there {
                entries.push((tag, self.source.below(8) as u16, id));
            }
        }
        entries
    }

    /// A path of something that is no home and is (or is not) a directory; rarely one that may not exist.
    fn existing(&mut self, model: &Model, directory: bool) -> String {
        let homes = &self.habits.homes;
        let wanted = |path: &str, kind| (kind == FileType::Directory) == directory && !homes.iter().any(|h| h == path);
        let paths: Vec<String> =
            model.paths().into_iter().filter(|(path, kind)| wanted(path, *kind)).map(|(path, _)| path).collect();
        self.one_of(paths, model)
    }

    fn file(&mut self, model: &Model) -> String {
        let paths = model.paths().into_iter().filter(|(_, kind)| *kind == FileType::Regular).map(|(path, _)| path);
        self.one_of(paths.collect(), model)
    }

    fn one_of(&mut self, mut paths: Vec<String>, model: &Model) -> String {
        if paths.is_empty() || self.source.chance(5) {
            return self.fresh(model);
        }
        paths.swap_remove(self.source.below(paths.len() as u64) as usize)
    }

    /// A directory below the homes, or a home.
    fn directory(&mut self, model: &Model) -> String {
        let paths = model.paths().into_iter().filter(|(_, kind)| *kind == FileType::Directory).map(|(path, _)| path);
        let mut paths: Vec<String> =
            paths.filter(|path| self.habits.homes.iter().any(|home| path.starts_with(home.as_str()))).collect();
        paths.swap_remove(self.source.below(paths.len() as u64) as usize)
    }

    /// A name from a small alphabet in some directory: it may exist.
    fn fresh(&mut self, model: &Model) -> String {
        let directory = self.directory(model);
        let number = self.source.below(6);
        if self.source.chance(1) {
            return format!("{directory}/{}{}", self.habits.letter, "x".repeat(255));
        }
        format!("{directory}/{}{number}", self.habits.letter)
    }

    fn offset(&mut self) -> u64 {
        let max = self.habits.length_max;
        if self.source.chance(40) {
            // At a recent border, or a little before or after it.
            let border = self.recent[self.source.below(self.recent.len() as u64) as usize];
            let shift = [0, 0, 1, self.habits.borders[0] / 2][self.source.below(4) as usize];
            let at = if self.source.chance(50) { border + shift } else { border.saturating_sub(shift) };
            return at.min(max - 1);
        }
        if self.source.chance(30) {
            let border = self.habits.borders[self.source.below(self.habits.borders.len() as u64) as usize];
            let at = border * self.source.below(max / border + 1);
            return (at + self.source.below(3)).saturating_sub(1).min(max - 1);
        }
        self.source.below(max)
    }

    fn len(&mut self) -> u32 {
        let bound = if self.source.chance(50) { self.habits.borders[0] } else { self.habits.length_max / 3 };
        if self.source.chance(15) {
            let border = self.habits.borders[self.source.below(self.habits.borders.len() as u64) as usize];
            return border as u32;
        }
        self.source.below(bound) as u32 + 1
    }
}
