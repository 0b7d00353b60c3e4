//! The simulated disk of the write-back log.
//!
//! Owns: calls and what fails of them, what an ending does, what must not be written or removed.
//! Leaves to others: what the files hold (`files`), which faults strike (`faults`), which slices are referred to (`meta`),
//! what the log makes of its files (`kiseki_core::client`).
//!
//! Invariants
//! - Only a sync makes writes and the name of their segment durable, and only writes that had returned without an error
//!   before it began. A power cut decides about each page of each other write on its own.
//! - Pages that a failed sync was for are clean: reads show them, no later sync covers them. They may be gone as soon as
//!   the client is.
//! - A removal and an owner are durable when their call has returned; until then a power cut decides.

use std::collections::BTreeSet;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::env::{Disk, DiskError};
use kiseki_core::format::block;
use kiseki_core::format::log::{PAGE, Segment as Head};
use madsim::time::{self, TimeHandle};

use self::files::{Extent, File, Place, Said, State, Write, put, record};
use super::Parts;
use super::objects::SimObjects;
use super::references::References;
use crate::faults::{Ending, Fault};

mod files;

/// Usual time of one step of a call.
const LATENCY: Duration = Duration::from_micros(300);
/// Usual time of a sync.
const SYNC: Duration = Duration::from_millis(2);
/// Longest time of a slow sync, and of any other slow call: the first is longer than the deadline of a wait.
const SLOW_SYNC: Duration = Duration::from_secs(10);
const SLOW: Duration = Duration::from_secs(1);
/// How long a segment is spared after a damaged answer: longer than it is asked for again.
const SPARED: Duration = Duration::from_secs(3);

/// What becomes of a segment that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    Whole,
    /// It can still be read.
    Open,
    /// It has another name.
    Aside,
}

/// The disk; clones are the same.
#[derive(Clone)]
pub struct SimDisk {
    parts: Parts,
    objects: SimObjects,
    references: References,
    state: Arc<Mutex<State>>,
}

impl SimDisk {
    pub(super) fn new(parts: Parts, objects: SimObjects, references: References) -> Self {
        Self { parts, objects, references, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn end(&self, ending: Ending) {
        let mut state = self.state();
        let state = &mut *state;
        let dice = &self.parts.dice;
        state.epoch += 1;
        state.detached.clear();
        for number in state.writes.keys().copied().collect::<Vec<u64>>() {
            match dice.below(3) {
                0 => drop(state.writes.remove(&number)),
                1 => state.apply(number, Extent::All, dice),
                _ => state.apply(number, Extent::Some, dice),
            }
        }
        let going = std::mem::take(&mut state.going);
        match ending {
            Ending::PowerCut | Ending::MetaPowerCut => {
                let back = going.into_iter().filter(|(_, file)| file.named && dice.chance(500));
                state.files.extend(back.collect::<Vec<_>>());
                let files = std::mem::take(&mut state.files).into_iter();
                state.files = files.filter_map(|(number, file)| Some((number, file.cut(dice)?))).collect();
                let left: Vec<(u64, usize)> =
                    state.files.iter().map(|(number, file)| (*number, file.bytes.len())).collect();
                self.parts.trace.add(format!("log: segments and lengths that are left: {left:?}"));
                if dice.chance(500) {
                    state.owner.clone_from(&state.owner_synced);
                }
                state.owner_synced.clone_from(&state.owner);
            }
            Ending::Kill | Ending::Unmount => state.files.values_mut().for_each(|file| file.orphan(dice)),
        }
        state.forget(Place::is_found_in);
        self.objects.set_recorded(state.found());
    }

    /// Whether a power cut of this machine leaves the object, of that length.
    pub(super) fn stored(&self, key: &str, len: u64) -> bool {
        self.references.home() > 0 && self.state().holds(key, len)
    }

    /// Segments that are there, for the judges.
    pub fn numbers(&self) -> Vec<u64> {
        let state = self.state();
        state.files.keys().chain(&state.aside).copied().collect()
    }

    /// Runs `call` on the world's node, so that it goes on if its caller is gone.
    async fn detached<T: Send + 'static>(&self, call: impl Future<Output = T> + Send + 'static) -> T {
        self.parts.node.spawn(call).await.expect("the world does not end")
    }

    async fn delay(&self) {
        self.parts.delay(LATENCY).await;
    }

    fn strikes(&self, fault: Fault) -> bool {
        self.parts.faults.strikes(fault)
    }

    fn object(&self, text: String) {
        if self.parts.switches.oracles {
            self.parts.alarm.raise(text);
        }
    }

    /// The start of every call: latency.
    async fn arrive(&self, call: &'static str) -> u64 {
        let epoch = self.state().epoch;
        self.parts.faults.called(call);
        self.delay().await;
        if self.strikes(Fault::LogSlow) {
            time::sleep(self.parts.dice.time_below(SLOW)).await;
        }
        epoch
    }

    /// The state, unless the client that asked is gone.
    fn living(&self, epoch: u64) -> Result<MutexGuard<'_, State>, DiskError> {
        let state = self.state();
        if state.epoch == epoch { Ok(state) } else { Err(DiskError::Failed) }
    }

