//! States worth reaching, by name: a simulation that never gets to one of them tried less than it claims.
//!
//! Owns: the names. Leaves to others: counting (whoever listens to events with target `TARGET`), and demanding that
//! each is reached (`sim`).
//!
//! A mark says nothing about right or wrong. Without the feature `marks` it costs nothing.

/// Target of the events; the number of the mark is their only field.
pub const TARGET: &str = "kiseki_core::marks";

macro_rules! marks {
    ($($name:ident: $text:literal;)*) => {
        /// A state worth reaching.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mark {
            $(#[doc = $text] $name,)*
        }

        impl Mark {
            /// All of them; each at the position that is its number.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What it is, in words.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

marks! {
    // Accepting.
    WriteInPlace: "a write went into a slice that was open";
    WriteAroundNewerSlice: "a write found a newer slice where its own would grow";
    WriteOverChunkBorder: "a write was cut at the border of a chunk";
    BatchFullOfSlices: "a batch was frozen because it had too many slices";
    FullBatchesFlushed: "so many full batches waited that they were flushed";
    TruncateOverDirty: "a truncate cut off bytes that were not committed";
    HoleOverDirty: "a hole was punched into bytes that were not committed";
    AttributesInOrder: "attributes of a file with uncommitted members changed in their turn";
    MemoryLent: "memory that no dirty bytes needed was lent to the cache of blocks";
    LentMemoryBack: "dirty bytes needed memory that was lent to the cache of blocks";
    MemoryPressed: "memory ran short and everything was flushed";
    WriteWaitedForMemory: "a write waited for memory and got it";
    WriteGotNoMemory: "a write waited for memory in vain";
    FlushedByAge: "a file was flushed because its oldest bytes were old";
    CopyTakenBack: "a copy was taken back because nobody waited for it any more";
    CopyTriedAgain: "a copy was begun anew because its source had changed";
    // Putting.
    SliceOverBlocks: "a slice of several blocks was committed";
    SliceInline: "a slice travelled in its record";
    PutOfGrowingSlice: "a full block was put while its slice still took writes";
    PutRetried: "a put was tried again";
    LeaseExhausted: "a put found no slice id in the leases";
    BarrierFailedForLater: "a failed barrier forgot puts of a batch that it was not for";
    BarrierRetried: "a barrier that had failed was run again";
    // The write-back log.
    LogFull: "an object went to the store because the write-back log had its size";
    LogRefused: "an object went to the store because the disk of the write-back log failed";
    LogPutAgain: "an object was put again that was in the write-back log";
    LogSegments: "the write-back log went on in another segment";
    LogSegmentRemoved: "a segment of the write-back log went";
    LogBodyHeld: "the bytes of a block stayed in memory after they were synced, to be put";
    LogBodyLetGo: "the cache let go of such a block before it was put";
    LogRead: "a block was read from the write-back log";
    LogKeptRead: "a block that the store has was read from the write-back log";
    LogKeptReleased: "a segment without a name went to make room";
    LogKeptMissing: "a segment without a name could not be read, and the store was asked";
    LogKeptWrong: "a block that the store has was damaged in the write-back log, and the store was asked";
    LogReadTorn: "the disk of the write-back log gave back other bytes for once";
    LogSyncFailed: "a sync of the write-back log failed and was made good";
    LogWriteIntoFailedSegment: "a record was written while a sync of its segment failed";
    LogLostGoesToStore: "what a failed sync may have lost went to the store";
    LogUploadRetried: "an upload from the write-back log failed and was tried again";
    LogDeleteWaited: "a delete waited for an upload of its object";
    LogRecovered: "a mount found objects in the write-back log";
    LogTailTorn: "a mount found a torn tail of the write-back log";
    PackPut: "several objects of the write-back log were put as one pack";
    PackPutRetried: "a put of a pack failed and was tried again";
    PackRead: "a block was read from a pack";
    PackReadAhead: "a block was read that had been fetched with the one before it in its pack";
    PackRemoved: "a pack that nothing needed was removed";
    PackDeletedAgain: "a pack that may come late was deleted, and is to be deleted again";
    PackRewritten: "what was in use of a pack that was mostly dead was written into another one";
    // Committing.
    CommitOfSlices: "a commit carried several slices";
    CommitOfBatches: "a commit carried several batches";
    CommitsTogether: "several files were committed in one transaction";
    CommitsApart: "files whose transaction failed were committed each in one of its own";
    CommitBehindOpenBatch: "a commit was started while later members were accepted already";
    CommitUnknown: "the outcome of a commit was not told";
    CommitRepeated: "a commit was tried again and known to be applied then";
    CommitSkipped: "a commit did nothing, for its members were applied already";
    HiddenSliceFreed: "a slice that newer ones cover was given up in the commit that covered it";
    CutMade: "a truncate or a hole of many slices left a cut to sweep";
    HoleMadeByCut: "a hole in many slices left a cut to sweep";
    SlicesShared: "a copy shared slices";
    CutSwept: "the last cut of a file was swept";
    // Reading.
    ReadOverDirtyAndCommitted: "a read was answered from dirty and from committed bytes";
    ReadThroughHole: "a read crossed a truncate that was not committed";
    StaleViewRefused: "slices that were loaded before a commit came too late to be installed";
    MetaCached: "metadata was read from memory";
    ListedFromMemory: "a listing took attributes from memory";
    ListedNames: "a listing took names from memory";
    ListingKept: "a directory was listed to its end and its names were kept in memory";
    OldListingNotKept: "what a snapshot showed of a directory was not kept, for a transaction had changed it since";
    PageReadAhead: "a page of a listing was read before it was asked for";
    OldPageNotShown: "a page that was read ahead was not shown, for a transaction had begun since";
    NameFromListing: "a name, or that there is none, was known from the names of its directory";
    MetaKnownToTxn: "a transaction was told what memory had of a key";
    OldSnapshotNotCached: "what a snapshot showed was not kept in memory, for a transaction had ended since";
    StaleAttributesRefused: "attributes that were read before a commit came too late to be shown";
    StaleMachineRefused: "attributes that were read before another machine came and went made no machine";
    ReadJoinedFetch: "a read waited for a fetch that was under way";
    FetchedPart: "a part of a block was fetched by itself";
    HeadKnown: "a part of a block was fetched whose head was known";
    FetchedAhead: "a block was fetched ahead of its reader";
    TornGetRetried: "a damaged answer of the store was asked for again";
    GetOutOfTime: "a get was given up at its deadline";
    UnreadableTold: "a reader was told that a block could not be read";
    // Promises.
    FsyncOfNothing: "an fsync had nothing to do";
    FlushOutOfTime: "a flush was given up at its deadline";
    FlushPatient: "a flush went on past its deadline, for the store took puts";
    ErrorTold: "a handle was told of an error of its file";
    ErrorOldForHandle: "a handle was not told of an error of which it had been told, or that is older than it";
    WriteBeyondCapacity: "a write was refused that would not have fit on the volume";
    CreateBeyondLimit: "a new inode was refused because the volume had as many as it may";
    NoSpaceTold: "a handle was told that the store was full";
    RenameOverWaited: "a rename over a name waited for its file";
    RenameOverOutOfTime: "a rename over a name failed because its file could not be settled";
    ExchangeOfDirty: "two files with uncommitted bytes were exchanged";
    // Names and attributes.
    AccessesRecorded: "access times that reads had left were recorded";
    AclOfDirtyFile: "an ACL was set on a file with uncommitted members";
    AclInherited: "a new inode started with an ACL of its directory";
    FlagsForbade: "a flag of an inode forbade a change";
    WhiteoutLeft: "a rename left a whiteout";
    // Giving up.
    OrphanReaped: "a file that lost its last name was removed when the kernel forgot it";
    OrphansReapedTogether: "several such files were removed in one transaction";
    OrphanReapedAtMount: "a file that a crashed mount had unlinked and held open was removed";
    DirtyDiscarded: "uncommitted bytes of a removed file were dropped";
    PutsGivenUp: "blocks that were put for a removed file were queued for deletion";
    DeleteWaitedForReaders: "a deletion waited for readers";
    CrashedPutsCollected: "objects that a crashed mount had put and not committed were deleted";
    CrashedLeaseEmpty: "a crashed mount had left nothing uncommitted under a lease";
    UnmountUnsure: "an unmount left its leases to the next mount, for a put might come late";
    // The stores; reached by whoever plays them.
    ConflictRetried: "a transaction met another one's writes and was run again";
}

/// Notes that `mark` is reached.
#[inline(always)]
pub fn reached(mark: Mark) {
    #[cfg(feature = "marks")]
    tracing::trace!(target: TARGET, mark = mark as u64);
    #[cfg(not(feature = "marks"))]
    let _ = mark;
}

/// Notes that `mark` is reached if `when` says so. Without the feature nobody asks it.
#[inline(always)]
pub fn reached_if(mark: Mark, when: impl FnOnce() -> bool) {
    if cfg!(feature = "marks") && when() {
        reached(mark);
    }
}
