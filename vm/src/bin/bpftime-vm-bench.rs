//! Runs one program under a stopwatch: `bpftime-vm-bench BYTECODE MEMORY REPEAT` prints
//! `compile_ns exec_ns_per_run result_hex memhash_hex compile_warm_ns`, the protocol of comparisons between
//! virtual machines.
//!
//! BYTECODE holds raw 8-byte instructions with the entry at 0, MEMORY what r1 points to (r2 is its length).
//! Result and hash (FNV-1a) are those of one run on fresh memory; then, after at least two milliseconds of
//! warm-up, REPEAT runs back to back are timed on the thread's CPU clock. Helper 1 is `lookup(map, key)`: map 1
//! a hash table from u32 to u64, map 2 an array of u64. What goes wrong is one line on stderr and exit code 1.

use bpftime_vm::exec::Code;
use bpftime_vm::isa::fnv1a;
use bpftime_vm::verify::Verified;
use bpftime_vm::{
    BpfFn, CpuFeatures, DecodeOptions, Dialect, Insn, LoadEnv, MapIdx, Options, Resolve, RunHeader, compile,
    decode_with,
};
use std::cell::UnsafeCell;
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

/// Back-edges of one run: more than any of the programs takes.
const FUEL: i64 = 1 << 40;
/// Before the stopwatch starts.
const WARM_UP: Duration = Duration::from_millis(2);
/// How often a program is compiled again.
const COMPILES: usize = 5;

fn main() {
    if let Err(failure) = run() {
        eprintln!("bpftime-vm-bench: {failure}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [bytecode, memory, repeat] = args.as_slice() else {
        return Err("usage: bpftime-vm-bench BYTECODE MEMORY REPEAT".into());
    };
    let (bytecode, memory) = (std::fs::read(bytecode)?, std::fs::read(memory)?);
    let repeat: u64 = repeat.parse()?;
    let (code, cold) = timed(|| load(&bytecode))?;
    let mut words = aligned(&memory);
    let result = call(&code, &mut words, memory.len())?;
    let hash = fnv1a(words.iter().flat_map(|word| word.to_ne_bytes()).take(memory.len()));
    let per_run = measure(&code, &mut words, memory.len(), repeat)?;
    let mut warm = Vec::new();
    for _ in 0..COMPILES {
        warm.push(timed(|| load(&bytecode))?.1);
    }
    warm.sort();
    println!("{} {per_run:.3} {result:x} {hash:x} {}", cold.as_nanos(), warm[COMPILES / 2].as_nanos());
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<(T, Duration), Failure> {
    let start = Instant::now();
    let done = work()?;
    Ok((done, start.elapsed()))
}

/// Decodes, compiles and links.
fn load(bytecode: &[u8]) -> Result<Code, Failure> {
    let insns = Insn::from_bytes(bytecode).ok_or("bytecode is no multiple of 8 bytes")?;
    let options = DecodeOptions { dialect: Dialect::Rfc9669, ..DecodeOptions::default() };
    let program = decode_with(&insns, &mut World, options)
        .map_err(|refusal| format!("insn {}: {refusal}", refusal.insn))?;
    // SAFETY: the user vouches for the program: it stays inside of the memory whose bounds it is given.
    let program = unsafe { Verified::unchecked(program) };
    let image = compile(&program, &Options { cpu: CpuFeatures::detect(), ..Options::default() })?;
    Ok(Code::link(image.borrow(), &World)?)
}

fn aligned(memory: &[u8]) -> Vec<u64> {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_ne_bytes(word)
    };
    memory.chunks(8).map(word).collect()
}

fn call(code: &Code, memory: &mut [u64], len: usize) -> Result<u64, Failure> {
    let mut run = RunHeader::with_fuel(FUEL);
    let start = memory.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: as `load` says.
    let result = unsafe { code.entry()(start, len as u64, 0, 0, 0, &raw mut run) };
    if run.fuel < 0 {
        return Err("the program runs without end".into());
    }
    Ok(result)
}

/// Nanoseconds of one run.
fn measure(code: &Code, memory: &mut [u64], len: usize, repeat: u64) -> Result<f64, Failure> {
    let start = Instant::now();
    while start.elapsed() < WARM_UP {
        call(code, memory, len)?;
    }
    let (entry, mut run) = (code.entry(), RunHeader::with_fuel(FUEL));
    let data = memory.as_mut_ptr().expose_provenance() as u64;
    let before = thread_time();
    for _ in 0..repeat {
        run.fuel = FUEL;
        // SAFETY: as in `call`.
        unsafe { entry(data, len as u64, 0, 0, 0, &raw mut run) };
    }
    Ok((thread_time() - before).as_nanos() as f64 / repeat as f64)
}

fn thread_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid timespec for the kernel to fill; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What programs can reach: one helper and its two maps.
struct World;

impl LoadEnv for World {
    fn helper_exists(&self, id: u32) -> bool {
        id == 1
    }
}

impl Resolve for World {
    fn map(&self, _: MapIdx) -> Option<u64> {
        None
    }
    fn map_value(&self, _: MapIdx) -> Option<u64> {
        None
    }
    fn helper(&self, id: u32) -> Option<u64> {
        let lookup: BpfFn = lookup;
        (id == 1).then_some(lookup as usize as u64)
    }
}

/// Slots of the hash table; a power of two, twice the keys that programs use.
const SLOTS: usize = 512;

struct Maps {
    /// Key plus one (0 is free), value.
    hash: [(u64, u64); SLOTS],
    array: [u64; 256],
}

struct Shared(UnsafeCell<Maps>);

// SAFETY: this program has one thread.
unsafe impl Sync for Shared {}

static MAPS: Shared = Shared(UnsafeCell::new(Maps { hash: [(0, 0); SLOTS], array: [0; 256] }));

unsafe extern "C" fn lookup(map: u64, key: u64, _: u64, _: u64, _: u64, _: *mut RunHeader) -> u64 {
    // SAFETY: the program passes the address of a u32 key.
    let key = unsafe { std::ptr::with_exposed_provenance::<u32>(key as usize).read() };
    // SAFETY: one thread, and the program keeps no reference across this call that Rust knows of.
    let maps = unsafe { &mut *MAPS.0.get() };
    // In native_map.c's order.
    let value = match map {
        2 => maps.array.get_mut(key as usize),
        _ => find(&mut maps.hash, key),
    };
    value.map_or(0, |value| (value as *mut u64).expose_provenance() as u64)
}

/// Finds a key or makes an element for it, with linear probing.
#[inline(never)]
fn find(table: &mut [(u64, u64); SLOTS], key: u32) -> Option<&mut u64> {
    let wanted = u64::from(key) + 1;
    let mut at = (key.wrapping_mul(0x9e37_79b1) >> 23) as usize;
    for _ in 0..SLOTS {
        at &= SLOTS - 1;
        if table[at].0 == 0 {
            table[at] = (wanted, 0);
        }
        if table[at].0 == wanted {
            return Some(&mut table[at].1);
        }
        at += 1;
    }
    None
}
