//! The write-back log on disk: owner file, segment header, records, and what a scan makes of damaged bytes.
//!
//! Owns: the layouts, and telling records from everything else.
//! Leaves to others: what records mean (`store::log`), files (`env::Disk`).
//!
//! A segment is a header and, from `RECORDS_AT` on, records: a header of `RECORD_LEN` bytes, the key of the object, its
//! body. A record begins at the next multiple of `ALIGN` after the one before it, or of `PAGE` where a sync came
//! between, so that no write touches a page with synced bytes. A paged record has its pages to itself, and its body begins
//! at a multiple of `PAGE`, so that it can be written around the page cache. A body that is a block, with checksums of its
//! own, is not gone through for another one.
//!
//! Invariants
//! - Checksums are seeded with volume, epoch, segment and position: a record is valid in its place alone.
//! - Each record says how far the log was known to be synced when it was written (`Frontier`). What is unreadable below
//!   the highest of these is damage, anything else a tail that a crash has torn.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use super::codec::{DecodeError, Decoder, Encoder, require};
use crate::format::block;
use crate::types::VolumeId;

/// Version of this format; those from `VERSION_MIN` on can be read. 1: no paged records. 2: blocks have checksums of all of
/// the body, too.
const VERSION: u32 = 3;
const VERSION_MIN: u32 = 1;
const OWNER_MAGIC: &[u8; 8] = b"KISEKIWB";
const SEGMENT_MAGIC: &[u8; 8] = b"KISEKIWS";
const RECORD_MAGIC: [u8; 4] = *b"KWR1";

/// Where the records of a segment begin.
pub const RECORDS_AT: u64 = PAGE;
/// What a sync may tear if it is written again: at least a sector of any disk.
pub const PAGE: u64 = 4096;
const ALIGN: u64 = 8;
/// Length of a record without key and body.
pub const RECORD_LEN: u64 = 48;

/// Whose the folder of a log is, and of which mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Whose blocks it holds.
    pub volume: VolumeId,
    /// Of the last mount that used it. (>= 1)
    pub epoch: u64,
}

impl Owner {
    /// The bytes of the owner's file.
    pub fn encode(&self) -> Bytes {
        let body = Encoder::new(64).raw(OWNER_MAGIC).u32(VERSION).raw(&self.volume.0).u64(self.epoch).finish();
        sealed(body, 0)
    }

    /// The owner again.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::new(unsealed(bytes, 0)?);
        require(d.raw(8)? == OWNER_MAGIC, "magic of a write-back log")?;
        version(&mut d)?;
        let owner = Self { volume: VolumeId(d.bytes16()?), epoch: d.u64()? };
        d.finish()?;
        Ok(owner)
    }
}

/// A position in the log: everything before it is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontier {
    /// Number of a segment; those with lower numbers are covered whole.
    pub segment: u64,
    /// Position in it.
    pub at: u64,
}

/// The header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whose.
    pub volume: VolumeId,
    /// Of which mount.
    pub epoch: u64,
    /// Its number in the log.
    pub number: u64,
    /// Where the segment before it has its first hole: a write that failed, or its end. What a later `Frontier` says of
    /// that segment holds up to here.
    pub before: u64,
}

impl Segment {
    /// Its bytes, fewer than `RECORDS_AT`.
    pub fn encode(&self) -> Bytes {
        let head = Encoder::new(64).raw(SEGMENT_MAGIC).u32(VERSION).raw(&self.volume.0);
        sealed(head.u64(self.epoch).u64(self.number).u64(self.before).finish(), self.number)
    }

    /// The header of segment `number` at the start of `bytes`.
    pub fn decode(bytes: &[u8], number: u64) -> Result<Self, DecodeError> {
        const LEN: usize = 8 + 4 + 16 + 8 + 8 + 8 + 8;
        let head = bytes.get(..LEN).ok_or(DecodeError::Short)?;
        let mut d = Decoder::new(unsealed(head, number)?);
        require(d.raw(8)? == SEGMENT_MAGIC, "magic of a segment")?;
        version(&mut d)?;
        let segment = Self { volume: VolumeId(d.bytes16()?), epoch: d.u64()?, number: d.u64()?, before: d.u64()? };
        require(segment.number == number, "number of a segment")?;
        Ok(segment)
    }

    /// What checksums of a record at `at` are seeded with.
    fn seed(&self, at: u64) -> u64 {
        let place = Encoder::new(40).raw(&self.volume.0).u64(self.epoch).u64(self.number).u64(at).finish();
        xxh3_64_with_seed(&place, 0)
    }
}

