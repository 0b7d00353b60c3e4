//! `kiseki format`: makes a volume, or changes the limits of one.
//!
//! Invariants
//! - A failed format leaves nothing behind that was not there, and takes nothing away.
//! - The marker object is durable before the volume exists in the metadata: a crash in between leaves a prefix that
//!   later formats refuse, never a volume without its marker.
//! - Nothing is put into a prefix before it was found to be empty.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use kiseki_core::env::{MetaStore, ObjectStore, StoreError};
use kiseki_core::format::block::{self, VOLUME_OBJECT, decode_marker, encode_marker};
use kiseki_core::format::keys;
use kiseki_core::format::values::{VOLUME_VERSION, VOLUME_VERSION_PLAIN, Value, Volume};
use kiseki_core::meta::{self, OpCtx};
use kiseki_core::types::{Geometry, VolumeId};
use tokio::runtime::Runtime;

use super::access::{BucketArgs, KEYS_HELP, Keys, Storage};
use super::open::{STORE_TIMEOUT, Store, explain_objects, explain_open, marker, reach, runtime, why};
use super::output::{Done, Failure, Outcome, say, say_json};
use super::values::{block_size, show_limit, show_size, size, volume_name};
use super::{Show, place};
use crate::control::protocol::Status;
use crate::control::view;
use crate::env::timestamp;
use crate::objects::{Access, Credentials, Objects, Place};
use crate::rocks::{OpenError, OpenMode};

const EXAMPLES: &str = "\
Examples:
  kiseki format /srv/kiseki/meta my-volume --storage file --bucket /srv/kiseki/objects
  kiseki format /srv/kiseki/meta my-volume --bucket /big-disk --capacity 100G --inodes 1000000
  kiseki format /srv/kiseki/meta my-volume --bucket /big-disk --capacity 0 --force    (lift a limit)

  MinIO:
  export KISEKI_ACCESS_KEY=minioadmin KISEKI_SECRET_KEY=minioadmin
  kiseki format /srv/kiseki/meta my-volume --storage minio --bucket http://127.0.0.1:9000/my-bucket
  kiseki format /srv/kiseki/meta my-volume --storage minio --bucket https://minio.lan/my-bucket --ca-cert ca.pem

  AWS:
  export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...
  kiseki format /srv/kiseki/meta my-volume --storage s3 --bucket https://my-bucket.s3.eu-central-1.amazonaws.com
  kiseki format /srv/kiseki/meta my-volume --storage s3 --bucket s3://my-bucket/some/folder --region eu-central-1

The bucket of --storage file is a folder. That of s3 and minio is a URL: http(s)://HOST[:PORT]/BUCKET[/FOLDER], or
https://BUCKET.HOST[/FOLDER] with --style host, or s3://BUCKET[/FOLDER] for AWS.

Objects go to the folder NAME inside the bucket. The metadata folder and the folder of --storage file are made if they
are not there; a bucket is not.

Nothing is ever deleted or overwritten: a META that holds a volume is refused, and so is a folder NAME that holds
another volume or any file. With --force, settings of the existing volume are changed: the limits (--capacity,
--inodes); --enable-acl, which cannot be taken back; and --storage, --bucket, --region, --style and --ca-cert, if its objects are there.";

const JSON_HELP: &str = "Keys of --json: those of `kiseki status --json`.";

/// Make a volume
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{KEYS_HELP}\n\n{JSON_HELP}"))]
pub(super) struct FormatArgs {
    /// The metadata store: the path of a folder, or rocksdb://PATH
    meta: OsString,
    /// Name of the volume: 3 to 63 lower-case letters, digits and dashes
    #[arg(value_parser = volume_name)]
    name: String,
    /// Kind of object store
    #[arg(long, value_enum, default_value = "file")]
    storage: Storage,
    /// The folder, or the URL of the bucket, in which the volume's objects are stored
    #[arg(long, value_name = "DIR|URL")]
    bucket: OsString,
    #[command(flatten)]
    settings: BucketArgs,
    #[command(flatten)]
    keys: Keys,
    /// Largest object; a power of two from 64K to 16M [default: 4M]
    #[arg(long, value_name = "SIZE", value_parser = block_size)]
    block_size: Option<u32>,
    /// Limit of the bytes of all files; 0 for none [default: none]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    capacity: Option<u64>,
    /// Limit of the number of files and folders; 0 for none [default: none]
    #[arg(long, value_name = "COUNT")]
    inodes: Option<u64>,
    /// Give the volume POSIX ACLs (setfacl, getfacl); programs older than this feature cannot mount it
    #[arg(long)]
    enable_acl: bool,
    /// Change the limits of the volume that is already there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    show: Show,
}

