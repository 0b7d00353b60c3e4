//! A formatted volume in a throw-away folder, mounted by the real binary.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::volume::PATIENCE;
pub(crate) use crate::volume::eventually;

/// Runs `kiseki`.
pub(crate) fn kiseki<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kiseki")).args(args).output().expect("kiseki runs")
}

/// Runs `kiseki`, which must succeed; returns what it printed.
#[track_caller]
pub(crate) fn kiseki_ok<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> String {
    let output = kiseki(args);
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Copies a program, by another process: what this one has open for writing while a test beside this one starts a child
/// is open in that child for a moment, and cannot be run.
#[track_caller]
pub(crate) fn copy_program(from: &str, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().expect("cp runs").success());
}

/// A volume of 64 KiB blocks, so that small files already have several, and its mount.
pub(crate) struct Volume {
    dir: TempDir,
    pub(crate) mnt: PathBuf,
}

/// Each block is an object of its own, however small.
pub(crate) const UNPACKED: [&str; 2] = ["--pack-below", "0"];

impl Volume {
    /// Formats and mounts.
    pub(crate) fn mounted() -> Self {
        let volume = Self::formatted();
        volume.mount(&[]);
        volume
    }

    /// The same, for who counts blocks.
    pub(crate) fn mounted_unpacked() -> Self {
        let volume = Self::formatted();
        volume.mount(&UNPACKED);
        volume
    }

    /// Formats.
    pub(crate) fn formatted() -> Self {
        Self::with_blocks_of("64K")
    }

    /// Formats with another block size.
    pub(crate) fn with_blocks_of(block_size: &str) -> Self {
        Self::formatted_with(&["--block-size", block_size])
    }

    /// Formats with these arguments.
    pub(crate) fn formatted_with(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        // Every parent must be passable for other users.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("is ours");
        let mnt = dir.path().canonicalize().expect("is there").join("mnt");
        fs::create_dir(&mnt).expect("is empty");
        let volume = Self { dir, mnt };
        let (meta, bucket) = (volume.meta(), volume.bucket());
        let bucket = bucket.to_str().expect("UTF-8");
        kiseki_ok(&[&["format", &meta, "vol", "--storage", "file", "--bucket", bucket], more].concat());
        volume
    }

    pub(crate) fn meta(&self) -> String {
        self.dir.path().join("meta").to_str().expect("temporary folders are UTF-8").into()
    }

    pub(crate) fn bucket(&self) -> PathBuf {
        self.dir.path().join("bucket")
    }

    /// A path outside of the mount.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Mounts in the background, with further arguments.
    #[track_caller]
    pub(crate) fn mount(&self, more: &[&str]) {
        let log = self.beside("log");
        let args =
            ["mount", "-d", &self.meta(), self.mnt.to_str().expect("UTF-8"), "--log", log.to_str().expect("UTF-8")];
        kiseki_ok(&[&args, more].concat());
    }

    #[track_caller]
    pub(crate) fn unmount(&self) {
        kiseki_ok(&["umount", self.mnt.to_str().expect("UTF-8")]);
    }

    #[track_caller]
    pub(crate) fn remount(&self) {
        self.unmount();
        self.mount(&[]);
    }

    /// A path in the mount.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.mnt.join(name)
    }

    /// The process that serves the mount.
    pub(crate) fn pid(&self) -> Pid {
        let status = kiseki_ok(&["status", self.mnt.to_str().expect("UTF-8"), "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        let pid = status["mount"]["pid"].as_i64().expect("a pid");
        Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid")
    }

    /// Sends a signal to the process that serves the mount and waits for its end.
    pub(crate) fn end_by(&self, signal: Signal) {
        let pid = self.pid();
        let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("it runs");
        rustix::process::kill_process(pid, signal).expect("it runs");
        let mut end = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut end, Some(&patience)), Ok(1), "the mount process goes on");
    }

    /// Returns once nothing is in the write-back log only.
    pub(crate) fn drain(&self) {
        eventually("everything is in the store", || {
            let status = kiseki_ok(&["status", self.mnt.to_str().expect("UTF-8"), "--json"]);
            let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
            status["mount"]["log"]["objects"].as_u64().unwrap_or(0) == 0
        });
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.beside("log")).unwrap_or_default()
    }

    /// `fsck --data` on the unmounted volume finds nothing.
    #[track_caller]
    pub(crate) fn check(&self) {
        kiseki_ok(&["fsck", &self.meta(), "--data"]);
    }

    /// Number of objects that are blocks.
    pub(crate) fn blocks(&self) -> usize {
        fn count(dir: &Path) -> usize {
            let Ok(entries) = fs::read_dir(dir) else { return 0 };
            entries
                .flatten()
                .map(|entry| if entry.file_type().is_ok_and(|kind| kind.is_dir()) { count(&entry.path()) } else { 1 })
                .sum()
        }
        count(&self.bucket().join("vol").join("blocks"))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // The mount of a failed test, or of one that ends with it; gone already in others.
        let _ = kiseki(&["umount", "--force", self.mnt.to_str().expect("UTF-8")]);
        let _ = rustix::mount::unmount(&self.mnt, rustix::mount::UnmountFlags::DETACH);
        if std::thread::panicking() {
            eprintln!("log of the mount:\n{}", self.log());
        }
    }
}

/// Bytes without a pattern, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64 (Marsaglia, 2003)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Asserts equality of long contents without printing them.
#[track_caller]
pub(crate) fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    let differ = found.iter().zip(expected).position(|(a, b)| a != b);
    assert!(
        found == expected,
        "{what}: {} bytes, expected {}, first difference at {differ:?}",
        found.len(),
        expected.len()
    );
}

/// What a program can see of a tree: for each path type and mode, owner, length, mtime, link count, contents or target.
pub(crate) fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut picture = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).expect("is there");
        let contents = if meta.is_symlink() {
            format!("{:?}", fs::read_link(&path).expect("has a target"))
        } else if meta.is_file() {
            let hash = fs::read(&path).expect("reads").iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                // FNV-1a
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            format!("{hash:x}")
        } else {
            String::new()
        };
        let text = format!(
            "{:o} {}:{} len {} mtime {}.{} nlink {} rdev {} ino {} {contents}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.nlink(),
            meta.rdev(),
            meta.ino()
        );
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).expect("lists").map(|entry| entry.expect("lists").path()));
        }
        picture.insert(path.strip_prefix(root).expect("is below").to_owned(), text);
    }
    picture
}
