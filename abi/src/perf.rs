//! perf_event_open(2): attribute layout, types and ioctls (`linux/perf_event.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct perf_event_attr` up to `PERF_ATTR_SIZE_VER8`. Bit fields stand in `flags`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct PerfEventAttr {
    pub type_: u32,
    pub size: u32,
    pub config: u64,
    /// Period in events, or frequency in Hz when [`ATTR_FREQ`] is set.
    pub sample_period: u64,
    pub sample_type: u64,
    pub read_format: u64,
    pub flags: u64,
    pub wakeup_events: u32,
    pub bp_type: u32,
    pub config1: u64,
    pub config2: u64,
    pub branch_sample_type: u64,
    pub sample_regs_user: u64,
    pub sample_stack_user: u32,
    pub clockid: i32,
    pub sample_regs_intr: u64,
    pub aux_watermark: u32,
    pub sample_max_stack: u16,
    pub reserved_2: u16,
    pub aux_sample_size: u32,
    pub reserved_3: u32,
    pub sig_data: u64,
    pub config3: u64,
}
const _: () = assert!(size_of::<PerfEventAttr>() == 136);

/// `PERF_ATTR_SIZE_VER0`, what a size of zero means and the shortest the kernel takes.
pub const ATTR_SIZE_VER0: u32 = 64;
/// Bit `disabled` of `perf_event_attr.flags`.
pub const ATTR_DISABLED: u64 = 1 << 0;
/// Bit `inherit`: new threads and processes have the event too.
pub const ATTR_INHERIT: u64 = 1 << 1;
/// Bit `exclude_user`.
pub const ATTR_EXCLUDE_USER: u64 = 1 << 4;
/// Bit `exclude_kernel`.
pub const ATTR_EXCLUDE_KERNEL: u64 = 1 << 5;
/// Bit `exclude_hv`.
pub const ATTR_EXCLUDE_HV: u64 = 1 << 6;
/// Bit `freq` of `perf_event_attr.flags`.
pub const ATTR_FREQ: u64 = 1 << 10;
/// Both bits of `precise_ip`.
pub const ATTR_PRECISE_IP: u64 = 3 << 15;
/// Bit `inherit_thread`: of what inherits, only threads (Linux 5.13, as the next two).
pub const ATTR_INHERIT_THREAD: u64 = 1 << 35;
/// Bit `remove_on_exec`.
pub const ATTR_REMOVE_ON_EXEC: u64 = 1 << 36;
/// Bit `sigtrap`: each sample is a SIGTRAP in the thread it is of.
pub const ATTR_SIGTRAP: u64 = 1 << 37;

/// `PERF_TYPE_HARDWARE`.
pub const PERF_TYPE_HARDWARE: u32 = 0;
/// `PERF_TYPE_SOFTWARE`.
pub const PERF_TYPE_SOFTWARE: u32 = 1;
/// `PERF_TYPE_TRACEPOINT`.
pub const PERF_TYPE_TRACEPOINT: u32 = 2;
/// `PERF_TYPE_HW_CACHE`.
pub const PERF_TYPE_HW_CACHE: u32 = 3;
/// `PERF_TYPE_RAW`.
pub const PERF_TYPE_RAW: u32 = 4;
/// `PERF_TYPE_BREAKPOINT`.
pub const PERF_TYPE_BREAKPOINT: u32 = 5;
/// The dynamic PMU type of `uprobe` on every kernel so far, used when sysfs does not say.
pub const UPROBE_PMU_DEFAULT: u32 = 8;
/// The PMU type of `kprobe` where the kernel has none: beyond what kernels give out.
pub const KPROBE_PMU_OURS: u32 = 0x4250_0001;

/// `PERF_COUNT_SW_CPU_CLOCK`.
pub const PERF_COUNT_SW_CPU_CLOCK: u64 = 0;
/// `PERF_COUNT_SW_TASK_CLOCK`.
pub const PERF_COUNT_SW_TASK_CLOCK: u64 = 1;
/// `PERF_COUNT_SW_BPF_OUTPUT`.
pub const PERF_COUNT_SW_BPF_OUTPUT: u64 = 10;
/// `PERF_COUNT_SW_MAX`.
pub const PERF_COUNT_SW_MAX: u64 = 12;
/// `PERF_SAMPLE_RAW`.
pub const PERF_SAMPLE_RAW: u64 = 1 << 10;

/// `PERF_EVENT_IOC_ENABLE`.
pub const IOC_ENABLE: u64 = 0x2400;
/// `PERF_EVENT_IOC_DISABLE`.
pub const IOC_DISABLE: u64 = 0x2401;
/// `PERF_EVENT_IOC_REFRESH`.
pub const IOC_REFRESH: u64 = 0x2402;
/// `PERF_EVENT_IOC_RESET`.
pub const IOC_RESET: u64 = 0x2403;
/// `PERF_EVENT_IOC_PERIOD`.
pub const IOC_PERIOD: u64 = 0x4008_2404;
/// `PERF_EVENT_IOC_SET_OUTPUT`.
pub const IOC_SET_OUTPUT: u64 = 0x2405;
/// `PERF_EVENT_IOC_ID`.
pub const IOC_ID: u64 = 0x8008_2407;
/// `PERF_EVENT_IOC_SET_BPF`.
pub const IOC_SET_BPF: u64 = 0x4004_2408;

/// `PERF_EVENT_IOC_QUERY_BPF`.
pub const IOC_QUERY_BPF: u64 = 0xc008_240a;
/// `PERF_EVENT_IOC_MODIFY_ATTRIBUTES`.
pub const IOC_MODIFY_ATTRIBUTES: u64 = 0x4008_240b;

/// `PERF_FLAG_FD_NO_GROUP`.
pub const FLAG_FD_NO_GROUP: u64 = 1;
/// `PERF_FLAG_FD_OUTPUT`.
pub const FLAG_FD_OUTPUT: u64 = 2;
/// `PERF_FLAG_PID_CGROUP`.
pub const FLAG_PID_CGROUP: u64 = 4;
/// `PERF_FLAG_FD_CLOEXEC`.
pub const FLAG_FD_CLOEXEC: u64 = 8;
