//! A disk in memory for tests of the log: what a sync covers, what a power cut leaves, faults on demand.
//!
//! Invariant: a power cut decides about each page of each write that no sync has covered on its own.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use bytes::Bytes;

use super::super::std::sync::{Mutex, MutexGuard};
use super::super::upkeep::fake::World;
use crate::client::wait::lock;
use crate::env::{Disk, DiskError, Env};
use crate::testkit::rng::Rng;

const PAGE: usize = 4096;

#[derive(Clone, Default)]
pub(crate) struct File {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Pages that were written since a sync.
    dirty: BTreeSet<usize>,
    named: bool,
}

/// How often calls fail, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) write: u64,
    pub(crate) full: u64,
    pub(crate) sync: u64,
    pub(crate) read: u64,
    pub(crate) torn: u64,
}

pub(crate) struct State {
    files: BTreeMap<u64, File>,
    /// Without a name.
    pub(crate) detached: BTreeMap<u64, File>,
    pub(crate) aside: Vec<u64>,
    pub(crate) owner: Option<Bytes>,
    pub(crate) rates: Rates,
    dice: Rng,
    pub(crate) syncs: u64,
}

/// The disk; clones are the same one.
#[derive(Clone)]
pub(crate) struct FakeDisk {
    world: World,
    state: Arc<Mutex<State>>,
}

impl FakeDisk {
    pub(crate) fn new(world: &World, seed: u64) -> Self {
        let state = State {
            files: BTreeMap::new(),
            detached: BTreeMap::new(),
            aside: Vec::new(),
            owner: None,
            rates: Rates::default(),
            dice: Rng::new(seed),
            syncs: 0,
        };
        Self { world: world.clone(), state: Arc::new(Mutex::new(state)) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn power_cut(&self) {
        let mut state = self.state();
        let State { files, detached, dice, .. } = &mut *state;
        detached.clear();
        files.retain(|_, file| file.named || dice.below(2) == 0);
        for file in files.values_mut() {
            let mut left = file.durable.clone();
            for page in core::mem::take(&mut file.dirty) {
                let range = page * PAGE..file.bytes.len().min((page + 1) * PAGE);
                if dice.below(2) == 0 && !range.is_empty() {
                    left.resize(left.len().max(range.end), 0);
                    left[range.clone()].copy_from_slice(&file.bytes[range]);
                }
            }
            file.bytes = left.clone();
            file.durable = left;
            file.named = true;
        }
    }

    /// Changes a byte of a segment for good.
    pub(crate) fn rot(&self, segment: u64, at: usize) {
        let mut state = self.state();
        let file = state.files.get_mut(&segment).expect("there is such a segment");
        file.bytes[at] ^= 1;
        file.durable[at] ^= 1;
    }

    /// All segments as they are.
    pub(crate) fn files(&self) -> BTreeMap<u64, File> {
        self.state().files.clone()
    }

    /// Nothing has happened since `files` was called.
    pub(crate) fn restore(&self, files: BTreeMap<u64, File>) {
        self.state().files = files;
    }

    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.state().files.keys().copied().collect()
    }
}

impl State {
    fn strikes(&mut self, percent: u64) -> bool {
        self.dice.below(100) < percent
    }
}

impl Disk for FakeDisk {
    async fn segments(&self) -> Result<Vec<(u64, u64)>, DiskError> {
        self.world.pause().await;
        Ok(self.state().files.iter().map(|(number, file)| (*number, file.bytes.len() as u64)).collect())
    }

    async fn create(&self, segment: u64) -> Result<(), DiskError> {
        self.world.pause().await;
        self.state().files.insert(segment, File::default());
        Ok(())
    }

    async fn write(&self, segment: u64, at: u64, body: Vec<Bytes>) -> Result<(), DiskError> {
        self.world.pause().await;
        let mut body = body.concat();
        let mut state = self.state();
        let rates = state.rates;
        let (failed, full) = (state.strikes(rates.write), state.strikes(rates.full));
        if failed || full {
            let part = state.dice.below(body.len() as u64 + 1) as usize;
            body.truncate(part);
        }
        let file = state.files.get_mut(&segment).ok_or(DiskError::Missing)?;
        let range = at as usize..at as usize + body.len();
        file.bytes.resize(file.bytes.len().max(range.end), 0);
        file.bytes[range.clone()].copy_from_slice(&body);
        file.dirty.extend(range.start / PAGE..range.end.div_ceil(PAGE));
        match (failed, full) {
            (true, _) => Err(DiskError::Failed),
            (false, true) => Err(DiskError::Full),
            (false, false) => Ok(()),
        }
    }

    async fn sync(&self, segment: u64) -> Result<(), DiskError> {
        let covered = {
            let mut state = self.state();
            let file = state.files.get_mut(&segment).ok_or(DiskError::Missing)?;
            let dirty = core::mem::take(&mut file.dirty);
            let page = |page: usize| (page, file.bytes[page * PAGE..file.bytes.len().min((page + 1) * PAGE)].to_vec());
            dirty.into_iter().map(page).collect::<Vec<_>>()
        };
        self.world.pause().await;
        let mut state = self.state();
        state.syncs += 1;
        let rates = state.rates;
        if state.strikes(rates.sync) {
            // What it was for counts as written and is not.
            return Err(DiskError::Failed);
        }
        let file = state.files.get_mut(&segment).ok_or(DiskError::Missing)?;
        file.named = true;
        for (page, bytes) in covered {
            let range = page * PAGE..page * PAGE + bytes.len();
            file.durable.resize(file.durable.len().max(range.end), 0);
            file.durable[range].copy_from_slice(&bytes);
        }
        Ok(())
    }

    async fn read(&self, segment: u64, range: Range<u64>) -> Result<Bytes, DiskError> {
        self.world.pause().await;
        let mut state = self.state();
        let rates = state.rates;
        if state.strikes(rates.read) {
            return Err(DiskError::Failed);
        }
        let torn = state.strikes(rates.torn);
        let file = state.files.get(&segment).or_else(|| state.detached.get(&segment)).ok_or(DiskError::Missing)?;
        let found = file.bytes.get(range.start as usize..range.end as usize).ok_or(DiskError::Missing)?;
        let mut found = found.to_vec();
        if torn && !found.is_empty() {
            let at = state.dice.below(found.len() as u64) as usize;
            found[at] ^= 1;
        }
        Ok(found.into())
    }

    async fn remove(&self, segment: u64) -> Result<(), DiskError> {
        self.world.pause().await;
        self.state().files.remove(&segment);
        Ok(())
    }

    async fn detach(&self, segment: u64) -> Result<(), DiskError> {
        self.world.pause().await;
        let mut state = self.state();
        if let Some(file) = state.files.remove(&segment) {
            state.detached.insert(segment, file);
        }
        Ok(())
    }

    async fn release(&self, segment: u64) {
        self.world.pause().await;
        self.state().detached.remove(&segment);
    }

    async fn set_aside(&self, segment: u64) -> Result<(), DiskError> {
        self.world.pause().await;
        let mut state = self.state();
        state.files.remove(&segment);
        state.aside.push(segment);
        Ok(())
    }

    async fn owner(&self) -> Result<Option<Bytes>, DiskError> {
        self.world.pause().await;
        Ok(self.state().owner.clone())
    }

    async fn set_owner(&self, owner: Bytes) -> Result<(), DiskError> {
        self.world.pause().await;
        self.state().owner = Some(owner);
        Ok(())
    }
}
