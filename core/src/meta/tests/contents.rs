//! Commits, truncates and sweeping against a plain vector of bytes.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;

use super::*;
use crate::types::Place;

/// One file, what it should hold, and the bytes of every slice.
struct File {
    ino: Ino,
    number: u64,
    bytes: Vec<u8>,
    /// What takes space, of each byte, also past the end.
    taken: Vec<bool>,
    slices: BTreeMap<SliceId, Vec<u8>>,
}

impl File {
    fn new(world: &mut World, name: &[u8]) -> Self {
        Self {
            ino: world.file(Ino::ROOT, name),
            number: 0,
            bytes: Vec::new(),
            taken: Vec::new(),
            slices: BTreeMap::new(),
        }
    }

    /// The file `file` of 1,200 bytes in 150 slices: too many for one transaction to remove.
    fn in_pieces(world: &mut World) -> Self {
        let mut file = Self::new(world, b"file");
        for i in 0..150 {
            let changes = file.write(world, i * 8, 8, i as u8);
            file.commit(world, changes);
        }
        file
    }

    /// A write of `len` new bytes at `offset`, cut into chunks.
    fn write(&mut self, world: &mut World, offset: u64, len: u64, fill: u8) -> Vec<Change> {
        let end = (offset + len) as usize;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.take(offset as usize..end, true);
        let mut changes = Vec::new();
        let mut at = offset;
        while at < end as u64 {
            let (chunk, pos) = ((at / 64) as u32, (at % 64) as u32);
            let len = (end as u64 - at).min(64 - u64::from(pos)) as u32;
            let data: Vec<u8> = (0..len).map(|i| fill.wrapping_add(i as u8) | 1).collect();
            self.bytes[at as usize..][..len as usize].copy_from_slice(&data);
            changes.push(if len <= TINY.inline_max {
                let place = Place::Inline(data.into());
                let record = SliceRecord { slice: SliceId(0), stored_len: len, off: 0, pos, len, place };
                Change::Slice { chunk, record }
            } else {
                let change = world.blocks(chunk, pos, len);
                if let Change::Slice { record, .. } = &change {
                    self.slices.insert(record.slice, data);
                }
                change
            });
            at += u64::from(len);
        }
        changes
    }

    fn truncate(&mut self, length: u64) -> Change {
        if length <= self.bytes.len() as u64 {
            self.taken.truncate(length as usize);
        }
        self.bytes.resize(length as usize, 0);
        Change::Truncate { length }
    }

    fn take(&mut self, range: core::ops::Range<usize>, taken: bool) {
        if self.taken.len() < range.end {
            self.taken.resize(range.end, false);
        }
        self.taken[range].fill(taken);
    }

    fn punch(&mut self, offset: u64, len: u64) -> Change {
        let (start, end) = (offset as usize, (offset + len) as usize);
        let shown = end.min(self.bytes.len());
        self.bytes.get_mut(start..shown).unwrap_or_default().fill(0);
        self.take(start..end, false);
        Change::Punch { offset, len }
    }

    fn reserve(&mut self, offset: u64, len: u64, extend: bool) -> Change {
        let end = (offset + len) as usize;
        self.take(offset as usize..end, true);
        if extend && self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        Change::Reserve { offset, len, extend }
    }

    /// A copy within the file, of ranges that do not overlap.
    fn copy(&mut self, from: u64, to: u64, len: u64) -> Change {
        let end = (from + len).min(self.bytes.len() as u64);
        for (at, source) in (to as usize..).zip(from as usize..end as usize) {
            let byte = self.bytes[source];
            if self.bytes.len() <= at {
                self.bytes.resize(at + 1, 0);
            }
            self.bytes[at] = byte;
            // No byte that was written is zero.
            self.take(at..at + 1, byte != 0);
        }
        Change::Copy(CopyRange { source: self.ino, commit: 0, from, to, len })
    }

