//! What SEMANTICS.md says and no other test of this folder shows: open flags, names, maps, locks, the crash contract as
//! a program meets it.

use std::collections::BTreeSet;
use std::ffi::{CString, c_char};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Barrier;

use memmap2::{MmapMut, MmapOptions};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, RenameFlags, mkdirat, openat, renameat_with};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::attributes::{NO_GROUPS, as_nobody, chmod, errno};
use crate::contents::read_write;
use crate::harness::{Volume, assert_same, copy_program, eventually, kiseki_ok, noise};

/// Runs a shell line in the mount as root.
fn run(volume: &Volume, line: &str) -> Output {
    Command::new("bash").args(["-c", line]).current_dir(&volume.mnt).output().expect("bash runs")
}

#[track_caller]
fn run_ok(volume: &Volume, line: &str) {
    let output = run(volume, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn flags(options: &mut OpenOptions, flags: OFlags) -> &mut OpenOptions {
    options.custom_flags(flags.bits().cast_signed())
}

fn sync(path: &Path) {
    File::open(path).and_then(|file| file.sync_all()).expect("syncs");
}

/// A volume that commits nothing unless someone asks.
fn lazy() -> Volume {
    let volume = Volume::formatted();
    volume.mount(&["--commit-interval", "1h"]);
    volume
}

/// Bytes that are accepted and not stored.
fn dirty_bytes(volume: &Volume) -> u64 {
    let status = kiseki_ok(&["status", volume.mnt.to_str().expect("UTF-8"), "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    status["mount"]["dirty_bytes"].as_u64().expect("a number")
}

/// Takes the folder of the blocks away, so that none can be put, and gives it back.
fn break_store(volume: &Volume, broken: bool) {
    let (blocks, aside) = (volume.bucket().join("vol/blocks"), volume.beside("aside"));
    if broken {
        fs::rename(&blocks, &aside).expect("renames");
        File::create(&blocks).expect("creates");
    } else {
        fs::remove_file(&blocks).expect("unlinks");
        fs::rename(&aside, &blocks).expect("renames");
    }
}

// ---- open

#[test]
fn appends_of_several_processes_never_overlap() {
    let volume = Volume::mounted();
    // dd writes each block with one write(2).
    let writer = |letter: &str| {
        format!(
            "head -c 20000 /dev/zero | tr '\\0' {letter} | dd bs=100 iflag=fullblock oflag=append conv=notrunc of=log"
        )
    };
    run_ok(&volume, &format!("({}) & ({}) & ({}) & wait", writer("a"), writer("b"), writer("c")));
    let found = fs::read(volume.path("log")).expect("reads");
    assert_eq!(found.len(), 60_000);
    for letter in [b'a', b'b', b'c'] {
        assert_eq!(found.chunks(100).filter(|record| record.iter().all(|byte| *byte == letter)).count(), 200);
    }
}

#[test]
fn of_many_that_create_a_name_with_o_excl_one_does() {
    let volume = Volume::mounted();
    for round in 0..20 {
        let (path, start) = (volume.path(&format!("f{round}")), Barrier::new(8));
        let made = std::thread::scope(|scope| {
            let creators: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        errno(File::create_new(&path))
                    })
                })
                .collect();
            creators.into_iter().map(|creator| creator.join().expect("ends")).collect::<Vec<_>>()
        });
        assert_eq!(made.iter().filter(|errno| errno.is_none()).count(), 1, "{made:?}");
        assert!(made.iter().flatten().all(|errno| *errno == Errno::EXIST.raw_os_error()), "{made:?}");
    }
}

#[test]
fn o_trunc_empties_a_file_for_all_who_have_it_open() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    for synced in [false, true] {
        fs::write(&path, noise(1, 200_000)).expect("writes");
        let mut held = File::open(&path).expect("opens");
        if synced {
            held.sync_all().expect("syncs");
        }
        let before = held.metadata().expect("stats");
        let writer = OpenOptions::new().write(true).truncate(true).open(&path).expect("opens");
        let after = held.metadata().expect("stats");
        assert_eq!(after.len(), 0);
        assert!((before.mtime(), before.mtime_nsec()) < (after.mtime(), after.mtime_nsec()), "mtime stood still");
        assert_eq!(held.read(&mut [0; 10]).expect("reads"), 0);
        writer.write_all_at(b"tail", 100).expect("writes");
        assert_same(&fs::read(&path).expect("reads"), &[&[0; 100][..], b"tail"].concat(), "no old byte comes back");
    }
}

