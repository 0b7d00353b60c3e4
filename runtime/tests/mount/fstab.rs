//! The volume as a line of /etc/fstab, for mount(8), umount(8) and findmnt(8).

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::Volume;

/// In a mount namespace of its own: the links in /sbin and the line of /etc/fstab are seen by this script alone.
/// $1: kiseki, $2: an empty folder, $3: META, $4: MOUNTPOINT, $5: the log.
const SCRIPT: &str = r#"
set -euo pipefail
mkdir "$2/over"
mount -t tmpfs none "$2/over"
mkdir "$2/over/new" "$2/over/work"
mount -t overlay none -o "lowerdir=$(realpath /sbin),upperdir=$2/over/new,workdir=$2/over/work" "$(realpath /sbin)"
ln -s "$1" /sbin/mount.fuse.kiseki
ln -s "$1" /sbin/umount.fuse.kiseki
echo "kiseki:$3 $4 fuse.kiseki noatime,noexec,nodev,nosuid,buffer-size=64M,log=$5,x-test,_netdev 0 0" >"$2/fstab"
touch /etc/fstab
mount --bind "$2/fstab" /etc/fstab

mount "$4"
findmnt --noheadings --output FSTYPE,SOURCE,OPTIONS "$4"
mount --all                              # it is mounted already: nothing happens
head -c 5000000 /dev/urandom >"$4/copy"
sum=$(sha256sum <"$4/copy")
mount -o remount,ro "$4"
if touch "$4/new" 2>/dev/null; then echo 'it was not remounted'; exit 1; fi
mount -o remount,rw,exec "$4"
touch "$4/new"
umount "$4"
tail -n 1 "$5" | grep -q 'everything is stored'
if mountpoint -q "$4"; then echo 'still mounted'; exit 1; fi

mount -t fuse.kiseki -o ro,subdir=/ "$3" "$4" -o "log=$5"
[ "$sum" = "$(sha256sum <"$4/copy")" ]
if touch "$4/new" 2>/dev/null; then echo 'it is not read-only'; exit 1; fi
umount -l "$4"

if mount -t fuse.kiseki -o nosuch=1 "$3" "$4" 2>"$2/error"; then echo 'an unknown option is taken'; exit 1; fi
grep -q "unknown mount option 'nosuch=1'" "$2/error"
"#;

#[test]
fn a_line_of_fstab_mounts_and_umount_stores() {
    let volume = Volume::formatted();
    let work = volume.beside("fstab");
    fs::create_dir(&work).expect("makes");
    let log = volume.beside("log");
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", SCRIPT, "fstab", env!("CARGO_BIN_EXE_kiseki")])
        .args([&work, &PathBuf::from(volume.meta()), &volume.mnt, &log])
        .output()
        .expect("unshare (util-linux) runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let shown = said.lines().find(|line| line.starts_with("fuse.kiseki")).expect("findmnt shows it");
    assert!(shown.contains(&format!("kiseki:{}", volume.meta())), "{shown}");
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(shown.contains(option), "{shown}");
    }
    volume.check();
}