fn version(d: &mut Decoder<'_>) -> Result<(), DecodeError> {
    match d.u32()? {
        VERSION_MIN..=VERSION => Ok(()),
        other => Err(DecodeError::Version(other)),
    }
}

fn sealed(mut body: Vec<u8>, seed: u64) -> Bytes {
    let sum = xxh3_64_with_seed(&body, seed);
    body.extend_from_slice(&sum.to_be_bytes());
    body.into()
}

fn unsealed(bytes: &[u8], seed: u64) -> Result<&[u8], DecodeError> {
    let (body, sum) = bytes.split_last_chunk::<8>().ok_or(DecodeError::Short)?;
    require(xxh3_64_with_seed(body, seed).to_be_bytes() == *sum, "checksum of the write-back log")?;
    Ok(body)
}

/// What a record says of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was put; the record holds it.
    Put,
    /// It was deleted.
    Delete,
}

/// Where the record after one that ends at `end` begins; `apart`: a sync came between, or one of the two is paged.
pub fn next_at(end: u64, apart: bool) -> u64 {
    end.next_multiple_of(if apart { PAGE } else { ALIGN })
}

/// Where the body of a record at `at` begins; `at` of a paged one is a multiple of `PAGE`.
pub fn body_at(at: u64, key_len: u64, paged: bool) -> u64 {
    let start = at + RECORD_LEN + key_len;
    if paged { start.next_multiple_of(PAGE) } else { start }
}

/// What a body is verified by, whatever its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// The checksum of all of it.
    Body(u64),
    /// The checksum of its head: it is a block, and the rest is verified by that. (`format::block`)
    Head(u64),
}

impl Sum {
    /// Of a body in pieces, the first of which has the head if it is a block.
    pub fn of(body: &[Bytes]) -> Self {
        let len = body.iter().map(|piece| piece.len() as u64).sum();
        if let Some(head) = body.first().and_then(|first| block::head_of(first, len)) {
            return Self::Head(xxh3_64_with_seed(head, 0));
        }
        let mut state = Xxh3::new();
        body.iter().for_each(|piece| state.update(piece));
        Self::Body(state.digest())
    }

    /// Whether `body` is the one that this is of.
    pub fn holds(self, body: &[u8]) -> bool {
        match self {
            Self::Body(sum) => xxh3_64_with_seed(body, 0) == sum,
            Self::Head(sum) => block::verified_head(body).is_some_and(|head| xxh3_64_with_seed(head, 0) == sum),
        }
    }
}

/// What a record says, but for its place.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// What happened.
    pub kind: Kind,
    /// To which object. (at most 65535 bytes)
    pub key: &'a str,
    /// Length of the body.
    pub len: u64,
    /// What that is verified by.
    pub sum: Sum,
    /// It has its pages to itself. (a `Put`)
    pub paged: bool,
}

/// Header and key of a record at `at`, up to where its body follows.
pub fn encode_record(segment: &Segment, at: u64, frontier: Frontier, record: &Content<'_>) -> Bytes {
    let Content { kind, key, len, sum, paged } = *record;
    let (kind, sum) = match (kind, paged, sum) {
        (Kind::Put, false, Sum::Body(sum)) => (1, sum),
        (Kind::Delete, _, Sum::Body(sum) | Sum::Head(sum)) => (2, sum),
        (Kind::Put, true, Sum::Body(sum)) => (3, sum),
        (Kind::Put, false, Sum::Head(sum)) => (4, sum),
        (Kind::Put, true, Sum::Head(sum)) => (5, sum),
    };
    let fields = Encoder::new(RECORD_LEN as usize + key.len())
        .raw(&RECORD_MAGIC)
        .u16(kind)
        .u16(u16::try_from(key.len()).expect("keys are short"))
        .u64(len)
        .u64(sum)
        .u64(frontier.segment)
        .u64(frontier.at)
        .finish();
    let mut state = Xxh3::with_seed(segment.seed(at));
    state.update(&fields);
    state.update(key.as_bytes());
    let start = (body_at(at, key.len() as u64, paged) - at) as usize;
    let mut head = Encoder::new(start).raw(&fields).u64(state.digest()).raw(key.as_bytes()).finish();
    head.resize(start, 0);
    head.into()
}

