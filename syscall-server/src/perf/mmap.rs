//! mmap(2) of maps, ring buffers and perf buffers.

use crate::cmd::ENOTSUPP;
use crate::fds::Access;
use crate::object::{self, MapObject, Object, PerfObject};
use crate::real;
use bpftime_abi::map_type::BPF_F_RDONLY_PROG;
use bpftime_shm::PerfRing;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::io::Errno;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

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
        Ok(Object::Map(map)) => Some(map_map(&map, fd, r)),
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

fn map_map(map: &Arc<MapObject>, fd: i32, r: &Request) -> Result<i64, Errno> {
    if r.flags & libc::MAP_SHARED == 0 {
        return Err(Errno::INVAL);
    }
    let off = u64::try_from(r.off).map_err(|_| Errno::INVAL)?;
    let shared = &map.handle.map;
    if shared.ringbuf().is_some() || shared.user_ring().is_some() {
        map_ring(map, r, off)
    } else {
        map_array(map, fd, r, off)
    }
}

/// The values of an array, all of them or some pages.
fn map_array(map: &Arc<MapObject>, fd: i32, r: &Request, off: u64) -> Result<i64, Errno> {
    let shared = &map.handle.map;
    let writable = r.prot & libc::PROT_WRITE != 0;
    check_access(Access::of(crate::fds::borrow(fd)?)?, writable)?;
    let (start, len) = shared.mmap_window().ok_or(ENOTSUPP)?;
    if writable {
        check_writable(map)?;
    }
    let end = off.checked_add(r.len.next_multiple_of(PAGE) as u64).ok_or(Errno::INVAL)?;
    if !off.is_multiple_of(PAGE as u64) || end > len as u64 {
        return Err(Errno::INVAL);
    }
    if !writable {
        // By a descriptor that cannot write, so that mprotect(2) does not make it writable later.
        let only_read = crate::fds::open_as(&map.memfd, Access::Read)?;
        return raw(r, r.addr, r.len, false, only_read.as_fd(), start + off);
    }
    // A frozen map cannot be written any more; a mapping that is written keeps it from being frozen.
    shared.writer_added()?;
    let mapped = raw(r, r.addr, r.len, false, map.memfd.as_fd(), start + off);
    match mapped {
        Ok(addr) => writers().push((addr as usize, Arc::downgrade(map))),
        Err(_) => shared.writer_removed(),
    }
    mapped
}

/// What mmap(2) itself says of descriptors; a shared mapping of one that cannot write is none that the kernel's maps take.
fn check_access(access: Access, writable: bool) -> Result<(), Errno> {
    match access {
        Access::Both => Ok(()),
        Access::Read if !writable => Err(Errno::INVAL),
        Access::Read | Access::Write => Err(Errno::ACCESS),
    }
}

/// Maps that programs may not write are not written by the tool either once frozen, and through no mapping at all.
fn check_writable(map: &MapObject) -> Result<(), Errno> {
    if map.handle.map.is_frozen() {
        return Err(Errno::PERM);
    }
    if map.def().map_flags & BPF_F_RDONLY_PROG != 0 { Err(Errno::ACCESS) } else { Ok(()) }
}

/// The tool's mappings of maps that it may write through, by address. Nobody is told when they go.
fn writers() -> MutexGuard<'static, Vec<(usize, Weak<MapObject>)>> {
    static WRITERS: Mutex<Vec<(usize, Weak<MapObject>)>> = Mutex::new(Vec::new());
    WRITERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes note of mappings of `map` that are gone, before it is frozen.
pub fn forget_unmapped(map: &Arc<MapObject>) {
    let Ok(id) = crate::fds::identity(map.memfd.as_fd()) else { return };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let stands = |addr: usize| maps.lines().any(|line| is_writable_at(line, addr, id.1));
    writers().retain(|(addr, of)| {
        let gone = of.upgrade().is_some_and(|of| Arc::ptr_eq(&of, map)) && !stands(*addr);
        if gone {
            map.handle.map.writer_removed();
        }
        !gone && of.strong_count() > 0
    });
}

/// Whether a line of /proc/PID/maps is a writable mapping of inode `ino` that begins at or holds `addr`.
fn is_writable_at(line: &str, addr: usize, ino: u64) -> bool {
    let mut words = line.split_whitespace();
    let mut word = || words.next().unwrap_or_default();
    let (range, rights) = (word(), word());
    let (_, _, inode) = (word(), word(), word());
    let bound = |text: Option<&str>| usize::from_str_radix(text.unwrap_or_default(), 16).unwrap_or(0);
    let mut ends = range.split('-');
    let range = bound(ends.next())..bound(ends.next());
    range.contains(&addr) && rights.contains('w') && inode.parse() == Ok(ino)
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
