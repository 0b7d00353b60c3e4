//! System calls: path walks, type checks, lookup counts, open files; and looking at everything there is.
//!
//! Owns: what Linux does between a system call and the file system, as far as the operations need it.
//! Leaves to others: what the client answers, comparing (`testkit::judge`).
//!
//! Invariants
//! - No request names an inode whose lookup count is zero, but for the root.
//! - What both the kernel and the client check is asked of the client half the time.

use std::collections::BTreeMap;

use bytes::Bytes;
use kiseki_core::client::{Caller, Client, Entry, Handle, OpenFlags, ReadData};
use kiseki_core::errno::Errno;
use kiseki_core::meta::acl::AclKind;
use kiseki_core::meta::{RenameMode, SetAttr};
use kiseki_core::testkit::judge::{Seen, Tree};
use kiseki_core::testkit::ops::{Op, RenameFlag, SLOTS, UMASK, acl_bytes, acl_entries, split, written_bytes};
use kiseki_core::types::{Attr, FileType, Ino, InodeFlags, Timestamp};

use super::world::World;

const CALLER: Caller = Caller { uid: 0, gid: 0, umask: Some(UMASK) };

#[derive(Clone, Copy)]
struct OpenFile {
    handle: Handle,
    ino: Ino,
    append: bool,
    sync: bool,
}

/// What the kernel knows of one mount.
pub(super) struct Kernel {
    pub(super) client: Client<World>,
    world: World,
    /// Lookups that were not forgotten yet.
    counts: BTreeMap<Ino, u64>,
    open: [Option<OpenFile>; SLOTS],
}

impl Kernel {
    pub(super) fn new(client: Client<World>, world: World) -> Self {
        Self { client, world, counts: BTreeMap::new(), open: [None; SLOTS] }
    }

    /// Whether what is open there was opened so that writes are durable.
    pub(super) fn is_sync(&self, slot: usize) -> bool {
        self.open[slot].is_some_and(|file| file.sync)
    }

