//! Opening the write-back log: whose it is, and what earlier mounts left in it.
//!
//! Owns: telling the right folder from a wrong, missing or older one; epochs.
//! Leaves to others: what the records say (`store::log`).
//!
//! The volume says which epoch used its log last, and the folder says the same or more, for it is told first. A folder
//! that says less is not the one, or is an older copy of it: what was staged since would be missing. No two openings
//! have the same epoch, wherever their folders are.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::super::std::sync::Mutex;
use super::packs::Packs;
use super::{Inner, LogOptions, Logged, LoggedObjects, Round, Staging, State};
use crate::client::wait::Notify;
use crate::client::{MountError, load_volume};
use crate::env::{Disk, DiskError, Env, MetaError, MetaStore};
use crate::format::block::parse_key;
use crate::format::log::{Owner, Scan, Segment, scan};
use crate::format::values::{LogHome, Volume};
use crate::marks::{Mark, reached, reached_if};
use crate::meta;
use crate::planted::{self, Bug};
use crate::store::log::{Damage, Found, Log, claims};
use crate::types::VolumeId;

/// Reads of the folder are tried again so many times.
const READ_TRIES: u32 = 4;

/// What the log does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMode {
    /// It takes objects.
    Back,
    /// It takes none; what is in it is put into the real store.
    Drain,
    /// It is read from, and nothing is changed.
    ReadOnly,
}

