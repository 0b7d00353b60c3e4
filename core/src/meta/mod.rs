//! Metadata operations: synchronous, re-runnable functions of a transaction, a context and arguments.
//!
//! Owns: what each operation reads and writes, and so what it conflicts with.
//! Leaves to others: running and re-running transactions (`env::MetaStore`), permissions (the kernel checks them),
//! limits of capacity (the client), the bytes of keys and values (`format`).
//!
//! Invariants
//! - An operation run twice on one snapshot writes the same; ids, times and the counter stripe are arguments.
//! - What a scan proves is carried by a key: whoever adds or removes an entry reads `attr(dir)` and writes
//!   `dirstat(dir, stripe)`; rmdir reads every stripe and writes `attr(dir)`.
//! - Every change of an inode, its slices or its cuts reads and writes `attr(ino)`.
//! - No transaction is unbounded: long work is queued and done piece by piece (`sweep`).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;

use crate::errno::Errno;
use crate::format::values::Value;
use crate::kv::{OpResult, Pairs, Read, Txn};
use crate::types::{Attr, FileType, Geometry, Ino, NAME_MAX, SliceRecord, Timestamp};

pub mod acl;
pub mod attr;
mod chunk;
mod cover;
pub mod create;
pub mod data;
mod edit;
pub mod invariant;
pub mod lookup;
mod names;
pub mod packs;
pub mod remove;
pub mod rename;
pub mod session;
pub mod sweep;
pub mod volume;
pub mod xattr;

#[cfg(test)]
mod tests;

/// What a mutating operation is told about the world.
#[derive(Clone, Copy, Debug)]
pub struct OpCtx {
    /// Wall-clock time of the operation.
    pub now: Timestamp,
    /// The stripe of counters and directory statistics to write. (below `STRIPES`)
    pub stripe: u8,
    /// The volume's geometry.
    pub geometry: Geometry,
}

/// Most names of a file that is not a directory: ext4's limit.
pub const LINK_MAX: u32 = 65_000;
/// Longest value of an extended attribute (XATTR_SIZE_MAX).
pub const XATTR_VALUE_MAX: usize = 64 << 10;
/// The extended attribute that goes with suid and sgid when privileges are dropped.
pub const SECURITY_CAPABILITY: &[u8] = b"security.capability";

/// suid and sgid bits of `Attr::mode`.
const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o0010;

/// Records that one operation removes at once; more are left to `sweep`. (large enough for nearly every file,
/// small enough that the transaction stays near a millisecond)
const DIRECT_MAX: usize = 64;
/// Pairs fetched by one scan.
const PAGE: usize = 256;

/// A change of attributes (setattr). The size is not here: a truncate is a member of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits: `mode & 0o7777`.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<Timestamp>,
    /// Last change of contents.
    pub mtime: Option<Timestamp>,
    /// Last change of attributes; `None`: the time of the operation, if anything is set.
    pub ctime: Option<Timestamp>,
    /// Drop suid, sgid (if group-executable) and security.capability of what is not a directory,
    /// before `mode` is applied.
    pub drop_suid_sgid: bool,
    /// Drop sgid of what is not a directory, group-executable or not: the caller is in no group of it.
    pub drop_sgid: bool,
    /// The times are those of this moment (utimensat(2) without times), which an append-only file allows.
    pub touch: bool,
}

/// One member of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A slice becomes visible over all before it; the length grows to its end. Changes no times.
    Slice {
        /// Index of the chunk.
        chunk: u32,
        /// The slice.
        record: SliceRecord,
    },
    /// The length is set; bytes at or past it are gone for ever. Changes no times: a `Written` does.
    Truncate {
        /// The new length. (up to `FILE_SIZE_MAX`)
        length: u64,
    },
    /// A range becomes a hole, which takes no space. Changes neither length nor times.
    Punch {
        /// First byte.
        offset: u64,
        /// How many. (>= 1)
        len: u64,
    },
    /// What of a range takes no space is reserved: writes into it take none. Changes no times.
    Reserve {
        /// First byte.
        offset: u64,
        /// How many. (>= 1; few chunks: each gets a record)
        len: u64,
        /// The length grows to the end of the range.
        extend: bool,
    },
    /// A range of another file, or of this one, is laid over a range of this one. Changes no times.
    Copy(CopyRange),
    /// Contents were changed: mtime and ctime are set.
    Written {
        /// When.
        mtime: Timestamp,
        /// Drop suid, sgid (if group-executable) and security.capability.
        drop_privileges: bool,
    },
    /// A setattr in its place among the writes.
    Attrs {
        /// What to set.
        set: SetAttr,
        /// When.
        now: Timestamp,
    },
}

