//! The engines under comparison. Each trial is a process of its own that speaks the runner's protocol:
//! `EXE bytecode memory repeat` prints `compile_ns exec_ns_per_run result_hex memhash_hex compile_warm_ns`.

use super::source::Built;
use super::{kernel, sbpf};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One line of the protocol.
#[derive(Clone, Debug)]
pub struct Sample {
    pub compile_ns: f64,
    pub exec_ns: f64,
    pub result: String,
    pub memory: String,
    pub warm_ns: f64,
}

/// A column of the table.
pub struct Engine {
    pub name: &'static str,
    /// A program of ours that speaks the protocol; without it this one does, as `--engine NAME`.
    pub runner: Option<&'static str>,
    /// The file it runs.
    input: fn(&Built) -> &PathBuf,
}

/// Native first: the others are compared with it.
pub const ENGINES: &[Engine] = &[
    Engine { name: "gcc", runner: None, input: |built| &built.gcc },
    Engine { name: "clang", runner: None, input: |built| &built.clang },
    Engine { name: "bpftime", runner: Some("bin/bpftime-vm-bench"), input: |built| &built.bytecode },
    Engine { name: "rbpf", runner: None, input: |built| &built.bytecode },
    Engine { name: "sbpf", runner: None, input: |built| &built.bytecode },
    Engine { name: "kernel", runner: None, input: |built| &built.bytecode },
];

impl Engine {
    pub fn exists(&self) -> bool {
        let allowed = self.name != "kernel" || bpftime_tests::kernel_is_oracle();
        allowed && self.runner.is_none_or(|runner| bpftime_tests::dist(runner).exists())
    }

    /// `None` when the engine refuses the program or dies of it.
    pub fn run(&self, built: &Built, repeat: u64) -> Option<Sample> {
        let mut command = match self.runner {
            Some(runner) => Command::new(bpftime_tests::dist(runner)),
            None => {
                let mut this = Command::new(std::env::current_exe().expect("the path of this program"));
                this.args(["--engine", self.name]);
                this
            }
        };
        command.args([(self.input)(built), &built.memory]).arg(repeat.to_string());
        let output = command.stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
        let [compile, exec, result, memory, warm] = text.split_whitespace().collect::<Vec<_>>()[..] else {
            return None;
        };
        Some(Sample {
            compile_ns: compile.parse().ok()?,
            exec_ns: exec.parse().ok()?,
            result: result.to_string(),
            memory: memory.to_string(),
            warm_ns: warm.parse().ok()?,
        })
    }
}

/// What a peer needs to be timed.
pub type Run = Box<dyn FnMut(&mut [u8]) -> u64>;
pub type Failure = Box<dyn std::error::Error>;

/// The other end of the protocol: never returns.
pub fn child(engine: &str, args: &[String]) -> ! {
    let spoken = match engine {
        "rbpf" => speak(rbpf, args),
        "sbpf" => speak(sbpf::load, args),
        "kernel" => kernel::speak(args),
        _ => speak(native, args),
    };
    match spoken {
        Ok(()) => std::process::exit(0),
        Err(failure) => {
            eprintln!("{engine}: {failure}");
            std::process::exit(1)
        }
    }
}

fn speak(load: fn(&[u8], &str) -> Result<Run, Failure>, args: &[String]) -> Result<(), Failure> {
    let [path, memory, repeat] = args else { return Err("usage: --engine NAME FILE MEMORY REPEAT".into()) };
    let (file, memory, repeat) = (std::fs::read(path)?, std::fs::read(memory)?, repeat.parse::<u64>()?);
    let start = Instant::now();
    let mut run = load(&file, path)?;
    let cold = start.elapsed();
    let mut words = vec![0u64; memory.len().div_ceil(8)];
    // SAFETY: the words cover these bytes and outlive the slice.
    let bytes = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), memory.len()) };
    bytes.copy_from_slice(&memory);
    let result = run(bytes);
    let after = bytes.to_vec();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2) {
        run(bytes);
    }
    let before = thread_time();
    for _ in 0..repeat {
        run(bytes);
    }
    let per_run = (thread_time() - before).as_nanos() as f64 / repeat as f64;
    let mut warm = vec![];
    for _ in 0..5 {
        let start = Instant::now();
        drop(load(&file, path)?);
        warm.push(start.elapsed().as_nanos());
    }
    warm.sort_unstable();
    print(cold.as_nanos() as f64, per_run, result, &after, warm[2] as f64);
    Ok(())
}

/// The protocol's line.
pub fn print(cold_ns: f64, run_ns: f64, result: u64, memory: &[u8], warm_ns: f64) {
    let fnv = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
    let hash = memory.iter().fold(0xcbf2_9ce4_8422_2325_u64, fnv);
    println!("{cold_ns:.0} {run_ns:.3} {result:x} {hash:x} {warm_ns:.0}");
}

fn thread_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid timespec for the kernel to fill; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn native(_: &[u8], path: &str) -> Result<Run, Failure> {
    let path = std::ffi::CString::new(path)?;
    // SAFETY: our own shared object, without constructors.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    // SAFETY: a library that is never closed.
    let entry = unsafe { libc::dlsym(library, c"bpf_main".as_ptr()) };
    if library.is_null() || entry.is_null() {
        return Err("no bpf_main".into());
    }
    // SAFETY: the programs' signature.
    let entry: extern "C" fn(*mut u8, u64) -> u64 = unsafe { std::mem::transmute(entry) };
    Ok(Box::new(move |memory| entry(memory.as_mut_ptr(), memory.len() as u64)))
}

/// The native programs' map, for the peers.
static LOOKUP: std::sync::OnceLock<extern "C" fn(u64, u64) -> u64> = std::sync::OnceLock::new();

fn lookup(map: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    LOOKUP.get().map_or(0, |lookup| lookup(map, key))
}

/// Finds the map's function in the shared object next to the bytecode.
fn load_lookup(bytecode: &str) -> Result<(), Failure> {
    let path = std::ffi::CString::new(bytecode.replace(".bytecode", ".gcc.so"))?;
    // SAFETY: as in `native`.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    // SAFETY: as in `native`.
    let found = unsafe { libc::dlsym(library, c"peers_map_lookup".as_ptr()) };
    if library.is_null() || found.is_null() {
        return Err("no peers_map_lookup".into());
    }
    // SAFETY: the function's signature in native_map.c, with pointers as numbers.
    LOOKUP.get_or_init(|| unsafe {
        std::mem::transmute::<*mut libc::c_void, extern "C" fn(u64, u64) -> u64>(found)
    });
    Ok(())
}

fn rbpf(bytecode: &[u8], path: &str) -> Result<Run, Failure> {
    // rbpf passes no length: `mov r2, 65536` in front does.
    let length = [0xb7, 2, 0, 0, 0, 0, 1, 0];
    let bytecode: &'static [u8] = [&length, bytecode].concat().leak();
    let mut vm = rbpf::EbpfVmRaw::new(Some(bytecode))?;
    load_lookup(path)?;
    vm.register_helper(1, lookup)?;
    vm.jit_compile()?;
    Ok(Box::new(move |memory| {
        // SAFETY: the memory is used during this call only; rbpf wants it as long-lived as the program.
        let memory = unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr(), memory.len()) };
        // SAFETY: our programs stay inside of the memory they are given.
        unsafe { vm.execute_program_jit(memory) }.unwrap_or(u64::MAX)
    }))
}