/// Why a log could not be opened. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The volume itself.
    #[error(transparent)]
    Volume(#[from] MountError),
    /// The folder does not hold the log that the volume has.
    #[error("the write-back log of the volume is not there (it was last used at {})", .0.place)]
    Missing(LogHome),
    /// The folder is that of another volume.
    #[error("the folder holds the write-back log of another volume")]
    Foreign,
    /// The folder is an older state of the log: of mount `found` of the volume, which is at `home.epoch`.
    #[error("the folder holds an older write-back log of the volume (of mount {found}, not {})", home.epoch)]
    Older {
        /// What the folder says.
        found: u64,
        /// What the volume says.
        home: LogHome,
    },
    /// The file that says whose the folder is cannot be understood.
    #[error("the owner of the folder cannot be read")]
    Unreadable,
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The metadata store.
    #[error("metadata: {0}")]
    Meta(#[from] MetaError),
}

/// A log that was opened.
pub struct Opened<E: Env, D: Disk> {
    /// The world with it.
    pub env: Logged<E, D>,
    /// What was durable in it and is not readable.
    pub damage: Vec<Damage>,
}

impl<E: Env, D: Disk> Logged<E, D> {
    /// Opens the log of the volume of `env` on `disk`, and goes on with what earlier mounts left in it.
    pub async fn open(env: E, disk: D, options: LogOptions) -> Result<Opened<E, D>, LogError> {
        let volume = load_volume(&env).await?;
        let owner = patiently(&env, || disk.owner()).await?;
        let owner = owner.map(|bytes| Owner::decode(&bytes)).transpose().map_err(|_| LogError::Unreadable)?;
        check_owner(&volume, owner)?;
        let epoch = match options.mode {
            LogMode::ReadOnly => 0,
            LogMode::Back | LogMode::Drain => begin(&env, &disk, volume.id, owner, &options).await?,
        };
        let mut log = Log::new(volume.id, epoch, options.segment_size, options.size_max);
        log.set_delays(options.upload_delay, options.pack_delay);
        log.set_pace(options.pace);
        log.set_paged(options.paged_from);
        log.set_held(options.held_from);
        log.set_packs(options.pack_below, options.pack_size);
        let damage = recover(&env, &disk, volume.id, &mut log).await?;
        if volume.packs {
            know_packed(&env, &mut log).await;
        }
        for Damage { segment, range, key } in &damage {
            tracing::error!(segment, ?range, object = key, "the write-back log is damaged: what was there is lost");
        }
        let state = State {
            log,
            lost: Vec::new(),
            round: Round::default(),
            direct: 0,
            settled: 0,
            settling: false,
            hurried: 0,
            timer: None,
            stopping: options.mode == LogMode::ReadOnly,
            unsure: false,
            untold: false,
            broken: false,
        };
        let staging = Staging { disk, options, epoch, state: Mutex::new(state), changed: Notify::default() };
        let inner = Arc::new(Inner { env: env.clone(), staging: Some(staging), packs: Packs::new(volume.packs) });
        if epoch > 0 {
            inner.tend_all(&volume, epoch, &inner.staging().options);
        }
        inner.pump();
        Ok(Opened { env: Self { env, objects: LoggedObjects(inner) }, damage })
    }
}

fn check_owner(volume: &Volume, owner: Option<Owner>) -> Result<(), LogError> {
    match (owner, &volume.log) {
        (Some(owner), _) if owner.volume != volume.id => Err(LogError::Foreign),
        (Some(owner), Some(home)) if owner.epoch < home.epoch => {
            Err(LogError::Older { found: owner.epoch, home: home.clone() })
        }
        (None, Some(home)) => Err(LogError::Missing(home.clone())),
        (Some(_) | None, _) => Ok(()),
    }
}

/// Takes the log for this mount: first in the folder, then in the volume.
async fn begin<E: Env, D: Disk>(
    env: &E,
    disk: &D,
    volume: VolumeId,
    owner: Option<Owner>,
    options: &LogOptions,
) -> Result<u64, LogError> {
    // Of the ids of sessions, which never come again: another folder's epoch is another one, also where the volume has
    // forgotten that it had a log there.
    let least = 1 + owner.map_or(0, |owner| owner.epoch);
    let taken = env.meta().write(|txn| meta::session::take_id(txn, least)).await?;
    env.meta().sync(taken.seq).await?;
    let epoch = taken.value;
    disk.set_owner(Owner { volume, epoch }.encode()).await?;
    let home = LogHome { epoch, place: options.place.clone() };
    let written = env.meta().write(|txn| meta::volume::open_log(txn, &home)).await?;
    if !planted::is(Bug::LogHomeUnsynced) {
        env.meta().sync(written.seq).await?;
    }
    Ok(epoch)
}

async fn recover<E: Env, D: Disk>(env: &E, disk: &D, volume: VolumeId, log: &mut Log) -> Result<Vec<Damage>, LogError> {
    let (mut found, mut damage) = (Vec::new(), Vec::new());
    for (number, len) in patiently(env, || disk.segments()).await? {
        let bytes = surely(env, disk, number, len).await?;
        let zeros = bytes.iter().all(|byte| *byte == 0);
        match Segment::decode(&bytes, number) {
            Ok(head) if head.volume == volume => {
                let mut scan = scan(&head, &bytes);
                if planted::is(Bug::TornRecordAccepted) {
                    scan.records.iter_mut().for_each(|record| record.whole = record.body.end <= len);
                }
                found.push(Found { head, len, scan });
            }
            // Made, and never synced.
            Err(_) if zeros => found.push(unreadable(volume, number, len)),
            Ok(_) | Err(_) => {
                damage.push(Damage { segment: number, range: 0..len, key: None });
                found.push(unreadable(volume, number, len));
            }
        }
    }
    let claims = claims(&found);
    // Where nothing was claimed of a segment, its header was never synced.
    let claimed = |damage: &Damage| {
        found.iter().zip(&claims).any(|(found, claimed)| found.head.number == damage.segment && *claimed > 0)
    };
    damage.retain(claimed);
    let now = env.now();
    for (segment, claimed) in found.iter().zip(claims) {
        let known = damage.iter().any(|damage| damage.segment == segment.head.number);
        let more = log.recover(now, segment, claimed, known);
        damage.extend(more);
        reached_if(Mark::LogRecovered, || !segment.scan.records.is_empty());
        reached_if(Mark::LogTailTorn, || !segment.scan.gaps.is_empty());
    }
    Ok(damage)
}

/// What earlier mounts have left and is in packs already does not go into the store again, as far as that can be read.
/// (`begin` has synced all that the metadata says.)
async fn know_packed<E: Env>(env: &E, log: &mut Log) {
    for key in log.waiting() {
        if let Some((slice, index)) = parse_key(&key)
            && let Ok(Some(_)) = env.meta().read(|read| meta::packs::find(read, slice, index)).await
        {
            log.handle_known(&key);
        }
    }
}

/// All of a segment. What looks damaged may be so in the answer alone: it counts where two answers agree.
async fn surely<E: Env, D: Disk>(env: &E, disk: &D, number: u64, len: u64) -> Result<Bytes, DiskError> {
    let mut bytes = patiently(env, || disk.read(number, 0..len)).await?;
    for _ in 0..READ_TRIES {
        if Segment::decode(&bytes, number).is_ok_and(|head| scan(&head, &bytes).gaps.is_empty()) {
            break;
        }
        let again = patiently(env, || disk.read(number, 0..len)).await?;
        if again == bytes {
            break;
        }
        reached(Mark::LogReadTorn);
        bytes = again;
    }
    Ok(bytes)
}

/// A segment without a header.
fn unreadable(volume: VolumeId, number: u64, len: u64) -> Found {
    Found { head: Segment { volume, epoch: 0, number, before: 0 }, len, scan: Scan::default() }
}

/// Tries a read of the folder again where it fails.
async fn patiently<E: Env, T, F>(env: &E, attempt: impl Fn() -> F) -> Result<T, DiskError>
where
    F: Future<Output = Result<T, DiskError>>,
{
    let mut tries = 0;
    loop {
        match attempt().await {
            Err(DiskError::Failed) if tries + 1 < READ_TRIES => tries += 1,
            other => return other,
        }
        env.sleep_until(env.now() + Duration::from_millis(10 << tries)).await;
    }
}
