//! The folder of a write-back log on a local disk: `env::Disk`.
//!
//! Owns: its files (segments, who it belongs to, a lock), and how they are written, synced and read.
//! Leaves to others: what is in them (`kiseki_core::client::Logged`), which folder it is (`cli::writeback`).
//!
//! Invariants
//! - One process uses a folder at a time: its file `lock` is locked (flock(2)) as long as that lasts.
//! - Every call runs to its end, whatever becomes of its waiter. What may take long runs on the blocking pool.
//! - The name of a segment is durable once its first sync has returned; whatever else changes a name syncs the folder.
//! - After a sync of a segment has failed all later ones fail: the kernel tells of lost pages once.
//! - Zeros are written ahead of the records only where no record is or is being written.
//! - A segment that was detached stays open only while the disk has one `SPARE`th of its space free.
//! - What has its pages to itself and is large goes around the page cache. Writes that make a file longer run one at a
//!   time, so space is reserved ahead of them.
//!
//! A sync of a file that has grown has the file system write its journal, too; one that only overwrites does not. So
//! zeros are written ahead of small records, `AHEAD` at a time. On ext4, 4 to 128 KiB and fdatasync(2), medians: 155 to
//! 250 us growing, 120 to 200 us into what fallocate(2) has reserved, 75 to 120 us into zeros. Segments that are used
//! again would not need them, but recovery tells a torn tail from damage by the zeros behind it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use kiseki_core::env::{Disk, DiskError};
use kiseki_core::format::log::PAGE;
use rustix::buffer::spare_capacity;
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags, StatVfs};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::runtime::Handle;

use crate::brief;
use crate::direct::{self, Direct, LEAST};
use crate::folders;
use crate::rounds::{RoundFailed, Rounds};

/// Writes of at most so many bytes are a copy into the page cache on the thread that asks for them, and zeros go ahead
/// of them; more costs a FUSE thread too much, and bandwidth.
const SMALL: u64 = 128 << 10;
/// Zeros written at once. Four times as many were not faster.
const AHEAD: u64 = 1 << 20;
/// Records of objects of this length and more have pages of their own, and go around the page cache.
pub(crate) const LARGE: u64 = LEAST as u64;
/// Space is reserved up to a multiple of this, but no more than what the segment has already.
const RESERVE: u64 = 16 << 20;
/// What must be free of a disk, in parts of it, for segments without a name to stay.
const SPARE: u64 = 10;
/// Most pieces of one pwritev(2) (IOV_MAX).
const PIECES_MAX: usize = 1024;

