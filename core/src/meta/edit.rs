//! Changes of one file's contents within one transaction.
//!
//! Owns: what slices, truncates, holes, reservations and copies do to records, cuts, length, reach and space.
//! Leaves to others: the members and their numbers (`data`), the records of one chunk (`chunk`).
//!
//! Invariants
//! - `attr.stored` is the sum of what the chunks' records take (`chunk::allocated`); `attr.reach` is past every record.
//! - No data that shows, after cuts, reaches past `attr.length`. What starts at or past the reach covers nothing.
//! - A record that newer ones and cuts hide wholly goes in the transaction that hid it, and its blocks are queued.
//! - Bounded: a hole leaves records in the two chunks at its ends at most, and of those between removes a few at once or
//!   leaves a cut to sweep; a reservation is cut into pieces by the caller; a copy ends early.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::mem;
use core::ops::Range;

use bytes::Bytes;

use super::chunk::{self, Chunk, Stored};
use super::{CopyRange, DIRECT_MAX, PAGE, data, get, put};
use crate::errno::Errno;
use crate::format::keys;
use crate::format::values::{Cut, Home};
use crate::kv::{OpError, OpResult, Txn};
use crate::marks::{Mark, reached};
use crate::planted::{self, Bug};
use crate::types::{Attr, FILE_SIZE_MAX, FileType, Geometry, Ino, Place, SliceId, SliceRecord};

/// Pieces of data that one copy takes over at most: some milliseconds of metadata.
const COPY_PIECES_MAX: usize = 256;

/// A file that is being changed.
pub(super) struct Edit<'a> {
    pub(super) txn: &'a mut dyn Txn,
    pub(super) attr: Attr,
    ino: Ino,
    geometry: Geometry,
    /// Chunks with older records below the changes; written back by `settle`.
    chunks: BTreeMap<u32, Chunk>,
}

/// A piece of data to share: where it goes, which record it is of.
struct Piece {
    /// Chunk of the destination.
    chunk: u32,
    record: SliceRecord,
    /// Index in the list of source records.
    source: usize,
}

impl<'a> Edit<'a> {
    pub(super) fn new(txn: &'a mut dyn Txn, geometry: Geometry, ino: Ino, attr: Attr) -> Self {
        Self { txn, attr, ino, geometry, chunks: BTreeMap::new() }
    }

    /// Writes everything and hands the attributes back, which are the caller's to write.
    pub(super) fn finish(mut self) -> OpResult<Attr> {
        self.settle()?;
        Ok(self.attr)
    }

    /// Records one slice; returns its seq.
    pub(super) fn slice(&mut self, chunk: u32, record: &SliceRecord) -> OpResult<u64> {
        assert_eq!(record.check(), Ok(()));
        assert!(
            u64::from(record.pos) + u64::from(record.len) <= self.geometry.chunk_size,
            "a slice stays in its chunk"
        );
        let end = self.start_of(chunk) + u64::from(record.pos) + u64::from(record.len);
        if end > FILE_SIZE_MAX {
            return Err(Errno::EFBIG.into());
        }
        self.add(chunk, record.clone())?;
        self.grow(end);
        Ok(self.attr.next_seq - 1)
    }

    /// Sets the length; bytes past it are removed, or cut off until a sweeper has removed them.
    pub(super) fn truncate(&mut self, length: u64) -> OpResult<()> {
        if length > FILE_SIZE_MAX {
            return Err(Errno::EFBIG.into());
        }
        self.settle()?;
        // Also where the length stays: what is reserved past it goes, as on other file systems.
        let cuts = length <= self.attr.length && length < self.attr.reach;
        self.attr.length = length;
        self.attr.reach = self.attr.reach.max(length);
        if !cuts || planted::is(Bug::TruncateWithoutCut) {
            return Ok(());
        }
        if self.remove_all(length, u64::MAX)? {
            self.attr.reach = length;
            if length == 0 {
                (self.attr.stored, self.attr.exact) = (0, true);
            }
            return Ok(());
        }
        // Older cuts at or past this one say nothing any more.
        for (seq, range) in data::cuts(self.txn, self.ino)?.0 {
            if length <= range.start {
                self.txn.delete(&keys::cut(self.ino, seq));
            }
        }
        self.cut(length, u64::MAX);
        Ok(())
    }

