//! One shard of the block cache: verified payloads of immutable blocks, under a budget of bytes.
//!
//! Owns: which blocks stay. Leaves to others: the lock around a shard, fetching, verifying.
//!
//! A block enters on *probation*, a queue in order of arrival. The kernel reads a block in many small pieces, so hits
//! soon after the arrival say nothing; only a hit once `1 / RECENT_PART` of the budget has arrived behind it, or a
//! return after it left (remembered by key in the *ghost* queue), moves it to the *main* queue, which is a clock with a
//! small count of hits. So one pass over a large file turns over the probation and leaves the main queue alone.
//! (2Q, Johnson and Shasha 1994, with the main queue of S3-FIFO, Yang et al. 2023.)
//!
//! Invariants
//! - Never more than the budget is held, bookkeeping of entries included.
//! - Every entry is in exactly one queue; queue places whose entry is gone never outnumber the others by much.
//! - The same calls give the same cache.

use alloc::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::types::SliceId;

/// What an entry takes beside its payload: map and queue places, the shared buffer's header.
pub const ENTRY_OVERHEAD: u64 = 192;

/// The probation is emptied first once it passes this part of the budget. (2Q takes 25 percent; here it also holds what
/// was fetched ahead of several readers.)
const PROBATION_PART: u64 = 2;
/// Hits while less than this part of the budget has arrived since belong to the read that brought the block.
const RECENT_PART: u64 = 4;
/// Keys are remembered for as many evicted bytes as this part of the budget. (2Q: 50 percent)
const GHOST_PART: u64 = 2;
/// Laps that a much-used entry of the main queue survives without a hit. (S3-FIFO: 3)
const HITS_MAX: u8 = 3;
/// Dead queue places that are tolerated before a queue is rebuilt, beyond as many as there are live ones.
const DEAD_SLACK: usize = 16;

/// Which of `shards` (at least 1) caches the block. Neighbours spread, so that a long slice uses all of them.
pub fn shard_of(slice: SliceId, index: u32, shards: usize) -> usize {
    // Fibonacci hashing: the odd constant is 2^64 divided by the golden ratio.
    let mixed = (slice.0.wrapping_mul(31).wrapping_add(u64::from(index))).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 32) % shards as u64) as usize
}

type BlockKey = (SliceId, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Probation,
    Main,
}

#[derive(Debug)]
struct Entry {
    payload: Bytes,
    segment: Segment,
    /// Its place in the queue; a place with another stamp under the same key is dead.
    stamp: u64,
    /// `arrived` when it came in.
    born: u64,
    /// Hits that count, up to `HITS_MAX`.
    hits: u8,
}

/// A queue of keys in order; places of entries that left by another way than the front stay behind, dead.
#[derive(Debug, Default)]
struct Queue {
    places: VecDeque<(BlockKey, u64)>,
    /// Live places.
    live: usize,
    /// Cost of the live entries.
    bytes: u64,
}

impl Queue {
    fn push(&mut self, key: BlockKey, stamp: u64, cost: u64) {
        self.places.push_back((key, stamp));
        self.live += 1;
        self.bytes += cost;
    }

    /// Counts an entry out, whose place is removed or dead.
    fn leave(&mut self, cost: u64) {
        self.live -= 1;
        self.bytes -= cost;
    }
}

/// A shard of the block cache.
#[derive(Debug)]
pub struct CacheShard {
    capacity: u64,
    entries: BTreeMap<BlockKey, Entry>,
    probation: Queue,
    main: Queue,
    /// Cost of what left the probation lately, by key.
    ghosts: BTreeMap<BlockKey, (u64, u64)>,
    ghost_queue: Queue,
    next_stamp: u64,
    /// Cost of everything that ever came in.
    arrived: u64,
}

fn cost(payload: &Bytes) -> u64 {
    payload.len() as u64 + ENTRY_OVERHEAD
}

