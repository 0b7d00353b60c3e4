//! POSIX ACLs (acl(5)), on volumes that have them.
//!
//! Owns: their format in extended attributes (linux/posix_acl_xattr.h), what they and the mode say of each other, and
//! what new inodes inherit. Leaves to others: checking them (the kernel).
//!
//! Invariants
//! - The mode alone knows what the owner, the mask (or, without one, the group) and others may: an access ACL is shown
//!   with these taken from the mode. So chmod(2) changes no ACL, and the two never contradict each other, whatever a
//!   crash takes back.
//! - An access ACL is stored only if it says more than a mode: it has a mask. A default ACL belongs to a directory.

use alloc::vec::Vec;

use bytes::Bytes;

use super::attr::forbid_change;
use super::{OpCtx, S_ISGID, put};
use crate::errno::Errno;
use crate::format::keys;
use crate::kv::{OpError, OpResult, Read, Txn};
use crate::marks::{Mark, reached};
use crate::planted::{self, Bug};
use crate::types::{Attr, FileType, Ino};

/// Name of the access ACL as an extended attribute.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the default ACL as an extended attribute.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// The only version of the format.
const VERSION: u32 = 2;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;

/// Which of the two ACLs of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclKind {
    /// Who may do what.
    Access,
    /// What new inodes in a directory start with.
    Default,
}

impl AclKind {
    /// The ACL that an extended attribute of this name is.
    pub fn of(name: &[u8]) -> Option<Self> {
        match name {
            ACCESS => Some(Self::Access),
            DEFAULT => Some(Self::Default),
            _ => None,
        }
    }

    /// Its name as an extended attribute.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::Access => ACCESS,
            Self::Default => DEFAULT,
        }
    }
}

/// Whom an entry is about, in the order of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    Owner,
    User,
    OwningGroup,
    Group,
    Mask,
    Other,
}

const TAGS: [(u16, Tag); 6] =
    [(1, Tag::Owner), (2, Tag::User), (4, Tag::OwningGroup), (8, Tag::Group), (16, Tag::Mask), (32, Tag::Other)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    perm: u16,
    id: u32,
}

/// An ACL that obeys the rules of acl(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// Takes apart the value of an extended attribute; `None`: an ACL without entries, which stands for no ACL.
    /// EINVAL, EOPNOTSUPP (another version).
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Errno> {
        let (head, entries) = bytes.split_first_chunk::<4>().ok_or(Errno::EINVAL)?;
        if u32::from_le_bytes(*head) != VERSION {
            return Err(Errno::EOPNOTSUPP);
        }
        let (entries, rest) = entries.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(Errno::EINVAL);
        }
        let entries = entries.iter().map(Entry::decode).collect::<Result<Vec<_>, _>>()?;
        if entries.is_empty() {
            return Ok(None);
        }
        let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
        let named = count(Tag::User) + count(Tag::Group);
        let in_order = entries.is_sorted_by_key(|entry| entry.tag);
        let one_each = [Tag::Owner, Tag::OwningGroup, Tag::Other].into_iter().all(|tag| count(tag) == 1);
        let masked = count(Tag::Mask) == 1 || (count(Tag::Mask) == 0 && named == 0);
        if in_order && one_each && masked { Ok(Some(Self(entries))) } else { Err(Errno::EINVAL) }
    }

    /// The value of an extended attribute.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(4 + 8 * self.0.len());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.0 {
            let (code, _) = TAGS.iter().find(|(_, tag)| *tag == entry.tag).expect("every tag has a code");
            bytes.extend_from_slice(&code.to_le_bytes());
            bytes.extend_from_slice(&entry.perm.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes.into()
    }

    /// Whether it says more than the nine bits of a mode.
    fn is_extended(&self) -> bool {
        self.0.iter().any(|entry| entry.tag == Tag::Mask)
    }

    /// How far the permissions of each entry are to the left in a mode; `None`: a mode says nothing of it.
    fn shift(&self, tag: Tag) -> Option<u16> {
        match tag {
            Tag::Owner => Some(6),
            Tag::OwningGroup if self.is_extended() => None,
            Tag::OwningGroup | Tag::Mask => Some(3),
            Tag::User | Tag::Group => None,
            Tag::Other => Some(0),
        }
    }

    /// The nine bits of a mode that agree with it.
    pub fn mode(&self) -> u16 {
        self.0.iter().filter_map(|entry| self.shift(entry.tag).map(|shift| entry.perm << shift)).sum()
    }

    /// The ACL as chmod(2) to `mode` leaves it.
    #[must_use]
    pub fn with_mode(&self, mode: u16) -> Self {
        let entries = self.0.iter().map(|entry| match self.shift(entry.tag) {
            Some(shift) => Entry { perm: mode >> shift & 7, ..*entry },
            None => *entry,
        });
        Self(entries.collect())
    }

    /// What an inode created with `mode` starts with, this being its directory's default ACL: mode and access ACL.
    /// (posix_acl_create(3))
    fn inherited(&self, mode: u16) -> (u16, Option<Self>) {
        let mode = mode & (0o7000 | self.mode());
        let acl = self.is_extended().then(|| self.with_mode(mode));
        (mode, acl)
    }
}

impl Entry {
    fn decode(bytes: &[u8; 8]) -> Result<Self, Errno> {
        let [t0, t1, p0, p1, id @ ..] = *bytes;
        let (code, perm) = (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([p0, p1]));
        let (_, tag) = *TAGS.iter().find(|(known, _)| *known == code).ok_or(Errno::EINVAL)?;
        let id = match tag {
            Tag::User | Tag::Group => u32::from_le_bytes(id),
            Tag::Owner | Tag::OwningGroup | Tag::Mask | Tag::Other => NO_ID,
        };
        let named = matches!(tag, Tag::User | Tag::Group);
        if perm > 7 || (named && id == NO_ID) { Err(Errno::EINVAL) } else { Ok(Self { tag, perm, id }) }
    }
}