    async fn create_now(&self, segment: u64) -> Result<(), DiskError> {
        let epoch = self.arrive("log create").await;
        if self.strikes(Fault::LogWriteFull) {
            return Err(DiskError::Full);
        }
        let failed = self.strikes(Fault::LogWriteFailed);
        if failed && self.parts.dice.chance(500) {
            return Err(DiskError::Failed);
        }
        {
            let mut state = self.living(epoch)?;
            let old =
                state.files.remove(&segment).and_then(|old| if old.named { Some(old.synced) } else { old.replaced });
            state.files.insert(segment, File { replaced: old, ..File::default() });
            state.forget(|place, _| place.segment != segment);
        }
        self.delay().await;
        if failed { Err(DiskError::Failed) } else { Ok(()) }
    }

    /// A disk may write whole pages where a write has them to itself: objects to another one in them.
    fn claim(&self, segment: u64, at: u64, end: u64, apart: bool) {
        let (from, to) = (at / PAGE * PAGE, end.next_multiple_of(PAGE));
        let shared = {
            let mut state = self.state();
            let Some(file) = state.files.get_mut(&segment) else { return };
            let others = file.claims.range(..to).filter(|(other, _)| **other != at);
            let shared = others.filter(|(_, (end, _))| from < *end).any(|(_, (_, theirs))| apart || *theirs);
            file.claims.insert(at, (to, apart));
            shared
        };
        if shared {
            self.object(format!("the log writes to segment {segment} at {at}, to pages that one write has to itself"));
        }
    }

    async fn write_now(&self, segment: u64, at: u64, body: Bytes) -> Result<(), DiskError> {
        let epoch = self.arrive("log write").await;
        let (extent, answer) = if self.strikes(Fault::LogWriteFull) {
            (Extent::Prefix, Err(DiskError::Full))
        } else if self.strikes(Fault::LogWriteFailed) {
            (Extent::Some, Err(DiskError::Failed))
        } else {
            (Extent::All, Ok(()))
        };
        if let Err(error) = answer {
            self.parts.trace.add(format!("log: a write to segment {segment} at {at} fails: {error:?}"));
        }
        let number = {
            let mut state = self.living(epoch)?;
            if !state.files.contains_key(&segment) {
                return Err(DiskError::Missing);
            }
            state.next_write += 1;
            let number = state.next_write;
            state.writes.insert(number, Write { segment, at, body: body.clone() });
            // A crash may decide that it has taken effect.
            if let Some(Said { put, key, body_at }) = record(&body).filter(|_| at > 0) {
                let records = if put { &mut state.places } else { &mut state.deletes };
                records.entry(key).or_default().push(Place {
                    segment,
                    at,
                    body_len: body.len() as u64 - body_at,
                    whole: body.clone(),
                });
            }
            number
        };
        self.delay().await;
        self.living(epoch)?.apply(number, extent, &self.parts.dice);
        self.watch(segment, at, &body);
        if self.parts.dice.chance(300) {
            self.delay().await;
        }
        answer?;
        let mut state = self.living(epoch)?;
        if let Some(file) = state.files.get_mut(&segment) {
            let pieces = file.pieces.iter_mut().rev().filter(|piece| piece.write == number);
            pieces.for_each(|piece| piece.returned = true);
        }
        Ok(())
    }