    fn commit(&mut self, world: &mut World, changes: Vec<Change>) -> CommitReply {
        self.number += changes.len() as u64;
        let copies = changes.iter().any(|change| matches!(change, Change::Copy(_)));
        let slices = changes.iter().filter(|change| matches!(change, Change::Slice { .. })).count();
        let reply = world.commit(self.ino, self.number, changes.clone()).unwrap();
        assert!(reply.applied);
        assert_eq!(reply.copied.is_some(), copies);
        assert_eq!(reply.seqs.len(), slices);
        assert_eq!(reply.attr.length, self.bytes.len() as u64);
        let again = world.commit(self.ino, self.number, changes).unwrap();
        assert_eq!(again, CommitReply { applied: false, attr: reply.attr, seqs: vec![], copied: None, grown: 0 });
        reply
    }

    /// What a reader sees: slices painted in order.
    fn contents(&self, world: &mut World) -> Vec<u8> {
        let ino = self.ino;
        let mut bytes = vec![0; world.attr(ino).length as usize];
        for chunk in 0..bytes.len().div_ceil(64) as u32 + 2 {
            for (_, record) in world.chunk(ino, chunk) {
                let data = match &record.place {
                    Place::Inline(data) => data.to_vec(),
                    Place::Blocks | Place::Home => self.slices[&record.slice].clone(),
                    Place::Hole => vec![0; record.len as usize],
                    Place::Reserved => continue,
                };
                let start = chunk as usize * 64 + record.pos as usize;
                let mut shown = &data[record.off as usize..][..record.len as usize];
                if record.place == Place::Hole {
                    shown = &shown[..shown.len().min(bytes.len().saturating_sub(start))];
                }
                bytes.get_mut(start..start + shown.len()).unwrap_or_default().copy_from_slice(shown);
            }
        }
        bytes
    }

    /// Slices that records refer to.
    fn live(&self, world: &mut World) -> BTreeSet<SliceId> {
        let mut live = BTreeSet::new();
        let mut txn = world.kv.begin();
        let mut from = None;
        loop {
            from = sweep::references(txn.as_read(), from, 3, &mut |slice| live.extend([slice])).unwrap();
            if from.is_none() {
                return live.into_iter().filter(|slice| self.slices.contains_key(slice)).collect();
            }
        }
    }

    #[track_caller]
    fn check(&self, world: &mut World) {
        assert_eq!(self.contents(world), self.bytes);
        // Each slice is referred to or queued, never both, never neither.
        let mut known: Vec<SliceId> = self.live(world).into_iter().chain(world.queued()).collect();
        known.sort_unstable();
        assert_eq!(known, self.slices.keys().copied().collect::<Vec<_>>());
        let (stored, taken) = (world.attr(self.ino).stored, self.taken.iter().filter(|taken| **taken).count() as u64);
        let swept = world.read(|read| sweep::cutfiles(read, 1)).unwrap().is_empty();
        assert!(world.attr(self.ino).exact);
        assert!(stored == taken || taken < stored && !swept, "{stored} bytes are counted, {taken} are taken");
        world.check();
    }
}

fn sweep_all(world: &mut World) {
    while let [ino, ..] = world.read(|read| sweep::cutfiles(read, 1)).unwrap()[..] {
        world.run(|txn, ctx| sweep::sweep_cuts(txn, ctx, ino, 3)).unwrap();
    }
    while let [ino, ..] = world.read(|read| sweep::delfiles(read, 1)).unwrap()[..] {
        world.run(|txn, ctx| sweep::sweep_delfile(txn, ctx, ino, 3)).unwrap();
    }
}

#[test]
fn commits_match_a_vector_of_bytes() {
    let cuts: usize = (1..=12).map(|seed| random_commits(seed, 250)).sum();
    assert!(cuts > 50, "only {cuts} steps were taken beside a cut");
}

