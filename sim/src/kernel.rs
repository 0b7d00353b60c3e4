//! The kernel's part: path walks, type checks, lookup counts, open files.
//!
//! Owns: what Linux does between a system call and the file system, as far as the operations need it.
//! Leaves to others: everything that the client answers; waiting and judging (`apps`).
//!
//! Invariants
//! - An error that was raised for a file is told to each handle that was open, at its next write or fsync.
//! - A read ends, one way or the other, soon after its deadline.
//! - No request names an inode whose lookup count is zero, but for the root.
//! - What the client is asked to check itself (an existing target, a directory in the way) is asked of it half the
//!   time, and checked here before the call otherwise: both must come to the same answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::client::{Caller, Client, Entry, Handle, OpenFlags, ReadData};
use kiseki_core::errno::Errno;
use kiseki_core::file::machine::Fallocate;
use kiseki_core::meta::acl::AclKind;
use kiseki_core::meta::{RenameMode, SetAttr};
use kiseki_core::testkit::ops::{Op, RenameFlag, SLOTS, UMASK, acl_bytes, split, written_bytes};
use kiseki_core::types::{FileType, Ino, InodeFlags, Timestamp};

use madsim::time::{self, TimeHandle};

use crate::dice::Dice;
use crate::faults::Fault;
use crate::trace::Trace;
use crate::world::{LoggedEnv, World};

/// Who all applications are.
pub const CALLER: Caller = Caller { uid: 0, gid: 0, umask: Some(UMASK) };
/// No read takes longer: the longest deadline of a mount, and time for its metadata.
const READ_MAX: Duration = Duration::from_secs(16);
/// How long a name may be gone before what it led to is looked at.
const UNLINKED: Duration = Duration::from_millis(20);

/// An open file description.
#[derive(Clone, Copy, Debug)]
struct OpenFile {
    handle: Handle,
    ino: Ino,
    append: bool,
    sync: bool,
}

/// The errors of a file that a handle was told or that are older than it (errseq of Linux).
#[derive(Clone)]
pub struct Told {
    ino: Ino,
    seen: Arc<AtomicU64>,
    trace: Trace,
}

impl Told {
    /// A handle that was just opened.
    fn new(ino: Ino, trace: &Trace) -> Self {
        Self { ino, seen: Arc::new(AtomicU64::new(trace.raised(ino))), trace: trace.clone() }
    }

    /// Errors that the handle is to be told: by a write or fsync that begins from here on.
    fn due(&self) -> bool {
        self.seen.load(Ordering::Relaxed) < self.trace.raised(self.ino)
    }

    /// A write or fsync has failed.
    pub fn failed(&self) {
        self.seen.store(self.trace.raised(self.ino), Ordering::Relaxed);
    }
}

/// One application's view of a mount.
pub struct Kernel {
    client: Client<LoggedEnv>,
    dice: Dice,
    /// Lookups that were not forgotten yet.
    counts: BTreeMap<Ino, u64>,
    kinds: BTreeMap<Ino, FileType>,
    /// Names that are known without asking.
    names: BTreeMap<String, Ino>,
    open: [Option<OpenFile>; SLOTS],
    told: [Option<Told>; SLOTS],
    world: World,
}

impl Kernel {
    /// A kernel that has just mounted.
    pub fn new(client: Client<LoggedEnv>, dice: Dice, world: World) -> Self {
        let kinds = BTreeMap::from([(Ino::ROOT, FileType::Directory)]);
        let (open, told) = ([None; SLOTS], [const { None }; SLOTS]);
        Self { client, dice, counts: BTreeMap::new(), kinds, names: BTreeMap::new(), open, told, world }
    }

    /// The mount.
    pub fn client(&self) -> &Client<LoggedEnv> {
        &self.client
    }

    /// The handle of an open file.
    pub fn handle(&self, slot: usize) -> Option<Handle> {
        self.open[slot].map(|file| file.handle)
    }

    /// What the handle of an open file was told.
    pub fn told(&self, slot: usize) -> Option<Told> {
        self.told[slot].clone()
    }

    /// Whether writes through an open file are durable when they return.
    pub fn is_sync(&self, slot: usize) -> bool {
        self.open[slot].is_some_and(|file| file.sync)
    }

