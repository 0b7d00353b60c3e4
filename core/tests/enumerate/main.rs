//! Every short sequence of operations, and every crash of each: what ACE and CrashMonkey do to file systems
//! (Mohan et al., OSDI 2018: nearly all crash bugs known need at most three operations on a fresh file system and a
//! call that makes something durable).
//!
//! In plain `core`, without an executor and without chance: the file machines and the metadata operations, composed as
//! `client` does. Where the simulator tries long lives with all kinds of faults at random, this leaves nothing out of
//! short ones; it knows no failing store and no two operations at once.
//!
//! `KISEKI_ENUMERATE=full`: all sequences of up to two operations and all of three over a reduced set, which takes
//! minutes; otherwise all of one and a fixed sample of the others. `KISEKI_ENUMERATE='create(/A/z)+fsync; ...'`: that
//! sequence alone, as a failure shows it.

mod choices;
mod explore;
mod kernel;
mod mistakes;
mod promises;
mod recovery;
mod world;

use choices::{After, Choice, Instance, instances};
use explore::{Explorer, Plan};
use mistakes::Mistake;

/// Sequences of which the quick form takes one. (primes, so that a sample meets every choice at every place)
const STRIDE_PAIRS: u64 = 97;
const STRIDE_TRIPLES: u64 = 1009;

/// The plans of the full form, or of the quick one.
fn plans(full: bool) -> Vec<Plan> {
    let all = instances();
    let reduced: Vec<Instance> = all.iter().filter(|instance| instance.reduced).cloned().collect();
    let plan = |instances: &[Instance], length, stride| Plan {
        choices: Choice::all(instances),
        length,
        stride: if full { 1 } else { stride },
        crash_recovery: length == 1,
    };
    vec![plan(&all, 1, 1), plan(&all, 2, STRIDE_PAIRS), plan(&reduced, 3, STRIDE_TRIPLES)]
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(2))
}

#[test]
fn every_crash_of_every_short_sequence_is_explained() {
    let wanted = std::env::var("KISEKI_ENUMERATE").unwrap_or_default();
    let explorer = Explorer::new(None);
    if !matches!(wanted.as_str(), "" | "full") {
        explorer.run_one(&sequence(&wanted)).unwrap_or_else(|failure| panic!("{failure}"));
        println!("enumerate: {wanted}: right, {}", explorer.summary());
        return;
    }
    let full = wanted == "full";
    for plan in plans(full) {
        explorer.run(&plan, threads()).unwrap_or_else(|failure| panic!("{failure}"));
        if full {
            println!("up to length {}: {}", plan.length, explorer.summary());
        }
    }
    println!("enumerate: {}", explorer.summary());

    let (all, reduced) = (instances().len(), instances().iter().filter(|instance| instance.reduced).count());
    let ways = |instances: usize, length: u32| ((instances * After::ALL.len()) as u64).pow(length);
    let sampled = |ways: u64, stride: u64| if full { ways } else { ways.div_ceil(stride) };
    let pairs = sampled(ways(all, 2), STRIDE_PAIRS);
    let triples = sampled(ways(reduced, 3), STRIDE_TRIPLES);
    assert_eq!(explorer.sequences(), ways(all, 1) + pairs + triples);
    assert!(explorer.sequences() < explorer.crash_points());
}

/// The choices that `text` names.
fn sequence(text: &str) -> Vec<Choice> {
    let choices = Choice::all(&instances());
    let find = |name: &str| choices.iter().find(|choice| choice.name() == name).cloned();
    text.split(';').map(|name| find(name.trim()).unwrap_or_else(|| panic!("there is no choice {name:?}"))).collect()
}

#[test]
fn names_of_choices_tell_them_apart() {
    let mut names: Vec<String> = Choice::all(&instances()).iter().map(Choice::name).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(sequence(&names.join("; ")).len() == count);
}

/// The quick form finds it.
fn check_found(mistake: Mistake) {
    let explorer = Explorer::new(Some(mistake));
    let found = plans(false).iter().find_map(|plan| explorer.run(plan, 1).err());
    let failure = found.unwrap_or_else(|| panic!("{mistake:?} was not noticed"));
    assert!(failure.contains("KISEKI_ENUMERATE='"), "{failure}");
    println!("{mistake:?} after {} sequences:\n{failure}\n", explorer.sequences());
}

#[test]
fn mistakes_of_fsync_are_found() {
    check_found(Mistake::SkipBarrier);
    check_found(Mistake::CommitBeforePut);
    check_found(Mistake::SkipSync);
    check_found(Mistake::SyncBeforeCommit);
}

#[test]
fn mistakes_of_rename_are_found() {
    check_found(Mistake::RenameDoesNotWait);
    check_found(Mistake::ExchangeWaitsForOne);
    check_found(Mistake::WhiteoutApart);
}

#[test]
fn mistakes_of_order_within_a_file_are_found() {
    check_found(Mistake::LengthWithoutSlice);
    check_found(Mistake::ChmodOvertakes);
}

#[test]
fn mistakes_of_deletion_are_found() {
    check_found(Mistake::DeleteBeforeSync);
    check_found(Mistake::ForgetBeforeDelete);
}

#[test]
fn mistakes_of_the_mount_after_a_crash_are_found() {
    check_found(Mistake::KeepOrphans);
    check_found(Mistake::KeepUncommitted);
}
