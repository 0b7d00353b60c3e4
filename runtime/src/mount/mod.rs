//! The life of a mount: checks, mounting, serving, unmounting, in the foreground or as a daemon.
//!
//! Owns: the order in which things start and end, signals, the log. Leaves to others: what is served (`fuse`), the
//! stores (its caller opens them), the control socket (its caller starts and ends it), what is stored at the end
//! (`ending`).
//!
//! Invariants
//! - The kernel's connection ends before the last flush, so nothing is accepted after it.
//! - The threads that serve, the control socket, the client and the executor end before the stores close: a process
//!   that exits while a thread uses RocksDB aborts.

mod daemon;
mod ending;
mod options;
mod point;
mod session;
pub mod table;

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{anyhow, bail};
use kiseki_core::client::{Client, LogMode, MountError};
use kiseki_core::errno::Errno as CoreErrno;
use kiseki_core::types::{FileType, Ino};
use rustix::process::{Resource, Rlimit};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tracing::{debug, error, info};
use tracing_subscriber::EnvFilter;

use crate::env::World;
use crate::fuse::Adapter;
use crate::load::Load;
use crate::log_folder::LogFolder;
use crate::memory;
use crate::objects::{Objects, Place};
use ending::{Interrupts, Waiting};
use options::Options;
use session::Serving;

/// How long tasks that still wait for the stores are given when all is done.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(10);

/// How often it is looked whether the disk of the write-back log has space for what is kept there to be read.
const SPACE_TICK: Duration = Duration::from_secs(5);
/// How often it is decided how much memory is kept, and after how many of these without a write the kernel may have it.
const MEMORY_TICK: Duration = Duration::from_millis(200);
const MEMORY_IDLE_TICKS: u32 = 300;

/// What to mount, where and how.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// Folder of the metadata store.
    pub meta_path: PathBuf,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// Return once the mount answers, and serve it in the background.
    pub daemon: bool,
    /// Take no writes.
    pub read_only: bool,
    /// The directory of the volume that is mounted; `None`: its root.
    pub subdir: Option<PathBuf>,
    /// Memory for dirty bytes and cached blocks.
    pub buffer_size: u64,
    /// Age at which dirty bytes are flushed.
    pub commit_interval: Duration,
    /// Deadline of every wait for a store.
    pub store_timeout: Duration,
    /// Puts under way at once.
    pub max_uploads: usize,
    /// Where to log to; `None`: standard error, or for a daemon a file of its own.
    pub log: Option<PathBuf>,
    /// The values of `-o`.
    pub options: Vec<String>,
}

/// The stores of a volume, open.
#[derive(Clone)]
pub struct Stores {
    /// The world that the client works in.
    pub env: World,
    /// Where it counts requests.
    pub(crate) load: Arc<Load>,
    /// The object store of that world: how it does is told to the person who waits for it.
    pub objects: Arc<Objects>,
    /// The write-back log of that world, if there is one.
    pub log: Option<MountLog>,
}

/// What the world does not tell of its write-back log.
#[derive(Clone)]
pub struct MountLog {
    /// Where it is.
    pub folder: LogFolder,
    /// How it is used.
    pub mode: LogMode,
    /// Places in it that were durable and are not readable.
    pub damaged: usize,
}

/// What is there once a mount answers.
pub struct Ready<'a> {
    /// The mounted volume.
    pub client: &'a Client<World>,
    /// Its stores.
    pub stores: &'a Stores,
    /// To be set when what is in the write-back log at the end shall stay there for the next mount.
    pub leave_log: &'a watch::Sender<bool>,
    /// With absolute paths.
    pub config: &'a MountConfig,
    /// The executor.
    pub handle: &'a Handle,
}

