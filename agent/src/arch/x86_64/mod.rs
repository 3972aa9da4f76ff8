//! x86-64: registers, instruction relocation, and the few routines that must be assembly.
//!
//! The probe path (everything reachable from `entry.rs` and `stubs.rs`) relies on this:
//! - Our code is compiled for the baseline, so it writes nothing but general registers, status flags and the
//!   low 128 bits of xmm0-15. The thunks save exactly those. ymm/zmm upper halves, k registers, x87/MMX and
//!   mxcsr are never written, hence never saved (a const assertion below refuses a build with AVX).
//! - rustc may call memcpy, memset and friends anywhere. `mem.rs` defines them hidden, so that those calls
//!   never reach the host's libc, which could use AVX, be lazily bound, or be probed itself.

pub mod copy;
pub(crate) mod dispatch;
mod entry;
pub mod flow;
pub mod guarded;
mod mem;
pub mod regs;
pub mod relocate;
pub mod stubs;
pub mod sys;
pub mod syscall;
mod syscall_entry;
pub mod tls;

pub(crate) use entry::landing;
pub use regs::PtRegs;
pub(crate) use syscall_entry::syscall_common;

const _: () = assert!(
    !cfg!(target_feature = "avx"),
    "the thunks save xmm registers only: build the agent for baseline x86-64 (no -C target-cpu=native)"
);
