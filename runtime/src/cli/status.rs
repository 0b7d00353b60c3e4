//! `kiseki status`: the settings of a volume, what it holds, and how its mount is doing.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::Args;

use super::output::{Done, Outcome, say, say_json, table};
use super::values::{show_secs, show_size, show_time};
use super::{Show, open, place};
use crate::control::protocol::{LogView, MountView, Status, StoreView};
use crate::objects::Counts;
use crate::rocks::OpenMode;

const EXAMPLES: &str = "\
Examples:
  kiseki status /mnt/kiseki
  kiseki status /srv/kiseki/meta --json

Keys of --json:
  meta                  path of the metadata store
  volume                name, id, version, storage, bucket, objects (where exactly), block_size, chunk_size,
                        created (seconds since 1970), capacity and inodes (limits; 0: none), acl (it has POSIX ACLs),
                        log (null, or which folder may hold blocks that the object store lacks)
  usage                 bytes, inodes
  mount                 null, or: mountpoint, pid, read_only, session, uptime_secs, open_files, buffer_size,
                        cached_bytes, dirty_bytes and dirty_files (written, not stored yet), waiting_bytes (writes
                        that wait for memory), uploads, deleting (what was removed is not deleted from the object store
                        yet), last_txn and synced_txn (metadata log positions), mode (back or through), log, store
  mount.log             the write-back log: null, or folder, takes_writes, objects and bytes (not in the object store
                        yet), oldest_secs (of these; those of earlier mounts count from the start of this one), size
                        (of its files), kept (bytes of files without a name, to be read), size_max, broken (its disk
                        failed, objects go to the store directly), error (null, or what it failed with), damaged (places
                        that are not readable any more)
  mount.store           place (where this mount reaches it), ok, error (null, or why its last request failed),
                        failing_secs (null, or for how long), max_uploads; counted since the mount: puts, put_bytes,
                        gets, got_bytes, deletes, lists; of these failures; of these throttled (too many at once)

A mounted volume is asked through its mount. That of one that is not mounted is read from META; its object store is not
asked, and needs no keys.";

/// Show a volume: its settings, what it holds, how its mount is doing
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatusArgs {
    /// The metadata store, or the mount point of the volume
    #[arg(value_name = "META|MOUNTPOINT")]
    place: OsString,
    #[command(flatten)]
    show: Show,
}

pub(super) fn run(args: &StatusArgs) -> Outcome {
    let place = place::place(&args.place)?;
    let status = match open::mounted_status(&place.meta)? {
        Some(status) => status,
        None => {
            place.warn_if_dead();
            open::Store::open(&place.meta, OpenMode::Existing)?.status()?
        }
    };
    if args.show.json {
        say_json(&status);
    } else {
        say(text(&status));
    }
    Ok(Done::Clean)
}

fn text(status: &Status) -> String {
    let (volume, usage) = (&status.volume, &status.usage);
    let limit =
        |limit, show: fn(u64) -> String| if limit == 0 { "(no limit)".into() } else { format!("of {}", show(limit)) };
    let mut rows = vec![
        ("Volume", format!("{} ({})", volume.name, volume.id)),
        ("Metadata", status.meta.clone()),
        ("Objects", format!("{} {}", volume.storage, volume.objects)),
        ("Formatted", format!("{}, version {}", show_time(volume.created), volume.version)),
        ("Block size", show_size(volume.block_size.into())),
        ("Used", format!("{} {}", show_size(usage.bytes), limit(volume.capacity, show_size))),
        ("Inodes", format!("{} {}", usage.inodes, limit(volume.inodes, |n| n.to_string()))),
        ("POSIX ACLs", if volume.acl { "yes" } else { "no" }.into()),
    ];
    match &status.mount {
        None => {
            rows.push(("Mounted", "no".into()));
            if let Some(log) = &volume.log {
                rows.push((
                    "Write-back log",
                    format!("{log}; it may hold what the object store lacks: mount to go on"),
                ));
            }
        }
        Some(mount) => rows.extend([
            (
                "Mounted",
                format!(
                    "{} (pid {}, {}), for {}",
                    mount.mountpoint,
                    mount.pid,
                    if mount.read_only { "read-only" } else { "read and write" },
                    show_secs(mount.uptime_secs)
                ),
            ),
            ("Open files", mount.open_files.to_string()),
            ("Not stored yet", format!("{} in {} files", show_size(mount.dirty_bytes), mount.dirty_files)),
            (
                "Memory",
                format!("{} of blocks cached, {} in all", show_size(mount.cached_bytes), show_size(mount.buffer_size)),
            ),
            ("Waiting writes", show_size(mount.waiting_bytes)),
            ("Mode", mode(mount)),
            ("Write-back log", mount.log.as_ref().map_or("none".into(), log)),
            ("Object store", store(&mount.store)),
            ("Removed files", if mount.deleting { "not all deleted there yet" } else { "deleted there" }.into()),
            ("Requests", requests(&mount.store)),
        ]),
    }
    table(&rows)
}

fn mode(mount: &MountView) -> String {
    let durable = if mount.mode == "back" { "the write-back log" } else { "the object store" };
    format!("{}: durable once it is in {durable}", mount.mode)
}

fn log(log: &LogView) -> String {
    let age = log.oldest_secs.map(|secs| format!(", the oldest for {}", show_secs(secs))).unwrap_or_default();
    let mut text = format!(
        "{} in {} objects not in the object store yet{age}; {}",
        show_size(log.bytes),
        log.objects,
        show_size(log.size)
    );
    if log.takes_writes {
        let _ = write!(text, " of {}", show_size(log.size_max));
    }
    let _ = write!(text, " in {}", log.folder);
    if log.kept > 0 {
        let _ = write!(text, ", and {} in files without a name, to be read", show_size(log.kept));
    }
    if log.broken {
        let why = log.error.as_deref().unwrap_or("it failed");
        let _ = write!(text, "; its disk fails ({why}), and objects go to the object store directly");
    }
    if log.damaged > 0 {
        let _ = write!(text, "; damaged in {} places: see the mount's log", log.damaged);
    }
    text
}

fn store(store: &StoreView) -> String {
    let how = match &store.error {
        None => "answers".into(),
        Some(error) => format!("fails since {}: {error}", show_secs(store.failing_secs.unwrap_or(0))),
    };
    format!("{how} (at {})", store.place)
}

fn requests(store: &StoreView) -> String {
    let max_uploads = store.max_uploads;
    let Counts { puts, put_bytes, gets, got_bytes, deletes, lists, failures, throttled } = store.counts;
    format!(
        "{puts} puts ({}; at most {max_uploads} at once), {gets} gets ({}), {deletes} deletes, {lists} lists; \
         {failures} failed, {throttled} of them because there were too many",
        show_size(put_bytes),
        show_size(got_bytes)
    )
}
