//! The answering end of the control socket: one thread that accepts, one for each connection.
//!
//! Owns: the socket file, the threads, the end of them. Leaves to others: the answers (`Service`).
//!
//! Threads and not tasks: a check runs for minutes and computes between its waits.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::sync::watch;
use tracing::warn;

use super::protocol::{Checked, Finding, Info, Progress, Reply, Request, Status, Storing};
use super::{SOCKET_NAME, SocketPath};

/// More are commands gone wild.
const CONNECTIONS_MAX: usize = 32;
/// Longest request line.
const REQUEST_MAX: u64 = 64 << 10;
/// A command that does not read for so long is hung up on: nothing waits for it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two lines to a command that watches an unmount.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Why a request failed: an error number and a text for a person.
#[derive(Clone, Debug)]
pub struct ServiceError {
    /// Of Linux; 0 if none fits.
    pub errno: i32,
    /// For a person.
    pub text: String,
}

/// Who answers.
pub trait Service: Send + Sync + 'static {
    /// Numbers of the mount.
    fn status(&self) -> Result<Status, ServiceError>;
    /// One inode.
    fn info(&self, ino: u64) -> Result<Info, ServiceError>;
    /// Checks the volume; gives up with an error soon after `stop` is set.
    fn check(
        &self,
        data: bool,
        stop: &Stop,
        progress: &(dyn Fn(Progress) + Sync),
        found: &(dyn Fn(Finding) + Sync),
    ) -> Result<Checked, ServiceError>;
    /// Stores everything that was written; gives up with an error soon after `stop` is set.
    fn sync(&self, stop: &Stop) -> Result<(), ServiceError>;
    /// Puts everything that is in the write-back log into the object store, and tells how far that is; gives up with an
    /// error soon after `stop` is set, and if the store makes no progress.
    fn drain(&self, stop: &Stop, progress: &(dyn Fn(Storing) + Sync)) -> Result<(), ServiceError>;
    /// What is in the write-back log at the end stays there.
    fn leave_log(&self);
    /// What is still to be stored, and what is wrong with the object store if its last request failed.
    fn storing(&self) -> Storing;
}

/// Tells a long request that nobody waits for it any more.
#[derive(Clone, Debug)]
pub struct Stop(watch::Sender<bool>);

impl Stop {
    /// Not set.
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Sets it, for good.
    pub fn set(&self) {
        self.0.send_replace(true);
    }

    /// Completes once it is set.
    pub async fn wait(&self) {
        let mut stopped = self.0.subscribe();
        // The sender lives in `self`, so the wait ends only by the value.
        let _ = stopped.wait_for(|set| *set).await;
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

/// The control socket of a mounted volume. Ends by `finish`, or when dropped.
pub struct Server {
    shared: Arc<Shared>,
    listener: UnixListener,
    accept: Option<JoinHandle<()>>,
    path: PathBuf,
}

struct Shared {
    service: Box<dyn Service>,
    state: Mutex<State>,
    /// Waited on by connections that watch an unmount; notified when `State::outcome` is set.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Set once the volume is unmounted: whether everything is stored, or what is not.
    outcome: Option<Result<(), String>>,
    /// Ended connections leave by themselves.
    connections: BTreeMap<u64, (UnixStream, Stop)>,
    /// Threads of connections; ended ones are joined when another one comes.
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves the control socket of the store at `meta`, whose lock the caller holds.
    pub fn start(meta: &Path, service: impl Service) -> io::Result<Self> {
        let listener = bind(meta)?;
        let shared = Arc::new(Shared { service: Box::new(service), state: Mutex::default(), ended: Condvar::new() });
        let accept = std::thread::Builder::new().name("control".into()).spawn({
            let (shared, listener) = (Arc::clone(&shared), listener.try_clone()?);
            move || accept(&shared, &listener)
        })?;
        Ok(Self { shared, listener, accept: Some(accept), path: meta.join(SOCKET_NAME) })
    }

    /// Tells those who watch how the unmount went, ends all requests, and returns once no thread is left.
    pub fn finish(mut self, outcome: Result<(), String>) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Result<(), String>) {
        let Some(accept) = self.accept.take() else { return };
        self.shared.lock().outcome = Some(outcome);
        self.shared.ended.notify_all();
        // Wakes `accept`, which then fails for good.
        if let Err(e) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            warn!(error = %e, "cannot end the control socket");
        }
        join(accept);
        let mut state = self.shared.lock();
        for (stream, stop) in state.connections.values() {
            stop.set();
            // A connection between two requests reads end of file. One that is gone by itself cannot be shut down.
            let _ = stream.shutdown(Shutdown::Read);
        }
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        threads.into_iter().for_each(join);
        if let Err(e) = std::fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), error = %e, "cannot remove the control socket");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Err("the mount process gave up the volume".into()));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        warn!("a thread of the control socket panicked");
    }
}

