//! What a tool may map of a ring buffer map, and from which parts of the file it is built.

use super::ringbuf::{CONSUMER_AT, DATA_AT};
use crate::uapi::{PROT_EXEC, PROT_WRITE};
use crate::{Map, PAGE};
use rustix::io::Errno;

/// A part of the tool's mapping: map `len` bytes of the memfd from `file_off` at `at` bytes into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// offset in the memfd
    pub file_off: u64,
    /// bytes
    pub len: usize,
    /// offset from the address the tool gets
    pub at: usize,
}

impl Map {
    /// The pieces of mmap(offset, len, prot, MAP_SHARED) on this RINGBUF or USER_RINGBUF map's descriptor. The second piece
    /// is there when the range reaches the second copy of the data.
    ///
    /// # Errors
    /// As the kernel's: EPERM for a writable range that is more than the consumer page (of a USER_RINGBUF: that has it), and for an
    /// executable one; EINVAL for a range outside consumer page + producer page + 2 * size.
    pub fn consumer_mappings(&self, offset: u64, len: usize, prot: u32) -> Result<[Option<Piece>; 2], Errno> {
        if self.ringbuf().is_none() && self.user_ring().is_none() {
            return Err(Errno::INVAL);
        }
        let size = self.def().max_entries as usize;
        let len = len.checked_next_multiple_of(PAGE).ok_or(Errno::INVAL)?;
        let offset = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        let read_only = match self.user_ring() {
            // The tool produces: all but the consumer's page is its to write.
            Some(_) => offset == 0,
            None => offset != 0 || len != PAGE,
        };
        if prot & PROT_EXEC != 0 || prot & PROT_WRITE != 0 && read_only {
            return Err(Errno::PERM);
        }
        let once = DATA_AT - CONSUMER_AT + size;
        let end = offset.checked_add(len).ok_or(Errno::INVAL)?;
        if len == 0 || !offset.is_multiple_of(PAGE) || end > once + size {
            return Err(Errno::INVAL);
        }
        let first = (offset < once).then(|| Piece {
            file_off: (CONSUMER_AT + offset) as u64,
            len: end.min(once) - offset,
            at: 0,
        });
        let second = (end > once).then(|| {
            let from = offset.max(once);
            Piece { file_off: (DATA_AT + from - once) as u64, len: end - from, at: from - offset }
        });
        Ok([first, second])
    }
}
