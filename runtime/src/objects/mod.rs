//! The object store through OpenDAL: `env::ObjectStore`.
//!
//! Owns: opening a store, deadlines, keeping calls apart from their waiters.
//! Leaves to others: block formats (`kiseki_core`); what a store does (`folder`, `s3`), what its errors mean (`failure`).
//!
//! Invariants
//! - Every call that may take long runs in a task of its own to its end: a waiter that is dropped or passes its deadline changes nothing.
//! - The two stores look alike from outside, except that a folder needs its barrier.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{self, Either};
use kiseki_core::env::{ObjectPage, ObjectStore, StoreError};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use self::failure::{Failure, Kind};
use self::folder::Folder;
use self::health::{Health, Verb};
use self::s3::S3;

mod barrier;
mod credentials;
mod direct;
mod error;
mod failure;
mod folder;
mod health;
mod http;
mod list;
mod open_files;
mod pace;
mod place;
mod s3;

pub use credentials::Credentials;
pub use error::ObjectsError;
pub use health::{Counts, Trouble};
pub use place::{Place, S3Place};

/// Puts and deletes under way. The client bounds its own below this; the rest is for those that overran their deadline.
const PUTS_MAX: usize = 64;
/// Gets and lists under way.
const GETS_MAX: usize = 64;

/// What the opener means to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Make the store's folder if it is absent, then as `Write`.
    Create,
    /// Put and delete. Half-written objects of earlier mounts are removed, so the volume must be ours alone.
    Write,
    /// Get and list; puts and deletes are `Denied`. Creates and removes nothing.
    Read,
}

/// The objects of one volume.
pub struct Objects {
    place: Place,
    store: Store,
    health: Arc<Health>,
    handle: Handle,
    timeout: Duration,
}

enum Store {
    Folder(Arc<Folder>),
    S3(Arc<S3>),
}

impl Objects {
    /// Opens the store at `place`. Calls run on `handle` and are given up after `timeout`. Nothing is asked of a store
    /// behind a network yet: `probe` does that.
    pub fn open(
        place: &Place,
        credentials: Option<&Credentials>,
        access: Access,
        timeout: Duration,
        handle: Handle,
    ) -> Result<Self, ObjectsError> {
        let health = Arc::new(Health::default());
        let store = match place {
            Place::Folder(path) => Store::Folder(Folder::open(path, access, Arc::clone(&health), handle.clone())?),
            Place::S3(s3) => Store::S3(S3::open(s3, credentials, access, timeout, Arc::clone(&health))?),
        };
        Ok(Self { place: place.clone(), store, health, handle, timeout })
    }

    /// Where the objects are.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Requests made so far.
    pub fn counts(&self) -> Counts {
        self.health.counts()
    }

    /// What is wrong with the store, if its last request failed.
    pub fn trouble(&self) -> Option<Trouble> {
        self.health.now_troubled()
    }

    /// Whether the place can be used as it was opened: read, and if it may be written, written. The error says what is
    /// wrong: no such bucket, wrong keys, clocks that differ, no permission.
    pub async fn probe(&self) -> Result<(), ObjectsError> {
        let probe = match &self.store {
            Store::Folder(folder) => {
                let folder = Arc::clone(folder);
                self.handle.spawn_blocking(move || folder.probe())
            }
            Store::S3(s3) => {
                let s3 = Arc::clone(s3);
                self.handle.spawn(async move { s3.probe().await })
            }
        };
        probe.await.map_err(|error| ObjectsError::Setup(error.to_string()))?
    }

    /// Some object under the place, if it holds any.
    pub async fn any_key(&self) -> Result<Option<String>, ObjectsError> {
        let found = match &self.store {
            Store::Folder(folder) => {
                let folder = Arc::clone(folder);
                self.handle.spawn_blocking(move || folder.any_key())
            }
            Store::S3(s3) => {
                let s3 = Arc::clone(s3);
                self.handle.spawn(async move { s3.any_key().await })
            }
        };
        found.await.map_err(|error| ObjectsError::Setup(error.to_string()))?
    }

