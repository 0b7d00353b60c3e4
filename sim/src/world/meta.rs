//! The simulated metadata store: RocksDB's behaviour, crash and all.
//!
//! Owns: latency, conflicts, the position that is synced, what a crash leaves, what was asked about slices.
//! Leaves to others: the versions and validation (`kiseki_core::kv::mem`).
//!
//! Invariants
//! - A power cut drops commits from the end of the log only, and none that a sync has covered.
//! - Only a data commit (one that moves an inode's commit number) may be refused or have an unknown outcome while the
//!   store works: it alone can be repeated without harm.
//! - After a failed sync or write nothing more is taken until the store is opened again; reads go on. Whether the
//!   transaction whose write failed took effect shows then.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::env::{Committed, MetaError, MetaStore, TxnSeq};
use kiseki_core::format::block;
use kiseki_core::format::keys::{self, Key};
use kiseki_core::format::values::{Packed, Value, Volume};
use kiseki_core::kv::mem::{MemKv, TxnWrites};
use kiseki_core::kv::{KvError, OpError, OpResult, Read, Txn};
use kiseki_core::marks::{Mark, reached};
use kiseki_core::testkit::{self, Reads};
use kiseki_core::types::{Attr, BlockId, Place, SliceId, SliceRecord};
use madsim::time::{self, TimeHandle};

use super::Parts;
use super::disk::SimDisk;
use super::objects::SimObjects;
use super::references::References;
use crate::faults::{Ending, Fault};

/// Usual time of one step of a call.
const LATENCY: Duration = Duration::from_millis(1);
/// Usual time between reading and hearing of it, where there is any.
const OLD_NEWS: Duration = Duration::from_millis(8);
/// Usual time of a sync.
const SYNC: Duration = Duration::from_millis(6);
/// A sync that takes long; one in three may take longer than a caller waits.
const SLOW_SYNC: Duration = Duration::from_millis(800);
const STALLED_SYNC: Duration = Duration::from_secs(15);
/// How often a sync that is held up looks whether it still is.
const STALL_STEP: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct State {
    kv: MemKv,
    /// Highest position that no crash takes away.
    durable: TxnSeq,
    /// Highest position that a sync has promised: `durable`, unless syncs are switched off.
    synced: TxnSeq,
    failed: bool,
    /// A transaction whose write failed: part of it may be in the log.
    torn: Option<TxnWrites>,
    epoch: u64,
    /// Until then no sync ends.
    stalled_until: Duration,
}

/// The metadata store; clones are the same.
#[derive(Clone)]
pub struct SimMeta {
    parts: Parts,
    objects: SimObjects,
    disk: SimDisk,
    references: References,
    state: Arc<Mutex<State>>,
}

impl SimMeta {
    pub(super) fn new(parts: Parts, objects: SimObjects, disk: SimDisk, references: References) -> Self {
        Self { parts, objects, disk, references, state: Arc::default() }
    }

    /// Whether the store has failed for good.
    pub fn failed(&self) -> bool {
        self.state.lock().unwrap().failed
    }

    /// Whether a power cut could leave the volume without the log that it has.
    pub(super) fn log_is_unsynced(&self) -> bool {
        let volume = self.peek(|read| Ok(read.get(&keys::volume())?)).expect("memory can be read");
        self.references.home() < volume.map_or(0, |volume| log_of(&volume))
    }

    /// Ends what goes on after the faults have stopped.
    pub fn calm(&self) {
        self.state.lock().unwrap().stalled_until = Duration::ZERO;
    }

    /// Runs `op` without latency or fault, for the judges.
    pub fn peek<T>(&self, op: impl Fn(&mut dyn Read) -> OpResult<T>) -> OpResult<T> {
        testkit::peek_once(&self.state.lock().unwrap().kv, Reads::Direct, op)
    }