    /// The inode of an open file.
    pub fn open_ino(&self, slot: usize) -> Option<Ino> {
        self.open[slot].map(|file| file.ino)
    }

    /// Does `op`; the bytes are those that a read returns.
    pub async fn run(&mut self, op: &Op) -> Result<Vec<u8>, Errno> {
        // Told by a write or an fsync; it may be by a fallocate or a copy, which on an O_SYNC handle end with an fsync.
        let (slot, must) = if let Op::Write { slot, .. } | Op::Fsync { slot } = op {
            (Some(slot), true)
        } else if let Op::Fallocate { slot, .. } | Op::CopyRange { to: slot, .. } = op {
            (Some(slot), false)
        } else {
            (None, false)
        };
        let told = slot.and_then(|slot| self.told(*slot));
        let due = must && told.as_ref().is_some_and(Told::due);
        let result = self.attempt(op).await;
        // An fsync tells of the store's space alone.
        if result == Err(Errno::ENOSPC) && !due && !matches!(op, Op::Fsync { .. }) {
            self.refused(op);
        }
        match (&told, &result) {
            (Some(told), Err(_)) => told.failed(),
            // An fsync in the background may have been told meanwhile.
            (Some(told), Ok(_)) if due && told.due() => {
                self.world.alarm.raise(format!("{:?} has an error that {op:?} was not told", told.ino));
            }
            (Some(_) | None, _) => {}
        }
        result
    }

    /// The volume had no room for `op`, if it has limits.
    fn refused(&self, op: &Op) {
        let written = matches!(op, Op::Write { .. } | Op::Fallocate { .. } | Op::CopyRange { .. });
        let limit = if written { Fault::SpaceShort } else { Fault::InodesShort };
        if self.world.faults.level(limit) > 0 {
            self.world.faults.struck_by(limit);
        }
    }

