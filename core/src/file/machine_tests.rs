//! The file machine against a plain `Vec<u8>`: any order of completions, failures, lost answers and crashes.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::machine::{Action, COMMIT_SLICES_MAX, CommitOutcome, Fallocate, File, PutOutcome, SLICES_MAX, WAITING_MAX};
use super::view::Segment;
use crate::errno::Errno;
use crate::meta::{Change, Commit, SetAttr};
use crate::testkit::rng::Rng;
use crate::types::{Attr, BlockId, FileType, Geometry, Ino, InodeFlags, Place, SliceId, SliceRecord, Timestamp};

const GEOMETRY: Geometry = Geometry { chunk_size: 64, block_size: 16, frame_size: 8, inline_max: 4 };
const INO: Ino = Ino(7);

fn attr(length: u64, commit: u64) -> Attr {
    let zero = Timestamp::default();
    Attr {
        kind: FileType::Regular,
        mode: 0o644,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 1,
        length,
        stored: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        btime: zero,
        commit,
        next_seq: 0,
        reach: 0,
        exact: true,
        bare: true,
        parent: Ino::ROOT,
        flags: InodeFlags::default(),
    }
}

/// The stores and the kernel's view, as plain as they can be.
struct World {
    rng: Rng,
    file: File,
    batch_slices: usize,
    now: Duration,
    next_id: u64,
    actions: Vec<Action>,
    /// Contents as accepted, by member number; the last is what readers must see.
    history: Vec<(u64, Vec<u8>)>,
    objects: BTreeMap<(SliceId, u32), Bytes>,
    /// Put, but not past a barrier that began later.
    volatile: BTreeSet<(SliceId, u32)>,
    /// Per running barrier: what it will cover.
    barriers: Vec<(u64, BTreeSet<(SliceId, u32)>)>,
    /// Committed: number, length and slices by chunk.
    number: u64,
    length: u64,
    chunks: BTreeMap<u32, Vec<SliceRecord>>,
    commits: u64,
    lost_answers: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let batch_slices = if seed.is_multiple_of(2) { 2 } else { SLICES_MAX };
        Self {
            rng: Rng::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            file: File::new(INO, &attr(0, 0), GEOMETRY, Duration::from_secs(60)).with_batches_of(batch_slices),
            batch_slices,
            now: Duration::ZERO,
            next_id: 1,
            actions: Vec::new(),
            history: vec![(0, Vec::new())],
            objects: BTreeMap::new(),
            volatile: BTreeSet::new(),
            barriers: Vec::new(),
            number: 0,
            length: 0,
            chunks: BTreeMap::new(),
            commits: 0,
            lost_answers: 0,
        }
    }

    fn contents(&self) -> Vec<u8> {
        self.history.last().expect("never empty").1.clone()
    }

    fn accept(&mut self, contents: Vec<u8>) {
        let number = self.history.last().expect("never empty").0 + 1;
        self.history.push((number, contents));
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.rng.below(50));
        let wall = Timestamp { secs: self.now.as_millis() as i64, nanos: 0 };
        match self.rng.below(20) {
            0..8 => {
                let offset = self.rng.below(200);
                let most = if self.rng.below(4) == 0 { 90 } else { 12 };
                let len = 1 + self.rng.below(most);
                let byte = 1 + self.rng.below(255) as u8;
                let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
                let mut contents = self.contents();
                let end = (offset + len) as usize;
                contents.resize(contents.len().max(end), 0);
                contents[offset as usize..end].copy_from_slice(&data);
                self.file.write(self.now, wall, offset, &data, false);
                self.accept(contents);
            }
            8..10 => {
                let length = self.rng.below(220);
                let mut contents = self.contents();
                contents.resize(length as usize, 0);
                self.file.truncate(self.now, wall, length);
                self.accept(contents);
            }
            10 => {
                self.file.set_attr(self.now, wall, &SetAttr { mode: Some(0o600), ..SetAttr::default() });
                self.accept(self.contents());
            }
            11 => {
                self.file.flush();
            }
            12 if self.rng.below(10) == 0 => self.crash(),
            13 => {
                let (offset, len) = (self.rng.below(200), 1 + self.rng.below(60));
                let end = (offset + len) as usize;
                let extend = self.rng.below(2) == 0;
                let what = match self.rng.below(3) {
                    0 => Fallocate::Punch,
                    1 => Fallocate::Zero { extend },
                    _ => Fallocate::Reserve { extend },
                };
                let mut contents = self.contents();
                if extend && what != Fallocate::Punch && contents.len() < end {
                    contents.resize(end, 0);
                }
                if !matches!(what, Fallocate::Reserve { .. }) {
                    let shown = end.min(contents.len());
                    contents.get_mut(offset as usize..shown).unwrap_or_default().fill(0);
                }
                self.file.fallocate(self.now, wall, offset..offset + len, what, 0, false);
                self.accept(contents);
            }
            _ => {
                for _ in 0..1 + self.rng.below(6) {
                    self.complete();
                    self.poll();
                }
            }
        }
        self.poll();
        self.file.check();
        self.compare();
    }

    fn poll(&mut self) {
        let next_id = &mut self.next_id;
        let mut ids = || {
            *next_id += 1;
            Some(SliceId(*next_id))
        };
        while let Some(action) = self.file.poll_action(self.now, &mut ids) {
            if let Action::Barrier { number } = action {
                self.barriers.push((number, self.volatile.clone()));
            }
            self.actions.push(action);
        }
    }

    /// Completes some action, well or badly.
    fn complete(&mut self) {
        if self.actions.is_empty() {
            return;
        }
        let index = self.rng.below(self.actions.len() as u64) as usize;
        let fate = self.rng.below(8);
        let failed = PutOutcome::Failed { errno: Errno::EIO, lasting: false };
        match self.actions.swap_remove(index) {
            Action::NeedId => panic!("ids never run out here"),
            Action::Put { key, id, payload } => {
                assert_eq!(payload.len(), id.len as usize);
                if fate != 0 {
                    let old = self.objects.insert((id.slice, id.index), payload.clone());
                    assert!(old.is_none_or(|old| old == payload), "an object was overwritten by other bytes");
                    self.volatile.insert((id.slice, id.index));
                }
                let outcome = if fate <= 1 { failed } else { PutOutcome::Done };
                self.file.handle_put(self.now, key, id.index, outcome);
            }
            Action::Barrier { number } => {
                let at = self.barriers.iter().position(|(n, _)| *n == number).expect("it was started");
                let (_, covered) = self.barriers.swap_remove(at);
                if fate != 0 {
                    self.volatile = self.volatile.difference(&covered).copied().collect();
                }
                let outcome = if fate <= 1 { failed } else { PutOutcome::Done };
                self.file.handle_barrier(self.now, number, outcome);
            }
            Action::Commit(commit) => {
                let fresh = fate != 0 && self.apply(&commit);
                self.lost_answers += u64::from(fate == 1);
                let outcome = match fate {
                    0 | 1 => CommitOutcome::Failed { errno: Errno::EIO, lasting: false },
                    _ => CommitOutcome::Applied { fresh, length: Some(self.length), copied: None },
                };
                self.file.handle_commit(self.now, outcome, |id: BlockId, payload| {
                    assert_eq!(self.objects[&(id.slice, id.index)], payload);
                });
            }
        }
    }

    /// What `meta::data::commit` does.
    fn apply(&mut self, commit: &Arc<Commit>) -> bool {
        if commit.number <= self.number {
            return false;
        }
        self.commits += 1;
        for change in &commit.changes {
            match change {
                Change::Slice { chunk, record } => {
                    for index in 0..GEOMETRY.block_count(record.stored_len) {
                        let durable = matches!(record.place, Place::Inline(_))
                            || (self.objects.contains_key(&(record.slice, index))
                                && !self.volatile.contains(&(record.slice, index)));
                        assert!(durable, "a commit refers to a block that is not durable");
                    }
                    self.chunks.entry(*chunk).or_default().push(record.clone());
                    let end = u64::from(*chunk) * GEOMETRY.chunk_size + u64::from(record.pos + record.len);
                    self.length = self.length.max(end);
                }
                Change::Truncate { length } => {
                    self.length = *length;
                    for (chunk, records) in &mut self.chunks {
                        let start = u64::from(*chunk) * GEOMETRY.chunk_size;
                        records.retain_mut(|record| {
                            let keep = length.saturating_sub(start + u64::from(record.pos));
                            record.len = record.len.min(keep.min(u64::from(u32::MAX)) as u32);
                            record.len > 0
                        });
                    }
                }
                Change::Punch { offset, len } => self.lay(*offset, *len, &Place::Hole),
                Change::Reserve { offset, len, extend } => {
                    self.lay(*offset, *len, &Place::Reserved);
                    self.length = if *extend { self.length.max(offset + len) } else { self.length };
                }
                Change::Copy(_) => panic!("nothing is copied here"),
                Change::Written { .. } | Change::Attrs { .. } => {}
            }
        }
        self.number = commit.number;
        true
    }

    /// Lays records without bytes over a range.
    fn lay(&mut self, offset: u64, len: u64, place: &Place) {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (chunk, pos) = (at / GEOMETRY.chunk_size, (at % GEOMETRY.chunk_size) as u32);
            let len = (end - at).min(GEOMETRY.chunk_size - u64::from(pos)) as u32;
            let record = SliceRecord { slice: SliceId(0), stored_len: len, off: 0, pos, len, place: place.clone() };
            self.chunks.entry(chunk as u32).or_default().push(record);
            at += u64::from(len);
        }
    }

    /// Everything in memory and everything volatile is gone; what is committed must be what was accepted up to there.
    fn crash(&mut self) {
        for gone in core::mem::take(&mut self.volatile) {
            self.objects.remove(&gone);
        }
        self.actions.clear();
        self.barriers.clear();
        let attr = Attr { reach: 1000, ..attr(self.length, self.number) };
        self.file = File::new(INO, &attr, GEOMETRY, Duration::from_secs(60)).with_batches_of(self.batch_slices);
        self.history.retain(|(number, _)| *number <= self.number);
        let survived = self.history.last().expect("never empty").0;
        assert_eq!(survived, self.number, "the number committed is one that was accepted");
    }

    fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        loop {
            let segments = match self.file.read(offset, len) {
                Ok(segments) => segments,
                Err((chunks, version)) => {
                    for chunk in chunks {
                        let none = Vec::new();
                        let records = self.chunks.get(&chunk).unwrap_or(&none);
                        self.file.install(version, chunk, records.iter());
                    }
                    continue;
                }
            };
            let mut bytes = Vec::new();
            for segment in segments {
                match segment {
                    Segment::Bytes(part) => bytes.extend_from_slice(&part),
                    Segment::Zeros(n) => bytes.resize(bytes.len() + n as usize, 0),
                    Segment::Block { id, off, len } => {
                        let object = &self.objects[&(id.slice, id.index)];
                        assert_eq!(object.len(), id.len as usize);
                        bytes.extend_from_slice(&object[off as usize..(off + len) as usize]);
                    }
                }
            }
            return bytes;
        }
    }

    fn compare(&mut self) {
        let contents = self.contents();
        assert_eq!(self.file.length(), contents.len() as u64);
        let (offset, len) = if self.rng.below(4) == 0 { (0, 400) } else { (self.rng.below(220), self.rng.below(40)) };
        let expected: Vec<u8> = contents.into_iter().skip(offset as usize).take(len as usize).collect();
        assert_eq!(self.read(offset, len), expected, "a read of {len} at {offset}");
    }

    /// Faults stop: everything accepted is committed within a bound.
    fn converge(&mut self) {
        let number = self.file.flush();
        for _ in 0..10_000 {
            self.now += Duration::from_secs(1);
            self.poll();
            if self.file.is_clean() {
                break;
            }
            while let Some(action) = self.actions.pop() {
                match action {
                    Action::NeedId => panic!("ids never run out here"),
                    Action::Put { key, id, payload } => {
                        self.objects.insert((id.slice, id.index), payload);
                        self.file.handle_put(self.now, key, id.index, PutOutcome::Done);
                    }
                    Action::Barrier { number } => {
                        self.volatile.clear();
                        self.file.handle_barrier(self.now, number, PutOutcome::Done);
                    }
                    Action::Commit(commit) => {
                        let fresh = self.apply(&commit);
                        let outcome = CommitOutcome::Applied { fresh, length: Some(self.length), copied: None };
                        self.file.handle_commit(self.now, outcome, |_, _| {});
                    }
                }
            }
        }
        assert!(self.file.is_clean() && self.file.committed() >= number && self.file.dirty_bytes() == 0);
        assert_eq!(self.number, self.history.last().expect("never empty").0);
        let contents = self.contents();
        assert_eq!(self.read(0, 1000), contents);
    }
}

