//! Return stubs: the pool of code and slots that return probes borrow. They all meet in exit.rs.
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
//!            (30 bytes of int3)                               real    ra, seen through tail-call chains
//!                                                             before  the thread's cursor: hook/returns.rs
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
use std::sync::atomic::{AtomicU64, AtomicUsize};

/// How many calls may be between entry and return at once, in all threads: 768 KiB of text, as much .bss.
pub const STUBS: usize = 16384;
/// Bytes from one stub to the next, and from one slot to the next.
pub const STRIDE: usize = 48;
/// From a stub's start to its `ret i`.
pub const RET_OFF: usize = 6;
/// From a stub's start to the return address that exit_common finds.
pub(super) const AFTER_CALL: usize = 17;

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
    /// What the thread's cursor was when it took this slot, and is again when nothing but this slot is to be freed.
    pub before: AtomicU64,
}
const _: () = assert!(size_of::<Slot>() == STRIDE);

global_asm!(
    ".pushsection .bss.bpft_slots,\"aw\",@nobits",
    ".balign 64",
    ".globl bpft_slots",
    ".hidden bpft_slots",
    ".type bpft_slots,@object",
    ".size bpft_slots,{stubs}*{stride}",
    "bpft_slots: .zero {stubs}*{stride}",
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
    ".skip {stride} - 18, 0xcc",
    ".set bpft_i, bpft_i + {stride}",
    ".endr",
    ".cfi_endproc",
    ".size bpft_stubs,.-bpft_stubs",
    ".popsection",
    stubs = const STUBS,
    stride = const STRIDE,
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

/// The slot whose stub begins at `addr`.
#[inline(always)]
pub fn index_of_stub(addr: usize) -> usize {
    addr.wrapping_sub(base()) / STRIDE
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
