//! What must hold of a volume when nobody works on it: between two lives, and when faults and work have stopped.
//!
//! Owns: promise 7 (bounded) and the store's contents, as tests.
//! Leaves to others: when that is (`run`), what applications see (`judge`, `recovery`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::client::{Client, Handle, OpenFlags};
use kiseki_core::errno::Errno;
use kiseki_core::format::block::{self, VOLUME_OBJECT};
use kiseki_core::format::keys::{self, Key};
use kiseki_core::format::pack::pack_key;
use kiseki_core::format::values::{Pack, Packed, Value, Volume};
use kiseki_core::meta::{self, SetAttr, Usage};
use kiseki_core::types::{FileType, Ino, PackId, Place, SliceRecord};
use madsim::runtime::NodeHandle;
use madsim::time::{self, TimeHandle};

use crate::crowd::PATIENCE;
use crate::kernel::CALLER;
use crate::rivals;
use crate::world::meta::blocks_of;
use crate::world::{LoggedEnv, World};

/// How long the store may take to be rid of what nothing refers to.
const DRAIN: Duration = Duration::from_secs(600);
/// Syncs that may fail after the faults have stopped: one tells of the past, one may wait for what still hangs.
const SYNCS: u32 = 3;

/// Flushes everything, which must succeed, and looks whether all memory is free again.
pub async fn flushed(world: &World, node: &NodeHandle, client: &Client<LoggedEnv>) -> Result<(), String> {
    let mut synced = Err(String::new());
    for _ in 0..SYNCS {
        let client = client.clone();
        let task = node.spawn(async move { client.sync().await });
        let answer = time::timeout(PATIENCE, task).await.map_err(|_| "a sync hangs")?;
        synced = answer.map_err(|error| error.to_string())?.map_err(|errno| format!("a sync: {errno:?}"));
        if synced.is_ok() {
            break;
        }
        // What hung when the faults stopped may have used up this wait.
        time::sleep(Duration::from_secs(20)).await;
    }
    synced.map_err(|what| format!("without faults, {what}"))?;
    // What was given up lets go of its memory when its last put has ended.
    let until = TimeHandle::current().elapsed() + Duration::from_secs(60);
    loop {
        let status = client.status().await.map_err(|errno| format!("status: {errno:?}"))?;
        let left = (status.dirty_bytes, status.dirty_files, status.waiting_bytes, status.uploads, status.open_files);
        if left == (0, 0, 0, 0, 0) {
            return world.alarm.check();
        }
        if TimeHandle::current().elapsed() > until {
            return Err(format!(
                "after a sync there are still dirty bytes, dirty files, waiting bytes, puts, handles: {left:?}"
            ));
        }
        time::sleep(Duration::from_millis(500)).await;
    }
}

/// Waits until the store holds exactly what is referred to, but for what is `excused`.
pub async fn drained(world: &World, excused: &Excused) -> Result<(), String> {
    gone(|| {
        let left = leftovers(world, excused);
        left.first().map(|first| format!("{} things are left, such as: {first}", left.len()))
    })
    .await
}

/// Waits until the log of a mount, of which the store has everything, takes the room of one segment at most.
pub async fn given_back(env: &LoggedEnv) -> Result<(), String> {
    let too_many = || env.log_status().filter(|status| status.backlog.segments > 1);
    gone(|| too_many().map(|status| format!("the store has everything, and the log does not go: {status:?}"))).await
}

