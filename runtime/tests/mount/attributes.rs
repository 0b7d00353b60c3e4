//! Extended attributes, ACLs, flags, access times, limits: as a program meets them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::MmapMut;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, IFlags, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, getxattr,
    ioctl_getflags, ioctl_setflags, lgetxattr, listxattr, lsetxattr, makedev, mknodat, removexattr, renameat_with,
    setxattr, utimensat,
};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::harness::{Volume, copy_program, eventually};

const NOBODY: u32 = 65_534;
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// Runs a shell line as nobody, with these further groups; whether it succeeded.
pub(crate) fn as_nobody(volume: &Volume, groups: &str, line: &str) -> bool {
    let setpriv = ["--reuid", "65534", "--regid", "65534", groups, "sh", "-c", line];
    let output = Command::new("setpriv").args(setpriv).current_dir(&volume.mnt).output().expect("setpriv runs");
    output.status.success()
}

pub(crate) const NO_GROUPS: &str = "--clear-groups";

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("stats").mode() & 0o7777
}

pub(crate) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmods");
}

/// The value of an ACL's attribute. (linux/posix_acl_xattr.h)
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        value.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        value.extend(id.to_le_bytes());
    }
    value
}

/// The owner may `owner`, nobody (named) 7, the group 0, others 0; all but the owner within `mask`.
fn for_nobody(owner: u16, mask: u16) -> Vec<u8> {
    acl(&[(1, owner, u32::MAX), (2, 7, NOBODY), (4, 0, u32::MAX), (16, mask, u32::MAX), (32, 0, u32::MAX)])
}

fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 4096];
    getxattr(path, name, &mut value[..]).map(|len| value[..len].to_vec())
}

#[test]
fn acls_decide_who_may_and_follow_the_mode() {
    let volume = Volume::formatted_with(&["--enable-acl"]);
    volume.mount(&[]);
    let file = volume.path("f");
    fs::write(&file, "secret").expect("writes");
    chmod(&file, 0o600);
    assert!(!as_nobody(&volume, NO_GROUPS, "cat f"));
    // The file has bytes that are not stored yet, and mode and ACL change at once all the same.
    setxattr(&file, ACCESS, &for_nobody(6, 4), XattrFlags::empty()).expect("sets");
    assert_eq!(mode(&file), 0o640, "the mask stands for the group");
    assert!(as_nobody(&volume, NO_GROUPS, "cat f"));
    assert!(!as_nobody(&volume, NO_GROUPS, "echo more >> f"));
    chmod(&file, 0o460);
    assert_eq!(xattr(&file, ACCESS), Ok(for_nobody(4, 6)), "chmod changes the mask");
    assert!(as_nobody(&volume, NO_GROUPS, "echo more >> f"));
    chmod(&file, 0o600);
    assert!(!as_nobody(&volume, NO_GROUPS, "cat f"));
    let names = |path: &Path| {
        let mut list = [0; 256];
        let len = listxattr(path, &mut list[..]).expect("lists");
        String::from_utf8(list[..len].to_vec()).expect("UTF-8")
    };
    assert_eq!(names(&file), format!("{ACCESS}\0"));
    volume.remount();
    assert_eq!((xattr(&file, ACCESS), mode(&file)), (Ok(for_nobody(6, 0)), 0o600));

    // An ACL that a mode can say is not kept; taking away what is not there is no error.
    let plain = acl(&[(1, 6, u32::MAX), (4, 4, u32::MAX), (32, 4, u32::MAX)]);
    setxattr(&file, ACCESS, &plain, XattrFlags::empty()).expect("sets");
    assert_eq!((xattr(&file, ACCESS), mode(&file)), (Err(Errno::NODATA), 0o644));
    assert_eq!(removexattr(&file, ACCESS), Ok(()));
    assert_eq!(setxattr(&file, DEFAULT, &plain, XattrFlags::empty()), Err(Errno::ACCESS));
    assert_eq!(setxattr(&file, ACCESS, &plain[..9], XattrFlags::empty()), Err(Errno::INVAL));
    let unmasked = acl(&[(1, 6, u32::MAX), (2, 4, NOBODY), (4, 4, u32::MAX), (32, 4, u32::MAX)]);
    assert_eq!(setxattr(&file, ACCESS, &unmasked, XattrFlags::empty()), Err(Errno::INVAL));
    volume.unmount();
    volume.check();
}

