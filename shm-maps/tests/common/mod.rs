//! One subject under test: our map or, where bpf(2) is permitted, the kernel's.
#![allow(dead_code)]

pub mod prog;
pub mod usual;

use bpftime_shm::{Map, MapDef};
use std::ffi::{c_int, c_long};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub type Answer<T> = Result<T, i32>;

pub enum Subject {
    Ours(OwnedFd, Box<Map>),
    Kernel(OwnedFd, MapDef, u32),
}

/// struct bpf_attr of the element commands.
#[repr(C)]
#[derive(Clone, Copy)]
struct Elem {
    fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const CREATE: c_long = 0;
const LOOKUP: c_long = 1;
const UPDATE: c_long = 2;
const DELETE: c_long = 3;
const NEXT: c_long = 4;
const LOOKUP_AND_DELETE: c_long = 21;
const FREEZE: c_long = 22;

pub fn bpf<T: Copy>(cmd: c_long, attr: &T) -> Answer<c_int> {
    bpf_mut(cmd, &mut { *attr })
}

/// For commands that answer inside the attribute.
pub fn bpf_mut<T>(cmd: c_long, attr: &mut T) -> Answer<c_int> {
    // SAFETY: attr is a valid bpf_attr prefix and its pointers outlive the call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, cmd, attr as *mut T, size_of::<T>()) };
    if ret < 0 {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    Ok(ret as c_int)
}

/// Possible CPUs, as the per-CPU ABI counts them.
pub fn cpus() -> u32 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or("0".into());
    text.trim().rsplit(['-', ',']).next().and_then(|n| n.parse::<u32>().ok()).unwrap_or(0) + 1
}

pub fn def(map_type: u32, key_size: u32, value_size: u32, max_entries: u32, map_flags: u32) -> MapDef {
    MapDef { map_type, key_size, value_size, max_entries, map_flags, ..MapDef::default() }
}

pub fn kernel_create(def: &MapDef) -> Answer<OwnedFd> {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Attr([u32; 7], [u8; 16], [u32; 5], u64);
    let i = def.inner;
    let inner = match i.map_type {
        0 => None,
        _ => {
            Some(kernel_create(&self::def(i.map_type, i.key_size, i.value_size, i.max_entries, i.map_flags))?)
        }
    };
    let inner_fd = inner.as_ref().map_or(0, |fd| fd.as_raw_fd() as u32);
    let head = [def.map_type, def.key_size, def.value_size, def.max_entries, def.map_flags, inner_fd, 0];
    let fd = bpf(CREATE, &Attr(head, def.name, [0; 5], def.map_extra))?;
    // SAFETY: a descriptor the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ours, and the kernel's if it lets us.
pub fn subjects(def: &MapDef) -> Vec<Subject> {
    let (fd, map) = Map::create(def, cpus()).expect("create");
    let mut all = vec![Subject::Ours(fd, Box::new(map))];
    match kernel_create(def) {
        Ok(fd) => all.push(Subject::Kernel(fd, *def, cpus())),
        Err(libc::EPERM | libc::ENOSYS) => eprintln!("no bpf(2): ours alone"),
        Err(e) => panic!("the kernel refuses {def:?}: errno {e}"),
    }
    all
}

impl Subject {
    fn sizes(&self) -> (usize, usize) {
        match self {
            Subject::Ours(_, map) => (map.def().key_size as usize, map.value_size_user()),
            Subject::Kernel(_, def, cpus) => {
                let one = def.value_size as usize;
                let percpu = matches!(def.map_type, 5 | 6 | 10);
                (def.key_size as usize, if percpu { one.next_multiple_of(8) * *cpus as usize } else { one })
            }
        }
    }

    pub fn value_len(&self) -> usize {
        self.sizes().1
    }

    fn kernel(&self, cmd: c_long, key: *const u8, value: *const u8, flags: u64) -> Answer<()> {
        let Subject::Kernel(fd, ..) = self else { unreachable!() };
        let attr = Elem { fd: fd.as_raw_fd() as u32, _pad: 0, key: key as u64, value: value as u64, flags };
        bpf(cmd, &attr).map(|_| ())
    }

    pub fn lookup_flags(&self, key: &[u8], flags: u64) -> Answer<Vec<u8>> {
        let mut value = vec![0xee; self.value_len()];
        match self {
            Subject::Ours(_, map) => map.sys_lookup(key, &mut value, flags).map_err(|e| e.raw_os_error())?,
            _ => self.kernel(LOOKUP, ptr(key), value.as_mut_ptr(), flags)?,
        }
        Ok(value)
    }

    pub fn lookup(&self, key: &[u8]) -> Answer<Vec<u8>> {
        self.lookup_flags(key, 0)
    }

    /// Whether a Bloom filter says that `value` was put in.
    pub fn contains(&self, value: &[u8]) -> Answer<()> {
        let mut value = value.to_vec();
        match self {
            Subject::Ours(_, map) => map.sys_lookup(&[], &mut value, 0).map_err(|e| e.raw_os_error()),
            _ => self.kernel(LOOKUP, std::ptr::null(), value.as_mut_ptr(), 0),
        }
    }

    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Answer<()> {
        let mut full = value.to_vec();
        full.resize(self.value_len(), 0);
        match self {
            Subject::Ours(_, map) => map.sys_update(key, &full, flags).map_err(|e| e.raw_os_error()),
            _ => self.kernel(UPDATE, ptr(key), full.as_ptr(), flags),
        }
    }

    pub fn delete(&self, key: &[u8]) -> Answer<()> {
        match self {
            Subject::Ours(_, map) => map.sys_delete(key).map_err(|e| e.raw_os_error()),
            _ => self.kernel(DELETE, ptr(key), std::ptr::null(), 0),
        }
    }

    pub fn next_key(&self, key: Option<&[u8]>) -> Answer<Vec<u8>> {
        let mut out = vec![0; self.sizes().0];
        match self {
            Subject::Ours(_, map) => map.sys_next_key(key, &mut out).map_err(|e| e.raw_os_error())?,
            _ => self.kernel(NEXT, key.map_or(std::ptr::null(), |k| k.as_ptr()), out.as_mut_ptr(), 0)?,
        }
        Ok(out)
    }

    pub fn lookup_and_delete(&self, key: &[u8], flags: u64) -> Answer<Vec<u8>> {
        let mut value = vec![0xee; self.value_len()];
        match self {
            Subject::Ours(_, map) => {
                map.sys_lookup_and_delete(key, &mut value, flags).map_err(|e| e.raw_os_error())?
            }
            _ => self.kernel(LOOKUP_AND_DELETE, ptr(key), value.as_mut_ptr(), flags)?,
        }
        Ok(value)
    }

    pub fn freeze(&self) -> Answer<()> {
        match self {
            Subject::Ours(_, map) => map.freeze().map_err(|e| e.raw_os_error()),
            Subject::Kernel(fd, ..) => bpf(FREEZE, &[fd.as_raw_fd() as u32]).map(|_| ()),
        }
    }

    /// All keys, sorted; the order of hash maps is nobody's promise.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let mut last = None;
        while let Ok(key) = self.next_key(last.as_deref()) {
            keys.push(key.clone());
            last = Some(key);
        }
        keys.sort();
        keys
    }
}

fn ptr(key: &[u8]) -> *const u8 {
    if key.is_empty() { std::ptr::null() } else { key.as_ptr() }
}

/// Runs `script` on every subject and demands the same transcript.
pub fn same_on_all(def: &MapDef, script: impl Fn(&Subject) -> Vec<String>) -> Vec<String> {
    let transcripts: Vec<_> = subjects(def).iter().map(&script).collect();
    for other in &transcripts[1..] {
        for (ours, kernels) in transcripts[0].iter().zip(other) {
            assert_eq!(ours, kernels, "ours != kernel's, map {def:?}");
        }
    }
    transcripts.into_iter().next().unwrap_or_default()
}

/// xorshift: tests need variety, not quality.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % n
    }
}