    async fn attempt(&mut self, op: &Op) -> Result<Vec<u8>, Errno> {
        match op {
            Op::Mkdir { path, mode } => self.make(path, FileType::Directory, *mode, 0).await?,
            Op::Mknod { path, kind, mode, rdev } => self.make(path, *kind, *mode, *rdev).await?,
            Op::Symlink { path, target } => {
                let (dir, name) = self.vacancy(path).await?;
                let entry = self.client.symlink(CALLER, dir, name.as_bytes(), target.as_bytes()).await?;
                self.learn(path, &entry);
            }
            Op::Link { from, to } => {
                let ino = self.walk(from).await?;
                let (dir, name) = self.vacancy(to).await?;
                if self.kinds[&ino] == FileType::Directory {
                    // linkat() looks the new name up before it refuses.
                    return Err(match self.walk(to).await {
                        Ok(_) => Errno::EEXIST,
                        Err(Errno::ENOENT) => Errno::EPERM,
                        Err(errno) => errno,
                    });
                }
                let entry = self.client.link(ino, dir, name.as_bytes()).await?;
                self.learn(to, &entry);
            }
            Op::Unlink { path } => {
                let (dir, name) = self.parent(path).await?;
                if self.dice.chance(500) && self.kind_at(path).await? == FileType::Directory {
                    return Err(Errno::EISDIR);
                }
                let held = if self.dice.chance(200) { self.walk(path).await.ok() } else { None };
                self.client.unlink(dir, name.as_bytes()).await?;
                self.names.clear();
                self.still_there(held).await?;
            }
            Op::Rmdir { path } => {
                let (dir, name) = self.parent(path).await?;
                if self.dice.chance(500) && self.kind_at(path).await? != FileType::Directory {
                    return Err(Errno::ENOTDIR);
                }
                let held = if self.dice.chance(200) { self.walk(path).await.ok() } else { None };
                self.client.rmdir(dir, name.as_bytes()).await?;
                self.names.clear();
                self.still_there(held).await?;
            }
            Op::Rename { from, to, flag } => self.rename(from, to, *flag).await?,
            Op::Open { path, slot, create, exclusive, append, sync, truncate } => {
                let flags = OpenFlags {
                    read: true,
                    write: true,
                    append: *append,
                    truncate: *truncate,
                    sync: *sync,
                    exclusive: *exclusive,
                    ..OpenFlags::default()
                };
                let (handle, ino) = self.open(path, *create, flags).await?;
                self.open[*slot] = Some(OpenFile { handle, ino, append: *append, sync: *sync });
                self.told[*slot] = Some(Told::new(ino, &self.world.trace));
            }
            Op::Close { slot } => {
                let file = self.open[*slot].take().ok_or(Errno::EBADF)?;
                // close(2) may report an old error; the file is closed all the same.
                let _ = self.client.flush(file.handle).await;
                self.client.release(file.handle).await?;
            }
            Op::Write { slot, offset, len, number, drop_privileges } => {
                let file = self.open[*slot].ok_or(Errno::EBADF)?;
                let offset = if file.append { self.client.getattr(file.ino).await?.length } else { *offset };
                let bytes = written_bytes(*number, offset, *len);
                if !self.client.write_now(file.handle, offset, &bytes, *drop_privileges)? {
                    self.client.write(file.handle, offset, Bytes::from(bytes), *drop_privileges).await?;
                }
            }
            Op::Read { slot, offset, len } => {
                let file = self.open[*slot].ok_or(Errno::EBADF)?;
                return self.read(file.handle, *offset, *len).await;
            }
            Op::Fsync { slot } => self.client.fsync(self.open[*slot].ok_or(Errno::EBADF)?.handle).await?,
            Op::FsyncDir { path } => {
                let ino = self.directory(path).await?;
                self.client.fsyncdir(ino).await?;
            }
            Op::Sync => self.client.sync().await?,
            Op::Truncate { path, length } => {
                let ino = self.walk(path).await?;
                match self.kinds[&ino] {
                    FileType::Regular => self.truncate(ino, *length).await?,
                    FileType::Directory => return Err(Errno::EISDIR),
                    FileType::Symlink
                    | FileType::Fifo
                    | FileType::CharDevice
                    | FileType::BlockDevice
                    | FileType::Socket => return Err(Errno::EINVAL),
                }
            }
            Op::Ftruncate { slot, length } => {
                let file = self.open[*slot].ok_or(Errno::EBADF)?;
                self.truncate(file.ino, *length).await?;
            }
            Op::Fallocate { slot, what, offset, len } => {
                let file = self.open[*slot].ok_or(Errno::EBADF)?;
                self.client.fallocate(file.handle, *offset, *len, *what, false).await?;
                let stored = self.client.getattr(file.ino).await.map_or(*len, |attr| attr.stored);
                if *what != Fallocate::Punch && stored < *len {
                    let what = format!("{op:?} of {:?} was answered, and the file takes {stored} bytes", file.ino);
                    self.world.alarm.raise(what);
                }
            }
            Op::Seek { slot, whence, offset } => {
                let file = self.open[*slot].ok_or(Errno::EBADF)?;
                let found = self.client.seek(file.handle, *offset, *whence).await?;
                return Ok(found.to_le_bytes().to_vec());
            }
            Op::CopyRange { from, to, from_offset, to_offset, len } => {
                let (from, to) = (self.open[*from].ok_or(Errno::EBADF)?, self.open[*to].ok_or(Errno::EBADF)?);
                let (from, to) = ((from.handle, *from_offset), (to.handle, *to_offset));
                let copied = self.client.copy_range(from, to, *len, false).await?;
                return Ok(copied.to_le_bytes().to_vec());
            }
            Op::Chmod { path, mode } => self.change(path, SetAttr { mode: Some(*mode), ..SetAttr::default() }).await?,
            Op::Chown { path, uid, gid } => {
                self.change(path, SetAttr { uid: Some(*uid), gid: Some(*gid), ..SetAttr::default() }).await?;
            }
            Op::Utimes { path, secs } => {
                let mtime = Some(Timestamp { secs: *secs, nanos: 0 });
                self.change(path, SetAttr { atime: mtime, mtime, ..SetAttr::default() }).await?;
            }
            Op::SetXattr { path, name, value, mode } => {
                let ino = self.walk(path).await?;
                self.client.setxattr(ino, name.as_bytes(), Bytes::copy_from_slice(value.as_bytes()), *mode).await?;
            }
            Op::RemoveXattr { path, name } => {
                let ino = self.walk(path).await?;
                self.client.removexattr(ino, name.as_bytes()).await?;
            }
            Op::SetAcl { path, default, entries } => {
                let ino = self.walk(path).await?;
                let kind = if *default { AclKind::Default } else { AclKind::Access };
                if entries.is_empty() && self.dice.chance(500) {
                    self.client.removexattr(ino, kind.name()).await?;
                } else {
                    self.client.set_acl(ino, kind, &acl_bytes(entries), false).await?;
                }
            }
            Op::SetFlags { path, flags } => {
                let ino = self.walk(path).await?;
                if !matches!(self.kinds[&ino], FileType::Regular | FileType::Directory) {
                    return Err(Errno::EOPNOTSUPP);
                }
                self.client.set_flags(ino, InodeFlags::from_bits(*flags).expect("four flags")).await?;
            }
        }
        Ok(Vec::new())
    }

