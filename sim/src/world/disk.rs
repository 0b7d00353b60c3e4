//! The simulated disk of the write-back log.
//!
//! Owns: the segment files as reads show them and as a power cut leaves them, the owner's file, calls under way, which
//! objects the files hold.
//! Leaves to others: which faults strike (`faults`), which slices are referred to (`meta`), what the log makes of its
//! files (`kiseki_core::client`).
//!
//! Invariants
//! - Only a sync makes writes and the name of their segment durable, and only writes that had returned without an error
//!   before it began. A power cut decides about each page of each other write on its own.
//! - Pages that a failed sync was for are clean: reads show them, no later sync covers them. They may be gone as soon as
//!   the client is.
//! - A removal and an owner are durable when their call has returned; until then a power cut decides.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::env::{Disk, DiskError};
use kiseki_core::format::block;
use kiseki_core::format::log::{PAGE, RECORD_LEN, Segment as Head};
use madsim::time::{self, TimeHandle};

use super::Parts;
use super::objects::SimObjects;
use super::references::References;
use crate::dice::Dice;
use crate::faults::{Ending, Fault};

/// Usual time of one step of a call.
const LATENCY: Duration = Duration::from_micros(300);
/// Usual time of a sync.
const SYNC: Duration = Duration::from_millis(2);
/// Longest time of a slow sync, and of any other slow call: the first is longer than the deadline of a wait.
const SLOW_SYNC: Duration = Duration::from_secs(10);
const SLOW: Duration = Duration::from_secs(1);
/// How long a segment is spared after a damaged answer: longer than it is asked for again.
const SPARED: Duration = Duration::from_secs(3);

/// What of one write lies in one page.
#[derive(Debug)]
struct Piece {
    write: u64,
    at: u64,
    bytes: Bytes,
    /// Its write returned without an error.
    returned: bool,
    /// A sync of it has failed: no other covers it.
    lost: bool,
}

#[derive(Debug, Default)]
struct File {
    /// As reads show it.
    bytes: Vec<u8>,
    /// As a power cut leaves it, but for `pieces`.
    synced: Vec<u8>,
    /// A power cut leaves its name.
    named: bool,
    /// What no sync has covered, in the order of the writes.
    pieces: Vec<Piece>,
    /// What a power cut leaves, or this file: the one that it took the place of.
    replaced: Option<Vec<u8>>,
    /// The header that the log has written to it.
    head: Option<(Head, Bytes)>,
    /// Pages that were written to, by where a write began: where they end, and whether it has them to itself.
    claims: BTreeMap<u64, (u64, bool)>,
}

impl File {
    /// What a power cut leaves of it, if its name is left.
    fn cut(self, dice: &Dice) -> Option<Self> {
        if !self.named && dice.chance(500) {
            let bytes = self.replaced?;
            return Some(Self { synced: bytes.clone(), bytes, named: true, ..Self::default() });
        }
        let (mut bytes, len) = (self.synced, self.bytes.len());
        // All, nothing, and anything between.
        let odds = [1000, 0, 500, 500][dice.below(4) as usize];
        for piece in self.pieces.iter().filter(|_| dice.chance(odds)) {
            put(&mut bytes, piece);
        }
        // The length may be durable before the bytes are; zeros may have been written ahead.
        if dice.chance(333) {
            bytes.resize(len.max(bytes.len()) + (dice.below(3) * PAGE) as usize, 0);
        }
        Some(Self { synced: bytes.clone(), bytes, named: true, head: self.head, ..Self::default() })
    }

    /// Its process is gone: pages that nothing will write may leave memory, all others are as good as any.
    fn orphan(&mut self, dice: &Dice) {
        self.pieces.iter_mut().for_each(|piece| piece.returned = true);
        let before = self.pieces.len();
        self.pieces.retain(|piece| !piece.lost || dice.chance(500));
        if self.pieces.len() < before {
            let len = self.bytes.len();
            self.bytes.clone_from(&self.synced);
            self.pieces.iter().for_each(|piece| put(&mut self.bytes, piece));
            self.bytes.resize(len, 0);
        }
    }
}

fn put(bytes: &mut Vec<u8>, piece: &Piece) {
    let (at, end) = (piece.at as usize, piece.at as usize + piece.bytes.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(&piece.bytes);
}

/// A write under way.
#[derive(Debug)]
struct Write {
    segment: u64,
    at: u64,
    body: Bytes,
}

impl Write {
    /// Its parts in each page.
    fn pieces(&self) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        let end = self.at + self.body.len() as u64;
        let starts =
            std::iter::successors(Some(self.at), |at| Some((at / PAGE + 1) * PAGE)).take_while(move |at| *at < end);
        starts.map(move |at| {
            let stop = ((at / PAGE + 1) * PAGE).min(end);
            (at, self.body.slice((at - self.at) as usize..(stop - self.at) as usize))
        })
    }
}

/// What becomes of a segment that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removal {
    Whole,
    /// It can still be read.
    Open,
    /// It has another name.
    Aside,
}

