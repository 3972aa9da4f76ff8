//! Why a program is refused.

use thiserror::Error;

/// Kind of refusal; the loader maps it to the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// EINVAL.
    Invalid,
    /// EACCES.
    Access,
    /// EPERM.
    Permission,
    /// E2BIG.
    TooBig,
    /// EFAULT.
    Fault,
    /// ENOTSUPP, which only exists inside of the kernel, and leaks.
    NotSupported,
}

impl Errno {
    /// The number, positive.
    pub const fn number(self) -> i32 {
        match self {
            Errno::Permission => 1,
            Errno::TooBig => 7,
            Errno::Access => 13,
            Errno::Fault => 14,
            Errno::Invalid => 22,
            Errno::NotSupported => 524,
        }
    }
}

/// A refused program. Displays as the reason.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The errno of the load.
    pub errno: Errno,
    /// Slot of the instruction.
    pub insn: usize,
    /// One or more lines, as in the log.
    pub reason: String,
    /// Slots of the path that is refused, in the order of execution, the instruction itself last; the last few
    /// thousand of a long one.
    pub path: Vec<usize>,
    /// Registers and stack before the instruction, as the log shows them.
    pub state: String,
}

impl Refusal {
    /// One that no path leads to.
    pub(super) fn of_program(errno: Errno, insn: usize, reason: String) -> Refusal {
        Refusal { errno, insn, reason, path: vec![], state: String::new() }
    }
}

/// A judgement on a part of an instruction.
pub(super) type Check<T = ()> = Result<T, Fail>;

/// A refusal that does not know its instruction yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fail {
    pub errno: Errno,
    pub reason: String,
}

/// EACCES.
pub(super) fn access<T>(reason: String) -> Check<T> {
    Err(Fail { errno: Errno::Access, reason })
}

/// EINVAL.
pub(super) fn invalid<T>(reason: String) -> Check<T> {
    Err(Fail { errno: Errno::Invalid, reason })
}
