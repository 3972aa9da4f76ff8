//! What the routines that thunks call have in common: saving registers and giving them back, and the question whether
//! a hit is one that they run by themselves.
//!
//! ```text
//!   rbp + 0     PtRegs (168 bytes)
//!   rbp - 8     status flags: lahf's byte in bits 8-15, OF in bits 0-7
//!   rbp - 16    a word for the routine that saved them
//!   rsp         Kept: vector registers, direction flag; then a Hit. 16-byte aligned
//! ```
//! The registers that calls preserve, and the words of PtRegs that are the same everywhere, are written only where
//! somebody may look at them.

use crate::hook::ThreadBlock;
use crate::run::{Hit, process};
use std::arch::global_asm;

/// Vector registers, saved by whoever is about to change one: most programs call helpers of ours that might, but
/// many hits end before.
#[repr(C, align(16))]
pub struct Kept {
    xmm: [[u64; 2]; 16],
    /// Whether the direction flag was set.
    backwards: u64,
    pad: u64,
}

/// What a hit needs on the stack besides PtRegs.
#[repr(C)]
pub(super) struct Below {
    pub kept: Kept,
    pub hit: Hit,
}

/// From rbp down to the spare word.
pub(super) const SPARE: usize = 16;
/// From rbp down to where it may begin.
pub(super) const BELOW: usize = size_of::<Below>() + SPARE;
const _: () = assert!(size_of::<Below>().is_multiple_of(16));
/// Offset of the hit in [`Below`].
pub(super) const HIT: usize = std::mem::offset_of!(Below, hit);

/// Begins a routine that thunks call: its name, where the CFA is, and what rip is for unwinders, in terms of the CFA.
macro_rules! begin {
    ($name:literal, $cfa:literal, $rip:literal) => {
        concat!(
            ".pushsection .text.bpft_entry,\"ax\",@progbits
            .p2align 6
            .globl ",
            $name,
            "
            .hidden ",
            $name,
            "
            .type ",
            $name,
            ",@function
            ",
            $name,
            ":
            .cfi_startproc
            .cfi_signal_frame
            .cfi_def_cfa rsp, ",
            $cfa,
            "
            .cfi_escape ",
            $rip
        )
    };
}

macro_rules! end {
    ($name:literal) => {
        concat!(".cfi_endproc\n.size ", $name, ",.-", $name, "\n.popsection")
    };
}

/// Makes room for PtRegs, saves what calls clobber, and points rbp to it.
macro_rules! save_scratch {
    () => {
        "lea rsp, [rsp - 184]
        .cfi_adjust_cfa_offset 184
        mov [rsp + 96], rax
        lahf
        seto al
        mov [rsp + 8], rax
        mov [rsp + 64], r11
        mov [rsp + 72], r10
        mov [rsp + 80], r9
        mov [rsp + 88], r8
        mov [rsp + 104], rcx
        mov [rsp + 112], rdx
        mov [rsp + 120], rsi
        mov [rsp + 128], rdi
        mov [rsp + 48], rbp
        .cfi_rel_offset rbp, 48
        lea rbp, [rsp + 16]
        .cfi_adjust_cfa_offset -16
        .cfi_def_cfa_register rbp"
    };
}

/// The registers that calls preserve, where a fault may end one in the middle.
macro_rules! save_preserved {
    () => {
        "mov [rbp], r15
        mov [rbp + 8], r14
        mov [rbp + 16], r13
        mov [rbp + 24], r12
        mov [rbp + 40], rbx"
    };
}

/// The words of PtRegs that `save_scratch` leaves out, but ip; sp is `{sp_after}` above. Clobbers rax and rdx.
macro_rules! fill_registers {
    () => {
        concat!(
            save_preserved!(),
            "
        mov qword ptr [rbp + 120], -1
        mov qword ptr [rbp + 136], 0x33
        mov qword ptr [rbp + 160], 0x2b
        lea rdx, [rbp + {sp_after}]
        mov [rbp + 152], rdx
        pushfq
        pop rax
        and eax, 0x3ff72a // all but the status flags
        movzx edx, byte ptr [rbp - 7]
        and edx, 0xd5
        or eax, edx
        movzx edx, byte ptr [rbp - 8]
        shl edx, 11
        or eax, edx
        mov [rbp + 144], rax"
        )
    };
}

/// The reverse of `save_scratch`, but for the flags.
macro_rules! restore_scratch {
    () => {
        "mov rax, [rbp + 80]
        mov rcx, [rbp + 88]
        mov rdx, [rbp + 96]
        mov rsi, [rbp + 104]
        mov rdi, [rbp + 112]
        mov r8, [rbp + 72]
        mov r9, [rbp + 64]
        mov r10, [rbp + 56]
        mov r11, [rbp + 48]
        lea rsp, [rbp + 168]
        .cfi_def_cfa_register rsp
        .cfi_adjust_cfa_offset -168
        mov rbp, [rbp + 32]
        .cfi_restore rbp"
    };
}

/// Status flags from where `save_scratch` put them: clobbers rax. popfq would cost 3.5 ns.
macro_rules! restore_flags {
    () => {
        "mov rax, [rbp - 8]
        add al, 0x7f // OF; sahf leaves it alone
        sahf"
    };
}