/// Returns the number of steps that left a cut pending.
fn random_commits(seed: u64, steps: u64) -> usize {
    let mut rng = Rng::new(seed);
    let mut world = World::new();
    let mut file = File::new(&mut world, b"file");
    let mut cuts = 0;
    // Some files are rewritten in place, some grow until truncates have to leave cuts.
    let (spread, rarity) = [(100, 10), (400, 20), (1500, 60)][(seed % 3) as usize];
    for step in 0..steps {
        let mut changes = Vec::new();
        for _ in 0..=rng.below(4) {
            if rng.below(rarity) == 0 {
                let length = rng.below(spread / 2);
                changes.push(file.truncate(length));
            }
            match rng.below(18) {
                12 if rng.below(rarity) == 0 => changes.push(file.punch(rng.below(spread / 4), spread / 2)),
                12 | 13 => changes.push(file.punch(rng.below(spread), 1 + rng.below(20))),
                14 | 15 => {
                    let (offset, len, extend) = (rng.below(spread), 1 + rng.below(40), rng.below(2) == 0);
                    let zero = rng.below(3) == 0;
                    if zero {
                        changes.push(file.punch(offset, len));
                    }
                    changes.push(file.reserve(offset, len, extend));
                }
                16 | 17 => {
                    let (from, to, len) = (rng.below(spread), rng.below(spread), 1 + rng.below(20));
                    if from + len <= to || to + len <= from {
                        changes.push(file.copy(from, to, len));
                    }
                }
                0 => {
                    let length = file.bytes.len() as u64 + rng.below(40);
                    changes.push(file.truncate(length.min(spread)));
                }
                1..=4 => {
                    let (at, len) = (file.bytes.len() as u64, 1 + rng.below(6));
                    if at + len <= spread {
                        changes.extend(file.write(&mut world, at, len, step as u8));
                    }
                }
                _ => {
                    let (at, len) = (rng.below(spread), 1 + rng.below(8));
                    changes.extend(file.write(&mut world, at, len, step as u8));
                }
            }
        }
        if changes.is_empty() {
            continue;
        }
        file.commit(&mut world, changes);
        file.check(&mut world);
        cuts += world.read(|read| sweep::cutfiles(read, 1)).unwrap().len();
        if rng.below(8) == 0 {
            let (ino, limit) = (file.ino, 1 + rng.below(5) as usize);
            world.run(|txn, ctx| sweep::sweep_cuts(txn, ctx, ino, limit)).unwrap();
            file.check(&mut world);
        }
    }
    sweep_all(&mut world);
    file.check(&mut world);
    let ino = file.ino;
    world.run(|txn, ctx| remove::unlink(txn, ctx, Ino::ROOT, b"file")).unwrap();
    file.check(&mut world);
    world.run(|txn, ctx| remove::reap(txn, ctx, ino, &[])).unwrap();
    assert_eq!(world.usage(), Usage { bytes: 0, inodes: 1 });
    world.check();
    sweep_all(&mut world);
    assert_eq!(world.queued(), file.slices.keys().copied().collect::<Vec<_>>());
    world.check();
    cuts
}

#[test]
fn files_of_few_slices_leave_nothing() {
    for (slices, from) in (0..=6).flat_map(|slices| [(slices, 0), (slices, 30), (slices, 100)]) {
        let mut world = World::new();
        let mut file = File::new(&mut world, b"file");
        for number in 0..slices {
            let changes = file.write(&mut world, from + number * 5, 20, number as u8);
            file.commit(&mut world, changes);
        }
        let ino = file.ino;
        world.run(|txn, ctx| remove::unlink(txn, ctx, Ino::ROOT, b"file")).unwrap();
        world.run(|txn, ctx| remove::reap(txn, ctx, ino, &[])).unwrap();
        assert_eq!(world.usage(), Usage { bytes: 0, inodes: 1 });
        assert_eq!(world.queued(), file.slices.keys().copied().collect::<Vec<_>>());
        world.check();
    }
}

#[test]
fn long_truncate_leaves_a_cut_that_hides_at_once_and_is_swept_in_pieces() {
    let mut world = World::new();
    let mut file = File::in_pieces(&mut world);
    let change = file.truncate(20);
    file.commit(&mut world, vec![change]);
    assert_eq!(world.read(|read| sweep::cutfiles(read, 9)).unwrap(), [file.ino]);
    assert_eq!(world.usage().bytes, 1200);
    file.check(&mut world);

    // Longer again, and written past the cut: the hole stays a hole, the new bytes stay.
    let longer = file.truncate(1200);
    let mut changes = vec![longer];
    changes.extend(file.write(&mut world, 600, 30, 99));
    file.commit(&mut world, changes);
    file.check(&mut world);

    let (ino, mut pieces) = (file.ino, 0);
    while !world.run(|txn, ctx| sweep::sweep_cuts(txn, ctx, ino, 10)).unwrap() {
        pieces += 1;
        file.check(&mut world);
    }
    assert_eq!(world.attr(ino).reach, 1200);
    // 147 records lie past the cut, 8 of them went with the commit to their chunk; one more is trimmed.
    assert_eq!(pieces, 13);
    assert_eq!(world.usage().bytes, 20 + 30);
    assert_eq!(world.read(|read| sweep::cutfiles(read, 9)).unwrap(), []);
    file.check(&mut world);
}

