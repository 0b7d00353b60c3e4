//! Extended attributes.
//!
//! Owns: their limits and modes. Leaves to others: namespaces and permissions (the kernel).

use alloc::vec::Vec;

use bytes::Bytes;

use super::{OpCtx, XATTR_VALUE_MAX, XattrMode, put, scan_all};
use crate::errno::Errno;
use crate::format::keys::{self, Key};
use crate::kv::{OpResult, Read, Txn};
use crate::types::{Attr, Ino, NAME_MAX};

fn check(name: &[u8]) -> OpResult<()> {
    if name.is_empty() || name.len() > NAME_MAX { Err(Errno::ERANGE.into()) } else { Ok(()) }
}

/// The value of an attribute. ERANGE (the name), ENODATA.
pub fn get(read: &mut dyn Read, ino: Ino, name: &[u8]) -> OpResult<Bytes> {
    check(name)?;
    super::get(read, keys::xattr(ino, name))?.ok_or(Errno::ENODATA.into())
}

/// Sets an attribute. ERANGE (the name), E2BIG (the value), ENOENT (the inode), EEXIST, ENODATA.
pub fn set(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino, name: &[u8], value: &Bytes, mode: XattrMode) -> OpResult<()> {
    check(name)?;
    if value.len() > XATTR_VALUE_MAX {
        return Err(Errno::E2BIG.into());
    }
    let key = keys::xattr(ino, name);
    let exists = txn.get(&key)?.is_some();
    match (mode, exists) {
        (XattrMode::Create, true) => return Err(Errno::EEXIST.into()),
        (XattrMode::Replace, false) => return Err(Errno::ENODATA.into()),
        (XattrMode::Either, _) | (XattrMode::Create, false) | (XattrMode::Replace, true) => {}
    }
    touch(txn, ctx, ino)?;
    put(txn, &key, value);
    Ok(())
}

/// Names of all attributes, in bytewise order.
pub fn list(read: &mut dyn Read, ino: Ino) -> OpResult<Vec<Bytes>> {
    let mut names = Vec::new();
    for (key, _) in scan_all(read, keys::xattr_range(ino))? {
        if let Key::Xattr(_, name) = keys::decode(&key)? {
            names.push(key.slice(key.len() - name.len()..));
        }
    }
    Ok(names)
}

/// Removes an attribute. ERANGE (the name), ENOENT (the inode), ENODATA.
pub fn remove(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino, name: &[u8]) -> OpResult<()> {
    check(name)?;
    let key = keys::xattr(ino, name);
    if txn.get(&key)?.is_none() {
        return Err(Errno::ENODATA.into());
    }
    touch(txn, ctx, ino)?;
    txn.delete(&key);
    Ok(())
}

/// Extended attributes count as attributes: ctime, and a conflict with whoever removes the inode.
fn touch(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino) -> OpResult<()> {
    let attr: Attr = super::get(txn, keys::attr(ino))?.ok_or(Errno::ENOENT)?;
    put(txn, keys::attr(ino), &Attr { ctime: ctx.now, ..attr });
    Ok(())
}
