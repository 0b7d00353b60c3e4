use alloc::format;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use super::fake::{Event, Faults, GEOMETRY, World};
use super::*;
use crate::env::Env;
use crate::format::block::LEASE_SLICES;
use crate::meta::{Change, Commit, data, session};

/// Three blocks, the last one short.
const LEN: u32 = 9000;

/// A volume with the file `keep` (slice `id`) and the deleted file `gone` (slices `id + 1`, `id + 2`).
fn deleted_one() -> (World, u64) {
    let world = World::new();
    let (_, lease) = world.session();
    let id = lease.start;
    world.write_file("keep", &[(id, LEN)]);
    world.write_file("gone", &[(id + 1, LEN), (id + 2, 1)]);
    world.remove_file("gone");
    (world, id)
}

#[test]
fn deleted_blocks_go_after_the_sync_and_live_ones_stay() {
    let (world, id) = deleted_one();
    let queued_at = world.last();
    let (collector, _) = world.collector();
    assert_eq!(world.block_on(collector.drain()), Ok(Pass { files: 0, slices: 2, objects: 4 }));
    assert_eq!(world.present(id, LEN), (3, 3));
    assert_eq!(world.present(id + 1, LEN), (0, 3));
    assert_eq!(world.present(id + 2, 1), (0, 1));
    assert_eq!(world.queued(), 0);
    let log = world.state().log.clone();
    assert!(matches!(&log[0], Event::Synced(seq) if queued_at <= *seq), "{log:?}");
    assert_eq!(log.len(), 5);
    assert_eq!(world.block_on(collector.drain()), Ok(Pass::default()));
}

/// Each fault ends the pass with an error and deletes nothing; without it the next pass does everything.
#[test]
fn a_failed_read_or_sync_deletes_nothing() {
    let reads = |count| Faults { reads_left: Some(count), ..Faults::default() };
    let cases = [reads(0), reads(1), reads(2), Faults { sync: true, ..Faults::default() }];
    for faults in cases {
        let (world, id) = deleted_one();
        let (collector, _) = world.collector();
        world.state().faults = faults.clone();
        assert!(world.block_on(collector.drain()).is_err(), "{faults:?}");
        assert!(world.deleted().is_empty(), "{faults:?}");
        assert_eq!(world.queued(), 2);
        world.state().faults = Faults::default();
        assert!(world.block_on(collector.drain()).is_ok());
        assert_eq!((world.present(id + 1, LEN), world.present(id + 2, 1), world.queued()), ((0, 3), (0, 1), 0));
        assert_eq!(world.present(id, LEN), (3, 3));
    }
}

#[test]
fn nothing_is_deleted_while_a_reader_is_inside() {
    let (world, id) = deleted_one();
    let (collector, grace) = world.collector();
    let reader = grace.enter();
    let mut drain = pin!(collector.drain());
    for _ in 0..50 {
        assert!(poll(drain.as_mut()).is_pending());
    }
    assert!(world.deleted().is_empty());
    let later = grace.enter();
    drop(reader);
    assert!(world.block_on(drain).is_ok(), "a reader that came later does not delay it");
    assert_eq!(world.present(id + 1, LEN), (0, 3));
    drop(later);
}

#[test]
fn only_slices_without_objects_leave_the_queue() {
    for count in 0..4 {
        let (world, id) = deleted_one();
        let (collector, _) = world.collector();
        world.state().faults.deletes_left = Some(count);
        assert_eq!(world.block_on(collector.drain()), Err(UpkeepError::Store(StoreError::Retry)));
        let present = [(id + 1, LEN), (id + 2, 1)].map(|(slice, len)| world.present(slice, len).0);
        assert_eq!(present.iter().sum::<usize>(), 4 - count as usize);
        assert!(present.iter().filter(|blocks| 0 < **blocks).count() <= world.queued());
        world.state().faults = Faults::default();
        assert!(world.block_on(collector.drain()).is_ok());
        assert_eq!((world.present(id + 1, LEN).0, world.present(id + 2, 1).0, world.queued()), (0, 0, 0));
    }
}

#[test]
fn a_store_that_does_not_answer_ends_the_pass() {
    let (world, _) = deleted_one();
    let (collector, _) = world.collector();
    world.state().faults.deletes_hang = true;
    assert_eq!(world.block_on(collector.drain()), Err(UpkeepError::Deadline));
    assert_eq!(world.queued(), 2);
}

