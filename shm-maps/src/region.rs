//! A sealed memfd and our mapping of it.

use core::ffi::c_void;
use core::ptr;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::fs::read_to_string;
use std::os::fd::{BorrowedFd, OwnedFd};

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
    ftruncate(&fd, len as u64).map_err(|_| Errno::NOMEM)?;
    fcntl_add_seals(&fd, SIZE_SEALS | SealFlags::SEAL)?;
    Ok(fd)
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

/// A mapping, unmapped on drop.
#[derive(Debug)]
pub struct Region {
    base: *mut u8,
    len: usize,
}

// SAFETY: a Region is an address range; what may be done with its bytes is the holder's contract.
unsafe impl Send for Region {}
// SAFETY: as above; Region itself has no interior state.
unsafe impl Sync for Region {}

impl Region {
    /// Maps the first `len` bytes of `fd`, shared and writable.
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> Result<Region, Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let base = unsafe { mmap(ptr::null_mut(), len, rw(), MapFlags::SHARED, fd, 0) }?;
        Ok(Region { base: base.cast(), len })
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
        Region::private(len, ProtFlags::empty())
    }

    fn private(len: usize, prot: ProtFlags) -> Result<Region, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len.max(1), prot, flags) }?;
        Ok(Region { base: base.cast(), len: len.max(1) })
    }

    /// First byte of the mapping.
    pub fn base(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: base and len are those of our own mapping, and no one uses it after drop.
        let _ = unsafe { munmap(self.base.cast::<c_void>(), self.len) };
    }
}

fn rw() -> ProtFlags {
    ProtFlags::READ | ProtFlags::WRITE
}