    /// What was written; objects to what must not be.
    fn watch(&self, segment: u64, at: u64, whole: &Bytes) {
        if at == 0 {
            if let (Ok(head), Some(file)) = (Head::decode(whole, segment), self.state().files.get_mut(&segment)) {
                file.head = Some((head, whole.clone()));
            }
            return;
        }
        let Some(Said { put, key, body_at }) = record(whole) else { return };
        if put {
            self.objects.give(&key, &whole[body_at as usize..]);
            self.objects.recorded(&key, true);
            return;
        }
        self.objects.recorded(&key, false);
        if let Some((slice, _)) = block::parse_key(&key)
            && let Some(why) = self.references.still_needed(slice)
        {
            self.object(format!("the log says that object {key} was deleted though {why}"));
        }
    }

    async fn sync_now(&self, segment: u64, covered: BTreeSet<u64>) -> Result<(), DiskError> {
        let epoch = self.arrive("log sync").await;
        if self.strikes(Fault::LogSlow) {
            time::sleep(self.parts.dice.time_below(SLOW_SYNC)).await;
        }
        self.parts.delay(SYNC).await;
        let failed = self.strikes(Fault::LogSyncFailed);
        if failed {
            self.parts.trace.add(format!("log: a sync of segment {segment} fails, for {} writes", covered.len()));
        }
        {
            let mut state = self.living(epoch)?;
            let file = state.files.get_mut(&segment).ok_or(DiskError::Missing)?;
            if failed {
                let pieces = file.pieces.iter_mut().filter(|piece| covered.contains(&piece.write));
                pieces.for_each(|piece| piece.lost = true);
            } else if self.parts.switches.barrier {
                let File { synced, pieces, .. } = file;
                pieces.retain(|piece| {
                    let covers = !piece.lost && covered.contains(&piece.write);
                    if covers {
                        put(synced, piece);
                    }
                    !covers
                });
                (file.named, file.replaced) = (true, None);
            }
        }
        self.delay().await;
        if failed { Err(DiskError::Failed) } else { Ok(()) }
    }

    async fn read_now(&self, segment: u64, range: Range<u64>) -> Result<Bytes, DiskError> {
        self.arrive("log read").await;
        if self.strikes(Fault::LogReadFailed) {
            return Err(DiskError::Failed);
        }
        let mut bytes = {
            let state = self.state();
            let file = state.files.get(&segment).or_else(|| state.detached.get(&segment)).ok_or(DiskError::Missing)?;
            let found = file.bytes.get(range.start as usize..range.end as usize);
            found.ok_or(DiskError::Missing)?.to_vec()
        };
        self.delay().await;
        let now = TimeHandle::current().elapsed();
        let spared = self.state().torn.get(&segment).is_some_and(|until| now < *until);
        if !spared && !bytes.is_empty() && self.strikes(Fault::LogReadTorn) {
            self.state().torn.insert(segment, now + SPARED);
            let len = bytes.len() as u64;
            bytes[self.parts.dice.below(len) as usize] ^= 1 << self.parts.dice.below(8);
        }
        Ok(bytes.into())
    }

    async fn remove_now(&self, segment: u64, how: Removal) -> Result<(), DiskError> {
        let aside = how == Removal::Aside;
        let epoch = self.arrive("log remove").await;
        let failed = self.strikes(Fault::LogWriteFailed);
        if failed && self.parts.dice.chance(500) {
            return Err(DiskError::Failed);
        }
        if !aside {
            self.watch_removal(segment);
        }
        {
            let mut state = self.living(epoch)?;
            if let Some(file) = state.files.remove(&segment) {
                // Without room for it, it is gone at once.
                if how == Removal::Open && !self.parts.dice.chance(100) {
                    let bytes = file.bytes.clone();
                    state.detached.insert(segment, File { bytes, ..File::default() });
                }
                state.going.insert(segment, file);
                if aside {
                    state.aside.insert(segment);
                }
            }
        }
        self.delay().await;
        if failed {
            return Err(DiskError::Failed);
        }
        let mut state = self.living(epoch)?;
        state.going.remove(&segment);
        for key in state.forget(|place, _| place.segment != segment) {
            self.objects.recorded(&key, false);
        }
        Ok(())
    }

