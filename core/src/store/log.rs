//! The machine of the write-back log: which objects are in it, which of its bytes are durable, what is to be put into
//! the object store, and which segments nobody needs.
//!
//! Owns: the index of objects, places for records; `durability` has what syncs cover, `leave` uploads, deletion and
//! segments that go, `pack` what goes in packs, `kept` what can be read of segments that have gone.
//! Leaves to others: files and requests (`client::log` executes and reports back), layouts (`format::log`), what was
//! there at the start (`recover`).
//!
//! Invariants
//! - The body of a record stays in memory until a sync that began after its write has returned; a long one after that until
//!   it is put, but no longer than others hold it anyway.
//! - An object leaves the index only once it is in the store, past a barrier that began after its put, or deleted.
//! - Segments go in the order of their numbers, so a `Delete` outlives every record that it speaks of; the newest alone
//!   takes records.
//! - A segment goes only when each of its objects has left; one with damage is set aside, not removed.
//! - Objects are put in the order in which they were staged, but for those that wait for a pack to fill.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use bytes::Bytes;

use crate::format::log::{
    Content, Frontier, Kind, RECORDS_AT, Segment as SegmentHead, Sum, body_at, encode_record, next_at,
};
use crate::planted::{self, Bug};
use crate::types::{PackId, VolumeId};

use self::kept::Kept;
use self::pack::Packs;

mod durability;
mod kept;
mod leave;
mod pack;
mod recover;

pub use durability::{Lost, Sync};
pub use pack::{Packing, Stored};
pub use recover::{Damage, Found, claims};

/// Puts that fail are passed by at most so many others.
const AHEAD: usize = 64;

/// A stretch of the log that a record may be written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Which segment.
    pub segment: u64,
    /// Where the record begins.
    pub at: u64,
    /// Header and key of the record, up to where its body follows.
    pub head: Bytes,
    /// What the body is verified by.
    sum: Sum,
    /// In the order of all records.
    order: u64,
}

/// Where a record goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Here; to be ended with `handle_written` or `handle_write_failed`.
    At(Slot),
    /// A segment is to be made first: `begin_segment`.
    NeedSegment,
    /// A segment is being made.
    Wait,
    /// The log has its size.
    Full,
}

/// Where the bytes of an object are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BytesAt {
    /// In memory.
    Memory(Vec<Bytes>),
    /// In a segment.
    Disk {
        /// Which.
        segment: u64,
        /// Where.
        range: Range<u64>,
        /// What the whole body is verified by.
        sum: Sum,
    },
}

/// An object that is to be put into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Its key.
    pub key: String,
    /// Tells it from others of the same key.
    pub order: u64,
    /// Its bytes.
    pub body: BytesAt,
}

/// What is in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Objects that are not in the store yet.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest of them was staged, on the clock of `Env::now`; those of earlier mounts count from the start of
    /// this one.
    pub since: Option<Duration>,
    /// Segments that a later mount would find.
    pub segments: u64,
    /// Their size.
    pub log_bytes: u64,
    /// Size of segments that no later mount finds, of which objects are read that the store has, too.
    pub kept_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be put; may be tried from `retry_at` on.
    Waiting { retry_at: Duration, attempts: u32 },
    /// A put is under way.
    Running { attempts: u32 },
    /// In the store, but no barrier covers it.
    Put,
    /// In a pack past a barrier; the metadata is being told.
    Recording,
    /// In the store for good.
    Settled,
}

#[derive(Clone, Debug)]
struct Entry {
    order: u64,
    /// Segment and where its bytes begin there. `None`: a sync has failed, and they are in memory only.
    place: Option<(u64, u64)>,
    len: u64,
    sum: Sum,
    /// At least until a sync covers the record.
    body: Option<Vec<Bytes>>,
    state: State,
    since: Duration,
    deleting: bool,
    /// It goes by itself.
    alone: bool,
    /// The pack that it is in, or is being put in.
    pack: Option<PackId>,
}

impl Entry {
    /// When it may be put, if it waits for that.
    fn due(&self, delay: Duration) -> Option<Duration> {
        match self.state {
            State::Waiting { retry_at, .. } => Some(retry_at.max(self.since + delay)),
            State::Running { .. } | State::Put | State::Recording | State::Settled => None,
        }
    }
}

