//! Why a program is not loaded, in the words of the kernel's verifier where tools read them.

use thiserror::Error;

/// The errno family of a refusal; the loader maps it to the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// EINVAL.
    Invalid,
    /// EACCES.
    Access,
    /// E2BIG.
    TooBig,
    /// EBADF.
    BadFd,
}

/// A refused program: where, and why. Displays as the kernel's log line without the newline.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct LoadError {
    /// Slot index of the offending instruction.
    pub insn: usize,
    /// What is wrong with it.
    pub reason: Reason,
}

impl LoadError {
    /// The errno family of this refusal.
    pub fn class(&self) -> Class {
        self.reason.class()
    }
}

/// What is wrong. Texts without a counterpart in the kernel name the feature that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)] // the text of each variant is its documentation
pub enum Reason {
    #[error("program has {got} insns, at least 1 and at most {limit} are allowed")]
    ProgramSize { got: usize, limit: usize },
    #[error("unknown opcode {0:02x}")]
    UnknownOpcode(u8),
    #[error("R{0} is invalid")]
    InvalidRegister(u8),
    #[error("frame pointer is read only")]
    FramePointerWrite,
    #[error("{0} uses reserved fields")]
    ReservedFields(&'static str),
    #[error("div by zero")]
    DivByZero,
    #[error("invalid shift {0}")]
    InvalidShift(i32),
    #[error("invalid atomic operand size")]
    AtomicSize,
    #[error("BPF_ATOMIC uses invalid atomic opcode {0:02x}")]
    InvalidAtomic(i32),
    #[error("invalid bpf_ld_imm64 insn")]
    InvalidLdImm64,
    #[error("unrecognized bpf_ld_imm64 insn")]
    UnrecognizedLdImm64,
    #[error("BPF_LD_[ABS|IND] instructions not allowed for this program type")]
    LegacyPacketAccess,
    #[error("kernel symbols (BPF_PSEUDO_BTF_ID) do not exist in user space")]
    KernelSymbol,
    #[error("calling kernel function {0} is not allowed")]
    KernelFunction(i32),
    #[error("fd {0} is not pointing to valid bpf_map")]
    BadMapFd(i32),
    #[error("fd_idx {0} is not pointing to valid bpf_map")]
    BadMapIndex(i32),
    #[error("no direct value access support for this map type")]
    NoDirectValue,
    #[error("invalid access to map value pointer, value_size={size} off={off}")]
    MapValueOffset { size: u32, off: u32 },
    #[error("call to invalid destination")]
    CallDestination,
    #[error("jump out of range from insn {from} to {to}")]
    JumpRange { from: usize, to: i64 },
    #[error("jump into the middle of ldimm64 insn {0}")]
    JumpIntoLdImm64(usize),
    #[error("last insn is not an exit or jmp")]
    FallsOff,
    #[error("recursive call from insn {from} to insn {to}")]
    Recursion { from: usize, to: usize },
    #[error("the call stack of {0} frames is too deep !")]
    TooManyFrames(usize),
    #[error("combined stack size of {calls} calls is {bytes}. Too large")]
    StackTooLarge { calls: usize, bytes: u32 },
    #[error("invalid {access} stack R{reg} off={off} size={size}")]
    StackAccess { access: &'static str, reg: usize, off: i32, size: u32 },
    // The two texts differ as in the kernel: an id outside its table has no name.
    #[error("invalid func unknown#{0}")]
    InvalidFunc(u32),
    #[error("unknown func {name}#{id}")]
    UnknownFunc { id: u32, name: &'static str },
}

impl Reason {
    fn class(&self) -> Class {
        match self {
            Reason::FramePointerWrite | Reason::StackTooLarge { .. } | Reason::StackAccess { .. } => {
                Class::Access
            }
            Reason::ProgramSize { .. } | Reason::TooManyFrames(_) => Class::TooBig,
            Reason::BadMapFd(_) | Reason::BadMapIndex(_) => Class::BadFd,
            _ => Class::Invalid,
        }
    }

    /// This reason, at that slot.
    pub(super) fn at(self, insn: usize) -> LoadError {
        LoadError { insn, reason: self }
    }
}
