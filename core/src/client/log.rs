//! The write-back log: an object store that answers once an object is in a log on the local disk, and puts it into the
//! real store afterwards.
//!
//! Owns: who waits for which write, sync and upload. To the client it looks like any other object store: a put is
//! durable past a barrier, which is one sync of the log's file here.
//! Leaves to others: what is in the log and what comes next (`store::log`), opening (`open`), the real store (`Env`).
//!
//! Invariants
//! - A barrier returns only once every record written before it is synced, and, if anything went to the real store
//!   directly, once that is past a barrier there.
//! - Where the log cannot take an object, be it full or broken, the object goes to the real store directly.
//! - Dropping any future here loses a waiter: what must go on is spawned.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use bytes::Bytes;

use super::std::sync::Mutex;
use super::wait::{Flight, Notify, flight, lock};
use crate::env::{Disk, DiskError, Edge, Env, ObjectPage, ObjectStore, Point, StoreError};
use crate::format::log::Kind;
use crate::marks::{Mark, reached, reached_if};
use crate::planted::{self, Bug};
use crate::store::log::{Backlog, BytesAt, Log, Lost, Pace, Place, Slot};
use crate::types::Timestamp;

use self::barrier::Round;
use self::packs::Packs;

mod barrier;
#[cfg(test)]
mod fake;
mod open;
mod packs;
#[cfg(test)]
mod tests;
mod uploads;

pub use open::{LogError, LogMode, Opened};

/// How the log is used.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Whether the log takes objects, or only gives back what earlier mounts left in it.
    pub mode: LogMode,
    /// Size of all segments together, at most.
    pub size_max: u64,
    /// Segments that nobody needs are kept for reading, within the size of all.
    pub keep: bool,
    /// Size of one segment; an object that is larger gets one of its own.
    pub segment_size: u64,
    /// Records of objects of this length and more have their pages in the log to themselves.
    pub paged_from: u64,
    /// Objects of this length and more stay in memory until they are put, while others hold their bytes, too.
    pub held_from: u64,
    /// Objects of this length and more go to the real store directly.
    pub direct_from: u64,
    /// How many objects are put into the real store at once.
    pub pace: Pace,
    /// How long an object stays in the log before it is put.
    pub upload_delay: Duration,
    /// Blocks whose objects are shorter go into the store together, as packs; 0: none does.
    pub pack_below: u64,
    /// A pack has about this length. (< 4 GiB)
    pub pack_size: u64,
    /// How long a pack may take to fill.
    pub pack_delay: Duration,
    /// A pack is rewritten when nothing was deleted from any for so long: what is removed together leaves more dead packs,
    /// and the others are rewritten together.
    pub pack_rest: Duration,
    /// Where the log is, for a person: machine and path.
    pub place: String,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            mode: LogMode::Back,
            size_max: 10 << 30,
            keep: false,
            segment_size: 64 << 20,
            paged_from: u64::MAX,
            held_from: u64::MAX,
            direct_from: u64::MAX,
            pace: Pace::steady(16),
            upload_delay: Duration::ZERO,
            pack_below: 0,
            pack_size: 4 << 20,
            pack_delay: Duration::from_secs(2),
            pack_rest: Duration::from_secs(10),
            place: String::new(),
        }
    }
}

/// A record that cannot be written is tried again in another segment so often.
const WRITE_TRIES: u32 = 2;

/// A world whose object store has a write-back log, or could have one.
pub struct Logged<E: Env, D: Disk> {
    env: E,
    objects: LoggedObjects<E, D>,
}

impl<E: Env, D: Disk> Clone for Logged<E, D> {
    fn clone(&self) -> Self {
        Self { env: self.env.clone(), objects: LoggedObjects(self.objects.0.clone()) }
    }
}

impl<E: Env, D: Disk> Env for Logged<E, D> {
    type Meta = E::Meta;
    type Objects = LoggedObjects<E, D>;

    fn meta(&self) -> &E::Meta {
        self.env.meta()
    }

    fn objects(&self) -> &LoggedObjects<E, D> {
        &self.objects
    }