#[derive(Clone, Debug)]
struct Segment {
    head: SegmentHead,
    /// Where the next record begins.
    tail: u64,
    /// Where the one before that ends: what is said to be synced ends with a record, not where the next may begin.
    end: u64,
    /// Where writes are under way.
    writing: BTreeMap<u64, u64>,
    /// First place at which a write may have failed.
    hole: Option<u64>,
    /// Objects of which it may hold a record, also of those that have left, or whose write or sync has failed.
    keys: Vec<(String, u64)>,
    /// Objects that have not left.
    live: u64,
    /// Writes that no sync covers.
    dirty: bool,
    /// Takes no more records.
    closed: bool,
    damaged: bool,
}

impl Segment {
    fn new(head: SegmentHead) -> Self {
        Self {
            head,
            tail: RECORDS_AT,
            end: RECORDS_AT,
            writing: BTreeMap::new(),
            hole: None,
            keys: Vec::new(),
            live: 0,
            dirty: true,
            closed: false,
            damaged: false,
        }
    }

    /// Nothing before it is missing, once it is synced.
    fn complete_to(&self) -> u64 {
        let first = self.writing.first_key_value().map_or(self.end, |(_, before)| *before);
        self.hole.map_or(first, |hole| hole.min(first))
    }
}

/// How many puts may be under way. Those who wait for an object to be staged or read, or for other answers, have the machine
/// first, as long as the log is less than half full.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// At most. (>= 1)
    pub uploads: usize,
    /// The same while somebody waits. (>= 1) After that each put that ends allows one more, for who comes next has to wait
    /// for those that are under way.
    pub beside: usize,
    /// How long after the last of them that is; 0: nobody has the machine first.
    pub quiet_after: Duration,
    /// So long none is put while they come, from the first of them on.
    pub burst: Duration,
}

impl Pace {
    /// Always the same.
    pub fn steady(uploads: usize) -> Self {
        Self { uploads, beside: uploads, quiet_after: Duration::ZERO, burst: Duration::ZERO }
    }
}

/// The log of one mount.
#[derive(Clone, Debug)]
pub struct Log {
    volume: VolumeId,
    epoch: u64,
    segment_size: u64,
    size_max: u64,
    /// Records of bodies of this length and more are paged.
    paged_from: u64,
    /// Bodies of this length and more are held after a sync.
    held_from: u64,
    /// Which are, with their orders.
    held: VecDeque<(String, u64)>,
    /// How long an object stays here before it is put: what is deleted by then never is.
    delay: Duration,
    pace: Pace,
    /// When an object came or was asked for last.
    used: Duration,
    /// When the first of those came after which there was no pause.
    burst_from: Duration,
    /// How many puts have ended since.
    paced: usize,
    entries: BTreeMap<String, Entry>,
    /// What is being stored again, for a sync has failed: it is not deleted meanwhile, even if it has left.
    restoring: Option<String>,
    /// Objects to be put by themselves, by order.
    waiting: BTreeMap<u64, String>,
    running: usize,
    packing: Packs,
    /// Objects in the store that no barrier covers.
    put: BTreeSet<String>,
    segments: BTreeMap<u64, Segment>,
    /// How many records of each object the segments may hold.
    recorded: BTreeMap<String, u32>,
    next_segment: u64,
    making: bool,
    /// Records written so far, and how many of them a sync covers.
    written: u64,
    synced: u64,
    unsynced: BTreeMap<u64, (Kind, String, u64)>,
    frontier: Frontier,
    next_order: u64,
    /// Records up to this one were found at the start.
    found_to: u64,
    kept: Kept,
}

