//! Names under calls that overtake each other.

use alloc::vec;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

use bytes::Bytes;

use super::upkeep::fake::World;
use super::*;
use crate::format::block::encode_marker;
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
    let flags = OpenFlags { write: true, ..OpenFlags::default() };
    let caller = Caller { uid: 0, gid: 0, umask: None };
    let (mut found, mut gone) = (0, 0);
    for (before, after) in (0..40).flat_map(|before| (0..20).map(move |after| (before, after))) {
        let world = World::new();
        world.state().objects.insert(VOLUME_OBJECT.into(), encode_marker(world.volume().id));
        world.state().faults.reads_late = true;
        world.block_on(async {
            let client = Client::mount(world.clone(), Options::default()).await.expect("a mount");
            let (entry, handle) = client.create(caller, Ino::ROOT, b"file", 0o644, flags).await.expect("a file");
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