    /// Objects to the end of the last durable copy of an object that is referred to.
    fn watch_removal(&self, segment: u64) {
        let held: Vec<(String, u64)> = {
            let state = self.state();
            let here = |places: &[Place]| places.iter().any(|place| place.segment == segment);
            let elsewhere =
                |places: &[Place]| places.iter().any(|place| place.segment != segment && state.keeps(place));
            let held = state.places.iter().filter(|(_, places)| here(places) && !elsewhere(places));
            held.map(|(key, places)| (key.clone(), places[0].body_len)).collect()
        };
        for (key, len) in held {
            let stored = self.objects.stored(&key);
            if stored != Some((len, true))
                && let Some((slice, _)) = block::parse_key(&key)
                && let Some(why) = self.references.still_needed(slice)
            {
                self.object(format!(
                    "segment {segment} of the log was removed though {why}, and of its object {key} ({len} bytes) the \
                     store has {stored:?} (bytes, durable)"
                ));
            }
        }
    }

    async fn set_owner_now(&self, owner: Bytes) -> Result<(), DiskError> {
        let epoch = self.arrive("log owner").await;
        let failed = self.strikes(Fault::LogWriteFailed);
        if failed && self.parts.dice.chance(500) {
            return Err(DiskError::Failed);
        }
        self.living(epoch)?.owner = Some(owner);
        self.delay().await;
        if failed {
            return Err(DiskError::Failed);
        }
        let mut state = self.living(epoch)?;
        state.owner_synced = state.owner.clone();
        Ok(())
    }

    async fn owner_now(&self) -> Result<Option<Bytes>, DiskError> {
        self.arrive("log owner").await;
        if self.strikes(Fault::LogReadFailed) {
            return Err(DiskError::Failed);
        }
        Ok(self.state().owner.clone())
    }

    async fn segments_now(&self) -> Result<Vec<(u64, u64)>, DiskError> {
        self.arrive("log segments").await;
        if self.strikes(Fault::LogReadFailed) {
            return Err(DiskError::Failed);
        }
        Ok(self.state().files.iter().map(|(number, file)| (*number, file.bytes.len() as u64)).collect())
    }
}

impl Disk for SimDisk {
    async fn segments(&self) -> Result<Vec<(u64, u64)>, DiskError> {
        let this = self.clone();
        self.detached(async move { this.segments_now().await }).await
    }

    async fn create(&self, segment: u64) -> Result<(), DiskError> {
        let this = self.clone();
        self.detached(async move { this.create_now(segment).await }).await
    }

    async fn write(&self, segment: u64, at: u64, body: Vec<Bytes>) -> Result<(), DiskError> {
        let apart = [at, body.first().map_or(1, |head| head.len() as u64)].iter().all(|at| at.is_multiple_of(PAGE));
        let (this, body) = (self.clone(), Bytes::from(body.concat()));
        self.claim(segment, at, at + body.len() as u64, apart);
        self.detached(async move { this.write_now(segment, at, body).await }).await
    }

    async fn sync(&self, segment: u64) -> Result<(), DiskError> {
        // What had returned before the call is what had returned before it was sent.
        let covered = self.state().files.get(&segment).map_or_else(BTreeSet::new, |file| {
            file.pieces.iter().filter(|piece| piece.returned).map(|piece| piece.write).collect()
        });
        let this = self.clone();
        self.detached(async move { this.sync_now(segment, covered).await }).await
    }

    async fn read(&self, segment: u64, range: Range<u64>) -> Result<Bytes, DiskError> {
        let this = self.clone();
        self.detached(async move { this.read_now(segment, range).await }).await
    }

    async fn remove(&self, segment: u64) -> Result<(), DiskError> {
        let this = self.clone();
        self.detached(async move { this.remove_now(segment, Removal::Whole).await }).await
    }

    async fn detach(&self, segment: u64) -> Result<(), DiskError> {
        let this = self.clone();
        self.detached(async move { this.remove_now(segment, Removal::Open).await }).await
    }

    async fn release(&self, segment: u64) {
        self.state().detached.remove(&segment);
    }

    async fn set_aside(&self, segment: u64) -> Result<(), DiskError> {
        let this = self.clone();
        self.detached(async move { this.remove_now(segment, Removal::Aside).await }).await
    }

    async fn owner(&self) -> Result<Option<Bytes>, DiskError> {
        let this = self.clone();
        self.detached(async move { this.owner_now().await }).await
    }

    async fn set_owner(&self, owner: Bytes) -> Result<(), DiskError> {
        let this = self.clone();
        self.detached(async move { this.set_owner_now(owner).await }).await
    }
}