impl Log {
    /// An empty log. (epoch >= 1)
    pub fn new(volume: VolumeId, epoch: u64, segment_size: u64, size_max: u64) -> Self {
        Self {
            volume,
            epoch,
            segment_size,
            size_max,
            paged_from: u64::MAX,
            held_from: u64::MAX,
            held: VecDeque::new(),
            delay: Duration::ZERO,
            pace: Pace::steady(1),
            used: Duration::ZERO,
            burst_from: Duration::ZERO,
            paced: 0,
            entries: BTreeMap::new(),
            restoring: None,
            waiting: BTreeMap::new(),
            running: 0,
            packing: Packs::default(),
            put: BTreeSet::new(),
            segments: BTreeMap::new(),
            recorded: BTreeMap::new(),
            next_segment: 1,
            making: false,
            written: 0,
            synced: 0,
            unsynced: BTreeMap::new(),
            frontier: Frontier::default(),
            next_order: 0,
            found_to: 0,
            kept: Kept::default(),
        }
    }

    /// Records of objects of `from` bytes and more are paged.
    pub fn set_paged(&mut self, from: u64) {
        self.paged_from = from;
    }

    /// Bodies of `from` bytes and more stay in memory until they are put, while others hold them, too.
    pub fn set_held(&mut self, from: u64) {
        self.held_from = from;
    }

    // ---- getters

