//! Promise 7, memory: 64 writers on a store that does not answer, and then reading it all back, stay under
//! `--buffer-size` and a stated constant.

mod s3server;
mod volume;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use memmap2::MmapMut;
use s3server::{ACCESS_KEY, S3Server, SECRET_KEY};
use serde_json::Value as Json;
use volume::{NAME, Ran, World, eventually, noise};

const MIB: u64 = 1 << 20;
const WRITERS: u64 = 64;
/// What each writer writes: together sixteen times the buffer.
const EACH: u64 = 16 * MIB;
const BUFFER: u64 = 64 * MIB;
/// Beside the buffer: RocksDB, requests that wait (one of up to 1 MiB for each writer), fetches and puts under way, what
/// the allocator does not give back. README states it.
const BESIDE: u64 = 300 * MIB;

fn kiseki(args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiseki"));
    command.env("KISEKI_ACCESS_KEY", ACCESS_KEY).env("KISEKI_SECRET_KEY", SECRET_KEY);
    command.args(args).stdin(Stdio::null()).output().expect("kiseki runs").into()
}

/// A mount of a volume behind `S3Server`. Dropping it unmounts, whatever is lost.
struct Mount {
    point: String,
    log: PathBuf,
}

impl Mount {
    fn new(world: &World, bucket: &str, mode: &str) -> Self {
        let (meta, point, log) = (world.meta(), world.text("mnt"), world.text("log"));
        fs::create_dir(&point).expect("a mount point");
        kiseki(&["format", &meta, NAME, "--storage", "minio", "--bucket", bucket]).ends(0);
        kiseki(&["mount", "-d", "--log", &log, "--buffer-size", "64M", "--mode", mode, &meta, &point]).ends(0);
        Self { point, log: log.into() }
    }

    fn status(&self) -> Json {
        kiseki(&["status", &self.point, "--json"]).ends(0).json()["mount"].take()
    }

    /// The most memory that the process ever had resident, in bytes.
    fn peak(&self) -> u64 {
        let pid = self.status()["pid"].as_u64().expect("a process");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    }

    #[track_caller]
    fn check_peak(&self, when: &str) {
        let peak = self.peak();
        eprintln!("{when}: {} MiB beside the buffer", (peak - BUFFER) / MIB);
        assert!(peak <= BUFFER + BESIDE, "{when}: {} MiB with a buffer of {} MiB", peak / MIB, BUFFER / MIB);
    }
}

impl Mount {
    /// All of it is there, after an unmount and without more memory.
    fn read_again(&self, world: &World, contents: &[u8]) {
        kiseki(&["umount", &self.point]).ends(0);
        let (meta, log) = (world.meta(), world.text("log"));
        kiseki(&["mount", "-d", "--log", &log, "--buffer-size", "64M", &meta, &self.point]).ends(0);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let path = Path::new(&self.point).join(format!("file {writer}"));
                scope.spawn(move || assert!(same(&path, contents), "{} differs", path.display()));
            }
        });
        self.check_peak("after 64 readers");
        kiseki(&["umount", &self.point]).ends(0);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let ran = kiseki(&["umount", "--force", &self.point]);
        if thread::panicking() {
            eprintln!("{ran:?}\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

fn write(path: &Path, contents: &[u8]) {
    let mut file = File::create(path).expect("a file");
    for piece in contents.chunks(MIB as usize) {
        file.write_all(piece).expect("a write");
    }
}

fn same(path: &Path, contents: &[u8]) -> bool {
    let mut file = File::open(path).expect("the file");
    let mut piece = vec![0; MIB as usize];
    contents.chunks(MIB as usize).all(|expected| {
        file.read_exact(&mut piece).expect("a read");
        piece == expected
    })
}

#[test]
fn memory_is_bounded_however_slow_the_store_is() {
    let server = S3Server::start();
    let world = World::new();
    let mount = Mount::new(&world, &server.bucket_url(), "through");
    // In whole pages, so that what is written at a time comes in one request, also past the page cache.
    let mut contents = MmapMut::map_anon(EACH as usize).expect("maps");
    contents.copy_from_slice(&noise(7, EACH as usize));
    let path = |writer: u64| Path::new(&mount.point).join(format!("file {writer}"));
    server.fault(|faults| faults.hang = true);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (path, contents) = (path(writer), &contents);
                scope.spawn(move || write(&path, contents))
            })
            .collect();
        // Each ends up with one write that waits, but for the few that were done before the buffer was full.
        let waited = catch_unwind(AssertUnwindSafe(|| {
            eventually("the writers wait", || {
                let done = writers.iter().filter(|writer| writer.is_finished()).count() as u64;
                assert!(done * EACH <= BUFFER, "{done} writers are done");
                mount.status()["waiting_bytes"].as_u64() == Some((WRITERS - done) * MIB)
            });
        }));
        if let Err(panic) = waited {
            // Or the writers would wait for ever, and the scope for them.
            server.heal();
            resume_unwind(panic);
        }
        mount.check_peak("with a store that does not answer");
        server.heal();
    });
    mount.check_peak("after all was written");
    mount.read_again(&world, &contents);
}

/// The log takes what the store does not: nobody waits.
#[test]
fn memory_is_bounded_while_the_write_back_log_grows() {
    let server = S3Server::start();
    let world = World::new();
    let mount = Mount::new(&world, &server.bucket_url(), "back");
    let contents = noise(7, EACH as usize);
    server.fault(|faults| faults.hang = true);
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (path, contents) = (Path::new(&mount.point).join(format!("file {writer}")), &contents);
            scope.spawn(move || write(&path, contents));
        }
    });
    mount.check_peak("with a store that does not answer");
    server.heal();
    mount.read_again(&world, &contents);
}
