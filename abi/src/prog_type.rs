//! Program types and attach types (`enum bpf_prog_type`, `enum bpf_attach_type`).

macro_rules! prog_types {
    ($($name:ident = $n:literal;)*) => {
        $(#[doc = concat!("`", stringify!($name), "`.")] pub const $name: u32 = $n;)*
        /// `(number, kernel name)` of every program type.
        pub const NAMES: &[(u32, &str)] = &[$(($n, stringify!($name))),*];
    };
}

prog_types! {
    BPF_PROG_TYPE_SOCKET_FILTER = 1;
    BPF_PROG_TYPE_KPROBE = 2;
    BPF_PROG_TYPE_SCHED_CLS = 3;
    BPF_PROG_TYPE_SCHED_ACT = 4;
    BPF_PROG_TYPE_TRACEPOINT = 5;
    BPF_PROG_TYPE_XDP = 6;
    BPF_PROG_TYPE_PERF_EVENT = 7;
    BPF_PROG_TYPE_CGROUP_SKB = 8;
    BPF_PROG_TYPE_RAW_TRACEPOINT = 17;
    BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE = 24;
    BPF_PROG_TYPE_TRACING = 26;
    BPF_PROG_TYPE_SYSCALL = 31;
}

/// The kernel's name of a program type without its prefix, in lower case as bpftool prints it.
pub fn short_name(prog_type: u32) -> String {
    let full = NAMES.iter().find(|(n, _)| *n == prog_type).map(|(_, s)| *s);
    full.map_or_else(
        || format!("type {prog_type}"),
        |s| s.trim_start_matches("BPF_PROG_TYPE_").to_lowercase(),
    )
}

/// Whether programs of this type are run by the tool itself: by BPF_PROG_TEST_RUN and by timers.
pub fn runs_in_tool(prog_type: u32) -> bool {
    matches!(prog_type, BPF_PROG_TYPE_RAW_TRACEPOINT | BPF_PROG_TYPE_SYSCALL | BPF_PROG_TYPE_PERF_EVENT)
}

/// Largest program type number the kernel knows (`BPF_PROG_TYPE_NETFILTER`).
pub const PROG_TYPE_MAX: u32 = 32;

/// `BPF_PERF_EVENT`: a link that attaches a program to a perf event.
pub const BPF_PERF_EVENT: u32 = 41;
/// `BPF_TRACE_KPROBE_MULTI`.
pub const BPF_TRACE_KPROBE_MULTI: u32 = 42;
/// `BPF_TRACE_UPROBE_MULTI`.
pub const BPF_TRACE_UPROBE_MULTI: u32 = 48;
/// `BPF_TRACE_UPROBE_SESSION`: one program at a function's entry and again at its return.
pub const BPF_TRACE_UPROBE_SESSION: u32 = 57;
/// `BPF_LINK_TYPE_RAW_TRACEPOINT`.
pub const BPF_LINK_TYPE_RAW_TRACEPOINT: u32 = 1;
/// `BPF_LINK_TYPE_PERF_EVENT`.
pub const BPF_LINK_TYPE_PERF_EVENT: u32 = 7;
/// `BPF_LINK_TYPE_UPROBE_MULTI`.
pub const BPF_LINK_TYPE_UPROBE_MULTI: u32 = 12;
