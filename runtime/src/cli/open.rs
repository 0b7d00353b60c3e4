//! Reaching a volume: through the mount that has it, or by opening its stores for the time of a command.
//!
//! Invariant: opening changes nothing that a volume is made of.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiseki_core::client::Logged;
use kiseki_core::env::{MetaError, MetaStore, ObjectStore, StoreError};
use kiseki_core::format::block::{VOLUME_OBJECT, decode_marker, encode_marker, uuid};
use kiseki_core::format::codec::DecodeError;
use kiseki_core::format::keys;
use kiseki_core::format::values::{VOLUME_VERSION, Value, Volume};
use kiseki_core::meta;
use kiseki_core::types::VolumeId;
use tokio::runtime::{Handle, Runtime};

use super::access::{Address, Keys};
use super::output::{Context, Failure, Outcome, say_aside};
use super::place::{MountEntry, Place};
use super::writeback::{self, CacheDir};
use crate::control::protocol::{Checked, Finding, Progress, Reply, Status};
use crate::control::{Connection, Stop, check, status_of, view};
use crate::env::TokioEnv;
use crate::objects::{Access, Credentials, Objects, ObjectsError, Place as ObjectsPlace};
use crate::rocks::{OpenError, OpenMode, RocksMeta};

/// One call of the object store, on behalf of a person who waits.
pub(super) const STORE_TIMEOUT: Duration = Duration::from_secs(60);

/// The mount that a path belongs to.
pub(super) fn connect(mount: &MountEntry) -> Outcome<Connection> {
    let place = mount.mountpoint.display();
    let connection = Connection::open(&mount.meta).context(|| format!("reach the mount at {place}"))?;
    connection.ok_or_else(|| {
        Failure::with_hint(
            format!("the process of the mount at {place} is gone"),
            format!("Remove the dead mount with `kiseki umount {place}`, or mount the volume again."),
        )
    })
}

/// An answer that the protocol does not allow: the mount runs another version.
pub(super) fn unexpected(reply: &Reply) -> Failure {
    Failure::with_hint(
        format!("the mount process gave an answer that this version does not understand: {reply:?}"),
        "Unmount and mount again with this version.",
    )
}

/// The status that the mount of the store at `meta` gives; `None` if it is not mounted.
pub(super) fn mounted_status(meta: &Path) -> Outcome<Option<Status>> {
    status_of(meta).context(|| format!("ask the mount of {}", meta.display()))
}

impl Place {
    /// The metadata store of a mount point whose process is gone can be opened; the person should know.
    pub(super) fn warn_if_dead(&self) {
        if let Some(mount) = &self.mount {
            let place = mount.mountpoint.display();
            say_aside(format!(
                "kiseki: the process of the mount at {place} is gone; `kiseki umount {place}` removes what is left of it"
            ));
        }
    }
}

/// A metadata store that this command has open.
pub(super) struct Store {
    meta: Arc<RocksMeta>,
    path: PathBuf,
    // Dropped last: the store's syncs run on it.
    runtime: Arc<Runtime>,
}

/// Threads for the stores of a command.
pub(super) fn runtime() -> Outcome<Arc<Runtime>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    Ok(Arc::new(runtime.context(|| "start threads")?))
}

/// Opens the objects at `place` and makes sure that they can be used as `access` says. Calls run on `handle`.
pub(super) async fn reach(
    place: &ObjectsPlace,
    credentials: Option<&Credentials>,
    access: Access,
    timeout: Duration,
    handle: &Handle,
) -> Result<Objects, ObjectsError> {
    let objects = Objects::open(place, credentials, access, timeout, handle.clone())?;
    objects.probe().await?;
    Ok(objects)
}

impl Store {
    /// Opens the store in the folder `path`.
    pub(super) fn open(path: &Path, mode: OpenMode) -> Outcome<Self> {
        Self::open_on(runtime()?, path, mode)
    }

    /// Opens the store in the folder `path`, which works on `runtime`.
    pub(super) fn open_on(runtime: Arc<Runtime>, path: &Path, mode: OpenMode) -> Outcome<Self> {
        let meta = RocksMeta::open(path, mode, runtime.handle().clone()).map_err(|e| explain_open(&e))?;
        Ok(Self { meta: Arc::new(meta), path: path.into(), runtime })
    }

    /// Runs a future to its end.
    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// The metadata.
    pub(super) fn meta(&self) -> &RocksMeta {
        &self.meta
    }

    /// The settings of the volume that the store holds; `None` if it holds nothing at all.
    pub(super) fn volume(&self) -> Outcome<Option<Volume>> {
        self.block_on(read_volume(&self.meta, &self.path))
    }

