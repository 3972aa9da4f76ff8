//! Puts images together, and owns their bytes.

use super::{
    ARCH_X86_64, CpuFeatures, Fault, Header, ImageError, ImageRef, LinkError, MAGIC, Needs, RawFault,
    RawReloc, Reloc, Resolve, Symbol, VERSION,
};
use zerocopy::IntoBytes;

/// An image in bytes of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    bytes: Vec<u8>,
}

/// The parts that the compiler puts into an image.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Features the code uses.
    pub cpu: CpuFeatures,
    /// [`Program::hash`](crate::Program::hash).
    pub hash: u64,
    /// See [`ImageRef::layouts`].
    pub layouts: u32,
    /// Offset of the first function.
    pub entry: u32,
    /// What the code needs from its caller.
    pub needs: Needs,
    /// In any order.
    pub relocs: Vec<Reloc>,
    /// In any order.
    pub faults: Vec<Fault>,
    /// Machine code.
    pub code: Vec<u8>,
}

impl Image {
    /// Puts an image together, and checks it as a reader would.
    pub fn build(mut parts: Parts) -> Result<Image, ImageError> {
        parts.relocs.sort_by_key(|reloc| reloc.offset);
        parts.faults.sort_by_key(|fault| fault.offset);
        let code_len = u32::try_from(parts.code.len()).unwrap_or(u32::MAX);
        let header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            arch: ARCH_X86_64.into(),
            cpu: parts.cpu.bits().into(),
            hash: parts.hash.into(),
            code_len: code_len.into(),
            entry: parts.entry.into(),
            // Disjoint places in fewer than 2^32 bytes of code.
            relocs: (parts.relocs.len() as u32).into(),
            faults: (parts.faults.len() as u32).into(),
            ctx_words: parts.needs.ctx_words.into(),
            needs: parts.needs.bits().into(),
            layouts: parts.layouts.into(),
        };
        let mut bytes = header.as_bytes().to_vec();
        for reloc in &parts.relocs {
            bytes.extend_from_slice(encode_reloc(reloc).as_bytes());
        }
        for fault in &parts.faults {
            let raw = RawFault { offset: fault.offset.into(), kind: fault.kind, zero: [0; 3] };
            bytes.extend_from_slice(raw.as_bytes());
        }
        bytes.extend_from_slice(&parts.code);
        Image::from_vec(bytes)
    }

    /// Checks and copies.
    pub fn parse(bytes: &[u8]) -> Result<Image, ImageError> {
        ImageRef::parse(bytes)?;
        Ok(Image { bytes: bytes.to_vec() })
    }

    fn from_vec(bytes: Vec<u8>) -> Result<Image, ImageError> {
        ImageRef::parse(&bytes)?;
        Ok(Image { bytes })
    }

    /// The bytes as stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A copy of the bytes as stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// The same image, borrowed.
    #[allow(clippy::missing_panics_doc)]
    pub fn borrow(&self) -> ImageRef<'_> {
        // Every constructor parsed these very bytes, which nobody can change since.
        ImageRef::parse(&self.bytes).expect("bytes of an Image were parsed before")
    }

    /// Bytes that [`Image::link`] writes.
    pub fn code_len(&self) -> usize {
        self.borrow().code_len()
    }

    /// Offset of the entry function in the code.
    pub fn entry_offset(&self) -> usize {
        self.borrow().entry_offset()
    }

    /// The constants to patch, by offset.
    pub fn relocs(&self) -> impl Iterator<Item = Reloc> + '_ {
        self.borrow().relocs()
    }

    /// See [`ImageRef::link`].
    pub fn link(&self, dst: &mut [u8], load_addr: u64, resolve: &dyn Resolve) -> Result<(), LinkError> {
        self.borrow().link(dst, load_addr, resolve)
    }
}

fn encode_reloc(reloc: &Reloc) -> RawReloc {
    let (kind, index) = match reloc.symbol {
        Symbol::Map(map) => (0, map.0),
        Symbol::MapValue(map) => (1, map.0),
        Symbol::Helper(id) => (2, id),
        Symbol::Code => (3, 0),
        Symbol::MapElements(map) => (4, map.0),
    };
    let (offset, index, addend) = (reloc.offset.into(), index.into(), reloc.addend.into());
    RawReloc { offset, index, addend, kind, zero: [0; 7] }
}
