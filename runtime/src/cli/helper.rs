//! `mount -t fuse.kiseki` and `umount`: this binary under the names that mount(8) and umount(8) look for.
//!
//! Owns: turning their arguments into those of `kiseki mount` and `kiseki umount`, which then run as if typed.
//! Leaves to others: what the options mean (`mount`, `crate::mount::options`).
//!
//! mount(8), "External helpers": `mount.TYPE SPEC DIR [-sfnvrw] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`, and
//! `umount.TYPE DIR [-flnrv] [-N NAMESPACE] [-t TYPE]`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use clap::{ArgAction, Args};

use super::mount::MountArgs;
use super::output::{Failure, Outcome};
use crate::mount::table::SOURCE_PREFIX;

/// Names under which this binary is a helper.
const MOUNT_NAMES: [&str; 2] = ["mount.fuse.kiseki", "mount.kiseki"];
const UMOUNT_NAMES: [&str; 2] = ["umount.fuse.kiseki", "umount.kiseki"];

/// What a remount can change: flags of the kernel's, which FUSE leaves to it.
const REMOUNT_OPTIONS: [&str; 15] = [
    "remount",
    "bind",
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "sync",
    "async",
    "dirsync",
    "nosymfollow",
    "symfollow",
];

/// If this process was started as a helper, goes on as `kiseki mount` or `kiseki umount` instead; else returns.
pub(super) fn go_on_as_kiseki() -> Outcome<()> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let name = Path::new(&name).file_name().and_then(OsStr::to_str).unwrap_or_default();
    let next = if MOUNT_NAMES.contains(&name) {
        mount_arguments(arguments)?
    } else if UMOUNT_NAMES.contains(&name) {
        Next::Kiseki(umount_arguments(arguments)?)
    } else {
        return Ok(());
    };
    let error = match next {
        Next::Nothing => std::process::exit(0),
        Next::Kiseki(arguments) => Command::new("/proc/self/exe").arg0("kiseki").args(arguments).exec(),
        Next::Mount(arguments) => Command::new("mount").args(arguments).exec(),
    };
    Err(Failure::new(format!("cannot go on from {name}: {error}")))
}

/// What a helper's process becomes.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// `-f`: mount(8) wants to know whether it would be called, and nothing more.
    Nothing,
    /// `kiseki` with these arguments.
    Kiseki(Vec<OsString>),
    /// mount(8) again, which then asks the kernel itself: a remount changes nothing of ours.
    Mount(Vec<OsString>),
}

fn mount_arguments(arguments: impl Iterator<Item = OsString>) -> Outcome<Next> {
    let Helper { places, flags, options } = Helper::parse(arguments)?;
    let [spec, dir] = &places[..] else {
        return Err(Failure::Usage("mount.fuse.kiseki META MOUNTPOINT [-o OPTIONS]; see `kiseki mount --help`".into()));
    };
    if flags.contains(&b'f') {
        return Ok(Next::Nothing);
    }
    let words = options.iter().flat_map(|text| text.as_bytes().split(|byte| *byte == b','));
    if words.clone().any(|word| word == b"remount") {
        let kept: Vec<_> = words.filter(|word| REMOUNT_OPTIONS.iter().any(|known| known.as_bytes() == *word)).collect();
        let options = OsString::from_vec(kept.join(&b','));
        return Ok(Next::Mount(vec!["--internal-only".into(), "-o".into(), options, "--".into(), dir.clone()]));
    }
    let mut translated: Vec<OsString> = ["mount", "--daemon"].map(Into::into).to_vec();
    let mut rest = Vec::new();
    for option in words {
        match long_flag(option) {
            Some(flag) => translated.push(flag),
            None => rest.push(option),
        }
    }
    if flags.contains(&b'r') {
        rest.push(b"ro");
    }
    if !rest.is_empty() {
        translated.extend(["-o".into(), OsString::from_vec(rest.join(&b','))]);
    }
    // As /proc/self/mountinfo shows it, or as a command line has it.
    let meta = spec.as_bytes().strip_prefix(SOURCE_PREFIX.as_bytes()).map_or(&**spec, OsStr::from_bytes);
    translated.extend(["--".into(), meta.into(), dir.clone()]);
    Ok(Next::Kiseki(translated))
}

fn umount_arguments(arguments: impl Iterator<Item = OsString>) -> Outcome<Vec<OsString>> {
    let Helper { places, flags, .. } = Helper::parse(arguments)?;
    let [dir] = &places[..] else {
        return Err(Failure::Usage("umount.fuse.kiseki MOUNTPOINT; see `kiseki umount --help`".into()));
    };
    let force = flags.iter().any(|flag| b"fl".contains(flag));
    let mut translated: Vec<OsString> = vec!["umount".into()];
    translated.extend(force.then(|| "--force".into()));
    translated.extend(["--".into(), dir.clone()]);
    Ok(translated)
}