    /// Does `op`; the bytes are those that a read returns.
    pub(super) async fn call(&mut self, op: &Op) -> Result<Vec<u8>, Errno> {
        match op {
            Op::Mkdir { path, mode } => self.make(path, FileType::Directory, *mode, 0).await?,
            Op::Mknod { path, kind, mode, rdev } => self.make(path, *kind, *mode, *rdev).await?,
            Op::Symlink { path, target } => {
                let (dir, name) = self.vacancy(path).await?;
                let entry = self.client.symlink(CALLER, dir, name.as_bytes(), target.as_bytes()).await?;
                self.learn(&entry);
            }
            Op::Link { from, to } => {
                let (ino, kind) = self.walk(from).await?;
                let (dir, name) = self.vacancy(to).await?;
                if kind == FileType::Directory {
                    // linkat() looks the new name up before it refuses.
                    self.vacant(to).await?;
                    return Err(Errno::EPERM);
                }
                let entry = self.client.link(ino, dir, name.as_bytes()).await?;
                self.learn(&entry);
            }
            Op::Unlink { path } => {
                let (dir, name) = self.parent(path).await?;
                if self.checks() && self.walk(path).await?.1 == FileType::Directory {
                    return Err(Errno::EISDIR);
                }
                self.client.unlink(dir, name.as_bytes()).await?;
            }
            Op::Rmdir { path } => {
                let (dir, name) = self.parent(path).await?;
                if self.checks() && self.walk(path).await?.1 != FileType::Directory {
                    return Err(Errno::ENOTDIR);
                }
                self.client.rmdir(dir, name.as_bytes()).await?;
            }
            Op::Rename { from, to, flag } => self.rename(from, to, *flag).await?,
            Op::Open { path, slot, create, exclusive, append, sync, truncate } => {
                let (append, sync, truncate) = (*append, *sync, *truncate);
                let exclusive = *exclusive;
                let flags =
                    OpenFlags { read: true, write: true, append, truncate, sync, exclusive, ..OpenFlags::default() };
                let (handle, ino) = self.open(path, *create, flags).await?;
                self.open[*slot] = Some(OpenFile { handle, ino, append, sync });
            }
            Op::Close { slot } => {
                let file = self.open[*slot].take().ok_or(Errno::EBADF)?;
                self.client.flush(file.handle).await?;
                self.client.release(file.handle).await?;
            }
            Op::Write { slot, offset, len, number, drop_privileges } => {
                let file = self.file(*slot)?;
                let offset = if file.append { self.client.getattr(file.ino).await?.length } else { *offset };
                let bytes = written_bytes(*number, offset, *len);
                if !self.client.write_now(file.handle, offset, &bytes, *drop_privileges)? {
                    self.client.write(file.handle, offset, bytes.into(), *drop_privileges).await?;
                }
            }
            Op::Read { slot, offset, len } => {
                let data = self.client.read(self.file(*slot)?.handle, *offset, *len).await;
                return data.map(|data| data.into_contiguous().to_vec());
            }
            Op::Fsync { slot } => self.client.fsync(self.file(*slot)?.handle).await?,
            Op::FsyncDir { path } => {
                let dir = self.directory(path).await?;
                self.client.fsyncdir(dir).await?;
            }
            Op::Sync => self.client.sync().await?,
            Op::Truncate { path, length } => match self.walk(path).await? {
                (ino, FileType::Regular) => self.truncate(ino, *length).await?,
                (_, FileType::Directory) => return Err(Errno::EISDIR),
                (
                    _,
                    FileType::Symlink
                    | FileType::Fifo
                    | FileType::CharDevice
                    | FileType::BlockDevice
                    | FileType::Socket,
                ) => return Err(Errno::EINVAL),
            },
            Op::Ftruncate { slot, length } => self.truncate(self.file(*slot)?.ino, *length).await?,
            Op::Fallocate { slot, what, offset, len } => {
                self.client.fallocate(self.file(*slot)?.handle, *offset, *len, *what, false).await?;
            }
            Op::Seek { slot, whence, offset } => {
                let found = self.client.seek(self.file(*slot)?.handle, *offset, *whence).await?;
                return Ok(found.to_le_bytes().to_vec());
            }
            Op::CopyRange { from, to, from_offset, to_offset, len } => {
                let (from, to) = (self.file(*from)?, self.file(*to)?);
                let (from, to) = ((from.handle, *from_offset), (to.handle, *to_offset));
                return Ok(self.client.copy_range(from, to, *len, false).await?.to_le_bytes().to_vec());
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
                let (ino, _) = self.walk(path).await?;
                let value = Bytes::copy_from_slice(value.as_bytes());
                self.client.setxattr(ino, name.as_bytes(), value, *mode).await?;
            }
            Op::RemoveXattr { path, name } => {
                let (ino, _) = self.walk(path).await?;
                self.client.removexattr(ino, name.as_bytes()).await?;
            }
            Op::SetAcl { path, default, entries } => {
                let (ino, _) = self.walk(path).await?;
                let kind = if *default { AclKind::Default } else { AclKind::Access };
                self.client.set_acl(ino, kind, &acl_bytes(entries), false).await?;
            }
            Op::SetFlags { path, flags } => {
                let (ino, kind) = self.walk(path).await?;
                if !matches!(kind, FileType::Regular | FileType::Directory) {
                    return Err(Errno::EOPNOTSUPP);
                }
                self.client.set_flags(ino, InodeFlags::from_bits(*flags).expect("four flags")).await?;
            }
        }
        Ok(Vec::new())
    }

    /// Lets go of every inode that is not open, as a kernel short of memory does.
    pub(super) fn shrink(&mut self) {
        let open: Vec<Ino> = self.open.iter().flatten().map(|file| file.ino).collect();
        let client = &self.client;
        self.counts.retain(|ino, count| {
            let forget = !open.contains(ino);
            if forget {
                client.forget(*ino, *count);
            }
            !forget
        });
    }

    fn checks(&self) -> bool {
        self.world.below(2) == 0
    }

    fn file(&self, slot: usize) -> Result<OpenFile, Errno> {
        self.open[slot].ok_or(Errno::EBADF)
    }

