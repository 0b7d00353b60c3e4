//! Operations on names and attributes: one metadata transaction each, seen through what the file machines hold.
//!
//! Owns: the overlay of uncommitted attributes, promise 4 (`rename`), lookup counts.
//! Leaves to others: what the transactions do (`meta`).

use alloc::sync::Arc;
use alloc::vec::Vec;

use bytes::Bytes;

use super::files::{Cell, Handle, OpenFlags};
use super::wait::lock;
use super::{Client, Shared};
use crate::env::{Edge, Env, MetaError, Point};
use crate::errno::Errno;
use crate::kv::Txn;
use crate::marks::{Mark, reached, reached_if};
use crate::meta::acl::{self, Acl, AclKind};
use crate::meta::{self, New, OpCtx, Removed, RenameMode, SECURITY_CAPABILITY, SetAttr, XattrMode};
use crate::planted::{self, Bug};
use crate::types::{Attr, FILE_SIZE_MAX, FileType, Ino, InodeFlags, SYMLINK_MAX};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User that new inodes belong to.
    pub uid: u32,
    /// Group that new inodes belong to, unless the directory is sgid.
    pub gid: u32,
    /// Permission bits that new inodes do not get where the directory has no default ACL; `None`: they are taken away
    /// already, or the volume has no ACLs.
    pub umask: Option<u16>,
}

/// Inodes that may be created between a look at the volume's usage and a transaction: so near to its limit each
/// creation proves in its own transaction that there is room.
const INODES_NEAR: u64 = 4096;

/// An inode as a lookup shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub ino: Ino,
    /// Its attributes, with everything accepted.
    pub attr: Attr,
}

/// Use and limits of a volume (statfs(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes that may be stored; 0: no limit.
    pub capacity_bytes: u64,
    /// Bytes stored or accepted.
    pub used_bytes: u64,
    /// Inodes that may exist; 0: no limit.
    pub capacity_inodes: u64,
    /// Inodes that exist.
    pub used_inodes: u64,
}

impl<E: Env> Client<E> {
    /// Finds a name. Counts one lookup of the inode, as every operation here that returns an `Entry`.
    pub async fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Entry, Errno> {
        let shared = &self.0;
        loop {
            shared.env.pause().await;
            let retired = shared.files.retired();
            let found = shared.read(|read| meta::lookup::lookup(read, dir, name)).await;
            if planted::is(Bug::FailedReadIsAbsence) && matches!(found, Err(Errno::EIO)) {
                return Err(Errno::ENOENT);
            }
            let (ino, mut attr) = found?;
            if attr.kind == FileType::Regular && shared.may_be_dirty(ino, retired) {
                match shared.getattr(ino).await {
                    // It lost the name since, and is gone or about to be, with what it had not committed: a rename over it
                    // may have given the name to another.
                    Err(Errno::ENOENT) => continue,
                    Ok(accepted) if accepted.nlink == 0 => continue,
                    accepted => attr = accepted?,
                }
            }
            shared.accesses.show(ino, &mut attr);
            shared.files.remember(ino);
            return Ok(Entry { ino, attr });
        }
    }

    /// What an inode number leads to that the kernel has forgotten and somebody remembers, such as an NFS client. Counts as
    /// a lookup. ENOENT if it is gone.
    pub async fn lookup_ino(&self, ino: Ino) -> Result<Entry, Errno> {
        self.0.env.pause().await;
        let attr = self.0.getattr(ino).await?;
        self.0.files.remember(ino);
        Ok(Entry { ino, attr })
    }

    /// The directory that holds a directory; as `lookup_ino`.
    pub async fn lookup_parent(&self, dir: Ino) -> Result<Entry, Errno> {
        let attr = self.0.getattr(dir).await?;
        self.lookup_ino(attr.parent).await
    }

    /// The kernel forgot `count` lookups of `ino`.
    pub fn forget(&self, ino: Ino, count: u64) {
        if self.0.files.forget(ino, count) {
            self.0.reap_soon(ino);
        }
    }

