//! Rename: moving, replacing and exchanging names.
//!
//! Owns: the order of its checks, the proof that no directory becomes its own ancestor,
//! which files a rename would show (promise 4).
//! Leaves to others: committing what was accepted for those first (client).
//!
//! Invariant: a directory that moves to another one has read `attr` of every ancestor of the target, and every move of
//! a directory writes its `attr`: two moves that would make a loop together conflict.

use super::create::add_inode;
use super::lookup::{DEPTH_MAX, child};
use super::names::{forget_name, learn_name, live_dir, may_add, may_take, note_entries};
use super::remove::detach;
use super::{New, OpCtx, RenameMode, Renamed, check_name, get, put};
use crate::errno::Errno;
use crate::format::keys;
use crate::format::values::Dentry;
use crate::kv::{OpError, OpResult, Read, Txn};
use crate::marks::{Mark, reached};
use crate::types::{Attr, FileType, Ino};

/// A name on one side of a rename, with the directory that it is in.
struct Side<'a> {
    dir: Ino,
    dir_attr: Attr,
    name: &'a [u8],
    key: alloc::vec::Vec<u8>,
}

/// An inode that a name leads to.
struct Found {
    ino: Ino,
    attr: Attr,
}

impl Found {
    fn is_dir(&self) -> bool {
        self.attr.kind == FileType::Directory
    }

    fn dentry(&self) -> Dentry {
        Dentry { ino: self.ino, kind: self.attr.kind }
    }
}

impl<'a> Side<'a> {
    fn load(txn: &mut dyn Txn, dir: Ino, name: &'a [u8]) -> OpResult<Self> {
        Ok(Self { dir, dir_attr: live_dir(txn, dir)?, name, key: keys::dentry(dir, name) })
    }

    fn find(&self, txn: &mut dyn Txn) -> OpResult<Option<Found>> {
        let Some(Dentry { ino, .. }) = get(txn, &self.key)? else { return Ok(None) };
        match get(txn, keys::attr(ino))? {
            Some(attr) => Ok(Some(Found { ino, attr })),
            None => Err(OpError::Damaged("a name of an inode that does not exist")),
        }
    }
}

/// Renames `src_name` in `src_dir` to `dst_name` in `dst_dir`. Two names of one inode: nothing happens.
/// ENAMETOOLONG, ENOENT, EEXIST (`NoReplace`), EINVAL (into itself), ENOTDIR, EISDIR, EPERM (flags), ENOTEMPTY.
pub fn rename(
    txn: &mut dyn Txn,
    ctx: &OpCtx,
    src_dir: Ino,
    src_name: &[u8],
    dst_dir: Ino,
    dst_name: &[u8],
    mode: RenameMode,
) -> OpResult<Renamed> {
    rename_leaving(txn, ctx, [(src_dir, src_name), (dst_dir, dst_name)], mode, None)
}

