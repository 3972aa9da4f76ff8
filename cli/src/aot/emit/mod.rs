//! `bpftime compile --emit obj`: an ELF relocatable object and a C header, for programs that run without bpftime.
//!
//! What the two promise, and what whoever links them has to bring along, is in the header's own words ([`CONTRACT`]).

use crate::object::{Object, Prog};
use bpftime_abi::helper;
use bpftime_vm::aot::MapDef;
use bpftime_vm::image::{self, Symbol};
use bpftime_vm::{CpuFeatures, MapIdx, ObjectCode};
use object::write::{self, Relocation, SectionId, StandardSection, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SymbolFlags, SymbolKind, SymbolScope, elf,
};
use std::collections::BTreeMap;
use std::fmt::Write;

#[cfg(test)]
mod tests;

/// Functions begin at multiples of this, as in images; the tables behind them at their own.
const CODE_ALIGN: u64 = 64;
/// Global data, whatever its types.
const DATA_ALIGN: u64 = 16;

/// A program for the object.
pub(crate) struct Part<'o> {
    pub prog: &'o Prog,
    pub code: ObjectCode,
    /// Bytes of the context that it reads.
    pub ctx_bytes: u32,
}

/// Object file and header.
pub(crate) struct Emitted {
    pub object: Vec<u8>,
    pub header: String,
}

/// Something for each thing outside of the code that it refers to.
struct Outside<T> {
    /// By id.
    helpers: BTreeMap<u32, T>,
    /// Handles of maps, by index.
    maps: BTreeMap<u32, T>,
    /// Global data, by the index of its map.
    data: BTreeMap<u32, T>,
}

impl<T> Outside<T> {
    fn new() -> Outside<T> {
        Outside { helpers: BTreeMap::new(), maps: BTreeMap::new(), data: BTreeMap::new() }
    }

    fn place(&mut self, symbol: Symbol) -> Option<(&mut BTreeMap<u32, T>, u32)> {
        match symbol {
            Symbol::Helper(id) => Some((&mut self.helpers, id)),
            Symbol::Map(map) => Some((&mut self.maps, map.0)),
            Symbol::MapValue(map) | Symbol::MapElements(map) => Some((&mut self.data, map.0)),
            Symbol::Code => None,
        }
    }
}

