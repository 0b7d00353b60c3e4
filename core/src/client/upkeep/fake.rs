//! A world in memory for tests of upkeep and check: metadata, objects, a clock that jumps, and an executor.
//!
//! Owns: faults on demand, a log of what reached the stores, power cuts.
//! Invariant: every call of the world suspends, so that a test can stop at each, and calls made together do not end
//! together.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::mem;
use core::ops::{Bound, Range};
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use bytes::Bytes;

use super::super::blocks::Blocks;
use super::super::meta_cache::CachedMeta;
use super::super::std::sync::{Mutex, MutexGuard};
use super::super::wait::lock;
use super::{Collector, Grace, Pass, UpkeepError, blocks};
use crate::client::{Caller, Client, Entry, Handle, OpenFlags, Options};
use crate::env::{Committed, Env, MetaError, MetaStore, ObjectPage, ObjectStore, StoreError, TxnSeq};
use crate::format::Volume;
use crate::format::block::{VOLUME_OBJECT, encode_head, encode_marker, object_key};
use crate::format::keys;
use crate::format::values::{VOLUME_VERSION, Value};
use crate::kv::mem::MemKv;
use crate::kv::{OpResult, Read, Txn};
use crate::meta::{Change, Commit, New, OpCtx, create, data, remove, session, sweep, volume};
use crate::testkit::{Reads, attempt, peek};
use crate::types::{
    BlockId, FileType, Geometry, Ino, Place, STRIPES, SessionId, SliceId, SliceRecord, Timestamp, VolumeId,
};

pub(crate) const GEOMETRY: Geometry =
    Geometry { chunk_size: 64 << 10, block_size: 4 << 10, frame_size: 1 << 10, inline_max: 0 };

/// What reached the world, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Synced(TxnSeq),
    Deleted(String),
}

/// What goes wrong until told otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Reads of metadata still answered before they fail.
    pub(crate) reads_left: Option<u32>,
    /// The next read of metadata fails, and no other.
    pub(crate) read_once: bool,
    /// What was read is old by the time it arrives.
    pub(crate) reads_late: bool,
    pub(crate) sync: bool,
    pub(crate) write: bool,
    pub(crate) every_third_write: bool,
    /// Writes of metadata take effect, and nobody is told.
    pub(crate) answers_lost: bool,
    /// How long a write of metadata is on its way.
    pub(crate) writes_take: Duration,
    /// How long a put is on its way.
    pub(crate) puts_take: Duration,
    pub(crate) list: bool,
    pub(crate) get: bool,
    /// Deletes still carried out before they fail.
    pub(crate) deletes_left: Option<u32>,
    /// Deletes never answer.
    pub(crate) deletes_hang: bool,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) kv: MemKv,
    pub(crate) synced: TxnSeq,
    pub(crate) objects: BTreeMap<String, Bytes>,
    pub(crate) log: Vec<Event>,
    pub(crate) faults: Faults,
    /// Others want the machine.
    pub(crate) busy: bool,
    /// Deletes under way.
    deletes: usize,
    /// The most of these that there were.
    pub(crate) deletes_most: usize,
    now: Duration,
    sleepers: BTreeMap<(Duration, u64), Waker>,
    next_sleeper: u64,
    /// Barriers of the object store that were run.
    pub(crate) barriers: u32,
    tasks: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
    suspensions: u32,
}

/// The world; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<State>>);

impl MetaStore for World {
    async fn write<T, F>(&self, op: F) -> Result<Committed<T>, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Txn) -> OpResult<T> + Send + Sync,
    {
        self.suspend().await;
        self.travel(|faults| faults.writes_take).await;
        let mut state = self.state();
        if state.faults.write || (state.faults.every_third_write && state.suspensions.is_multiple_of(3)) {
            return Err(MetaError::Retry);
        }
        let (value, writes) = attempt(&state.kv, Reads::MissFirst, op)?;
        let seq = state.kv.commit(writes).map_err(|_| MetaError::Retry)?;
        if state.faults.answers_lost { Err(MetaError::Unknown) } else { Ok(Committed { value, seq }) }
    }

    async fn read<T, F>(&self, op: F) -> Result<T, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Read) -> OpResult<T> + Send + Sync,
    {
        self.suspend().await;
        let (found, late) = {
            let mut state = self.state();
            if mem::take(&mut state.faults.read_once) {
                return Err(MetaError::Retry);
            }
            match &mut state.faults.reads_left {
                Some(0) => return Err(MetaError::Retry),
                Some(left) => *left -= 1,
                None => {}
            }
            (peek(&state.kv, op)?, state.faults.reads_late)
        };
        if late {
            self.suspend().await;
        }
        Ok(found)
    }

    fn last(&self) -> TxnSeq {
        self.state().kv.last()
    }

    fn synced(&self) -> TxnSeq {
        self.state().synced
    }

    async fn sync(&self, seq: TxnSeq) -> Result<(), MetaError> {
        self.suspend().await;
        let mut state = self.state();
        assert!(seq <= state.kv.last());
        if state.faults.sync {
            return Err(MetaError::Failed);
        }
        state.synced = state.synced.max(seq);
        state.log.push(Event::Synced(seq));
        Ok(())
    }
}

