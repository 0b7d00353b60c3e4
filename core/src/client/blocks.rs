//! Reading blocks: from the cache, from a fetch that is under way, or from the store; always verified.
//!
//! Owns: the block cache, one fetch per block however many ask.
//! Leaves to others: which bytes of a file a block holds (`file`), what the cache keeps (`store::cache`).
//!
//! Invariants
//! - No byte leaves here that was not verified against checksums bound to volume, slice, index and length.
//! - Buffers are owned: what a late answer of the store writes to, nobody else has.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Mutex;

use bytes::Bytes;

use super::budget::Budget;
use super::std;
use super::upkeep::Guard;
use super::wait::{Flight, flight, join_all, lock, timeout};
use crate::env::{Env, ObjectStore, StoreError};
use crate::format::block::{BlockError, Head, decode_head, head_len, object_key, object_len, split_object};
use crate::format::values::Volume;
use crate::marks::{Mark, reached, reached_if};
use crate::planted::{self, Bug};
use crate::store::cache::{CacheShard, shard_of};
use crate::types::{BlockId, SliceId, VolumeId};

const SHARDS: usize = 16;
/// Heads of blocks that each shard keeps: with 16 of them those of 8 GiB in full blocks, in 4.3 MiB.
const HEADS_MAX: usize = 128;
/// Bytes fetched ahead and not in the cache yet, at most: four blocks of 4 MiB for each of four readers.
const AHEAD_MAX: u64 = 64 << 20;
/// A damaged or short answer is asked for again so many times before it counts as damage of the object.
const DAMAGED_TRIES: u32 = 4;

#[derive(Debug)]
struct Shard {
    cache: CacheShard,
    /// Heads of blocks that were stored, or of which anything was read, each verified by its own checksum; in `head_order`
    /// the oldest first.
    heads: BTreeMap<(SliceId, u32), Arc<Head>>,
    head_order: VecDeque<(SliceId, u32)>,
    flights: BTreeMap<(SliceId, u32), Flight<Result<Bytes, Unreadable>>>,
}

/// A block that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) id: BlockId,
    pub(super) fault: Fault,
}

/// Why a block could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The store gave nothing.
    #[error(transparent)]
    Store(StoreError),
    /// What the store gives is not the block.
    #[error(transparent)]
    Damaged(BlockError),
}

impl Shard {
    fn keep_head(&mut self, id: BlockId, head: Arc<Head>) {
        let key = (id.slice, id.index);
        // Two may have asked at once.
        if self.heads.insert(key, head).is_none() {
            self.head_order.push_back(key);
        }
        if HEADS_MAX < self.heads.len()
            && let Some(oldest) = self.head_order.pop_front()
        {
            self.heads.remove(&oldest);
        }
    }
}

struct Inner<E: Env> {
    env: E,
    volume: VolumeId,
    frame_size: u32,
    /// See `Options::whole_max`.
    whole_max: u32,
    timeout: Duration,
    shards: Vec<Mutex<Shard>>,
    /// Bytes that the cache may always hold.
    own: u64,
    /// Bytes that it may hold beside these for now; `lending` while that changes.
    lent: AtomicU64,
    lending: Mutex<()>,
    /// Permits for bytes fetched ahead that are not in the cache yet.
    ahead: Budget,
}

/// Clones are the same.
pub(super) struct Blocks<E: Env>(Arc<Inner<E>>);

impl<E: Env> Clone for Blocks<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// How much of a block to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetch {
    /// All of it: the rest will be read soon.
    Whole,
    /// What was asked for, unless it is much of the block.
    Part,
}

impl<E: Env> Blocks<E> {
    /// `bytes` of memory, for the cache and for what is fetched ahead of its readers.
    pub(super) fn new(env: E, volume: &Volume, bytes: u64, whole_max: u32, timeout: Duration) -> Self {
        let ahead = (bytes / 4).min(AHEAD_MAX);
        let cache = bytes - ahead;
        // A shard must hold what several readers have fetched ahead, or it evicts what was not read yet.
        let count = (cache / (16 * u64::from(volume.geometry.block_size))).clamp(1, SHARDS as u64);
        let shard = |_| {
            let (heads, head_order, flights) = (BTreeMap::new(), VecDeque::new(), BTreeMap::new());
            Mutex::new(Shard { cache: CacheShard::new(cache / count), heads, head_order, flights })
        };
        let shards = (0..count).map(shard).collect();
        let frame_size = volume.geometry.frame_size;
        let (ahead, lent, lending) = (Budget::new(ahead), AtomicU64::new(0), Mutex::new(()));
        let volume = volume.id;
        let inner = Inner { env, volume, frame_size, whole_max, timeout, shards, own: cache, lent, lending, ahead };
        Self(Arc::new(inner))
    }