    fn now(&self) -> Duration {
        self.env.now()
    }

    fn wall(&self) -> Timestamp {
        self.env.wall()
    }

    fn sleep_until(&self, at: Duration) -> impl Future<Output = ()> + Send {
        self.env.sleep_until(at)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.env.spawn(task);
    }

    fn here(&self, work: impl FnOnce()) {
        self.env.here(work);
    }

    fn stripe(&self) -> u8 {
        self.env.stripe()
    }

    fn is_busy(&self) -> bool {
        self.env.is_busy()
    }

    fn pause(&self) -> impl Future<Output = ()> + Send {
        self.env.pause()
    }

    fn at(&self, point: Point, edge: Edge) {
        self.env.at(point, edge);
    }
}

/// How the log does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStatus {
    /// What is in it.
    pub backlog: Backlog,
    /// Size that it may have; 0: it takes nothing.
    pub size_max: u64,
    /// Its disk failed at the last attempt, and objects go to the real store directly.
    pub broken: bool,
}

/// The object store with its log.
pub struct LoggedObjects<E: Env, D: Disk>(Arc<Inner<E, D>>);

struct Inner<E: Env, D: Disk> {
    env: E,
    staging: Option<Staging<D>>,
    packs: Packs,
}

struct Staging<D> {
    disk: D,
    options: LogOptions,
    /// Of this mount.
    epoch: u64,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    log: Log,
    /// What a failed sync may have lost and is not stored again yet.
    lost: Vec<Lost>,
    round: Round,
    /// Puts, deletes and listings that the real store has answered, and how many of them a barrier covers.
    direct: u64,
    settled: u64,
    /// A task settles what was put, or removes segments.
    settling: bool,
    /// How many wait for what is here to be put.
    hurried: u32,
    /// When the next put is looked for.
    timer: Option<Duration>,
    stopping: bool,
    unsure: bool,
    /// The metadata store has failed when it was to be told of a pack: the next mount goes on.
    untold: bool,
    broken: bool,
}

/// Why the log did not take a record.
enum Refused {
    /// It has its size.
    Full,
    /// The disk fails.
    Disk(DiskError),
    /// The object is being deleted.
    Deleting,
}

type Answer = Result<(), StoreError>;

impl<E: Env, D: Disk> Logged<E, D> {
    /// A world without a log.
    pub fn through(env: E) -> Self {
        let inner = Inner { env: env.clone(), staging: None, packs: Packs::new(true) };
        Self { env, objects: LoggedObjects(Arc::new(inner)) }
    }

    /// How the log does, if there is one.
    pub fn log_status(&self) -> Option<LogStatus> {
        let staging = self.objects.0.staging.as_ref()?;
        let state = lock(&staging.state);
        let size_max = if staging.options.mode == LogMode::Back { staging.options.size_max } else { 0 };
        Some(LogStatus { backlog: state.log.backlog(), size_max, broken: state.broken })
    }

    /// Somebody waits for what is in the log to be put (or does no more): while one does nothing waits for more to come.
    pub fn hurry(&self, hurry: bool) {
        self.objects.0.hurry(hurry);
    }

    /// Completes when every object is in the real store for good, or the metadata store has failed. What is staged
    /// meanwhile counts, too.
    pub async fn drain(&self) {
        self.objects.0.drain().await;
    }

    /// Ends the log's work; whether the real store has everything, and the folder is empty. Nothing is put after that.
    pub async fn close(&self) -> Result<bool, LogError> {
        let closed = self.objects.0.close().await;
        self.objects.0.close_packs().await;
        closed
    }
}

impl<E: Env, D: Disk> ObjectStore for LoggedObjects<E, D> {
    async fn put(&self, key: &str, body: Vec<Bytes>) -> Answer {
        let inner = &self.0;
        if let Some(staging) = inner.staging_for(&body) {
            match inner.stage(staging, Kind::Put, key, &body).await {
                Ok(()) => {
                    inner.pump();
                    return Ok(());
                }
                Err(Refused::Deleting) => return Err(StoreError::Retry),
                Err(Refused::Full) => reached(Mark::LogFull),
                Err(Refused::Disk(error)) => {
                    reached(Mark::LogRefused);
                    lock(&staging.state).broken = true;
                    tracing::warn!(key, %error, "the write-back log did not take an object; it goes to the store");
                }
            }
        }
        inner.put_directly(key, body).await
    }

