//! `struct pt_regs` of x86-64: the context of kprobe-type (uprobe) programs.

/// Size in bytes of the context a `BPF_PROG_TYPE_KPROBE` program sees on x86-64 (`asm/ptrace.h`).
pub const PT_REGS_SIZE: usize = 168;
