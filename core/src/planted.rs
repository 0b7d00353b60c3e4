//! Planted bugs: mistakes of the kind that this crate must not make, each behind a switch, so that the simulator can
//! show that it would notice.
//!
//! Owns: their names and stories, which one is planted in this thread, and what a bug needs beyond a line.
//! Leaves to others: the place of each (`planted::is` in `client`, `file`, `meta`, `format`, `store`), noticing (`sim`).
//!
//! Invariants
//! - Without the feature `planted`, which only `sim` asks for, `is` is constantly false and nothing of this is compiled
//!   into what runs.
//! - Every bug is in the client, never in a fake or a judge; and each is one mistake.

use crate::format::keys::{self, Counter};
use crate::format::values::Value;
use crate::kv::{OpResult, Txn};
use crate::meta::{Change, Commit, OpCtx};
use crate::types::{Attr, Geometry, SliceRecord};

#[cfg(feature = "planted")]
extern crate std;

macro_rules! bugs {
    ($($name:ident, $promise:literal, $story:literal;)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug {
            $(#[doc = $story] $name,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The number of the promise that it breaks (1 fsync, 2 prefix, 3 no invented bytes, 4 replace by rename,
            /// 5 errors are kept, 6 nothing live is deleted, 7 bounded).
            pub fn promise(self) -> u8 {
                match self { $(Self::$name => $promise,)* }
            }

            /// What goes wrong, in a line.
            pub fn story(self) -> &'static str {
                match self { $(Self::$name => $story,)* }
            }
        }
    };
}

bugs! {
    AckBeforeSync, 1, "fsync answers before the metadata log is synced";
    SyncFlagIgnored, 1, "a write through an O_SYNC handle answers when it is accepted";
    BarrierSkipped, 1, "what was put counts as durable without a barrier";
    BarrierBeforePut, 1, "a barrier begins while the puts that it is to cover are under way";
    CleanUnsynced, 1, "fsync of a file that is committed does not sync the metadata log";
    FsyncDirSkipped, 1, "fsync of a directory does nothing";
    FailedBarrierAccepted, 1, "a barrier that failed counts as done";
    FailedSyncAccepted, 1, "a metadata sync that failed counts as done";
    SyncDeadlineAccepted, 1, "a metadata sync that takes too long counts as done";
    FlushDeadlineAccepted, 1, "an fsync whose flush takes too long counts as done";
    LogAckBeforeSync, 1, "a barrier does not sync the write-back log";
    LogSyncFailedAccepted, 1, "a sync of the write-back log that failed counts as done";
    LogHomeUnsynced, 1, "the write-back log is used before it is durable that the volume has one";
    DirectUncovered, 1, "a barrier does not cover what went past the write-back log into the store";
    SegmentsSideBySide, 7, "who comes late makes a segment of the write-back log beside the one that takes records";
    SegmentBeforeBarrier, 1, "a segment of the write-back log goes when its objects are put, without a barrier";
    TornRecordAccepted, 1, "a torn record of the write-back log counts";
    LogReadUnverified, 3, "what comes back from the disk of the write-back log is put as it is";
    LogDeleteUnrecorded, 6, "the write-back log does not say that an object was deleted";
    DeletedWhilePut, 6, "a staged object is deleted while it is put into the store";
    LogUnlisted, 6, "a sweep knows nothing of what is in the write-back log only";
    CommitOutOfOrder, 2, "a batch that is ready does not wait for the one before it";
    PresenceForNumber, 2, "a commit counts as applied if its first slice is there, whatever the inode's number says";
    UnknownIsApplied, 2, "a commit without an answer counts as applied";
    FirstForAll, 2, "of files that could not be committed together, the first one's answer counts for all";
    RefusedIsApplied, 2, "a commit that was not taken counts as applied";
    FailedReadIsAbsence, 2, "a name is missing if the metadata that tells of it could not be read";
    TimesOnlyGrow, 2, "a write by a clock that was set back leaves the time of the one before it";
    CountApart, 2, "a new inode is counted in a transaction of its own";
    MissSwallowed, 2, "a counter that is not fetched yet counts as zero";
    InodeLeaseUnsynced, 2, "an inode number is used before its lease is durable";
    ImmutableIgnored, 2, "extended attributes of an immutable file change";
    AclWithOldMask, 2, "an ACL is shown with the mask that it was set with, whatever chmod did since";
    DefaultAclNotInherited, 2, "a new directory does not get its parent's default ACL";
    WhiteoutApart, 2, "a whiteout is made in a transaction of its own, after the rename";
    LengthBeforeSlice, 3, "the new length becomes visible in a transaction before that of the slices";
    TruncateWithoutCut, 3, "a truncate sets the length and leaves the slices: old bytes come back";
    HoleForgotten, 3, "a commit that settles takes with it what a later truncate has cut off";
    PunchForgetsDirty, 3, "a hole is punched into what is committed and not into what is not";
    ReservationForgotten, 3, "fallocate answers and reserves nothing";
    OverlayReversed, 3, "of the slices of a chunk the oldest lies on top";
    StaleView, 3, "slices read before a commit are installed after it";
    OldNamesKept, 2, "a listing is kept in memory though a transaction has changed its directory since its snapshot";
    OldPageShown, 2, "a page of a listing that was read ahead is shown though a transaction has begun since";
    OldSnapshotCached, 2, "what a snapshot showed is kept in memory though a transaction has changed it since";
    StaleAttr, 3, "attributes read before a commit are shown after it";
    SliceLeaseUnsynced, 3, "a slice id is used before its lease is durable";
    ChecksumSkipped, 3, "a block's bytes are not compared with their checksums";
    ChecksumUnbound, 3, "checksums say nothing of which block they belong to";
    CacheUnverified, 3, "a block enters the cache before it is verified";
    FailedGetIsHole, 3, "a block that the store does not give reads as zeros";
    AppendAtOldEnd, 3, "an append goes where the file ended when the kernel asked";
    HandleReuse, 3, "the numbers of handles start again and meet open ones";
    RenameLooksFirst, 2, "a rename that must not replace looks for its target in a transaction of its own";
    RenameInTwo, 4, "a rename that had to wait first removes the name, in a transaction of its own";
    RenameWithoutWait, 4, "a rename over a name does not wait for the renamed file's bytes";
    FailedPutDropped, 5, "a put that failed counts as done";
    FullIsDone, 5, "a put that the store had no space for counts as done";
    EndlessPatience, 5, "puts count as progress though what comes after them fails: an fsync waits for ever";
    BarrierNotRetried, 5, "a barrier that failed is not tried again for an hour";
    ErrorSwallowed, 5, "an error of the file is told to nobody";
    DeleteBeforeSync, 6, "objects are deleted before the end of their last reference is durable";
    PackUnsynced, 6, "a record leaves the log before it is durable in which pack its object is";
    SharedSliceDeleted, 6, "a slice that two files share goes with the first of them";
    DeleteWithoutGrace, 6, "objects are deleted under those who read them";
    OwnLeaseCollected, 6, "the mount's own session is taken for a dead one";
    ReapWhileOpen, 6, "a file goes with its last name though it is open";
    OrphansKept, 7, "what was unlinked while open is not removed after a crash";
    QueueDroppedFirst, 7, "a slice leaves the deletion queue before its objects are deleted";
    DeleteWithoutBarrier, 7, "a slice leaves the deletion queue while a power cut may bring its objects back";
    FailedDeleteDropped, 7, "a delete that failed counts as done";
    ListCutShort, 7, "a listing that fails half way counts as complete, and nobody looks again";
    GivenUpForgotten, 7, "blocks that were put for a file that was deleted meanwhile are not queued for deletion";
    UnsureForgotten, 7, "an unmount ends its session as clean though a put may yet take effect";
    PermitKept, 7, "a put that fails keeps its permit";
    ListedOnce, 7, "the leases of an ended session are dropped after the first listing";
    PackUnannounced, 7, "a pack is put before it is durable that there is one";
    PackDeletedOnce, 7, "a pack that may come late is deleted once";
    PackUnlisted, 7, "what is in packs is not listed";
    PackMoveUnchecked, 7, "a block that was deleted while its pack was rewritten is said to be in the new one";
    CapacityLate, 7, "bytes that were committed count against the capacity when usage is read next";
    InodeLimitIgnored, 7, "a volume that is full of inodes takes more";
    GetWithoutDeadline, 7, "a read waits for the store however long it takes";
}

