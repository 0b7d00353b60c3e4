//! Contents of files: written and read in all ways, also across a remount.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use memmap2::{Mmap, MmapMut};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::harness::{Volume, assert_same, copy_program, eventually, noise};

pub(crate) fn read_write(path: &std::path::Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("opens")
}

#[test]
fn files_of_all_lengths_survive_a_remount() {
    const BLOCK: usize = 64 << 10;
    let volume = Volume::mounted();
    let lengths =
        [0, 1, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 17, (1 << 20) + 1, 9 << 20, (66 << 20) + 3];
    for (seed, len) in lengths.into_iter().enumerate() {
        let contents = noise(seed as u64, len);
        let path = volume.path(&format!("f{len}"));
        fs::write(&path, &contents).expect("writes");
        assert_same(&fs::read(&path).expect("reads"), &contents, "before");
    }
    volume.remount();
    for (seed, len) in lengths.into_iter().enumerate() {
        let found = fs::read(volume.path(&format!("f{len}"))).expect("reads");
        assert_same(&found, &noise(seed as u64, len), "after");
    }
    volume.unmount();
    volume.check();
}

#[test]
fn random_writes_match_a_model() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    let file = read_write(&path);
    let mut model: Vec<u8> = Vec::new();
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for step in 0..600 {
        let offset = random(1 << 20) as usize;
        let len = 1 + random(if step % 10 == 0 { 300_000 } else { 9000 }) as usize;
        match random(8) {
            0 => {
                file.set_len(offset as u64).expect("truncates");
                model.resize(offset, 0);
            }
            1 => file.sync_data().expect("syncs"),
            2 | 3 => {
                let mut found = vec![0; len];
                let count = read_up_to(&file, &mut found, offset as u64);
                let end = (offset + len).min(model.len()).max(offset.min(model.len()));
                assert_same(&found[..count], &model[offset.min(model.len())..end], &format!("read at step {step}"));
            }
            _ => {
                let bytes = noise(step, len);
                file.write_all_at(&bytes, offset as u64).expect("writes");
                if model.len() < offset + len {
                    model.resize(offset + len, 0);
                }
                model[offset..offset + len].copy_from_slice(&bytes);
            }
        }
        assert_eq!(file.metadata().expect("stats").len(), model.len() as u64, "length at step {step}");
    }
    drop(file);
    volume.remount();
    assert_same(&fs::read(&path).expect("reads"), &model, "after a remount");
    volume.unmount();
    volume.check();
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut count = 0;
    while count < buffer.len() {
        match file.read_at(&mut buffer[count..], offset + count as u64).expect("reads") {
            0 => break,
            more => count += more,
        }
    }
    count
}

#[test]
fn what_was_cut_off_reads_as_zeros_when_the_file_grows_again() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    for synced in [false, true] {
        let file = read_write(&path);
        let mut model = noise(1, 300_000);
        file.write_all_at(&model, 0).expect("writes");
        if synced {
            file.sync_all().expect("syncs");
        }
        for (cut, grown) in [(200_001, 260_000), (131_072, 300_000), (1, 70_000), (0, 5000)] {
            file.set_len(cut).expect("cuts");
            file.set_len(grown).expect("grows");
            model.truncate(cut as usize);
            model.resize(grown as usize, 0);
            assert_same(&fs::read(&path).expect("reads"), &model, &format!("{cut} {grown} {synced}"));
        }
        // A write past the end leaves a hole.
        file.write_all_at(b"end", 400_000).expect("writes");
        model.resize(400_000, 0);
        model.extend_from_slice(b"end");
        drop(file);
        volume.remount();
        assert_same(&fs::read(&path).expect("reads"), &model, "after a remount");
    }
}

#[test]
fn appends_of_several_handles_never_overlap() {
    let volume = Volume::mounted();
    let path = volume.path("log");
    thread::scope(|scope| {
        for writer in 0..4_u8 {
            let path = &path;
            scope.spawn(move || {
                let mut file = OpenOptions::new().append(true).create(true).open(path).expect("opens");
                for _ in 0..500 {
                    file.write_all(&[b'a' + writer; 100]).expect("appends");
                }
            });
        }
    });
    volume.remount();
    let found = fs::read(&path).expect("reads");
    assert_eq!(found.len(), 4 * 500 * 100);
    let mut counts = [0; 4];
    for record in found.chunks(100) {
        assert!(record.iter().all(|byte| byte == &record[0]), "a torn record");
        counts[usize::from(record[0] - b'a')] += 1;
    }
    assert_eq!(counts, [500; 4]);
}