#[test]
fn new_files_inherit_default_acls_instead_of_the_umask() {
    let volume = Volume::formatted_with(&["--enable-acl"]);
    volume.mount(&[]);
    fs::create_dir(volume.path("d")).expect("makes a folder");
    fs::create_dir(volume.path("plain")).expect("makes a folder");
    chmod(&volume.path("plain"), 0o777);
    setxattr(volume.path("d"), DEFAULT, &for_nobody(7, 7), XattrFlags::empty()).expect("sets");
    assert_eq!(mode(&volume.path("d")), 0o755);
    let run = |line: &str| assert!(Command::new("sh").args(["-c", line]).current_dir(&volume.mnt).status().is_ok());
    run("umask 077; mkdir d/sub; echo x > d/f; echo x > plain/f; mkfifo d/sub/p; ln -s f d/l; mkdir plain/d");
    for (name, expected, access, default) in [
        ("d/f", 0o660, Ok(for_nobody(6, 6)), Err(Errno::NODATA)),
        ("d/sub", 0o770, Ok(for_nobody(7, 7)), Ok(for_nobody(7, 7))),
        ("d/sub/p", 0o660, Ok(for_nobody(6, 6)), Err(Errno::NODATA)),
        ("plain/f", 0o600, Err(Errno::NODATA), Err(Errno::NODATA)),
        ("plain/d", 0o700, Err(Errno::NODATA), Err(Errno::NODATA)),
    ] {
        let path = volume.path(name);
        assert_eq!((mode(&path), xattr(&path, ACCESS), xattr(&path, DEFAULT)), (expected, access, default), "{name}");
    }
    assert!(as_nobody(&volume, NO_GROUPS, "cat d/f && echo more >> d/f && touch d/sub/mine"));
    volume.unmount();
    volume.check();
}

/// posix_acl_update_mode() of Linux: who is in no group of the file cannot keep its sgid bit by setting an ACL.
#[test]
fn an_acl_by_an_outsider_takes_the_sgid_bit() {
    let volume = Volume::formatted_with(&["--enable-acl"]);
    volume.mount(&[]);
    let plain = acl(&[(1, 7, u32::MAX), (4, 5, u32::MAX), (32, 5, u32::MAX)]);
    let hex: String = plain.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let line = format!("python3 -c \"import os; os.setxattr('f', '{ACCESS}', b'{hex}')\"");
    for (groups, expected) in [(NO_GROUPS, 0o755), ("--groups=77", 0o2755)] {
        fs::write(volume.path("f"), "x").expect("writes");
        chown(volume.path("f"), Some(NOBODY), Some(77)).expect("chowns");
        chmod(&volume.path("f"), 0o2775);
        assert!(as_nobody(&volume, groups, &line));
        assert_eq!(mode(&volume.path("f")), expected, "{groups}");
        // chmod(2) by the same caller: the kernel's part.
        assert!(as_nobody(&volume, groups, "chmod 2755 f"));
        assert_eq!(mode(&volume.path("f")), expected, "{groups}");
        fs::remove_file(volume.path("f")).expect("unlinks");
    }
}

#[test]
fn volumes_without_acls_say_so_until_they_have_them() {
    let volume = Volume::mounted();
    fs::write(volume.path("f"), "x").expect("writes");
    for (path, name) in [(volume.path("f"), ACCESS), (volume.mnt.clone(), ACCESS), (volume.mnt.clone(), DEFAULT)] {
        assert_eq!(xattr(&path, name), Err(Errno::OPNOTSUPP));
        assert_eq!(setxattr(&path, name, &for_nobody(6, 6), XattrFlags::empty()), Err(Errno::OPNOTSUPP));
    }
    volume.unmount();
    let bucket = volume.bucket();
    let format = ["format", &volume.meta(), "vol", "--bucket", bucket.to_str().expect("UTF-8"), "--force"];
    let shown = crate::harness::kiseki_ok(&[&format[..], &["--enable-acl", "--json"]].concat());
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!((&shown["volume"]["acl"], &shown["volume"]["version"]), (&true.into(), &2.into()));
    volume.mount(&[]);
    assert_eq!(setxattr(volume.path("f"), ACCESS, &for_nobody(6, 6), XattrFlags::empty()), Ok(()));
    assert_eq!(xattr(&volume.path("f"), ACCESS), Ok(for_nobody(6, 6)));
}