#[test]
fn files_too_long_for_one_transaction_are_swept_piece_by_piece() {
    let world = World::new();
    let (_, lease) = world.session();
    let slices: Vec<(u64, u32)> = lease.take(1500).map(|slice| (slice, 1)).collect();
    world.write_file("long", &slices);
    world.write_file("cut", &[]);
    world.remove_file("long");
    assert!(world.queued() < 1500);
    let (collector, _) = world.collector();
    assert_eq!(world.block_on(collector.drain()), Ok(Pass { files: 1, slices: 1500, objects: 1500 }));
    assert!(world.state().objects.is_empty());
    assert!(world.read(|read| sweep::delfiles(read, 1)).is_empty());
}

#[test]
fn what_a_cut_covers_goes() {
    let world = World::new();
    let (_, lease) = world.session();
    let slices: Vec<(u64, u32)> = lease.clone().take(200).map(|slice| (slice, LEN)).collect();
    let ino = world.write_file("file", &slices);
    let commit = Commit { ino, number: 1000, changes: vec![Change::Truncate { length: GEOMETRY.chunk_size + 10 }] };
    world.txn(|txn, ctx| data::commit(txn, ctx, &commit));
    let (collector, _) = world.collector();
    assert!(world.block_on(collector.drain()).is_ok());
    for (place, (slice, len)) in slices.iter().enumerate() {
        assert_eq!(world.present(*slice, *len).0, if place < 2 { 3 } else { 0 }, "slice {place}");
    }
    assert!(world.read(|read| sweep::cutfiles(read, 1)).is_empty());
    world.check_nothing_live_is_gone();
}

#[test]
fn orphans_of_crashed_mounts_are_reaped() {
    let world = World::new();
    let (_, lease) = world.session();
    for (place, slice) in lease.clone().take(600).enumerate() {
        let name = format!("file {place}");
        world.write_file(&name, &[(slice, 1)]);
        if 0 < place {
            world.txn(|txn, ctx| remove::unlink(txn, ctx, Ino::ROOT, name.as_bytes()));
        }
    }
    let (collector, _) = world.collector();
    assert_eq!(world.block_on(collector.reap_orphans()), Ok(599));
    assert!(world.read(|read| sweep::orphans(read, None, 1)).is_empty());
    assert!(world.block_on(collector.drain()).is_ok());
    assert_eq!(world.state().objects.len(), 1);
    assert_eq!(world.present(lease.start, 1), (1, 1));
}

#[test]
fn reaping_outlasts_passing_failures_and_gives_up_on_lasting_ones() {
    let world = World::new();
    let (_, lease) = world.session();
    for (place, slice) in lease.take(20).enumerate() {
        let name = format!("file {place}");
        world.write_file(&name, &[(slice, 1)]);
        world.txn(|txn, ctx| remove::unlink(txn, ctx, Ino::ROOT, name.as_bytes()));
    }
    let (collector, _) = world.collector();
    world.state().faults.write = true;
    assert_eq!(world.block_on(collector.reap_orphans()), Err(MetaError::Retry));
    world.state().faults = Faults { every_third_write: true, ..Faults::default() };
    assert!(world.block_on(collector.reap_orphans()).is_ok());
    assert!(world.read(|read| sweep::orphans(read, None, 1)).is_empty());
    assert_eq!(world.queued(), 20);
}

#[test]
fn progress_keeps_the_pauses_short() {
    let world = World::new();
    let (_, lease) = world.session();
    for (place, slice) in lease.take(40).enumerate() {
        let name = format!("file {place}");
        world.write_file(&name, &[(slice, 16 * GEOMETRY.block_size)]);
        world.remove_file(&name);
    }
    let (collector, _) = world.collector();
    world.spawn(Arc::clone(&collector).run());
    for second in 1..=30 {
        world.state().faults.deletes_left = Some(40);
        world.block_on(world.sleep_until(Duration::from_secs(second)));
    }
    assert_eq!((world.queued(), world.state().objects.len()), (0, 0));
    world.block_on(collector.stop());
}