    async fn get(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.0.get(key, range, true).await
    }

    async fn get_stored(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.0.get(key, range, false).await
    }

    async fn delete(&self, key: &str) -> Answer {
        let (inner, owned) = (self.0.clone(), key.to_owned());
        self.0.detached(async move { inner.delete_now(&owned).await }).await
    }

    async fn barrier(&self) -> Answer {
        let unpacked = self.0.unpacked();
        match &self.0.staging {
            None => self.0.env.objects().barrier().await?,
            Some(staging) => self.0.covered(staging).await?,
        }
        self.0.sync_unpacked(unpacked).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ObjectPage, StoreError> {
        let Some(staging) = &self.0.staging else { return self.0.list_stored(prefix, after).await };
        self.0.env.pause().await;
        // Before the store is asked: what leaves the log meanwhile is in the store's answer, or in this one.
        let staged = lock(&staging.state).log.list(prefix, after);
        let mut page = self.0.list_stored(prefix, after).await?;
        let staged = staged.into_iter().filter(|key| page.next.as_ref().is_none_or(|next| key <= next));
        if !planted::is(Bug::LogUnlisted) {
            page.keys.extend(staged);
            page.keys.sort_unstable();
            page.keys.dedup();
        }
        // What is not there was perhaps deleted by a call whose answer was lost: a barrier has to make that durable.
        lock(&staging.state).direct += 1;
        Ok(page)
    }

    fn is_arriving(&self) -> bool {
        let staging = self.0.staging.as_ref().filter(|_| !planted::is(Bug::LogUnlisted));
        staging.is_some_and(|staging| lock(&staging.state).log.has_found()) || self.0.env.objects().is_arriving()
    }

    fn distrust(&self, key: &str) {
        if let Some(staging) = &self.0.staging {
            let mut state = lock(&staging.state);
            reached_if(Mark::LogKeptWrong, || state.log.find_kept(key, &(0..0)).is_some());
            state.log.give_up_kept(key);
        }
        self.0.env.objects().distrust(key);
    }

    fn trim(&self) {
        let holds = |staging: &&Staging<D>| staging.options.held_from < staging.options.direct_from;
        if let Some(staging) = self.0.staging.as_ref().filter(holds) {
            lock(&staging.state).log.trim();
        }
    }

    /// What is in the store is put again by the next mount while there are records of it.
    async fn finish(&self) {
        let Some(staging) = &self.0.staging else { return };
        let drained = {
            let state = lock(&staging.state);
            state.log.is_drained() && !state.stopping
        };
        if drained {
            self.0.remove_segments(staging, true).await;
        }
    }

    /// Also where the next mount will put what is left: by then nobody remembers the leases of this one.
    fn is_unsure(&self) -> bool {
        let log = self.0.staging.as_ref().is_some_and(|staging| {
            let state = lock(&staging.state);
            state.unsure || !state.log.is_empty()
        });
        log || self.0.env.objects().is_unsure()
    }
}

impl<E: Env, D: Disk> Inner<E, D> {
    fn staging(&self) -> &Staging<D> {
        self.staging.as_ref().expect("called where there is a log")
    }

    /// The log, if it takes objects like this one.
    fn staging_for(&self, body: &[Bytes]) -> Option<&Staging<D>> {
        let len: u64 = body.iter().map(|piece| piece.len() as u64).sum();
        let takes = |staging: &&Staging<D>| {
            staging.options.mode == LogMode::Back && len < staging.options.direct_from && !lock(&staging.state).stopping
        };
        self.staging.as_ref().filter(takes)
    }

    async fn put_directly(&self, key: &str, body: Vec<Bytes>) -> Answer {
        self.env.objects().put(key, body).await?;
        if let Some(staging) = &self.staging {
            self.env.pause().await;
            lock(&staging.state).direct += 1;
        }
        Ok(())
    }