/// As `rename` of the first name to the second; `whiteout` (not with `Exchange`) is made under the old name. ENOSPC.
pub fn rename_leaving(
    txn: &mut dyn Txn,
    ctx: &OpCtx,
    [(src_dir, src_name), (dst_dir, dst_name)]: [(Ino, &[u8]); 2],
    mode: RenameMode,
    whiteout: Option<&New>,
) -> OpResult<Renamed> {
    assert!(whiteout.is_none() || mode != RenameMode::Exchange, "an exchange leaves no name free");
    check_name(src_name)?;
    check_name(dst_name)?;
    let src = Side::load(txn, src_dir, src_name)?;
    let dst = Side::load(txn, dst_dir, dst_name)?;
    let moved = src.find(txn)?.ok_or(Errno::ENOENT)?;
    let target = dst.find(txn)?;
    match (mode, &target) {
        (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
        (RenameMode::Exchange, None) => return Err(Errno::ENOENT.into()),
        (RenameMode::Replace | RenameMode::NoReplace | RenameMode::Exchange, _) => {}
    }
    if moved.is_dir() && src_dir != dst_dir {
        forbid_ancestor(txn, moved.ino, dst_dir)?;
    }
    if target.as_ref().is_none_or(|target| target.ino != moved.ino) {
        if let (Some(target), true) = (&target, mode != RenameMode::Exchange) {
            match (moved.is_dir(), target.is_dir()) {
                (true, false) => return Err(Errno::ENOTDIR.into()),
                (false, true) => return Err(Errno::EISDIR.into()),
                (true, true) | (false, false) => {}
            }
        }
        may_take(&src.dir_attr, &moved.attr)?;
        match &target {
            Some(target) => may_take(&dst.dir_attr, &target.attr)?,
            None => may_add(&dst.dir_attr)?,
        }
    }
    match target {
        Some(target) if target.ino == moved.ino => Ok(Renamed { moved: moved.ino, replaced: None, exchanged: None }),
        Some(target) if mode == RenameMode::Exchange => exchange(txn, ctx, &src, &dst, moved, target),
        target => replace(txn, ctx, &src, &dst, moved, target, whiteout),
    }
}

/// The regular files that a rename of the first name to the second must not show unless what was accepted for them is
/// committed: none if it puts nothing in the place of something else.
pub fn to_settle(read: &mut dyn Read, names: [(Ino, &[u8]); 2], mode: RenameMode) -> OpResult<[Option<Ino>; 2]> {
    let mut found: [Option<Dentry>; 2] = [None, None];
    for (slot, (dir, name)) in found.iter_mut().zip(names) {
        match child(read, dir, name) {
            Ok(dentry) => *slot = Some(dentry),
            // The rename itself finds the right errno.
            Err(OpError::Errno(_)) => {}
            Err(error @ (OpError::Kv(_) | OpError::Damaged(_))) => return Err(error),
        }
    }
    let regular =
        |dentry: Option<Dentry>| dentry.filter(|dentry| dentry.kind == FileType::Regular).map(|dentry| dentry.ino);
    let [source, target] = found;
    Ok(match mode {
        RenameMode::NoReplace => [None, None],
        RenameMode::Replace if target.is_none() => [None, None],
        RenameMode::Replace => [regular(source), None],
        RenameMode::Exchange => [regular(source), regular(target)],
    })
}

fn replace(
    txn: &mut dyn Txn,
    ctx: &OpCtx,
    src: &Side<'_>,
    dst: &Side<'_>,
    moved: Found,
    target: Option<Found>,
    whiteout: Option<&New>,
) -> OpResult<Renamed> {
    let moved_dirs = i64::from(moved.is_dir());
    let (mut lost, mut lost_dirs, mut replaced) = (0, 0, None);
    if let Some(target) = target {
        (lost, lost_dirs) = (1, i64::from(target.is_dir()));
        replaced = Some(detach(txn, ctx, dst.dir, dst.name, target.ino, target.attr)?);
    }
    match whiteout {
        Some(new) => {
            reached(Mark::WhiteoutLeft);
            add_inode(txn, ctx, src.dir, &src.dir_attr, new)?;
            put(txn, &src.key, &Dentry { ino: new.ino, kind: new.kind });
        }
        None => txn.delete(&src.key),
    }
    put(txn, &dst.key, &moved.dentry());
    let moved_ino = moved.ino;
    rehome(txn, ctx, moved, src, dst)?;
    note_entries(txn, ctx, src.dir, &src.dir_attr, if whiteout.is_some() { 0 } else { -1 }, -moved_dirs)?;
    note_entries(txn, ctx, dst.dir, &dst.dir_attr, 1 - lost, moved_dirs - lost_dirs)?;
    Ok(Renamed { moved: moved_ino, replaced, exchanged: None })
}

fn exchange(
    txn: &mut dyn Txn,
    ctx: &OpCtx,
    src: &Side<'_>,
    dst: &Side<'_>,
    moved: Found,
    target: Found,
) -> OpResult<Renamed> {
    if target.is_dir() && src.dir != dst.dir {
        forbid_ancestor(txn, target.ino, src.dir)?;
    }
    put(txn, &src.key, &target.dentry());
    put(txn, &dst.key, &moved.dentry());
    let subdirs = i64::from(moved.is_dir()) - i64::from(target.is_dir());
    let renamed = Renamed { moved: moved.ino, replaced: None, exchanged: Some(target.ino) };
    rehome(txn, ctx, moved, src, dst)?;
    rehome(txn, ctx, target, dst, src)?;
    note_entries(txn, ctx, src.dir, &src.dir_attr, 0, -subdirs)?;
    note_entries(txn, ctx, dst.dir, &dst.dir_attr, 0, subdirs)?;
    Ok(renamed)
}

/// Records in the inode itself that its name went from one place to another.
fn rehome(txn: &mut dyn Txn, ctx: &OpCtx, found: Found, from: &Side<'_>, to: &Side<'_>) -> OpResult<()> {
    let Found { ino, mut attr } = found;
    if attr.kind == FileType::Directory {
        attr.parent = to.dir;
    } else {
        forget_name(txn, ino, &mut attr, from.dir, from.name)?;
        learn_name(txn, ino, &mut attr, to.dir, to.name);
    }
    attr.ctime = attr.ctime.max(ctx.now);
    put(txn, keys::attr(ino), &attr);
    Ok(())
}

/// EINVAL if `dir` is `below` or an ancestor of it.
fn forbid_ancestor(txn: &mut dyn Txn, dir: Ino, below: Ino) -> OpResult<()> {
    let mut at = below;
    for _ in 0..DEPTH_MAX {
        if at == dir {
            return Err(Errno::EINVAL.into());
        }
        if at == Ino::ROOT {
            return Ok(());
        }
        at = get::<Attr>(txn, keys::attr(at))?.ok_or(OpError::Damaged("a directory without its parent"))?.parent;
    }
    Err(OpError::Damaged("directories in a loop"))
}
