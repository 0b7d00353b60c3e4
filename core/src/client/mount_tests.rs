//! What a mount knows of its volume from the first moment on.

use alloc::vec;

use bytes::Bytes;

use super::upkeep::fake::World;
use super::*;
use crate::format::keys;
use crate::format::values::{VOLUME_VERSION, Value};
use crate::meta::{SECURITY_CAPABILITY, XattrMode};
use crate::types::Ino;

/// A world whose volume was formatted with other settings.
fn world(change: impl FnOnce(&mut Volume)) -> World {
    let world = World::mountable();
    let mut volume = world.volume();
    change(&mut volume);
    world.txn(|txn, _| {
        txn.put(&keys::volume(), &volume.encode());
        Ok(())
    });
    world
}

#[test]
fn a_volume_that_is_nearly_full_is_so_after_a_mount() {
    let world = world(|volume| volume.capacity = 10_000);
    let flags = OpenFlags { write: true, ..OpenFlags::default() };
    world.block_on(async {
        let (client, entry, handle) = world.mount_with_file(Options::default()).await;
        client.write(handle, 0, Bytes::from(vec![1; 9000]), false).await.expect("there is space");
        client.release(handle).await.expect("no error");
        client.unmount().await.expect("an unmount");

        let client = Client::mount(world.clone(), Options::default()).await.expect("a mount");
        let usage = client.statfs().await.expect("an answer");
        assert_eq!((usage.capacity_bytes, usage.used_bytes, usage.used_inodes), (10_000, 9000, 2));
        let handle = client.open(entry.ino, flags).await.expect("it is there");
        let more = client.write(handle, 9000, Bytes::from(vec![2; 2000]), false).await;
        assert_eq!(more, Err(Errno::ENOSPC));
        assert_eq!(client.write(handle, 9000, Bytes::from(vec![2; 1000]), false).await, Ok(()));
        client.release(handle).await.expect("no error");
        client.unmount().await.expect("an unmount");
    });
}

/// Where memory runs short once, what is written after it keeps its time until it is flushed.
#[test]
fn short_memory_flushes_once_unless_somebody_waits() {
    let world = world(|_| {});
    let options = Options { buffer_size: 1 << 20, commit_interval: Duration::from_secs(3600), ..Options::default() };
    world.block_on(async {
        let (client, _, handle) = world.mount_with_file(options).await;
        let all = Bytes::from(vec![1; 600 << 10]);
        client.write(handle, 0, all, false).await.expect("there is space");
        client.write(handle, 700 << 10, Bytes::from(vec![2; 1000]), false).await.expect("there is space");
        world.sleep_until(world.now() + Duration::from_secs(60)).await;
        assert_eq!(client.status().await.expect("an answer").dirty_bytes, 1000);
        client.release(handle).await.expect("no error");
        client.unmount().await.expect("an unmount");
    });
}

#[test]
fn what_is_removed_leaves_memory() {
    let world = world(|_| {});
    world.block_on(async {
        let (client, entry, handle) = world.mount_with_file(Options::default()).await;
        let (_, other) = World::new_file(&client, b"other").await;
        for handle in [handle, other] {
            client.write(handle, 0, Bytes::from(vec![1; 100_000]), false).await.expect("there is space");
            client.fsync(handle).await.expect("no error");
            client.release(handle).await.expect("no error");
        }
        let both = client.used_memory();
        assert!(both > 200_000, "{both} bytes");
        client.unlink(Ino::ROOT, b"file").await.expect("it is there");
        client.forget(entry.ino, 1);
        let end = world.now() + Duration::from_secs(60);
        while client.used_memory() == both {
            assert!(world.now() < end, "it stays in memory");
            world.step_aside().await;
        }
        assert_eq!(client.used_memory(), both / 2);
        client.unmount().await.expect("an unmount");
    });
}

