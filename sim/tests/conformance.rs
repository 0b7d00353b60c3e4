//! The fakes do what the real stores do: the same suites that RocksDB and OpenDAL pass.
#![cfg(madsim)]

use std::future::Future;

use kiseki_core::env::MetaStore;
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
        let thread = std::thread::spawn(move || {
            let runtime = Runtime::with_seed_and_config(seed, Config::default());
            runtime.block_on(async move {
                let world = World::new(Dice::new(seed, 1), Trace::default(), Switches::default());
                world.faults.set_on(false);
                check(world).await;
            });
        });
        thread.join().unwrap_or_else(|_| panic!("seed {seed}"));
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
