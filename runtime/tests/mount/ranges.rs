//! fallocate, SEEK_DATA and SEEK_HOLE, copy_file_range; space on a volume with a limit.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

use crate::contents::read_write;
use crate::harness::{Volume, assert_same, eventually, kiseki_ok, noise};

const MIB: u64 = 1 << 20;

/// Bytes that a file takes, by st_blocks.
fn taken(file: &File) -> u64 {
    file.metadata().expect("stats").blocks() * 512
}

#[test]
fn ranges_match_a_model() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    let mut file = read_write(&path);
    let mut model: Vec<u8> = Vec::new();
    let mut state = 11_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for step in 0..500_u64 {
        let (offset, len) = (random(1 << 20), 1 + random(200_000));
        let (start, end) = (offset as usize, (offset + len) as usize);
        match random(10) {
            0..=2 => {
                // No byte is zero, so that holes can be told.
                let bytes: Vec<u8> = noise(step, len as usize).into_iter().map(|byte| byte | 1).collect();
                file.write_all_at(&bytes, offset).expect("writes");
                model.resize(model.len().max(end), 0);
                model[start..end].copy_from_slice(&bytes);
            }
            3 => {
                fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len).expect("punches");
                let end = end.min(model.len());
                model.get_mut(start..end).unwrap_or_default().fill(0);
            }
            4 => {
                fallocate(&file, FallocateFlags::ZERO_RANGE, offset, len).expect("zeroes");
                model.resize(model.len().max(end), 0);
                model[start..end].fill(0);
            }
            5 => {
                let keep = random(2) == 0;
                let mode = if keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
                fallocate(&file, mode, offset, len).expect("reserves");
                model.resize(model.len().max(if keep { 0 } else { end }), 0);
            }
            6 => {
                let (mut from, mut to) = (random(1 << 20), offset);
                if from < to + len && to < from + len {
                    continue;
                }
                let (wanted, source) = (len.min((model.len() as u64).saturating_sub(from)), from as usize);
                let mut left = wanted as usize;
                while left > 0 {
                    left -= copy_file_range(&file, Some(&mut from), &file, Some(&mut to), left).expect("copies");
                }
                let copied = source..source + wanted as usize;
                if !copied.is_empty() {
                    model.resize(model.len().max(start + copied.len()), 0);
                    model.copy_within(copied, start);
                }
            }
            7 => {
                let data = random(2) == 0;
                let found = seek(&file, if data { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) });
                let rest = model.get(start..).unwrap_or_default();
                let at = rest.iter().position(|byte| (*byte != 0) == data);
                let end = (!data && !rest.is_empty()).then_some(rest.len());
                assert_eq!(found.ok(), at.or(end).map(|at| offset + at as u64), "step {step}");
            }
            8 if random(8) == 0 => {
                drop(file);
                volume.remount();
                file = fs::OpenOptions::new().read(true).write(true).open(&path).expect("opens");
            }
            8 if random(4) == 0 => {
                file.set_len(offset).expect("truncates");
                model.resize(start, 0);
            }
            _ => file.sync_data().expect("syncs"),
        }
        if step % 20 == 0 {
            assert_same(&fs::read(&path).expect("reads"), &model, "step by step");
        }
    }
    drop(file);
    volume.remount();
    assert_same(&fs::read(&path).expect("reads"), &model, "after a remount");
    volume.unmount();
    volume.check();
}

#[test]
fn what_fallocate_cannot_do_is_refused_as_on_other_file_systems() {
    let volume = Volume::mounted();
    let file = read_write(&volume.path("f"));
    let keep = FallocateFlags::KEEP_SIZE;
    assert_eq!(fallocate(&file, FallocateFlags::PUNCH_HOLE, 0, 1), Err(Errno::OPNOTSUPP));
    assert_eq!(fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096), Err(Errno::OPNOTSUPP));
    assert_eq!(fallocate(&file, FallocateFlags::INSERT_RANGE, 0, 4096), Err(Errno::OPNOTSUPP));
    assert_eq!(fallocate(&file, keep, 0, 0), Err(Errno::INVAL));
    assert_eq!(fallocate(&file, keep, 1 << 57, 1), Err(Errno::FBIG));
    assert_eq!(fallocate(&file, keep, 0, 1 << 56), Err(Errno::NOSPC));
    let read_only = File::open(volume.path("f")).expect("opens");
    assert_eq!(fallocate(&read_only, keep, 0, 1), Err(Errno::BADF));
    assert_eq!(
        file.write_at(b"x", 1 << 57).map_err(|error| error.raw_os_error()),
        Err(Some(Errno::FBIG.raw_os_error()))
    );
    assert_eq!(seek(&file, SeekFrom::Data(0)), Err(Errno::NXIO));
    // Past the end, and a terabyte with a hole in all of it: a few records.
    fallocate(&file, keep, 10, 100 * MIB).expect("reserves");
    assert_eq!((file.metadata().expect("stats").len(), taken(&file)), (0, 100 * MIB));
    file.set_len(1 << 40).expect("extends");
    fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, 0, 1 << 40).expect("punches");
    file.sync_all().expect("syncs");
    assert_eq!(taken(&file), 0);
    assert_eq!(seek(&file, SeekFrom::Data(0)), Err(Errno::NXIO));
    assert_eq!(seek(&file, SeekFrom::Hole(5)), Ok(5));
    drop((file, read_only));
    volume.unmount();
    volume.check();
}