#[test]
fn symbolic_links_are_followed_as_the_flags_say() {
    let volume = Volume::mounted();
    fs::write(volume.path("f"), "contents").expect("writes");
    fs::create_dir(volume.path("d")).expect("makes a folder");
    for (link, target) in [("to-f", "f"), ("to-d", "d"), ("to-nothing", "made"), ("loop", "pool"), ("pool", "loop")] {
        symlink(target, volume.path(link)).expect("links");
    }
    let open = |name: &str, extra| errno(flags(OpenOptions::new().read(true), extra).open(volume.path(name)));
    for (name, extra, expected) in [
        ("to-f", OFlags::empty(), None),
        ("to-f", OFlags::NOFOLLOW, Some(Errno::LOOP)),
        ("to-f", OFlags::NOFOLLOW | OFlags::PATH, None),
        ("to-f", OFlags::DIRECTORY, Some(Errno::NOTDIR)),
        ("to-d", OFlags::DIRECTORY, None),
        ("f", OFlags::DIRECTORY, Some(Errno::NOTDIR)),
        ("loop", OFlags::empty(), Some(Errno::LOOP)),
        ("to-nothing", OFlags::empty(), Some(Errno::NOENT)),
    ] {
        assert_eq!(open(name, extra), expected.map(Errno::raw_os_error), "{name} {extra:?}");
    }
    assert_eq!(errno(File::create_new(volume.path("to-nothing"))), Some(Errno::EXIST.raw_os_error()));
    fs::write(volume.path("to-nothing"), "through the link").expect("writes");
    assert_eq!(fs::read(volume.path("made")).expect("reads"), b"through the link");
    fs::remove_file(volume.path("to-f")).expect("unlinks the link");
    assert_eq!(fs::read(volume.path("f")).expect("reads"), b"contents");
}

// ---- names

#[test]
fn a_rename_onto_another_name_of_the_same_file_does_nothing() {
    let volume = Volume::mounted();
    fs::write(volume.path("a"), "x").expect("writes");
    fs::hard_link(volume.path("a"), volume.path("b")).expect("links");
    let before = fs::metadata(volume.path("a")).expect("stats");
    fs::rename(volume.path("a"), volume.path("b")).expect("renames");
    let after = fs::metadata(volume.path("a")).expect("is there");
    assert_eq!((after.ino(), after.nlink()), (before.ino(), 2));
    assert_eq!(fs::metadata(volume.path("b")).expect("is there").ino(), before.ino());
}

#[test]
fn what_is_open_follows_the_rename_of_its_folder() {
    let volume = Volume::mounted();
    fs::create_dir_all(volume.path("old/sub")).expect("makes folders");
    let file = read_write(&volume.path("old/sub/f"));
    let sub = File::open(volume.path("old/sub")).expect("opens");
    fs::create_dir(volume.path("other")).expect("makes a folder");
    fs::rename(volume.path("old"), volume.path("other/new")).expect("renames");
    file.write_all_at(b"written later", 0).expect("writes");
    openat(&sub, "g", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o644)).expect("creates");
    assert_eq!(fs::read(volume.path("other/new/sub/f")).expect("reads"), b"written later");
    assert!(volume.path("other/new/sub/g").exists());
    assert!(!volume.path("old").exists());
}

#[test]
fn a_removed_directory_takes_no_names() {
    let volume = Volume::mounted();
    fs::create_dir(volume.path("d")).expect("makes a folder");
    let held = File::open(volume.path("d")).expect("opens");
    fs::remove_dir(volume.path("d")).expect("removes");
    let (mode, create) = (Mode::from_raw_mode(0o755), OFlags::CREATE | OFlags::WRONLY);
    assert_eq!(openat(&held, "f", create, mode).map(drop), Err(Errno::NOENT));
    assert_eq!(mkdirat(&held, "s", mode), Err(Errno::NOENT));
    fs::write(volume.path("f"), "x").expect("writes");
    let moved = renameat_with(CWD, volume.path("f"), &held, "f", RenameFlags::empty());
    assert_eq!(moved, Err(Errno::NOENT));
    let listed = Dir::read_from(&held).expect("opens").filter_map(Result::ok);
    assert_eq!(listed.filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b"..")).count(), 0);
    assert_eq!(held.metadata().expect("stats").nlink(), 0);
}

