//! Which process and thread this is, right through fork.
//!
//! The pid lives in a page that the kernel clears in a forked child (MADV_WIPEONFORK), so a stale copy is seen as zero
//! at the next probe, however the child was made. A vfork child shares the page and counts as its parent until it execs.

use crate::arch::sys;
use crate::hook::ThreadBlock;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

/// What the page begins with.
#[repr(C)]
pub(crate) struct Ids {
    pid: AtomicU32,
    /// The pid once more where the assembly of the probe path may run programs: in a process that has a control thread.
    /// Else 0.
    pub(crate) usual: AtomicU32,
}

/// The page, or [`NO_PAGE`].
pub(crate) static PID_PAGE: AtomicPtr<Ids> = AtomicPtr::new((&raw const NO_PAGE).cast_mut());
/// What the assembly finds before there is a page: nothing is as usual.
static NO_PAGE: Ids = Ids { pid: AtomicU32::new(0), usual: AtomicU32::new(0) };

/// The page, if there is one.
#[inline]
fn page() -> Option<&'static Ids> {
    let page = PID_PAGE.load(Ordering::Acquire).cast_const();
    // SAFETY: the page of `init`, which is never unmapped, or a static.
    (page != &raw const NO_PAGE).then(|| unsafe { &*page })
}

/// Maps the page. Call once, before the first probe can run.
pub fn init() -> Result<(), rustix::io::Errno> {
    if page().is_some() {
        return Ok(());
    }
    let rw = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh anonymous page; no existing mapping is touched.
    let page = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), 4096, rw, MapFlags::PRIVATE)? };
    // SAFETY: the page was mapped above. Without WIPEONFORK (kernel before 4.14) `refresh` after fork does the same.
    let _ = unsafe { mm::madvise(page, 4096, Advice::LinuxWipeOnFork) };
    // Release: pairs with the Acquire in `page`; the page is mapped.
    PID_PAGE.store(page.cast(), Ordering::Release);
    refresh();
    Ok(())
}

/// Caches the pid of a process that has, or is about to get, a control thread: at start, and on the child side of fork.
pub fn refresh() {
    if let Some(ids) = page() {
        ORPHAN.store(false, Ordering::Relaxed);
        let pid = sys::getpid() as u32;
        ids.pid.store(pid, Ordering::Relaxed);
        ids.usual.store(pid, Ordering::Relaxed);
    }
}

/// This process was forked by a bare system call: it has its parent's probes and no control thread of its own, so
/// nobody tells it when a link goes.
pub(crate) static ORPHAN: AtomicBool = AtomicBool::new(false);

/// Whether links have to be looked up in the session's page before each run.
#[inline]
pub fn is_orphan() -> bool {
    ORPHAN.load(Ordering::Relaxed)
}

/// This process's pid (the kernel's tgid).
#[inline]
pub fn pid() -> u32 {
    let Some(ids) = page() else { return sys::getpid() as u32 };
    match ids.pid.load(Ordering::Relaxed) {
        0 => first_pid(&ids.pid),
        pid => pid,
    }
}

/// The page was wiped and no handler of fork has written to it. The other word stays 0.
#[cold]
fn first_pid(word: &AtomicU32) -> u32 {
    ORPHAN.store(true, Ordering::Relaxed);
    let pid = sys::getpid() as u32;
    word.store(pid, Ordering::Relaxed);
    pid
}

/// The calling thread's name, zero padded; under a seccomp filter, which may kill for asking, as it was asked last.
pub fn comm() -> [u8; 16] {
    let mut name = [0u64; 2];
    let cache = ThreadBlock::existing().map(|b| &b.comm);
    if crate::signals::seccomp_filtered() {
        name = cache.map_or(name, |c| [c[0].load(Ordering::Relaxed), c[1].load(Ordering::Relaxed)]);
    } else {
        let args = [libc::PR_GET_NAME as usize, name.as_mut_ptr() as usize, 0, 0, 0, 0];
        // SAFETY: PR_GET_NAME writes at most 16 bytes.
        unsafe { sys::syscall(libc::SYS_prctl, args) };
        cache.iter().for_each(|c| c.iter().zip(name).for_each(|(word, v)| word.store(v, Ordering::Relaxed)));
    }
    let mut bytes = [0; 16];
    bytes.chunks_exact_mut(8).zip(name).for_each(|(b, v)| b.copy_from_slice(&v.to_ne_bytes()));
    bytes
}

