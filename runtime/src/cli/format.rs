//! `kiseki format`: makes a volume, or changes the limits of one.
//!
//! Invariants
//! - A failed format leaves nothing behind that was not there, and takes nothing away.
//! - The marker object is durable before the volume exists in the metadata: a crash in between leaves a prefix that
//!   later formats refuse, never a volume without its marker.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use kiseki_core::env::{MetaStore, ObjectStore, StoreError};
use kiseki_core::format::block::{self, VOLUME_OBJECT, decode_marker, encode_marker};
use kiseki_core::format::keys;
use kiseki_core::format::values::{VOLUME_VERSION, Value, Volume};
use kiseki_core::meta::{self, OpCtx};
use kiseki_core::types::{Geometry, VolumeId};

use super::open::{Store, explain_open};
use super::output::{Done, Failure, Outcome, say, say_json};
use super::values::{block_size, show_limit, show_size, size, volume_name};
use super::{Show, place};
use crate::control::protocol::Status;
use crate::control::view;
use crate::env::timestamp;
use crate::objects::Access;
use crate::rocks::{OpenError, OpenMode};

const EXAMPLES: &str = "\
Examples:
  kiseki format /srv/kiseki/meta my-volume --storage file --bucket /srv/kiseki/objects
  kiseki format /srv/kiseki/meta my-volume --bucket /big-disk --capacity 100G --inodes 1000000
  kiseki format /srv/kiseki/meta my-volume --bucket /big-disk --capacity 0 --force    (lift a limit)

Objects go to the folder NAME inside the bucket. The metadata folder and the bucket are made if they are not there.

Nothing is ever deleted or overwritten: a META that holds a volume is refused, and so is a folder NAME that holds
another volume or any file. With --force, settings of the existing volume are changed: the limits (--capacity,
--inodes), and --bucket after its objects were moved there.

Keys of --json: those of `kiseki status --json`.";

/// Kind of object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Storage {
    /// A folder on this machine
    File,
}

/// Make a volume
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct FormatArgs {
    /// The metadata store: the path of a folder, or rocksdb://PATH
    meta: OsString,
    /// Name of the volume: 3 to 63 lower-case letters, digits and dashes
    #[arg(value_parser = volume_name)]
    name: String,
    /// Kind of object store
    #[arg(long, value_enum, default_value = "file")]
    storage: Storage,
    /// The folder under which the volume's objects are stored
    #[arg(long, value_name = "DIR")]
    bucket: PathBuf,
    /// Largest object; a power of two from 64K to 16M [default: 4M]
    #[arg(long, value_name = "SIZE", value_parser = block_size)]
    block_size: Option<u32>,
    /// Limit of the bytes of all files; 0 for none [default: none]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    capacity: Option<u64>,
    /// Limit of the number of files and folders; 0 for none [default: none]
    #[arg(long, value_name = "COUNT")]
    inodes: Option<u64>,
    /// Change the limits of the volume that is already there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    show: Show,
}

pub(super) fn run(args: &FormatArgs) -> Outcome {
    let meta = place::meta_path(&args.meta)?;
    let bucket = place::absolute(&args.bucket)?;
    let Some(bucket) = bucket.to_str() else {
        return Err(Failure::Usage(format!("the bucket '{}' is not UTF-8", bucket.display())));
    };
    let wanted = wanted(args, bucket);
    let prefix = view::prefix(&wanted);
    if prefix.starts_with(&meta) || meta.starts_with(&prefix) {
        return Err(Failure::Usage(format!(
            "the metadata ({}) and the objects ({}) must not lie in one another",
            meta.display(),
            prefix.display()
        )));
    }
    let status = match holds_entries(&meta)? {
        false => create(&meta, &prefix, &wanted)?,
        true => {
            let store = Store::open(&meta, OpenMode::Existing)?;
            match store.volume()? {
                Some(volume) => change(&store, args, &meta, volume, &wanted)?,
                None => create_in(&store, &prefix, &wanted)?,
            }
        }
    };
    if args.show.json {
        say_json(&status);
    } else {
        say(text(&status, args.force));
    }
    Ok(Done::Clean)
}