#[test]
fn concurrent_writers_keep_to_their_ranges() {
    const PART: usize = 1 << 20;
    let volume = Volume::mounted();
    let shared = read_write(&volume.path("shared"));
    thread::scope(|scope| {
        for writer in 0..8 {
            let (shared, volume) = (&shared, &volume);
            scope.spawn(move || {
                let contents = noise(writer as u64, PART);
                let own = read_write(&volume.path(&format!("own{writer}")));
                for (index, piece) in contents.chunks(10_007).enumerate() {
                    own.write_all_at(piece, (index * 10_007) as u64).expect("writes");
                    shared.write_all_at(piece, (writer * PART + index * 10_007) as u64).expect("writes");
                    if index % 50 == 49 {
                        own.sync_data().expect("syncs");
                    }
                }
            });
        }
    });
    drop(shared);
    volume.remount();
    let shared = fs::read(volume.path("shared")).expect("reads");
    for writer in 0..8 {
        let expected = noise(writer as u64, PART);
        assert_same(&shared[writer * PART..][..PART], &expected, "shared");
        assert_same(&fs::read(volume.path(&format!("own{writer}"))).expect("reads"), &expected, "own");
    }
}

#[test]
fn mapped_pages_and_write_see_each_other() {
    let volume = Volume::mounted();
    let path = volume.path("mapped");
    // Who truncates writes past the page cache.
    for truncate in [false, true] {
        let mut expected = noise(3, 200_000);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(truncate).open(&path).expect("opens");
        file.write_all_at(&expected, 0).expect("writes");
        // SAFETY: nothing else changes the file's length while it is mapped.
        let mut map = unsafe { MmapMut::map_mut(&file) }.expect("maps");
        assert_same(&map, &expected, "mapped");
        map[100_000..100_005].copy_from_slice(b"store");
        expected[100_000..100_005].copy_from_slice(b"store");
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, 0).expect("reads");
        assert_same(&found, &expected, "a read after a store");
        assert_same(&fs::read(&path).expect("reads"), &expected, "another descriptor's read after a store");
        file.write_all_at(b"write", 150_000).expect("writes");
        expected[150_000..150_005].copy_from_slice(b"write");
        assert_same(&map, &expected, "the map after a write");
        map[..4].copy_from_slice(b"last");
        expected[..4].copy_from_slice(b"last");
        map.flush().expect("syncs");
        drop((map, file));
        volume.remount();
        assert_same(&fs::read(&path).expect("reads"), &expected, "after a remount");
    }
}

/// Pages that are read while they are written past the page cache do not stay as they were.
#[test]
fn nobody_goes_on_seeing_what_was_written_over() {
    const ROUNDS: u32 = 3000;
    let volume = Volume::mounted();
    let path = volume.path("f");
    for writer_first in [false, true] {
        fs::write(&path, [0; 4096]).expect("writes");
        let open_writer = || OpenOptions::new().write(true).open(&path).expect("opens");
        let early = writer_first.then(open_writer);
        let reader = File::open(&path).expect("opens");
        let writer = early.unwrap_or_else(open_writer);
        // SAFETY: nobody changes the file's length; its bytes are read as volatile, for the kernel changes them.
        let map = unsafe { Mmap::map(&reader) }.expect("maps");
        // SAFETY: the map is a page long.
        let mapped = || unsafe { map.as_ptr().add(4095).read_volatile() };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    mapped();
                    reader.read_exact_at(&mut [0; 1], 4095).expect("reads");
                }
            });
            let stale = (0..ROUNDS).find(|round| {
                let (byte, mut read) = (*round as u8, [0]);
                let (written, got) = (writer.write_at(&[byte; 4096], 0), reader.read_at(&mut read, 4095));
                (written.ok(), got.ok(), read, mapped()) != (Some(4096), Some(1), [byte], byte)
            });
            done.store(true, Ordering::Relaxed);
            assert_eq!(stale, None, "writer first: {writer_first}");
        });
    }
}

/// Found by `ci/diff.sh`: both were appended, for the file was opened so.
#[test]
fn only_a_write_that_appends_now_goes_to_the_end() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    let mut expected = noise(8, 10_000);
    fs::write(&path, &expected).expect("writes");
    let mut file = OpenOptions::new().read(true).append(true).open(&path).expect("opens");
    // SAFETY: nothing else changes the file's length while it is mapped.
    let mut map = unsafe { MmapMut::map_mut(&file) }.expect("maps");
    map[..6].copy_from_slice(b"mapped");
    expected[..6].copy_from_slice(b"mapped");
    map.flush().expect("syncs");
    assert_same(&fs::read(&path).expect("reads"), &expected, "a page of a map");
    rustix::fs::fcntl_setfl(&file, OFlags::empty()).expect("clears O_APPEND");
    file.write_all_at(b"written", 500).expect("writes");
    expected[500..507].copy_from_slice(b"written");
    assert_same(&fs::read(&path).expect("reads"), &expected, "O_APPEND is cleared");
    rustix::fs::fcntl_setfl(&file, OFlags::APPEND).expect("sets O_APPEND");
    file.seek(SeekFrom::Start(3)).expect("seeks");
    file.write_all(b"appended").expect("writes");
    expected.extend_from_slice(b"appended");
    drop((map, file));
    volume.remount();
    assert_same(&fs::read(&path).expect("reads"), &expected, "O_APPEND is set again");
}