/// Mounts and serves a volume until it is unmounted or a signal comes; then stores everything. A daemon's caller returns
/// as soon as the mount answers.
///
/// `open` opens the stores; a signal gives it up. `on_ready` is called when the mount answers, and returns what to call
/// at the end, when all is stored (`Ok`); it must then let go of the client. Both get the configuration with absolute
/// paths. A process calls this before it has made any thread.
pub fn run<F>(
    config: MountConfig,
    open: impl AsyncFnOnce(&MountConfig, &Handle) -> anyhow::Result<Stores>,
    on_ready: impl FnOnce(Ready<'_>) -> anyhow::Result<F>,
) -> anyhow::Result<()>
where
    F: FnOnce(Result<(), String>),
{
    let mut options = Options::parse(&config.options)?;
    options.read_only |= config.read_only;
    let config = settle(config, &options)?;
    if config.daemon && !daemon::is_child() {
        return daemon::start(&config.log.unwrap_or_else(|| daemon::default_log(&config.meta_path)));
    }
    let mut report = if config.daemon { Some(daemon::Report::open()?) } else { None };
    let result = mount(&config, &options, open, on_ready, || {
        if let Some(report) = report.take() {
            report.ready();
        }
    });
    if let (Err(error), Some(report)) = (&result, report) {
        report.failed(error);
    }
    result
}

/// Checks what can be checked before anything is opened, and makes all paths absolute: a daemon works elsewhere.
fn settle(mut config: MountConfig, options: &Options) -> anyhow::Result<MountConfig> {
    config.read_only = options.read_only;
    config.meta_path = std::path::absolute(&config.meta_path)?;
    config.log = config.log.map(std::path::absolute).transpose()?;
    config.mountpoint = point::prepare(&config.mountpoint, options.nonempty)?;
    if config.meta_path.canonicalize().is_ok_and(|meta| meta.starts_with(&config.mountpoint)) {
        bail!("the metadata store {} lies below the mount point: it would be hidden", config.meta_path.display());
    }
    Ok(config)
}

fn mount<F>(
    config: &MountConfig,
    options: &Options,
    open: impl AsyncFnOnce(&MountConfig, &Handle) -> anyhow::Result<Stores>,
    on_ready: impl FnOnce(Ready<'_>) -> anyhow::Result<F>,
    answers: impl FnOnce(),
) -> anyhow::Result<()>
where
    F: FnOnce(Result<(), String>),
{
    start_log(config)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("kiseki").build()?;
    // From here on a signal does not end the process by itself.
    let mut interrupts = runtime.block_on(async { Interrupts::new() })?;
    // The object store may take its time to answer, or not to.
    let stores = runtime.block_on(async {
        tokio::select! {
            opened = open(config, runtime.handle()) => opened,
            name = interrupts.next() => Err(anyhow!("ended by {name} before anything was mounted")),
        }
    })?;
    end_process_on_panic();
    let client_options = kiseki_core::client::Options {
        buffer_size: config.buffer_size,
        commit_interval: config.commit_interval,
        store_timeout: config.store_timeout,
        read_only: config.read_only,
        max_uploads: config.max_uploads,
        atime: options.atime,
        ..kiseki_core::client::Options::default()
    };
    let client = runtime.block_on(Client::mount(stores.env.clone(), client_options));
    let client = client.map_err(|error| {
        runtime.block_on(ending::leave_log(&stores));
        explain(&error, config, &stores.objects)
    })?;
    let keeper = runtime.spawn(keep_memory(client.clone(), config.buffer_size));
    let space_keeper = stores.log.as_ref().map(|log| runtime.spawn(keep_space(log.folder.clone())));
    let leave_log = watch::Sender::new(false);
    let ready = Ready { client: &client, stores: &stores, leave_log: &leave_log, config, handle: runtime.handle() };
    let result = match runtime.block_on(root_of(&client, config.subdir.as_deref())) {
        Ok(root) => serve(ready, root, options, &runtime, &mut interrupts, on_ready, answers),
        Err(error) => {
            ending::abandon(&runtime, &client, &stores);
            Err(error)
        }
    };
    // In this order: see the invariants above.
    for task in [Some(keeper), space_keeper].into_iter().flatten() {
        task.abort();
        _ = runtime.block_on(task);
    }
    drop((client, stores));
    runtime.shutdown_timeout(SHUTDOWN_WAIT);
    result
}

/// Memory that blocks have given back is kept for the next ones; if the mount has been idle for long, unless the kernel
/// needs it.
async fn keep_memory(client: Client<World>, buffer_size: u64) {
    let mut ticks = tokio::time::interval(MEMORY_TICK);
    let (mut before, mut idle) = (0, 0_u32);
    loop {
        ticks.tick().await;
        let used = client.used_memory();
        idle = if used == before { idle.saturating_add(1) } else { 0 };
        // Blocks may be given back a moment before they count as such.
        memory::keep(buffer_size as usize, used.min(before) as usize);
        if idle == MEMORY_IDLE_TICKS {
            memory::offer();
        }
        before = used;
    }
}

/// Other users of the disk come before what is kept of the write-back log to be read.
async fn keep_space(folder: LogFolder) {
    let mut ticks = tokio::time::interval(SPACE_TICK);
    loop {
        ticks.tick().await;
        let folder = folder.clone();
        _ = tokio::task::spawn_blocking(move || folder.make_room()).await;
    }
}

/// The directory of the volume at `subdir`. No symbolic link on the way is followed. Its lookups are never forgotten:
/// the kernel holds the root of a mount.
async fn root_of(client: &Client<World>, subdir: Option<&Path>) -> anyhow::Result<Ino> {
    let mut root = Ino::ROOT;
    let Some(subdir) = subdir else { return Ok(root) };
    let failed = |what: &dyn std::fmt::Display| anyhow!("cannot mount --subdir {}: {what}", subdir.display());
    for part in subdir.components() {
        let name = match part {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(name) => name,
            Component::ParentDir | Component::Prefix(_) => return Err(failed(&"a path without '..' is needed")),
        };
        root = match client.lookup(root, name.as_bytes()).await {
            Ok(entry) if entry.attr.kind == FileType::Directory => entry.ino,
            Ok(_) | Err(CoreErrno::ENOTDIR) => return Err(failed(&format!("{} is not a directory", name.display()))),
            Err(CoreErrno::ENOENT) => {
                return Err(failed(&format!(
                    "the volume has no {} there; mount it whole and make the directory first",
                    name.display()
                )));
            }
            Err(errno) => return Err(failed(&std::io::Error::from_raw_os_error(errno.0))),
        };
    }
    Ok(root)
}

/// From the mounted client to the flushed one.
fn serve<F>(
    ready: Ready<'_>,
    root: Ino,
    options: &Options,
    runtime: &Runtime,
    interrupts: &mut Interrupts,
    on_ready: impl FnOnce(Ready<'_>) -> anyhow::Result<F>,
    answers: impl FnOnce(),
) -> anyhow::Result<()>
where
    F: FnOnce(Result<(), String>),
{
    let Ready { client, stores, leave_log, config, handle: _ } = ready;
    let mut waiting = Waiting { interrupts, client, stores, leave_log };
    let path = &config.mountpoint;
    let adapter = Adapter::new(client.clone(), root, options.atime, runtime.handle().clone(), Arc::clone(&stores.load));
    let started = Serving::start(adapter, options, &config.meta_path, path);
    let mut serving = match started {
        Ok(serving) => serving,
        Err(error) => {
            ending::abandon(runtime, client, stores);
            return Err(error);
        }
    };
    let finish = match point::wait_until_it_answers(path).and_then(|()| on_ready(ready)) {
        Ok(finish) => finish,
        Err(error) => {
            ending::end_connection(config, runtime, &mut waiting, &mut serving);
            runtime.block_on(waiting.store());
            runtime.block_on(ending::leave_log(stores));
            return Err(error);
        }
    };
    point::raise_readahead(path);
    if config.daemon {
        // Or the folder that it was started in could not be unmounted.
        std::env::set_current_dir("/")?;
    }
    info!(volume = %client.volume().name, meta = %config.meta_path.display(), point = %path.display(), "mounted");
    answers();
    let interrupted = runtime.block_on(async {
        tokio::select! {
            () = serving.ended() => None,
            name = waiting.interrupts.next() => Some(name),
        }
    });
    match interrupted {
        Some(name) => {
            info!(signal = name, point = %path.display(), "unmounting");
            ending::end_connection(config, runtime, &mut waiting, &mut serving);
        }
        None => {
            info!(point = %path.display(), "unmounted by request");
            serving.clear(path);
        }
    }
    runtime.block_on(waiting.store());
    finish(runtime.block_on(waiting.drain()));
    Ok(())
}

fn explain(error: &MountError, config: &MountConfig, objects: &Objects) -> anyhow::Error {
    let meta = config.meta_path.display();
    let place = objects.place();
    match error {
        MountError::NoVolume => {
            anyhow!("{meta} holds no volume; make one first: kiseki format {meta} NAME --bucket BUCKET")
        }
        MountError::WrongBucket { .. } => match place {
            Place::Folder(_) => {
                anyhow!("{error}; is the right disk mounted where the bucket of {meta} is? It should be in {place}")
            }
            Place::S3(_) => anyhow!("{error}; the objects of {meta} should be at {place}"),
        },
        MountError::Version(_) => anyhow!("{error}; use a newer kiseki"),
        MountError::Store(_) => {
            let why = ending::trouble(objects).map(|text| format!(": {text}")).unwrap_or_default();
            anyhow!("cannot mount the volume of {meta}: {error}, at {place}{why}")
        }
        MountError::Meta(_) => anyhow!("cannot mount the volume of {meta}: {error}"),
    }
}

/// Starts the log. What it holds is set by `KISEKI_LOG` (in the syntax of tracing); a caller that has its own log
/// keeps it.
fn start_log(config: &MountConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("KISEKI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    let set = match &config.log {
        // A daemon's standard error is its log.
        Some(path) if !config.daemon => {
            log.with_ansi(false).with_writer(Mutex::new(daemon::open_log(path)?)).try_init()
        }
        Some(_) | None => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            log.with_ansi(ansi).with_writer(std::io::stderr).try_init()
        }
    };
    if set.is_err() {
        debug!("the log was set up already");
    }
    Ok(())
}

/// RocksDB keeps its files open, and the default limit of 1024 descriptors is for programs that use select(2).
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        debug!(%error, "the number of open files stays limited");
    }
}

/// A panic is a broken invariant: the process ends before it can do harm, as in a crash, for which the volume is made.
/// Only the threads of the control socket may panic alone.
fn end_process_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let thread = std::thread::current();
        error!(thread = thread.name().unwrap_or("?"), "{panic}");
        if !thread.name().is_some_and(|name| name.starts_with("control")) {
            std::process::abort();
        }
    }));
}
