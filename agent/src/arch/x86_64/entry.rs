//! Where every thunk lands: saves the machine, calls the engine, restores the machine.
//!
//! A thunk (hook/thunk.rs) arrives with a call, so that the return predictor stays balanced:
//!
//! ```text
//!   sp      value of rsp at the probed instruction
//!   sp-128  the red zone, not touched
//!   sp-136  site pointer      <- overwritten with the address the thunk resumes at (`jmp [rsp]`)
//!   sp-144  return address into the thunk
//!   sp-312  PtRegs (168 bytes)
//!   ...     xmm0-15, 16-byte aligned
//! ```
//! The unwind information makes the probed instruction the caller, like a signal frame: a debugger that stops in
//! a helper shows the target's stack.

use super::stubs;
use crate::hook::{self, ThreadBlock};
use std::arch::global_asm;
use std::mem::offset_of;

// Two variants: status flags cost about 1 ns to restore and are mostly dead where a probe sits (flow.rs decides).
macro_rules! entry_common {
    ($name:literal, $flags:literal, $call:path) => {
        global_asm!(
            ".pushsection .text.bpft_entry,\"ax\",@progbits",
            ".p2align 6",
            concat!(".globl ", $name),
            concat!(".hidden ", $name),
            concat!(".type ", $name, ",@function"),
            concat!($name, ":"),
            ".cfi_startproc",
            ".cfi_signal_frame",
            ".cfi_def_cfa rsp, 144",
            // rip = site->addr: DW_CFA_val_expression r16: CFA, const1u 136, minus, deref, deref
            ".cfi_escape 0x16,16,5, 0x08,136,0x1c,0x06,0x06",
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
            "mov qword ptr [rsp + 120], -1",
            "mov rax, [rdi]",
            "mov [rsp + 128], rax",
            ".cfi_offset rip, -184",
            "mov qword ptr [rsp + 136], 0x33",
            "lea rax, [rsp + 312]",
            "mov [rsp + 152], rax",
            "mov qword ptr [rsp + 160], 0x2b",
            "mov rbp, rsp",
            ".cfi_def_cfa_register rbp",
            ".cfi_offset rbp, -280",
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
            "call {on_entry}",
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
            concat!(".if ", $flags),
            // OF, then the rest: 0x80 + 0x80 overflows, 0 + 0 does not; sahf leaves OF alone. popfq costs 3.5 ns.
            "mov al, [rsp + 145]",
            "and al, 8",
            "shl al, 4",
            "add al, al",
            "mov ah, [rsp + 144]",
            "sahf",
            ".endif",
            "mov rax, [rsp + 80]",
            "mov rcx, [rsp + 88]",
            "mov rdx, [rsp + 96]",
            "mov rsi, [rsp + 104]",
            "mov rdi, [rsp + 112]",
            "mov r8, [rsp + 72]",
            "mov r9, [rsp + 64]",
            "mov r10, [rsp + 56]",
            "mov r11, [rsp + 48]",
            // rbx and r12-r15 are callee-saved: the engine handed them back. rbp was ours.
            "mov rbp, [rsp + 32]",
            ".cfi_restore rbp",
            "lea rsp, [rsp + 168]",
            ".cfi_adjust_cfa_offset -168",
            "ret",
            ".cfi_endproc",
            concat!(".size ", $name, ",.-", $name),
            ".popsection",
            on_entry = sym $call,
        );
    };
}

entry_common!("bpft_entry_common", "0", crate::hook::on_entry);
entry_common!("bpft_entry_common_flags", "1", crate::hook::on_entry);

