//! Small objects of the log, which go into the store together.
//!
//! Owns: which objects wait for a pack, when a pack is full, which packs are on their way into the metadata.
//! Leaves to others: putting packs and telling the metadata (`client::log`), what is in a pack (`format::pack`).

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Log, State, Upload};
use crate::format::block::parse_key;
use crate::types::PackId;

/// A pack to be put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Its identity.
    pub pack: PackId,
    /// What goes into it, in this order.
    pub members: Vec<Upload>,
}

/// An object in a pack that is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its key.
    pub key: String,
    /// First byte in the pack.
    pub at: u64,
    /// Its length.
    pub len: u64,
}

/// A pack in the store that the metadata does not know to be there.
#[derive(Clone, Debug)]
struct Put {
    len: u64,
    members: Vec<Stored>,
}

/// What goes in packs.
#[derive(Clone, Debug, Default)]
pub(super) struct Packs {
    /// Shorter objects travel together; 0: none does.
    below: u64,
    /// A pack of this length is full.
    size: u64,
    delay: Duration,
    mount: u64,
    next: u32,
    waiting: BTreeMap<u64, String>,
    bytes: u64,
    running: BTreeMap<PackId, Put>,
    put: BTreeMap<PackId, Put>,
}

impl Packs {
    pub(super) fn takes(&self, key: &str, len: u64) -> bool {
        len < self.below && parse_key(key).is_some()
    }

    pub(super) fn queue(&mut self, key: &str, order: u64, len: u64) {
        if self.waiting.insert(order, key.to_owned()).is_none() {
            self.bytes += len;
        }
    }

    pub(super) fn unqueue(&mut self, key: &str, order: u64, len: u64) {
        if self.waits(order, key) {
            self.waiting.remove(&order);
            self.bytes -= len;
        }
    }

    pub(super) fn waits(&self, order: u64, key: &str) -> bool {
        self.waiting.get(&order).is_some_and(|other| other == key)
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = &String> {
        self.waiting.values()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn has_puts(&self) -> bool {
        !self.put.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.put.is_empty()
    }

    pub(super) fn set_delay(&mut self, delay: Duration) {
        self.delay = delay;
    }
}

impl Log {
    /// Blocks whose objects are shorter than `below` go into packs of about `size` bytes. To be called once, at the start.
    pub fn set_packs(&mut self, below: u64, size: u64) {
        (self.packing.below, self.packing.size, self.packing.mount) = (below, size, self.epoch);
    }

    /// The object goes by itself.
    fn send_alone(&mut self, key: &str) {
        if let Some(mut entry) = self.entries.remove(key) {
            self.unqueue(key, &entry);
            entry.alone = true;
            self.queue(key, &entry);
            self.entries.insert(key.to_owned(), entry);
        }
    }

    /// When the next pack is due, if one has to wait.
    pub(super) fn pack_at(&self, now: Duration) -> Option<Duration> {
        let oldest = self.packing.waiting.values().next()?;
        Some(self.entries[oldest].since + self.packing.delay).filter(|due| now < *due)
    }

    /// The next pack to put at `now`; to be ended with `handle_pack`. An object that would be the only one in it goes by
    /// itself (`next_upload`).
    pub fn next_pack(&mut self, now: Duration) -> Option<Packing> {
        let packing = &self.packing;
        let oldest = self.entries[packing.waiting.values().next()?].since;
        if self.running_max(now) <= self.running + packing.running()
            || packing.bytes < packing.size && now < oldest + packing.delay
        {
            return None;
        }
        let (mut keys, mut len) = (Vec::new(), 0);
        for key in packing.waiting.values().filter(|key| !self.entries[*key].deleting) {
            let more = self.entries[key].len;
            if !keys.is_empty() && packing.size < len + more {
                break;
            }
            keys.push(key.clone());
            len += more;
        }
        if let [only] = &keys[..] {
            let only = only.clone();
            self.send_alone(&only);
            return None;
        }
        if keys.is_empty() {
            return None;
        }
        let pack = PackId::new(self.packing.mount, self.packing.next);
        self.packing.next += 1;
        let (mut members, mut put) = (Vec::new(), Put { len: 0, members: Vec::new() });
        for key in keys {
            let entry = self.entries.get_mut(&key).expect("what waits is in the index");
            let State::Waiting { attempts, .. } = entry.state else { panic!("what waits is waiting") };
            entry.state = State::Running { attempts };
            entry.pack = Some(pack);
            let entry = entry.clone();
            self.unqueue(&key, &entry);
            members.push(Upload { order: entry.order, body: Self::bytes_at(&entry), key: key.clone() });
            put.members.push(Stored { key, at: put.len, len: entry.len });
            put.len += entry.len;
        }
        self.packing.running.insert(pack, put);
        Some(Packing { pack, members })
    }

    /// The pack is in the store, or is not tried any more.
    pub fn handle_pack(&mut self, now: Duration, pack: PackId, done: bool) {
        self.paced = self.paced.saturating_add(1);
        let put = self.packing.running.remove(&pack).expect("a pack that is being put");
        for Stored { key, .. } in &put.members {
            let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.pack == Some(pack)) else { continue };
            let State::Running { attempts } = entry.state else { panic!("an object of a pack that is being put") };
            if done {
                entry.state = State::Put;
                continue;
            }
            entry.state = State::Waiting { retry_at: now, attempts: attempts + 1 };
            (entry.pack, entry.alone) = (None, true);
            let entry = entry.clone();
            self.queue(key, &entry);
        }
        if done {
            self.packing.put.insert(pack, put);
        }
    }

    /// Packs that a barrier which begins at this moment covers.
    pub fn plan_packs(&self) -> Vec<PackId> {
        self.packing.put.keys().copied().collect()
    }

    /// What of a pack that a barrier has covered the metadata is to be told, with the pack's length; to be ended with
    /// `handle_recorded`. Until then none of it can be deleted.
    pub fn begin_recording(&mut self, pack: PackId) -> (u64, Vec<Stored>) {
        let Some(put) = self.packing.put.get(&pack) else { return (0, Vec::new()) };
        let mut stored = Vec::new();
        for member in &put.members {
            let entry = self.entries.get_mut(&member.key).filter(|entry| entry.pack == Some(pack));
            if let Some(entry) = entry.filter(|entry| entry.state == State::Put && !entry.deleting) {
                entry.state = State::Recording;
                stored.push(member.clone());
            }
        }
        (put.len, stored)
    }

    /// The metadata knows where these are, for good; or it is to be told again.
    pub fn handle_recorded(&mut self, pack: PackId, stored: &[Stored], done: bool) {
        for Stored { key, .. } in stored {
            let Some(entry) = self.entries.get_mut(key) else { continue };
            entry.state = State::Put;
            if done {
                self.handle_known(key);
            }
        }
        if done {
            self.packing.put.remove(&pack);
        }
    }
}
