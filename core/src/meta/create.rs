//! New names: creation of every file type, and hard links.
//!
//! Owns: what a new inode starts as. Leaves to others: its number (leased by the client), inherited ACLs (`acl`).
//!
//! Invariant: a creation reads `attr(dir)`, the entry, one statistics stripe and one counter stripe, and writes no key
//! that another creation on another stripe reads.

use super::acl::Inherited;
use super::names::{count, learn_name, live_dir, may_add, note_entries};
use super::volume::{DIRECTORY_LENGTH, total};
use super::{LINK_MAX, New, OpCtx, S_ISGID, check_name, get, put, put_new};
use crate::errno::Errno;
use crate::format::keys::{self, Counter};
use crate::format::values::Dentry;
use crate::kv::{OpResult, Txn};
use crate::planted::{self, Bug};
use crate::types::{Attr, FileType, Ino, InodeFlags, SYMLINK_MAX};

/// Creates an inode under `name`. ENAMETOOLONG, ENOTDIR, ENOENT (the directory was removed), EEXIST, EPERM (the
/// directory is immutable), ENOSPC (`inodes_max`).
pub fn create(txn: &mut dyn Txn, ctx: &OpCtx, dir: Ino, name: &[u8], new: &New) -> OpResult<Attr> {
    assert_eq!(new.kind == FileType::Symlink, new.target.is_some(), "a target comes with a symlink alone");
    check_name(name)?;
    let target_len = new.target.as_ref().map_or(0, |target| target.len());
    if target_len > SYMLINK_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    if new.target.is_some() && target_len == 0 {
        return Err(Errno::ENOENT.into());
    }
    let parent = live_dir(txn, dir)?;
    if txn.get(&keys::dentry(dir, name))?.is_some() {
        return Err(Errno::EEXIST.into());
    }

    may_add(&parent)?;

    let attr = add_inode(txn, ctx, dir, &parent, new)?;
    put_new(txn, keys::dentry(dir, name), &Dentry { ino: new.ino, kind: new.kind });
    note_entries(txn, ctx, dir, &parent, 1, i64::from(new.kind == FileType::Directory))?;
    Ok(attr)
}

/// A new inode for a name in `dir` (stored attributes `parent`), which is the caller's to write. ENOSPC.
pub(super) fn add_inode(txn: &mut dyn Txn, ctx: &OpCtx, dir: Ino, parent: &Attr, new: &New) -> OpResult<Attr> {
    if let Some(max) = new.inodes_max
        && max <= total(txn.as_read(), Counter::Inodes)?
    {
        return Err(Errno::ENOSPC.into());
    }
    let is_dir = new.kind == FileType::Directory;
    let target_len = new.target.as_ref().map_or(0, |target| target.len());
    let inherits = parent.mode & S_ISGID != 0;
    let mut mode = new.mode & 0o7777 | if inherits && is_dir { S_ISGID } else { 0 };
    let inherited = Inherited::load(txn.as_read(), dir, new.kind, &mut mode, new.umask)?;
    inherited.store(txn, new.ino);
    let attr = Attr {
        kind: new.kind,
        mode,
        uid: new.uid,
        gid: if inherits { parent.gid } else { new.gid },
        rdev: new.rdev,
        nlink: if is_dir { 2 } else { 1 },
        length: if is_dir { DIRECTORY_LENGTH } else { target_len as u64 },
        stored: 0,
        atime: ctx.now,
        mtime: ctx.now,
        ctime: ctx.now,
        btime: ctx.now,
        commit: 0,
        next_seq: 0,
        reach: if is_dir { DIRECTORY_LENGTH } else { target_len as u64 },
        exact: true,
        bare: inherited.is_nothing(),
        parent: dir,
        flags: parent.flags.both(InodeFlags::INHERITED),
    };
    put_new(txn, keys::attr(new.ino), &attr);
    if let Some(target) = &new.target {
        put(txn, keys::symlink(new.ino), target);
    }
    if !planted::is(Bug::CountApart) {
        count(txn, ctx, Counter::Inodes, 1)?;
    }
    Ok(attr)
}

/// Gives `ino` a further name. ENAMETOOLONG, ENOTDIR, ENOENT (the directory or the file was removed), EEXIST,
/// EPERM (a directory; flags of the directory or the file), EMLINK.
pub fn link(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino, dir: Ino, name: &[u8]) -> OpResult<Attr> {
    check_name(name)?;
    let parent = live_dir(txn, dir)?;
    if txn.get(&keys::dentry(dir, name))?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    may_add(&parent)?;
    let mut attr: Attr = get(txn, keys::attr(ino))?.ok_or(Errno::ENOENT)?;
    if attr.flags.any(InodeFlags::IMMUTABLE.with(InodeFlags::APPEND)) {
        return Err(Errno::EPERM.into());
    }
    if attr.kind == FileType::Directory {
        return Err(Errno::EPERM.into());
    }
    if attr.nlink == 0 {
        return Err(Errno::ENOENT.into());
    }
    if attr.nlink >= LINK_MAX {
        return Err(Errno::EMLINK.into());
    }
    learn_name(txn, ino, &mut attr, dir, name);
    attr.nlink += 1;
    attr.ctime = attr.ctime.max(ctx.now);
    put(txn, keys::attr(ino), &attr);
    put(txn, keys::dentry(dir, name), &Dentry { ino, kind: attr.kind });
    note_entries(txn, ctx, dir, &parent, 1, 0)?;
    Ok(attr)
}