/// The names of what programs refer to.
fn names(object: &Object, parts: &[Part<'_>], stem: &str) -> Outside<String> {
    let mut names = Outside::new();
    let map = |map: MapIdx| identifier(&object.maps[map.0 as usize].name);
    for reloc in parts.iter().flat_map(|part| &part.code.references) {
        let name = match reloc.symbol {
            Symbol::Helper(id) => {
                format!("bpftime_helper_{}", helper::name(id).map_or(id.to_string(), str::to_string))
            }
            Symbol::Map(index) => format!("bpftime_map_{}", map(index)),
            Symbol::MapValue(index) | Symbol::MapElements(index) => {
                format!("{}{}", identifier(stem), map(index))
            }
            Symbol::Code => continue,
        };
        names.place(reloc.symbol).map(|(place, key)| place.insert(key, name));
    }
    names
}

/// Puts programs together. `stem` is what both files are called.
pub(crate) fn emit(
    object: &Object,
    parts: &[Part<'_>],
    cpu: CpuFeatures,
    stem: &str,
) -> Result<Emitted, write::Error> {
    let wanted = names(object, parts, stem);
    let mut file = write::Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let note = file.add_section(vec![], b".note.GNU-stack".to_vec(), object::SectionKind::Other);
    file.section_mut(note).flags =
        object::SectionFlags::Elf { sh_type: elf::SHT_PROGBITS, sh_flags: elf::SectionFlags(0) };
    let mut symbols = Outside::new();
    for (id, name) in &wanted.helpers {
        symbols.helpers.insert(*id, undefined(&mut file, name, SymbolKind::Text));
    }
    for (map, name) in &wanted.maps {
        symbols.maps.insert(*map, undefined(&mut file, name, SymbolKind::Data));
    }
    for (map, name) in &wanted.data {
        symbols.data.insert(*map, data(&mut file, name, &object.maps[*map as usize]));
    }
    let text = file.section_id(StandardSection::Text);
    for part in parts {
        place(&mut file, text, part, &mut symbols)?;
    }
    Ok(Emitted { object: file.write()?, header: header(object, parts, cpu, stem, &wanted) })
}

fn symbol(name: &str, kind: SymbolKind, section: SymbolSection) -> write::Symbol {
    write::Symbol {
        name: name.as_bytes().to_vec(),
        value: 0,
        size: 0,
        kind,
        scope: SymbolScope::Dynamic,
        weak: false,
        section,
        flags: SymbolFlags::None,
    }
}

fn undefined(file: &mut write::Object<'_>, name: &str, kind: SymbolKind) -> SymbolId {
    file.add_symbol(write::Symbol {
        scope: SymbolScope::Unknown,
        ..symbol(name, kind, SymbolSection::Undefined)
    })
}

/// Global data of the program, with what it holds at first.
fn data(file: &mut write::Object<'_>, name: &str, map: &MapDef) -> SymbolId {
    let section = if map.facts.frozen { StandardSection::ReadOnlyData } else { StandardSection::Data };
    let section = file.section_id(section);
    let id = file.add_symbol(symbol(name, SymbolKind::Data, SymbolSection::Undefined));
    let mut contents = map.contents.clone();
    contents.resize(map.facts.value_size as usize, 0);
    file.add_symbol_data(id, section, &contents, DATA_ALIGN);
    id
}

fn place(
    file: &mut write::Object<'_>,
    text: SectionId,
    part: &Part<'_>,
    symbols: &mut Outside<SymbolId>,
) -> Result<(), write::Error> {
    let code = &part.code;
    let start = file.append_section_data(text, &code.code, CODE_ALIGN);
    let entry = symbol(&identifier(&part.prog.name), SymbolKind::Text, SymbolSection::Section(text));
    let size = code.code.len() as u64 - u64::from(code.entry);
    file.add_symbol(write::Symbol { value: start + u64::from(code.entry), size, ..entry });
    for reloc in &code.references {
        let symbol = symbols.place(reloc.symbol).and_then(|(place, key)| place.get(&key).copied());
        let Some(symbol) = symbol else { continue };
        let flags = RelocationFlags::Elf { r_type: elf::R_X86_64_GOTPCREL };
        let (offset, addend) = (start + u64::from(reloc.offset), reloc.addend);
        file.add_relocation(text, Relocation { offset, symbol, addend, flags })?;
    }
    Ok(())
}

/// A name as C takes it.
fn identifier(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = name.chars().map(letter).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

/// What an object promises and asks for.
const CONTRACT: &str = "\
/* How to run a program:
 *
 *     struct bpftime_run run = { .fuel = 1000000 };
 *     uint64_t r0 = PROGRAM_run(&context, &run);
 *
 * Context: what r1 points to, of the layout that the program type has in the kernel (struct pt_regs for probes). The
 *     program reads at most PROGRAM_ctx_bytes of it, and may write to it where its type allows that.
 * Fuel: each backward jump and each call of a function inside of the program takes one. When there is none left the
 *     program returns 0 at once and fuel is negative; what it has done to maps stays done. It never runs on without.
 * Faults: the verifier has shown that loads and stores stay within the context, the stack, global data, and what
 *     helpers return, so none faults as long as these are what they claim to be. A helper that reads memory at an
 *     arbitrary address (probe_read and its like) has to see to faults itself.
 * Helpers: undefined symbols, declared below. They get r1 to r5 and the run, and return r0. Pointers are addresses as
 *     numbers. What they must do is written in bpf-helpers(7); what the verifier relies on is there, too: a lookup
 *     returns 0 or the address of a whole value that stays until the program ends, a read fills the whole buffer or
 *     says that it failed. A helper that calls back into the program takes one from run->fuel before each call and
 *     returns as soon as it is negative; others leave it alone. tail_call returns the address of the program to go on
 *     with (of any in this header), or 0 when there is none.
 * Maps: the address of an undefined symbol bpftime_map_NAME is what helpers get for a map. Define struct bpftime_map
 *     as your helpers like it. How large keys and values are is said by the constants beside each declaration.
 * Global data: variables of the program are in this object, at the offsets that they have in its sections. What is
 *     const has been compiled in.
 * Threads: a program has no state but maps, global data and the run, and needs nothing to be set up before. Give each
 *     thread a run of its own.
 */
";

fn header(
    object: &Object,
    parts: &[Part<'_>],
    cpu: CpuFeatures,
    stem: &str,
    wanted: &Outside<String>,
) -> String {
    let mut out = String::new();
    let guard = format!("BPFTIME_OBJECT_{}_H", identifier(stem));
    _ = writeln!(
        out,
        "/* Made by `bpftime compile --emit obj`: the programs in {stem}.o. Code for x86-64, features {:#x}; ABI \
         version {}. */\n#ifndef {guard}\n#define {guard}\n#include <stdint.h>\n",
        cpu.bits(),
        image::VERSION
    );
    out += CONTRACT;
    out += RUN;
    out += "\n/* Helpers that have to be supplied. */\n";
    for name in wanted.helpers.values() {
        _ = writeln!(out, "uint64_t {name}({ARGS});");
    }
    out += "\n/* Maps that have to be supplied. */\nstruct bpftime_map;\n";
    for (map, name) in &wanted.maps {
        let facts = object.maps[*map as usize].facts;
        _ = writeln!(
            out,
            "extern struct bpftime_map {name};\nenum {{ {name}_type = {}, {name}_key_size = {}, {name}_value_size = {}, \
             {name}_max_entries = {} }};",
            facts.map_type, facts.key_size, facts.value_size, facts.max_entries
        );
    }
    out += "\n/* Global data of the programs. */\n";
    for (map, name) in &wanted.data {
        let facts = object.maps[*map as usize].facts;
        let constant = if facts.frozen { "const " } else { "" };
        _ = writeln!(out, "extern {constant}unsigned char {name}[{}];", facts.value_size);
    }
    out += "\n/* The programs. */\n";
    for part in parts {
        let (name, section) = (identifier(&part.prog.name), &part.prog.section);
        _ = writeln!(
            out,
            "enum {{ {name}_ctx_bytes = {} }};\nuint64_t {name}({ARGS}); /* {section} */\n\
             static inline uint64_t {name}_run(void *ctx, struct bpftime_run *run)\n\
             {{\n    return {name}((uint64_t)(uintptr_t)ctx, 0, 0, 0, 0, run);\n}}",
            part.ctx_bytes
        );
    }
    out + "\n#ifdef __cplusplus\n}\n#endif\n#endif\n"
}

/// Parameters of every function: `bpftime_vm::BpfFn` in C.
const ARGS: &str = "uint64_t r1, uint64_t r2, uint64_t r3, uint64_t r4, uint64_t r5, struct bpftime_run *run";

/// `bpftime_vm::RunHeader` in C, as far as code that calls every helper has to do with it.
const RUN: &str = "
#ifdef __cplusplus
extern \"C\" {
#endif

/* One run. A struct of your own may begin with it: helpers get its address. */
struct bpftime_run {
    int64_t fuel;
    uint64_t reserved[4];
};
";
