//! Programs compiled ahead of time: the file that `bpftime compile` writes and `bpftime load` reads.
//!
//! ```text
//!   0  magic "BPFTAOT\0"                     then, each with its length in front (u32):
//!   8  version of this layout      u32       license; maps; programs
//!  12  version of images (ABI)     u32       map:     name, type, key, value, entries, flags, frozen, contents
//!  16  CPU features                u64       program: name, section, type, bytes of context, bytecode, image
//!  24  FNV-1a of all that follows  u64
//! ```
//! Numbers are little-endian. A reader refuses a file whose versions, hash or CPU features do not match, and each image
//! that was not made from the bytecode next to it.

#![cfg_attr(not(test), forbid(unsafe_code))]

mod bytes;

use crate::image::{self, CpuFeatures, Image, ImageError};
use crate::isa::{Insn, bytecode_hash, fnv1a};
use crate::verify::MapFacts;
use bpftime_abi::field::Fields;
use bytes::{Reader, Writer};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"BPFTAOT\0";
/// Bumped whenever the layout above changes.
const VERSION: u32 = 1;

/// A map as an object file defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapDef {
    /// Name of the variable or section.
    pub name: String,
    /// Type, sizes and flags.
    pub facts: MapFacts,
    /// Bytes of the one value of global data; empty for other maps.
    pub contents: Vec<u8>,
    /// What of a value is no data.
    pub fields: Fields,
}

/// A compiled program.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// Of its function.
    pub name: String,
    /// Says what it is for, and where libbpf would attach it.
    pub section: String,
    /// `BPF_PROG_TYPE_*`.
    pub prog_type: u32,
    /// Bytes of the context that it reads.
    pub ctx_bytes: u32,
    /// What the image was made from.
    pub insns: Vec<Insn>,
    /// Map indices are those of the file.
    pub image: Image,
}

/// The contents of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// As the object file has it.
    pub license: String,
    /// By index, as images have them.
    pub maps: Vec<MapDef>,
    /// In the order of the object file.
    pub programs: Vec<Compiled>,
}

/// Why a file cannot be used.
#[derive(Debug, Error, PartialEq)]
#[allow(missing_docs)] // the text of each variant is its documentation
pub enum ContainerError {
    #[error("not compiled by bpftime: wrong magic; make it with `bpftime compile`")]
    Magic,
    #[error("file has layout version {got}, this bpftime reads {VERSION}; compile it again")]
    Version { got: u32 },
    #[error("code has ABI version {got}, this bpftime runs {}; compile it again", image::VERSION)]
    Abi { got: u32 },
    #[error("code needs CPU features that this machine lacks ({missing:#x}); compile it with --cpu baseline")]
    Cpu { missing: u64 },
    #[error("file is damaged: its contents hash to {got:#x}, it says {want:#x}")]
    Damaged { got: u64, want: u64 },
    #[error("file ends or goes wrong in {0}")]
    Malformed(&'static str),
    #[error("program {name}: {error}")]
    Image { name: String, error: ImageError },
    #[error(
        "program {name}: its code was made from bytecode {got:#x}, the file has {want:#x}; compile it again"
    )]
    Bytecode { name: String, got: u64, want: u64 },
}

impl Container {
    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = Writer::default();
        body.text(&self.license);
        body.number(self.maps.len() as u32);
        for map in &self.maps {
            let MapFacts { map_type, key_size, value_size, max_entries, flags, frozen } = map.facts;
            body.text(&map.name);
            for n in [map_type, key_size, value_size, max_entries, flags, frozen.into()] {
                body.number(n);
            }
            body.bytes(&map.contents);
        }
        body.number(self.programs.len() as u32);
        for program in &self.programs {
            body.text(&program.name);
            body.text(&program.section);
            body.number(program.prog_type);
            body.number(program.ctx_bytes);
            body.bytes(zerocopy::IntoBytes::as_bytes(program.insns.as_slice()));
            body.bytes(program.image.as_bytes());
        }
        let cpu = self
            .programs
            .iter()
            .fold(CpuFeatures::BASELINE, |all, program| all.and(program.image.borrow().cpu_features()));
        let body = body.finish();
        let mut file = MAGIC.to_vec();
        file.extend(VERSION.to_le_bytes());
        file.extend(image::VERSION.to_le_bytes());
        file.extend(cpu.bits().to_le_bytes());
        file.extend(fnv1a(body.iter().copied()).to_le_bytes());
        file.extend(body);
        file
    }

    /// Takes a file's bytes if they can run on a machine with these features.
    pub fn parse(file: &[u8], cpu: CpuFeatures) -> Result<Container, ContainerError> {
        if !file.starts_with(MAGIC) {
            return Err(ContainerError::Magic);
        }
        let mut header = Reader::new(&file[MAGIC.len()..], "the header");
        let (version, abi) = (header.number()?, header.number()?);
        if version != VERSION {
            return Err(ContainerError::Version { got: version });
        }
        if abi != image::VERSION {
            return Err(ContainerError::Abi { got: abi });
        }
        let (features, want) = (header.wide()?, header.wide()?);
        let got = fnv1a(header.rest().iter().copied());
        if got != want {
            return Err(ContainerError::Damaged { got, want });
        }
        // Features that this version does not know are missing as well.
        let missing = features & !cpu.bits();
        if missing != 0 {
            return Err(ContainerError::Cpu { missing });
        }
        let mut body = Reader::new(header.rest(), "the license");
        let license = body.text()?;
        body.at("the maps");
        let maps = (0..body.number()?).map(|_| map(&mut body)).collect::<Result<_, _>>()?;
        body.at("the programs");
        let programs = (0..body.number()?).map(|_| program(&mut body)).collect::<Result<_, _>>()?;
        if !body.rest().is_empty() {
            return Err(ContainerError::Malformed("what follows the programs"));
        }
        Ok(Container { license, maps, programs })
    }
}

fn map(body: &mut Reader<'_>) -> Result<MapDef, ContainerError> {
    let name = body.text()?;
    let facts = MapFacts {
        map_type: body.number()?,
        key_size: body.number()?,
        value_size: body.number()?,
        max_entries: body.number()?,
        flags: body.number()?,
        frozen: body.number()? != 0,
    };
    // Of values with parts that are no data the tool that makes the maps knows nothing either.
    Ok(MapDef { name, facts, contents: body.bytes()?.to_vec(), fields: Fields::default() })
}

fn program(body: &mut Reader<'_>) -> Result<Compiled, ContainerError> {
    let (name, section) = (body.text()?, body.text()?);
    let (prog_type, ctx_bytes) = (body.number()?, body.number()?);
    let insns = Insn::from_bytes(body.bytes()?).ok_or(ContainerError::Malformed("the bytecode"))?;
    let image =
        Image::parse(body.bytes()?).map_err(|error| ContainerError::Image { name: name.clone(), error })?;
    let (got, want) = (image.borrow().bytecode_hash(), bytecode_hash(&insns));
    if got != want {
        return Err(ContainerError::Bytecode { name, got, want });
    }
    Ok(Compiled { name, section, prog_type, ctx_bytes, insns, image })
}

#[cfg(all(test, feature = "jit"))]
mod tests;