    pub(super) fn end(&self, ending: Ending) {
        let mut state = self.state.lock().unwrap();
        state.epoch += 1;
        state.stalled_until = Duration::ZERO;
        let last = state.kv.last();
        let torn = match ending {
            // Also a process that is killed has not yet handed to the kernel all that it has committed.
            Ending::Kill | Ending::PowerCut | Ending::MetaPowerCut => true,
            // Pages whose sync failed are gone, or are not: nothing tells.
            Ending::Unmount => state.failed,
        };
        if torn {
            let unsynced = last.0 - state.durable.0;
            // All, nothing and anything between.
            let keep = match self.parts.dice.below(4) {
                0 => 0,
                1 => unsynced,
                _ => self.parts.dice.below(unsynced + 1),
            };
            if let Some(writes) = state.torn.take()
                && keep == unsynced
                && self.parts.dice.chance(500)
            {
                // One that conflicts would not have come to its write.
                _ = state.kv.commit(writes);
            }
            let keep = if keep == unsynced { state.kv.last().0 - state.durable.0 } else { keep };
            let seq = TxnSeq(state.durable.0 + keep);
            state.kv.rollback_to(seq);
            state.durable = seq;
            state.synced = seq;
        }
        state.failed = false;
        let (start, end) = keys::all_slices();
        let records = testkit::peek_once(&state.kv, Reads::Direct, |read| Ok(read.scan(&start, &end, usize::MAX)?));
        let records = records.expect("memory can be read");
        let home = testkit::peek_once(&state.kv, Reads::Direct, |read| Ok(read.get(&keys::volume())?));
        let home = home.expect("memory can be read").map_or(0, |volume| log_of(&volume));
        let (start, end) = keys::packed_range();
        let packed = testkit::peek_once(&state.kv, Reads::Direct, |read| Ok(read.scan(&start, &end, usize::MAX)?));
        let packed = packed.expect("memory can be read");
        let packed = packed.iter().filter_map(|(key, value)| Some((packed_block(key)?, Packed::decode(value).ok()?)));
        let slices = records.iter().filter_map(|(_, value)| slice_of(value));
        self.references.reset(slices, packed.collect(), state.durable, home);
    }

    /// Whether `writes` moves the commit number of an inode.
    fn is_data_commit(kv: &MemKv, writes: &TxnWrites) -> bool {
        let number = |value: &Bytes| Attr::decode(value).map_or(0, |attr| attr.commit);
        writes.writes().any(|(key, value)| match (keys::decode(key), value) {
            (Ok(Key::Attr(_)), Some(value)) => {
                let old = kv.begin().get(key).ok().flatten();
                old.is_some_and(|old| number(&old) != number(value))
            }
            _ => false,
        })
    }

    /// Commits, and watches what is committed.
    fn commit(&self, state: &mut State, writes: TxnWrites) -> Option<TxnSeq> {
        let old: Vec<(Bytes, Option<Bytes>)> = {
            let mut txn = state.kv.begin();
            let slices = writes.writes().filter(|(key, _)| matches!(keys::decode(key), Ok(Key::Slice(..))));
            slices.map(|(key, _)| (key.clone(), txn.get(key).ok().flatten())).collect()
        };
        let new: Vec<(Bytes, Option<Bytes>)> =
            writes.writes().map(|(key, value)| (key.clone(), value.cloned())).collect();
        let seq = state.kv.commit(writes).ok()?;
        if self.parts.switches.oracles {
            let volume = testkit::peek_once(&state.kv, Reads::Direct, |read| Ok(read.get(&keys::volume())?));
            if let Some(volume) = volume.ok().flatten().and_then(|bytes| Volume::decode(&bytes).ok()) {
                self.watch_commit(&volume, &new);
            }
        }
        let slices = new.iter().filter(|(key, _)| matches!(keys::decode(key), Ok(Key::Slice(..))));
        slices.filter_map(|(_, value)| slice_of(value.as_ref()?)).for_each(|slice| self.references.enter(slice));
        let slices = old.iter().filter_map(|(_, value)| slice_of(value.as_ref()?));
        slices.for_each(|slice| self.references.leave(slice, seq));
        for (key, value) in &new {
            let Some(block) = packed_block(key) else { continue };
            let packed = value.as_ref().and_then(|value| Packed::decode(value).ok());
            if !self.references.enter_packed(block, packed, seq) && self.parts.switches.oracles {
                self.parts.alarm.raise(format!("block {block:?} was deleted, and is in a pack again"));
            }
        }
        let volume = new.iter().find(|(key, _)| *key == keys::volume());
        volume.and_then(|(_, value)| value.as_ref()).into_iter().for_each(|volume| {
            self.references.enter_home(log_of(volume), seq);
        });
        Some(seq)
    }