const LOCK: &str = "lock";
/// File that says whose the folder is.
pub(crate) const OWNER: &str = "owner";
const OWNER_TMP: &str = "owner.tmp";
const SEGMENT: &str = "segment-";
const DAMAGED: &str = "damaged-";

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogFolderError {
    /// It is not there.
    #[error("there is no folder {}", .0.display())]
    Missing(PathBuf),
    /// Another process has it.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// Anything else.
    #[error("{}: {error}", path.display())]
    Io {
        /// What could not be used.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What the opener means to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderAccess {
    /// Make the folder if it is absent, then as `Write`.
    Create,
    /// Change what is there.
    Write,
    /// Read what is there.
    Read,
}

/// A folder that this process has locked. Clones share it.
#[derive(Clone)]
pub struct LogFolder(Arc<Inner>);

struct Inner {
    path: PathBuf,
    handle: Handle,
    access: FolderAccess,
    segments: Mutex<BTreeMap<u64, Arc<Segment>>>,
    /// Without a name, open to be read.
    detached: Mutex<BTreeMap<u64, Arc<Segment>>>,
    /// What the last call that failed failed with; `None` since a write has succeeded.
    trouble: Mutex<Option<String>>,
    troubled: AtomicBool,
    direct: Direct,
    /// Locked.
    _lock: Option<File>,
}

/// An open segment.
struct Segment {
    file: File,
    /// The same file, opened with O_DIRECT, if that can be.
    direct: OnceLock<Option<OwnedFd>>,
    /// What was written around the page cache, where it is not: where it begins and ends.
    uncached: Mutex<BTreeMap<u64, u64>>,
    /// Where the last byte that was written ends; behind it may be zeros. `None`: it was there before.
    end: Option<AtomicU64>,
    /// Up to here the file is as long as it takes, or its bytes are being written. Changes under `growing`.
    ready: AtomicU64,
    growing: Mutex<()>,
    /// Up to here there is space for large records; `u64::MAX`: no more is reserved. Changes under `growing`.
    reserved: AtomicU64,
    /// Its making, and the writes that have returned.
    writes: AtomicU64,
    rounds: Arc<Rounds>,
    named: AtomicBool,
    sync_failed: AtomicBool,
}

type Answer<T> = Result<T, DiskError>;

impl LogFolder {
    /// Opens the folder at `path`. What takes long runs on the blocking pool of `handle`.
    pub fn open(path: &Path, access: FolderAccess, handle: Handle) -> Result<Self, LogFolderError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| {
                if error.kind() == ErrorKind::NotFound {
                    LogFolderError::Missing(path)
                } else {
                    LogFolderError::Io { path, error }
                }
            }
        };
        if access == FolderAccess::Create && !path.exists() {
            // What files hold is for their owner alone.
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            parent.map_or(Ok(()), folders::create_synced).map_err(failed(path))?;
            DirBuilder::new().mode(0o700).create(path).map_err(failed(path))?;
            folders::sync(parent.unwrap_or(Path::new("."))).map_err(failed(path))?;
        }
        let path = path.canonicalize().map_err(failed(path))?;
        if !path.is_dir() {
            return Err(failed(&path)(ErrorKind::NotADirectory.into()));
        }
        let lock = lock(&path, access)?;
        if access != FolderAccess::Read {
            match fs::remove_file(path.join(OWNER_TMP)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&path)(error)),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(Self(Arc::new(Inner {
            path,
            handle,
            access,
            segments: Mutex::default(),
            detached: Mutex::default(),
            trouble: Mutex::default(),
            troubled: AtomicBool::new(false),
            direct: Direct::default(),
            _lock: lock,
        })))
    }

    /// Where it is, absolute.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What its disk failed with, if no write has succeeded since.
    pub fn trouble(&self) -> Option<String> {
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes that may still be written to its disk, and that its segments take there.
    pub fn space(&self) -> io::Result<(u64, u64)> {
        let disk = rustix::fs::statvfs(&self.0.path)?;
        let mut taken = 0;
        for entry in fs::read_dir(&self.0.path)? {
            taken += entry?.metadata()?.len();
        }
        Ok((disk.f_bavail.saturating_mul(disk.f_frsize), taken))
    }

    /// Closes segments without a name, the oldest first, until the disk has enough space for others.
    pub fn make_room(&self) {
        while !self.0.detached().is_empty() && self.0.is_short_of_space() {
            let oldest = self.0.detached().pop_first();
            drop(oldest);
        }
    }

    /// Runs `call` on the blocking pool, to its end.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&Inner) -> Result<T, Errno> + Send + 'static,
    ) -> Answer<T> {
        let inner = Arc::clone(&self.0);
        let called = self.0.handle.spawn_blocking(move || call(&inner).map_err(|error| inner.failed(what, error)));
        called.await.unwrap_or(Err(DiskError::Failed))
    }
}

/// Locks the folder for this process. A folder that cannot be written to has nobody who would.
fn lock(path: &Path, access: FolderAccess) -> Result<Option<File>, LogFolderError> {
    let path_of_lock = path.join(LOCK);
    let io = |error| LogFolderError::Io { path: path_of_lock.clone(), error };
    let mut options = OpenOptions::new();
    match access {
        FolderAccess::Create | FolderAccess::Write => options.write(true).create(true).truncate(false).mode(0o600),
        FolderAccess::Read => options.read(true),
    };
    let file = match options.open(&path_of_lock) {
        Ok(file) => file,
        Err(error) if access == FolderAccess::Read && error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Err(LogFolderError::InUse(path.to_owned())),
        Err(error) => Err(io(error.into())),
    }
}