    /// Makes `range` a hole. The length stays.
    pub(super) fn punch(&mut self, range: Range<u64>) -> OpResult<()> {
        let size = self.geometry.chunk_size;
        let end = range.end.min(self.attr.reach);
        if end <= range.start {
            return Ok(());
        }
        // The reach bounds what there is; a chunk that it ends in is whole if the range covers all of it.
        let past = self.attr.reach.div_ceil(size) * size;
        let (first_whole, past_whole) = (range.start.div_ceil(size) * size, range.end.min(past) / size * size);
        if first_whole < past_whole {
            self.settle()?;
            if !self.remove_all(first_whole, past_whole)? {
                self.cut(first_whole, past_whole);
                reached(Mark::HoleMadeByCut);
            }
            self.hole(range.start..first_whole)?;
            return self.hole(past_whole..end);
        }
        for part in self.parts(range.start, end) {
            self.hole(part)?;
        }
        Ok(())
    }

    /// Reserves what of `range` takes no space yet; `extend`: the length grows to its end.
    pub(super) fn reserve(&mut self, range: Range<u64>, extend: bool) -> OpResult<()> {
        if range.end > FILE_SIZE_MAX {
            return Err(Errno::EFBIG.into());
        }
        // What a cut hides takes space until the sweeper has been there, not for longer.
        let cuts = data::cuts(self.txn, self.ino)?;
        for part in self.parts(range.start, range.end) {
            let (chunk, pos, len) = self.place(&part);
            if part.start < self.attr.reach {
                let start = self.start_of(chunk);
                if chunk::lasting(&self.chunk(chunk)?.records, &cuts, start).covers(pos, pos + len) {
                    continue;
                }
            }
            let place = Place::Reserved;
            self.add(chunk, SliceRecord { slice: SliceId(0), stored_len: len, off: 0, pos, len, place })?;
            self.attr.reach = self.attr.reach.max(part.end);
        }
        if extend {
            self.grow(range.end);
        }
        Ok(())
    }

    /// Lays what shows in a range of another file, or of this one, over a range of this one: slices are shared.
    /// Returns how many bytes; `None`: the source is not as `copy` says, and nothing is done.
    pub(super) fn copy(&mut self, copy: &CopyRange) -> OpResult<Option<u64>> {
        self.settle()?;
        let same = copy.source == self.ino;
        let source = match same {
            true => Some(self.attr),
            false => get::<Attr>(self.txn, keys::attr(copy.source))?.filter(|attr| attr.commit == copy.commit),
        };
        let Some(source) = source.filter(|attr| attr.kind == FileType::Regular) else { return Ok(None) };
        let end = source.length.min(copy.from.saturating_add(copy.len));
        if end <= copy.from {
            return Ok(Some(0));
        }
        let (pieces, mut sources, end) = self.pieces(copy, end)?;
        let mut shared = alloc::vec![0; sources.len()];
        pieces.iter().for_each(|piece| shared[piece.source] += 1);
        for (stored, count) in sources.iter_mut().zip(shared) {
            share(self.txn, stored, count)?;
        }
        if !same {
            // Unchanged: so that a commit of the source at the same moment conflicts.
            put(self.txn, keys::attr(copy.source), &source);
        }
        let target = copy.to..copy.to + (end - copy.from);
        if target.end > FILE_SIZE_MAX {
            return Err(Errno::EFBIG.into());
        }
        self.punch(target.clone())?;
        for piece in pieces {
            self.add(piece.chunk, piece.record)?;
        }
        self.attr.reach = self.attr.reach.max(target.end);
        self.grow(target.end);
        reached(Mark::SlicesShared);
        Ok(Some(end - copy.from))
    }

    // ---- helpers

    fn start_of(&self, chunk: u32) -> u64 {
        u64::from(chunk) * self.geometry.chunk_size
    }

