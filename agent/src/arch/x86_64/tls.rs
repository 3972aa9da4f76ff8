//! One pointer per thread, reached without `__tls_get_addr`.
//!
//! The variable uses the initial-exec model: its offset from the thread pointer sits in the GOT, filled in at
//! load time. A dlopened library takes the 8 bytes from the loader's static TLS surplus.

use std::arch::{asm, global_asm};

global_asm!(
    ".pushsection .tbss,\"awT\",@nobits",
    ".balign 8",
    ".globl bpft_tls_block",
    ".hidden bpft_tls_block",
    ".type bpft_tls_block,@object",
    ".size bpft_tls_block,8",
    "bpft_tls_block: .zero 8",
    ".popsection",
);

/// This thread's word; zero in a thread that never set it.
#[inline(always)]
pub fn get() -> usize {
    let v: usize;
    // SAFETY: reads our own 8-byte thread-local.
    unsafe {
        asm!("mov {v}, qword ptr [rip + bpft_tls_block@GOTTPOFF]", "mov {v}, qword ptr fs:[{v}]", v = out(reg) v,
             options(nostack, readonly, preserves_flags));
    }
    v
}

/// Sets this thread's word.
#[inline(always)]
pub fn set(v: usize) {
    // SAFETY: writes our own 8-byte thread-local.
    unsafe {
        asm!("mov {o}, qword ptr [rip + bpft_tls_block@GOTTPOFF]", "mov qword ptr fs:[{o}], {v}", o = out(reg) _,
             v = in(reg) v, options(nostack, preserves_flags));
    }
}
