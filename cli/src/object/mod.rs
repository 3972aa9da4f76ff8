//! Objects that `clang -g -target bpf` makes (or `bpftool gen object`): from the file to programs as the
//! kernel would be given them, each with its subprograms behind it, its maps by number, CO-RE settled.
//!
//! `elf` reads sections, symbols and relocations; `btf`, `ext` and `core` what the compiler knows of types;
//! `maps` makes map definitions; `link` puts programs together; `env` answers the verifier's questions. It is
//! what libbpf does, for programs that are judged or compiled here instead of loaded by a tool: nothing is
//! created, and what a tool would set at run time (sizes, constants) is as the file has it.

mod btf;
mod core;
mod elf;
mod env;
mod ext;
mod link;
mod maps;
mod section;

pub use env::ObjectEnv;

use bpftime_vm::Insn;
use bpftime_vm::aot::MapDef;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Where instructions come from: from this slot on, until the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLine {
    /// First slot.
    pub slot: usize,
    /// File as the compiler was given it.
    pub file: String,
    /// Counted from 1.
    pub number: u32,
    /// The line itself.
    pub text: String,
}

/// A program with all that it calls.
#[derive(Clone, Debug)]
pub struct Prog {
    /// Name of its function.
    pub name: String,
    /// Name of its section, which says what it is for.
    pub section: String,
    /// `BPF_PROG_TYPE_*`, by its section.
    pub prog_type: u32,
    /// Instructions. Map `n` is descriptor [`env::MAP_FD`] + n.
    pub insns: Vec<Insn>,
    /// First slot and name of each function.
    pub functions: Vec<(usize, String)>,
    /// Ordered by slot.
    pub lines: Vec<SourceLine>,
}

impl Prog {
    /// The source line of a slot.
    pub fn line(&self, slot: usize) -> Option<&SourceLine> {
        let behind = self.lines.partition_point(|line| line.slot <= slot);
        behind.checked_sub(1).map(|at| &self.lines[at])
    }

    /// The function that a slot belongs to.
    pub fn function(&self, slot: usize) -> &str {
        let behind = self.functions.partition_point(|(start, _)| *start <= slot);
        behind.checked_sub(1).map_or("", |at| &self.functions[at].1)
    }
}

/// An object file.
#[derive(Clone, Debug)]
pub struct Object {
    /// Contents of the section `license`.
    pub license: String,
    /// Maps, those for global data last.
    pub maps: Vec<MapDef>,
    /// Programs in the order of the file.
    pub programs: Vec<Prog>,
}

/// Why a file gives no programs.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the text of each variant is its documentation
pub enum ObjectError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("no BPF object: {0}")]
    Elf(String),
    #[error(".BTF: {0}")]
    Btf(#[from] btf::BtfError),
    #[error("the kernel's types (/sys/kernel/btf/vmlinux), which the object refers to: {0}")]
    Kernel(String),
    #[error("section {0} holds map definitions from before BTF; define them in .maps")]
    LegacyMaps(String),
    #[error("map `{map}`: {reason}")]
    Map { map: String, reason: String },
    #[error("section {section}, instruction {slot}: {reason}")]
    Relocation { section: String, slot: usize, reason: String },
    #[error("section {0}: no program type is known for this name")]
    Section(String),
}

impl Object {
    /// Reads an object file.
    pub fn open(path: &Path) -> Result<Object, ObjectError> {
        let bytes =
            std::fs::read(path).map_err(|error| ObjectError::Read { path: path.to_path_buf(), error })?;
        Object::parse(&bytes)
    }

    /// Takes an object file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Object, ObjectError> {
        let mut file = elf::File::parse(bytes)?;
        let maps = maps::Maps::of(&file)?;
        file.settle_types()?;
        let programs = link::programs(&file, &maps)?;
        Ok(Object { license: file.license(), maps: maps.into_list(), programs })
    }

    /// Whether the licence is compatible with the GPL.
    pub fn gpl(&self) -> bool {
        const COMPATIBLE: [&str; 6] =
            ["GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"];
        COMPATIBLE.contains(&self.license.as_str())
    }
}
