//! Tests of the metadata operations: a small world to run them in.

use alloc::vec::Vec;

use bytes::Bytes;

use super::*;
use crate::format::block::LEASE_SLICES;
use crate::format::values::{VOLUME_VERSION, Volume};
use crate::kv::mem::MemKv;
use crate::kv::{OpError, Txn};
use crate::testkit::rng::Rng;
use crate::testkit::{Reads, run_with};
use crate::types::{SessionId, SliceId, VolumeId};

mod attributes;
mod contents;
mod damage;
mod names;
mod packs;
mod random;
mod volumes;

/// Small enough that a few bytes make several chunks, blocks and frames.
const TINY: Geometry = Geometry { chunk_size: 64, block_size: 16, frame_size: 8, inline_max: 4 };

/// A volume in memory, a clock that ticks at every operation, and ids to give out.
struct World {
    kv: MemKv,
    geometry: Geometry,
    ticks: i64,
    session: SessionId,
    inos: core::ops::Range<u64>,
    slices: core::ops::Range<u64>,
}

impl World {
    fn new() -> Self {
        Self::with_geometry(TINY)
    }

    fn chunk(&mut self, ino: Ino, chunk: u32) -> Vec<(u64, SliceRecord)> {
        let geometry = self.geometry;
        self.read(|read| data::chunk(read, &geometry, ino, chunk)).unwrap()
    }

    fn with_geometry(geometry: Geometry) -> Self {
        let (kv, session) = (MemKv::new(), SessionId(0));
        let mut world = Self { kv, geometry, ticks: 1000, session, inos: 0..0, slices: 0..0 };
        let volume = Volume { geometry, ..volume() };
        world.run(|txn, ctx| volume::format(txn, ctx, &volume, 0, 0)).unwrap();
        world.session = world.run(session::begin).unwrap();
        world
    }

    fn now(&self) -> Timestamp {
        Timestamp { secs: self.ticks, nanos: 0 }
    }

    /// Runs and commits one operation; every other one has its reads answered with `Miss` first.
    fn run<T>(&mut self, op: impl Fn(&mut dyn Txn, &OpCtx) -> OpResult<T>) -> OpResult<T> {
        self.ticks += 1;
        let ctx = OpCtx { now: self.now(), stripe: (self.ticks % 4) as u8, geometry: self.geometry };
        let reads = if self.ticks % 2 == 0 { Reads::Direct } else { Reads::MissFirst };
        run_with(&mut self.kv, reads, |txn| op(txn, &ctx))
    }

    fn read<T>(&mut self, op: impl Fn(&mut dyn Read) -> OpResult<T>) -> OpResult<T> {
        self.run(|txn, _| op(txn.as_read()))
    }

    fn put(&mut self, key: Vec<u8>, value: &impl Value) {
        self.run(|txn, _| {
            put(txn, &key, value);
            Ok(())
        })
        .unwrap();
    }

    fn ino(&mut self) -> Ino {
        if self.inos.is_empty() {
            self.inos = self.run(|txn, _| volume::lease_inodes(txn, 100)).unwrap();
        }
        Ino(self.inos.next().unwrap())
    }

    fn slice(&mut self) -> SliceId {
        if self.slices.is_empty() {
            let session = self.session;
            self.slices = self.run(|txn, _| volume::lease_slices(txn, session)).unwrap();
            assert_eq!(self.slices.start % LEASE_SLICES, 0);
        }
        SliceId(self.slices.next().unwrap())
    }

    fn create(&mut self, dir: Ino, name: &[u8], kind: FileType) -> Result<Ino, Errno> {
        let target = (kind == FileType::Symlink).then(|| Bytes::from_static(b"target"));
        let new =
            New { ino: self.ino(), kind, mode: 0o644, uid: 7, gid: 8, rdev: 0, target, umask: None, inodes_max: None };
        self.run(|txn, ctx| create::create(txn, ctx, dir, name, &new)).map_err(errno)?;
        Ok(new.ino)
    }

    fn file(&mut self, dir: Ino, name: &[u8]) -> Ino {
        self.create(dir, name, FileType::Regular).unwrap()
    }

    fn dir(&mut self, dir: Ino, name: &[u8]) -> Ino {
        self.create(dir, name, FileType::Directory).unwrap()
    }

    fn attr(&mut self, ino: Ino) -> Attr {
        self.read(|read| attr::load(read, ino)).unwrap()
    }

    fn usage(&mut self) -> Usage {
        self.read(volume::usage).unwrap()
    }

    fn commit(&mut self, ino: Ino, number: u64, changes: Vec<Change>) -> OpResult<CommitReply> {
        let commit = Commit { ino, number, changes };
        self.run(|txn, ctx| data::commit(txn, ctx, &commit))
    }

    /// A slice in blocks of its own.
    fn blocks(&mut self, chunk: u32, pos: u32, len: u32) -> Change {
        let slice = self.slice();
        let record = SliceRecord { slice, stored_len: len, off: 0, pos, len, place: crate::types::Place::Blocks };
        Change::Slice { chunk, record }
    }

    fn queued(&mut self) -> Vec<SliceId> {
        let queued = self.read(|read| sweep::delslices(read, None, usize::MAX)).unwrap();
        queued.into_iter().map(|(slice, _)| slice).collect()
    }

    fn findings(&mut self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut txn = self.kv.begin();
        let summary = invariant::check(txn.as_read(), &mut |_| {}, &mut |finding| findings.push(finding)).unwrap();
        assert_eq!(summary.findings, findings.len() as u64);
        findings
    }

    /// Asserts that every invariant holds.
    #[track_caller]
    fn check(&mut self) {
        assert_eq!(self.findings(), []);
    }
}

fn volume() -> Volume {
    Volume {
        version: VOLUME_VERSION,
        id: VolumeId([7; 16]),
        name: "tiny".into(),
        storage: "file".into(),
        bucket: "/bucket".into(),
        geometry: TINY,
        capacity: 0,
        inodes: 0,
        created: Timestamp::default(),
        acl: false,
        log: None,
        packs: false,
    }
}

#[track_caller]
fn errno(error: OpError) -> Errno {
    match error {
        OpError::Errno(errno) => errno,
        OpError::Kv(_) | OpError::Damaged(_) => panic!("{error}"),
    }
}
