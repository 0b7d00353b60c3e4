//! Every short sequence of operations, and every crash of each: what ACE and CrashMonkey do to file systems
//! (Mohan et al., OSDI 2018: nearly all crash bugs known need at most three operations on a fresh file system and a
//! call that makes something durable).
//!
//! In plain `core`, without an executor and without chance: the file machines and the metadata operations, composed as
//! `client` does, with nothing in front of the object store, with the write-back log, and with the log and packs. Where the
//! simulator tries long lives with all kinds of faults at random, this leaves nothing out of short ones; it knows no
//! failing store or disk and no two operations at once.
//!
//! `KISEKI_ENUMERATE=full`: all sequences of up to two operations and all of three over a reduced set (with a log, a sample
//! of these), which takes minutes; otherwise all of one and a fixed sample of the others. Where there is one operation, the
//! mount after a crash is crashed, too (with a log, the quick form does that to a sample).
//! `KISEKI_ENUMERATE='through: create(/A/z)+fsync; ...'`: that sequence alone, as a failure shows it.

mod choices;
mod explore;
mod kernel;
mod mistakes;
mod promises;
mod recovery;
mod world;

use choices::{Choice, Instance, instances};
use explore::{Explorer, Plan};
use mistakes::Mistake;
use world::Form;

/// The plans of the full form, or of the quick one, which takes one sequence of so many; so does the full form of those
/// of three with a log. (primes, so that a sample meets every choice at every place)
fn plans(form: Form, full: bool) -> Vec<Plan> {
    let (twice_crashed, pairs, triples) = match (form, full) {
        (Form::Through, true) => (1, 1, 1),
        (Form::Through, false) => (1, 97, 1009),
        (Form::Logged | Form::Packed, true) => (1, 1, 31),
        (Form::Logged | Form::Packed, false) => (7, 499, 5003),
    };
    let all = instances();
    let reduced: Vec<Instance> = all.iter().filter(|instance| instance.reduced).cloned().collect();
    let plan = |instances: &[Instance], length, stride, crash_recovery| Plan {
        form,
        choices: Choice::all(instances),
        length,
        stride,
        crash_recovery,
    };
    let mut plans = vec![plan(&all, 1, twice_crashed, true)];
    if twice_crashed > 1 {
        plans.push(plan(&all, 1, 1, false));
    }
    plans.extend([plan(&all, 2, pairs, false), plan(&reduced, 3, triples, false)]);
    plans
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(2))
}

#[test]
fn every_crash_of_every_short_sequence_is_explained() {
    let wanted = std::env::var("KISEKI_ENUMERATE").unwrap_or_default();
    let explorer = Explorer::new(None);
    if !matches!(wanted.as_str(), "" | "full") {
        let (form, choices) = sequence(&wanted);
        explorer.run_one(form, &choices).unwrap_or_else(|failure| panic!("{failure}"));
        println!("enumerate: {wanted}: right, {}", explorer.summary());
        return;
    }
    let full = wanted == "full";
    let mut expected = 0;
    for form in Form::ALL {
        for plan in plans(form, full) {
            expected += plan.count();
            explorer.run(&plan, threads()).unwrap_or_else(|failure| panic!("{failure}"));
            if full {
                println!("{} up to length {}: {}", form.name(), plan.length, explorer.summary());
            }
        }
    }
    println!("enumerate: {}", explorer.summary());
    assert_eq!(explorer.sequences(), expected);
    assert!(explorer.sequences() < explorer.crash_points());
}

/// The form and the choices that `text` names.
fn sequence(text: &str) -> (Form, Vec<Choice>) {
    let forms = Form::ALL.into_iter().find_map(|form| Some((form, text.strip_prefix(form.name())?.strip_prefix(':')?)));
    let (form, names) = forms.unwrap_or((Form::Through, text));
    let choices = Choice::all(&instances());
    let find = |name: &str| choices.iter().find(|choice| choice.name() == name).cloned();
    let choices =
        names.split(';').map(|name| find(name.trim()).unwrap_or_else(|| panic!("there is no choice {name:?}")));
    (form, choices.collect())
}

#[test]
fn names_of_choices_tell_them_apart() {
    let mut names: Vec<String> = Choice::all(&instances()).iter().map(Choice::name).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
    assert_eq!(sequence(&names.join("; ")).1.len(), count);
}

/// The quick form finds each of them.
fn check_found(form: Form, mistakes: &[Mistake]) {
    for mistake in mistakes {
        let explorer = Explorer::new(Some(*mistake));
        let found = plans(form, false).iter().find_map(|plan| explorer.run(plan, 1).err());
        let failure = found.unwrap_or_else(|| panic!("{mistake:?} was not noticed"));
        assert!(failure.contains("KISEKI_ENUMERATE='"), "{failure}");
        println!("{mistake:?} after {} sequences:\n{failure}\n", explorer.sequences());
    }
}

#[test]
fn mistakes_of_fsync_are_found() {
    check_found(
        Form::Through,
        &[Mistake::SkipBarrier, Mistake::CommitBeforePut, Mistake::SkipSync, Mistake::SyncBeforeCommit],
    );
}

#[test]
fn mistakes_of_rename_are_found() {
    check_found(Form::Through, &[Mistake::RenameDoesNotWait, Mistake::ExchangeWaitsForOne, Mistake::WhiteoutApart]);
}

#[test]
fn mistakes_of_order_within_a_file_are_found() {
    check_found(Form::Through, &[Mistake::LengthWithoutSlice, Mistake::ChmodOvertakes]);
}

#[test]
fn mistakes_of_deletion_are_found() {
    check_found(
        Form::Through,
        &[Mistake::DeleteBeforeSync, Mistake::ForgetBeforeDelete, Mistake::DeleteWithoutBarrier],
    );
}

#[test]
fn mistakes_of_the_mount_after_a_crash_are_found() {
    check_found(Form::Through, &[Mistake::KeepOrphans, Mistake::KeepUncommitted]);
}

#[test]
fn mistakes_of_the_log_are_found() {
    check_found(
        Form::Logged,
        &[
            Mistake::BarrierLeavesLog,
            Mistake::DirectUncovered,
            Mistake::SegmentBeforeBarrier,
            Mistake::DeleteUnrecorded,
            Mistake::TornAccepted,
            Mistake::LogUnlisted,
        ],
    );
}

#[test]
fn mistakes_of_packs_are_found() {
    check_found(
        Form::Packed,
        &[
            Mistake::PackUnannounced,
            Mistake::PackUnsynced,
            Mistake::PackDeletedInUse,
            Mistake::PackForgottenFirst,
            Mistake::RewriteUncovered,
            Mistake::KeepPacks,
        ],
    );
}
