//! System calls that the kernel handed back (syscall user dispatch): the code that makes them in their place.
//!
//! The SIGSYS handler sends its thread to [`entrance`] with the address behind the `syscall` instruction in rcx and
//! everything else as the program had it. From there it goes as through a thunk (syscall.rs), on the program's own
//! stack and outside of any signal handler, so that signals, restarts, cancellation, jumps out of a handler and calls
//! that never return are what they were. All of it lies in this library's text, from which the kernel dispatches
//! nothing.
//!
//! A call that makes a child may come back on another stack, with no register to tell where from. Each such
//! instruction gets a stub of its own, whose address says it.

use std::arch::global_asm;
use std::sync::atomic::{AtomicUsize, Ordering::*};

/// How many instructions that make children can be told apart.
const STUBS: usize = 64;
/// Bytes from one slot to the next.
const SLOT: usize = 16;
const _: () = assert!(size_of::<Slot>() == SLOT);

/// What a stub belongs to. Filled in once, never emptied.
#[repr(C)]
struct Slot {
    /// Address behind the instruction.
    after: AtomicUsize,
    /// The number of the call.
    nr: AtomicUsize,
}

global_asm!(
    ".pushsection .bss.bpft_forks,\"aw\",@nobits",
    ".balign 16",
    ".globl bpft_fork_slots",
    ".hidden bpft_fork_slots",
    ".type bpft_fork_slots,@object",
    ".size bpft_fork_slots,{stubs}*16",
    "bpft_fork_slots: .zero {stubs}*16",
    ".popsection",
    ".pushsection .text.bpft_dispatch,\"ax\",@progbits",
    ".macro BPFT_PART name",
    ".p2align 4",
    ".globl \\name",
    ".hidden \\name",
    "\\name:",
    ".endm",
    // In: rcx = address behind the instruction.
    ".p2align 4",
    ".type bpft_dispatch,@function",
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".cfi_def_cfa rsp, 0",
    ".cfi_register rip, rcx",
    "BPFT_PART bpft_dispatch",
    "lea rsp, [rsp - 128]",
    ".cfi_adjust_cfa_offset 128",
    "push rcx",
    ".cfi_adjust_cfa_offset 8",
    "push rcx",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset rip, -136",
    "call bpft_dispatch_enter",
    "jmp [rsp]",
    // The continuations: sp-136 the address behind, rsp = sp-144.
    "BPFT_PART bpft_dispatch_events",
    "mov [rsp], rcx", // the number
    "call bpft_dispatch_do",
    "pop rcx",
    ".cfi_adjust_cfa_offset -8",
    "push qword ptr [rsp]",
    ".cfi_adjust_cfa_offset 8",
    "call bpft_dispatch_exit",
    "jmp [rsp]",
    "BPFT_PART bpft_dispatch_quiet",
    "call bpft_dispatch_do",
    "BPFT_PART bpft_dispatch_leave",
    "mov rcx, [rsp + 8]",
    "lea rsp, [rsp + 144]",
    ".cfi_adjust_cfa_offset -144",
    ".cfi_register rip, rcx",
    "jmp rcx",
    // Back to the instruction itself, for once.
    "BPFT_PART bpft_dispatch_again",
    ".cfi_adjust_cfa_offset 144",
    ".cfi_offset rip, -136",
    "mov rcx, [rsp + 8]",
    "lea rcx, [rcx - 2]",
    "lea rsp, [rsp + 144]",
    ".cfi_adjust_cfa_offset -144",
    ".cfi_register rip, rcx",
    "jmp rcx",
    ".cfi_endproc",
    ".size bpft_dispatch,.-bpft_dispatch",
    // rt_sigreturn finds its frame by the stack pointer. From a dispatched call, and from a thunk.
    "BPFT_PART bpft_dispatch_sigreturn",
    "lea rsp, [rsp + 144]",
    "syscall",
    "ud2",
    "BPFT_PART bpft_thunk_sigreturn",
    "lea rsp, [rsp + 136]",
    "syscall",
    "ud2",
    // The system call, with the address behind it at CFA-136: unwinders find their way (syscall.rs).
    ".type bpft_dispatch_do,@function",
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".cfi_def_cfa rsp, 152",
    ".cfi_escape 0x16,16,4, 0x08,136,0x1c,0x06",
    "BPFT_PART bpft_dispatch_do",
    "syscall",
    "ret",
    ".cfi_endproc",
    ".size bpft_dispatch_do,.-bpft_dispatch_do",
    // The children's stubs, 32 bytes each.
    ".p2align 5",
    ".globl bpft_fork_stubs",
    ".hidden bpft_fork_stubs",
    "bpft_fork_stubs:",
    ".set bpft_i, 0",
    ".rept {stubs}",
    ".p2align 5",
    "lea rsp, [rsp + 144]",
    "syscall",
    "lea rcx, [rip + bpft_fork_slots + bpft_i]",
    "jmp bpft_forked",
    ".set bpft_i, bpft_i + 16",
    ".endr",
    "BPFT_PART bpft_forked",
    "lea rsp, [rsp - 128]",
    "push qword ptr [rcx]",
    "push qword ptr [rcx]",
    "mov rcx, [rcx + 8]",
    "call bpft_dispatch_exit",
    "jmp [rsp]",
    ".purgem BPFT_PART",
    ".popsection",
    stubs = const STUBS,
);

