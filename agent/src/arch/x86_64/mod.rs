//! x86-64: registers, instruction relocation, and the few routines that must be assembly.
//!
//! The probe path (everything reachable from `entry.rs` and `stubs.rs`) relies on this:
//! - Our code is compiled for the baseline, so it writes nothing but general registers, status flags and the
//!   low 128 bits of xmm0-15. ymm/zmm upper halves, k registers, x87/MMX and mxcsr are never written, hence never
//!   saved (a const assertion below refuses a build with AVX).
//! - The assembly of `entry.rs`, `exit.rs`, `syscall_entry.rs` and `runner.rs` writes no xmm register, and relies on no
//!   direction flag.
//!   Both are put aside (`frame.rs`) before anything compiled by rustc runs, and before a program whose image says
//!   that it writes vector registers; helpers do it themselves, the first of a hit for all (`run::helpers`), unless their machine code shows that they
//!   need not (`lean.rs`).
//! - rustc may call memcpy, memset and friends anywhere. `mem.rs` defines them hidden, so that those calls
//!   never reach the host's libc, which could use AVX, be lazily bound, or be probed itself.

pub mod copy;
pub(crate) mod dispatch;
mod entry;
mod exit;
pub mod flow;
pub mod frame;
pub mod guarded;
mod lean;
mod mem;
pub mod regs;
pub mod relocate;
pub(crate) mod runner;
pub mod stubs;
pub mod sys;
pub mod syscall;
mod syscall_entry;
pub mod tls;

pub(crate) use entry::Landing;
pub use lean::leaves_vectors_alone;
pub use regs::PtRegs;
pub(crate) use syscall_entry::syscall_common;

const _: () = assert!(
    !cfg!(target_feature = "avx"),
    "the thunks save xmm registers only: build the agent for baseline x86-64 (no -C target-cpu=native)"
);