#[test]
fn names_are_bytes() {
    let volume = Volume::mounted();
    // Lower and upper case, composed and decomposed, blanks and dots, what is no text.
    let names: [&[u8]; 9] =
        [b"a", b"A", "é".as_bytes(), "e\u{301}".as_bytes(), b" a", b"a ", b"...", b"a.", b"\xff\x01\n"];
    for name in names {
        fs::write(volume.mnt.join(std::ffi::OsStr::from_bytes(name)), name).expect("writes");
    }
    let list = || -> BTreeSet<Vec<u8>> {
        let entries = fs::read_dir(&volume.mnt).expect("opens");
        entries.map(|entry| entry.expect("lists").file_name().as_bytes().to_vec()).collect()
    };
    let expected: BTreeSet<Vec<u8>> = names.iter().map(|name| name.to_vec()).collect();
    assert_eq!(list(), expected);
    volume.remount();
    assert_eq!(list(), expected);
    for name in names {
        assert_eq!(fs::read(volume.mnt.join(std::ffi::OsStr::from_bytes(name))).expect("reads"), name);
    }
}

#[test]
fn directories_nest_deeper_than_a_path_can_say() {
    const DEPTH: usize = 60;
    let volume = Volume::mounted();
    let name = "n".repeat(200);
    let mode = Mode::from_raw_mode(0o755);
    let mut at = File::open(&volume.mnt).expect("opens");
    for _ in 0..DEPTH {
        mkdirat(&at, &name, mode).expect("makes a folder");
        at = openat(&at, &name, OFlags::DIRECTORY | OFlags::RDONLY, mode).expect("opens").into();
    }
    openat(&at, "f", OFlags::CREATE | OFlags::WRONLY, mode).expect("creates");
    let path = volume.mnt.join([name.as_str(); 30].join("/"));
    assert_eq!(errno(fs::metadata(path)), Some(Errno::NAMETOOLONG.raw_os_error()));
    drop(at);
    volume.remount();
    run_ok(&volume, "[ $(find . | wc -l) = 62 ] && rm -r ./n*");
    volume.unmount();
    volume.check();
}

#[test]
fn a_directory_can_be_rewound_and_sought() {
    const COUNT: usize = 500;
    let volume = Volume::mounted();
    for index in 0..COUNT {
        match index % 3 {
            0 => drop(File::create(volume.path(&format!("f{index}"))).expect("creates")),
            1 => fs::create_dir(volume.path(&format!("d{index}"))).expect("makes a folder"),
            _ => symlink("x", volume.path(&format!("l{index}"))).expect("links"),
        }
    }
    let mut dir = Dir::new(File::open(&volume.mnt).expect("opens")).expect("lists");
    let read = |dir: &mut Dir| dir.read().map(|entry| entry.expect("lists"));
    let mut entries = Vec::new();
    while let Some(entry) = read(&mut dir) {
        let name = entry.file_name().to_str().expect("ASCII").to_owned();
        let expected = match name.as_bytes()[0] {
            b'f' => FileType::RegularFile,
            b'l' => FileType::Symlink,
            _ => FileType::Directory,
        };
        assert_eq!(entry.file_type(), expected, "d_type of {name}");
        if !name.starts_with('.') {
            assert_eq!(fs::symlink_metadata(volume.path(&name)).expect("stats").ino(), entry.ino(), "d_ino of {name}");
        }
        entries.push((name, entry.offset()));
    }
    assert_eq!(entries.len(), COUNT + 2);
    // A position stays good while other names come and go.
    for index in (0..COUNT).step_by(7) {
        let (name, next) = (&entries[index].0, &entries[index + 1].0);
        if name.starts_with('f') && name.len() > 1 {
            fs::remove_file(volume.path(name)).expect("unlinks");
        }
        File::create(volume.path(&format!("new{index}"))).expect("creates");
        dir.seek(entries[index].1).expect("seeks");
        let mut found = read(&mut dir).expect("there is more").file_name().to_str().expect("ASCII").to_owned();
        while found.starts_with("new") {
            found = read(&mut dir).expect("there is more").file_name().to_str().expect("ASCII").to_owned();
        }
        assert_eq!(&found, next, "after {name}");
    }
    dir.rewind();
    let mut again = 0;
    while read(&mut dir).is_some() {
        again += 1;
    }
    assert_eq!(again, fs::read_dir(&volume.mnt).expect("lists").count() + 2, "a rewound listing is that of now");
}

