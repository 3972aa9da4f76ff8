//! Around a system call: saves the machine, reports, restores the machine. As entry.rs, for thunks of system calls and
//! for calls that the kernel dispatched to us (dispatch.rs), which have one word more on the stack.
//!
//! ```text
//!   sp        value of rsp at the system call
//!   sp-128    the red zone, not touched
//!   sp-136    the site; dispatched: the address behind the instruction
//!   sp-144    return address; dispatched: that address again, and at sp-152 the return address
//!   ...       PtRegs, then xmm0-15, 16-byte aligned
//! ```
//! The word above the return address is overwritten with the address at which the caller goes on (`jmp [rsp]`).
//! rcx and r11 need no restoring, since a system call clobbers them; rcx carries the number to the other side.

use std::arch::global_asm;

macro_rules! around_call {
    ($name:literal, $cfa:literal, $rip:literal, $ip:literal, $sp:literal, $call:path) => {
        global_asm!(
            ".pushsection .text.bpft_syscall,\"ax\",@progbits",
            ".p2align 6",
            concat!(".globl ", $name),
            concat!(".hidden ", $name),
            concat!(".type ", $name, ",@function"),
            concat!($name, ":"),
            ".cfi_startproc",
            ".cfi_signal_frame",
            concat!(".cfi_def_cfa rsp, ", $cfa),
            concat!(".cfi_escape ", $rip),
            "lea rsp, [rsp - 168]",
            ".cfi_adjust_cfa_offset 168",
            "mov [rsp + 80], rax",
            "pushfq",
            ".cfi_adjust_cfa_offset 8",
            "pop qword ptr [rsp + 144]",
            ".cfi_adjust_cfa_offset -8",
            "mov [rsp], r15",
            "mov [rsp + 8], r14",
            "mov [rsp + 16], r13",
            "mov [rsp + 24], r12",
            "mov [rsp + 32], rbp",
            "mov [rsp + 40], rbx",
            "mov [rsp + 48], r11",
            "mov [rsp + 56], r10",
            "mov [rsp + 64], r9",
            "mov [rsp + 72], r8",
            "mov [rsp + 88], rcx",
            "mov [rsp + 96], rdx",
            "mov [rsp + 104], rsi",
            "mov [rsp + 112], rdi",
            "mov rdi, [rsp + 176]",
            concat!("mov rax, ", $ip),
            "mov [rsp + 128], rax",
            "mov qword ptr [rsp + 136], 0x33",
            concat!("lea rax, [rsp + ", $sp, "]"),
            "mov [rsp + 152], rax",
            "mov qword ptr [rsp + 160], 0x2b",
            "mov rbp, rsp",
            ".cfi_def_cfa_register rbp",
            concat!(".cfi_offset rbp, 32 - 168 - ", $cfa),
            "mov rsi, rsp",
            "sub rsp, 256",
            "and rsp, -16",
            "movaps [rsp], xmm0",
            "movaps [rsp + 16], xmm1",
            "movaps [rsp + 32], xmm2",
            "movaps [rsp + 48], xmm3",
            "movaps [rsp + 64], xmm4",
            "movaps [rsp + 80], xmm5",
            "movaps [rsp + 96], xmm6",
            "movaps [rsp + 112], xmm7",
            "movaps [rsp + 128], xmm8",
            "movaps [rsp + 144], xmm9",
            "movaps [rsp + 160], xmm10",
            "movaps [rsp + 176], xmm11",
            "movaps [rsp + 192], xmm12",
            "movaps [rsp + 208], xmm13",
            "movaps [rsp + 224], xmm14",
            "movaps [rsp + 240], xmm15",
            "test byte ptr [rbp + 145], 4", // DF: set only in hand-written code; cld is slow
            "jz 1f",
            "cld",
            "1:",
            "call {on_call}",
            "mov [rbp + 176], rax",
            "movaps xmm0, [rsp]",
            "movaps xmm1, [rsp + 16]",
            "movaps xmm2, [rsp + 32]",
            "movaps xmm3, [rsp + 48]",
            "movaps xmm4, [rsp + 64]",
            "movaps xmm5, [rsp + 80]",
            "movaps xmm6, [rsp + 96]",
            "movaps xmm7, [rsp + 112]",
            "movaps xmm8, [rsp + 128]",
            "movaps xmm9, [rsp + 144]",
            "movaps xmm10, [rsp + 160]",
            "movaps xmm11, [rsp + 176]",
            "movaps xmm12, [rsp + 192]",
            "movaps xmm13, [rsp + 208]",
            "movaps xmm14, [rsp + 224]",
            "movaps xmm15, [rsp + 240]",
            "mov rsp, rbp",
            ".cfi_def_cfa_register rsp",
            "test byte ptr [rsp + 145], 4",
            "jz 2f",
            "std",
            "2:",
            // OF, then the rest: 0x80 + 0x80 overflows, 0 + 0 does not; sahf leaves OF alone. popfq costs 3.5 ns.
            "mov al, [rsp + 145]",
            "and al, 8",
            "shl al, 4",
            "add al, al",
            "mov ah, [rsp + 144]",
            "sahf",
            "mov rax, [rsp + 80]",
            "mov rcx, [rsp + 88]",
            "mov rdx, [rsp + 96]",
            "mov rsi, [rsp + 104]",
            "mov rdi, [rsp + 112]",
            "mov r8, [rsp + 72]",
            "mov r9, [rsp + 64]",
            "mov r10, [rsp + 56]",
            // rbx and r12-r15 are callee-saved: the callback handed them back. rbp was ours.
            "mov rbp, [rsp + 32]",
            ".cfi_restore rbp",
            "lea rsp, [rsp + 168]",
            ".cfi_adjust_cfa_offset -168",
            "ret",
            ".cfi_endproc",
            concat!(".size ", $name, ",.-", $name),
            ".popsection",
            on_call = sym $call,
        );
    };
}

// rip = site->after: DW_CFA_val_expression r16: CFA, const1u 136, minus, deref, deref
around_call!(
    "bpft_syscall_enter",
    "144",
    "0x16,16,5, 0x08,136,0x1c,0x06,0x06",
    "[rdi]",
    "312",
    crate::hook::on_syscall_enter
);
around_call!(
    "bpft_syscall_exit",
    "144",
    "0x16,16,5, 0x08,136,0x1c,0x06,0x06",
    "[rdi]",
    "312",
    crate::hook::on_syscall_exit
);
// rip = the word itself
around_call!(
    "bpft_dispatch_enter",
    "152",
    "0x16,16,4, 0x08,136,0x1c,0x06",
    "rdi",
    "320",
    crate::hook::on_dispatch_enter
);
around_call!(
    "bpft_dispatch_exit",
    "152",
    "0x16,16,4, 0x08,136,0x1c,0x06",
    "rdi",
    "320",
    crate::hook::on_dispatch_exit
);

unsafe extern "C" {
    fn bpft_syscall_enter();
    fn bpft_syscall_exit();
}

/// Addresses of the routines that thunks call before and after a system call.
pub(crate) fn syscall_common() -> (usize, usize) {
    (bpft_syscall_enter as *const () as usize, bpft_syscall_exit as *const () as usize)
}