    /// Bytes that the cache may hold beside those of its own.
    pub(super) fn lent(&self) -> u64 {
        self.0.lent.load(Ordering::Acquire)
    }

    /// From here on that is what `spare` says, which is asked while nobody else changes it.
    pub(super) fn lend(&self, spare: impl FnOnce() -> u64) {
        let inner = &self.0;
        let _lending = lock(&inner.lending);
        let spare = spare();
        let capacity = (inner.own + spare) / inner.shards.len() as u64;
        // What is not given back yet counts as lent.
        inner.lent.fetch_max(spare, Ordering::AcqRel);
        inner.shards.iter().for_each(|shard| lock(shard).cache.set_capacity(capacity));
        inner.lent.store(spare, Ordering::Release);
        inner.env.objects().trim();
    }

    /// Keeps a block that was just stored.
    pub(super) fn insert(&self, id: BlockId, payload: Bytes) {
        lock(self.0.shard(id)).cache.insert(id.slice, id.index, payload);
        self.0.env.objects().trim();
    }

    /// Lets go of a block that is gone.
    pub(super) fn forget(&self, id: BlockId) {
        lock(self.0.shard(id)).cache.remove(id.slice, id.index);
    }

    /// Keeps the head of a block that was just stored, if parts of it may be asked for.
    pub(super) fn note_head(&self, id: BlockId, head: &[u8]) {
        let inner = &self.0;
        if id.len > inner.whole_max
            && let Ok(head) = decode_head(inner.volume, id, inner.frame_size, head)
        {
            lock(inner.shard(id)).keep_head(id, Arc::new(head));
        }
    }

    /// Bytes cached.
    pub(super) fn cached_bytes(&self) -> u64 {
        self.0.shards.iter().map(|shard| lock(shard).cache.len_bytes()).sum()
    }

    /// `[off, off + len)` of a block's payload if it is cached.
    pub(super) fn cached(&self, id: BlockId, off: u32, len: u32) -> Option<Bytes> {
        lock(self.0.shard(id)).cache.get(id.slice, id.index).map(|payload| part(&payload, off, len))
    }

    /// `[off, off + len)` of a block's payload.
    pub(super) async fn read(&self, id: BlockId, off: u32, len: u32, fetch: Fetch) -> Result<Bytes, Unreadable> {
        if fetch == Fetch::Part && id.len > self.0.whole_max && len < id.len / 4 {
            if let Some(bytes) = self.cached(id, off, len) {
                return Ok(bytes);
            }
            reached(Mark::FetchedPart);
            return self.0.fetch_part(id, off, len).await;
        }
        self.0.whole(id).await.map(|payload| part(&payload, off, len))
    }

    /// Fetches a block into the cache, in the background, if memory is free; `reading` keeps it from being deleted
    /// meanwhile.
    pub(super) fn prefetch(&self, id: BlockId, reading: Guard) {
        let wanted = {
            let mut shard = lock(self.0.shard(id));
            !shard.flights.contains_key(&(id.slice, id.index)) && shard.cache.get(id.slice, id.index).is_none()
        };
        if wanted && self.0.ahead.try_take(u64::from(id.len)) {
            reached(Mark::FetchedAhead);
            let inner = self.0.clone();
            self.0.env.spawn(async move {
                // Whoever reads the block asks again and gets the error.
                let _ = inner.whole(id).await;
                inner.ahead.give(u64::from(id.len));
                drop(reading);
            });
        }
    }
}

impl<E: Env> Inner<E> {
    fn shard(&self, id: BlockId) -> &Mutex<Shard> {
        &self.shards[shard_of(id.slice, id.index, self.shards.len())]
    }

    async fn whole(&self, id: BlockId) -> Result<Bytes, Unreadable> {
        let key = (id.slice, id.index);
        loop {
            self.env.pause().await;
            let (waiting, publisher) = {
                let mut shard = lock(self.shard(id));
                if let Some(payload) = shard.cache.get(id.slice, id.index) {
                    return Ok(payload);
                }
                match shard.flights.get(&key) {
                    Some(flight) => {
                        reached(Mark::ReadJoinedFetch);
                        (Some(flight.wait()), None)
                    }
                    None => {
                        let (publisher, flight) = flight();
                        shard.flights.insert(key, flight);
                        (None, Some(publisher))
                    }
                }
            };
            let Some(publisher) = publisher else {
                // `None`: the fetching future was dropped; one of those who wait fetches instead.
                match waiting.expect("either of the two").await {
                    Some(result) => return result,
                    None => continue,
                }
            };
            let mut landing = Landing { shard: self.shard(id), key, payload: None };
            let result = self.fetch_whole(id).await;
            landing.payload = result.as_ref().ok().cloned();
            drop(landing);
            self.env.objects().trim();
            publisher.publish(result.clone());
            return result;
        }
    }

