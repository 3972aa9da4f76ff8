//! Writing to code that threads are running.

use crate::arch::sys;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use std::arch::asm;
use std::collections::{BTreeMap, BTreeSet};

/// Linux membarrier(2) commands; libc has them, spelled differently across versions.
const PRIVATE_EXPEDITED: usize = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: usize = 1 << 4;
const SYNC_CORE: usize = 1 << 5;
const REGISTER_SYNC_CORE: usize = 1 << 6;
const PAGE: usize = 4096;

fn membarrier(cmd: usize) -> bool {
    // SAFETY: no pointers.
    unsafe { sys::syscall(libc::SYS_membarrier, [cmd, 0, 0, 0, 0, 0]) >= 0 }
}

/// The process's memory, as the control thread sees it.
pub(super) struct Text {
    /// /proc/thread-self/mem; `None` where it cannot be opened or written (hardened kernels).
    mem: Option<OwnedFd>,
    pid: i32,
    sync_core: bool,
    expedited: bool,
    /// A page whose protection is changed to interrupt the other cores, where membarrier is missing.
    bell: usize,
}

impl Text {
    pub fn open() -> Self {
        let sync_core = membarrier(REGISTER_SYNC_CORE);
        let expedited = membarrier(REGISTER_PRIVATE_EXPEDITED);
        let bell = sys::map_zeroed(PAGE) as usize;
        Self { mem: open_mem(), pid: sys::getpid(), sync_core, expedited, bell }
    }

    /// After a fork the descriptor still means the parent's memory.
    fn refresh(&mut self) {
        if self.pid != sys::getpid() {
            *self = Self::open();
        }
    }

    /// True when memory can be written without touching its protection.
    pub fn writes_through(&mut self) -> bool {
        self.refresh();
        self.mem.is_some()
    }

    /// Reads what is mapped; the count may be short at the end of a mapping.
    pub fn read(&mut self, addr: usize, buf: &mut [u8]) -> usize {
        self.refresh();
        if let Some(mem) = &self.mem {
            return rustix::io::pread(mem, buf, addr as u64).unwrap_or(0);
        }
        // SAFETY: `buf` is writable; the kernel checks `addr`.
        buf.len()
            - unsafe { crate::arch::copy::probe_read_slow(buf.as_mut_ptr(), addr as *const u8, buf.len()) }
    }

    /// Writes `bytes` at `addr`, one write: single bytes are atomic. False if the kernel refuses.
    pub fn write(&mut self, addr: usize, bytes: &[u8]) -> bool {
        self.refresh();
        if let Some(mem) = &self.mem
            && rustix::io::pwrite(mem, bytes, addr as u64) == Ok(bytes.len())
        {
            return true;
        }
        self.with_writable(addr, bytes.len(), || {
            for (i, b) in bytes.iter().enumerate() {
                // SAFETY: the range was just made writable and is a patch window we own.
                unsafe { ((addr + i) as *mut u8).write_volatile(*b) };
            }
        })
    }

    /// Writes `bytes` (at most 8) in one atomic store, so that no thread sees a mixture. `None` when they do not lie
    /// in one cache line; `Some(false)` if the kernel refuses.
    pub fn write_at_once(&mut self, addr: usize, bytes: &[u8]) -> Option<bool> {
        let line = addr & !63;
        if addr + bytes.len() > line + 64 || bytes.len() > 8 {
            return None;
        }
        let word = if (addr & !7) + 8 >= addr + bytes.len() { addr & !7 } else { addr.min(line + 56) };
        let mut old = [0u8; 8];
        if self.read(word, &mut old) != 8 {
            return Some(false);
        }
        let mut new = old;
        new[addr - word..][..bytes.len()].copy_from_slice(bytes);
        let done = self.with_writable(word, 8, || {
            // SAFETY: 8 bytes in one cache line, just made writable. A locked compare-and-exchange, since a plain
            // unaligned store is not architecturally one access.
            unsafe {
                asm!("lock cmpxchg [{p}], {n}", p = in(reg) word, n = in(reg) u64::from_le_bytes(new),
                     inout("rax") u64::from_le_bytes(old) => _, options(nostack));
            }
        });
        self.sync();
        Some(done)
    }