/// A volume on which a session ended that had committed slice `id`, queued `id + 1`, put and not committed `id + 2`,
/// and put one in its second lease; and one that lives and put the first of its ids.
fn ended_session() -> (World, Vec<Range<u64>>, u64) {
    let world = World::new();
    let (ended, lease) = world.session();
    let second = world.txn(|txn, _| crate::meta::volume::lease_slices(txn, ended));
    let id = lease.start;
    world.write_file("keep", &[(id, LEN)]);
    world.write_file("gone", &[(id + 1, LEN)]);
    world.remove_file("gone");
    world.put_slice(id + 2, 16 * GEOMETRY.block_size);
    world.put_slice(second.start + 7, LEN);
    world.txn(|txn, _| session::fence(txn, ended));
    let (_, live) = world.session();
    world.put_slice(live.start, LEN);
    (world, vec![lease, second], live.start)
}

#[test]
fn blocks_that_an_ended_session_did_not_commit_are_collected() {
    let (world, mut leases, live) = ended_session();
    let (id, second) = (leases[0].start, leases[1].start);
    let foreign = format!("{}notes.txt", crate::format::block::lease_prefix(id));
    world.state().objects.insert(foreign.clone(), Default::default());
    let fenced_at = world.last();
    let (collector, _) = world.collector();
    assert_eq!(world.block_on(collector.collect(&mut leases)), Ok(()));
    assert_eq!(world.present(id, LEN), (3, 3), "committed");
    assert_eq!(world.present(id + 1, LEN), (3, 3), "queued: the queue's to delete");
    assert_eq!(world.present(id + 2, 16 * GEOMETRY.block_size), (0, 16));
    assert_eq!(world.present(second + 7, LEN), (0, 3));
    assert_eq!(world.present(live, LEN), (3, 3), "of a session that lives");
    assert!(world.state().objects.contains_key(&foreign));
    assert!(matches!(&world.state().log[0], Event::Synced(seq) if fenced_at <= *seq));
    let left: Vec<u64> = world.read(|read| session::leases(read)).into_iter().map(|(range, _)| range.start).collect();
    assert_eq!(left, [live]);
    assert_eq!(live % LEASE_SLICES, 0);
}

#[test]
fn errors_keep_objects_and_leases() {
    let reads = |count| Faults { reads_left: Some(count), ..Faults::default() };
    let cases = [
        reads(0),
        reads(1),
        reads(2),
        Faults { sync: true, ..Faults::default() },
        Faults { list: true, ..Faults::default() },
        Faults { deletes_left: Some(0), ..Faults::default() },
    ];
    for faults in cases {
        let (world, mut leases, _) = ended_session();
        let (collector, _) = world.collector();
        world.state().faults = faults.clone();
        assert!(world.block_on(collector.collect(&mut leases.clone())).is_err(), "{faults:?}");
        assert!(world.deleted().is_empty(), "{faults:?}");
        assert_eq!(world.read(|read| session::leases(read)).len(), 3);
        world.state().faults = Faults::default();
        assert_eq!(world.block_on(collector.collect(&mut leases)), Ok(()));
        assert_eq!(world.deleted().len(), 19);
        assert_eq!(world.read(|read| session::leases(read)).len(), 1);
    }
}

