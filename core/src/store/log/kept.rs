//! Objects that can be read from the log although the store has them: those in segments that are to go, and in segments that
//! have lost their name already, so that no later mount finds them, but are still open.
//!
//! Owns: where these objects are, and which segments go for good so that all of them keep within the log's size.
//! Leaves to others: reading, and what is done if that fails (`client::log`).
//!
//! Invariants
//! - An object is found here only while it is in the store for good and not deleted, and nobody has found its bytes wrong.
//! - A segment is named by `next_release` once, or its going is told by `give_up_segment`.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use super::{Entry, Log, Segment, State};

/// Objects that are remembered at most. (about 10 MB)
const OBJECTS_MAX: usize = 1 << 16;

#[derive(Clone, Copy, Debug)]
struct Place {
    segment: u64,
    start: u64,
    len: u64,
}

#[derive(Clone, Debug)]
struct Open {
    bytes: u64,
    /// Objects that were in it at first.
    keys: Vec<String>,
    /// How many of them are still read from it.
    live: usize,
}

/// See above.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    segments: BTreeMap<u64, Open>,
    places: BTreeMap<String, Place>,
    bytes: u64,
    /// Segments that nothing is read from any more.
    idle: Vec<u64>,
    /// Objects in segments that are to go, whose bytes are wrong.
    wrong: BTreeSet<String>,
}

impl Kept {
    /// The object is gone, or its bytes are wrong.
    pub(super) fn forget(&mut self, key: &str) {
        self.wrong.remove(key);
        if let Some(place) = self.places.remove(key) {
            self.leave(place.segment);
        }
    }

    /// An object is read from there no more.
    fn leave(&mut self, number: u64) {
        let Some(open) = self.segments.get_mut(&number) else { return };
        open.live -= 1;
        if open.live == 0 {
            self.drop_segment(number);
            self.idle.push(number);
        }
    }

    fn drop_segment(&mut self, number: u64) -> bool {
        let Some(open) = self.segments.remove(&number) else { return false };
        self.bytes -= open.bytes;
        for key in open.keys {
            if self.places.get(&key).is_some_and(|place| place.segment == number) {
                self.places.remove(&key);
            }
        }
        true
    }
}

impl Log {
    /// Bytes of segments that have no name any more.
    pub fn kept_bytes(&self) -> u64 {
        self.kept.bytes
    }

    /// The segment that holds `range` of an object which the store has, too, and where.
    pub fn find_kept(&self, key: &str, range: &Range<u64>) -> Option<(u64, Range<u64>)> {
        let settled =
            |entry: &&Entry| entry.state == State::Settled && !entry.deleting && !self.kept.wrong.contains(key);
        let place = match self.entries.get(key).filter(settled) {
            Some(entry) => entry.place.map(|(segment, start)| Place { segment, start, len: entry.len })?,
            None => *self.kept.places.get(key)?,
        };
        (range.end <= place.len).then(|| (place.segment, place.start + range.start..place.start + range.end))
    }

    /// Its bytes are not what they should be.
    pub fn give_up_kept(&mut self, key: &str) {
        self.kept.forget(key);
        if self.entries.get(key).is_some_and(|entry| entry.state == State::Settled) {
            self.kept.wrong.insert(key.to_owned());
        }
    }

    /// The segment cannot be read; whether it was one without a name.
    pub fn give_up_segment(&mut self, number: u64) -> bool {
        self.kept.drop_segment(number)
    }

    /// Whether `next_release` names one.
    pub fn has_release(&self) -> bool {
        !self.kept.idle.is_empty() || (self.is_crowded() && !self.kept.segments.is_empty())
    }

    /// There is no room for another segment that takes records.
    fn is_crowded(&self) -> bool {
        self.size_max < self.log_bytes() + self.kept.bytes + self.segment_size || OBJECTS_MAX < self.kept.places.len()
    }

    /// The next segment that is to go for good, the oldest first.
    pub fn next_release(&mut self) -> Option<u64> {
        if let Some(number) = self.kept.idle.pop() {
            return Some(number);
        }
        let oldest = *self.kept.segments.first_key_value()?.0;
        (self.is_crowded() && self.kept.drop_segment(oldest)).then_some(oldest)
    }

    /// A segment has lost its name; if it is still `open`, what is in the store and still wanted is read from it.
    pub(super) fn keep(&mut self, segment: &Segment, settled: Vec<(String, Entry)>, open: bool) {
        let number = segment.head.number;
        let mut keys = Vec::new();
        for (key, entry) in settled {
            if !self.kept.wrong.remove(&key)
                && open
                && !entry.deleting
                && let Some((_, start)) = entry.place
            {
                let before = self.kept.places.insert(key.clone(), Place { segment: number, start, len: entry.len });
                if let Some(before) = before {
                    self.kept.leave(before.segment);
                }
                keys.push(key);
            }
        }
        if keys.is_empty() {
            self.kept.idle.extend(open.then_some(number));
            return;
        }
        self.kept.bytes += segment.tail;
        self.kept.segments.insert(number, Open { bytes: segment.tail, live: keys.len(), keys });
    }

    /// Panics where the books do not balance.
    pub(super) fn check_kept(&self) {
        let bytes: u64 = self.kept.segments.values().map(|open| open.bytes).sum();
        assert_eq!(self.kept.bytes, bytes, "bytes of segments without a name");
        for (key, place) in &self.kept.places {
            let open = self.kept.segments.get(&place.segment);
            assert!(open.is_some_and(|open| open.keys.contains(key)), "{key} is in no segment");
        }
        for (number, open) in &self.kept.segments {
            let live = self.kept.places.values().filter(|place| place.segment == *number).count();
            assert_eq!((open.live, open.live > 0), (live, true), "objects read from segment {number}");
        }
        let settled = |key: &String| self.entries.get(key).is_some_and(|entry| entry.state == State::Settled);
        assert!(self.kept.wrong.iter().all(settled), "objects whose bytes are wrong");
    }
}
