//! The mounts of this machine, as /proc/self/mountinfo lists them (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What the source of a Kiseki mount begins with; the path of its metadata store follows.
pub const SOURCE_PREFIX: &str = "kiseki:";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Where.
    pub(crate) point: PathBuf,
    /// Type of the file system: `fuse.kiseki` for ours.
    pub(crate) kind: String,
    /// What is mounted.
    pub(crate) source: OsString,
    /// Major and minor number of its st_dev. A FUSE connection is named by the minor one.
    pub(crate) dev: (u32, u32),
}

impl Mounted {
    /// The metadata store, if this is a Kiseki mount.
    pub(crate) fn meta(&self) -> Option<PathBuf> {
        let source = self.source.as_encoded_bytes();
        let meta = source.strip_prefix(SOURCE_PREFIX.as_bytes())?;
        self.kind.starts_with("fuse").then(|| PathBuf::from(OsString::from_vec(meta.to_vec())))
    }
}

/// The uppermost mount at exactly `point`, an absolute path without symbolic links.
pub(crate) fn at(point: &Path) -> io::Result<Option<Mounted>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&table).filter(|mounted| mounted.point == point).last())
}

/// All Kiseki mounts, in the order of mounting, each with its metadata store.
pub(crate) fn kiseki() -> io::Result<Vec<(PathBuf, Mounted)>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&table).filter_map(|mounted| Some((mounted.meta()?, mounted))).collect())
}

/// A process that sees a mount of this st_dev: one of another mount namespace, where this one does not.
pub(crate) fn seen_by(dev: (u32, u32)) -> io::Result<Option<u32>> {
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes end meanwhile, and those of others are not shown to everyone.
        let table = std::fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if parse(&table).any(|mounted| mounted.dev == dev) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

fn parse(table: &[u8]) -> impl Iterator<Item = Mounted> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line)
}

fn parse_line(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|&byte| byte == b' ');
    let (major, minor) = str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let dev = (major.parse().ok()?, minor.parse().ok()?);
    let point = unescape(fields.nth(1)?).into();
    // Optional fields end with a dash.
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = unescape(rest.next()?);
    Some(Mounted { point, kind, source, dev })
}

/// Undoes the kernel's escapes: blank, tab, newline and backslash are `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'\\').then(|| tail.get(..3)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let table = b"22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n\
            57 22 0:51 / /mnt/a\\040b\\134c rw,nosuid - fuse.kiseki kiseki:/var/m\\011x rw,user_id=0\n\
            58 22 0:52 / /mnt/other rw shared:7 master:1 - fuse.sshfs host:/ rw\n";
        let all: Vec<_> = parse(table).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].point, Path::new("/"));
        assert_eq!(all[0].meta(), None);
        assert_eq!(all[1].point, Path::new("/mnt/a b\\c"));
        assert_eq!(all[1].meta().as_deref(), Some(Path::new("/var/m\tx")));
        assert_eq!(all[1].dev, (0, 51));
        assert_eq!((all[2].kind.as_str(), all[2].meta()), ("fuse.sshfs", None));
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        for (field, expected) in [("a\\04", "a\\04"), ("\\999", "\\999"), ("\\", "\\"), ("\\0401", " 1")] {
            assert_eq!(unescape(field.as_bytes()), expected, "{field}");
        }
    }
}