/// The volume that the arguments describe.
fn wanted(args: &FormatArgs, bucket: &str) -> Volume {
    let geometry = Geometry::DEFAULT;
    Volume {
        version: VOLUME_VERSION,
        id: VolumeId(uuid::Uuid::new_v4().into_bytes()),
        name: args.name.clone(),
        storage: match args.storage {
            Storage::File => "file".into(),
        },
        bucket: bucket.into(),
        geometry: Geometry { block_size: args.block_size.unwrap_or(geometry.block_size), ..geometry },
        capacity: args.capacity.unwrap_or(0),
        inodes: args.inodes.unwrap_or(0),
        created: timestamp(SystemTime::now()),
    }
}

/// `--force` on a volume that exists: new limits, nothing else.
fn change(store: &Store, args: &FormatArgs, path: &Path, volume: Volume, wanted: &Volume) -> Outcome<Status> {
    let exists = format!("{} already holds the volume '{}'", path.display(), volume.name);
    if !args.force {
        return Err(Failure::with_hint(
            exists,
            "Choose another META. To change the limits of this volume, add --force. Nothing was changed.",
        ));
    }
    let same_blocks = args.block_size.is_none_or(|size| size == volume.geometry.block_size);
    let same_bucket = volume.bucket == wanted.bucket || holds_volume(&view::prefix(wanted), volume.id);
    if (&volume.name, &volume.storage) != (&wanted.name, &wanted.storage) || !same_blocks || !same_bucket {
        return Err(Failure::with_hint(
            format!(
                "{exists}, with its objects in {} and blocks of {}",
                view::prefix(&volume).display(),
                show_size(volume.geometry.block_size.into())
            ),
            "--force changes --capacity, --inodes, and --bucket if the objects were moved there. Nothing was changed.",
        ));
    }
    let changed = Volume {
        bucket: wanted.bucket.clone(),
        capacity: args.capacity.unwrap_or(volume.capacity),
        inodes: args.inodes.unwrap_or(volume.inodes),
        ..volume
    };
    let write = |txn: &mut dyn kiseki_core::kv::Txn| {
        // Read for the sake of conflicts, though nobody else has the store open.
        txn.get(&keys::volume())?;
        txn.put(&keys::volume(), &changed.encode());
        Ok(())
    };
    store.block_on(async {
        let committed = store.meta().write(write).await.map_err(|e| store.failed("write", &e))?;
        store.meta().sync(committed.seq).await.map_err(|e| store.failed("sync", &e))
    })?;
    store.status()
}

/// Whether the folder holds the objects of this volume.
fn holds_volume(prefix: &Path, id: VolumeId) -> bool {
    fs::read(prefix.join(VOLUME_OBJECT)).is_ok_and(|marker| decode_marker(&marker) == Ok(id))
}

/// A volume whose metadata folder is new or empty.
fn create(meta: &Path, prefix: &Path, wanted: &Volume) -> Outcome<Status> {
    refuse_used(prefix)?;
    let undo = Undo::of_folder(meta);
    let store = Store::open(meta, OpenMode::Create)?;
    let status = create_in(&store, prefix, wanted)?;
    // The store closes before its folder could be removed: `undo` was made first and is dropped last.
    drop(store);
    undo.keep();
    Ok(status)
}

/// A volume in a store that holds nothing.
fn create_in(store: &Store, prefix: &Path, volume: &Volume) -> Outcome<Status> {
    refuse_used(prefix)?;
    let undo = Undo::of_folder(prefix);
    let objects = store.objects(volume, Access::Create)?;
    let ctx = OpCtx { now: volume.created, stripe: 0, geometry: volume.geometry };
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    store.block_on(async {
        let marker = vec![encode_marker(volume.id)];
        let put = objects.put(VOLUME_OBJECT, marker).await;
        put.map_err(|e| explain_store(prefix, &e))?;
        objects.barrier().await.map_err(|e| explain_store(prefix, &e))?;
        let format = store.meta().write(|txn| meta::volume::format(txn, &ctx, volume, uid, gid)).await;
        let committed = format.map_err(|e| store.failed("write", &e))?;
        store.meta().sync(committed.seq).await.map_err(|e| store.failed("sync", &e))
    })?;
    let status = store.status()?;
    undo.keep();
    Ok(status)
}

