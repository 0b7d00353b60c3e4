//! What a power cut may leave of a store: a course of calls that is cut short anywhere, and one verdict, for the real
//! stores and for their fakes.
//!
//! Owns: the calls, and what may be left of them. Leaves to others: making stores, executors, and the cut. It is async
//! because the stores that it drives are; it waits for nothing but the store.
//!
//! - Of metadata, a prefix of the transactions is left, each whole, with all that a sync has covered.
//! - An object that was put before a barrier is left, whole; one that was deleted before a barrier is not. Of each other
//!   change since the last barrier all or nothing is left, whatever is left of the others.
//!
//! A call that fails ends the course: the power is gone. Whether it had its effect, the verdict leaves open; and that of
//! a call that returned when the cut had begun. (ext4 that is shut down has answered an fsync that it never carried out;
//! nobody is told anything by a machine without power.)

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use crate::env::{MetaStore, ObjectStore, StoreError};
use crate::format::block::{LEASE_SLICES, object_key};
use crate::types::{BlockId, SliceId};

/// Bytes of the longest object: several pages, so that a part of it could be left.
const BODY_MAX: u64 = 40_000;

/// SplitMix64.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// What a course and the cut know of each other. The power is on at first.
#[derive(Debug, Default)]
pub struct Power {
    off: AtomicBool,
    calls: AtomicU64,
}

impl Power {
    /// The cut begins: what returns from now on is not believed.
    pub fn off(&self) {
        self.off.store(true, Ordering::SeqCst);
    }

    /// Calls of the course that have returned.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// A call has returned; whether it is believed.
    pub(super) fn returned(&self) -> bool {
        self.calls.fetch_add(1, Ordering::SeqCst);
        !self.off.load(Ordering::SeqCst)
    }
}

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What was done to a metadata store before the cut.
#[derive(Clone, Copy, Debug)]
pub struct MetaPast {
    seed: u64,
    /// Transactions that a sync has covered. (<= written)
    pub synced: u64,
    /// Transactions that were begun.
    pub written: u64,
}

/// Makes `calls` calls, drawn from `seed`; the first transaction is synced. `power` goes off before the cut begins.
pub async fn write_meta<M: MetaStore>(store: &M, seed: u64, calls: u64, power: &Power) -> MetaPast {
    let mut past = MetaPast { seed, synced: 0, written: 0 };
    let mut dice = Dice(seed);
    for call in 0..calls {
        if call == 1 || (call > 1 && dice.below(6) == 0) {
            let written = past.written;
            if store.sync(store.last()).await.is_err() || !power.returned() {
                return past;
            }
            past.synced = written;
            continue;
        }
        past.written += 1;
        let changes = transaction(seed, past.written);
        let written = store.write(|txn| {
            for (key, value) in &changes {
                match value {
                    Some(value) => txn.put(key, value),
                    None => txn.delete(key),
                }
            }
            Ok(())
        });
        if written.await.is_err() || !power.returned() {
            return past;
        }
    }
    past
}

/// What transaction `number` writes: a pair of its own, one that others write too, one that it deletes, its number.
fn transaction(seed: u64, number: u64) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    let mut dice = Dice(seed ^ (number << 32));
    let own = |number: u64| format!("p/own/{number:06}").into_bytes();
    let mut changes = BTreeMap::from([(b"p/last".to_vec(), Some(number.to_be_bytes().to_vec()))]);
    changes.insert(own(number.saturating_sub(1 + dice.below(4))), None);
    changes.insert(format!("p/shared/{}", dice.below(8)).into_bytes(), Some(number.to_be_bytes().to_vec()));
    let len = dice.below(2000);
    changes.insert(own(number), Some(dice.bytes(len)));
    changes
}

impl MetaPast {
    /// How many of the transactions that no sync has covered are left.
    ///
    /// Panics if what is left is nothing that a power cut may leave.
    pub async fn left<M: MetaStore>(&self, store: &M) -> u64 {
        let found = store.read(|read| Ok(read.scan(b"p/", b"p0", usize::MAX)?)).await.expect("it can be read");
        let found: Pairs = found.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        let mut state = Pairs::new();
        for number in 0..=self.written {
            for (key, value) in if number == 0 { BTreeMap::new() } else { transaction(self.seed, number) } {
                match value {
                    Some(value) => drop(state.insert(key, value)),
                    None => drop(state.remove(&key)),
                }
            }
            if self.synced <= number && state == found {
                return number - self.synced;
            }
        }
        let last = found.get(b"p/last".as_slice());
        panic!("{self:?}: {} pairs are left, the last by {last:?}: after no transaction it was so", found.len());
    }
}

