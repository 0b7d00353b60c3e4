//! The options of `-o`, in the words of mount(8) and mount.fuse3(8).

use std::path::Path;

use anyhow::bail;
use fuser::{Config, MountOption, SessionACL};
use kiseki_core::types::AtimeMode;

use super::table::SOURCE_PREFIX;

/// The FUSE threads of a mount: requests run on the thread that reads them, also while RocksDB reads from its files,
/// so there are more than cores; beyond a few they only contend for the connection.
const THREADS_MIN: usize = 4;
const THREADS_MAX: usize = 16;

/// What `-o` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// For the kernel.
    kernel: Vec<MountOption>,
    /// Who may look into the mount; `None`: all if root mounts, else only who mounts.
    access: Option<SessionACL>,
    /// The mount point may hold files.
    pub(super) nonempty: bool,
    /// `ro`.
    pub(super) read_only: bool,
    /// `relatime`, `noatime`, `strictatime`.
    pub(super) atime: AtimeMode,
}

impl Options {
    /// Parses the values of all `-o`; each may hold several options separated by commas.
    pub(super) fn parse(values: &[String]) -> anyhow::Result<Self> {
        let mut options = Self::default();
        for option in values.iter().flat_map(|value| value.split(',')).map(str::trim) {
            options.add(option)?;
        }
        Ok(options)
    }

    fn add(&mut self, option: &str) -> anyhow::Result<()> {
        match option {
            "allow_other" => self.access = Some(SessionACL::All),
            "allow_root" => self.access = Some(SessionACL::RootAndOwner),
            "nonempty" => self.nonempty = true,
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "dev" => self.set(MountOption::Dev, &MountOption::NoDev),
            "nodev" => self.set(MountOption::NoDev, &MountOption::Dev),
            "suid" => self.set(MountOption::Suid, &MountOption::NoSuid),
            "nosuid" => self.set(MountOption::NoSuid, &MountOption::Suid),
            "exec" => self.set(MountOption::Exec, &MountOption::NoExec),
            "noexec" => self.set(MountOption::NoExec, &MountOption::Exec),
            "sync" => self.set(MountOption::Sync, &MountOption::Async),
            "async" => self.set(MountOption::Async, &MountOption::Sync),
            "dirsync" => self.set(MountOption::DirSync, &MountOption::DirSync),
            // The kernel is told as well, for it is the one who lists mounts.
            "noatime" => {
                self.atime = AtimeMode::Noatime;
                self.set(MountOption::NoAtime, &MountOption::Atime);
            }
            "relatime" | "atime" | "strictatime" => {
                self.atime = if option == "strictatime" { AtimeMode::Strictatime } else { AtimeMode::Relatime };
                self.kernel.retain(|set| *set != MountOption::NoAtime);
            }
            // Always so.
            "default_permissions" => {}
            // For mount(8) and systemd, when the mount stands in fstab; the kernel never sees them.
            "" | "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "nofail" | "_netdev" => {}
            other if other.starts_with("x-") || other.starts_with("comment=") => {}
            other => bail!(
                "unknown mount option '{other}'; known are allow_other, allow_root, nonempty, ro, rw, dev, nodev, suid, \
                 nosuid, exec, noexec, sync, async, dirsync, relatime, noatime, strictatime"
            ),
        }
        Ok(())
    }

    /// The later one of two that exclude each other wins, as with mount(8).
    fn set(&mut self, option: MountOption, instead_of: &MountOption) {
        self.kernel.retain(|set| set != instead_of && *set != option);
        self.kernel.push(option);
    }

    /// What fuser is told to mount the volume of the metadata store at `meta`.
    pub(super) fn fuser_config(&self, meta: &Path, is_root: bool) -> Config {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(format!("{SOURCE_PREFIX}{}", meta.display())),
            // fuser passes `Subtype` to fusermount3 only.
            MountOption::CUSTOM("subtype=kiseki".into()),
            // The kernel checks permissions: it has all that is needed, and asks us nothing.
            MountOption::DefaultPermissions,
        ];
        if self.read_only {
            config.mount_options.push(MountOption::RO);
        }
        let mut kernel = self.kernel.clone();
        if is_root {
            // fuser's defaults are those for a user's mount. One by root is like any other file system's.
            for (option, opposite) in [(MountOption::Dev, MountOption::NoDev), (MountOption::Suid, MountOption::NoSuid)]
            {
                if !kernel.contains(&option) && !kernel.contains(&opposite) {
                    kernel.push(option);
                }
            }
        }
        config.mount_options.append(&mut kernel);
        config.acl = self.access.unwrap_or(if is_root { SessionACL::All } else { SessionACL::Owner });
        let cores = std::thread::available_parallelism().map_or(THREADS_MIN, usize::from);
        // Small writes by four threads on two processors, as multiples of those with one thread for requests: 1.6; with
        // two as many, with eight 0.9. Two are not enough where requests wait for a store.
        config.n_threads = Some((2 * cores).clamp(THREADS_MIN, THREADS_MAX));
        // Each thread with a descriptor, and thus a queue of requests in processing, of its own: stat with four threads 1.2,
        // write and create 1.1.
        config.clone_fd = true;
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> anyhow::Result<Options> {
        Options::parse(&values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn later_options_win() -> anyhow::Result<()> {
        let options = parse(&["ro,nodev", "rw,dev,noexec", "nonempty"])?;
        assert!(!options.read_only);
        assert!(options.nonempty);
        assert_eq!(options.kernel, [MountOption::Dev, MountOption::NoExec]);
        Ok(())
    }

    #[test]
    fn the_last_word_on_access_times_counts() -> anyhow::Result<()> {
        for (word, atime, kernel) in [
            ("defaults", AtimeMode::Relatime, &[][..]),
            ("noatime", AtimeMode::Noatime, &[MountOption::NoAtime]),
            ("noatime,relatime", AtimeMode::Relatime, &[]),
            ("relatime,strictatime", AtimeMode::Strictatime, &[]),
        ] {
            let options = parse(&[word])?;
            assert_eq!((options.atime, &options.kernel[..]), (atime, kernel), "{word}");
        }
        Ok(())
    }

    #[test]
    fn words_of_fstab_are_ignored() -> anyhow::Result<()> {
        assert_eq!(parse(&["defaults,_netdev,x-systemd.automount", "", "nofail,comment=x"])?, Options::default());
        Ok(())
    }

    #[test]
    fn unknown_options_are_named() {
        let error = parse(&["ro,nosuch=1"]).map(|_| ()).expect_err("there is no such option");
        assert!(error.to_string().contains("'nosuch=1'"), "{error}");
    }

    #[test]
    fn root_mounts_for_all_and_others_for_themselves() -> anyhow::Result<()> {
        let meta = Path::new("/m");
        let by_root = parse(&["nosuid"])?.fuser_config(meta, true);
        assert_eq!(by_root.acl, SessionACL::All);
        assert!(by_root.mount_options.contains(&MountOption::Dev));
        assert!(by_root.mount_options.contains(&MountOption::NoSuid));
        assert!(!by_root.mount_options.contains(&MountOption::Suid));
        let by_user = parse(&[])?.fuser_config(meta, false);
        assert_eq!(by_user.acl, SessionACL::Owner);
        assert!(!by_user.mount_options.contains(&MountOption::Dev));
        assert_eq!(parse(&["allow_other"])?.fuser_config(meta, false).acl, SessionACL::All);
        Ok(())
    }
}
