//! The write-back log of a volume: which folder it is, how it is used, and what to do when it cannot be.
//!
//! Owns: the flags about it, telling its folder, opening it for a mount or for a command that looks at a volume.
//! Leaves to others: the log itself (`kiseki_core::client::Logged`), its files (`log_folder`).
//!
//! The volume says that it has a log, and where that was last used; the folder says whose it is. By default it lies in
//! the folder of the metadata store, as the control socket does: on a local disk, and whoever moves or copies the one
//! has the other with it.

use std::fmt::Display;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use kiseki_core::client::{LogError, LogMode, LogOptions, Logged, Pace};
use kiseki_core::env::{Env, MetaStore};
use kiseki_core::format::log::Owner;
use kiseki_core::format::values::{LogHome, Volume};
use kiseki_core::meta;
use tokio::runtime::Handle;

use super::open::failed;
use super::output::{Context, Failure, Outcome, say_aside};
use super::place::absolute;
use super::values::{show_size, size};
use crate::env::{TokioEnv, World};
use crate::log_folder::{FolderAccess, LARGE, LogFolder, LogFolderError};
use crate::mount::MountLog;
use crate::objects::Place;

/// Name of the folder inside that of the metadata store.
const NAME: &str = "writeback";
/// Of a log whose size nobody has chosen: at most, and at most this share of what its disk has left.
const SIZE_DEFAULT: u64 = 10 << 30;
const SHARE: u64 = 2;
/// Least size of a log: some segments of useful size.
const SIZE_MIN: u64 = 16 << 20;
/// Largest segment. A segment goes when all its objects are in the store: smaller ones go sooner.
const SEGMENT_MAX: u64 = 64 << 20;
/// Objects of this size and more go to a folder directly: it is a disk as the log's is, and writing them twice only
/// takes time.
const DIRECT_FROM: u64 = 1 << 20;

/// What is as long as that is put from memory, if the cache has it yet: reading 1 GiB back from the log beside MinIO, on the
/// same disk, takes 0.5 of 4 seconds.
const HELD_FROM: u64 = 1 << 20;

/// Uploads leave the machine to those who write and read, and for so long after the last of them. Writing 1 GiB beside
/// MinIO on two processors, medians of three rounds, reached 0.35 of what writing to nothing does with all uploads at once,
/// and 0.50 with one.
const QUIET_AFTER: Duration = Duration::from_secs(1);
/// So long they leave it to them altogether, from the first of them on: reading 4 KiB at random beside one upload to MinIO
/// reached 0.26 of what ext4 does, and 0.8 beside none.
const BURST: Duration = Duration::from_secs(5);

/// A pack has 4 MiB: what is as large as that gains nothing from one.
const PACK_BELOW_MAX: u64 = 4 << 20;

/// What a mount does with its write-back log.
#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// When written data is durable, as fsync(2) means it: once it is in the write-back log on the local disk (back), or
    /// once it is in the object store (through)
    #[arg(long, value_enum, default_value = "back")]
    mode: Mode,
    #[command(flatten)]
    dir: CacheDir,
    /// Size of the write-back log, at most; what comes while it is full goes to the object store directly [default: 10G,
    /// but no more than half of what the disk has left]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    writeback_size: Option<u64>,
    /// Small blocks travel to the object store together, in packs: those of less than this; 0 turns that off. Only what is
    /// in the write-back log is packed
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = size)]
    pack_below: u64,
    /// Mount although the write-back log that the volume has is lost: what was only there is lost for good then
    #[arg(long)]
    abandon_writeback: bool,
}

/// Where the write-back log is.
#[derive(Debug, Args)]
pub(super) struct CacheDir {
    /// Folder of the write-back log, on a local disk [default: writeback in META]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// In the write-back log on the local disk
    Back,
    /// In the object store
    Through,
}

/// A volume about to be mounted.
pub(super) struct Mounting<'a> {
    pub(super) volume: &'a Volume,
    pub(super) meta: &'a Path,
    pub(super) mountpoint: &'a Path,
    pub(super) objects: &'a Place,
    pub(super) read_only: bool,
    pub(super) max_uploads: usize,
    pub(super) handle: &'a Handle,
}

impl LogArgs {
    /// Checks what can be checked before anything is opened.
    pub(super) fn check(&self) -> Outcome<()> {
        if self.writeback_size.is_some_and(|size| size < SIZE_MIN) {
            return Err(Failure::Usage(format!("--writeback-size is at least {}", show_size(SIZE_MIN))));
        }
        if PACK_BELOW_MAX < self.pack_below {
            return Err(Failure::Usage(format!("--pack-below is at most {}", show_size(PACK_BELOW_MAX))));
        }
        Ok(())
    }

    /// Whether the volume is to be mounted without the log that it has.
    pub(super) fn abandons(&self) -> bool {
        self.abandon_writeback
    }