#[test]
fn names_of_attributes_follow_their_namespaces() {
    let volume = Volume::mounted();
    let file = volume.path("f");
    fs::write(&file, "x").expect("writes");
    chmod(&file, 0o666);
    symlink("f", volume.path("l")).expect("links");
    assert!(Command::new("mkfifo").arg(volume.path("p")).status().expect("runs").success());
    let long = format!("user.{}", "n".repeat(250));
    for (name, set, get) in [
        ("user.a", Ok(()), Ok(vec![7])),
        (long.as_str(), Ok(()), Ok(vec![7])),
        ("trusted.a", Ok(()), Ok(vec![7])),
        ("security.other", Ok(()), Ok(vec![7])),
        ("user.", Err(Errno::INVAL), Err(Errno::INVAL)),
        ("user", Err(Errno::OPNOTSUPP), Err(Errno::OPNOTSUPP)),
        ("foreign.a", Err(Errno::OPNOTSUPP), Err(Errno::OPNOTSUPP)),
        ("system.a", Err(Errno::OPNOTSUPP), Err(Errno::OPNOTSUPP)),
    ] {
        assert_eq!(setxattr(&file, name, &[7], XattrFlags::empty()), set, "{name}");
        assert_eq!(xattr(&file, name), get, "{name}");
    }
    assert_eq!(setxattr(&file, format!("{long}n"), &[7], XattrFlags::empty()), Err(Errno::RANGE));
    assert_eq!(setxattr(&file, "user.b", &vec![1; (64 << 10) + 1], XattrFlags::empty()), Err(Errno::TOOBIG));
    assert_eq!(setxattr(&file, "user.b", &vec![1; 64 << 10], XattrFlags::empty()), Ok(()));
    for name in ["l", "p"] {
        let path = volume.path(name);
        assert_eq!(lsetxattr(&path, "user.a", &[7], XattrFlags::empty()), Err(Errno::PERM), "{name}");
        assert_eq!(lgetxattr(&path, "user.a", &mut [0; 9][..]), Err(Errno::NODATA), "{name}");
        assert_eq!(lsetxattr(&path, "trusted.a", &[7], XattrFlags::empty()), Ok(()), "{name}");
    }
    let lists = |name: &str| format!("python3 -c \"import os; exit('{name}' not in os.listxattr('f'))\"");
    assert!(as_nobody(&volume, NO_GROUPS, &lists("user.a")));
    assert!(!as_nobody(&volume, NO_GROUPS, &lists("trusted.a")));
    assert!(Command::new("sh").args(["-c", &lists("trusted.a")]).current_dir(&volume.mnt).status().unwrap().success());
}

/// VFS_CAP_REVISION_2, effective; CAP_NET_BIND_SERVICE.
pub(crate) fn capability() -> Vec<u8> {
    [0x0200_0001_u32, 1 << 10, 0, 0, 0].map(u32::to_le_bytes).concat()
}

/// capabilities(7): also through descriptors that were open before the file had any, and those past the page cache, of
/// which the kernel leaves it to us.
#[test]
fn writes_through_any_descriptor_drop_capabilities() {
    let volume = Volume::formatted();
    let (file, capability) = (volume.path("f"), capability());
    let direct = libc::O_DIRECT;
    for option in ["relatime", "strictatime"] {
        volume.mount(&["-o", option]);
        for (create, read, flags) in
            [(true, false, 0), (false, false, 0), (false, true, 0), (false, true, libc::O_TRUNC), (false, true, direct)]
        {
            if !create {
                fs::write(&file, [7; 4096]).expect("writes");
                setxattr(&file, "security.capability", &capability, XattrFlags::empty()).expect("sets");
            }
            let mut options = OpenOptions::new();
            let writer =
                options.write(true).read(read).create_new(create).custom_flags(flags).open(&file).expect("opens");
            // Twice: a writer that has seen none looks again when there is one.
            for _ in 0..2 {
                // A page that lies as O_DIRECT wants it.
                let page = MmapMut::map_anon(4096).expect("maps");
                assert_eq!(rustix::io::pwrite(&writer, &page, 0), Ok(4096));
                assert_eq!(
                    xattr(&file, "security.capability"),
                    Err(Errno::NODATA),
                    "{option} {create} {read} {flags:o}"
                );
                setxattr(&file, "security.capability", &capability, XattrFlags::empty()).expect("sets");
            }
            fs::remove_file(&file).expect("unlinks");
        }
        volume.unmount();
    }
    volume.check();
}

