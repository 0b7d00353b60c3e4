//! Which metadata store a command line means: META, or the mount that a path belongs to.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::output::{Context, Failure, Outcome};
use crate::mount::table::{self, Mounted};

/// A mount of a Kiseki volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// Its metadata store.
    pub(crate) meta: PathBuf,
    /// Where it is mounted.
    pub(crate) mountpoint: PathBuf,
    /// st_dev of everything on it.
    pub(crate) dev: u64,
}

/// META or MOUNTPOINT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The metadata store.
    pub(crate) meta: PathBuf,
    /// The mount that was named instead of it.
    pub(crate) mount: Option<MountEntry>,
}

/// The folder that META names: a path, or `rocksdb://` and a path. Absolute; it need not exist.
pub(crate) fn meta_path(text: &OsStr) -> Outcome<PathBuf> {
    let path = match split_scheme(text.as_bytes()) {
        None => Path::new(text),
        Some((b"rocksdb", rest)) => Path::new(OsStr::from_bytes(rest)),
        Some((scheme, _)) => {
            return Err(Failure::Usage(format!(
                "metadata store '{}': scheme '{}' is not supported; META is the path of a folder, or rocksdb://PATH",
                text.display(),
                String::from_utf8_lossy(scheme)
            )));
        }
    };
    if path.as_os_str().is_empty() {
        return Err(Failure::Usage("META is empty: it is the path of a folder, or rocksdb://PATH".into()));
    }
    absolute(path)
}

/// META, or the mount point of a volume.
pub(crate) fn place(text: &OsStr) -> Outcome<Place> {
    let path = meta_path(text)?;
    let mount = mounts()?.into_iter().rev().find(|mount| mount.mountpoint == path);
    Ok(match mount {
        Some(mount) => Place { meta: mount.meta.clone(), mount: Some(mount) },
        None => Place { meta: path, mount: None },
    })
}

/// The mount that holds `path`.
pub(crate) fn mount_of(path: &Path) -> Outcome<MountEntry> {
    let dev = path.symlink_metadata().context(|| format!("look at {}", path.display()))?.dev();
    mounts()?.into_iter().find(|mount| mount.dev == dev).ok_or_else(|| {
        Failure::with_hint(
            format!("{} is not on a mounted Kiseki volume", path.display()),
            "Mount the volume first: kiseki mount META MOUNTPOINT",
        )
    })
}

/// All mounted Kiseki volumes, in the order of mounting.
fn mounts() -> Outcome<Vec<MountEntry>> {
    let mounts = table::kiseki().context(|| "read /proc/self/mountinfo")?;
    let entry = |(meta, mounted): (PathBuf, Mounted)| MountEntry {
        meta,
        mountpoint: mounted.point,
        dev: rustix::fs::makedev(mounted.dev.0, mounted.dev.1),
    };
    Ok(mounts.into_iter().map(entry).collect())
}

/// `scheme://rest`.
fn split_scheme(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.windows(3).position(|w| w == b"://")?;
    let scheme = &text[..at];
    let named = !scheme.is_empty() && scheme.iter().all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(c));
    named.then(|| (scheme, &text[at + 3..]))
}

/// Absolute and without symbolic links as far as the path exists and answers; a dead mount point does not.
pub(super) fn absolute(path: &Path) -> Outcome<PathBuf> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    let path = std::path::absolute(path).context(|| format!("find the current folder for {}", path.display()))?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path) };
    Ok(parent.canonicalize().map(|parent| parent.join(name)).unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_is_a_path_or_rocksdb() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let path = base.join("not yet");
        assert_eq!(meta_path(path.as_os_str()).unwrap(), path);
        assert_eq!(meta_path(OsStr::new(&format!("rocksdb://{}", path.display()))).unwrap(), path);
        for bad in ["redis://localhost/1", "tikv://a,b", ""] {
            assert!(matches!(meta_path(OsStr::new(bad)), Err(Failure::Usage(_))), "{bad}");
        }
    }
}