    /// [`Self::write_at_once`] for many patches of at most 5 bytes, in one mapping, which is made writable once and as a whole:
    /// in pieces it would stay in pieces. Returns the addresses written: not those that cross a cache line.
    pub fn write_each_at_once(&mut self, patches: &[(usize, Vec<u8>)]) -> BTreeSet<usize> {
        let in_a_line = |at: usize, len: usize| (at & 63) + len <= 64;
        let todo: BTreeMap<_, _> =
            patches.iter().filter(|(at, b)| in_a_line(*at, b.len())).map(|(at, b)| (*at, b)).collect();
        let (Some(first), Some(last)) = (todo.first_key_value(), todo.last_key_value()) else {
            return BTreeSet::new();
        };
        self.refresh();
        // The 8 bytes that are read may begin before the patch, in its cache line.
        let start = first.0 & !63;
        let written = self.with_writable(start, (last.0 | 63) + 1 - start, || {
            todo.iter().for_each(|(at, bytes)| store_at_once(*at, bytes));
        });
        self.sync();
        if written { todo.into_keys().collect() } else { BTreeSet::new() }
    }

    fn with_writable(&mut self, addr: usize, len: usize, f: impl FnOnce()) -> bool {
        let start = addr & !(PAGE - 1);
        let end = (addr + len).next_multiple_of(PAGE);
        let Some(before) = super::maps::Maps::read().protection(addr) else { return false };
        let protect = |prot: i32| {
            // SAFETY: pages of mapped code; they stay readable and executable throughout.
            unsafe { sys::syscall(libc::SYS_mprotect, [start, end - start, prot as usize, 0, 0, 0]) == 0 }
        };
        if !protect(libc::PROT_READ | libc::PROT_WRITE | before) {
            return false;
        }
        f();
        protect(before);
        true
    }

    /// Every core has executed a serialising instruction since: no thread runs stale bytes any more.
    pub fn sync(&self) {
        if self.sync_core && membarrier(SYNC_CORE) {
            return;
        }
        self.ring();
    }

    /// Orders this thread's earlier stores and later loads against the other threads' (the cheap side of the
    /// asymmetric fence is a compiler fence in ThreadBlock::enter). False where the kernel offers no means.
    pub fn fence(&self) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if self.expedited && membarrier(PRIVATE_EXPEDITED) {
            return true;
        }
        self.ring();
        false
    }

    /// Without membarrier: taking a right from a page interrupts the cores that run this process, and returning
    /// from an interrupt serialises.
    fn ring(&self) {
        if self.bell == 0 {
            return;
        }
        // SAFETY: our own page, used for nothing else.
        unsafe {
            (self.bell as *mut u8).write_volatile(1);
            sys::syscall(libc::SYS_mprotect, [self.bell, PAGE, libc::PROT_READ as usize, 0, 0, 0]);
            let rw = (libc::PROT_READ | libc::PROT_WRITE) as usize;
            sys::syscall(libc::SYS_mprotect, [self.bell, PAGE, rw, 0, 0, 0]);
        }
    }
}

/// Replaces at most 8 bytes within a cache line.
fn store_at_once(addr: usize, bytes: &[u8]) {
    let word = addr.min((addr | 63) - 7);
    // SAFETY: 8 bytes of one cache line that was made writable. Nobody else writes there: the control thread alone
    // changes text.
    unsafe {
        let old = (word as *const [u8; 8]).read_volatile();
        let mut new = old;
        new[addr - word..][..bytes.len()].copy_from_slice(bytes);
        // A locked exchange, since a plain unaligned store is not architecturally one access.
        asm!("lock cmpxchg [{p}], {n}", p = in(reg) word, n = in(reg) u64::from_le_bytes(new),
             inout("rax") u64::from_le_bytes(old) => _, options(nostack));
    }
}

fn open_mem() -> Option<OwnedFd> {
    // thread-self: /proc/self stops working when the main thread has exited.
    rustix::fs::open("/proc/thread-self/mem", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()
}
