//! MAP_CREATE: every rule of every row, asked from the kernel where it lets us.

mod common;
use bpftime_shm::map::table::{MAP_TYPES, MapType};
use bpftime_shm::map::{InnerDef, Task};
use bpftime_shm::uapi::*;
use bpftime_shm::{Errno, Map, MapDef};
use common::{cpus, def, kernel_create};

/// A valid definition of each type.
fn valid(map_type: u32) -> MapDef {
    match map_type {
        BPF_MAP_TYPE_PROG_ARRAY | BPF_MAP_TYPE_PERF_EVENT_ARRAY | BPF_MAP_TYPE_CGROUP_ARRAY => {
            def(map_type, 4, 4, 16, 0)
        }
        BPF_MAP_TYPE_STACK_TRACE => def(map_type, 4, 64, 16, 0),
        BPF_MAP_TYPE_RINGBUF | BPF_MAP_TYPE_USER_RINGBUF => def(map_type, 0, 0, 4096, 0),
        BPF_MAP_TYPE_QUEUE | BPF_MAP_TYPE_STACK | BPF_MAP_TYPE_BLOOM_FILTER => def(map_type, 0, 8, 16, 0),
        BPF_MAP_TYPE_ARRAY_OF_MAPS | BPF_MAP_TYPE_HASH_OF_MAPS => {
            let inner = InnerDef::of(&def(BPF_MAP_TYPE_ARRAY, 4, 8, 2, 0));
            MapDef { inner, ..def(map_type, 4, 4, 16, 0) }
        }
        BPF_MAP_TYPE_LPM_TRIE => def(map_type, 8, 8, 16, BPF_F_NO_PREALLOC),
        _ => def(map_type, 4, 8, 16, 0),
    }
}

/// All types but TASK_STORAGE, which the kernel does not make without BTF: tests/e2e/maps.rs asks about it.
fn rows() -> impl Iterator<Item = &'static MapType> {
    MAP_TYPES.iter().filter(|row| row.id != BPF_MAP_TYPE_TASK_STORAGE)
}

#[test]
fn task_storage_wants_types_and_no_capacity() {
    let typed =
        MapDef { btf_key_type_id: 1, btf_value_type_id: 1, ..def(BPF_MAP_TYPE_TASK_STORAGE, 4, 8, 0, 1) };
    let (_fd, map) = Map::create(&typed, cpus()).expect("create");
    let storage = map.task_storage().expect("storage");
    let task = Task { tid: 5, cookie: 9, now: 100 };
    let get = |task: Task, flags| {
        // SAFETY: no initial value; the pointer is read at once.
        let value = unsafe { storage.get(task, std::ptr::null(), flags) };
        // SAFETY: null, or a value of eight bytes that only this thread uses.
        unsafe { value.cast::<u64>().as_mut() }
    };
    assert!(get(task, 0).is_none());
    *get(task, 1).expect("made") += 3;
    assert_eq!(get(task, 0).copied(), Some(3));
    // Another thread with the same id, then one that the tool knows to have begun later.
    assert!(get(Task { cookie: 10, ..task }, 0).is_none());
    assert_eq!(get(task, 1).copied(), Some(0));
    storage.forget_older(5, 100);
    assert!(get(task, 0).is_some());
    storage.forget_older(5, 101);
    assert!(get(task, 0).is_none());
    for wrong in [
        MapDef { btf_value_type_id: 0, ..typed },
        MapDef { max_entries: 1, ..typed },
        MapDef { map_flags: 0, ..typed },
    ] {
        assert_eq!(Map::create(&wrong, 1).map(|_| ()), Err(Errno::INVAL), "{wrong:?}");
    }
}

fn same_as_kernel(def: &MapDef) {
    let ours = Map::create(def, cpus()).map(|_| ()).map_err(|e| e.raw_os_error());
    let kernels = match kernel_create(def) {
        Err(libc::EPERM | libc::ENOSYS) => return,
        other => other.map(|_| ()),
    };
    assert_eq!(ours, kernels, "ours != kernel's: {def:?}");
}

#[test]
fn each_valid_definition_is_accepted() {
    for row in rows() {
        Map::create(&valid(row.id), cpus()).unwrap_or_else(|e| panic!("{}: {e}", row.name));
        same_as_kernel(&valid(row.id));
    }
}

#[test]
fn flags_are_accepted_and_refused_as_by_the_kernel() {
    for row in rows() {
        for bit in 0..32 {
            same_as_kernel(&MapDef { map_flags: 1 << bit, ..valid(row.id) });
            same_as_kernel(&MapDef { map_flags: 1 << bit | valid(row.id).map_flags, ..valid(row.id) });
        }
        for pair in [
            BPF_F_RDONLY | BPF_F_WRONLY,
            BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG,
            BPF_F_RDONLY | BPF_F_RDONLY_PROG,
        ] {
            same_as_kernel(&MapDef { map_flags: pair, ..valid(row.id) });
        }
    }
}