impl ObjectStore for World {
    async fn put(&self, key: &str, body: Vec<Bytes>) -> Result<(), StoreError> {
        self.suspend().await;
        self.travel(|faults| faults.puts_take).await;
        self.state().objects.insert(key.to_string(), body.concat().into());
        Ok(())
    }

    async fn get(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.suspend().await;
        let state = self.state();
        if state.faults.get {
            return Err(StoreError::Denied);
        }
        let object = state.objects.get(key).ok_or(StoreError::NotFound)?;
        let range = range.start as usize..range.end as usize;
        if object.len() < range.end { Err(StoreError::Short) } else { Ok(object.slice(range)) }
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.state().deletes += 1;
        self.suspend().await;
        if self.state().faults.deletes_hang {
            core::future::pending::<()>().await;
        }
        let mut state = self.state();
        state.deletes_most = state.deletes_most.max(state.deletes);
        state.deletes -= 1;
        match &mut state.faults.deletes_left {
            Some(0) => return Err(StoreError::Retry),
            Some(left) => *left -= 1,
            None => {}
        }
        state.objects.remove(key);
        state.log.push(Event::Deleted(key.to_string()));
        Ok(())
    }

    async fn barrier(&self) -> Result<(), StoreError> {
        self.suspend().await;
        self.state().barriers += 1;
        Ok(())
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ObjectPage, StoreError> {
        self.suspend().await;
        let state = self.state();
        if state.faults.list {
            return Err(StoreError::Retry);
        }
        let from = Bound::Excluded(after.unwrap_or(prefix));
        let keys = state.objects.range::<str, _>((from, Bound::Unbounded)).map(|(key, _)| key.clone());
        let keys: Vec<String> = keys.take_while(|key| key.starts_with(prefix)).take(7).collect();
        let next = if keys.len() == 7 { keys.last().cloned() } else { None };
        Ok(ObjectPage { keys, next })
    }
}

impl Env for World {
    type Meta = Self;
    type Objects = Self;

    fn meta(&self) -> &Self {
        self
    }

    fn objects(&self) -> &Self {
        self
    }

    fn now(&self) -> Duration {
        self.state().now
    }

    fn wall(&self) -> Timestamp {
        Timestamp { secs: self.state().now.as_secs() as i64, nanos: 0 }
    }