/// capabilities(7): whoever changes a file's contents takes them.
#[test]
fn changes_of_contents_drop_capabilities() {
    let volume = Volume::mounted();
    let file = volume.path("f");
    let capability = capability();
    for (line, kept) in [
        ("echo x >> f", false),
        ("echo x > f", false),
        ("truncate -s 1 f", false),
        ("chown 1:1 f", false),
        ("chmod 700 f", true),
        ("cat f", true),
    ] {
        for stored in [false, true] {
            fs::write(&file, "contents").expect("writes");
            chmod(&file, 0o755);
            setxattr(&file, "security.capability", &capability, XattrFlags::empty()).expect("sets");
            if stored {
                File::open(&file).and_then(|file| file.sync_all()).expect("syncs");
            }
            let ran = Command::new("sh").args(["-c", line]).current_dir(&volume.mnt).output().expect("sh runs");
            assert!(ran.status.success(), "{line}");
            let left = xattr(&file, "security.capability");
            assert_eq!(left, if kept { Ok(capability.clone()) } else { Err(Errno::NODATA) }, "{line}");
            fs::remove_file(&file).expect("unlinks");
        }
    }
}

pub(crate) fn flag(path: &Path, flags: IFlags) {
    ioctl_setflags(File::open(path).expect("opens"), flags).expect("sets flags");
}

