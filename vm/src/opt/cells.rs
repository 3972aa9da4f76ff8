//! Which words of a function's stack can live in registers.
//!
//! A word is eight bytes at a multiple of eight below r10. It can be a variable when every access to it goes
//! through r10 at a known offset and stays inside of it, and when no address at or below it is given away:
//! helpers reach upwards from a pointer, never below it. What is left is the stack in memory.

use super::intrinsic::{self, Environment, Intrinsic, UPDATE};
use super::values::{Regs, Value, Values, operand};
use crate::isa::{Callee, MAX_STACK, Op, Reg, Size};
use crate::program::Func;
use crate::verify::{Region, Verified};

/// Words of a frame.
pub(crate) const WORDS: usize = MAX_STACK as usize / 8;

/// The stack of a function, sorted into variables and memory.
#[derive(Clone, Debug)]
pub(crate) struct Cells {
    promoted: u64,
    /// The one access that a word sees, if it sees one kind only: first byte in the word and size.
    uniform: [Option<(u32, Size)>; WORDS],
    /// Bytes below r10 that must be memory.
    pub reserve: u32,
}

/// An access to a word that is a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Which word: bytes -8(n + 1) to -8n of the frame.
    pub word: usize,
    /// Bits to the right of the accessed ones in the variable; `None` when the variable holds nothing else.
    pub shift: Option<u32>,
}

impl Cells {
    pub(crate) fn of(program: &Verified, env: Environment<'_>, func: Func, values: &Values) -> Cells {
        let mut scan =
            Scan { program, env, touched: 0, memory: 0, lowest: 0, all: false, uniform: [Use::None; WORDS] };
        for at in func.start..func.end {
            if let Some(regs) = values.at(at) {
                scan.op(at, &program.ops()[at], regs);
            }
        }
        scan.finish(func)
    }

    /// The variable behind an access at r10 plus `off`, if it is one.
    pub(crate) fn cell(&self, off: i32, size: Size) -> Option<Cell> {
        let word = word(off)?;
        if self.promoted >> word & 1 == 0 {
            return None;
        }
        let byte = (off + 8 * (word as i32 + 1)) as u32;
        let shift = (self.uniform[word] != Some((byte, size))).then_some(8 * byte);
        Some(Cell { word, shift })
    }

    /// The words that are variables.
    pub(crate) fn words(&self) -> impl Iterator<Item = usize> + use<> {
        let promoted = self.promoted;
        (0..WORDS).filter(move |word| promoted >> word & 1 != 0)
    }
}

/// The word of a byte of the frame.
fn word(off: i32) -> Option<usize> {
    usize::try_from(-1 - i64::from(off)).ok().map(|below| below / 8).filter(|word| *word < WORDS)
}

/// The accesses that a word sees.
#[derive(Clone, Copy)]
enum Use {
    None,
    One(u32, Size),
    Several,
}

struct Scan<'a> {
    program: &'a Verified,
    env: Environment<'a>,
    touched: u64,
    memory: u64,
    /// The lowest address that is given away; 0 if none is.
    lowest: i32,
    all: bool,
    uniform: [Use; WORDS],
}

impl Scan<'_> {
    fn op(&mut self, at: usize, op: &Op, regs: &Regs) {
        match *op {
            Op::Load { base, off, size, .. } => self.access(at, regs[base.index()], off, size),
            Op::Store { base, off, size, src } => {
                self.access(at, regs[base.index()], off, size);
                self.all |= operand(src, regs).is_fp();
            }
            Op::Atomic { base, off, size, src, .. } => {
                self.access(at, regs[base.index()], off, size);
                self.all |= regs[src.index()].is_fp();
                if let Value::Fp(start) = regs[base.index()] {
                    self.in_memory(start + i32::from(off), size.bytes());
                }
            }
            Op::Call(callee) => match intrinsic::at(self.program, self.env, at, regs) {
                Some(Intrinsic::Field(..)) => {}
                // Reads a key, and gives nothing away.
                Some(Intrinsic::Lookup(..)) => self.access(at, regs[2], 0, Size::W),
                Some(Intrinsic::Overwrite(..)) => {
                    self.access(at, regs[2], 0, Size::W);
                    self.arg(Callee::Helper(UPDATE), regs[3]);
                }
                // The map's functions take what the helper takes.
                Some(Intrinsic::Hash(..)) | None => {
                    (1..=5).filter_map(Reg::new).for_each(|reg| self.arg(callee, regs[reg.index()]));
                }
            },
            _ => {}
        }
    }

    fn access(&mut self, at: usize, base: Value, off: i16, size: Size) {
        match base {
            Value::Fp(start) => self.direct(start + i32::from(off), size),
            // An address that is not followed: where it may go, or anywhere.
            base if base.is_fp() => match self.program.access(at) {
                Some(access) if access.region == Region::Stack => {
                    self.in_memory(access.min as i32, (access.max - access.min) as u32);
                }
                Some(access) if access.region != Region::Several => {}
                _ => self.all = true,
            },
            _ => {}
        }
    }

    fn direct(&mut self, off: i32, size: Size) {
        let (Some(last), Some(first)) = (word(off), word(off + size.bytes() as i32 - 1)) else {
            self.all = true;
            return;
        };
        if first != last {
            return self.in_memory(off, size.bytes());
        }
        self.touched |= 1 << first;
        let byte = (off + 8 * (first as i32 + 1)) as u32;
        self.uniform[first] = match self.uniform[first] {
            Use::None => Use::One(byte, size),
            Use::One(b, s) if (b, s) == (byte, size) => Use::One(byte, size),
            _ => Use::Several,
        };
    }

    fn in_memory(&mut self, off: i32, len: u32) {
        match (word(off), word(off + len as i32 - 1)) {
            (Some(last), Some(first)) => (first..=last).for_each(|word| self.memory |= 1 << word),
            _ => self.all = true,
        }
    }

    fn arg(&mut self, callee: Callee, value: Value) {
        match (callee, value) {
            (Callee::Poisoned(..), _) => {}
            (Callee::Helper(_), Value::Fp(off)) if !self.program.has_callbacks() => {
                self.lowest = self.lowest.min(off);
            }
            (_, value) => self.all |= value.is_fp(),
        }
    }

    fn finish(self, func: Func) -> Cells {
        let uniform = self.uniform.map(|of| match of {
            Use::One(byte, size) => Some((byte, size)),
            _ => None,
        });
        if self.all {
            return Cells { promoted: 0, uniform, reserve: func.stack.reserve };
        }
        // Words that lie below everything that is given away.
        let free = match self.lowest.unsigned_abs().div_ceil(8) {
            words if words < WORDS as u32 => u64::MAX << words,
            _ => 0,
        };
        let promoted = self.touched & free & !self.memory;
        let memory = (self.touched | self.memory) & !promoted;
        let words = u64::BITS - memory.leading_zeros();
        let reserve = (8 * words).max(self.lowest.unsigned_abs()).next_multiple_of(16).min(MAX_STACK);
        Cells { promoted, uniform, reserve }
    }
}
