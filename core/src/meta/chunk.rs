//! The slice records of one chunk: what shows, what takes space, and which of them say nothing any more.
//!
//! Owns: laying records over each other in the order of seq; removing the hidden ones.
//! Leaves to others: the bytes (`file`), which chunk is changed how (`edit`).
//!
//! A record holds data, or it is a `Hole` (hides what is older, takes no space), or it is `Reserved` (takes space, hides
//! nothing). Zeroing a range is a hole with a reservation over it.
//!
//! Invariants
//! - What takes space is computed from the records as they stand, cuts or no cuts: a sweep gives space back, not a cut.
//! - Removing a record that `tidy` removes changes nothing that shows, and no space but that of what a cut hides.

use alloc::vec::Vec;
use core::mem;
use core::ops::Range;

use bytes::Bytes;

use super::cover::{Cover, Cuts};
use super::remove::release;
use super::{DIRECT_MAX, put, scan_all};
use crate::format::codec::DecodeError;
use crate::format::keys::{self, Key};
use crate::format::values::Value;
use crate::kv::{OpError, OpResult, Read, Txn};
use crate::marks::{Mark, reached};
use crate::types::{Attr, Geometry, Ino, Place, SliceRecord};

/// So many slices cost less to get, each by its key, than to scan for, which has all commits handed over first.
const FEW: u64 = 4;
const _: () = assert!(FEW <= DIRECT_MAX as u64, "a cut is left by more slices");

/// A record with where it is stored.
pub(super) struct Stored {
    pub(super) key: Bytes,
    pub(super) chunk: u32,
    pub(super) seq: u64,
    pub(super) record: SliceRecord,
    /// Not written yet.
    pub(super) fresh: bool,
}

impl Stored {
    pub(super) fn decode(key: Bytes, value: &[u8]) -> OpResult<Self> {
        Self::with(key, SliceRecord::decode(value)?)
    }

    fn with(key: Bytes, record: SliceRecord) -> OpResult<Self> {
        let Key::Slice(_, chunk, seq) = keys::decode(&key)? else {
            return Err(OpError::Damaged("a key in the range of slices"));
        };
        Ok(Self { chunk, seq, record, key, fresh: false })
    }

    /// Shortens the record to `len` bytes, or removes it if that is none.
    pub(super) fn shorten(&mut self, txn: &mut dyn Txn, len: u32) -> OpResult<()> {
        self.record.len = len;
        if len == 0 {
            txn.delete(&self.key);
            return release(txn, &self.record);
        }
        put(txn, &self.key, &self.record);
        Ok(())
    }

    /// The part of the chunk that it is about.
    pub(super) fn range(&self) -> Range<u32> {
        self.record.pos..self.record.pos + self.record.len
    }
}

/// The numbers of all slices that a file ever had, if they are few and all in its first chunk. It has no cuts then.
pub(super) fn few(geometry: &Geometry, attr: &Attr) -> Option<Range<u64>> {
    (attr.next_seq <= FEW && attr.reach <= geometry.chunk_size).then_some(0..attr.next_seq)
}

/// The records of a chunk of the file with these attributes, in the order of seq, as `decode` gives them.
pub(super) fn records(
    read: &mut (impl Read + ?Sized),
    geometry: &Geometry,
    (ino, attr): (Ino, &Attr),
    chunk: u32,
    decode: fn(&[u8]) -> Result<SliceRecord, DecodeError>,
) -> OpResult<Vec<Stored>> {
    let stored = |key: &[u8], value: &[u8]| Stored::with(Bytes::copy_from_slice(key), decode(value)?);
    let mut found = Vec::new();
    if let Some(seqs) = few(geometry, attr) {
        for seq in seqs.filter(|_| chunk == 0) {
            let (key, mut one) = (keys::slice(ino, 0, seq), None);
            read.see(&key, &mut |value| one = value.map(|value| stored(&key, value)))?;
            found.extend(one);
        }
    } else {
        let (start, end) = keys::slice_range(ino, Some(chunk));
        read.visit(&start, &end, usize::MAX, &mut |key, value| found.push(stored(key, value)))?;
    }
    found.into_iter().collect()
}

/// A record without its bytes, if it is inline.
pub(super) fn head(value: &[u8]) -> Result<SliceRecord, DecodeError> {
    Ok(SliceRecord::decode_head(value)?.0)
}