    /// `[start, end)` cut at the borders of chunks.
    fn parts(&self, start: u64, end: u64) -> Vec<Range<u64>> {
        let size = self.geometry.chunk_size;
        let mut parts = Vec::new();
        let mut at = start;
        while at < end {
            let stop = end.min((at / size + 1) * size);
            parts.push(at..stop);
            at = stop;
        }
        parts
    }

    /// Chunk, position and length of a range within one chunk.
    fn place(&self, part: &Range<u64>) -> (u32, u32, u32) {
        let size = self.geometry.chunk_size;
        ((part.start / size) as u32, (part.start % size) as u32, (part.end - part.start) as u32)
    }

    fn grow(&mut self, end: u64) {
        self.attr.length = self.attr.length.max(end);
        self.attr.reach = self.attr.reach.max(end);
    }

    fn chunk(&mut self, chunk: u32) -> OpResult<&mut Chunk> {
        if !self.chunks.contains_key(&chunk) {
            let loaded = Chunk::load(self.txn, &self.geometry, (self.ino, &self.attr), chunk)?;
            self.chunks.insert(chunk, loaded);
        }
        Ok(self.chunks.get_mut(&chunk).expect("it was there or was just inserted"))
    }

    /// Lays a record over the others of its chunk. Leaves length and reach to the caller.
    fn add(&mut self, chunk: u32, record: SliceRecord) -> OpResult<()> {
        let (seq, start) = (self.attr.next_seq, self.start_of(chunk) + u64::from(record.pos));
        let key = keys::slice(self.ino, chunk, seq);
        self.attr.next_seq += 1;
        if self.attr.reach <= start && !self.chunks.contains_key(&chunk) {
            // Nothing is below it: no need to look at the chunk.
            put(self.txn, key, &record);
            self.attr.stored += u64::from(record.len);
            return Ok(());
        }
        self.chunk(chunk)?.records.push(Stored { key: Bytes::from(key), chunk, seq, record, fresh: true });
        Ok(())
    }

    /// Makes a part of one chunk a hole, if there is anything. (may be empty)
    fn hole(&mut self, part: Range<u64>) -> OpResult<()> {
        if part.is_empty() || self.attr.reach <= part.start {
            return Ok(());
        }
        let (chunk, pos, len) = self.place(&part);
        self.add(chunk, SliceRecord { slice: SliceId(0), stored_len: len, off: 0, pos, len, place: Place::Hole })
    }

    /// Removes hidden records, writes fresh ones, and counts what the chunks take.
    fn settle(&mut self) -> OpResult<()> {
        let chunks = mem::take(&mut self.chunks);
        if chunks.is_empty() {
            return Ok(());
        }
        let cuts = data::cuts(self.txn, self.ino)?;
        for (number, mut chunk) in chunks {
            let start = self.start_of(number);
            chunk.tidy(self.txn, &cuts, start)?;
            self.count(chunk.before, chunk::allocated(&chunk.records).count());
        }
        Ok(())
    }

    /// The records of a chunk took `before` bytes and take `after`.
    fn count(&mut self, before: u64, after: u64) {
        self.attr.stored = (self.attr.stored + after).saturating_sub(before);
    }

    /// Removes everything in `[start, end)`, which ends at the border of a chunk; false: too much for one transaction.
    fn remove_all(&mut self, start: u64, end: u64) -> OpResult<bool> {
        let size = self.geometry.chunk_size;
        let first = u32::try_from(start / size).map_err(|_| Errno::EFBIG)?;
        let (from, _) = keys::slice_range(self.ino, Some(first));
        let (_, to) = match end {
            u64::MAX => keys::slice_range(self.ino, None),
            end => keys::slice_range(self.ino, Some((end / size) as u32 - 1)),
        };
        let page = self.txn.scan(&from, &to, PAGE)?;
        if page.len() == PAGE {
            return Ok(false);
        }
        let mut chunks: BTreeMap<u32, Vec<Stored>> = BTreeMap::new();
        let mut removed = 0;
        for (key, value) in page {
            let stored = Stored::decode(key, &value)?;
            removed += usize::from(data::left_of(&self.geometry, &stored, start..end) < stored.record.len);
            chunks.entry(stored.chunk).or_default().push(stored);
        }
        if removed > DIRECT_MAX {
            return Ok(false);
        }
        for mut records in chunks.into_values() {
            let before = chunk::allocated(&records).count();
            for stored in &mut records {
                let left = data::left_of(&self.geometry, stored, start..end);
                if left < stored.record.len {
                    stored.shorten(self.txn, left)?;
                }
            }
            self.count(before, chunk::allocated(&records).count());
        }
        Ok(true)
    }