    /// Runs `task` to its end whatever becomes of the waiter.
    async fn detached(&self, task: impl Future<Output = Answer> + Send + 'static) -> Answer {
        let (publisher, waiting): (_, Flight<Answer>) = flight();
        let answer = waiting.wait();
        self.env.spawn(async move { publisher.publish(task.await) });
        answer.await.unwrap_or(Err(StoreError::Retry))
    }

    /// `kept`: what the store has, too, may be read from the log.
    async fn get(&self, key: &str, range: Range<u64>, kept: bool) -> Result<Bytes, StoreError> {
        let Some(staging) = &self.staging else { return self.stored(key, range).await };
        let mut last = None;
        loop {
            self.env.pause().await;
            let found = {
                let mut state = lock(&staging.state);
                state.log.note_use(self.env.now());
                state.log.find(key)
            };
            let Some((place, len)) = found else {
                if kept && let Some(bytes) = self.read_kept(staging, key, &range).await {
                    return Ok(bytes);
                }
                return self.stored(key, range).await;
            };
            if len < range.end {
                return Err(StoreError::Short);
            }
            let (segment, at) = match place {
                BytesAt::Memory(body) => return Ok(cut(&body, range)),
                BytesAt::Disk { segment, range: at, .. } => (segment, at.start),
            };
            match staging.disk.read(segment, at + range.start..at + range.end).await {
                Ok(bytes) => {
                    reached(Mark::LogRead);
                    return Ok(bytes);
                }
                // The segment went, for the store has the object by this time.
                Err(DiskError::Missing) if last != Some(segment) => last = Some(segment),
                Err(DiskError::Missing | DiskError::Failed | DiskError::Full) => return Err(StoreError::Retry),
            }
        }
    }

    /// Reads an object that the store has, too. `None`: the store is to be asked.
    async fn read_kept(&self, staging: &Staging<D>, key: &str, range: &Range<u64>) -> Option<Bytes> {
        let (segment, at) = lock(&staging.state).log.find_kept(key, range)?;
        match staging.disk.read(segment, at).await {
            Ok(bytes) => {
                reached(Mark::LogKeptRead);
                Some(bytes)
            }
            Err(error) => {
                tracing::debug!(key, segment, %error, "the store is asked for what the write-back log has kept");
                let without_name = {
                    let mut state = lock(&staging.state);
                    state.log.give_up_kept(key);
                    state.log.give_up_segment(segment)
                };
                if without_name {
                    reached(Mark::LogKeptMissing);
                    staging.disk.release(segment).await;
                }
                None
            }
        }
    }

    // ---- records

