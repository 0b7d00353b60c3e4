//! One file machine, real metadata operations on a store in memory, and an object store that fails and forgets.
//!
//! Owns: executing the machine's actions, and their outcomes.
//! Leaves to others: which step comes next (the target), what must hold of metadata and store (`judge`).
//!
//! What is judged here
//! - A read shows exactly the accepted writes, whatever is under way.
//! - A block is never put with other bytes. The machine counts the memory it holds right.
//! - What was committed and synced survives a crash.
//! - Once nothing fails any more, all comes to rest, committed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::env::TxnSeq;
use kiseki_core::errno::Errno;
use kiseki_core::file::machine::{Action, CommitOutcome, Fallocate, File, PutOutcome, Whence};
use kiseki_core::file::view::Segment;
use kiseki_core::format::block::LEASE_SLICES;
use kiseki_core::format::values::{VOLUME_VERSION, Volume};
use kiseki_core::kv::mem::MemKv;
use kiseki_core::kv::{OpError, OpResult, Txn};
use kiseki_core::meta::{self, Commit, CommitReply, CopyRange, New, OpCtx, SetAttr};
use kiseki_core::testkit;
use kiseki_core::types::{Attr, BlockId, FileType, Geometry, Ino, SliceId, SliceRecord, Timestamp, VolumeId};

#[path = "judge.rs"]
mod judge;

const GEOMETRY: Geometry = Geometry { chunk_size: 64, block_size: 16, frame_size: 8, inline_max: 3 };
const INO: Ino = Ino(2);
const NAME: &[u8] = b"file";
const STORE_TIMEOUT: Duration = Duration::from_secs(300);
/// More than any case needs to come to rest.
const STEPS_MAX: usize = 20_000;

/// How something that is under way ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Applied, and the answer arrives.
    Done,
    /// Not applied. A barrier that fails so has lost what it was to make durable.
    Failed,
    /// Applied, and the answer is lost.
    Unknown,
    /// A failed answer now, applied later. (commits)
    Late,
    /// Not applied, and waiting does not help.
    Lasting,
}

enum Pending {
    Put { key: u64, id: BlockId, payload: Bytes },
    Barrier { number: u64, covered: Vec<(SliceId, u32)> },
    Commit(Arc<Commit>),
    Load { version: u64, chunk: u32, records: Vec<SliceRecord> },
}

struct Stored {
    payload: Bytes,
    durable: bool,
}

pub(super) struct World {
    kv: MemKv,
    synced: TxnSeq,
    blocks: BTreeMap<(SliceId, u32), Stored>,
    next_id: u64,
    ids_ready: bool,
    now: Duration,
    file: File,
    pending: Vec<Pending>,
    /// Commits that failed and may yet be applied.
    late: Vec<Arc<Commit>>,
    /// Contents after each member, by its number, from the last crash on. (never empty)
    history: BTreeMap<u64, Vec<u8>>,
    /// Everything up to this member is synced.
    promised: u64,
    /// Bytes that the machine says it holds.
    held: u64,
    /// Writes so far, for bytes that tell one write from another.
    writes: u64,
    failed: bool,
    lasting: bool,
    crashed: bool,
    /// The machine had nothing to do, and nothing has happened since.
    idle: bool,
}

fn ctx() -> OpCtx {
    OpCtx { now: Timestamp { secs: 1, nanos: 0 }, stripe: 0, geometry: GEOMETRY }
}

fn new_volume() -> MemKv {
    let mut kv = MemKv::new();
    let volume = Volume {
        version: VOLUME_VERSION,
        id: VolumeId([1; 16]),
        name: "fuzz".into(),
        storage: "file".into(),
        bucket: "/".into(),
        geometry: GEOMETRY,
        capacity: 0,
        inodes: 0,
        created: ctx().now,
        acl: false,
        log: None,
        packs: false,
    };
    let new = New {
        ino: INO,
        kind: FileType::Regular,
        mode: 0o644,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: None,
        umask: None,
        inodes_max: None,
    };
    testkit::run(&mut kv, |txn| {
        meta::volume::format(txn, &ctx(), &volume, 0, 0)?;
        meta::create::create(txn, &ctx(), Ino::ROOT, NAME, &new)
    })
    .expect("a new volume takes a file");
    kv
}