/// All records of a chunk, in the order of seq.
pub(super) fn load(read: &mut (impl Read + ?Sized), ino: Ino, chunk: u32) -> OpResult<Vec<Stored>> {
    let records = scan_all(read, keys::slice_range(ino, Some(chunk)))?;
    records.into_iter().map(|(key, value)| Stored::decode(key, &value)).collect()
}

/// What of a chunk takes space.
pub(super) fn allocated(records: &[Stored]) -> Cover {
    cover(records, |stored| stored.range())
}

/// What of it will once the cuts have been swept.
pub(super) fn lasting(records: &[Stored], cuts: &Cuts, chunk_start: u64) -> Cover {
    cover(records, |stored| {
        let pos = stored.record.pos;
        pos..pos + cuts.left(stored.seq, chunk_start, &stored.record)
    })
}

fn cover(records: &[Stored], range: impl Fn(&Stored) -> Range<u32>) -> Cover {
    let mut cover = Cover::default();
    for stored in records {
        let Range { start, end } = range(stored);
        match stored.record.place {
            Place::Blocks | Place::Home | Place::Inline(_) | Place::Reserved => cover.add(start, end),
            Place::Hole => cover.remove(start, end),
        }
    }
    cover
}

/// The data that shows in `range` of the chunk that starts at `chunk_start`: pieces in order, with the record's index.
pub(super) fn visible(
    records: &[Stored],
    cuts: &Cuts,
    chunk_start: u64,
    range: Range<u32>,
) -> Vec<(Range<u32>, usize)> {
    let mut pieces = Vec::new();
    let mut hidden = Cover::default();
    for (index, stored) in records.iter().enumerate().rev() {
        if stored.record.place == Place::Reserved {
            continue;
        }
        let pos = stored.record.pos;
        let end = pos + cuts.left(stored.seq, chunk_start, &stored.record);
        if stored.record.place != Place::Hole {
            let shown = hidden.gaps(pos.max(range.start), end.min(range.end));
            pieces.extend(shown.into_iter().map(|piece| (piece, index)));
        }
        hidden.add(pos, end);
    }
    pieces.sort_unstable_by_key(|(piece, _)| piece.start);
    pieces
}

/// A chunk that a commit changes.
pub(super) struct Chunk {
    /// Those that are not fresh are without the bytes that are inline: they stay as they are, or go.
    pub(super) records: Vec<Stored>,
    /// Bytes that took space before the commit.
    pub(super) before: u64,
}

impl Chunk {
    pub(super) fn load(
        read: &mut (impl Read + ?Sized),
        geometry: &Geometry,
        file: (Ino, &Attr),
        chunk: u32,
    ) -> OpResult<Self> {
        let records = records(read, geometry, file, chunk, head)?;
        Ok(Self { before: allocated(&records).count(), records })
    }

    /// Removes what newer records and cuts leave nothing of, and holes with nothing below them; writes what is fresh.
    pub(super) fn tidy(&mut self, txn: &mut dyn Txn, cuts: &Cuts, chunk_start: u64) -> OpResult<()> {
        let left = |stored: &Stored| {
            let pos = stored.record.pos;
            (pos, pos + cuts.left(stored.seq, chunk_start, &stored.record))
        };
        // Of newer records: what hides, and what says whether space is taken.
        let (mut hidden, mut decided) = (Cover::default(), Cover::default());
        let mut kept = Vec::with_capacity(self.records.len());
        for stored in mem::take(&mut self.records).into_iter().rev() {
            let (pos, end) = left(&stored);
            let reserved = stored.record.place == Place::Reserved;
            if (if reserved { &decided } else { &hidden }).covers(pos, end) {
                reached(Mark::HiddenSliceFreed);
                drop_record(txn, &stored)?;
                continue;
            }
            decided.add(pos, end);
            if !reserved {
                hidden.add(pos, end);
            }
            kept.push(stored);
        }
        let mut below = Cover::default();
        for stored in kept.into_iter().rev() {
            let (pos, end) = left(&stored);
            if stored.record.place == Place::Hole {
                if !below.touches(pos, end) {
                    drop_record(txn, &stored)?;
                    continue;
                }
            } else {
                below.add(pos, end);
            }
            if stored.fresh {
                put(txn, &stored.key, &stored.record);
            }
            self.records.push(Stored { fresh: false, ..stored });
        }
        Ok(())
    }
}

fn drop_record(txn: &mut dyn Txn, stored: &Stored) -> OpResult<()> {
    if !stored.fresh {
        txn.delete(&stored.key);
    }
    release(txn, &stored.record)
}
