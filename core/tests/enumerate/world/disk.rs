//! The disk of the write-back log, and what a crash leaves of it.
//!
//! Owns: the writes, in the order in which they were made, and which of them a sync has covered.
//! Leaves to others: what is written (`log`), what else a crash leaves (`recovery`).
//!
//! Invariants
//! - A sync covers all writes to its segment that were made before it, and the segment's name.
//! - A removal and an owner are durable at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

/// A write to a segment. The first one makes the segment, and is empty.
#[derive(Clone, Debug)]
struct Write {
    segment: u64,
    at: u64,
    bytes: Bytes,
    synced: bool,
}

/// The folder of a log.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogDisk {
    /// The mount that used it last.
    pub(super) owner: Option<u64>,
    writes: Vec<Write>,
}

impl LogDisk {
    /// Makes a segment.
    pub(super) fn create(&mut self, segment: u64) {
        self.write(segment, 0, Bytes::new());
    }

    /// Writes `bytes` at `at` of a segment.
    pub(super) fn write(&mut self, segment: u64, at: u64, bytes: Bytes) {
        self.writes.push(Write { segment, at, bytes, synced: false });
    }

    pub(super) fn sync(&mut self, segment: u64) {
        let of_it = self.writes.iter_mut().filter(|write| write.segment == segment);
        of_it.for_each(|write| write.synced = true);
    }

    pub(super) fn remove(&mut self, segment: u64) {
        self.writes.retain(|write| write.segment != segment);
    }

    /// Part of one write.
    pub(super) fn read(&self, segment: u64, range: &Range<u64>) -> Option<Bytes> {
        let holds = |write: &&Write| {
            write.segment == segment && write.at <= range.start && range.end <= write.at + write.bytes.len() as u64
        };
        let write = self.writes.iter().rev().find(holds)?;
        Some(write.bytes.slice((range.start - write.at) as usize..(range.end - write.at) as usize))
    }

    /// The segments that are there, each whole.
    pub(super) fn segments(&self) -> BTreeMap<u64, Bytes> {
        let mut segments: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for Write { segment, at, bytes, .. } in &self.writes {
            let file = segments.entry(*segment).or_default();
            let range = *at as usize..*at as usize + bytes.len();
            file.resize(file.len().max(range.end), 0);
            file[range].copy_from_slice(bytes);
        }
        segments.into_iter().map(|(number, file)| (number, file.into())).collect()
    }

    /// Nothing is left of the log.
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// What a crash may leave: everything; of the writes that no sync has covered the first ones, without more and with
    /// a part of the next; the last of them whole, and of the one before it a part. (Writes end up on the disk in any
    /// order. With a crash after each write, each is once the torn one that has a whole one behind it.)
    pub(crate) fn survivors(self: &Arc<Self>) -> Vec<Arc<Self>> {
        let volatile: Vec<usize> = (0..self.writes.len()).filter(|place| !self.writes[*place].synced).collect();
        let mut left = vec![self.settled(&[], None)];
        for (count, next) in volatile.iter().enumerate() {
            left.push(self.settled(&volatile[count..], None));
            left.push(self.settled(&volatile[count + 1..], Some(*next)));
        }
        if let [.., torn, _] = &volatile[..] {
            left.push(self.settled(&[], Some(*torn)));
        }
        left.into_iter().map(Arc::new).collect()
    }

    /// Without the writes at `lost`, and with a part of the one at `torn`.
    fn settled(&self, lost: &[usize], torn: Option<usize>) -> Self {
        let kept = self.writes.iter().enumerate().filter(|(place, _)| !lost.contains(place)).map(|(place, write)| {
            let bytes = if torn == Some(place) { tear(&write.bytes) } else { write.bytes.clone() };
            Write { bytes, synced: true, ..write.clone() }
        });
        Self { owner: self.owner, writes: kept.collect() }
    }

    /// What tells the states of the disk apart.
    pub(crate) fn hash_into(&self, hash: &mut Xxh3) {
        hash.update(&self.owner.unwrap_or(0).to_le_bytes());
        for Write { segment, at, bytes, .. } in &self.writes {
            for word in [*segment, *at, bytes.len() as u64] {
                hash.update(&word.to_le_bytes());
            }
            hash.update(bytes);
        }
    }

    /// The writes, for a person.
    pub(crate) fn describe(&self) -> String {
        let places = self.writes.iter().map(|write| format!("{}:{}+{}", write.segment, write.at, write.bytes.len()));
        places.collect::<Vec<_>>().join(" ")
    }
}

/// The length is there, and the last quarter is not: of a record of a block, part of its body.
fn tear(bytes: &Bytes) -> Bytes {
    let mut torn = bytes.to_vec();
    let kept = torn.len() * 3 / 4;
    torn[kept..].fill(0);
    torn.into()
}
