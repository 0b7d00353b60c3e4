//! The object store through OpenDAL: `env::ObjectStore`.
//!
//! Owns: opening a store, deadlines, keeping calls apart from their waiters, what an error means, the barrier.
//! Leaves to others: block formats (`kiseki_core`), which folders a barrier syncs (`barrier`), listing order (`list`).
//!
//! Invariants
//! - Every call runs in a task of its own to its end: a waiter that is dropped or passes its deadline changes nothing.
//! - A call that hangs holds its permit: a dead store ties up `PUTS_MAX + GETS_MAX` threads and no more.
//! - An object appears whole under its key: it is written under `.tmp` first, synced, then renamed.
//! - Nothing is put while the store's root is absent (a disk that is not mounted must not be written beside).

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{error, fs};

use bytes::Bytes;
use kiseki_core::env::{ObjectPage, ObjectStore, StoreError};
use opendal::{Buffer, ErrorKind, Operator};
use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use self::barrier::Folders;
use crate::folders;
use crate::rounds::{RoundFailed, Rounds};

mod barrier;
mod credentials;
mod list;
mod place;

pub use credentials::Credentials;
pub use place::{Place, S3Place};

/// Folder of half-written objects in the store's root.
const TMP: &str = ".tmp";
/// Puts and deletes under way. The client bounds its own below this; the rest is for those that overran their deadline.
const PUTS_MAX: usize = 64;
/// Gets and lists under way.
const GETS_MAX: usize = 64;

/// What the opener means to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Make the store's folder if it is absent, then as `Write`.
    Create,
    /// Put and delete. Half-written objects of earlier mounts are removed, so the volume must be ours alone.
    Write,
    /// Get and list; puts and deletes are `Denied`. Creates and removes nothing.
    Read,
}

/// Why an object store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// `--storage` names none that is built in.
    #[error("there is no storage \"{0}\"; use \"file\"")]
    Storage(String),
    /// The prefix is not one plain name.
    #[error("\"{0}\" cannot be a folder in the bucket")]
    Prefix(String),
    /// The folder is absent.
    #[error("there is no folder {}", .0.display())]
    Missing(PathBuf),
    /// Something else is in its place.
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// The operating system failed.
    #[error("cannot use {}: {error}", .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What failed.
        error: io::Error,
    },
    /// OpenDAL refused.
    #[error("cannot set up the object store: {0}")]
    Setup(#[from] opendal::Error),
}

/// The objects of one volume.
pub struct Objects {
    place: Place,
    shared: Arc<Shared>,
    handle: Handle,
    timeout: Duration,
    puts: Arc<Semaphore>,
    gets: Arc<Semaphore>,
    rounds: Arc<Rounds>,
}

/// Requests made of the store since it was opened, each attempt counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects written.
    pub puts: u64,
    /// Bytes of them, heads included.
    pub put_bytes: u64,
    /// Reads of objects or of parts.
    pub gets: u64,
    /// Bytes of them.
    pub got_bytes: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Pages listed.
    pub lists: u64,
    /// Of all these, those that failed (an absent object is no failure).
    pub failures: u64,
    /// Of these, those that the store refused because it was asked too much.
    pub throttled: u64,
}

/// The store fails: every request since `since` ago has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The last error, for a person.
    pub text: String,
    /// How long ago the first failure was after the last success.
    pub since: Duration,
}

/// What calls under way hold.
struct Shared {
    operator: Operator,
    access: Access,
    /// `{bucket}/{prefix}`, absolute.
    root: PathBuf,
    folders: Mutex<Folders>,
}

impl Objects {
    /// Opens the store at `place`. Calls run on `handle` and are given up after `timeout`.
    pub fn open(
        place: &Place,
        _credentials: Option<&Credentials>,
        access: Access,
        timeout: Duration,
        handle: Handle,
    ) -> Result<Self, ObjectsError> {
        let root = match place {
            Place::Folder(path) => local_root(path, access)?,
            Place::S3(_) => return Err(ObjectsError::Storage("s3".into())),
        };
        let mut builder = opendal::services::Fs::default().root(&utf8(&root)?);
        match access {
            Access::Create | Access::Write => builder = builder.atomic_write_dir(&utf8(&root.join(TMP))?),
            Access::Read => {}
        }
        let operator = Operator::new(builder)?;
        Ok(Self {
            place: place.clone(),
            shared: Arc::new(Shared { operator, access, root, folders: Mutex::default() }),
            handle,
            timeout,
            puts: Arc::new(Semaphore::new(PUTS_MAX)),
            gets: Arc::new(Semaphore::new(GETS_MAX)),
            rounds: Arc::new(Rounds::new(0)),
        })
    }