/// A record, found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What happened.
    pub kind: Kind,
    /// To which object.
    pub key: String,
    /// Where the record begins.
    pub at: u64,
    /// Where its body is in the segment.
    pub body: Range<u64>,
    /// What the body is verified by.
    pub sum: Sum,
    /// What was known to be synced.
    pub frontier: Frontier,
    /// The body is there, and is what was written.
    pub whole: bool,
}

fn decode_record(segment: &Segment, bytes: &[u8], at: u64) -> Option<Record> {
    let found = bytes.get(at as usize..)?;
    if !found.starts_with(&RECORD_MAGIC) {
        return None;
    }
    let mut d = Decoder::new(found);
    let fields = d.raw(RECORD_LEN as usize - 8).ok()?;
    let sum = d.u64().ok()?;
    let mut f = Decoder::new(&fields[RECORD_MAGIC.len()..]);
    let (kind, key_len) = (f.u16().ok()?, f.u16().ok()?);
    let key = d.raw(usize::from(key_len)).ok()?;
    let mut state = Xxh3::with_seed(segment.seed(at));
    state.update(fields);
    state.update(key);
    if state.digest() != sum {
        return None;
    }
    let (len, sum) = (f.u64().ok()?, f.u64().ok()?);
    let frontier = Frontier { segment: f.u64().ok()?, at: f.u64().ok()? };
    let start = body_at(at, key_len.into(), matches!(kind, 3 | 5));
    let body = start..start.checked_add(len)?;
    let (kind, sum) = match kind {
        1 | 3 => (Kind::Put, Sum::Body(sum)),
        2 => (Kind::Delete, Sum::Body(sum)),
        4 | 5 => (Kind::Put, Sum::Head(sum)),
        _ => return None,
    };
    let range = usize::try_from(body.start).ok()?..usize::try_from(body.end).ok()?;
    let whole = bytes.get(range).is_some_and(|body| sum.holds(body));
    Some(Record { kind, key: core::str::from_utf8(key).ok()?.to_owned(), at, body, sum, frontier, whole })
}

/// What is in a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// All that can be recognized, in the order of their places.
    pub records: Vec<Record>,
    /// What lies where a record may have been, and is none.
    pub gaps: Vec<Range<u64>>,
}

/// Looks at all `bytes` of a segment. Goes on behind what is unreadable.
pub fn scan(segment: &Segment, bytes: &[u8]) -> Scan {
    let mut scan = Scan::default();
    let end = bytes.len() as u64;
    let mut at = RECORDS_AT;
    // Where what is unreadable began.
    let mut gap = None;
    while at < end {
        let places = [next_at(at, false), next_at(at, true)];
        let clean = |place: &u64| gap.is_none() && zeros(bytes, at..*place);
        let expected = places.into_iter().filter(clean).find_map(|at| decode_record(segment, bytes, at));
        let record = expected.or_else(|| {
            let found =
                (next_at(at, false)..end).step_by(ALIGN as usize).find_map(|at| decode_record(segment, bytes, at));
            gap = gap.or((found.is_some() || !zeros(bytes, at..end)).then_some(at));
            found
        });
        if let Some(start) = gap.take() {
            scan.gaps.push(start..record.as_ref().map_or(end, |record| record.at));
        }
        let Some(record) = record else { break };
        // What looks like the body of a record that is not whole may hold others.
        at = if record.whole { record.body.end } else { record.body.start };
        gap = (!record.whole).then_some(record.at);
        scan.records.push(record);
    }
    scan.gaps.extend(gap.map(|start| start..end));
    scan
}

fn zeros(bytes: &[u8], range: Range<u64>) -> bool {
    let range = (range.start as usize).min(bytes.len())..(range.end as usize).min(bytes.len());
    bytes[range].iter().all(|byte| *byte == 0)
}

/// Which gaps are damage: bytes below `claimed`, up to which the segment was known to be synced. A segment that is
/// shorter than that is damaged, too.
pub fn damage(scan: &Scan, len: u64, claimed: u64) -> Vec<Range<u64>> {
    let mut damaged: Vec<Range<u64>> = scan.gaps.iter().filter(|gap| gap.start < claimed).cloned().collect();
    let last = scan.records.iter().map(|record| if record.whole { record.body.end } else { record.at }).max();
    let readable = scan.gaps.iter().map(|gap| gap.end).max().max(last).unwrap_or(RECORDS_AT);
    if readable < claimed {
        damaged.push(readable..claimed.max(len));
    }
    damaged
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