impl World {
    pub(super) fn new() -> Self {
        let kv = new_volume();
        let attr = testkit::peek(&kv, |read| meta::attr::load(read, INO)).expect("the file was made");
        Self {
            synced: kv.last(),
            kv,
            blocks: BTreeMap::new(),
            next_id: LEASE_SLICES,
            ids_ready: true,
            now: Duration::ZERO,
            file: File::new(INO, &attr, GEOMETRY, STORE_TIMEOUT),
            pending: Vec::new(),
            late: Vec::new(),
            history: BTreeMap::from([(attr.commit, Vec::new())]),
            promised: attr.commit,
            held: 0,
            writes: 0,
            failed: false,
            lasting: false,
            crashed: false,
            idle: false,
        }
    }

    /// Gives the file committed contents of several slices, and opens it anew: nothing of it is loaded.
    pub(super) fn fill(&mut self) {
        for (offset, len) in [(0, 100), (90, 70), (30, 40)] {
            self.write(offset, len);
            self.settle();
        }
        self.sync();
        self.file = File::new(INO, &self.attr(), GEOMETRY, STORE_TIMEOUT);
    }

    fn number(&self) -> u64 {
        *self.history.last_key_value().expect("never empty").0
    }

    fn contents(&self) -> &Vec<u8> {
        self.history.last_key_value().expect("never empty").1
    }

    fn attr(&self) -> Attr {
        testkit::peek(&self.kv, |read| meta::attr::load(read, INO)).expect("the file is there")
    }

    fn wall(&self) -> Timestamp {
        Timestamp { secs: self.number() as i64, nanos: 0 }
    }

    fn txn<T>(&mut self, op: impl Fn(&mut dyn Txn) -> OpResult<T>) -> OpResult<T> {
        testkit::run(&mut self.kv, op)
    }

    // ---- commands

    pub(super) fn write(&mut self, offset: u64, len: usize) {
        self.writes += 1;
        let data: Vec<u8> = (0..len).map(|index| ((self.writes as usize * 41 + index) % 255) as u8 + 1).collect();
        let mut contents = self.contents().clone();
        let (start, end) = (offset as usize, offset as usize + len);
        contents.resize(contents.len().max(end), 0);
        contents[start..end].copy_from_slice(&data);
        let written = self.file.write(self.now, self.wall(), offset, &data, false);
        self.history.insert(self.number() + 1, contents);
        self.held += written.grown;
        if !written.work && self.idle {
            self.expect_idle();
        }
        self.idle &= !written.work;
    }

    /// Writes where the file ends, which stays small.
    pub(super) fn append(&mut self, len: usize) {
        if self.contents().len() < 400 {
            self.write(self.contents().len() as u64, len);
        }
    }

    pub(super) fn truncate(&mut self, length: usize) {
        let mut contents = self.contents().clone();
        contents.resize(length, 0);
        self.file.truncate(self.now, self.wall(), length as u64);
        self.history.insert(self.number() + 1, contents);
        self.idle = false;
    }

    /// Holes, reservations, zeros.
    pub(super) fn fallocate(&mut self, range: Range<u64>, what: Fallocate) {
        let mut contents = self.contents().clone();
        let (zeros, extend) = match what {
            Fallocate::Reserve { extend } => (false, extend),
            Fallocate::Punch => (true, false),
            Fallocate::Zero { extend } => (true, extend),
        };
        let (start, end) = (range.start as usize, range.end as usize);
        if extend && contents.len() < end {
            contents.resize(end, 0);
        }
        if zeros {
            let shown = end.min(contents.len());
            contents.get_mut(start..shown).unwrap_or_default().fill(0);
        }
        self.file.fallocate(self.now, self.wall(), range, what, 0, false);
        self.history.insert(self.number() + 1, contents);
        self.idle = false;
    }

    /// A copy within the file; nothing if the ranges overlap.
    pub(super) fn copy(&mut self, from: u64, to: u64, len: u64) {
        let mut contents = self.contents().clone();
        let len = len.min((contents.len() as u64).saturating_sub(from));
        if len == 0 || from < to + len && to < from + len {
            return;
        }
        let (start, end) = (to as usize, (to + len) as usize);
        contents.resize(contents.len().max(end), 0);
        contents.copy_within(from as usize..(from + len) as usize, start);
        let copy = CopyRange { source: INO, commit: 0, from, to, len };
        let number = self.file.copy(self.now, self.wall(), copy, 0, false);
        self.history.insert(self.number() + 1, contents);
        assert_eq!(number, self.number());
        self.idle = false;
    }