    async fn fetch_whole(&self, id: BlockId) -> Result<Bytes, Unreadable> {
        let len = object_len(self.frame_size, id.len);
        self.patiently(id, async || {
            let object = self.env.objects().get(&object_key(id), 0..len).await.map_err(Fault::Store)?;
            if planted::is(Bug::CacheUnverified) {
                let payload = object.slice(head_len(self.frame_size, id.len) as usize..);
                lock(self.shard(id)).cache.insert(id.slice, id.index, payload);
            }
            let split = split_object(self.volume, id, self.frame_size, &object);
            let (head, payload) = split.map_err(Fault::Damaged)?;
            if id.len > self.whole_max {
                lock(self.shard(id)).keep_head(id, Arc::new(head));
            }
            Ok(payload)
        })
        .await
    }

    /// Fetches the frames around `[off, off + len)`, and the head that verifies them unless it is known.
    async fn fetch_part(&self, id: BlockId, off: u32, len: u32) -> Result<Bytes, Unreadable> {
        let head_len = head_len(self.frame_size, id.len);
        let first = off / self.frame_size;
        let from = first * self.frame_size;
        let to = (off + len).next_multiple_of(self.frame_size).min(id.len);
        let key = object_key(id);
        self.patiently(id, async || {
            let known = lock(self.shard(id)).heads.get(&(id.slice, id.index)).cloned();
            reached_if(Mark::HeadKnown, || known.is_some());
            let ranges = [u64::from(head_len + from)..u64::from(head_len + to), 0..u64::from(head_len)];
            let wanted = if known.is_some() { 1 } else { 2 };
            let gets = ranges.into_iter().take(wanted).map(|range| self.env.objects().get(&key, range));
            let mut answers = join_all(gets).await.into_iter();
            let frames = answers.next().expect("it was asked for").map_err(Fault::Store)?;
            let head = match known {
                Some(head) => head,
                None => {
                    let head = answers.next().expect("it was asked for").map_err(Fault::Store)?;
                    let head = decode_head(self.volume, id, self.frame_size, &head).map_err(Fault::Damaged)?;
                    let head = Arc::new(head);
                    lock(self.shard(id)).keep_head(id, head.clone());
                    head
                }
            };
            head.verify(first, &frames).map_err(Fault::Damaged)?;
            Ok(part(&frames, off - from, len))
        })
        .await
    }

    /// Tries until the answer is good, damage is certain or the time is up.
    async fn patiently<F>(&self, id: BlockId, attempt: impl Fn() -> F) -> Result<Bytes, Unreadable>
    where
        F: Future<Output = Result<Bytes, Fault>>,
    {
        let patience = if planted::is(Bug::GetWithoutDeadline) { 60 * self.timeout } else { self.timeout };
        let deadline = self.env.now() + patience;
        let mut tries = 0;
        let mut damaged = 0;
        loop {
            let fault = match timeout(&self.env, deadline, attempt()).await {
                Some(Ok(bytes)) => return Ok(bytes),
                Some(Err(fault)) => fault,
                None => {
                    reached(Mark::GetOutOfTime);
                    Fault::Store(StoreError::Retry)
                }
            };
            if planted::is(Bug::FailedGetIsHole) && matches!(fault, Fault::Store(StoreError::Retry)) {
                return Ok(Bytes::from(alloc::vec![0; id.len as usize]));
            }
            if let Fault::Damaged(_) = fault {
                self.env.objects().distrust(&object_key(id));
            }
            match fault {
                Fault::Damaged(_) | Fault::Store(StoreError::Short) if damaged + 1 < DAMAGED_TRIES => {
                    reached(Mark::TornGetRetried);
                    damaged += 1;
                }
                Fault::Store(StoreError::Retry | StoreError::Full) if self.env.now() < deadline => {}
                Fault::Damaged(_) | Fault::Store(_) => return Err(Unreadable { id, fault }),
            }
            let delay = Duration::from_millis(10 << tries.min(8));
            tries += 1;
            self.env.sleep_until(self.env.now() + delay).await;
        }
    }
}

/// Ends a flight: the block goes into the cache, the flight out of the table, also if the fetch was dropped.
struct Landing<'a> {
    shard: &'a Mutex<Shard>,
    key: (SliceId, u32),
    payload: Option<Bytes>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut shard = lock(self.shard);
        shard.flights.remove(&self.key);
        if let Some(payload) = self.payload.take() {
            shard.cache.insert(self.key.0, self.key.1, payload);
        }
    }
}

fn part(payload: &Bytes, off: u32, len: u32) -> Bytes {
    payload.slice(off as usize..(off + len) as usize)
}