/// What was done to an object store before the cut.
#[derive(Clone, Debug)]
pub struct ObjectsPast {
    seed: u64,
    /// For each object whether it was there at the last barrier, and after each change of it since.
    states: BTreeMap<u64, BTreeSet<bool>>,
    /// Objects that were put and not deleted.
    present: BTreeSet<u64>,
}

/// Makes `calls` calls, drawn from `seed`; the first object is put before a barrier. `power` goes off before the cut
/// begins.
pub async fn write_objects<S: ObjectStore>(store: &S, seed: u64, calls: u64, power: &Power) -> ObjectsPast {
    let mut past = ObjectsPast { seed, states: BTreeMap::new(), present: BTreeSet::new() };
    let mut dice = Dice(seed);
    let mut next = 0;
    for call in 0..calls {
        let choice = match call {
            0 => 0,
            1 => 7,
            _ => dice.below(8),
        };
        let count = past.present.len().max(1) as u64;
        let some = past.present.iter().copied().nth(dice.below(count) as usize);
        let done = match (choice, some) {
            (7, _) => store.barrier().await.is_ok(),
            // An answer that was lost: the same bytes are put again.
            (4, Some(number)) => store.put(&key(number), body(seed, number)).await.is_ok(),
            (5 | 6, Some(number)) => {
                past.may_be(number, false);
                past.present.remove(&number);
                store.delete(&key(number)).await.is_ok()
            }
            (_, _) => {
                let number = next;
                next += 1;
                past.states.insert(number, BTreeSet::from([false]));
                past.may_be(number, true);
                past.present.insert(number);
                store.put(&key(number), body(seed, number)).await.is_ok()
            }
        };
        if !done || !power.returned() {
            return past;
        }
        if choice == 7 {
            for (number, states) in &mut past.states {
                *states = BTreeSet::from([past.present.contains(number)]);
            }
        }
    }
    past
}

/// Those of blocks, in folders of three, so that new folders must be made durable too.
fn key(number: u64) -> String {
    let slice = SliceId(LEASE_SLICES * (1 + number / 3) + number % 3);
    object_key(BlockId { slice, index: 0, len: 1 })
}

fn body(seed: u64, number: u64) -> Vec<Bytes> {
    let mut dice = Dice(seed ^ (number << 32));
    let len = 1 + dice.below(BODY_MAX);
    vec![Bytes::from(dice.bytes(len / 2)), Bytes::from(dice.bytes(len - len / 2))]
}

impl ObjectsPast {
    fn may_be(&mut self, number: u64, present: bool) {
        self.states.entry(number).or_default().insert(present);
    }

    /// Objects that may be left or not.
    pub fn open(&self) -> Vec<u64> {
        self.states.iter().filter(|(_, states)| states.len() > 1).map(|(number, _)| *number).collect()
    }

    /// Of `open`, of which these are `left`, how many are not as their last change made them.
    pub fn undone(&self, left: &[u64]) -> usize {
        self.open().iter().filter(|number| left.contains(number) != self.present.contains(number)).count()
    }

    /// Those of `open` that are left.
    ///
    /// Panics if what is left is nothing that a power cut may leave.
    pub async fn left<S: ObjectStore>(&self, store: &S) -> Vec<u64> {
        let (mut listed, mut after) = (BTreeSet::new(), None);
        loop {
            let page = store.list("blocks/", after.as_deref()).await.expect("it can be listed");
            listed.extend(page.keys);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let mut left = Vec::new();
        for (number, states) in &self.states {
            let wanted = body(self.seed, *number).concat();
            let found = store.get(&key(*number), 0..wanted.len() as u64).await;
            let present = match found {
                Ok(found) => {
                    assert!(found == wanted, "object {number} is left with other bytes");
                    let past = store.get(&key(*number), 0..wanted.len() as u64 + 1).await;
                    assert_eq!(past, Err(StoreError::Short), "object {number} is longer than it was put");
                    true
                }
                Err(StoreError::NotFound) => false,
                Err(error) => panic!("object {number} is left and cannot be read ({error:?}): torn?"),
            };
            assert!(states.contains(&present), "object {number} is left: {present}, it may be: {states:?}");
            assert_eq!(listed.remove(&key(*number)), present, "object {number} is listed, or is left: not both");
            if present && states.len() > 1 {
                left.push(*number);
            }
        }
        assert!(listed.is_empty(), "there is what was never put: {listed:?}");
        left
    }
}
