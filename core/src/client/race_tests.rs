//! Calls that overtake each other.

use alloc::vec::Vec;
use alloc::{format, vec};
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

use bytes::Bytes;

use super::driver::TOGETHER;
use super::upkeep::fake::World;
use super::*;
use crate::format::keys;
use crate::meta::SetAttr;
use crate::types::Ino;

/// Lets all others go on once.
async fn pause() {
    let mut waited = false;
    poll_fn(|cx| {
        cx.waker().wake_by_ref();
        if core::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// In a simulated world a reader saw a file of no length: its last name and its last user went while it was looked up,
/// and what was accepted and not committed went with them.
#[test]
fn a_lookup_during_the_end_of_a_file_sees_all_of_it_or_nothing() {
    let (mut found, mut gone) = (0, 0);
    for (before, after) in (0..40).flat_map(|before| (0..20).map(move |after| (before, after))) {
        let world = World::mountable();
        world.state().faults.reads_late = true;
        world.block_on(async {
            let (client, entry, handle) = world.mount_with_file(Options::default()).await;
            client.write(handle, 0, Bytes::from(vec![1; 1000]), false).await.expect("there is space");
            let mut lookup = pin!(client.lookup(Ino::ROOT, b"file"));
            let mut seen = None;
            for _ in 0..before {
                if seen.is_none() {
                    let polled = poll_fn(|cx| Poll::Ready(lookup.as_mut().poll(cx))).await;
                    seen = if let Poll::Ready(result) = polled { Some(result) } else { None };
                    pause().await;
                }
            }
            client.unlink(Ino::ROOT, b"file").await.expect("it is there");
            client.release(handle).await.expect("no error");
            // What removes the inode takes its time.
            world.state().faults.every_third_write = true;
            client.forget(entry.ino, 1);
            for _ in 0..after {
                pause().await;
            }
            let seen = match seen {
                Some(result) => result,
                None => lookup.await,
            };
            world.state().faults.every_third_write = false;
            match seen {
                Ok(entry) => {
                    assert_eq!(entry.attr.length, 1000, "{before} steps before and {after} after");
                    found += 1;
                    client.forget(entry.ino, 1);
                }
                Err(errno) => {
                    assert_eq!(errno, Errno::ENOENT);
                    gone += 1;
                }
            }
            client.unmount().await.expect("an unmount");
        });
    }
    assert!(found > 20 && gone > 20, "{found} {gone}");
}

/// In a simulated world a copy reached its deadline while its transaction was under way: it failed, and a moment later the
/// file had it.
#[test]
fn a_copy_that_is_being_committed_at_its_deadline_is_waited_for() {
    let world = World::mountable();
    let options = Options { store_timeout: Duration::from_millis(500), ..Options::default() };
    world.block_on(async {
        let (client, entry, handle) = world.mount_with_file(options).await;
        client.write(handle, 0, Bytes::from(vec![1; 1000]), false).await.expect("there is space");
        client.fsync(handle).await.expect("no error");
        for (takes, copied) in [(700, Ok(1000)), (1100, Err(Errno::EIO))] {
            world.state().faults.writes_take = Duration::from_millis(takes);
            let length = client.getattr(entry.ino).await.expect("it is there").length;
            assert_eq!(client.copy_range((handle, 0), (handle, length), 1000, false).await, copied, "{takes} ms");
            let longer = client.getattr(entry.ino).await.expect("it is there").length;
            assert_eq!(longer - length, copied.unwrap_or(0), "{takes} ms");
        }
        world.state().faults.writes_take = Duration::ZERO;
        client.release(handle).await.expect("no error");
        client.unmount().await.expect("an unmount");
    });
}

/// In a simulated world a file was removed before it was known that its last commit had taken effect: what that had
/// taken was taken off a figure that it had never been added to, and the volume took more than its capacity.
#[test]
fn what_is_taken_off_with_a_file_was_counted_before() {
    let world = World::mountable();
    world.block_on(async {
        let (client, kept, handle) = world.mount_with_file(Options::default()).await;
        client.write(handle, 0, Bytes::from(vec![1; 5000]), false).await.expect("there is space");
        client.fsync(handle).await.expect("it is stored");
        client.release(handle).await.expect("no error");
        let (removed, handle) = World::new_file(&client, b"removed").await;
        client.write(handle, 0, Bytes::from(vec![2; 3000]), false).await.expect("there is space");
        let used = || world.read(meta::volume::usage).bytes;
        assert_eq!(used(), 5000);
        world.state().faults.answers_lost = true;
        {
            let mut fsync = pin!(client.fsync(handle));
            while used() == 5000 {
                let polled = poll_fn(|cx| Poll::Ready(fsync.as_mut().poll(cx))).await;
                assert!(polled.is_pending(), "nobody knows");
                pause().await;
            }
        }
        world.state().faults.answers_lost = false;
        client.unlink(Ino::ROOT, b"removed").await.expect("it is there");
        client.release(handle).await.expect("no error");
        client.forget(removed.ino, 1);
        while used() > 5000 {
            pause().await;
        }
        pause().await;
        assert!(client.0.space.fits(0, 0, 8000) && !client.0.space.fits(1, 0, 5000));
        client.forget(kept.ino, 1);
        client.unmount().await.expect("an unmount");
    });
}

/// Files that are flushed at once share a transaction; one that cannot be committed keeps none of the others.
#[test]
fn files_are_committed_together() {
    // A truncate is two changes: of the length and of times.
    const FILES: usize = TOGETHER / 2 + 1;
    let world = World::mountable();
    // Nothing is known by heart, so that metadata may change behind its back.
    let options = Options { meta_cache: 0, ..Options::default() };
    world.block_on(async {
        let client = Client::mount(world.clone(), options).await.expect("a mount");
        let mut files = Vec::new();
        for number in 0..FILES {
            let (entry, handle) = World::new_file(&client, format!("{number}").as_bytes()).await;
            client.release(handle).await.expect("no error");
            files.push(entry.ino);
        }
        let length = |ino: &Ino| world.read(|read| meta::attr::load(read, *ino)).length;
        let lengthen = async |length| {
            for ino in &files {
                client.setattr(*ino, SetAttr::default(), Some(length)).await.expect("they are there");
            }
        };
        lengthen(10).await;
        let before = world.state().kv.last();
        client.sync().await.expect("they are committed");
        assert_eq!(world.state().kv.last(), TxnSeq(before.0 + 2), "one more than one transaction takes");
        assert!(files.iter().all(|ino| length(ino) == 10));

        lengthen(20).await;
        // All but its name goes.
        let (gone, others) = files.split_first().expect("there are some");
        world.txn(|txn, _| {
            txn.delete(&keys::attr(*gone));
            Ok(())
        });
        client.sync().await.expect("nobody can see that one");
        assert!(others.iter().all(|ino| length(ino) == 20));
    });
}
