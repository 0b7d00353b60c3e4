//! The volume: its settings, its usage, and the ids that it gives out.
//!
//! Owns: `format`, counters as read, leases. Leaves to others: making leases durable before their first use (client).
//!
//! Invariants
//! - An id is leased once. Slice ids start at `LEASE_SLICES`, so that 0 is none and a lease is one folder of blocks.
//! - The sum of the `Inodes` stripes is the number of `attr` keys (the root and orphans included), that of the `Bytes`
//!   stripes the sum of their `stored`.

use core::ops::Range;

use super::{OpCtx, Usage, get, put};
use crate::errno::Errno;
use crate::format::DecodeError;
use crate::format::block::LEASE_SLICES;
use crate::format::keys::{self, Counter};
use crate::format::values::{Lease, LogHome, Session, VOLUME_VERSION, VOLUME_VERSION_PLAIN, Value, Volume};
use crate::kv::{OpResult, Read, Txn};
use crate::types::{Attr, FileType, Ino, InodeFlags, STRIPES, SessionId};

/// Length that a directory shows.
pub(super) const DIRECTORY_LENGTH: u64 = 4096;

/// Makes a volume with an empty root directory, owned by `uid` and `gid`. EEXIST if there is a volume already.
pub fn format(txn: &mut dyn Txn, ctx: &OpCtx, volume: &Volume, uid: u32, gid: u32) -> OpResult<()> {
    if txn.get(&keys::volume())?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    put(txn, keys::volume(), volume);
    let root = Attr {
        kind: FileType::Directory,
        mode: 0o755,
        uid,
        gid,
        rdev: 0,
        nlink: 2,
        length: DIRECTORY_LENGTH,
        stored: 0,
        atime: ctx.now,
        mtime: ctx.now,
        ctime: ctx.now,
        btime: ctx.now,
        commit: 0,
        next_seq: 0,
        reach: DIRECTORY_LENGTH,
        exact: true,
        bare: true,
        parent: Ino::ROOT,
        flags: InodeFlags::default(),
    };
    put(txn, keys::attr(Ino::ROOT), &root);
    put(txn, keys::counter(Counter::Inodes, ctx.stripe), &1_i64);
    Ok(())
}

/// The volume's settings. ENOENT if there is no volume.
pub fn load(read: &mut dyn Read) -> OpResult<Volume> {
    get(read, keys::volume())?.ok_or(Errno::ENOENT.into())
}

/// The version of the volume's format, also of one that this code does not understand. ENOENT if there is no volume.
pub fn version(read: &mut dyn Read) -> OpResult<u32> {
    let value = read.get(&keys::volume())?.ok_or(Errno::ENOENT)?;
    match Volume::decode(&value) {
        Ok(volume) => Ok(volume.version),
        Err(DecodeError::Version(version)) => Ok(version),
        Err(error) => Err(error.into()),
    }
}

/// Says where blocks may be that the object store lacks. To be synced before the first is put there.
pub fn open_log(txn: &mut dyn Txn, home: &LogHome) -> OpResult<()> {
    let volume = load(txn.as_read())?;
    put(txn, keys::volume(), &Volume { version: VOLUME_VERSION, log: Some(home.clone()), ..volume });
    Ok(())
}

/// Says that the object store has all blocks. It must have.
pub fn close_log(txn: &mut dyn Txn) -> OpResult<()> {
    let volume = load(txn.as_read())?;
    let version = if volume.acl || volume.packs { VOLUME_VERSION } else { VOLUME_VERSION_PLAIN };
    put(txn, keys::volume(), &Volume { version, log: None, ..volume });
    Ok(())
}

/// What the volume holds.
pub fn usage(read: &mut dyn Read) -> OpResult<Usage> {
    Ok(Usage { bytes: total(read, Counter::Bytes)?, inodes: total(read, Counter::Inodes)? })
}

pub(super) fn total(read: &mut dyn Read, counter: Counter) -> OpResult<u64> {
    let mut sum = 0_i64;
    for stripe in 0..STRIPES {
        sum = sum.saturating_add(get(read, keys::counter(counter, stripe))?.unwrap_or(0));
    }
    Ok(u64::try_from(sum).unwrap_or(0))
}

/// Takes `count` inode numbers. To be synced before the first is used.
pub fn lease_inodes(txn: &mut dyn Txn, count: u64) -> OpResult<Range<u64>> {
    let start = next(txn, keys::next_ino(), Ino::ROOT.0 + 1)?;
    put(txn, keys::next_ino(), &(start + count));
    Ok(start..start + count)
}

/// Takes `LEASE_SLICES` slice ids, aligned to their number, and records whose they are. To be synced before the first
/// is used. ESTALE if the session has ended or was fenced.
pub fn lease_slices(txn: &mut dyn Txn, session: SessionId) -> OpResult<Range<u64>> {
    if get::<Session>(txn, keys::session(session))?.is_none() {
        return Err(Errno::ESTALE.into());
    }
    let start = next(txn, keys::next_slice(), LEASE_SLICES)?;
    let end = start + LEASE_SLICES;
    put(txn, keys::next_slice(), &end);
    put(txn, keys::lease(start), &Lease { end, session });
    Ok(start..end)
}

/// The next id of an allocator that starts at `first`.
pub(super) fn next(read: &mut (impl Read + ?Sized), key: impl AsRef<[u8]>, first: u64) -> OpResult<u64> {
    Ok(get(read, key)?.unwrap_or(first))
}
