//! One side: a tree on one file system, and the processes that work in it.
//!
//! Owns: starting the workers, asking them, ending them. Leaves to others: what they do (`worker`).

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::call::Answer;
use crate::sys;
use crate::walk::Entry;
use crate::worker::{Request, Response};

/// A group that users have besides their own.
pub(crate) const COMMON_GROUP: u32 = 1100;
/// Who works: user, group, further groups. The first is root; two are the same user.
pub(crate) const USERS: [(u32, u32, &[u32]); 4] =
    [(0, 0, &[]), (1001, 1001, &[COMMON_GROUP]), (1002, 1002, &[COMMON_GROUP, 1001]), (1001, 1001, &[])];
/// Root again, but its own process: it looks, and changes nothing.
pub(crate) const OBSERVER: usize = USERS.len();

/// How long one call may take.
const PATIENCE_MS: i32 = 60_000;
/// How long a worker may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// Dropping it ends its processes.
#[derive(Debug)]
pub(crate) struct Side {
    /// For messages.
    pub(crate) name: &'static str,
    workers: Vec<Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    /// Its end ends the worker.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Side {
    /// Makes the tree that every episode begins with in `root`, and starts the workers.
    pub(crate) fn begin(name: &'static str, root: &Path) -> Result<Self, String> {
        prepare(root).map_err(|error| format!("cannot prepare {}: {error}", root.display()))?;
        let observer = [(0, 0, &[][..])];
        let start = |(uid, gid, groups): &(u32, u32, &[u32])| Process::start(root, *uid, *gid, groups);
        let workers: Result<Vec<_>, _> = USERS.iter().chain(&observer).map(start).collect();
        Ok(Self { name, workers: workers? })
    }

    pub(crate) fn send(&mut self, worker: usize, request: &Request) -> Result<(), String> {
        let mut line = serde_json::to_vec(request).map_err(|error| error.to_string())?;
        line.push(b'\n');
        let Some(input) = &mut self.workers[worker].input else {
            return Err(format!("{}: worker {worker} has ended", self.name));
        };
        input
            .write_all(&line)
            .and_then(|()| input.flush())
            .map_err(|error| format!("{}: worker {worker}: {error}", self.name))
    }

    pub(crate) fn receive(&mut self, worker: usize) -> Result<Response, String> {
        let output = &mut self.workers[worker].output;
        let mut waiting = libc::pollfd { fd: output.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, which outlives the call.
        let ready = unsafe { libc::poll(&raw mut waiting, 1, PATIENCE_MS) };
        if ready != 1 {
            return Err(format!("{}: no answer after {} s", self.name, PATIENCE_MS / 1000));
        }
        let mut line = String::new();
        match output.read_line(&mut line) {
            Ok(1..) => serde_json::from_str(&line).map_err(|error| format!("{}: {error}", self.name)),
            Ok(0) => Err(format!("{}: worker {worker} has ended", self.name)),
            Err(error) => Err(format!("{}: worker {worker}: {error}", self.name)),
        }
    }

    pub(crate) fn answer(&mut self, worker: usize) -> Result<Answer, String> {
        match self.receive(worker)? {
            Response::Done(answer) => Ok(answer),
            other @ (Response::Tree(_) | Response::Lines(_)) => Err(format!("{}: no answer but {other:?}", self.name)),
        }
    }

    pub(crate) fn tree(&mut self) -> Result<Vec<Entry>, String> {
        match self.receive(OBSERVER)? {
            Response::Tree(entries) => Ok(entries),
            other @ (Response::Done(_) | Response::Lines(_)) => Err(format!("{}: {other:?}", self.name)),
        }
    }

    pub(crate) fn lines(&mut self, worker: usize) -> Result<Vec<String>, String> {
        match self.receive(worker)? {
            Response::Lines(lines) => Ok(lines),
            other @ (Response::Done(_) | Response::Tree(_)) => Err(format!("{}: no lines but {other:?}", self.name)),
        }
    }

    /// Ends the workers, and the tree with them.
    pub(crate) fn end(mut self, root: &Path) -> Result<(), String> {
        for worker in 0..USERS.len() {
            self.workers[worker].end();
        }
        self.send(OBSERVER, &Request::Wipe)?;
        let left = self.lines(OBSERVER)?;
        if !left.is_empty() {
            return Err(format!("{}: left after the end: {}", self.name, left.join(", ")));
        }
        drop(self);
        fs::remove_dir(root).map_err(|error| format!("cannot remove {}: {error}", root.display()))
    }
}

impl Process {
    fn start(root: &Path, uid: u32, gid: u32, groups: &[u32]) -> Result<Self, String> {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
        let mut child = Command::new(program)
            .arg("worker")
            .arg(root)
            .args([uid.to_string(), gid.to_string(), groups.join(",")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start a worker: {error}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a worker without pipes".into());
        };
        Ok(Self { child, input: Some(input), output: BufReader::new(output) })
    }

    fn end(&mut self) {
        self.input = None;
        let end = Instant::now() + GRACE;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if end < Instant::now() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Directories for everybody, for a group, for one user; a file of each user.
fn prepare(root: &Path) -> std::io::Result<()> {
    let set = |path: &Path, owner: (u32, u32), mode: u32| {
        chown(path, Some(owner.0), Some(owner.1))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    fs::create_dir(root)?;
    // An error of an earlier tree's pages, which nobody was told of yet, would be told to the first to call syncfs(2).
    let _ = sys::call(libc::SYS_syncfs, [sys::signed(fs::File::open(root)?.as_raw_fd())]);
    set(root, (0, 0), 0o777)?;
    for (name, owner, mode) in [
        ("n0", (0, 0), 0o1777),
        ("n1", (1001, COMMON_GROUP), 0o2775),
        ("n2", (1002, 1002), 0o755),
        ("n3", (1001, 1001), 0o777),
        ("n3/n0", (0, 0), 0o777),
    ] {
        fs::create_dir(root.join(name))?;
        set(&root.join(name), owner, mode)?;
    }
    for (index, (uid, gid, _)) in USERS.iter().enumerate() {
        let path = root.join(format!("n{}", 5 + index));
        fs::write(&path, vec![7; 10_000])?;
        set(&path, (*uid, *gid), 0o666)?;
    }
    Ok(())
}
