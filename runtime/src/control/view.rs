//! The core's values as the protocol's documents.

use std::time::Duration;

use kiseki_core::client::check::{CheckProgress, CheckSummary};
use kiseki_core::client::{FileInfo, LogMode, LogStatus};
use kiseki_core::format::block::{object_key, uuid};
use kiseki_core::format::pack::pack_key;
use kiseki_core::format::values::Volume;
use kiseki_core::meta;
use kiseki_core::types::{BlockId, FileType, Geometry, Ino, Place, SliceRecord};

use super::protocol::{Checked, Finding, Info, LogView, Progress, SliceView, StoreView, UsageView, VolumeView};
use crate::mount::MountLog;
use crate::objects::{Objects, Place as ObjectsPlace};

/// Where a volume's objects are, as its settings say it.
pub(crate) fn objects(volume: &Volume) -> String {
    match ObjectsPlace::parse(&volume.storage, &volume.bucket, &volume.name) {
        Ok(place) => place.to_string(),
        // Of a storage that only newer code knows.
        Err(_) => format!("{}, in {} {}", volume.name, volume.storage, volume.bucket),
    }
}

pub(crate) fn volume(volume: &Volume) -> VolumeView {
    VolumeView {
        name: volume.name.clone(),
        id: uuid(volume.id),
        version: volume.version,
        storage: volume.storage.clone(),
        bucket: volume.bucket.clone(),
        objects: objects(volume),
        block_size: volume.geometry.block_size,
        chunk_size: volume.geometry.chunk_size,
        capacity: volume.capacity,
        inodes: volume.inodes,
        created: volume.created.secs,
        acl: volume.acl,
        log: volume.log.as_ref().map(|home| home.place.clone()),
    }
}

/// `now` is on the clock of the status.
pub(crate) fn log(log: &MountLog, status: &LogStatus, now: Duration) -> LogView {
    let LogStatus { backlog, size_max, broken } = *status;
    LogView {
        folder: log.folder.path().display().to_string(),
        takes_writes: log.mode == LogMode::Back,
        objects: backlog.objects,
        bytes: backlog.bytes,
        oldest_secs: backlog.since.map(|since| now.saturating_sub(since).as_secs()),
        size: backlog.log_bytes,
        kept: backlog.kept_bytes,
        size_max,
        broken,
        error: log.folder.trouble(),
        damaged: log.damaged as u64,
    }
}

pub(crate) fn store(objects: &Objects, max_uploads: usize) -> StoreView {
    let trouble = objects.trouble();
    StoreView {
        place: objects.place().to_string(),
        ok: trouble.is_none(),
        failing_secs: trouble.as_ref().map(|trouble| trouble.since.as_secs()),
        error: trouble.map(|trouble| trouble.text),
        max_uploads: max_uploads as u64,
        counts: objects.counts(),
    }
}

pub(crate) fn usage(usage: &meta::Usage) -> UsageView {
    UsageView { bytes: usage.bytes, inodes: usage.inodes }
}

pub(crate) fn finding(finding: meta::Finding) -> Finding {
    Finding {
        kind: finding.kind.name().into(),
        ino: finding.ino.map(|ino| ino.0),
        path: finding.path,
        text: finding.text,
    }
}

pub(crate) fn progress(at: CheckProgress) -> Progress {
    let CheckProgress { keys, slices, slices_total, blocks, bytes } = at;
    Progress { keys, slices, slices_total, blocks, bytes }
}

pub(crate) fn checked(summary: CheckSummary) -> Checked {
    let CheckSummary { meta, blocks, bytes, findings } = summary;
    Checked { findings, keys: meta.keys, inodes: meta.inodes, slices: meta.slices, blocks, bytes }
}

pub(crate) fn info(ino: Ino, info: &FileInfo, geometry: &Geometry) -> Info {
    let attr = &info.attr;
    let slices = info
        .chunks
        .iter()
        .flat_map(|(chunk, records)| records.iter().map(|(seq, record)| slice(info, geometry, *chunk, *seq, record)));
    Info {
        ino: ino.0,
        kind: kind(attr.kind).into(),
        length: attr.length,
        stored: attr.stored,
        nlink: attr.nlink,
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        dirty_bytes: info.dirty_bytes,
        slices: slices.collect(),
    }
}

fn slice(info: &FileInfo, geometry: &Geometry, chunk: u32, seq: u64, record: &SliceRecord) -> SliceView {
    let &SliceRecord { slice, stored_len, off, pos, len, ref place } = record;
    let (place, blocks) = match place {
        Place::Blocks => ("blocks", block_keys(info, geometry, record)),
        // Where a home is takes another lookup; its blocks are not this slice's own.
        Place::Home => ("shared", block_keys(info, geometry, record)),
        Place::Hole => ("hole", Vec::new()),
        Place::Reserved => ("reserved", Vec::new()),
        Place::Inline(_) => ("inline", Vec::new()),
    };
    SliceView {
        chunk,
        seq,
        offset: u64::from(chunk) * geometry.chunk_size + u64::from(pos),
        len,
        slice: slice.0,
        off,
        stored_len,
        place: place.into(),
        blocks,
    }
}

/// The objects of the store that the blocks are in.
fn block_keys(info: &FileInfo, geometry: &Geometry, record: &SliceRecord) -> Vec<String> {
    let key = |index: u32| {
        if let Some(pack) = info.packed.get(&(record.slice, index)) {
            return pack_key(*pack);
        }
        let len = (record.stored_len - index * geometry.block_size).min(geometry.block_size);
        object_key(BlockId { slice: record.slice, index, len })
    };
    (0..geometry.block_count(record.stored_len)).map(key).collect()
}

fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Regular => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::CharDevice => "char device",
        FileType::BlockDevice => "block device",
        FileType::Socket => "socket",
    }
}
