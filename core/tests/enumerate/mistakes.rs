//! Worlds that break a promise, to try the judge on.
//!
//! Owns: what can be wrong. Leaves to others: doing it wrong (`world`, `recovery`), noticing it.

/// A composition that breaks a promise: the judge must notice each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// A barrier makes nothing durable.
    SkipBarrier,
    /// A commit does not wait for its puts.
    CommitBeforePut,
    /// fsync leaves the metadata log as it is.
    SkipSync,
    /// fsync syncs the metadata log before it flushes the file.
    SyncBeforeCommit,
    /// A rename over a name does not wait.
    RenameDoesNotWait,
    /// An exchange waits for the first of its two files alone.
    ExchangeWaitsForOne,
    /// A commit carries the length of a slice and not the slice.
    LengthWithoutSlice,
    /// chmod goes ahead of what was accepted before it.
    ChmodOvertakes,
    /// A whiteout is made after the rename that leaves it.
    WhiteoutApart,
    /// Objects are deleted before the proof that they are free is durable.
    DeleteBeforeSync,
    /// What says that objects are to be deleted goes before a barrier has made it durable that they are.
    DeleteWithoutBarrier,
    /// Queue entries go before the objects.
    ForgetBeforeDelete,
    /// A mount leaves orphans where they are.
    KeepOrphans,
    /// A mount does not look for what was put and never committed.
    KeepUncommitted,
    /// A barrier does not sync the write-back log.
    BarrierLeavesLog,
    /// A barrier covers the log alone, also where objects went past it.
    DirectUncovered,
    /// A segment of the log goes before what it holds is durable in the store.
    SegmentBeforeBarrier,
    /// The log does not say that an object was deleted.
    DeleteUnrecorded,
    /// A record of which a part is missing counts.
    TornAccepted,
    /// A mount that looks for what was never committed neither knows what is in the log nor waits for it to be stored.
    LogUnlisted,
    /// A pack is put before it is durable that there is one.
    PackUnannounced,
    /// A record leaves the log before it is durable in which pack its object is.
    PackUnsynced,
    /// A pack of which most was deleted before it was said what is in it is not rewritten.
    ThinUnweighed,
    /// A pack is deleted as soon as one of its blocks is.
    PackDeletedInUse,
    /// The metadata forgets a pack before it is deleted.
    PackForgottenFirst,
    /// What is in use of a pack is said to be in another one, which no barrier covers.
    RewriteUncovered,
    /// A mount does not look at the packs that earlier ones have left.
    KeepPacks,
}
