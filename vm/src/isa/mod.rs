//! The instruction set as tables (RFC 9669 and the kernel's `include/uapi/linux/bpf.h`).
//!
//! Every consumer (decoder, disassembler, assembler, interpreter, compiler, tests) walks the same rows, so
//! an operation that one of them forgets is a match arm that does not compile or a test that does not
//! pass, not a surprise at run time.
#![forbid(unsafe_code)]

mod form;
mod table;

pub use form::{Callee, Const, MapIdx, Op, Operand, Poison, Reg};
pub use table::{AluOp, AtomicOp, Cond, Size, SwapOp, Width};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One instruction slot as the kernel lays it out (`struct bpf_insn`). `lddw` takes two of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Insn {
    /// Opcode: class in the low three bits.
    pub code: u8,
    /// Destination register in the low nibble, source register in the high one.
    pub regs: u8,
    /// Signed offset: bytes for memory, slots for jumps, a variant selector for some ALU operations.
    pub off: i16,
    /// Signed immediate.
    pub imm: i32,
}

const _: () = assert!(size_of::<Insn>() == 8);

impl Insn {
    /// A slot from its five fields; registers are truncated to their nibbles.
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
        Insn { code, regs: (dst & 0xf) | (src << 4), off, imm }
    }

    /// The destination register field, unchecked (0-15).
    pub const fn dst(self) -> u8 {
        self.regs & 0xf
    }

    /// The source register field, unchecked (0-15).
    pub const fn src(self) -> u8 {
        self.regs >> 4
    }

    /// The instruction class, `code & 7`.
    pub const fn class(self) -> u8 {
        self.code & 0x07
    }

    /// Whether this is the first slot of a two-slot `lddw`.
    pub const fn is_lddw(self) -> bool {
        self.code == code::LDDW
    }

    /// Splits raw bytes into slots; `None` when the length is not a multiple of eight.
    pub fn from_bytes(bytes: &[u8]) -> Option<Vec<Insn>> {
        let chunks = bytes.chunks_exact(size_of::<Insn>());
        if !chunks.remainder().is_empty() {
            return None;
        }
        chunks.map(|c| Insn::read_from_bytes(c).ok()).collect()
    }
}

/// Encodings: classes, modes and whole opcodes, in the kernel's spelling without `BPF_`.
#[allow(missing_docs)] // the names are the kernel's; uapi/linux/bpf.h documents them
pub mod code {
    pub const LD: u8 = 0x00;
    pub const LDX: u8 = 0x01;
    pub const ST: u8 = 0x02;
    pub const STX: u8 = 0x03;
    pub const ALU: u8 = 0x04;
    pub const JMP: u8 = 0x05;
    pub const JMP32: u8 = 0x06;
    pub const ALU64: u8 = 0x07;

    /// Operand is the source register (else the immediate).
    pub const X: u8 = 0x08;

    pub const MODE_MASK: u8 = 0xe0;
    pub const IMM: u8 = 0x00;
    pub const ABS: u8 = 0x20;
    pub const IND: u8 = 0x40;
    pub const MEM: u8 = 0x60;
    pub const MEMSX: u8 = 0x80;
    pub const ATOMIC: u8 = 0xc0;
    pub const SIZE_MASK: u8 = 0x18;

    pub const OP_MASK: u8 = 0xf0;
    /// Byte swaps: the ALU class converts by order, the ALU64 class always swaps.
    pub const END: u8 = 0xd0;
    pub const NEG: u8 = 0x80;

    pub const LDDW: u8 = 0x18;
    pub const JA: u8 = JMP;
    /// `gotol`: the 32-bit jump, offset in `imm`.
    pub const JA32: u8 = JMP32;
    pub const CALL: u8 = 0x85;
    pub const EXIT: u8 = 0x95;

    /// Set in an atomic's `imm` when the old value goes to the source register.
    pub const FETCH: i32 = 0x01;

    /// `src` of a call to another function of the program.
    pub const PSEUDO_CALL: u8 = 1;
    /// `src` of a call to a kernel function by BTF id.
    pub const PSEUDO_KFUNC_CALL: u8 = 2;

    pub const PSEUDO_MAP_FD: u8 = 1;
    pub const PSEUDO_MAP_VALUE: u8 = 2;
    pub const PSEUDO_BTF_ID: u8 = 3;
    pub const PSEUDO_FUNC: u8 = 4;
    pub const PSEUDO_MAP_IDX: u8 = 5;
    pub const PSEUDO_MAP_IDX_VALUE: u8 = 6;
}

/// `MAX_BPF_STACK`: bytes of stack a call chain may use, and the size of one frame's window.
pub const MAX_STACK: u32 = 512;
/// `MAX_CALL_FRAMES`.
pub const MAX_FRAMES: usize = 8;
/// `BPF_COMPLEXITY_LIMIT_INSNS`: slots a privileged program may have.
pub const MAX_INSNS: usize = 1_000_000;
/// `bpf_tail_call`: the one helper whose result the generated code itself acts on.
pub const TAIL_CALL: u32 = 12;

/// FNV-1a over the slots: names the bytecode an image was made from.
pub fn bytecode_hash(insns: &[Insn]) -> u64 {
    fnv1a(insns.as_bytes().iter().copied())
}

/// FNV-1a.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.into_iter().fold(OFFSET_BASIS, |h, b| (h ^ u64::from(b)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_an_instruction_are_the_kernels() {
        let insn = Insn::new(0x7b, 10, 1, -8, 0x1234_5678);
        assert_eq!(insn.as_bytes(), [0x7b, 0x1a, 0xf8, 0xff, 0x78, 0x56, 0x34, 0x12]);
        assert_eq!(Insn::from_bytes(insn.as_bytes()), Some(vec![insn]));
        assert_eq!(Insn::from_bytes(&[0; 9]), None);
    }

    #[test]
    fn hash_is_fnv1a() {
        assert_eq!(bytecode_hash(&[]), 0xcbf2_9ce4_8422_2325);
        assert_ne!(bytecode_hash(&[Insn::default()]), bytecode_hash(&[]));
    }
}