/// Which pages of a write take effect.
#[derive(Clone, Copy, Debug)]
enum Extent {
    All,
    /// Up to one of them.
    Prefix,
    /// Each by itself.
    Some,
}

/// A record that the log has written, and where.
#[derive(Clone, Debug)]
struct Place {
    segment: u64,
    at: u64,
    whole: Bytes,
    body_len: u64,
}

impl Place {
    /// The next mount finds it: it is whole, and so is the header of its segment.
    fn is_found_in(&self, files: &BTreeMap<u64, File>) -> bool {
        files.get(&self.segment).is_some_and(|file| {
            let head = file.head.as_ref().is_some_and(|(_, head)| file.bytes.starts_with(head));
            head && file.bytes.get(self.range()) == Some(&self.whole)
        })
    }

    fn range(&self) -> Range<usize> {
        self.at as usize..self.at as usize + self.whole.len()
    }
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, File>,
    /// Files that are being removed: a power cut may bring them back.
    going: BTreeMap<u64, File>,
    /// Files without a name that are open.
    detached: BTreeMap<u64, File>,
    /// Files under another name.
    aside: BTreeSet<u64>,
    owner: Option<Bytes>,
    owner_synced: Option<Bytes>,
    /// Writes that may still take effect, by number.
    writes: BTreeMap<u64, Write>,
    next_write: u64,
    /// Lives of clients; what a dead one began has no effect.
    epoch: u64,
    /// Segments of which a damaged answer was given, and until when no other is.
    torn: BTreeMap<u64, Duration>,
    /// Records of objects that are in the files, by key.
    places: BTreeMap<String, Vec<Place>>,
    /// Records that say that an object was deleted.
    deletes: BTreeMap<String, Vec<Place>>,
}

impl State {
    /// A write takes effect.
    fn apply(&mut self, number: u64, extent: Extent, dice: &Dice) {
        // A crash has decided about it in the meantime.
        let Some(write) = self.writes.remove(&number) else { return };
        let Some(file) = self.files.get_mut(&write.segment) else { return };
        let pages = write.pieces().count() as u64;
        let most = match extent {
            Extent::All | Extent::Some => pages,
            Extent::Prefix => dice.below(pages.max(1)),
        };
        for (at, bytes) in write.pieces().take(most as usize) {
            if matches!(extent, Extent::Some) && dice.chance(500) {
                continue;
            }
            let piece = Piece { write: number, at, bytes, returned: false, lost: false };
            put(&mut file.bytes, &piece);
            file.pieces.push(piece);
        }
    }

    /// Whether a power cut leaves the record.
    fn keeps(&self, place: &Place) -> bool {
        let Some(file) = self.files.get(&place.segment) else { return false };
        let head = file.head.as_ref().is_some_and(|(_, head)| file.synced.starts_with(head));
        file.named && head && file.synced.get(place.range()) == Some(&place.whole)
    }

    /// Objects of which the last record is not that they were deleted.
    fn found(&self) -> BTreeSet<String> {
        let last =
            |places: Option<&Vec<Place>>| places.into_iter().flatten().map(|place| (place.segment, place.at)).max();
        let found = self.places.iter().filter(|(key, places)| last(self.deletes.get(*key)) < last(Some(places)));
        found.map(|(key, _)| key.clone()).collect()
    }

    /// Forgets all records but those that are to `stay`. Returns the objects of which none is left.
    fn forget(&mut self, stay: impl Fn(&Place, &BTreeMap<u64, File>) -> bool) -> Vec<String> {
        let Self { places, deletes, files, .. } = self;
        let mut gone = Vec::new();
        places.retain(|key, places| {
            places.retain(|place| stay(place, files));
            if places.is_empty() {
                gone.push(key.clone());
            }
            !places.is_empty()
        });
        deletes.retain(|_, places| {
            places.retain(|place| stay(place, files));
            !places.is_empty()
        });
        gone
    }

    /// Whether a power cut leaves a record of the object whose body is that long.
    fn holds(&self, key: &str, len: u64) -> bool {
        let mut places = self.places.get(key).into_iter().flatten();
        places.any(|place| place.body_len == len && self.keeps(place))
    }
}

/// What a record says, by its header alone.
struct Said {
    /// It holds the object; else it says that it was deleted.
    put: bool,
    key: String,
    /// Where what it holds begins.
    body_at: u64,
}

/// Reads a record as the log writes it, without its help.
fn record(whole: &[u8]) -> Option<Said> {
    let number =
        |range: Range<usize>| whole.get(range)?.iter().try_fold(0, |sum, byte| Some(sum << 8 | u64::from(*byte)));
    let (kind, key_len, len) = (number(4..6)?, number(6..8)?, number(8..16)?);
    let key_end = RECORD_LEN + key_len;
    let body_at = if kind == 3 { key_end.next_multiple_of(PAGE) } else { key_end };
    if !whole.starts_with(b"KWR1") || body_at + len != whole.len() as u64 {
        return None;
    }
    let key = std::str::from_utf8(whole.get(RECORD_LEN as usize..key_end as usize)?).ok()?;
    Some(Said { put: matches!(kind, 1 | 3), key: key.to_string(), body_at })
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

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
