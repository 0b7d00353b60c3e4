//! Packs: what the books say of them.

use super::*;
use crate::errno::Errno;
use crate::format::values::{Pack, Packed};
use crate::meta::packs::{self, Member, Origin};
use crate::meta::session;
use crate::types::{PackId, SliceId};

fn member(slice: u64, at: u32, len: u32) -> Member {
    Member { slice: SliceId(slice), index: 0, at, len }
}

/// A pack of the blocks of these slices, of 10 bytes each.
fn pack(world: &mut World, id: PackId, slices: &[u64], from: Origin) -> Vec<PackId> {
    world.run(|txn, _| packs::begin(txn, id)).unwrap();
    let members: Vec<_> = slices.iter().zip(0..).map(|(slice, at)| (member(*slice, 10 * at, 10), from)).collect();
    world.run(|txn, _| packs::move_to(txn, id, 10 * slices.len() as u32, &members)).unwrap()
}

fn found(world: &mut World, slice: u64) -> Option<PackId> {
    world.read(|read| packs::find(read, SliceId(slice), 0)).unwrap().map(|packed: Packed| packed.pack)
}

fn live(world: &mut World) -> Vec<(PackId, u32)> {
    let all = world.read(|read| packs::all(read, None, usize::MAX)).unwrap();
    all.into_iter().map(|(id, pack): (PackId, Pack)| (id, pack.live)).collect()
}

#[test]
fn a_block_is_in_the_pack_that_it_was_moved_to_last() {
    let mut world = World::new();
    world.run(|txn, _| session::take_id(txn, 5)).unwrap();
    let (first, second) = (PackId::new(5, 1), PackId::new(5, 2));
    assert!(pack(&mut world, first, &[7, 8], Origin::Anywhere).is_empty());
    // Told again, for nobody knew whether it had been told.
    assert!(pack(&mut world, first, &[7, 8], Origin::Anywhere).is_empty());
    assert_eq!(live(&mut world), [(first, 20)]);
    assert!(pack(&mut world, second, &[8, 9], Origin::Anywhere).is_empty());
    assert_eq!(
        (found(&mut world, 7), found(&mut world, 8), found(&mut world, 9)),
        (Some(first), Some(second), Some(second))
    );
    assert_eq!(live(&mut world), [(first, 10), (second, 20)]);
    assert_eq!(
        pack(&mut world, second, &[7, 8, 9], Origin::Anywhere),
        [first],
        "the last block of the first has moved"
    );
    world.check();
}

#[test]
fn a_block_that_went_meanwhile_is_not_moved() {
    let mut world = World::new();
    world.run(|txn, _| session::take_id(txn, 5)).unwrap();
    let (old, new) = (PackId::new(5, 1), PackId::new(5, 2));
    pack(&mut world, old, &[7, 8], Origin::Anywhere);
    let (packed, left) = world.run(|txn, _| packs::remove(txn, SliceId(7), 0)).unwrap().expect("it is there");
    assert_eq!((packed.pack, left.live), (old, 10));
    assert_eq!(world.run(|txn, _| packs::remove(txn, SliceId(7), 0)).unwrap(), None);
    assert_eq!(pack(&mut world, new, &[7, 8], Origin::Pack(old)), [old]);
    assert_eq!((found(&mut world, 7), found(&mut world, 8)), (None, Some(new)));
    world.check();
}

#[test]
fn nothing_is_moved_into_a_condemned_pack() {
    let mut world = World::new();
    world.run(|txn, _| session::take_id(txn, 5)).unwrap();
    let (used, dead) = (PackId::new(5, 1), PackId::new(5, 2));
    pack(&mut world, used, &[7], Origin::Anywhere);
    world.run(|txn, _| packs::begin(txn, dead)).unwrap();
    assert_eq!(world.run(|txn, _| packs::condemn(txn, &[used, dead, PackId::new(5, 3)])).unwrap(), [dead]);
    let moved = world.run(|txn, _| packs::move_to(txn, dead, 10, &[(member(9, 0, 10), Origin::Anywhere)]));
    assert_eq!(moved, Err(Errno::ESTALE.into()));
    world.run(|txn, _| packs::forget(txn, &[used, dead])).unwrap();
    assert_eq!(live(&mut world), [(used, 10)], "a pack in use is forgotten");
    world.check();
}
