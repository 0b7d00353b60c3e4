//! The bytes of the model's files.
//!
//! Owns: what writing, cutting, reserving, copying and seeking do to them, and to the times and the mode of the file.
//! Leaves to others: which file it is, and whether it may be changed by its name.

use alloc::sync::Arc;
use core::ops::Range;

use super::{Answer, IMMUTABLE, Model, NodeId, Stamp};
use crate::errno::Errno;
use crate::file::machine::{Fallocate, Whence};

impl Model {
    pub(super) fn write(&mut self, id: NodeId, at: usize, bytes: &[u8], drop_privileges: bool, when: Stamp) {
        let node = self.node_mut(id);
        if bytes.is_empty() {
            return;
        }
        let data = Arc::make_mut(&mut node.data);
        if data.len() < at + bytes.len() {
            data.resize(at + bytes.len(), 0);
        }
        data[at..at + bytes.len()].copy_from_slice(bytes);
        (node.mtime, node.ctime) = (when, when);
        if drop_privileges {
            node.mode &= !0o4000;
            // A set-group-id bit without group execution means mandatory locking, and stays. (inode(7))
            if node.mode & 0o010 != 0 {
                node.mode &= !0o2000;
            }
        }
    }

    pub(super) fn fallocate(&mut self, id: NodeId, what: Fallocate, range: Range<usize>, when: Stamp) {
        let node = self.node_mut(id);
        let data = Arc::make_mut(&mut node.data);
        let (zeros, extend) = match what {
            Fallocate::Reserve { extend } => (false, extend),
            Fallocate::Punch => (true, false),
            Fallocate::Zero { extend } => (true, extend),
        };
        if extend && data.len() < range.end {
            data.resize(range.end, 0);
        }
        if zeros {
            let end = range.end.min(data.len());
            data.get_mut(range.start..end).unwrap_or_default().fill(0);
        }
        (node.mtime, node.ctime) = (when, when);
    }

    pub(super) fn copy(
        &mut self,
        from: usize,
        to: usize,
        at: usize,
        target: usize,
        len: usize,
        when: Stamp,
    ) -> Answer<usize> {
        let (source, file) = (self.slot(from)?, self.slot(to)?);
        if file.append {
            return Err(Errno::EBADF);
        }
        self.allow(file.node, IMMUTABLE)?;
        let data = self.node(source.node).data.clone();
        let len = len.min(data.len().saturating_sub(at));
        if len == 0 {
            return Ok(0);
        }
        if source.node == file.node && at < target + len && target < at + len {
            return Err(Errno::EINVAL);
        }
        self.write(file.node, target, &data[at..at + len], false, when);
        Ok(len)
    }

    pub(super) fn truncate(&mut self, id: NodeId, length: u64, when: Stamp) {
        let node = self.node_mut(id);
        Arc::make_mut(&mut node.data).resize(length as usize, 0);
        (node.mtime, node.ctime) = (when, when);
    }
}

/// Where data or a hole begins: no byte that was written is zero.
pub(super) fn seek(data: &[u8], whence: Whence, offset: usize) -> Answer<usize> {
    let rest = data.get(offset..).filter(|rest| !rest.is_empty()).ok_or(Errno::ENXIO)?;
    let found = rest.iter().position(|byte| (*byte != 0) == (whence == Whence::Data));
    match whence {
        Whence::Data => found.map(|at| offset + at).ok_or(Errno::ENXIO),
        Whence::Hole => Ok(found.map_or(data.len(), |at| offset + at)),
    }
}
