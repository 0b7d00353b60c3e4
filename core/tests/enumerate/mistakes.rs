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
    /// Queue entries go before the objects.
    ForgetBeforeDelete,
    /// A mount leaves orphans where they are.
    KeepOrphans,
    /// A mount does not look for what was put and never committed.
    KeepUncommitted,
}
