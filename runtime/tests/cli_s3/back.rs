//! A store that hangs behind a write-back log.

use std::fs::{self, File};
use std::io::Write;

use rustix::process::{PidfdFlags, Signal, kill_process, pidfd_open};

use crate::harness::{Bucket, Mounted, User, ends};
use crate::volume::{eventually, noise};

const IMPATIENT: [&str; 2] = ["--store-timeout", "1s"];

fn write_synced(mounted: &Mounted<'_>, name: &str, contents: &[u8]) {
    let mut file = File::create(mounted.file(name)).unwrap();
    file.write_all(contents).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn fsync_returns_while_the_store_hangs_and_its_bytes_survive_a_kill() {
    let bucket = Bucket::formatted();
    let contents = [noise(1, 300 << 10), noise(2, 40 << 10)];
    let mounted = Mounted::new(&bucket.world, &bucket.user, &IMPATIENT);
    bucket.hang(true);
    for (name, contents) in ["first", "second"].into_iter().zip(&contents) {
        write_synced(&mounted, name, contents);
    }
    let log = &mounted.status()["mount"]["log"];
    assert!(log["objects"] == 6 && log["bytes"].as_u64() > Some(340 << 10), "{log}");
    eventually("the age is told", || mounted.status()["mount"]["log"]["oldest_secs"].as_u64() > Some(0));
    let process = pidfd_open(mounted.pid(), PidfdFlags::empty()).unwrap();
    kill_process(mounted.pid(), Signal::KILL).unwrap();
    ends(&process);
    let ran = mounted.umount(&[]).ends(0);
    assert!(ran.stdout.contains("removed the dead mount"), "{ran:?}");
    std::mem::forget(mounted);
    bucket.hang(false);
    assert_eq!(bucket.server.keys().len(), 1, "the marker of the volume alone");

    let mounted = Mounted::new(&bucket.world, &bucket.user, &[]);
    for (name, contents) in ["first", "second"].into_iter().zip(&contents) {
        assert_eq!(&fs::read(mounted.file(name)).unwrap(), contents);
    }
    mounted.unmount();
    let keys = bucket.server.keys().len();
    assert!((2..=7).contains(&keys), "the marker, and six blocks in packs or by themselves: {keys}");
    let checked = bucket.user.runs(&["fsck", &bucket.world.meta(), "--data", "--json"]).ends(0).json();
    assert_eq!(checked["checked"]["blocks"], 6);
}

#[test]
fn umount_with_a_store_that_hangs_leaves_the_mount_or_the_log() {
    let bucket = Bucket::formatted();
    let mounted = Mounted::new(&bucket.world, &bucket.user, &IMPATIENT);
    bucket.hang(true);
    write_synced(&mounted, "precious", &noise(1, 40 << 10));
    mounted.umount(&[]).fails_with(&["stays mounted", "1 objects", &bucket.url, "--no-drain", "Nothing is lost"]);
    let ran = mounted.umount(&["--no-drain"]).ends(0);
    assert!(ran.stdout.contains("in 1 objects stay in the write-back log"), "{ran:?}");
    std::mem::forget(mounted);
    bucket.hang(false);
    // Without a mount it is seen in the log.
    let checked = bucket.user.runs(&["fsck", &bucket.world.meta(), "--data", "--json"]).ends(0).json();
    assert_eq!(checked["checked"]["blocks"], 1);
    assert_eq!(bucket.server.keys().len(), 1);
    let status = User::without_keys().runs(&["status", &bucket.world.meta(), "--json"]).ends(0).json();
    assert!(status["volume"]["log"].is_string(), "{status}");

    let mounted = Mounted::new(&bucket.world, &bucket.user, &[]);
    assert_eq!(fs::read(mounted.file("precious")).unwrap(), noise(1, 40 << 10));
    eventually("it is put", || bucket.server.keys().len() == 2);
    mounted.unmount();
}

#[test]
fn a_forced_umount_goes_on_until_the_store_has_everything() {
    let bucket = Bucket::formatted();
    let mounted = Mounted::new(&bucket.world, &bucket.user, &IMPATIENT);
    bucket.hang(true);
    write_synced(&mounted, "precious", &noise(1, 40 << 10));
    eventually("the failure is known", || mounted.status()["mount"]["store"]["ok"] == false);
    let process = pidfd_open(mounted.pid(), PidfdFlags::empty()).unwrap();
    let ran = mounted.umount(&["--force"]).ends(0);
    for text in ["detached", "in 1 objects", "write-back log only", "--no-drain"] {
        assert!(ran.stdout.contains(text), "{text}: {ran:?}");
    }
    bucket.hang(false);
    ends(&process);
    assert!(mounted.log().contains("everything is stored"), "{}", mounted.log());
    std::mem::forget(mounted);
    assert_eq!(bucket.server.keys().len(), 2);
}
