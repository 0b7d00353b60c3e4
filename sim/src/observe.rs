//! What an application sees of its part of the tree.
//!
//! Owns: walking it, with every way there is to list and read. Leaves to others: comparing (`judge`).

use std::collections::{BTreeMap, BTreeSet};

use kiseki_core::client::{Handle, OpenFlags};
use kiseki_core::errno::Errno;
use kiseki_core::meta::acl::AclKind;
use kiseki_core::testkit::ops::{AclEntries, Habits, acl_entries};
use kiseki_core::types::{Attr, FileType, Ino};

use crate::dice::Dice;
use crate::kernel::Kernel;

/// One name and what it leads to.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its inode.
    pub ino: Ino,
    /// Its attributes.
    pub attr: Attr,
    /// Target of a symbolic link.
    pub target: String,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, String>,
    /// Access and default ACL.
    pub acls: [Option<AclEntries>; 2],
    /// Contents of a regular file, if they were read.
    pub data: Option<Vec<u8>>,
}

/// All that was seen, by path.
pub type Tree = BTreeMap<String, Seen>;

/// Which files to read.
#[derive(Clone, Debug)]
pub enum Contents {
    /// All.
    All,
    /// Those of these paths.
    Of(BTreeSet<String>),
}

/// Walks everything that is below the homes and is the application's own.
pub async fn observe(kernel: &mut Kernel, dice: &Dice, habits: &Habits, contents: &Contents) -> Result<Tree, Errno> {
    let mut tree = Tree::new();
    let mut todo = habits.homes.clone();
    while let Some(path) = todo.pop() {
        let ino = kernel.walk(&path).await?;
        let attr = kernel.client().getattr(ino).await?;
        let mut seen =
            Seen { ino, attr, target: String::new(), xattrs: BTreeMap::new(), acls: [None, None], data: None };
        for name in kernel.client().listxattr(ino).await? {
            let value = kernel.client().getxattr(ino, &name).await?;
            match AclKind::of(&name) {
                Some(AclKind::Access) => seen.acls[0] = acl_entries(&value),
                Some(AclKind::Default) => seen.acls[1] = acl_entries(&value),
                None => drop(seen.xattrs.insert(text(&name), text(&value))),
            }
        }
        match attr.kind {
            FileType::Directory => {
                for (name, kind, child) in list(kernel, dice, ino).await? {
                    if !name.starts_with(habits.letter) {
                        continue;
                    }
                    let path = format!("{path}/{name}");
                    // Where it is walked to below, half of the time what it is was not asked before.
                    if dice.chance(500) {
                        let found = kernel.walk(&path).await?;
                        let listed = (child, kind);
                        if listed != (found, kernel.client().getattr(found).await?.kind) {
                            panic!("{path} is listed as {listed:?} and looked up as {found:?}");
                        }
                    }
                    todo.push(path);
                }
            }
            FileType::Symlink => seen.target = text(&kernel.client().readlink(ino).await?),
            FileType::Regular => {
                let wanted = match contents {
                    Contents::All => true,
                    Contents::Of(paths) => paths.contains(&path),
                };
                if wanted {
                    seen.data = read_file(kernel, ino, attr.length).await?;
                }
            }
            FileType::Fifo | FileType::CharDevice | FileType::BlockDevice | FileType::Socket => {}
        }
        tree.insert(path, seen);
    }
    Ok(tree)
}

/// A directory, page by page, with or without attributes.
async fn list(kernel: &mut Kernel, dice: &Dice, ino: Ino) -> Result<Vec<(String, FileType, Ino)>, Errno> {
    let mut found = Vec::new();
    let mut cookie = 0;
    loop {
        let limit = 1 + dice.below(6) as usize;
        let page = if dice.chance(500) {
            kernel.client().readdir(ino, cookie, limit).await?
        } else {
            let page = kernel.client().readdirplus(ino, cookie, limit).await?;
            for (entry, attr) in &page {
                // Attributes may be those of a moment before; what an inode is never changes.
                assert_eq!(entry.kind, attr.kind);
            }
            // Whoever looks next, long after this, may begin with it or go on.
            kernel.client().readdirplus_ahead(ino, [0, cookie][limit % 2], 6).await;
            page.into_iter().map(|(entry, _)| entry).collect()
        };
        let Some(last) = page.last() else { return Ok(found) };
        cookie = last.cookie;
        found.extend(page.iter().map(|entry| (text(&entry.name), entry.kind, entry.ino)));
    }
}

/// A regular file that is open, whatever its names.
pub async fn observe_open(kernel: &mut Kernel, handle: Handle, ino: Ino) -> Result<Seen, Errno> {
    let attr = kernel.client().getattr(ino).await?;
    let data = match kernel.read(handle, 0, attr.length as u32 + 1).await {
        Ok(data) => Some(data),
        Err(Errno::EIO) => None,
        Err(errno) => return Err(errno),
    };
    Ok(Seen { ino, attr, target: String::new(), xattrs: BTreeMap::new(), acls: [None, None], data })
}

/// The whole file; `None` if the store could not give it.
pub(crate) async fn read_file(kernel: &mut Kernel, ino: Ino, length: u64) -> Result<Option<Vec<u8>>, Errno> {
    let flags = OpenFlags { read: true, ..OpenFlags::default() };
    let handle = kernel.client().open(ino, flags).await?;
    // One byte more shows whether the file ends where its attributes say.
    let data = kernel.read(handle, 0, length as u32 + 1).await;
    kernel.client().release(handle).await?;
    match data {
        Ok(data) => Ok(Some(data)),
        Err(Errno::EIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What of a read of `len` bytes none of the states of the file explains.
pub(crate) fn unexplained<S: AsRef<Vec<u8>>>(states: &[S], offset: u64, len: u32, data: &[u8]) -> Option<String> {
    let states: Vec<&[u8]> = states.iter().map(|state| state.as_ref().as_slice()).collect();
    let whole = |state: &&[u8]| state.get(offset as usize..offset as usize + data.len()) == Some(data);
    // Mostly nothing has happened meanwhile. Otherwise each byte may be of another state.
    let torn = if states.iter().any(whole) { &[] } else { data };
    for (at, byte) in (offset as usize..).zip(torn) {
        if !states.iter().any(|state| state.get(at) == Some(byte)) {
            let possible: Vec<Option<&u8>> = states.iter().map(|state| state.get(at)).take(4).collect();
            return Some(format!("shows {byte} at {at}, where there was {possible:?}"));
        }
    }
    let end = offset as usize + data.len();
    let short = (data.len() as u32) < len && !states.iter().any(|state| state.len() <= end);
    short.then(|| format!("ends at {end}, but no state does"))
}