// For sites with a return probe only: nobody will look at the registers, so this does what hook::returns::push does in
// the usual case, with five of them. Anything unusual goes the long way.
global_asm!(
    ".pushsection .text.bpft_entry,\"ax\",@progbits",
    ".p2align 6",
    ".globl bpft_entry_return",
    ".hidden bpft_entry_return",
    ".type bpft_entry_return,@function",
    "bpft_entry_return:",
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".cfi_def_cfa rsp, 144",
    ".cfi_escape 0x16,16,5, 0x08,136,0x1c,0x06,0x06",
    "lea rsp, [rsp - 48]",
    ".cfi_adjust_cfa_offset 48",
    "mov [rsp], rax",
    "lahf",
    "seto al",
    "mov [rsp + 40], rax",
    "mov [rsp + 8], rcx",
    "mov [rsp + 16], rdx",
    "mov [rsp + 24], rsi",
    "mov [rsp + 32], rdi",
    "mov rax, [rsp + 56]",
    "cmp dword ptr [rax + {want}], {only_return}",
    "jne 9f",
    "mov rcx, qword ptr [rip + bpft_tls_block@GOTTPOFF]",
    "mov rcx, qword ptr fs:[rcx]",
    "test rcx, rcx",
    "jz 9f",
    "cmp qword ptr [rcx + {mute}], 0",
    "jne 9f",
    "mov rdx, [rcx + {cursor}]",
    "mov esi, edx",
    "shr rdx, 32",
    "cmp esi, {run}", // full, or no run yet
    "jae 9f",
    "mov eax, edx",
    "shl eax, {run_shift}",
    "add eax, esi",
    "lea rax, [rax + rax*4]",
    "shl rax, 3", // the slot's offset, and the stub's
    "lea rdi, [rip + bpft_slots]",
    "add rdi, rax",
    "test esi, esi",
    "jz 2f",
    "lea rsi, [rsp + 192]",
    "cmp [rdi - {stride} + {sp}], rsi", // the newest slot is of a caller?
    "ja 3f",
    "jmp 9f",
    "2:", // the first slot of a run: of the first run?
    "cmp rdx, [rcx + {first_run}]",
    "jne 9f",
    "3:",
    "mov rdx, rax",
    "lea rsi, [rip + bpft_stubs]",
    "mov rax, [rsp + 192]",
    "sub rax, rsi",
    "cmp rax, {pool}", // tail-called by a probed function?
    "jb 9f",
    "add rsi, rdx", // the stub
    "xor eax, eax",
    "mov rdx, -1",
    "cmpxchg [rdi + {sp}], rdx",
    "jne 9f",
    "inc qword ptr [rcx + {cursor}]",
    "mov rax, [rsp + 56]",
    "mov [rdi + {site}], rax",
    "mov rax, [rax + {thunk}]",
    "lea rcx, [rax + {copy}]",
    "mov [rdi + {target}], rcx",
    "add rax, {leave}",
    "mov [rsp + 56], rax",
    "mov rax, [rsp + 192]",
    "mov [rdi + {ra}], rax",
    "mov [rdi + {real}], rax",
    "mov [rsp + 184], rsi",
    "add rsi, {ret_off}",
    "mov [rsp + 192], rsi",
    "lea rax, [rsp + 192]",
    "mov [rdi + {sp}], rax",
    "mov rax, [rsp + 40]",
    "add al, 0x7f", // OF; sahf leaves it alone
    "sahf",
    "mov rax, [rsp]",
    "mov rcx, [rsp + 8]",
    "mov rdx, [rsp + 16]",
    "mov rsi, [rsp + 24]",
    "mov rdi, [rsp + 32]",
    "lea rsp, [rsp + 48]",
    "ret",
    "9:",
    "mov rax, [rsp + 40]",
    "add al, 0x7f", // OF; sahf leaves it alone
    "sahf",
    "mov rax, [rsp]",
    "mov rcx, [rsp + 8]",
    "mov rdx, [rsp + 16]",
    "mov rsi, [rsp + 24]",
    "mov rdi, [rsp + 32]",
    "lea rsp, [rsp + 48]",
    "jmp bpft_entry_common_flags",
    ".cfi_endproc",
    ".size bpft_entry_return,.-bpft_entry_return",
    ".popsection",
    want = const hook::WANT_OFFSET,
    only_return = const hook::RETURN_ONLY,
    thunk = const hook::THUNK_OFFSET,
    leave = const hook::LEAVE,
    copy = const hook::COPY,
    mute = const offset_of!(ThreadBlock, mute),
    cursor = const hook::CURSOR_OFFSET,
    first_run = const hook::FIRST_RUN_OFFSET,
    run = const hook::RUN,
    run_shift = const hook::RUN.ilog2(),
    stride = const stubs::STRIDE,
    pool = const stubs::STUBS * stubs::STRIDE,
    ret_off = const stubs::RET_OFF,
    target = const offset_of!(stubs::Slot, target),
    ra = const offset_of!(stubs::Slot, ra),
    real = const offset_of!(stubs::Slot, real),
    site = const offset_of!(stubs::Slot, site),
    sp = const offset_of!(stubs::Slot, sp),
);
// idx * 40 is spelled out above
const _: () = assert!(stubs::STRIDE == 40);

unsafe extern "C" {
    fn bpft_entry_common();
    fn bpft_entry_common_flags();
    fn bpft_entry_return();
}

/// Where a thunk calls: `flags` says that the status flags are live at the site, `only_return` that it was made for a
/// return probe alone (if more is wanted later, that routine notices, and passes on).
pub(crate) fn landing(flags: bool, only_return: bool) -> usize {
    let f = match (flags, only_return) {
        (_, true) => bpft_entry_return,
        (true, false) => bpft_entry_common_flags,
        (false, false) => bpft_entry_common,
    };
    f as unsafe extern "C" fn() as usize
}
