//! Where the blocks lie: a folder, or a MinIO of this run.
//!
//! Owns: the store's process, and counting its objects. Leaves to others: when it ends (`run`).

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::process::{PATIENCE, Process};
use crate::stamp::Rng;

/// The volume's name, and so the folder of its objects in the bucket.
pub(crate) const VOLUME: &str = "torture";
const BUCKET: &str = "kiseki";

pub(crate) enum Store {
    Folder(PathBuf),
    Minio(Minio),
}

/// MinIO on a free port of the loopback interface, with credentials of its own.
pub(crate) struct Minio {
    binary: PathBuf,
    /// Where it keeps the objects; may lie on a `Disk`.
    drive: PathBuf,
    log: PathBuf,
    port: u16,
    secret: String,
    /// Whether an answered put is on disk.
    osync: bool,
    process: RefCell<Option<Process>>,
}

impl Store {
    /// Makes what holds the objects, and starts what serves them. (the disk below is mounted)
    pub(crate) fn create(&self) -> Result<(), String> {
        let path = match self {
            Self::Folder(path) => path.clone(),
            // A folder of MinIO's drive is a bucket.
            Self::Minio(minio) => minio.drive.join(BUCKET),
        };
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        self.start()
    }

    pub(crate) fn start(&self) -> Result<(), String> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Minio(minio) => minio.start(),
        }
    }

    /// Holds it still, in the middle of whatever it does. Only `kill` comes after this.
    pub(crate) fn pause(&self) {
        match self {
            Self::Folder(_) => {}
            Self::Minio(minio) => minio.process.borrow().iter().for_each(Process::pause),
        }
    }

    pub(crate) fn kill(&self) {
        match self {
            Self::Folder(_) => {}
            Self::Minio(minio) => drop(minio.process.take()),
        }
    }

    /// Why it does not run although nobody ended it.
    pub(crate) fn trouble(&self) -> Option<String> {
        match self {
            Self::Folder(_) => None,
            Self::Minio(minio) => {
                let status = minio.process.borrow_mut().as_mut().and_then(Process::has_ended)?;
                Some(format!("MinIO ended by itself with {status}; see {}", minio.log.display()))
            }
        }
    }

    /// Arguments of `kiseki format`.
    pub(crate) fn format_args(&self) -> [OsString; 4] {
        match self {
            Self::Folder(path) => ["--storage".into(), "file".into(), "--bucket".into(), path.into()],
            Self::Minio(minio) => {
                let url = format!("http://{}:{}/{BUCKET}", Ipv4Addr::LOCALHOST, minio.port);
                ["--storage".into(), "minio".into(), "--bucket".into(), url.into()]
            }
        }
    }

    /// Lets a `kiseki` command reach it.
    pub(crate) fn give_credentials(&self, command: &mut Command) {
        match self {
            Self::Folder(_) => {}
            Self::Minio(minio) => {
                command.env("KISEKI_ACCESS_KEY", VOLUME).env("KISEKI_SECRET_KEY", &minio.secret);
            }
        }
    }

    /// Blocks in the store.
    pub(crate) fn blocks(&self) -> io::Result<usize> {
        match self {
            Self::Folder(path) => count(&path.join(VOLUME).join("blocks"), |_| true),
            // MinIO keeps an object as a folder with this file in it.
            Self::Minio(minio) => {
                count(&minio.drive.join(BUCKET).join(VOLUME).join("blocks"), |name| name == "xl.meta")
            }
        }
    }
}

/// Files under `dir` with a name that counts; a folder may go away under our hands.
fn count(dir: &Path, counts: fn(&str) -> bool) -> io::Result<usize> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut sum = 0;
    for entry in entries {
        let entry = entry?;
        sum += match entry.file_type() {
            Ok(kind) if kind.is_dir() => count(&entry.path(), counts)?,
            Ok(_) => usize::from(counts(&entry.file_name().to_string_lossy())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(sum)
}

impl Minio {
    pub(crate) fn new(binary: PathBuf, drive: PathBuf, log: PathBuf, osync: bool) -> io::Result<Self> {
        let mut random = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let secret = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let port = free_port(u64::from_le_bytes(random.as_chunks::<8>().0[0]))?;
        Ok(Self { binary, drive, log, port, secret, osync, process: RefCell::new(None) })
    }

    /// Returns once it can store objects.
    fn start(&self) -> Result<(), String> {
        let text = |error: io::Error| format!("cannot start {}: {error}", self.binary.display());
        let log = File::options().create(true).append(true).open(&self.log).map_err(text)?;
        let home = self.log.with_extension("home");
        let mut command = Command::new(&self.binary);
        command.args(["server", "--quiet", "--certs-dir"]).arg(&home);
        command.arg("--address").arg(format!("{}:{}", Ipv4Addr::LOCALHOST, self.port));
        command.args(["--console-address", "127.0.0.1:0"]).arg(&self.drive).env_clear().env("HOME", &home);
        command.env("MINIO_ROOT_USER", VOLUME).env("MINIO_ROOT_PASSWORD", &self.secret);
        command.env("MINIO_BROWSER", "off").env("MINIO_UPDATE", "off").env("MINIO_CALLHOME_ENABLE", "off");
        // Its default is off: an answered put is not on disk yet then.
        command.env("MINIO_FS_OSYNC", if self.osync { "on" } else { "off" });
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(text)?).stderr(log);
        let mut process = Process::new(command.spawn().map_err(text)?);
        let end = Instant::now() + PATIENCE;
        while !self.is_healthy() {
            if let Some(status) = process.has_ended() {
                return Err(format!("MinIO ended with {status}; see {}", self.log.display()));
            }
            if Instant::now() > end {
                return Err(format!("MinIO does not answer after {PATIENCE:?}; see {}", self.log.display()));
            }
            sleep(Duration::from_millis(20));
        }
        self.process.replace(Some(process));
        Ok(())
    }

    fn is_healthy(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /minio/health/cluster HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer)?;
            Ok::<_, io::Error>(answer.ends_with(b" 200"))
        };
        ask().unwrap_or(false)
    }
}

/// A port below those that the kernel gives to outgoing connections: nobody takes it while MinIO is down.
fn free_port(seed: u64) -> io::Result<u16> {
    let mut rng = Rng::new(seed);
    let mut port = || rng.between(20_000, 31_999) as u16;
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    (0..100).map(|_| port()).find(is_free).ok_or_else(|| io::Error::other("no free port from 20000 to 31999"))
}