#[test]
fn what_is_reserved_past_the_end_outlasts_a_sweep() {
    let mut world = World::new();
    let mut file = File::in_pieces(&mut world);
    let change = file.truncate(20);
    let reserve = file.reserve(600, 30, false);
    file.commit(&mut world, vec![change, reserve]);
    let ino = file.ino;
    assert_eq!(world.attr(ino).reach, 1200);
    while !world.run(|txn, ctx| sweep::sweep_cuts(txn, ctx, ino, 10)).unwrap() {}
    assert_eq!((world.attr(ino).length, world.attr(ino).reach), (20, 630));
    assert_eq!(world.usage().bytes, 20 + 30);
    file.check(&mut world);
}

#[test]
fn truncate_that_does_not_see_every_record_leaves_a_cut() {
    // One chunk of more records than a truncate reads, of which the first page holds few past the length.
    let mut world = World::with_geometry(Geometry { chunk_size: 512, ..TINY });
    let ino = world.file(Ino::ROOT, b"file");
    let place = Place::Inline(Bytes::from_static(b"x"));
    let slice = |pos| {
        let record = SliceRecord { slice: SliceId(0), stored_len: 1, off: 0, pos, len: 1, place: place.clone() };
        Change::Slice { chunk: 0, record }
    };
    world.commit(ino, 1, (0..300).map(slice).collect()).unwrap();
    world.commit(ino, 2, vec![Change::Truncate { length: 250 }]).unwrap();
    assert_eq!(world.chunk(ino, 0).len(), 250);
    world.check();
    while !world.run(|txn, ctx| sweep::sweep_cuts(txn, ctx, ino, 7)).unwrap() {
        world.check();
    }
    assert_eq!(world.chunk(ino, 0).len(), 250);
    assert_eq!(world.usage().bytes, 250);
    world.check();
}

#[test]
fn long_file_is_deleted_in_pieces_and_gives_its_usage_back_at_once() {
    let mut world = World::new();
    let file = File::in_pieces(&mut world);
    let ino = file.ino;
    let gave_up = world.slice();
    world.run(|txn, ctx| remove::unlink(txn, ctx, Ino::ROOT, b"file")).unwrap();
    assert_eq!(world.usage(), Usage { bytes: 1200, inodes: 2 });
    world.run(|txn, ctx| remove::reap(txn, ctx, ino, &[(gave_up, 5)])).unwrap();
    assert_eq!(world.usage(), Usage { bytes: 0, inodes: 1 });
    assert_eq!(world.queued().len(), 65);
    world.check();
    assert_eq!(world.read(|read| sweep::delfiles(read, 9)).unwrap(), [ino]);
    while !world.run(|txn, ctx| sweep::sweep_delfile(txn, ctx, ino, 40)).unwrap() {
        world.check();
    }
    let queued = world.queued();
    assert_eq!(queued.len(), 151);
    world.run(|txn, _| sweep::drop_delslices(txn, &queued)).unwrap();
    assert_eq!(world.queued(), []);
    world.check();
    assert_eq!(world.commit(ino, 1000, vec![]), Err(OpError::Errno(Errno::ESTALE)));
}

