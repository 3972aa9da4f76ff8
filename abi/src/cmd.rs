//! Commands of bpf(2), as in `enum bpf_cmd`.

macro_rules! commands {
    ($($name:ident = $n:literal, $min:literal;)*) => {
        /// Command numbers.
        #[allow(missing_docs)]
        pub mod nr { $(pub const $name: u32 = $n;)* }
        /// `(number, name)` of every command, in numerical order.
        pub const NAMES: &[(u32, &str)] = &[$(($n, stringify!($name))),*];
        /// End offset of the last attribute field the command reads; the kernel rejects non-zero bytes behind it.
        pub const fn last_field_end(cmd: u32) -> Option<usize> {
            match cmd { $($n => Some($min),)* _ => None }
        }
    };
}

// Name = number, end of the last field in `union bpf_attr` (the kernel's CHECK_ATTR boundary).
commands! {
    BPF_MAP_CREATE = 0, 80;
    BPF_MAP_LOOKUP_ELEM = 1, 32;
    BPF_MAP_UPDATE_ELEM = 2, 32;
    BPF_MAP_DELETE_ELEM = 3, 16;
    BPF_MAP_GET_NEXT_KEY = 4, 24;
    BPF_PROG_LOAD = 5, 168;
    BPF_OBJ_PIN = 6, 20;
    BPF_OBJ_GET = 7, 20;
    BPF_PROG_ATTACH = 8, 32;
    BPF_PROG_DETACH = 9, 32;
    BPF_PROG_TEST_RUN = 10, 80;
    BPF_PROG_GET_NEXT_ID = 11, 8;
    BPF_MAP_GET_NEXT_ID = 12, 8;
    BPF_PROG_GET_FD_BY_ID = 13, 4;
    BPF_MAP_GET_FD_BY_ID = 14, 12;
    BPF_OBJ_GET_INFO_BY_FD = 15, 16;
    BPF_PROG_QUERY = 16, 64;
    BPF_RAW_TRACEPOINT_OPEN = 17, 24;
    BPF_BTF_LOAD = 18, 40;
    BPF_BTF_GET_FD_BY_ID = 19, 4;
    BPF_TASK_FD_QUERY = 20, 48;
    BPF_MAP_LOOKUP_AND_DELETE_ELEM = 21, 32;
    BPF_MAP_FREEZE = 22, 4;
    BPF_BTF_GET_NEXT_ID = 23, 8;
    BPF_MAP_LOOKUP_BATCH = 24, 56;
    BPF_MAP_LOOKUP_AND_DELETE_BATCH = 25, 56;
    BPF_MAP_UPDATE_BATCH = 26, 56;
    BPF_MAP_DELETE_BATCH = 27, 56;
    BPF_LINK_CREATE = 28, 64;
    BPF_LINK_UPDATE = 29, 16;
    BPF_LINK_GET_FD_BY_ID = 30, 4;
    BPF_LINK_GET_NEXT_ID = 31, 8;
    BPF_ENABLE_STATS = 32, 4;
    BPF_ITER_CREATE = 33, 8;
    BPF_LINK_DETACH = 34, 4;
    BPF_PROG_BIND_MAP = 35, 12;
    BPF_TOKEN_CREATE = 36, 8;
}