    /// Reads as the page cache does: in pieces.
    pub async fn read(&mut self, handle: Handle, offset: u64, len: u32) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        while (bytes.len() as u32) < len {
            let rest = len - bytes.len() as u32;
            let piece = if self.dice.chance(500) { rest } else { 1 + self.dice.below(u64::from(rest)) as u32 };
            let data = self.read_once(handle, offset + bytes.len() as u64, piece).await?;
            bytes.extend_from_slice(&data);
            if (data.len() as u32) < piece {
                break;
            }
        }
        Ok(bytes)
    }

    /// One request of the page cache.
    pub async fn read_once(&self, handle: Handle, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let began = TimeHandle::current().elapsed();
        let data = self.client.read(handle, offset, len).await;
        let took = TimeHandle::current().elapsed() - began;
        if took > READ_MAX {
            self.world.alarm.raise(format!("a read took {took:?}"));
        }
        data.map(ReadData::into_contiguous)
    }

    /// What was looked up and not forgotten can be asked about (fstat of an O_PATH descriptor), name or no name.
    async fn still_there(&self, held: Option<Ino>) -> Result<(), Errno> {
        let Some(ino) = held else { return Ok(()) };
        time::sleep(self.dice.time_below(UNLINKED)).await;
        self.client.getattr(ino).await.map(drop)
    }

    /// The inode that `path` leads to.
    pub async fn walk(&mut self, path: &str) -> Result<Ino, Errno> {
        let mut at = Ino::ROOT;
        let mut prefix = String::new();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if self.kinds[&at] != FileType::Directory {
                return Err(Errno::ENOTDIR);
            }
            prefix = format!("{prefix}/{name}");
            at = match self.names.get(&prefix) {
                Some(ino) if self.dice.chance(700) => *ino,
                Some(_) | None => {
                    let entry = self.client.lookup(at, name.as_bytes()).await?;
                    self.learn(&prefix, &entry)
                }
            };
        }
        Ok(at)
    }

    /// Takes note of an entry that the client has counted as a lookup.
    pub fn learn(&mut self, path: &str, entry: &Entry) -> Ino {
        *self.counts.entry(entry.ino).or_default() += 1;
        self.kinds.insert(entry.ino, entry.attr.kind);
        self.names.insert(path.to_string(), entry.ino);
        entry.ino
    }

    /// Lets go of names and of inodes that are not open, as a kernel short of memory does.
    pub fn shrink(&mut self, all: bool) {
        self.names.clear();
        let open: Vec<Ino> = self.open.iter().flatten().map(|file| file.ino).collect();
        let (client, dice) = (&self.client, &self.dice);
        self.counts.retain(|ino, count| {
            let forget = !open.contains(ino) && (all || dice.chance(700));
            if forget {
                client.forget(*ino, *count);
            }
            !forget
        });
    }

    async fn parent<'a>(&mut self, path: &'a str) -> Result<(Ino, &'a str), Errno> {
        let (parent, name) = split(path);
        Ok((self.directory(parent).await?, name))
    }

    async fn directory(&mut self, path: &str) -> Result<Ino, Errno> {
        let ino = self.walk(path).await?;
        if self.kinds[&ino] == FileType::Directory { Ok(ino) } else { Err(Errno::ENOTDIR) }
    }

    async fn kind_at(&mut self, path: &str) -> Result<FileType, Errno> {
        let ino = self.walk(path).await?;
        Ok(self.kinds[&ino])
    }

    /// The directory for a new name; half of the time the name is looked up first.
    async fn vacancy<'a>(&mut self, path: &'a str) -> Result<(Ino, &'a str), Errno> {
        let (dir, name) = self.parent(path).await?;
        if self.dice.chance(500) {
            match self.walk(path).await {
                Ok(_) => return Err(Errno::EEXIST),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok((dir, name))
    }

    async fn make(&mut self, path: &str, kind: FileType, mode: u16, rdev: u32) -> Result<(), Errno> {
        let (dir, name) = self.vacancy(path).await?;
        let entry = self.client.mknod(CALLER, dir, name.as_bytes(), kind, mode, rdev).await?;
        self.learn(path, &entry);
        Ok(())
    }

    async fn rename(&mut self, from: &str, to: &str, flag: RenameFlag) -> Result<(), Errno> {
        let (old_dir, old_name) = self.parent(from).await?;
        let (new_dir, new_name) = self.parent(to).await?;
        // do_renameat2() looks both names up, and refuses a rename into or over its own ancestors.
        self.walk(from).await?;
        let target = match self.walk(to).await {
            Ok(_) => true,
            Err(Errno::ENOENT) => false,
            Err(errno) => return Err(errno),
        };
        match flag {
            RenameFlag::NoReplace if target => return Err(Errno::EEXIST),
            RenameFlag::Exchange if !target => return Err(Errno::ENOENT),
            RenameFlag::Replace | RenameFlag::NoReplace | RenameFlag::Exchange | RenameFlag::Whiteout => {}
        }
        let below = |path: &str, above: &str| path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
        if below(to, from) && self.dice.chance(500) {
            return Err(Errno::EINVAL);
        }
        if below(from, to) {
            return Err(if flag == RenameFlag::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        let mode = match flag {
            RenameFlag::Replace | RenameFlag::Whiteout => RenameMode::Replace,
            RenameFlag::NoReplace => RenameMode::NoReplace,
            RenameFlag::Exchange => RenameMode::Exchange,
        };
        let names = [(old_dir, old_name.as_bytes()), (new_dir, new_name.as_bytes())];
        let whiteout = (flag == RenameFlag::Whiteout).then_some(CALLER);
        self.client.rename_leaving(names, mode, whiteout).await?;
        self.names.clear();
        Ok(())
    }

    async fn open(&mut self, path: &str, create: Option<u16>, flags: OpenFlags) -> Result<(Handle, Ino), Errno> {
        // A name that the kernel does not know, or has forgotten, is left to the client.
        let found = if flags.exclusive && self.dice.chance(300) { Err(Errno::ENOENT) } else { self.walk(path).await };
        match (found, create) {
            (Ok(_), Some(_)) if flags.exclusive => Err(Errno::EEXIST),
            (Err(Errno::ENOENT), Some(mode)) => {
                let (dir, name) = self.parent(path).await?;
                let (entry, handle) = self.client.create(CALLER, dir, name.as_bytes(), mode, flags).await?;
                Ok((handle, self.learn(path, &entry)))
            }
            (Err(errno), _) => Err(errno),
            (Ok(ino), _) => match self.kinds[&ino] {
                FileType::Directory => Err(Errno::EISDIR),
                FileType::Symlink => Err(Errno::ELOOP),
                FileType::Fifo | FileType::CharDevice | FileType::BlockDevice | FileType::Socket => Err(Errno::ENXIO),
                FileType::Regular => Ok((self.client.open(ino, flags).await?, ino)),
            },
        }
    }

    async fn truncate(&mut self, ino: Ino, length: u64) -> Result<(), Errno> {
        self.client.setattr(ino, SetAttr::default(), Some(length)).await.map(drop)
    }

    async fn change(&mut self, path: &str, set: SetAttr) -> Result<(), Errno> {
        let ino = self.walk(path).await?;
        self.client.setattr(ino, set, None).await.map(drop)
    }
}
