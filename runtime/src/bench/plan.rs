//! What is measured: sizes, the files they come to, and the figures of `juicefs bench`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::objects::Counts;

/// The sizes of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Files are written and read by as many threads, each its own. (1..)
    pub threads: u64,
    /// Bytes of one read or write. (1..)
    pub block_size: u64,
    /// Bytes of the big file of each thread; 0: no big files.
    pub big_file_size: u64,
    /// Bytes of each small file.
    pub small_file_size: u64,
    /// Small files of each thread; 0: none.
    pub small_file_count: u64,
    /// Whether what is read is compared with what was written.
    pub verify: bool,
}

/// A line of `juicefs bench`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    /// One big file for each thread.
    WriteBig,
    /// The same files.
    ReadBig,
    /// Create, write, close.
    WriteSmall,
    /// Open, read, close.
    ReadSmall,
    /// stat(2) by path.
    Stat,
}

/// What counts as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Account {
    /// close(2) has returned: others see it. What `juicefs bench` measures.
    Visible,
    /// fsync(2) and close(2) have returned: it survives a power cut. A pass of its own.
    Durable,
    /// After the visible pass, nothing is left to be stored.
    Drained,
}

/// One measured line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was done.
    pub item: Item,
    /// Of writes: up to where.
    pub account: Option<Account>,
    /// All threads together.
    pub value: f64,
    /// `MiB/s` or `files/s`.
    pub unit: &'static str,
    /// Time for one file of one thread.
    pub cost: f64,
    /// `s/file` or `ms/file`.
    pub cost_unit: &'static str,
    /// Time for all of it.
    pub secs: f64,
    /// Requests that the mount made of its object store in this time; none where nobody counts them.
    pub requests: Option<Counts>,
}

/// Big or small files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Big,
    Small,
}

const MIB: f64 = (1 << 20) as f64;

/// What a small file takes of a disk, at least.
const SPACE_UNIT: u64 = 4096;

impl Plan {
    /// Why nobody could run it.
    pub fn check(&self) -> Result<(), String> {
        let ended = |what: &str| Err(what.to_owned());
        if self.threads == 0 || self.block_size == 0 {
            return ended("--threads and --block-size are at least 1");
        }
        if !self.has(Kind::Big) && !self.has(Kind::Small) {
            return ended("there is nothing to measure: no big files (--big-file-size) and no small ones");
        }
        // The bytes of a block depend on its two numbers, which are below 2^32.
        let blocks = self.big_file_size.max(self.small_file_size).div_ceil(self.block_size);
        let files = self.threads.saturating_mul(self.small_file_count.max(1)).saturating_mul(4);
        if blocks > u64::from(u32::MAX) || files > u64::from(u32::MAX) {
            return ended("too many blocks in a file, or too many files");
        }
        Ok(())
    }

    /// Bytes that a run has on the disk before it removes them: the visible and the durable pass.
    pub(super) fn space(&self) -> u64 {
        let small = self.small_file_size.div_ceil(SPACE_UNIT).saturating_mul(SPACE_UNIT);
        let each = self.big_file_size.saturating_add(small.saturating_mul(self.small_file_count));
        each.saturating_mul(self.threads).saturating_mul(2)
    }

    /// Files and folders of a run.
    pub(super) fn inodes(&self) -> u64 {
        (self.small_file_count + 1).saturating_mul(self.threads).saturating_mul(2).saturating_add(3)
    }

    pub(super) fn has(&self, kind: Kind) -> bool {
        self.len(kind) > 0 && self.count(kind) > 0
    }

    /// Bytes of a file.
    pub(super) fn len(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Big => self.big_file_size,
            Kind::Small => self.small_file_size,
        }
    }

    /// Files of a thread.
    pub(super) fn count(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Big => 1,
            Kind::Small => self.small_file_count,
        }
    }

    /// Lengths of the blocks of a file; only the last may be shorter than the rest.
    pub(super) fn blocks(&self, kind: Kind) -> impl Iterator<Item = usize> + use<> {
        let (len, block_size) = (self.len(kind), self.block_size);
        (0..len.div_ceil(block_size)).map(move |index| (len - index * block_size).min(block_size) as usize)
    }

    /// Bytes of the longest block.
    pub(super) fn buffer_len(&self) -> usize {
        let longest = |kind| if self.has(kind) { self.len(kind).min(self.block_size) } else { 0 };
        longest(Kind::Big).max(longest(Kind::Small)) as usize
    }

    /// A number for each file of a run. (below 2^32)
    pub(super) fn stream(&self, account: Account, kind: Kind, thread: u64, number: u64) -> u64 {
        let pass = u64::from(account == Account::Durable) * 2 + u64::from(kind == Kind::Small);
        (pass * self.threads + thread) * self.small_file_count.max(1) + number
    }

    /// What a phase of `elapsed` comes to.
    pub(super) fn row(&self, item: Item, account: Option<Account>, elapsed: Duration, requests: Option<Counts>) -> Row {
        // A clock may stand still for a phase of a few bytes.
        let secs = elapsed.max(Duration::from_nanos(1)).as_secs_f64();
        let (value, unit, cost, cost_unit) = match item {
            Item::WriteBig | Item::ReadBig => {
                let bytes = self.threads as f64 * self.big_file_size as f64;
                (bytes / MIB / secs, "MiB/s", secs, "s/file")
            }
            Item::WriteSmall | Item::ReadSmall | Item::Stat => {
                let each = self.small_file_count as f64;
                (self.threads as f64 * each / secs, "files/s", secs / each * 1000.0, "ms/file")
            }
        };
        Row { item, account, value, unit, cost, cost_unit, secs, requests }
    }
}

