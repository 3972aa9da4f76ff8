//! Maps of a loaded file: made with bpf(), which the server in this process answers, and printed at the end.

use crate::failure::{Failure, say};
use bpftime_abi::attr::{MapCreate, MapElem};
use bpftime_vm::aot::MapDef;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use zerocopy::IntoBytes;

const MAP_CREATE: usize = 0;
const MAP_LOOKUP_ELEM: usize = 1;
const MAP_UPDATE_ELEM: usize = 2;
const MAP_GET_NEXT_KEY: usize = 4;
const MAP_FREEZE: usize = 22;

/// bpf(2).
fn bpf(cmd: usize, attr: &[u8]) -> io::Result<i32> {
    // SAFETY: the attribute has the length it is given with, and what it points to lives in the caller's frame.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, cmd, attr.as_ptr(), attr.len()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret as i32) }
}

fn elem(fd: &OwnedFd, key: &[u8], value: u64) -> MapElem {
    MapElem { map_fd: fd.as_raw_fd() as u32, key: key.as_ptr() as u64, value, ..MapElem::default() }
}

/// Makes a map and gives it its contents.
pub(crate) fn create(map: &MapDef) -> Result<OwnedFd, Failure> {
    let made = || -> io::Result<OwnedFd> {
        let f = map.facts;
        let mut attr = MapCreate::from(f);
        let name = map.name.bytes().filter(|b| b.is_ascii_alphanumeric() || b"_.".contains(b));
        attr.map_name.iter_mut().take(15).zip(name).for_each(|(place, byte)| *place = byte);
        // SAFETY: a descriptor that bpf() has just made, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(bpf(MAP_CREATE, attr.as_bytes())?) };
        if !map.contents.is_empty() {
            bpf(MAP_UPDATE_ELEM, elem(&fd, &[0; 4], map.contents.as_ptr() as u64).as_bytes())?;
        }
        if f.frozen {
            bpf(MAP_FREEZE, &fd.as_raw_fd().to_ne_bytes())?;
        }
        Ok(fd)
    };
    made().map_err(|e| Failure::new(1, format_args!("map {}: {e}; see `bpftime doctor`", map.name)))
}

/// Number of CPUs that have values of their own.
fn cpus() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    text.trim().rsplit(['-', ',']).next().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0) + 1
}

/// Map types that have keys and values to print: hashes and arrays, plain (false) and per CPU (true).
fn per_cpu(map_type: u32) -> Option<bool> {
    match map_type {
        1 | 2 | 9 => Some(false),
        5 | 6 | 10 => Some(true),
        _ => None,
    }
}

/// One line for each element that is not all zeros: `name[key] value`. Numbers of up to eight bytes are decimal, all
/// else is hexadecimal; of per-CPU numbers the sum.
pub(crate) fn print(map: &MapDef, fd: &OwnedFd) {
    let Some(per_cpu) = per_cpu(map.facts.map_type).filter(|_| map.contents.is_empty()) else { return };
    let (key_size, value_size) = (map.facts.key_size as usize, map.facts.value_size as usize);
    let stride = if per_cpu { value_size.next_multiple_of(8) } else { value_size };
    let mut value = vec![0; stride * if per_cpu { cpus() } else { 1 }];
    let (mut key, mut next, mut first) = (vec![0; key_size], vec![0; key_size], true);
    loop {
        let mut attr = elem(fd, &key, next.as_mut_ptr() as u64);
        if first {
            attr.key = 0;
        }
        if bpf(MAP_GET_NEXT_KEY, attr.as_bytes()).is_err() {
            return;
        }
        (key, first) = (next.clone(), false);
        let found = bpf(MAP_LOOKUP_ELEM, elem(fd, &key, value.as_mut_ptr() as u64).as_bytes()).is_ok();
        if found && value.iter().any(|byte| *byte != 0) {
            say(format_args!("{}[{}] {}", map.name, shown(&key), total(&value, stride, value_size)));
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn shown(bytes: &[u8]) -> String {
    match bytes.len() {
        1..=8 => number(bytes).to_string(),
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn total(value: &[u8], stride: usize, size: usize) -> String {
    let each = value.chunks(stride.max(1)).map(|chunk| &chunk[..size]);
    match size {
        1..=8 => each.map(number).fold(0u64, u64::wrapping_add).to_string(),
        _ => each.map(shown).collect::<Vec<_>>().join(" "),
    }
}