unsafe extern "C" {
    static bpft_fork_slots: [Slot; STUBS];
    fn bpft_fork_stubs();
    fn bpft_dispatch();
    fn bpft_dispatch_events();
    fn bpft_dispatch_quiet();
    fn bpft_dispatch_leave();
    fn bpft_dispatch_again();
    fn bpft_dispatch_sigreturn();
    fn bpft_thunk_sigreturn();
    fn bpft_dispatch_do();
}

type Code = unsafe extern "C" fn();

fn address(code: Code) -> usize {
    code as *const () as usize
}

/// Where the SIGSYS handler sends a thread.
pub(crate) fn entrance() -> usize {
    address(bpft_dispatch)
}

/// The call, then its end is reported.
pub(crate) fn events() -> usize {
    address(bpft_dispatch_events)
}

/// The call, and nothing more.
pub(crate) fn quiet() -> usize {
    address(bpft_dispatch_quiet)
}

/// Behind the instruction, with the result that rax holds.
pub(crate) fn leave() -> usize {
    address(bpft_dispatch_leave)
}

/// The instruction in its place, when the kernel lets it pass.
pub(crate) fn again() -> usize {
    address(bpft_dispatch_again)
}

/// rt_sigreturn.
pub(crate) fn sigreturn() -> usize {
    address(bpft_dispatch_sigreturn)
}

/// rt_sigreturn for a thunk.
pub(crate) fn thunk_sigreturn() -> usize {
    address(bpft_thunk_sigreturn)
}

/// The `syscall` that a dispatched call makes.
pub(crate) fn instruction() -> usize {
    address(bpft_dispatch_do)
}

/// The stub of the call `nr` in front of `after`; `None` when all are taken.
pub(crate) fn fork_stub(after: usize, nr: i32) -> Option<usize> {
    const STRIDE: usize = 32;
    // SAFETY: the slots are atomics of this library, zeroed at load.
    let slots = unsafe { &bpft_fork_slots };
    let index = slots.iter().position(|s| {
        let mine = |a: usize, n: usize| a == after && n == nr as usize;
        match s.after.load(Acquire) {
            0 => {
                // A slot whose number is not there yet is nobody's match: the number is written first.
                s.nr.compare_exchange(0, nr as usize, AcqRel, Relaxed).is_ok()
                    && s.after.compare_exchange(0, after, AcqRel, Relaxed).is_ok()
            }
            a => mine(a, s.nr.load(Relaxed)),
        }
    })?;
    Some(address(bpft_fork_stubs) + index * STRIDE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_instruction_has_a_stub_of_its_own() {
        let (a, b) = (fork_stub(0x1000, 56), fork_stub(0x2000, 56));
        assert!(a.is_some() && b.is_some() && a != b);
        assert_eq!(fork_stub(0x1000, 56), a);
        let c = fork_stub(0x1000, 435);
        assert!(c != a && c != b);
    }
}