    fn cut(&mut self, offset: u64, end: u64) {
        put(self.txn, keys::cut(self.ino, self.attr.next_seq), &Cut { offset, end });
        put(self.txn, keys::cutfile(self.ino), &());
        reached(Mark::CutMade);
        self.attr.next_seq += 1;
    }

    /// The data of `copy.from..end`, as records of the destination, with the records that it is of and where it ends:
    /// at `end` or earlier, after as many pieces as one transaction may share.
    fn pieces(&mut self, copy: &CopyRange, mut end: u64) -> OpResult<(Vec<Piece>, Vec<Stored>, u64)> {
        let cuts = data::cuts(self.txn, copy.source)?;
        let (mut pieces, mut sources) = (Vec::new(), Vec::new());
        for part in self.parts(copy.from, end) {
            let (chunk, pos, len) = self.place(&part);
            let chunk_start = self.start_of(chunk);
            let records = chunk::load(self.txn, copy.source, chunk)?;
            let base = sources.len();
            for (shown, index) in chunk::visible(&records, &cuts, chunk_start, pos..pos + len) {
                let start = chunk_start + u64::from(shown.start);
                if pieces.len() >= COPY_PIECES_MAX {
                    end = start;
                    break;
                }
                let to = copy.to + (start - copy.from);
                for target in self.parts(to, to + u64::from(shown.end - shown.start)) {
                    let skip = shown.start - records[index].record.pos + (target.start - to) as u32;
                    let (chunk, pos, len) = self.place(&target);
                    let record = shared_part(&records[index].record, skip, pos, len);
                    pieces.push(Piece { chunk, record, source: base + index });
                }
            }
            sources.extend(records);
            if end < part.end {
                break;
            }
        }
        Ok((pieces, sources, end))
    }
}

/// `[skip, skip + len)` of what `record` shows, to be shown at `pos` of another chunk.
fn shared_part(record: &SliceRecord, skip: u32, pos: u32, len: u32) -> SliceRecord {
    let off = record.off + skip;
    match &record.place {
        Place::Inline(bytes) => {
            let bytes = bytes.slice(off as usize..(off + len) as usize);
            SliceRecord { slice: SliceId(0), stored_len: len, off: 0, pos, len, place: Place::Inline(bytes) }
        }
        Place::Blocks | Place::Home => {
            SliceRecord { slice: record.slice, stored_len: record.stored_len, off, pos, len, place: Place::Home }
        }
        Place::Hole | Place::Reserved => unreachable!("only data is shared"),
    }
}

/// Counts `count` further references to the slice of a record, which has a home from then on.
fn share(txn: &mut dyn Txn, stored: &mut Stored, count: u64) -> OpResult<()> {
    if count == 0 {
        return Ok(());
    }
    let slice = stored.record.slice;
    match stored.record.place {
        Place::Inline(_) => {}
        Place::Blocks => {
            stored.record.place = Place::Home;
            put(txn, &stored.key, &stored.record);
            put(txn, keys::home(slice), &Home { references: count + 1 });
        }
        Place::Home => {
            let home: Home = get(txn, keys::home(slice))?.ok_or(OpError::Damaged("a slice without its home"))?;
            put(txn, keys::home(slice), &Home { references: home.references + count });
        }
        Place::Hole | Place::Reserved => unreachable!("only data is shared"),
    }
    Ok(())
}