// For the simulator alone: a seed runs in one thread of its own, and functions without an `Env` must be able to ask.
#[cfg(feature = "planted")]
std::thread_local! {
    static PLANTED: core::cell::Cell<Option<Bug>> = const { core::cell::Cell::new(None) };
}

/// Plants `bug` in the clients of this thread.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether `bug` is planted here.
#[cfg(feature = "planted")]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Never: there are no planted bugs outside of the simulator.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub(crate) const fn is(_: Bug) -> bool {
    false
}

/// `LengthBeforeSlice`: the length of a commit without its slices.
pub(crate) fn length_alone(txn: &mut dyn Txn, geometry: &Geometry, commit: &Commit) -> OpResult<()> {
    let key = keys::attr(commit.ino);
    let Some(bytes) = txn.get(&key)? else { return Ok(()) };
    let mut attr = Attr::decode(&bytes)?;
    for change in &commit.changes {
        match change {
            Change::Slice { chunk, record } => {
                let end = u64::from(*chunk) * geometry.chunk_size + u64::from(record.pos) + u64::from(record.len);
                attr.length = attr.length.max(end);
            }
            Change::Truncate { .. } => return Ok(()),
            Change::Punch { .. }
            | Change::Reserve { .. }
            | Change::Copy(_)
            | Change::Written { .. }
            | Change::Attrs { .. } => {}
        }
    }
    txn.put(&key, &attr.encode());
    Ok(())
}

/// `PresenceForNumber`: whether the first slice of `commit` is recorded.
pub(crate) fn is_there(txn: &mut dyn Txn, commit: &Commit) -> OpResult<bool> {
    let slices = commit.changes.iter().filter_map(|change| match change {
        Change::Slice { chunk, record } => Some((chunk, record)),
        Change::Truncate { .. }
        | Change::Punch { .. }
        | Change::Reserve { .. }
        | Change::Copy(_)
        | Change::Written { .. }
        | Change::Attrs { .. } => None,
    });
    // Of two that are inline nobody knows whether they are the same one.
    let Some((chunk, record)) = slices.into_iter().next().filter(|(_, record)| record.slice.0 != 0) else {
        return Ok(false);
    };
    let (start, end) = keys::slice_range(commit.ino, Some(*chunk));
    let stored = txn.scan(&start, &end, usize::MAX)?;
    let mut records = stored.iter().filter_map(|(_, value)| SliceRecord::decode(value).ok());
    Ok(records.any(|stored| (stored.slice, stored.pos, &stored.place) == (record.slice, record.pos, &record.place)))
}

/// `CountApart`: what `create` leaves out.
pub(crate) fn count_inode(txn: &mut dyn Txn, ctx: &OpCtx) -> OpResult<()> {
    let key = keys::counter(Counter::Inodes, ctx.stripe);
    let old = txn.get(&key)?.map_or(Ok(0), |bytes| i64::decode(&bytes))?;
    txn.put(&key, &(old + 1).encode());
    Ok(())
}
