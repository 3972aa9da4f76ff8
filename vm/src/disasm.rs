//! Instructions as the kernel's verifier log writes them: `(b7) r0 = 1`.
//!
//! Works on raw slots, so that a log can show what was refused too. Jumps are relative: `goto pc+3`.
#![forbid(unsafe_code)]

use crate::isa::{AluOp, AtomicOp, Cond, Insn, Size, SwapOp, code};
use std::fmt;

/// Names of helpers by id, for the text of calls.
pub type HelperName<'a> = &'a dyn Fn(u32) -> Option<&'static str>;

/// Displays one instruction. `lddw` needs its second slot too.
#[derive(Clone, Copy)]
pub struct Line<'a> {
    insn: Insn,
    next: Option<Insn>,
    helper: HelperName<'a>,
}

/// The instruction at a slot, with helpers by number.
pub fn line(insns: &[Insn], at: usize) -> Line<'_> {
    line_with(insns, at, &|_| None)
}

/// The instruction at a slot. A slot that does not exist reads as zeros.
pub fn line_with<'a>(insns: &[Insn], at: usize, helper: HelperName<'a>) -> Line<'a> {
    Line { insn: insns.get(at).copied().unwrap_or_default(), next: insns.get(at + 1).copied(), helper }
}

/// A whole program, one instruction per line with its slot number, second slots left out.
pub fn listing(insns: &[Insn]) -> String {
    let mut text = String::new();
    let mut at = 0;
    while at < insns.len() {
        text += &format!("{at}: {}\n", line(insns, at));
        at += if insns[at].is_lddw() { 2 } else { 1 };
    }
    text
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({:02x}) ", self.insn.code)?;
        match self.insn.class() {
            code::LD => self.ld(f),
            code::LDX => self.ldx(f),
            code::ST | code::STX => self.store(f),
            code::ALU | code::ALU64 => self.alu(f),
            _ => self.jmp(f),
        }
    }
}