    /// Looks for data or a hole, and compares.
    pub(super) fn seek(&mut self, offset: u64, whence: Whence) {
        if self.file.is_copying() {
            return;
        }
        let found = loop {
            match self.file.seek(offset, whence) {
                Ok(found) => break found,
                Err(unloaded) => {
                    let records = self.records(unloaded.chunk);
                    let next = testkit::peek(&self.kv, |read| meta::data::next_chunk(read, INO, unloaded.chunk + 1));
                    self.file.install_seen(unloaded, records.iter(), next.expect("a chunk"));
                }
            }
        };
        // No byte that was written is zero.
        let rest = self.contents().get(offset as usize..).unwrap_or_default();
        let at = rest.iter().position(|byte| (*byte != 0) == (whence == Whence::Data));
        let hole_at_end = (whence == Whence::Hole && !rest.is_empty()).then_some(rest.len());
        assert_eq!(found, at.or(hole_at_end).map(|at| offset + at as u64), "{whence:?} from {offset} on");
    }

    pub(super) fn set_mode(&mut self, mode: u16) {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        self.file.set_attr(self.now, self.wall(), &set);
        self.history.insert(self.number() + 1, self.contents().clone());
        self.idle = false;
    }

    pub(super) fn flush(&mut self) {
        assert_eq!(self.file.flush(), self.number(), "a flush covers every member");
        self.idle = false;
    }

    /// Reads and compares; with `delay` a chunk that is not loaded arrives later, and nothing is compared.
    pub(super) fn read(&mut self, range: Range<u64>, delay: bool) {
        if self.file.is_copying() {
            // What it covers shows once it is committed.
            return;
        }
        let mut loads = 0;
        let segments = loop {
            match self.file.read(range.start, range.end - range.start) {
                Ok(segments) => break segments,
                Err((chunks, version)) => {
                    assert!(!chunks.is_empty() && loads == 0, "a read asks again for what was installed");
                    loads += 1;
                    for chunk in chunks {
                        let load = Pending::Load { version, chunk, records: self.records(chunk) };
                        if delay { self.pending.push(load) } else { self.complete(load, Outcome::Done) }
                    }
                    if delay {
                        return;
                    }
                }
            }
        };
        let end = range.end.min(self.contents().len() as u64);
        let wanted = self.contents().get(range.start as usize..end as usize).unwrap_or_default();
        assert_eq!(self.bytes(segments), wanted, "a read of {range:?}");
    }

    fn bytes(&self, segments: Vec<Segment>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in segments {
            match segment {
                Segment::Bytes(part) => bytes.extend_from_slice(&part),
                Segment::Zeros(count) => bytes.resize(bytes.len() + count as usize, 0),
                Segment::Block { id, off, len } => {
                    let stored = self.blocks.get(&(id.slice, id.index)).expect("a reader needs a block that is gone");
                    assert_eq!(stored.payload.len(), id.len as usize, "length of {id:?}");
                    bytes.extend_from_slice(&stored.payload[off as usize..(off + len) as usize]);
                }
            }
        }
        bytes
    }

    fn records(&self, chunk: u32) -> Vec<SliceRecord> {
        let records = testkit::peek(&self.kv, |read| meta::data::chunk(read, &GEOMETRY, INO, chunk)).expect("a chunk");
        records.into_iter().map(|(_, record)| record).collect()
    }

    // ---- the outside

    /// Takes the machine's next action; false if it has none.
    pub(super) fn poll(&mut self) -> bool {
        let (next_id, ids_ready) = (&mut self.next_id, self.ids_ready);
        let mut take_id = || {
            let id = ids_ready.then_some(SliceId(*next_id));
            *next_id += u64::from(ids_ready);
            id
        };
        let Some(action) = self.file.poll_action(self.now, &mut take_id) else {
            self.idle = true;
            return false;
        };
        self.idle = false;
        match action {
            Action::NeedId => {
                assert!(!self.ids_ready, "an id was offered");
                self.ids_ready = true;
            }
            Action::Put { key, id, payload } => {
                assert_eq!(payload.len(), id.len as usize);
                self.pending.push(Pending::Put { key, id, payload });
            }
            Action::Barrier { number } => {
                let covered = self.blocks.iter().filter(|(_, stored)| !stored.durable).map(|(key, _)| *key).collect();
                self.pending.push(Pending::Barrier { number, covered });
            }
            Action::Commit(commit) => {
                self.judge_commit(&commit);
                self.pending.push(Pending::Commit(commit));
            }
        }
        true
    }

