//! What compiled code needs from its caller, so that a probe's thunk prepares nothing else.

/// The words of the context that are read, and what else the caller has to do, or need not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Needs {
    /// Bit n: bytes 8n to 8n + 7 of the context may be read by the program's own loads. Everything behind
    /// word 63 counts as word 63.
    pub ctx_words: u64,
    /// The address of the context goes where its use cannot be seen: to a helper, into memory, into
    /// arithmetic with a variable. Whoever gets it may read all of it.
    pub ctx_escapes: bool,
    /// The code writes vector registers. Helpers may as well, whatever this says.
    pub vector: bool,
    /// The code calls something outside of the image: helpers, or through a tail call.
    pub calls: bool,
    /// The program always reaches its end: it takes no fuel, calls nothing that could be abandoned, and accesses no
    /// memory but its own stack and the first [`Needs::CTX_SAFE`] bytes of its context. What is not known to be so is
    /// not.
    pub runs_through: bool,
}

const CTX_ESCAPES: u32 = 1;
const VECTOR: u32 = 2;
const CALLS: u32 = 4;
const RUNS_THROUGH: u32 = 8;

impl Needs {
    /// How much of a context is always there: the kernel's `struct pt_regs` on x86-64, 168 bytes.
    pub const CTX_SAFE: u64 = 168;

    /// As stored in an image.
    pub(super) fn bits(self) -> u32 {
        let bit = |is: bool, bit: u32| if is { bit } else { 0 };
        bit(self.ctx_escapes, CTX_ESCAPES)
            | bit(self.vector, VECTOR)
            | bit(self.calls, CALLS)
            | bit(self.runs_through, RUNS_THROUGH)
    }

    /// From an image; `None` when a bit is unknown to this version.
    pub(super) fn from_raw(ctx_words: u64, bits: u32) -> Option<Needs> {
        let is = |bit: u32| bits & bit != 0;
        let known = bits & !(CTX_ESCAPES | VECTOR | CALLS | RUNS_THROUGH) == 0;
        let needs = Needs {
            ctx_words,
            ctx_escapes: is(CTX_ESCAPES),
            vector: is(VECTOR),
            calls: is(CALLS),
            runs_through: is(RUNS_THROUGH),
        };
        known.then_some(needs)
    }

    /// Whether the program cannot tell one context from another.
    pub fn ignores_ctx(self) -> bool {
        self.ctx_words == 0 && !self.ctx_escapes
    }
}
