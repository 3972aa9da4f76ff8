//! Puts compiled functions behind each other and sorts their relocations: those inside the image are
//! resolved here, those that depend on the process become the image's.

use super::{CompileError, MapLayout, ObjectCode, Options, Space};
use crate::image::{Image, Parts, Reloc, Symbol};
use crate::isa::MapIdx;
use crate::opt::needs;
use crate::program::Program;
use cranelift_codegen::binemit::Reloc as Kind;
use cranelift_codegen::entity::PrimaryMap;
use cranelift_codegen::ir::{ExternalName, UserExternalName, UserExternalNameRef};
use cranelift_codegen::{FinalizedMachReloc, FinalizedRelocTarget};

type Names = PrimaryMap<UserExternalNameRef, UserExternalName>;

/// Functions start at multiples of this: what instruction fetch likes.
const ALIGN: u32 = 16;
/// Between functions: int3, so that a stray jump stops at once.
const PADDING: u8 = 0xcc;
/// Tables begin on a cache line of their own: code that is fetched and data that is read do not share one.
const TABLE_ALIGN: usize = 64;

/// What a place of the image refers to inside of it.
#[derive(Clone, Copy, Debug)]
enum Target {
    Func(u32),
    /// By index in the image.
    Table(usize),
}

/// A reference from one place of the image to another, fixed once everything is placed.
struct Internal {
    kind: Kind,
    /// Of the field, in the code.
    offset: u32,
    target: Target,
    addend: i64,
    /// First slot of the function that holds it, for messages.
    insn: usize,
}

pub(super) struct Layout<'a> {
    program: &'a Program,
    parts: Parts,
    /// Code offset of each function, by index.
    starts: Vec<Option<u32>>,
    internal: Vec<Internal>,
    /// What refers to the outside by way of the global offset table, in code for object files.
    references: Vec<Reloc>,
    /// Constants that code reads, behind all of it.
    tables: Vec<Vec<u8>>,
    /// The first one of the function that was translated last.
    first_table: usize,
}

