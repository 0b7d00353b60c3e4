//! Volumes that earlier versions made, byte for byte as they lay on the disk: this version reads all of it, and refuses
//! what it does not know. `golden/make.sh` made them.

mod volume;

use std::fs;
use std::path::Path;
use std::process::Command;

use kiseki_core::format::keys;
use volume::{Ran, World, kiseki};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// Unpacks a golden volume into `meta`, `bucket` and `MANIFEST`, and tells it where its objects are.
fn unpack(archive: &str) -> World {
    let world = World::new();
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(Path::new(GOLDEN).join(archive)).arg("-C").arg(world.path(""));
    Ran::from(tar.output().expect("tar runs")).ends(0);
    world
}

fn move_bucket(world: &World) -> Ran {
    kiseki(&["format", &world.meta(), "golden", "--bucket", &world.text("bucket"), "--force"])
}

/// Equal line by line, for a failure to show the line.
#[track_caller]
fn assert_lines(listed: &str, expected: &str) {
    for (listed, expected) in listed.lines().zip(expected.lines()) {
        assert_eq!(listed, expected);
    }
    assert_eq!(listed.len(), expected.len());
}

/// The golden volume of this version reads as it was written, is whole, and can be written to.
fn reads_as_it_was_written(version: u64, blocks: u64) {
    let world = unpack(&format!("volume-v{version}.tar"));
    move_bucket(&world).ends(0);
    assert_eq!(kiseki(&["status", &world.meta(), "--json"]).ends(0).json()["volume"]["version"], version);
    // Recorded of it besides its tree.
    let features = 2 <= version;
    let checked = kiseki(&["fsck", &world.meta(), "--data", "--json"]).ends(0).json();
    assert!(checked["checked"]["blocks"].as_u64().unwrap() >= blocks, "{checked}");

    fs::create_dir(world.path("mnt")).unwrap();
    let (meta, mnt, log) = (world.meta(), world.text("mnt"), world.text("log"));
    kiseki(&["mount", "-d", "--read-only", "--log", &log, &meta, &mnt]).ends(0);
    let run = |script: &str| Command::new(Path::new(GOLDEN).join(script)).arg(&mnt).output();
    let listed = run("list.sh");
    let found = features.then(|| run("features.py"));
    let xattr = |name: &str, xattr: &str| {
        let mut value = [0; 16];
        let len = rustix::fs::getxattr(world.path("mnt").join(name), xattr, &mut value[..])?;
        Ok::<_, rustix::io::Errno>(value[..len].to_vec())
    };
    let (note, folder) = (xattr("docs/inline", "user.note"), xattr("docs", "user.folder"));
    kiseki(&["umount", &mnt]).ends(0);

    let expected = |name: &str| fs::read_to_string(world.path(name)).unwrap();
    assert_lines(&Ran::from(listed.expect("list.sh runs")).ends(0).stdout, &expected("MANIFEST"));
    if let Some(found) = found {
        assert_lines(&Ran::from(found.expect("features.py runs")).ends(0).stdout, &expected("FEATURES"));
    }
    assert_eq!(note, Ok(b"a\0b".to_vec()));
    assert_eq!(folder, Ok(vec![]));

    // It can be written to.
    kiseki(&["mount", "-d", "--log", &log, &meta, &mnt]).ends(0);
    let append = fs::read(world.path("mnt/docs/inline")).and_then(|old| {
        fs::write(world.path("mnt/docs/inline"), [&old[..], b"and more\n"].concat())?;
        fs::remove_file(world.path("mnt/docs/blocks"))?;
        // The other file goes on with the slices.
        if features { fs::remove_file(world.path("mnt/features/shared")) } else { Ok(()) }
    });
    kiseki(&["umount", &mnt]).ends(0);
    append.unwrap();
    kiseki(&["fsck", &meta, "--data"]).ends(0);
}

#[test]
fn a_volume_of_version_1_reads_as_it_was_written() {
    reads_as_it_was_written(1, 3);
}

#[test]
fn a_volume_of_version_2_reads_as_it_was_written() {
    reads_as_it_was_written(2, 7);
}

#[test]
fn a_volume_of_a_later_version_is_refused_and_not_touched() {
    let world = unpack("volume-v1.tar");
    move_bucket(&world).ends(0);
    let version = |version: u32| {
        world.change(|txn| {
            let volume = txn.get(&keys::volume())?.expect("a volume");
            // The version says how the rest is read, so its place never changes: behind that of values.
            let mut bytes = volume.to_vec();
            bytes[1..5].copy_from_slice(&version.to_be_bytes());
            txn.put(&keys::volume(), &bytes);
            Ok(())
        });
    };
    version(3);
    fs::create_dir(world.path("mnt")).unwrap();
    let (meta, mnt) = (world.meta(), world.text("mnt"));
    for args in [&["mount", &meta, &mnt][..], &["mount", "-d", &meta, &mnt], &["fsck", &meta], &["status", &meta]] {
        kiseki(args).fails_with(&["format version 3", "versions up to 2", "newer kiseki"]);
    }
    move_bucket(&world).fails_with(&["format version 3"]);
    version(1);
    kiseki(&["fsck", &meta, "--data"]).ends(0);
}
