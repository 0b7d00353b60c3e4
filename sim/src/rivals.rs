//! Rivals: two writers on one file, one of which only appends; the other does so at times, without O_APPEND.
//!
//! Owns: promises 1, 2 and 3 for a file that several handles change at once.
//! Leaves to others: files of one application each (`apps`), when a life begins and ends (`run`).
//!
//! The client accepts a write and returns in one step. So the order in which writes returned is the order in which they
//! were accepted, and a write that has not returned was not accepted. A crash leaves the file as after one of the
//! writes, at or after the last one that an fsync covered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use kiseki_core::client::{Client, Handle, OpenFlags};
use kiseki_core::errno::Errno;
use kiseki_core::testkit::ops::written_bytes;
use kiseki_core::types::Ino;
use madsim::time;

use crate::dice::Dice;
use crate::faults::Fault;
use crate::kernel::Kernel;
use crate::observe::{read_file, unexplained};
use crate::world::{LoggedEnv, World};

/// The name of the file, in the root.
pub const NAME: &str = "r";
/// Writes begin below this.
const WRITTEN: u64 = 6000;
/// Appends end when the file is so long.
const LENGTH_MAX: u64 = 20_000;
/// Longest write.
const LEN_MAX: u64 = 700;
/// Longest pause between two calls.
const PAUSE: Duration = Duration::from_millis(50);

/// What the two know of their file, over all lives; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Rivals(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// The contents after each write of this life; the first is what it began with.
    states: Vec<Vec<u8>>,
    /// The first that a crash may leave.
    durable: usize,
    /// Of the last write.
    number: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { states: vec![Vec::new()], durable: 0, number: 1 << 40 }
    }
}

impl State {
    fn now(&self) -> usize {
        self.states.len() - 1
    }

    fn length(&self) -> u64 {
        self.states[self.now()].len() as u64
    }

    fn written(&mut self, offset: u64, bytes: &[u8]) {
        let mut after = self.states[self.now()].clone();
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        after.resize(after.len().max(end), 0);
        after[start..end].copy_from_slice(bytes);
        self.states.push(after);
    }
}

impl Rivals {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Everything written so far is durable.
    pub fn all_durable(&self) {
        let mut state = self.state();
        state.durable = state.now();
    }

    /// A life begins: what is found must be what one of the writes left.
    pub async fn verify(&self, mut kernel: Kernel, world: &World) -> Result<(), String> {
        let mut found = None;
        for attempt in 0..20 {
            found = match whole(&mut kernel).await {
                Err(Errno::EIO) if world.faults.may_strike(Fault::ReadFailed) => None,
                found => found.map_err(|errno| format!("the rivals' file answered {errno:?}"))?,
            };
            if found.is_some() {
                break;
            }
            if attempt >= 5 {
                world.faults.set_on(false);
                world.calm();
            }
        }
        kernel.shrink(true);
        let found = found.ok_or("the rivals' file cannot be read, though the store is well")?;
        let mut state = self.state();
        if !state.states[state.durable..].contains(&found) {
            let (from, to) = (state.durable, state.now());
            return Err(format!("the rivals' file is as after none of its writes {from} to {to}"));
        }
        state.states = vec![found];
        state.durable = 0;
        Ok(())
    }

    /// One of the two, until it is told to stop or the life ends; `appends` only appends.
    pub async fn run(self, client: Client<LoggedEnv>, world: World, dice: Dice, appends: bool, stop: Arc<AtomicBool>) {
        let mut kernel = Kernel::new(client, dice.clone(), world.clone());
        let ended = self.work(&mut kernel, &world, &dice, appends, &stop).await;
        kernel.shrink(true);
        match ended {
            Ok(()) | Err(Errno::EIO | Errno::ENOSPC) => {}
            Err(errno) => world.alarm.raise(format!("a rival was answered {errno:?}")),
        }
    }

    async fn work(
        &self,
        kernel: &mut Kernel,
        world: &World,
        dice: &Dice,
        appends: bool,
        stop: &AtomicBool,
    ) -> Result<(), Errno> {
        let ino = kernel.walk(NAME).await?;
        let client = kernel.client().clone();
        let flags = OpenFlags { read: true, write: true, append: appends, ..OpenFlags::default() };
        let handle = client.open(ino, flags).await?;
        let worked = self.use_handle(kernel, (ino, handle), world, dice, appends, stop).await;
        client.release(handle).await?;
        worked
    }

    async fn use_handle(
        &self,
        kernel: &Kernel,
        (ino, handle): (Ino, Handle),
        world: &World,
        dice: &Dice,
        appends: bool,
        stop: &AtomicBool,
    ) -> Result<(), Errno> {
        let client = kernel.client().clone();
        while !stop.load(Ordering::Relaxed) && !world.meta.failed() && world.alarm.raised().is_none() {
            match dice.below(10) {
                0 => {
                    let covered = self.state().now();
                    if client.fsync(handle).await.is_ok() {
                        let mut state = self.state();
                        state.durable = state.durable.max(covered);
                    }
                }
                1..=3 => {
                    let (from, offset, len) = (self.state().now(), dice.below(WRITTEN), 1 + dice.below(4096) as u32);
                    if let Ok(data) = kernel.read_once(handle, offset, len).await
                        && let Some(what) = unexplained(&self.state().states[from..], offset, len, &data)
                    {
                        world.alarm.raise(format!("the rivals' file {what}"));
                    }
                }
                _ if appends && self.state().length() > LENGTH_MAX => {}
                _ => {
                    let number = {
                        let mut state = self.state();
                        state.number += 1;
                        state.number
                    };
                    let offset = match appends {
                        // The kernel says where the end is, as far as it knows.
                        true => client.getattr(ino).await?.length,
                        false if dice.chance(300) => self.state().length().min(LENGTH_MAX),
                        false => dice.below(WRITTEN),
                    };
                    let bytes = written_bytes(number, 0, 1 + dice.below(LEN_MAX) as u32);
                    let at_once = client.write_now(handle, offset, &bytes, false);
                    let result = match at_once {
                        Ok(false) => client.write(handle, offset, Bytes::copy_from_slice(&bytes), false).await,
                        Ok(true) => Ok(()),
                        Err(errno) => Err(errno),
                    };
                    match result {
                        Ok(()) => {
                            let mut state = self.state();
                            let offset = if appends { state.length() } else { offset };
                            state.written(offset, &bytes);
                        }
                        Err(Errno::EIO | Errno::ENOSPC) => {}
                        Err(errno) => return Err(errno),
                    }
                }
            }
            time::sleep(dice.time_below(PAUSE)).await;
        }
        Ok(())
    }
}

/// The contents; none if the store could not give them.
async fn whole(kernel: &mut Kernel) -> Result<Option<Vec<u8>>, Errno> {
    let ino = kernel.walk(NAME).await?;
    let length = kernel.client().getattr(ino).await?.length;
    read_file(kernel, ino, length).await
}
