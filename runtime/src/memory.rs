//! The allocator of the `kiseki` command: large pieces of memory, which blocks are made of, are kept for the next.
//!
//! Owns: allocations of `LEAST` bytes and more. Leaves to others: all smaller ones (the C library), how much may be kept
//! (`mount`).
//!
//! To write 1 GiB into memory that the kernel has just given takes 0.36 s (in a virtual machine whose host has taken the
//! memory back, one or two seconds), and 0.04 s into memory that was in use before. Huge pages would be given sooner (0.07
//! s), but of a block that is half full they hold more than is counted.
//!
//! Invariants
//! - An allocation begins at a multiple of `MARK` if and only if it is a mapping of its own.
//! - Something is kept only while no more is mapped, in use or not, than the budget, less what smaller pieces took of it
//!   when `keep` was called last.

use std::alloc::{GlobalAlloc, Layout, System};
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Tells mappings from what the C library gives.
const MARK: usize = 1 << 20;
/// Shorter pieces gain nothing.
const LEAST: usize = 2 << 20;
const PAGE: usize = 4096;
/// So many that are kept are looked at for one that fits.
const LOOKED_AT: usize = 8;
/// A process may have 65,530 mappings (vm.max_map_count).
const MAPPINGS_MAX: usize = 32 << 10;

/// To be made the global allocator.
#[derive(Debug)]
pub struct Memory;

/// Has the C library serve pieces of up to 1 MiB from memory that it holds, and hold 4 MiB that nobody uses. By itself it
/// makes a mapping of each piece of 128 KiB, until it sees larger ones given back, which it does not here. (mallopt(3))
/// To be called before there are threads.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes numbers that the C library looks at, and there are no other threads.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 20);
    }
}

/// Mappings that nobody uses, the last one first: where the first is, each of which begins with a `Link`.
struct Kept {
    first: usize,
    bytes: usize,
    /// Of all mappings, also those in use.
    mapped: usize,
    mapped_max: usize,
    mappings: usize,
}

struct Link {
    next: usize,
    len: usize,
}

/// Held for a few instructions: the kernel is called without it.
static KEPT: Mutex<Kept> = Mutex::new(Kept { first: 0, bytes: 0, mapped: 0, mapped_max: 0, mappings: 0 });

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets memory that is given back be kept, as long as it is not more than `budget` with the `used` bytes of it that are in
/// use, here or in smaller pieces; gives the kernel the rest.
pub fn keep(budget: usize, used: usize) {
    loop {
        let mut kept = kept();
        let smaller = used.saturating_sub(kept.mapped - kept.bytes);
        kept.mapped_max = budget.saturating_sub(smaller);
        if !kept.is_too_much() {
            return;
        }
        let Some((memory, len)) = kept.pop() else { return };
        kept.uncount(len);
        drop(kept);
        unmap(memory, len);
    }
}

/// Lets the kernel take what is kept when it needs memory, which until then stays kept. (MADV_FREE, madvise(2))
pub fn offer() {
    let mut at = {
        let mut kept = kept();
        kept.bytes = 0;
        mem::take(&mut kept.first)
    };
    while let Some(memory) = NonNull::new(ptr::with_exposed_provenance_mut::<u8>(at)) {
        // SAFETY: `link` wrote it there, and nobody else knows of the mapping now.
        let Link { next, len } = unsafe { memory.cast().read() };
        // The first page has the link. What the kernel does not want stays as it is.
        // SAFETY: it is within the mapping, of which nobody expects to find anything.
        _ = unsafe { rustix::mm::madvise(memory.as_ptr().add(PAGE).cast(), len - PAGE, Advice::LinuxFree) };
        if !kept().push(memory, len) {
            unmap(memory, len);
        }
        at = next;
    }
}

impl Kept {
    fn is_too_much(&self) -> bool {
        self.mapped_max < self.mapped
    }