#[test]
fn a_file_is_what_was_accepted_whatever_the_stores_do() {
    let (mut commits, mut lost_answers) = (0, 0);
    for seed in 0..400 {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.step();
        }
        world.converge();
        commits += world.commits;
        lost_answers += world.lost_answers;
    }
    assert!(commits > 4000 && lost_answers > 400, "the test does not reach what it is for: {commits} {lost_answers}");
}

#[test]
fn a_long_sequential_write_puts_full_blocks_before_any_flush() {
    let mut world = World::new(1);
    world.file.write(Duration::ZERO, Timestamp::default(), 0, &[1; 40], false);
    world.poll();
    let puts = world.actions.iter().filter(|action| matches!(action, Action::Put { .. })).count();
    assert_eq!((puts, world.actions.len()), (2, 2));
}

/// Nothing is asked of the stores before; then commits take many batches each, and never more than they may.
#[test]
fn full_batches_wait_until_they_are_many() {
    let mut file = File::new(INO, &attr(0, 0), GEOMETRY, Duration::from_secs(60));
    let write = |file: &mut File, number: usize| {
        let offset = number as u64 * GEOMETRY.chunk_size;
        file.write(Duration::ZERO, Timestamp::default(), offset, b"tiny", false).work
    };
    let most = WAITING_MAX * SLICES_MAX;
    assert!(!(0..most).any(|number| write(&mut file, number)));
    assert!(file.poll_action(Duration::ZERO, &mut || None).is_none());
    assert!(write(&mut file, most));
    let mut carried = Vec::new();
    while let Some(action) = file.poll_action(Duration::ZERO, &mut || None) {
        let Action::Commit(commit) = action else { panic!("{action:?}") };
        carried.push(commit.changes.iter().filter(|change| matches!(change, Change::Slice { .. })).count());
        file.handle_commit(Duration::ZERO, CommitOutcome::NOT_FRESH, |_, _| {});
        file.check();
    }
    assert_eq!(carried, [COMMIT_SLICES_MAX; 2]);
    assert_eq!(file.dirty_bytes(), 4, "the write that was one too many is not among them");
}

