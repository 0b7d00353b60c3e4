//! Packs in the store: putting them, finding what is in them, removing those that nothing needs, rewriting those that are
//! mostly dead.
//!
//! Owns: the order of put, barrier and metadata for packs. Leaves to others: what goes into a pack (`store::log`), what the
//! metadata says (`meta::packs`).
//!
//! Invariants
//! - The metadata knows of a pack, durably, before it is put: one that a mount has left half-way is found there.
//! - A block is said to be in a pack only after a barrier that began when the pack had been put; its log record goes, and
//!   the pack that it was in before, only after that is durable.
//! - A pack is deleted only after the transaction that took its last block away is durable.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use bytes::Bytes;

use super::super::std::sync::Mutex;
use super::{Answer, Inner, LogError, LogOptions, Logged, Staging};
use crate::client::load_volume;
use crate::client::upkeep::UpkeepError;
use crate::client::wait::{Notify, lock, race};
use crate::env::{Disk, Env, MetaError, MetaStore, ObjectPage, ObjectStore, StoreError, TxnSeq};
use crate::format::block::{LEASE_SLICES, object_key, parse_key};
use crate::format::pack::{blocks, pack_key};
use crate::format::values::{Pack, Packed, Volume};
use crate::marks::{Mark, reached, reached_if};
use crate::meta;
use crate::meta::packs::{Member, Origin};
use crate::planted::{self, Bug};
use crate::store::log::{Packing, Stored};
use crate::store::window::Windows;
use crate::types::{BlockId, PackId, SliceId, VolumeId};

/// Between two attempts of something that failed.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause: a pack is one object of a few.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A put of which nothing is known takes effect within this time, or never.
const SETTLE: Duration = Duration::from_secs(60);
/// Packs that are looked at in one go: bounds memory and transactions.
const BATCH: usize = 16;
/// Packs of which the metadata is read at once.
const PAGE: usize = 256;
/// Where a block was sought and its pack had gone, it is looked for again so many times.
const MOVES: u32 = 8;
/// Packs that are rewritten have numbers of their own, as the log counts by itself.
const REWRITTEN: u32 = 1 << 31;

/// What is known of packs besides the metadata.
#[derive(Default)]
pub(super) struct Packs {
    /// The volume may have some.
    any: AtomicBool,
    windows: Mutex<Windows>,
    state: Mutex<State>,
    /// `state` has changed.
    changed: Notify,
}

impl Packs {
    /// `any`: the volume may have some.
    pub(super) fn new(any: bool) -> Self {
        Self { any: any.into(), ..Self::default() }
    }
}

#[derive(Default)]
struct State {
    /// Where new packs belong to, once there may be any.
    home: Option<Home>,
    /// Packs of earlier mounts behind this one are yet to be looked at.
    unseen: Option<PackId>,
    /// Packs that nothing needs. With the time from which on a second delete is due where a put may come late.
    dead: BTreeMap<PackId, Option<Duration>>,
    /// Packs of which little is in use, and from when on they are rewritten.
    thin: BTreeSet<PackId>,
    thin_at: Duration,
    /// Packs of this mount of which a put has failed, so it may take effect late.
    doubtful: BTreeSet<PackId>,
    next: u32,
    /// The last transaction that took a block out of a pack.
    unpacked: TxnSeq,
    running: bool,
    stopping: bool,
}

impl State {
    fn has_work(&self) -> bool {
        !self.stopping && (self.unseen.is_some() || !self.dead.is_empty() || !self.thin.is_empty())
    }
}

#[derive(Clone, Copy)]
struct Home {
    volume: VolumeId,
    frame_size: u32,
    mount: u64,
    size: u64,
    rest: Duration,
}

impl<E: Env, D: Disk> Logged<E, D> {
    /// Looks after the packs of the volume, if it has any: removes what earlier mounts left, rewrites what is mostly dead.
    /// For mounts that write and have no log; opening one does it.
    pub async fn tend(&self) -> Result<(), LogError> {
        let volume = load_volume(&self.env).await?;
        if volume.packs {
            let taken = self.env.meta().write(|txn| meta::session::take_id(txn, 1)).await?;
            self.env.meta().sync(taken.seq).await?;
            self.objects.0.tend_all(&volume, taken.value, &LogOptions::default());
        }
        Ok(())
    }
}