    async fn sleep_until(&self, at: Duration) {
        poll_fn(|cx| {
            let mut state = self.state();
            if at <= state.now {
                return Poll::Ready(());
            }
            let ticket = state.next_sleeper;
            state.next_sleeper += 1;
            state.sleepers.insert((at, ticket), cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.state().tasks.push(Box::pin(task));
    }

    fn stripe(&self) -> u8 {
        STRIPES - 1
    }

    fn is_busy(&self) -> bool {
        self.state().busy
    }

    async fn pause(&self) {
        self.suspend().await;
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl World {
    /// A world with a formatted volume.
    pub(crate) fn new() -> Self {
        let world = Self::default();
        let volume = world.volume();
        world.txn(|txn, ctx| volume::format(txn, ctx, &volume, 0, 0));
        world
    }

    /// The same with the volume's marker in the store, which a mount asks for.
    pub(crate) fn mountable() -> Self {
        let world = Self::new();
        world.state().objects.insert(VOLUME_OBJECT.into(), encode_marker(world.volume().id));
        world
    }

    /// A mount, and the new file `file` in its root, open for reading and writing.
    pub(crate) async fn mount_with_file(&self, options: Options) -> (Client<Self>, Entry, Handle) {
        let client = Client::mount(self.clone(), options).await.expect("a mount");
        let (entry, handle) = Self::new_file(&client, b"file").await;
        (client, entry, handle)
    }

    /// A new file in the root of a mount, open for reading and writing.
    pub(crate) async fn new_file(client: &Client<Self>, name: &[u8]) -> (Entry, Handle) {
        let caller = Caller { uid: 0, gid: 0, umask: None };
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        client.create(caller, Ino::ROOT, name, 0o644, flags).await.expect("a file")
    }

    /// Suspends once to three times.
    async fn suspend(&self) {
        let mut left = {
            let mut state = self.state();
            state.suspensions += 1;
            state.suspensions % 3 + 1
        };
        poll_fn(|cx| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    async fn travel(&self, takes: impl Fn(&Faults) -> Duration) {
        let (now, takes) = {
            let state = self.state();
            (state.now, takes(&state.faults))
        };
        if takes > Duration::ZERO {
            self.sleep_until(now + takes).await;
        }
    }

    /// Lets all others go on once, and a moment pass.
    pub(crate) async fn step_aside(&self) {
        self.state().now += Duration::from_millis(1);
        let mut waited = false;
        poll_fn(|cx| {
            cx.waker().wake_by_ref();
            if mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    pub(crate) fn collector(&self) -> (Arc<Collector<Self>>, Arc<Grace>) {
        let grace = Arc::new(Grace::new());
        let meta = Arc::new(CachedMeta::new(self.clone(), 0));
        let blocks = Blocks::new(self.clone(), &self.volume(), 0, 0, Duration::ZERO);
        (Collector::new(self.clone(), meta, blocks, GEOMETRY, Arc::clone(&grace)), grace)
    }

    pub(crate) fn volume(&self) -> Volume {
        Volume {
            version: VOLUME_VERSION,
            id: VolumeId(*b"0123456789abcdef"),
            name: "test".into(),
            storage: "file".into(),
            bucket: "nowhere".into(),
            geometry: GEOMETRY,
            capacity: 0,
            inodes: 0,
            created: Timestamp::default(),
            acl: false,
            log: None,
            packs: false,
        }
    }

    /// Runs a metadata operation at once.
    pub(crate) fn txn<T>(&self, op: impl Fn(&mut dyn Txn, &OpCtx) -> OpResult<T>) -> T {
        let ctx = OpCtx { now: self.wall(), stripe: 0, geometry: GEOMETRY };
        let mut state = self.state();
        let (value, writes) = attempt(&state.kv, Reads::Direct, |txn| op(txn, &ctx)).expect("the operation succeeds");
        state.kv.commit(writes).expect("nothing runs beside it");
        value
    }

    pub(crate) fn read<T>(&self, op: impl Fn(&mut dyn Read) -> OpResult<T>) -> T {
        peek(&self.state().kv, op).expect("the operation succeeds")
    }

    /// Begins a session with a lease of slice ids.
    pub(crate) fn session(&self) -> (SessionId, Range<u64>) {
        let session = self.txn(session::begin);
        (session, self.txn(|txn, _| volume::lease_slices(txn, session)))
    }

    /// Puts the blocks of a slice.
    pub(crate) fn put_slice(&self, slice: u64, stored_len: u32) {
        let volume = self.volume().id;
        let mut state = self.state();
        for id in blocks(GEOMETRY, SliceId(slice), stored_len) {
            state.objects.insert(object_key(id), object(volume, id));
        }
    }

    /// A file in the root whose chunks are the slices, one each, put and committed.
    pub(crate) fn write_file(&self, name: &str, slices: &[(u64, u32)]) -> Ino {
        let ino = Ino(self.txn(|txn, _| volume::lease_inodes(txn, 1)).start);
        let new = New {
            ino,
            kind: FileType::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: None,
            umask: None,
            inodes_max: None,
        };
        self.txn(|txn, ctx| create::create(txn, ctx, Ino::ROOT, name.as_bytes(), &new));
        slices.iter().for_each(|(slice, len)| self.put_slice(*slice, *len));
        let slices = slices.iter().zip(0..).map(|((slice, len), chunk)| Change::Slice {
            chunk,
            record: SliceRecord {
                slice: SliceId(*slice),
                stored_len: *len,
                off: 0,
                pos: 0,
                len: *len,
                place: Place::Blocks,
            },
        });
        let changes: Vec<Change> = slices.collect();
        let commit = Commit { ino, number: changes.len() as u64, changes };
        self.txn(|txn, ctx| data::commit(txn, ctx, &commit));
        ino
    }

    /// Unlinks a file that nobody has open.
    pub(crate) fn remove_file(&self, name: &str) {
        let removed = self.txn(|txn, ctx| remove::unlink(txn, ctx, Ino::ROOT, name.as_bytes()));
        self.txn(|txn, ctx| remove::reap(txn, ctx, removed.ino, &[]));
    }

    /// Keys of the objects of a slice that are in the store, of how many there should be.
    pub(crate) fn present(&self, slice: u64, stored_len: u32) -> (usize, usize) {
        let state = self.state();
        let all: Vec<String> = blocks(GEOMETRY, SliceId(slice), stored_len).map(object_key).collect();
        (all.iter().filter(|key| state.objects.contains_key(*key)).count(), all.len())
    }

    /// Number of slices queued for deletion.
    pub(crate) fn queued(&self) -> usize {
        self.read(|read| sweep::delslices(read, None, usize::MAX)).len()
    }

    pub(crate) fn deleted(&self) -> BTreeSet<String> {
        let deleted = |event: &Event| match event {
            Event::Deleted(key) => Some(key.clone()),
            Event::Synced(_) => None,
        };
        self.state().log.iter().filter_map(deleted).collect()
    }

    /// Asserts that every block that a record names is there, in the state that a power cut would leave.
    pub(crate) fn check_nothing_live_is_gone(&self) {
        let state = self.state();
        let (start, end) = keys::all_slices();
        let live = |from: TxnSeq| {
            let mut kv = state.kv.clone();
            kv.rollback_to(from);
            peek(&kv, |read| Ok(read.scan(&start, &end, usize::MAX)?)).expect("a scan succeeds")
        };
        for pairs in [live(state.synced), live(state.kv.last())] {
            for (_, value) in pairs {
                let record = SliceRecord::decode(&value).expect("a slice record");
                for id in blocks(GEOMETRY, record.slice, record.stored_len) {
                    assert!(state.objects.contains_key(&object_key(id)), "{id:?} is live and gone");
                }
            }
        }
    }

    /// Rolls back everything that was not synced, and drops all tasks.
    pub(crate) fn power_cut(&self) {
        let mut state = self.state();
        let synced = state.synced;
        state.kv.rollback_to(synced);
        state.sleepers.clear();
        let tasks = mem::take(&mut state.tasks);
        drop(state);
        drop(tasks);
    }

    /// Makes all that happened durable.
    pub(crate) fn sync_all(&self) {
        let mut state = self.state();
        state.synced = state.kv.last();
    }

    /// Runs until `fut` is done; the clock jumps when nobody can go on.
    pub(crate) fn block_on<F: Future>(&self, fut: F) -> F::Output {
        let mut fut = pin!(fut);
        loop {
            if let Poll::Ready(value) = self.step(fut.as_mut()) {
                return value;
            }
        }
    }

    /// Polls `fut` and all tasks until none was woken, or `fut` is done; then lets the clock jump.
    pub(crate) fn step<F: Future>(&self, mut fut: Pin<&mut F>) -> Poll<F::Output> {
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(Arc::clone(&flag));
        let mut cx = Context::from_waker(&waker);
        loop {
            flag.0.store(false, SeqCst);
            if let Poll::Ready(value) = fut.as_mut().poll(&mut cx) {
                return Poll::Ready(value);
            }
            let mut tasks = mem::take(&mut self.state().tasks);
            tasks.retain_mut(|task| task.as_mut().poll(&mut cx).is_pending());
            let mut state = self.state();
            let spawned = mem::replace(&mut state.tasks, tasks);
            state.tasks.extend(spawned);
            if !flag.0.load(SeqCst) {
                // Sleepers register again when polled: those of past polls are stale.
                let first = state.sleepers.keys().next().copied();
                let (at, _) = first.expect("everything waits for something that never comes");
                state.now = state.now.max(at);
                state.sleepers.clear();
                return Poll::Pending;
            }
        }
    }
}

impl<E: Env> Collector<E> {
    /// One full pass over the queues, and what it did.
    pub(crate) async fn drain(&self) -> Result<Pass, UpkeepError> {
        let mut done = Pass::default();
        self.drain_into(&mut done).await.map(|()| done)
    }
}

/// The object of a block, with contents made of its identity.
pub(crate) fn object(volume: VolumeId, id: BlockId) -> Bytes {
    let payload: Vec<u8> = (0..id.len).map(|n| (u64::from(n) * 7 + id.slice.0 + u64::from(id.index)) as u8).collect();
    let head = encode_head(volume, id, GEOMETRY.frame_size, &payload);
    [head, payload.into()].concat().into()
}
