//! Running linked BPF code so that a fault in it ends the run, not the process.

use std::arch::global_asm;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Where a faulting run resumes. Lives on the stack of the run; the thread block points to it.
#[repr(C)]
pub struct Recover {
    /// Stack pointer after the callee-saved registers were pushed.
    pub rsp: AtomicUsize,
    /// The landing address.
    pub rip: AtomicUsize,
    /// Not 0 while a helper runs that may be abandoned at any instruction: then a fault whose rip is in this
    /// library counts as the program's.
    pub helper: AtomicUsize,
}

/// Added to the address of `bpft_run`'s frame, where the thread block points while it runs programs: as good as a
/// [`Recover`], and nothing has to be written for it.
pub const LIST: usize = 1;

unsafe extern "C" {
    fn bpft_run_faulted();
}

/// Where a thread goes on whose guarded run faulted: rsp and rip. `current` is what its block points to; `None` if
/// there is no run to end.
///
/// # Safety
/// Called for the thread's own block: what it points to is on its stack.
pub unsafe fn resume(
    current: *const Recover,
    in_program: bool,
    in_library: impl Fn() -> bool,
) -> Option<(usize, usize)> {
    if current as usize & LIST != 0 {
        return in_program.then_some((current as usize - LIST, bpft_run_faulted as *const () as usize));
    }
    // SAFETY: null or a record, by the caller's promise.
    let recover = unsafe { current.as_ref() }?;
    let rsp = recover.rsp.load(Relaxed);
    if rsp == 0 || !(in_program || recover.helper.load(Relaxed) != 0 && in_library()) {
        return None;
    }
    recover.helper.store(0, Relaxed);
    Some((rsp, recover.rip.load(Relaxed)))
}

impl Recover {
    /// A record that is not armed yet.
    pub const fn new() -> Self {
        Self { rsp: AtomicUsize::new(0), rip: AtomicUsize::new(0), helper: AtomicUsize::new(0) }
    }
}

impl Default for Recover {
    fn default() -> Self {
        Self::new()
    }
}

/// What a guarded run gave, in rax and rdx.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The function's result; 0 after a fault.
    pub value: u64,
    /// 1 when a fault ended the run.
    pub faulted: u64,
}

global_asm!(
    ".pushsection .text.bpft_guarded,\"ax\",@progbits",
    // Outcome bpft_run_guarded(f rdi, a rsi, b rdx, c rcx, d r8, recover r9)
    ".p2align 6",
    ".globl bpft_run_guarded",
    ".hidden bpft_run_guarded",
    ".type bpft_run_guarded,@function",
    "bpft_run_guarded:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "push rbx",
    ".cfi_def_cfa_offset 24",
    ".cfi_offset rbx, -24",
    "push r12",
    ".cfi_def_cfa_offset 32",
    ".cfi_offset r12, -32",
    "push r13",
    ".cfi_def_cfa_offset 40",
    ".cfi_offset r13, -40",
    "push r14",
    ".cfi_def_cfa_offset 48",
    ".cfi_offset r14, -48",
    "push r15",
    ".cfi_def_cfa_offset 56",
    ".cfi_offset r15, -56",
    "push r9",
    ".cfi_def_cfa_offset 64",
    "lea rax, [rip + 2f]",
    "mov [r9 + 8], rax",
    "mov [r9], rsp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov rcx, r8",
    "call rax",
    "xor edx, edx",
    "3:",
    "pop r9",
    ".cfi_def_cfa_offset 56",
    "mov qword ptr [r9], 0", // disarmed
    "pop r15",
    ".cfi_def_cfa_offset 48",
    "pop r14",
    ".cfi_def_cfa_offset 40",
    "pop r13",
    ".cfi_def_cfa_offset 32",
    "pop r12",
    ".cfi_def_cfa_offset 24",
    "pop rbx",
    ".cfi_def_cfa_offset 16",
    "pop rbp",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".cfi_def_cfa_offset 64",
    "2:", // the signal handler put rsp back to recover.rsp
    "cld",
    "xor eax, eax",
    "mov edx, 1",
    "jmp 3b",
    ".cfi_endproc",
    ".size bpft_run_guarded,.-bpft_run_guarded",
    ".popsection",
);

unsafe extern "C" {
    fn bpft_run_guarded(
        f: unsafe extern "C" fn(u64, u64, u64, u64) -> u64,
        a: u64,
        b: u64,
        c: u64,
        d: u64,
        recover: *mut Recover,
    ) -> Outcome;
}

/// Calls `f(args)`; a fault inside a registered code range ([`crate::signals::register_code_range`]), or inside a
/// helper that set [`Recover::helper`], abandons it.
///
/// `block.recover` must point to `recover` for the duration; [`crate::hook::ThreadBlock::run_guarded`] sees to it.
///
/// # Safety
/// `f` is sound to call with `args`, and to abandon at any faulting instruction.
#[inline]
pub unsafe fn run_guarded(
    f: unsafe extern "C" fn(u64, u64, u64, u64) -> u64,
    args: [u64; 4],
    recover: *mut Recover,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { bpft_run_guarded(f, args[0], args[1], args[2], args[3], recover) }
}