    /// Counts a lookup of an inode that a listing showed.
    pub fn remember(&self, ino: Ino) {
        self.0.files.remember(ino);
    }

    /// Attributes, with everything accepted.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr, Errno> {
        self.0.getattr(ino).await
    }

    /// Changes attributes, and the length if `size` is given. EISDIR, EINVAL (length of what has none), EFBIG,
    /// EPERM (the inode's flags).
    pub async fn setattr(&self, ino: Ino, set: SetAttr, size: Option<u64>) -> Result<Attr, Errno> {
        let shared = &self.0;
        if shared.options.read_only {
            return Err(Errno::EROFS);
        }
        if let Some(length) = size {
            if length > FILE_SIZE_MAX {
                return Err(Errno::EFBIG);
            }
            let cell = shared.pin(ino).await?;
            let allowed =
                meta::attr::check_open(cell.flags(), true, false, true).and_then(|()| set.check(cell.flags()));
            if let Err(errno) = allowed {
                shared.files.unpin(&cell);
                return Err(errno);
            }
            shared.truncate(&cell, length);
            if set != SetAttr::default() {
                shared.set_attr(&cell, &set);
            }
            let attr = shared.getattr(ino).await;
            shared.files.unpin(&cell);
            return attr;
        }
        if set.atime.is_some() {
            shared.accesses.forget(ino);
        }
        // In its place among what is accepted and not committed; else at once.
        if let Ok(cell) = shared.files.pin(ino) {
            let dirty = lock(&cell.state).file.dirty_since().is_some();
            let allowed = set.check(cell.flags());
            if dirty && allowed.is_ok() {
                reached(Mark::AttributesInOrder);
                shared.set_attr(&cell, &set);
            }
            let attr = match allowed {
                Ok(()) if dirty => Some(shared.getattr(ino).await),
                Ok(()) => None,
                Err(errno) => Some(Err(errno)),
            };
            shared.files.unpin(&cell);
            if let Some(attr) = attr {
                return attr;
            }
        }
        shared.mutate(|txn, ctx| meta::attr::set(txn, ctx, ino, &set)).await?;
        shared.getattr(ino).await
    }

    /// Makes an inode of any kind but a symbolic link. `mode`: permission bits.
    pub async fn mknod(
        &self,
        caller: Caller,
        dir: Ino,
        name: &[u8],
        kind: FileType,
        mode: u16,
        rdev: u32,
    ) -> Result<Entry, Errno> {
        self.0.make(caller, dir, name, kind, mode, rdev, None).await
    }

    /// Makes a symbolic link. ENAMETOOLONG, ENOENT (empty target).
    pub async fn symlink(&self, caller: Caller, dir: Ino, name: &[u8], target: &[u8]) -> Result<Entry, Errno> {
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        if target.len() > SYMLINK_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let target = Some(Bytes::copy_from_slice(target));
        self.0.make(caller, dir, name, FileType::Symlink, 0o777, 0, target).await
    }

    /// Makes and opens a regular file; opens the one that is there unless `flags.exclusive`.
    pub async fn create(
        &self,
        caller: Caller,
        dir: Ino,
        name: &[u8],
        mode: u16,
        flags: OpenFlags,
    ) -> Result<(Entry, Handle), Errno> {
        let shared = &self.0;
        match shared.make(caller, dir, name, FileType::Regular, mode, 0, None).await {
            Ok(entry) => {
                let cell = match shared.files.pin(entry.ino) {
                    Ok(cell) => cell,
                    Err(ticket) => {
                        let made = shared
                            .files
                            .insert(entry.ino, entry.attr.flags, ticket, || shared.machine(entry.ino, &entry.attr));
                        match made {
                            Some(cell) => cell,
                            None => shared.pin(entry.ino).await?,
                        }
                    }
                };
                // Nobody knows the new file yet who could set it.
                if let Some(seen) = cell.capability.seen() {
                    cell.capability.gone(seen);
                }
                Ok((entry, shared.files.open(cell, flags)))
            }
            Err(Errno::EEXIST) if !flags.exclusive => {
                let entry = self.lookup(dir, name).await?;
                match self.open(entry.ino, flags).await {
                    Ok(handle) => Ok((entry, handle)),
                    Err(errno) => {
                        self.forget(entry.ino, 1);
                        Err(errno)
                    }
                }
            }
            Err(errno) => Err(errno),
        }
    }

    /// Gives a file one more name.
    pub async fn link(&self, ino: Ino, dir: Ino, name: &[u8]) -> Result<Entry, Errno> {
        self.0.env.pause().await;
        self.0.mutate(|txn, ctx| meta::create::link(txn, ctx, ino, dir, name)).await?;
        let attr = self.0.getattr(ino).await?;
        self.0.files.remember(ino);
        Ok(Entry { ino, attr })
    }

    /// Removes a name of what is not a directory.
    pub async fn unlink(&self, dir: Ino, name: &[u8]) -> Result<(), Errno> {
        self.0.env.pause().await;
        let removed = self.0.mutate(|txn, ctx| meta::remove::unlink(txn, ctx, dir, name)).await?;
        self.0.removed(removed);
        Ok(())
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, dir: Ino, name: &[u8]) -> Result<(), Errno> {
        self.0.env.pause().await;
        let removed = self.0.mutate(|txn, ctx| meta::remove::rmdir(txn, ctx, dir, name)).await?;
        self.0.removed(removed);
        Ok(())
    }

    /// Renames (renameat2(2)). Promise 4: if a name is replaced or exchanged, what was accepted for the renamed
    /// files is committed first, so a crash leaves the old contents or the new, whole. If that fails or takes too
    /// long: EIO, and nothing is renamed.
    pub async fn rename(
        &self,
        dir: Ino,
        name: &[u8],
        new_dir: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), Errno> {
        self.rename_leaving([(dir, name), (new_dir, new_name)], mode, None).await
    }

    /// As `rename` of the first name to the second; with `whiteout` a whiteout of this caller is under the old name
    /// then (RENAME_WHITEOUT): a character device 0:0 that nobody may read.
    pub async fn rename_leaving(
        &self,
        names: [(Ino, &[u8]); 2],
        mode: RenameMode,
        whiteout: Option<Caller>,
    ) -> Result<(), Errno> {
        let shared = &self.0;
        shared.env.pause().await;
        let mut mode = mode;
        if planted::is(Bug::RenameLooksFirst)
            && mode == RenameMode::NoReplace
            && shared.read(|read| meta::lookup::lookup(read, names[1].0, names[1].1)).await == Err(Errno::ENOENT)
        {
            mode = RenameMode::Replace;
        }
        let whiteout = match whiteout {
            Some(caller) => Some(shared.new_inode(caller, FileType::CharDevice, 0, 0, None).await?),
            None => None,
        };
        let mut settled: [Option<Ino>; 2] = [None, None];
        loop {
            let over = settled.iter().any(Option::is_some);
            let renamed = shared
                .mutate(|txn, ctx| {
                    // The files that must be settled are looked up in the same transaction that renames.
                    let mut wanted = meta::rename::to_settle(txn.as_read(), names, mode)?;
                    if planted::is(Bug::RenameWithoutWait) {
                        wanted = [None, None];
                    }
                    if wanted.iter().any(|ino| ino.is_some() && !settled.contains(ino) && shared.is_dirty(*ino)) {
                        return Ok(Err(wanted));
                    }
                    let leaving = whiteout.as_ref().filter(|_| !planted::is(Bug::WhiteoutApart));
                    meta::rename::rename_leaving(txn, ctx, names, mode, leaving).map(Ok)
                })
                .await;
            if over {
                shared.env.at(Point::RenameOver, Edge::End);
            }
            match renamed? {
                Ok(renamed) => {
                    if let Some(removed) = renamed.replaced {
                        shared.removed(removed);
                    }
                    if let (true, Some(new)) = (planted::is(Bug::WhiteoutApart), &whiteout) {
                        let (dir, name) = names[0];
                        _ = shared.mutate(|txn, ctx| meta::create::create(txn, ctx, dir, name, new)).await;
                    }
                    return Ok(());
                }
                Err(wanted) => {
                    reached_if(Mark::ExchangeOfDirty, || {
                        wanted.iter().all(|ino| ino.is_some() && shared.is_dirty(*ino)) && wanted[0] != wanted[1]
                    });
                    shared.env.at(Point::RenameOver, Edge::Begin);
                    if let Err(errno) = shared.settle(wanted).await {
                        reached(Mark::RenameOverOutOfTime);
                        shared.env.at(Point::RenameOver, Edge::End);
                        return Err(errno);
                    }
                    reached(Mark::RenameOverWaited);
                    settled = wanted;
                    if planted::is(Bug::RenameInTwo) && mode == RenameMode::Replace && names[0] != names[1] {
                        _ = self.unlink(names[1].0, names[1].1).await;
                    }
                }
            }
        }
    }

    /// The target of a symbolic link.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes, Errno> {
        let target = self.0.read(|read| meta::lookup::readlink(read, ino)).await?;
        self.0.accessed(ino);
        Ok(target)
    }

    /// Use and limits.
    pub async fn statfs(&self) -> Result<StatFs, Errno> {
        let shared = &self.0;
        let usage = shared.read(meta::volume::usage).await?;
        Ok(StatFs {
            capacity_bytes: shared.volume.capacity,
            used_bytes: usage.bytes + shared.memory.used() + shared.space.reserving(),
            capacity_inodes: shared.volume.inodes,
            used_inodes: usage.inodes,
        })
    }

    /// Sets the inode's flags (chattr(1)).
    pub async fn set_flags(&self, ino: Ino, flags: InodeFlags) -> Result<(), Errno> {
        let shared = &self.0;
        // Pinned before the change: whoever opens it from here on finds what is noted below.
        let cell = match shared.pin(ino).await {
            Ok(cell) => Some(cell),
            Err(Errno::EISDIR | Errno::EINVAL) => None,
            Err(errno) => return Err(errno),
        };
        let set = shared.mutate(|txn, ctx| meta::attr::set_flags(txn, ctx, ino, flags)).await;
        if let Some(cell) = cell {
            if set.is_ok() {
                cell.set_flags(flags);
            }
            shared.files.unpin(&cell);
        }
        set.map(drop)
    }

    /// The value of an extended attribute. ENODATA, and what a name can be wrong in: ERANGE, EINVAL, EOPNOTSUPP.
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, Errno> {
        let shared = &self.0;
        let kind = shared.acl_kind(name)?;
        let value = shared.read(|read| meta::xattr::get(read, ino, name)).await?;
        let Some(kind) = kind else { return Ok(value) };
        let mode = shared.getattr(ino).await?.mode;
        acl::shown(&value, kind, mode).map_err(|error| super::errno(MetaError::Op(error)))
    }

    /// Sets an ACL to the value of its extended attribute; without entries it goes. With `drop_sgid` an access ACL
    /// takes the sgid bit (of a caller outside of the file's group). EOPNOTSUPP (a volume without ACLs, a symbolic link),
    /// EINVAL, EACCES (a default ACL of what is no directory), EPERM (the inode's flags).
    pub async fn set_acl(&self, ino: Ino, kind: AclKind, value: &[u8], drop_sgid: bool) -> Result<(), Errno> {
        self.0.acl_kind(kind.name())?;
        let new = Acl::decode(value)?;
        self.0.set_acl(ino, kind, new.as_ref(), drop_sgid).await
    }

    /// Sets an extended attribute that is no ACL. EEXIST, ENODATA, E2BIG, EPERM (the inode's flags), and what a name can
    /// be wrong in.
    pub async fn setxattr(&self, ino: Ino, name: &[u8], value: Bytes, mode: XattrMode) -> Result<(), Errno> {
        self.0.mutate(|txn, ctx| meta::xattr::set(txn, ctx, ino, name, &value, mode)).await?;
        if name == SECURITY_CAPABILITY
            && let Some(cell) = self.0.files.get(ino)
        {
            cell.capability.set();
        }
        Ok(())
    }

    /// Names of the extended attributes.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<Bytes>, Errno> {
        self.0.read(|read| meta::xattr::list(read, ino)).await
    }

    /// Removes an extended attribute. ENODATA (but for an ACL), EPERM (the inode's flags), and what a name can be wrong in.
    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        if let Some(kind) = self.0.acl_kind(name)? {
            return self.0.set_acl(ino, kind, None, false).await;
        }
        self.0.mutate(|txn, ctx| meta::xattr::remove(txn, ctx, ino, name)).await
    }
}