    /// Objects to a commit of bytes that a power cut could take away.
    fn watch_commit(&self, volume: &Volume, writes: &[(Bytes, Option<Bytes>)]) {
        for (key, value) in writes {
            let Ok(Key::Slice(ino, ..)) = keys::decode(key) else { continue };
            let Some(Ok(record)) = value.as_ref().map(|value| SliceRecord::decode(value)) else { continue };
            if !matches!(record.place, Place::Blocks | Place::Home) {
                continue;
            }
            for id in blocks_of(volume, &record) {
                let key = block::object_key(id);
                let wanted = block::object_len(volume.geometry.frame_size, id.len);
                match self.objects.stored(&key) {
                    Some((len, true)) if len == wanted => {}
                    _ if self.disk.stored(&key, wanted) => {}
                    found => self.parts.alarm.raise(format!(
                        "a commit of {ino:?} refers to {key} ({wanted} bytes), of which the store has {found:?} \
                         (bytes, durable), and the disk of the log nothing durable"
                    )),
                }
            }
        }
    }
}

/// The blocks of a slice with blocks of its own.
pub fn blocks_of(volume: &Volume, record: &SliceRecord) -> Vec<BlockId> {
    let size = volume.geometry.block_size;
    let count = volume.geometry.block_count(record.stored_len);
    let block = |index: u32| {
        let len = size.min(record.stored_len - index * size);
        BlockId { slice: record.slice, index, len }
    };
    (0..count).map(block).collect()
}

fn slice_of(record: &Bytes) -> Option<SliceId> {
    SliceRecord::decode(record).ok().map(|record| record.slice)
}

/// The block that a key speaks of which says where in a pack that is.
fn packed_block(key: &[u8]) -> Option<(SliceId, u32)> {
    match keys::decode(key) {
        Ok(Key::Packed(slice, index)) => Some((slice, index)),
        _ => None,
    }
}

/// Epoch of the log of a volume, 0 if it has none.
fn log_of(volume: &[u8]) -> u64 {
    Volume::decode(volume).ok().and_then(|volume| volume.log).map_or(0, |home| home.epoch)
}

