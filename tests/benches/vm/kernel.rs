//! The running kernel's JIT, by BPF_PROG_TEST_RUN. The memory is the one value of an array, handed to the program as it
//! is to everyone's: address and length. What its verifier refuses is not run.

use super::engine::{Failure, print};
use std::io::Error;
use std::time::Instant;

const MAP_CREATE: i32 = 0;
const LOOKUP: i32 = 1;
const UPDATE: i32 = 2;
const PROG_LOAD: i32 = 5;
const TEST_RUN: i32 = 10;
const ARRAY: u32 = 2;
const XDP: u32 = 6;

/// `union bpf_attr` in words, as far as it is used here.
type Attr = [u64; 16];

fn bpf(cmd: i32, attr: &mut Attr) -> Result<i32, Error> {
    // SAFETY: an attribute block of the length given, whose addresses are those of live buffers.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, cmd, attr.as_mut_ptr(), size_of::<Attr>()) };
    if fd < 0 { Err(Error::last_os_error()) } else { Ok(fd as i32) }
}

fn attr(words: &[u64]) -> Attr {
    std::array::from_fn(|i| words.get(i).copied().unwrap_or(0))
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// An array of one value.
fn array(value_size: usize) -> Result<i32, Error> {
    bpf(MAP_CREATE, &mut attr(&[pair(ARRAY, 4), pair(value_size as u32, 1)]))
}

fn exchange(cmd: i32, map: i32, value: *mut u8) -> Result<(), Error> {
    let key = 0u32;
    bpf(cmd, &mut attr(&[map as u64, &raw const key as u64, value as u64])).map(drop)
}

/// `bpf_main(memory, length)` with what calls it: looks the memory up, and keeps the result.
fn wrapped(bytecode: &[u8], memory: i32, result: i32, length: usize) -> Vec<u8> {
    let insn = |code: u8, dst: u8, src: u8, off: i16, imm: i32| -> [u8; 8] {
        pair(u32::from_le_bytes([code, dst | src << 4, off as u8, (off >> 8) as u8]), imm as u32)
            .to_le_bytes()
    };
    let lookup = |map: i32| {
        [
            insn(0x18, 1, 1, 0, map),
            insn(0, 0, 0, 0, 0),
            insn(0x62, 10, 0, -4, 0),
            insn(0xbf, 2, 10, 0, 0),
            insn(0x07, 2, 0, 0, -4),
            insn(0x85, 0, 0, 0, 1),
        ]
    };
    let mut code = lookup(memory).to_vec();
    code.extend([
        insn(0x15, 0, 0, 12, 0), // no memory: the end
        insn(0xbf, 1, 0, 0, 0),
        insn(0xb7, 2, 0, 0, length as i32),
        insn(0x85, 0, 1, 0, 11), // bpf_main
        insn(0xbf, 6, 0, 0, 0),
    ]);
    code.extend(lookup(result));
    code.extend([
        insn(0x15, 0, 0, 1, 0),
        insn(0x7b, 0, 6, 0, 0),
        insn(0xb7, 0, 0, 0, 2),
        insn(0x95, 0, 0, 0, 0),
    ]);
    [code.concat().as_slice(), bytecode].concat()
}

fn load(code: &[u8]) -> Result<i32, Error> {
    let (license, count) = (c"GPL", code.len() as u32 / 8);
    bpf(PROG_LOAD, &mut attr(&[pair(XDP, count), code.as_ptr() as u64, license.as_ptr() as u64]))
}

/// ns of a run, the mean of `repeat`.
fn run(prog: i32, repeat: u32) -> Result<f64, Error> {
    let packet = [0u8; 64];
    let mut a = attr(&[prog as u64, pair(64, 0), packet.as_ptr() as u64, 0, pair(repeat, 0)]);
    bpf(TEST_RUN, &mut a)?;
    Ok((a[4] >> 32) as f64)
}

/// The protocol's line for `FILE MEMORY REPEAT`.
pub fn speak(args: &[String]) -> Result<(), Failure> {
    let [path, memory, repeat] = args else { return Err("usage: --engine kernel FILE MEMORY REPEAT".into()) };
    let (file, mut memory, repeat) = (std::fs::read(path)?, std::fs::read(memory)?, repeat.parse::<u32>()?);
    let (map, result) = (array(memory.len())?, array(8)?);
    let code = wrapped(&file, map, result, memory.len());
    let start = Instant::now();
    let prog = load(&code)?;
    let cold = start.elapsed().as_nanos() as f64;
    exchange(UPDATE, map, memory.as_mut_ptr())?;
    run(prog, 1)?;
    let mut value = [0u8; 8];
    exchange(LOOKUP, result, value.as_mut_ptr())?;
    exchange(LOOKUP, map, memory.as_mut_ptr())?;
    run(prog, (repeat / 4).max(1))?;
    let per_run = run(prog, repeat)?;
    let mut warm = [0.0; 5];
    for ns in &mut warm {
        let start = Instant::now();
        // SAFETY: a descriptor that was just made and is used nowhere else.
        unsafe { libc::close(load(&code)?) };
        *ns = start.elapsed().as_nanos() as f64;
    }
    warm.sort_by(f64::total_cmp);
    print(cold, per_run, u64::from_le_bytes(value), &memory, warm[2]);
    Ok(())
}