pub(crate) fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn immutable_and_append_only_files_stay_as_they_are() {
    let volume = Volume::mounted();
    let dir = volume.path("d");
    let file = dir.join("f");
    fs::create_dir(&dir).expect("makes a folder");
    fs::write(&file, "contents").expect("writes");
    let mut writer = OpenOptions::new().write(true).open(&file).expect("opens");
    let eperm = Some(Errno::PERM.raw_os_error());
    let before = fs::metadata(&file).expect("stats");
    flag(&file, IFlags::IMMUTABLE | IFlags::NODUMP);
    assert_eq!(ioctl_getflags(File::open(&file).expect("opens")), Ok(IFlags::IMMUTABLE | IFlags::NODUMP));
    let after = fs::metadata(&file).expect("stats");
    assert!((before.ctime(), before.ctime_nsec()) < (after.ctime(), after.ctime_nsec()), "ctime stood still");
    assert_eq!(errno(writer.write(b"x")), eperm, "also through a descriptor that was open");
    drop(writer);
    volume.remount();
    assert_eq!(errno(OpenOptions::new().append(true).open(&file)), eperm);
    assert_eq!(errno(File::create(&file)), eperm);
    assert_eq!(errno(fs::remove_file(&file)), eperm);
    assert_eq!(errno(fs::rename(&file, dir.join("g"))), eperm);
    assert_eq!(errno(fs::hard_link(&file, dir.join("g"))), eperm);
    assert_eq!(errno(fs::set_permissions(&file, PermissionsExt::from_mode(0o777))), eperm);
    assert_eq!(errno(chown(&file, Some(1), None)), eperm);
    assert_eq!(errno(chown(&file, None, None)), eperm);
    for name in ["user.a", "system.no-such-name"] {
        assert_eq!(setxattr(&file, name, b"", XattrFlags::empty()), Err(Errno::PERM), "{name}");
    }
    assert_eq!(fs::read(&file).expect("reads"), b"contents");
    flag(&file, IFlags::APPEND);
    for (append, truncate, expected) in [(true, false, None), (false, false, eperm), (true, true, eperm)] {
        let opened =
            OpenOptions::new().write(!append || truncate).append(append && !truncate).truncate(truncate).open(&file);
        assert_eq!(errno(opened), expected, "append {append}, truncate {truncate}");
    }
    // Found by `ci/diff.sh`: holes were punched.
    let appender = OpenOptions::new().append(true).open(&file).expect("opens");
    let allocate = |flags| rustix::fs::fallocate(&appender, flags, 0, 4);
    assert_eq!(allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE), Err(Errno::PERM));
    assert_eq!(allocate(FallocateFlags::ZERO_RANGE), Err(Errno::PERM));
    assert_eq!(allocate(FallocateFlags::KEEP_SIZE), Ok(()));
    drop(appender);
    OpenOptions::new().append(true).open(&file).and_then(|mut file| file.write_all(b" and more")).expect("appends");
    assert_eq!(fs::read(&file).expect("reads"), b"contents and more");
    assert_eq!(errno(fs::remove_file(&file)), eperm);
    assert!(Command::new("touch").arg(&file).status().expect("runs").success(), "the times of this moment may be set");
    // Found by `ci/diff.sh`: chown(-1, -1) took suid from an append-only file.
    assert_eq!(errno(chown(&file, None, None)), None, "ctime alone");
    flag(&file, IFlags::empty());
    fs::set_permissions(&file, PermissionsExt::from_mode(0o4755)).expect("chmods");
    flag(&file, IFlags::APPEND);
    assert_eq!(errno(chown(&file, None, None)), eperm);
    assert_eq!(fs::metadata(&file).expect("stats").mode() & 0o7777, 0o4755);
    flag(&file, IFlags::empty());

    flag(&dir, IFlags::IMMUTABLE);
    assert_eq!(errno(File::create(dir.join("new"))), eperm);
    assert_eq!(errno(fs::remove_file(&file)), eperm);
    assert_eq!(errno(fs::rename(&dir, volume.path("e"))), eperm);
    flag(&dir, IFlags::APPEND);
    File::create(dir.join("new")).expect("creates");
    assert_eq!(errno(fs::remove_file(dir.join("new"))), eperm);
    flag(&dir, IFlags::empty());
    fs::rename(&dir, volume.path("e")).expect("renames");

    // Who may: the owner the harmless ones, who has CAP_LINUX_IMMUTABLE the others.
    chown(volume.path("e"), Some(NOBODY), None).expect("chowns");
    let set = |bits: u32| {
        format!(
            "python3 -c \"import fcntl,os,struct; fcntl.ioctl(os.open('e', os.O_RDONLY), 0x40086602, struct.pack('l', {bits}))\""
        )
    };
    assert!(as_nobody(&volume, NO_GROUPS, &set(0x40)));
    assert!(!as_nobody(&volume, NO_GROUPS, &set(0x10)));
    let compressed = ioctl_setflags(File::open(volume.path("e")).expect("opens"), IFlags::COMPRESSED);
    assert_eq!(compressed, Err(Errno::OPNOTSUPP));
    File::create(volume.path("e/heir")).expect("creates");
    assert_eq!(ioctl_getflags(File::open(volume.path("e/heir")).expect("opens")), Ok(IFlags::NODUMP));
    volume.unmount();
    volume.check();
}

pub(crate) fn atime(path: &Path) -> (i64, i64) {
    let meta = fs::symlink_metadata(path).expect("stats");
    (meta.atime(), meta.atime_nsec())
}

/// Waits for a moment that is later than all before, also on the coarse clock that the kernel takes times from.
pub(crate) fn tick() {
    let now = clock_gettime(ClockId::Realtime);
    eventually("the clock goes on", || clock_gettime(ClockId::RealtimeCoarse) > now);
}

pub(crate) fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("sets times");
}

