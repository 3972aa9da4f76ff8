//! Sections, symbols and relocations of a BPF object.

use super::btf::Btf;
use super::core::Resolver;
use super::ext::{CoRe, Ext, Line};
use super::{ObjectError, section};
use bpftime_vm::Insn;
use object::elf::{R_BPF_64_32, R_BPF_64_64};
use object::read::{Object as _, ObjectSection, ObjectSymbol, RelocationTarget};
use object::{RelocationFlags, SectionKind, SymbolKind, SymbolSection};
use std::collections::HashMap;

/// Where a symbol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At this byte of a section, by index.
    In(usize, u64),
    /// Elsewhere: the object does not define it. Weak ones may be missing.
    Extern { weak: bool },
}

/// What an instruction refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub name: String,
    pub place: Place,
}

/// A section with instructions.
#[derive(Clone, Debug, Default)]
pub struct Code {
    /// Index in the file.
    pub index: usize,
    pub name: String,
    pub insns: Vec<Insn>,
    /// By slot.
    pub references: HashMap<usize, Reference>,
    pub lines: Vec<Line>,
    relocations: Vec<CoRe>,
}

/// A function of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// Index of its section in the file.
    pub section: usize,
    /// First slot in the section, and slots.
    pub start: usize,
    pub len: usize,
    /// Whether it can be seen from outside: in a section of its own kind, it is a program.
    pub global: bool,
}

/// A section with data of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    pub index: usize,
    pub name: String,
    pub bytes: Vec<u8>,
}

/// A parsed object file.
pub struct File {
    pub btf: Btf,
    pub code: Vec<Code>,
    pub functions: Vec<Function>,
    pub data: Vec<Data>,
    /// Symbols in `.maps`: offset and name; and the section's index.
    pub maps: Vec<(u64, String)>,
    pub maps_section: Option<usize>,
    license: String,
}

impl File {
    pub fn parse(bytes: &[u8]) -> Result<File, ObjectError> {
        let bad = |e: object::Error| ObjectError::Elf(e.to_string());
        let elf = object::File::parse(bytes).map_err(bad)?;
        if elf.architecture() != object::Architecture::Bpf {
            return Err(ObjectError::Elf(format!("it is for {:?}", elf.architecture())));
        }
        let contents = |name: &str| elf.section_by_name(name).and_then(|s| s.data().ok());
        let btf = contents(".BTF").map_or(Ok(Btf::none()), Btf::parse)?;
        let ext = contents(".BTF.ext").map_or(Ok(Ext::default()), Ext::parse)?;
        let license = contents("license").unwrap_or(&[]);
        let end = license.iter().position(|b| *b == 0).unwrap_or(license.len());
        let mut file = File {
            btf,
            code: vec![],
            functions: vec![],
            data: vec![],
            maps: vec![],
            maps_section: None,
            license: String::from_utf8_lossy(&license[..end]).into_owned(),
        };
        for section in elf.sections() {
            file.section(&elf, &section, &ext)?;
        }
        file.symbols(&elf);
        Ok(file)
    }

    pub fn license(&self) -> String {
        self.license.clone()
    }

    fn section(
        &mut self,
        elf: &object::File<'_>,
        section: &object::Section<'_, '_>,
        ext: &Ext,
    ) -> Result<(), ObjectError> {
        let (index, name) = (section.index().0, section.name().unwrap_or("").to_string());
        let bytes = || section.data().unwrap_or(&[]).to_vec();
        match section.kind() {
            SectionKind::Text if section.size() > 0 => self.code.push(code(elf, section, ext, &self.btf)?),
            _ if name == "maps" || name.starts_with("maps/") => return Err(ObjectError::LegacyMaps(name)),
            _ if name == ".maps" => self.maps_section = Some(index),
            _ if is_data(&name) => {
                let mut bytes = bytes();
                bytes.resize(section.size() as usize, 0);
                self.data.push(Data { index, name, bytes });
            }
            _ => {}
        }
        Ok(())
    }