#[test]
fn covered_slices_go_with_the_commit_that_covers_them() {
    // Slices as (pos, len), in order; which of them are left.
    type Case = (&'static [(u32, u32)], &'static [usize]);
    let cases: &[Case] = &[
        (&[(0, 10), (0, 10)], &[1]),
        (&[(0, 10), (0, 9)], &[0, 1]),
        (&[(0, 10), (0, 5), (5, 5)], &[1, 2]),
        (&[(2, 5), (0, 20)], &[1]),
        (&[(0, 10), (10, 10), (20, 10), (5, 20)], &[0, 2, 3]),
        (&[(0, 30), (0, 10), (20, 10), (10, 10)], &[1, 2, 3]),
        (&[(0, 64), (0, 64), (0, 64)], &[2]),
    ];
    for (slices, left) in cases {
        let mut world = World::new();
        let ino = world.file(Ino::ROOT, b"file");
        for (number, &(pos, len)) in slices.iter().enumerate() {
            let change = world.blocks(3, pos, len);
            world.commit(ino, number as u64 + 1, vec![change]).unwrap();
            world.check();
        }
        let found = world.chunk(ino, 3);
        let seqs: Vec<usize> = found.iter().map(|(seq, _)| *seq as usize).collect();
        assert_eq!(&seqs, left, "{slices:?}");
        assert_eq!(world.queued().len(), slices.len() - left.len());
    }
}

#[test]
fn members_take_effect_in_order() {
    let mut world = World::new();
    let ino = world.file(Ino::ROOT, b"file");
    let time = |secs| Timestamp { secs, nanos: 5 };
    world.run(|txn, ctx| xattr::set(txn, ctx, ino, SECURITY_CAPABILITY, &b"x"[..].into(), XattrMode::Create)).unwrap();
    let chmod = SetAttr { mode: Some(0o6775), ..SetAttr::default() };
    let slice = world.blocks(0, 10, 20);
    let changes = vec![
        slice,
        Change::Attrs { set: chmod, now: time(2001) },
        Change::Written { mtime: time(2002), drop_privileges: false },
        Change::Truncate { length: 12 },
    ];
    let reply = world.commit(ino, 4, changes).unwrap();
    assert_eq!((reply.attr.length, reply.attr.stored, reply.attr.mode), (12, 2, 0o6775));
    assert_eq!((reply.attr.mtime, reply.attr.ctime, reply.attr.commit), (time(2002), time(2002), 4));
    assert_eq!(world.attr(ino), reply.attr);

    let utimes = SetAttr { mtime: Some(time(-7)), ..SetAttr::default() };
    let changes =
        vec![Change::Written { mtime: time(8), drop_privileges: true }, Change::Attrs { set: utimes, now: time(2009) }];
    let reply = world.commit(ino, 6, changes).unwrap();
    assert_eq!((reply.attr.mtime, reply.attr.ctime, reply.attr.mode), (time(-7), time(2009), 0o0775));
    let capability = world.read(|read| xattr::get(read, ino, SECURITY_CAPABILITY));
    assert_eq!(capability, Err(OpError::Errno(Errno::ENODATA)));
    world.check();
}

#[test]
fn length_is_limited() {
    let mut world = World::new();
    let ino = world.file(Ino::ROOT, b"file");
    let longest = Change::Truncate { length: 1 << 37 };
    assert_eq!(world.commit(ino, 1, vec![longest]).unwrap().attr.length, 1 << 37);
    let too_long = Change::Truncate { length: crate::types::FILE_SIZE_MAX + 1 };
    assert_eq!(world.commit(ino, 2, vec![too_long]), Err(OpError::Errno(Errno::EFBIG)));
    world.check();
}

#[test]
fn the_last_byte_of_the_longest_file_can_be_written() {
    use crate::types::FILE_SIZE_MAX;

    let mut world =
        World::with_geometry(Geometry { chunk_size: 64 << 20, block_size: 4 << 20, frame_size: 4096, inline_max: 4 });
    let chunk = (FILE_SIZE_MAX >> 26) as u32;
    let ino = world.file(Ino::ROOT, b"file");
    let last = world.blocks(chunk - 1, (64 << 20) - 1, 1);
    assert_eq!(world.commit(ino, 1, vec![last]).unwrap().attr.length, FILE_SIZE_MAX);
    let past = world.blocks(chunk, 0, 1);
    assert_eq!(world.commit(ino, 2, vec![past]), Err(OpError::Errno(Errno::EFBIG)));
    let longest = Change::Truncate { length: FILE_SIZE_MAX };
    assert_eq!(world.commit(ino, 2, vec![longest]).unwrap().attr.length, FILE_SIZE_MAX);
    world.check();
}

