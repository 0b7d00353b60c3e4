//! How objects and segments leave the log: into the store, by deletion, and when nobody needs them.
//!
//! Owns: the order of uploads, what a barrier settles, which segment goes. Invariants: those of the parent.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{AHEAD, Entry, Log, Pace, State, Upload};

impl Log {
    // ---- uploads

    /// Objects staged so lately are not put yet; packs take so long to fill.
    pub fn set_delays(&mut self, delay: Duration, pack: Duration) {
        self.delay = delay;
        self.packing.set_delay(pack.max(delay));
    }

    /// How many puts may be under way, and what is different while the log is in use.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// How many puts may be under way. If it is one at least, this is asked again when that has ended.
    pub(super) fn running_max(&self, now: Duration) -> usize {
        let Pace { uploads, beside, quiet_after, burst } = self.pace;
        let beside = beside.min(uploads);
        if quiet_after.is_zero() || self.size_max / 2 <= self.log_bytes() {
            uploads
        } else if self.used + quiet_after <= now {
            (beside + self.paced).min(uploads)
        } else if now < self.burst_from + burst {
            0
        } else {
            beside
        }
    }

    /// When a put may be under way again, if none may.
    fn resumes_at(&self, now: Duration) -> Option<Duration> {
        let Pace { quiet_after, burst, .. } = self.pace;
        (self.running_max(now) == 0).then(|| (self.used + quiet_after).min(self.burst_from + burst))
    }

    /// The next object to put at `now`; to be ended with `handle_upload`.
    pub fn next_upload(&mut self, now: Duration) -> Option<Upload> {
        let delay = self.delay;
        if self.running_max(now) <= self.running + self.packing.running() {
            return None;
        }
        let due = |key: &&String| {
            let entry = &self.entries[*key];
            !entry.deleting && entry.due(delay).is_some_and(|due| due <= now)
        };
        let key = self.waiting.values().take(AHEAD).find(due)?.clone();
        let entry = self.entries.get_mut(&key).expect("what waits is in the index");
        let State::Waiting { attempts, .. } = entry.state else { panic!("what waits is waiting") };
        entry.state = State::Running { attempts };
        let order = entry.order;
        self.waiting.remove(&order);
        self.running += 1;
        let body = Self::bytes_at(&self.entries[&key]);
        Some(Upload { key, order, body })
    }

    /// When the next put may be tried, if one has to wait.
    pub fn retry_at(&self, now: Duration) -> Option<Duration> {
        let due = |key: &String| self.entries[key].due(self.delay).filter(|due| now < *due);
        let alone = self.waiting.values().take(AHEAD).filter_map(due).min();
        let waits = !self.waiting.is_empty() || self.packing.waiting().next().is_some();
        let resumes = self.resumes_at(now).filter(|_| waits);
        alone.into_iter().chain(self.pack_at(now)).chain(resumes).min()
    }

    /// A put has ended.
    pub fn handle_upload(&mut self, now: Duration, key: &str, done: bool) {
        self.paced = self.paced.saturating_add(1);
        let Some(entry) = self.entries.get_mut(key) else { return };
        self.running -= 1;
        let State::Running { attempts } = entry.state else { panic!("completion of a put that was not started") };
        if done {
            entry.state = State::Put;
            self.put.insert(key.to_owned());
            return;
        }
        let delay = Duration::from_millis(20 << attempts.min(8)).min(Duration::from_secs(5));
        entry.state = State::Waiting { retry_at: now + delay, attempts: attempts + 1 };
        self.waiting.insert(entry.order, key.to_owned());
    }

    /// Whether a barrier would cover anything: `plan_settle` or `plan_packs` name something.
    pub fn has_puts(&self) -> bool {
        !self.put.is_empty() || self.packing.has_puts()
    }

    /// Objects that a barrier which begins at this moment covers.
    pub fn plan_settle(&self) -> Vec<String> {
        self.put.iter().cloned().collect()
    }

    /// A barrier has covered them.
    pub fn handle_settled(&mut self, keys: &[String]) {
        for key in keys {
            if self.put.remove(key) {
                self.handle_known(key);
            }
        }
    }

    /// It is in the store for good.
    pub fn handle_known(&mut self, key: &str) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let before = entry.clone();
        (entry.state, entry.body) = (State::Settled, None);
        self.leave(key, &before);
        if before.place.is_none() {
            self.entries.remove(key);
        }
    }

    /// Objects that wait to be put.
    pub fn waiting(&self) -> Vec<String> {
        self.waiting.values().chain(self.packing.waiting()).cloned().collect()
    }

    // ---- deletion

    /// The object is to be deleted; whether the log has to say so. To be ended with `end_delete` or `abort_delete`.
    pub fn begin_delete(&mut self, key: &str) -> bool {
        self.kept.forget(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.deleting = true;
        }
        self.recorded.contains_key(key)
    }

    /// The log does not say so.
    pub fn abort_delete(&mut self, key: &str) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.deleting = false;
        }
    }

    /// The log says that it is deleted, and no put of it is under way.
    pub fn end_delete(&mut self, key: &str) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.kept.forget(key);
        if let (State::Running { .. }, None) = (entry.state, entry.pack) {
            // Only a planted mistake gets here: the put that is under way finds nothing.
            self.running -= 1;
        }
        self.put.remove(key);
        self.leave(key, &entry);
    }

    // ---- segments that go

    /// The oldest segment, if nobody needs it, and whether it is to be set aside; with `all` also the one that takes
    /// records.
    pub fn removable(&self, all: bool) -> Option<(u64, bool)> {
        let (number, segment) = self.segments.first_key_value()?;
        let idle = segment.live == 0 && segment.writing.is_empty() && (segment.closed || all) && !self.making;
        idle.then_some((*number, segment.damaged))
    }

    /// The segment is gone; `open`: it can still be read.
    pub fn handle_removed(&mut self, number: u64, open: bool) {
        let Some(mut segment) = self.segments.remove(&number) else { return };
        let mut settled = Vec::new();
        for (key, order) in core::mem::take(&mut segment.keys) {
            if let Some(count) = self.recorded.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.recorded.remove(&key);
                }
            }
            // What a failed sync has lost keeps its order, and is in memory only.
            let here = |entry: &Entry| entry.order == order && entry.place.is_some();
            if self.entries.get(&key).is_some_and(here) {
                let entry = self.entries.remove(&key).expect("just seen");
                settled.push((key, entry));
            }
        }
        self.keep(&segment, settled, open);
    }
}