/// A record that is removed while the scan runs leaves its slice to the queue.
#[test]
fn a_slice_unlinked_during_the_scan_is_left_to_the_queue() {
    for steps in 0.. {
        let (world, mut leases, _) = ended_session();
        let id = leases[0].start;
        let (collector, grace) = world.collector();
        let reader = grace.enter();
        let mut collect = pin!(collector.collect(&mut leases));
        for step in 0..steps {
            if poll(collect.as_mut()).is_ready() {
                assert!(10 < step, "{step}");
                return;
            }
        }
        world.remove_file("keep");
        assert_eq!(world.block_on(collect), Ok(()));
        assert_eq!(world.present(id, LEN), (3, 3), "a reader is inside");
        world.check_nothing_live_is_gone();
        drop(reader);
    }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// The future is dropped and the power cut at every suspension; the work goes on afterwards until it is done.
#[test]
fn a_crash_anywhere_loses_nothing_live_and_forgets_no_garbage() {
    for crash_at in 0.. {
        let (world, leases, live) = ended_session();
        let id = leases[0].start;
        let keys = [(id + 1, LEN), (id + 2, 16 * GEOMETRY.block_size), (leases[1].start + 7, LEN)];
        world.sync_all();
        world.write_file("late", &[(live + 1, LEN)]);
        world.remove_file("late"); // not synced: a power cut brings the name back, or takes the file
        world.remove_file("keep"); // not synced: a power cut brings it back
        let (collector, _) = world.collector();
        let whole = async {
            collector.reap_orphans().await?;
            collector.drain().await?;
            collector.collect(&mut leases.clone()).await
        };
        let finished = {
            let mut whole = pin!(whole);
            let mut polls = 0..crash_at;
            loop {
                match poll(whole.as_mut()) {
                    Poll::Ready(result) => {
                        assert_eq!(result, Ok(()));
                        break true;
                    }
                    Poll::Pending if polls.next().is_none() => break false,
                    Poll::Pending => world.check_nothing_live_is_gone(),
                }
            }
        };
        world.power_cut();
        world.check_nothing_live_is_gone();

        let left: Vec<_> = world.read(|read| session::leases(read)).into_iter().map(|(range, _)| range).collect();
        let mut ended: Vec<_> = left.into_iter().filter(|range| range.start < live).collect();
        assert!(world.block_on(collector.drain()).is_ok());
        assert_eq!(world.block_on(collector.collect(&mut ended)), Ok(()));
        world.check_nothing_live_is_gone();
        for (slice, len) in keys {
            assert_eq!(world.present(slice, len).0, 0, "crash at {crash_at}, slice {slice}");
        }
        if finished {
            assert!(20 < crash_at, "{crash_at}");
            return;
        }
    }
}

#[test]
fn the_task_deletes_soon_after_a_kick_and_tries_again_after_errors() {
    let (world, id) = deleted_one();
    let (collector, _) = world.collector();
    world.spawn(Arc::clone(&collector).run());
    world.state().faults.deletes_left = Some(0);
    world.block_on(world.sleep_until(Duration::from_secs(3)));
    assert_eq!(world.queued(), 2);
    world.state().faults = Faults::default();
    world.block_on(world.sleep_until(Duration::from_secs(10)));
    assert_eq!((world.present(id + 1, LEN).0, world.queued()), (0, 0));

    world.remove_file("keep");
    let kicked = world.now();
    collector.kick();
    world.block_on(world.sleep_until(kicked + 2 * PASS_INTERVAL));
    assert_eq!((world.present(id, LEN).0, world.queued()), (0, 0));

    world.write_file("more", &[(id + 3, LEN)]);
    world.remove_file("more");
    let removed = world.now();
    world.block_on(world.sleep_until(removed + PASS_INTERVAL + TICK));
    assert_eq!(world.present(id + 3, LEN).0, 0, "a tick finds what nobody kicked for");
    world.block_on(collector.stop());
}

#[test]
fn the_task_leaves_the_machine_to_others_for_a_while() {
    let world = World::new();
    let (_, lease) = world.session();
    let remove = |slice| {
        world.write_file("file", &[(slice, 16 * GEOMETRY.block_size)]);
        world.remove_file("file");
        (world.state().deletes_most, world.state().log) = (0, Vec::new());
    };
    let (collector, _) = world.collector();
    assert!(!collector.has_work());
    world.state().busy = true;
    remove(lease.start);
    collector.kick();
    world.spawn(Arc::clone(&collector).run());
    let begun = world.now();
    world.block_on(world.sleep_until(begun + YIELD_MAX - YIELD));
    assert!(world.deleted().is_empty() && collector.has_work());
    world.block_on(world.sleep_until(begun + YIELD_MAX + YIELD));
    assert_eq!((world.queued(), world.state().deletes_most), (0, DELETES_BESIDE), "they have had their time");
    assert!(!collector.has_work());

    remove(lease.start + 1);
    collector.kick();
    world.block_on(world.sleep_until(world.now() + 2 * PASS_INTERVAL));
    assert!(world.deleted().is_empty());
    world.state().busy = false;
    world.block_on(world.sleep_until(world.now() + 2 * YIELD));
    assert_eq!((world.queued(), world.state().deletes_most), (0, DELETES), "they have gone");

    world.state().busy = true;
    world.block_on(world.sleep_until(world.now() + 2 * PASS_INTERVAL));
    remove(lease.start + 2);
    collector.hurry();
    world.block_on(world.sleep_until(world.now() + 2 * YIELD));
    assert_eq!((world.queued(), world.state().deletes_most), (0, DELETES), "the store is full");
    world.block_on(collector.stop());
}

/// Also while the task waits for nothing but a kick, and not for the end of its pause.
#[test]
fn a_kick_is_heard_whenever_it_comes() {
    let world = World::new();
    let (_, lease) = world.session();
    let (collector, _) = world.collector();
    world.spawn(Arc::clone(&collector).run());
    for (slice, tenths) in lease.zip([0, 5, 15, 30, 45]) {
        world.write_file("file", &[(slice, LEN)]);
        world.remove_file("file");
        collector.kick();
        world.block_on(world.sleep_until(world.now() + PASS_INTERVAL));
        assert_eq!(world.queued(), 0, "a kick {tenths} tenths of a second after a pass");
        world.block_on(world.sleep_until(world.now() + Duration::from_millis(100 * tenths)));
    }
    world.block_on(collector.stop());
}

#[test]
fn the_task_does_not_hammer_a_store_that_fails() {
    let (world, _) = deleted_one();
    let (collector, _) = world.collector();
    world.state().faults.deletes_left = Some(0);
    world.spawn(Arc::clone(&collector).run());
    world.block_on(world.sleep_until(Duration::from_secs(300)));
    let passes = world.state().log.len();
    assert!((5..15).contains(&passes), "{passes}");
    world.block_on(collector.stop());
}

#[test]
fn the_task_collects_leases_until_it_succeeds_and_listings_have_settled() {
    let (world, leases, live) = ended_session();
    let id = leases[0].start;
    let (collector, _) = world.collector();
    collector.adopt(leases);
    world.spawn(Arc::clone(&collector).run());
    world.state().faults.list = true;
    world.block_on(world.sleep_until(Duration::from_secs(2)));
    assert_eq!(world.read(|read| session::leases(read)).len(), 3);
    world.state().faults.list = false;
    world.block_on(world.sleep_until(Duration::from_secs(12)));
    assert_eq!(world.present(id + 2, 16 * GEOMETRY.block_size).0, 0, "what a listing shows goes at once");
    assert_eq!(world.read(|read| session::leases(read)).len(), 3);
    // An object that no listing showed so far.
    world.put_slice(id + 3, LEN);
    world.block_on(world.sleep_until(SETTLE + 2 * TICK));
    assert_eq!(world.present(id + 3, LEN).0, 0);
    let left: Vec<u64> = world.read(|read| session::leases(read)).into_iter().map(|(range, _)| range.start).collect();
    assert_eq!(left, [live]);
    world.block_on(collector.stop());
}

#[test]
fn stop_ends_the_task_even_while_the_store_hangs() {
    let (world, _) = deleted_one();
    let (collector, _) = world.collector();
    world.spawn(Arc::clone(&collector).run());
    world.state().faults.deletes_hang = true;
    world.block_on(world.sleep_until(Duration::from_secs(2)));
    let before = world.now();
    world.block_on(collector.stop());
    assert_eq!(world.now(), before);
    world.block_on(collector.stop());

    let (world, _) = deleted_one();
    let (collector, _) = world.collector();
    let run = Arc::clone(&collector).run();
    world.spawn(run);
    world.block_on(collector.stop());
    assert_eq!(world.queued(), 2, "stopped before it began");
    assert_eq!(Arc::strong_count(&collector), 1, "the task is gone");
}

#[test]
fn blocks_of_a_slice_add_up() {
    for (len, expected) in [(0, vec![]), (1, vec![1]), (4096, vec![4096]), (9000, vec![4096, 4096, 808])] {
        let lens: Vec<u32> = blocks(GEOMETRY, SliceId(1), len).map(|id| id.len).collect();
        assert_eq!(lens, expected);
    }
}

#[test]
fn futures_can_be_spawned() {
    fn spawnable<T: Send>(_: T) {}
    let (world, _) = deleted_one();
    let (collector, grace) = world.collector();
    let mut ended = vec![];
    spawnable((collector.drain(), collector.reap_orphans(), collector.collect(&mut ended), collector.stop()));
    spawnable((grace.enter(), grace.quiesce()));
    let (volume, mut progress, mut found) = (world.volume(), |_| (), |_| ());
    spawnable(super::super::check::check(&world, &volume, true, &mut progress, &mut found));
}
