//! One slot at a time: opcode, registers, reserved fields, constants.

use super::error::{LoadError, Reason};
use super::{Dialect, LoadEnv};
use crate::isa::{
    AluOp, AtomicOp, Callee, Cond, Const, Insn, MapIdx, Op, Operand, Poison, Reg, Size, SwapOp, Width, code,
};
use bpftime_abi::helper::{KFUNC_FIRST, exists};

type Decoded = Result<Op, Reason>;

/// Decodes every slot. `starts` are the sorted first slots of the functions.
pub(super) fn decode_all(
    insns: &[Insn],
    starts: &[usize],
    env: &mut dyn LoadEnv,
    dialect: Dialect,
) -> Result<Vec<Op>, LoadError> {
    let mut ops = Vec::with_capacity(insns.len());
    while ops.len() < insns.len() {
        let at = ops.len();
        let mut slot = Slot { insn: insns[at], at, starts, env, dialect };
        let op = slot.decode(insns.get(at + 1)).map_err(|reason| reason.at(at))?;
        ops.push(op);
        if op.slots() == 2 {
            ops.push(Op::Second);
        }
    }
    Ok(ops)
}

struct Slot<'a> {
    insn: Insn,
    at: usize,
    starts: &'a [usize],
    env: &'a mut dyn LoadEnv,
    dialect: Dialect,
}