impl Kind {
    pub(super) fn write(self) -> Item {
        match self {
            Self::Big => Item::WriteBig,
            Self::Small => Item::WriteSmall,
        }
    }

    pub(super) fn read(self) -> Item {
        match self {
            Self::Big => Item::ReadBig,
            Self::Small => Item::ReadSmall,
        }
    }

    /// The name of a file in its folder.
    pub(super) fn file(self, thread: u64, number: u64) -> PathBuf {
        match self {
            Self::Big => format!("big.{thread}").into(),
            Self::Small => format!("small.{thread}.{number}").into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The defaults of `juicefs bench`, with 4 threads.
    fn plan() -> Plan {
        Plan {
            threads: 4,
            block_size: 1 << 20,
            big_file_size: 1 << 30,
            small_file_size: 128 << 10,
            small_file_count: 100,
            verify: false,
        }
    }

    #[test]
    fn figures_are_those_of_juicefs_bench() {
        let cases = [
            (Item::WriteBig, 8, 512.0, "MiB/s", 8.0, "s/file"),
            (Item::ReadBig, 2, 2048.0, "MiB/s", 2.0, "s/file"),
            (Item::WriteSmall, 2, 200.0, "files/s", 20.0, "ms/file"),
            (Item::ReadSmall, 1, 400.0, "files/s", 10.0, "ms/file"),
            (Item::Stat, 4, 100.0, "files/s", 40.0, "ms/file"),
        ];
        for (item, secs, value, unit, cost, cost_unit) in cases {
            let row = plan().row(item, None, Duration::from_secs(secs), None);
            let expected = Row { item, account: None, value, unit, cost, cost_unit, secs: secs as f64, requests: None };
            assert_eq!(row, expected);
        }
        assert!(plan().row(Item::Stat, None, Duration::ZERO, None).value.is_finite());
    }

    #[test]
    fn blocks_cover_a_file() {
        let blocks = |len, block_size| -> Vec<usize> {
            Plan { big_file_size: len, block_size, ..plan() }.blocks(Kind::Big).collect()
        };
        assert_eq!(blocks(10, 4), [4, 4, 2]);
        assert_eq!(blocks(8, 4), [4, 4]);
        assert_eq!(blocks(3, 4), [3]);
        assert_eq!(blocks(0, 4), [0; 0]);
        assert_eq!(plan().buffer_len(), 1 << 20);
        assert_eq!(Plan { big_file_size: 0, ..plan() }.buffer_len(), 128 << 10);
    }

    #[test]
    fn space_is_for_both_passes() {
        let plan = plan();
        assert_eq!(plan.space(), 2 * 4 * ((1 << 30) + 100 * (128 << 10)));
        assert_eq!(plan.inodes(), 2 * 4 * 101 + 3);
        assert_eq!(Plan { small_file_size: 1, big_file_size: 0, ..plan.clone() }.space(), 2 * 4 * 100 * 4096);
        assert_eq!(Plan { big_file_size: u64::MAX, ..plan }.space(), u64::MAX);
    }

    #[test]
    fn files_have_numbers_of_their_own() {
        let plan = plan();
        let mut seen = HashSet::new();
        for account in [Account::Visible, Account::Durable] {
            for kind in [Kind::Big, Kind::Small] {
                for thread in 0..plan.threads {
                    for number in 0..plan.count(kind) {
                        assert!(seen.insert(plan.stream(account, kind, thread, number)));
                    }
                }
            }
        }
        assert!(seen.iter().all(|stream| *stream < 4 * plan.threads * plan.small_file_count));
    }

    #[test]
    fn senseless_plans_are_refused() {
        plan().check().unwrap();
        Plan { big_file_size: 0, ..plan() }.check().unwrap();
        Plan { small_file_count: 0, ..plan() }.check().unwrap();
        for bad in [
            Plan { threads: 0, ..plan() },
            Plan { block_size: 0, ..plan() },
            Plan { big_file_size: 0, small_file_size: 0, ..plan() },
            Plan { big_file_size: 0, small_file_count: 0, ..plan() },
            Plan { big_file_size: 1 << 40, block_size: 1, ..plan() },
            Plan { small_file_count: 1 << 32, ..plan() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
