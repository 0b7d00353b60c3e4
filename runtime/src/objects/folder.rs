//! Objects in a folder of this machine, through OpenDAL's `fs` service; large ones are put and all are read around it.
//!
//! Owns: opening the folder, its calls, the barrier.
//! Leaves to others: which folders a barrier syncs (`barrier`), listing order (`list`), deadlines (`objects`).
//!
//! Invariants
//! - A call that hangs holds its permit: a dead disk ties up `PUTS_MAX + GETS_MAX` threads and no more.
//! - An object appears whole under its key: it is written under `.tmp` first, synced, then renamed.
//! - An open file of an object is read by one attempt at most; who is not content with the answer gets it by its name.
//! - Nothing is put while the store's root is absent (a disk that is not mounted must not be written beside).

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use bytes::Bytes;
use kiseki_core::env::{ObjectPage, StoreError};
use opendal::{Buffer, Operator};
use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::barrier::Folders;
use super::failure::{Failure, Kind};
use super::health::{Health, Verb};
use super::open_files::OpenFiles;
use super::{Access, GETS_MAX, ObjectsError, PUTS_MAX, direct, list};
use crate::brief;
use crate::direct::Direct;
use crate::folders;
use crate::rounds::{RoundFailed, Rounds};

/// Folder of half-written objects in the store's root.
const TMP: &str = ".tmp";

/// The objects of one volume, in a folder of its own.
pub(super) struct Folder {
    operator: Operator,
    access: Access,
    /// `{bucket}/{prefix}`, absolute.
    root: PathBuf,
    direct: Direct,
    open_files: OpenFiles,
    folders: Mutex<Folders>,
    rounds: Arc<Rounds>,
    puts: Arc<Semaphore>,
    gets: Arc<Semaphore>,
    health: Arc<Health>,
    handle: Handle,
}

type Call<T> = JoinHandle<Result<T, StoreError>>;

impl Folder {
    pub(super) fn open(
        path: &Path,
        access: Access,
        health: Arc<Health>,
        handle: Handle,
    ) -> Result<Arc<Self>, ObjectsError> {
        let root = local_root(path, access)?;
        let mut builder = opendal::services::Fs::default().root(&utf8(&root)?);
        match access {
            Access::Create | Access::Write => builder = builder.atomic_write_dir(&utf8(&root.join(TMP))?),
            Access::Read => {}
        }
        Ok(Arc::new(Self {
            operator: Operator::new(builder)?,
            access,
            root,
            direct: Direct::default(),
            open_files: OpenFiles::default(),
            folders: Mutex::default(),
            rounds: Arc::new(Rounds::new(0)),
            puts: Arc::new(Semaphore::new(PUTS_MAX)),
            gets: Arc::new(Semaphore::new(GETS_MAX)),
            health,
            handle,
        }))
    }

    pub(super) fn put(self: &Arc<Self>, key: &str, body: Vec<Bytes>) -> Call<()> {
        let (folder, key) = (Arc::clone(self), key.to_owned());
        self.handle.spawn(async move {
            let _permit = Arc::clone(&folder.puts).acquire_owned().await;
            // OpenDAL syncs the file on the thread that polls the call: that must not be one of the executor's.
            let handle = folder.handle.clone();
            let put = {
                let handle = handle.clone();
                move || handle.block_on(folder.put_now(&key, body))
            };
            handle.spawn_blocking(put).await.unwrap_or(Err(StoreError::Retry))
        })
    }

    pub(super) fn get(self: &Arc<Self>, key: &str, range: Range<u64>) -> Call<Bytes> {
        let (folder, key) = (Arc::clone(self), key.to_owned());
        // Straight to a thread that may block: going by way of a task costs a small read two more changes of thread.
        match Arc::clone(&self.gets).try_acquire_owned() {
            Ok(permit) => self.handle.spawn_blocking(move || {
                let _permit = permit;
                folder.get_now(&key, range)
            }),
            Err(_) => self.handle.spawn(async move {
                let permit = Arc::clone(&folder.gets).acquire_owned().await;
                let handle = folder.handle.clone();
                let get = move || {
                    let _permit = permit;
                    folder.get_now(&key, range)
                };
                handle.spawn_blocking(get).await.unwrap_or(Err(StoreError::Retry))
            }),
        }
    }