    fn pop(&mut self) -> Option<(NonNull<u8>, usize)> {
        let memory = NonNull::new(ptr::with_exposed_provenance_mut::<u8>(self.first))?;
        // SAFETY: `link` wrote it there; a mapping is aligned for it.
        let Link { next, len } = unsafe { memory.cast().read() };
        self.first = next;
        self.bytes -= len;
        Some((memory, len))
    }

    /// Keeps what is given back; false: there is enough, and the kernel is to have it.
    fn push(&mut self, memory: NonNull<u8>, len: usize) -> bool {
        let keeps = !self.is_too_much();
        if keeps {
            self.link(memory, len);
        } else {
            self.uncount(len);
        }
        keeps
    }

    fn link(&mut self, memory: NonNull<u8>, len: usize) {
        // SAFETY: nobody uses the mapping, which is aligned and long enough.
        unsafe { memory.cast().write(Link { next: self.first, len }) };
        self.first = memory.as_ptr().expose_provenance();
        self.bytes += len;
    }

    fn count(&mut self, len: usize) {
        self.mapped += len;
        self.mappings += 1;
    }

    fn uncount(&mut self, len: usize) {
        self.mapped -= len;
        self.mappings -= 1;
    }

    /// One of exactly that length, if it is among the first.
    fn take(&mut self, len: usize) -> Option<NonNull<u8>> {
        let mut others = [None; LOOKED_AT];
        let mut found = None;
        for other in &mut others {
            match self.pop() {
                None => break,
                Some((memory, its)) if its == len => {
                    found = Some(memory);
                    break;
                }
                first => *other = first,
            }
        }
        others.into_iter().rev().flatten().for_each(|(memory, its)| self.link(memory, its));
        found
    }
}

fn is_mapping(memory: *mut u8) -> bool {
    memory.addr().is_multiple_of(MARK)
}

/// A mapping of `len` bytes, and whether all of it is zeros.
fn mapping(len: usize) -> Option<(NonNull<u8>, bool)> {
    let len = len.next_multiple_of(PAGE);
    let (stale, fits) = {
        let mut kept = kept();
        if let Some(memory) = kept.take(len) {
            return Some((memory, false));
        }
        // One of another length goes, so that lengths nobody asks for any more do.
        let stale = kept.pop();
        if let Some((_, its)) = stale {
            kept.uncount(its);
        }
        let fits = kept.mappings < MAPPINGS_MAX;
        if fits {
            kept.count(len);
        }
        (stale, fits)
    };
    if let Some((memory, its)) = stale {
        unmap(memory, its);
    }
    if !fits {
        return None;
    }
    let memory = map(len);
    if memory.is_none() {
        kept().uncount(len);
    }
    Some((memory?, true))
}

fn unmap(memory: NonNull<u8>, len: usize) {
    // SAFETY: `map` made it, of this length; nobody uses it any more.
    let unmapped = unsafe { rustix::mm::munmap(memory.as_ptr().cast(), len) };
    debug_assert_eq!(unmapped, Ok(()));
}

fn map(len: usize) -> Option<NonNull<u8>> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: the kernel chooses where; nothing is there.
    let all = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len + MARK - PAGE, protection, flags) }.ok()?;
    let all = all.cast::<u8>();
    let before = all.align_offset(MARK);
    let after = MARK - PAGE - before;
    // SAFETY: these are parts of the mapping that was just made, which nobody knows yet.
    unsafe {
        let start = all.add(before);
        // What cannot be unmapped stays as it is.
        if before > 0 {
            _ = rustix::mm::munmap(all.cast(), before);
        }
        if after > 0 {
            _ = rustix::mm::munmap(start.add(len).cast(), after);
        }
        NonNull::new(start)
    }
}

/// A large piece of the C library's.
fn plain(layout: Layout) -> *mut u8 {
    // SAFETY: the caller's contract is the same.
    let memory = unsafe { System.alloc(layout) };
    if !is_mapping(memory) || memory.is_null() {
        return memory;
    }
    // By chance it begins where only a mapping may.
    let other = plain(layout);
    // SAFETY: it was just allocated so.
    unsafe { System.dealloc(memory, layout) };
    other
}

