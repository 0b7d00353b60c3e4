//! The socket with a service that is no volume.

use std::sync::mpsc;

use super::*;
use crate::control::{Connection, SOCKET_NAME, status_of};

/// Checks until it is stopped.
struct Fake {
    runtime: tokio::runtime::Runtime,
    checking: mpsc::SyncSender<()>,
}

impl Service for Fake {
    fn status(&self) -> Result<Status, ServiceError> {
        Ok(Status { meta: "fake".into(), ..Status::default() })
    }

    fn info(&self, ino: u64) -> Result<Info, ServiceError> {
        Err(ServiceError { errno: 2, text: format!("no inode {ino}") })
    }

    fn check(
        &self,
        _data: bool,
        stop: &Stop,
        progress: &(dyn Fn(Progress) + Sync),
        found: &(dyn Fn(Finding) + Sync),
    ) -> Result<Checked, ServiceError> {
        progress(Progress { keys: 1, ..Progress::default() });
        found(Finding { kind: "odd".into(), ..Finding::default() });
        self.checking.send(()).expect("the test waits");
        self.runtime.block_on(stop.wait());
        Err(ServiceError { errno: 4, text: "stopped".into() })
    }

    fn sync(&self, _stop: &Stop) -> Result<(), ServiceError> {
        Ok(())
    }

    fn drain(&self, _stop: &Stop, progress: &(dyn Fn(Storing) + Sync)) -> Result<(), ServiceError> {
        progress(self.storing());
        Ok(())
    }

    fn leave_log(&self) {}

    fn storing(&self) -> Storing {
        Storing { bytes: 42, error: Some("it is full".into()), ..Storing::default() }
    }
}

fn start(meta: &Path) -> (Server, mpsc::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (checking, started) = mpsc::sync_channel(1);
    (Server::start(meta, Fake { runtime, checking }).expect("binds"), started)
}

fn connect(meta: &Path) -> Connection {
    Connection::open(meta).expect("connects").expect("somebody listens")
}

fn storing() -> Reply {
    Reply::Storing(Storing { bytes: 42, error: Some("it is full".into()), ..Storing::default() })
}

#[test]
fn the_end_reaches_everyone() {
    let dir = tempfile::tempdir().expect("a folder");
    let (server, started) = start(dir.path());
    let mut idle = connect(dir.path());
    let mut watcher = connect(dir.path());
    watcher.ask(&Request::AwaitUnmount).expect("asks");
    assert_eq!(watcher.next_reply().expect("a line"), storing());
    let mut checker = connect(dir.path());
    checker.ask(&Request::Fsck { data: true }).expect("asks");
    started.recv().expect("the check runs");

    server.finish(Ok(()));
    let last = loop {
        let reply = watcher.next_reply().expect("a line");
        if !matches!(reply, Reply::Storing { .. }) {
            break reply;
        }
    };
    assert_eq!(last, Reply::Done);
    assert_eq!(checker.next_reply().expect("a line"), Reply::Progress(Progress { keys: 1, ..Progress::default() }));
    assert_eq!(
        checker.next_reply().expect("a line"),
        Reply::Finding(Finding { kind: "odd".into(), ..Finding::default() })
    );
    assert_eq!(checker.next_reply().expect("a line"), Reply::Failed { errno: 4, text: "stopped".into() });
    assert!(idle.next_reply().is_err());
    assert!(!dir.path().join(SOCKET_NAME).exists());
    assert!(status_of(dir.path()).expect("no error").is_none());
}

#[test]
fn what_is_not_stored_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let (server, _started) = start(dir.path());
    let mut watcher = connect(dir.path());
    watcher.ask(&Request::AwaitUnmount).expect("asks");
    assert_eq!(watcher.next_reply().expect("a line"), storing());
    server.finish(Err("7 bytes".into()));
    let last = std::iter::from_fn(|| watcher.next_reply().ok()).find(|reply| !matches!(reply, Reply::Storing { .. }));
    assert_eq!(last, Some(Reply::Failed { errno: 5, text: "7 bytes".into() }));
}

#[test]
fn nonsense_and_a_crowd_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_server, _started) = start(dir.path());
    let mut stream = UnixStream::connect(dir.path().join(SOCKET_NAME)).expect("connects");
    stream.write_all(b"{\"launch\":\"rockets\"}\n\xff\n").expect("writes");
    let mut line = String::new();
    let mut reader = BufReader::new(stream);
    reader.read_line(&mut line).expect("answers");
    assert!(line.contains("not a request of this version"), "{line}");
    line.clear();
    // What is not even text ends the connection.
    assert_eq!(reader.read_line(&mut line).expect("ends"), 0);

    let mut crowd: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect(dir.path())).collect();
    for member in &mut crowd {
        member.ask(&Request::Status).expect("asks");
        assert!(matches!(member.next_reply().expect("answers"), Reply::Status(_)));
    }
    let refused = connect(dir.path()).next_reply().expect("answers");
    assert!(matches!(refused, Reply::Failed { errno: 11, .. }), "{refused:?}");
    drop(crowd);
    // Those who left make room, as soon as their threads have noticed.
    while status_of(dir.path()).is_err() {
        std::thread::yield_now();
    }
}