    /// The volume, which must be there.
    pub(super) fn existing_volume(&self) -> Outcome<Volume> {
        self.volume()?.ok_or_else(|| no_volume(&self.path))
    }

    /// The status of the volume, which is not mounted.
    pub(super) fn status(&self) -> Outcome<Status> {
        let volume = self.existing_volume()?;
        let usage = self.block_on(self.meta.read(|read| meta::volume::usage(read)));
        let usage = usage.map_err(|e| self.failed("read", &e))?;
        Ok(Status {
            meta: self.path.display().to_string(),
            volume: view::volume(&volume),
            usage: view::usage(&usage),
            mount: None,
        })
    }

    /// The volume's objects, to read; their marker names this volume.
    fn marked_objects(&self, volume: &Volume, keys: &Keys, address: &Address) -> Outcome<Objects> {
        let place = address.of(volume)?;
        let credentials = keys.of(&place)?;
        let handle = self.runtime.handle();
        self.block_on(reach_marked(volume, &place, credentials.as_ref(), STORE_TIMEOUT, handle))
    }

    /// Checks the volume (`kiseki fsck`).
    pub(super) fn check(
        &self,
        data: bool,
        keys: &Keys,
        address: &Address,
        dir: &CacheDir,
        progress: &(dyn Fn(Progress) + Sync),
        found: &(dyn Fn(Finding) + Sync),
    ) -> Outcome<Checked> {
        let volume = self.existing_volume()?;
        let objects = Arc::new(self.marked_objects(&volume, keys, address)?);
        let handle = self.runtime.handle();
        let env = TokioEnv::new(Arc::clone(&self.meta), objects, handle.clone());
        let env = match &volume.log {
            None => Logged::through(env),
            Some(home) => {
                let path = dir.of(&self.path, &volume, Some(home))?;
                match self.block_on(writeback::look(env.clone(), &path, &volume.name, home, handle)) {
                    Ok((world, folder, damaged)) => {
                        if damaged > 0 {
                            let place = folder.path().display();
                            say_aside(format!("kiseki: the write-back log in {place} is damaged in {damaged} places"));
                        }
                        world
                    }
                    Err(error) => {
                        say_aside(format!(
                            "kiseki: {error}\n  What is only in the write-back log counts as missing below."
                        ));
                        Logged::through(env)
                    }
                }
            }
        };
        let checked = check::run(self.runtime.handle(), &Stop::new(), progress, found, async |progress, found| {
            kiseki_core::client::check::check(&env, &volume, data, progress, found).await
        });
        checked.map_err(|e| Failure::new(format!("cannot check the volume in {}: {}", self.path.display(), e.text)))
    }

    /// Names what could not be done to the store.
    pub(super) fn failed(&self, verb: &str, error: &MetaError) -> Failure {
        failed(verb, &self.path, error)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(e) = self.meta.close() {
            say_aside(format!("kiseki: cannot close the metadata in {}: {e}", self.path.display()));
        }
    }
}

/// Opens the objects of `volume` to read; the place says that it is this volume's.
pub(super) async fn reach_marked(
    volume: &Volume,
    place: &ObjectsPlace,
    credentials: Option<&Credentials>,
    timeout: Duration,
    handle: &Handle,
) -> Outcome<Objects> {
    let objects = reach(place, credentials, Access::Read, timeout, handle).await;
    let objects = objects.map_err(|error| explain_objects(&volume.name, error))?;
    let wrong = |what: String| {
        let hint = match &place {
            ObjectsPlace::Folder(_) => "is the right disk mounted?",
            ObjectsPlace::S3(_) => "is it the right bucket?",
        };
        Failure::with_hint(
            format!("{place} {what}"),
            format!("Volume '{}' keeps its objects there: {hint} Nothing was changed.", volume.name),
        )
    };
    match marker(&objects).await {
        Ok(Ok(id)) if id == volume.id => Ok(objects),
        Ok(Ok(id)) => Err(wrong(format!("holds the objects of another volume ({})", uuid(id)))),
        Ok(Err(DecodeError::Version(version))) => Err(future_version(&place, version)),
        Ok(Err(e)) => Err(wrong(format!("holds a damaged marker ({VOLUME_OBJECT}: {e})"))),
        Err(StoreError::NotFound | StoreError::Short) => {
            Err(wrong(format!("does not hold the volume's marker ({VOLUME_OBJECT})")))
        }
        Err(e) => Err(wrong(format!("cannot be read: {}", why(&objects, &e)))),
    }
}

/// The volume that a prefix says it belongs to.
pub(super) async fn marker(objects: &Objects) -> Result<Result<VolumeId, DecodeError>, StoreError> {
    let len = encode_marker(VolumeId([0; 16])).len() as u64;
    objects.get(VOLUME_OBJECT, 0..len).await.map(|marker| decode_marker(&marker))
}

