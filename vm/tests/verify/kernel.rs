//! The kernel as oracle: BPF_PROG_LOAD's verdict, errno and reason. Skipped where bpf(2) is not allowed.

use super::env::{ARRAY, FIRST_FD, TestMap, World};
use bpftime_abi::attr::{BtfLoad, MapCreate, MapElem, OneFd, ProgLoad};
use bpftime_abi::map_type::BPF_MAP_TYPE_TASK_STORAGE;
use bpftime_vm::Insn;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const BTF_LOAD: libc::c_int = 18;
const MAP_FREEZE: libc::c_int = 22;
const BPF_F_SLEEPABLE: u32 = 1 << 4;

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a bpf_attr prefix of the size passed; pointers in it outlive the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn opened(fd: libc::c_long) -> File {
    // SAFETY: a new descriptor that nobody else owns.
    unsafe { File::from_raw_fd(fd as i32) }
}

fn address<T: ?Sized>(x: &T) -> u64 {
    std::ptr::from_ref(x).cast::<u8>().expose_provenance() as u64
}

/// Maps in the kernel, and what it says about programs that use them.
pub struct Kernel {
    maps: Vec<File>,
    btf: File,
}

/// The kernel's answer: 0, or errno and the lines of the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub errno: i32,
    pub reason: String,
}

impl Kernel {
    /// Makes the maps; `None` where bpf(2) is not allowed.
    pub fn new(world: &World) -> Option<Kernel> {
        let made = types().and_then(|btf| {
            let maps = world.maps.iter().map(|map| create(map, &btf)).collect::<io::Result<_>>()?;
            Ok(Kernel { maps, btf })
        });
        match made {
            Ok(kernel) => Some(kernel),
            Err(error) => {
                eprintln!("the kernel is not asked: bpf(2): {error}");
                None
            }
        }
    }

    pub fn judge(&self, insns: &[Insn], world: &World) -> Answer {
        let insns = self.relocated(insns);
        let Err((errno, _)) = self.load(&insns, world, 0) else {
            return Answer { errno: 0, reason: String::new() };
        };
        // A second time for the log, which may not fit.
        let log = self.load(&insns, world, 1).err().map(|(_, log)| log);
        Answer { errno, reason: reason(&log.unwrap_or_default()) }
    }

    /// The whole log of a load.
    pub fn log(&self, insns: &[Insn], world: &World) -> String {
        let mut log = vec![0u8; 16 << 20];
        let verdict = self.load_into(&self.relocated(insns), world, 2, &mut log);
        let text = String::from_utf8_lossy(&log);
        format!("{}\n{:?}", text.trim_end_matches('\0'), verdict.err())
    }

    fn load(&self, insns: &[Insn], world: &World, level: u32) -> Result<File, (i32, String)> {
        let mut log = if level == 0 { vec![] } else { vec![0u8; 4 << 20] };
        self.load_into(insns, world, level, &mut log).map_err(|e| {
            // The kernel goes back over what it wrote of a path that ended well.
            let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
            let text = String::from_utf8_lossy(&log[..end]).to_string();
            (e.raw_os_error().unwrap_or(0), text)
        })
    }

    fn load_into(&self, insns: &[Insn], world: &World, level: u32, log: &mut [u8]) -> io::Result<File> {
        let license = if world.gpl { c"GPL" } else { c"BSD" };
        let infos: Vec<[u32; 2]> = functions(insns).into_iter().map(|start| [start, FUNC_ID]).collect();
        let with_types = insns.iter().any(|i| i.is_lddw() && i.src() == 4);
        let mut attr = ProgLoad {
            prog_type: world.prog_type,
            insn_cnt: insns.len() as u32,
            insns: address(insns),
            license: address(license.to_bytes_with_nul()),
            log_level: level,
            log_size: log.len() as u32,
            log_buf: if level == 0 { 0 } else { log.as_mut_ptr().expose_provenance() as u64 },
            expected_attach_type: world.attach_type,
            prog_flags: if world.sleepable { BPF_F_SLEEPABLE } else { 0 },
            ..ProgLoad::default()
        };
        if with_types {
            attr.prog_btf_fd = self.btf.as_raw_fd() as u32;
            attr.func_info_rec_size = 8;
            attr.func_info = address(infos.as_slice());
            attr.func_info_cnt = infos.len() as u32;
        }
        bpf(PROG_LOAD, &mut attr).map(opened)
    }

