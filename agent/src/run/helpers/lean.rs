//! Which functions of ours leave the vector registers and the direction flag as they are: read off their machine code, since no
//! compiler promises it. Programs call such helpers without anything being saved first.

use crate::arch::leaves_vectors_alone;
use crate::run::clock;
use crate::run::image::Func;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

const UNKNOWN: u8 = 0;
const LEAN: u8 = 1;
const HEAVY: u8 = 2;

/// A function that does what a helper does, and whether it may be called as it is.
pub struct Choice {
    body: Func,
    verdict: AtomicU8,
}

impl Choice {
    /// Not looked at yet.
    pub const fn new(body: Func) -> Self {
        Self { body, verdict: AtomicU8::new(UNKNOWN) }
    }

    /// What programs call: the function if it is lean, else `saving`, which saves the vector registers before anything
    /// else. A lean function may go on in that one.
    pub fn of(&self, saving: Func) -> Func {
        if self.verdict.load(Relaxed) == UNKNOWN {
            let lean = leaves_vectors_alone(self.body as usize, clock::settled(), saving as usize);
            self.verdict.store(if lean { LEAN } else { HEAVY }, Relaxed);
        }
        if self.verdict.load(Relaxed) == LEAN { self.body } else { saving }
    }
}