    /// Where the objects are.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Requests made so far.
    pub fn counts(&self) -> Counts {
        Counts::default()
    }

    /// What is wrong with the store, if its last request failed.
    pub fn trouble(&self) -> Option<Trouble> {
        None
    }

    /// Whether the place can be used as it was opened: read, and if it may be written, written. The error says what is
    /// wrong: no such bucket, wrong keys, clocks that differ, no permission.
    pub async fn probe(&self) -> Result<(), ObjectsError> {
        Ok(())
    }

    /// Some object under the place, if it holds any.
    pub async fn any_key(&self) -> Result<Option<String>, ObjectsError> {
        Ok(None)
    }

    /// Number of barrier rounds made so far: how well callers are grouped.
    pub fn barrier_rounds(&self) -> u64 {
        self.rounds.ended()
    }

    /// Starts `call` in a task of its own and returns a future that waits for it up to the deadline.
    fn detach<T, C>(&self, verb: &'static str, key: &str, call: C) -> impl Future<Output = Result<T, StoreError>> + Send
    where
        T: Send + 'static,
        C: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        self.await_detached(verb, key, self.handle.spawn(call))
    }

    /// Waits for a call that runs in a task of its own, up to the deadline.
    fn await_detached<T: Send + 'static>(
        &self,
        verb: &'static str,
        key: &str,
        call: JoinHandle<Result<T, StoreError>>,
    ) -> impl Future<Output = Result<T, StoreError>> + Send {
        let (key, timeout) = (key.to_owned(), self.timeout);
        // Timers need the executor at hand; the caller may be on a FUSE thread.
        let _context = self.handle.enter();
        let waiter = tokio::time::timeout(timeout, call);
        async move {
            match waiter.await {
                Ok(Ok(result)) => result,
                Ok(Err(error)) => {
                    tracing::warn!(verb, key, %error, "an object store call was broken off");
                    Err(StoreError::Retry)
                }
                Err(_) => {
                    tracing::warn!(verb, key, ?timeout, "the object store does not answer");
                    Err(StoreError::Retry)
                }
            }
        }
    }
}

impl ObjectStore for Objects {
    fn put(&self, key: &str, body: Vec<Bytes>) -> impl Future<Output = Result<(), StoreError>> + Send {
        let (shared, permits, handle) = (Arc::clone(&self.shared), Arc::clone(&self.puts), self.handle.clone());
        let owned = key.to_owned();
        self.detach("put", key, async move {
            let _permit = permits.acquire_owned().await;
            // OpenDAL syncs the file on the thread that polls the call: that must not be one of the executor's.
            let put = {
                let handle = handle.clone();
                move || handle.block_on(shared.put(&owned, body))
            };
            handle.spawn_blocking(put).await.unwrap_or(Err(StoreError::Retry))
        })
    }

