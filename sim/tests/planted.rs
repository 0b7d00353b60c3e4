//! The score of the simulator: bugs planted in the client, and how many seeds it takes to notice each. Not a test of
//! the usual harness, which keeps what a passing test prints to itself.
//!
//! ```text
//! cargo test -p sim --test planted                     every bug on a few seeds; those known to show soon must
//! cargo test -p sim --test planted -- bugs [NAME...]   every bug, or these, until noticed
//! cargo test -p sim --test planted -- faults [KIND...] that each kind of fault is what it takes to notice some bug
//! ```

/// Without `--cfg madsim` there is no simulator; `tests/sim.rs` runs this again with the flag.
#[cfg(not(madsim))]
fn main() {}

#[cfg(madsim)]
fn main() -> std::process::ExitCode {
    score::main()
}

#[cfg(madsim)]
mod score {
    use std::collections::BTreeSet;
    use std::process::ExitCode;
    use std::time::Instant;

    use kiseki_core::planted::Bug;
    use sim::faults::{Fault, TEETH, Teeth};
    use sim::report::judge_of;
    use sim::sweep::first_failure;
    use sim::world::Switches;

    /// A bug that this many seeds do not show is a blind spot.
    const SEEDS: u64 = 2000;
    /// Seeds without the fault that it takes: so many times those that it took with it, and at least so many.
    const WITHOUT_FACTOR: u64 = 2;
    const WITHOUT_MIN: u64 = 60;
    /// Seeds that the quick form gives a bug: many times what it takes, so that no change of the simulator that shuffles
    /// its choices makes it miss.
    const QUICK: u64 = 100;
    /// What takes a dozen seeds or more: the quick form tries a few, and asks for nothing.
    const SLOW: &[Bug] = &[
        Bug::SyncFlagIgnored,
        Bug::CleanUnsynced,
        Bug::FsyncDirSkipped,
        Bug::FailedSyncAccepted,
        Bug::SyncDeadlineAccepted,
        Bug::PresenceForNumber,
        Bug::DefaultAclNotInherited,
        Bug::WhiteoutApart,
        Bug::CountApart,
        Bug::InodeLeaseUnsynced,
        Bug::LengthBeforeSlice,
        Bug::StaleView,
        Bug::OldNamesKept,
        Bug::OldSnapshotCached,
        Bug::EndlessPatience,
        Bug::SliceLeaseUnsynced,
        Bug::AppendAtOldEnd,
        Bug::RenameInTwo,
        Bug::RenameWithoutWait,
        Bug::DeleteWithoutBarrier,
        Bug::DeleteWithoutGrace,
        Bug::GivenUpForgotten,
        Bug::UnsureForgotten,
        Bug::TimesOnlyGrow,
        Bug::HoleForgotten,
        Bug::ListCutShort,
        Bug::TornRecordAccepted,
        Bug::SegmentsSideBySide,
        Bug::LogDeleteUnrecorded,
        Bug::DeletedWhilePut,
        Bug::LogUnlisted,
        Bug::PackUnannounced,
        Bug::PackDeletedOnce,
        Bug::PackMoveUnchecked,
    ];
    const SLOW_SEEDS: u64 = 4;

    pub(super) fn main() -> ExitCode {
        let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let good = match words[..] {
            [] => quick(),
            ["bugs", ref names @ ..] => bugs(names),
            ["faults", ref names @ ..] => faults(names),
            // A filter of `cargo test` that means other targets.
            _ => {
                println!("planted: nothing here is called {words:?}");
                true
            }
        };
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// How many of `seeds` it took to notice `bug` while the faults `off` were, and the objection.
    fn notice(bug: Bug, seeds: u64, off: &BTreeSet<Fault>) -> Option<(u64, String)> {
        let found = first_failure(0..seeds, off, Switches { planted: Some(bug), ..Switches::default() });
        found.map(|(seed, what)| (seed + 1, what))
    }

    fn quick() -> bool {
        let (mut caught, mut good) = (0, true);
        for &bug in Bug::ALL {
            let slow = SLOW.contains(&bug);
            match notice(bug, if slow { SLOW_SEEDS } else { QUICK }, &BTreeSet::new()) {
                Some(_) => caught += 1,
                None if slow => {}
                None => {
                    good = false;
                    println!("{bug:?} ({}) went unnoticed for {QUICK} seeds", bug.story());
                }
            }
        }
        println!("planted: caught={caught}/{}, of the {} slow ones in {SLOW_SEEDS} seeds", Bug::ALL.len(), SLOW.len());
        good
    }

    fn bugs(names: &[&str]) -> bool {
        let wanted = |bug: &&Bug| names.is_empty() || names.iter().any(|name| *name == format!("{bug:?}"));
        let wanted: Vec<Bug> = Bug::ALL.iter().filter(wanted).copied().collect();
        let (mut caught, mut worst) = (0, 0);
        println!("{:<22} {:>7} {:>5}  {:<8} objection", "bug", "promise", "seeds", "judge");
        for &bug in &wanted {
            let started = Instant::now();
            let found = notice(bug, SEEDS, &BTreeSet::new());
            let (seeds, judge, what) = match &found {
                Some((seeds, what)) => (seeds.to_string(), judge_of(what).judge, what.as_str()),
                None => ("-".into(), "", "went unnoticed"),
            };
            caught += usize::from(found.is_some());
            worst = worst.max(found.as_ref().map_or(SEEDS, |(seeds, _)| *seeds));
            let what: String = what.chars().take(90).collect();
            let name = format!("{bug:?}");
            println!("{name:<22} {:>7} {seeds:>5}  {judge:<8} {what} ({:.1?})", bug.promise(), started.elapsed());
        }
        println!("planted: caught={caught}/{} worst_seeds={worst}", wanted.len());
        caught == wanted.len()
    }

    fn faults(names: &[&str]) -> bool {
        let all: BTreeSet<Fault> = Fault::ALL.iter().copied().collect();
        let mut good = TEETH.iter().map(|(fault, _)| *fault).eq(Fault::ALL.iter().copied());
        if !good {
            println!("TEETH does not list all kinds in their order");
        }
        for &(fault, teeth) in TEETH {
            if !names.is_empty() && !names.iter().any(|name| *name == format!("{fault:?}")) {
                continue;
            }
            let (text, holds) = match teeth {
                Teeth::Needed(bug) => {
                    let with = notice(bug, SEEDS, &BTreeSet::new()).map_or(SEEDS, |(seeds, _)| seeds);
                    let seeds = (WITHOUT_FACTOR * with).max(WITHOUT_MIN);
                    let without = notice(bug, seeds, &BTreeSet::from([fault]));
                    let text = format!("{bug:?} takes {with} seeds; without the fault {seeds} seeds show: {without:?}");
                    (text, with < SEEDS && without.is_none())
                }
                Teeth::Enough(bug) => {
                    let only = &all - &BTreeSet::from([fault]);
                    let alone = notice(bug, SEEDS, &only).map_or(SEEDS, |(seeds, _)| seeds);
                    let none = notice(bug, (WITHOUT_FACTOR * alone).clamp(WITHOUT_MIN, SEEDS), &all);
                    let text = format!("{bug:?} takes {alone} seeds with this fault alone; without any: {none:?}");
                    (text, alone < SEEDS && none.is_none())
                }
                Teeth::Shared(why) => (why.to_string(), true),
            };
            good &= holds;
            println!("{} {:<18} {text}", if holds { "     " } else { "WRONG" }, format!("{fault:?}"));
        }
        println!("planted: faults matter: {good}");
        good
    }
}
