//! What lies on the simulated disk of the write-back log.
//!
//! Owns: the segment files as reads show them and as a power cut leaves them, the owner's file, writes under way, which
//! objects the files hold.
//! Leaves to others: when something is written, synced, removed or lost (`disk`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::format::log::{PAGE, RECORD_LEN, Segment as Head};

use crate::dice::Dice;

/// What of one write lies in one page.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) write: u64,
    pub(super) at: u64,
    pub(super) bytes: Bytes,
    /// Its write returned without an error.
    pub(super) returned: bool,
    /// A sync of it has failed: no other covers it.
    pub(super) lost: bool,
}

#[derive(Debug, Default)]
pub(super) struct File {
    /// As reads show it.
    pub(super) bytes: Vec<u8>,
    /// As a power cut leaves it, but for `pieces`.
    pub(super) synced: Vec<u8>,
    /// A power cut leaves its name.
    pub(super) named: bool,
    /// What no sync has covered, in the order of the writes.
    pub(super) pieces: Vec<Piece>,
    /// What a power cut leaves, or this file: the one that it took the place of.
    pub(super) replaced: Option<Vec<u8>>,
    /// The header that the log has written to it.
    pub(super) head: Option<(Head, Bytes)>,
    /// Pages that were written to, by where a write began: where they end, and whether it has them to itself.
    pub(super) claims: BTreeMap<u64, (u64, bool)>,
}

impl File {
    /// What a power cut leaves of it, if its name is left.
    pub(super) fn cut(self, dice: &Dice) -> Option<Self> {
        if !self.named && dice.chance(500) {
            let bytes = self.replaced?;
            return Some(Self { synced: bytes.clone(), bytes, named: true, ..Self::default() });
        }
        let (mut bytes, len) = (self.synced, self.bytes.len());
        // All, nothing, and anything between.
        let odds = [1000, 0, 500, 500][dice.below(4) as usize];
        for piece in self.pieces.iter().filter(|_| dice.chance(odds)) {
            put(&mut bytes, piece);
        }
        // The length may be durable before the bytes are; zeros may have been written ahead.
        if dice.chance(333) {
            bytes.resize(len.max(bytes.len()) + (dice.below(3) * PAGE) as usize, 0);
        }
        Some(Self { synced: bytes.clone(), bytes, named: true, head: self.head, ..Self::default() })
    }

    /// With these `bytes` it shows the record: it is whole, and so is the segment's header.
    fn shows(&self, bytes: &[u8], place: &Place) -> bool {
        let head = self.head.as_ref().is_some_and(|(_, head)| bytes.starts_with(head));
        head && bytes.get(place.range()) == Some(&place.whole)
    }

    /// Its process is gone: pages that nothing will write may leave memory, all others are as good as any.
    pub(super) fn orphan(&mut self, dice: &Dice) {
        self.pieces.iter_mut().for_each(|piece| piece.returned = true);
        let before = self.pieces.len();
        self.pieces.retain(|piece| !piece.lost || dice.chance(500));
        if self.pieces.len() < before {
            let len = self.bytes.len();
            self.bytes.clone_from(&self.synced);
            self.pieces.iter().for_each(|piece| put(&mut self.bytes, piece));
            self.bytes.resize(len, 0);
        }
    }
}

pub(super) fn put(bytes: &mut Vec<u8>, piece: &Piece) {
    let (at, end) = (piece.at as usize, piece.at as usize + piece.bytes.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(&piece.bytes);
}

/// A write under way.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) segment: u64,
    pub(super) at: u64,
    pub(super) body: Bytes,
}

impl Write {
    /// Its parts in each page.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        let end = self.at + self.body.len() as u64;
        let starts =
            std::iter::successors(Some(self.at), |at| Some((at / PAGE + 1) * PAGE)).take_while(move |at| *at < end);
        starts.map(move |at| {
            let stop = ((at / PAGE + 1) * PAGE).min(end);
            (at, self.body.slice((at - self.at) as usize..(stop - self.at) as usize))
        })
    }
}

/// Which pages of a write take effect.
#[derive(Clone, Copy, Debug)]
pub(super) enum Extent {
    All,
    /// Up to one of them.
    Prefix,
    /// Each by itself.
    Some,
}

/// A record that the log has written, and where.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) at: u64,
    pub(super) whole: Bytes,
    pub(super) body_len: u64,
}

impl Place {
    /// The next mount finds it.
    pub(super) fn is_found_in(&self, files: &BTreeMap<u64, File>) -> bool {
        files.get(&self.segment).is_some_and(|file| file.shows(&file.bytes, self))
    }