    fn get(&self, key: &str, range: Range<u64>) -> impl Future<Output = Result<Bytes, StoreError>> + Send {
        let (shared, permits, handle) = (Arc::clone(&self.shared), Arc::clone(&self.gets), self.handle.clone());
        let owned = key.to_owned();
        // Straight to a thread that may block: going by way of a task costs a small read two more changes of thread.
        let call = match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => self.handle.spawn_blocking(move || {
                let _permit = permit;
                shared.get(&owned, range)
            }),
            Err(_) => self.handle.spawn(async move {
                let permit = permits.acquire_owned().await;
                let get = move || {
                    let _permit = permit;
                    shared.get(&owned, range)
                };
                handle.spawn_blocking(get).await.unwrap_or(Err(StoreError::Retry))
            }),
        };
        self.await_detached("get", key, call)
    }

    fn delete(&self, key: &str) -> impl Future<Output = Result<(), StoreError>> + Send {
        let (shared, permits) = (Arc::clone(&self.shared), Arc::clone(&self.puts));
        let owned = key.to_owned();
        self.detach("delete", key, async move {
            let _permit = permits.acquire_owned().await;
            shared.delete(&owned).await
        })
    }

    fn barrier(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        let (shared, rounds, handle) = (Arc::clone(&self.shared), Arc::clone(&self.rounds), self.handle.clone());
        let puts = shared.folders().puts();
        let waiter = (rounds.through() < puts).then(|| {
            self.detach("barrier", "", async move {
                let round = move || shared.sync_round();
                rounds.wait(&handle, puts, round).await.map_err(|RoundFailed| StoreError::Retry)
            })
        });
        async move {
            match waiter {
                Some(waiter) => waiter.await,
                None => Ok(()),
            }
        }
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> impl Future<Output = Result<ObjectPage, StoreError>> + Send {
        let (shared, permits) = (Arc::clone(&self.shared), Arc::clone(&self.gets));
        let (owned, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.detach("list", prefix, async move {
            let _permit = permits.acquire_owned().await;
            shared.list(&owned, after.as_deref()).await
        })
    }
}

impl Shared {
    async fn put(&self, key: &str, mut body: Vec<Bytes>) -> Result<(), StoreError> {
        self.check_writable("put", key)?;
        // OpenDAL's `fs` service never gets past an empty segment.
        body.retain(|segment| !segment.is_empty());
        match self.operator.write(key, Buffer::from(body)).await {
            Ok(_) => {
                self.folders().note_put(key);
                Ok(())
            }
            Err(error) => Err(match classify("put", key, &error) {
                // A folder vanished under the put.
                StoreError::NotFound | StoreError::Short => StoreError::Retry,
                other @ (StoreError::Full | StoreError::Denied | StoreError::Retry) => other,
            }),
        }
    }

    /// Reads from the local folder directly: OpenDAL's `fs` reader zeroes its buffer first, reads at most 2 MiB at a
    /// time, joins the pieces with a copy and changes threads for each (1.1 ms for 4 MiB in the page cache; this: 0.3).
    fn get(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let len = range.end.saturating_sub(range.start) as usize;
        let failed = |error: Errno| match classify_os(error) {
            Some(class) => class,
            None if error == Errno::NOENT || error == Errno::NOTDIR => self.absent(key),
            None => {
                tracing::warn!(key, %error, "cannot read an object");
                StoreError::Retry
            }
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.root.join(key), flags, Mode::empty()).map_err(failed)?;
        let mut bytes: Vec<u8> = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = range.start + bytes.len() as u64;
            match rustix::io::pread(&file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(StoreError::Short),
                Ok(_) => {}
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        // An allocation may be larger than was asked for.
        bytes.truncate(len);
        Ok(Bytes::from(bytes))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.check_writable("delete", key)?;
        match self.operator.delete(key).await {
            Ok(()) => Ok(()),
            Err(error) => match classify("delete", key, &error) {
                // Two deletes at once: the other one was first.
                StoreError::NotFound => Ok(()),
                other @ (StoreError::Short | StoreError::Full | StoreError::Denied | StoreError::Retry) => Err(other),
            },
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ObjectPage, StoreError> {
        self.check_root("list", prefix)?;
        let page = list::page(&self.operator, prefix, after, &format!("{TMP}/")).await;
        page.map_err(|error| classify("list", prefix, &error))
    }

    /// One round of the barrier, on the blocking pool.
    ///
    /// A journaling file system that fails to sync a folder goes read-only, so a later success is a real one.
    fn sync_round(&self) -> Result<u64, RoundFailed> {
        let batch = self.folders().take();
        for folder in &batch.folders {
            if let Err(error) = folders::sync(&self.root.join(folder)) {
                tracing::warn!(folder, %error, "cannot sync a folder of the object store");
                self.folders().failed(batch);
                return Err(RoundFailed);
            }
        }
        self.folders().synced(&batch);
        Ok(batch.through)
    }

    /// What it means that an object is not there.
    fn absent(&self, key: &str) -> StoreError {
        match self.check_root("get", key) {
            Ok(()) => StoreError::NotFound,
            Err(error) => error,
        }
    }

    fn check_writable(&self, verb: &str, key: &str) -> Result<(), StoreError> {
        match self.access {
            Access::Create | Access::Write => self.check_root(verb, key),
            Access::Read => Err(StoreError::Denied),
        }
    }

    fn check_root(&self, verb: &str, key: &str) -> Result<(), StoreError> {
        if self.root.is_dir() {
            return Ok(());
        }
        tracing::warn!(verb, key, root = %self.root.display(), "the folder of the object store is gone");
        Err(StoreError::Retry)
    }

    fn folders(&self) -> MutexGuard<'_, Folders> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The volume's folder, absolute; made and swept as `access` says.
fn local_root(root: &Path, access: Access) -> Result<PathBuf, ObjectsError> {
    let io_error = |error| ObjectsError::Io { path: root.to_owned(), error };
    match fs::metadata(root) {
        Ok(found) if !found.is_dir() => return Err(ObjectsError::NotAFolder(root.to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && access != Access::Create => {
            return Err(ObjectsError::Missing(root.to_owned()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(ObjectsError::NotAFolder(root.to_owned()));
        }
        Err(error) => return Err(io_error(error)),
    }
    match access {
        Access::Create => folders::create_synced(root).and_then(|()| sweep(&root.join(TMP))).map_err(io_error)?,
        Access::Write => sweep(&root.join(TMP)).map_err(io_error)?,
        Access::Read => {}
    }
    root.canonicalize().map_err(io_error)
}

/// Empties the folder of half-written objects, or makes it.
fn sweep(tmp: &Path) -> io::Result<()> {
    fs::create_dir_all(tmp)?;
    for entry in fs::read_dir(tmp)? {
        let path = entry?.path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => tracing::debug!(path = %path.display(), "removed a half-written object"),
        }
    }
    Ok(())
}

fn utf8(path: &Path) -> Result<String, ObjectsError> {
    let not_utf8 = || io::Error::new(io::ErrorKind::InvalidInput, "the path is not valid UTF-8");
    let text = path.to_str().ok_or_else(|| ObjectsError::Io { path: path.to_owned(), error: not_utf8() })?;
    Ok(text.to_owned())
}

/// What an error of OpenDAL means to the client; its text goes to the log.
fn classify(verb: &str, key: &str, failure: &opendal::Error) -> StoreError {
    let class = match (os_error(failure).and_then(classify_os), failure.kind()) {
        (Some(class), _) => class,
        (_, ErrorKind::PermissionDenied) => StoreError::Denied,
        (_, ErrorKind::NotFound) => StoreError::NotFound,
        (_, ErrorKind::RangeNotSatisfied) => StoreError::Short,
        (_, _) => StoreError::Retry,
    };
    match class {
        StoreError::NotFound | StoreError::Short => tracing::debug!(verb, key, error = %failure, "{class}"),
        StoreError::Full | StoreError::Denied | StoreError::Retry => {
            tracing::warn!(verb, key, error = %failure, "{class}");
        }
    }
    class
}

/// What an error number means, if it is one of those that no waiting mends.
fn classify_os(errno: Errno) -> Option<StoreError> {
    match errno {
        Errno::NOSPC | Errno::DQUOT => Some(StoreError::Full),
        Errno::ACCESS | Errno::PERM | Errno::ROFS => Some(StoreError::Denied),
        _ => None,
    }
}

/// The error number at the root of `failure`, if the operating system gave one.
fn os_error(failure: &opendal::Error) -> Option<Errno> {
    let mut cause: Option<&(dyn error::Error + 'static)> = Some(failure);
    while let Some(error) = cause {
        if let Some(io_error) = error.downcast_ref::<io::Error>()
            && let Some(errno) = Errno::from_io_error(io_error)
        {
            return Some(errno);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_os(errno: Errno, kind: ErrorKind) -> opendal::Error {
        opendal::Error::new(kind, "the text says nothing").set_source(io::Error::from(errno))
    }

    #[test]
    fn errors_are_classified_by_their_root_cause() {
        let cases = [
            (from_os(Errno::NOSPC, ErrorKind::Unexpected), StoreError::Full),
            (from_os(Errno::DQUOT, ErrorKind::Unexpected), StoreError::Full),
            (from_os(Errno::ROFS, ErrorKind::Unexpected), StoreError::Denied),
            (from_os(Errno::ACCESS, ErrorKind::PermissionDenied), StoreError::Denied),
            (from_os(Errno::IO, ErrorKind::Unexpected), StoreError::Retry),
            (from_os(Errno::NOENT, ErrorKind::NotFound), StoreError::NotFound),
            (opendal::Error::new(ErrorKind::RangeNotSatisfied, ""), StoreError::Short),
            (opendal::Error::new(ErrorKind::RateLimited, ""), StoreError::Retry),
            (opendal::Error::new(ErrorKind::NotFound, ""), StoreError::NotFound),
        ];
        for (failure, expected) in cases {
            assert_eq!(classify("get", "key", &failure), expected, "{failure:?}");
        }
    }
}
