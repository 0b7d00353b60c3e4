//! The answers of a mounted volume.

use std::path::PathBuf;
use std::sync::Arc;

use kiseki_core::client::Client;
use kiseki_core::env::Env;
use kiseki_core::errno::Errno;
use kiseki_core::types::Ino;
use tokio::runtime::Handle;

use super::protocol::{Checked, Finding, Info, MountView, Progress, Status, UsageView};
use super::{Service, ServiceError, Stop, check, view};
use crate::objects::Objects;

/// Answers for a client and the place where it is mounted.
pub struct MountService<E: Env> {
    client: Client<E>,
    handle: Handle,
    place: MountPlace,
    objects: Arc<Objects>,
}

/// What the client does not know of its mount.
#[derive(Clone, Debug)]
pub struct MountPlace {
    /// The metadata store.
    pub meta: PathBuf,
    /// Where the volume is mounted.
    pub mountpoint: PathBuf,
    /// Whether it takes no writes.
    pub read_only: bool,
    /// Puts under way at once.
    pub max_uploads: usize,
}

impl<E: Env> MountService<E> {
    /// Answers for `client`, whose tasks run on `handle` and whose object store is `objects`.
    pub fn new(client: Client<E>, objects: Arc<Objects>, handle: Handle, place: MountPlace) -> Self {
        Self { client, handle, place, objects }
    }
}

impl<E: Env> MountService<E> {
    /// Runs `work` unless `stop` comes first.
    fn wait_for<T>(&self, stop: &Stop, work: impl Future<Output = Result<T, Errno>>) -> Result<T, ServiceError> {
        self.handle.block_on(async {
            tokio::select! {
                done = work => done.map_err(failed),
                () = stop.wait() => Err(check::stopped()),
            }
        })
    }
}

impl<E: Env> Service for MountService<E> {
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
                last_txn: status.last_txn,
                synced_txn: status.synced_txn,
                store: view::store(&self.objects, self.place.max_uploads),
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

    fn dirty_bytes(&self) -> u64 {
        self.handle.block_on(self.client.status()).map_or(0, |status| status.dirty_bytes)
    }

    fn store_error(&self) -> Option<String> {
        self.objects.trouble().map(|trouble| trouble.text)
    }
}

fn failed(errno: Errno) -> ServiceError {
    let text = std::io::Error::from_raw_os_error(errno.0).to_string();
    ServiceError { errno: errno.0, text }
}
