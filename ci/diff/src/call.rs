//! A system call and its answer, as data: drawn, sent to a worker of each side, written down, replayed.
//!
//! Owns: `Call`, `Answer`, their text. Leaves to others: drawing (`draw`), making the call (`worker`).

use serde::{Deserialize, Serialize};

/// Open descriptors that one worker has at most.
pub(crate) const SLOTS: usize = 5;

/// Where a path begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Base {
    /// The working directory of the worker.
    Cwd,
    /// The root of the tree under test.
    Root,
    /// An open directory.
    Slot(usize),
}

/// A path, in the alphabet of `sys::bytes_of`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct At {
    pub(crate) base: Base,
    pub(crate) path: String,
}

/// What a call by path or by descriptor is made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Target {
    /// The file that the path leads to.
    Path(At),
    /// The same, but of a symbolic link itself.
    Link(At),
    /// An open file.
    Slot(usize),
}

/// Seconds and nanoseconds for utimensat(2), UTIME_NOW and UTIME_OMIT among the latter.
pub(crate) type Time = (i64, i64);

/// One system call, or a few that belong together. Flags and numbers are those of Linux.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Call {
    Open {
        at: At,
        flags: i32,
        mode: u32,
        slot: usize,
    },
    /// Opens what `from` has open once more, through /proc.
    Reopen {
        from: usize,
        flags: i32,
        slot: usize,
    },
    Close {
        slot: usize,
    },
    Pread {
        slot: usize,
        offset: u64,
        len: u32,
    },
    Read {
        slot: usize,
        len: u32,
    },
    Readv {
        slot: usize,
        offset: u64,
        lens: [u32; 3],
    },
    Pwrite {
        slot: usize,
        offset: u64,
        len: u32,
        number: u64,
    },
    Write {
        slot: usize,
        len: u32,
        number: u64,
    },
    Writev {
        slot: usize,
        offset: u64,
        lens: [u32; 3],
        number: u64,
    },
    Lseek {
        slot: usize,
        offset: i64,
        whence: i32,
    },
    Truncate {
        at: At,
        length: i64,
    },
    Ftruncate {
        slot: usize,
        length: i64,
    },
    Fallocate {
        slot: usize,
        mode: i32,
        offset: i64,
        len: i64,
    },
    Sync {
        slot: usize,
        how: Sync,
    },
    CopyRange {
        from: usize,
        to: usize,
        from_offset: u64,
        to_offset: u64,
        len: u64,
    },
    Sendfile {
        from: usize,
        to: usize,
        offset: u64,
        len: u64,
    },
    MapRead {
        slot: usize,
        offset: u64,
        len: u32,
    },
    MapWrite {
        slot: usize,
        offset: u64,
        len: u32,
        number: u64,
        private: bool,
    },
    /// Maps `mapped` bytes, truncates below the mapping, looks at every page.
    MapTruncate {
        slot: usize,
        mapped: u32,
        length: i64,
    },
    Advise {
        slot: usize,
        offset: u64,
        len: u64,
        advice: i32,
    },
    Mkdir {
        at: At,
        mode: u32,
    },
    Rmdir {
        at: At,
    },
    Unlink {
        at: At,
    },
    Rename {
        from: At,
        to: At,
        flags: u32,
    },
    Link {
        from: At,
        to: At,
        flags: i32,
    },
    /// Gives a file opened with O_TMPFILE, or unlinked since, a name.
    LinkSlot {
        slot: usize,
        to: At,
    },
    Symlink {
        at: At,
        target: String,
    },
    Readlink {
        at: At,
    },
    Mknod {
        at: At,
        mode: u32,
        rdev: (u32, u32),
    },
    Chmod {
        at: At,
        mode: u32,
    },
    Fchmod {
        slot: usize,
        mode: u32,
    },
    Chown {
        at: At,
        uid: u32,
        gid: u32,
        flags: i32,
    },
    Fchown {
        slot: usize,
        uid: u32,
        gid: u32,
    },
    Utimes {
        at: At,
        atime: Time,
        mtime: Time,
        flags: i32,
    },
    Futimes {
        slot: usize,
        atime: Time,
        mtime: Time,
    },
    Stat {
        at: At,
        flags: i32,
    },
    Fstat {
        slot: usize,
    },
    Access {
        at: At,
        mode: i32,
        flags: i32,
    },
    SetXattr {
        on: Target,
        name: String,
        len: u32,
        number: u64,
        flags: i32,
    },
    GetXattr {
        on: Target,
        name: String,
        size: u32,
    },
    ListXattr {
        on: Target,
        size: u32,
    },
    RemoveXattr {
        on: Target,
        name: String,
    },
    /// An access ACL or a default ACL; entries are (tag, permissions, id).
    SetAcl {
        at: At,
        default: bool,
        entries: Vec<(u16, u16, u32)>,
    },
    GetAcl {
        at: At,
        default: bool,
    },
    List {
        slot: usize,
    },
    /// Reads some entries, remembers the place, reads on, goes back there, reads again.
    Seekdir {
        slot: usize,
        skip: u32,
    },
    Flock {
        slot: usize,
        operation: i32,
    },
    Lock {
        slot: usize,
        kind: i32,
        start: i64,
        len: i64,
        description: bool,
    },
    GetLock {
        slot: usize,
        kind: i32,
        start: i64,
        len: i64,
        description: bool,
    },
    Chdir {
        at: At,
    },
    Fchdir {
        slot: usize,
    },
    Getcwd,
    Statfs {
        at: At,
    },
    SetFlags {
        slot: usize,
        flags: u32,
    },
    GetFlags {
        slot: usize,
    },
    /// Makes a program that ends at once, or after long.
    Program {
        at: At,
    },
    Run {
        at: At,
    },
    /// Runs a program until `Stop`.
    Start {
        at: At,
    },
    Stop,
    Umask {
        mask: u32,
    },
    SetStatus {
        slot: usize,
        flags: i32,
    },
}

/// The calls that make data durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Sync {
    Fsync,
    Fdatasync,
    Range,
    Filesystem,
}

/// A call, and who makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) worker: usize,
    pub(crate) call: Call,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Its result, or minus errno.
    pub(crate) value: i64,
    /// What it gave: bytes read as a hash, attributes, names.
    pub(crate) text: String,
    /// The inode that was opened, or 0: a number of the side's own, which is not compared.
    pub(crate) ino: u64,
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        0 <= self.value
    }

    /// The errno by name, or "ok".
    pub(crate) fn outcome(&self) -> String {
        if self.is_success() { "ok".into() } else { crate::sys::errno_name(-self.value as i32) }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.value {
            ..0 => to.write_str(&self.outcome()),
            value if self.text.is_empty() => write!(to, "{value}"),
            value => write!(to, "{value} [{}]", self.text),
        }
    }
}
