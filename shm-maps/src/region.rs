//! A sealed memfd and our mapping of it.

use crate::PAGE;
use core::ffi::c_void;
use core::ptr;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::read_to_string;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// Without these a peer could truncate the file under our mapping and every access would be SIGBUS.
const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Creates a sparse memfd of `len` bytes, sealed against resizing and against more seals.
pub fn create_sealed(name: &str, len: usize) -> Result<OwnedFd, Errno> {
    if len as u64 > memory_total() {
        return Err(Errno::NOMEM); // as vmalloc, which refuses more pages than the machine has
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // NOEXEC_SEAL came with Linux 6.3; an older kernel answers EINVAL.
    let fd = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL).or_else(|_| memfd_create(name, flags))?;
    file_of(len as u64, || ftruncate(&fd, len as u64)).map_err(|_| Errno::NOMEM)?;
    fcntl_add_seals(&fd, SIZE_SEALS | SealFlags::SEAL)?;
    Ok(fd)
}

/// Runs `make`, which gives a file of ours up to `len` bytes. RLIMIT_FSIZE is meant for files that people see but holds for
/// memory files too, and going beyond it ends the process (SIGXFSZ): so it is lifted for the moment, and where it cannot be
/// that is EFBIG.
pub(crate) fn file_of<T>(len: u64, make: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    /// Two threads must not take each other's lifted limit for the one to go back to.
    static LIFTED: Mutex<()> = Mutex::new(());
    let too_low = |limit: Option<u64>| limit.is_some_and(|limit| limit < len);
    if !too_low(getrlimit(Resource::Fsize).current) {
        return make();
    }
    let _lifted = LIFTED.lock().unwrap_or_else(PoisonError::into_inner);
    let before = getrlimit(Resource::Fsize);
    if too_low(before.maximum) {
        return Err(Errno::FBIG);
    }
    setrlimit(Resource::Fsize, Rlimit { current: before.maximum, maximum: before.maximum })?;
    let made = make();
    setrlimit(Resource::Fsize, before)?;
    made
}

/// The machine's memory in bytes, or a bound no allocation should pass where /proc is missing.
fn memory_total() -> u64 {
    const UNKNOWN: u64 = 1 << 40;
    let Ok(text) = read_to_string("/proc/meminfo") else { return UNKNOWN };
    let kib =
        text.lines().next().and_then(|l| l.split_whitespace().nth(1)).and_then(|n| n.parse::<u64>().ok());
    kib.map_or(UNKNOWN, |kib| kib.saturating_mul(1024))
}

/// Size and inode of a memfd whose size can not change. EINVAL for any other file.
pub fn sealed_size(fd: BorrowedFd<'_>) -> Result<(usize, u64), Errno> {
    let seals = fcntl_get_seals(fd).map_err(|_| Errno::INVAL)?;
    if !seals.contains(SIZE_SEALS) {
        return Err(Errno::INVAL);
    }
    let stat = fstat(fd)?;
    Ok((usize::try_from(stat.st_size).map_err(|_| Errno::INVAL)?, stat.st_ino))
}

/// A mapping, unmapped on drop. Those of files lie between pages that nobody may touch, so that an access that leaves
/// one faults, and ends a program's run, instead of reaching what happens to lie next to it.
#[derive(Debug)]
pub struct Region {
    base: *mut u8,
    len: usize,
    /// Bytes of forbidden pages on either side.
    guard: usize,
}

// SAFETY: a Region is an address range; what may be done with its bytes is the holder's contract.
unsafe impl Send for Region {}
// SAFETY: as above; Region itself has no interior state.
unsafe impl Sync for Region {}

impl Region {
    /// Maps the first `len` bytes of `fd`, shared and writable.
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> Result<Region, Errno> {
        let region = Region::reserve(len)?;
        // SAFETY: the range lies inside the reservation made above, which nobody else uses.
        unsafe { mmap(region.base.cast(), len, rw(), MapFlags::SHARED | MapFlags::FIXED, fd, 0) }?;
        Ok(region)
    }

    /// As [`Region::map`], with the last `tail` bytes of the file mapped a second time behind the end,
    /// so that a ring record that wraps is contiguous.
    pub fn map_doubled(fd: BorrowedFd<'_>, len: usize, tail: usize) -> Result<Region, Errno> {
        let whole = Region::reserve(len.checked_add(tail).ok_or(Errno::NOMEM)?)?;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: both ranges lie inside the reservation made above, which nobody else uses.
        unsafe {
            mmap(whole.base.cast(), len, rw(), flags, fd, 0)?;
            mmap(whole.base.add(len).cast(), tail, rw(), flags, fd, (len - tail) as u64)?;
        }
        Ok(whole)
    }

    /// Private zero pages, allocated when touched: process-local tables.
    pub fn anonymous(len: usize) -> Result<Region, Errno> {
        Region::private(len, rw())
    }

    fn reserve(len: usize) -> Result<Region, Errno> {
        let inner = len.checked_next_multiple_of(PAGE).ok_or(Errno::NOMEM)?;
        let outer = Region::private(inner.checked_add(2 * PAGE).ok_or(Errno::NOMEM)?, ProtFlags::empty())?;
        // SAFETY: one page into a mapping of more than two.
        let base = unsafe { outer.base.add(PAGE) };
        core::mem::forget(outer);
        Ok(Region { base, len: inner, guard: PAGE })
    }

    fn private(len: usize, prot: ProtFlags) -> Result<Region, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len.max(1), prot, flags) }?;
        Ok(Region { base: base.cast(), len: len.max(1), guard: 0 })
    }

    /// First byte of the mapping.
    pub fn base(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: our own mapping with its guards, and no one uses it after drop.
        let _ = unsafe { munmap(self.base.sub(self.guard).cast::<c_void>(), self.len + 2 * self.guard) };
    }
}

fn rw() -> ProtFlags {
    ProtFlags::READ | ProtFlags::WRITE
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Permissions of the mapping that has `at`, from /proc/self/maps.
    fn permissions(at: usize) -> String {
        let maps = read_to_string("/proc/self/maps").unwrap();
        let has = |line: &&str| {
            let (range, _) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            (usize::from_str_radix(start, 16).unwrap()..usize::from_str_radix(end, 16).unwrap()).contains(&at)
        };
        maps.lines().find(has).and_then(|l| l.split(' ').nth(1)).unwrap_or("unmapped").to_string()
    }

    #[test]
    fn nothing_beside_a_map_can_be_touched() {
        let fd = create_sealed("guards", PAGE + 1).unwrap();
        for region in [Region::map(fd.as_fd(), PAGE + 1).unwrap(), {
            let fd = create_sealed("guards", 2 * PAGE).unwrap();
            Region::map_doubled(fd.as_fd(), 2 * PAGE, PAGE).unwrap()
        }] {
            let base = region.base() as usize;
            assert_eq!(permissions(base), "rw-s");
            assert_eq!(permissions(base - 1), "---p");
            assert_eq!(permissions(base + region.len), "---p");
        }
    }
}
