//! Metadata, objects and time in memory, and an executor of one thread for the client and its tasks.
//!
//! Owns: what is durable; passing failures of the object store; which task runs next, drawn from a seed.
//! Leaves to others: what is asked of the client (`kernel`), what must be found (`testkit::judge`).
//!
//! Invariants
//! - Nothing runs but in `run`; the same seed and calls give the same order of everything.
//! - Time passes only when every task waits for it.
//! - A power cut leaves a prefix of the metadata log that holds all that was synced, every put and
//!   delete that is past a barrier, and any of the others; a kill leaves all that the stores hold.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::ops::{Bound, Range};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::env::{Committed, Env, MetaError, MetaStore, ObjectPage, ObjectStore, StoreError, TxnSeq};
use kiseki_core::format::block::{VOLUME_OBJECT, encode_marker, object_key};
use kiseki_core::format::values::{VOLUME_VERSION, Volume};
use kiseki_core::kv::mem::MemKv;
use kiseki_core::kv::{OpResult, Read, Txn};
use kiseki_core::meta::{self, OpCtx};
use kiseki_core::testkit::judge::Crash;
use kiseki_core::testkit::{self, Reads, stores};
use kiseki_core::types::{BlockId, Geometry, STRIPES, Timestamp, VolumeId};

const VOLUME: VolumeId = VolumeId(*b"volume for fuzz.");
/// Polls in which any call comes to its end.
const POLLS_MAX: u64 = 2_000_000;
/// The task that `run` was called with.
const CALLER: u64 = 0;

#[derive(Clone, Debug)]
struct Object {
    body: Bytes,
    /// Its put has returned to a mount that still lives.
    acknowledged: bool,
    /// A power cut leaves it.
    durable: bool,
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Tasks that were woken.
type Woken = Arc<Mutex<BTreeSet<u64>>>;

struct State {
    geometry: Geometry,
    kv: MemKv,
    synced: TxnSeq,
    objects: BTreeMap<String, Object>,
    /// What was deleted, and a power cut may bring back; whether a delete of it has returned to a mount that still lives.
    deleted: BTreeMap<String, (Object, bool)>,
    /// The wall clock in seconds.
    clock: i64,
    now: Duration,
    sleepers: BTreeMap<(Duration, u64), Waker>,
    tasks: BTreeMap<u64, Task>,
    /// Number of the next task or sleeper.
    next: u64,
    dice: u64,
    /// Of 1000 calls of the object store so many fail.
    failures: u64,
}

/// The stores, and the life of one mount on them; clones are the same.
#[derive(Clone)]
pub(super) struct World {
    state: Arc<Mutex<State>>,
    woken: Woken,
}

struct Wakeup {
    task: u64,
    woken: Woken,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.woken.lock().expect("nothing panics with it").insert(self.task);
    }
}

impl World {
    /// A volume that was just formatted.
    pub(super) fn new(geometry: Geometry, seed: u64) -> Self {
        let mut kv = MemKv::new();
        let volume = Volume {
            version: VOLUME_VERSION,
            id: VOLUME,
            name: "fuzz".into(),
            storage: "file".into(),
            bucket: "/bucket".into(),
            geometry,
            capacity: 0,
            inodes: 0,
            created: Timestamp::default(),
            acl: true,
            log: None,
            packs: false,
        };
        let ctx = OpCtx { now: Timestamp::default(), stripe: 0, geometry };
        testkit::run(&mut kv, |txn| meta::volume::format(txn, &ctx, &volume, 0, 0)).expect("it is new");
        let marker = Object { body: encode_marker(VOLUME), acknowledged: true, durable: true };
        Self::of(State {
            geometry,
            synced: kv.last(),
            kv,
            objects: BTreeMap::from([(VOLUME_OBJECT.to_string(), marker)]),
            deleted: BTreeMap::new(),
            clock: 0,
            now: Duration::ZERO,
            sleepers: BTreeMap::new(),
            tasks: BTreeMap::new(),
            next: CALLER + 1,
            dice: seed,
            failures: 0,
        })
    }