#[test]
fn a_small_write_travels_in_its_commit() {
    let mut world = World::new(1);
    world.file.write(Duration::ZERO, Timestamp::default(), 0, b"tiny", false);
    world.file.flush();
    world.poll();
    let [Action::Commit(commit)] = &world.actions[..] else { panic!("{:?}", world.actions) };
    let Change::Slice { record, .. } = &commit.changes[0] else { panic!("{commit:?}") };
    assert_eq!((record.slice, &record.place), (SliceId(0), &Place::Inline(Bytes::from_static(b"tiny"))));
}

/// A fuzzed client saw twice the blocks of a file while the answer to its commit was on its way.
#[test]
fn what_a_commit_under_way_has_stored_is_counted_once() {
    let mut file = File::new(INO, &attr(0, 0), GEOMETRY, Duration::from_secs(60));
    let wall = Timestamp::default();
    file.write(Duration::ZERO, wall, 0, b"ab", false);
    let number = file.flush();
    file.write(Duration::ZERO, wall, 20, b"c", false);
    let Some(Action::Commit(commit)) = file.poll_action(Duration::ZERO, &mut || None) else { panic!("no commit") };
    assert_eq!(commit.number, number);
    assert_eq!(file.overlay_attr(attr(0, 0)).stored, 3);
    assert_eq!(file.overlay_attr(Attr { stored: 2, ..attr(2, number) }).stored, 3, "with the commit applied");
    file.handle_commit(Duration::ZERO, CommitOutcome::Applied { fresh: true, length: None, copied: None }, |_, _| {});
    assert_eq!(file.overlay_attr(Attr { stored: 2, ..attr(2, number) }).stored, 3, "and answered");
}

