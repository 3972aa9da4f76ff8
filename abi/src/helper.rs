//! Helper functions: one row each, with its prototype. The agent must implement every row (it builds its address table
//! from this list), the server answers feature probes from it, the verifier takes its prototypes from it.
//!
//! No row, and so refused at load with the kernel's words ([`full_name`]): helpers of network, cgroup and security
//! programs, and those that only a kernel can answer: addresses of kernel variables (153, 154), vm areas (180), branch
//! records (119, 176), hardware counters of other contexts (22, 55), types of kernel memory (149), kernel objects in
//! maps (194, 210, 211).

mod names;

/// What a helper expects in one of r1 to r5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// Any initialised register.
    Any,
    /// A map, as `lddw` loads it.
    Map,
    /// `key_size` bytes of the map in an earlier argument, read.
    MapKey,
    /// `value_size` bytes of the map in an earlier argument, read.
    MapValue,
    /// As [`Arg::MapValue`], or NULL.
    MapValueOrNull,
    /// `value_size` bytes of the map in an earlier argument, written without being read; of a Bloom filter, read.
    MapValueOut,
    /// Memory that is read; its size is the next argument.
    Mem,
    /// Memory that is read, or NULL; its size is the next argument.
    MemOrNull,
    /// Memory that is written without being read; its size is the next argument.
    MemOut,
    /// As [`Arg::MemOut`], or NULL.
    MemOutOrNull,
    /// An aligned u64 that is written.
    Word,
    /// Bytes of the memory before it, at least one.
    Size,
    /// Bytes of the memory before it. With none, the memory may be NULL.
    SizeOrZero,
    /// The context, unmodified.
    Ctx,
    /// Bytes to reserve, a known constant.
    AllocSize,
    /// The start of a reserved record, which the call gives up.
    Record,
    /// A function of the program.
    Callback,
    /// What a callback gets: a stack address or NULL.
    CallbackCtx,
    /// A string that ends inside of a frozen, read-only map.
    ConstStr,
    /// A task.
    Task,
    /// A dynptr on the stack that is to be made, of any memory.
    DynptrOut,
    /// A dynptr on the stack that is to be made, of a ring buffer record.
    DynptrRecordOut,
    /// A dynptr that is read.
    Dynptr,
    /// A dynptr of a ring buffer record, which the call gives up.
    DynptrRecord,
    /// Bytes of a dynptr to point to, a known constant.
    SliceSize,
}

/// Bytes of the registers of a task: `struct pt_regs` of x86-64.
pub const REGISTERS_SIZE: u32 = 168;

/// What a helper leaves in r0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// Any number.
    Number,
    /// A number up to the size in the argument list, or a negative errno: at least -4095 (`MAX_ERRNO`).
    Length,
    /// Nothing that a program may use.
    Nothing,
    /// A value of the map in the first argument, or NULL.
    MapValueOrNull,
    /// A ring buffer record of as many bytes as the allocation size says, or NULL. It must be given up.
    RecordOrNull,
    /// The current task.
    Task,
    /// The registers of a task.
    Registers,
    /// As many bytes of the dynptr in the first argument as the slice size says, or NULL.
    SliceOrNull,
    /// Eight bytes that the program may write.
    Word,
}

/// The prototype of a helper (bpf-helpers(7); types and licence as the kernel's verifier answers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proto {
    /// Arguments, r1 first.
    pub args: &'static [Arg],
    /// Result.
    pub ret: Ret,
    /// Only for programs with a licence that is compatible with the GPL.
    pub gpl_only: bool,
}

macro_rules! helpers {
    ($($id:literal $name:ident($($arg:ident),*) -> $ret:ident $($gpl:ident)?;)*) => {
        /// Helper numbers by kernel name.
        #[allow(missing_docs)]
        #[allow(non_upper_case_globals)]
        pub mod id { $(pub const $name: u32 = $id;)* }

        /// Calls `$m!` with all rows as `id name;`, for tables that must cover every helper.
        #[macro_export]
        macro_rules! for_each_helper { ($m:ident) => { $m! { $($id $name;)* } }; }

        /// `(number, name)` of every helper that bpftime has, in numerical order.
        pub const NAMES: &[(u32, &str)] = &[$(($id, stringify!($name))),*];

        /// Prototypes in the order of [`NAMES`].
        const PROTOS: &[Proto] = &[$(
            Proto { args: &[$(Arg::$arg),*], ret: Ret::$ret, gpl_only: helpers!(@gpl $($gpl)?) },
        )*];
    };
    (@gpl gpl) => { true };
    (@gpl) => { false };
}

