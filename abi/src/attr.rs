//! `union bpf_attr`, one struct per command (`linux/bpf.h`). Offsets are the kernel's; trailing fields a caller leaves
//! out read as zero because the server copies the attribute into a zeroed buffer first.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size of the largest `union bpf_attr` we know; longer ones are accepted when the rest is zero.
pub const ATTR_MAX: usize = 168;

macro_rules! attrs {
    ($($(#[$m:meta])* $name:ident { $($field:ident : $ty:ty,)* })*) => {$(
        $(#[$m])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() <= ATTR_MAX);
    )*};
}

attrs! {
    /// BPF_MAP_CREATE.
    MapCreate {
        map_type: u32, key_size: u32, value_size: u32, max_entries: u32, map_flags: u32, inner_map_fd: u32,
        numa_node: u32, map_name: [u8; 16], map_ifindex: u32, btf_fd: u32, btf_key_type_id: u32,
        btf_value_type_id: u32, btf_vmlinux_value_type_id: u32, map_extra: u64, value_type_btf_obj_fd: u32,
        map_token_fd: u32,
    }
    /// BPF_MAP_*_ELEM and BPF_MAP_GET_NEXT_KEY (`value` is `next_key` there).
    MapElem { map_fd: u32, pad: u32, key: u64, value: u64, flags: u64, }
    /// BPF_MAP_*_BATCH.
    Batch {
        in_batch: u64, out_batch: u64, keys: u64, values: u64, count: u32, map_fd: u32, elem_flags: u64, flags: u64,
    }
    /// BPF_PROG_LOAD.
    ProgLoad {
        prog_type: u32, insn_cnt: u32, insns: u64, license: u64, log_level: u32, log_size: u32, log_buf: u64,
        kern_version: u32, prog_flags: u32, prog_name: [u8; 16], prog_ifindex: u32, expected_attach_type: u32,
        prog_btf_fd: u32, func_info_rec_size: u32, func_info: u64, func_info_cnt: u32, line_info_rec_size: u32,
        line_info: u64, line_info_cnt: u32, attach_btf_id: u32, attach_prog_fd: u32, core_relo_cnt: u32,
        fd_array: u64, core_relos: u64, core_relo_rec_size: u32, log_true_size: u32, prog_token_fd: u32,
        fd_array_cnt: u32, signature: u64, signature_size: u32, keyring_id: i32,
    }
    /// BPF_OBJ_PIN and BPF_OBJ_GET.
    Obj { pathname: u64, bpf_fd: u32, file_flags: u32, path_fd: i32, pad: u32, }
    /// BPF_PROG_TEST_RUN.
    TestRun {
        prog_fd: u32, retval: u32, data_size_in: u32, data_size_out: u32, data_in: u64, data_out: u64, repeat: u32,
        duration: u32, ctx_size_in: u32, ctx_size_out: u32, ctx_in: u64, ctx_out: u64, flags: u32, cpu: u32,
        batch_size: u32, pad: u32,
    }
    /// BPF_*_GET_NEXT_ID and BPF_*_GET_FD_BY_ID.
    GetId { id: u32, next_id: u32, open_flags: u32, }
    /// BPF_OBJ_GET_INFO_BY_FD.
    Info { bpf_fd: u32, info_len: u32, info: u64, }
    /// BPF_RAW_TRACEPOINT_OPEN.
    RawTracepoint { name: u64, prog_fd: u32, pad: u32, cookie: u64, }
    /// BPF_BTF_LOAD.
    BtfLoad {
        btf: u64, btf_log_buf: u64, btf_size: u32, btf_log_size: u32, btf_log_level: u32, btf_log_true_size: u32,
        btf_flags: u32, btf_token_fd: u32,
    }
    /// BPF_LINK_CREATE for BPF_PERF_EVENT.
    LinkCreatePerf { prog_fd: u32, target_fd: u32, attach_type: u32, flags: u32, bpf_cookie: u64, }
    /// BPF_LINK_CREATE for BPF_TRACE_UPROBE_MULTI.
    LinkCreateUprobeMulti {
        prog_fd: u32, target_fd: u32, attach_type: u32, flags: u32, path: u64, offsets: u64, ref_ctr_offsets: u64,
        cookies: u64, cnt: u32, multi_flags: u32, pid: u32, pad: u32,
    }
    /// BPF_LINK_UPDATE and BPF_LINK_DETACH.
    LinkUpdate { link_fd: u32, new_prog_fd: u32, flags: u32, old_prog_fd: u32, }
    /// BPF_TASK_FD_QUERY.
    TaskFdQuery { pid: u32, fd: u32, flags: u32, buf_len: u32, buf: u64, prog_id: u32, fd_type: u32, probe_offset: u64, probe_addr: u64, }
    /// BPF_PROG_BIND_MAP.
    BindMap { prog_fd: u32, map_fd: u32, flags: u32, }
    /// BPF_MAP_FREEZE, and the first field of commands that take one descriptor.
    OneFd { fd: u32, }
}

const _: () = assert!(size_of::<MapCreate>() == 80);
const _: () = assert!(size_of::<MapElem>() == 32);
const _: () = assert!(size_of::<Batch>() == 56);
const _: () = assert!(size_of::<ProgLoad>() == 168);
const _: () = assert!(std::mem::offset_of!(ProgLoad, fd_array) == 120);
const _: () = assert!(size_of::<TestRun>() == 80);
const _: () = assert!(size_of::<LinkCreateUprobeMulti>() == 64);

/// `struct bpf_map_info`, as far as we fill it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct MapInfo {
    pub map_type: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub map_flags: u32,
    pub name: [u8; 16],
    pub ifindex: u32,
    pub btf_vmlinux_value_type_id: u32,
    pub netns_dev: u64,
    pub netns_ino: u64,
    pub btf_id: u32,
    pub btf_key_type_id: u32,
    pub btf_value_type_id: u32,
    pub btf_vmlinux_id: u32,
    pub map_extra: u64,
}
const _: () = assert!(size_of::<MapInfo>() == 88);

/// `struct bpf_prog_info`, the fixed part that tools read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct ProgInfo {
    pub prog_type: u32,
    pub id: u32,
    pub tag: [u8; 8],
    pub jited_prog_len: u32,
    pub xlated_prog_len: u32,
    pub jited_prog_insns: u64,
    pub xlated_prog_insns: u64,
    pub load_time: u64,
    pub created_by_uid: u32,
    pub nr_map_ids: u32,
    pub map_ids: u64,
    pub name: [u8; 16],
    pub ifindex: u32,
    pub gpl_compatible: u32,
    pub netns_dev: u64,
    pub netns_ino: u64,
    pub nr_jited_ksyms: u32,
    pub nr_jited_func_lens: u32,
    pub jited_ksyms: u64,
    pub jited_func_lens: u64,
    pub btf_id: u32,
    pub func_info_rec_size: u32,
    pub func_info: u64,
    pub nr_func_info: u32,
    pub nr_line_info: u32,
    pub line_info: u64,
    pub jited_line_info: u64,
    pub nr_jited_line_info: u32,
    pub line_info_rec_size: u32,
    pub jited_line_info_rec_size: u32,
    pub nr_prog_tags: u32,
    pub prog_tags: u64,
    pub run_time_ns: u64,
    pub run_cnt: u64,
    pub recursion_misses: u64,
    pub verified_insns: u32,
    pub attach_btf_obj_id: u32,
    pub attach_btf_id: u32,
    pub pad: u32,
}
const _: () = assert!(size_of::<ProgInfo>() == 232);

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct BtfInfo {
    pub btf: u64,
    pub btf_size: u32,
    pub id: u32,
    pub name: u64,
    pub name_len: u32,
    pub kernel_btf: u32,
}

/// `struct bpf_link_info`, the part common to all link types.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs)]
pub struct LinkInfo {
    pub link_type: u32,
    pub id: u32,
    pub prog_id: u32,
    pub pad: u32,
    pub data: [u64; 6],
}
