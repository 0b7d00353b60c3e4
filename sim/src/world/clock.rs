//! The wall clock, which somebody may set.
//!
//! Times of changes follow it, but where the client takes the latest of several (the ctime of files, the times of
//! directories) they may stay where they were before it was set back: see `Clock::follows`.
//!
//! Invariant: simulated time, which stands for the monotonic clock, goes on evenly whatever this one does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiseki_core::testkit::model::Stamp;
use kiseki_core::types::Timestamp;
use madsim::time::TimeHandle;

use crate::dice::Dice;
use crate::faults::{Fault, Faults};

/// Wall-clock time of simulated time zero: 2033-05-18.
const EPOCH: Duration = Duration::from_secs(2_000_000_000);
/// Longest jump: a millisecond, a second, an hour, a month.
const JUMPS: [Duration; 4] =
    [Duration::from_millis(1), Duration::from_secs(1), Duration::from_secs(3600), Duration::from_secs(30 * 86_400)];
/// It is set to nothing earlier than this much before what it began with, nor later than that much after.
const FAR: Duration = Duration::from_secs(1_000_000_000);

/// The wall clock; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    jumps: Vec<Jump>,
    /// The latest time that it showed before it was set back.
    peak: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Jump {
    /// When, in simulated time.
    at: Duration,
    /// What simulated time is added to from then on.
    base: Duration,
}

impl Clock {
    /// The time that it shows.
    pub fn now(&self) -> Timestamp {
        let base = self.0.lock().unwrap().jumps.last().map_or(EPOCH, |jump| jump.base);
        timestamp(base + TimeHandle::current().elapsed())
    }

    /// Sets the clock, if that strikes; to what.
    pub(super) fn jump(&self, faults: &Faults, dice: &Dice) -> Option<Timestamp> {
        if !faults.strikes(Fault::ClockJump) {
            return None;
        }
        let by = dice.time_below(JUMPS[dice.below(JUMPS.len() as u64) as usize]);
        let mut state = self.0.lock().unwrap();
        let old = state.jumps.last().map_or(EPOCH, |jump| jump.base);
        let base = if dice.chance(500) { old + by } else { old - by };
        let base = base.clamp(EPOCH - FAR, EPOCH + FAR);
        let at = TimeHandle::current().elapsed();
        if base < old {
            state.peak = state.peak.max(Some(timestamp(old + at)));
        }
        state.jumps.push(Jump { at, base });
        Some(timestamp(base + at))
    }

    /// Everything between the earliest and the latest time that the clock has shown from `since` to this moment.
    pub fn span(&self, since: Duration) -> Stamp {
        let now = TimeHandle::current().elapsed();
        let jumps = &self.0.lock().unwrap().jumps;
        let first = jumps.iter().rev().find(|jump| jump.at < since).map_or(EPOCH, |jump| jump.base);
        let mut stamp = Stamp { from: timestamp(first + since), to: timestamp(first + since) };
        let mut widen = |at: Duration| {
            stamp = Stamp { from: stamp.from.min(timestamp(at)), to: stamp.to.max(timestamp(at)) };
        };
        let mut base = first;
        for jump in jumps.iter().filter(|jump| jump.at >= since) {
            widen(base + jump.at);
            widen(jump.base + jump.at);
            base = jump.base;
        }
        widen(base + now);
        stamp
    }

    /// Whether `seen` may be the time of an access, if it was set in `when` and reads may have moved it.
    pub fn follows_reads(&self, when: Stamp, seen: Timestamp) -> bool {
        let set_back = self.0.lock().unwrap().peak.is_some();
        when.holds(seen) || set_back && when.from < when.to && seen < when.from
    }

    /// Whether `seen` may be the time of a change in `when`, or the latest time of all changes.
    pub fn follows(&self, when: Stamp, seen: Timestamp) -> bool {
        when.holds(seen) || when.from <= seen && Some(seen) <= self.0.lock().unwrap().peak
    }
}

fn timestamp(since_1970: Duration) -> Timestamp {
    Timestamp { secs: since_1970.as_secs() as i64, nanos: since_1970.subsec_nanos() }
}
