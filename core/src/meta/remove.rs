//! Names that go away, and inodes after their last name.
//!
//! Owns: unlink, rmdir, reaping orphans. Leaves to others: when nobody uses an orphan any more (client), what is too
//! long for one transaction (`sweep`), deleting blocks (upkeep).
//!
//! Invariants
//! - The last name gone leaves `attr` with nlink 0 and `orphan(ino)`, both or none.
//! - Reaping gives the usage back at once; the inode's slices are queued as `delslice` in the transaction that removes
//!   their records, be it this one or a sweeper's.

use super::chunk;
use super::names::{count, forget_name, live_dir, may_take, note_entries, sum_stripes};
use super::{DIRECT_MAX, OpCtx, Removed, check_name, get, put, put_new};
use crate::errno::Errno;
use crate::format::keys::{self, Counter, Key};
use crate::format::values::{DelSlice, Dentry, Home, Value};
use crate::kv::{OpError, OpResult, Txn};
use crate::planted::{self, Bug};
use crate::types::{Attr, FileType, Ino, Place, STRIPES, SliceId, SliceRecord};

const MISSING: OpError = OpError::Damaged("a name of an inode that does not exist");

/// Removes a name of what is not a directory. ENAMETOOLONG, ENOTDIR, ENOENT, EISDIR, EPERM (flags).
pub fn unlink(txn: &mut dyn Txn, ctx: &OpCtx, dir: Ino, name: &[u8]) -> OpResult<Removed> {
    remove(txn, ctx, dir, name, false)
}

/// Removes an empty directory. ENAMETOOLONG, ENOTDIR, ENOENT, EPERM (flags), ENOTEMPTY.
pub fn rmdir(txn: &mut dyn Txn, ctx: &OpCtx, dir: Ino, name: &[u8]) -> OpResult<Removed> {
    remove(txn, ctx, dir, name, true)
}

fn remove(txn: &mut dyn Txn, ctx: &OpCtx, dir: Ino, name: &[u8], directory: bool) -> OpResult<Removed> {
    check_name(name)?;
    let parent = live_dir(txn, dir)?;
    let key = keys::dentry(dir, name);
    let dentry: Dentry = get(txn, &key)?.ok_or(Errno::ENOENT)?;
    let attr = get(txn, keys::attr(dentry.ino))?.ok_or(MISSING)?;
    match (directory, dentry.kind == FileType::Directory) {
        (false, true) => return Err(Errno::EISDIR.into()),
        (true, false) => return Err(Errno::ENOTDIR.into()),
        (false, false) | (true, true) => {}
    }
    may_take(&parent, &attr)?;
    let removed = detach(txn, ctx, dir, name, dentry.ino, attr)?;
    txn.delete(&key);
    note_entries(txn, ctx, dir, &parent, -1, -i64::from(directory))?;
    Ok(removed)
}

/// What removing the entry `name` means for the inode that it leads to (stored attributes `attr`). ENOTEMPTY.
/// Leaves the entry and the statistics of `dir` to the caller.
pub(super) fn detach(
    txn: &mut dyn Txn,
    ctx: &OpCtx,
    dir: Ino,
    name: &[u8],
    ino: Ino,
    mut attr: Attr,
) -> OpResult<Removed> {
    if attr.nlink == 0 {
        return Err(OpError::Damaged("a name of an inode without links"));
    }
    if attr.kind == FileType::Directory {
        let sum = sum_stripes(txn, ino)?;
        if sum.entries != 0 {
            return Err(Errno::ENOTEMPTY.into());
        }
        for stripe in 0..STRIPES {
            txn.delete(&keys::dirstat(ino, stripe));
        }
        attr.mtime = attr.mtime.max(sum.mtime);
        attr.nlink = 0;
    } else {
        forget_name(txn, ino, &mut attr, dir, name)?;
        attr.nlink -= 1;
    }
    attr.ctime = attr.ctime.max(ctx.now);
    put(txn, keys::attr(ino), &attr);
    if attr.nlink == 0 {
        put_new(txn, keys::orphan(ino), &());
    }
    Ok(Removed { ino, kind: attr.kind, nlink: attr.nlink })
}

