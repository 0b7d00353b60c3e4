//! Objects that change behind our back, in a bucket and in a folder.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::Errno;

use crate::harness::{Bucket, Mounted, User, errno};
use crate::volume::{NAME, World, noise};

/// Objects damaged behind our back: EIO for the files they belong to, named in the log; never wrong bytes.
fn damage_is_told(world: &World, user: &User, objects: &Path) {
    const LEN: usize = 160 << 10;
    let names = ["flipped", "swapped-1", "swapped-2", "truncated", "deleted", "whole"];
    let mounted = Mounted::new(world, user, &["--pack-below", "0"]);
    fs::create_dir(mounted.file("dir")).unwrap();
    let mut keys = Vec::new();
    for (seed, name) in names.iter().enumerate() {
        let path = mounted.file("dir").join(name);
        fs::write(&path, noise(seed as u64, LEN)).unwrap();
        fs::File::open(&path).and_then(|file| file.sync_all()).unwrap();
        let info = user.runs(&["info", path.to_str().unwrap(), "--json"]).ends(0).json();
        let key = info["slices"][0]["blocks"][1].as_str().unwrap_or_else(|| panic!("{info}"));
        keys.push(key.to_owned());
    }
    mounted.unmount();
    let object = |index: usize| objects.join(&keys[index]);
    let mut bytes = fs::read(object(0)).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(object(0), bytes).unwrap();
    let aside = objects.join("aside");
    fs::rename(object(1), &aside).unwrap();
    fs::rename(object(2), object(1)).unwrap();
    fs::rename(&aside, object(2)).unwrap();
    let cut = fs::File::options().write(true).open(object(3)).unwrap();
    cut.set_len(cut.metadata().unwrap().len() / 2).unwrap();
    fs::remove_file(object(4)).unwrap();

    let mounted = Mounted::new(world, user, &[]);
    for (index, name) in names.iter().enumerate() {
        let path = mounted.file("dir").join(name);
        let contents = noise(index as u64, LEN);
        if *name == "whole" {
            assert_eq!(fs::read(&path).unwrap(), contents);
            continue;
        }
        assert_eq!(errno(fs::read(&path)), Err(Errno::IO), "{name}");
        // Page by page: what can be read is right, and the damaged block cannot.
        let file = fs::File::open(&path).unwrap();
        let mut failed = Vec::new();
        for offset in (0..LEN).step_by(16 << 10) {
            let mut page = vec![0; 4 << 10];
            match errno(file.read_exact_at(&mut page, offset as u64)) {
                Ok(()) => assert!(page == contents[offset..offset + page.len()], "{name}: wrong bytes at {offset}"),
                Err(errno) => {
                    assert_eq!(errno, Errno::IO, "{name}");
                    failed.push(offset);
                }
            }
        }
        assert!((64 << 10..128 << 10).step_by(16 << 10).all(|offset| failed.contains(&offset)), "{name}: {failed:?}");
        let log = mounted.log();
        let told = log.lines().any(|line| line.contains("ERROR") && line.contains(name) && line.contains(&keys[index]));
        assert!(told, "{name}, {}: {log}", keys[index]);
    }
    let ran = user.runs(&["fsck", mounted.text(), "--data"]).ends(3);
    for name in &names[..5] {
        assert!(ran.stdout.contains(&format!("/dir/{name}: ")), "{name}: {ran:?}");
    }
    assert!(!ran.stdout.contains("whole"), "{ran:?}");
    fs::write(mounted.file("dir/still-works"), "yes").unwrap();
    mounted.unmount();
}

#[test]
fn damage_in_a_bucket_is_told_and_never_read() {
    let bucket = Bucket::formatted();
    damage_is_told(&bucket.world, &bucket.user, &bucket.server.bucket().join(NAME));
}

#[test]
fn damage_in_a_folder_is_told_and_never_read() {
    let world = World::new();
    world.format(&["--block-size", "64K"]).ends(0);
    damage_is_told(&world, &User::without_keys(), &world.prefix());
}
