//! Plugin of the bpf_conformance suite: runs one program and prints r0.
//!
//! Arguments: the test's memory as hex bytes, if it has one, then options; without memory the options come
//! first. Standard input: the program as hex bytes. `--interp` selects the interpreter.

use bpftime_vm::exec::Code;
use bpftime_vm::image::{CpuFeatures, Resolve};
use bpftime_vm::interp::Callback;
use bpftime_vm::verify::Verified;
use bpftime_vm::{
    BpfFn, DecodeOptions, Dialect, Host, Insn, LoadEnv, MapIdx, Options, Program, RunHeader, Trap, compile,
    decode_with, interp,
};
use std::error::Error;
use std::io::Read;

/// A test that takes more back-edges than this hangs.
const FUEL: i64 = 1 << 32;

/// Helpers 0 to 5 exist; the suite calls number 5, which returns its first argument.
const HELPERS: u32 = 6;

struct Suite;

impl LoadEnv for Suite {
    fn helper_exists(&self, id: u32) -> bool {
        id < HELPERS
    }
}

impl Host for Suite {
    fn helper(&self, id: u32, args: [u64; 5], _call: &mut Callback<'_>) -> Result<u64, Trap> {
        if id < HELPERS { Ok(args[0]) } else { Err(Trap::NoHelper(id)) }
    }
}

extern "C" fn first_argument(r1: u64, _: u64, _: u64, _: u64, _: u64, _: *mut RunHeader) -> u64 {
    r1
}

impl Resolve for Suite {
    fn map(&self, _map: MapIdx) -> Option<u64> {
        None
    }
    fn map_value(&self, _map: MapIdx) -> Option<u64> {
        None
    }
    fn helper(&self, id: u32) -> Option<u64> {
        let helper: BpfFn = first_argument;
        (id < HELPERS).then_some(helper as usize as u64)
    }
}

#[derive(Default)]
struct Arguments {
    memory: Option<Vec<u8>>,
    interpret: bool,
}

impl Arguments {
    fn parse(args: impl Iterator<Item = String>) -> Result<Arguments, Box<dyn Error>> {
        let mut parsed = Arguments::default();
        for arg in args {
            match arg.as_str() {
                "--interp" => parsed.interpret = true,
                "--elf" => return Err("ELF input is not supported".into()),
                option if option.starts_with('-') => {}
                hex => parsed.memory = Some(bytes(hex)?),
            }
        }
        Ok(parsed)
    }
}

fn bytes(hex: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let byte = |text: &str| u8::from_str_radix(text, 16).map_err(|e| format!("`{text}`: {e}").into());
    hex.split_whitespace().map(byte).collect()
}

fn main() {
    match run() {
        Ok(r0) => println!("{r0:x}"),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}

fn run() -> Result<u64, Box<dyn Error>> {
    let mut arguments = Arguments::parse(std::env::args().skip(1))?;
    let mut source = String::new();
    std::io::stdin().read_to_string(&mut source)?;
    let insns = Insn::from_bytes(&bytes(&source)?).ok_or("program is not a multiple of eight bytes")?;
    let options = DecodeOptions { dialect: Dialect::Rfc9669, ..DecodeOptions::default() };
    let program = decode_with(&insns, &mut Suite, options)?;
    let memory = arguments.memory.as_deref_mut().unwrap_or(&mut []);
    let len = memory.len() as u64;
    let start = if memory.is_empty() { 0 } else { memory.as_mut_ptr().expose_provenance() as u64 };
    let args = [start, len, 0, 0, 0];
    if arguments.interpret { interpret(&program, args) } else { execute(&program, args) }
}

fn interpret(program: &Program, args: [u64; 5]) -> Result<u64, Box<dyn Error>> {
    // SAFETY: the suite's programs are trusted to stay inside of their memory.
    Ok(unsafe { interp::run(program, args, &Suite, FUEL as u64) }?)
}

fn execute(program: &Program, [r1, r2, r3, r4, r5]: [u64; 5]) -> Result<u64, Box<dyn Error>> {
    // SAFETY: the suite's programs are trusted to stay inside of their memory.
    let verified = unsafe { Verified::unchecked(program.clone()) };
    let image = compile(&verified, &Options { cpu: CpuFeatures::BASELINE, ..Options::default() })?;
    let code = Code::link(image.borrow(), &Suite)?;
    let mut run = RunHeader::with_fuel(FUEL);
    // SAFETY: `code` lives over the call; the suite's programs are trusted to stay inside of their memory.
    let r0 = unsafe { code.entry()(r1, r2, r3, r4, r5, &mut run) };
    if run.fuel < 0 { Err("out of fuel".into()) } else { Ok(r0) }
}
