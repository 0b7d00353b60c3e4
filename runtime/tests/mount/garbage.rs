//! What nobody can read any more leaves the object store.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{UNPACKED, Volume, eventually, noise};

/// Mounted so that nothing is committed unless someone asks.
fn lazy() -> Volume {
    let volume = Volume::formatted();
    volume.mount(&["--commit-interval", "1h", UNPACKED[0], UNPACKED[1]]);
    volume
}

/// Four full blocks go out at once, the rest of the file waits for a flush.
fn write_some(volume: &Volume, name: &str) -> File {
    let mut file = File::create(volume.path(name)).expect("creates");
    file.write_all(&noise(1, 300 << 10)).expect("writes");
    eventually("full blocks are put", || volume.blocks() >= 4);
    file
}

#[test]
fn a_large_file_leaves_the_store_within_ten_seconds_of_its_last_close() {
    let volume = Volume::with_blocks_of("4M");
    volume.mount(&[]);
    let mut file = File::create(volume.path("large")).expect("creates");
    let part = noise(1, 1 << 20);
    for _ in 0..1024 {
        file.write_all(&part).expect("writes");
    }
    file.sync_all().expect("syncs");
    assert_eq!(volume.blocks(), 256);
    fs::remove_file(volume.path("large")).expect("removes");
    assert_eq!(volume.blocks(), 256, "an open file keeps its blocks");
    let closed = Instant::now();
    drop(file);
    eventually("the blocks are deleted", || volume.blocks() == 0);
    assert!(closed.elapsed() < Duration::from_secs(10), "{:?}", closed.elapsed());
    volume.unmount();
    volume.check();
}

#[test]
fn blocks_of_a_dirty_file_that_was_unlinked_are_deleted() {
    let volume = lazy();
    let file = write_some(&volume, "dirty");
    fs::remove_file(volume.path("dirty")).expect("removes");
    drop(file);
    volume.remount();
    eventually("the blocks are deleted", || volume.blocks() == 0);
    volume.unmount();
    volume.check();
}

#[test]
fn blocks_that_a_killed_mount_put_and_never_committed_are_deleted_by_the_next() {
    let volume = lazy();
    let kept = noise(2, 200 << 10);
    let mut file = File::create(volume.path("kept")).expect("creates");
    file.write_all(&kept).expect("writes");
    file.sync_all().expect("syncs");
    // Four, the last of them short.
    let of_kept = 4;
    eventually("they are in the store", || volume.blocks() == of_kept);
    let lost = write_some(&volume, "lost");
    eventually("full blocks are put", || volume.blocks() >= of_kept + 4);
    volume.end_by(Signal::KILL);
    drop((file, lost));
    volume.mount(&[]);
    eventually("what was never committed is deleted", || volume.blocks() == of_kept);
    assert!(fs::read(volume.path("kept")).expect("reads") == kept);
    volume.unmount();
    volume.check();
}
