//! A volume's stores with a write-back log in front, and a way to wait for them outside tokio, as a FUSE thread does.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use kiseki::env::{TokioEnv, World};
use kiseki::log_folder::{FolderAccess, LogFolder, LogFolderError};
use kiseki::objects::{Access, Objects, Place};
use kiseki::rocks::{OpenMode, RocksMeta};
use kiseki_core::client::{LogMode, LogOptions, Logged};
use kiseki_core::env::{Env, MetaStore};
use kiseki_core::format::values::{VOLUME_VERSION_PLAIN, Volume};
use kiseki_core::meta::{self, OpCtx};
use kiseki_core::types::{Geometry, Timestamp, VolumeId};
use tokio::runtime::Runtime;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on this thread.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// Threads for the stores.
pub fn executor() -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("an executor")
}

/// A volume's stores in folders of `root`, new ones if `mode` says so.
pub fn stores(root: &Path, mode: OpenMode, runtime: &Runtime) -> TokioEnv {
    let access = if mode == OpenMode::Create { Access::Create } else { Access::Write };
    let meta = RocksMeta::open(&root.join("meta"), mode, runtime.handle().clone()).expect("the metadata store");
    let place = Place::Folder(root.join("bucket/volume"));
    let objects = Objects::open(&place, None, access, Duration::from_secs(30), runtime.handle().clone());
    let env = TokioEnv::new(Arc::new(meta), Arc::new(objects.expect("the object store")), runtime.handle().clone());
    if mode == OpenMode::Create {
        let now = Timestamp { secs: 0, nanos: 0 };
        let volume = Volume {
            version: VOLUME_VERSION_PLAIN,
            id: VolumeId([7; 16]),
            name: "volume".into(),
            storage: "file".into(),
            bucket: "bucket".into(),
            geometry: Geometry::DEFAULT,
            capacity: 0,
            inodes: 0,
            created: now,
            acl: false,
            log: None,
            packs: false,
        };
        let ctx = OpCtx { now, stripe: 0, geometry: volume.geometry };
        let formatted = wait(env.meta().write(|txn| meta::volume::format(txn, &ctx, &volume, 0, 0)));
        wait(env.meta().sync(formatted.expect("a volume").seq)).expect("it is synced");
    }
    env
}

/// The same with a log in `root`; it is small, so that segments come and go, and finds no damage.
pub fn with_log(env: TokioEnv, root: &Path, runtime: &Runtime) -> World {
    let options =
        LogOptions { mode: LogMode::Back, size_max: 8 << 20, segment_size: 256 << 10, ..LogOptions::default() };
    let opened = wait(Logged::open(env, open_folder(&root.join("log"), runtime), options)).expect("the log");
    assert_eq!(opened.damage, []);
    opened.env
}

/// Also if tasks of the one before, which has ended, hold the folder for a moment.
pub fn open_folder(path: &Path, runtime: &Runtime) -> LogFolder {
    let open = || LogFolder::open(path, FolderAccess::Create, runtime.handle().clone());
    match open() {
        Err(LogFolderError::InUse(_)) => {
            crate::volume::wait_until_free(&path.join("lock"));
            open().expect("the log's folder")
        }
        opened => opened.expect("the log's folder"),
    }
}
