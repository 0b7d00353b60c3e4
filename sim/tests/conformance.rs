//! The fakes do what the real stores do: the same suites that RocksDB and OpenDAL pass.
#![cfg(madsim)]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;

use kiseki_core::env::MetaStore;
use kiseki_core::testkit::power_cut::{self, Power};
use kiseki_core::testkit::{kv_conformance, store_conformance};
use madsim::Config;
use madsim::runtime::Runtime;
use sim::dice::Dice;
use sim::faults::Ending;
use sim::trace::Trace;
use sim::world::{Switches, World};

const SEEDS: u64 = 20;

/// Runs `check` in a world with latency and conflicts in which nothing fails, for each of some seeds.
fn check<F: Future<Output = ()>>(check: impl Fn(World) -> F + Copy + Send + 'static) {
    for seed in 0..SEEDS {
        in_world(seed, check);
    }
}

#[test]
fn metadata() {
    check(|world| async move { kv_conformance::run(&world.meta).await });
}

#[test]
fn metadata_after_a_crash() {
    for ending in [Ending::Kill, Ending::PowerCut, Ending::MetaPowerCut] {
        check(move |world| async move {
            let numbers = kv_conformance::write_before_crash(&world.meta, 50).await;
            world.end(ending);
            let left = kv_conformance::check_after_crash(&world.meta, numbers).await;
            if ending == Ending::Kill {
                assert_eq!(left, numbers.written, "a killed process loses no transaction");
            }
            assert!(world.meta.last() >= world.meta.synced());
        });
    }
}

#[test]
fn objects() {
    check(|world| async move { store_conformance::run(&world.objects, 50).await });
}

#[test]
fn objects_after_a_crash() {
    for ending in [Ending::Kill, Ending::PowerCut, Ending::MetaPowerCut] {
        check(move |world| async move {
            let numbers = store_conformance::put_before_crash(&world.objects, 50).await;
            world.end(ending);
            let absent = store_conformance::check_after_crash(&world.objects, numbers).await;
            assert!(absent == 0 || ending == Ending::PowerCut, "only a power cut of the store loses objects");
        });
    }
}

/// Courses of calls: short ones, which leave few states open.
const COURSES: u64 = 5;
/// Power cuts of a course in which every state that may be left has come up: there are at most 32, equally likely.
const CUTS_MAX: u64 = 1000;

/// Carries out `body` in a world with latency and conflicts in which nothing fails.
fn in_world<T: Send + 'static, F: Future<Output = T>>(seed: u64, body: impl FnOnce(World) -> F + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        let runtime = Runtime::with_seed_and_config(seed, Config::default());
        runtime.block_on(async move {
            let world = World::new(Dice::new(seed, 1), Trace::default(), Switches::default());
            world.faults.set_on(false);
            body(world).await
        })
    });
    thread.join().unwrap_or_else(|_| panic!("seed {seed}"))
}

/// The verdict on what a power cut may leave is also the verdict on real stores (`runtime/tests/powercut.rs`): as the
/// fake leaves everything that it allows, whatever a real store left is something that the fake leaves too.
///
/// `cut` gives what was left of a course after one more power cut, and how many states there are.
fn every_state_comes_up<T: Ord + Debug>(cut: impl Fn(u64, u64) -> (T, usize)) {
    for course in 0..COURSES {
        let (mut found, mut states) = (BTreeSet::new(), 1);
        for number in 0..CUTS_MAX {
            let (left, of) = cut(course, course << 32 | number);
            found.insert(left);
            states = of;
            if found.len() == states {
                break;
            }
        }
        assert_eq!(found.len(), states, "course {course}: some states never come up beside {found:?}");
    }
}

#[test]
fn a_power_cut_leaves_any_prefix_of_the_transactions() {
    every_state_comes_up(|course, seed| {
        in_world(seed, move |world| async move {
            let past = power_cut::write_meta(&world.meta, course, 10 + course, &Power::default()).await;
            world.end(Ending::PowerCut);
            (past.left(&world.meta).await, (past.written - past.synced) as usize + 1)
        })
    });
}

#[test]
fn a_power_cut_leaves_any_of_the_changes_since_the_last_barrier() {
    every_state_comes_up(|course, seed| {
        in_world(seed, move |world| async move {
            let past = power_cut::write_objects(&world.objects, course, 6 + course % 3, &Power::default()).await;
            world.end(Ending::PowerCut);
            (past.left(&world.objects).await, 1 << past.open().len())
        })
    });
}