    /// The world of the mount.
    pub(super) async fn open(&self, env: TokioEnv, mounting: &Mounting<'_>) -> Outcome<(World, Option<MountLog>)> {
        let Mounting { volume, meta, read_only, handle, .. } = *mounting;
        let mut home = volume.log.clone();
        if self.abandon_writeback
            && let Some(lost) = &home
        {
            if read_only {
                let text = "--abandon-writeback changes the volume: it does not go with --read-only";
                return Err(Failure::Usage(text.into()));
            }
            self.abandon(&env, mounting, lost).await?;
            home = None;
        }
        let mode = match (self.mode, &home) {
            (_, Some(_)) if read_only => LogMode::ReadOnly,
            (Mode::Through, Some(_)) => LogMode::Drain,
            (Mode::Back, _) if !read_only => LogMode::Back,
            (Mode::Back | Mode::Through, _) => {
                let world = Logged::through(env);
                if !read_only {
                    let tended = world.tend().await;
                    tended
                        .map_err(|e| Failure::new(format!("cannot look after the packs of '{}': {e}", volume.name)))?;
                }
                return Ok((world, None));
            }
        };
        let path = self.dir.of(meta, volume, home.as_ref())?;
        let access = match (mode, &home) {
            (LogMode::ReadOnly, _) => FolderAccess::Read,
            // A folder that is made where a disk should be mounted would only hide that it is not.
            (LogMode::Back | LogMode::Drain, Some(_)) => FolderAccess::Write,
            (LogMode::Back | LogMode::Drain, None) => FolderAccess::Create,
        };
        self.check_place(&path, mounting)?;
        let folder = LogFolder::open(&path, access, handle.clone());
        let folder = folder.map_err(|error| explain_folder(&volume.name, &error, home.as_ref()))?;
        let (free, bytes) = folder.space().context(|| format!("look at the disk of {}", folder.path().display()))?;
        let options = self.options(mode, &folder, (free, bytes), mounting);
        let size_max = options.size_max;
        // 10 GiB take some ten seconds.
        tracing::info!(folder = %folder.path().display(), bytes, "reading the write-back log");
        let opened = Logged::open(env, folder.clone(), options).await;
        let opened = opened.map_err(|error| explain(&volume.name, &error, &folder))?;
        let left = opened.env.log_status().map(|status| status.backlog).unwrap_or_default();
        let place = folder.path().display();
        match mode {
            LogMode::Back => {
                tracing::info!(folder = %place, size_max, objects = left.objects, bytes = left.bytes, "write-back log");
            }
            LogMode::Drain | LogMode::ReadOnly => {
                let (objects, bytes) = (left.objects, left.bytes);
                tracing::info!(folder = %place, objects, bytes, ?mode, "write-back log of earlier mounts");
            }
        }
        Ok((opened.env, Some(MountLog { folder, mode, damaged: opened.damage.len() })))
    }

    /// Of a disk with so many bytes that are free and that the log has taken.
    fn options(
        &self,
        mode: LogMode,
        folder: &LogFolder,
        (free, taken): (u64, u64),
        mounting: &Mounting<'_>,
    ) -> LogOptions {
        let path = folder.path();
        let size_max = match self.writeback_size {
            Some(size) => {
                if free + taken < size {
                    tracing::warn!(folder = %path.display(), free, size, "the disk has less space than the write-back log may take");
                }
                size
            }
            None => SIZE_DEFAULT.min((free + taken) / SHARE).max(SIZE_MIN),
        };
        LogOptions {
            mode,
            size_max,
            segment_size: SEGMENT_MAX.min(size_max / 8),
            // A folder is as near as the log.
            keep: matches!(mounting.objects, Place::S3(_)),
            paged_from: LARGE,
            held_from: HELD_FROM,
            direct_from: match mounting.objects {
                Place::Folder(_) => DIRECT_FROM,
                Place::S3(_) => u64::MAX,
            },
            pace: Pace {
                uploads: mounting.max_uploads,
                beside: uploads_beside(mounting.max_uploads),
                quiet_after: QUIET_AFTER,
                burst: BURST,
            },
            upload_delay: Duration::ZERO,
            pack_below: self.pack_below,
            place: place_of(path),
            ..LogOptions::default()
        }
    }

    fn check_place(&self, path: &Path, mounting: &Mounting<'_>) -> Outcome<()> {
        let shown = path.display();
        if path.starts_with(mounting.mountpoint) {
            return Err(Failure::new(format!(
                "the write-back log {shown} lies below the mount point: it would be hidden"
            )));
        }
        if let Place::Folder(objects) = mounting.objects
            && (path.starts_with(objects) || objects.starts_with(path))
        {
            return Err(Failure::new(format!("the write-back log {shown} and the objects lie in one another")));
        }
        Ok(())
    }

    /// Makes the volume forget its log, which must be unusable.
    async fn abandon(&self, env: &TokioEnv, mounting: &Mounting<'_>, lost: &LogHome) -> Outcome<()> {
        let Mounting { volume, meta, handle, .. } = *mounting;
        let path = self.dir.of(meta, volume, Some(lost))?;
        match look(env.clone(), &path, &volume.name, lost, handle).await {
            Ok((_, folder, _)) => {
                return Err(Failure::with_hint(
                    format!(
                        "the write-back log of volume '{}' is not lost: it is in {}",
                        volume.name,
                        folder.path().display()
                    ),
                    "Mount without --abandon-writeback. Nothing was changed.",
                ));
            }
            Err(error) => say_aside(format!("kiseki: {error}")),
        }
        let doing = |error| failed("write", meta, &error);
        let written = env.meta().write(|txn| meta::volume::close_log(txn)).await.map_err(doing)?;
        env.meta().sync(written.seq).await.map_err(doing)?;
        tracing::warn!(
            place = lost.place,
            "the volume is mounted without its write-back log: what was only there is lost; kiseki fsck --data names the \
             files"
        );
        Ok(())
    }
}

