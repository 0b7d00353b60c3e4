//! What is committed of one file: the slices of the chunks that were loaded.
//!
//! Owns: the overlay of committed slices, what of the rest is reserved, and which chunks both are complete for.
//! Leaves to others: uncommitted bytes (`machine`), fetching blocks.
//!
//! Invariants
//! - What was loaded before a change and arrives after it is not installed (`version`).
//! - Nothing is painted at or past the committed length.

use core::ops::Range;

use bytes::Bytes;

use super::overlay::{Overlay, Source};
use crate::marks::{Mark, reached_if};
use crate::planted::{self, Bug};
use crate::types::{BlockId, Geometry, Place, SliceId, SliceRecord};

/// A part of a read, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// These bytes.
    Bytes(Bytes),
    /// So many zeros: a hole.
    Zeros(u64),
    /// `[off, off + len)` of a block's payload.
    Block {
        /// Which block.
        id: BlockId,
        /// First byte in the block.
        off: u32,
        /// How many.
        len: u32,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Stored {
    Blocks { slice: SliceId, stored_len: u32, off: u32 },
    Inline { bytes: Bytes, off: u32 },
}

impl Source for Stored {
    fn skip(&self, n: u64) -> Self {
        match self {
            Self::Blocks { slice, stored_len, off } => {
                Self::Blocks { slice: *slice, stored_len: *stored_len, off: off + n as u32 }
            }
            Self::Inline { bytes, off } => Self::Inline { bytes: bytes.clone(), off: off + n as u32 },
        }
    }
}

impl Stored {
    /// Hands out the segments of the first `len` bytes.
    pub(super) fn segments(&self, geometry: &Geometry, len: u64, mut out: impl FnMut(Segment)) {
        match self {
            Self::Inline { bytes, off } => {
                out(Segment::Bytes(bytes.slice(*off as usize..*off as usize + len as usize)))
            }
            Self::Blocks { slice, stored_len, off } => {
                let mut at = *off;
                let end = off + len as u32;
                while at < end {
                    let index = at / geometry.block_size;
                    let start = index * geometry.block_size;
                    let block_len = (stored_len - start).min(geometry.block_size);
                    let stop = end.min(start + block_len);
                    let id = BlockId { slice: *slice, index, len: block_len };
                    out(Segment::Block { id, off: at - start, len: stop - at });
                    at = stop;
                }
            }
        }
    }
}

/// Something that is the same at every place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole;

impl Source for Whole {
    fn skip(&self, _: u64) -> Self {
        Self
    }
}

/// The committed slices of one file, in file offsets.
#[derive(Clone, Debug)]
pub(super) struct View {
    overlay: Overlay<Stored>,
    /// Bytes that take space, be there data or not; data takes space anyway.
    reserved: Overlay<Whole>,
    /// By number of the chunk.
    loaded: Overlay<Whole>,
    /// Chunks from this one on had no data when the file was opened: complete for readers without being loaded.
    empty_from: u32,
    /// Chunks from this one on had no record at all.
    unreserved_from: u32,
    /// Committed length.
    length: u64,
    /// Changes with every commit.
    version: u64,
}

impl View {
    /// The view of a file of `length` committed bytes and no record past `reach`, nothing loaded.
    pub(super) fn new(geometry: &Geometry, length: u64, reach: u64) -> Self {
        let chunks = |offset: u64| offset.div_ceil(geometry.chunk_size) as u32;
        Self {
            overlay: Overlay::default(),
            reserved: Overlay::default(),
            loaded: Overlay::default(),
            empty_from: chunks(length),
            unreserved_from: chunks(reach),
            length,
            version: 0,
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn overlay(&self) -> &Overlay<Stored> {
        &self.overlay
    }

    pub(super) fn is_loaded(&self, chunk: u32) -> bool {
        chunk >= self.empty_from || self.was_loaded(chunk)
    }

    fn was_loaded(&self, chunk: u32) -> bool {
        self.loaded.end_of(u64::from(chunk)).is_some()
    }

    /// Complete for data from `chunk` up to this one; `None`: `chunk` is to be loaded.
    pub(super) fn loaded_until(&self, chunk: u32) -> Option<u64> {
        if chunk >= self.empty_from { Some(u64::MAX) } else { self.loaded.end_of(u64::from(chunk)) }
    }

    /// The same for what is reserved, too.
    pub(super) fn known_until(&self, chunk: u32) -> Option<u64> {
        if chunk >= self.unreserved_from { Some(u64::MAX) } else { self.loaded.end_of(u64::from(chunk)) }
    }

    /// Bytes of `range` that take no space. Its chunks must be known.
    pub(super) fn unallocated(&self, range: Range<u64>) -> u64 {
        let bare = |range: Range<u64>| {
            let pieces = self.reserved.plan(range).into_iter().filter(|piece| piece.source.is_none());
            pieces.map(|piece| piece.range.end - piece.range.start).sum::<u64>()
        };
        let holes = self.overlay.plan(range).into_iter().filter(|piece| piece.source.is_none());
        holes.map(|piece| bare(piece.range)).sum()
    }

    /// Installs the slices of `chunk` in commit order, if they were read at `version`.
    pub(super) fn install<'a>(
        &mut self,
        geometry: &Geometry,
        version: u64,
        chunk: u32,
        records: impl Iterator<Item = &'a SliceRecord>,
    ) {
        reached_if(Mark::StaleViewRefused, || version != self.version);
        if (version == self.version || planted::is(Bug::StaleView)) && !self.was_loaded(chunk) {
            self.loaded.paint(u64::from(chunk)..u64::from(chunk) + 1, Whole);
            for record in records {
                self.paint(geometry, chunk, record);
            }
        }
    }

    /// Notes that these chunks had no record at `version`.
    pub(super) fn install_empty(&mut self, version: u64, chunks: Range<u64>) {
        if version == self.version {
            self.loaded.paint(chunks, Whole);
        }
    }

    /// A commit begins to be applied here: whatever is being loaded comes too late.
    pub(super) fn advance(&mut self) {
        self.version += 1;
    }

    /// What is committed is unknown, but for the length: everything is to be loaded again.
    pub(super) fn forget(&mut self, length: Option<u64>) {
        *self = Self {
            overlay: Overlay::default(),
            reserved: Overlay::default(),
            loaded: Overlay::default(),
            empty_from: u32::MAX,
            unreserved_from: u32::MAX,
            length: length.unwrap_or(self.length),
            version: self.version + 1,
        };
    }

    /// Lays a committed slice over the older ones.
    pub(super) fn apply(&mut self, geometry: &Geometry, chunk: u32, record: &SliceRecord) {
        if self.is_loaded(chunk) {
            self.paint(geometry, chunk, record);
        }
        let end = u64::from(chunk) * geometry.chunk_size + u64::from(record.pos) + u64::from(record.len);
        self.length = self.length.max(end);
    }

    /// A committed truncate. A chunk that lies past it is complete: it is a hole.
    pub(super) fn truncate(&mut self, length: u64) {
        self.overlay.clear(length..u64::MAX);
        if length <= self.length {
            self.reserved.clear(length..u64::MAX);
        }
        self.length = length;
    }

    /// A committed hole.
    pub(super) fn punch(&mut self, range: Range<u64>) {
        self.overlay.clear(range.clone());
        self.reserved.clear(range);
    }

    /// A committed reservation.
    pub(super) fn reserve(&mut self, range: Range<u64>, extend: bool) {
        if extend {
            self.length = self.length.max(range.end);
        }
        self.reserved.paint(range, Whole);
    }

    fn paint(&mut self, geometry: &Geometry, chunk: u32, record: &SliceRecord) {
        let start = u64::from(chunk) * geometry.chunk_size + u64::from(record.pos);
        let range = start..start + u64::from(record.len);
        let source = match &record.place {
            Place::Hole => return self.punch(range),
            Place::Reserved => return self.reserved.paint(range, Whole),
            Place::Inline(bytes) => Stored::Inline { bytes: bytes.clone(), off: record.off },
            Place::Blocks | Place::Home => {
                Stored::Blocks { slice: record.slice, stored_len: record.stored_len, off: record.off }
            }
        };
        self.overlay.paint(range, source);
    }
}

/// The chunks that `range` touches.
pub(super) fn chunks(geometry: &Geometry, range: Range<u64>) -> Range<u32> {
    if range.is_empty() {
        return 0..0;
    }
    (range.start / geometry.chunk_size) as u32..((range.end - 1) / geometry.chunk_size) as u32 + 1
}
