//! Checking a volume, also a mounted one: the metadata's invariants, and every block that a slice record names.
//!
//! Owns: reading blocks to see that they are there and whole.
//! Leaves to others: the invariants (`meta::invariant`), the checksums (`format::block`), reporting.
//!
//! Invariants
//! - A block is reported only if its slice record is still there after the block was found missing or damaged: on a
//!   live volume a record goes first, its objects later.
//! - Nothing is changed.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use bytes::Bytes;

use super::std::sync::Mutex;
use super::upkeep::blocks;
use super::wait::{lock, run_bounded, timeout};
use crate::env::{Env, MetaError, MetaStore, ObjectStore, StoreError};
use crate::errno::Errno;
use crate::format::block::{BlockError, decode_head, head_len, object_key, object_len, verify_object};
use crate::format::keys::{self, Key};
use crate::format::values::{Value, Volume};
use crate::kv::OpError;
use crate::meta::{Finding, FindingKind, Summary, invariant, lookup};
use crate::types::{BlockId, Ino, Place, SliceRecord};

/// Blocks read at once: with whole blocks, at most 8 of them in memory.
const READS: usize = 8;
/// Slice records read at once.
const PAGE: usize = 256;
/// How often a request is sent before the check is given up, a second apart.
const ATTEMPTS: u32 = 5;
/// Deadline of one request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// Why a check ended early. What was found until then was reported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The metadata store.
    #[error("metadata: {0}")]
    Meta(#[from] MetaError),
    /// The object store.
    #[error("object {key}: {error}")]
    Store {
        /// What was asked for.
        key: String,
        /// The answer.
        error: StoreError,
    },
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckProgress {
    /// Metadata keys read.
    pub keys: u64,
    /// Slice records whose blocks were looked at.
    pub slices: u64,
    /// Slice records in all; 0 until they were counted.
    pub slices_total: u64,
    /// Blocks looked at.
    pub blocks: u64,
    /// Bytes read of them.
    pub bytes: u64,
}

/// What a check went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckSummary {
    /// Of the metadata. (`findings`: of metadata alone)
    pub meta: Summary,
    /// Blocks looked at.
    pub blocks: u64,
    /// Bytes read of them.
    pub bytes: u64,
    /// Findings reported in all.
    pub findings: u64,
}

/// Checks the volume: the invariants of the metadata on one snapshot, then that every block exists in its whole length
/// under its own identity, with `data` also every byte of it.
pub async fn check<E: Env>(
    env: &E,
    volume: &Volume,
    data: bool,
    progress: &mut (dyn FnMut(CheckProgress) + Send),
    found: &mut (dyn FnMut(Finding) + Send),
) -> Result<CheckSummary, CheckError> {
    let shared_progress = Mutex::new(&mut *progress);
    let report_keys = |keys| (*lock(&shared_progress))(CheckProgress { keys, ..CheckProgress::default() });
    let checked = env.meta().read(|read| {
        let mut findings = Vec::new(); // of this run: the store may run it again
        let summary = invariant::check(read, &mut |keys| report_keys(keys), &mut |finding| findings.push(finding))?;
        Ok((summary, findings))
    });
    let (meta, findings) = checked.await?;
    let mut summary = CheckSummary { meta, findings: findings.len() as u64, ..CheckSummary::default() };
    findings.into_iter().for_each(&mut *found);

    let checker = Checker { env, volume, data };
    let mut at = CheckProgress { keys: meta.keys, slices_total: meta.slices, ..CheckProgress::default() };
    let (mut from, end) = keys::all_slices();
    loop {
        let page = env.meta().read(|read| Ok(read.scan(&from, &end, PAGE)?)).await?;
        let Some((last, _)) = page.last() else { break };
        from = [&last[..], &[0]].concat();
        for suspect in checker.check_page(&page, &mut at).await? {
            if let Some(finding) = checker.confirm(&suspect).await? {
                summary.findings += 1;
                found(finding);
            }
        }
        progress(at);
    }
    Ok(CheckSummary { blocks: at.blocks, bytes: at.bytes, ..summary })
}

struct Checker<'a, E: Env> {
    env: &'a E,
    volume: &'a Volume,
    data: bool,
}

/// A block that was not as its record says.
#[derive(Debug)]
struct Suspect {
    /// Key and value of the slice record.
    record: (Bytes, Bytes),
    ino: Ino,
    id: BlockId,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Missing,
    Short,
    Corrupt(BlockError),
}

/// Outcome of looking at one block: bytes read, or what is wrong with it.
type Verdict = Result<Result<u64, Fault>, CheckError>;