    /// How many puts (deletes among them) and how many gets (lists among them) may be under way at once: fewer than
    /// usual while the store asks to slow down.
    pub fn windows(&self) -> (usize, usize) {
        match &self.store {
            Store::Folder(_) => (PUTS_MAX, GETS_MAX),
            Store::S3(s3) => s3.windows(),
        }
    }

    /// Number of barrier rounds made so far: how well callers are grouped.
    pub fn barrier_rounds(&self) -> u64 {
        match &self.store {
            Store::Folder(folder) => folder.barrier_rounds(),
            Store::S3(_) => 0,
        }
    }

    /// Waits for a call that runs in a task of its own, up to the deadline.
    fn await_detached<T: Send + 'static>(
        &self,
        verb: Verb,
        key: &str,
        call: JoinHandle<Result<T, StoreError>>,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + use<T> {
        let (key, timeout, health) = (key.to_owned(), self.timeout, Arc::clone(&self.health));
        // Timers need the executor at hand; the caller may be on a FUSE thread.
        let _context = self.handle.enter();
        let waiter = tokio::time::timeout(timeout, call);
        async move {
            let failure = match waiter.await {
                Ok(Ok(result)) => return result,
                Ok(Err(error)) => Failure::new(Kind::Broken, format!("the call was broken off: {error}")),
                Err(_) => Failure::new(Kind::TimedOut, format!("given up after {timeout:?}")),
            };
            health.failed(verb, &key, &failure);
            Err(StoreError::Retry)
        }
    }
}

impl ObjectStore for Objects {
    fn put(&self, key: &str, body: Vec<Bytes>) -> impl Future<Output = Result<(), StoreError>> + Send {
        let call = match &self.store {
            Store::Folder(folder) => folder.put(key, body),
            Store::S3(s3) => {
                let (s3, owned) = (Arc::clone(s3), key.to_owned());
                self.handle.spawn(async move { s3.put(&owned, body).await })
            }
        };
        self.await_detached(Verb::Put, key, call)
    }

    fn get(&self, key: &str, range: Range<u64>) -> impl Future<Output = Result<Bytes, StoreError>> + Send {
        let call = match &self.store {
            Store::Folder(folder) => match folder.get_briefly(key, &range) {
                Some(got) => return Either::Left(future::ready(got)),
                None => folder.get(key, range),
            },
            Store::S3(s3) => {
                let (s3, owned) = (Arc::clone(s3), key.to_owned());
                self.handle.spawn(async move { s3.get(&owned, range).await })
            }
        };
        Either::Right(self.await_detached(Verb::Get, key, call))
    }

    fn delete(&self, key: &str) -> impl Future<Output = Result<(), StoreError>> + Send {
        let call = match &self.store {
            Store::Folder(folder) => folder.delete(key),
            Store::S3(s3) => {
                let (s3, owned) = (Arc::clone(s3), key.to_owned());
                self.handle.spawn(async move { s3.delete(&owned).await })
            }
        };
        self.await_detached(Verb::Delete, key, call)
    }

    fn barrier(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        let call = match &self.store {
            Store::Folder(folder) => folder.barrier(),
            Store::S3(_) => None,
        };
        let waiter = call.map(|call| self.await_detached(Verb::Barrier, "", call));
        async move {
            match waiter {
                Some(waiter) => waiter.await,
                None => Ok(()),
            }
        }
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> impl Future<Output = Result<ObjectPage, StoreError>> + Send {
        let call = match &self.store {
            Store::Folder(folder) => folder.list(prefix, after),
            Store::S3(s3) => {
                let s3 = Arc::clone(s3);
                let (owned, after) = (prefix.to_owned(), after.map(str::to_owned));
                self.handle.spawn(async move { s3.list(&owned, after.as_deref()).await })
            }
        };
        self.await_detached(Verb::List, prefix, call)
    }
}