impl<E: Env, D: Disk> Inner<E, D> {
    /// Looks after the packs of the volume from here on, as `mount`.
    pub(super) fn tend_all(self: &Arc<Self>, volume: &Volume, mount: u64, options: &LogOptions) {
        {
            let mut state = lock(&self.packs.state);
            let (frame_size, size, rest) = (volume.geometry.frame_size, options.pack_size, options.pack_rest);
            state.home = Some(Home { volume: volume.id, frame_size, mount, size, rest });
            state.unseen = volume.packs.then_some(PackId(0));
        }
        self.tend();
    }

    /// Where a block is, if it is in a pack, and the length of that.
    async fn find(&self, slice: SliceId, index: u32) -> Result<Option<(Packed, u32)>, StoreError> {
        if !self.packs.any.load(Ordering::Acquire) {
            return Ok(None);
        }
        let found = self.env.meta().read(|read| meta::packs::find_in(read, slice, index)).await;
        found.map_err(|_| StoreError::Retry)
    }

    // ---- finding

    /// `range` of an object that the log does not have.
    pub(super) async fn stored(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let Some((slice, index)) = parse_key(key) else { return self.env.objects().get(key, range).await };
        let mut last = None;
        for _ in 0..MOVES {
            let Some((packed, len)) = self.find(slice, index).await? else {
                return self.env.objects().get(key, range).await;
            };
            if u64::from(packed.len) < range.end {
                return Err(StoreError::Short);
            }
            let at = u64::from(packed.at);
            match self.fetch(packed.pack, u64::from(len), at + range.start..at + range.end).await {
                // The block has moved to another pack, or it is lost.
                Err(StoreError::NotFound) if last != Some(packed.pack) => last = Some(packed.pack),
                other => {
                    reached_if(Mark::PackRead, || other.is_ok());
                    return other;
                }
            }
        }
        Err(StoreError::Retry)
    }

    /// `range` of a pack of `len` bytes, and of what lies behind it as much as pays.
    async fn fetch(&self, pack: PackId, len: u64, range: Range<u64>) -> Result<Bytes, StoreError> {
        let plan = {
            let mut windows = lock(&self.packs.windows);
            if let Some(bytes) = windows.find(pack, &range) {
                reached(Mark::PackReadAhead);
                return Ok(bytes);
            }
            windows.plan(pack, &range, len)
        };
        let bytes = self.env.objects().get(&pack_key(pack), plan.clone()).await?;
        Ok(lock(&self.packs.windows).keep(pack, plan.start, bytes, range.end - range.start))
    }

    /// A page of what the store has: objects, and what is in packs.
    pub(super) async fn list_stored(&self, prefix: &str, after: Option<&str>) -> Result<ObjectPage, StoreError> {
        // The metadata first: what moves out of a pack meanwhile moves into another one.
        let packed = self.list_packed(prefix, after).await.map_err(|_| StoreError::Retry)?;
        let mut page = self.env.objects().list(prefix, after).await?;
        let packed = packed.into_iter().filter(|key| page.next.as_ref().is_none_or(|next| key <= next));
        if !planted::is(Bug::PackUnlisted) {
            page.keys.extend(packed);
            page.keys.sort_unstable();
            page.keys.dedup();
        }
        Ok(page)
    }