impl Slot<'_> {
    fn decode(&mut self, next: Option<&Insn>) -> Decoded {
        match self.insn.class() {
            code::LD => self.ld(next),
            code::LDX => self.ldx(),
            code::ST => self.st(),
            code::STX => self.stx(),
            code::ALU => self.alu(Width::W32),
            code::ALU64 => self.alu(Width::W64),
            code::JMP => self.jmp(Width::W64),
            _ => self.jmp(Width::W32),
        }
    }

    fn unknown(&self) -> Reason {
        Reason::UnknownOpcode(self.insn.code)
    }

    /// The register an instruction writes.
    fn dst(&self) -> Result<Reg, Reason> {
        let reg = self.base()?;
        if reg == Reg::FP { Err(Reason::FramePointerWrite) } else { Ok(reg) }
    }

    /// The destination field where it is only read.
    fn base(&self) -> Result<Reg, Reason> {
        register(self.insn.dst())
    }

    fn src(&self) -> Result<Reg, Reason> {
        register(self.insn.src())
    }

    /// Register or immediate by the opcode's source bit; the field not used must be zero.
    fn operand(&self, what: &'static str) -> Result<Operand, Reason> {
        let insn = self.insn;
        if insn.code & code::X != 0 {
            zero(insn.imm == 0, what)?;
            Ok(Operand::Reg(self.src()?))
        } else {
            zero(insn.src() == 0, what)?;
            Ok(Operand::Imm(insn.imm))
        }
    }

    fn alu(&self, width: Width) -> Decoded {
        match self.insn.code & code::OP_MASK {
            code::END => self.swap(),
            code::NEG => self.neg(width),
            _ => self.binary(width),
        }
    }

    fn swap(&self) -> Decoded {
        let insn = self.insn;
        let op = SwapOp::from_bits(insn.code).ok_or(self.unknown())?;
        zero(insn.src() == 0 && insn.off == 0, "BPF_END")?;
        let size = u32::try_from(insn.imm).ok().and_then(Size::from_width).filter(|s| *s != Size::B);
        let size = size.ok_or(Reason::ReservedFields("BPF_END"))?;
        Ok(Op::Swap { op, size, dst: self.dst()? })
    }

    fn neg(&self, width: Width) -> Decoded {
        let insn = self.insn;
        if insn.code & code::X != 0 {
            return Err(self.unknown());
        }
        zero(insn.src() == 0 && insn.off == 0 && insn.imm == 0, "BPF_NEG")?;
        Ok(Op::Neg { width, dst: self.dst()? })
    }

    fn binary(&self, width: Width) -> Decoded {
        let insn = self.insn;
        let nibble = u16::from(insn.code & code::OP_MASK);
        match AluOp::from_bits(nibble).ok_or(self.unknown())? {
            AluOp::Mov => self.mov(width),
            _ => self.arithmetic(width, nibble),
        }
    }

    fn arithmetic(&self, width: Width, nibble: u16) -> Decoded {
        let src = self.operand("BPF_ALU")?;
        let variant = u16::try_from(self.insn.off).ok().filter(|off| *off <= 1);
        let op = variant.and_then(|off| AluOp::from_bits(off << 8 | nibble));
        let op = op.ok_or(Reason::ReservedFields("BPF_ALU"))?;
        if let (Operand::Imm(imm), Dialect::Kernel) = (src, self.dialect) {
            check_immediate(op, width, imm)?;
        }
        Ok(Op::Alu { op, width, dst: self.dst()?, src })
    }

    fn mov(&self, width: Width) -> Decoded {
        let (src, dst) = (self.operand("BPF_MOV")?, self.dst()?);
        match (self.insn.off, src) {
            (0, src) => Ok(Op::Alu { op: AluOp::Mov, width, dst, src }),
            (off, Operand::Reg(src)) => {
                let from = u32::try_from(off).ok().and_then(Size::from_width);
                let from = from.filter(|size| size.bits_wide() < width.bits());
                let from = from.ok_or(Reason::ReservedFields("BPF_MOV"))?;
                Ok(Op::MovSx { width, from, dst, src })
            }
            _ => Err(Reason::ReservedFields("BPF_MOV")),
        }
    }

    fn jmp(&mut self, width: Width) -> Decoded {
        match self.insn.code {
            code::CALL => self.call(),
            code::EXIT => self.exit(),
            code::JA | code::JA32 => self.ja(width),
            _ => self.branch(width),
        }
    }

    fn exit(&self) -> Decoded {
        // The kernel leaves `off` alone here.
        zero(self.insn.regs == 0 && self.insn.imm == 0, "BPF_EXIT")?;
        Ok(Op::Exit)
    }

    fn ja(&self, width: Width) -> Decoded {
        let insn = self.insn;
        let (delta, unused) = match width {
            Width::W64 => (i64::from(insn.off), insn.imm),
            Width::W32 => (i64::from(insn.imm), i32::from(insn.off)),
        };
        zero(insn.regs == 0 && unused == 0, "BPF_JA")?;
        Ok(Op::Jump { target: self.target(delta)? })
    }

    fn branch(&self, width: Width) -> Decoded {
        let cond = Cond::from_bits(self.insn.code & code::OP_MASK).ok_or(self.unknown())?;
        let src = self.operand("BPF_JMP/JMP32")?;
        let target = self.target(i64::from(self.insn.off))?;
        Ok(Op::Branch { cond, width, dst: self.base()?, src, target })
    }

    /// Targets are checked against the function later; here they only have to be slot numbers.
    fn target(&self, delta: i64) -> Result<usize, Reason> {
        let to = self.at as i64 + 1 + delta;
        usize::try_from(to).map_err(|_| Reason::JumpRange { from: self.at, to })
    }

    fn call(&mut self) -> Decoded {
        let insn = self.insn;
        zero(insn.dst() == 0 && insn.off == 0, "BPF_CALL")?;
        match insn.src() {
            0 => Ok(Op::Call(helper(insn.imm as u32))),
            code::PSEUDO_CALL => Ok(Op::Call(Callee::Func(self.func()?))),
            code::PSEUDO_KFUNC_CALL => {
                let found = self.env.kernel_function(insn.imm);
                found.map(|id| Op::Call(Callee::Helper(id))).ok_or(Reason::KernelFunction(insn.imm))
            }
            _ => Err(Reason::ReservedFields("BPF_CALL")),
        }
    }

    /// The function at `imm` slots from here.
    fn func(&self) -> Result<u32, Reason> {
        let to = self.at as i64 + 1 + i64::from(self.insn.imm);
        let start = usize::try_from(to).ok();
        let func = start.and_then(|start| self.starts.binary_search(&start).ok());
        func.map(|f| f as u32).ok_or(Reason::CallDestination)
    }

    fn ld(&mut self, next: Option<&Insn>) -> Decoded {
        let mode = self.insn.code & code::MODE_MASK;
        match mode {
            _ if self.insn.is_lddw() => self.lddw(next),
            // There is no 64-bit packet load.
            code::ABS | code::IND if self.insn.code & code::SIZE_MASK != Size::Dw.bits() => {
                Err(Reason::LegacyPacketAccess)
            }
            _ => Err(self.unknown()),
        }
    }

    fn lddw(&mut self, next: Option<&Insn>) -> Decoded {
        let second = next.filter(|n| n.code == 0 && n.regs == 0 && n.off == 0);
        let high = second.ok_or(Reason::InvalidLdImm64)?.imm;
        zero(self.insn.off == 0, "BPF_LD_IMM64")?;
        let value = self.constant(high)?;
        Ok(Op::LoadConst { dst: self.dst()?, value })
    }

    fn constant(&mut self, high: i32) -> Result<Const, Reason> {
        let low = self.insn.imm;
        match self.insn.src() {
            0 => Ok(Const::Number(u64::from(high as u32) << 32 | u64::from(low as u32))),
            code::PSEUDO_MAP_FD if high == 0 => Ok(Const::Map(self.map_by_fd()?)),
            code::PSEUDO_MAP_IDX if high == 0 => Ok(Const::Map(self.map_by_index()?)),
            code::PSEUDO_MAP_VALUE => {
                let map = self.map_by_fd()?;
                self.map_value(map, high as u32)
            }
            code::PSEUDO_MAP_IDX_VALUE => {
                let map = self.map_by_index()?;
                self.map_value(map, high as u32)
            }
            code::PSEUDO_FUNC if high == 0 => Ok(Const::Func(self.func()?)),
            code::PSEUDO_BTF_ID => Err(Reason::KernelSymbol),
            _ => Err(Reason::UnrecognizedLdImm64),
        }
    }

    fn map_by_fd(&mut self) -> Result<MapIdx, Reason> {
        let fd = self.insn.imm;
        self.env.map_by_fd(fd).ok_or(Reason::BadMapFd(fd))
    }

    fn map_by_index(&mut self) -> Result<MapIdx, Reason> {
        let idx = self.insn.imm;
        self.env.map_by_index(idx).ok_or(Reason::BadMapIndex(idx))
    }

    fn map_value(&self, map: MapIdx, off: u32) -> Result<Const, Reason> {
        match self.env.map_value_len(map) {
            Some(size) if off < size => Ok(Const::MapValue(map, off)),
            Some(size) => Err(Reason::MapValueOffset { size, off }),
            None => Err(Reason::NoDirectValue),
        }
    }

    fn ldx(&self) -> Decoded {
        let signed = match self.insn.code & code::MODE_MASK {
            code::MEM => false,
            // Sign extension of a whole register is not an instruction.
            code::MEMSX if self.size() != Size::Dw => true,
            _ => return Err(self.unknown()),
        };
        zero(self.insn.imm == 0, "BPF_LDX")?;
        Ok(Op::Load { size: self.size(), signed, dst: self.dst()?, base: self.src()?, off: self.insn.off })
    }

    fn size(&self) -> Size {
        match self.insn.code & code::SIZE_MASK {
            0x00 => Size::W,
            0x08 => Size::H,
            0x10 => Size::B,
            _ => Size::Dw,
        }
    }

    fn st(&self) -> Decoded {
        if self.insn.code & code::MODE_MASK != code::MEM {
            return Err(self.unknown());
        }
        zero(self.insn.src() == 0, "BPF_ST")?;
        self.store(Operand::Imm(self.insn.imm))
    }

    fn stx(&self) -> Decoded {
        match self.insn.code & code::MODE_MASK {
            code::MEM => {
                zero(self.insn.imm == 0, "BPF_STX")?;
                self.store(Operand::Reg(self.src()?))
            }
            code::ATOMIC if matches!(self.size(), Size::W | Size::Dw) => self.atomic(),
            code::ATOMIC => Err(Reason::AtomicSize),
            _ => Err(self.unknown()),
        }
    }

    fn store(&self, src: Operand) -> Decoded {
        Ok(Op::Store { size: self.size(), base: self.base()?, off: self.insn.off, src })
    }

    fn atomic(&self) -> Decoded {
        let imm = self.insn.imm;
        let bits = u8::try_from(imm & !code::FETCH).ok();
        let op = bits.and_then(AtomicOp::from_bits).ok_or(Reason::InvalidAtomic(imm))?;
        let fetch = imm & code::FETCH != 0;
        if op.always_fetches() && !fetch {
            return Err(Reason::InvalidAtomic(imm));
        }
        let src = self.src()?;
        if fetch && src == Reg::FP && op != AtomicOp::Cmpxchg {
            return Err(Reason::FramePointerWrite);
        }
        Ok(Op::Atomic { op, fetch, size: self.size(), base: self.base()?, off: self.insn.off, src })
    }
}

/// What a call by number calls. The numbers of kernel functions are ours, not the program's.
fn helper(id: u32) -> Callee {
    let ours = id >= KFUNC_FIRST && exists(id);
    if ours { Callee::Poisoned(Poison::Missing, id) } else { Callee::Helper(id) }
}

fn register(number: u8) -> Result<Reg, Reason> {
    Reg::new(number).ok_or(Reason::InvalidRegister(number))
}

fn zero(fields_are_zero: bool, what: &'static str) -> Result<(), Reason> {
    if fields_are_zero { Ok(()) } else { Err(Reason::ReservedFields(what)) }
}

/// Immediates that the kernel refuses although RFC 9669 defines their result.
fn check_immediate(op: AluOp, width: Width, imm: i32) -> Result<(), Reason> {
    match op {
        AluOp::Div | AluOp::Sdiv | AluOp::Mod | AluOp::Smod if imm == 0 => Err(Reason::DivByZero),
        AluOp::Lsh | AluOp::Rsh | AluOp::Arsh if !(0..width.bits() as i32).contains(&imm) => {
            Err(Reason::InvalidShift(imm))
        }
        _ => Ok(()),
    }
}