// SAFETY: what `alloc` gives is a mapping of its own, or the C library's; `dealloc` tells them apart by the invariant.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() < LEAST || MARK <= layout.align() {
            // SAFETY: the caller's contract is the same.
            return unsafe { System.alloc(layout) };
        }
        mapping(layout.size()).map_or_else(|| plain(layout), |(memory, _)| memory.as_ptr())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() < LEAST || MARK <= layout.align() {
            // SAFETY: the caller's contract is the same.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let (memory, zeros) =
            mapping(layout.size()).map_or_else(|| (plain(layout), false), |(memory, zeros)| (memory.as_ptr(), zeros));
        if !memory.is_null() && !zeros {
            // SAFETY: it is so long.
            unsafe { memory.write_bytes(0, layout.size()) };
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if layout.size() < LEAST || MARK <= layout.align() || !is_mapping(memory) {
            // SAFETY: `alloc` took it from there.
            return unsafe { System.dealloc(memory, layout) };
        }
        let (Some(memory), len) = (NonNull::new(memory), layout.size().next_multiple_of(PAGE)) else { return };
        if !kept().push(memory, len) {
            unmap(memory, len);
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size().max(size) < LEAST || MARK <= layout.align() {
            // SAFETY: the caller's contract is the same.
            return unsafe { System.realloc(memory, layout, size) };
        }
        // SAFETY: the caller's contract: the size is not 0 and does not overflow when it is rounded up to the alignment.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(memory, new, layout.size().min(size));
                self.dealloc(memory, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept is the process's: one test at a time.
    static ALONE: Mutex<()> = Mutex::new(());

    /// Of what is kept, and of all mappings.
    fn bytes() -> (usize, usize) {
        let kept = kept();
        (kept.bytes, kept.mapped)
    }

    #[test]
    fn what_is_given_back_is_kept_as_far_as_it_may() {
        let _alone = ALONE.lock();
        let len = 2 * LEAST + PAGE;
        let layout = Layout::from_size_align(len - 10, 16).unwrap();
        // SAFETY: within the pieces; given back as they were taken.
        unsafe {
            keep(2 * len, 0);
            let pieces: Vec<*mut u8> = (0..3).map(|_| Memory.alloc(layout)).collect();
            for piece in &pieces {
                piece.write_bytes(7, len - 10);
                Memory.dealloc(*piece, layout);
            }
            assert_eq!(bytes(), (2 * len, 2 * len));
            let again = Memory.alloc_zeroed(layout);
            assert!(pieces.contains(&again));
            assert!(std::slice::from_raw_parts(again, len - 10).iter().all(|byte| *byte == 0));
            // Half of the budget is used by smaller pieces, the other half by the piece in use.
            keep(2 * len, 2 * len);
            assert_eq!(bytes(), (0, len));
            keep(2 * len, len);
            let other = Memory.alloc(layout);
            Memory.dealloc(other, layout);
            assert_eq!(bytes(), (len, 2 * len));
            // All that was in use is given back at once.
            let other = Memory.alloc(layout);
            keep(2 * len, 2 * len);
            Memory.dealloc(other, layout);
            Memory.dealloc(again, layout);
            assert_eq!(bytes(), (2 * len, 2 * len));
            keep(0, 0);
            assert_eq!(bytes(), (0, 0));
        }
    }

    #[test]
    fn what_is_offered_is_still_kept() {
        let _alone = ALONE.lock();
        let layouts = [LEAST, LEAST, 3 * LEAST].map(|size| Layout::from_size_align(size, 16).unwrap());
        // SAFETY: within the pieces; given back as they were taken.
        unsafe {
            keep(6 * LEAST, 0);
            let pieces = layouts.map(|layout| Memory.alloc(layout));
            for (piece, layout) in pieces.into_iter().zip(layouts) {
                piece.write_bytes(7, layout.size());
                Memory.dealloc(piece, layout);
            }
            offer();
            assert_eq!(bytes(), (5 * LEAST, 5 * LEAST));
            let again = layouts.map(|layout| Memory.alloc_zeroed(layout));
            assert_eq!(bytes(), (0, 5 * LEAST));
            for (piece, layout) in again.into_iter().zip(layouts) {
                assert!(pieces.contains(&piece));
                assert!(std::slice::from_raw_parts(piece, layout.size()).iter().all(|byte| *byte == 0));
                piece.write_bytes(7, layout.size());
                Memory.dealloc(piece, layout);
            }
            keep(0, 0);
            offer();
            assert_eq!(bytes(), (0, 0));
        }
    }

    #[test]
    fn one_of_another_length_is_not_given() {
        let _alone = ALONE.lock();
        let layouts = [3 * LEAST, 2 * LEAST].map(|size| Layout::from_size_align(size, 16).unwrap());
        // SAFETY: within the pieces; given back as they were taken.
        unsafe {
            keep(5 * LEAST, 0);
            let other = Layout::from_size_align(4 * LEAST, 16).unwrap();
            let pieces = layouts.map(|layout| Memory.alloc(layout));
            pieces.into_iter().zip(layouts).for_each(|(piece, layout)| Memory.dealloc(piece, layout));
            assert_eq!(bytes(), (5 * LEAST, 5 * LEAST));
            let long = Memory.alloc(layouts[0]);
            assert_eq!((long, bytes()), (pieces[0], (2 * LEAST, 5 * LEAST)));
            // Of a third length there is none: the one that is kept makes room.
            let third = Memory.alloc(other);
            third.write_bytes(1, other.size());
            assert_eq!(bytes(), (0, 7 * LEAST));
            keep(0, 0);
            Memory.dealloc(third, other);
            Memory.dealloc(long, layouts[0]);
        }
    }

    #[test]
    fn large_pieces_are_mappings_of_their_own() {
        let _alone = ALONE.lock();
        for size in [1, LEAST - 1, LEAST, LEAST + 1, 2 * LEAST, 4 * LEAST + PAGE, 16 << 20] {
            let layout = Layout::from_size_align(size, 16).unwrap();
            // SAFETY: within the piece; given back as it was taken.
            unsafe {
                let memory = Memory.alloc_zeroed(layout);
                assert_eq!(is_mapping(memory), LEAST <= size, "{size}");
                assert_eq!((*memory, *memory.add(size - 1)), (0, 0));
                memory.write_bytes(7, size);
                Memory.dealloc(memory, layout);
            }
        }
    }

    #[test]
    fn what_grows_or_shrinks_keeps_its_bytes() {
        let _alone = ALONE.lock();
        let sizes = [10, LEAST - 5, LEAST + 5, 3 * LEAST, LEAST, 100, 2 * LEAST];
        // SAFETY: within the pieces; given back as they were taken.
        unsafe {
            let mut layout = Layout::from_size_align(5, 1).unwrap();
            let mut memory = Memory.alloc(layout);
            memory.write_bytes(9, 5);
            for size in sizes {
                memory = Memory.realloc(memory, layout, size);
                layout = Layout::from_size_align(size, 1).unwrap();
                assert_eq!(std::slice::from_raw_parts(memory, 5), [9; 5]);
                memory.add(5).write_bytes(1, size - 5);
            }
            Memory.dealloc(memory, layout);
        }
    }

    #[test]
    fn beyond_the_mappings_that_a_process_may_have_it_is_the_c_library_s() {
        let _alone = ALONE.lock();
        let layout = Layout::from_size_align(LEAST, 8).unwrap();
        let memory = plain(layout);
        assert!(!is_mapping(memory));
        // SAFETY: given back as it was taken.
        unsafe { Memory.dealloc(memory, layout) };
    }
}