    /// What the thread that asks may wait for, and need not wait long for. `None`: that is another's.
    pub(super) fn get_briefly(&self, key: &str, range: &Range<u64>) -> Option<Result<Bytes, StoreError>> {
        let len = range.end.checked_sub(range.start).filter(|len| *len <= brief::LEN_MAX)?;
        let _permit = self.gets.try_acquire().ok()?;
        // What goes wrong here is told by who tries again.
        let file = match self.open_files.get(key) {
            Some(file) => file,
            None => self.open_files.insert(key, brief::open(&self.root.join(key))?.ok()?),
        };
        let got = brief::read(&file, range.clone())?.ok().filter(|bytes| bytes.len() as u64 == len)?;
        Some(self.health.note(Verb::Get, key, len, Ok(got)))
    }

    pub(super) fn delete(self: &Arc<Self>, key: &str) -> Call<()> {
        let (folder, key) = (Arc::clone(self), key.to_owned());
        self.handle.spawn(async move {
            let _permit = Arc::clone(&folder.puts).acquire_owned().await;
            folder.delete_now(&key).await
        })
    }

    pub(super) fn list(self: &Arc<Self>, prefix: &str, after: Option<&str>) -> Call<ObjectPage> {
        let folder = Arc::clone(self);
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.handle.spawn(async move {
            let _permit = Arc::clone(&folder.gets).acquire_owned().await;
            folder.list_now(&prefix, after.as_deref()).await
        })
    }

    /// The barrier, unless nothing was put or deleted that is not durable.
    pub(super) fn barrier(self: &Arc<Self>) -> Option<Call<()>> {
        let noted = self.folders().noted();
        (self.rounds.through() < noted).then(|| {
            let folder = Arc::clone(self);
            self.handle.spawn(async move {
                let (rounds, handle) = (Arc::clone(&folder.rounds), folder.handle.clone());
                let round = move || folder.sync_round();
                rounds.wait(&handle, noted, round).await.map_err(|RoundFailed| StoreError::Retry)
            })
        })
    }

    /// Number of barrier rounds made so far.
    pub(super) fn barrier_rounds(&self) -> u64 {
        self.rounds.ended()
    }

    async fn put_now(&self, key: &str, mut body: Vec<Bytes>) -> Result<(), StoreError> {
        self.check_writable(Verb::Put, key)?;
        let len = body.iter().map(|segment| segment.len() as u64).sum();
        let tmp = self.root.join(TMP).join(format!("direct-{}", uuid::Uuid::new_v4()));
        let path = self.root.join(key);
        let put = match direct::put(&self.direct, &tmp, &path, &body) {
            Some(put) => put
                .inspect(|()| self.keep_open(key, &path))
                .map_err(|error| Failure::new(Kind::of_errno(error), error.to_string())),
            None => {
                // OpenDAL's `fs` service never gets past an empty segment.
                body.retain(|segment| !segment.is_empty());
                self.operator.write(key, Buffer::from(body)).await.map(drop).map_err(|error| {
                    match Failure::of_opendal(&error) {
                        // A folder vanished under the put.
                        Failure { kind: Kind::NotFound | Kind::Short, text, .. } => Failure::new(Kind::Broken, text),
                        failure => failure,
                    }
                })
            }
        };
        if put.is_ok() {
            self.folders().note_put(key);
        }
        self.health.note(Verb::Put, key, len, put)
    }

