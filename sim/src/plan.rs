//! What a run is: a seed, what of it is left out, and the knobs that the seed turns.
//!
//! Owns: the text by which a run is replayed, the sizes and times that the client under test gets.
//! Leaves to others: carrying it out (`run`), leaving out more (`shrink`).
//!
//! Invariant: a plan that leaves nothing out is the seed alone; what is left out changes nothing that comes before it.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use kiseki_core::client::{LogMode, LogOptions, Options, Pace};
use kiseki_core::format::block::LEASE_SLICES;
use kiseki_core::types::{AtimeMode, Geometry};

use crate::dice::Dice;
use crate::faults::{Fault, Faults};

/// A run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What everything is drawn from.
    pub seed: u64,
    /// Lives before the last one, at most.
    pub lives: Option<u64>,
    /// Operations of both applications in one life, at most.
    pub steps: Option<u64>,
    /// The only application that works, if not both do. (0 or 1)
    pub alone: Option<usize>,
    /// Kinds of fault that never strike.
    pub off: BTreeSet<Fault>,
}

impl Plan {
    /// All of `seed`.
    pub fn of(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.lives.map(|lives| format!("lives={lives}")));
        parts.extend(self.steps.map(|steps| format!("steps={steps}")));
        parts.extend(self.alone.map(|app| format!("alone={app}")));
        if !self.off.is_empty() {
            let names: Vec<String> = self.off.iter().map(|fault| format!("{fault:?}")).collect();
            parts.push(format!("off={}", names.join("+")));
        }
        write!(f, "{}", self.seed)?;
        if parts.is_empty() { Ok(()) } else { write!(f, ":{}", parts.join(",")) }
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("not a number: {text:?}"));
        let (seed, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut plan = Self::of(number(seed)?);
        for part in rest.split(',').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("lives", value)) => plan.lives = Some(number(value)?),
                Some(("steps", value)) => plan.steps = Some(number(value)?),
                Some(("alone", "0")) => plan.alone = Some(0),
                Some(("alone", "1")) => plan.alone = Some(1),
                Some(("off", names)) => {
                    for name in names.split('+') {
                        let fault = Fault::ALL.iter().find(|fault| format!("{fault:?}") == name);
                        plan.off.insert(*fault.ok_or_else(|| format!("no kind of fault: {name:?}"))?);
                    }
                }
                Some(_) | None => return Err(format!("not a part of a plan: {part:?}")),
            }
        }
        Ok(plan)
    }
}

/// What a seed tries the client with.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// Sizes so small that every border is met often.
    pub geometry: Geometry,
    /// How the volume is mounted, each time.
    pub options: Options,
    /// The write-back log, where mounts have one.
    pub log: Option<LogOptions>,
    /// After how many of 1000 operations an application looks at all that it has: where it seldom does, it works
    /// faster than the store.
    pub looks: u64,
}

/// What a volume may hold; 0: whatever comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub capacity: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Limits {
    /// As scarce as `faults` wants.
    pub fn draw(dice: &Dice, faults: &Faults) -> Self {
        let between = |level, some: Range<u64>, few: Range<u64>| match level {
            0 => 0,
            1 => some.start + dice.below(some.end - some.start),
            _ => few.start + dice.below(few.end - few.start),
        };
        Self {
            capacity: between(faults.level(Fault::SpaceShort), 60_000..160_000, 15_000..60_000),
            inodes: between(faults.level(Fault::InodesShort), 20..40, 10..20),
        }
    }
}

impl Knobs {
    /// Drawn from `dice`.
    pub fn draw(dice: &Dice) -> Self {
        let one_of = |choices: &[u64]| choices[dice.below(choices.len() as u64) as usize];
        let sizes = [(4096, 512, 128, 64), (4096, 512, 128, 64), (1024, 256, 64, 0), (16384, 2048, 256, 200)];
        let (chunk_size, block_size, frame_size, inline_max) = sizes[dice.below(sizes.len() as u64) as usize];
        let geometry = Geometry { chunk_size, block_size, frame_size, inline_max };
        let buffer_blocks = one_of(&[8, 48, 128, 400]) + dice.below(80);
        let options = Options {
            buffer_size: u64::from(block_size) * buffer_blocks,
            commit_interval: Duration::from_millis(one_of(&[10, 50, 200, 500, 3000]) + dice.below(100)),
            store_timeout: Duration::from_secs(3 + dice.below(10)),
            max_uploads: one_of(&[1, 1, 2, 3, 4, 6]) as usize,
            inode_lease: one_of(&[1, 1, 8, 1 << 16]),
            slice_lease: one_of(&[1, 5, 60, LEASE_SLICES]),
            atime: [AtimeMode::Relatime, AtimeMode::Noatime, AtimeMode::Strictatime][dice.below(3) as usize],
            meta_cache: one_of(&[0, 6_000, 100_000, 1 << 20]),
            batch_slices: one_of(&[1, 2, 8, 256]) as usize,
            whole_max: 2 * frame_size,
            ..Options::default()
        };
        let looks = one_of(&[1000, 300, 300, 100]);
        let log = LogOptions {
            mode: LogMode::Back,
            // A page of each is its header's, and a sync begins another.
            size_max: one_of(&[14_000, 40_000, 120_000, 1 << 20, 1 << 20]),
            segment_size: one_of(&[5_000, 9_000, 18_000, 65_536]),
            direct_from: one_of(&[u64::MAX, u64::MAX, u64::from(block_size) / 2, u64::from(block_size)]),
            pace: Pace {
                uploads: one_of(&[1, 1, 2, 4]) as usize,
                beside: one_of(&[1, 1, 2, 4]) as usize,
                quiet_after: Duration::from_millis(one_of(&[0, 100, 300, 5000])),
                burst: Duration::from_millis(one_of(&[0, 0, 500, 10_000])),
            },
            upload_delay: Duration::from_millis(one_of(&[0, 100, 5000, 100_000])),
            pack_below: one_of(&[0, 300, u64::from(block_size) / 2, u64::MAX]),
            pack_size: one_of(&[600, 3 * u64::from(block_size), 20_000]),
            pack_delay: Duration::from_millis(one_of(&[0, 20, 300, 3000])),
            pack_rest: Duration::from_millis(one_of(&[0, 0, 100, 10_000])),
            paged_from: one_of(&[u64::MAX, u64::MAX, 200, u64::from(block_size)]),
            held_from: if looks == 300 { u64::from(block_size) / 2 } else { u64::MAX },
            keep: dice.chance(700),
            place: "sim".into(),
        };
        Self { geometry, options, log: dice.chance(750).then_some(log), looks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_what_its_text_says() {
        for text in ["0", "17:lives=1", "18446744073709551615:lives=0,steps=20,alone=1,off=PutFailed+SyncFailed"] {
            assert_eq!(text.parse::<Plan>().expect(text).to_string(), text);
        }
        for text in ["", "x", "1:lives", "1:alone=2", "1:off=Nothing", "1:steps=-1"] {
            assert!(text.parse::<Plan>().is_err(), "{text:?}");
        }
    }
}