impl CacheShard {
    /// An empty shard for `capacity` bytes. 0 caches nothing.
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            entries: BTreeMap::new(),
            probation: Queue::default(),
            main: Queue::default(),
            ghosts: BTreeMap::new(),
            ghost_queue: Queue::default(),
            next_stamp: 0,
            arrived: 0,
        }
    }

    /// Bytes held, bookkeeping of entries included. (<= the capacity)
    pub fn len_bytes(&self) -> u64 {
        self.probation.bytes + self.main.bytes
    }

    /// Number of blocks held.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The block's payload, if it is here.
    pub fn get(&mut self, slice: SliceId, index: u32) -> Option<Bytes> {
        let entry = self.entries.get_mut(&(slice, index))?;
        let counts = match entry.segment {
            Segment::Main => true,
            Segment::Probation => self.capacity / RECENT_PART <= self.arrived - entry.born,
        };
        if counts && entry.hits < HITS_MAX {
            entry.hits += 1;
        }
        Some(entry.payload.clone())
    }

    /// Keeps the payload of a block, at the expense of others. Blocks are immutable: one that is here stays as it is.
    /// A payload larger than the shard is not kept.
    pub fn insert(&mut self, slice: SliceId, index: u32, payload: Bytes) {
        let key = (slice, index);
        let cost = cost(&payload);
        if self.capacity < cost || self.entries.contains_key(&key) {
            return;
        }
        let segment = if self.forget_ghost(key) { Segment::Main } else { Segment::Probation };
        let entry = Entry { payload, segment, stamp: self.stamp(), born: self.arrived, hits: 0 };
        self.arrived += cost;
        self.queue(segment).push(key, entry.stamp, cost);
        self.entries.insert(key, entry);
        self.evict();
    }

    /// Holds `capacity` bytes at most from here on.
    pub fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
        self.evict();
        self.trim_ghosts();
    }

    /// Drops a block that is gone.
    pub fn remove(&mut self, slice: SliceId, index: u32) {
        let key = (slice, index);
        if let Some(entry) = self.entries.remove(&key) {
            self.queue(entry.segment).leave(cost(&entry.payload));
            self.bury();
        }
        self.forget_ghost(key);
    }

    /// Drops all blocks.
    pub fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }

    fn queue(&mut self, segment: Segment) -> &mut Queue {
        match segment {
            Segment::Probation => &mut self.probation,
            Segment::Main => &mut self.main,
        }
    }

    fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }

    fn evict(&mut self) {
        while self.capacity < self.len_bytes() {
            if self.main.live == 0 || self.capacity / PROBATION_PART < self.probation.bytes {
                self.evict_from_probation();
            } else {
                self.evict_from_main();
            }
        }
    }

    /// Takes the oldest entry of the probation: to the main queue if it was wanted again, out otherwise.
    fn evict_from_probation(&mut self) {
        while let Some((key, stamp)) = self.probation.places.pop_front() {
            let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.stamp == stamp) else { continue };
            let cost = cost(&entry.payload);
            self.probation.leave(cost);
            if 0 < entry.hits {
                entry.hits = 0;
                entry.segment = Segment::Main;
                self.main.push(key, stamp, cost);
            } else {
                self.entries.remove(&key);
                self.remember_ghost(key, cost);
            }
            return;
        }
    }

    /// Turns the clock until one entry without hits is out.
    fn evict_from_main(&mut self) {
        while let Some((key, stamp)) = self.main.places.pop_front() {
            let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.stamp == stamp) else { continue };
            if 0 < entry.hits {
                entry.hits -= 1;
                self.main.places.push_back((key, stamp));
                continue;
            }
            let cost = cost(&entry.payload);
            self.entries.remove(&key);
            self.main.leave(cost);
            return;
        }
    }

    fn remember_ghost(&mut self, key: BlockKey, cost: u64) {
        let stamp = self.stamp();
        self.ghosts.insert(key, (stamp, cost));
        self.ghost_queue.push(key, stamp, cost);
        self.trim_ghosts();
    }

    fn trim_ghosts(&mut self) {
        while self.capacity / GHOST_PART < self.ghost_queue.bytes {
            let Some((key, stamp)) = self.ghost_queue.places.pop_front() else { break };
            if self.ghosts.get(&key).is_some_and(|ghost| ghost.0 == stamp) {
                let ghost = self.ghosts.remove(&key);
                self.ghost_queue.leave(ghost.map_or(0, |(_, cost)| cost));
            }
        }
    }

    /// Whether the block left lately; it is a ghost no more.
    fn forget_ghost(&mut self, key: BlockKey) -> bool {
        let Some((_, cost)) = self.ghosts.remove(&key) else { return false };
        self.ghost_queue.leave(cost);
        if 2 * self.ghost_queue.live + DEAD_SLACK < self.ghost_queue.places.len() {
            let ghosts = &self.ghosts;
            self.ghost_queue.places.retain(|(key, stamp)| ghosts.get(key).is_some_and(|ghost| ghost.0 == *stamp));
        }
        true
    }

    /// Rebuilds queues that are mostly dead places; paid for by the removals that made them so.
    fn bury(&mut self) {
        let entries = &self.entries;
        for queue in [&mut self.probation, &mut self.main] {
            if 2 * queue.live + DEAD_SLACK < queue.places.len() {
                queue.places.retain(|(key, stamp)| entries.get(key).is_some_and(|entry| entry.stamp == *stamp));
            }
        }
    }

    /// Checks the invariants of the whole structure; for tests and simulation.
    pub fn check(&self) {
        assert!(self.len_bytes() <= self.capacity);
        for (segment, queue) in [(Segment::Probation, &self.probation), (Segment::Main, &self.main)] {
            let held = || self.entries.values().filter(|entry| entry.segment == segment);
            assert_eq!(held().count(), queue.live);
            assert_eq!(held().map(|entry| cost(&entry.payload)).sum::<u64>(), queue.bytes);
            let placed = |(key, stamp): &&(BlockKey, u64)| {
                self.entries.get(key).is_some_and(|entry| entry.stamp == *stamp && entry.segment == segment)
            };
            assert_eq!(queue.places.iter().filter(placed).count(), queue.live);
        }
        assert_eq!(self.ghosts.len(), self.ghost_queue.live);
        assert_eq!(self.ghosts.values().map(|ghost| ghost.1).sum::<u64>(), self.ghost_queue.bytes);
        assert!(self.ghost_queue.bytes <= self.capacity / GHOST_PART);
        let placed = |(key, stamp): &&(BlockKey, u64)| self.ghosts.get(key).is_some_and(|ghost| ghost.0 == *stamp);
        assert_eq!(self.ghost_queue.places.iter().filter(placed).count(), self.ghost_queue.live);
        assert!(self.ghosts.keys().all(|key| !self.entries.contains_key(key)));
        assert!(self.entries.values().all(|entry| entry.hits <= HITS_MAX && entry.born < self.arrived));
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;
    use crate::testkit::rng::Rng;

    /// Payload that makes an entry cost 1000 bytes.
    fn payload(tag: u64) -> Bytes {
        let mut bytes = vec![0; 1000 - ENTRY_OVERHEAD as usize];
        bytes[..8].copy_from_slice(&tag.to_be_bytes());
        bytes.into()
    }

    fn shard(blocks: u64) -> CacheShard {
        CacheShard::new(blocks * 1000)
    }

    fn read(shard: &mut CacheShard, slice: u64, index: u32) -> bool {
        let hit = shard.get(SliceId(slice), index).is_some();
        if !hit {
            shard.insert(SliceId(slice), index, payload(slice));
        }
        shard.check();
        hit
    }

    #[test]
    fn holds_what_fits() {
        let mut shard = shard(8);
        for index in 0..8 {
            assert!(!read(&mut shard, 1, index));
        }
        assert_eq!((shard.count(), shard.len_bytes()), (8, 8000));
        assert!((0..8).all(|index| read(&mut shard, 1, index)));
    }

    #[test]
    fn too_large_or_present_changes_nothing() {
        let mut shard = shard(2);
        shard.insert(SliceId(1), 0, vec![0; 2000].into());
        assert_eq!(shard.count(), 0);
        shard.insert(SliceId(1), 0, payload(1));
        shard.insert(SliceId(1), 0, payload(2));
        assert_eq!(shard.get(SliceId(1), 0), Some(payload(1)));
        let mut none = CacheShard::new(0);
        none.insert(SliceId(1), 0, Bytes::new());
        assert_eq!(none.count(), 0);
        none.check();
    }

    #[test]
    fn one_pass_over_a_large_file_leaves_the_working_set_alone() {
        let mut shard = shard(64);
        for round in 0..4 {
            for index in 0..40 {
                read(&mut shard, 1, index);
            }
            for index in 0..40 {
                read(&mut shard, 2 + round, index);
            }
        }
        let hot: Vec<u32> = (0..40).filter(|index| shard.get(SliceId(1), *index).is_some()).collect();
        assert!(30 < hot.len(), "{hot:?}");
        for index in 0..2_000 {
            for _piece in 0..8 {
                read(&mut shard, 9, index); // the kernel reads a block piece by piece
            }
        }
        let kept = hot.iter().filter(|index| shard.get(SliceId(1), **index).is_some()).count();
        assert!(hot.len() * 9 / 10 <= kept, "{kept} of {} kept", hot.len());
    }

    #[test]
    fn wanted_again_later_moves_to_the_main_queue() {
        let mut shard = shard(64);
        read(&mut shard, 1, 0);
        for index in 0..32 {
            read(&mut shard, 2, index);
        }
        assert!(read(&mut shard, 1, 0));
        for index in 100..1000 {
            read(&mut shard, 2, index);
        }
        assert!(shard.get(SliceId(1), 0).is_some());
        assert!(shard.get(SliceId(2), 0).is_none());
    }

    #[test]
    fn removed_blocks_leave_nothing_behind() {
        let mut shard = shard(16);
        for round in 0..2000 {
            for index in 0..20 {
                read(&mut shard, round, index);
            }
            (0..20).for_each(|index| shard.remove(SliceId(round), index));
            shard.check();
            assert_eq!((shard.count(), shard.len_bytes(), shard.ghosts.len()), (0, 0, 0));
            assert!(shard.probation.places.len() + shard.main.places.len() + shard.ghost_queue.places.len() < 150);
        }
        shard.clear();
        shard.check();
    }

    #[test]
    fn shards_share_a_long_slice_evenly() {
        let mut counts = [0; 8];
        for slice in 4096..4196 {
            for index in 0..16 {
                counts[shard_of(SliceId(slice), index, 8)] += 1;
            }
        }
        assert!(counts.iter().all(|count| (150..=250).contains(count)), "{counts:?}");
    }

    /// Against a plain map of everything ever inserted: what is served is right, what is removed is gone, and the
    /// invariants hold after every step.
    #[test]
    fn random_calls_serve_only_what_was_inserted() {
        for seed in 1..=8 {
            let mut rng = Rng::new(seed);
            let mut model: BTreeMap<BlockKey, Bytes> = BTreeMap::new();
            let mut shard = CacheShard::new(20_000);
            let mut hits = 0;
            for step in 0..5_000u64 {
                let key = (SliceId(rng.below(12)), rng.below(6) as u32);
                match rng.below(20) {
                    0 => {
                        shard.remove(key.0, key.1);
                        model.remove(&key);
                    }
                    1..=9 => {
                        let payload = Bytes::from(vec![step as u8; rng.below(3_000) as usize]);
                        model.entry(key).or_insert_with(|| payload.clone());
                        let immutable = model[&key].clone();
                        shard.insert(key.0, key.1, immutable);
                    }
                    _ => {
                        if let Some(payload) = shard.get(key.0, key.1) {
                            hits += 1;
                            assert_eq!(Some(&payload), model.get(&key));
                        }
                    }
                }
                shard.check();
            }
            assert!(200 < hits, "{hits}");
        }
    }
}
