//! The per-site code that a patched instruction jumps to.
//!
//! ```text
//!   0   lea rsp, [rsp-128]      step over the red zone
//!   5   push [GO_ON]            where to go on, unless entry_common changes it
//!   11  push [site]
//!   17  call [entry_common]     arch/x86_64/entry.rs
//!   23  jmp [rsp+8]
//!   27  LEAVE: lea rsp, [rsp+152]   = sp + 8: the return address is dropped
//!   35         jmp [rsp-16]         = [sp-8]: a return stub, or the caller when the call is overridden
//!   39  GO_ON: lea rsp, [rsp+144]   = sp
//!   47  COPY:  displaced instructions, jump back
//!       GO_ON, site, entry_common   8 bytes each, aligned
//! ```
//! LEAVE is taken at function entries only, where nothing lives below sp; a signal handler stays 128 bytes away.
#![forbid(unsafe_code)]

use crate::arch::relocate::{self, CannotMove};
use iced_x86::Instruction;

pub(crate) const LEAVE: usize = 27;
pub(crate) const GO_ON: usize = 39;
pub(crate) const COPY: usize = 47;

/// A thunk's bytes, and where in it each displaced instruction went.
pub(super) struct Thunk {
    pub bytes: Vec<u8>,
    /// Offsets from the thunk's start, by displaced instruction.
    pub starts: Vec<usize>,
}

/// Room for a thunk that displaces `n` instructions.
pub(super) const fn room(n: usize) -> usize {
    COPY + relocate::max_len(n) + 7 + 24
}

/// Assembles the thunk for `at`.
pub(super) fn assemble(
    at: usize,
    site: usize,
    common: usize,
    insns: &[Instruction],
    original: &[u8],
) -> Result<Thunk, CannotMove> {
    let moved = relocate::relocate(insns, original, (at + COPY) as u64)?;
    let data = (at + COPY + moved.code.len()).next_multiple_of(8);
    let rel = |to: usize, end: usize| ((to - (at + end)) as i32).to_le_bytes();
    let mut b = vec![0x48, 0x8d, 0x64, 0x24, 0x80, 0xff, 0x35];
    b.extend(rel(data, 11));
    b.extend([0xff, 0x35]);
    b.extend(rel(data + 8, 17));
    b.extend([0xff, 0x15]);
    b.extend(rel(data + 16, 23));
    b.extend([0xff, 0x64, 0x24, 8]);
    debug_assert_eq!(b.len(), LEAVE);
    b.extend([0x48, 0x8d, 0xa4, 0x24, 0x98, 0, 0, 0, 0xff, 0x64, 0x24, 0xf0]);
    debug_assert_eq!(b.len(), GO_ON);
    b.extend([0x48, 0x8d, 0xa4, 0x24, 0x90, 0, 0, 0]);
    debug_assert_eq!(b.len(), COPY);
    b.extend(&moved.code);
    b.resize(data - at, 0xcc);
    b.extend(((at + GO_ON) as u64).to_le_bytes());
    b.extend((site as u64).to_le_bytes());
    b.extend((common as u64).to_le_bytes());
    Ok(Thunk { bytes: b, starts: moved.starts.iter().map(|s| s + COPY).collect() })
}