// ---- programs, special files, users

#[test]
fn a_program_goes_on_after_its_file_is_removed() {
    let volume = Volume::mounted();
    copy_program("/bin/sleep", &volume.path("program"));
    sync(&volume.path("program"));
    let mut child = Command::new(volume.path("program")).arg("60").spawn().expect("runs");
    fs::remove_file(volume.path("program")).expect("unlinks");
    // Its pages, read again from the store.
    fs::write("/proc/sys/vm/drop_caches", "1").expect("is root");
    assert!(child.try_wait().expect("is ours").is_none());
    let mut found = Vec::new();
    let mut own = File::open(format!("/proc/{}/exe", child.id())).expect("opens");
    own.read_to_end(&mut found).expect("reads");
    assert_same(&found, &fs::read("/bin/sleep").expect("reads"), "the program");
    drop(own);
    child.kill().and_then(|()| child.wait()).expect("ends");
    eventually("its blocks leave the store", || volume.blocks() == 0);
}

#[test]
fn fifos_sockets_and_devices_work() {
    let volume = Volume::mounted();
    run_ok(&volume, "mkfifo p && (echo through >p &) && [ $(cat p) = through ]");
    let socket = UnixDatagram::bind(volume.path("s")).expect("binds");
    UnixDatagram::unbound().and_then(|other| other.send_to(b"sent", volume.path("s"))).expect("sends");
    let mut found = [0; 4];
    socket.recv(&mut found).expect("receives");
    assert_eq!(&found, b"sent");
    assert!(fs::symlink_metadata(volume.path("s")).expect("stats").file_type().is_socket());
    run_ok(&volume, "mknod z c 1 5 && [ $(head -c 3 z | wc -c) = 3 ] && [ $(head -c 3 z | tr -d '\\0' | wc -c) = 0 ]");
}

#[test]
fn nosuid_nodev_and_noexec_bind_programs() {
    let volume = Volume::mounted();
    chmod(&volume.mnt, 0o755);
    fs::copy("/usr/bin/id", volume.path("id")).expect("copies");
    chmod(&volume.path("id"), 0o4755);
    run_ok(&volume, "mknod zero c 1 5 && chmod 666 zero");
    for (options, runs, as_root, opens) in [
        ("suid,dev,exec", true, true, true),
        ("nosuid,dev,exec", true, false, true),
        ("nosuid,nodev,exec", true, false, false),
        ("suid,dev,noexec", false, false, true),
    ] {
        volume.unmount();
        volume.mount(&["-o", options]);
        assert_eq!(as_nobody(&volume, NO_GROUPS, "./id >/dev/null"), runs, "{options}");
        assert_eq!(as_nobody(&volume, NO_GROUPS, "[ \"$(./id -u 2>/dev/null)\" = 0 ]"), as_root, "{options}");
        assert_eq!(as_nobody(&volume, NO_GROUPS, "head -c 1 zero"), opens, "{options}");
    }
}

#[test]
fn statfs_shows_limits_and_use() {
    const MIB: u64 = 1 << 20;
    let volume = Volume::formatted_with(&["--capacity", "8M", "--inodes", "50"]);
    volume.mount(&[]);
    let free = || {
        let stat = rustix::fs::statvfs(&volume.mnt).expect("stats");
        assert_eq!((stat.f_blocks * stat.f_frsize, stat.f_files, stat.f_namemax), (8 * MIB, 50, 255));
        assert_eq!(stat.f_bavail, stat.f_bfree);
        (stat.f_bfree * stat.f_frsize, stat.f_ffree)
    };
    assert_eq!(free(), (8 * MIB, 49));
    fs::write(volume.path("f"), noise(1, MIB as usize)).expect("writes");
    sync(&volume.path("f"));
    assert_eq!(free(), (7 * MIB, 48));
    fs::remove_file(volume.path("f")).expect("unlinks");
    eventually("space comes back", || free() == (8 * MIB, 49));
}