/// What of a file is copied and where to, by sharing slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRange {
    /// The file that it is copied from.
    pub source: Ino,
    /// The number that the source's last commit must have, or nothing is copied. (Ignored within one file, where the
    /// order of members says what is copied.)
    pub commit: u64,
    /// First byte in the source.
    pub from: u64,
    /// First byte in the destination. (the ranges do not overlap within one file)
    pub to: u64,
    /// How many bytes at most; the copy ends with the source, or where it grows too large for one transaction.
    pub len: u64,
}

/// A ready prefix of a file's commit queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The file.
    pub ino: Ino,
    /// Number of the last member.
    pub number: u64,
    /// The members, in order.
    pub changes: Vec<Change>,
}

/// What a commit left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitReply {
    /// False: the number was at or below the last one applied, and nothing was done.
    pub applied: bool,
    /// The inode afterwards.
    pub attr: Attr,
    /// `seq` of each `Change::Slice`, in order; empty if not applied.
    pub seqs: Vec<u64>,
    /// Bytes that the last `Change::Copy` copied; `None`: its source had changed, or not applied.
    pub copied: Option<u64>,
    /// Bytes that the file takes more than before.
    pub grown: i64,
}

/// A new inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct New {
    /// Its number, from this session's lease.
    pub ino: Ino,
    /// What it is.
    pub kind: FileType,
    /// Permission bits: `mode & 0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory is sgid.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Target of a symbolic link; there exactly when `kind` is `Symlink`.
    pub target: Option<Bytes>,
    /// Permission bits that are taken away where the directory has no default ACL; `None` on a volume without ACLs,
    /// where the kernel has done it.
    pub umask: Option<u16>,
    /// Most inodes that the volume may hold then, to be proved here: such creations conflict with each other.
    pub inodes_max: Option<u64>,
}

/// Reads of an inode that its access time does not show yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accesses {
    /// The first of them.
    pub first: Timestamp,
    /// The last of them.
    pub last: Timestamp,
}

/// A name that went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The inode it named.
    pub ino: Ino,
    /// What it is.
    pub kind: FileType,
    /// Names left; at 0 the inode waits as an orphan for `remove::reap`.
    pub nlink: u32,
}

/// How a rename treats an existing target (renameat2(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// EEXIST.
    NoReplace,
    /// The two change places; ENOENT if there is none.
    Exchange,
}

/// What a rename did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The inode under the new name.
    pub moved: Ino,
    /// The inode that lost the new name to it. (`Replace` only)
    pub replaced: Option<Removed>,
    /// The inode that went to the old name. (`Exchange` only)
    pub exchanged: Option<Ino>,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode.
    pub ino: Ino,
    /// What it is.
    pub kind: FileType,
    /// The name.
    pub name: Bytes,
    /// Where to go on after this entry: hash of the name << 8 | position among names of the same hash. (>= 256)
    pub cookie: u64,
}

/// What a volume holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum of `Attr::stored` over all inodes, orphans included.
    pub bytes: u64,
    /// Number of inodes, the root and orphans included.
    pub inodes: u64,
}

/// How `xattr::set` treats an existing attribute (setxattr(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Either,
    /// EEXIST if it is there.
    Create,
    /// ENODATA if it is not.
    Replace,
    /// Both flags at once, which Linux lets through: EEXIST or ENODATA.
    Neither,
}

