//! The kernel's BPF and perf ABI as facts: numbers, layouts and tables, no behaviour.
//!
//! Rules for a change here:
//! * every number and layout comes from the uapi headers (`linux/bpf.h`, `linux/perf_event.h`); names are the kernel's;
//! * a fact that two crates need is a row in a table here, once;
//! * layouts are `repr(C)` with asserted sizes, and can be built from any bytes.

pub mod attr;
pub mod cmd;
pub mod config;
pub mod field;
pub mod format;
pub mod helper;
pub mod map_type;
pub mod perf;
pub mod prog_type;
pub mod regs;
pub mod syscall;
pub mod task;

/// Length of `BPF_OBJ_NAME_LEN`: object names, terminator included.
pub const OBJ_NAME_LEN: usize = 16;