impl MetaStore for SimMeta {
    async fn write<T, F>(&self, op: F) -> Result<Committed<T>, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Txn) -> OpResult<T> + Send + Sync,
    {
        let Parts { faults, .. } = &self.parts;
        faults.called("write");
        let epoch = self.state.lock().unwrap().epoch;
        self.parts.delay(LATENCY).await;
        loop {
            if faults.strikes(Fault::ReadFailed) {
                return Err(OpError::Kv(KvError::Failed).into());
            }
            let reads = if faults.strikes(Fault::Miss) { Reads::MissFirst } else { Reads::Direct };
            let (value, writes) = {
                let state = self.state.lock().unwrap();
                if state.failed || state.epoch != epoch {
                    return Err(MetaError::Failed);
                }
                testkit::attempt(&state.kv, reads, &op)?
            };
            if self.parts.dice.chance(300) {
                self.parts.delay(LATENCY).await;
            }
            if faults.strikes(Fault::Conflict) {
                continue;
            }
            let (seq, lost) = {
                let mut state = self.state.lock().unwrap();
                if state.failed || state.epoch != epoch {
                    return Err(MetaError::Failed);
                }
                let data = Self::is_data_commit(&state.kv, &writes);
                if data {
                    faults.called("data commit");
                    if faults.strikes(Fault::CommitRefused) {
                        return Err(MetaError::Retry);
                    }
                    if faults.strikes(Fault::CommitUnknown) {
                        return Err(MetaError::Unknown);
                    }
                }
                if !writes.is_empty() && faults.strikes(Fault::WriteFailed) {
                    (state.failed, state.torn) = (true, Some(writes));
                    return Err(MetaError::Unknown);
                }
                let Some(seq) = self.commit(&mut state, writes) else {
                    reached(Mark::ConflictRetried);
                    continue;
                };
                (seq, data && faults.strikes(Fault::CommitAnswerLost))
            };
            self.parts.delay(LATENCY).await;
            return if lost { Err(MetaError::Unknown) } else { Ok(Committed { value, seq }) };
        }
    }

    async fn read<T, F>(&self, op: F) -> Result<T, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Read) -> OpResult<T> + Send + Sync,
    {
        self.parts.faults.called("read");
        let (epoch, began) = {
            let state = self.state.lock().unwrap();
            (state.epoch, state.kv.last())
        };
        // A snapshot is of any moment since the call.
        let early = self.parts.dice.chance(200);
        self.parts.delay(if early { OLD_NEWS } else { LATENCY / 2 }).await;
        if self.parts.faults.strikes(Fault::ReadFailed) {
            return Err(OpError::Kv(KvError::Failed).into());
        }
        let reads = if self.parts.faults.strikes(Fault::Miss) { Reads::MissFirst } else { Reads::Direct };
        let value = {
            let state = self.state.lock().unwrap();
            let at = if early && state.epoch == epoch { began } else { state.kv.last() };
            testkit::peek_at(&state.kv, at, reads, &op)
        };
        // What was read may be old by the time it arrives.
        if self.parts.dice.chance(200) {
            self.parts.delay(OLD_NEWS).await;
        }
        value.map_err(|error: OpError| error.into())
    }

    fn last(&self) -> TxnSeq {
        self.state.lock().unwrap().kv.last()
    }

    fn synced(&self) -> TxnSeq {
        self.state.lock().unwrap().synced
    }

    async fn sync(&self, seq: TxnSeq) -> Result<(), MetaError> {
        self.parts.faults.called("sync");
        let (epoch, target) = {
            let state = self.state.lock().unwrap();
            (state.epoch, state.kv.last())
        };
        assert!(seq <= target, "a sync of what is not committed yet");
        if self.parts.faults.strikes(Fault::SlowSync) {
            let most = if self.parts.dice.chance(333) { STALLED_SYNC } else { SLOW_SYNC };
            let now = TimeHandle::current().elapsed();
            let until = now + self.parts.dice.time_below(most);
            let mut state = self.state.lock().unwrap();
            // One stall ends before the next begins: a client that asks often would prolong it for ever.
            if state.stalled_until <= now {
                state.stalled_until = until;
            }
        }
        self.parts.delay(SYNC).await;
        loop {
            let stalled_until = self.state.lock().unwrap().stalled_until;
            let left = stalled_until.saturating_sub(TimeHandle::current().elapsed());
            time::sleep(left.min(STALL_STEP)).await;
            if left <= STALL_STEP {
                break;
            }
        }
        let failed = {
            let mut state = self.state.lock().unwrap();
            if state.failed || state.epoch != epoch {
                return Err(MetaError::Failed);
            }
            state.failed = self.parts.faults.strikes(Fault::SyncFailed);
            if !state.failed {
                state.synced = state.synced.max(target);
                if self.parts.switches.sync {
                    state.durable = state.durable.max(target);
                    self.references.synced(target);
                }
            }
            state.failed
        };
        self.parts.delay(LATENCY).await;
        if failed { Err(MetaError::Failed) } else { Ok(()) }
    }
}