/// `--name=value` for a word of `-o` that is a flag of `kiseki mount`: `buffer-size=2G`, `buffer_size=2G`.
fn long_flag(option: &[u8]) -> Option<OsString> {
    let (name, value) = match option.iter().position(|byte| *byte == b'=') {
        Some(at) => (&option[..at], Some(&option[at + 1..])),
        None => (option, None),
    };
    let name = str::from_utf8(name).ok()?.replace('_', "-");
    let command = MountArgs::augment_args(clap::Command::new("mount"));
    let flag = command.get_arguments().find(|argument| argument.get_long() == Some(&name))?;
    let takes_value = matches!(flag.get_action(), ArgAction::Set | ArgAction::Append);
    if takes_value != value.is_some() || name == "options" || name == "daemon" {
        return None;
    }
    let mut text = OsString::from(format!("--{name}"));
    if let Some(value) = value {
        text.push("=");
        text.push(OsStr::from_bytes(value));
    }
    Some(text)
}

/// What a helper is called with.
#[derive(Debug, Default)]
struct Helper {
    places: Vec<OsString>,
    /// Letters without values.
    flags: Vec<u8>,
    /// Values of `-o`.
    options: Vec<OsString>,
}

impl Helper {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Outcome<Self> {
        let mut helper = Self::default();
        while let Some(argument) = arguments.next() {
            let Some(letters) = argument.as_bytes().strip_prefix(b"-").filter(|letters| !letters.is_empty()) else {
                helper.places.push(argument);
                continue;
            };
            match letters {
                b"o" => helper.options.extend(arguments.next()),
                b"t" => drop(arguments.next()),
                b"N" => {
                    let text = "another mount namespace (-N) is not supported: run the command in it with nsenter(1)";
                    return Err(Failure::Usage(text.into()));
                }
                letters => helper.flags.extend(letters),
            }
        }
        Ok(helper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(texts: &[&str]) -> Vec<OsString> {
        texts.iter().map(Into::into).collect()
    }

    #[test]
    fn arguments_of_mount_become_ours() {
        let cases: &[(&[&str], &[&str])] = &[
            (&["kiseki:/m", "/mnt", "-o", "rw"], &["mount", "--daemon", "-o", "rw", "--", "/m", "/mnt"]),
            (&["/m", "/mnt", "-sv", "-t", "fuse.kiseki"], &["mount", "--daemon", "--", "/m", "/mnt"]),
            (
                &["/m", "/mnt", "-r", "-o", "noexec,buffer-size=1G,max_uploads=3,_netdev"],
                &[
                    "mount",
                    "--daemon",
                    "--buffer-size=1G",
                    "--max-uploads=3",
                    "-o",
                    "noexec,_netdev,ro",
                    "--",
                    "/m",
                    "/mnt",
                ],
            ),
            // A flag without its value, or one with a value that it does not take, is an unknown option.
            (
                &["/m", "/mnt", "-o", "buffer-size,read_only,read-only=1,daemon"],
                &["mount", "--daemon", "--read-only", "-o", "buffer-size,read-only=1,daemon", "--", "/m", "/mnt"],
            ),
        ];
        for (given, expected) in cases {
            let translated = mount_arguments(words(given).into_iter()).expect("it is a helper's command line");
            assert_eq!(translated, Next::Kiseki(words(expected)), "{given:?}");
        }
        assert_eq!(mount_arguments(words(&["/m", "/mnt", "-f"]).into_iter()).expect("it is one"), Next::Nothing);
        let remount = ["/m", "/mnt", "-o", "remount,ro,allow_other,noexec,buffer-size=1G"];
        assert_eq!(
            mount_arguments(words(&remount).into_iter()).expect("it is one"),
            Next::Mount(words(&["--internal-only", "-o", "remount,ro,noexec", "--", "/mnt"]))
        );
        for bad in [&["/m"][..], &["/m", "/mnt", "-N", "1"], &["a", "b", "c"]] {
            assert!(matches!(mount_arguments(words(bad).into_iter()), Err(Failure::Usage(_))), "{bad:?}");
        }
    }

    #[test]
    fn arguments_of_umount_become_ours() {
        for (given, expected) in [
            (&["/mnt"][..], &["umount", "--", "/mnt"][..]),
            (&["/mnt", "-v", "-t", "fuse.kiseki"], &["umount", "--", "/mnt"]),
            (&["/mnt", "-l"], &["umount", "--force", "--", "/mnt"]),
        ] {
            assert_eq!(umount_arguments(words(given).into_iter()).expect("it is one"), words(expected), "{given:?}");
        }
    }
}
