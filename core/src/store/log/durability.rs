//! What a sync of the log covers, and what one that has failed may have lost.
//!
//! Owns: which records are durable, storing again what is lost. Invariants: those of the parent, and that what is being
//! stored again is not deleted meanwhile.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use bytes::Bytes;

use super::{Log, State};
use crate::format::log::{Frontier, Kind, next_at};
use crate::marks::{Mark, reached};

/// A sync that is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sync {
    /// Segments with writes that no sync covers.
    pub segments: Vec<u64>,
    through: u64,
    frontier: Frontier,
}

/// Something that a failed sync may have lost, to be stored again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// An object and its bytes.
    Put(String, Vec<Bytes>),
    /// That an object was deleted.
    Delete(String),
}

/// Bodies that are looked at in vain each time that others may have let go of something. (They let go of the oldest first,
/// mostly, so one or two would do.)
const TRIMMED: usize = 32;

/// Nobody else holds it. (What it is longest of: a head is nobody else's.)
fn is_let_go(body: &[Bytes]) -> bool {
    body.iter().max_by_key(|piece| piece.len()).is_none_or(Bytes::is_unique)
}

impl Log {
    /// Records written so far: what a sync must cover that is to cover all of them.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Every record up to this one is durable.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// What to sync, if there is anything; to be ended with `handle_synced` or `handle_sync_failed`.
    pub fn plan_sync(&mut self) -> Option<Sync> {
        if self.synced == self.written {
            return None;
        }
        let mut segments = Vec::new();
        let mut frontier = self.frontier;
        for (number, segment) in &mut self.segments {
            if segment.dirty {
                segments.push(*number);
                segment.dirty = false;
            }
            // Records behind this point share no page with those before it.
            if segment.writing.is_empty() && !segment.closed {
                segment.tail = next_at(segment.tail, true);
            }
        }
        if let Some((number, segment)) = self.segments.iter().find(|(_, segment)| !segment.writing.is_empty()) {
            frontier = frontier.max(Frontier { segment: *number, at: segment.complete_to() });
        } else if let Some((number, segment)) = self.segments.iter().next_back() {
            frontier = frontier.max(Frontier { segment: *number, at: segment.complete_to() });
        }
        Some(Sync { segments, through: self.written, frontier })
    }

    /// All of it is durable.
    pub fn handle_synced(&mut self, sync: &Sync) {
        self.synced = self.synced.max(sync.through);
        self.frontier = self.frontier.max(sync.frontier);
        let rest = self.unsynced.split_off(&(sync.through + 1));
        for (kind, key, order) in mem::replace(&mut self.unsynced, rest).into_values() {
            if kind == Kind::Put
                && let Some(entry) = self.entries.get_mut(&key)
                && entry.order == order
            {
                entry.body = entry.body.take().filter(|body| self.held_from <= entry.len && !is_let_go(body));
                if entry.body.is_some() {
                    self.held.push_back((key, order));
                    reached(Mark::LogBodyHeld);
                }
            }
        }
    }

    /// Others may have let go of bodies that are held here: those go, until `TRIMMED` are found that have not been let go
    /// of. The next call goes on behind them.
    pub fn trim(&mut self) {
        let mut left = TRIMMED.min(self.held.len());
        while left > 0
            && let Some((key, order)) = self.held.pop_front()
        {
            let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.order == order) else { continue };
            match &entry.body {
                Some(body) if is_let_go(body) => {
                    entry.body = None;
                    reached(Mark::LogBodyLetGo);
                }
                Some(_) => {
                    self.held.push_back((key, order));
                    left -= 1;
                }
                None => {}
            }
        }
    }

    /// Nothing is known of what no earlier sync has covered: all of it is to be stored again, and no record goes into
    /// those segments any more.
    pub fn handle_sync_failed(&mut self, sync: &Sync) -> Vec<Lost> {
        for (_, segment) in self.segments.range_mut(sync.segments.first().copied().unwrap_or(0)..) {
            segment.closed = true;
            segment.hole = Some(0);
        }
        self.synced = self.written;
        let mut lost = Vec::new();
        for (kind, key, order) in mem::take(&mut self.unsynced).into_values() {
            match (kind, self.entries.get_mut(&key)) {
                (Kind::Put, Some(entry)) if entry.order == order && entry.state != State::Settled => {
                    let body = entry.body.clone().expect("an unsynced record's body");
                    let before = entry.clone();
                    entry.place = None;
                    self.leave(&key, &before);
                    self.queue(&key, &before);
                    lost.push(Lost::Put(key, body));
                }
                (Kind::Put, _) => {}
                (Kind::Delete, _) => lost.push(Lost::Delete(key)),
            }
        }
        lost
    }

    /// What was lost is in the store for good; it needs no record.
    pub fn handle_stored(&mut self, key: &str) {
        if let Some(entry) = self.entries.get(key)
            && entry.place.is_none()
            && !matches!(entry.state, State::Running { .. } | State::Recording)
        {
            let entry = self.entries.remove(key).expect("just seen");
            self.unqueue(key, &entry);
            self.put.remove(key);
        }
    }

    /// A sync has failed, and the object is in memory only.
    pub fn is_lost(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.place.is_none() && !entry.deleting)
    }

    /// What a failed sync has lost is about to be stored again; false: it need not be. To be ended with `end_restore`.
    pub fn begin_restore(&mut self, key: &str) -> bool {
        assert_eq!(self.restoring, None, "one at a time");
        let lost = self.is_lost(key);
        self.restoring = lost.then(|| key.to_owned());
        lost
    }

    /// That has ended, one way or the other.
    pub fn end_restore(&mut self) {
        self.restoring = None;
    }
}
