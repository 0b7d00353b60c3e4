//! `-d`: the mount goes on in a process of its own.
//!
//! The command starts itself again, with the same arguments and a variable that says so, before it has made an executor or
//! opened a store (neither survives a fork). The new process leaves the terminal and writes one line to its standard
//! output, which is a pipe: that the mount answers, or why it does not. Its standard error is the log.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Set in the process that mounts.
const VARIABLE: &str = "KISEKI_MOUNT_DAEMON";
/// What that process says once the mount answers.
const READY: &str = "ready";

/// Whether this is the process that was started to mount.
pub(super) fn is_child() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Starts the process that mounts; returns once its mount answers.
pub(super) fn start(log: &Path) -> anyhow::Result<()> {
    let log_file = open_log(log)?;
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let mut child = command
        .args(arguments)
        .env(VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .spawn()
        .context("cannot start the mount process")?;
    let mut said = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut said).context("cannot listen to the mount process")?;
    }
    match said.trim() {
        READY => Ok(()),
        "" => {
            let status = child.wait()?;
            bail!("the mount process ended before it mounted anything ({status}); its log is {}", log.display())
        }
        error => {
            // It is about to end by itself.
            child.wait()?;
            bail!("{error}")
        }
    }
}

/// Opens a log to append to; makes the folder that it is in.
pub(super) fn open_log(path: &Path) -> anyhow::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the log's folder {}", folder.display()))?;
    }
    // Names of files appear in logs: they are not for everybody.
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    opened.with_context(|| format!("cannot open the log {}; choose another one with --log", path.display()))
}

/// Where a mount of the metadata store `meta` in the background logs to, unless told.
pub(super) fn default_log(meta: &Path) -> PathBuf {
    match std::env::home_dir() {
        Some(home) if !rustix::process::geteuid().is_root() => {
            let name = meta.file_name().unwrap_or("volume".as_ref());
            let mut log = home.join(".kiseki").join(name).into_os_string();
            log.push(".log");
            log.into()
        }
        Some(_) | None => "/var/log/kiseki.log".into(),
    }
}

/// The line to the process that waits.
pub(super) struct Report {
    pipe: File,
}

impl Report {
    /// Takes over standard output and leaves the terminal's session.
    pub(super) fn open() -> anyhow::Result<Self> {
        // Fails only for the leader of a process group: then there is a session of its own already.
        let _ = rustix::process::setsid();
        let pipe = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).context("standard output is closed")?;
        let null = OpenOptions::new().write(true).open("/dev/null").context("cannot open /dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(Self { pipe: pipe.into() })
    }

    /// The mount answers.
    pub(super) fn ready(self) {
        self.say(READY);
    }

    /// There is no mount.
    pub(super) fn failed(self, error: &anyhow::Error) {
        self.say(&format!("{error:#}"));
    }

    fn say(mut self, line: &str) {
        // Nobody may wait any more.
        if let Err(error) = writeln!(self.pipe, "{line}") {
            tracing::debug!(%error, "nobody waits for the mount");
        }
    }
}
