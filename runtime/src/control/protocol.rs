//! What goes over the control socket, and what `--json` prints: the same documents.
//!
//! Keys are only ever added; a meaning never changes. Sizes are in bytes, times in seconds since 1970-01-01 UTC
//! or, where the key says so, in seconds or milliseconds of duration.

use serde::{Deserialize, Serialize};

use crate::objects::Counts;

/// One line from a command to the mount process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Numbers of the mount: answered by `Reply::Status`.
    Status,
    /// One inode: answered by `Reply::Info`.
    Info { ino: u64 },
    /// Check the volume: `Reply::Progress` and `Reply::Finding` lines, then `Reply::Checked`.
    Fsck { data: bool },
    /// Store everything that was written: answered by `Reply::Done`.
    Sync,
    /// Put everything that is in the write-back log into the object store: `Reply::Storing` lines, then `Reply::Done`.
    Drain,
    /// Leave what is in the write-back log at the end of the mount there, for the next one: answered by `Reply::Done`.
    LeaveLog,
    /// Watch the unmount: `Reply::Storing` lines, and `Reply::Done` once everything is stored.
    AwaitUnmount,
}

/// One line from the mount process to a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The answer to `Request::Status`.
    Status(Box<Status>),
    /// The answer to `Request::Info`.
    Info(Info),
    /// How far a check is.
    Progress(Progress),
    /// Something that a check found.
    Finding(Finding),
    /// The end of a check.
    Checked(Checked),
    /// What is still to be stored.
    Storing(Storing),
    /// Done, with nothing to add.
    Done,
    /// The request failed; `text` is for a person.
    Failed { errno: i32, text: String },
}

/// What is still to be stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storing {
    /// Bytes in memory.
    pub bytes: u64,
    /// Objects in the write-back log that are not in the object store.
    #[serde(default)]
    pub log_objects: u64,
    /// Their bytes.
    #[serde(default)]
    pub log_bytes: u64,
    /// What the object store's last request failed with, if it did.
    #[serde(default)]
    pub error: Option<String>,
}

/// The settings of a volume, fixed by `format` but for `capacity` and `inodes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// Chosen at `format`.
    pub name: String,
    /// UUID.
    pub id: String,
    /// Version of the volume's format.
    pub version: u32,
    /// Kind of object store: `file`, `s3` or `minio`.
    pub storage: String,
    /// The setting: a folder that holds the volume's own folder, which is called `name`; or the URL of a bucket.
    pub bucket: String,
    /// Where exactly the objects are, for a person.
    #[serde(default)]
    pub objects: String,
    /// Largest object's payload.
    pub block_size: u32,
    /// Bytes of a file that share one list of slices.
    pub chunk_size: u64,
    /// Limit of stored bytes; 0: none.
    pub capacity: u64,
    /// Limit of files and folders; 0: none.
    pub inodes: u64,
    /// When it was formatted.
    pub created: i64,
    /// Whether it has POSIX ACLs.
    #[serde(default)]
    pub acl: bool,
    /// The write-back log that may hold blocks which the object store lacks: machine and path; or null.
    #[serde(default)]
    pub log: Option<String>,
}

/// What a volume holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageView {
    /// Bytes of all files.
    pub bytes: u64,
    /// Files and folders.
    pub inodes: u64,
}

/// `kiseki status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Path of the metadata store.
    pub meta: String,
    /// The settings.
    pub volume: VolumeView,
    /// What it holds.
    pub usage: UsageView,
    /// The mount, or null.
    pub mount: Option<MountView>,
}

/// The mount of a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MountView {
    /// Where.
    pub mountpoint: String,
    /// The process that serves it.
    pub pid: u32,
    /// Whether it takes no writes.
    pub read_only: bool,
    /// Number of the session; null on a read-only mount.
    pub session: Option<u64>,
    /// How long it has been mounted.
    pub uptime_secs: u64,
    /// Open files.
    pub open_files: u64,
    /// Memory for written data and cached blocks.
    pub buffer_size: u64,
    /// Bytes of blocks in the cache.
    pub cached_bytes: u64,
    /// Bytes written and not yet stored and committed.
    pub dirty_bytes: u64,
    /// Files with such bytes.
    pub dirty_files: u64,
    /// Bytes of writes that wait for memory.
    pub waiting_bytes: u64,
    /// Objects that are being stored.
    pub uploads: u64,
    /// What was removed is yet to be deleted from the object store.
    #[serde(default)]
    pub deleting: bool,
    /// Position of the last metadata transaction.
    pub last_txn: u64,
    /// Position up to which they are durable.
    pub synced_txn: u64,
    /// When bytes count as durable: `back`, in the write-back log; `through`, in the object store.
    #[serde(default)]
    pub mode: String,
    /// The write-back log, or null.
    #[serde(default)]
    pub log: Option<LogView>,
    /// The object store.
    #[serde(default)]
    pub store: StoreView,
}