#[test]
fn reads_leave_access_times_as_relatime_says() {
    let volume = Volume::mounted();
    let (file, dir, link) = (volume.path("f"), volume.path("d"), volume.path("l"));
    fs::write(&file, "contents").expect("writes");
    fs::create_dir(&dir).expect("makes a folder");
    symlink("f", &link).expect("links");
    let read = |path: &Path| match path {
        path if path == link => drop(fs::read_link(path).expect("reads")),
        path if path == dir => drop(fs::read_dir(path).expect("lists").count()),
        path => drop(fs::read(path).expect("reads")),
    };
    for path in [&file, &dir, &link] {
        let made = atime(path);
        tick();
        read(path);
        let first = atime(path);
        assert!(made < first, "the first read after a change counts: {}", path.display());
        tick();
        read(path);
        assert_eq!(atime(path), first, "the next does not: {}", path.display());
    }
    // The kernel holds the page and asks us for nothing but the open.
    tick();
    fs::write(&file, "other contents").expect("writes");
    let before = atime(&file);
    read(&file);
    assert!(before < atime(&file), "what the kernel serves counts too");
    // O_NOATIME
    set_times(&file, (77, 5), (88, 5));
    let mut silent = OpenOptions::new().read(true).custom_flags(0o1_000_000).open(&file).expect("opens");
    silent.read_to_end(&mut Vec::new()).expect("reads");
    assert_eq!(atime(&file), (77, 5));
    drop(silent);
    read(&file);
    let noted = atime(&file);
    assert!((77, 5) < noted);
    // A time that is set stands, also over one that is not recorded yet; a day-old one is renewed.
    let now = noted.0;
    for (set, renewed) in [((now - 100, 1), true), ((now + 1000, 2), false)] {
        set_times(&file, set, (88, 5));
        assert_eq!(atime(&file), set);
        read(&file);
        assert_eq!(atime(&file) != set, renewed, "{set:?}");
    }
    let kept = [&file, &dir, &link].map(|path| atime(path));
    volume.unmount();
    for option in ["noatime", "relatime"] {
        volume.mount(&["-o", option]);
        assert_eq!([&file, &dir, &link].map(|path| atime(path)), kept, "what a clean unmount left");
        set_times(&file, (77, 5), (88, 5));
        read(&file);
        assert_eq!(atime(&file) == (77, 5), option == "noatime");
        set_times(&file, kept[0], (88, 5));
        volume.unmount();
    }
    volume.check();
}

#[test]
fn strictatime_sees_every_read() {
    let volume = Volume::formatted();
    volume.mount(&["-o", "strictatime"]);
    let (file, dir, link) = (volume.path("f"), volume.path("d"), volume.path("l"));
    fs::write(&file, "contents").expect("writes");
    fs::create_dir(&dir).expect("makes a folder");
    symlink("f", &link).expect("links");
    let mut reader = File::open(&file).expect("opens");
    for _ in 0..3 {
        tick();
        let before = [&file, &dir, &link].map(|path| atime(path));
        assert_eq!(rustix::io::pread(&reader, &mut [0; 4][..], 2), Ok(4));
        fs::read_dir(&dir).expect("lists").for_each(drop);
        fs::read_link(&link).expect("reads");
        let after = [&file, &dir, &link].map(|path| atime(path));
        assert!(before.iter().zip(&after).all(|(before, after)| before < after), "{before:?} {after:?}");
    }
    // Programs run and map their files all the same.
    let mut contents = String::new();
    reader.read_to_string(&mut contents).expect("reads");
    assert_eq!(contents, "contents");
    copy_program("/bin/true", &volume.path("true"));
    assert!(Command::new(volume.path("true")).status().expect("runs").success());
}