/// What is wrong. The kinds of blocks are found by the client, which reads the store; the rest by `invariant::check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// A key or value that does not decode.
    Undecodable,
    /// A name of an inode that does not exist.
    DentryWithoutInode,
    /// An inode with links that no path leads to.
    InodeWithoutDentry,
    /// A name that tells another file type than the inode, or a value that its file type rules out.
    WrongKind,
    /// The number of names differs from nlink, or a `link` key is missing or left over.
    WrongLinkCount,
    /// A directory or single-link file whose recorded parent is not where its name is.
    WrongParent,
    /// Directory statistics that differ from the entries.
    WrongDirStat,
    /// A usage counter that differs from the sum.
    WrongUsage,
    /// `Attr::stored` differs from the slice records.
    WrongStored,
    /// A slice record or cut without inode.
    DanglingSlice,
    /// A slice record that contradicts the geometry, the length, an id allocator or another record.
    BadSlice,
    /// A slice that is queued for deletion while a record refers to it.
    QueuedButLive,
    /// A symbolic link without its target, or with one of another length.
    MissingTarget,
    /// An unlinked inode that is not queued as an orphan, or one queued that is linked or gone.
    WrongOrphan,
    /// An id that the volume has not given out.
    WrongAllocator,
    /// Any other key that belongs to nothing.
    DanglingKey,
    /// A block that the store does not hold.
    MissingBlock,
    /// A block of the wrong length, or that fails its checksums.
    DamagedBlock,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// The inode concerned.
    pub ino: Option<Ino>,
    /// A path that leads to it, `/`-separated and lossily decoded; `(inode N)` if none does, empty if none applies.
    pub path: String,
    /// What was found and what was expected.
    pub text: String,
}

/// What `invariant::check` counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Keys read.
    pub keys: u64,
    /// Inodes, the root and orphans included.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Orphans among them.
    pub orphans: u64,
    /// Slice records of existing inodes.
    pub slices: u64,
    /// Sum of their visible bytes.
    pub bytes: u64,
    /// Slices that wait for their blocks to be deleted.
    pub queued: u64,
    /// Findings reported.
    pub findings: u64,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FindingKind {
    /// The kind in words, as reports and `--json` show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::DentryWithoutInode => "dentry without inode",
            Self::InodeWithoutDentry => "inode without dentry",
            Self::WrongKind => "wrong kind",
            Self::WrongLinkCount => "wrong nlink",
            Self::WrongParent => "wrong parent",
            Self::WrongDirStat => "wrong directory statistics",
            Self::WrongUsage => "wrong usage",
            Self::WrongStored => "wrong stored bytes",
            Self::DanglingSlice => "dangling slice",
            Self::BadSlice => "bad slice",
            Self::QueuedButLive => "queued but live",
            Self::MissingTarget => "symlink without target",
            Self::WrongOrphan => "wrong orphan",
            Self::WrongAllocator => "id not given out",
            Self::DanglingKey => "dangling key",
            Self::MissingBlock => "block missing",
            Self::DamagedBlock => "block damaged",
        }
    }
}

/// The decoded value of `key`, if there is one.
fn get<V: Value>(read: &mut (impl Read + ?Sized), key: impl AsRef<[u8]>) -> OpResult<Option<V>> {
    let mut found = None;
    read.see(key.as_ref(), &mut |value| found = value.map(V::decode))?;
    Ok(found.transpose()?)
}

/// Encodes and writes.
fn put(txn: &mut dyn Txn, key: impl AsRef<[u8]>, value: &impl Value) {
    txn.put(key.as_ref(), &value.encode());
}

/// The same, where nothing is at `key`.
fn put_new(txn: &mut dyn Txn, key: impl AsRef<[u8]>, value: &impl Value) {
    txn.put_new(key.as_ref(), &value.encode());
}

/// The smallest key above `key`.
fn after(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// All pairs of a range, for ranges that other rules keep short.
fn scan_all(read: &mut (impl Read + ?Sized), (start, end): (Vec<u8>, Vec<u8>)) -> OpResult<Pairs> {
    Ok(read.scan(&start, &end, usize::MAX)?)
}

/// Whether `name` can be an entry.
fn check_name(name: &[u8]) -> OpResult<()> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    if name.is_empty() {
        return Err(Errno::ENOENT.into());
    }
    if name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::EINVAL.into());
    }
    Ok(())
}