    /// Keys in packs, of which those of one lease or all are listed.
    async fn list_packed(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>, MetaError> {
        let Some(lease) = prefix.strip_prefix("blocks/").filter(|_| self.packs.any.load(Ordering::Acquire)) else {
            return Ok(Vec::new());
        };
        let (start, end) = match u64::from_str_radix(lease.trim_end_matches('/'), 16) {
            Ok(lease) => (lease * LEASE_SLICES, (lease + 1) * LEASE_SLICES),
            Err(_) if lease.is_empty() => (0, u64::MAX),
            Err(_) => return Ok(Vec::new()),
        };
        let before = start.checked_sub(1).map(|before| (SliceId(before), u32::MAX));
        let (mut from, end) = (after.and_then(parse_key).or(before), SliceId(end));
        let mut keys = Vec::new();
        loop {
            let page = self.env.meta().read(|read| meta::packs::list(read, from, end, 256)).await?;
            let Some(last) = page.last().copied() else { return Ok(keys) };
            keys.extend(page.into_iter().map(|(slice, index)| object_key(BlockId { slice, index, len: 1 })));
            from = Some(last);
        }
    }

    // ---- putting

    /// Puts a pack, until it is in the store or the log is closed.
    pub(super) async fn upload_pack(self: Arc<Self>, packing: Packing) {
        let staging = self.staging();
        let done = self.try_upload_pack(staging, &packing).await;
        self.env.pause().await;
        reached_if(Mark::PackPut, || done);
        lock(&staging.state).log.handle_pack(self.env.now(), packing.pack, done);
        staging.changed.notify_all();
        self.pump();
        self.tidy();
    }

    async fn try_upload_pack(&self, staging: &Staging<D>, packing: &Packing) -> bool {
        let mut body = Vec::new();
        for member in &packing.members {
            let Some(bytes) = self.staged(staging, member).await else { return false };
            body.extend(bytes);
        }
        let mut pause = PAUSE;
        while !lock(&staging.state).stopping {
            match self.put_pack(packing.pack, &body).await {
                Ok(()) => return true,
                Err(UpkeepError::Meta(MetaError::Failed)) => return false,
                Err(error) => {
                    tracing::debug!(pack = packing.pack.0, %error, "a pack stays in the write-back log for now")
                }
            }
            reached(Mark::PackPutRetried);
            self.env.sleep_until(self.env.now() + pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
        false
    }

    async fn put_pack(&self, pack: PackId, body: &[Bytes]) -> Result<(), UpkeepError> {
        self.packs.any.store(true, Ordering::Release);
        let begun = self.env.meta().write(|txn| meta::packs::begin(txn, pack)).await?;
        if !planted::is(Bug::PackUnannounced) {
            self.env.meta().sync(begun.seq).await?;
        }
        let put = self.env.objects().put(&pack_key(pack), body.to_vec()).await;
        self.env.pause().await;
        if put.is_err() {
            lock(&self.packs.state).doubtful.insert(pack);
        }
        Ok(put?)
    }

    /// Tells the metadata what is in a pack that a barrier has covered. False: it is to be told again.
    pub(super) async fn record(self: &Arc<Self>, staging: &Staging<D>, pack: PackId) -> bool {
        let (len, stored) = lock(&staging.state).log.begin_recording(pack);
        let members: Vec<_> = stored.iter().filter_map(member_of).map(|member| (member, Origin::Anywhere)).collect();
        // All that was in it was deleted meanwhile.
        let told = if members.is_empty() { Ok(vec![pack]) } else { self.tell(pack, len as u32, &members).await };
        self.env.pause().await;
        if let Err(error) = &told {
            tracing::debug!(pack = pack.0, %error, "what is in a pack stays in the write-back log for now");
        }
        {
            let mut state = lock(&staging.state);
            // Whether that is so shows when the store is opened again.
            state.untold |= told == Err(MetaError::Failed);
            state.log.handle_recorded(pack, &stored, told.is_ok());
        }
        staging.changed.notify_all();
        if let Ok(emptied) = &told {
            self.bury(emptied);
            // Some of what was in it may have been deleted meanwhile.
            let live = members.iter().map(|(member, _)| member.len).sum();
            self.weigh(pack, &Pack { len: len as u32, live, condemned: false });
        }
        told.is_ok()
    }

    /// Which packs that has left without a block.
    async fn tell(&self, pack: PackId, len: u32, members: &[(Member, Origin)]) -> Result<Vec<PackId>, MetaError> {
        let told = self.env.meta().write(|txn| meta::packs::move_to(txn, pack, len, members)).await?;
        if !planted::is(Bug::PackUnsynced) {
            self.env.meta().sync(told.seq).await?;
        }
        Ok(told.value)
    }

    // ---- removing

    /// The block leaves its pack, if it is in one.
    pub(super) async fn unpack(self: &Arc<Self>, key: &str) -> Answer {
        let Some((slice, index)) = parse_key(key) else { return Ok(()) };
        // Most are in none.
        let Some((there, _)) = self.find(slice, index).await? else { return Ok(()) };
        let Ok(removed) = self.env.meta().write(|txn| meta::packs::remove(txn, slice, index)).await else {
            // It may have been the last one.
            self.bury(&[there.pack]);
            return Err(StoreError::Retry);
        };
        {
            let mut state = lock(&self.packs.state);
            state.unpacked = state.unpacked.max(removed.seq);
        }
        match removed.value {
            Some((packed, pack)) if pack.live == 0 => self.bury(&[packed.pack]),
            Some((packed, pack)) => self.weigh(packed.pack, &pack),
            None => {}
        }
        Ok(())
    }

    /// Has a pack rewritten if most of it is dead.
    fn weigh(self: &Arc<Self>, pack: PackId, known: &Pack) {
        if !known.is_thin() {
            return;
        }
        {
            let mut state = lock(&self.packs.state);
            state.thin.insert(pack);
            state.thin_at = self.env.now() + state.home.map_or(Duration::ZERO, |home| home.rest);
        }
        self.tend();
    }

    /// The last transaction that a delete has waited for.
    pub(super) fn unpacked(&self) -> TxnSeq {
        lock(&self.packs.state).unpacked
    }

    /// Makes deletes from packs durable.
    pub(super) async fn sync_unpacked(&self, through: TxnSeq) -> Answer {
        if through <= self.env.meta().synced() {
            return Ok(());
        }
        self.env.meta().sync(through).await.map_err(|_| StoreError::Retry)
    }

    /// Nothing is in these packs.
    fn bury(self: &Arc<Self>, packs: &[PackId]) {
        if packs.is_empty() {
            return;
        }
        {
            let mut state = lock(&self.packs.state);
            for pack in packs {
                state.thin.remove(pack);
                state.dead.insert(*pack, None);
            }
        }
        self.tend();
    }

    /// Has the task run that removes and rewrites packs, unless it does.
    fn tend(self: &Arc<Self>) {
        {
            let mut state = lock(&self.packs.state);
            if !state.has_work() || state.home.is_none() || core::mem::replace(&mut state.running, true) {
                drop(state);
                self.packs.changed.notify_all();
                return;
            }
        }
        let inner = self.clone();
        self.env.spawn(async move {
            inner.work().await;
            lock(&inner.packs.state).running = false;
            inner.packs.changed.notify_all();
            // What came in between.
            inner.tend();
        });
    }

    async fn work(self: &Arc<Self>) {
        let mut pause = PAUSE;
        loop {
            self.env.pause().await;
            let (unseen, due, rewrites, later) = {
                let state = lock(&self.packs.state);
                if !state.has_work() {
                    return;
                }
                let now = self.env.now();
                let is_due = |at: &Option<Duration>| at.is_none_or(|at| at <= now);
                let due: Vec<PackId> =
                    state.dead.iter().filter(|(_, at)| is_due(at)).map(|(pack, _)| *pack).take(BATCH).collect();
                let thin_at = (!state.thin.is_empty()).then_some(state.thin_at);
                let later = state.dead.values().copied().flatten().chain(thin_at).min();
                (state.unseen, due, thin_at.is_some_and(|at| at <= now), later)
            };
            let done = match unseen {
                Some(after) => self.look_behind(after).await,
                None if !due.is_empty() => self.remove(&due).await,
                None if rewrites => self.rewrite().await,
                None => {
                    // There is nothing to do but to wait.
                    let Some(until) = later else { return };
                    race(self.stirred(false), self.env.sleep_until(until)).await;
                    continue;
                }
            };
            pause = match done {
                Ok(()) => PAUSE,
                Err(error) => {
                    tracing::debug!(%error, "packs that are not needed stay for now");
                    let pause = (2 * pause).min(PAUSE_MAX);
                    race(self.stirred(true), self.env.sleep_until(self.env.now() + pause)).await;
                    pause
                }
            };
        }
    }

    /// Looks at some packs of earlier mounts behind this one.
    async fn look_behind(&self, after: PackId) -> Result<(), UpkeepError> {
        let page = self.env.meta().read(|read| meta::packs::all(read, Some(after), PAGE)).await?;
        let mut state = lock(&self.packs.state);
        let mount = state.home.map_or(0, |home| home.mount);
        state.unseen = page.last().map(|(pack, _)| *pack);
        // Of its own this mount knows.
        for (pack, known) in page.into_iter().filter(|(pack, _)| pack.mount() != mount) {
            if known.live == 0 {
                state.dead.entry(pack).or_insert(None);
            } else if known.is_thin() {
                state.thin.insert(pack);
            }
        }
        Ok(())
    }

    /// Completes when the task is to end, and, unless what it does has `failed`, when there is more to do.
    async fn stirred(&self, failed: bool) {
        loop {
            let changed = self.packs.changed.listen();
            {
                let state = lock(&self.packs.state);
                if state.stopping || !failed && state.dead.values().any(Option::is_none) {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Deletes packs in which nothing is. Those of which a put may come late are deleted again after a while.
    async fn remove(&self, packs: &[PackId]) -> Result<(), UpkeepError> {
        let meta = self.env.meta();
        let condemned = meta.write(|txn| meta::packs::condemn(txn, packs)).await?;
        meta.sync(condemned.seq).await?;
        let condemned = condemned.value;
        // The others are in use after all, or gone.
        packs.iter().filter(|pack| !condemned.contains(pack)).for_each(|pack| {
            lock(&self.packs.state).dead.remove(pack);
        });
        for pack in &condemned {
            match self.env.objects().delete(&pack_key(*pack)).await {
                Ok(()) | Err(StoreError::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.env.objects().barrier().await?;
        let mut gone = Vec::new();
        {
            let mut state = lock(&self.packs.state);
            let mount = state.home.map(|home| home.mount);
            for pack in &condemned {
                let sure = Some(pack.mount()) == mount && !state.doubtful.contains(pack);
                let sure = sure || planted::is(Bug::PackDeletedOnce);
                let again = state.dead.get(pack).copied().flatten().is_some();
                if sure || again {
                    gone.push(*pack);
                } else {
                    reached(Mark::PackDeletedAgain);
                    state.dead.insert(*pack, Some(self.env.now() + SETTLE));
                }
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        meta.write(|txn| meta::packs::forget(txn, &gone)).await?;
        let mut state = lock(&self.packs.state);
        for pack in &gone {
            state.dead.remove(pack);
            state.doubtful.remove(pack);
        }
        reached(Mark::PackRemoved);
        Ok(())
    }

    // ---- rewriting

    /// Writes what is in use of some packs into a new one.
    async fn rewrite(self: &Arc<Self>) -> Result<(), UpkeepError> {
        let (home, thin, new) = {
            let mut state = lock(&self.packs.state);
            let Some(home) = state.home else { return Ok(()) };
            let thin: Vec<PackId> = state.thin.iter().copied().take(BATCH).collect();
            state.next += 1;
            (home, thin, PackId::new(home.mount, REWRITTEN | state.next))
        };
        let (mut body, mut members, mut len, mut seen) = (Vec::new(), Vec::new(), 0_u32, Vec::new());
        for pack in thin {
            let live = self.in_use(&home, pack).await?;
            if live.is_empty() {
                // Told by nobody: what became of an earlier transaction was unknown.
                self.bury(&[pack]);
                continue;
            }
            let more: usize = live.iter().map(|(_, bytes)| bytes.len()).sum();
            if !members.is_empty() && home.size < u64::from(len) + more as u64 {
                break;
            }
            seen.push(pack);
            for (member, bytes) in live {
                members.push((Member { at: len, ..member }, Origin::Pack(pack)));
                len += member.len;
                body.push(bytes);
            }
        }
        if !members.is_empty() {
            match self.put_rewritten(new, &body, len, &members).await {
                Ok(emptied) => self.bury(&emptied),
                Err(error) => {
                    // The next attempt makes another one.
                    self.bury(&[new]);
                    return Err(error);
                }
            }
            reached(Mark::PackRewritten);
        }
        lock(&self.packs.state).thin.retain(|pack| !seen.contains(pack));
        Ok(())
    }

    async fn put_rewritten(
        &self,
        pack: PackId,
        body: &[Bytes],
        len: u32,
        members: &[(Member, Origin)],
    ) -> Result<Vec<PackId>, UpkeepError> {
        self.put_pack(pack, body).await?;
        self.env.objects().barrier().await?;
        Ok(self.tell(pack, len, members).await?)
    }

    /// The blocks that are in a pack still, verified, with their objects.
    async fn in_use(&self, home: &Home, pack: PackId) -> Result<Vec<(Member, Bytes)>, UpkeepError> {
        let len = self.env.meta().read(|read| meta::packs::length(read, pack)).await?;
        let bytes = match self.env.objects().get(&pack_key(pack), 0..u64::from(len)).await {
            Ok(bytes) => bytes,
            // fsck names what is lost.
            Err(StoreError::NotFound | StoreError::Short) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let found = match blocks(home.volume, home.frame_size, &bytes) {
            Ok(found) => found,
            Err(error) => {
                // The answer may be torn; what is damaged for good stays, and fsck finds it.
                tracing::warn!(pack = pack.0, %error, "a pack cannot be rewritten");
                return Ok(Vec::new());
            }
        };
        let mut live = Vec::new();
        for (id, range) in found {
            let packed = self.env.meta().read(|read| meta::packs::find(read, id.slice, id.index)).await?;
            let Some(packed) = packed.filter(|packed| packed.pack == pack && packed.at as usize == range.start) else {
                continue;
            };
            let member = Member { slice: id.slice, index: id.index, at: 0, len: packed.len };
            live.push((member, bytes.slice(range)));
        }
        Ok(live)
    }

    /// Waits for the end of the task; nothing is deleted or rewritten after that.
    pub(super) async fn close_packs(&self) {
        lock(&self.packs.state).stopping = true;
        self.packs.changed.notify_all();
        loop {
            let changed = self.packs.changed.listen();
            if !lock(&self.packs.state).running {
                return;
            }
            changed.await;
        }
    }
}

fn member_of(stored: &Stored) -> Option<Member> {
    let (slice, index) = parse_key(&stored.key)?;
    Some(Member { slice, index, at: stored.at as u32, len: stored.len as u32 })
}
