//! The application's dispositions, and acting on them as the kernel would.

use crate::arch::sys;
use std::arch::global_asm;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*, fence};

// The bytes are what libgcc and gdb recognise as a signal trampoline; no unwind entry may cover them, not even the
// previous function's (unwinders look up the address minus one), hence the nop.
global_asm!(
    ".pushsection .text.bpft_sigreturn,\"ax\",@progbits",
    "nop",
    ".globl bpft_sigreturn",
    ".hidden bpft_sigreturn",
    ".type bpft_sigreturn,@function",
    "bpft_sigreturn:",
    ".byte 0x48,0xc7,0xc0,0x0f,0x00,0x00,0x00", // mov rax, 15 (__NR_rt_sigreturn)
    "syscall",
    ".size bpft_sigreturn,.-bpft_sigreturn",
    ".popsection",
);

unsafe extern "C" {
    fn bpft_sigreturn();
}

const SA_RESTORER: u64 = 0x0400_0000;

/// The kernel's `struct sigaction` on x86-64.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KernelAction {
    pub handler: usize,
    pub flags: u64,
    pub restorer: usize,
    pub mask: u64,
}

impl KernelAction {
    pub fn new(handler: usize, flags: u64, mask: u64) -> Self {
        let restorer = bpft_sigreturn as *const () as usize;
        Self { handler, flags: flags | SA_RESTORER, restorer, mask }
    }

    pub fn from_libc(a: &libc::sigaction) -> Self {
        // SAFETY: glibc's and musl's sigset_t start with the kernel's 64-bit mask.
        let mask = unsafe { (&raw const a.sa_mask).cast::<u64>().read() };
        Self { handler: a.sa_sigaction, flags: a.sa_flags as u32 as u64, restorer: 0, mask }
    }

    pub fn to_libc(self, a: &mut libc::sigaction) {
        a.sa_sigaction = self.handler;
        a.sa_flags = (self.flags & !SA_RESTORER) as i32;
        a.sa_restorer = None;
        // SAFETY: sigset_t is plain bits of at least 8 bytes; all-zero is the empty set.
        unsafe {
            (&raw mut a.sa_mask).write_bytes(0, 1);
            (&raw mut a.sa_mask).cast::<u64>().write(self.mask);
        }
    }
}

/// rt_sigaction without libc: the action before, after setting `new` if given.
pub(super) fn kernel_sigaction(sig: i32, new: Option<&KernelAction>) -> Option<KernelAction> {
    raw_sigaction(sig, new).ok()
}

/// As [`kernel_sigaction`], with the kernel's negative errno.
pub(super) fn raw_sigaction(sig: i32, new: Option<&KernelAction>) -> Result<KernelAction, i64> {
    let mut old = KernelAction { handler: 0, flags: 0, restorer: 0, mask: 0 };
    let new = new.map_or(0, |a| std::ptr::from_ref(a) as usize);
    // SAFETY: both are null or a kernel sigaction; handlers passed here are async-signal-safe, or the program's.
    let rc =
        unsafe { sys::syscall(libc::SYS_rt_sigaction, [sig as usize, new, &raw mut old as usize, 8, 0, 0]) };
    if rc == 0 { Ok(old) } else { Err(rc as i64) }
}

/// Changes the thread's signal mask: `how` with `set`; gives the mask before.
fn change_mask(how: i32, set: u64) -> u64 {
    let mut old = 0u64;
    let args = [how as usize, &raw const set as usize, &raw mut old as usize, 8, 0, 0];
    // SAFETY: two 8-byte masks of ours.
    unsafe { sys::syscall(libc::SYS_rt_sigprocmask, args) };
    old
}

/// An action that handlers read while other threads replace it: a sequence lock.
pub(super) struct Record {
    /// Odd while being written.
    seq: AtomicU32,
    words: [AtomicU64; 3],
}

impl Record {
    pub const fn new() -> Self {
        Self { seq: AtomicU32::new(0), words: [const { AtomicU64::new(0) }; 3] }
    }

