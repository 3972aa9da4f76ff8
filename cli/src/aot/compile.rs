//! `bpftime compile prog.bpf.o -o prog.img`: verifies and compiles every program of an object file, for `bpftime load` or
//! (`--emit obj`) for the linker.

use super::emit::{self, Part};
use crate::object::{Object, ObjectEnv, Prog};
use crate::{Failure, say};
use bpftime_abi::map_type::{
    BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_PERCPU_HASH,
};
use bpftime_shm::map::percpu_array_stride;
use bpftime_vm::aot::{Compiled, Container, MapDef};
use bpftime_vm::verify::{Log, Verified, verify};
use bpftime_vm::{
    ArrayLayout, CpuFeatures, DecodeOptions, HashLayout, MapLayout, Options, compile, compile_object,
    decode_with,
};
use std::path::{Path, PathBuf};
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

/// Kinds of output.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Emit {
    /// A file for `bpftime load`.
    Img,
    /// An ELF object, with a C header beside it.
    Obj,
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
    /// What to make: a file for `bpftime load`, or an ELF object for the linker and a C header (FILE.h for FILE.o) that
    /// says how to use it without bpftime.
    #[arg(long, value_enum, default_value = "img")]
    emit: Emit,
}

/// Compiles. Exit code 3 if the verifier refuses a program.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let object = Object::open(&args.object)
        .map_err(|e| Failure::new(1, format_args!("{e}; see `llvm-readelf -S {}`", args.object.display())))?;
    let cpu = match args.cpu {
        Cpu::Baseline => CpuFeatures::BASELINE,
        Cpu::Native => CpuFeatures::detect().without_avx(),
    };
    if object.programs.is_empty() {
        return Err(Failure::new(
            1,
            format_args!("no programs in {}; see llvm-objdump", args.object.display()),
        ));
    }
    match args.emit {
        Emit::Img => image(object, cpu, &args.output),
        Emit::Obj => linkable(&object, cpu, &args.output),
    }
}

/// Writes what `bpftime load` reads.
fn image(object: Object, cpu: CpuFeatures, output: &Path) -> Result<ExitCode, Failure> {
    let layouts: Vec<_> = object.maps.iter().map(layout).collect();
    let options = Options { cpu, kernel_helpers: true, maps: &layouts };
    let compiled = |prog: &Prog| {
        let verified = verified(&object, prog)?;
        let image = compile(&verified, &options).map_err(|e| gave_up(prog, &e))?;
        tell(prog, image.code_len());
        Ok(Compiled {
            name: prog.name.clone(),
            section: prog.section.clone(),
            prog_type: prog.prog_type,
            ctx_bytes: verified.ctx_bytes(),
            insns: prog.insns.clone(),
            image,
        })
    };
    let programs = object.programs.iter().map(compiled).collect::<Result<Vec<_>, Failure>>()?;
    write(output, &Container { license: object.license, maps: object.maps, programs }.to_bytes())
}

/// Writes an ELF object and its header.
pub(crate) fn linkable(object: &Object, cpu: CpuFeatures, output: &Path) -> Result<ExitCode, Failure> {
    // Nobody says where elements of arrays are, nor what fields of the run hold.
    let options = Options { cpu, ..Options::default() };
    let part = |prog| {
        let verified = verified(object, prog)?;
        let code = compile_object(&verified, &options).map_err(|e| gave_up(prog, &e))?;
        tell(prog, code.code.len());
        Ok(Part { prog, code, ctx_bytes: verified.ctx_bytes() })
    };
    let parts = object.programs.iter().map(part).collect::<Result<Vec<_>, Failure>>()?;
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    let emitted = emit::emit(object, &parts, cpu, &stem).map_err(|e| {
        Failure::new(1, format_args!("{}: {e}; report this with the object", output.display()))
    })?;
    write(&output.with_extension("h"), emitted.header.as_bytes())?;
    write(output, &emitted.object)
}

fn write(path: &Path, bytes: &[u8]) -> Result<ExitCode, Failure> {
    std::fs::write(path, bytes)
        .map_err(|e| Failure::new(1, format_args!("{}: {e}; give another -o", path.display())))?;
    Ok(ExitCode::SUCCESS)
}

fn tell(prog: &Prog, bytes: usize) {
    say(format_args!("{}: {} instructions, {bytes} bytes of code", prog.name, prog.insns.len()));
}

fn gave_up(prog: &Prog, error: &bpftime_vm::CompileError) -> Failure {
    Failure::new(1, format_args!("{}: {error}; report this with the object", prog.name))
}

/// A program that the verifier accepts.
pub(crate) fn verified(object: &Object, prog: &Prog) -> Result<Verified, Failure> {
    let refused = |insn: usize, why: &str| {
        let next = "`bpftime verify` shows the path";
        Failure::new(REFUSED, format_args!("{}, instruction {insn}: {why}; {next}", prog.name))
    };
    let mut env = ObjectEnv::new(object, prog);
    let program = decode_with(&prog.insns, &mut env, DecodeOptions::default())
        .map_err(|e| refused(e.insn, &e.to_string()))?;
    verify(program, &env, &mut Log::new(0)).map_err(|e| refused(e.insn, &e.reason))
}

/// What a map will be like, for inlined operations: as shm-maps lays it out. The server refuses images that think otherwise.
fn layout(map: &MapDef) -> Option<MapLayout> {
    let (entries, stride) = (map.facts.max_entries, map.facts.value_size.checked_next_multiple_of(8)?);
    let (key_size, value_size) = (map.facts.key_size, map.facts.value_size);
    let array = |cpu_stride| Some(MapLayout::Array(ArrayLayout { entries, value_size, stride, cpu_stride }));
    let hash = |percpu| Some(MapLayout::Hash(HashLayout { key_size, value_size, percpu }));
    match map.facts.map_type {
        // What an update leaves out of a value is the map's own business.
        _ if !map.fields.is_empty() => None,
        BPF_MAP_TYPE_ARRAY => array(None),
        BPF_MAP_TYPE_PERCPU_ARRAY => array(Some(percpu_array_stride(entries, value_size)? as u64)),
        BPF_MAP_TYPE_HASH => hash(false),
        BPF_MAP_TYPE_PERCPU_HASH => hash(true),
        _ => None,
    }
}