    /// Takes actions and ends them well until only `left` are under way and there is no other to take.
    pub(super) fn work(&mut self, left: usize) {
        while self.poll() || self.pending.len() > left {
            if self.pending.len() > left {
                self.complete_one(0, Outcome::Done);
            }
        }
    }

    fn expect_idle(&mut self) {
        let before = self.pending.len();
        assert!(!self.poll(), "there is something to do that `work` did not tell: {} under way", before);
    }

    /// Ends something that is under way, if there is anything.
    pub(super) fn complete_one(&mut self, pick: usize, outcome: Outcome) {
        if !self.pending.is_empty() {
            let pending = self.pending.remove(pick % self.pending.len());
            self.complete(pending, outcome);
        }
    }

    fn complete(&mut self, pending: Pending, outcome: Outcome) {
        self.idle = false;
        let succeeds = outcome == Outcome::Done;
        let is_load = matches!(pending, Pending::Load { .. });
        self.failed |= !succeeds && !is_load;
        self.lasting |= outcome == Outcome::Lasting && !is_load;
        let lasting = outcome == Outcome::Lasting;
        let failure = PutOutcome::Failed { errno: Errno::EIO, lasting };
        let answer = if succeeds { PutOutcome::Done } else { failure };
        match pending {
            Pending::Load { version, chunk, records } => self.file.install(version, chunk, records.iter()),
            Pending::Put { key, id, payload } => {
                if matches!(outcome, Outcome::Done | Outcome::Unknown) {
                    self.store(id, payload);
                }
                self.file.handle_put(self.now, key, id.index, answer);
            }
            Pending::Barrier { number, covered } => {
                for key in covered {
                    match outcome {
                        Outcome::Done | Outcome::Unknown => {
                            if let Some(stored) = self.blocks.get_mut(&key) {
                                stored.durable = true;
                            }
                        }
                        Outcome::Failed | Outcome::Late | Outcome::Lasting => drop(self.blocks.remove(&key)),
                    }
                }
                self.file.handle_barrier(self.now, number, answer);
            }
            Pending::Commit(commit) => self.complete_commit(&commit, outcome),
        }
        self.file.check();
        assert_eq!(self.file.dirty_bytes(), self.held, "memory held and not accounted for, or the other way round");
        assert!(self.failed || self.file.error_count() == 0, "an error out of nothing");
        assert!(!self.lasting || self.file.error_count() > 0, "a lasting failure was not raised");
    }

    fn store(&mut self, id: BlockId, payload: Bytes) {
        let key = (id.slice, id.index);
        let stored = self.blocks.entry(key).or_insert_with(|| Stored { payload: payload.clone(), durable: false });
        assert_eq!(stored.payload, payload, "{id:?} was put with other bytes");
    }

    fn complete_commit(&mut self, commit: &Arc<Commit>, outcome: Outcome) {
        let failed = CommitOutcome::Failed { errno: Errno::EIO, lasting: outcome == Outcome::Lasting };
        let answer = match outcome {
            Outcome::Done => match self.apply(commit) {
                Some(reply) => CommitOutcome::from(&reply),
                None => CommitOutcome::Gone,
            },
            Outcome::Unknown => {
                self.apply(commit);
                failed
            }
            Outcome::Late => {
                self.late.push(commit.clone());
                failed
            }
            Outcome::Failed | Outcome::Lasting => failed,
        };
        let blocks = &self.blocks;
        let freed = self.file.handle_commit(self.now, answer, |id, payload| {
            // Absent if the commit itself has covered it and it was destroyed since.
            let stored = blocks.get(&(id.slice, id.index));
            assert!(stored.is_none_or(|stored| stored.payload == payload), "a cache is handed other bytes: {id:?}");
        });
        self.held -= freed.bytes;
    }

    /// Runs the transaction; `None` if the inode is gone.
    fn apply(&mut self, commit: &Commit) -> Option<CommitReply> {
        match self.txn(|txn| meta::data::commit(txn, &ctx(), commit)) {
            Ok(reply) => {
                self.judge_committed();
                Some(reply)
            }
            Err(OpError::Errno(Errno::ESTALE)) => None,
            Err(error) => panic!("a commit failed: {error:?}"),
        }
    }

    /// An attempt whose answer was lost long ago takes effect.
    pub(super) fn late_commit(&mut self, pick: usize) {
        if !self.late.is_empty() {
            let commit = self.late.remove(pick % self.late.len());
            self.apply(&commit);
        }
    }