// ---- mmap

#[test]
fn a_private_map_keeps_its_changes_to_itself() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    let contents = noise(1, 100_000);
    fs::write(&path, &contents).expect("writes");
    let file = File::open(&path).expect("opens");
    // SAFETY: nothing else changes the file while it is mapped.
    let mut map = unsafe { MmapOptions::new().map_copy(&file) }.expect("maps");
    assert_same(&map, &contents, "mapped");
    map[50_000..50_007].copy_from_slice(b"private");
    drop(file);
    assert_same(&fs::read(&path).expect("reads"), &contents, "the file");
    drop(map);
    volume.remount();
    assert_same(&fs::read(&path).expect("reads"), &contents, "after a remount");
}

#[test]
fn a_mapped_file_lives_until_it_is_unmapped() {
    let volume = Volume::mounted_unpacked();
    let path = volume.path("f");
    let mut contents = noise(2, 300_000);
    fs::write(&path, &contents).expect("writes");
    sync(&path);
    // SAFETY: nothing else changes the file while it is mapped.
    let mut map = unsafe { MmapMut::map_mut(&read_write(&path)) }.expect("maps");
    fs::remove_file(&path).expect("unlinks");
    fs::write("/proc/sys/vm/drop_caches", "1").expect("is root");
    map[..6].copy_from_slice(b"stored");
    contents[..6].copy_from_slice(b"stored");
    map.flush().expect("syncs");
    assert_same(&map, &contents, "mapped");
    eventually("its blocks are in the store", || volume.blocks() > 0);
    drop(map);
    eventually("its blocks leave the store", || volume.blocks() == 0);
}

#[test]
fn msync_and_fsync_hand_over_what_was_mapped() {
    let volume = lazy();
    for by_fsync in [false, true] {
        let path = volume.path(&format!("f{by_fsync}"));
        let mut contents = noise(3, 200_000);
        fs::write(&path, &contents).expect("writes");
        let file = read_write(&path);
        // SAFETY: nothing else changes the file while it is mapped.
        let mut map = unsafe { MmapMut::map_mut(&file) }.expect("maps");
        map[100_000..100_006].copy_from_slice(b"mapped");
        contents[100_000..100_006].copy_from_slice(b"mapped");
        if by_fsync {
            file.sync_all().expect("syncs");
        } else {
            map.flush().expect("syncs");
        }
        volume.end_by(Signal::KILL);
        drop((map, file));
        volume.mount(&["--commit-interval", "1h"]);
        assert_same(&fs::read(&path).expect("reads"), &contents, "after a kill");
    }
}

// ---- locks

/// $1: a file. Each kind of lock, exclusive and shared, of one process against another.
const LOCKS: &str = r#"
import fcntl, os, struct, sys
def ofd(fd, kind, start, length):
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', kind, os.SEEK_SET, start, length, 0))
kinds = {
    'flock': (lambda fd, part: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
              lambda fd, part: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)),
    'fcntl': (lambda fd, part: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, part),
              lambda fd, part: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, part)),
    'ofd': (lambda fd, part: ofd(fd, fcntl.F_WRLCK, part, 10), lambda fd, part: ofd(fd, fcntl.F_RDLCK, part, 10)),
}
def other(lock, part):
    "Whether another process gets the lock."
    child = os.fork()
    if child == 0:
        try:
            lock(os.open(sys.argv[1], os.O_RDWR), part)
            os._exit(0)
        except BlockingIOError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
for name, (exclusive, shared) in kinds.items():
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    exclusive(fd, 0)
    assert not other(exclusive, 0) and not other(shared, 0), name
    assert other(exclusive, 100) == (name != 'flock'), name
    shared(fd, 0)
    assert other(shared, 0) and not other(exclusive, 0), name
    os.close(fd)
    assert other(exclusive, 0), name
"#;