#[test]
fn a_rename_can_leave_a_whiteout() {
    let volume = Volume::mounted();
    for name in ["a", "b", "c"] {
        fs::write(volume.path(name), name).expect("writes");
    }
    let leave = |from: &str, to: &str, flags| {
        renameat_with(CWD, volume.path(from), CWD, volume.path(to), flags | RenameFlags::WHITEOUT)
    };
    assert_eq!(leave("a", "new", RenameFlags::NOREPLACE), Ok(()));
    assert_eq!(leave("b", "c", RenameFlags::empty()), Ok(()));
    assert_eq!(leave("c", "new", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(leave("c", "new", RenameFlags::EXCHANGE), Err(Errno::INVAL));
    for _ in 0..2 {
        for name in ["a", "b"] {
            let meta = fs::symlink_metadata(volume.path(name)).expect("stats");
            assert!(meta.file_type().is_char_device(), "{name}");
            assert_eq!((meta.rdev(), meta.mode() & 0o7777, meta.nlink()), (0, 0, 1), "{name}");
        }
        assert_eq!(fs::read(volume.path("c")).expect("reads"), b"b");
        assert_eq!(fs::read(volume.path("new")).expect("reads"), b"a");
        volume.remount();
    }
    volume.unmount();
    volume.check();
}

#[test]
fn the_limit_of_inodes_is_exact_however_many_create() {
    let volume = Volume::formatted_with(&["--inodes", "500"]);
    volume.mount(&[]);
    for round in 0..2 {
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (volume, made) = (&volume, &made);
                scope.spawn(move || {
                    for number in 0.. {
                        match File::create(volume.path(&format!("{round}-{thread}-{number}"))) {
                            Ok(_) => made.fetch_add(1, Ordering::Relaxed),
                            Err(error) => return assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error())),
                        };
                    }
                });
            }
        });
        assert_eq!(made.load(Ordering::Relaxed), if round == 0 { 499 } else { 100 }, "the root is one");
        let stat = rustix::fs::statvfs(&volume.mnt).expect("stats");
        assert_eq!((stat.f_files, stat.f_ffree), (500, 0));
        if round == 0 {
            fs::hard_link(volume.path("0-0-0"), volume.path("another")).expect("a name is no inode");
            fs::remove_file(volume.path("another")).expect("unlinks");
            let some = fs::read_dir(&volume.mnt).expect("lists").take(100).map(|entry| entry.expect("lists").path());
            some.collect::<Vec<_>>().iter().for_each(|path| fs::remove_file(path).expect("unlinks"));
            eventually("inodes come back", || rustix::fs::statvfs(&volume.mnt).expect("stats").f_ffree == 100);
        }
    }
    volume.unmount();
    volume.check();
}

#[test]
fn times_and_devices_are_kept_whole() {
    let volume = Volume::mounted();
    let times = [
        (0, 0),
        (-1, 999_999_999),
        (-(1 << 31) - 1, 1),
        ((1 << 31) + 5, 123_456_789),
        ((1 << 33) + 7, 1),
        (-(1 << 34), 2),
        (253_402_300_800, 3),
    ];
    for (number, time) in times.iter().enumerate() {
        let path = volume.path(&format!("t{number}"));
        fs::write(&path, "x").expect("writes");
        set_times(&path, *time, (time.0 + 1, time.1));
    }
    let device = makedev(0xfff, 0xf_ffff);
    let kinds = [
        ("reg", rustix::fs::FileType::RegularFile, 0),
        ("fifo", rustix::fs::FileType::Fifo, 0),
        ("sock", rustix::fs::FileType::Socket, 0),
        ("chr", rustix::fs::FileType::CharacterDevice, device),
        ("blk", rustix::fs::FileType::BlockDevice, makedev(8, 300)),
    ];
    for (name, kind, dev) in kinds {
        mknodat(CWD, volume.path(name), kind, Mode::from_raw_mode(0o640), dev).expect("makes");
    }
    // Any byte but '/' and NUL, and names of 255 bytes.
    let odd: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').chain([b'x']).collect();
    let name = |bytes: &[u8]| volume.mnt.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes));
    fs::write(name(&odd), "odd").expect("writes");
    assert_eq!(errno(File::create(name(&[&odd[..], b"y"].concat()))), Some(Errno::NAMETOOLONG.raw_os_error()));
    let target = "t/".repeat(2047) + "t";
    symlink(&target, volume.path("long")).expect("links");
    assert_eq!(errno(symlink(format!("{target}t"), volume.path("longer"))), Some(Errno::NAMETOOLONG.raw_os_error()));
    for _ in 0..2 {
        for (number, time) in times.iter().enumerate() {
            let meta = fs::metadata(volume.path(&format!("t{number}"))).expect("stats");
            assert_eq!((meta.atime(), meta.atime_nsec()), *time);
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (time.0 + 1, time.1));
        }
        for (name, kind, dev) in kinds {
            let stat = rustix::fs::lstat(volume.path(name)).expect("stats");
            assert_eq!(rustix::fs::FileType::from_raw_mode(stat.st_mode), kind, "{name}");
            assert_eq!((stat.st_rdev, stat.st_mode & 0o7777), (dev, 0o640), "{name}");
        }
        assert_eq!(fs::read(name(&odd)).expect("reads"), b"odd");
        assert_eq!(fs::read_link(volume.path("long")).expect("reads").as_os_str().len(), 4095);
        volume.remount();
    }
    volume.unmount();
    volume.check();
}