    pub(super) fn out_of_ids(&mut self) {
        self.ids_ready = false;
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.now += by;
        self.idle = false;
    }

    /// Syncs metadata, then destroys the blocks of dead slices.
    pub(super) fn sync(&mut self) {
        self.synced = self.kv.last();
        self.promised = self.attr().commit;
        let dead = testkit::peek(&self.kv, |read| meta::sweep::delslices(read, None, usize::MAX)).expect("a queue");
        for (slice, stored_len) in &dead {
            for index in 0..GEOMETRY.block_count(*stored_len) {
                self.blocks.remove(&(*slice, index));
            }
        }
        let ids: Vec<SliceId> = dead.into_iter().map(|(slice, _)| slice).collect();
        self.txn(|txn| meta::sweep::drop_delslices(txn, &ids)).expect("dropping from a queue");
        self.judge_committed();
    }

    /// Works off a piece of a truncation.
    pub(super) fn sweep(&mut self) {
        self.txn(|txn| meta::sweep::sweep_cuts(txn, &ctx(), INO, 1)).expect("a sweep of cuts");
        self.judge_committed();
    }

    /// Power fails: transactions that were not synced are gone from some point on, blocks that no barrier covered are
    /// there or not, as the bits of `luck` say. The next mount opens the file.
    pub(super) fn crash(&mut self, luck: u64) {
        let mut luck = (0..).map(|index| luck.rotate_right(index) & 1 == 1);
        let mut lucky = move || luck.next().unwrap_or_default();
        let mut seq = self.kv.last();
        while seq > self.synced && !lucky() {
            seq.0 -= 1;
        }
        self.kv.rollback_to(seq);
        for pending in std::mem::take(&mut self.pending) {
            if let Pending::Put { id, payload, .. } = pending
                && lucky()
            {
                self.store(id, payload);
            }
        }
        self.blocks.retain(|_, stored| {
            stored.durable |= lucky();
            stored.durable
        });
        self.late.clear();
        let attr = self.attr();
        assert!(attr.commit >= self.promised, "a synced commit is gone");
        self.judge_committed();
        self.history.split_off(&(attr.commit + 1));
        self.synced = seq;
        self.promised = attr.commit;
        self.file = File::new(INO, &attr, GEOMETRY, STORE_TIMEOUT);
        (self.held, self.failed, self.lasting, self.crashed, self.idle) = (0, false, false, true, false);
    }

    /// Once nothing fails any more everything comes to rest, committed.
    pub(super) fn settle(&mut self) {
        self.flush();
        self.drive();
        assert!(self.file.is_clean());
        assert_eq!(self.file.committed(), self.number(), "a flush that never ends");
        assert_eq!((self.file.dirty_bytes(), self.held), (0, 0));
        let attr = self.attr();
        assert_eq!(attr.commit, self.number());
        assert_eq!(self.file.overlay_attr(attr), attr, "a clean file adds to its attributes");
        self.judge_committed();
        self.judge_space();
        self.read(0..self.contents().len() as u64 + 10, false);
    }

    fn drive(&mut self) {
        for _ in 0..STEPS_MAX {
            if self.poll() {
                continue;
            }
            if !self.pending.is_empty() {
                self.complete_one(0, Outcome::Done);
            } else if !self.file.is_clean() {
                let at = self.file.poll_timeout(self.now).expect("nothing to do, nothing to wait for, and not clean");
                assert!(at > self.now);
                self.now = at;
            } else {
                return;
            }
        }
        panic!("the machine does not come to rest");
    }

    /// The file is removed while it is dirty: nothing more starts, and every block has an owner or is given up.
    pub(super) fn give_up(&mut self, reap_first: bool) {
        if reap_first {
            self.txn(|txn| meta::remove::unlink(txn, &ctx(), Ino::ROOT, NAME)).expect("unlink");
            self.txn(|txn| meta::remove::reap(txn, &ctx(), INO, &[])).expect("reap");
        }
        self.file.discard();
        while !self.pending.is_empty() {
            self.complete_one(0, Outcome::Done);
            assert!(!self.poll(), "a discarded file starts something");
        }
        let (given_up, freed) = self.file.take_given_up();
        assert_eq!(freed.bytes, self.held);
        assert!(self.file.is_clean());
        if self.crashed {
            // What was put before a crash and never committed belongs to an ended session.
            return;
        }
        self.judge_owners(given_up.into_iter().map(|(slice, _)| slice).collect());
    }
}
