//! When keys were written last, and by whom they are being written: what optimistic transactions are validated against.
//!
//! Owns: a clock of commits, and for each stripe of keys the time of the last commit that wrote one of them, or that one is
//! under way. Leaves to others: which keys a transaction has read and writes (`txn`).
//!
//! A transaction notes the time when it begins. A value that it reads counts if its stripe was not written since; a commit
//! locks the stripes of what it writes, looks whether what it has read still counts, writes, and sets them to its own time.
//! (Dice, Shalev, Shavit: Transactional Locking II, 2006.) RocksDB's own optimistic transactions look keys up in memtables
//! instead, keep what they write in an index, and take a snapshot each.
//!
//! Invariants
//! - A stripe is locked while one commit is noted and no longer. Stripes are locked in ascending order.
//! - A commit's time is later than all at which a transaction that does not see it has begun.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

/// Keys that share a stripe conflict as one key does: with so many, two transactions of ten keys once in 650 times.
const STRIPES: usize = 1 << 16;
/// Looks at a locked stripe before giving way, and before sleeping. It is locked while a commit is noted, about 1 us; who has lost a
/// race waits otherwise (`super::give_way`).
const SPINS: u32 = 64;
const YIELDS: u32 = 64;
const PAUSE: Duration = Duration::from_micros(50);

/// Of a key, the same for all that ask.
pub(super) fn hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

pub(super) struct Stripes {
    clock: AtomicU64,
    /// Twice the time of the last commit, and 1 while one is under way.
    times: Box<[AtomicU64]>,
}

impl Stripes {
    pub(super) fn new() -> Self {
        Self { clock: AtomicU64::new(0), times: (0..STRIPES).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Which one a key of that hash belongs to.
    pub(super) fn of(hash: u64) -> u32 {
        (hash % STRIPES as u64) as u32
    }

    /// The time of the last commit.
    pub(super) fn now(&self) -> u64 {
        self.clock.load(Ordering::Acquire)
    }

    /// When one of the stripe's keys was written last; waits while one is.
    pub(super) fn written(&self, stripe: u32) -> u64 {
        let mut looks = 0;
        loop {
            let time = self.times[stripe as usize].load(Ordering::Acquire);
            if time & 1 == 0 {
                return time / 2;
            }
            give_way(&mut looks);
        }
    }

    /// None of the stripe's keys was written since `written` said so, at the end of what this thread has read meanwhile.
    pub(super) fn is_still(&self, stripe: u32, written: u64) -> bool {
        fence(Ordering::Acquire);
        self.times[stripe as usize].load(Ordering::Relaxed) == 2 * written
    }

    /// Locks stripes, which are ascending and all different.
    pub(super) fn lock<'a>(&'a self, stripes: &'a [u32]) -> Locked<'a> {
        for stripe in stripes {
            let mut looks = 0;
            loop {
                let time = self.written(*stripe);
                let entry = &self.times[*stripe as usize];
                if entry.compare_exchange(2 * time, 2 * time + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    break;
                }
                give_way(&mut looks);
            }
        }
        Locked { stripes: self, locked: stripes, time: None }
    }
}

/// Stripes that are locked until this is dropped.
pub(super) struct Locked<'a> {
    stripes: &'a Stripes,
    locked: &'a [u32],
    /// Of the commit, if there is to be one.
    time: Option<u64>,
}

impl Locked<'_> {
    /// What was read at `time` or before, of these stripes, was not written since, nor is it being written by another.
    pub(super) fn allow(&self, read: &[u32], time: u64) -> bool {
        read.iter().all(|stripe| {
            let found = self.stripes.times[*stripe as usize].load(Ordering::Acquire);
            let free = found & 1 == 0 || self.locked.binary_search(stripe).is_ok();
            free && found / 2 <= time
        })
    }

    /// From here on the keys may be written; transactions that begin later wait for them. Returns the commit's time.
    pub(super) fn begin_commit(&mut self) -> u64 {
        let time = self.stripes.clock.fetch_add(1, Ordering::AcqRel) + 1;
        self.time = Some(time);
        time
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        for stripe in self.locked {
            let entry = &self.stripes.times[*stripe as usize];
            match self.time {
                Some(time) => entry.store(2 * time, Ordering::Release),
                None => drop(entry.fetch_sub(1, Ordering::Release)),
            }
        }
    }
}

fn give_way(looks: &mut u32) {
    *looks += 1;
    if *looks <= SPINS {
        std::hint::spin_loop();
    } else if *looks <= SPINS + YIELDS {
        std::thread::yield_now();
    } else {
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_counts_until_a_commit_writes_it() {
        let stripes = Stripes::new();
        let began = stripes.now();
        assert_eq!(stripes.written(7), 0);
        let mut locked = stripes.lock(&[3, 7]);
        assert!(!stripes.is_still(7, 0), "it is being written");
        assert!(locked.allow(&[3, 5, 7], began), "its own locks are in nobody's way");
        let other = stripes.lock(&[5]);
        assert!(!locked.allow(&[5], began), "another is about to write it");
        drop(other);
        assert!(locked.allow(&[5], began), "nothing came of that");
        locked.begin_commit();
        drop(locked);
        assert_eq!((stripes.written(3), stripes.written(5), stripes.written(7)), (1, 0, 1));
        let locked = stripes.lock(&[5]);
        assert!(!locked.allow(&[7], began) && locked.allow(&[7], stripes.now()));
    }

    #[test]
    fn one_at_a_time_has_a_stripe() {
        let stripes = Stripes::new();
        let inside = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let mut locked = stripes.lock(&[1, 2]);
                        assert_eq!(inside.fetch_add(1, Ordering::AcqRel), 0);
                        locked.begin_commit();
                        inside.fetch_sub(1, Ordering::AcqRel);
                    }
                });
            }
        });
        assert_eq!((stripes.now(), stripes.written(1), stripes.written(2)), (8000, 8000, 8000));
    }
}
