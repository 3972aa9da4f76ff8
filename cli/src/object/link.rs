//! Programs from functions: a program is its function and, behind it, each function that it refers to, once;
//! calls, addresses of functions, maps and data are filled in.

use super::elf::{Code, File, Function, Place, Reference};
use super::env::MAP_FD;
use super::maps::Maps;
use super::{ObjectError, Prog, SourceLine, section};
use bpftime_vm::Insn;
use bpftime_vm::isa::code;

/// What libbpf puts where a weak kernel function is missing: it only hurts where it is reached.
const POISON_KFUNC: i32 = 2_002_000_000;

/// All programs of an object.
pub fn programs(file: &File, maps: &Maps) -> Result<Vec<Prog>, ObjectError> {
    file.entries().map(|(function, code)| program(file, maps, function, code)).collect()
}

fn program(file: &File, maps: &Maps, entry: &Function, code: &Code) -> Result<Prog, ObjectError> {
    let mut linker = Linker { file, maps, insns: vec![], placed: vec![], lines: vec![] };
    linker.place(entry);
    let mut next = 0;
    while next < linker.placed.len() {
        linker.fill(next)?;
        next += 1;
    }
    let functions = linker.placed.iter().map(|(f, start)| (*start, f.name.clone())).collect();
    Ok(Prog {
        name: entry.name.clone(),
        section: code.name.clone(),
        prog_type: section::prog_type(&code.name).ok_or_else(|| ObjectError::Section(code.name.clone()))?,
        insns: linker.insns,
        functions,
        lines: linker.lines,
    })
}

/// A program while it is put together.
struct Linker<'a> {
    file: &'a File,
    maps: &'a Maps,
    insns: Vec<Insn>,
    /// Functions and where they begin.
    placed: Vec<(&'a Function, usize)>,
    lines: Vec<SourceLine>,
}

impl<'a> Linker<'a> {
    /// Where a function begins; appends it if it is not there yet.
    fn place(&mut self, function: &'a Function) -> usize {
        if let Some((_, start)) = self.placed.iter().find(|(f, _)| *f == function) {
            return *start;
        }
        let start = self.insns.len();
        self.placed.push((function, start));
        let Some(code) = self.file.code_at(function.section) else { return start };
        let slots = function.start..(function.start + function.len).min(code.insns.len());
        self.insns.extend_from_slice(code.insns.get(slots.clone()).unwrap_or(&[]));
        let btf = &self.file.btf;
        for line in code.lines.iter().filter(|line| slots.contains(&(line.off as usize / 8))) {
            self.lines.push(SourceLine {
                slot: line.off as usize / 8 - slots.start + start,
                file: btf.text(line.file).to_string(),
                number: line.number,
                text: btf.text(line.text).to_string(),
            });
        }
        start
    }

    /// Fills in what a placed function refers to.
    fn fill(&mut self, index: usize) -> Result<(), ObjectError> {
        let (function, start) = self.placed[index];
        let Some(section) = self.file.code_at(function.section) else { return Ok(()) };
        for at in 0..function.len {
            let slot = function.start + at;
            let insn = self.insns[start + at];
            let call = insn.code == code::CALL && insn.src() == code::PSEUDO_CALL;
            let done = match section.references.get(&slot) {
                Some(reference) => self.reference(start + at, reference),
                // Within a section the distance is final, but functions have moved.
                None if call => {
                    self.function(start + at, function.section, slot as i64 + 1 + i64::from(insn.imm))
                }
                None => Ok(()),
            };
            done.map_err(|reason| ObjectError::Relocation { section: section.name.clone(), slot, reason })?;
        }
        Ok(())
    }

    fn reference(&mut self, at: usize, reference: &Reference) -> Result<(), String> {
        let insn = self.insns[at];
        let name = &reference.name;
        match reference.place {
            // CO-RE found that this code cannot run here.
            _ if insn.code == code::CALL && insn.src() == 0 => Ok(()),
            Place::Extern { weak } => self.missing(at, name, weak),
            Place::In(section, off) if Some(section) == self.file.maps_section => {
                let map = self.maps.defined_at(off).ok_or_else(|| format!("`{name}` is no map"))?;
                self.map(at, code::PSEUDO_MAP_FD, map, insn.imm);
                Ok(())
            }
            Place::In(section, off) if self.file.code_at(section).is_some() => {
                let slot = match insn.code {
                    code::CALL => off as i64 / 8 + i64::from(insn.imm) + 1,
                    _ => (off as i64 + i64::from(insn.imm)) / 8,
                };
                self.function(at, section, slot)
            }
            Place::In(section, off) => {
                let map = self.maps.of_section(section);
                let map = map.ok_or_else(|| format!("`{name}` is in a section that is no data"))?;
                self.map(at, code::PSEUDO_MAP_VALUE, map, (off as i32).wrapping_add(insn.imm));
                Ok(())
            }
        }
    }

    /// A `lddw` of a map, or of a place in its value.
    fn map(&mut self, at: usize, kind: u8, map: usize, off: i32) {
        let insn = self.insns[at];
        self.insns[at] = Insn::new(insn.code, insn.dst(), kind, 0, MAP_FD + map as i32);
        if let Some(second) = self.insns.get_mut(at + 1) {
            second.imm = if kind == code::PSEUDO_MAP_VALUE { off } else { 0 };
        }
    }

    /// A call of a function, or its address.
    fn function(&mut self, at: usize, section: usize, slot: i64) -> Result<(), String> {
        let file = self.file;
        let found = file.functions.iter().find(|f| f.section == section && f.start as i64 == slot);
        let function =
            found.ok_or_else(|| format!("no function begins at instruction {slot} of section {section}"))?;
        let target = self.place(function);
        self.insns[at].imm = (target as i64 - at as i64 - 1) as i32;
        if self.insns[at].is_lddw() {
            let dst = self.insns[at].dst();
            self.insns[at].regs = dst | code::PSEUDO_FUNC << 4;
            if let Some(second) = self.insns.get_mut(at + 1) {
                second.imm = 0;
            }
        }
        Ok(())
    }

    /// Something that the object expects from the kernel.
    fn missing(&mut self, at: usize, name: &str, weak: bool) -> Result<(), String> {
        if let Some((map, off)) = self.maps.configuration(name) {
            self.map(at, code::PSEUDO_MAP_VALUE, map, off as i32);
            return Ok(());
        }
        if !weak {
            return Err(format!(
                "`{name}` is a variable or function of the kernel; there is none in userspace"
            ));
        }
        let insn = self.insns[at];
        if insn.code == code::CALL {
            self.insns[at] = Insn::new(code::CALL, 0, 0, 0, POISON_KFUNC);
        } else {
            // The address of what is not there.
            self.insns[at] = Insn::new(insn.code, insn.dst(), 0, 0, 0);
            if let Some(second) = self.insns.get_mut(at + 1) {
                second.imm = 0;
            }
        }
        Ok(())
    }
}
