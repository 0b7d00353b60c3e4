//! The end of a mount: what is in memory becomes durable, what is in the write-back log goes into the object store.
//!
//! Owns: waiting for stores that take their time, what signals do meanwhile, what is told.
//! Leaves to others: storing itself (`Client::unmount`, `Logged::drain`).
//!
//! Invariants
//! - Bytes in memory are given up by nobody but a person, by two signals, after being told how many they are.
//! - What is in the write-back log is durable: leaving it there for the next mount loses nothing.

use std::time::Duration;

use kiseki_core::client::{Client, LogMode};
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::session::Serving;
use super::{MountConfig, Stores, point};
use crate::env::World;
use crate::objects::Objects;

/// Between two attempts to store what is dirty at the end.
const STORE_RETRY: Duration = Duration::from_secs(1);
/// Between two lines of the log about an end that takes long. An attempt alone may take `store_timeout`.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// How long puts that are under way may take when the write-back log is left: what they put is put again.
const LEAVE_WAIT: Duration = Duration::from_secs(2);
/// How long removing the files of an empty log may take; they can stay, too.
const CLOSE_WAIT: Duration = Duration::from_secs(60);

/// The end of a mount, which may take as long as its object store does.
pub(super) struct Waiting<'a> {
    pub(super) interrupts: &'a mut Interrupts,
    pub(super) client: &'a Client<World>,
    pub(super) stores: &'a Stores,
    pub(super) leave_log: &'a watch::Sender<bool>,
}

/// Unmounts, and waits until the last request is answered.
pub(super) fn end_connection(
    config: &MountConfig,
    runtime: &Runtime,
    waiting: &mut Waiting<'_>,
    serving: &mut Serving,
) {
    // It waits for the kernel, which waits for us.
    let path = config.mountpoint.clone();
    let leaving = runtime.spawn_blocking(move || point::leave(&path));
    runtime.block_on(waiting.patiently(async {
        serving.ended().await;
        if leaving.await.is_err() {
            warn!("unmounting panicked");
        }
    }));
}

/// What is wrong with the object store, if anything is known to be.
pub(super) fn trouble(objects: &Objects) -> Option<String> {
    objects.trouble().map(|trouble| trouble.text)
}

/// Ends the session of a mount that nobody has used.
pub(super) fn abandon(runtime: &Runtime, client: &Client<World>, stores: &Stores) {
    if let Err(left) = runtime.block_on(client.unmount()) {
        warn!(%left, "the session stays until the next mount");
    }
    runtime.block_on(leave_log(stores));
}

/// Ends the work of the write-back log, and that on packs. What the object store has not got stays in the log.
pub(super) async fn leave_log(stores: &Stores) {
    close_log(stores, LEAVE_WAIT).await;
}

/// The same, within a time; whether the object store has all of it, and the volume is without a log.
async fn close_log(stores: &Stores, within: Duration) -> bool {
    match tokio::time::timeout(within, stores.env.close()).await {
        Ok(Ok(drained)) => drained,
        Ok(Err(error)) => {
            warn!(%error, "the volume keeps the write-back log, although nothing is left in it");
            false
        }
        Err(_) => false,
    }
}