impl<E: Env> Checker<'_, E> {
    /// Looks at all blocks of a page of slice records.
    async fn check_page(&self, page: &[(Bytes, Bytes)], at: &mut CheckProgress) -> Result<Vec<Suspect>, CheckError> {
        let geometry = self.volume.geometry;
        let mut jobs = Vec::new();
        for (place, (key, value)) in page.iter().enumerate() {
            // What does not decode or contradicts the geometry was found by `invariant`.
            let (Ok(Key::Slice(ino, _, _)), Ok(record)) = (keys::decode(key), SliceRecord::decode(value)) else {
                continue;
            };
            match record.place {
                Place::Blocks | Place::Home if u64::from(record.stored_len) <= geometry.chunk_size => {
                    jobs.extend(blocks(geometry, record.slice, record.stored_len).map(|id| (place, ino, id)));
                }
                // Inline bytes are covered by the record. Homes are of shared slices, whose blocks are where others are.
                Place::Blocks | Place::Home | Place::Inline(_) | Place::Hole | Place::Reserved => {}
            }
        }
        let mut suspects = Vec::new();
        let mut failed = None;
        let looks = jobs.into_iter().map(|(place, ino, id)| async move { (place, ino, id, self.look(id).await) });
        let limit = || READS;
        run_bounded(limit, looks, |(place, ino, id, verdict)| {
            at.blocks += 1;
            match verdict {
                Ok(Ok(bytes)) => at.bytes += bytes,
                Ok(Err(fault)) => suspects.push(Suspect { record: page[place].clone(), ino, id, fault }),
                Err(error) => failed = Some(error),
            }
            failed.is_none()
        })
        .await;
        at.slices += page.len() as u64;
        suspects.sort_by_key(|suspect| (suspect.ino, suspect.id));
        failed.map_or(Ok(suspects), Err)
    }

    /// Reads a block, or its head and its last byte, and verifies what was read.
    async fn look(&self, id: BlockId) -> Verdict {
        let (volume, frame_size) = (self.volume.id, self.volume.geometry.frame_size);
        let end = object_len(frame_size, id.len);
        if self.data {
            return Ok(match self.get(id, 0..end).await? {
                Ok(object) => verify_object(volume, id, frame_size, &object).map(|_| end).map_err(Fault::Corrupt),
                Err(fault) => Err(fault),
            });
        }
        let head = match self.get(id, 0..u64::from(head_len(frame_size, id.len))).await? {
            Ok(head) => head,
            Err(fault) => return Ok(Err(fault)),
        };
        if let Err(error) = decode_head(volume, id, frame_size, &head) {
            return Ok(Err(Fault::Corrupt(error)));
        }
        Ok(self.get(id, end - 1..end).await?.map(|tail| (head.len() + tail.len()) as u64))
    }

    async fn get(&self, id: BlockId, range: Range<u64>) -> Result<Result<Bytes, Fault>, CheckError> {
        let key = object_key(id);
        let mut attempt = 1;
        loop {
            let deadline = self.env.now() + REQUEST_DEADLINE;
            let answer = timeout(self.env, deadline, self.env.objects().get_stored(&key, range.clone())).await;
            match answer.unwrap_or(Err(StoreError::Retry)) {
                Ok(bytes) => return Ok(Ok(bytes)),
                Err(StoreError::NotFound) => return Ok(Err(Fault::Missing)),
                Err(StoreError::Short) => return Ok(Err(Fault::Short)),
                Err(error @ (StoreError::Full | StoreError::Denied | StoreError::Retry)) if attempt == ATTEMPTS => {
                    return Err(CheckError::Store { key, error });
                }
                Err(StoreError::Full | StoreError::Denied | StoreError::Retry) => attempt += 1,
            }
            self.env.sleep_until(self.env.now() + Duration::from_secs(1)).await;
        }
    }

    /// The finding, unless the record went or changed meanwhile.
    async fn confirm(&self, suspect: &Suspect) -> Result<Option<Finding>, CheckError> {
        let Suspect { record: (key, value), ino, id, fault } = suspect;
        let (ino, id) = (*ino, *id);
        let path = self.env.meta().read(|read| {
            let slice = read.get(key)?.and_then(|value| SliceRecord::decode(&value).ok()).map(|record| record.slice);
            if slice != SliceRecord::decode(value).ok().map(|record| record.slice) {
                return Ok(None);
            }
            match lookup::path_of(read, ino) {
                Ok(path) => Ok(Some(String::from_utf8_lossy(&path).into_owned())),
                Err(OpError::Errno(Errno::ENOENT) | OpError::Damaged(_)) => Ok(Some(format!("(inode {})", ino.0))),
                Err(error @ (OpError::Errno(_) | OpError::Kv(_))) => Err(error),
            }
        });
        let Some(path) = path.await? else { return Ok(None) };
        let object = object_key(id);
        let len = object_len(self.volume.geometry.frame_size, id.len);
        let (kind, text) = match fault {
            Fault::Missing => (FindingKind::MissingBlock, format!("object {object} is not in the store")),
            Fault::Short => {
                (FindingKind::DamagedBlock, format!("object {object} is truncated: it should have {len} bytes"))
            }
            Fault::Corrupt(error) => (FindingKind::DamagedBlock, format!("object {object} is corrupt: {error}")),
        };
        Ok(Some(Finding { kind, ino: Some(ino), path, text }))
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