#[test]
fn shared_slices_count_their_references() {
    use crate::format::values::Home;

    let mut world = World::new();
    let (a, b) = (world.file(Ino::ROOT, b"a"), world.file(Ino::ROOT, b"b"));
    let slice = world.slice();
    let home = Home { references: 2 };
    world.put(crate::format::keys::home(slice), &home);
    let record = SliceRecord { slice, stored_len: 20, off: 4, pos: 0, len: 10, place: Place::Home };
    for ino in [a, b] {
        world.commit(ino, 1, vec![Change::Slice { chunk: 0, record: record.clone() }]).unwrap();
    }
    world.check();
    world.commit(a, 2, vec![Change::Truncate { length: 0 }]).unwrap();
    assert_eq!(world.queued(), []);
    world.check();
    world.commit(b, 2, vec![Change::Truncate { length: 0 }]).unwrap();
    assert_eq!(world.queued(), [slice]);
    world.check();
}

/// A copy takes over so many pieces at most, and says where it stopped; the next one goes on there.
#[test]
fn a_copy_of_many_pieces_ends_early() {
    let mut world = World::with_geometry(Geometry { chunk_size: 2048, ..TINY });
    let (a, b) = (world.file(Ino::ROOT, b"a"), world.file(Ino::ROOT, b"b"));
    let place = Place::Inline(Bytes::from_static(b"x"));
    let piece = |pos| {
        let record = SliceRecord { slice: SliceId(0), stored_len: 1, off: 0, pos, len: 1, place: place.clone() };
        Change::Slice { chunk: 0, record }
    };
    world.commit(a, 1, (0..300).map(|index| piece(index * 3)).collect()).unwrap();
    let copy = |from, commit| vec![Change::Copy(CopyRange { source: a, commit, from, to: from + 10, len: 5000 })];
    // The source is not as the caller saw it.
    assert_eq!(world.commit(b, 1, copy(0, 7)).unwrap().copied, None);
    assert_eq!(world.attr(b).length, 0);
    let first = world.commit(b, 2, copy(0, 1)).unwrap().copied.unwrap();
    assert_eq!(first, 256 * 3);
    let second = world.commit(b, 3, copy(first, 1)).unwrap().copied.unwrap();
    assert_eq!((first + second, world.attr(b).length, world.attr(b).stored), (898, 908, 300));
    assert_eq!(world.commit(b, 4, copy(898, 1)).unwrap().copied, Some(0));
    world.check();
}

#[test]
fn files_that_share_slices_let_go_of_them_one_by_one() {
    let mut world = World::new();
    let (a, b) = (world.file(Ino::ROOT, b"a"), world.file(Ino::ROOT, b"b"));
    let slices = vec![world.blocks(0, 0, 60), world.blocks(1, 0, 60)];
    world.commit(a, 1, slices).unwrap();
    let copy = CopyRange { source: a, commit: 1, from: 10, to: 30, len: 100 };
    assert_eq!(world.commit(b, 1, vec![Change::Copy(copy)]).unwrap().copied, Some(100));
    world.check();
    assert_eq!((world.attr(b).length, world.attr(b).stored, world.usage().bytes), (130, 96, 216));
    world.run(|txn, ctx| remove::unlink(txn, ctx, Ino::ROOT, b"a")).unwrap();
    world.run(|txn, ctx| remove::reap(txn, ctx, a, &[])).unwrap();
    assert_eq!(world.queued(), []);
    world.check();
    world.commit(b, 2, vec![Change::Punch { offset: 0, len: 64 }]).unwrap();
    assert_eq!(world.queued(), []);
    world.check();
    world.commit(b, 3, vec![Change::Truncate { length: 0 }]).unwrap();
    assert_eq!(world.queued().len(), 2);
    assert_eq!(world.usage().bytes, 0);
    world.check();
}

#[test]
fn a_hole_in_terabytes_is_a_record_or_two_and_a_cut() {
    let mut world = World::new();
    let mut file = File::in_pieces(&mut world);
    let keys = |world: &mut World| world.read(|read| scan_all(read, crate::format::keys::everything())).unwrap().len();
    let before = keys(&mut world);
    let change = file.punch(100, 1 << 20);
    file.commit(&mut world, vec![change]);
    assert!(keys(&mut world) <= before + 4);
    file.check(&mut world);
    sweep_all(&mut world);
    file.check(&mut world);
    assert_eq!(world.usage().bytes, 100);
}
