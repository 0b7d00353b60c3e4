use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle, ThreadId};

use super::*;

/// A request that is served at once.
const SHORT: u8 = 0;
/// One that is served until told.
const STUCK: u8 = 1;

const THREADS: usize = 3;

/// A connection that is a pipe, a request of which is a byte, and its threads.
struct Mount {
    turns: Arc<Turns>,
    requests: PipeWriter,
    served: Receiver<ThreadId>,
    release: Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Mount {
    fn new() -> Self {
        let (device, requests) = pipe().expect("a pipe");
        let turns = Arc::new(Turns::new());
        turns.start(device.try_clone().expect("a descriptor").into(), THREADS);
        let (serves, served) = channel();
        let (release, released) = channel();
        let released = Arc::new(Mutex::new(released));
        let serve = |_| {
            let (device, turns) = (device.try_clone().expect("a descriptor"), Arc::clone(&turns));
            let (serves, released) = (serves.clone(), Arc::clone(&released));
            thread::spawn(move || serve(device, &turns, &serves, &released))
        };
        let threads = (0..THREADS).map(serve).collect();
        Self { turns, requests, served, release, threads }
    }

    fn send(&mut self, request: u8) {
        self.requests.write_all(&[request]).expect("somebody reads");
    }

    /// The thread that has served a request.
    fn answer(&self) -> ThreadId {
        self.served.recv_timeout(Duration::from_secs(60)).expect("it is served")
    }

    fn ask(&mut self) -> ThreadId {
        self.send(SHORT);
        self.answer()
    }

    fn resting(&self) -> usize {
        self.turns.resting().threads
    }

    /// Asks until all threads but one rest.
    fn settle(&mut self) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.resting() < THREADS - 1 {
            assert!(Instant::now() < end, "{} threads rest", self.resting());
            self.ask();
        }
    }

    fn end(self) {
        drop(self.requests);
        self.threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
        assert_eq!(self.turns.resting().threads, 0);
    }
}

fn serve(mut device: PipeReader, turns: &Turns, serves: &Sender<ThreadId>, released: &Mutex<Receiver<()>>) {
    let mut request = [0];
    while device.read(&mut request).expect("reads") == 1 {
        let _turn = turns.begin();
        if request == [STUCK] {
            released.lock().expect("no panic").recv().expect("it is told");
        }
        serves.send(thread::current().id()).expect("somebody waits");
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        thread::yield_now();
    }
}

#[test]
fn one_thread_serves_who_does_one_thing_after_the_other() {
    let mut mount = Mount::new();
    let end = Instant::now() + Duration::from_secs(60);
    // The machine may have other work, so that for a moment nothing is served.
    loop {
        mount.settle();
        let first = mount.ask();
        if (0..1000).all(|_| mount.ask() == first) {
            break;
        }
        assert!(Instant::now() < end, "threads serve in turn");
    }
    mount.end();
}

#[test]
fn all_threads_read_when_nothing_comes() {
    let mut mount = Mount::new();
    mount.settle();
    until("threads rest", || mount.resting() == 0);
    mount.end();
}

#[test]
fn what_comes_while_the_one_thread_is_stuck_is_served() {
    let mut mount = Mount::new();
    mount.settle();
    mount.send(STUCK);
    let other = mount.ask();
    mount.release.send(()).expect("it waits");
    assert_ne!(mount.answer(), other);
    mount.end();
}

#[test]
fn all_threads_read_when_requests_wait() {
    let mut mount = Mount::new();
    mount.settle();
    let mut served = 0;
    let end = Instant::now() + Duration::from_secs(60);
    while mount.turns.alone.load(Relaxed) {
        assert!(Instant::now() < end, "one thread goes on alone");
        mount.requests.write_all(&[SHORT; 1000]).expect("somebody reads");
        served += 1000;
    }
    (0..served).for_each(|_| _ = mount.answer());
    mount.end();
}

#[test]
fn requests_that_are_served_at_once_keep_all_threads_reading() {
    let turns = Turns::new();
    let (device, _requests) = pipe().expect("a pipe");
    turns.start(device.into(), 2);
    let both = Barrier::new(2);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..4 * STREAK {
                    let _turn = turns.begin();
                    both.wait();
                }
            });
        }
    });
    assert!(!turns.alone.load(Relaxed) && turns.apart_until.load(Relaxed) == 0);
}

/// Requests that were served, if each came soon and alone.
fn served(turns: &Turns) -> u32 {
    turns.streak.load(Relaxed) - turns.serving.load(Relaxed)
}

#[test]
fn a_request_within_a_request_is_none() {
    let turns = Turns::new();
    // Whatever the machine does meanwhile, the last one ended a moment ago.
    turns.ended.store(Nanos::MAX, Relaxed);
    let outer = turns.begin();
    drop(turns.begin());
    assert_eq!((turns.serving.load(Relaxed), served(&turns)), (1, 0));
    assert_eq!(turns.ended.load(Relaxed), Nanos::MAX);
    drop(outer);
    assert_eq!((turns.serving.load(Relaxed), served(&turns)), (0, 1));
    turns.ended.store(Nanos::MAX, Relaxed);
    drop(turns.begin());
    assert_eq!(served(&turns), 2);
}

#[test]
fn parts_of_a_request_count_once() {
    let turns = Turns::new();
    until("no time passes", || READ <= turns.now());
    let before = turns.now();
    drop(turns.begin_part());
    assert!(before <= turns.ended.load(Relaxed), "it was served");
    let streak = turns.streak.load(Relaxed);
    // Whatever the machine does meanwhile, it ended a moment ago.
    turns.ended.store(Nanos::MAX, Relaxed);
    drop(turns.begin_part());
    assert_eq!(turns.streak.load(Relaxed), streak);
}