impl Layout<'_> {
    pub(super) fn new<'a>(program: &'a Program, options: &Options<'_>) -> Layout<'a> {
        let needs = needs::of(program, options.environment());
        let (cpu, hash, layouts) = (options.cpu, program.hash(), MapLayout::digest(options.maps));
        let parts = Parts { cpu, hash, layouts, needs, ..Parts::default() };
        let starts = vec![None; program.funcs().len()];
        Layout {
            program,
            parts,
            starts,
            internal: vec![],
            references: vec![],
            tables: vec![],
            first_table: 0,
        }
    }

    /// Takes over the tables that a function reads, before the function.
    pub(super) fn tables_of(&mut self, tables: Vec<Vec<u8>>) {
        self.first_table = self.tables.len();
        self.tables.extend(tables);
    }

    /// Appends a function's code.
    pub(super) fn place(&mut self, func: usize, code: &[u8], align: u32) {
        let image = &mut self.parts.code;
        image.resize(image.len().next_multiple_of(align.max(ALIGN) as usize), PADDING);
        self.starts[func] = Some(image.len() as u32);
        image.extend_from_slice(code);
    }

    /// Some function writes vector registers.
    pub(super) fn uses_vectors(&mut self) {
        self.parts.needs.vector = true;
    }

    /// Takes over one relocation of a function placed before.
    pub(super) fn relocate(
        &mut self,
        func: usize,
        reloc: &FinalizedMachReloc,
        names: &Names,
    ) -> Result<(), CompileError> {
        let insn = self.program.funcs()[func].start;
        let start = self.starts[func].unwrap_or(0);
        let unsupported =
            || CompileError::Relocation { insn, kind: reloc.kind, target: reloc.target.display(None) };
        let (space, index, base) = match &reloc.target {
            FinalizedRelocTarget::Func(offset) => (Space::Func, func as u32, i64::from(*offset)),
            FinalizedRelocTarget::ExternalName(ExternalName::User(name)) => {
                let name = names.get(*name).ok_or_else(unsupported)?;
                (Space::of(name).ok_or_else(unsupported)?, name.index, 0)
            }
            _ => return Err(unsupported()),
        };
        let (offset, addend) = (start + reloc.offset, reloc.addend + base);
        let symbol = match space {
            Space::Func | Space::Table => {
                let target = match space {
                    Space::Func => Target::Func(index),
                    _ => Target::Table(self.first_table + index as usize),
                };
                self.internal.push(Internal { kind: reloc.kind, offset, target, addend, insn });
                return Ok(());
            }
            Space::Helper => Symbol::Helper(index),
            Space::Map => Symbol::Map(MapIdx(index)),
            Space::MapValue => Symbol::MapValue(MapIdx(index)),
            Space::MapElements => Symbol::MapElements(MapIdx(index)),
        };
        match reloc.kind {
            Kind::Abs8 => self.parts.relocs.push(Reloc { offset, symbol, addend }),
            Kind::X86GOTPCRel4 => self.references.push(Reloc { offset, symbol, addend }),
            _ => return Err(unsupported()),
        }
        Ok(())
    }

    /// Builds the image.
    pub(super) fn finish(mut self) -> Result<Image, CompileError> {
        self.settle()?;
        self.all_of_one_kind(self.references.first(), "global offset table")?;
        Ok(Image::build(self.parts)?)
    }

    /// Builds what an object file takes.
    pub(super) fn finish_object(mut self) -> Result<ObjectCode, CompileError> {
        self.settle()?;
        self.all_of_one_kind(self.parts.relocs.first(), "absolute address")?;
        Ok(ObjectCode { code: self.parts.code, entry: self.parts.entry, references: self.references })
    }

    fn all_of_one_kind(&self, other: Option<&Reloc>, what: &str) -> Result<(), CompileError> {
        match other {
            Some(reloc) => {
                let target = format!("{:?} by {what}", reloc.symbol);
                Err(CompileError::Relocation { insn: 0, kind: Kind::Abs8, target })
            }
            None => Ok(()),
        }
    }

    /// Resolves what can be.
    fn settle(&mut self) -> Result<(), CompileError> {
        let tables = self.place_tables();
        for internal in std::mem::take(&mut self.internal) {
            self.resolve(&internal, &tables)?;
        }
        self.parts.entry = self.starts.first().copied().flatten().unwrap_or(0);
        Ok(())
    }

    /// Appends the tables; where each one begins.
    fn place_tables(&mut self) -> Vec<u32> {
        let code = &mut self.parts.code;
        let mut place = |table: &Vec<u8>| {
            code.resize(code.len().next_multiple_of(TABLE_ALIGN), PADDING);
            let start = code.len() as u32;
            code.extend_from_slice(table);
            start
        };
        self.tables.iter().map(&mut place).collect()
    }

    fn resolve(&mut self, internal: &Internal, tables: &[u32]) -> Result<(), CompileError> {
        let Internal { kind, offset, target, addend, insn } = *internal;
        let unsupported = || CompileError::Relocation { insn, kind, target: format!("{target:?}") };
        let start = match target {
            Target::Func(func) => self.starts.get(func as usize).copied().flatten(),
            Target::Table(table) => tables.get(table).copied(),
        };
        let start = start.ok_or_else(unsupported)?;
        let target = i64::from(start) + addend;
        match kind {
            Kind::Abs8 => self.parts.relocs.push(Reloc { offset, symbol: Symbol::Code, addend: target }),
            // Cranelift's addend already accounts for the four bytes between field and next instruction.
            Kind::X86PCRel4 | Kind::X86CallPCRel4 => {
                let field = i32::try_from(target - i64::from(offset)).map_err(|_| unsupported())?;
                let place = offset as usize..offset as usize + 4;
                let place = self.parts.code.get_mut(place).ok_or_else(unsupported)?;
                place.copy_from_slice(&field.to_le_bytes());
            }
            _ => return Err(unsupported()),
        }
        Ok(())
    }
}