    pub(super) fn range(&self) -> Range<usize> {
        self.at as usize..self.at as usize + self.whole.len()
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) files: BTreeMap<u64, File>,
    /// Files that are being removed: a power cut may bring them back.
    pub(super) going: BTreeMap<u64, File>,
    /// Files without a name that are open.
    pub(super) detached: BTreeMap<u64, File>,
    /// Files under another name.
    pub(super) aside: BTreeSet<u64>,
    pub(super) owner: Option<Bytes>,
    pub(super) owner_synced: Option<Bytes>,
    /// Writes that may still take effect, by number.
    pub(super) writes: BTreeMap<u64, Write>,
    pub(super) next_write: u64,
    /// Lives of clients; what a dead one began has no effect.
    pub(super) epoch: u64,
    /// Segments of which a damaged answer was given, and until when no other is.
    pub(super) torn: BTreeMap<u64, Duration>,
    /// Records of objects that are in the files, by key.
    pub(super) places: BTreeMap<String, Vec<Place>>,
    /// Records that say that an object was deleted.
    pub(super) deletes: BTreeMap<String, Vec<Place>>,
}

impl State {
    /// A write takes effect.
    pub(super) fn apply(&mut self, number: u64, extent: Extent, dice: &Dice) {
        // A crash has decided about it in the meantime.
        let Some(write) = self.writes.remove(&number) else { return };
        let Some(file) = self.files.get_mut(&write.segment) else { return };
        let pages = write.pieces().count() as u64;
        let most = match extent {
            Extent::All | Extent::Some => pages,
            Extent::Prefix => dice.below(pages.max(1)),
        };
        for (at, bytes) in write.pieces().take(most as usize) {
            if matches!(extent, Extent::Some) && dice.chance(500) {
                continue;
            }
            let piece = Piece { write: number, at, bytes, returned: false, lost: false };
            put(&mut file.bytes, &piece);
            file.pieces.push(piece);
        }
    }

    /// Whether a power cut leaves the record.
    pub(super) fn keeps(&self, place: &Place) -> bool {
        let file = self.files.get(&place.segment);
        file.is_some_and(|file| file.named && file.shows(&file.synced, place))
    }

    /// Objects of which the last record is not that they were deleted.
    pub(super) fn found(&self) -> BTreeSet<String> {
        let last =
            |places: Option<&Vec<Place>>| places.into_iter().flatten().map(|place| (place.segment, place.at)).max();
        let found = self.places.iter().filter(|(key, places)| last(self.deletes.get(*key)) < last(Some(places)));
        found.map(|(key, _)| key.clone()).collect()
    }

    /// Forgets all records but those that are to `stay`. Returns the objects of which none is left.
    pub(super) fn forget(&mut self, stay: impl Fn(&Place, &BTreeMap<u64, File>) -> bool) -> Vec<String> {
        let Self { places, deletes, files, .. } = self;
        let mut gone = Vec::new();
        places.retain(|key, places| {
            places.retain(|place| stay(place, files));
            if places.is_empty() {
                gone.push(key.clone());
            }
            !places.is_empty()
        });
        deletes.retain(|_, places| {
            places.retain(|place| stay(place, files));
            !places.is_empty()
        });
        gone
    }

    /// Whether a power cut leaves a record of the object whose body is that long.
    pub(super) fn holds(&self, key: &str, len: u64) -> bool {
        let mut places = self.places.get(key).into_iter().flatten();
        places.any(|place| place.body_len == len && self.keeps(place))
    }
}

/// What a record says, by its header alone.
pub(super) struct Said {
    /// It holds the object; else it says that it was deleted.
    pub(super) put: bool,
    pub(super) key: String,
    /// Where what it holds begins.
    pub(super) body_at: u64,
}

/// Reads a record as the log writes it, without its help.
pub(super) fn record(whole: &[u8]) -> Option<Said> {
    let number =
        |range: Range<usize>| whole.get(range)?.iter().try_fold(0, |sum, byte| Some(sum << 8 | u64::from(*byte)));
    let (kind, key_len, len) = (number(4..6)?, number(6..8)?, number(8..16)?);
    let key_end = RECORD_LEN + key_len;
    let body_at = if matches!(kind, 3 | 5) { key_end.next_multiple_of(PAGE) } else { key_end };
    if !whole.starts_with(b"KWR1") || body_at + len != whole.len() as u64 {
        return None;
    }
    let key = std::str::from_utf8(whole.get(RECORD_LEN as usize..key_end as usize)?).ok()?;
    Some(Said { put: kind != 2, key: key.to_string(), body_at })
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
