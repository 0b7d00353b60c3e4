use alloc::string::String;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::pin;
use core::task::{Context, Waker};

use super::super::upkeep::fake::{GEOMETRY, World, object};
use super::*;
use crate::types::SliceId;

/// Three blocks, the last one short.
const LEN: u32 = 9000;

fn world() -> (World, u64) {
    let world = World::new();
    let (_, lease) = world.session();
    world.write_file("one", &[(lease.start, LEN), (lease.start + 1, 1)]);
    world.write_file("two", &[(lease.start + 2, LEN)]);
    (world, lease.start)
}

fn run(world: &World, data: bool) -> (CheckSummary, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut last = CheckProgress::default();
    let mut progress = |at: CheckProgress| {
        assert!(last.keys <= at.keys && last.blocks <= at.blocks && last.bytes <= at.bytes);
        last = at;
    };
    let mut found = |finding| findings.push(finding);
    let summary = world.block_on(check(world, &world.volume(), data, &mut progress, &mut found));
    (summary.expect("the check runs through"), findings)
}

fn key(slice: u64, index: u32, len: u32) -> String {
    object_key(BlockId { slice: SliceId(slice), index, len })
}

#[test]
fn a_whole_volume_has_no_findings() {
    let (world, _) = world();
    let (quick, findings) = run(&world, false);
    assert_eq!(findings, []);
    assert_eq!((quick.blocks, quick.findings, quick.meta.slices), (7, 0, 3));
    let (full, findings) = run(&world, true);
    assert_eq!(findings, []);
    assert_eq!(full.bytes, world.state().objects.values().map(|object| object.len() as u64).sum::<u64>());
}

/// Each damage is found, also without reading all data where `quick` says so, and names path and object.
#[test]
fn damages_of_blocks_are_found() {
    type Damage = fn(&World, u64);
    let cases: [(&str, Damage, bool, FindingKind, &[&str]); 6] = [
        (
            "missing",
            |w, id| drop(w.state().objects.remove(&key(id, 1, 4096))),
            true,
            FindingKind::MissingBlock,
            &["/one"],
        ),
        ("truncated", |w, id| cut(w, &key(id + 2, 2, 808), 1), true, FindingKind::DamagedBlock, &["/two"]),
        ("cut to nothing", |w, id| cut(w, &key(id + 1, 0, 1), 1000), true, FindingKind::DamagedBlock, &["/one"]),
        ("bit flipped in the head", |w, id| flip(w, &key(id, 0, 4096), 60), true, FindingKind::DamagedBlock, &["/one"]),
        (
            "bit flipped in the data",
            |w, id| flip(w, &key(id, 0, 4096), 4000),
            false,
            FindingKind::DamagedBlock,
            &["/one"],
        ),
        (
            "swapped",
            |w, id| swap(w, &key(id, 0, 4096), &key(id + 2, 0, 4096)),
            true,
            FindingKind::DamagedBlock,
            &["/one", "/two"],
        ),
    ];
    for (name, damage, quick, kind, paths) in cases {
        let (world, id) = world();
        damage(&world, id);
        let (summary, findings) = run(&world, true);
        assert_eq!(findings.iter().map(|finding| finding.path.as_str()).collect::<Vec<_>>(), paths, "{name}");
        assert_eq!(summary.findings, findings.len() as u64);
        assert!(
            findings.iter().all(|finding| finding.kind == kind && finding.text.contains("blocks/")),
            "{findings:?}"
        );
        assert_eq!(run(&world, false).1.len(), if quick { paths.len() } else { 0 }, "{name}");
    }
}

fn cut(world: &World, key: &str, by: usize) {
    let mut state = world.state();
    let object = state.objects.get_mut(key).expect("the object is there");
    object.truncate(object.len().saturating_sub(by));
}

fn flip(world: &World, key: &str, at: usize) {
    let mut state = world.state();
    let object = state.objects.get_mut(key).expect("the object is there");
    let mut bytes = object.to_vec();
    bytes[at] ^= 1;
    *object = bytes.into();
}

fn swap(world: &World, a: &str, b: &str) {
    let mut state = world.state();
    let (first, second) = (state.objects[a].clone(), state.objects[b].clone());
    state.objects.insert(a.into(), second);
    state.objects.insert(b.into(), first);
}

#[test]
fn another_volumes_block_is_damage() {
    let (world, id) = world();
    let block = BlockId { slice: SliceId(id), index: 0, len: 4096 };
    world.state().objects.insert(object_key(block), object(crate::types::VolumeId([9; 16]), block));
    assert_eq!(run(&world, false).1.len(), 1);
}

/// A file that is deleted while the check reads its blocks is no finding.
#[test]
fn what_goes_meanwhile_is_no_finding() {
    for steps in 0..60 {
        let (world, _) = world();
        let (collector, _) = world.collector();
        let mut findings = Vec::new();
        let volume = world.volume();
        let mut progress = |_| ();
        let mut found = |finding| findings.push(finding);
        {
            let mut check = pin!(check(&world, &volume, true, &mut progress, &mut found));
            for _ in 0..steps {
                if check.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    return;
                }
            }
            world.remove_file("one");
            assert!(world.block_on(collector.drain()).is_ok());
            assert!(world.block_on(check).is_ok());
        }
        assert_eq!(findings, [], "{steps}");
    }
}

#[test]
fn a_store_that_refuses_ends_the_check_with_an_error() {
    let (world, id) = world();
    world.state().faults.get = true;
    let result = world.block_on(check(&world, &world.volume(), false, &mut |_| (), &mut |_| ()));
    assert!(matches!(result, Err(CheckError::Store { error: StoreError::Denied, .. })), "{result:?}");
    world.state().faults.get = false;
    assert_eq!(world.present(id, GEOMETRY.block_size), (1, 1));
}
