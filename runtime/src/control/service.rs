//! The answers of a mounted volume.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiseki_core::client::{Client, LogMode};
use kiseki_core::env::Env;
use kiseki_core::errno::Errno;
use kiseki_core::types::Ino;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::protocol::{Checked, Finding, Info, LogView, MountView, Progress, Status, Storing, UsageView};
use super::{Service, ServiceError, Stop, check, view};
use crate::env::World;
use crate::mount::{Ready, Stores};

/// Between two looks at a write-back log that is being emptied, and between two lines about it.
const DRAIN_INTERVAL: Duration = Duration::from_millis(5);
const DRAIN_TOLD: Duration = Duration::from_millis(200);

/// Answers for a client and the place where it is mounted.
pub struct MountService {
    client: Client<World>,
    handle: Handle,
    place: MountPlace,
    stores: Stores,
    leave_log: watch::Sender<bool>,
}

/// What the client does not know of its mount.
#[derive(Clone, Debug)]
struct MountPlace {
    /// The metadata store.
    pub meta: PathBuf,
    /// Where the volume is mounted.
    pub mountpoint: PathBuf,
    /// Whether it takes no writes.
    pub read_only: bool,
    /// Puts under way at once.
    pub max_uploads: usize,
    /// Deadline of waits for the object store.
    pub store_timeout: Duration,
}

impl MountService {
    /// Answers for the mount that is `ready`.
    pub fn new(ready: &Ready<'_>) -> Self {
        let config = ready.config;
        let place = MountPlace {
            meta: config.meta_path.clone(),
            mountpoint: config.mountpoint.clone(),
            read_only: config.read_only,
            max_uploads: config.max_uploads,
            store_timeout: config.store_timeout,
        };
        Self {
            client: ready.client.clone(),
            handle: ready.handle.clone(),
            place,
            stores: ready.stores.clone(),
            leave_log: ready.leave_log.clone(),
        }
    }

    /// Runs `work` unless `stop` comes first.
    fn wait_for<T>(&self, stop: &Stop, work: impl Future<Output = Result<T, Errno>>) -> Result<T, ServiceError> {
        self.handle.block_on(async {
            tokio::select! {
                done = work => done.map_err(failed),
                () = stop.wait() => Err(check::stopped()),
            }
        })
    }

    fn store_error(&self) -> Option<String> {
        self.stores.objects.trouble().map(|trouble| trouble.text)
    }

    fn mode(&self) -> &'static str {
        match &self.stores.log {
            Some(log) if log.mode == LogMode::Back => "back",
            Some(_) | None => "through",
        }
    }

    fn log(&self) -> Option<LogView> {
        let (log, status) = (self.stores.log.as_ref()?, self.stores.env.log_status()?);
        Some(view::log(log, &status, self.stores.env.now()))
    }
}

impl Service for MountService {
    fn status(&self) -> Result<Status, ServiceError> {
        let status = self.handle.block_on(self.client.status()).map_err(failed)?;
        Ok(Status {
            meta: self.place.meta.display().to_string(),
            volume: view::volume(&status.volume),
            usage: UsageView { bytes: status.used_bytes, inodes: status.used_inodes },
            mount: Some(MountView {
                mountpoint: self.place.mountpoint.display().to_string(),
                pid: std::process::id(),
                read_only: self.place.read_only,
                session: status.session.map(|session| session.0),
                uptime_secs: status.uptime.as_secs(),
                open_files: status.open_files,
                buffer_size: status.buffer_size,
                cached_bytes: status.cached_bytes,
                dirty_bytes: status.dirty_bytes,
                dirty_files: status.dirty_files,
                waiting_bytes: status.waiting_bytes,
                uploads: status.uploads,
                deleting: status.deleting,
                last_txn: status.last_txn,
                synced_txn: status.synced_txn,
                mode: self.mode().into(),
                log: self.log(),
                store: view::store(&self.stores.objects, self.place.max_uploads),
            }),
        })
    }