pub(super) fn run(args: &FormatArgs) -> Outcome {
    let meta = place::meta_path(&args.meta)?;
    let objects = args.settings.place(args.storage, &args.bucket, &args.name)?;
    if let Place::Folder(prefix) = &objects
        && (prefix.starts_with(&meta) || meta.starts_with(prefix))
    {
        return Err(Failure::Usage(format!(
            "the metadata ({}) and the objects ({objects}) must not lie in one another",
            meta.display(),
        )));
    }
    let wanted = wanted(args, objects.setting());
    let target = Target { place: objects, keys: &args.keys, name: &args.name, runtime: runtime()? };
    let status = match holds_entries(&meta)? {
        false => create(&meta, &target, &wanted)?,
        true => {
            let store = Store::open_on(Arc::clone(&target.runtime), &meta, OpenMode::Existing)?;
            match store.volume()? {
                Some(volume) => change(&store, args, &meta, volume, &wanted, &target)?,
                None => {
                    target.refuse_used()?;
                    create_in(&store, &target, &wanted)?
                }
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
fn wanted(args: &FormatArgs, bucket: String) -> Volume {
    let geometry = Geometry::DEFAULT;
    Volume {
        version: version_for(args.enable_acl),
        id: VolumeId(uuid::Uuid::new_v4().into_bytes()),
        name: args.name.clone(),
        storage: args.storage.name().into(),
        bucket,
        geometry: Geometry { block_size: args.block_size.unwrap_or(geometry.block_size), ..geometry },
        capacity: args.capacity.unwrap_or(0),
        inodes: args.inodes.unwrap_or(0),
        created: timestamp(SystemTime::now()),
        acl: args.enable_acl,
        log: None,
        packs: false,
    }
}

/// The least version of the format that has these features.
fn version_for(acl: bool) -> u32 {
    if acl { VOLUME_VERSION } else { VOLUME_VERSION_PLAIN }
}

/// `--force` on a volume that exists: other limits, another way to its objects, nothing else.
fn change(
    store: &Store,
    args: &FormatArgs,
    path: &Path,
    volume: Volume,
    wanted: &Volume,
    target: &Target<'_>,
) -> Outcome<Status> {
    let exists = format!("{} already holds the volume '{}'", path.display(), volume.name);
    if !args.force {
        return Err(Failure::with_hint(
            exists,
            "Choose another META. To change the limits of this volume, add --force. Nothing was changed.",
        ));
    }
    let same_blocks = args.block_size.is_none_or(|size| size == volume.geometry.block_size);
    let same_place = (&volume.storage, &volume.bucket) == (&wanted.storage, &wanted.bucket);
    if volume.name != wanted.name || !same_blocks || !(same_place || target.holds(volume.id)?) {
        return Err(Failure::with_hint(
            format!(
                "{exists}, with its objects in {} and blocks of {}",
                view::objects(&volume),
                show_size(volume.geometry.block_size.into())
            ),
            "--force changes --capacity, --inodes, --enable-acl, and --bucket if the objects were moved there. Nothing was changed.",
        ));
    }
    let acl = volume.acl || args.enable_acl;
    let changed = Volume {
        version: volume.version.max(version_for(acl)),
        acl,
        storage: wanted.storage.clone(),
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

/// A volume whose metadata folder is new or empty.
fn create(meta: &Path, target: &Target<'_>, wanted: &Volume) -> Outcome<Status> {
    target.refuse_used()?;
    let undo = UndoFolder::new(meta);
    let store = Store::open_on(Arc::clone(&target.runtime), meta, OpenMode::Create)?;
    let status = create_in(&store, target, wanted)?;
    // The store closes before its folder could be removed: `undo` was made first and is dropped last.
    drop(store);
    undo.keep();
    Ok(status)
}

/// A volume in a store that holds nothing, with its objects in a place that holds nothing.
fn create_in(store: &Store, target: &Target<'_>, volume: &Volume) -> Outcome<Status> {
    let undo_folder = match &target.place {
        Place::Folder(prefix) => Some(UndoFolder::new(prefix)),
        Place::S3(_) => None,
    };
    let objects = target.open(Access::Create)?;
    let undo_marker = match &target.place {
        Place::Folder(_) => None,
        Place::S3(_) => Some(UndoMarker { objects: &objects, runtime: &target.runtime, id: volume.id, kept: false }),
    };
    let ctx = OpCtx { now: volume.created, stripe: 0, geometry: volume.geometry };
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    store.block_on(async {
        let failed = |error: StoreError| explain_store(&objects, &error);
        objects.put(VOLUME_OBJECT, vec![encode_marker(volume.id)]).await.map_err(failed)?;
        objects.barrier().await.map_err(failed)?;
        // A store overwrites without a word: of two formats at once only the one whose marker stays goes on.
        if marker(&objects).await.map_err(failed)? != Ok(volume.id) {
            return Err(Failure::with_hint(
                format!("another `kiseki format` made a volume at {} at the same time", objects.place()),
                "Choose another bucket or name. Nothing was changed.",
            ));
        }
        let format = store.meta().write(|txn| meta::volume::format(txn, &ctx, volume, uid, gid)).await;
        let committed = format.map_err(|e| store.failed("write", &e))?;
        store.meta().sync(committed.seq).await.map_err(|e| store.failed("sync", &e))
    })?;
    let status = store.status()?;
    undo_folder.into_iter().for_each(UndoFolder::keep);
    undo_marker.into_iter().for_each(UndoMarker::keep);
    Ok(status)
}

/// Where the objects are to be.
struct Target<'a> {
    place: Place,
    keys: &'a Keys,
    /// Of the volume.
    name: &'a str,
    runtime: Arc<Runtime>,
}

impl Target<'_> {
    /// Opens the place; it answers and takes the keys.
    fn open(&self, access: Access) -> Outcome<Objects> {
        let credentials: Option<Credentials> = self.keys.of(&self.place)?;
        let handle = self.runtime.handle();
        let opened = self.runtime.block_on(reach(&self.place, credentials.as_ref(), access, STORE_TIMEOUT, handle));
        opened.map_err(|error| explain_objects(self.name, error))
    }

    /// Whether the place holds the objects of this volume.
    fn holds(&self, id: VolumeId) -> Outcome<bool> {
        match &self.place {
            Place::Folder(prefix) => {
                Ok(fs::read(prefix.join(VOLUME_OBJECT)).is_ok_and(|marker| decode_marker(&marker) == Ok(id)))
            }
            Place::S3(_) => {
                let objects = self.open(Access::Read)?;
                match self.runtime.block_on(marker(&objects)) {
                    Ok(found) => Ok(found == Ok(id)),
                    Err(StoreError::NotFound | StoreError::Short) => Ok(false),
                    Err(e) => Err(Failure::new(format!("cannot read {}: {}", self.place, why(&objects, &e)))),
                }
            }
        }
    }

    /// Refuses a place that holds a volume or anything else.
    fn refuse_used(&self) -> Outcome<()> {
        match &self.place {
            Place::Folder(prefix) => refuse_used_folder(prefix),
            Place::S3(_) => {
                // Only read: nothing is put into a prefix that may be somebody's.
                let objects = self.open(Access::Read)?;
                match self.runtime.block_on(marker(&objects)) {
                    Ok(found) => Err(another_volume(&self.place, found.ok())),
                    Err(StoreError::Short) => Err(another_volume(&self.place, None)),
                    Err(StoreError::NotFound) => match self.runtime.block_on(objects.any_key()) {
                        Ok(None) => Ok(()),
                        Ok(Some(key)) => Err(not_empty(&self.place, &key)),
                        Err(error) => Err(explain_objects(self.name, error)),
                    },
                    Err(e) => Err(Failure::new(format!("cannot read {}: {}", self.place, why(&objects, &e)))),
                }
            }
        }
    }
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

/// Refuses a folder that holds a volume or anything else.
fn refuse_used_folder(prefix: &Path) -> Outcome<()> {
    let place = prefix.display();
    if let Ok(marker) = fs::read(prefix.join(VOLUME_OBJECT)) {
        return Err(another_volume(&place, decode_marker(&marker).ok()));
    }
    match fs::read_dir(prefix) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(entry) => {
                let what = entry.map_or("something".into(), |e| e.path().display().to_string());
                Err(not_empty(&place, &what))
            }
        },
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotADirectory => Err(Failure::with_hint(
            format!("{place} cannot hold objects: it, or something above it, is not a folder"),
            "Choose another bucket.",
        )),
        Err(e) => Err(Failure::new(format!("cannot read the folder {place}: {e}"))),
    }
}

fn another_volume(place: &dyn Display, id: Option<VolumeId>) -> Failure {
    let whose = id.map_or("unknown".into(), block::uuid);
    Failure::with_hint(
        format!("{place} holds the objects of another volume ({whose})"),
        "Choose another bucket or name. If that volume is really not needed, remove its objects yourself.",
    )
}

fn not_empty(place: &dyn Display, what: &str) -> Failure {
    Failure::with_hint(
        format!("{place} is not empty: it holds {what}"),
        "A new volume needs a place of its own: choose another bucket or name.",
    )
}

fn explain_store(objects: &Objects, error: &StoreError) -> Failure {
    let place = objects.place();
    match error {
        StoreError::Full => Failure::with_hint(
            format!("cannot write to {place}: No space left on device"),
            "Make room there, or choose another bucket. Nothing was changed.",
        ),
        StoreError::Denied => Failure::with_hint(
            format!("cannot write to {place}: Permission denied"),
            "Choose another bucket, or work as somebody who may write there. Nothing was changed.",
        ),
        StoreError::NotFound | StoreError::Short | StoreError::Retry => {
            Failure::new(format!("cannot write to {place}: {}", why(objects, error)))
        }
    }
}

fn text(status: &Status, changed: bool) -> String {
    let volume = &status.volume;
    let verb = if changed && status.usage.inodes > 0 { "Volume" } else { "Formatted volume" };
    format!(
        "{verb} '{}' ({})\n  metadata  {}\n  objects   {}\n  blocks    {}\n  capacity  {}\n  inodes    {}\n  ACLs      {}\nMount it: kiseki mount {} MOUNTPOINT",
        volume.name,
        volume.id,
        status.meta,
        volume.objects,
        show_size(volume.block_size.into()),
        show_limit(volume.capacity, show_size),
        show_limit(volume.inodes, |n| n.to_string()),
        if volume.acl { "yes" } else { "no" },
        status.meta,
    )
}

/// Removes, when dropped, what appears in a folder that was not there or was empty.
struct UndoFolder {
    folder: PathBuf,
    /// The topmost folder that was not there; `None` if `folder` itself was.
    made: Option<PathBuf>,
    kept: bool,
}

impl UndoFolder {
    fn new(folder: &Path) -> Self {
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

impl Drop for UndoFolder {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(e) = self.remove() {
            super::output::say_aside(format!("kiseki: cannot clean up {}: {e}", self.folder.display()));
        }
    }
}

/// Deletes, when dropped, the marker that was put, unless it is another volume's.
struct UndoMarker<'a> {
    objects: &'a Objects,
    runtime: &'a Runtime,
    id: VolumeId,
    kept: bool,
}

impl UndoMarker<'_> {
    /// What was put stays.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for UndoMarker<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let deleted = self.runtime.block_on(async {
            match marker(self.objects).await {
                Ok(Ok(id)) if id == self.id => self.objects.delete(VOLUME_OBJECT).await,
                // A put that is still under way may have failed, or be seen later.
                Err(StoreError::NotFound) | Ok(_) => Ok(()),
                Err(error) => Err(error),
            }
        });
        if let Err(e) = deleted {
            super::output::say_aside(format!(
                "kiseki: cannot clean up {}: the object {VOLUME_OBJECT} may be left there: {}",
                self.objects.place(),
                why(self.objects, &e)
            ));
        }
    }
}