/// Removes an inode that has no name and no user. `gave_up` are slices that were put for it and never committed; they
/// are queued for deletion whatever the inode is. An inode that is no orphan is left alone. Returns the bytes that the
/// volume holds less.
pub fn reap(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino, gave_up: &[(SliceId, u32)]) -> OpResult<u64> {
    for &(slice, stored_len) in gave_up {
        put(txn, keys::delslice(slice), &DelSlice { stored_len });
    }
    if txn.get(&keys::orphan(ino))?.is_none() {
        return Ok(0);
    }
    let attr: Attr = get(txn, keys::attr(ino))?.ok_or(OpError::Damaged("an orphan without attributes"))?;
    // What never had a slice or a cut, or an extended attribute, has none to look for.
    let mut contents = Contents { slices: attr.next_seq > 0, xattrs: !attr.bare };
    if chunk::few(&ctx.geometry, &attr).is_some() {
        for stored in chunk::records(txn, &ctx.geometry, (ino, &attr), 0, chunk::head)? {
            release(txn, &stored.record)?;
            txn.delete(&stored.key);
        }
        contents.slices = false;
    }
    if !remove_contents(txn, ino, contents, DIRECT_MAX)? {
        put(txn, keys::delfile(ino), &());
    }
    txn.delete(&keys::orphan(ino));
    txn.delete(&keys::attr(ino));
    if attr.kind == FileType::Symlink {
        txn.delete(&keys::symlink(ino));
    }
    if contents.slices {
        txn.delete(&keys::cutfile(ino));
    }
    count(txn, ctx, Counter::Bytes, -(attr.stored as i64))?;
    count(txn, ctx, Counter::Inodes, -1)?;
    Ok(attr.stored)
}

/// What an inode may have beside its attributes.
#[derive(Clone, Copy)]
pub(super) struct Contents {
    /// Slices and cuts.
    pub(super) slices: bool,
    /// Extended attributes.
    pub(super) xattrs: bool,
}

/// Removes up to `limit` keys of an inode's contents and queues the slices' blocks. True: nothing is left.
pub(super) fn remove_contents(txn: &mut dyn Txn, ino: Ino, contents: Contents, limit: usize) -> OpResult<bool> {
    let slices = contents.slices.then(|| [keys::slice_range(ino, None), keys::cut_range(ino)]);
    let xattrs = contents.xattrs.then(|| keys::xattr_range(ino));
    let mut room = limit;
    for (start, end) in slices.into_iter().flatten().chain(xattrs) {
        if room == 0 {
            break;
        }
        for (key, value) in txn.scan(&start, &end, room)? {
            if let Key::Slice(..) = keys::decode(&key)? {
                release(txn, &SliceRecord::decode(&value)?)?;
            }
            txn.delete(&key);
            room -= 1;
        }
    }
    Ok(room > 0)
}

/// Gives up the reference that a removed record held.
pub(super) fn release(txn: &mut dyn Txn, record: &SliceRecord) -> OpResult<()> {
    let queued = DelSlice { stored_len: record.stored_len };
    match record.place {
        Place::Inline(_) | Place::Hole | Place::Reserved => {}
        Place::Blocks => put(txn, keys::delslice(record.slice), &queued),
        Place::Home => {
            let key = keys::home(record.slice);
            let home: Home = get(txn, &key)?.ok_or(OpError::Damaged("a slice without its home"))?;
            if home.references > 1 && !planted::is(Bug::SharedSliceDeleted) {
                put(txn, &key, &Home { references: home.references - 1 });
                return Ok(());
            }
            txn.delete(&key);
            put(txn, keys::delslice(record.slice), &queued);
        }
    }
    Ok(())
}