impl Waiting<'_> {
    /// Makes durable everything that was accepted, and ends the session. Tries until that succeeds: nothing is dropped
    /// because it is hard to store; who wants that sends signals.
    pub(super) async fn store(&mut self) {
        let (client, objects) = (self.client, &self.stores.objects);
        let storing = async {
            while let Err(left) = client.unmount().await {
                let store_error = trouble(objects);
                warn!(%left, store_error, "cannot store everything yet; trying again until that succeeds");
                tokio::time::sleep(STORE_RETRY).await;
            }
        };
        let telling = async {
            loop {
                tokio::time::sleep(TELL_INTERVAL).await;
                let dirty_bytes = dirty_bytes(client).await;
                warn!(dirty_bytes, store_error = trouble(objects), "still storing what was written");
            }
        };
        self.patiently(async {
            tokio::select! {
                () = storing => {}
                () = telling => {}
            }
        })
        .await;
    }

    /// Puts what is in the write-back log into the object store, unless somebody wants to leave it there. `Err` says
    /// what is left if nobody has asked for that.
    pub(super) async fn drain(&mut self) -> Result<(), String> {
        let volume = &self.client.volume().name;
        let Some(log) = self.stores.log.as_ref().filter(|log| log.mode != LogMode::ReadOnly) else {
            close_log(self.stores, LEAVE_WAIT).await;
            info!(%volume, "everything is stored");
            return Ok(());
        };
        let mut left_by = None;
        let mut draining = std::pin::pin!(self.stores.env.drain());
        let mut leave = self.leave_log.subscribe();
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                () = &mut draining => break,
                _ = leave.wait_for(|leave| *leave) => {
                    left_by = Some("kiseki umount --no-drain");
                    break;
                }
                name = self.interrupts.next() => {
                    if told {
                        left_by = Some(name);
                        break;
                    }
                    told = true;
                    let (objects, bytes) = backlog(self.stores);
                    let store_error = trouble(&self.stores.objects);
                    warn!(
                        objects,
                        bytes,
                        store_error,
                        signal = name,
                        "still putting what is in the write-back log into the object store; another signal leaves it for \
                         the next mount"
                    );
                }
                () = tokio::time::sleep(TELL_INTERVAL) => {
                    let (objects, bytes) = backlog(self.stores);
                    let store_error = trouble(&self.stores.objects);
                    info!(objects, bytes, store_error, "putting what is in the write-back log into the object store");
                }
            }
        }
        let within = if left_by.is_some() { LEAVE_WAIT } else { CLOSE_WAIT };
        let drained = close_log(self.stores, within).await;
        let (objects, bytes) = backlog(self.stores);
        match left_by {
            _ if drained || objects == 0 => {
                info!(%volume, "everything is stored");
                Ok(())
            }
            Some(by) => {
                let folder = log.folder.path().display();
                warn!(%volume, objects, bytes, %folder, by, "left in the write-back log, for the next mount to put");
                if *leave.borrow() {
                    return Ok(());
                }
                Err(format!(
                    "{objects} objects ({bytes} bytes) are left in the write-back log at {folder}, for the next mount to put"
                ))
            }
            // Drained a moment ago, and nothing is staged after the client's end.
            None => Err("the write-back log could not be closed; see the mount's log".into()),
        }
    }

    /// Waits for `work`. The first signal in the meantime says what is not stored yet, the next one gives it up.
    async fn patiently<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut told = false;
        loop {
            let name = tokio::select! {
                biased;
                done = &mut work => return done,
                name = self.interrupts.next() => name,
            };
            let dirty_bytes = dirty_bytes(self.client).await;
            let store_error = trouble(&self.stores.objects);
            if told {
                error!(
                    dirty_bytes,
                    store_error,
                    signal = name,
                    "ended by a signal: bytes that were not fsynced are lost"
                );
                // As after a crash: the stores are made for it, and a regular exit would race with their threads.
                let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
            }
            warn!(
                dirty_bytes,
                store_error,
                signal = name,
                "still storing, and trying until that succeeds; another signal gives up what is not stored"
            );
            told = true;
        }
    }
}

/// What is not stored yet.
async fn dirty_bytes(client: &Client<World>) -> u64 {
    client.status().await.map_or(0, |status| status.dirty_bytes)
}

/// Objects and bytes that are in the write-back log only.
fn backlog(stores: &Stores) -> (u64, u64) {
    stores.env.log_status().map_or((0, 0), |status| (status.backlog.objects, status.backlog.bytes))
}

/// The signals that ask for an end.
pub(super) struct Interrupts {
    terminate: Signals,
    interrupt: Signals,
    hangup: Signals,
}

impl Interrupts {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