/// The thread's block into a register; 0 in a thread that has none yet.
macro_rules! thread_block {
    ($reg:literal) => {
        concat!(
            "mov ",
            $reg,
            ", qword ptr [rip + bpft_tls_block@GOTTPOFF]\nmov ",
            $reg,
            ", qword ptr fs:[",
            $reg,
            "]"
        )
    };
}

/// Enters a callback, with the thread's block in rcx, if hits of this thread are nothing special and this one is in
/// no other; else goes to 8. As `ThreadBlock::enter`, before the hit looks at anything that may be freed. Clobbers rdx.
macro_rules! enter_or_8 {
    () => {
        concat!(
            thread_block!("rcx"),
            "
        test rcx, rcx
        jz 8f
        mov rdx, [rip + {pid_page}]
        mov edx, [rdx + {usual_pid}]
        cmp edx, [rcx + {usual} + 4]
        jne 8f
        cmp word ptr [rcx + {active}], 0
        jne 8f
        inc qword ptr [rcx + {active}]"
        )
    };
}

/// As `ThreadBlock::leave` of the outermost callback: the depth goes from 1 to 0, and the count above it up by one.
macro_rules! leave {
    () => {
        "add qword ptr [rcx + {active}], 0xffff"
    };
}

/// `$call`(rdi, rsi) with everything saved: for compiled Rust. rsp ends up where the vector registers are.
macro_rules! call_rust {
    ($arguments:literal, $call:literal) => {
        concat!(
            "lea rsp, [rbp - {below}]
        and rsp, -16
        mov r10, rsp
        call bpft_keep
        ",
            $arguments,
            "
        call ",
            $call,
            "
        mov r10, rsp
        call bpft_give_back"
        )
    };
}

pub(super) use {
    begin, call_rust, end, enter_or_8, fill_registers, leave, restore_flags, restore_scratch, save_preserved,
    save_scratch, thread_block,
};

/// Offset of the number of the process in [`ThreadBlock::usual`] is 4: the high half.
pub(super) const USUAL: usize = std::mem::offset_of!(ThreadBlock, usual);
pub(super) const ACTIVE: usize = std::mem::offset_of!(ThreadBlock, active);
/// What `enter_or_8` compares it with.
pub(super) const USUAL_PID: usize = std::mem::offset_of!(process::Ids, usual);

// r10: the Kept, which stays in it. Both clobber r11 only.
//
// The direction flag is set in hand-written code only, but then our functions must not see it. Reading the flags
// costs more than looking which way a string instruction goes.
global_asm!(
    ".pushsection .text.bpft_entry,\"ax\",@progbits",
    ".p2align 4",
    ".globl bpft_keep",
    ".hidden bpft_keep",
    ".type bpft_keep,@function",
    "bpft_keep:",
    ".cfi_startproc",
    "movaps [r10], xmm0",
    "movaps [r10 + 16], xmm1",
    "movaps [r10 + 32], xmm2",
    "movaps [r10 + 48], xmm3",
    "movaps [r10 + 64], xmm4",
    "movaps [r10 + 80], xmm5",
    "movaps [r10 + 96], xmm6",
    "movaps [r10 + 112], xmm7",
    "movaps [r10 + 128], xmm8",
    "movaps [r10 + 144], xmm9",
    "movaps [r10 + 160], xmm10",
    "movaps [r10 + 176], xmm11",
    "movaps [r10 + 192], xmm12",
    "movaps [r10 + 208], xmm13",
    "movaps [r10 + 224], xmm14",
    "movaps [r10 + 240], xmm15",
    "mov r11, rdi",
    "mov rdi, rsp",
    "scasb",
    "cmp rdi, rsp",
    "mov rdi, r11",
    "mov r11d, 0",
    "ja 2f",
    "cld",
    "inc r11d",
    "2:",
    "mov [r10 + {backwards}], r11",
    "ret",
    ".cfi_endproc",
    ".size bpft_keep,.-bpft_keep",
    ".p2align 4",
    ".globl bpft_give_back",
    ".hidden bpft_give_back",
    ".type bpft_give_back,@function",
    "bpft_give_back:",
    ".cfi_startproc",
    "movaps xmm0, [r10]",
    "movaps xmm1, [r10 + 16]",
    "movaps xmm2, [r10 + 32]",
    "movaps xmm3, [r10 + 48]",
    "movaps xmm4, [r10 + 64]",
    "movaps xmm5, [r10 + 80]",
    "movaps xmm6, [r10 + 96]",
    "movaps xmm7, [r10 + 112]",
    "movaps xmm8, [r10 + 128]",
    "movaps xmm9, [r10 + 144]",
    "movaps xmm10, [r10 + 160]",
    "movaps xmm11, [r10 + 176]",
    "movaps xmm12, [r10 + 192]",
    "movaps xmm13, [r10 + 208]",
    "movaps xmm14, [r10 + 224]",
    "movaps xmm15, [r10 + 240]",
    "cmp byte ptr [r10 + {backwards}], 0",
    "je 2f",
    "std",
    "2:",
    "ret",
    ".cfi_endproc",
    ".size bpft_give_back,.-bpft_give_back",
    ".popsection",
    backwards = const std::mem::offset_of!(Kept, backwards),
);