/// The calling thread's id, cached in its block together with the pid it was read under.
#[inline]
pub fn tid(block: &ThreadBlock, pid: u32) -> u32 {
    let cached = block.run[0].load(Ordering::Relaxed);
    if (cached >> 32) as u32 == pid { cached as u32 } else { fresh_tid(block, pid) }
}

#[cold]
fn fresh_tid(block: &ThreadBlock, pid: u32) -> u32 {
    let tid = sys::gettid() as u32;
    block.run[0].store((pid as u64) << 32 | tid as u64, Ordering::Relaxed);
    tid
}

/// Word of [`ThreadBlock::run`]: a number that no other thread ever has.
const COOKIE: usize = 7;

/// The thread's number, not 0, made when it is first asked for. A block starts with zeros in each thread.
pub fn cookie(block: &ThreadBlock) -> u64 {
    match block.run[COOKIE].load(Ordering::Relaxed) {
        0 => {
            // SAFETY: rdtsc has no operands and no effect but its result.
            let ticks = unsafe { std::arch::x86_64::_rdtsc() };
            let fresh = (ticks ^ (pid() as u64) << 40 ^ (std::ptr::from_ref(block) as u64) << 16)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                | 1;
            block.run[COOKIE].store(fresh, Ordering::Relaxed);
            fresh
        }
        cookie => cookie,
    }
}

/// Whether a thread, of this process or of one it was forked from or forked, still exists.
pub fn thread_alive(tid: u32) -> bool {
    // By id alone: after fork, parent and child share an index until the child has its own.
    // SAFETY: signal 0 only checks.
    unsafe { sys::syscall(libc::SYS_kill, [tid as usize, 0, 0, 0, 0, 0]) != -(libc::ESRCH as isize) }
}

/// The CPU this thread runs on: restartable-sequence area where glibc registered one, else the segment limit that the
/// kernel keeps for getcpu.
#[inline]
pub fn current_cpu() -> u32 {
    let rseq = RSEQ_CPU_OFFSET.load(Ordering::Relaxed);
    if rseq != NO_RSEQ {
        let cpu: i32;
        // SAFETY: glibc keeps `struct rseq` at this offset from the thread pointer of every thread it made.
        unsafe {
            std::arch::asm!("mov {0:e}, fs:[{1}]", out(reg) cpu, in(reg) rseq as i32 as isize,
                options(nostack, readonly, preserves_flags));
        }
        if cpu >= 0 {
            return cpu as u32;
        }
    }
    cpu_by_segment()
}

fn cpu_by_segment() -> u32 {
    cpu_and_node() & 0xfff
}

/// The memory node this thread runs on.
pub fn current_node() -> u32 {
    cpu_and_node() >> 12
}

fn cpu_and_node() -> u32 {
    // __CPUNODE_SEG: limit = node << 12 | cpu (arch/x86 vDSO getcpu).
    let limit: u32;
    // SAFETY: lsl only reads a descriptor's limit.
    unsafe {
        std::arch::asm!("lsl {0:e}, {1:e}", out(reg) limit, in(reg) 0x7b_u32, options(nostack, nomem));
    }
    limit
}

const NO_RSEQ: u32 = u32::MAX;
pub(crate) static RSEQ_CPU_OFFSET: AtomicU32 = AtomicU32::new(NO_RSEQ);

/// Whether the assembly in arch/x86_64/runner.rs finds pid and CPU.
pub fn is_known() -> bool {
    page().is_some() && RSEQ_CPU_OFFSET.load(Ordering::Relaxed) != NO_RSEQ
}

/// Tells where glibc keeps `struct rseq`, relative to the thread pointer (`__rseq_offset`).
pub fn set_rseq_offset(offset: isize) {
    // cpu_id is the second field, 4 bytes in.
    RSEQ_CPU_OFFSET.store((offset + 4) as i32 as u32, Ordering::Relaxed);
}
