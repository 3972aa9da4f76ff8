//! mmap(2) of maps, ring buffers and perf buffers.

use crate::cmd::ENOTSUPP;
use crate::object::{self, MapObject, Object, PerfObject};
use crate::real;
use bpftime_shm::PerfRing;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::io::Errno;
use std::ffi::c_void;

/// Arguments of mmap(2).
pub struct Request {
    /// Wanted address.
    pub addr: usize,
    /// Bytes.
    pub len: usize,
    /// PROT_*.
    pub prot: i32,
    /// MAP_*.
    pub flags: i32,
    /// Offset in the object.
    pub off: i64,
}

const PAGE: usize = 4096;

/// mmap(2) on one of our objects; None for any other file.
pub fn mmap(fd: i32, r: &Request) -> Option<Result<i64, Errno>> {
    match object::find(fd) {
        Ok(Object::Map(map)) => Some(map_map(&map, r)),
        Ok(Object::Perf(event)) => Some(map_perf(&event, r)),
        _ => None,
    }
}

/// Maps `len` bytes of `fd` from `off` with the tool's address and protection.
fn raw(r: &Request, addr: usize, len: usize, fixed: bool, fd: BorrowedFd, off: u64) -> Result<i64, Errno> {
    let flags = r.flags | if fixed { libc::MAP_FIXED } else { 0 };
    let p = real::mmap(addr as *mut c_void, len, r.prot, flags, fd.as_raw_fd(), off as i64);
    if p == libc::MAP_FAILED {
        // SAFETY: the C library's own per-thread errno.
        return Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }));
    }
    Ok(p as i64)
}

fn map_map(map: &MapObject, r: &Request) -> Result<i64, Errno> {
    if r.flags & libc::MAP_SHARED == 0 {
        return Err(Errno::INVAL);
    }
    let off = u64::try_from(r.off).map_err(|_| Errno::INVAL)?;
    let shared = &map.handle.map;
    if shared.ringbuf().is_some() || shared.user_ring().is_some() {
        map_ring(map, r, off)
    } else {
        map_array(map, r, off)
    }
}

/// The values of an array, all of them or some pages.
fn map_array(map: &MapObject, r: &Request, off: u64) -> Result<i64, Errno> {
    let shared = &map.handle.map;
    let (start, len) = shared.mmap_window().ok_or(ENOTSUPP)?;
    let writable = r.prot & libc::PROT_WRITE != 0;
    if writable {
        check_writable(map)?;
    }
    let end = off.checked_add(r.len.next_multiple_of(PAGE) as u64).ok_or(Errno::INVAL)?;
    if !off.is_multiple_of(PAGE as u64) || end > len as u64 {
        return Err(Errno::INVAL);
    }
    if writable {
        // A frozen map cannot be written any more; a mapping that is written keeps it from being frozen.
        shared.writer_added()?;
    }
    let mapped = raw(r, r.addr, r.len, false, map.memfd.as_fd(), start + off);
    if writable && mapped.is_err() {
        shared.writer_removed();
    }
    mapped
}

/// Maps that programs may not write cannot be written through a mapping either once frozen; read-only for the tool
/// means read-only here.
fn check_writable(map: &MapObject) -> Result<(), Errno> {
    const BPF_F_RDONLY: u32 = 1 << 3;
    if map.handle.map.is_frozen() || map.def().map_flags & BPF_F_RDONLY != 0 {
        Err(Errno::PERM)
    } else {
        Ok(())
    }
}

/// The data of a ring stands twice in a row: reserve the whole range, then fill it piece by piece.
fn map_ring(map: &MapObject, r: &Request, off: u64) -> Result<i64, Errno> {
    let pieces = map.handle.map.consumer_mappings(off, r.len, r.prot as u32)?;
    let base = if r.flags & libc::MAP_FIXED != 0 { r.addr } else { reserve(r)? };
    for piece in pieces.into_iter().flatten() {
        raw(r, base + piece.at, piece.len, true, map.memfd.as_fd(), piece.file_off)?;
    }
    Ok(base as i64)
}

fn reserve(r: &Request) -> Result<usize, Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let p = real::mmap(r.addr as *mut c_void, r.len, libc::PROT_NONE, flags, -1, 0);
    if p == libc::MAP_FAILED { Err(Errno::NOMEM) } else { Ok(p as usize) }
}

/// One control page and a power of two of data pages, as perf's own check has it.
fn map_perf(event: &PerfObject, r: &Request) -> Result<i64, Errno> {
    if r.flags & libc::MAP_SHARED == 0 || r.off != 0 || !r.len.is_multiple_of(PAGE) || event.events.is_none()
    {
        return Err(Errno::INVAL);
    }
    let pages = (r.len / PAGE).checked_sub(1).ok_or(Errno::INVAL)?;
    if !pages.is_power_of_two() {
        return Err(Errno::INVAL);
    }
    if event.ring.get().is_none() {
        let (fd, ring) = PerfRing::create(pages as u32, event.cpu)?;
        ring.set_event_id(event.id);
        ring.set_wakeup_events(event.wakeup_events);
        let _ = event.ring.set((crate::fds::hidden(&fd)?, ring));
    }
    let (fd, ring) = event.ring.get().ok_or(Errno::NOMEM)?;
    if ring.data_size() != pages * PAGE {
        return Err(Errno::INVAL);
    }
    raw(r, r.addr, r.len, false, fd.as_fd(), PerfRing::MMAP_OFFSET)
}