/// Why a request failed: what the store said, if it said something.
pub(super) fn why(objects: &Objects, error: &StoreError) -> String {
    objects.trouble().map_or_else(|| error.to_string(), |trouble| trouble.text)
}

/// The settings of the volume in the store at `path`; `None` if it holds nothing at all.
pub(super) async fn read_volume(meta: &RocksMeta, path: &Path) -> Outcome<Option<Volume>> {
    let place = path.display();
    let read = meta.read(|read| Ok((read.get(&keys::volume())?, read.scan(&[], &[0xff], 1)?)));
    let (bytes, first) = read.await.map_err(|e| failed("read", path, &e))?;
    let Some(bytes) = bytes else {
        if first.is_empty() {
            return Ok(None);
        }
        return Err(Failure::new(format!(
            "the metadata in {place} is damaged: the settings of its volume are missing"
        )));
    };
    match Volume::decode(&bytes) {
        Ok(volume) => Ok(Some(volume)),
        Err(DecodeError::Version(version)) => Err(future_version(&path.display(), version)),
        Err(e) => Err(Failure::new(format!("the metadata in {place} is damaged: settings of its volume: {e}"))),
    }
}

/// Names what could not be done to the metadata.
pub(super) fn failed(verb: &str, path: &Path, error: &MetaError) -> Failure {
    Failure::new(format!("cannot {verb} the metadata in {}: {error}", path.display()))
}

/// The store holds nothing.
pub(super) fn no_volume(path: &Path) -> Failure {
    Failure::with_hint(
        format!("{} holds no volume", path.display()),
        "Make one: kiseki format META NAME --bucket BUCKET",
    )
}

/// What to do about objects that cannot be reached.
pub(super) fn explain_objects(name: &str, error: ObjectsError) -> Failure {
    let failed = |error: ObjectsError| format!("cannot reach the objects of volume '{name}': {error}");
    match error {
        ObjectsError::Missing(path) => Failure::with_hint(
            format!("the objects of volume '{name}' are missing: there is no folder {}", path.display()),
            "Is the disk that holds them mounted? Nothing was changed.",
        ),
        ObjectsError::Storage(storage) => Failure::with_hint(
            format!("volume '{name}' is stored in \"{storage}\", which this kiseki does not know"),
            "Use a newer kiseki. Nothing was changed.",
        ),
        other @ (ObjectsError::Prefix(_)
        | ObjectsError::Url { .. }
        | ObjectsError::SecretInUrl { .. }
        | ObjectsError::HalfKeys { .. }
        | ObjectsError::NoKeys { .. }
        | ObjectsError::Ca { .. }
        | ObjectsError::NoBucket { .. }
        | ObjectsError::Keys { .. }
        | ObjectsError::Denied { .. }
        | ObjectsError::ClockSkew { .. }
        | ObjectsError::Full { .. }
        | ObjectsError::Unreachable { .. }
        | ObjectsError::Failing { .. }
        | ObjectsError::NotAFolder(_)
        | ObjectsError::Io { .. }
        | ObjectsError::Setup(_)) => Failure::with_hint(failed(other), "Nothing was changed."),
    }
}

/// Made by newer code.
pub(super) fn future_version(place: &dyn Display, version: u32) -> Failure {
    Failure::with_hint(
        format!(
            "the volume in {place} has format version {version}; this kiseki understands versions up to {VOLUME_VERSION}"
        ),
        "Use a newer kiseki. Nothing was changed.",
    )
}

/// What to do about a metadata folder that does not open.
pub(super) fn explain_open(error: &OpenError) -> Failure {
    let hint = match error {
        OpenError::Missing(_) => "Check the path; or make a volume: kiseki format META NAME --bucket BUCKET".into(),
        OpenError::NotAStore(_) => "META is the folder that `kiseki format` made. Nothing was changed.".into(),
        OpenError::Exists(_) => "Choose another folder.".into(),
        OpenError::Locked(path) => in_use(path),
        OpenError::Corrupt { .. } => "Restore the folder from a backup. Nothing was changed.".into(),
        OpenError::Io { .. } => return Failure::new(error.to_string()),
    };
    Failure::with_hint(error.to_string(), hint)
}

/// Who has the store at `path` open.
fn in_use(path: &Path) -> String {
    match status_of(path) {
        Ok(Some(Status { mount: Some(mount), .. })) => {
            format!("It is mounted at {} (pid {}). `kiseki umount` ends that.", mount.mountpoint, mount.pid)
        }
        Ok(_) | Err(_) => "Another kiseki command is at work on it, or a mount that is starting or ending.".into(),
    }
}