/// The write-back log of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogView {
    /// Where it is.
    pub folder: String,
    /// Whether it takes objects, or only gives back what earlier mounts left in it.
    pub takes_writes: bool,
    /// Objects that are not in the object store yet.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the oldest of them has been in it; those of earlier mounts count from the start of this one.
    pub oldest_secs: Option<u64>,
    /// Bytes of its files.
    pub size: u64,
    /// Bytes of files without a name, which hold what the object store has and are there to be read; not in `size`.
    #[serde(default)]
    pub kept: u64,
    /// Bytes that these may have; more goes to the object store directly.
    pub size_max: u64,
    /// Its disk failed at the last attempt, and objects go to the object store directly.
    pub broken: bool,
    /// What its disk failed with; null if it did not.
    pub error: Option<String>,
    /// Places in it that were durable and are not readable.
    pub damaged: u64,
}

/// The object store of a mount, as the mount finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreView {
    /// Where this mount reaches it.
    pub place: String,
    /// Its last request succeeded, or there was none.
    pub ok: bool,
    /// Why its last request failed; null if `ok`.
    pub error: Option<String>,
    /// For how long all requests have failed; null if `ok`.
    pub failing_secs: Option<u64>,
    /// Most puts under way at once.
    pub max_uploads: u64,
    /// Requests that it was asked; their names stand beside these.
    #[serde(flatten)]
    pub counts: Counts,
}

/// `kiseki info`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Inode number.
    pub ino: u64,
    /// `file`, `directory`, `symlink`, `fifo`, `char device`, `block device` or `socket`.
    pub kind: String,
    /// Length as stat(2) shows it.
    pub length: u64,
    /// Bytes that its slices hold.
    pub stored: u64,
    /// Number of names (directories: 2 and one for each subdirectory).
    pub nlink: u32,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes written and not yet committed: not in `slices`.
    pub dirty_bytes: u64,
    /// Committed slices, oldest first within a chunk; a newer one lies over older ones.
    pub slices: Vec<SliceView>,
}

/// One slice of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceView {
    /// Index of the chunk.
    pub chunk: u32,
    /// Order within the file: higher lies over lower.
    pub seq: u64,
    /// Offset in the file at which the slice shows.
    pub offset: u64,
    /// Bytes that show.
    pub len: u32,
    /// Identity; 0 for an inline slice.
    pub slice: u64,
    /// First byte of the slice that shows.
    pub off: u32,
    /// Bytes stored under the identity.
    pub stored_len: u32,
    /// `blocks`, `home` or `inline`.
    pub place: String,
    /// Keys of its objects, below the volume's folder.
    pub blocks: Vec<String>,
}

/// How far a check is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Metadata keys read.
    pub keys: u64,
    /// Slice records whose blocks were looked at.
    pub slices: u64,
    /// Slice records in all; 0 until they were counted.
    pub slices_total: u64,
    /// Blocks looked at.
    pub blocks: u64,
    /// Bytes read of them.
    pub bytes: u64,
}

/// Something wrong with a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The kind of damage: `block missing`, `wrong nlink`, ...
    pub kind: String,
    /// The inode, where there is one.
    pub ino: Option<u64>,
    /// The path inside the volume, or what stands for it.
    pub path: String,
    /// The damage in words.
    pub text: String,
}

/// The end of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// How many findings there were.
    pub findings: u64,
    /// Metadata keys read.
    pub keys: u64,
    /// Inodes among them.
    pub inodes: u64,
    /// Slice records among them.
    pub slices: u64,
    /// Blocks looked at.
    pub blocks: u64,
    /// Bytes read of them: whole blocks with `--data`, their ends without.
    pub bytes: u64,
}
