//! The native image of a program: code, the constants to patch into it, and where execution starts.
//!
//! Made once by the compiler, then only read: from a sealed memfd in the targets, from a file for
//! ahead-of-time programs. A reader trusts nothing but the code bytes themselves: counts, offsets and
//! indices are checked in [`ImageRef::parse`], which neither panics nor allocates.
//!
//! ```text
//!   0  magic "BPFTIMG\0"         36  entry offset       u32
//!   8  version       u32         40  relocation count   u32
//!  12  architecture  u32         44  fault entry count  u32
//!  16  CPU features  u64         64  relocations   24 bytes each, ascending, disjoint
//!  24  bytecode hash u64         ..  fault entries  8 bytes each, ascending
//!  32  code length   u32         ..  code, up to the end
//! ```
//! The relocations begin at 64: 48 is the set of context words that are read (u64), 56 what else the code
//! needs from its caller (u32), see [`Needs`], and 60 says how the maps lie in memory that it was compiled for (u32).
#![forbid(unsafe_code)]

mod build;
mod cpu;
mod link;
mod needs;

pub use build::{Image, Parts};
pub use cpu::CpuFeatures;
pub use link::{LinkError, Resolve};
pub use needs::Needs;

use crate::isa::MapIdx;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

const MAGIC: [u8; 8] = *b"BPFTIMG\0";

/// Bumped whenever the layout below, the calling convention or the meaning of a relocation changes.
pub const VERSION: u32 = 6;

/// ELF's machine number of x86-64.
const ARCH_X86_64: u32 = 62;

/// Far above what a million instructions compile to.
const MAX_CODE: u32 = 256 << 20;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct Header {
    magic: [u8; 8],
    version: le::U32,
    arch: le::U32,
    cpu: le::U64,
    hash: le::U64,
    code_len: le::U32,
    entry: le::U32,
    relocs: le::U32,
    faults: le::U32,
    ctx_words: le::U64,
    needs: le::U32,
    layouts: le::U32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawReloc {
    offset: le::U32,
    index: le::U32,
    addend: le::I64,
    kind: u8,
    zero: [u8; 7],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawFault {
    offset: le::U32,
    kind: u8,
    zero: [u8; 3],
}

const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == 64 && size_of::<RawReloc>() == 24 && size_of::<RawFault>() == 8);

/// What an eight-byte constant in the code is replaced with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbol {
    /// The handle of a map, as helpers take it.
    Map(MapIdx),
    /// The address of a map's value.
    MapValue(MapIdx),
    /// The address of element 0 of an array map (of CPU 0, if it has elements for each).
    MapElements(MapIdx),
    /// The address of a helper.
    Helper(u32),
    /// The address at which the image itself is loaded.
    Code,
}

/// An eight-byte constant to patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloc {
    /// Of the constant, in the code.
    pub offset: u32,
    /// What its value is.
    pub symbol: Symbol,
    /// Added to the symbol.
    pub addend: i64,
}

/// A place in the code that may fault, and how to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Of the instruction, in the code.
    pub offset: u32,
    /// Meaning is agreed between the compiler and the fault handler.
    pub kind: u8,
}

/// Why bytes are not an image that this version can use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)] // the text of each variant is its documentation
pub enum ImageError {
    #[error("image has {got} bytes, at least {want} are needed")]
    Truncated { got: usize, want: usize },
    #[error("image has {got} bytes, its header says {want}")]
    Length { got: usize, want: usize },
    #[error("not an image: wrong magic")]
    Magic,
    #[error("image has version {got}, this is version {VERSION}")]
    Version { got: u32 },
    #[error("image is for machine {got}, this is {ARCH_X86_64} (x86-64)")]
    Arch { got: u32 },
    #[error("image needs unknown CPU features ({got:#x})")]
    Cpu { got: u64 },
    #[error("image needs unknown things of its caller ({got:#x})")]
    Needs { got: u32 },
    #[error("image has {got} bytes of code, at most {MAX_CODE} are allowed")]
    CodeLength { got: u32 },
    #[error("{what} {at} lies outside of the code or out of order")]
    Offset { what: &'static str, at: u32 },
    #[error("relocation {at} has unknown kind {kind} or reserved bits")]
    RelocKind { at: usize, kind: u8 },
}

/// An image in borrowed bytes.
#[derive(Clone, Copy, Debug)]
pub struct ImageRef<'a> {
    header: Header,
    relocs: &'a [RawReloc],
    faults: &'a [RawFault],
    code: &'a [u8],
}

impl<'a> ImageRef<'a> {
    /// Checks everything but the code.
    pub fn parse(bytes: &'a [u8]) -> Result<ImageRef<'a>, ImageError> {
        let truncated = ImageError::Truncated { got: bytes.len(), want: HEADER };
        let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| truncated)?;
        check_header(&header)?;
        let tables = || {
            let (relocs, rest) = <[RawReloc]>::ref_from_prefix_with_elems(rest, count(header.relocs)).ok()?;
            let (faults, code) = <[RawFault]>::ref_from_prefix_with_elems(rest, count(header.faults)).ok()?;
            (code.len() == count(header.code_len)).then_some((relocs, faults, code))
        };
        let length = ImageError::Length { got: bytes.len(), want: length(&header) };
        let (relocs, faults, code) = tables().ok_or(length)?;
        let image = ImageRef { header, relocs, faults, code };
        image.check_relocs()?;
        image.check_faults()?;
        Ok(image)
    }