#[test]
fn locks_of_each_kind_hold_between_processes() {
    let volume = Volume::mounted();
    let output = Command::new("python3").args(["-c", LOCKS]).arg(volume.path("f")).output().expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_locks_of_a_killed_process_are_gone() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    fs::write(&path, "").expect("writes");
    let mut holder = Command::new("flock")
        .args([path.to_str().expect("UTF-8"), "sh", "-c", "echo locked; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("flock runs");
    holder.stdout.take().expect("a pipe").read_exact(&mut [0; 7]).expect("it has the lock");
    let attempt = || Command::new("flock").arg("-n").arg(&path).arg("true").status().expect("runs").success();
    assert!(!attempt());
    // flock(1) waits for its command, which has the lock as well and ends with its input.
    holder.kill().expect("it runs");
    drop(holder.stdin.take());
    holder.wait().expect("ends");
    eventually("the lock is free", attempt);
}

// ---- what survives what

#[test]
fn fsync_by_one_descriptor_stores_what_came_by_another() {
    let volume = lazy();
    let path = volume.path("f");
    let mut writer = File::create(&path).expect("creates");
    writer.write_all(&noise(1, 300_000)).expect("writes");
    chmod(&path, 0o640);
    sync(&path);
    volume.end_by(Signal::KILL);
    drop(writer);
    volume.mount(&[]);
    assert_same(&fs::read(&path).expect("reads"), &noise(1, 300_000), "after a kill");
    assert_eq!(fs::metadata(&path).expect("stats").mode() & 0o7777, 0o640);
}

#[test]
fn what_nobody_syncs_is_stored_after_the_commit_interval() {
    let volume = Volume::formatted();
    volume.mount(&["--commit-interval", "1s"]);
    fs::write(volume.path("f"), noise(1, 300_000)).expect("writes");
    eventually("it is stored", || dirty_bytes(&volume) == 0);
    volume.end_by(Signal::KILL);
    volume.mount(&[]);
    assert_same(&fs::read(volume.path("f")).expect("reads"), &noise(1, 300_000), "after a kill");
}

#[test]
fn what_a_kill_leaves_of_unsynced_writes_is_a_prefix() {
    const PIECE: usize = 50_000;
    let volume = Volume::formatted();
    volume.mount(&["--commit-interval", "100ms"]);
    let contents = noise(7, 40 * PIECE);
    let mut file = File::create(volume.path("f")).expect("creates");
    for (index, piece) in contents.chunks(PIECE).enumerate() {
        file.write_all(piece).expect("writes");
        if index == 20 {
            eventually("some of it is stored", || dirty_bytes(&volume) == 0);
        }
    }
    volume.end_by(Signal::KILL);
    drop(file);
    volume.mount(&[]);
    let found = fs::read(volume.path("f")).expect("reads");
    assert!(21 * PIECE <= found.len(), "{} bytes", found.len());
    assert_same(&found, &contents[..found.len()], "a prefix");
    volume.unmount();
    volume.check();
}

#[test]
fn a_rename_over_a_name_is_whole_after_a_kill() {
    let volume = lazy();
    let path = volume.path("f");
    fs::write(&path, noise(0, 200_000)).expect("writes");
    sync(&path);
    for round in 1..4 {
        fs::write(volume.path("tmp"), noise(round, 200_000)).expect("writes");
        fs::rename(volume.path("tmp"), &path).expect("renames");
        volume.end_by(Signal::KILL);
        volume.mount(&["--commit-interval", "1h"]);
        let found = fs::read(&path).expect("reads");
        assert!((0..=round).any(|round| found == noise(round, 200_000)), "{} bytes of neither", found.len());
    }
}

#[test]
fn a_rename_whose_file_cannot_be_stored_changes_nothing() {
    let volume = Volume::formatted();
    volume.mount(&["--mode", "through", "--store-timeout", "2s", "--commit-interval", "1h"]);
    fs::write(volume.path("f"), noise(1, 200_000)).expect("writes");
    sync(&volume.path("f"));
    break_store(&volume, true);
    fs::write(volume.path("tmp"), noise(2, 200_000)).expect("is accepted in memory");
    let renamed = errno(fs::rename(volume.path("tmp"), volume.path("f")));
    assert_eq!(renamed, Some(Errno::IO.raw_os_error()));
    assert_same(&fs::read(volume.path("f")).expect("reads"), &noise(1, 200_000), "the old name");
    assert_same(&fs::read(volume.path("tmp")).expect("reads"), &noise(2, 200_000), "the new contents");
    break_store(&volume, false);
    eventually("it can be done later", || fs::rename(volume.path("tmp"), volume.path("f")).is_ok());
    assert_same(&fs::read(volume.path("f")).expect("reads"), &noise(2, 200_000), "replaced");
    assert_eq!(fs::metadata(volume.path("tmp")).expect_err("it moved").kind(), ErrorKind::NotFound);
    volume.unmount();
    volume.check();
}

#[test]
fn each_open_handle_is_told_of_an_error_once() {
    let volume = Volume::formatted();
    volume.mount(&["--mode", "through", "--store-timeout", "2s", "--commit-interval", "1h"]);
    let path = volume.path("f");
    fs::write(&path, noise(1, 200_000)).expect("writes");
    sync(&path);
    let [mut writer, first, other, third] = [(); 4].map(|()| read_write(&path));
    break_store(&volume, true);
    writer.seek(SeekFrom::Start(50_000)).expect("seeks");
    writer.write_all(&noise(2, 200_000)).expect("is accepted in memory");
    let io = Some(Errno::IO.raw_os_error());
    // The store is asked again and again until the time is up.
    eventually("a write is told", || errno(first.write_at(b"x", 0)) == io);
    assert_eq!(errno(writer.sync_all()), io);
    break_store(&volume, false);
    eventually("it can be stored", || writer.sync_all().is_ok());
    assert_eq!(errno(other.sync_all()), io, "it was open when the error happened");
    assert_eq!(errno(other.sync_all()), None, "it was told");
    assert_eq!(errno(third.write_at(b"x", 0)), io, "a write tells as well");
    assert_eq!(errno(third.write_at(b"x", 0)), None);
    assert_eq!(errno(read_write(&path).sync_all()), None, "opened since");
    let mut expected = noise(1, 200_000);
    expected.truncate(50_000);
    expected.extend(noise(2, 200_000));
    expected[0] = b'x';
    drop((writer, first, other, third));
    volume.remount();
    assert_same(&fs::read(&path).expect("reads"), &expected, "nothing is lost");
}

/// A `struct file_handle` with room for any.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

unsafe extern "C" {
    fn name_to_handle_at(dir: i32, path: *const c_char, handle: *mut Handle, mount: *mut i32, flags: i32) -> i32;
    fn open_by_handle_at(mount: i32, handle: *mut Handle, flags: i32) -> i32;
}

/// As NFS and overlayfs do.
fn open_handle(mount: &File, handle: &mut Handle) -> std::io::Result<File> {
    // SAFETY: the handle is one, and the descriptor that comes back is nobody else's.
    let fd = unsafe { open_by_handle_at(mount.as_raw_fd(), handle, 0) };
    // SAFETY: as above.
    if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(unsafe { File::from_raw_fd(fd) }) }
}

#[test]
fn a_file_handle_outlives_the_caches() {
    let volume = Volume::mounted();
    fs::create_dir(volume.path("dir")).expect("makes a folder");
    let path = volume.path("dir/f");
    fs::write(&path, "handled").expect("writes");
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; 128] };
    let name = CString::new(path.as_os_str().as_bytes()).expect("has no NUL");
    let mut mount_id = 0;
    // SAFETY: both are big enough, and the path ends with NUL.
    let told = unsafe { name_to_handle_at(-100, name.as_ptr(), &raw mut handle, &raw mut mount_id, 0) };
    assert_eq!(told, 0, "{}", std::io::Error::last_os_error());
    let mount = File::open(volume.path("")).expect("opens");
    for round in 0..2 {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("is root");
        let mut found = String::new();
        open_handle(&mount, &mut handle).expect("it is there").read_to_string(&mut found).expect("reads");
        assert_eq!(found, "handled", "round {round}");
        if round == 0 {
            fs::rename(volume.path("dir"), volume.path("moved")).expect("renames");
        }
    }
    fs::remove_file(volume.path("moved/f")).expect("unlinks");
    // The kernel remembers it for as long as what was read last is being released.
    eventually("it is removed", || {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("is root");
        open_handle(&mount, &mut handle).is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::STALE))
    });
}
