//! Linked code in executable memory, for tests, `--jit` tools and the loader's own process. Targets have
//! their own way (see the agent); both keep memory never writable and executable at once.

use crate::contract::BpfFn;
use crate::image::{ImageRef, LinkError, Resolve};
use std::io;
use std::ptr::NonNull;
use thiserror::Error;

/// Why an image is not executable here.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the text of each variant is its documentation
pub enum ExecError {
    #[error("memory for code: {0}")]
    Memory(#[from] io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// A linked image, mapped read-only and executable. Unmapped on drop.
#[derive(Debug)]
pub struct Code {
    base: NonNull<libc::c_void>,
    len: usize,
    entry: usize,
}

// SAFETY: the mapping is immutable after `Code::link` and belongs to no thread.
unsafe impl Send for Code {}
// SAFETY: as above; shared access only reads or executes it.
unsafe impl Sync for Code {}

impl Code {
    /// Maps, links and protects an image.
    pub fn link(image: ImageRef<'_>, resolve: &dyn Resolve) -> Result<Code, ExecError> {
        let len = image.code_len();
        let mut code = Code { base: map_writable(len)?, len, entry: image.entry_offset() };
        let load_addr = code.base.as_ptr().addr() as u64;
        image.link(code.bytes(), load_addr, resolve)?;
        code.protect()?;
        Ok(code)
    }

    /// The program's entry. Valid as long as this lives.
    pub fn entry(&self) -> BpfFn {
        // SAFETY: `parse` checked that the entry lies inside of the code, and the compiler put a function
        // with this signature there.
        unsafe { std::mem::transmute::<*const u8, BpfFn>(self.base.as_ptr().cast::<u8>().add(self.entry)) }
    }

    /// Only before `protect`.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: a private mapping of this length, still writable, borrowed from its only owner.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().cast(), self.len) }
    }

    fn protect(&mut self) -> io::Result<()> {
        // SAFETY: our own mapping.
        match unsafe { libc::mprotect(self.base.as_ptr(), self.len, libc::PROT_READ | libc::PROT_EXEC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn map_writable(len: usize) -> io::Result<NonNull<libc::c_void>> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh anonymous mapping replaces nothing.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: our own mapping; entries borrowed from `self` are gone or were promised to be.
        unsafe { libc::munmap(self.base.as_ptr(), self.len) };
    }
}
