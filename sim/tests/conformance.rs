//! The fakes do what the real stores do: the same suites that RocksDB and OpenDAL pass.
#![cfg(madsim)]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;

use kiseki_core::client::{LogOptions, Logged, Opened};
use kiseki_core::env::{Env, MetaStore};
use kiseki_core::testkit::disk_conformance::{self, Left};
use kiseki_core::testkit::power_cut::{self, Power};
use kiseki_core::testkit::{kv_conformance, store_conformance};
use madsim::Config;
use madsim::runtime::{Handle, NodeHandle, Runtime};
use sim::dice::Dice;
use sim::faults::Ending;
use sim::plan::{Knobs, Limits};
use sim::run::format;
use sim::trace::Trace;
use sim::world::{LoggedEnv, Switches, World};

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
    for ending in [Ending::Unmount, Ending::Kill, Ending::PowerCut, Ending::MetaPowerCut] {
        let mut lost = 0;
        for seed in 0..SEEDS {
            lost += in_world(seed, move |world| async move {
                let numbers = kv_conformance::write_before_crash(&world.meta, 50).await;
                world.end(ending);
                let left = kv_conformance::check_after_crash(&world.meta, numbers).await;
                assert!(world.meta.last() >= world.meta.synced());
                numbers.written - left
            });
        }
        assert_eq!(lost > 0, ending != Ending::Unmount, "{ending:?} took {lost} transactions");
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

#[test]
fn the_disk_of_the_log() {
    check(|world| async move { disk_conformance::run(&world.disk).await });
}

/// What the verdict on a real disk allows, the fake does: names, pages and removals are left or not.
#[test]
fn the_disk_of_the_log_after_a_crash() {
    for ending in [Ending::Kill, Ending::PowerCut, Ending::MetaPowerCut] {
        let mut all = Left::default();
        for seed in 0..8 * SEEDS {
            let left = in_world(seed, move |world| async move {
                let past =
                    disk_conformance::write_before_cut(&world.disk, seed, 3 + seed % 20, &Power::default()).await;
                world.end(ending);
                disk_conformance::check_after_cut(&world.disk, &past).await
            });
            all = Left {
                whole: all.whole + left.whole,
                torn: all.torn + left.torn,
                none: all.none + left.none,
                kept: all.kept + left.kept,
                gone: all.gone + left.gone,
            };
        }
        if ending == Ending::Kill {
            assert_eq!((all.torn, all.none, all.gone), (0, 0, 0), "a killed process takes nothing along");
        } else {
            assert!(0 < all.torn.min(all.none).min(all.gone), "some never come up: {all:?}");
        }
        assert!(0 < all.whole.min(all.kept), "some never come up: {all:?}");
    }
}

/// A node, and the store of `world` behind a log on it.
async fn behind_a_log(world: &World, options: LogOptions) -> (NodeHandle, LoggedEnv) {
    let node = Handle::current().create_node().build();
    let opened = Logged::open(world.env(0, node.clone()), world.disk.clone(), options).await;
    let Opened { env, damage } = opened.expect("nothing fails");
    world.opened(&damage);
    (node, env)
}

/// The knobs of the first seed from `seed` on that has a log: large enough for anything, or as it comes.
async fn options(world: &World, seed: u64, large: bool) -> LogOptions {
    let drawn = (seed..).map(|seed| Knobs::draw(&Dice::new(seed, 3))).find(|knobs| knobs.log.is_some());
    let Some(Knobs { geometry, log: Some(log), .. }) = drawn else { unreachable!("most have one") };
    format(world, geometry, Limits::default()).await;
    if large { LogOptions { size_max: 1 << 30, direct_from: u64::MAX, ..log } } else { log }
}

/// The log gives back all that it has, and leaves nothing.
async fn drained(world: &World, env: &LoggedEnv) {
    env.drain().await;
    assert!(env.close().await.expect("nothing fails"), "not drained");
    assert_eq!(world.disk.numbers(), [], "segments stay");
    assert_eq!(world.alarm.check(), Ok(()));
}

#[test]
fn objects_behind_a_log() {
    for seed in 0..SEEDS {
        in_world(seed, move |world| async move {
            let options = options(&world, seed, seed % 2 == 0).await;
            let (_node, env) = behind_a_log(&world, options).await;
            store_conformance::run(env.objects(), 50).await;
            drained(&world, &env).await;
        });
    }
}

#[test]
fn objects_behind_a_log_after_a_crash() {
    for ending in [Ending::Kill, Ending::PowerCut, Ending::MetaPowerCut] {
        for seed in 0..SEEDS {
            in_world(seed, move |world| async move {
                let options = options(&world, seed, seed % 2 == 0).await;
                let (node, env) = behind_a_log(&world, options.clone()).await;
                let numbers = store_conformance::put_before_crash(env.objects(), 50).await;
                Handle::current().kill(node.id());
                world.end(ending);
                let (_node, env) = behind_a_log(&world, options).await;
                let absent = store_conformance::check_after_crash(env.objects(), numbers).await;
                assert!(absent == 0 || ending != Ending::Kill, "a killed process loses no object");
                drained(&world, &env).await;
            });
        }
    }
}

/// What is left behind a log is what a store without one may leave.
#[test]
fn a_power_cut_leaves_no_more_behind_a_log() {
    for seed in 0..4 * SEEDS {
        in_world(seed, move |world| async move {
            let options = options(&world, seed, seed % 2 == 0).await;
            let (node, env) = behind_a_log(&world, options.clone()).await;
            let past = power_cut::write_objects(env.objects(), seed, 6 + seed % 40, &Power::default()).await;
            Handle::current().kill(node.id());
            world.end(if seed % 4 < 2 { Ending::PowerCut } else { Ending::MetaPowerCut });
            let (_node, env) = behind_a_log(&world, options).await;
            past.left(env.objects()).await;
            drained(&world, &env).await;
            past.left(env.objects()).await;
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
