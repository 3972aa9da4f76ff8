//! Puts compiled functions behind each other and sorts their relocations: those inside the image are
//! resolved here, those that depend on the process become the image's.

use super::{CompileError, Options, Space};
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

/// A reference from one place of the image to a function of it, fixed once all functions are placed.
struct Internal {
    kind: Kind,
    /// Of the field, in the code.
    offset: u32,
    func: u32,
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
}

impl Layout<'_> {
    pub(super) fn new<'a>(program: &'a Program, options: &Options<'_>) -> Layout<'a> {
        let needs = needs::of(program, options.environment());
        let parts = Parts { cpu: options.cpu, hash: program.hash(), needs, ..Parts::default() };
        Layout { program, parts, starts: vec![None; program.funcs().len()], internal: vec![] }
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
            Space::Func => {
                self.internal.push(Internal { kind: reloc.kind, offset, func: index, addend, insn });
                return Ok(());
            }
            Space::Helper => Symbol::Helper(index),
            Space::Map => Symbol::Map(MapIdx(index)),
            Space::MapValue => Symbol::MapValue(MapIdx(index)),
            Space::MapElements => Symbol::MapElements(MapIdx(index)),
        };
        if reloc.kind != Kind::Abs8 {
            return Err(unsupported());
        }
        self.parts.relocs.push(Reloc { offset, symbol, addend });
        Ok(())
    }

    /// Resolves what can be and builds the image.
    pub(super) fn finish(mut self) -> Result<Image, CompileError> {
        for internal in std::mem::take(&mut self.internal) {
            self.resolve(&internal)?;
        }
        self.parts.entry = self.starts.first().copied().flatten().unwrap_or(0);
        Ok(Image::build(self.parts)?)
    }

    fn resolve(&mut self, internal: &Internal) -> Result<(), CompileError> {
        let Internal { kind, offset, func, addend, insn } = *internal;
        let unsupported = || CompileError::Relocation { insn, kind, target: format!("function {func}") };
        let start = self.starts.get(func as usize).copied().flatten().ok_or_else(unsupported)?;
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