/// Binds the socket with mode 0600 from the start: a socket's mode before `bind` becomes its file's.
fn bind(meta: &Path) -> io::Result<UnixListener> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let path = SocketPath::of(meta)?;
    match std::fs::remove_file(&path.path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path.path)?)?;
    rustix::net::listen(&socket, 16)?;
    Ok(UnixListener::from(socket))
}

fn accept(shared: &Arc<Shared>, listener: &UnixListener) {
    let mut number = 0;
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if shared.lock().outcome.is_none() => {
                // Out of descriptors or memory: the next command may have more luck.
                warn!(error = %e, "the control socket cannot accept a command");
                if e.kind() == ErrorKind::InvalidInput {
                    return;
                }
                std::thread::sleep(WATCH_INTERVAL);
                continue;
            }
            Err(_) => return,
        };
        number += 1;
        if let Err(e) = serve_in_thread(shared, number, stream) {
            warn!(error = %e, "the control socket cannot serve a command");
        }
    }
}

fn serve_in_thread(shared: &Arc<Shared>, number: u64, stream: UnixStream) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let stop = Stop::new();
    let mut state = shared.lock();
    let ended: Vec<_> = state.threads.extract_if(.., |thread| thread.is_finished()).collect();
    ended.into_iter().for_each(join);
    if state.connections.len() >= CONNECTIONS_MAX {
        drop(state);
        return send(&stream, &failed(ServiceError { errno: 11, text: "too many commands at once".into() }));
    }
    state.connections.insert(number, (stream.try_clone()?, stop.clone()));
    let spawned = std::thread::Builder::new().name("control-command".into()).spawn({
        let shared = Arc::clone(shared);
        move || {
            // An error here is a command that went away: nothing is lost by it.
            if let Err(e) = serve(&shared, &stream, &stop) {
                tracing::debug!(error = %e, "a command hung up");
            }
            shared.lock().connections.remove(&number);
        }
    });
    match spawned {
        Ok(thread) => state.threads.push(thread),
        Err(e) => {
            state.connections.remove(&number);
            return Err(e);
        }
    }
    Ok(())
}

fn serve(shared: &Shared, stream: &UnixStream, stop: &Stop) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(REQUEST_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let reply = match serde_json::from_str(&line) {
            Ok(request) => answer(shared, stream, stop, &request)?,
            Err(e) => failed(ServiceError { errno: 22, text: format!("not a request of this version: {e}") }),
        };
        send(stream, &reply)?;
    }
}

/// Answers one request; the last line is returned.
fn answer(shared: &Shared, stream: &UnixStream, stop: &Stop, request: &Request) -> io::Result<Reply> {
    let service = &shared.service;
    let line = |reply: Reply| {
        if send(stream, &reply).is_err() {
            stop.set();
        }
    };
    let reply = match request {
        Request::Status => service.status().map(|status| Reply::Status(Box::new(status))),
        Request::Info { ino } => service.info(*ino).map(Reply::Info),
        Request::Sync => service.sync(stop).map(|()| Reply::Done),
        Request::AwaitUnmount => return await_unmount(shared, stream),
        Request::Drain => service.drain(stop, &|storing| line(Reply::Storing(storing))).map(|()| Reply::Done),
        Request::LeaveLog => {
            service.leave_log();
            Ok(Reply::Done)
        }
        Request::Fsck { data } => {
            service.check(*data, stop, &|p| line(Reply::Progress(p)), &|f| line(Reply::Finding(f))).map(Reply::Checked)
        }
    };
    Ok(reply.unwrap_or_else(failed))
}

fn await_unmount(shared: &Shared, stream: &UnixStream) -> io::Result<Reply> {
    // Also where it has ended already: who asks wants to know what has stayed in the write-back log.
    send(stream, &Reply::Storing(shared.service.storing()))?;
    let mut state = shared.lock();
    loop {
        match &state.outcome {
            Some(Ok(())) => return Ok(Reply::Done),
            Some(Err(text)) => return Ok(failed(ServiceError { errno: 5, text: text.clone() })),
            None => {}
        }
        state = shared.ended.wait_timeout(state, WATCH_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        if state.outcome.is_none() {
            drop(state);
            send(stream, &Reply::Storing(shared.service.storing()))?;
            state = shared.lock();
        }
    }
}

fn failed(error: ServiceError) -> Reply {
    Reply::Failed { errno: error.errno, text: error.text }
}

fn send(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