    fn info(&self, ino: u64) -> Result<Info, ServiceError> {
        let ino = Ino(ino);
        let info = self.handle.block_on(self.client.info(ino)).map_err(failed)?;
        Ok(view::info(ino, &info, &self.client.volume().geometry))
    }

    fn check(
        &self,
        data: bool,
        stop: &Stop,
        progress: &(dyn Fn(Progress) + Sync),
        found: &(dyn Fn(Finding) + Sync),
    ) -> Result<Checked, ServiceError> {
        check::run(&self.handle, stop, progress, found, async |progress, found| {
            self.client.check(data, progress, found).await
        })
    }

    fn sync(&self, stop: &Stop) -> Result<(), ServiceError> {
        // Who asks goes on to empty the log, as a rule: what is put from here on is still in memory.
        let _hurrying = Hurrying::begin(&self.stores.env);
        self.wait_for(stop, self.client.sync()).map_err(|error| {
            let uploads = || self.handle.block_on(self.client.status()).map_or(0, |status| status.uploads);
            let why = self.store_error().or_else(|| match uploads() {
                0 => None,
                // Their deadlines are over a moment after that of the whole.
                count => Some(format!("{count} puts are not answered yet")),
            });
            match why {
                Some(why) => ServiceError { text: format!("{}; the object store: {why}", error.text), ..error },
                None => error,
            }
        })
    }

    fn drain(&self, stop: &Stop, progress: &(dyn Fn(Storing) + Sync)) -> Result<(), ServiceError> {
        let Some(log) = self.stores.log.as_ref().filter(|log| log.mode != LogMode::ReadOnly) else { return Ok(()) };
        let began = Instant::now();
        let _hurrying = Hurrying::begin(&self.stores.env);
        // What is staged from here on is not waited for: objects are put in the order in which they were staged.
        let from = self.stores.env.now();
        let (mut told, mut moved, mut least) = (began, began, None);
        loop {
            let Some(backlog) = self.stores.env.log_status().map(|status| status.backlog) else { return Ok(()) };
            let Some(oldest) = backlog.since.filter(|oldest| *oldest < from) else { return Ok(()) };
            if least.replace((oldest, backlog.objects)) != Some((oldest, backlog.objects)) {
                moved = Instant::now();
            }
            if moved.elapsed() >= self.place.store_timeout {
                let why = self.store_error().unwrap_or_else(|| "its puts are not answered".into());
                let (folder, place) = (log.folder.path().display(), self.stores.objects.place());
                let (objects, bytes) = (backlog.objects, backlog.bytes);
                return Err(ServiceError {
                    errno: Errno::EIO.0,
                    text: format!(
                        "{objects} objects ({bytes} bytes) in the write-back log at {folder} are not taken by the object store at {place}: {why}"
                    ),
                });
            }
            if told.elapsed() >= DRAIN_TOLD {
                told = Instant::now();
                progress(self.storing());
            }
            self.wait_for(stop, async {
                tokio::time::sleep(DRAIN_INTERVAL).await;
                Ok(())
            })?;
        }
    }

    fn leave_log(&self) {
        self.leave_log.send_replace(true);
    }

    fn storing(&self) -> Storing {
        let bytes = self.handle.block_on(self.client.status()).map_or(0, |status| status.dirty_bytes);
        let backlog = self.stores.env.log_status().map(|status| status.backlog).unwrap_or_default();
        Storing { bytes, log_objects: backlog.objects, log_bytes: backlog.bytes, error: self.store_error() }
    }
}

fn failed(errno: Errno) -> ServiceError {
    let text = std::io::Error::from_raw_os_error(errno.0).to_string();
    ServiceError { errno: errno.0, text }
}

/// While it lives, nothing waits in the write-back log for more to come.
struct Hurrying<'a>(&'a World);

impl<'a> Hurrying<'a> {
    fn begin(world: &'a World) -> Self {
        world.hurry(true);
        Self(world)
    }
}

impl Drop for Hurrying<'_> {
    fn drop(&mut self) {
        self.0.hurry(false);
    }
}