#[test]
fn an_error_is_raised_at_once_if_waiting_cannot_help_else_after_the_time_out() {
    let mut file = File::new(INO, &attr(0, 0), GEOMETRY, Duration::from_secs(60));
    file.write(Duration::ZERO, Timestamp::default(), 0, &[1; 16], false);
    let mut id = || Some(SliceId(9));
    let mut now = Duration::ZERO;
    let mut attempt = |file: &mut File, now: Duration, errno, lasting| {
        let Some(Action::Put { key, id, .. }) = file.poll_action(now, &mut id) else { panic!("nothing to put") };
        file.handle_put(now, key, id.index, PutOutcome::Failed { errno, lasting });
    };
    attempt(&mut file, now, Errno::EIO, false);
    assert_eq!(file.error_since(0), None);
    now += Duration::from_secs(61);
    attempt(&mut file, now, Errno::EIO, false);
    assert_eq!(file.error_since(0), Some((1, Errno::EIO)));
    assert_eq!(file.error_since(1), None, "it is told once");
    now += Duration::from_secs(61);
    attempt(&mut file, now, Errno::ENOSPC, true);
    assert_eq!(file.error_since(1), Some((2, Errno::ENOSPC)));
    assert_eq!(file.dirty_bytes(), 16, "the bytes are kept");
}

