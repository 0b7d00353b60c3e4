//! The simulated object store.
//!
//! Owns: the objects, which of them would survive a power cut, calls under way, what bytes a put from the log must have.
//! Leaves to others: which faults strike (`faults`), which slices are referred to (`meta`).
//!
//! Invariants
//! - An object is whole or absent, and never replaced by other bytes.
//! - Only a barrier makes puts and deletes durable, and only those that had returned without an error before it began.
//!   A power cut decides about each other object on its own.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::env::{ObjectPage, ObjectStore, StoreError};
use kiseki_core::format::block;
use kiseki_core::format::pack::{pack_key, parse_pack_key};
use madsim::time::{self, TimeHandle};

use super::Parts;
use super::references::References;
use crate::faults::{Ending, Fault};

/// Usual time of one step of a call.
const LATENCY: Duration = Duration::from_millis(4);
/// How long an object is spared after a damaged answer: longer than it is asked for again.
const SPARED: Duration = Duration::from_secs(3);
/// How long a call hangs: far beyond any deadline.
const HANG: Duration = Duration::from_secs(20);
/// Longest time that a slow get takes to find its object.
const SLOW_GET: Duration = Duration::from_secs(2);
/// How far a listing may be behind: less than what the client allows for.
const BEHIND: Duration = Duration::from_secs(30);
/// Longest outage: longer than the deadline of a wait.
const OUTAGE_MAX: Duration = Duration::from_secs(8);