/// Waits until nothing is `left`; an error with what is.
async fn gone(left: impl Fn() -> Option<String>) -> Result<(), String> {
    let until = TimeHandle::current().elapsed() + DRAIN;
    while let Some(left) = left() {
        if TimeHandle::current().elapsed() > until {
            return Err(left);
        }
        time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// The metadata as it lies there: structurally whole, and within the limits of the volume.
pub fn sound(world: &World) -> Result<(), String> {
    let findings = std::cell::RefCell::new(Vec::new());
    let checked = world.meta.peek(|read| {
        findings.borrow_mut().clear();
        meta::invariant::check(read, &mut |_| {}, &mut |finding| findings.borrow_mut().push(finding))
    });
    checked.map_err(|error| format!("the metadata cannot be checked: {error}"))?;
    let findings = findings.into_inner();
    if let Some(finding) = findings.first() {
        return Err(format!("{} findings, such as {finding:?}", findings.len()));
    }
    within_limits(world)
}

/// What may be left until the next mount.
#[derive(Clone, Debug, Default)]
pub struct Excused {
    /// These objects.
    pub objects: BTreeSet<String>,
    /// Inodes that were unlinked and could not be removed.
    pub orphans: bool,
    /// Packs that nothing needs.
    pub packs: bool,
}

/// What is in the store or in a queue though nothing refers to it, and what is referred to and not there.
pub fn leftovers(world: &World, excused: &Excused) -> Vec<String> {
    let read = |range: (Vec<u8>, Vec<u8>)| {
        let pairs = world.meta.peek(|read| Ok(read.scan(&range.0, &range.1, usize::MAX)?));
        pairs.expect("memory can be read")
    };
    let volume = world.meta.peek(meta::volume::load).expect("there is a volume");
    let mut packed = BTreeMap::new();
    for (key, value) in read(keys::packed_range()) {
        packed.insert(key.to_vec(), Packed::decode(&value).expect("the metadata is sound").pack);
    }
    // What was put more than once may be in a pack and by itself; it is deleted from both.
    let mut twice = BTreeSet::new();
    let mut wanted = BTreeSet::from([VOLUME_OBJECT.to_string()]);
    for (_, value) in read(keys::all_slices()) {
        let record = SliceRecord::decode(&value).expect("the metadata is sound");
        if matches!(record.place, Place::Blocks | Place::Home) {
            for id in blocks_of(&volume, &record) {
                match packed.get(&keys::packed(id.slice, id.index)) {
                    Some(pack) => {
                        wanted.insert(pack_key(*pack));
                        twice.insert(block::object_key(id));
                    }
                    None => {
                        wanted.insert(block::object_key(id));
                    }
                }
            }
        }
    }
    let found: BTreeSet<String> = world.objects.keys().into_iter().collect();
    let mut left: Vec<String> = wanted.difference(&found).map(|key| format!("object {key} is missing")).collect();
    // What was accepted for an inode and never committed is given up when the inode is removed.
    let packs = read(keys::pack_range());
    let packs = packs.iter().filter(|(_, value)| Pack::decode(value).is_ok_and(|pack| pack.live == 0));
    let dead: Vec<String> = packs.filter_map(|(key, _)| pack_of(key)).map(pack_key).collect();
    let surplus = found.difference(&wanted).filter(|key| !dead.contains(key) && !twice.contains(*key));
    let surplus = surplus.filter(|key| !excused.orphans && !excused.objects.contains(*key));
    left.extend(surplus.map(|key| format!("nothing refers to object {key}")));
    let known: BTreeSet<Vec<u8>> =
        twice.iter().filter_map(|key| block::parse_key(key)).map(|(slice, index)| keys::packed(slice, index)).collect();
    left.extend(
        packed
            .keys()
            .filter(|key| !known.contains(*key))
            .map(|key| format!("nothing refers to {:?}", keys::decode(key))),
    );
    left.extend(dead.into_iter().filter(|_| !excused.packs).map(|key| format!("nothing needs {key}")));
    let queues = [keys::orphan_range(), keys::delfile_range(), keys::cutfile_range(), keys::delslice_range()];
    for queue in queues {
        if excused.orphans && queue == keys::orphan_range() {
            continue;
        }
        left.extend(read(queue).iter().map(|(key, _)| format!("{:?} is still queued", keys::decode(key))));
    }
    left
}

fn pack_of(key: &[u8]) -> Option<PackId> {
    match keys::decode(key) {
        Ok(Key::Pack(pack)) => Some(pack),
        _ => None,
    }
}

/// The volume holds no more than it may.
fn within_limits(world: &World) -> Result<(), String> {
    let (volume, usage) = usage(world);
    if volume.capacity > 0 && usage.bytes > volume.capacity {
        return Err(format!("the volume holds {} bytes, of {} that it may", usage.bytes, volume.capacity));
    }
    if volume.inodes > 0 && usage.inodes > volume.inodes {
        return Err(format!("the volume has {} inodes, of {} that it may", usage.inodes, volume.inodes));
    }
    Ok(())
}

fn usage(world: &World) -> (Volume, Usage) {
    let read = world.meta.peek(|read| Ok((meta::volume::load(read)?, meta::volume::usage(read)?)));
    read.expect("memory can be read")
}

/// A volume with limits takes bytes and inodes until it is full, refuses what is beyond, and takes more once something
/// was removed. Leaves everything as it was.
pub async fn filled(world: &World, client: &Client<LoggedEnv>) -> Result<(), String> {
    let (volume, _) = usage(world);
    if volume.inodes > 0 {
        let inodes = || usage(world).1.inodes;
        let mut made = Vec::new();
        // What was removed may still go while the call is under way.
        let (refused, most) = loop {
            let (name, before) = (format!("q{}", made.len()), inodes());
            match client.mknod(CALLER, Ino::ROOT, name.as_bytes(), FileType::Regular, 0o600, 0).await {
                Ok(entry) => made.push((name, entry.ino)),
                Err(errno) => break (errno, before),
            }
            within_limits(world)?;
        };
        if refused != Errno::ENOSPC || most < volume.inodes {
            return Err(format!("limits: with {most} inodes of {}, another: {refused:?}", volume.inodes));
        }
        for (name, ino) in &made {
            client.unlink(Ino::ROOT, name.as_bytes()).await.map_err(|errno| format!("limits: unlink: {errno:?}"))?;
            client.forget(*ino, 1);
        }
        if !made.is_empty() {
            settled(|| inodes() < volume.inodes, "removed inodes still count").await?;
        }
    }
    if volume.capacity == 0 {
        return Ok(());
    }
    // A file of its own may be one inode too many.
    let entry =
        client.lookup(Ino::ROOT, rivals::NAME.as_bytes()).await.map_err(|errno| format!("limits: {errno:?}"))?;
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    let failed = |what: &'static str| move |errno| format!("limits: {what}: {errno:?}");
    let handle = client.open(entry.ino, flags).await.map_err(failed("open"))?;
    let piece = Bytes::from(vec![b'q'; volume.geometry.block_size as usize]);
    let mut end = entry.attr.length;
    let bytes = || usage(world).1.bytes;
    for round in 0..2 {
        let (refused, most) = loop {
            let before = bytes();
            match client.write(handle, end, piece.clone(), false).await {
                Ok(()) => end += piece.len() as u64,
                Err(errno) => break (errno, before),
            }
            fsynced(client, handle).await.map_err(failed("fsync"))?;
            within_limits(world)?;
        };
        if refused != Errno::ENOSPC || most + piece.len() as u64 <= volume.capacity {
            return Err(format!("limits: with {most} bytes of {}, a block more: {refused:?}", volume.capacity));
        }
        if round == 0 && end == entry.attr.length {
            break;
        }
        end = entry.attr.length;
        client.setattr(entry.ino, SetAttr::default(), Some(end)).await.map_err(failed("truncate"))?;
        fsynced(client, handle).await.map_err(failed("fsync"))?;
        let room = || bytes() + piece.len() as u64 <= volume.capacity;
        settled(room, "bytes that were cut off still count").await?;
    }
    client.release(handle).await.map_err(failed("release"))?;
    client.forget(entry.ino, 1);
    client.sync().await.map_err(failed("sync"))
}

/// What hung when the faults stopped may use up the time of a flush.
async fn fsynced(client: &Client<LoggedEnv>, handle: Handle) -> Result<(), Errno> {
    let mut synced = Ok(());
    for _ in 0..SYNCS {
        synced = client.fsync(handle).await;
        if synced != Err(Errno::EIO) {
            break;
        }
        time::sleep(Duration::from_secs(20)).await;
    }
    synced
}

/// Waits until it `holds`.
async fn settled(holds: impl Fn() -> bool, otherwise: &str) -> Result<(), String> {
    let until = TimeHandle::current().elapsed() + DRAIN;
    while !holds() {
        if TimeHandle::current().elapsed() > until {
            return Err(format!("limits: {otherwise}"));
        }
        time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
