//! Map types and map flags (`enum bpf_map_type`, `BPF_F_*`).

macro_rules! map_types {
    ($($name:ident = $n:literal;)*) => {
        $(#[doc = concat!("`", stringify!($name), "`.")] pub const $name: u32 = $n;)*
        /// `(number, kernel name)` of every map type.
        pub const NAMES: &[(u32, &str)] = &[$(($n, stringify!($name))),*];
    };
}

map_types! {
    BPF_MAP_TYPE_UNSPEC = 0;
    BPF_MAP_TYPE_HASH = 1;
    BPF_MAP_TYPE_ARRAY = 2;
    BPF_MAP_TYPE_PROG_ARRAY = 3;
    BPF_MAP_TYPE_PERF_EVENT_ARRAY = 4;
    BPF_MAP_TYPE_PERCPU_HASH = 5;
    BPF_MAP_TYPE_PERCPU_ARRAY = 6;
    BPF_MAP_TYPE_STACK_TRACE = 7;
    BPF_MAP_TYPE_CGROUP_ARRAY = 8;
    BPF_MAP_TYPE_LRU_HASH = 9;
    BPF_MAP_TYPE_LRU_PERCPU_HASH = 10;
    BPF_MAP_TYPE_LPM_TRIE = 11;
    BPF_MAP_TYPE_ARRAY_OF_MAPS = 12;
    BPF_MAP_TYPE_HASH_OF_MAPS = 13;
    BPF_MAP_TYPE_QUEUE = 22;
    BPF_MAP_TYPE_STACK = 23;
    BPF_MAP_TYPE_RINGBUF = 27;
    BPF_MAP_TYPE_TASK_STORAGE = 29;
    BPF_MAP_TYPE_BLOOM_FILTER = 30;
    BPF_MAP_TYPE_USER_RINGBUF = 31;
}

/// The kernel's name of a map type without its prefix, in lower case as bpftool prints it.
pub fn short_name(map_type: u32) -> String {
    let full = NAMES.iter().find(|(n, _)| *n == map_type).map(|(_, s)| *s);
    full.map_or_else(|| format!("type {map_type}"), |s| s.trim_start_matches("BPF_MAP_TYPE_").to_lowercase())
}

/// `BPF_F_MMAPABLE`: array values may be mapped by the tool.
pub const BPF_F_MMAPABLE: u32 = 1 << 10;
/// `BPF_F_RDONLY_PROG`: programs may not write values.
pub const BPF_F_RDONLY_PROG: u32 = 1 << 7;
