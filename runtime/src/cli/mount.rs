//! `kiseki mount`: serves a volume at a mount point, in the foreground or (`-d`) in the background.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, value_parser};
use tokio::runtime::Handle;

use super::access::{Address, KEYS_HELP, Keys};
use super::open::{explain_objects, explain_open, reach, reach_marked, read_volume};
use super::output::{Done, Failure, Meter, Outcome, say};
use super::place;
use super::values::{duration, size};
use super::writeback::{LogArgs, Mounting};
use crate::control::{MountService, Server};
use crate::env::TokioEnv;
use crate::mount::{MountConfig, Ready, Stores};
use crate::objects::Access;
use crate::rocks::{OpenMode, RocksMeta};

const EXAMPLES: &str = "\
Examples:
  kiseki mount -d /srv/kiseki/meta /mnt/kiseki
  kiseki mount --read-only --subdir /home/me /srv/kiseki/meta /mnt/kiseki
  kiseki mount -d --buffer-size 2G --commit-interval 10s /srv/kiseki/meta /mnt/kiseki

  MinIO or AWS:
  export KISEKI_ACCESS_KEY=minioadmin KISEKI_SECRET_KEY=minioadmin
  kiseki mount -d --max-uploads 32 --store-timeout 1m /srv/kiseki/meta /mnt/kiseki
  kiseki mount -d --bucket http://proxy:8080/my-bucket /srv/kiseki/meta /mnt/kiseki    (another way there)
  kiseki mount -d --cache-dir /nvme/kiseki-log --writeback-size 50G /srv/kiseki/meta /mnt/kiseki
  kiseki mount -d --mode through /srv/kiseki/meta /mnt/kiseki

Without -d the command serves the mount until it is unmounted or gets SIGINT or SIGTERM, which unmount cleanly. With
-d it returns 0 once the mount answers; otherwise it prints why not.

What is written is made durable after --commit-interval at the latest, when memory runs short, and at fsync(2), which
returns once the file survives a power cut of this machine. A mount that was killed needs no repair: mount the volume
again.

In --mode back (the default) written data is durable once it is in the write-back log, a folder on a local disk; from
there it goes into the object store in the background, in order, and `kiseki umount` waits for that. Until then it is on
that disk alone: if the disk is lost, what was not in the object store yet is lost with it, also what fsync has
acknowledged. The volume knows where its log is, and is not mounted without it. With --mode through nothing is durable
before the object store has it. With the objects in a local folder, large blocks (from 1M) skip the log.

While the object store does not answer, what is in memory and in the log is served, and the log takes what is written
until it is full; then, as in --mode through, what is written is kept in memory and tried again, and an operation that
waits for the store fails after --store-timeout. `kiseki status` shows how the store does and what it still lacks. A
mount whose store cannot be reached at the start is not made.

Options for -o: allow_other (the default when root mounts), allow_root, nonempty, ro, rw, [no]dev, [no]suid, [no]exec,
sync, async, dirsync, relatime (the default), noatime, strictatime. Permissions are always checked by the kernel
(default_permissions). With strictatime every read comes to this process, past the kernel's page cache.

At boot: with links to kiseki as /sbin/mount.fuse.kiseki and /sbin/umount.fuse.kiseki, a line of /etc/fstab is
  kiseki:/srv/kiseki/meta  /mnt/kiseki  fuse.kiseki  noatime,buffer-size=1G,_netdev  0  0
in which each long flag of this command can be an option; `mount /mnt/kiseki` returns once the mount answers, `umount
/mnt/kiseki` once everything is stored. Keys come from a file there: env-file=/etc/kiseki/keys.

The environment variable KISEKI_LOG sets what is logged: error, warn, info (the default), debug, trace.";

/// Least memory for written data: the blocks of a few files at once, and a cache.
const BUFFER_SIZE_MIN: u64 = 64 << 20;

/// Mount a volume
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{KEYS_HELP}"))]
pub(super) struct MountArgs {
    /// The metadata store: the path of a folder, or rocksdb://PATH
    meta: OsString,
    /// Where to mount: an empty folder
    mountpoint: PathBuf,
    /// Serve in the background; return once the mount answers
    #[arg(short, long)]
    daemon: bool,
    /// Take no writes
    #[arg(long)]
    read_only: bool,
    /// Mount only this directory of the volume, which must exist
    #[arg(long, value_name = "PATH")]
    subdir: Option<PathBuf>,
    /// Memory for written data and cached blocks together [default: an eighth of this machine's, from 256M to 2G]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    buffer_size: Option<u64>,
    /// How long written data may stay in memory only
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s")]
    commit_interval: Duration,
    /// How long to wait for the object store before an operation fails; nothing that was written is dropped then
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5m")]
    store_timeout: Duration,
    /// Objects that are put at once, at most
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u16).range(1..=64), default_value = "16")]
    max_uploads: u16,
    #[command(flatten)]
    writeback: LogArgs,
    #[command(flatten)]
    address: Address,
    #[command(flatten)]
    keys: Keys,
    /// Log to this file [default: standard error; with -d /var/log/kiseki.log, or ~/.kiseki/META.log for a user]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Mount options, as for mount(8)
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    options: Vec<String>,
}

