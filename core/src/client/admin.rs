//! What an operator asks of a mount: status, the slices of a file, a check of everything.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use super::Client;
use super::check::{self, CheckError, CheckProgress, CheckSummary};
use super::upkeep::blocks;
use super::wait::lock;
use core::sync::atomic::Ordering;

use crate::env::{Env, MetaStore};
use crate::errno::Errno;
use crate::format::values::Volume;
use crate::meta::{self, Finding};
use crate::types::{Attr, BlockId, FileType, Ino, PackId, Place, SessionId, SliceId, SliceRecord};

/// A mount at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// The volume's settings.
    pub volume: Volume,
    /// This mount's session; `None` on a read-only mount.
    pub session: Option<SessionId>,
    /// Since the mount.
    pub uptime: Duration,
    /// Bytes stored, as metadata counts them.
    pub used_bytes: u64,
    /// Inodes, the root included.
    pub used_inodes: u64,
    /// Bytes accepted and not committed.
    pub dirty_bytes: u64,
    /// Files with such bytes, or other changes that are not committed.
    pub dirty_files: u64,
    /// Payload of writes that wait for memory.
    pub waiting_bytes: u64,
    /// Bytes of blocks in the cache.
    pub cached_bytes: u64,
    /// Memory for dirty bytes and cached blocks.
    pub buffer_size: u64,
    /// Handles.
    pub open_files: u64,
    /// Puts under way.
    pub uploads: u64,
    /// What was removed is yet to be deleted from the store.
    pub deleting: bool,
    /// Position of the last transaction.
    pub last_txn: u64,
    /// Position up to which transactions are durable.
    pub synced_txn: u64,
}

/// A file's slices.
#[derive(Clone, Debug)]
pub struct FileInfo {
    /// Its attributes, with everything accepted.
    pub attr: Attr,
    /// A path that leads to it.
    pub path: Vec<u8>,
    /// Bytes accepted and not committed.
    pub dirty_bytes: u64,
    /// The committed slices of each chunk that has any, in commit order.
    pub chunks: Vec<(u32, Vec<(u64, SliceRecord)>)>,
    /// The blocks of these that are in packs: slice and index.
    pub packed: BTreeMap<(SliceId, u32), PackId>,
}

impl<E: Env> Client<E> {
    /// How the mount is doing.
    pub async fn status(&self) -> Result<Status, Errno> {
        let shared = &self.0;
        let usage = shared.read(meta::volume::usage).await?;
        let dirty_files = shared.files.dirty().len() as u64;
        Ok(Status {
            volume: shared.volume.clone(),
            session: shared.session,
            uptime: shared.env.now().saturating_sub(shared.started),
            used_bytes: usage.bytes,
            used_inodes: usage.inodes,
            dirty_bytes: shared.memory.used(),
            dirty_files,
            waiting_bytes: shared.waiting.load(Ordering::Acquire),
            cached_bytes: shared.blocks.cached_bytes(),
            buffer_size: shared.options.buffer_size,
            open_files: shared.files.open_count(),
            uploads: shared.uploads.used(),
            deleting: shared.orphans.any() || shared.collector.has_work(),
            last_txn: shared.meta.last().0,
            synced_txn: shared.meta.synced().0,
        })
    }

    /// Memory of `Options::buffer_size` that is in use.
    pub fn used_memory(&self) -> u64 {
        self.0.memory.used() + self.0.blocks.cached_bytes()
    }

    /// The slices of a file; none for what is not a regular file.
    pub async fn info(&self, ino: Ino) -> Result<FileInfo, Errno> {
        let shared = &self.0;
        let attr = shared.getattr(ino).await?;
        let path = shared.read(|read| meta::lookup::path_of(read, ino)).await?;
        let dirty_bytes = shared.files.get(ino).map_or(0, |cell| lock(&cell.state).file.dirty_bytes());
        let mut chunks = Vec::new();
        if attr.kind == FileType::Regular {
            for chunk in 0..attr.length.div_ceil(shared.geometry().chunk_size) as u32 {
                let slices = shared.read(|read| meta::data::chunk(read, shared.geometry(), ino, chunk)).await?;
                if !slices.is_empty() {
                    chunks.push((chunk, slices));
                }
            }
        }
        let mut packed = BTreeMap::new();
        for (_, record) in chunks.iter().flat_map(|(_, slices)| slices) {
            if !matches!(record.place, Place::Blocks | Place::Home) {
                continue;
            }
            for BlockId { slice, index, .. } in blocks(*shared.geometry(), record.slice, record.stored_len) {
                if let Some(found) = shared.read(|read| meta::packs::find(read, slice, index)).await? {
                    packed.insert((slice, index), found.pack);
                }
            }
        }
        Ok(FileInfo { attr, path, dirty_bytes, chunks, packed })
    }

    /// Checks metadata, that every block exists and, with `data`, every byte; findings are handed to `found`.
    pub async fn check(
        &self,
        data: bool,
        progress: &mut (dyn FnMut(CheckProgress) + Send),
        found: &mut (dyn FnMut(Finding) + Send),
    ) -> Result<CheckSummary, CheckError> {
        check::check(&self.0.env, &self.0.volume, data, progress, found).await
    }
}