    /// The log has a record of the object.
    pub fn holds(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.place.is_some())
    }

    /// The object is about to be deleted.
    pub fn is_deleting(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.deleting)
    }

    /// Where `range` of the object is, if it need not be asked of the store; its length is given with it.
    pub fn find(&self, key: &str) -> Option<(BytesAt, u64)> {
        let entry = self.entries.get(key).filter(|entry| entry.state != State::Settled)?;
        Some((Self::bytes_at(entry), entry.len))
    }

    /// Keys after `after` that start with `prefix` and that the store may not hold, ascending.
    pub fn list(&self, prefix: &str, after: Option<&str>) -> Vec<String> {
        let from = after.filter(|after| *after >= prefix).unwrap_or(prefix).to_owned();
        let found = self.entries.range(from..).take_while(|(key, _)| key.starts_with(prefix));
        let found = found.filter(|(key, entry)| {
            after.is_none_or(|after| key.as_str() > after) && !entry.deleting && entry.state != State::Settled
        });
        found.map(|(key, _)| key.clone()).collect()
    }

    /// What is in the log.
    pub fn backlog(&self) -> Backlog {
        let mut backlog = Backlog {
            segments: self.segments.len() as u64,
            log_bytes: self.log_bytes(),
            kept_bytes: self.kept_bytes(),
            ..Backlog::default()
        };
        for entry in self.entries.values().filter(|entry| entry.state != State::Settled) {
            backlog.objects += 1;
            backlog.bytes += entry.len;
            backlog.since = Some(backlog.since.map_or(entry.since, |since| since.min(entry.since)));
        }
        backlog
    }

    /// Every object is in the store for good or deleted.
    pub fn is_drained(&self) -> bool {
        self.segments.values().all(|segment| segment.live == 0 && segment.writing.is_empty())
            && self.waiting.is_empty()
            && self.running == 0
            && self.put.is_empty()
            && self.packing.is_empty()
    }

    /// There is no segment that a later mount could find.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && !self.making
    }

    /// An object that was found at the start is neither in the store for good nor deleted.
    pub fn has_found(&self) -> bool {
        self.entries.values().any(|entry| entry.order <= self.found_to && entry.state != State::Settled)
    }

    /// The segment has not gone.
    pub fn has_segment(&self, number: u64) -> bool {
        self.segments.contains_key(&number)
    }

    /// No put into the store is under way.
    pub fn is_idle(&self) -> bool {
        self.running == 0 && self.packing.running() == 0
    }

    /// A record or a segment is being written.
    pub fn is_writing(&self) -> bool {
        self.making || self.segments.values().any(|segment| !segment.writing.is_empty())
    }

    /// A put of the object is under way, or its place in a pack is being told, or it is being stored again.
    pub fn is_uploading(&self, key: &str) -> bool {
        let uploads = |entry: &Entry| matches!(entry.state, State::Running { .. } | State::Recording);
        self.restoring.as_deref() == Some(key) || self.entries.get(key).is_some_and(uploads)
    }

    fn log_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.tail).sum()
    }

    fn bytes_at(entry: &Entry) -> BytesAt {
        match (&entry.body, entry.place) {
            (Some(body), _) => BytesAt::Memory(body.clone()),
            (None, Some((segment, start))) => {
                BytesAt::Disk { segment, range: start..start + entry.len, sum: entry.sum }
            }
            (None, None) => panic!("an object of the log is nowhere"),
        }
    }

    // ---- records

    /// Somebody waits for an object, or for something else on this machine.
    pub fn note_use(&mut self, now: Duration) {
        if self.used + self.pace.quiet_after <= now {
            self.burst_from = now;
        }
        (self.used, self.paced) = (now, 0);
    }

    /// A place for a record. A `Delete` finds one also where the log has its size.
    pub fn reserve(&mut self, kind: Kind, key: &str, body: &[Bytes]) -> Place {
        let len: u64 = body.iter().map(|piece| piece.len() as u64).sum();
        let paged = kind == Kind::Put && self.paged_from <= len;
        let place = |tail: u64| {
            let at = next_at(tail, paged);
            (at, body_at(at, key.len() as u64, paged) + len)
        };
        let (_, longest) = place(1);
        if kind == Kind::Put && self.log_bytes() + longest > self.size_max {
            return Place::Full;
        }
        if self.making {
            return Place::Wait;
        }
        let segment = match self.segments.values_mut().next_back() {
            Some(segment) if !segment.closed => segment,
            Some(_) | None => return Place::NeedSegment,
        };
        let (at, end) = place(segment.tail);
        if RECORDS_AT < at && self.segment_size < end {
            segment.closed = true;
            return Place::NeedSegment;
        }
        let before = core::mem::replace(&mut segment.end, end);
        segment.tail = next_at(end, paged);
        segment.writing.insert(at, before);
        let sum = Sum::of(body);
        let head = encode_record(&segment.head, at, self.frontier, &Content { kind, key, len, sum, paged });
        self.next_order += 1;
        if kind == Kind::Put {
            segment.keys.push((key.to_owned(), self.next_order));
            *self.recorded.entry(key.to_owned()).or_default() += 1;
        }
        Place::At(Slot { segment: segment.head.number, at, head, sum, order: self.next_order })
    }

    /// The header of a segment to be made, unless another one is or was meanwhile; to be ended with `handle_segment`.
    pub fn begin_segment(&mut self) -> Option<SegmentHead> {
        let takes_records = |segment: &Segment| !segment.closed && !planted::is(Bug::SegmentsSideBySide);
        if self.making || self.segments.values().next_back().is_some_and(takes_records) {
            return None;
        }
        self.making = true;
        let before = self.complete_to();
        let number = self.next_segment;
        self.next_segment += 1;
        Some(SegmentHead { volume: self.volume, epoch: self.epoch, number, before })
    }

    /// Up to where the last segment has no hole.
    fn complete_to(&self) -> u64 {
        self.segments.values().next_back().map_or(0, Segment::complete_to)
    }

    /// The segment is there with its header, or could not be made.
    pub fn handle_segment(&mut self, head: SegmentHead, made: bool) {
        self.making = false;
        let mut segment = Segment::new(head);
        // A write or sync that has failed meanwhile makes untrue what its header says of the segment before it.
        if !made || self.complete_to() < head.before {
            // Its file may be there: it goes with the others.
            (segment.closed, segment.dirty, segment.hole) = (true, false, Some(0));
        }
        self.segments.insert(head.number, segment);
    }

    /// The record is written. False: a sync of its segment has failed since, so it has to be written again.
    pub fn handle_written(&mut self, now: Duration, slot: &Slot, kind: Kind, key: &str, body: &[Bytes]) -> bool {
        let segment = self.segments.get_mut(&slot.segment).expect("a segment with writes under way stays");
        assert!(segment.writing.remove(&slot.at).is_some(), "a record is written twice");
        if segment.hole.is_some_and(|hole| hole <= slot.at) {
            return false;
        }
        segment.dirty = true;
        self.written += 1;
        self.unsynced.insert(self.written, (kind, key.to_owned(), slot.order));
        if kind == Kind::Put {
            self.install(now, slot, key, body);
        }
        true
    }

    fn install(&mut self, now: Duration, slot: &Slot, key: &str, body: &[Bytes]) {
        self.note_use(now);
        if self.holds(key) {
            // Put twice at once, with the same bytes: the first record stands for both.
            return;
        }
        let segment = self.segments.get_mut(&slot.segment).expect("it takes the record");
        segment.live += 1;
        // Written again after a failed sync; its put goes on meanwhile.
        let lost = self.entries.remove(key);
        let waiting = State::Waiting { retry_at: Duration::ZERO, attempts: 0 };
        let len: u64 = body.iter().map(|piece| piece.len() as u64).sum();
        let start = slot.at + slot.head.len() as u64;
        let (place, body) = (Some((slot.segment, start)), Some(body.to_vec()));
        let entry = match lost {
            Some(lost) => {
                self.unqueue(key, &lost);
                Entry { order: slot.order, place, sum: slot.sum, body, ..lost }
            }
            None => {
                let alone = !self.packing.takes(key, len);
                let (order, sum) = (slot.order, slot.sum);
                Entry { order, place, len, sum, body, state: waiting, since: now, deleting: false, alone, pack: None }
            }
        };
        self.queue(key, &entry);
        self.entries.insert(key.to_owned(), entry);
    }

    /// It waits to be put, if it does.
    fn queue(&mut self, key: &str, entry: &Entry) {
        match entry.state {
            State::Waiting { .. } if entry.alone => drop(self.waiting.insert(entry.order, key.to_owned())),
            State::Waiting { .. } => self.packing.queue(key, entry.order, entry.len),
            State::Running { .. } | State::Put | State::Recording | State::Settled => {}
        }
    }

    fn unqueue(&mut self, key: &str, entry: &Entry) {
        self.waiting.remove(&entry.order);
        self.packing.unqueue(key, entry.order, entry.len);
    }

    /// Its segment no longer waits for this entry.
    fn leave(&mut self, key: &str, entry: &Entry) {
        self.unqueue(key, entry);
        if let Some((number, _)) = entry.place
            && entry.state != State::Settled
            && let Some(segment) = self.segments.get_mut(&number)
        {
            segment.live -= 1;
        }
    }

    /// Nothing is known of what was written there.
    pub fn handle_write_failed(&mut self, slot: &Slot) {
        if let Some(segment) = self.segments.get_mut(&slot.segment) {
            let before = segment.writing.remove(&slot.at).unwrap_or(0);
            segment.hole = Some(segment.hole.map_or(before, |hole| hole.min(before)));
            segment.closed = true;
        }
    }

    /// Panics where the books do not balance.
    pub fn check(&self) {
        let mut live: BTreeMap<u64, u64> = BTreeMap::new();
        for (key, entry) in &self.entries {
            assert!(entry.body.is_some() || entry.place.is_some(), "{key} is nowhere");
            if let Some((number, _)) = entry.place
                && entry.state != State::Settled
            {
                *live.entry(number).or_default() += 1;
            }
            let waits = (self.waiting.get(&entry.order) == Some(key), self.packing.waits(entry.order, key));
            let waiting = matches!(entry.state, State::Waiting { .. });
            assert_eq!(waits, (waiting && entry.alone, waiting && !entry.alone), "{key} waits");
        }
        for (number, segment) in &self.segments {
            assert_eq!(segment.live, live.remove(number).unwrap_or(0), "objects of segment {number}");
        }
        let recorded = |(key, count): (&String, &u32)| {
            let of = |segment: &Segment| segment.keys.iter().filter(|(other, _)| other == key).count();
            *count as usize == self.segments.values().map(of).sum::<usize>()
        };
        assert!(self.recorded.iter().all(recorded), "records of objects");
        assert!(live.is_empty(), "objects in segments that are gone: {live:?}");
        assert!(self.waiting.values().all(|key| self.entries.contains_key(key)), "an object waits that is not there");
        let runs = |entry: &&Entry| matches!(entry.state, State::Running { .. }) && entry.pack.is_none();
        let running = self.entries.values().filter(runs).count();
        assert_eq!(running, self.running, "puts under way");
        assert!(self.synced <= self.written);
        assert!(self.segments.values().rev().skip(1).all(|segment| segment.closed), "an older segment takes records");
        self.check_kept();
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
