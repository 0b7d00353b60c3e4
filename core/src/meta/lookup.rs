//! Reading names: lookup, readdir, readlink, and the way back from an inode to a path.
//!
//! Owns: readdir cookies. Leaves to others: `.` and `..`, caching.
//!
//! Invariant: a cookie stays valid whatever is created or removed meanwhile; an entry that was there all the time is
//! returned exactly once. (Names of one directory with equal 55-bit hashes are told apart by their order, up to 256.)

use alloc::vec::Vec;
use core::mem;

use bytes::Bytes;

use super::{DirEntry, PAGE, after, attr, check_name, get};
use crate::errno::Errno;
use crate::format::keys::{self, DentryPlace, Key};
use crate::format::values::{Dentry, Value};
use crate::kv::{OpError, OpResult, Read};
use crate::types::{Attr, Ino};

/// Directories above an inode that `path_of` and rename follow before they call it a loop. (PATH_MAX bounds a path
/// that is used whole, relative steps go deeper)
pub(super) const DEPTH_MAX: usize = 1 << 20;

/// The inode that `name` leads to in `dir`. ENOENT, ENAMETOOLONG.
pub fn lookup(read: &mut dyn Read, dir: Ino, name: &[u8]) -> OpResult<(Ino, Attr)> {
    let entry = child(read, dir, name)?;
    match attr::load(read, entry.ino) {
        Err(OpError::Errno(Errno::ENOENT)) => Err(OpError::Damaged("a name of an inode that does not exist")),
        other => Ok((entry.ino, other?)),
    }
}

/// The entry `name` of `dir` alone. ENOENT, ENAMETOOLONG.
pub fn child(read: &mut dyn Read, dir: Ino, name: &[u8]) -> OpResult<Dentry> {
    check_name(name)?;
    get(read, keys::dentry(dir, name))?.ok_or(Errno::ENOENT.into())
}

/// Up to `limit` entries of `dir` strictly after `cookie` (0: from the start), without `.` and `..`;
/// fewer only at the end.
pub fn readdir(read: &mut dyn Read, dir: Ino, cookie: u64, limit: usize) -> OpResult<Vec<DirEntry>> {
    let (first, end) = keys::dentry_range(dir);
    let (hash, ordinal) = (cookie >> 8, cookie & 0xff);
    let mut start = if cookie == 0 { first } else { keys::dentry_from(dir, hash) };
    let mut found = Vec::with_capacity(limit.min(PAGE));
    // Of all entries, one after the other.
    let mut names = Vec::with_capacity(found.capacity() * 32);
    let (mut group, mut next_ordinal) = (0, 0);
    while found.len() < limit {
        // One more than asked for, since the entry that the cookie names comes again.
        let wanted = (limit - found.len()).saturating_add(1);
        let (mut shown, mut last, mut damage) = (0, Vec::new(), None);
        read.visit(&start, &end, wanted, &mut |key, value| {
            shown += 1;
            if shown == wanted {
                last = after(key);
            }
            let (name, dentry, at) = match (keys::decode(key), Dentry::decode(value), DentryPlace::of(key)) {
                (Ok(Key::Dentry(_, name)), Ok(dentry), Some(place)) => (name, dentry, place.hash),
                (Ok(_), Ok(_), _) => return,
                (Err(error), ..) | (_, Err(error), _) => return damage = Some(error),
            };
            (group, next_ordinal) = if at == group { (group, (next_ordinal + 1).min(0xff)) } else { (at, 0) };
            let before = cookie != 0 && (group, next_ordinal) <= (hash, ordinal);
            if !before && found.len() < limit {
                names.extend_from_slice(name);
                found.push((dentry, names.len(), group << 8 | next_ordinal));
            }
        })?;
        if let Some(error) = damage {
            return Err(error.into());
        }
        if shown < wanted {
            break;
        }
        start = last;
    }
    let names = Bytes::from(names);
    let mut from = 0;
    let entry = |(dentry, end, cookie): (Dentry, usize, u64)| {
        let name = names.slice(mem::replace(&mut from, end)..end);
        DirEntry { ino: dentry.ino, kind: dentry.kind, name, cookie }
    };
    Ok(found.into_iter().map(entry).collect())
}

/// Target of a symbolic link. EINVAL if it is none, ENOENT if there is no such inode.
pub fn readlink(read: &mut dyn Read, ino: Ino) -> OpResult<Bytes> {
    if let Some(target) = get(read, keys::symlink(ino))? {
        return Ok(target);
    }
    match get::<Attr>(read, keys::attr(ino))? {
        Some(_) => Err(Errno::EINVAL.into()),
        None => Err(Errno::ENOENT.into()),
    }
}

/// A path of an inode, from `/`, for messages: it searches directories. ENOENT if none leads to it.
pub fn path_of(read: &mut dyn Read, ino: Ino) -> OpResult<Vec<u8>> {
    let (mut names, top) = climb(read, ino)?;
    if top != Ino::ROOT {
        return Err(Errno::ENOENT.into());
    }
    if names.is_empty() {
        return Ok(Vec::from(b"/"));
    }
    names.reverse();
    Ok(names.iter().flat_map(|name| [b"/", name.as_ref()].concat()).collect())
}

/// Names from `ino` upwards, and the inode above which no name was found: the root unless `ino` is cut off.
pub(super) fn climb(read: &mut dyn Read, ino: Ino) -> OpResult<(Vec<Bytes>, Ino)> {
    let mut names = Vec::new();
    let mut at = ino;
    while at != Ino::ROOT && names.len() < DEPTH_MAX {
        match name_of(read, at) {
            Ok(Some((parent, name))) => {
                names.push(name);
                at = parent;
            }
            Ok(None) | Err(OpError::Damaged(_) | OpError::Errno(_)) => break,
            Err(error @ OpError::Kv(_)) => return Err(error),
        }
    }
    Ok((names, at))
}

/// A name of `ino`, and the directory it is in.
fn name_of(read: &mut dyn Read, ino: Ino) -> OpResult<Option<(Ino, Bytes)>> {
    let Some(attr) = get::<Attr>(read, keys::attr(ino))? else { return Ok(None) };
    let (start, end) = keys::link_range(ino);
    for (key, _) in read.scan(&start, &end, 1)? {
        if let Key::Link(_, dir, name) = keys::decode(&key)? {
            return Ok(Some((dir, key.slice(key.len() - name.len()..))));
        }
    }
    let (mut start, end) = keys::dentry_range(attr.parent);
    loop {
        let page = read.scan(&start, &end, PAGE)?;
        for (key, value) in &page {
            if let (Ok(Key::Dentry(dir, name)), Ok(dentry)) = (keys::decode(key), Dentry::decode(value))
                && dentry.ino == ino
            {
                return Ok(Some((dir, key.slice(key.len() - name.len()..))));
            }
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => start = after(key),
            _ => return Ok(None),
        }
    }
}