/// A stored ACL of an inode whose mode is `mode`, as an extended attribute.
pub fn shown(stored: &Bytes, kind: AclKind, mode: u16) -> OpResult<Bytes> {
    let acl = decode_stored(stored)?;
    Ok(match kind {
        AclKind::Access if !planted::is(Bug::AclWithOldMask) => acl.with_mode(mode).encode(),
        AclKind::Access | AclKind::Default => acl.encode(),
    })
}

fn decode_stored(stored: &[u8]) -> OpResult<Acl> {
    Acl::decode(stored).ok().flatten().ok_or(OpError::Damaged("an ACL"))
}

/// What is wrong with a stored ACL of an inode of this type.
pub(super) fn fault(stored: &[u8], kind: AclKind, of: FileType) -> Option<&'static str> {
    match (Acl::decode(stored), kind) {
        (Err(_) | Ok(None), _) => Some("an ACL that does not decode"),
        (Ok(Some(acl)), AclKind::Access) if !acl.is_extended() => Some("an access ACL that says no more than a mode"),
        (Ok(Some(_)), AclKind::Access) => (of == FileType::Symlink).then_some("an ACL of a symbolic link"),
        (Ok(Some(_)), AclKind::Default) => (of != FileType::Directory).then_some("a default ACL of no directory"),
    }
}

/// Sets an ACL, or removes it. The nine bits of the mode follow an access ACL: in the same transaction, unless
/// `mode_apart`, then they are the caller's; sgid goes with `drop_sgid`. Returns the mode; `None`: ACL and mode are what
/// they were, and so is the ctime, as on ext4.
/// EOPNOTSUPP (a symbolic link), EACCES (a default ACL of what is no directory), EPERM (immutable, append-only), ENOENT.
pub fn set(
    txn: &mut dyn Txn,
    ctx: &OpCtx,
    ino: Ino,
    kind: AclKind,
    acl: Option<&Acl>,
    drop_sgid: bool,
    mode_apart: Option<u16>,
) -> OpResult<Option<u16>> {
    let mut attr: Attr = super::get(txn, keys::attr(ino))?.ok_or(Errno::ENOENT)?;
    forbid_change(attr.flags)?;
    let key = keys::xattr(ino, kind.name());
    let stored = match (attr.kind, kind, acl) {
        (FileType::Symlink, ..) => return Err(Errno::EOPNOTSUPP.into()),
        (FileType::Directory, AclKind::Default, _) | (_, AclKind::Default, None) => acl,
        (_, AclKind::Default, Some(_)) => return Err(Errno::EACCES.into()),
        (_, AclKind::Access, acl) => acl.filter(|acl| acl.is_extended()),
    };
    let old_mode = mode_apart.unwrap_or(attr.mode);
    let mut mode = old_mode;
    if let (AclKind::Access, Some(acl)) = (kind, acl) {
        mode = mode & 0o7000 | acl.mode();
        if drop_sgid {
            mode &= !S_ISGID;
        }
    }
    let was: Option<Bytes> = super::get(txn, &key)?;
    let same = match (&was, stored) {
        (None, None) => true,
        (Some(was), Some(acl)) => {
            let was = Acl::decode(was).ok().flatten();
            was.is_some_and(|was| if kind == AclKind::Access { was.with_mode(old_mode) } else { was } == *acl)
        }
        (None, Some(_)) | (Some(_), None) => false,
    };
    if same && mode == old_mode {
        return Ok(None);
    }
    match stored {
        Some(acl) => {
            attr.bare = false;
            put(txn, &key, &acl.encode());
        }
        None if was.is_some() => txn.delete(&key),
        None => {}
    }
    if mode_apart.is_none() {
        attr.mode = mode;
    }
    attr.ctime = attr.ctime.max(ctx.now);
    put(txn, keys::attr(ino), &attr);
    Ok(Some(mode))
}

/// What a new inode in `dir` starts with besides its mode.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    access: Option<Acl>,
    default: Option<Bytes>,
}

impl Inherited {
    /// Changes `mode` by the default ACL of `dir`, or by `umask` if it has none.
    pub(super) fn load(
        read: &mut dyn Read,
        dir: Ino,
        kind: FileType,
        mode: &mut u16,
        umask: Option<u16>,
    ) -> OpResult<Self> {
        let (Some(umask), false) = (umask, kind == FileType::Symlink) else { return Ok(Self::default()) };
        let Some(default) = super::get::<Bytes>(read, keys::xattr(dir, DEFAULT))? else {
            *mode &= !umask;
            return Ok(Self::default());
        };
        reached(Mark::AclInherited);
        let access;
        (*mode, access) = decode_stored(&default)?.inherited(*mode);
        Ok(Self { access, default: (kind == FileType::Directory).then_some(default) })
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.access.is_none() && self.default.is_none()
    }

    /// Writes it for the new inode.
    pub(super) fn store(&self, txn: &mut dyn Txn, ino: Ino) {
        if let Some(acl) = &self.access {
            put(txn, keys::xattr(ino, ACCESS), &acl.encode());
        }
        if let Some(acl) = &self.default
            && !planted::is(Bug::DefaultAclNotInherited)
        {
            put(txn, keys::xattr(ino, DEFAULT), acl);
        }
    }
}