    fn symbols(&mut self, elf: &object::File<'_>) {
        for symbol in elf.symbols() {
            let Some(section) = symbol.section_index().map(|s| s.0) else { continue };
            let name = symbol.name().unwrap_or("").to_string();
            if Some(section) == self.maps_section && !name.is_empty() {
                self.maps.push((symbol.address(), name));
            } else if symbol.kind() == SymbolKind::Text {
                let (start, len) = (symbol.address() as usize / 8, symbol.size() as usize / 8);
                let global = symbol.is_global();
                self.functions.push(Function { name, section, start, len, global });
            }
        }
        self.functions.sort_by_key(|f| (f.section, f.start));
    }

    /// Applies the relocations against the kernel's types. Objects without any need no kernel.
    pub fn settle_types(&mut self) -> Result<(), ObjectError> {
        if self.code.iter().all(|code| code.relocations.is_empty()) {
            return Ok(());
        }
        const KERNEL: &str = "/sys/kernel/btf/vmlinux";
        let bytes = std::fs::read(KERNEL).map_err(|e| ObjectError::Kernel(e.to_string()))?;
        let kernel = Btf::parse(&bytes).map_err(|e| ObjectError::Kernel(e.to_string()))?;
        let resolver = Resolver { local: &self.btf, kernel: &kernel };
        for code in &mut self.code {
            code.relocations.iter().for_each(|r| resolver.apply(&mut code.insns, r));
        }
        Ok(())
    }

    /// The section of code with this index in the file.
    pub fn code_at(&self, index: usize) -> Option<&Code> {
        self.code.iter().find(|code| code.index == index)
    }

    /// Functions that are programs: visible ones in sections that say what for. In an object without visible
    /// functions there, the first one.
    pub fn entries(&self) -> impl Iterator<Item = (&Function, &Code)> {
        self.functions.iter().filter_map(|f| {
            let code = self.code_at(f.section)?;
            (f.global && code.name != ".text" && section::prog_type(&code.name).is_some())
                .then_some((f, code))
        })
    }
}

fn is_data(name: &str) -> bool {
    [".data", ".rodata", ".bss"]
        .iter()
        .any(|kind| name.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

fn code(
    elf: &object::File<'_>,
    section: &object::Section<'_, '_>,
    ext: &Ext,
    btf: &Btf,
) -> Result<Code, ObjectError> {
    let name = section.name().unwrap_or("").to_string();
    let bytes = section.data().map_err(|e| ObjectError::Elf(e.to_string()))?;
    let insns = Insn::from_bytes(bytes)
        .ok_or_else(|| ObjectError::Elf(format!("section {name} is no multiple of 8 bytes long")))?;
    let mut references = HashMap::new();
    for (off, relocation) in section.relocations() {
        let slot = off as usize / 8;
        let reference = reference(elf, &relocation).ok_or_else(|| ObjectError::Relocation {
            section: name.clone(),
            slot,
            reason: format!("relocation {:?} is not one of BPF code", relocation.flags()),
        })?;
        references.insert(slot, reference);
    }
    let mine = |(section, _): &&(u32, Vec<_>)| btf.text(*section) == name;
    let lines = ext.lines.iter().find(mine).map(|(_, lines)| lines.clone()).unwrap_or_default();
    let mine = |(section, _): &&(u32, Vec<_>)| btf.text(*section) == name;
    let relocations = ext.relocations.iter().find(mine).map(|(_, r)| r.clone()).unwrap_or_default();
    Ok(Code { index: section.index().0, name, insns, references, lines, relocations })
}

fn reference(elf: &object::File<'_>, relocation: &object::Relocation) -> Option<Reference> {
    let RelocationFlags::Elf { r_type: R_BPF_64_64 | R_BPF_64_32 } = relocation.flags() else { return None };
    let RelocationTarget::Symbol(index) = relocation.target() else { return None };
    let symbol = elf.symbol_by_index(index).ok()?;
    let place = match symbol.section() {
        SymbolSection::Section(section) => Place::In(section.0, symbol.address()),
        _ => Place::Extern { weak: symbol.is_weak() },
    };
    Some(Reference { name: symbol.name().unwrap_or("").to_string(), place })
}
