//! Helper functions: one row each. The agent must implement every row (it builds its address table from this list), the
//! server answers feature probes from it, the verifier will take its prototypes from it.

macro_rules! helpers {
    ($($id:literal $name:ident;)*) => {
        /// Helper numbers by kernel name.
        #[allow(missing_docs)]
        #[allow(non_upper_case_globals)]
        pub mod id { $(pub const $name: u32 = $id;)* }

        /// Calls `$m!` with all rows as `id name;`, for tables that must cover every helper.
        #[macro_export]
        macro_rules! for_each_helper { ($m:ident) => { $m! { $($id $name;)* } }; }

        /// `(number, name)` of every helper that bpftime has, in numerical order.
        pub const NAMES: &[(u32, &str)] = &[$(($id, stringify!($name))),*];
    };
}

helpers! {
    1 map_lookup_elem;
    2 map_update_elem;
    3 map_delete_elem;
    4 probe_read;
    5 ktime_get_ns;
    7 get_prandom_u32;
    8 get_smp_processor_id;
    14 get_current_pid_tgid;
    15 get_current_uid_gid;
    16 get_current_comm;
    25 perf_event_output;
    27 get_stackid;
    35 get_current_task;
    37 current_task_under_cgroup;
    45 probe_read_str;
    67 get_stack;
    80 get_current_cgroup_id;
    112 probe_read_user;
    113 probe_read_kernel;
    114 probe_read_user_str;
    115 probe_read_kernel_str;
    118 jiffies64;
    125 ktime_get_boot_ns;
    130 ringbuf_output;
    131 ringbuf_reserve;
    132 ringbuf_submit;
    133 ringbuf_discard;
    134 ringbuf_query;
    160 ktime_get_coarse_ns;
    164 for_each_map_elem;
    173 get_func_ip;
    174 get_attach_cookie;
    181 bpf_loop;
    182 strncmp;
    208 ktime_get_tai_ns;
}

/// The highest helper number the kernel (6.18) knows.
pub const KERNEL_HELPER_MAX: u32 = 211;

/// Whether bpftime has the helper.
pub fn exists(id: u32) -> bool {
    NAMES.binary_search_by_key(&id, |(n, _)| *n).is_ok()
}
