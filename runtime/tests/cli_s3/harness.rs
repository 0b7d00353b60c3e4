//! A bucket on a server in this process, users of the command line, and mounts.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;

use crate::s3server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use crate::volume::{NAME, PATIENCE, Ran, World, eventually};

/// All variables that hold keys.
pub(crate) const KEY_VARIABLES: [&str; 6] = [
    "KISEKI_ACCESS_KEY",
    "KISEKI_SECRET_KEY",
    "KISEKI_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];

/// Who runs the command: what its environment holds.
#[derive(Clone)]
pub(crate) struct User(pub(crate) Vec<(&'static str, String)>);

impl User {
    pub(crate) fn without_keys() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn with_keys(access: &str, secret: &str) -> Self {
        Self(vec![("KISEKI_ACCESS_KEY", access.into()), ("KISEKI_SECRET_KEY", secret.into())])
    }

    pub(crate) fn and(mut self, name: &'static str, value: &str) -> Self {
        self.0.push((name, value.into()));
        self
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiseki"));
        for name in KEY_VARIABLES {
            command.env_remove(name);
        }
        command.args(args).envs(self.0.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
        command
    }

    pub(crate) fn runs(&self, args: &[&str]) -> Ran {
        self.command(args).output().expect("kiseki runs").into()
    }
}

/// A bucket, who may use it, and a folder for the rest.
pub(crate) struct Bucket {
    pub(crate) world: World,
    /// Text of `--bucket`.
    pub(crate) url: String,
    pub(crate) user: User,
    pub(crate) server: S3Server,
}

impl Bucket {
    pub(crate) fn new() -> Self {
        let server = S3Server::start();
        Self { world: World::new(), url: server.bucket_url(), user: User::with_keys(ACCESS_KEY, SECRET_KEY), server }
    }

    pub(crate) fn format_as(&self, user: &User, bucket: &str, more: &[&str]) -> Ran {
        let meta = self.world.meta();
        let args = ["format", &meta, NAME, "--storage", "minio", "--bucket", bucket, "--block-size", "64K"];
        user.runs(&[&args, more].concat())
    }

    pub(crate) fn formatted() -> Self {
        let bucket = Self::new();
        bucket.format_as(&bucket.user, &bucket.url, &[]).ends(0);
        bucket
    }

    /// The same bucket at another address.
    pub(crate) fn other_url(&self) -> String {
        format!("http://localhost:{}/{BUCKET}", self.server.port())
    }

    /// Requests are taken, and not answered.
    pub(crate) fn hang(&self, hang: bool) {
        self.server.fault(|faults| faults.hang = hang);
    }

    pub(crate) fn deny_writes(&self, deny: bool) {
        self.server.fault(|faults| faults.deny_writes = deny);
    }
}

/// A volume mounted in the background; unmounted at the end of the test also if that fails.
pub(crate) struct Mounted<'a> {
    world: &'a World,
    pub(crate) point: PathBuf,
}

impl<'a> Mounted<'a> {
    #[track_caller]
    pub(crate) fn new(world: &'a World, user: &User, more: &[&str]) -> Self {
        let point = world.path("mnt");
        fs::create_dir_all(&point).unwrap();
        let (meta, log) = (world.meta(), world.text("log"));
        user.runs(&[&["mount", "-d", "--log", &log, &meta, point.to_str().unwrap()], more].concat()).ends(0);
        Self { world, point }
    }

    pub(crate) fn text(&self) -> &str {
        self.point.to_str().unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.world.path("log")).unwrap_or_default()
    }

    pub(crate) fn status(&self) -> Json {
        User::without_keys().runs(&["status", self.text(), "--json"]).ends(0).json()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.status()["mount"]["pid"].as_i64().unwrap() as i32).unwrap()
    }

    pub(crate) fn umount(&self, more: &[&str]) -> Ran {
        User::without_keys().runs(&[&["umount", self.text()], more].concat())
    }

    #[track_caller]
    pub(crate) fn unmount(self) {
        self.umount(&[]).ends(0);
        std::mem::forget(self);
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let ran = self.umount(&["--force"]);
        eprintln!("{ran:?}\n{}", self.log());
    }
}

/// An address that nobody listens at.
pub(crate) fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/bucket", listener.local_addr().unwrap())
}

/// Waits for the end of a process.
#[track_caller]
pub(crate) fn ends(process: &impl std::os::fd::AsFd) {
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&patience)), Ok(1), "the process goes on");
}

pub(crate) fn errno<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).expect("an errno"))
}

/// A mount in the foreground; killed at the end of the test if it fails.
pub(crate) struct Foreground<'a> {
    world: &'a World,
    child: Child,
}

impl<'a> Foreground<'a> {
    /// Starts it, with a log, at `mnt`.
    pub(crate) fn start(world: &'a World, user: &User, args: &[&str]) -> Self {
        fs::create_dir_all(world.path("mnt")).unwrap();
        let mounts = fs::read_to_string(world.path("log")).unwrap_or_default().matches(" mounted ").count();
        let child = user.command(args).stdout(Stdio::null()).spawn().expect("kiseki runs");
        let started = Self { world, child };
        eventually("it is mounted", || started.log().matches(" mounted ").count() > mounts);
        started
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.world.path("log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self) {
        kill_process(self.pid(), Signal::TERM).expect("it runs");
    }

    pub(crate) fn unmount(mut self) {
        User::without_keys().runs(&["umount", &self.world.text("mnt")]).ends(0);
        assert!(self.child.wait().expect("it ends").success());
    }
}

impl Drop for Foreground<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        // Both fail if it ended as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = rustix::mount::unmount(self.world.path("mnt"), rustix::mount::UnmountFlags::DETACH);
    }
}
