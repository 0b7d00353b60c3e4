//! What a log holds when it is opened again.
//!
//! Owns: telling a torn tail from damage, and the index of what earlier mounts left.
//! Leaves to others: recognizing records (`format::log`).
//!
//! Invariants
//! - Every record that is whole counts, whatever lies before it: objects do not depend on each other.
//! - No record is added to a segment that was found.

use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::ops::Range;
use core::time::Duration;

use super::{Entry, Log, Segment, State};
use crate::format::log::{Frontier, Kind, Record, Scan, Segment as SegmentHead, damage};

/// A segment that was found.
#[derive(Debug)]
pub struct Found {
    /// Its header.
    pub head: SegmentHead,
    /// Its length.
    pub len: u64,
    /// What is in it.
    pub scan: Scan,
}

/// Bytes that were durable and are not readable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In which segment.
    pub segment: u64,
    /// Where.
    pub range: Range<u64>,
    /// The object that they belonged to, if that is known.
    pub key: Option<String>,
}

impl Found {
    /// How far the log was known to be synced, as far as this segment tells.
    pub fn frontier(&self) -> Frontier {
        self.scan.records.iter().map(|record| record.frontier).max().unwrap_or_default()
    }
}

/// Up to where each of the segments was known to be synced; 0: not even its header was.
pub fn claims(found: &[Found]) -> Vec<u64> {
    let frontier = found.iter().map(Found::frontier).max().unwrap_or_default();
    let mut claims: Vec<u64> = Vec::with_capacity(found.len());
    // The segment after it, and what is claimed of that: what the header says of the segment before it was so if the
    // sync that covered both succeeded.
    let mut next: Option<(SegmentHead, u64)> = None;
    for Found { head, .. } in found.iter().rev() {
        let claimed = match (head.number.cmp(&frontier.segment), next) {
            (Ordering::Less, Some((next, 1..))) if next.number == head.number + 1 => next.before,
            (Ordering::Less | Ordering::Greater, _) => 0,
            (Ordering::Equal, _) => frontier.at,
        };
        next = Some((*head, claimed));
        claims.push(claimed);
    }
    claims.reverse();
    claims
}

impl Log {
    /// Takes in a segment that was found; they come in ascending order. `claimed`: see `claims`; `unreadable`: its
    /// header is damaged. Returns what else is damaged.
    pub fn recover(&mut self, now: Duration, found: &Found, claimed: u64, unreadable: bool) -> Vec<Damage> {
        let Found { head, len, scan } = found;
        let number = head.number;
        assert!(self.next_segment <= number, "segments are taken in ascending order");
        let gaps = if unreadable { Vec::new() } else { damage(scan, *len, claimed) };
        let damage: Vec<Damage> = gaps
            .into_iter()
            .map(|range| {
                let record = scan.records.iter().find(|record| record.at == range.start && !record.whole);
                Damage { segment: number, key: record.map(|record| record.key.clone()), range }
            })
            .collect();
        let mut segment = Segment::new(*head);
        segment.tail = *len;
        segment.closed = true;
        segment.dirty = false;
        // Of what lies behind, nothing tells whether a power cut leaves it.
        segment.hole = Some(claimed);
        segment.damaged = unreadable || !damage.is_empty();
        self.segments.insert(number, segment);
        self.next_segment = number + 1;
        for record in scan.records.iter().filter(|record| record.whole) {
            self.next_order += 1;
            match record.kind {
                Kind::Put => self.found_put(now, number, record),
                Kind::Delete => self.end_delete(&record.key),
            }
        }
        self.found_to = self.next_order;
        damage
    }

    fn found_put(&mut self, now: Duration, number: u64, record: &Record) {
        // Put twice, with the same bytes.
        self.end_delete(&record.key);
        let segment = self.segments.get_mut(&number).expect("just inserted");
        segment.keys.push((record.key.clone(), self.next_order));
        segment.live += 1;
        *self.recorded.entry(record.key.clone()).or_default() += 1;
        let len = record.body.end - record.body.start;
        let entry = Entry {
            order: self.next_order,
            place: Some((number, record.body.start)),
            len,
            sum: record.sum,
            body: None,
            // A put of an earlier mount may be on its way.
            state: State::Waiting { retry_at: Duration::ZERO, attempts: 0 },
            since: now,
            deleting: false,
            alone: !self.packing.takes(&record.key, len),
            pack: None,
        };
        self.queue(&record.key, &entry);
        self.entries.insert(record.key.clone(), entry);
    }
}
