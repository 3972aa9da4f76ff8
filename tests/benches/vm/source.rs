//! From a C file to what the engines take: bytecode, and a shared object of each native compiler.

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `R_BPF_64_32`: a call inside of the program.
const CALL: object::elf::RelocationType = object::elf::RelocationType(10);
/// Bytes of memory that every program gets: the most that one of them asks for.
const MEMORY: usize = 65536;

/// A program in all its forms.
pub struct Built {
    pub name: String,
    pub bytecode: PathBuf,
    pub memory: PathBuf,
    pub gcc: PathBuf,
    pub clang: PathBuf,
}

/// The sources with these names, all without any.
pub fn programs(names: &[String]) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/vm");
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| name == wanted);
    found.retain(|path| {
        path.extension().is_some_and(|e| e == "c") && name(path) != "native_map" && wanted(&name(path))
    });
    found.sort();
    found
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

impl Built {
    pub fn new(source: &Path, dir: &Path) -> Built {
        let name = name(source);
        let file = |extension: &str| dir.join(format!("{name}.{extension}"));
        let object = file("bpf.o");
        compile("clang", &["-target", "bpf", "-mcpu=v3", "-O2", "-c"], &[source], &object);
        let (bytecode, memory) = (file("bytecode"), dir.join("memory"));
        write(&bytecode, &flattened(&object));
        write(&memory, &noise());
        let map = source.with_file_name("native_map.c");
        for (compiler, so) in [("gcc", file("gcc.so")), ("clang", file("clang.so"))] {
            compile(compiler, &["-O2", "-fPIC", "-shared"], &[source, &map], &so);
        }
        Built { bytecode, memory, gcc: file("gcc.so"), clang: file("clang.so"), name }
    }
}

fn compile(compiler: &str, flags: &[&str], sources: &[&Path], out: &Path) {
    let status = Command::new(compiler).args(flags).args(sources).arg("-w").arg("-o").arg(out).status();
    let status = status.unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(status.success(), "{compiler} {flags:?} {sources:?}: {status}");
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// The same random bytes each time (xorshift).
fn noise() -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    (0..MEMORY).map(|_| next()).collect()
}

/// The instructions of an object, entry first, with calls resolved.
fn flattened(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = object::File::parse(bytes.as_slice()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut code = vec![];
    let mut starts = vec![];
    for name in ["entry", ".text"] {
        let Some(section) = file.section_by_name(name) else { continue };
        starts.push((section.index(), code.len() as i64 / 8));
        code.extend_from_slice(section.data().unwrap_or_default());
    }
    let start_of = |index| starts.iter().find(|(section, _)| *section == index).map(|(_, start)| *start);
    for (index, start) in &starts {
        let section = file.section_by_index(*index).expect("a section that was just found");
        for (offset, reloc) in section.relocations() {
            let object::RelocationFlags::Elf { r_type: CALL } = reloc.flags() else {
                panic!("{}: relocation {:?}; programs have no global data", path.display(), reloc.flags())
            };
            let RelocationTarget::Symbol(symbol) = reloc.target() else { continue };
            let symbol = file.symbol_by_index(symbol).expect("the symbol of a relocation");
            let (at, callee) = (start + offset as i64 / 8, symbol.section_index().and_then(start_of));
            let callee = callee.expect("a function of the program") + symbol.address() as i64 / 8;
            let imm = &mut code[at as usize * 8 + 4..at as usize * 8 + 8];
            // Relative to the next instruction; a section's symbol leaves the rest in the instruction.
            let addend = i64::from(i32::from_le_bytes([imm[0], imm[1], imm[2], imm[3]])) + 1;
            imm.copy_from_slice(&((callee + addend - at - 1) as i32).to_le_bytes());
        }
    }
    code
}
