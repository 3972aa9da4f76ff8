//! Writes an image's code for one load address, with its constants filled in.

use super::{CpuFeatures, ImageRef, Reloc, Symbol};
use crate::isa::MapIdx;
use thiserror::Error;

/// Where things are in the process that runs the program. `None` refuses the image.
pub trait Resolve {
    /// The handle of a map, as helpers take it.
    fn map(&self, map: MapIdx) -> Option<u64>;
    /// The address of a map's directly accessible value.
    fn map_value(&self, map: MapIdx) -> Option<u64>;
    /// The address of element 0 of an array map, of CPU 0 if it has elements for each. Only for images that
    /// were compiled with its layout.
    fn map_elements(&self, _map: MapIdx) -> Option<u64> {
        None
    }
    /// The address of a helper.
    fn helper(&self, id: u32) -> Option<u64>;
    /// What the CPU can do.
    fn cpu(&self) -> CpuFeatures {
        CpuFeatures::detect()
    }
}

/// Why an image cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)] // the text of each variant is its documentation
pub enum LinkError {
    #[error("room for {got} bytes of code, {want} are needed")]
    NoRoom { got: usize, want: usize },
    #[error("this CPU lacks features that the image uses ({0:#x})")]
    Cpu(u64),
    #[error("map {0} of the program does not exist here")]
    Map(u32),
    #[error("map {0} of the program has no directly accessible value here")]
    MapValue(u32),
    #[error("map {0} of the program has no elements at known places here")]
    MapElements(u32),
    #[error("helper {0} does not exist here")]
    Helper(u32),
}

impl ImageRef<'_> {
    /// Copies the code into the front of `dst` and writes the constants. `load_addr` is the address at
    /// which the first byte of `dst` will execute. On error `dst` holds no usable code.
    pub fn link(&self, dst: &mut [u8], load_addr: u64, resolve: &dyn Resolve) -> Result<(), LinkError> {
        let missing = self.cpu_features().missing_from(resolve.cpu());
        if missing != CpuFeatures::BASELINE {
            return Err(LinkError::Cpu(missing.bits()));
        }
        let (got, want) = (dst.len(), self.code_len());
        let dst = dst.get_mut(..want).ok_or(LinkError::NoRoom { got, want })?;
        dst.copy_from_slice(self.code());
        for reloc in self.relocs() {
            let value = resolved(reloc.symbol, load_addr, resolve)?.wrapping_add_signed(reloc.addend);
            write(dst, &reloc, value)?;
        }
        Ok(())
    }
}

fn resolved(symbol: Symbol, load_addr: u64, resolve: &dyn Resolve) -> Result<u64, LinkError> {
    match symbol {
        Symbol::Map(map) => resolve.map(map).ok_or(LinkError::Map(map.0)),
        Symbol::MapValue(map) => resolve.map_value(map).ok_or(LinkError::MapValue(map.0)),
        Symbol::MapElements(map) => resolve.map_elements(map).ok_or(LinkError::MapElements(map.0)),
        Symbol::Helper(id) => resolve.helper(id).ok_or(LinkError::Helper(id)),
        Symbol::Code => Ok(load_addr),
    }
}

fn write(code: &mut [u8], reloc: &Reloc, value: u64) -> Result<(), LinkError> {
    let (start, got) = (reloc.offset as usize, code.len());
    // `parse` checked the range already; asking again is cheaper than trusting.
    let place = code.get_mut(start..start + 8).ok_or(LinkError::NoRoom { got, want: start + 8 })?;
    place.copy_from_slice(&value.to_le_bytes());
    Ok(())
}