    fn of(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)), woken: Woken::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with it")
    }

    /// A number below `bound`. (bound >= 1)
    pub(super) fn below(&self, bound: u64) -> u64 {
        // SplitMix64.
        let mut state = self.state();
        state.dice = state.dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state.dice ^ (state.dice >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// From here on so many of 1000 calls of the object store fail, in a way that passes.
    pub(super) fn fail(&self, permille: u64) {
        self.state().failures = permille;
    }

    /// The next second of the wall clock, in which one operation is done.
    pub(super) fn tick(&self) -> Timestamp {
        let mut state = self.state();
        state.clock += 1;
        state.now += Duration::from_millis(1);
        Timestamp { secs: state.clock, nanos: 0 }
    }

    /// Runs `future` to its end, and whatever else there is to do meanwhile; None if it was still under way after so
    /// many `polls`.
    pub(super) fn run<T>(&self, polls: Option<u64>, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let waker = |task| Waker::from(Arc::new(Wakeup { task, woken: self.woken.clone() }));
        waker(CALLER).wake();
        for _ in 0..polls.unwrap_or(POLLS_MAX) {
            let Some(id) = self.next_task() else {
                self.let_time_pass();
                continue;
            };
            let waker = waker(id);
            let mut context = Context::from_waker(&waker);
            if id == CALLER {
                if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                    return Some(value);
                }
                continue;
            }
            // A task may wake others or be woken while it runs, so it runs outside of the lock.
            let Some(mut task) = self.state().tasks.remove(&id) else { continue };
            if task.as_mut().poll(&mut context).is_pending() {
                self.state().tasks.insert(id, task);
            }
        }
        assert!(polls.is_some(), "a call does not end: the client spins");
        None
    }

    fn next_task(&self) -> Option<u64> {
        let count = self.woken.lock().expect("nothing panics with it").len() as u64;
        let pick = if count < 2 { 0 } else { self.below(count) };
        let mut woken = self.woken.lock().expect("nothing panics with it");
        let id = woken.iter().nth(pick as usize).copied()?;
        woken.remove(&id);
        Some(id)
    }

    fn let_time_pass(&self) {
        let waker = {
            let mut state = self.state();
            let ((at, _), waker) = state.sleepers.pop_first().expect("a call waits for what never comes");
            state.now = state.now.max(at);
            waker
        };
        waker.wake();
    }

    /// The end of the mount; the stores as it leaves them.
    pub(super) fn end(&self, crash: Crash) -> Self {
        let tasks = std::mem::take(&mut self.state().tasks);
        drop(tasks);
        let keep = match self.below(4) {
            0 => 0,
            1 => u64::MAX,
            _ => self.below(8),
        };
        let keys: Vec<String> = {
            let state = self.state();
            state.objects.keys().chain(state.deleted.keys()).cloned().collect()
        };
        let undone: BTreeSet<String> = keys.into_iter().filter(|_| self.below(2) == 0).collect();
        let mut state = self.state();
        let mut kv = std::mem::take(&mut state.kv);
        let mut objects = std::mem::take(&mut state.objects);
        let mut deleted = std::mem::take(&mut state.deleted);
        match crash {
            // A later mount's barrier knows nothing of what this one has put.
            Crash::Kill => {
                objects.values_mut().for_each(|object| object.acknowledged = false);
                deleted.values_mut().for_each(|(_, returned)| *returned = false);
            }
            Crash::PowerCut => {
                kv.rollback_to(TxnSeq(state.synced.0.saturating_add(keep).min(kv.last().0)));
                objects.retain(|key, object| object.durable || !undone.contains(key));
                deleted.retain(|key, _| undone.contains(key));
                objects.extend(std::mem::take(&mut deleted).into_iter().map(|(key, (object, _))| (key, object)));
                objects.values_mut().for_each(|object| object.durable = true);
            }
        }
        let synced = if crash == Crash::PowerCut { kv.last() } else { state.synced };
        Self::of(State {
            kv,
            objects,
            deleted,
            synced,
            sleepers: BTreeMap::new(),
            tasks: BTreeMap::new(),
            next: CALLER + 1,
            ..*state
        })
    }

    /// What is wrong with the stores as they are. `idle`: nothing is under way or left to do, so all that is there is
    /// in use.
    pub(super) fn check(&self, idle: bool) -> Result<(), String> {
        let state = self.state();
        let object = |id: BlockId| state.objects.get(&object_key(id)).map(|object| object.body.clone());
        let used = stores::check(&state.kv, VOLUME, state.geometry, object)?;
        if !idle {
            return Ok(());
        }
        let used: BTreeSet<String> = used.into_iter().map(object_key).chain([VOLUME_OBJECT.to_string()]).collect();
        if let Some(key) = state.objects.keys().find(|key| !used.contains(*key)) {
            return Err(format!("{key} is left, and nothing refers to it"));
        }
        let orphans = testkit::peek(&state.kv, |read| meta::sweep::orphans(read, None, usize::MAX));
        let queued = testkit::peek(&state.kv, |read| meta::sweep::delslices(read, None, usize::MAX));
        match (orphans.as_deref(), queued.as_deref()) {
            (Ok([]), Ok([])) => Ok(()),
            left => Err(format!("orphans, and slices to be deleted, are left: {left:?}")),
        }
    }

    /// Suspends, often not at all.
    async fn suspend(&self) {
        let mut left = self.below(4).saturating_sub(1);
        poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn fails(&self) -> bool {
        let failures = self.state().failures;
        failures > 0 && self.below(1000) < failures
    }

    /// One of the two ends of a call of the object store.
    async fn edge(&self) -> Result<(), StoreError> {
        self.suspend().await;
        if self.fails() { Err(StoreError::Retry) } else { Ok(()) }
    }

    fn reads(&self) -> Reads {
        if self.below(8) == 0 { Reads::MissFirst } else { Reads::Direct }
    }
}

impl MetaStore for World {
    async fn write<T, F>(&self, op: F) -> Result<Committed<T>, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Txn) -> OpResult<T> + Send + Sync,
    {
        self.suspend().await;
        loop {
            let reads = self.reads();
            let (value, writes) = testkit::attempt(&self.state().kv, reads, &op)?;
            // Others may commit in between: then it is run again.
            self.suspend().await;
            let committed = self.state().kv.commit(writes);
            if let Ok(seq) = committed {
                self.suspend().await;
                return Ok(Committed { value, seq });
            }
        }
    }

    async fn read<T, F>(&self, op: F) -> Result<T, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Read) -> OpResult<T> + Send + Sync,
    {
        self.suspend().await;
        let reads = self.reads();
        let value = testkit::attempt(&self.state().kv, reads, |txn| op(txn.as_read()));
        // What was read may be old by the time it arrives.
        self.suspend().await;
        Ok(value?.0)
    }

    fn last(&self) -> TxnSeq {
        self.state().kv.last()
    }

    fn synced(&self) -> TxnSeq {
        self.state().synced
    }

    async fn sync(&self, seq: TxnSeq) -> Result<(), MetaError> {
        let target = self.state().kv.last();
        assert!(seq <= target, "a sync of what is not committed yet");
        self.suspend().await;
        {
            let mut state = self.state();
            state.synced = state.synced.max(target);
            let synced = state.synced;
            state.kv.forget_before(synced);
        }
        self.suspend().await;
        Ok(())
    }
}

