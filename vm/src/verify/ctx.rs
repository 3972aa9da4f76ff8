//! The context by program type: what may be read of it. Nothing may be written, but by programs of system calls.

use super::error::{Check, access};
use super::explore::Verifier;
use super::memory::{Span, Use};
use bpftime_abi::prog_type::*;

/// `sizeof(struct pt_regs)` on x86-64.
const PT_REGS: i64 = 168;
/// `PERF_MAX_TRACE_SIZE`.
const TRACE_RECORD: i64 = 8192;
/// `MAX_BPF_FUNC_ARGS` arguments of a raw tracepoint.
const RAW_ARGS: i64 = 12 * 8;
/// `sample_period` and `addr` behind the registers of `struct bpf_perf_event_data`.
const PERF_DATA: i64 = PT_REGS + 16;

/// `U16_MAX`: what BPF_PROG_TEST_RUN takes for a program of system calls.
const SYSCALL_CTX: i64 = 65535;

impl Verifier<'_> {
    pub fn context(&mut self, _at: usize, span: &Span, usage: Use) -> Check {
        let (reg, size) = (span.reg, span.size);
        if span.ptr.num.constant().is_none() {
            let var = span.ptr.num.bits;
            return access(format!(
                "variable ctx access var_off=({:#x}; {:#x}) disallowed",
                var.value, var.mask
            ));
        }
        let moved = span.ptr.fixed_off().unwrap_or(0);
        if moved < 0 {
            return access(format!("negative offset ctx ptr R{reg} off={moved} disallowed"));
        }
        if moved != 0 {
            return access(format!("dereference of modified ctx ptr R{reg} off={moved} disallowed"));
        }
        let writes = usage == Use::Write && self.env.prog_type() != BPF_PROG_TYPE_SYSCALL;
        if writes || !readable(self.env.prog_type(), span.off, size) {
            return access(format!("invalid bpf_context access off={} size={size}", span.off));
        }
        self.proved.ctx_bytes = self.proved.ctx_bytes.max((span.off + size) as u32);
        Ok(())
    }
}

/// Whether a program of this type may read these bytes.
fn readable(prog_type: u32, off: i64, size: i64) -> bool {
    let aligned = off >= 0 && off % size == 0;
    let end = off + size;
    aligned
        && match prog_type {
            BPF_PROG_TYPE_KPROBE => end <= PT_REGS,
            BPF_PROG_TYPE_TRACEPOINT => off >= 8 && end <= TRACE_RECORD,
            BPF_PROG_TYPE_RAW_TRACEPOINT => end <= RAW_ARGS,
            BPF_PROG_TYPE_PERF_EVENT if off < PT_REGS => size == 8,
            BPF_PROG_TYPE_PERF_EVENT => end <= PERF_DATA,
            BPF_PROG_TYPE_SYSCALL => off < SYSCALL_CTX,
            _ => false,
        }
}