#[test]
fn puts_that_a_failing_barrier_or_commit_makes_in_vain_hide_no_error() {
    for barriers_fail in [true, false] {
        let mut file = File::new(INO, &attr(0, 0), GEOMETRY, Duration::from_secs(60));
        let (mut now, mut next, mut puts) = (Duration::ZERO, 9, 0);
        let failed = |errno| PutOutcome::Failed { errno, lasting: false };
        assert!(file.is_getting_on());
        while now < Duration::from_secs(70) {
            // There is always something new to put.
            file.write(now, Timestamp::default(), 0, &[1; 16], false);
            file.flush();
            let mut id = || {
                next += 1;
                Some(SliceId(next))
            };
            while let Some(action) = file.poll_action(now, &mut id) {
                match action {
                    Action::Put { key, id, .. } => {
                        puts += 1;
                        file.handle_put(now, key, id.index, PutOutcome::Done);
                    }
                    Action::Barrier { number } if barriers_fail => {
                        file.handle_barrier(now, number, failed(Errno::EIO));
                    }
                    Action::Barrier { number } => file.handle_barrier(now, number, PutOutcome::Done),
                    Action::Commit(_) => {
                        let outcome = CommitOutcome::Failed { errno: Errno::EIO, lasting: false };
                        file.handle_commit(now, outcome, |_, _| {});
                    }
                    Action::NeedId => panic!("ids never run out here"),
                }
            }
            assert!(!file.is_getting_on());
            now += Duration::from_secs(1);
        }
        assert!(puts > 60, "{puts} puts");
        assert_eq!(file.error_since(0), Some((1, Errno::EIO)));
    }
}

#[test]
fn what_fails_is_tried_again_after_pauses_that_double_up_to_five_seconds() {
    let expected = [20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000];
    for contents in [&[1; 4][..], &[1; 16]] {
        let mut file = File::new(INO, &attr(0, 0), GEOMETRY, Duration::from_secs(60));
        file.write(Duration::ZERO, Timestamp::default(), 0, contents, false);
        file.flush();
        let mut now = Duration::ZERO;
        for pause in expected {
            match file.poll_action(now, &mut || Some(SliceId(9))) {
                Some(Action::Commit(_)) => {
                    let outcome = CommitOutcome::Failed { errno: Errno::EIO, lasting: false };
                    file.handle_commit(now, outcome, |_, _| {});
                }
                Some(Action::Put { key, id, .. }) => {
                    file.handle_put(now, key, id.index, PutOutcome::Failed { errno: Errno::EIO, lasting: false });
                }
                other => panic!("{other:?}"),
            }
            assert!(file.poll_action(now, &mut || None).is_none());
            let due = file.poll_timeout(now).expect("it is tried again");
            assert_eq!(due - now, Duration::from_millis(pause));
            now = due;
        }
    }
}