/// FNV-1a, by words.
fn hash(body: &[u8]) -> u64 {
    body.chunks(8).fold(body.len() as u64, |hash, word| {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        (hash ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[derive(Clone, Debug)]
struct Object {
    body: Bytes,
    /// Its put returned without an error in the life of this client.
    acknowledged: bool,
    /// A power cut leaves it.
    durable: bool,
    /// When it was put.
    since: Duration,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    /// Objects that were deleted and that a power cut may bring back; whether a delete of each has returned in the life
    /// of this client.
    undoable: BTreeMap<String, (Bytes, bool)>,
    /// Puts that may still take effect, by number.
    puts: BTreeMap<u64, (String, Bytes)>,
    next_put: u64,
    /// Lives of clients; what a dead one began has no effect.
    epoch: u64,
    outage_until: Duration,
    /// No barrier succeeds, though all else does.
    unsynced: bool,
    /// Objects of which a damaged answer was given, and until when no other is: or it would count as damage of the
    /// object. (Several gets may make up one attempt.)
    torn: BTreeMap<String, Duration>,
    /// Objects of which a put took effect after its error was answered, in the life of this client.
    late: BTreeSet<String>,
    /// Hashes of the bodies that the write-back log was given, by key.
    given: BTreeMap<String, u64>,
    /// Objects that a mount would put which finds the write-back log as it is.
    recorded: BTreeSet<String>,
    /// Objects that were deleted, and when.
    deleted: BTreeMap<String, Duration>,
}

/// The object store; clones are the same.
#[derive(Clone)]
pub struct SimObjects {
    parts: Parts,
    references: References,
    state: Arc<Mutex<State>>,
}

impl SimObjects {
    pub(super) fn new(parts: Parts, references: References) -> Self {
        Self { parts, references, state: Arc::default() }
    }

    pub(super) fn end(&self, ending: Ending) {
        let mut state = self.state.lock().unwrap();
        state.epoch += 1;
        state.late.clear();
        let (dice, since) = (&self.parts.dice, TimeHandle::current().elapsed());
        for (key, body) in std::mem::take(&mut state.puts).into_values() {
            if dice.chance(500) {
                state.objects.entry(key).or_insert(Object { body, acknowledged: false, durable: false, since });
            }
        }
        match ending {
            Ending::PowerCut => {
                state.objects.retain(|_, object| object.durable || dice.chance(500));
                for (key, (body, _)) in std::mem::take(&mut state.undoable) {
                    if dice.chance(500) {
                        state.objects.entry(key).or_insert(Object { body, acknowledged: false, durable: true, since });
                    }
                }
                state.objects.values_mut().for_each(|object| object.durable = true);
            }
            Ending::MetaPowerCut => state.objects.values_mut().for_each(|object| object.durable = true),
            // A later process's barrier knows nothing of what this one has put.
            Ending::Kill | Ending::Unmount => {
                state.objects.values_mut().for_each(|object| object.acknowledged = false);
                state.undoable.values_mut().for_each(|(_, returned)| *returned = false);
            }
        }
    }

    /// Length of an object, and whether it would survive a power cut, by itself or in a pack.
    pub(super) fn stored(&self, key: &str) -> Option<(u64, bool)> {
        let packed = block::parse_key(key).and_then(|block| self.references.packed(block));
        let state = self.state.lock().unwrap();
        let stored = |key: &str| state.objects.get(key).map(|object| (object.body.len() as u64, object.durable));
        let Some(packed) = packed else { return stored(key) };
        let (len, durable) = stored(&pack_key(packed.pack))?;
        (packed.at + packed.len <= len as u32).then_some((packed.len.into(), durable))
    }

    /// The write-back log was given an object: whatever puts it, it has these bytes.
    pub(super) fn give(&self, key: &str, body: &[u8]) {
        self.state.lock().unwrap().given.insert(key.to_string(), hash(body));
    }

    /// A mount that finds the write-back log as it is would put the object, or would not.
    pub(super) fn recorded(&self, key: &str, recorded: bool) {
        let mut state = self.state.lock().unwrap();
        if recorded {
            state.recorded.insert(key.to_string());
        } else {
            state.recorded.remove(key);
        }
    }

    /// These are the objects that a mount would put.
    pub(super) fn set_recorded(&self, keys: BTreeSet<String>) {
        self.state.lock().unwrap().recorded = keys;
    }

    /// Objects that may have come back after they were deleted.
    pub fn late(&self) -> BTreeSet<String> {
        self.state.lock().unwrap().late.clone()
    }

    /// All keys, for the judges.
    pub fn keys(&self) -> Vec<String> {
        self.state.lock().unwrap().objects.keys().cloned().collect()
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

    /// The start of every call: latency, and outages.
    async fn arrive(&self, call: &'static str) -> Result<u64, StoreError> {
        let epoch = self.state.lock().unwrap().epoch;
        self.parts.faults.called(call);
        self.delay().await;
        let now = TimeHandle::current().elapsed();
        // Calls that fail do not make an outage longer: it ends.
        if now < self.state.lock().unwrap().outage_until {
            return Err(StoreError::Retry);
        }
        if self.strikes(Fault::StoreOutage) {
            let until = now + self.parts.dice.time_below(OUTAGE_MAX);
            self.state.lock().unwrap().outage_until = until;
            return Err(StoreError::Retry);
        }
        Ok(epoch)
    }

    /// Ends a hanging call, and any outage, at once: faults are over.
    pub fn calm(&self) {
        self.state.lock().unwrap().outage_until = Duration::ZERO;
        self.mend_barriers();
    }

    /// Barriers may succeed again.
    pub fn mend_barriers(&self) {
        self.state.lock().unwrap().unsynced = false;
    }

    async fn put_now(&self, key: String, body: Bytes) -> Result<(), StoreError> {
        let epoch = self.arrive("put").await?;
        if self.strikes(Fault::PutFailed) {
            return Err(StoreError::Retry);
        }
        if self.strikes(Fault::PutFull) {
            return Err(StoreError::Full);
        }
        if self.strikes(Fault::PutHangs) {
            time::sleep(HANG).await;
            return Err(StoreError::Retry);
        }
        let number = {
            let mut state = self.state.lock().unwrap();
            if state.epoch != epoch {
                return Err(StoreError::Retry);
            }
            if self.parts.switches.oracles && state.given.get(&key).is_some_and(|given| *given != hash(&body)) {
                self.parts.alarm.raise(format!("object {key} is put with other bytes than the log was given"));
            }
            state.next_put += 1;
            let number = state.next_put;
            state.puts.insert(number, (key.clone(), body));
            number
        };
        if self.strikes(Fault::PutLate) {
            let (this, late) = (self.clone(), key);
            drop(self.parts.node.spawn(async move {
                let latest = [20, 20, 3000, 3000][this.parts.dice.below(4) as usize];
                time::sleep(Duration::from_millis(1 + this.parts.dice.below(latest))).await;
                this.take_effect(number, false);
            }));
            self.state.lock().unwrap().late.insert(late);
            return Err(StoreError::Retry);
        }
        let lost = self.strikes(Fault::PutAnswerLost);
        self.delay().await;
        self.take_effect(number, !lost);
        self.delay().await;
        if lost || self.state.lock().unwrap().epoch != epoch { Err(StoreError::Retry) } else { Ok(()) }
    }

    fn take_effect(&self, number: u64, acknowledge: bool) {
        let mut state = self.state.lock().unwrap();
        // A crash has decided about it in the meantime.
        let Some((key, body)) = state.puts.remove(&number) else { return };
        let object = state.objects.entry(key.clone()).or_insert_with(|| Object {
            body: body.clone(),
            acknowledged: false,
            durable: false,
            since: TimeHandle::current().elapsed(),
        });
        object.acknowledged |= acknowledge;
        if object.body != body {
            self.parts.alarm.raise(format!("object {key} was overwritten by other bytes"));
        }
    }

    async fn get_now(&self, key: String, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.arrive("get").await?;
        if self.strikes(Fault::GetFailed) {
            return Err(StoreError::Retry);
        }
        if self.strikes(Fault::GetHangs) {
            time::sleep(HANG).await;
            return Err(StoreError::Retry);
        }
        if self.strikes(Fault::GetSlow) {
            time::sleep(self.parts.dice.time_below(SLOW_GET)).await;
        }
        let body = self.state.lock().unwrap().objects.get(&key).map(|object| object.body.clone());
        self.delay().await;
        let body = body.ok_or(StoreError::NotFound)?;
        if range.end > body.len() as u64 {
            return Err(StoreError::Short);
        }
        let part = body.slice(range.start as usize..range.end as usize);
        let now = TimeHandle::current().elapsed();
        let spared = self.state.lock().unwrap().torn.get(&key).is_some_and(|until| now < *until);
        if spared || part.is_empty() {
            return Ok(part);
        }
        if self.strikes(Fault::GetForeign)
            && let Some(foreign) = self.foreign(&key, body.len())
        {
            self.state.lock().unwrap().torn.insert(key, now + SPARED);
            return Ok(foreign.slice(range.start as usize..range.end as usize));
        }
        if self.strikes(Fault::GetTorn) {
            self.state.lock().unwrap().torn.insert(key, now + SPARED);
            let mut torn = part.to_vec();
            torn[self.parts.dice.below(part.len() as u64) as usize] ^= 1 << self.parts.dice.below(8);
            return Ok(torn.into());
        }
        Ok(part)
    }

    /// Another object of that length.
    fn foreign(&self, key: &str, len: usize) -> Option<Bytes> {
        let state = self.state.lock().unwrap();
        let like = |(other, object): &(&String, &Object)| *other != key && object.body.len() == len;
        let like: Vec<&Object> = state.objects.iter().filter(like).map(|(_, object)| object).collect();
        let index = self.parts.dice.below(like.len().max(1) as u64) as usize;
        like.get(index).map(|object| object.body.clone())
    }

    async fn delete_now(&self, key: String) -> Result<(), StoreError> {
        let epoch = self.arrive("delete").await?;
        if self.strikes(Fault::DeleteFailed) {
            return Err(StoreError::Retry);
        }
        {
            let mut state = self.state.lock().unwrap();
            if state.epoch != epoch {
                return Err(StoreError::Retry);
            }
            if self.parts.switches.oracles
                && let Some((slice, _)) = block::parse_key(&key)
                && let Some(why) = self.references.still_needed(slice)
            {
                self.parts.alarm.raise(format!("object {key} was deleted though {why}"));
            }
            if self.parts.switches.oracles
                && let Some(pack) = parse_pack_key(&key)
                && let Some(why) = self.references.pack_needed(pack)
            {
                self.parts.alarm.raise(format!("{key} was deleted though {why}"));
            }
            if self.parts.switches.oracles && state.recorded.contains(&key) {
                self.parts.alarm.raise(format!("object {key} is deleted, and the next mount would put it again"));
            }
            if let Some(object) = state.objects.remove(&key) {
                state.undoable.insert(key.clone(), (object.body, false));
                state.deleted.insert(key.clone(), TimeHandle::current().elapsed());
            }
        }
        self.delay().await;
        if self.strikes(Fault::DeleteAnswerLost) {
            return Err(StoreError::Retry);
        }
        if let Some((_, returned)) = self.state.lock().unwrap().undoable.get_mut(&key) {
            *returned = true;
        }
        Ok(())
    }

    async fn barrier_now(&self) -> Result<(), StoreError> {
        // What had returned before the call is what had returned before it was sent.
        let covered: Vec<String> = {
            let state = self.state.lock().unwrap();
            state.objects.iter().filter(|(_, object)| object.acknowledged).map(|(key, _)| key.clone()).collect()
        };
        let gone: Vec<String> = {
            let state = self.state.lock().unwrap();
            state.undoable.iter().filter(|(_, (_, returned))| *returned).map(|(key, _)| key.clone()).collect()
        };
        let epoch = self.arrive("barrier").await?;
        if self.strikes(Fault::BarrierFailed) {
            return Err(StoreError::Retry);
        }
        let lasting = self.strikes(Fault::BarriersFail);
        {
            let mut state = self.state.lock().unwrap();
            state.unsynced |= lasting;
            if state.unsynced {
                return Err(StoreError::Retry);
            }
        }
        self.delay().await;
        {
            let mut state = self.state.lock().unwrap();
            if state.epoch != epoch {
                return Err(StoreError::Retry);
            }
            if self.parts.switches.barrier {
                gone.iter().for_each(|key| drop(state.undoable.remove(key)));
                for key in covered {
                    if let Some(object) = state.objects.get_mut(&key) {
                        object.durable = true;
                    }
                }
            }
        }
        if self.strikes(Fault::BarrierAnswerLost) { Err(StoreError::Retry) } else { Ok(()) }
    }

    async fn list_now(&self, prefix: String, after: Option<String>) -> Result<ObjectPage, StoreError> {
        self.arrive("list").await?;
        if self.strikes(Fault::ListFailed) {
            return Err(StoreError::Retry);
        }
        let size = 1 + self.parts.dice.below(8) as usize;
        let mut keys = self.listed(|key| key.starts_with(&prefix) && after.as_ref().is_none_or(|after| key > after));
        let more = keys.len() > size;
        keys.truncate(size);
        let next = if more { keys.last().cloned() } else { None };
        self.delay().await;
        let mut state = self.state.lock().unwrap();
        let gone = state.undoable.iter_mut().filter(|(key, _)| key.starts_with(&prefix));
        gone.for_each(|(_, (_, returned))| *returned = true);
        drop(state);
        Ok(ObjectPage { keys, next })
    }
}

impl SimObjects {
    /// The keys that a listing shows of those wanted, in order; it may be behind.
    fn listed(&self, wanted: impl Fn(&String) -> bool) -> Vec<String> {
        let now = TimeHandle::current().elapsed();
        let behind = |fault| {
            let strikes = self.strikes(fault);
            strikes.then(|| now.saturating_sub(self.parts.dice.time_below(BEHIND)))
        };
        let (put_by, deleted_since) = (behind(Fault::ListOmits), behind(Fault::ListShowsDeleted));
        let state = self.state.lock().unwrap();
        let shown = |object: &Object| put_by.is_none_or(|by| object.since <= by);
        let there = state.objects.iter().filter(|(_, object)| shown(object)).map(|(key, _)| key);
        let still = |at: &Duration| deleted_since.is_some_and(|since| since <= *at);
        let gone = state.deleted.iter().filter(|(_, at)| still(at)).map(|(key, _)| key);
        let keys: BTreeSet<&String> = there.chain(gone).filter(|key| wanted(key)).collect();
        keys.into_iter().cloned().collect()
    }
}

impl ObjectStore for SimObjects {
    async fn put(&self, key: &str, body: Vec<Bytes>) -> Result<(), StoreError> {
        let (this, key, body) = (self.clone(), key.to_string(), body.concat().into());
        self.detached(async move { this.put_now(key, body).await }).await
    }

    async fn get(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (this, key) = (self.clone(), key.to_string());
        self.detached(async move { this.get_now(key, range).await }).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let (this, key) = (self.clone(), key.to_string());
        self.detached(async move { this.delete_now(key).await }).await
    }

    async fn barrier(&self) -> Result<(), StoreError> {
        let this = self.clone();
        self.detached(async move { this.barrier_now().await }).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ObjectPage, StoreError> {
        let (this, prefix, after) = (self.clone(), prefix.to_string(), after.map(str::to_string));
        self.detached(async move { this.list_now(prefix, after).await }).await
    }
}