#[test]
fn sizes_are_accepted_and_refused_as_by_the_kernel() {
    let keys =
        [0, 1, 3, 4, 5, 8, 12, 16, 512, 1 << 20, (1 << 22) - 57, (1 << 22) - 56, 1 << 22, 1 << 30, u32::MAX];
    let values = [
        0,
        1,
        3,
        4,
        5,
        8,
        12,
        16,
        1016,
        1024,
        4064,
        32768,
        32769,
        1 << 20,
        (1 << 22) - 53,
        (1 << 22) - 52,
        1 << 31,
        u32::MAX,
    ];
    // Not the sizes between: the kernel allocates at once what we allocate when touched.
    let entries = [0, 1, 3, 4096, 4097, 8192, 12288, 1 << 16];
    for row in rows() {
        keys.iter()
            .for_each(|&key_size| same_as_kernel(&MapDef { key_size, max_entries: 1, ..valid(row.id) }));
        values
            .iter()
            .for_each(|&value_size| same_as_kernel(&MapDef { value_size, max_entries: 1, ..valid(row.id) }));
        entries.iter().for_each(|&max_entries| same_as_kernel(&MapDef { max_entries, ..valid(row.id) }));
        [1, 16, 1 << 40].iter().for_each(|&map_extra| same_as_kernel(&MapDef { map_extra, ..valid(row.id) }));
    }
    for size in [8, 32, 64, 4064, 4096] {
        same_as_kernel(&def(BPF_MAP_TYPE_STACK_TRACE, 4, size, 4, BPF_F_STACK_BUILD_ID));
    }
}

#[test]
fn names_follow_the_kernels_alphabet() {
    for name in
        [&b"abc"[..], b"a b", b"a.b_C9", b"a-b", b"0123456789abcdef", b"0123456789abcde", b"", b"abc\0def"]
    {
        let mut padded = [0; 16];
        padded[..name.len()].copy_from_slice(name);
        same_as_kernel(&MapDef { name: padded, ..valid(BPF_MAP_TYPE_ARRAY) });
    }
}

#[test]
fn unknown_types_are_einval() {
    for map_type in [0, 34, 100, u32::MAX] {
        same_as_kernel(&def(map_type, 4, 8, 1, 0));
        assert_eq!(Map::create(&def(map_type, 4, 8, 1, 0), 1).map(|_| ()), Err(Errno::INVAL));
    }
}

#[test]
fn more_memory_than_the_machine_has_is_enomem() {
    let huge =
        [def(BPF_MAP_TYPE_ARRAY, 4, 1 << 30, u32::MAX, 0), def(BPF_MAP_TYPE_HASH, 4, 1 << 20, 1 << 27, 0)];
    for def in huge {
        assert_eq!(Map::create(&def, 2).map(|_| ()), Err(Errno::NOMEM), "{def:?}");
    }
    assert_eq!(
        Map::create(&def(BPF_MAP_TYPE_HASH, 4, 8, (1 << 27) + 1, 0), 2).map(|_| ()),
        Err(Errno::TOOBIG)
    );
}

#[test]
fn a_big_map_costs_nothing_until_touched() {
    let (fd, map) = Map::create(&def(BPF_MAP_TYPE_HASH, 8, 256, 10_000_000, 0), 2).expect("create");
    let key = 7u64.to_ne_bytes();
    map.sys_update(&key, &[1; 256], 0).expect("update");
    // SAFETY: an all-zero stat is a valid out buffer; the descriptor is open.
    let blocks = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        assert_eq!(libc::fstat(std::os::fd::AsRawFd::as_raw_fd(&fd), &mut stat), 0);
        stat.st_blocks
    };
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
}

#[test]
fn open_refuses_what_is_not_a_sealed_map() {
    use std::os::fd::AsFd;
    let file = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    rustix::fs::ftruncate(&file, 8192).expect("truncate");
    assert_eq!(Map::open(file.as_fd()).map(|_| ()), Err(Errno::INVAL));
    let null = std::fs::File::open("/dev/null").expect("open");
    assert_eq!(Map::open(null.as_fd()).map(|_| ()), Err(Errno::INVAL));
}

#[test]
fn the_memfd_is_cloexec_sealed_and_named() {
    use std::os::fd::AsRawFd;
    let (fd, map) = Map::create(&valid(BPF_MAP_TYPE_ARRAY), 1).expect("create");
    assert!(rustix::io::fcntl_getfd(&fd).expect("getfd").contains(rustix::io::FdFlags::CLOEXEC));
    assert!(rustix::fs::ftruncate(&fd, 0).is_err());
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("link");
    assert!(link.to_string_lossy().contains("bpftime-map"));
    assert_eq!(map.id(), Map::open(std::os::fd::AsFd::as_fd(&fd)).expect("open").id());
}

#[test]
fn looking_for_what_a_dead_process_left_allocates_nothing() {
    for def in [
        def(BPF_MAP_TYPE_HASH, 8, 256, 1_000_000, 0),
        def(BPF_MAP_TYPE_LRU_HASH, 8, 256, 1_000_000, 0),
        def(BPF_MAP_TYPE_STACK_TRACE, 4, 127 * 8, 1 << 17, 0),
    ] {
        let (fd, map) = Map::create(&def, 2).expect("create");
        map.set_owner(7);
        if let Some(stacks) = map.stack_trace() {
            assert!(stacks.stack_insert(&[1, 2, 3], 0) >= 0);
        } else {
            map.sys_update(&7u64.to_ne_bytes(), &[1; 256], 0).expect("update");
        }
        map.recover(7);
        let bytes = rustix::fs::fstat(&fd).expect("stat").st_blocks * 512;
        assert!(bytes < 2 << 20, "{bytes} bytes, {def:?}");
    }
}