/// A write buffer holds a burst that the store takes seconds for; a small machine has other uses for its memory.
fn default_buffer_size() -> u64 {
    let system = rustix::system::sysinfo();
    let memory = u64::from(system.mem_unit) * system.totalram;
    (memory / 8).clamp(256 << 20, 2 << 30)
}

pub(super) fn run(args: MountArgs) -> Outcome {
    let meta_path = place::meta_path(&args.meta)?;
    let buffer_size = args.buffer_size.unwrap_or_else(default_buffer_size);
    if buffer_size < BUFFER_SIZE_MIN {
        return Err(Failure::Usage("--buffer-size is at least 64M".into()));
    }
    if args.commit_interval.is_zero() || args.store_timeout.is_zero() {
        return Err(Failure::Usage("--commit-interval and --store-timeout are longer than nothing".into()));
    }
    args.writeback.check()?;
    let config = MountConfig {
        meta_path,
        mountpoint: args.mountpoint,
        daemon: args.daemon,
        read_only: args.read_only,
        subdir: args.subdir,
        buffer_size,
        commit_interval: args.commit_interval,
        store_timeout: args.store_timeout,
        max_uploads: args.max_uploads.into(),
        log: args.log,
        options: args.options,
    };
    let mountpoint = config.mountpoint.display().to_string();
    let daemon = config.daemon;
    let reaching = Reaching { address: args.address, keys: args.keys, writeback: args.writeback };
    let open = async |config: &MountConfig, handle: &Handle| reaching.open(config, handle).await;
    let meter = daemon.then(|| {
        let meter = Meter::new();
        meter.spin(format!("mounting {mountpoint}"));
        meter
    });
    let mounted = crate::mount::run(config, open, serve_control);
    if let Some(meter) = meter {
        meter.clear();
    }
    mounted.map_err(|error| match error.downcast::<Failure>() {
        Ok(failure) => failure,
        Err(error) => Failure::new(format!("{error:#}")),
    })?;
    if daemon {
        say(format!("mounted at {mountpoint}"));
    }
    if daemon && reaching.writeback.abandons() {
        say(format!("`kiseki fsck {mountpoint} --data` names the files that lack what was in the write-back log only"));
    }
    Ok(Done::Clean)
}

/// What the command line says of the stores.
struct Reaching {
    address: Address,
    keys: Keys,
    writeback: LogArgs,
}

impl Reaching {
    /// Opens the stores of a volume; the object store answers and takes the keys.
    async fn open(&self, config: &MountConfig, handle: &Handle) -> anyhow::Result<Stores> {
        let meta = &config.meta_path;
        let store = RocksMeta::open(meta, OpenMode::Existing, handle.clone()).map_err(|e| explain_open(&e))?;
        let Some(volume) = read_volume(&store, meta).await? else {
            return Err(super::open::no_volume(meta).into());
        };
        let place = self.address.of(&volume)?;
        let credentials = self.keys.of(&place)?;
        let credentials = credentials.as_ref();
        // To read first: nothing is written, not even to try, to a place that is not this volume's.
        let mut objects = reach_marked(&volume, &place, credentials, config.store_timeout, handle).await?;
        if !config.read_only {
            let writable = reach(&place, credentials, Access::Write, config.store_timeout, handle).await;
            objects = writable.map_err(|e| explain_objects(&volume.name, e))?;
        }
        let objects = Arc::new(objects);
        let env = TokioEnv::new(Arc::new(store), Arc::clone(&objects), handle.clone());
        let mounting = Mounting {
            volume: &volume,
            meta,
            mountpoint: &config.mountpoint,
            objects: &place,
            read_only: config.read_only,
            max_uploads: config.max_uploads,
            handle,
        };
        let load = Arc::clone(env.load());
        let (env, log) = self.writeback.open(env, &mounting).await?;
        Ok(Stores { env, load, objects, log })
    }
}

/// Starts the control socket of a mount that answers; what is returned ends it.
fn serve_control(ready: Ready<'_>) -> anyhow::Result<impl FnOnce(Result<(), String>) + use<>> {
    let meta = &ready.config.meta_path;
    let server = Server::start(meta, MountService::new(&ready));
    let server =
        server.map_err(|e| Failure::new(format!("cannot make the control socket in {}: {e}", meta.display())))?;
    Ok(move |outcome| server.finish(outcome))
}
