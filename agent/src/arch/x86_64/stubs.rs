//! Return stubs: the pool of code and slots that return probes borrow, and where they all meet.
//!
//! For a return probe the engine moves the caller's return address into slot i and sends the thread to stub i,
//! which *calls* the function: the stub's return address lands in the stack word the original one had, so stack
//! arguments stay in place, and each `ret` pairs with its call in the processor's return predictor.
//!
//! ```text
//!   stub i:  call *slot_i.target(%rip)    6 bytes     slot i: target  relocated first instruction(s)
//!   ret  i:  push slot_i.ra(%rip)         6                   ra      the caller's return address
//!            call exit_common             5                   site    whose probe this is
//!            ret                          1                   sp      where on the stack; 0 = free
//!            (22 bytes of int3)                               real    ra, seen through tail-call chains
//! ```
//! Stub i and slot i have the same stride, so one FDE covers the pool: the word at CFA-16 is `ret i`, whose `push`
//! displacement leads to the saved return address. The CFA is 8 above the callee's, since libgcc identifies
//! frames by CFA. Of several probed functions that tail-called each other the stack shows the last one's stub only,
//! hence `real`: with `ra` the unwinder would go in circles. The rule is exact wherever a caller can be suspended in a call (`ret i`) and at the first `push`;
//! a signal that lands on the two instructions after it sees one frame too few.
//!
//! Everything is preserved, r11 and the vector registers too: under -fipa-ra a caller may know that a local
//! function leaves them alone.

use std::arch::global_asm;
use std::sync::atomic::AtomicUsize;

/// How many calls may be between entry and return at once, in all threads: 640 KiB of text, as much .bss.
pub const STUBS: usize = 16384;
/// Bytes from one stub to the next, and from one slot to the next.
pub const STRIDE: usize = 40;
/// From a stub's start to its `ret i`.
pub const RET_OFF: usize = 6;
/// From a stub's start to the return address that exit_common finds.
const AFTER_CALL: usize = 17;

/// What stub i needs to know.
#[repr(C)]
pub struct Slot {
    /// Where the call goes: the relocated start of the probed function.
    pub target: AtomicUsize,
    /// The caller's return address.
    pub ra: AtomicUsize,
    /// Where the chain of calls really returns to: `ra`, unless that is another stub.
    pub real: AtomicUsize,
    /// The [`crate::hook::Site`].
    pub site: AtomicUsize,
    /// Address of the stack word that held `ra`; 0 when free, `usize::MAX` while being filled in.
    pub sp: AtomicUsize,
}
const _: () = assert!(size_of::<Slot>() == STRIDE);

global_asm!(
    ".pushsection .bss.bpft_slots,\"aw\",@nobits",
    ".balign 64",
    ".globl bpft_slots",
    ".hidden bpft_slots",
    ".type bpft_slots,@object",
    ".size bpft_slots,{stubs}*40",
    "bpft_slots: .zero {stubs}*40",
    ".popsection",
    ".pushsection .text.bpft_stubs,\"ax\",@progbits",
    ".p2align 6",
    ".globl bpft_stubs",
    ".hidden bpft_stubs",
    ".type bpft_stubs,@function",
    "bpft_stubs:",
    ".cfi_startproc",
    ".cfi_def_cfa rsp, 8",
    // rsp = CFA - 8 (DW_CFA_val_offset, factored by the data alignment -8)
    ".cfi_escape 0x14,7,1",
    // rip saved at (DW_CFA_expression r16): CFA lit16 minus deref | dup plus_uconst 2 deref_size 4, sign-extended by
    // const1u 32 shl const1u 32 shra | plus | plus_uconst 6 + 8 (real)
    ".cfi_escape 0x10,16,17, 0x40,0x1c,0x06, 0x12,0x23,2,0x94,4, 0x08,32,0x24,0x08,32,0x26, 0x22, 0x23,14",
    ".set bpft_i, 0",
    ".rept {stubs}",
    "call qword ptr [rip + bpft_slots + bpft_i]",
    "push qword ptr [rip + bpft_slots + bpft_i + 8]",
    "call bpft_exit_common",
    "ret",
    ".skip 22, 0xcc",
    ".set bpft_i, bpft_i + 40",
    ".endr",
    ".cfi_endproc",
    ".size bpft_stubs,.-bpft_stubs",
    // On entry: [rsp] = stub + 17, [rsp+8] = the caller's return address in its own place. For the unwinder the
    // stub does not exist: this was called from the caller.
    ".p2align 6",
    ".type bpft_exit_common,@function",
    "bpft_exit_common:",
    ".cfi_startproc",
    ".cfi_def_cfa rsp, 16",
    ".cfi_offset rip, -8",
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
    "mov qword ptr [rsp + 120], -1",
    "mov rdi, [rsp + 168]",
    "mov rax, [rsp + 176]",
    "mov [rsp + 128], rax",
    "mov qword ptr [rsp + 136], 0x33",
    "lea rax, [rsp + 184]",
    "mov [rsp + 152], rax",
    "mov qword ptr [rsp + 160], 0x2b",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    ".cfi_offset rbp, -152",
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
    "call {on_return}",
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
    // Flags too: hand-written functions return results in the carry flag.
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
    "mov r11, [rsp + 48]",
    "mov rbp, [rsp + 32]",
    ".cfi_restore rbp",
    "lea rsp, [rsp + 168]",
    ".cfi_adjust_cfa_offset -168",
    "ret",
    ".cfi_endproc",
    ".size bpft_exit_common,.-bpft_exit_common",
    ".popsection",
    stubs = const STUBS,
    on_return = sym crate::hook::on_return,
);

unsafe extern "C" {
    static bpft_slots: [Slot; STUBS];
    fn bpft_stubs();
}

#[inline(always)]
fn base() -> usize {
    bpft_stubs as *const () as usize
}

/// Slot `i`, `i < STUBS`.
#[inline(always)]
pub fn slot(i: usize) -> &'static Slot {
    // SAFETY: callers keep i below STUBS (indices come from the run allocator or from `index_of_*`); a Slot is
    // made of atomics.
    unsafe { bpft_slots.get_unchecked(i) }
}

/// Where a thread goes to call slot `i`'s target.
#[inline(always)]
pub fn stub_addr(i: usize) -> usize {
    base() + i * STRIDE
}

/// The return address that the stack holds while slot `i`'s call is in progress.
#[inline(always)]
pub fn ret_addr(i: usize) -> usize {
    base() + i * STRIDE + RET_OFF
}

/// The slot whose stub called exit_common and will be returned to at `after_call`.
#[inline(always)]
pub fn index_of_call(after_call: usize) -> usize {
    after_call.wrapping_sub(base() + AFTER_CALL) / STRIDE
}

/// The slot for which `ra` is the return address on the stack, if it is one of ours.
#[inline(always)]
pub fn index_of_ret(ra: usize) -> Option<usize> {
    let off = ra.wrapping_sub(base() + RET_OFF);
    (off < STUBS * STRIDE && off.is_multiple_of(STRIDE)).then_some(off / STRIDE)
}