    /// For reads of parts.
    fn keep_open(&self, key: &str, path: &Path) {
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) {
            self.open_files.insert(key, file);
        }
    }

    fn get_now(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let len = range.end.saturating_sub(range.start);
        let got = match self.read(key, range.start, len as usize) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(Failure::new(Kind::Short, "it ends before the range does")),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(match self.missing_root() {
                None => Failure::new(Kind::NotFound, "there is no such file"),
                Some(failure) => failure,
            }),
            Err(error) => Err(Failure::new(Kind::of_errno(error), error.to_string())),
        };
        self.health.note(Verb::Get, key, len, got)
    }

    /// Reads from the folder directly: OpenDAL's `fs` reader zeroes its buffer first, reads at most 2 MiB at a time,
    /// joins the pieces with a copy and changes threads for each (1.1 ms for 4 MiB in the page cache; this: 0.3).
    /// `None`: the object is shorter.
    fn read(&self, key: &str, start: u64, len: usize) -> Result<Option<Bytes>, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.root.join(key), flags, Mode::empty())?;
        let mut bytes: Vec<u8> = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = start + bytes.len() as u64;
            match rustix::io::pread(&file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        // An allocation may be larger than was asked for.
        bytes.truncate(len);
        Ok(Some(Bytes::from(bytes)))
    }

    async fn delete_now(&self, key: &str) -> Result<(), StoreError> {
        self.check_writable(Verb::Delete, key)?;
        self.open_files.remove(key);
        let deleted = match self.operator.delete(key).await {
            Ok(()) => Ok(()),
            Err(error) => match Failure::of_opendal(&error) {
                // Two deletes at once: the other one was first.
                Failure { kind: Kind::NotFound, .. } => Ok(()),
                failure => Err(failure),
            },
        };
        // An earlier delete may have removed it, which this one makes as good as its own. A folder that never was has
        // nothing to make durable.
        if deleted.is_ok() && self.root.join(key).parent().is_some_and(Path::is_dir) {
            self.folders().note_delete(key);
        }
        self.health.note(Verb::Delete, key, 0, deleted)
    }

    async fn list_now(&self, prefix: &str, after: Option<&str>) -> Result<ObjectPage, StoreError> {
        let page = match self.missing_root() {
            Some(failure) => Err(failure),
            None => list::page(&self.operator, prefix, after, &format!("{TMP}/"))
                .await
                .map_err(|error| Failure::of_opendal(&error)),
        };
        // What is not there may have been deleted by a process that died before its barrier.
        if page.is_ok() && self.root.join(prefix).is_dir() {
            self.folders().note_delete(prefix);
        }
        self.health.note(Verb::List, prefix, 0, page)
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

    /// The folder is there, and can be written if it may be.
    pub(super) fn probe(&self) -> Result<(), ObjectsError> {
        let failed = |error| ObjectsError::Io { path: self.root.clone(), error };
        if !fs::metadata(&self.root).map_err(failed)?.is_dir() {
            return Err(ObjectsError::NotAFolder(self.root.clone()));
        }
        match self.access {
            Access::Read => fs::read_dir(&self.root).map(drop).map_err(failed),
            Access::Create | Access::Write => {
                let probe = self.root.join(TMP).join(format!("probe-{}", uuid::Uuid::new_v4()));
                fs::write(&probe, "probe").and_then(|()| fs::remove_file(&probe)).map_err(failed)
            }
        }
    }

    /// Something in the folder, if there is anything.
    pub(super) fn any_key(&self) -> Result<Option<String>, ObjectsError> {
        let failed = |error| ObjectsError::Io { path: self.root.clone(), error };
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if name != TMP {
                return Ok(Some(name.display().to_string()));
            }
        }
        Ok(None)
    }

    fn check_writable(&self, verb: Verb, key: &str) -> Result<(), StoreError> {
        match (self.access, self.missing_root()) {
            (Access::Read, _) => Err(StoreError::Denied),
            (Access::Create | Access::Write, None) => Ok(()),
            (Access::Create | Access::Write, Some(failure)) => self.health.note(verb, key, 0, Err(failure)),
        }
    }

    /// Why nothing is said about an object that is not there: the root is not either.
    fn missing_root(&self) -> Option<Failure> {
        let gone = || Failure::new(Kind::Broken, format!("the folder {} is gone", self.root.display()));
        (!self.root.is_dir()).then(gone)
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