    /// Takes note of an entry that the client has counted as a lookup.
    fn learn(&mut self, entry: &Entry) -> (Ino, FileType) {
        *self.counts.entry(entry.ino).or_default() += 1;
        (entry.ino, entry.attr.kind)
    }

    async fn walk(&mut self, path: &str) -> Result<(Ino, FileType), Errno> {
        let mut at = (Ino::ROOT, FileType::Directory);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if at.1 != FileType::Directory {
                return Err(Errno::ENOTDIR);
            }
            let entry = self.client.lookup(at.0, name.as_bytes()).await?;
            at = self.learn(&entry);
        }
        Ok(at)
    }

    async fn directory(&mut self, path: &str) -> Result<Ino, Errno> {
        let (ino, kind) = self.walk(path).await?;
        if kind == FileType::Directory { Ok(ino) } else { Err(Errno::ENOTDIR) }
    }

    async fn parent<'a>(&mut self, path: &'a str) -> Result<(Ino, &'a str), Errno> {
        let (parent, name) = split(path);
        Ok((self.directory(parent).await?, name))
    }

    async fn vacant(&mut self, path: &str) -> Result<(), Errno> {
        match self.walk(path).await {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// The directory for a new name.
    async fn vacancy<'a>(&mut self, path: &'a str) -> Result<(Ino, &'a str), Errno> {
        let vacancy = self.parent(path).await?;
        if self.checks() {
            self.vacant(path).await?;
        }
        Ok(vacancy)
    }

    async fn make(&mut self, path: &str, kind: FileType, mode: u16, rdev: u32) -> Result<(), Errno> {
        let (dir, name) = self.vacancy(path).await?;
        let entry = self.client.mknod(CALLER, dir, name.as_bytes(), kind, mode, rdev).await?;
        self.learn(&entry);
        Ok(())
    }

    async fn open(&mut self, path: &str, create: Option<u16>, flags: OpenFlags) -> Result<(Handle, Ino), Errno> {
        // A name that the kernel has forgotten is left to the client.
        let found = if flags.exclusive && !self.checks() { Err(Errno::ENOENT) } else { self.walk(path).await };
        match (found, create) {
            (Ok(_), Some(_)) if flags.exclusive => Err(Errno::EEXIST),
            (Err(Errno::ENOENT), Some(mode)) => {
                let (dir, name) = self.parent(path).await?;
                let (entry, handle) = self.client.create(CALLER, dir, name.as_bytes(), mode, flags).await?;
                self.learn(&entry);
                Ok((handle, entry.ino))
            }
            (Err(errno), _) => Err(errno),
            (Ok((ino, kind)), _) => match kind {
                FileType::Directory => Err(Errno::EISDIR),
                FileType::Symlink => Err(Errno::ELOOP),
                FileType::Fifo | FileType::CharDevice | FileType::BlockDevice | FileType::Socket => Err(Errno::ENXIO),
                FileType::Regular => Ok((self.client.open(ino, flags).await?, ino)),
            },
        }
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
        let mode = match flag {
            RenameFlag::NoReplace if target => return Err(Errno::EEXIST),
            RenameFlag::Exchange if !target => return Err(Errno::ENOENT),
            RenameFlag::Replace | RenameFlag::Whiteout => RenameMode::Replace,
            RenameFlag::NoReplace => RenameMode::NoReplace,
            RenameFlag::Exchange => RenameMode::Exchange,
        };
        let below = |path: &str, above: &str| path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
        if below(to, from) && self.checks() {
            return Err(Errno::EINVAL);
        }
        if below(from, to) {
            return Err(if flag == RenameFlag::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        let names = [(old_dir, old_name.as_bytes()), (new_dir, new_name.as_bytes())];
        let whiteout = (flag == RenameFlag::Whiteout).then_some(CALLER);
        self.client.rename_leaving(names, mode, whiteout).await
    }

    async fn truncate(&mut self, ino: Ino, length: u64) -> Result<(), Errno> {
        self.client.setattr(ino, SetAttr::default(), Some(length)).await.map(drop)
    }

    async fn change(&mut self, path: &str, set: SetAttr) -> Result<(), Errno> {
        let (ino, _) = self.walk(path).await?;
        self.client.setattr(ino, set, None).await.map(drop)
    }

    // --- looking

    /// Everything that has a name, as an application finds it.
    pub(super) async fn look(&mut self) -> Result<Tree, String> {
        let mut tree = Tree::new();
        let mut directories = vec![(String::new(), Ino::ROOT)];
        while let Some((prefix, dir)) = directories.pop() {
            let mut cookie = 0;
            loop {
                let page = self.client.readdir(dir, cookie, 5).await.map_err(|errno| format!("{prefix}: {errno:?}"))?;
                let Some(last) = page.last() else { break };
                cookie = last.cookie;
                for entry in page {
                    let name = String::from_utf8_lossy(&entry.name).into_owned();
                    let path = format!("{prefix}/{name}");
                    let found = self.client.lookup(dir, name.as_bytes()).await;
                    let found = found.map_err(|errno| format!("{path} is listed, and its lookup says {errno:?}"))?;
                    if self.learn(&found) != (entry.ino, entry.kind) {
                        return Err(format!("{path} is listed as {entry:?} and looked up as {found:?}"));
                    }
                    let seen = self.see(found.ino).await.map_err(|errno| format!("{path}: {errno:?}"))?;
                    // Commits and sweeps in the background change what is stored.
                    let Attr { stored, commit, next_seq, reach, .. } = seen.attr;
                    if seen.attr != (Attr { stored, commit, next_seq, reach, ..found.attr }) {
                        return Err(format!("{path} is looked up with {:?} and has {:?}", found.attr, seen.attr));
                    }
                    if entry.kind == FileType::Directory {
                        directories.push((path.clone(), entry.ino));
                    }
                    tree.insert(path, seen);
                }
            }
        }
        Ok(tree)
    }

    /// What is open in each slot, under its name or without one.
    pub(super) async fn look_open(&mut self) -> Result<Vec<Option<Seen>>, String> {
        let mut all = Vec::new();
        for (slot, file) in self.open.into_iter().enumerate() {
            let Some(OpenFile { handle, ino, .. }) = file else {
                all.push(None);
                continue;
            };
            let seen = async {
                let attr = self.client.getattr(ino).await?;
                let data = self.contents(handle, attr.length).await?;
                Ok::<_, Errno>(Seen { ino, attr, data, xattrs: BTreeMap::new(), acls: [None, None] })
            };
            all.push(Some(seen.await.map_err(|errno| format!("what is open in slot {slot}: {errno:?}"))?));
        }
        Ok(all)
    }

    async fn see(&mut self, ino: Ino) -> Result<Seen, Errno> {
        let attr = self.client.getattr(ino).await?;
        let data = match attr.kind {
            FileType::Symlink => self.client.readlink(ino).await?.to_vec(),
            FileType::Regular => {
                let flags = OpenFlags { read: true, ..OpenFlags::default() };
                let handle = self.client.open(ino, flags).await?;
                let data = self.contents(handle, attr.length).await;
                self.client.release(handle).await?;
                data?
            }
            FileType::Directory | FileType::Fifo | FileType::CharDevice | FileType::BlockDevice | FileType::Socket => {
                Vec::new()
            }
        };
        let mut xattrs = BTreeMap::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut acls = [None, None];
        for name in self.client.listxattr(ino).await? {
            let value = self.client.getxattr(ino, &name).await?;
            match AclKind::of(&name) {
                Some(AclKind::Access) => acls[0] = acl_entries(&value),
                Some(AclKind::Default) => acls[1] = acl_entries(&value),
                None => drop(xattrs.insert(text(&name), text(&value))),
            }
        }
        Ok(Seen { ino, attr, data, xattrs, acls })
    }

    /// One byte more is asked for: that shows whether the file ends where its attributes say.
    async fn contents(&self, handle: Handle, length: u64) -> Result<Vec<u8>, Errno> {
        let data = self.client.read(handle, 0, length as u32 + 1).await;
        data.map(ReadData::into_contiguous).map(|data| data.to_vec())
    }
}