/// Writes noise until there is no space; returns how much was written.
fn fill(path: &Path) -> u64 {
    let file = read_write(path);
    let bytes = noise(1, 64 << 10);
    let mut written = 0;
    while file.write_all_at(&bytes, written).is_ok() {
        written += bytes.len() as u64;
    }
    // What was accepted is there.
    file.sync_all().expect("syncs");
    written
}

#[test]
fn what_is_reserved_is_never_refused_and_what_is_given_back_can_be_used() {
    let volume = Volume::formatted();
    let bucket = volume.bucket();
    let bucket = bucket.to_str().expect("UTF-8");
    kiseki_ok(&["format", &volume.meta(), "vol", "--bucket", bucket, "--force", "--capacity", "8M"]);
    volume.mount(&[]);
    let reserved = read_write(&volume.path("reserved"));
    fallocate(&reserved, FallocateFlags::empty(), 0, 4 * MIB).expect("reserves");
    assert_eq!((reserved.metadata().expect("stats").len(), taken(&reserved)), (4 * MIB, 4 * MIB));
    assert_eq!(fallocate(&reserved, FallocateFlags::KEEP_SIZE, 4 * MIB, 5 * MIB), Err(Errno::NOSPC));

    let other = volume.path("other");
    assert_eq!(fill(&other), 4 * MIB);
    // Written twice, and there is not a byte free.
    let contents = noise(2, 4 * MIB as usize);
    for _ in 0..2 {
        reserved.write_all_at(&contents, 0).expect("it is reserved");
    }
    reserved.sync_all().expect("syncs");
    assert_eq!(taken(&reserved), 4 * MIB);
    assert_eq!(rustix::fs::statvfs(&volume.mnt).expect("stats").f_bfree, 0);
    assert!(reserved.write_at(b"x", 4 * MIB).is_err());

    fallocate(&reserved, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, MIB, MIB).expect("punches");
    assert_eq!(fill(&volume.path("more")), MIB);
    File::options().write(true).open(&other).expect("opens").set_len(MIB).expect("truncates");
    assert_eq!(fill(&volume.path("most")), 3 * MIB);
    let mut found = vec![0; MIB as usize];
    reserved.read_exact_at(&mut found, 2 * MIB).expect("reads");
    assert_same(&found, &contents[2 * MIB as usize..3 * MIB as usize], "reserved");
    drop(reserved);
    volume.unmount();
    volume.check();
}

#[test]
fn a_copy_shares_what_it_copies_and_outlives_its_source() {
    let volume = Volume::mounted_unpacked();
    let (source, copy) = (volume.path("source"), volume.path("copy"));
    let contents = noise(4, 9 * MIB as usize + 5);
    fs::write(&source, &contents).expect("writes");
    File::open(&source).expect("opens").sync_all().expect("syncs");
    // 144 of 64 KiB, and a short one.
    let before = 145;
    eventually("all are in the store", || volume.blocks() == before);
    // std::fs::copy uses copy_file_range.
    assert_eq!(fs::copy(&source, &copy).expect("copies"), contents.len() as u64);
    File::open(&copy).expect("opens").sync_all().expect("syncs");
    volume.drain();
    assert_eq!(volume.blocks(), before, "nothing was copied");
    assert_same(&fs::read(&copy).expect("reads"), &contents, "copied");
    // What is not committed is copied, too.
    let mut changed = contents.clone();
    changed[100..200].fill(7);
    File::options().write(true).open(&source).expect("opens").write_all_at(&[7; 100], 100).expect("writes");
    fs::copy(&source, volume.path("later")).expect("copies");
    fs::remove_file(&source).expect("removes");
    fs::remove_file(volume.path("later")).expect("removes");
    volume.remount();
    assert_same(&fs::read(&copy).expect("reads"), &contents, "without its source");
    fs::remove_file(&copy).expect("removes");
    eventually("all objects go with the last name", || volume.blocks() == 0);
    volume.unmount();
    volume.check();
}