#[test]
fn an_unlinked_file_lives_until_its_last_close() {
    let volume = Volume::mounted_unpacked();
    let path = volume.path("f");
    let contents = noise(5, 1 << 20);
    fs::write(&path, &contents).expect("writes");
    let mut file = read_write(&path);
    fs::remove_file(&path).expect("unlinks");
    assert_eq!(fs::metadata(&path).expect_err("it has no name").kind(), ErrorKind::NotFound);
    assert_eq!(file.metadata().expect("stats").nlink(), 0);
    file.seek(SeekFrom::End(0)).expect("seeks");
    file.write_all(b"more").expect("writes");
    file.sync_all().expect("syncs");
    eventually("its blocks are in the store", || volume.blocks() > 0);
    let mut found = Vec::new();
    file.rewind().expect("seeks");
    file.read_to_end(&mut found).expect("reads");
    assert_same(&found, &[&contents[..], b"more"].concat(), "unlinked");
    drop(file);
    eventually("the blocks of a deleted file leave the store", || volume.blocks() == 0);
    volume.unmount();
    volume.check();
}

#[test]
fn o_sync_and_o_direct_write_through() {
    use std::os::unix::fs::OpenOptionsExt;
    let volume = Volume::mounted();
    for (name, flags) in [("sync", OFlags::SYNC), ("dsync", OFlags::DSYNC), ("direct", OFlags::DIRECT)] {
        let path = volume.path(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).custom_flags(flags.bits().cast_signed());
        let file = options.open(&path).expect("opens");
        let contents = noise(9, 256 << 10);
        file.write_all_at(&contents, 0).expect("writes");
        let mut found = vec![0; contents.len()];
        file.read_exact_at(&mut found, 0).expect("reads");
        assert_same(&found, &contents, name);
        drop(file);
        assert_same(&fs::read(&path).expect("reads"), &contents, name);
    }
    // What an O_SYNC write acknowledged survives the process.
    volume.end_by(rustix::process::Signal::KILL);
    volume.mount(&[]);
    for name in ["sync", "dsync"] {
        assert_same(&fs::read(volume.path(name)).expect("reads"), &noise(9, 256 << 10), name);
    }
}

#[test]
fn blocks_of_stat_cover_what_is_not_stored_yet() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    fs::write(&path, noise(2, 1 << 20)).expect("writes");
    let blocks = |when| {
        let meta = fs::metadata(&path).expect("stats");
        assert_eq!((meta.blocks(), meta.size()), (2048, 1 << 20), "{when}");
        assert!(meta.blksize() >= 128 << 10, "programs should use large buffers");
    };
    blocks("dirty");
    File::open(&path).and_then(|file| file.sync_all()).expect("syncs");
    blocks("stored");
    volume.remount();
    blocks("after a remount");
    let sparse = read_write(&volume.path("sparse"));
    sparse.set_len(1 << 40).expect("grows");
    sparse.sync_all().expect("syncs");
    let meta = sparse.metadata().expect("stats");
    assert_eq!((meta.blocks(), meta.size()), (0, 1 << 40));
}

#[test]
fn a_running_program_is_not_cut_off() {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let volume = Volume::mounted();
    let path = volume.path("program");
    copy_program("/bin/sleep", &path);
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("chmods");
    let len = fs::metadata(&path).expect("stats").len();
    let truncate_only = |path| {
        let flags = OFlags::TRUNC.bits().cast_signed();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        opened.map(drop).map_err(|error| Errno::from_io_error(&error).expect("an errno"))
    };
    let mut child = std::process::Command::new(&path).arg("60").spawn().expect("runs");
    assert_eq!(truncate_only(&path), Err(Errno::TXTBSY));
    assert_eq!(OpenOptions::new().write(true).open(&path).expect_err("it runs").kind(), ErrorKind::ExecutableFileBusy);
    assert_eq!(fs::metadata(&path).expect("stats").len(), len);
    child.kill().and_then(|()| child.wait()).expect("ends");
    // The kernel lets go of the program a moment after its end.
    eventually("a program that ended may be cut off", || truncate_only(&path) == Ok(()));
    assert_eq!(fs::metadata(&path).expect("stats").len(), 0);
}

#[test]
fn offsets_that_no_file_can_have_are_refused() {
    let volume = Volume::mounted();
    let file = read_write(&volume.path("f"));
    for offset in [1 << 57, (1 << 60) + 1, i64::MAX as u64 - 1] {
        let error = file.write_all_at(b"x", offset).expect_err("is too far");
        assert_eq!(error.kind(), ErrorKind::FileTooLarge, "{offset}: {error}");
    }
    assert_eq!(file.set_len((1 << 57) + 1).expect_err("is too long").kind(), ErrorKind::FileTooLarge);
    file.write_all_at(b"x", (1 << 57) - 1).expect("the last byte that there can be");
    assert_eq!(file.metadata().expect("stats").len(), 1 << 57);
    let mut found = [0];
    file.read_exact_at(&mut found, (1 << 57) - 1).expect("reads");
    assert_eq!(&found, b"x");
}