impl Line<'_> {
    fn unknown(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BUG_{:02x}", self.insn.code)
    }

    /// `r` or, for 32-bit operations, `w`.
    fn letter(&self) -> char {
        if matches!(self.insn.class(), code::ALU | code::JMP32) { 'w' } else { 'r' }
    }

    fn alu(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (insn, letter) = (self.insn, self.letter());
        let dst = insn.dst();
        match insn.code & code::OP_MASK {
            code::END => return self.swap(f),
            code::NEG => return write!(f, "{letter}{dst} = -{letter}{dst}"),
            _ => {}
        }
        let nibble = u16::from(insn.code & code::OP_MASK);
        let Some(op) = AluOp::from_bits(nibble) else { return self.unknown(f) };
        let signed = if insn.off == 1 { AluOp::from_bits(nibble | 0x100) } else { None };
        write!(f, "{letter}{dst} {} ", signed.unwrap_or(op).sign())?;
        match (op, insn.off) {
            (AluOp::Mov, 8 | 16 | 32) => write!(f, "(s{}){letter}{}", insn.off, insn.src()),
            _ if insn.code & code::X != 0 => write!(f, "{letter}{}", insn.src()),
            _ => write!(f, "{}", insn.imm),
        }
    }

    fn swap(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dst, bits) = (self.insn.dst(), self.insn.imm);
        match SwapOp::from_bits(self.insn.code) {
            Some(op) => write!(f, "r{dst} = {}{bits} r{dst}", op.sign()),
            None => self.unknown(f),
        }
    }

    /// `*(u32 *)(r1 +4)` without the star.
    fn place(&self, base: u8, signed: bool) -> String {
        let size = Size::from_bits(self.insn.code & code::SIZE_MASK).map_or("", Size::sign);
        let size = if signed { size.replace('u', "s") } else { size.to_string() };
        format!("({size} *)(r{base} {:+})", self.insn.off)
    }

    fn ldx(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let insn = self.insn;
        let signed = match insn.code & code::MODE_MASK {
            code::MEM => false,
            code::MEMSX => true,
            _ => return self.unknown(f),
        };
        write!(f, "r{} = *{}", insn.dst(), self.place(insn.src(), signed))
    }

    fn store(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let insn = self.insn;
        let place = self.place(insn.dst(), false);
        match (insn.code & code::MODE_MASK, insn.class()) {
            (code::MEM, code::ST) => write!(f, "*{place} = {}", insn.imm),
            (code::MEM, _) => write!(f, "*{place} = r{}", insn.src()),
            (code::ATOMIC, code::STX) => self.atomic(f, &place),
            _ => self.unknown(f),
        }
    }

    fn atomic(&self, f: &mut fmt::Formatter<'_>, place: &str) -> fmt::Result {
        let src = self.insn.src();
        let op = u8::try_from(self.insn.imm & !code::FETCH).ok().and_then(AtomicOp::from_bits);
        let wide = if self.insn.code & code::SIZE_MASK == Size::Dw.bits() { "64" } else { "" };
        match op {
            Some(AtomicOp::Cmpxchg) => write!(f, "r0 = atomic{wide}_cmpxchg({place}, r0, r{src})"),
            Some(AtomicOp::Xchg) => write!(f, "r{src} = atomic{wide}_xchg({place}, r{src})"),
            Some(op) if self.insn.imm & code::FETCH != 0 => {
                write!(f, "r{src} = atomic{wide}_fetch_{}({place}, r{src})", op.mnemonic())
            }
            Some(op) => write!(f, "lock *{place} {} r{src}", op.sign()),
            None => self.unknown(f),
        }
    }

    fn ld(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (insn, next) = (self.insn, self.next);
        let high = next.map_or(0, |n| n.imm as u32);
        if !insn.is_lddw() {
            return self.unknown(f);
        }
        write!(f, "r{} = ", insn.dst())?;
        match insn.src() {
            code::PSEUDO_MAP_FD => write!(f, "map[fd:{}]", insn.imm),
            code::PSEUDO_MAP_VALUE => write!(f, "map[fd:{}]+{high}", insn.imm),
            code::PSEUDO_MAP_IDX => write!(f, "map[idx:{}]", insn.imm),
            code::PSEUDO_MAP_IDX_VALUE => write!(f, "map[idx:{}]+{high}", insn.imm),
            code::PSEUDO_FUNC => write!(f, "subprog[{:+}]", insn.imm),
            _ => write!(f, "{:#x}", u64::from(high) << 32 | u64::from(insn.imm as u32)),
        }
    }

    fn jmp(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let insn = self.insn;
        match insn.code {
            code::EXIT => return write!(f, "exit"),
            code::CALL => return self.call(f),
            code::JA => return write!(f, "goto pc{:+}", insn.off),
            code::JA32 => return write!(f, "gotol pc{:+}", insn.imm),
            _ => {}
        }
        let Some(cond) = Cond::from_bits(insn.code & code::OP_MASK) else { return self.unknown(f) };
        let letter = self.letter();
        write!(f, "if {letter}{} {} ", insn.dst(), cond.sign())?;
        if insn.code & code::X != 0 {
            write!(f, "{letter}{}", insn.src())?;
        } else {
            write!(f, "{:#x}", insn.imm)?;
        }
        write!(f, " goto pc{:+}", insn.off)
    }

    fn call(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (insn, id) = (self.insn, self.insn.imm as u32);
        match insn.src() {
            0 => write!(f, "call {}#{id}", (self.helper)(id).unwrap_or("unknown")),
            code::PSEUDO_CALL => write!(f, "call pc{:+}", insn.imm),
            _ => write!(f, "call kernel-function#{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asm::assemble;

    /// Source in our assembler, text of the kernel's log.
    const LINES: &[(&str, &str)] = &[
        ("mov r0, 1", "(b7) r0 = 1"),
        ("mov32 r0, r1", "(bc) w0 = w1"),
        ("add r2, -8", "(07) r2 += -8"),
        ("sdiv r1, r2", "(3f) r1 s/= r2"),
        ("smod32 r1, 3", "(94) w1 s%= 3"),
        ("movsx8 r1, r2", "(bf) r1 = (s8)r2"),
        ("movsx16_32 r1, r2", "(bc) w1 = (s16)w2"),
        ("neg32 r3", "(84) w3 = -w3"),
        ("be16 r4", "(dc) r4 = be16 r4"),
        ("bswap64 r4", "(d7) r4 = bswap64 r4"),
        ("stxdw [r10-8], r1", "(7b) *(u64 *)(r10 -8) = r1"),
        ("stb [r1+2], 7", "(72) *(u8 *)(r1 +2) = 7"),
        ("ldxw r0, [r1]", "(61) r0 = *(u32 *)(r1 +0)"),
        ("ldxsh r0, [r1+4]", "(89) r0 = *(s16 *)(r1 +4)"),
        ("lock add [r1], r2", "(db) lock *(u64 *)(r1 +0) += r2"),
        ("lock fetch_xor32 [r1], r2", "(c3) r2 = atomic_fetch_xor((u32 *)(r1 +0), r2)"),
        ("lock cmpxchg [r1], r2", "(db) r0 = atomic64_cmpxchg((u64 *)(r1 +0), r0, r2)"),
        ("lddw r1, 0x1122334455667788", "(18) r1 = 0x1122334455667788"),
        ("jeq r1, 10, +5", "(15) if r1 == 0xa goto pc+5"),
        ("jsgt32 r1, r2, -1", "(6e) if w1 s> w2 goto pc-1"),
        ("ja +0", "(05) goto pc+0"),
        ("ja32 -2", "(06) gotol pc-2"),
        ("call 195896080", "(85) call unknown#195896080"),
        ("call local +3", "(85) call pc+3"),
        ("exit", "(95) exit"),
    ];

    #[test]
    fn text_is_the_kernels() {
        for (source, text) in LINES {
            let insns = assemble(source).unwrap();
            assert_eq!(line(&insns, 0).to_string(), *text, "{source}");
        }
    }

    #[test]
    fn helpers_have_names_when_known() {
        let insns = assemble("call 1").unwrap();
        let name = |_| Some("bpf_map_lookup_elem");
        assert_eq!(line_with(&insns, 0, &name).to_string(), "(85) call bpf_map_lookup_elem#1");
    }
}