impl ObjectStore for World {
    async fn put(&self, key: &str, body: Vec<Bytes>) -> Result<(), StoreError> {
        self.edge().await?;
        let body = Bytes::from(body.concat());
        let fresh = Object { body: body.clone(), acknowledged: false, durable: false };
        let stored = self.state().objects.entry(key.to_string()).or_insert(fresh).body.clone();
        assert!(stored == body, "{key} was overwritten by other bytes");
        self.edge().await?;
        if let Some(object) = self.state().objects.get_mut(key) {
            object.acknowledged = true;
        }
        Ok(())
    }

    async fn get(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.edge().await?;
        let state = self.state();
        let body = &state.objects.get(key).ok_or(StoreError::NotFound)?.body;
        let range = range.start as usize..range.end as usize;
        if body.len() < range.end { Err(StoreError::Short) } else { Ok(body.slice(range)) }
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.edge().await?;
        {
            let mut state = self.state();
            if let Some(object) = state.objects.remove(key) {
                state.deleted.insert(key.to_string(), (object, false));
            }
        }
        self.edge().await?;
        if let Some((_, returned)) = self.state().deleted.get_mut(key) {
            *returned = true;
        }
        Ok(())
    }

    async fn barrier(&self) -> Result<(), StoreError> {
        let (covered, gone): (Vec<String>, Vec<String>) = {
            let state = self.state();
            let covered = state.objects.iter().filter(|(_, object)| object.acknowledged).map(|(key, _)| key.clone());
            let gone = state.deleted.iter().filter(|(_, (_, returned))| *returned).map(|(key, _)| key.clone());
            (covered.collect(), gone.collect())
        };
        self.edge().await?;
        {
            let mut state = self.state();
            gone.iter().for_each(|key| drop(state.deleted.remove(key)));
            for key in covered {
                if let Some(object) = state.objects.get_mut(&key) {
                    object.durable = true;
                }
            }
        }
        self.edge().await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ObjectPage, StoreError> {
        self.edge().await?;
        let size = 1 + self.below(8) as usize;
        let state = self.state();
        let from = Bound::Excluded(after.unwrap_or(prefix));
        let keys = state.objects.range::<str, _>((from, Bound::Unbounded)).map(|(key, _)| key.clone());
        let mut keys: Vec<String> = keys.take_while(|key| key.starts_with(prefix)).take(size + 1).collect();
        let more = keys.len() > size;
        keys.truncate(size);
        let next = if more { keys.last().cloned() } else { None };
        Ok(ObjectPage { keys, next })
    }
}

/// A sleep that leaves nothing behind when it is dropped.
struct Sleep {
    world: World,
    at: Duration,
    ticket: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let world = self.world.clone();
        let mut state = world.state();
        if self.at <= state.now {
            return Poll::Ready(());
        }
        let ticket = *self.ticket.get_or_insert(state.next);
        state.next = state.next.max(ticket + 1);
        state.sleepers.insert((self.at, ticket), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let waker = self.world.state().sleepers.remove(&(self.at, ticket));
            drop(waker);
        }
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
        Timestamp { secs: self.state().clock, nanos: 0 }
    }

    fn sleep_until(&self, at: Duration) -> impl Future<Output = ()> + Send {
        Sleep { world: self.clone(), at, ticket: None }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let id = {
            let mut state = self.state();
            state.next += 1;
            let id = state.next - 1;
            state.tasks.insert(id, Box::pin(task));
            id
        };
        self.woken.lock().expect("nothing panics with it").insert(id);
    }

    fn stripe(&self) -> u8 {
        self.below(u64::from(STRIPES)) as u8
    }

    async fn pause(&self) {
        self.suspend().await;
    }
}