helpers! {
    1 map_lookup_elem(Map, MapKey) -> MapValueOrNull;
    2 map_update_elem(Map, MapKey, MapValue, Any) -> Number;
    3 map_delete_elem(Map, MapKey) -> Number;
    4 probe_read(MemOut, SizeOrZero, Any) -> Number gpl;
    5 ktime_get_ns() -> Number;
    6 trace_printk(Mem, Size) -> Number gpl;
    7 get_prandom_u32() -> Number;
    8 get_smp_processor_id() -> Number;
    12 tail_call(Ctx, Map, Any) -> Nothing;
    14 get_current_pid_tgid() -> Number;
    15 get_current_uid_gid() -> Number;
    16 get_current_comm(MemOut, Size) -> Number;
    25 perf_event_output(Ctx, Map, Any, Mem, SizeOrZero) -> Number gpl;
    27 get_stackid(Ctx, Map, Any) -> Number gpl;
    35 get_current_task() -> Number gpl;
    36 probe_write_user(Any, Mem, Size) -> Number gpl;
    37 current_task_under_cgroup(Map, Any) -> Number;
    42 get_numa_node_id() -> Number;
    45 probe_read_str(MemOut, SizeOrZero, Any) -> Length gpl;
    58 override_return(Ctx, Any) -> Number gpl;
    67 get_stack(Ctx, MemOut, SizeOrZero, Any) -> Length gpl;
    80 get_current_cgroup_id() -> Number;
    87 map_push_elem(Map, MapValue, Any) -> Number;
    88 map_pop_elem(Map, MapValueOut) -> Number;
    89 map_peek_elem(Map, MapValueOut) -> Number;
    105 strtol(Mem, Size, Any, Word) -> Number;
    106 strtoul(Mem, Size, Any, Word) -> Number;
    109 send_signal(Any) -> Number;
    112 probe_read_user(MemOut, SizeOrZero, Any) -> Number gpl;
    113 probe_read_kernel(MemOut, SizeOrZero, Any) -> Number gpl;
    114 probe_read_user_str(MemOut, SizeOrZero, Any) -> Length gpl;
    115 probe_read_kernel_str(MemOut, SizeOrZero, Any) -> Length gpl;
    117 send_signal_thread(Any) -> Number;
    118 jiffies64() -> Number;
    120 get_ns_current_pid_tgid(Any, Any, MemOut, Size) -> Number;
    123 get_current_ancestor_cgroup_id(Any) -> Number;
    125 ktime_get_boot_ns() -> Number;
    130 ringbuf_output(Map, Mem, SizeOrZero, Any) -> Number;
    131 ringbuf_reserve(Map, AllocSize, Any) -> RecordOrNull;
    132 ringbuf_submit(Record, Any) -> Nothing;
    133 ringbuf_discard(Record, Any) -> Nothing;
    134 ringbuf_query(Map, Any) -> Number;
    141 get_task_stack(Task, MemOut, SizeOrZero, Any) -> Length;
    148 copy_from_user(MemOut, SizeOrZero, Any) -> Number;
    156 task_storage_get(Map, Task, MapValueOrNull, Any) -> MapValueOrNull;
    157 task_storage_delete(Map, Task) -> Number;
    158 get_current_task_btf() -> Task gpl;
    160 ktime_get_coarse_ns() -> Number;
    164 for_each_map_elem(Map, Callback, CallbackCtx, Any) -> Number;
    165 snprintf(MemOutOrNull, SizeOrZero, ConstStr, MemOrNull, SizeOrZero) -> Number gpl;
    173 get_func_ip(Ctx) -> Number gpl;
    174 get_attach_cookie(Ctx) -> Number;
    175 task_pt_regs(Task) -> Registers gpl;
    177 trace_vprintk(Mem, Size, MemOrNull, SizeOrZero) -> Number gpl;
    181 bpf_loop(Any, Callback, CallbackCtx, Any) -> Number;
    182 strncmp(Mem, Size, ConstStr) -> Number;
    191 copy_from_user_task(MemOut, SizeOrZero, Any, Task, Any) -> Number gpl;
    195 map_lookup_percpu_elem(Map, MapKey, Any) -> MapValueOrNull;
    197 dynptr_from_mem(MemOut, SizeOrZero, Any, DynptrOut) -> Number;
    198 ringbuf_reserve_dynptr(Map, Any, Any, DynptrRecordOut) -> Number;
    199 ringbuf_submit_dynptr(DynptrRecord, Any) -> Nothing;
    200 ringbuf_discard_dynptr(DynptrRecord, Any) -> Nothing;
    201 dynptr_read(MemOut, SizeOrZero, Dynptr, Any, Any) -> Number;
    202 dynptr_write(Dynptr, Any, Mem, SizeOrZero, Any) -> Number;
    203 dynptr_data(Dynptr, Any, SliceSize) -> SliceOrNull;
    208 ktime_get_tai_ns() -> Number;
    209 user_ringbuf_drain(Map, Callback, CallbackCtx, Any) -> Number;
    65536 session_is_return() -> Number gpl;
    65537 session_cookie() -> Word gpl;
}

/// From here on the rows are kernel functions: programs call them by their BTF id, which the loader makes one of these
/// numbers. A program that calls such a number as a helper is refused.
pub const KFUNC_FIRST: u32 = 65536;

/// The number of the kernel function of this name, if bpftime has it.
pub fn kfunc(name: &[u8]) -> Option<u32> {
    let name = name.strip_prefix(b"bpf_")?;
    NAMES.iter().find(|(n, row)| *n >= KFUNC_FIRST && row.as_bytes() == name).map(|(n, _)| *n)
}

/// The highest helper number the kernel (6.18) knows.
pub const KERNEL_HELPER_MAX: u32 = names::ALL.len() as u32;
const _: () = assert!(KERNEL_HELPER_MAX == 211);

fn row(id: u32) -> Option<usize> {
    NAMES.binary_search_by_key(&id, |(n, _)| *n).ok()
}

/// Whether bpftime has the helper.
pub fn exists(id: u32) -> bool {
    row(id).is_some()
}

/// The kernel's name of a helper that bpftime has, without `bpf_`.
pub fn name(id: u32) -> Option<&'static str> {
    row(id).map(|at| NAMES[at].1)
}

/// The kernel's name of any helper that the kernel knows, with `bpf_`.
pub fn full_name(id: u32) -> Option<&'static str> {
    names::ALL.get(id.checked_sub(1)? as usize).copied()
}

/// The prototype of a helper that bpftime has.
pub fn proto(id: u32) -> Option<&'static Proto> {
    row(id).map(|at| &PROTOS[at])
}
