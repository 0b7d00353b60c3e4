//! Sessions: which mounts are alive, and whose the leased slice ids are.
//!
//! Owns: the session and lease keys. Leaves to others: when a session counts as dead, collecting what it left (upkeep).
//!
//! Invariant: a lease outlives its session unless the session ended cleanly, so the objects of a dead session are found.

use alloc::vec::Vec;
use core::ops::Range;

use super::{OpCtx, put, scan_all, volume};
use crate::format::keys::{self, Key};
use crate::format::values::{Lease, Session, Value};
use crate::kv::{OpResult, Read, Txn};
use crate::types::SessionId;

/// Takes an id of at least `least` that no session has had or will have. To be synced before it is used.
pub fn take_id(txn: &mut dyn Txn, least: u64) -> OpResult<u64> {
    let id = volume::next(txn, keys::next_session(), 1)?.max(least);
    put(txn, keys::next_session(), &(id + 1));
    Ok(id)
}

/// Begins a session.
pub fn begin(txn: &mut dyn Txn, ctx: &OpCtx) -> OpResult<SessionId> {
    let id = take_id(txn, 1)?;
    put(txn, keys::session(SessionId(id)), &Session { started: ctx.now });
    Ok(SessionId(id))
}

/// Ends one's own session: it has left no object behind, so its leases go with it.
pub fn end(txn: &mut dyn Txn, session: SessionId) -> OpResult<()> {
    txn.delete(&keys::session(session));
    for (lease, owner) in leases(txn)? {
        if owner == session {
            txn.delete(&keys::lease(lease.start));
        }
    }
    Ok(())
}

/// Ends another's session. Its leases stay until what it left is collected.
pub fn fence(txn: &mut dyn Txn, session: SessionId) -> OpResult<()> {
    // Tracked, so that a lease taken at the same moment conflicts.
    txn.get(&keys::session(session))?;
    txn.delete(&keys::session(session));
    Ok(())
}

/// All sessions, oldest first.
pub fn list(read: &mut dyn Read) -> OpResult<Vec<SessionId>> {
    let mut sessions = Vec::new();
    for (key, _) in scan_all(read, keys::session_range())? {
        if let Key::Session(id) = keys::decode(&key)? {
            sessions.push(id);
        }
    }
    Ok(sessions)
}

/// All leases of slice ids and whose they are.
pub fn leases(read: &mut dyn Read) -> OpResult<Vec<(Range<u64>, SessionId)>> {
    let mut leases = Vec::new();
    for (key, value) in scan_all(read, keys::lease_range())? {
        if let Key::Lease(start) = keys::decode(&key)? {
            let lease = Lease::decode(&value)?;
            leases.push((start..lease.end, lease.session));
        }
    }
    Ok(leases)
}

/// Drops the lease that starts at `start`: nothing unreferenced is left of it.
pub fn drop_lease(txn: &mut dyn Txn, start: u64) -> OpResult<()> {
    txn.delete(&keys::lease(start));
    Ok(())
}