impl CacheDir {
    /// The folder of the log: as told; else the one in META, unless that is older than the one that was used last and is
    /// on this machine.
    pub(super) fn of(&self, meta: &Path, volume: &Volume, home: Option<&LogHome>) -> Outcome<PathBuf> {
        if let Some(dir) = &self.cache_dir {
            return absolute(dir);
        }
        let default = meta.join(NAME);
        let Some(home) = home else { return Ok(default) };
        let is_it = |path: &Path| {
            let owner = std::fs::read(path.join(crate::log_folder::OWNER)).ok();
            let owner = owner.and_then(|owner| Owner::decode(&owner).ok());
            owner.is_some_and(|owner| owner.volume == volume.id && home.epoch <= owner.epoch)
        };
        let last = home.place.strip_prefix(&format!("{}:", machine())).map(PathBuf::from);
        Ok(match last {
            Some(last) if !is_it(&default) => last,
            Some(_) | None => default,
        })
    }
}

/// A log to look at, by a command that changes nothing; with the number of damaged places.
pub(super) async fn look(
    env: TokioEnv,
    path: &Path,
    name: &str,
    home: &LogHome,
    handle: &Handle,
) -> Outcome<(World, LogFolder, usize)> {
    let folder = LogFolder::open(path, FolderAccess::Read, handle.clone());
    let folder = folder.map_err(|error| explain_folder(name, &error, Some(home)))?;
    let options = LogOptions { mode: LogMode::ReadOnly, place: place_of(path), ..LogOptions::default() };
    let opened = Logged::open(env, folder.clone(), options).await;
    let opened = opened.map_err(|error| explain(name, &error, &folder))?;
    Ok((opened.env, folder, opened.damage.len()))
}

/// A put into a store of this machine keeps about two processors busy, one of them in the store.
fn uploads_beside(uploads: usize) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    (processors / 2).clamp(1, uploads)
}

fn machine() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A folder on this machine, for a person anywhere.
fn place_of(path: &Path) -> String {
    format!("{}:{}", machine(), path.display())
}

/// What is at stake, and what to do.
fn without(what: impl Display, home: &LogHome) -> Failure {
    Failure::with_hint(
        format!(
            "{what}. Bytes that were fsynced may be only in the write-back log, which was last used at {}",
            home.place
        ),
        "Is its disk mounted? --cache-dir names another folder. If it is lost, mount with --abandon-writeback: what was \
         only there is lost then, and `kiseki fsck --data` names the files. Nothing was changed.",
    )
}

fn explain_folder(name: &str, error: &LogFolderError, home: Option<&LogHome>) -> Failure {
    let what = format!("cannot use the write-back log of volume '{name}': {error}");
    match (error, home) {
        (LogFolderError::InUse(_), _) => {
            Failure::with_hint(what, "Another mount has it, or is ending: each has a folder of its own (--cache-dir).")
        }
        (LogFolderError::Missing(_) | LogFolderError::Io { .. }, Some(home)) => without(what, home),
        (LogFolderError::Missing(_) | LogFolderError::Io { .. }, None) => {
            Failure::with_hint(what, "Choose another folder (--cache-dir), or do without (--mode through).")
        }
    }
}

fn explain(name: &str, error: &LogError, folder: &LogFolder) -> Failure {
    let path = folder.path().display();
    match error {
        LogError::Missing(home) => without(format!("{path} does not hold the write-back log of volume '{name}'"), home),
        LogError::Older { found, home } => without(
            format!(
                "{path} holds an older state of the write-back log of volume '{name}' (of its mount {found}, and mount {} \
                 has used it since)",
                home.epoch
            ),
            home,
        ),
        LogError::Foreign => Failure::with_hint(
            format!("{path} holds the write-back log of another volume, not that of '{name}'"),
            "Choose another folder (--cache-dir). Nothing was changed.",
        ),
        LogError::Unreadable => Failure::with_hint(
            format!("{path} may hold the write-back log of volume '{name}', but its file 'owner' cannot be read"),
            "Restore that file, or choose another folder (--cache-dir). Nothing was changed.",
        ),
        LogError::Disk(error) => {
            let why = folder.trouble().unwrap_or_else(|| error.to_string());
            Failure::with_hint(
                format!("the disk of the write-back log of volume '{name}' fails: {path}: {why}"),
                "Nothing that is in it is dropped: mount again once the disk works.",
            )
        }
        LogError::Volume(_) | LogError::Meta(_) => {
            Failure::new(format!("cannot open the write-back log of volume '{name}' in {path}: {error}"))
        }
    }
}
