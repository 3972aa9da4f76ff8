//! The one way around the verifier.

use crate::program::Program;
use crate::verify::Verified;

impl Verified {
    /// Takes a program that nobody verified for one that may be compiled and run. What runs it then relies on
    /// whoever made the program instead of on a proof; only structure was checked (jumps, registers, calls).
    ///
    /// For `BPFTIME_VERIFY=off`, which warns, and for tests of the engines themselves.
    ///
    /// # Safety
    /// In every run that its caller makes, with every context, map content and helper result that can occur:
    /// * each load, store and atomic is inside of memory that the program may access so, and stays valid;
    /// * helpers get what their prototypes ask for: addresses of memory of the size they assume, maps of a
    ///   type they take, callbacks of the signature they call;
    /// * what the program acquires (ring buffer records) it gives up once, and does not touch afterwards.
    ///
    /// Loops need no promise, fuel bounds them. Reading stack that was never written needs none, it is
    /// cleared.
    pub unsafe fn unchecked(program: Program) -> Verified {
        Verified::assumed(program)
    }
}
