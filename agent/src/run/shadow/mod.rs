//! The task as programs see it: what `bpf_get_current_task` returns, and reads through it.
//!
//! The address is one of `bpftime_abi::task`: mapped nowhere, it says what is meant, and every read makes the bytes
//! anew. So nothing can be stale but what only the control thread may look up (`kin`), and nothing is paid for members
//! that are not read. Where the members stand is the tool's to say: its session sends the rows of the BTF it relocates
//! against.

mod kin;
mod value;

pub use kin::{refresh, refresh_if_used};

use super::Run;
use bpftime_abi::task::{FIELDS, Field, Object, Place, Row};
use value::{Bytes, value};

/// Where members stand, as the session's tool sees the kernel's structs.
#[derive(Default)]
pub struct Layout {
    rows: Vec<(&'static Field, u16)>,
}

impl Layout {
    /// The layout of these rows. A row that means nothing here is left out.
    pub fn new(rows: &[Row]) -> Self {
        let known = |r: &Row| Some((FIELDS.get(r.field as usize)?, r.offset));
        Self { rows: rows.iter().filter_map(known).collect() }
    }
}

/// The address of the task of a run.
pub fn current(run: &Run) -> u64 {
    Place::of(Object::Task, run.tid()).address()
}

/// Fills `out` with what stands at `place`. What no member covers is zero.
pub fn read(run: &Run, place: Place, out: &mut [u8]) {
    out.fill(0);
    if place.object == Object::Registers {
        return run.regs().map_or((), |regs| overlay(out, place.offset as usize, regs.as_bytes(), 0));
    }
    let Some(layout) = &run.program().task else { return };
    let (start, end) = (place.offset as usize, place.offset as usize + out.len());
    for (field, offset) in layout.rows.iter().filter(|(f, _)| f.object == place.object) {
        let (from, to) = (*offset as usize, *offset as usize + field.size as usize);
        if from < end && start < to {
            let bytes = value(run, place, field.value);
            overlay(out, start, &bytes[..field.size as usize], from);
        }
    }
}

/// Copies the part of `bytes`, which stand at `from`, that lies in `out`, which stands at `start`.
fn overlay(out: &mut [u8], start: usize, bytes: &[u8], from: usize) {
    let skip = start.saturating_sub(from);
    let at = from.saturating_sub(start);
    let len = bytes.len().saturating_sub(skip).min(out.len().saturating_sub(at));
    out[at..at + len].copy_from_slice(&bytes[skip..skip + len]);
}

// Every member fits into what `value` returns.
const _: () = {
    let mut i = 0;
    while i < FIELDS.len() {
        assert!(FIELDS[i].size as usize <= size_of::<Bytes>());
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_takes_the_part_of_a_member_that_it_covers() {
        let member = [1, 2, 3, 4];
        let read = |start: usize, len: usize| {
            let mut out = vec![0; len];
            overlay(&mut out, start, &member, 8);
            out
        };
        assert_eq!(read(8, 4), [1, 2, 3, 4]);
        assert_eq!(read(6, 4), [0, 0, 1, 2]);
        assert_eq!(read(10, 4), [3, 4, 0, 0]);
        assert_eq!(read(4, 12), [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(read(9, 2), [2, 3]);
    }
}
