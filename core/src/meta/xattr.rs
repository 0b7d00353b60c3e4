//! Extended attributes.
//!
//! Owns: their namespaces, limits and modes. Leaves to others: permissions (the kernel), what ACLs mean (`acl`).

use alloc::vec::Vec;

use bytes::Bytes;

use super::acl::AclKind;
use super::attr::forbid_change;
use super::{OpCtx, XATTR_VALUE_MAX, XattrMode, put, scan_all};
use crate::errno::Errno;
use crate::format::keys::{self, Key};
use crate::kv::{OpResult, Read, Txn};
use crate::types::{Attr, Ino, NAME_MAX};

/// What names begin with. Of the system's namespace there are POSIX ACLs alone, which `acl` sets.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

fn check(name: &[u8]) -> OpResult<()> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(Errno::ERANGE.into());
    }
    match NAMESPACES.into_iter().find_map(|prefix| name.strip_prefix(prefix)) {
        Some(b"") => Err(Errno::EINVAL.into()),
        Some(_) => Ok(()),
        None if AclKind::of(name).is_some() => Ok(()),
        None => Err(Errno::EOPNOTSUPP.into()),
    }
}

/// The value of an attribute as it is stored. ERANGE or EINVAL (the name), EOPNOTSUPP (the namespace), ENODATA.
pub fn get(read: &mut dyn Read, ino: Ino, name: &[u8]) -> OpResult<Bytes> {
    check(name)?;
    super::get(read, keys::xattr(ino, name))?.ok_or(Errno::ENODATA.into())
}

/// Sets an attribute. ERANGE or EINVAL (the name), EOPNOTSUPP (the namespace), E2BIG (the value), ENOENT (the inode),
/// EPERM (immutable, append-only), EEXIST, ENODATA. The value that it has changes nothing, not even the ctime, as on ext4.
pub fn set(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino, name: &[u8], value: &Bytes, mode: XattrMode) -> OpResult<()> {
    let attr = changeable(txn, ino)?;
    check(name)?;
    if value.len() > XATTR_VALUE_MAX {
        return Err(Errno::E2BIG.into());
    }
    if AclKind::of(name).is_some() {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let key = keys::xattr(ino, name);
    let was: Option<Bytes> = super::get(txn, &key)?;
    match (mode, was.is_some()) {
        (XattrMode::Create | XattrMode::Neither, true) => return Err(Errno::EEXIST.into()),
        (XattrMode::Replace | XattrMode::Neither, false) => return Err(Errno::ENODATA.into()),
        (XattrMode::Either, _) | (XattrMode::Create, false) | (XattrMode::Replace, true) => {}
    }
    if was.as_ref() == Some(value) {
        return Ok(());
    }
    touch(txn, ctx, ino, attr);
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

/// Removes an attribute. ERANGE or EINVAL (the name), EOPNOTSUPP (the namespace), ENOENT (the inode), EPERM (immutable,
/// append-only), ENODATA.
pub fn remove(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino, name: &[u8]) -> OpResult<()> {
    let attr = changeable(txn, ino)?;
    check(name)?;
    let key = keys::xattr(ino, name);
    if txn.get(&key)?.is_none() {
        return Err(Errno::ENODATA.into());
    }
    touch(txn, ctx, ino, attr);
    txn.delete(&key);
    Ok(())
}

fn changeable(txn: &mut dyn Txn, ino: Ino) -> OpResult<Attr> {
    let attr: Attr = super::get(txn, keys::attr(ino))?.ok_or(Errno::ENOENT)?;
    forbid_change(attr.flags)?;
    Ok(attr)
}

/// Extended attributes count as attributes: ctime, and a conflict with whoever removes the inode.
fn touch(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino, attr: Attr) {
    put(txn, keys::attr(ino), &Attr { ctime: attr.ctime.max(ctx.now), bare: false, ..attr });
}