    pub fn load(&self) -> KernelAction {
        loop {
            let before = self.seq.load(Acquire);
            let [handler, flags, mask] = std::array::from_fn(|i| self.words[i].load(Relaxed));
            fence(Acquire); // the words are read before seq is read again
            if before & 1 == 0 && self.seq.load(Relaxed) == before {
                return KernelAction { handler: handler as usize, flags, restorer: 0, mask };
            }
            std::hint::spin_loop();
        }
    }

    /// Sets `new`, gives what was there. Signals are blocked meanwhile: a handler on this thread would wait for us.
    pub fn replace(&self, new: &KernelAction) -> KernelAction {
        let mask = change_mask(libc::SIG_SETMASK, !0);
        let mut seq = self.seq.load(Relaxed);
        loop {
            if seq & 1 == 0 {
                match self.seq.compare_exchange_weak(seq, seq + 1, Acquire, Relaxed) {
                    Ok(_) => break,
                    Err(now) => seq = now,
                }
            } else {
                std::hint::spin_loop();
                seq = self.seq.load(Relaxed);
            }
        }
        fence(Release); // seq is odd before a word changes
        let old = std::array::from_fn::<u64, 3, _>(|i| self.words[i].load(Relaxed));
        for (word, v) in self.words.iter().zip([new.handler as u64, new.flags, new.mask]) {
            word.store(v, Relaxed);
        }
        self.seq.store(seq + 2, Release);
        change_mask(libc::SIG_SETMASK, mask);
        KernelAction { handler: old[0] as usize, flags: old[1], restorer: 0, mask: old[2] }
    }

    pub fn store(&self, new: &KernelAction) {
        self.replace(new);
    }

    pub fn has_handler(&self) -> bool {
        self.load().handler > libc::SIG_IGN
    }
}

/// Does with the signal what the application asked for.
///
/// # Safety
/// The arguments are those the kernel passed to the calling signal handler.
pub(super) unsafe fn to_application(
    record: &Record,
    sig: i32,
    info: *mut libc::siginfo_t,
    uc: *mut libc::ucontext_t,
) {
    let action = record.load();
    // SAFETY: valid, from the kernel.
    let forced = unsafe { (*info).si_code } > 0;
    match action.handler {
        libc::SIG_IGN if !forced => {}
        libc::SIG_DFL | libc::SIG_IGN => die(sig, info, forced),
        handler => {
            if action.flags & libc::SA_RESETHAND as u32 as u64 != 0 {
                record.store(&KernelAction { handler: libc::SIG_DFL, ..action });
            }
            let own = if action.flags & libc::SA_NODEFER as u64 != 0 { 0 } else { 1 << (sig - 1) };
            // Undone by sigreturn, which restores the mask in `uc`.
            // Not SIGSYS, which a dispatched call in the handler would need.
            change_mask(libc::SIG_BLOCK, (action.mask | own) & !super::SIGSYS_BIT);
            type Handler = unsafe extern "C-unwind" fn(i32, *mut libc::siginfo_t, *mut libc::ucontext_t);
            // SAFETY: the application registered this address as a handler; one without SA_SIGINFO ignores the
            // two further arguments.
            unsafe { std::mem::transmute::<usize, Handler>(handler)(sig, info, uc) };
            // What the program's own frame would have ended with.
            crate::syscalls::report_sigreturn();
        }
    }
}

/// The default action of our signals: the process ends, by this signal, with this siginfo.
fn die(sig: i32, info: *mut libc::siginfo_t, forced: bool) {
    kernel_sigaction(sig, Some(&KernelAction::new(libc::SIG_DFL, 0, 0)));
    if forced && matches!(sig, libc::SIGSEGV | libc::SIGBUS) {
        return; // the instruction faults again, and the core shows it
    }
    let args = [sys::getpid() as usize, sys::gettid() as usize, sig as usize, info as usize, 0, 0];
    // SAFETY: `info` is the kernel's siginfo for this very signal; si_code > 0 may be queued to oneself.
    unsafe { sys::syscall(libc::SYS_rt_tgsigqueueinfo, args) };
}