    /// Writes a record. Durable past a sync.
    async fn stage(&self, staging: &Staging<D>, kind: Kind, key: &str, body: &[Bytes]) -> Result<(), Refused> {
        let mut failures = 0;
        loop {
            self.env.pause().await;
            let changed = staging.changed.listen();
            let place = {
                let mut state = lock(&staging.state);
                if state.stopping {
                    return Err(Refused::Full);
                }
                if kind == Kind::Put && state.log.is_deleting(key) {
                    return Err(Refused::Deleting);
                }
                if kind == Kind::Put && state.log.holds(key) {
                    reached(Mark::LogPutAgain);
                    return Ok(());
                }
                state.log.reserve(kind, key, body)
            };
            let failed = match place {
                Place::Full => return Err(Refused::Full),
                Place::Wait => {
                    changed.await;
                    continue;
                }
                Place::NeedSegment => self.make_segment(staging).await,
                Place::At(slot) => match self.write(staging, &slot, kind, key, body).await {
                    Ok(true) => return Ok(()),
                    Ok(false) => {
                        reached(Mark::LogWriteIntoFailedSegment);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = failed {
                failures += 1;
                if failures == WRITE_TRIES {
                    return Err(Refused::Disk(error));
                }
            }
        }
    }

    async fn write(
        &self,
        staging: &Staging<D>,
        slot: &Slot,
        kind: Kind,
        key: &str,
        body: &[Bytes],
    ) -> Result<bool, DiskError> {
        let mut writing = Writing { staging, slot, ended: false };
        let mut whole = Vec::with_capacity(1 + body.len());
        whole.push(slot.head.clone());
        whole.extend(body.iter().filter(|piece| !piece.is_empty()).cloned());
        staging.disk.write(slot.segment, slot.at, whole).await?;
        self.env.pause().await;
        writing.ended = true;
        let mut state = lock(&staging.state);
        state.broken = false;
        Ok(state.log.handle_written(self.env.now(), slot, kind, key, body))
    }

    /// Makes the segment that records go to from here on, unless another task does.
    async fn make_segment(&self, staging: &Staging<D>) -> Result<(), DiskError> {
        self.env.pause().await;
        self.release_segments(staging).await;
        let Some(head) = lock(&staging.state).log.begin_segment() else { return Ok(()) };
        let mut making = Making { staging, head, made: false };
        staging.disk.create(head.number).await?;
        staging.disk.write(head.number, 0, vec![head.encode()]).await?;
        reached_if(Mark::LogSegments, || head.number > 1);
        making.made = true;
        Ok(())
    }

    // ---- deletion

    async fn delete_now(self: Arc<Self>, key: &str) -> Answer {
        if let Some(staging) = &self.staging {
            self.delete_staged(staging, key).await?;
        }
        self.unpack(key).await?;
        // Also what was in a pack may have been put by itself, by an earlier attempt.
        self.env.objects().delete(key).await?;
        if let Some(staging) = &self.staging {
            self.env.pause().await;
            lock(&staging.state).direct += 1;
        }
        Ok(())
    }

    async fn delete_staged(self: &Arc<Self>, staging: &Staging<D>, key: &str) -> Answer {
        self.env.pause().await;
        let recorded = lock(&staging.state).log.begin_delete(key);
        if recorded
            && !planted::is(Bug::LogDeleteUnrecorded)
            && let Err(Refused::Full | Refused::Deleting | Refused::Disk(_)) =
                self.stage(staging, Kind::Delete, key, &[]).await
        {
            lock(&staging.state).log.abort_delete(key);
            self.pump();
            return Err(StoreError::Retry);
        }
        loop {
            let changed = staging.changed.listen();
            {
                let mut state = lock(&staging.state);
                if !state.log.is_uploading(key) || planted::is(Bug::DeletedWhilePut) {
                    state.log.end_delete(key);
                    break;
                }
            }
            reached(Mark::LogDeleteWaited);
            changed.await;
        }
        self.tidy();
        staging.changed.notify_all();
        Ok(())
    }
}

/// A write under way: dropped before its end, nothing is known of it.
struct Writing<'a, D> {
    staging: &'a Staging<D>,
    slot: &'a Slot,
    ended: bool,
}

impl<D> Drop for Writing<'_, D> {
    fn drop(&mut self) {
        if !self.ended {
            lock(&self.staging.state).log.handle_write_failed(self.slot);
            self.staging.changed.notify_all();
        }
    }
}

/// A segment that is being made.
struct Making<'a, D> {
    staging: &'a Staging<D>,
    head: crate::format::log::Segment,
    made: bool,
}

impl<D> Drop for Making<'_, D> {
    fn drop(&mut self) {
        lock(&self.staging.state).log.handle_segment(self.head, self.made);
        self.staging.changed.notify_all();
    }
}

/// `range` of the concatenation of `body`.
fn cut(body: &[Bytes], range: Range<u64>) -> Bytes {
    let (mut from, len) = (range.start as usize, (range.end - range.start) as usize);
    let mut out = Vec::new();
    for piece in body {
        if piece.len() <= from {
            from -= piece.len();
            continue;
        }
        let part = piece.slice(from..piece.len().min(from + len - out.len()));
        if out.is_empty() && part.len() == len {
            return part;
        }
        out.extend_from_slice(&part);
        from = 0;
        if out.len() == len {
            break;
        }
    }
    out.into()
}