impl<E: Env> Shared<E> {
    /// Which ACL an extended attribute of this name is. EOPNOTSUPP if the volume has none.
    fn acl_kind(&self, name: &[u8]) -> Result<Option<AclKind>, Errno> {
        match AclKind::of(name) {
            Some(_) if !self.volume.acl => Err(Errno::EOPNOTSUPP),
            kind => Ok(kind),
        }
    }

    /// The mode that an access ACL brings takes its place among what is accepted and not committed.
    async fn set_acl(
        self: &Arc<Self>,
        ino: Ino,
        kind: AclKind,
        new: Option<&Acl>,
        drop_sgid: bool,
    ) -> Result<(), Errno> {
        let pinned = self.files.pin(ino).ok();
        let dirty = pinned.as_ref().filter(|cell| lock(&cell.state).file.dirty_since().is_some());
        let result = async {
            let mode_apart = match dirty {
                Some(_) => Some(self.getattr(ino).await?.mode),
                None => None,
            };
            let set = |txn: &mut dyn Txn, ctx: &OpCtx| acl::set(txn, ctx, ino, kind, new, drop_sgid, mode_apart);
            let mode = self.mutate(set).await?;
            if let (Some(cell), AclKind::Access, Some(_), Some(_)) = (dirty, kind, new, mode) {
                reached(Mark::AclOfDirtyFile);
                self.set_attr(cell, &SetAttr { mode, ..SetAttr::default() });
            }
            Ok(())
        };
        let result = result.await;
        if let Some(cell) = pinned {
            self.files.unpin(&cell);
        }
        result
    }