    /// Test descriptors replaced by real ones.
    fn relocated(&self, insns: &[Insn]) -> Vec<Insn> {
        let mut insns = insns.to_vec();
        for insn in insns.iter_mut().filter(|i| i.is_lddw() && matches!(i.src(), 1 | 2)) {
            if let Some(map) = self.maps.get((insn.imm - FIRST_FD) as usize) {
                insn.imm = map.as_raw_fd();
            }
        }
        insns
    }
}

fn create(map: &TestMap, btf: &File) -> io::Result<File> {
    let f = map.facts;
    let inner = map.inner.map(|facts| create(&TestMap { facts, ..TestMap::default() }, btf)).transpose()?;
    // The only type that the kernel does not make without types.
    let typed = f.map_type == BPF_MAP_TYPE_TASK_STORAGE;
    let mut attr = MapCreate {
        btf_fd: if typed { btf.as_raw_fd() as u32 } else { 0 },
        btf_key_type_id: if typed { INT_ID } else { 0 },
        btf_value_type_id: if typed { INT_ID } else { 0 },
        inner_map_fd: inner.as_ref().map_or(0, |file| file.as_raw_fd() as u32),
        ..MapCreate::from(f)
    };
    let file = opened(bpf(MAP_CREATE, &mut attr)?);
    if f.frozen && f.map_type == ARRAY {
        let key = 0u32;
        let mut update = MapElem {
            map_fd: file.as_raw_fd() as u32,
            key: address(&key),
            value: address(map.contents.as_slice()),
            ..MapElem::default()
        };
        bpf(MAP_UPDATE, &mut update)?;
        bpf(MAP_FREEZE, &mut OneFd { fd: file.as_raw_fd() as u32 })?;
    }
    Ok(file)
}

/// First slots of all functions.
fn functions(insns: &[Insn]) -> Vec<u32> {
    let mut starts = vec![0];
    for (at, insn) in insns.iter().enumerate() {
        if (insn.code == 0x85 && insn.src() == 1) || (insn.is_lddw() && insn.src() == 4) {
            starts.push((at as i32 + 1 + insn.imm) as u32);
        }
    }
    starts.sort_unstable();
    starts.dedup();
    starts
}

const INT_ID: u32 = 1;
const FUNC_ID: u32 = 3;

/// BTF with `static int f(void)`: the kernel wants types of programs with callbacks.
fn types() -> io::Result<File> {
    let strings = b"\0int\0f\0";
    let int = [1, 1 << 24, 4, 1 << 24 | 32];
    let proto = [0, 13 << 24, 1];
    let func = [5, 12 << 24, 2];
    let words: Vec<u32> = int.iter().chain(&proto).chain(&func).copied().collect();
    let header = [0x0001_eb9f, 24, 0, words.len() as u32 * 4, words.len() as u32 * 4, strings.len() as u32];
    let mut bytes: Vec<u8> = header.iter().chain(&words).flat_map(|w| w.to_le_bytes()).collect();
    bytes.extend_from_slice(strings);
    let mut attr =
        BtfLoad { btf: address(bytes.as_slice()), btf_size: bytes.len() as u32, ..BtfLoad::default() };
    bpf(BTF_LOAD, &mut attr).map(opened)
}

/// The lines behind the last instruction or state of a log, without the statistics.
fn reason(log: &str) -> String {
    let about_insn = |line: &&str| {
        let number =
            line.split(':').next().is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        number
            || line.starts_with("from ")
            || line.starts_with("; ")
            || line.starts_with("mark_precise")
            || line.starts_with("caller")
            || line.starts_with("callee")
            || line.starts_with(" ")
            || line.starts_with("func#")
            || line.starts_with("returning from callee")
            || line.starts_with("to caller at")
            || line.is_empty()
            || line.strip_prefix("frame").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let mut lines: Vec<&str> = log
        .lines()
        .rev()
        .skip_while(|l| {
            l.starts_with("processed ")
                || l.is_empty()
                || l.starts_with("verification time")
                || l.starts_with("stack depth")
        })
        .filter(|l| !l.starts_with("cur state") && !l.starts_with("old state"))
        .take_while(|l| !about_insn(l))
        .collect();
    lines.reverse();
    lines.join(" | ")
}
