//! Decoded instructions: about a dozen structured forms, so that a consumer matches a handful of arms
//! instead of a hundred opcodes.

use super::table::{AluOp, AtomicOp, Cond, Size, SwapOp, Width};

/// A register that exists: r0 to r10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reg(u8);

impl Reg {
    /// Return value.
    pub const R0: Reg = Reg(0);
    /// Read-only frame pointer.
    pub const FP: Reg = Reg(10);
    /// Number of registers.
    pub const COUNT: usize = 11;

    /// The register with this number; `None` above 10.
    pub const fn new(number: u8) -> Option<Reg> {
        if number <= 10 { Some(Reg(number)) } else { None }
    }

    /// 0 to 10.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Index into the program's own list of used maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MapIdx(pub u32);

impl MapIdx {
    /// Set in the index of a template. Programs name far fewer maps.
    const INNER: u32 = 1 << 31;

    /// Stands for the maps inside of this map-in-map: what a lookup in it gives is like its template. It is no constant
    /// of the program, so nothing but the verifier's facts has such an index.
    pub const fn inner(self) -> MapIdx {
        MapIdx(self.0 | Self::INNER)
    }

    /// Of what [`MapIdx::inner`] gave: the map-in-map.
    pub const fn outer(self) -> Option<MapIdx> {
        if self.0 & Self::INNER != 0 { Some(MapIdx(self.0 & !Self::INNER)) } else { None }
    }
}

/// Second operand of ALU operations, comparisons and stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A register.
    Reg(Reg),
    /// An immediate, sign-extended where it meets a 64-bit operand.
    Imm(i32),
}

/// What a two-slot `lddw` loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Const {
    /// A plain 64-bit number.
    Number(u64),
    /// The handle of a map, as helpers take it.
    Map(MapIdx),
    /// The address of a byte inside a map's value.
    MapValue(MapIdx, u32),
    /// The address of a function of the program (index into [`Program::funcs`](crate::Program::funcs)).
    Func(u32),
}

/// Why libbpf (or the loader) says that a call is never reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    /// libbpf could not resolve a CO-RE relocation: `0xbad2310`.
    CoRe,
    /// libbpf skipped the creation of the map with this index: `2001000000 + i`.
    Map(u32),
    /// A weak kernel function that does not exist: `2002000000 + i`.
    Kfunc(u32),
    /// A helper that this runtime lacks, let through on request of the loader.
    Missing,
}

/// Who a call calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    /// A helper by its kernel id.
    Helper(u32),
    /// A function of the program (index into [`Program::funcs`](crate::Program::funcs)).
    Func(u32),
    /// Nobody: reaching it aborts the run with r0 = 0. Keeps the id for the verifier's message.
    Poisoned(Poison, u32),
}

/// One decoded instruction. Jump targets are slot indices of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `dst = dst op src`; `Mov` ignores the old `dst`.
    Alu {
        /// Operation.
        op: AluOp,
        /// Operand width.
        width: Width,
        /// Left operand and result.
        dst: Reg,
        /// Right operand.
        src: Operand,
    },
    /// `dst = -dst`.
    Neg {
        /// Operand width.
        width: Width,
        /// Operand and result.
        dst: Reg,
    },
    /// `dst = sign-extend(lower bits of src)`.
    MovSx {
        /// Width of the result.
        width: Width,
        /// How many lower bits of `src` count (never the whole width).
        from: Size,
        /// Result.
        dst: Reg,
        /// Source.
        src: Reg,
    },
    /// Byte order conversion of the lower bits, upper ones cleared.
    Swap {
        /// Which conversion.
        op: SwapOp,
        /// 16, 32 or 64 bits.
        size: Size,
        /// Operand and result.
        dst: Reg,
    },
    /// `dst = value`; occupies this slot and the following [`Op::Second`].
    LoadConst {
        /// Result.
        dst: Reg,
        /// What is loaded.
        value: Const,
    },
    /// Second slot of a [`Op::LoadConst`]; never executed and never a target.
    Second,
    /// `dst = *(size *)(base + off)`.
    Load {
        /// Bytes read.
        size: Size,
        /// Sign-extended (`ldxsb`...) or zero-extended.
        signed: bool,
        /// Result.
        dst: Reg,
        /// Address.
        base: Reg,
        /// Added to the address.
        off: i16,
    },
    /// `*(size *)(base + off) = src`.
    Store {
        /// Bytes written.
        size: Size,
        /// Address.
        base: Reg,
        /// Added to the address.
        off: i16,
        /// Value.
        src: Operand,
    },
    /// Read-modify-write on `*(size *)(base + off)`, sequentially consistent.
    Atomic {
        /// Operation.
        op: AtomicOp,
        /// Whether the old value is returned: in `src`, for `Cmpxchg` in r0.
        fetch: bool,
        /// W or Dw.
        size: Size,
        /// Address.
        base: Reg,
        /// Added to the address.
        off: i16,
        /// Operand.
        src: Reg,
    },
    /// Unconditional jump.
    Jump {
        /// Slot to go on at.
        target: usize,
    },
    /// Jump when `dst cond src`.
    Branch {
        /// Condition.
        cond: Cond,
        /// Operand width.
        width: Width,
        /// Left operand.
        dst: Reg,
        /// Right operand.
        src: Operand,
        /// Slot to go on at when it holds.
        target: usize,
    },
    /// Call with r1-r5, result in r0.
    Call(Callee),
    /// Return r0.
    Exit,
}

impl Op {
    /// The jump target, if this op has one.
    pub const fn target(&self) -> Option<usize> {
        match *self {
            Op::Jump { target } | Op::Branch { target, .. } => Some(target),
            _ => None,
        }
    }

    /// Whether control flow can go on at the next slot. Poisoned calls count as calls here, as they do in
    /// the kernel's control flow check: libbpf leaves live code behind them.
    pub const fn falls_through(&self) -> bool {
        !matches!(self, Op::Jump { .. } | Op::Exit)
    }

    /// Slots taken: two for `lddw`.
    pub const fn slots(&self) -> usize {
        if matches!(self, Op::LoadConst { .. }) { 2 } else { 1 }
    }

    /// The register this op writes, apart from r0 of calls and `Cmpxchg`.
    pub const fn written(&self) -> Option<Reg> {
        match *self {
            Op::Alu { dst, .. }
            | Op::Neg { dst, .. }
            | Op::MovSx { dst, .. }
            | Op::Swap { dst, .. }
            | Op::LoadConst { dst, .. }
            | Op::Load { dst, .. } => Some(dst),
            Op::Atomic { op, fetch: true, src, .. } if !matches!(op, AtomicOp::Cmpxchg) => Some(src),
            _ => None,
        }
    }
}
