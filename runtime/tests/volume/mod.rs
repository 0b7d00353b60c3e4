//! A volume in a throw-away folder, the command line on it, and ways to fill it and to damage it.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kiseki::env::TokioEnv;
use kiseki::objects::{Access, Objects, Place};
use kiseki::rocks::{OpenError, OpenMode, RocksMeta};
use kiseki_core::client::{Caller, Client, OpenFlags, Options, load_volume};
use kiseki_core::env::MetaStore;
use kiseki_core::kv::{OpResult, Txn};
use kiseki_core::types::{FileType, Ino};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};

/// Name of the volumes made here.
pub const NAME: &str = "test-volume";

/// Longest wait for something that happens in the background.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until `condition` holds; fails when `PATIENCE` is over.
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    within(PATIENCE, what, condition);
}

/// The same with a patience of its own. What is waited for happens in the kernel or in another process, which wake
/// nobody here: it looks every 20 ms.
#[track_caller]
pub fn within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until nobody holds this file's lock, for half a minute at most: flock(2) tells when. Tasks of a mount that has ended may
/// hold it for a moment; or a process that another test is just starting, which has copies of this one's files until it is
/// another program.
pub fn wait_until_free(lock: &Path) {
    let lock = File::open(lock).expect("the lock's file");
    let (free, freed) = mpsc::channel();
    std::thread::spawn(move || {
        let locked = flock(&lock, FlockOperation::LockExclusive);
        drop(lock);
        free.send(locked)
    });
    freed.recv_timeout(Duration::from_secs(30)).expect("it is let go of").expect("a lock");
}

/// One run of the command.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Asserts failure with exit code 1 and texts in the message.
    #[track_caller]
    pub fn fails_with(self, texts: &[&str]) -> Self {
        assert_eq!(self.code, 1, "{self:?}");
        for text in texts {
            assert!(self.stderr.contains(text), "expected \"{text}\": {self:?}");
        }
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs `kiseki` with these arguments.
pub fn kiseki<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiseki"));
    command.args(args).stdin(Stdio::null()).output().expect("kiseki runs").into()
}

/// A folder for one test.
pub struct World {
    dir: TempDir,
}

impl World {
    /// Empty.
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("the folder is there").join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("temporary folders are UTF-8").into()
    }

    /// Metadata folder of the volume.
    pub fn meta(&self) -> String {
        self.text("meta")
    }

    /// Folder of the volume's objects.
    pub fn prefix(&self) -> PathBuf {
        self.path("bucket").join(NAME)
    }

    /// `kiseki format` of the volume.
    pub fn format(&self, more: &[&str]) -> Ran {
        let (meta, bucket) = (self.meta(), self.text("bucket"));
        kiseki(&[&["format", &meta, NAME, "--storage", "file", "--bucket", &bucket], more].concat())
    }

    /// The metadata store of the unmounted volume.
    fn open_meta(&self, handle: &Handle) -> RocksMeta {
        let path = self.path("meta");
        let open = || RocksMeta::open(&path, OpenMode::Existing, handle.clone());
        match open() {
            Err(OpenError::Locked(_)) => {
                wait_until_free(&path.join("kiseki.lock"));
                open().expect("opens")
            }
            opened => opened.expect("opens"),
        }
    }

    /// Runs `op` in a transaction on the unmounted volume.
    pub fn change<T: Send>(&self, op: impl Fn(&mut dyn Txn) -> OpResult<T> + Send + Sync) -> T {
        let runtime = runtime();
        let meta = self.open_meta(runtime.handle());
        let committed = runtime.block_on(meta.write(op)).expect("commits");
        meta.close().expect("closes");
        committed.value
    }

    /// Mounts the volume for `work`, without a mount point.
    pub fn with_client<T, F: Future<Output = T>>(&self, work: impl FnOnce(Client<TokioEnv>) -> F) -> T {
        let runtime = runtime();
        let handle = runtime.handle().clone();
        let meta = self.open_meta(&handle);
        let meta = Arc::new(meta);
        let timeout = Duration::from_secs(60);
        let bucket = self.path("bucket");
        let objects = Objects::open(&Place::Folder(bucket.join(NAME)), None, Access::Write, timeout, handle.clone())
            .expect("opens");
        let env = TokioEnv::new(Arc::clone(&meta), Arc::new(objects), handle);
        let result = runtime.block_on(async {
            load_volume(&env).await.expect("loads");
            let client = Client::mount(env.clone(), Options::default()).await.expect("mounts");
            let result = work(client.clone()).await;
            client.unmount().await.expect("unmounts");
            result
        });
        meta.close().expect("closes");
        result
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads start")
}

/// Who makes files.
pub const CALLER: Caller = Caller { uid: 0, gid: 0, umask: None };

/// Makes the folder `name` in `dir`.
pub async fn mkdir(client: &Client<TokioEnv>, dir: Ino, name: &str) -> Ino {
    let made = client.mknod(CALLER, dir, name.as_bytes(), FileType::Directory, 0o755, 0).await;
    made.expect("makes a folder").ino
}

/// Makes the file `name` in `dir`.
pub async fn write_file(client: &Client<TokioEnv>, dir: Ino, name: &str, contents: &[u8]) -> Ino {
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    let (entry, handle) = client.create(CALLER, dir, name.as_bytes(), 0o644, flags).await.expect("creates");
    for (index, part) in contents.chunks(128 << 10).enumerate() {
        let offset = (index * (128 << 10)) as u64;
        client.write(handle, offset, Bytes::copy_from_slice(part), false).await.expect("writes");
    }
    client.fsync(handle).await.expect("syncs");
    client.release(handle).await.expect("closes");
    entry.ino
}

/// Bytes without a pattern that a block or a frame repeats.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // xorshift64 (Marsaglia, 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// All files below a folder, as (relative path, length).
pub fn files_below(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten() {
            let entry = entry.expect("lists");
            if entry.file_type().expect("has a type").is_dir() {
                left.push(entry.path());
            } else {
                let len = entry.metadata().expect("has a length").len();
                found.push((entry.path().strip_prefix(folder).expect("is below").to_owned(), len));
            }
        }
    }
    found.sort();
    found
}