    /// What a write and opening with O_TRUNC do to security.capability; other changes leave it to the kernel to remove.
    pub(super) async fn drop_capability(&self, cell: &Cell) -> Result<(), Errno> {
        if let Some(seen) = self.look_for_capability(cell).await? {
            self.mutate(|txn, _| meta::attr::drop_capability(txn, cell.ino)).await?;
            cell.capability.gone(seen);
        }
        Ok(())
    }

    /// `Some`: a file has security.capability; what `Capability::gone` wants to know.
    pub(super) async fn look_for_capability(&self, cell: &Cell) -> Result<Option<u64>, Errno> {
        let Some(seen) = cell.capability.seen() else { return Ok(None) };
        match self.read(|read| meta::xattr::get(read, cell.ino, SECURITY_CAPABILITY)).await {
            Ok(_) => Ok(Some(seen)),
            Err(Errno::ENODATA) => {
                cell.capability.gone(seen);
                Ok(None)
            }
            Err(errno) => Err(errno),
        }
    }

    /// What the store says of a file at a time when `retired` was read may be behind what was accepted.
    pub(super) fn may_be_dirty(&self, ino: Ino, retired: u64) -> bool {
        self.files.get(ino).is_some() || self.files.retired() != retired
    }

    pub(super) async fn getattr(&self, ino: Ino) -> Result<Attr, Errno> {
        let mut attr = self.accepted_attr(ino).await?;
        self.accesses.show(ino, &mut attr);
        Ok(attr)
    }

