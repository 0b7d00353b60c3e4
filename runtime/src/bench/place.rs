//! The folder of a run, the room for it, and the kernel's caches over it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::plan::{Account, Kind, Plan};
use super::{Amount, BenchError};

/// Writing "3" to it drops the page cache, dentries and inodes that are clean (proc_sys_vm(5)). Root may.
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// A folder of its own for one run.
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(super) fn make(folder: &Path) -> Result<Self, BenchError> {
        let scratch = Self { path: folder.join(format!("__kiseki_bench_{}__", std::process::id())) };
        fs::create_dir(&scratch.path).map_err(BenchError::call("make the folder", &scratch.path))?;
        for account in [Account::Visible, Account::Durable] {
            let path = scratch.pass(account);
            if let Err(e) = fs::create_dir(&path) {
                // Empty but for another empty folder; the error is what the person needs to see.
                let _ = fs::remove_dir_all(&scratch.path);
                return Err(BenchError::call("make the folder", &path)(e));
            }
        }
        Ok(scratch)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A file of a pass.
    pub(super) fn file(&self, account: Account, kind: Kind, thread: u64, number: u64) -> PathBuf {
        self.pass(account).join(kind.file(thread, number))
    }

    fn pass(&self, account: Account) -> PathBuf {
        self.path.join(match account {
            Account::Visible | Account::Drained => "visible",
            Account::Durable => "durable",
        })
    }

    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.path)
    }
}

/// Whether `folder` has room for `plan`. A file system that does not say how large it is has.
pub(super) fn check_space(folder: &Path, plan: &Plan) -> Result<(), BenchError> {
    let stat = rustix::fs::statvfs(folder).map_err(|e| BenchError::call("look at", folder)(e.into()))?;
    let short = |free, needed| BenchError::NoSpace { path: folder.into(), free, needed };
    let (free, needed) = (stat.f_bavail.saturating_mul(stat.f_frsize), plan.space());
    if stat.f_blocks > 0 && free < needed {
        return Err(short(Amount::Bytes(free), Amount::Bytes(needed)));
    }
    let (free, needed) = (stat.f_favail, plan.inodes());
    if stat.f_files > 0 && free < needed {
        return Err(short(Amount::Files(free), Amount::Files(needed)));
    }
    Ok(())
}

/// The type of the file system that holds `path`, such as `ext4`.
pub fn file_system(path: &Path) -> io::Result<String> {
    let id = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    type_of(&table, id).map(str::to_owned).ok_or_else(|| io::Error::other("it is on no mount of /proc/self/mountinfo"))
}

/// The type that a line of mountinfo names behind its lone dash.
fn type_of(table: &str, id: u64) -> Option<&str> {
    let line = table.lines().find(|line| line.split(' ').next().is_some_and(|field| field.parse() == Ok(id)))?;
    line.split(' ').skip_while(|field| *field != "-").nth(1)
}

/// The kernel's caches, dropped between phases where that is allowed.
#[derive(Debug)]
pub struct Caches {
    file: Option<File>,
}

impl Caches {
    /// Drops them once, and says why not if that is not possible.
    pub fn open() -> (Self, Option<io::Error>) {
        let opened = File::options().write(true).open(DROP_CACHES).and_then(|mut file| {
            file.write_all(b"3")?;
            Ok(file)
        });
        match opened {
            Ok(file) => (Self { file: Some(file) }, None),
            Err(e) => (Self { file: None }, Some(e)),
        }
    }

    /// Whether `drop` does anything.
    pub fn dropped(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn drop(&self) -> Result<(), BenchError> {
        let Some(mut file) = self.file.as_ref() else { return Ok(()) };
        file.write_all(b"3").map_err(BenchError::call("drop the kernel's caches through", Path::new(DROP_CACHES)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_a_mount_is_found() {
        let table = "22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n\
            220 22 0:51 / /mnt/a\\040b rw,nosuid - fuse.kiseki kiseki:/var/m rw,user_id=0\n\
            58 22 0:52 / /mnt/- rw shared:7 master:1 - fuse.sshfs host:/ rw\n";
        for (id, kind) in [(22, Some("ext4")), (220, Some("fuse.kiseki")), (58, Some("fuse.sshfs")), (2, None)] {
            assert_eq!(type_of(table, id), kind, "{id}");
        }
        assert!(!file_system(Path::new("/proc")).unwrap().is_empty());
    }

    #[test]
    fn a_folder_is_made_once_and_removed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::make(dir.path()).unwrap();
        let file = scratch.file(Account::Visible, Kind::Small, 1, 2);
        fs::write(&file, "x").unwrap();
        assert!(Scratch::make(dir.path()).is_err());
        assert!(file.exists());
        scratch.remove().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
