//! `kiseki fsck`: every damage is found, named by its path, and told by exit code 3; a sound volume has no findings.

mod volume;

use std::fs;
use std::path::PathBuf;

use kiseki_core::format::block::object_key;
use kiseki_core::format::keys::{self, Counter};
use kiseki_core::format::values::{DelSlice, Dentry, Value};
use kiseki_core::meta::{self, data};
use kiseki_core::types::{Attr, BlockId, FileType, Ino, Place, SliceId, SliceRecord};
use volume::{World, kiseki, mkdir, noise, write_file};

const BLOCK: u32 = 64 << 10;

/// A volume with `/docs/first` and `/docs/second` (four blocks each), `/docs/small` (inline) and `/alias`, a second
/// name of `/docs/small`.
struct Volume {
    world: World,
    docs: Ino,
    first: Ino,
    second: Ino,
}

impl Volume {
    fn new() -> Self {
        let world = World::new();
        world.format(&["--block-size", "64K"]).ends(0);
        let (docs, first, second) = world.with_client(|client| async move {
            let docs = mkdir(&client, Ino::ROOT, "docs").await;
            let first = write_file(&client, docs, "first", &noise(1, 4 * BLOCK as usize)).await;
            let second = write_file(&client, docs, "second", &noise(2, 4 * BLOCK as usize)).await;
            let small = write_file(&client, docs, "small", b"a few bytes").await;
            client.link(small, Ino::ROOT, b"alias").await.expect("links");
            (docs, first, second)
        });
        Self { world, docs, first, second }
    }

    /// The only slice of a file.
    fn slice(&self, ino: Ino) -> SliceRecord {
        let records = self.world.change(|txn| {
            let geometry = meta::volume::load(txn.as_read())?.geometry;
            data::chunk(txn.as_read(), &geometry, ino, 0)
        });
        assert_eq!(records.len(), 1, "the file was written in one go");
        records[0].1.clone()
    }

    /// The object of a block.
    fn object(&self, ino: Ino, index: u32) -> PathBuf {
        let id = BlockId { slice: self.slice(ino).slice, index, len: BLOCK };
        self.world.prefix().join(object_key(id))
    }

    /// The findings as (kind, path), in order; the exit code agrees with them.
    fn findings(&self, more: &[&str]) -> Vec<(String, String)> {
        let meta = self.world.meta();
        let ran = kiseki(&[&["fsck", &meta, "--json"], more].concat());
        let document = ran.json();
        let findings = document["findings"].as_array().expect("findings").clone();
        assert_eq!(document["checked"]["findings"], findings.len() as u64, "{ran:?}");
        let text = |finding: &serde_json::Value, key: &str| finding[key].as_str().expect(key).to_owned();
        let found: Vec<_> = findings.iter().map(|f| (text(f, "kind"), text(f, "path"))).collect();
        ran.ends(if found.is_empty() { 0 } else { 3 });
        found
    }

    #[track_caller]
    fn finds(&self, more: &[&str], kind: &str, path: &str) {
        let found = self.findings(more);
        assert!(found.iter().any(|(k, p)| k == kind && p == path), "expected {kind} at {path}: {found:?}");
        // People see the same as programs.
        let meta = self.world.meta();
        let ran = kiseki(&[&["fsck", &meta], more].concat()).ends(3);
        let line = format!("{}: {kind}: ", if path.is_empty() { "(volume)" } else { path });
        assert!(ran.stdout.lines().any(|l| l.starts_with(&line)), "expected \"{line}\": {ran:?}");
    }
}

#[test]
fn a_sound_volume_has_no_findings() {
    let volume = Volume::new();
    assert_eq!(volume.findings(&[]), []);
    assert_eq!(volume.findings(&["--data"]), []);
    let ran = kiseki(&["fsck", &volume.world.meta(), "--data"]).ends(0);
    assert!(ran.stdout.starts_with("no findings: "), "{ran:?}");
    assert!(ran.stdout.contains(" 8 blocks"), "{ran:?}");
}

#[test]
fn a_missing_block_is_found() {
    let volume = Volume::new();
    fs::remove_file(volume.object(volume.first, 2)).unwrap();
    volume.finds(&[], "block missing", "/docs/first");
    volume.finds(&["--data"], "block missing", "/docs/first");
}

#[test]
fn a_truncated_block_is_found() {
    let volume = Volume::new();
    let path = volume.object(volume.first, 3);
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    volume.finds(&[], "block damaged", "/docs/first");
    volume.finds(&["--data"], "block damaged", "/docs/first");
}