#[test]
fn what_was_written_is_committed_at_the_interval_and_not_before() {
    let world = world(|_| {});
    let options = Options { commit_interval: Duration::from_secs(5), ..Options::default() };
    world.block_on(async {
        let (client, _, handle) = world.mount_with_file(options).await;
        client.write(handle, 0, Bytes::from(vec![1; 1000]), false).await.expect("there is space");
        let start = world.now();
        for (at, dirty) in [(1, 1000), (6, 0)] {
            world.sleep_until(start + Duration::from_secs(at)).await;
            assert_eq!(client.status().await.expect("an answer").dirty_bytes, dirty, "after {at} s");
        }
        client.release(handle).await.expect("no error");
        client.unmount().await.expect("an unmount");
    });
}

#[test]
fn a_volume_of_a_later_format_is_named_and_a_failed_read_is_not_taken_for_one() {
    let later = world(|volume| volume.version = VOLUME_VERSION + 1);
    let mounted = later.block_on(Client::mount(later.clone(), Options::default()));
    assert!(matches!(mounted.err(), Some(MountError::Version(version)) if version == VOLUME_VERSION + 1));

    let world = world(|_| {});
    world.state().faults.read_once = true;
    let mounted = world.block_on(Client::mount(world.clone(), Options::default()));
    assert!(matches!(mounted.err(), Some(MountError::Meta(MetaError::Retry))));
}

/// Whether the handle that writes knows the file from its creation, from before the attribute was set, or from after.
#[test]
fn a_write_takes_capabilities_away_that_were_set_at_any_time() {
    let world = world(|_| {});
    let flags = OpenFlags { write: true, ..OpenFlags::default() };
    world.block_on(async {
        let (client, entry, created) = world.mount_with_file(Options::default()).await;
        let set = async || {
            let value = Bytes::from_static(b"capable");
            client.setxattr(entry.ino, SECURITY_CAPABILITY, value, XattrMode::Either).await.expect("is set");
        };
        let is_there = async || client.getxattr(entry.ino, SECURITY_CAPABILITY).await.is_ok();
        let data = Bytes::from_static(b"contents");
        for _ in 0..2 {
            set().await;
            assert_eq!(client.write_now(created, 0, &data, false), Ok(false), "it has to wait");
            client.write(created, 0, data.clone(), false).await.expect("there is space");
            assert!(!is_there().await);
            assert_eq!(client.write_now(created, 0, &data, false), Ok(true));
        }
        set().await;
        client.fsync(created).await.expect("stores are there");
        client.release(created).await.expect("no error");
        let opened = client.open(entry.ino, flags).await.expect("it is there");
        assert!(is_there().await);
        client.write(opened, 0, data, false).await.expect("there is space");
        assert!(!is_there().await);
        client.release(opened).await.expect("no error");
        client.unmount().await.expect("an unmount");
    });
}

#[test]
fn memory_that_no_dirty_bytes_need_caches_blocks_until_they_do() {
    let world = world(|_| {});
    let buffer_size = 4 << 20;
    let options = Options { buffer_size, commit_interval: Duration::from_secs(3600), ..Options::default() };
    world.block_on(async {
        let (client, _, handle) = world.mount_with_file(options).await;
        let piece = Bytes::from(vec![1; 64 << 10]);
        let (mut most, mut cached) = (0, 0);
        for round in 0..256 {
            client.write(handle, round * piece.len() as u64, piece.clone(), false).await.expect("there is space");
            if round % 20 == 19 {
                client.fsync(handle).await.expect("stores are there");
                cached = cached.max(client.status().await.expect("an answer").cached_bytes);
            }
            most = most.max(client.used_memory());
        }
        // All at once, before anything of it can be committed.
        client.fsync(handle).await.expect("stores are there");
        client.write(handle, 0, Bytes::from(vec![2; 2500 << 10]), false).await.expect("there is space");
        most = most.max(client.used_memory());
        assert!(most <= buffer_size, "{most} bytes");
        assert!(buffer_size / 2 < cached, "{cached} bytes are cached, a quarter is the cache's own");
        client.release(handle).await.expect("no error");
        client.unmount().await.expect("an unmount");
    });
}
