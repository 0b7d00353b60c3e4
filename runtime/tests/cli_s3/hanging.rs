//! A store that does not answer: what is told, and that nothing is lost.

use std::fs;
use std::process::Stdio;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::harness::{Bucket, Foreground, Mounted, ends, errno};
use crate::volume::{Ran, eventually, noise};

#[test]
fn umount_with_a_store_that_hangs_tells_what_is_not_stored_and_works_after() {
    let bucket = Bucket::formatted();
    let url = &bucket.url;
    let args = ["--mode", "through", "--store-timeout", "2s", "--commit-interval", "1h"];
    let mounted = Mounted::new(&bucket.world, &bucket.user, &args);
    let contents = [noise(1, 40 << 10), noise(2, 40 << 10)];
    bucket.hang(true);
    // Less than a block: nothing of it is stored before something asks for that.
    fs::write(mounted.file("first"), &contents[0]).unwrap();
    fs::write(mounted.file("second"), &contents[1]).unwrap();
    let ran = mounted.umount(&[]);
    ran.fails_with(&["stays mounted", "80.0 KiB in 2 files", "cannot be stored", url, "and repeat", "--force"]);
    for (name, contents) in ["first", "second"].into_iter().zip(&contents) {
        assert_eq!(&fs::read(mounted.file(name)).unwrap(), contents);
    }
    eventually("the failure is known", || mounted.status()["mount"]["store"]["ok"] == false);
    let status = mounted.status();
    assert_eq!((&status["mount"]["dirty_files"], &status["mount"]["dirty_bytes"]), (&2.into(), &(80 << 10).into()));
    let store = &status["mount"]["store"];
    assert!(store["error"].is_string() && store["failing_secs"].is_u64(), "{store}");
    assert!(store["failures"].as_u64().unwrap() > 0, "{store}");
    let text = bucket.user.runs(&["status", mounted.text()]).ends(0).stdout;
    assert!(text.contains("fails since"), "{text}");
    bucket.hang(false);
    mounted.unmount();
    let checked = bucket.user.runs(&["fsck", &bucket.world.meta(), "--data", "--json"]).ends(0).json();
    assert_eq!(checked["checked"]["blocks"], 2);
    let mounted = Mounted::new(&bucket.world, &bucket.user, &["--read-only"]);
    for (name, contents) in ["first", "second"].into_iter().zip(&contents) {
        assert_eq!(&fs::read(mounted.file(name)).unwrap(), contents);
    }
    mounted.unmount();
}

#[test]
fn a_forced_umount_loses_nothing_if_the_store_comes_back() {
    let bucket = Bucket::formatted();
    let args = ["--mode", "through", "--store-timeout", "1s", "--commit-interval", "1h"];
    let mounted = Mounted::new(&bucket.world, &bucket.user, &args);
    bucket.hang(true);
    fs::write(mounted.file("precious"), noise(1, 40 << 10)).unwrap();
    mounted.umount(&[]).fails_with(&["stays mounted"]);
    let pid = mounted.pid();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let ran = mounted.umount(&["--force"]).ends(0);
    for text in ["detached", "40.0 KiB in 1 files", "not stored", &format!("kill {}", pid.as_raw_nonzero())] {
        assert!(ran.stdout.contains(text), "{text}: {ran:?}");
    }
    assert!(!mounted.file("precious").exists());
    eventually("the log tells", || mounted.log().contains("store_error="));
    bucket.hang(false);
    ends(&process);
    std::mem::forget(mounted);
    let mounted = Mounted::new(&bucket.world, &bucket.user, &[]);
    assert_eq!(fs::read(mounted.file("precious")).unwrap(), noise(1, 40 << 10));
    mounted.unmount();
}

#[test]
fn a_signal_with_a_store_that_hangs_tells_what_is_not_stored() {
    let bucket = Bucket::formatted();
    let (meta, point, log) = (bucket.world.meta(), bucket.world.text("mnt"), bucket.world.text("log"));
    let waits = ["--mode", "through", "--store-timeout", "1s", "--commit-interval", "1h"];
    let args = [&["mount", &meta, &point, "--log", &log], &waits[..]].concat();
    let tells = |child: &Foreground<'_>, text: &str| {
        eventually(text, || {
            let log = child.log();
            let mut lines = log.lines().filter(|line| line.contains(text) && line.contains("store_error="));
            lines.any(|line| line.contains("40960"))
        });
    };
    for give_up in [false, true] {
        let child = Foreground::start(&bucket.world, &bucket.user, &args);
        let name = format!("file-{give_up}");
        fs::write(bucket.world.path("mnt").join(&name), noise(1, 40 << 10)).unwrap();
        fs::write(bucket.world.path("log"), "").unwrap();
        bucket.hang(true);
        child.signal();
        tells(&child, "trying again until that succeeds");
        child.signal();
        tells(&child, "another signal gives up");
        let process = pidfd_open(child.pid(), PidfdFlags::empty()).unwrap();
        if give_up {
            child.signal();
            ends(&process);
            tells(&child, "bytes that were not fsynced are lost");
            bucket.hang(false);
        } else {
            bucket.hang(false);
            ends(&process);
            assert!(child.log().contains("everything is stored"));
        }
        drop(child);
        fs::write(bucket.world.path("log"), "").unwrap();
        let mounted = Mounted::new(&bucket.world, &bucket.user, &[]);
        let found = errno(fs::read(mounted.file(&name)));
        // A file whose bytes were given up is there or not, with a prefix of them.
        match (give_up, found) {
            (false, found) => assert_eq!(found, Ok(noise(1, 40 << 10))),
            (true, Ok(found)) => assert!(found.is_empty(), "{} bytes", found.len()),
            (true, Err(errno)) => assert_eq!(errno, Errno::NOENT),
        }
        mounted.unmount();
        bucket.user.runs(&["fsck", &meta, "--data"]).ends(0);
    }
}

#[test]
fn a_mount_that_waits_for_its_store_ends_by_a_signal() {
    let bucket = Bucket::formatted();
    bucket.hang(true);
    fs::create_dir(bucket.world.path("mnt")).unwrap();
    let (meta, point, log) = (bucket.world.meta(), bucket.world.text("mnt"), bucket.world.text("log"));
    let args = ["mount", &meta, &point, "--log", &log];
    let asked = bucket.server.asked().len();
    let child = bucket.user.command(&args).stderr(Stdio::piped()).spawn().expect("kiseki runs");
    // It handles signals before it asks the store.
    eventually("it asks the store", || bucket.server.asked().len() > asked);
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    let ran: Ran = child.wait_with_output().expect("it ends").into();
    ran.fails_with(&["SIGTERM"]);
    bucket.hang(false);
    bucket.user.runs(&["fsck", &meta]).ends(0);
}