impl Disk for LogFolder {
    async fn segments(&self) -> Answer<Vec<(u64, u64)>> {
        self.blocking("list", Inner::list).await
    }

    async fn create(&self, segment: u64) -> Answer<()> {
        self.blocking("create", move |inner| inner.create(segment)).await
    }

    async fn write(&self, segment: u64, at: u64, body: Vec<Bytes>) -> Answer<()> {
        let open = self.0.segment(segment).map_err(|error| self.0.failed("write", error))?;
        let len: u64 = body.iter().map(|piece| piece.len() as u64).sum();
        if SMALL < len {
            return self.blocking("write", move |inner| inner.write(&open, at, &body)).await;
        }
        self.0.write(&open, at, &body).map_err(|error| self.0.failed("write", error))
    }

    async fn sync(&self, segment: u64) -> Answer<()> {
        let open = self.0.segment(segment).map_err(|error| self.0.failed("sync", error))?;
        let wanted = open.writes.load(Ordering::Acquire);
        let round = {
            let (inner, open) = (Arc::clone(&self.0), Arc::clone(&open));
            move || {
                inner.sync(&open).map_err(|error| {
                    inner.failed("sync", error);
                    RoundFailed
                })
            }
        };
        open.rounds.wait(&self.0.handle, wanted, round).await.map_err(|RoundFailed| DiskError::Failed)
    }

    async fn read(&self, segment: u64, range: Range<u64>) -> Answer<Bytes> {
        let open = self.0.open_segments().get(&segment).cloned().or_else(|| self.0.detached().get(&segment).cloned());
        if let Some(bytes) = open.as_ref().and_then(|open| read_now(open, &range)) {
            return Ok(bytes);
        }
        self.blocking("read", move |inner| {
            read(&inner.direct, &*open.map_or_else(|| inner.segment(segment), Ok)?, range)
        })
        .await
    }

    async fn remove(&self, segment: u64) -> Answer<()> {
        self.blocking("remove", move |inner| inner.remove(segment)).await
    }

    async fn detach(&self, segment: u64) -> Answer<()> {
        self.blocking("remove", move |inner| inner.detach(segment)).await
    }

    async fn release(&self, segment: u64) {
        // To close it is to free its space, which takes its time.
        let close = move |inner: &Inner| {
            let segment = inner.detached().remove(&segment);
            drop(segment);
            Ok(())
        };
        _ = self.blocking("close", close).await;
    }

    async fn set_aside(&self, segment: u64) -> Answer<()> {
        self.blocking("set aside", move |inner| inner.set_aside(segment)).await
    }

