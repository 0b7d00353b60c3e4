use std::time::Duration;

use tokio::runtime::Runtime;

use super::*;

struct World {
    dir: tempfile::TempDir,
    runtime: Runtime,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self { dir: tempfile::tempdir().unwrap(), runtime: runtime.unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("a/log")
    }

    fn open(&self, access: FolderAccess) -> LogFolder {
        LogFolder::open(&self.path(), access, self.runtime.handle().clone()).unwrap()
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.unwrap() })
    }
}

fn body(pieces: &[&'static [u8]]) -> Vec<Bytes> {
    pieces.iter().map(|piece| Bytes::from_static(piece)).collect()
}

#[test]
fn what_was_written_is_read_also_by_the_next() {
    let world = World::new();
    let large: Vec<u8> = (0..3 * SMALL as usize + 5).map(|at| (at * 7 + at / 251) as u8).collect();
    {
        let log = world.open(FolderAccess::Create);
        assert_eq!(world.wait(log.segments()), Ok(vec![]));
        assert_eq!(world.wait(log.owner()), Ok(None));
        world.wait(log.create(7)).unwrap();
        world.wait(log.write(7, 0, body(&[b"he", b"", b"ad"]))).unwrap();
        world.wait(log.write(7, 4096, vec![Bytes::from(large.clone())])).unwrap();
        world.wait(log.write(7, 4096 + large.len() as u64 + 3, body(&[b"", b"tail"]))).unwrap();
        world.wait(log.sync(7)).unwrap();
        world.wait(log.set_owner(Bytes::from_static(b"me"))).unwrap();
    }
    for access in [FolderAccess::Write, FolderAccess::Read] {
        let log = world.open(access);
        let end = 4096 + large.len() as u64;
        let found = world.wait(log.segments()).unwrap();
        assert_eq!((found.len(), found[0].0), (1, 7));
        assert!(end + 7 <= found[0].1, "zeros may follow: {found:?}");
        assert_eq!(world.wait(log.read(7, 0..6)), Ok(Bytes::from_static(b"head\0\0")));
        assert_eq!(world.wait(log.read(7, 4096..end)), Ok(Bytes::from(large.clone())));
        assert_eq!(world.wait(log.read(7, end + 3..end + 7)), Ok(Bytes::from_static(b"tail")));
        let behind = world.wait(log.read(7, end + 7..found[0].1)).unwrap();
        assert!(behind.iter().all(|byte| *byte == 0), "what follows is zeros");
        assert_eq!(world.wait(log.read(7, found[0].1..found[0].1 + 1)), Err(DiskError::Missing));
        assert_eq!(world.wait(log.read(8, 0..1)), Err(DiskError::Missing));
        assert_eq!(world.wait(log.owner()), Ok(Some(Bytes::from_static(b"me"))));
    }
}

#[test]
fn zeros_ahead_are_not_shown_and_never_written_over_records() {
    let world = World::new();
    let log = world.open(FolderAccess::Create);
    world.wait(log.create(1)).unwrap();
    // Records of many lengths, written by many at once and not in the order of their places; one in 50 is large, and every
    // other of those has its pages to itself.
    let mut at = 0_u64;
    let mut records: Vec<(u64, usize, Vec<u8>)> = Vec::new();
    for number in 0..400 {
        let len = 1 + (number * 7919) % 9_000 + if number % 50 == 0 { 300_000 } else { 0 };
        let apart = number % 100 == 0;
        let place = if apart { at.next_multiple_of(PAGE) } else { at };
        let head = if apart { PAGE as usize } else { len / 2 };
        records.push((place, head, vec![1 + (number % 250) as u8; len]));
        at = if apart { (place + len as u64).next_multiple_of(PAGE) } else { place + len as u64 };
    }
    world.wait(async {
        let mut writing = Vec::new();
        for (place, head, bytes) in records.iter().rev() {
            let (log, place, bytes) = (log.clone(), *place, Bytes::from(bytes.clone()));
            let pieces = vec![bytes.slice(..*head), bytes.slice(*head..)];
            writing.push(tokio::spawn(async move { log.write(1, place, pieces).await }));
        }
        for written in writing {
            written.await.unwrap().unwrap();
        }
    });
    assert_eq!(world.wait(log.segments()), Ok(vec![(1, at)]));
    assert_eq!(world.wait(log.read(1, at..at + 1)), Err(DiskError::Missing));
    for (place, _, bytes) in &records {
        let found = world.wait(log.read(1, *place..place + bytes.len() as u64)).unwrap();
        assert!(found == bytes, "the record at {place}");
    }
    // A segment that is made again is empty.
    world.wait(log.create(1)).unwrap();
    assert_eq!(world.wait(log.segments()), Ok(vec![(1, 0)]));
}

#[test]
fn space_reserved_for_large_records_is_given_back_with_the_next_segment() {
    let world = World::new();
    let log = world.open(FolderAccess::Create);
    world.wait(log.create(1)).unwrap();
    let large = Bytes::from(vec![7; LARGE as usize + 100]);
    world.wait(log.write(1, PAGE, vec![large.slice(..PAGE as usize), large.slice(PAGE as usize..)])).unwrap();
    world.wait(log.create(2)).unwrap();
    let end = (PAGE + large.len() as u64).next_multiple_of(PAGE);
    assert_eq!(fs::metadata(world.path().join("segment-000000000001")).unwrap().len(), end);
    assert_eq!(world.wait(log.read(1, PAGE..PAGE + large.len() as u64)).unwrap(), large);
    // One that was on its way.
    world.wait(log.write(1, end, vec![large.slice(..PAGE as usize), large.slice(PAGE as usize..)])).unwrap();
    assert_eq!(world.wait(log.read(1, end..end + large.len() as u64)).unwrap(), large);
}

#[test]
fn syncs_are_shared() {
    let world = World::new();
    let log = world.open(FolderAccess::Create);
    world.wait(log.create(1)).unwrap();
    world.wait(async {
        let mut waiting = Vec::new();
        for at in 0..200 {
            let log = log.clone();
            waiting.push(tokio::spawn(async move {
                log.write(1, 4096 * at, vec![Bytes::from(vec![1; 100])]).await?;
                log.sync(1).await
            }));
        }
        for waiter in waiting {
            waiter.await.unwrap().unwrap();
        }
    });
    let rounds = log.0.segment(1).unwrap().rounds.ended();
    assert!(rounds < 200, "{rounds} syncs for 200 callers");
    world.wait(log.sync(1)).unwrap();
    assert_eq!(log.0.segment(1).unwrap().rounds.ended(), rounds, "there was nothing to sync");
}

#[test]
fn segments_go_or_are_kept_under_another_name() {
    let world = World::new();
    let log = world.open(FolderAccess::Create);
    for segment in [3, 4] {
        world.wait(log.create(segment)).unwrap();
        world.wait(log.write(segment, 0, body(&[b"x"]))).unwrap();
    }
    world.wait(log.remove(3)).unwrap();
    world.wait(log.remove(3)).unwrap();
    world.wait(log.set_aside(4)).unwrap();
    assert_eq!(world.wait(log.set_aside(4)), Err(DiskError::Missing));
    assert_eq!(world.wait(log.segments()), Ok(vec![]));
    world.wait(log.create(4)).unwrap();
    world.wait(log.set_aside(4)).unwrap();
    let mut names: Vec<_> = fs::read_dir(world.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["damaged-000000000004", "damaged-000000000004-2", "lock"]);
}

#[test]
fn parts_of_large_records_are_read_by_whoever_may_wait_and_by_others() {
    let world = World::new();
    let log = world.open(FolderAccess::Create);
    world.wait(log.create(1)).unwrap();
    let head = Bytes::from(vec![1; PAGE as usize]);
    let large: Vec<u8> = (0..600_000).map(|at| (at / 9) as u8).collect();
    world.wait(log.write(1, PAGE, vec![head, Bytes::copy_from_slice(&large)])).unwrap();
    world.wait(log.sync(1)).unwrap();
    let start = 2 * PAGE;
    let check = || {
        for range in [0..10, 4090..5000, 100_000..180_000, 599_000..600_000] {
            let read = world.wait(log.read(1, start + range.start..start + range.end)).unwrap();
            assert!(read == large[range.start as usize..range.end as usize], "{range:?}");
        }
        assert_eq!(world.wait(log.read(1, start + 599_999..start + 600_001)), Err(DiskError::Missing));
    };
    brief::allowed(check);
    check();
    // On a disk that is nearly full it is not kept.
    let short = log.0.is_short_of_space();
    world.wait(log.detach(1)).unwrap();
    if !short {
        brief::allowed(check);
        check();
    }
    assert_eq!(log.0.give_up_detached(), !short);
    assert_eq!(world.wait(log.read(1, start..start + 1)), Err(DiskError::Missing));
    assert!(!log.0.give_up_detached());
}

#[test]
fn a_folder_is_used_by_one_at_a_time() {
    let world = World::new();
    let handle = world.runtime.handle();
    for access in [FolderAccess::Write, FolderAccess::Read] {
        let missing = LogFolder::open(&world.path(), access, handle.clone());
        assert!(matches!(missing, Err(LogFolderError::Missing(path)) if path == world.path()));
    }
    let log = world.open(FolderAccess::Create);
    for access in [FolderAccess::Create, FolderAccess::Write, FolderAccess::Read] {
        let second = LogFolder::open(&world.path(), access, handle.clone());
        assert!(matches!(second, Err(LogFolderError::InUse(_))), "{access:?}");
    }
    drop(log);
    let log = world.open(FolderAccess::Read);
    assert_eq!(world.wait(log.create(1)), Err(DiskError::Failed));
    assert_eq!(world.wait(log.remove(1)), Err(DiskError::Failed));
    assert!(log.trouble().unwrap().contains("Read-only"));
    drop(log);
    fs::write(world.dir.path().join("file"), "").unwrap();
    let file = LogFolder::open(&world.dir.path().join("file"), FolderAccess::Create, handle.clone());
    assert!(matches!(file, Err(LogFolderError::Io { .. })));
}

#[test]
fn what_the_disk_fails_with_is_told_until_a_write_succeeds() {
    let world = World::new();
    let log = world.open(FolderAccess::Create);
    world.wait(log.create(1)).unwrap();
    let hidden = world.dir.path().join("hidden");
    fs::rename(world.path(), &hidden).unwrap();
    assert!(world.wait(log.create(2)).is_err());
    assert!(log.trouble().unwrap().contains("cannot create it"));
    fs::rename(&hidden, world.path()).unwrap();
    world.wait(log.write(1, 0, body(&[b"x"]))).unwrap();
    assert_eq!(log.trouble(), None);
}
