//! What every operation on names shares: directories, their statistics, counters, and which name is recorded where.
//!
//! Owns: the writes that adding and removing an entry imply for the directory and for the inode's own record of names.
//! Leaves to others: dentries themselves, and which errors come first.
//!
//! Invariants
//! - A directory's base attributes are not written by adding an entry, unless their times are in the future.
//! - Of the names of an inode that is not a directory, at most one has no `link` key: it is in `attr.parent`, which is
//!   `Ino(0)` when every name has one. So a file with one link costs no `link` key, and a second link needs no search
//!   for the first name.

use super::{OpCtx, get, put};
use crate::errno::Errno;
use crate::format::keys::{self, Counter};
use crate::format::values::DirStat;
use crate::kv::{OpResult, Read, Txn};
use crate::planted::{self, Bug};
use crate::types::{Attr, FileType, Ino, InodeFlags, STRIPES, Timestamp};

/// Earlier than every time: a stripe that says nothing about times.
pub(super) const NEVER: Timestamp = Timestamp { secs: i64::MIN, nanos: 0 };

/// The stored attributes of a directory that can take and lose entries.
pub(super) fn live_dir(txn: &mut dyn Txn, dir: Ino) -> OpResult<Attr> {
    let attr: Attr = get(txn, keys::attr(dir))?.ok_or(Errno::ENOENT)?;
    if attr.kind != FileType::Directory {
        return Err(Errno::ENOTDIR.into());
    }
    if attr.nlink == 0 {
        return Err(Errno::ENOENT.into());
    }
    Ok(attr)
}

/// EPERM if the directory takes no entries. (may_create of Linux)
pub(super) fn may_add(dir: &Attr) -> OpResult<()> {
    if dir.flags.any(InodeFlags::IMMUTABLE) { Err(Errno::EPERM.into()) } else { Ok(()) }
}

/// EPERM if the directory does not give up its entry for `child`. (may_delete of Linux)
pub(super) fn may_take(dir: &Attr, child: &Attr) -> OpResult<()> {
    let fixed = InodeFlags::IMMUTABLE.with(InodeFlags::APPEND);
    if dir.flags.any(fixed) || child.flags.any(fixed) { Err(Errno::EPERM.into()) } else { Ok(()) }
}

/// Records that entries of `dir` (stored attributes `attr`) came or went.
pub(super) fn note_entries(
    txn: &mut dyn Txn,
    ctx: &OpCtx,
    dir: Ino,
    attr: &Attr,
    entries: i64,
    subdirs: i64,
) -> OpResult<()> {
    let key = keys::dirstat(dir, ctx.stripe);
    let old: DirStat = get(txn, &key)?.unwrap_or_default();
    let stat = DirStat {
        entries: old.entries.saturating_add(entries),
        subdirs: old.subdirs.saturating_add(subdirs),
        mtime: ctx.now,
        ctime: ctx.now,
    };
    put(txn, &key, &stat);
    // Times are merged by taking the latest, so one that was set to the future has to be brought back.
    if attr.mtime > ctx.now || attr.ctime > ctx.now {
        let settled = Attr { mtime: attr.mtime.min(ctx.now), ctime: attr.ctime.min(ctx.now), ..*attr };
        put(txn, keys::attr(dir), &settled);
    }
    Ok(())
}

/// The sum of all stripes, read one by one so that each is tracked.
pub(super) fn sum_stripes(read: &mut (impl Read + ?Sized), dir: Ino) -> OpResult<DirStat> {
    let mut sum = DirStat { entries: 0, subdirs: 0, mtime: NEVER, ctime: NEVER };
    for stripe in 0..STRIPES {
        if let Some(stat) = get::<DirStat>(read, keys::dirstat(dir, stripe))? {
            add_stripe(&mut sum, &stat);
        }
    }
    Ok(sum)
}

/// Adds one stripe.
pub(super) fn add_stripe(sum: &mut DirStat, stat: &DirStat) {
    sum.entries = sum.entries.saturating_add(stat.entries);
    sum.subdirs = sum.subdirs.saturating_add(stat.subdirs);
    sum.mtime = sum.mtime.max(stat.mtime);
    sum.ctime = sum.ctime.max(stat.ctime);
}

/// Stored attributes of a directory and its summed stripes, as callers see them.
pub(super) fn merge(attr: &mut Attr, sum: &DirStat) {
    attr.nlink = attr.nlink.saturating_add(u32::try_from(sum.subdirs.max(0)).unwrap_or(u32::MAX));
    attr.mtime = attr.mtime.max(sum.mtime);
    attr.ctime = attr.ctime.max(sum.ctime);
}

/// Adds to this stripe of a counter.
pub(super) fn count(txn: &mut dyn Txn, ctx: &OpCtx, counter: Counter, delta: i64) -> OpResult<()> {
    if delta != 0 {
        let key = keys::counter(counter, ctx.stripe);
        let mut old = get(txn, &key);
        if planted::is(Bug::MissSwallowed) {
            old = old.or(Ok(None));
        }
        let old: i64 = old?.unwrap_or(0);
        put(txn, &key, &old.saturating_add(delta));
    }
    Ok(())
}

/// `after - before`, of sums that stay far below 2^63.
pub(super) fn difference(before: u64, after: u64) -> i64 {
    after.wrapping_sub(before) as i64
}

/// Records a further name of an inode that is not a directory.
pub(super) fn learn_name(txn: &mut dyn Txn, ino: Ino, attr: &mut Attr, dir: Ino, name: &[u8]) {
    if attr.parent == Ino(0) {
        attr.parent = dir;
    } else {
        put(txn, keys::link(ino, dir, name), &());
    }
}

/// Takes back what `learn_name` recorded. `attr.nlink` still counts the name.
pub(super) fn forget_name(txn: &mut dyn Txn, ino: Ino, attr: &mut Attr, dir: Ino, name: &[u8]) -> OpResult<()> {
    if attr.parent == dir {
        // With one link left there is no `link` key to look for.
        if attr.nlink == 1 || get::<()>(txn, keys::link(ino, dir, name))?.is_none() {
            attr.parent = Ino(0);
            return Ok(());
        }
    }
    txn.delete(&keys::link(ino, dir, name));
    Ok(())
}
