//! `bpftime compile prog.bpf.o -o prog.img`: verifies and compiles every program of an object file.

use super::{Compiled, Container};
use crate::object::{MapDef, Object, ObjectEnv, Prog};
use crate::{Failure, say};
use bpftime_abi::map_type::{
    BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_PERCPU_HASH,
};
use bpftime_vm::verify::{Log, verify};
use bpftime_vm::{
    ArrayLayout, CpuFeatures, DecodeOptions, HashLayout, MapLayout, Options, compile, decode_with,
};
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code when a program is refused, as for `bpftime verify`.
const REFUSED: u8 = 3;

/// The machines that the code is for.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Cpu {
    /// Every x86-64 one.
    Baseline,
    /// This one, and others that have what it has.
    Native,
}

/// Arguments of `bpftime compile`.
#[derive(clap::Args)]
pub struct Args {
    /// Object file, as `clang -g -target bpf` makes it.
    object: PathBuf,
    /// File to write.
    #[arg(short, long)]
    output: PathBuf,
    /// Machines that the code is for.
    #[arg(long, value_enum, default_value = "baseline")]
    cpu: Cpu,
}

/// Compiles. Exit code 3 if the verifier refuses a program.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let object = Object::open(&args.object)
        .map_err(|e| Failure::new(1, format_args!("{e}; see `llvm-readelf -S {}`", args.object.display())))?;
    let cpu = match args.cpu {
        Cpu::Baseline => CpuFeatures::BASELINE,
        Cpu::Native => CpuFeatures::detect().without_avx(),
    };
    let layouts: Vec<_> = object.maps.iter().map(layout).collect();
    let options = Options { cpu, kernel_helpers: true, maps: &layouts };
    let programs = object.programs.iter().map(|prog| compiled(&object, prog, &options));
    let programs = programs.collect::<Result<Vec<_>, _>>()?;
    if programs.is_empty() {
        return Err(Failure::new(
            1,
            format_args!("no programs in {}; see llvm-objdump", args.object.display()),
        ));
    }
    for program in &programs {
        let (name, bytes) = (&program.name, program.image.code_len());
        say(format_args!("{name}: {} instructions, {bytes} bytes of code", program.insns.len()));
    }
    let file = Container { license: object.license, maps: object.maps, programs }.to_bytes();
    std::fs::write(&args.output, file)
        .map_err(|e| Failure::new(1, format_args!("{}: {e}; give another -o", args.output.display())))?;
    Ok(ExitCode::SUCCESS)
}

fn compiled(object: &Object, prog: &Prog, options: &Options<'_>) -> Result<Compiled, Failure> {
    let refused = |insn: usize, why: &str| {
        let next = "`bpftime verify` shows the path";
        Failure::new(REFUSED, format_args!("{}, instruction {insn}: {why}; {next}", prog.name))
    };
    let mut env = ObjectEnv::new(object, prog);
    let program = decode_with(&prog.insns, &mut env, DecodeOptions::default())
        .map_err(|e| refused(e.insn, &e.to_string()))?;
    let verified = verify(program, &env, &mut Log::new(0)).map_err(|e| refused(e.insn, &e.reason))?;
    let image = compile(&verified, options)
        .map_err(|e| Failure::new(1, format_args!("{}: {e}; report this with the object", prog.name)))?;
    Ok(Compiled {
        name: prog.name.clone(),
        section: prog.section.clone(),
        prog_type: prog.prog_type,
        ctx_bytes: verified.ctx_bytes(),
        insns: prog.insns.clone(),
        image,
    })
}

/// What a map will be like, for inlined operations: as shm-maps lays it out.
fn layout(map: &MapDef) -> Option<MapLayout> {
    let (entries, stride) = (map.facts.max_entries, map.facts.value_size.checked_next_multiple_of(8)?);
    let all = u64::from(entries) * u64::from(stride);
    let (key_size, value_size) = (map.facts.key_size, map.facts.value_size);
    let array = |cpu_stride| Some(MapLayout::Array(ArrayLayout { entries, value_size, stride, cpu_stride }));
    let hash = |percpu| Some(MapLayout::Hash(HashLayout { key_size, value_size, percpu }));
    match map.facts.map_type {
        // What an update leaves out of a value is the map's own business.
        _ if !map.fields.is_empty() => None,
        BPF_MAP_TYPE_ARRAY => array(None),
        BPF_MAP_TYPE_PERCPU_ARRAY => array(Some(all)),
        BPF_MAP_TYPE_HASH => hash(false),
        BPF_MAP_TYPE_PERCPU_HASH => hash(true),
        _ => None,
    }
}