    /// Attributes with everything accepted, without the accesses that are not recorded.
    pub(super) async fn accepted_attr(&self, ino: Ino) -> Result<Attr, Errno> {
        loop {
            self.env.pause().await;
            let (cell, retired) = self.files.get_counted(ino);
            let version = cell.map(|cell| lock(&cell.state).file.version());
            let attr = self.read(|read| meta::attr::load(read, ino)).await?;
            if attr.kind != FileType::Regular {
                return Ok(attr);
            }
            // Nothing may have been committed by a machine that has let go of it since: the read may be older.
            match self.files.get_counted(ino) {
                (Some(cell), now_retired) if now_retired == retired => {
                    let state = lock(&cell.state);
                    // Its last name and the last who used it are gone; what was read may be older than that.
                    if state.file.is_discarded() {
                        return Err(Errno::ENOENT);
                    }
                    // A machine that came since and has committed nothing adds to what was read.
                    if state.file.version() == version.unwrap_or(0) || planted::is(Bug::StaleAttr) {
                        return Ok(state.file.overlay_attr(attr));
                    }
                    reached(Mark::StaleAttributesRefused);
                }
                (None, now_retired) if now_retired == retired => return Ok(attr),
                (Some(_) | None, _) => reached(Mark::StaleAttributesRefused),
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "mknod(2) has as many")]
    async fn make(
        self: &Arc<Self>,
        caller: Caller,
        dir: Ino,
        name: &[u8],
        kind: FileType,
        mode: u16,
        rdev: u32,
        target: Option<Bytes>,
    ) -> Result<Entry, Errno> {
        self.env.pause().await;
        if self.options.read_only {
            return Err(Errno::EROFS);
        }
        let new = self.new_inode(caller, kind, mode, rdev, target).await?;
        let ino = new.ino;
        if kind == FileType::Directory {
            self.meta.makes(ino);
        }
        let made = self.mutate(|txn, ctx| meta::create::create(txn, ctx, dir, name, &new)).await;
        reached_if(Mark::CreateBeyondLimit, || made == Err(Errno::ENOSPC));
        let attr = made?;
        if planted::is(Bug::CountApart) {
            self.mutate(planted::count_inode).await?;
        }
        self.files.remember(ino);
        Ok(Entry { ino, attr })
    }

    /// An inode to create. ENOSPC if the volume holds no more.
    async fn new_inode(
        self: &Arc<Self>,
        caller: Caller,
        kind: FileType,
        mode: u16,
        rdev: u32,
        target: Option<Bytes>,
    ) -> Result<New, Errno> {
        let Caller { uid, gid, umask } = caller;
        let max = self.volume.inodes;
        let near = max > 0 && max <= self.read(meta::volume::usage).await?.inodes + INODES_NEAR;
        if near {
            // What was removed makes room.
            self.reaped_soon().await;
        }
        let inodes_max = if planted::is(Bug::InodeLimitIgnored) { None } else { near.then_some(max) };
        let ino = Ino(self.next_ino().await?);
        Ok(New { ino, kind, mode, uid, gid, rdev, target, umask, inodes_max })
    }

    async fn next_ino(self: &Arc<Self>) -> Result<u64, Errno> {
        if self.inodes.is_low(self.options.inode_lease / 4) {
            let shared = self.clone();
            // A failure shows when the pool is empty.
            self.env.spawn(async move { _ = shared.refill_inodes().await });
        }
        loop {
            match self.inodes.take() {
                Some(ino) => return Ok(ino),
                None => self.refill_inodes().await?,
            }
        }
    }

    /// A name went away; the last one makes the inode an orphan, which is reaped when the kernel forgets it.
    fn removed(self: &Arc<Self>, removed: Removed) {
        if removed.nlink == 0 && (self.files.orphan(removed.ino) || planted::is(Bug::ReapWhileOpen)) {
            self.reap_soon(removed.ino);
        }
    }

    /// Waits until what was accepted for the files so far is committed.
    async fn settle(self: &Arc<Self>, files: [Option<Ino>; 2]) -> Result<(), Errno> {
        let deadline = self.deadline();
        for ino in files.into_iter().flatten() {
            if let Some(cell) = self.files.get(ino) {
                let seen = lock(&cell.state).file.error_count();
                self.flush(&cell, seen, deadline).await?;
            }
        }
        Ok(())
    }

    fn is_dirty(&self, ino: Option<Ino>) -> bool {
        let cell = ino.and_then(|ino| self.files.get(ino));
        cell.is_some_and(|cell| lock(&cell.state).file.dirty_since().is_some())
    }
}