    fn check_relocs(&self) -> Result<(), ImageError> {
        let mut free = 0;
        for (at, raw) in self.relocs.iter().enumerate() {
            let offset = raw.offset.get();
            let inside = offset >= free && offset.checked_add(8).is_some_and(|end| end <= self.code_len32());
            if !inside {
                return Err(ImageError::Offset { what: "relocation", at: offset });
            }
            free = offset + 8;
            let reloc = decode_reloc(raw).ok_or(ImageError::RelocKind { at, kind: raw.kind })?;
            let internal = reloc.symbol != Symbol::Code
                || u32::try_from(reloc.addend).is_ok_and(|a| a < self.code_len32());
            if !internal {
                return Err(ImageError::Offset { what: "code address at", at: offset });
            }
        }
        Ok(())
    }

    fn check_faults(&self) -> Result<(), ImageError> {
        let mut free = 0;
        for raw in self.faults {
            let at = raw.offset.get();
            if at < free || at >= self.code_len32() || raw.zero != [0; 3] {
                return Err(ImageError::Offset { what: "fault entry", at });
            }
            free = at + 1;
        }
        Ok(())
    }

    fn code_len32(&self) -> u32 {
        self.header.code_len.get()
    }

    /// Bytes that [`ImageRef::link`] writes.
    pub fn code_len(&self) -> usize {
        self.code.len()
    }

    /// Offset of the entry function in the code.
    pub fn entry_offset(&self) -> usize {
        count(self.header.entry)
    }

    /// Hash of the bytecode the image was made from.
    pub fn bytecode_hash(&self) -> u64 {
        self.header.hash.get()
    }

    /// `MapLayout::digest` of the maps that the code was made for: it reads and writes where their
    /// elements were said to be.
    pub fn layouts(&self) -> u32 {
        self.header.layouts.get()
    }

    /// CPU features that the code uses.
    pub fn cpu_features(&self) -> CpuFeatures {
        // Unknown bits were refused by `parse`.
        CpuFeatures::from_bits(self.header.cpu.get()).unwrap_or_default()
    }

    /// What the code needs from whoever calls it.
    pub fn needs(&self) -> Needs {
        // Unknown bits were refused by `parse`.
        Needs::from_raw(self.header.ctx_words.get(), self.header.needs.get()).unwrap_or_default()
    }

    /// The constants to patch, by offset.
    pub fn relocs(&self) -> impl Iterator<Item = Reloc> + use<'a> {
        // Undecodable ones were refused by `parse`.
        self.relocs.iter().filter_map(decode_reloc)
    }

    /// The places that may fault, by offset.
    pub fn faults(&self) -> impl Iterator<Item = Fault> + use<'a> {
        self.faults.iter().map(|raw| Fault { offset: raw.offset.get(), kind: raw.kind })
    }

    /// The code before relocation.
    pub fn code(&self) -> &'a [u8] {
        self.code
    }
}

fn count(n: le::U32) -> usize {
    n.get() as usize
}

fn length(header: &Header) -> usize {
    // Three u32 counts: no overflow in 64 bits.
    HEADER
        + count(header.relocs) * size_of::<RawReloc>()
        + count(header.faults) * size_of::<RawFault>()
        + count(header.code_len)
}

fn check_header(header: &Header) -> Result<(), ImageError> {
    let code_len = header.code_len.get();
    match header {
        _ if header.magic != MAGIC => Err(ImageError::Magic),
        _ if header.version.get() != VERSION => Err(ImageError::Version { got: header.version.get() }),
        _ if header.arch.get() != ARCH_X86_64 => Err(ImageError::Arch { got: header.arch.get() }),
        _ if CpuFeatures::from_bits(header.cpu.get()).is_none() => {
            Err(ImageError::Cpu { got: header.cpu.get() })
        }
        _ if Needs::from_raw(0, header.needs.get()).is_none() => {
            Err(ImageError::Needs { got: header.needs.get() })
        }
        _ if code_len > MAX_CODE => Err(ImageError::CodeLength { got: code_len }),
        _ if header.entry.get() >= code_len => {
            Err(ImageError::Offset { what: "entry", at: header.entry.get() })
        }
        _ => Ok(()),
    }
}

fn decode_reloc(raw: &RawReloc) -> Option<Reloc> {
    let index = raw.index.get();
    let symbol = match raw.kind {
        0 => Symbol::Map(MapIdx(index)),
        1 => Symbol::MapValue(MapIdx(index)),
        2 => Symbol::Helper(index),
        3 if index == 0 => Symbol::Code,
        4 => Symbol::MapElements(MapIdx(index)),
        _ => return None,
    };
    let reloc = Reloc { offset: raw.offset.get(), symbol, addend: raw.addend.get() };
    (raw.zero == [0; 7]).then_some(reloc)
}