    async fn owner(&self) -> Answer<Option<Bytes>> {
        let read = |inner: &Inner| match fs::read(inner.path.join(OWNER)) {
            Ok(owner) => Ok(Some(owner.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(errno(&error)),
        };
        self.blocking("read the owner of", read).await
    }

    async fn set_owner(&self, owner: Bytes) -> Answer<()> {
        self.blocking("write the owner of", move |inner| inner.set_owner(&owner)).await
    }
}

impl Inner {
    fn open_segments(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Segment>>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn detached(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Segment>>> {
        self.detached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether that has freed any space.
    fn give_up_detached(&self) -> bool {
        let all = std::mem::take(&mut *self.detached());
        !all.is_empty()
    }

    fn is_short_of_space(&self) -> bool {
        // As df(1) does: what nobody but root may use is no one's.
        let all = |disk: &StatVfs| disk.f_blocks - disk.f_bfree + disk.f_bavail;
        rustix::fs::statvfs(&self.path).is_ok_and(|disk| disk.f_bavail < all(&disk) / SPARE)
    }

    fn segment_path(&self, segment: u64) -> PathBuf {
        self.path.join(format!("{SEGMENT}{segment:012}"))
    }

    /// Keeps what a call failed with, for a person.
    fn failed(&self, what: &'static str, error: Errno) -> DiskError {
        let failed = match error {
            Errno::NOENT if what == "read" => return DiskError::Missing,
            Errno::NOENT => DiskError::Missing,
            Errno::NOSPC | Errno::DQUOT => DiskError::Full,
            _ => DiskError::Failed,
        };
        tracing::debug!(what, folder = %self.path.display(), %error, "the folder of the write-back log failed");
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("cannot {what} it: {error}"));
        self.troubled.store(true, Ordering::Release);
        failed
    }

    fn list(&self) -> Result<Vec<(u64, u64)>, Errno> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|error| errno(&error))? {
            let entry = entry.map_err(|error| errno(&error))?;
            let name = entry.file_name();
            let number =
                name.to_str().and_then(|name| name.strip_prefix(SEGMENT)).and_then(|number| number.parse().ok());
            if let Some(number) = number {
                let written = self.open_segments().get(&number).and_then(|open| open.written());
                let len = entry.metadata().map(|metadata| metadata.len());
                found.push((number, written.map_or(len, Ok).map_err(|error| errno(&error))?));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn create(&self, segment: u64) -> Result<(), Errno> {
        self.check_writable()?;
        let path = self.segment_path(segment);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(errno(&error)),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let made = Segment::new(file.map_err(|error| errno(&error))?, Some(0), 0);
        let mut open = self.open_segments();
        // Records go to this one from here on.
        open.values().for_each(|other| other.give_back());
        open.insert(segment, Arc::new(made));
        Ok(())
    }

    /// The segment, open. One that was there before is opened here.
    fn segment(&self, segment: u64) -> Result<Arc<Segment>, Errno> {
        if let Some(open) = self.open_segments().get(&segment) {
            return Ok(Arc::clone(open));
        }
        let open = || {
            let file = OpenOptions::new()
                .read(true)
                .write(self.access != FolderAccess::Read)
                .open(self.segment_path(segment))?;
            let len = file.metadata()?.len();
            Ok(Segment::new(file, None, len))
        };
        let found = open().map_err(|error| errno(&error))?;
        Ok(Arc::clone(self.open_segments().entry(segment).or_insert(Arc::new(found))))
    }

    fn write(&self, segment: &Segment, at: u64, body: &[Bytes]) -> Result<(), Errno> {
        self.check_writable()?;
        let len: u64 = body.iter().map(|piece| piece.len() as u64).sum();
        // `Disk::write`: it has its pages to itself.
        let apart = [at, body.first().map_or(1, |head| head.len() as u64)].iter().all(|at| at.is_multiple_of(PAGE));
        let end = if apart { (at + len).next_multiple_of(PAGE) } else { at + len };
        segment.make_ready(end, len <= SMALL && segment.end.is_some());
        let direct = if apart && LARGE <= len { segment.direct() } else { None };
        let write = || {
            let written = direct.and_then(|file| {
                segment.reserve(end);
                self.direct.attempt(|| self.direct.write(file, at, body)).inspect(|_| segment.note_uncached(at..end))
            });
            written.unwrap_or_else(|| write_all(&segment.file, at, body))
        };
        match write() {
            Err(Errno::NOSPC | Errno::DQUOT) if self.give_up_detached() => write()?,
            written => written?,
        }
        segment.end.as_ref().inspect(|end| {
            end.fetch_max(at + len, Ordering::AcqRel);
        });
        segment.writes.fetch_add(1, Ordering::AcqRel);
        if self.troubled.swap(false, Ordering::AcqRel) {
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(())
    }

    /// Returns how many writes it has covered.
    fn sync(&self, segment: &Segment) -> Result<u64, Errno> {
        let covered = segment.writes.load(Ordering::Acquire);
        if segment.sync_failed.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        if let Err(error) = rustix::fs::fdatasync(&segment.file) {
            segment.sync_failed.store(true, Ordering::Release);
            return Err(error);
        }
        if !segment.named.load(Ordering::Acquire) {
            folders::sync(&self.path).map_err(|error| errno(&error))?;
            segment.named.store(true, Ordering::Release);
        }
        Ok(covered)
    }

    fn detach(&self, segment: u64) -> Result<(), Errno> {
        self.check_writable()?;
        match self.segment(segment) {
            Ok(open) if !self.is_short_of_space() => {
                open.give_back();
                self.detached().insert(segment, open);
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        self.remove(segment)
    }

    fn remove(&self, segment: u64) -> Result<(), Errno> {
        self.check_writable()?;
        match fs::remove_file(self.segment_path(segment)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(errno(&error)),
            Ok(()) | Err(_) => {}
        }
        self.open_segments().remove(&segment);
        folders::sync(&self.path).map_err(|error| errno(&error))
    }

    fn set_aside(&self, segment: u64) -> Result<(), Errno> {
        self.check_writable()?;
        // Numbers start again in a folder that was emptied: there may be one of the same number.
        let mut target = self.path.join(format!("{DAMAGED}{segment:012}"));
        for again in 2.. {
            let flags = RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(
                rustix::fs::CWD,
                self.segment_path(segment),
                rustix::fs::CWD,
                &target,
                flags,
            ) {
                Err(Errno::EXIST) => target = self.path.join(format!("{DAMAGED}{segment:012}-{again}")),
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        self.open_segments().remove(&segment);
        tracing::warn!(file = %target.display(), "a damaged part of the write-back log is kept there");
        folders::sync(&self.path).map_err(|error| errno(&error))
    }

    fn set_owner(&self, owner: &[u8]) -> Result<(), Errno> {
        self.check_writable()?;
        let tmp = self.path.join(OWNER_TMP);
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
            file.write_all(owner)?;
            file.sync_all()?;
            fs::rename(&tmp, self.path.join(OWNER))?;
            folders::sync(&self.path)
        };
        write().map_err(|error| errno(&error))
    }

    fn check_writable(&self) -> Result<(), Errno> {
        if self.access == FolderAccess::Read { Err(Errno::ROFS) } else { Ok(()) }
    }
}

impl Segment {
    fn new(file: File, end: Option<u64>, len: u64) -> Self {
        Self {
            file,
            direct: OnceLock::new(),
            uncached: Mutex::default(),
            end: end.map(AtomicU64::new),
            ready: AtomicU64::new(len),
            growing: Mutex::default(),
            reserved: AtomicU64::new(len),
            writes: AtomicU64::new(1),
            rounds: Arc::new(Rounds::new(0)),
            named: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
        }
    }

    /// Where its last byte ends, if it was made here.
    fn written(&self) -> Option<u64> {
        self.end.as_ref().map(|end| end.load(Ordering::Acquire))
    }

    /// The file for what goes around the page cache, also once it has no name any more.
    fn direct(&self) -> Option<BorrowedFd<'_>> {
        let open = || {
            let access = rustix::fs::fcntl_getfl(&self.file).ok()? & OFlags::RWMODE;
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            rustix::fs::open(path, access | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).ok()
        };
        self.direct.get_or_init(open).as_ref().map(AsFd::as_fd)
    }

    fn note_uncached(&self, range: Range<u64>) {
        self.uncached().insert(range.start, range.end);
    }

    /// The page cache has nothing of it, unless somebody has read it.
    fn is_uncached(&self, range: &Range<u64>) -> bool {
        self.uncached().range(..=range.start).next_back().is_some_and(|(_, end)| range.end <= *end)
    }

    fn uncached(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.uncached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that a write up to `end` does not make the file grow, if that is worth it.
    fn make_ready(&self, end: u64, ahead: bool) {
        // Whoever writes beyond `ready` comes by here first: nobody does behind it.
        let to = if ahead { end.next_multiple_of(AHEAD) + AHEAD } else { end };
        self.advance(&self.ready, end, to, |range| if ahead { write_zeros(&self.file, range) } else { Ok(()) });
    }

    /// Sees to it that there is space up to `end`, and for those to come.
    fn reserve(&self, end: u64) {
        let to = end.next_multiple_of(RESERVE).min(2 * end);
        self.advance(&self.reserved, end, to, |range| {
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), range.start, range.end - range.start)
        });
    }

    /// Moves `mark` to `to` if it is before `end`; `make` has to see to what lies between first.
    fn advance(&self, mark: &AtomicU64, end: u64, to: u64, make: impl FnOnce(Range<u64>) -> Result<(), Errno>) {
        if end <= mark.load(Ordering::Acquire) {
            return;
        }
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = mark.load(Ordering::Acquire);
        if end <= before {
            return;
        }
        if let Err(error) = make(before..to) {
            // The write itself tells if that matters.
            tracing::debug!(%error, "nothing is made ready ahead");
        }
        mark.store(to, Ordering::Release);
    }

    /// No large record is to come: what is reserved beyond those that are there is others'.
    fn give_back(&self) {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = self.ready.load(Ordering::Acquire);
        let reserved = self.reserved.swap(u64::MAX, Ordering::AcqRel);
        // Whoever is about to write has moved `ready`, or makes the file longer again.
        if ready < reserved
            && reserved < u64::MAX
            && self.end.is_some()
            && let Err(error) = rustix::fs::ftruncate(&self.file, ready)
        {
            tracing::debug!(%error, "reserved space is not given back");
        }
    }
}

fn write_zeros(file: &File, range: Range<u64>) -> Result<(), Errno> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = range.start;
    while at < range.end {
        let piece = ZEROS.len().min((range.end - at) as usize);
        match rustix::io::pwrite(file, &ZEROS[..piece], at) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => at += count as u64,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_all(file: &File, mut at: u64, body: &[Bytes]) -> Result<(), Errno> {
    let mut slices: Vec<IoSlice<'_>> = body.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut slices[..];
    // Empty ones at the front would look like a disk that takes nothing.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match rustix::io::pwritev(file, &left[..left.len().min(PIECES_MAX)], at) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => {
                IoSlice::advance_slices(&mut left, count);
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads from the page cache, or waits for the disk where that is allowed; `None`: that cannot be done.
fn read_now(segment: &Segment, range: &Range<u64>) -> Option<Bytes> {
    let len = range.end.saturating_sub(range.start);
    if SMALL < len || segment.written().is_some_and(|end| end < range.end) {
        return None;
    }
    // Where there is nothing, asking would start to read it into the page cache.
    if !segment.is_uncached(range) {
        let mut bytes = vec![0; len as usize];
        let slices = &mut [IoSliceMut::new(&mut bytes)];
        let read = rustix::io::preadv2(&segment.file, slices, range.start, ReadWriteFlags::NOWAIT);
        if read == Ok(len as usize) {
            return Some(bytes.into());
        }
    }
    brief::read(&segment.direct()?, range.clone())?.ok().filter(|bytes| bytes.len() as u64 == len)
}

fn read(direct: &Direct, segment: &Segment, range: Range<u64>) -> Result<Bytes, Errno> {
    if segment.written().is_some_and(|end| end < range.end) {
        return Err(Errno::NOENT);
    }
    let len = range.end.saturating_sub(range.start) as usize;
    if LARGE <= len as u64
        && let Some(file) = segment.direct()
        && let Some(read) = direct.attempt(|| direct::read(file, range.clone()))
    {
        return read.and_then(|bytes| if bytes.len() == len { Ok(bytes) } else { Err(Errno::NOENT) });
    }
    let mut bytes: Vec<u8> = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = range.start + bytes.len() as u64;
        match rustix::io::pread(&segment.file, spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(Errno::NOENT),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    // An allocation may be larger than was asked for.
    bytes.truncate(len);
    Ok(bytes.into())
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
#[path = "log_folder_tests.rs"]
mod tests;