/// Whether the folder is there and not empty.
fn holds_entries(path: &Path) -> Outcome<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) if e.kind() == ErrorKind::NotADirectory => Err(explain_open(&OpenError::NotAStore(path.into()))),
        Err(e) => Err(Failure::new(format!("cannot read the folder {}: {e}", path.display()))),
    }
}

/// Refuses a prefix that holds a volume or anything else.
fn refuse_used(prefix: &Path) -> Outcome<()> {
    let place = prefix.display();
    if let Ok(marker) = fs::read(prefix.join(VOLUME_OBJECT)) {
        let whose = decode_marker(&marker).map_or("unknown".into(), block::uuid);
        return Err(Failure::with_hint(
            format!("{place} holds the objects of another volume ({whose})"),
            "Choose another bucket or name. If that volume is really not needed, remove the folder yourself.",
        ));
    }
    match fs::read_dir(prefix) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(entry) => Err(Failure::with_hint(
                format!(
                    "{place} is not empty: it holds {}",
                    entry.map_or("something".into(), |e| e.path().display().to_string())
                ),
                "A new volume needs a folder of its own: choose another bucket or name.",
            )),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotADirectory => Err(Failure::with_hint(
            format!("{place} cannot hold objects: it, or something above it, is not a folder"),
            "Choose another bucket.",
        )),
        Err(e) => Err(Failure::new(format!("cannot read the folder {place}: {e}"))),
    }
}

fn explain_store(prefix: &Path, error: &StoreError) -> Failure {
    let what = |why: &str| format!("cannot write to the bucket folder {}: {why}", prefix.display());
    match error {
        StoreError::Full => Failure::with_hint(
            what("No space left on device"),
            "Make room on that disk, or choose another bucket. Nothing was changed.",
        ),
        StoreError::Denied => Failure::with_hint(
            what("Permission denied"),
            "Choose another bucket, or run as a user who may write there. Nothing was changed.",
        ),
        StoreError::NotFound | StoreError::Short | StoreError::Retry => Failure::new(what(&error.to_string())),
    }
}

fn text(status: &Status, changed: bool) -> String {
    let volume = &status.volume;
    let verb = if changed && status.usage.inodes > 0 { "Volume" } else { "Formatted volume" };
    format!(
        "{verb} '{}' ({})\n  metadata  {}\n  objects   {}/{}\n  blocks    {}\n  capacity  {}\n  inodes    {}\nMount it: kiseki mount {} MOUNTPOINT",
        volume.name,
        volume.id,
        status.meta,
        volume.bucket.trim_end_matches('/'),
        volume.name,
        show_size(volume.block_size.into()),
        show_limit(volume.capacity, show_size),
        show_limit(volume.inodes, |n| n.to_string()),
        status.meta,
    )
}

/// Removes, when dropped, what appears in a folder that was not there or was empty.
struct Undo {
    folder: PathBuf,
    /// The topmost folder that was not there; `None` if `folder` itself was.
    made: Option<PathBuf>,
    kept: bool,
}

impl Undo {
    fn of_folder(folder: &Path) -> Self {
        let made = folder.ancestors().take_while(|above| !above.exists()).last().map(Path::to_owned);
        Self { folder: folder.into(), made, kept: false }
    }

    /// What was made stays.
    fn keep(mut self) {
        self.kept = true;
    }

    fn remove(&self) -> std::io::Result<()> {
        if let Some(made) = &self.made {
            return match fs::remove_dir_all(made) {
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                result => result,
            };
        }
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
        Ok(())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(e) = self.remove() {
            super::output::say_aside(format!("kiseki: cannot clean up {}: {e}", self.folder.display()));
        }
    }
}