#[test]
fn a_flipped_bit_is_found_by_reading_the_data() {
    let volume = Volume::new();
    let path = volume.object(volume.second, 1);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, bytes).unwrap();
    assert_eq!(volume.findings(&[]), []);
    volume.finds(&["--data"], "block damaged", "/docs/second");
}

#[test]
fn swapped_blocks_are_found() {
    let volume = Volume::new();
    let (one, other) = (volume.object(volume.first, 0), volume.object(volume.second, 0));
    let (first, second) = (fs::read(&one).unwrap(), fs::read(&other).unwrap());
    assert_eq!(first.len(), second.len());
    fs::write(&one, second).unwrap();
    fs::write(&other, first).unwrap();
    for path in ["/docs/first", "/docs/second"] {
        volume.finds(&[], "block damaged", path);
        volume.finds(&["--data"], "block damaged", path);
    }
}

#[test]
fn a_dentry_without_inode_is_found() {
    let volume = Volume::new();
    let dentry = Dentry { ino: Ino(999_999), kind: FileType::Regular };
    volume.world.change(|txn| {
        txn.put(&keys::dentry(volume.docs, b"ghost"), &dentry.encode());
        Ok(())
    });
    volume.finds(&[], "dentry without inode", "/docs/ghost");
}

#[test]
fn an_inode_without_dentry_is_found() {
    let volume = Volume::new();
    volume.world.change(|txn| {
        txn.delete(&keys::dentry(volume.docs, b"first"));
        Ok(())
    });
    volume.finds(&[], "inode without dentry", &format!("(inode {})", volume.first.0));
}

#[test]
fn a_wrong_nlink_is_found() {
    let volume = Volume::new();
    volume.world.change(|txn| {
        let attr = txn.get(&keys::attr(volume.first))?.expect("the file is there");
        let attr = Attr::decode(&attr).expect("decodes");
        txn.put(&keys::attr(volume.first), &Attr { nlink: 2, ..attr }.encode());
        Ok(())
    });
    volume.finds(&[], "wrong nlink", "/docs/first");
}

#[test]
fn a_wrong_usage_is_found() {
    for counter in [Counter::Bytes, Counter::Inodes] {
        let volume = Volume::new();
        volume.world.change(|txn| {
            let key = keys::counter(counter, 0);
            let value = txn.get(&key)?.map_or(0, |value| i64::decode(&value).expect("decodes"));
            txn.put(&key, &(value + 1).encode());
            Ok(())
        });
        volume.finds(&[], "wrong usage", "");
    }
}

#[test]
fn a_dangling_slice_is_found() {
    let volume = Volume::new();
    let record = SliceRecord { slice: SliceId(4096), stored_len: 10, off: 0, pos: 0, len: 10, place: Place::Blocks };
    volume.world.change(|txn| {
        txn.put(&keys::slice(Ino(888_888), 0, 1), &record.encode());
        Ok(())
    });
    volume.finds(&[], "dangling slice", "(inode 888888)");
}

#[test]
fn a_live_slice_that_is_queued_for_deletion_is_found() {
    let volume = Volume::new();
    let SliceRecord { slice, stored_len, .. } = volume.slice(volume.second);
    volume.world.change(|txn| {
        txn.put(&keys::delslice(slice), &DelSlice { stored_len }.encode());
        Ok(())
    });
    volume.finds(&[], "queued but live", "/docs/second");
}

#[test]
fn a_key_of_no_meaning_is_found() {
    let volume = Volume::new();
    volume.world.change(|txn| {
        txn.put(b"\x7fwhat is this", b"");
        Ok(())
    });
    let found = volume.findings(&[]);
    assert!(found.iter().any(|(kind, _)| kind == "undecodable"), "{found:?}");
}

#[test]
fn the_check_of_a_volume_without_its_objects_fails() {
    let volume = Volume::new();
    let meta = volume.world.meta();
    let prefix = volume.world.prefix();
    fs::rename(&prefix, volume.world.path("elsewhere")).unwrap();
    kiseki(&["fsck", &meta]).fails_with(&["no folder", prefix.to_str().unwrap(), "mounted"]);
    fs::create_dir(&prefix).unwrap();
    kiseki(&["fsck", &meta]).fails_with(&["marker", prefix.to_str().unwrap()]);
}
