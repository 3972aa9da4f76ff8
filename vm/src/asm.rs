//! A small text assembler: `mov r0, 1; exit`. For tests, mostly; nothing here runs at load time.
//!
//! One instruction per line or `;`, comments from `#`, labels `name:`. A jump goes to a label or `+n`.
//!
//! ```text
//! add r1, -3          add32 r1, r2        neg r1            movsx8 r1, r2     movsx8_32 r1, r2
//! le16 r1  be32 r1    bswap64 r1          lddw r1, 0x1_0000 lddw r1, map 3    lddw r1, value 3+8
//! ldxw r0, [r1+8]     ldxsb r0, [r1]      stxdw [r10-8], r1 stb [r1], 7       lddw r1, func label
//! jne r1, 2, label    jslt32 r1, r2, +3   ja label          ja32 label        exit
//! lock add [r1], r2   lock fetch_or32 [r1], r2              lock xchg [r1], r2
//! call 5              call local label    raw 0x8f 0 0 0 0  (code dst src off imm)
//! ```
#![forbid(unsafe_code)]

use crate::isa::{AluOp, AtomicOp, Cond, Insn, Size, SwapOp, code};
use std::collections::HashMap;
use thiserror::Error;

/// A statement that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{statement}`: {what}")]
pub struct AsmError {
    /// The statement as written.
    pub statement: String,
    /// What is wrong with it.
    pub what: &'static str,
}

type Encoded = Result<Vec<Insn>, &'static str>;
type Labels<'a> = HashMap<&'a str, usize>;

/// Translates a program.
pub fn assemble(source: &str) -> Result<Vec<Insn>, AsmError> {
    let lines = source.lines().map(|line| line.split('#').next().unwrap_or(""));
    let statements = lines.flat_map(|line| line.split(';')).map(str::trim).filter(|s| !s.is_empty());
    let (labels, statements) = place_labels(statements);
    let mut insns = Vec::new();
    for statement in statements {
        let encoded = encode(statement, insns.len(), &labels);
        insns.extend(encoded.map_err(|what| AsmError { statement: statement.to_string(), what })?);
    }
    Ok(insns)
}

/// Slots of the labels, and the statements without them.
fn place_labels<'a>(statements: impl Iterator<Item = &'a str>) -> (Labels<'a>, Vec<&'a str>) {
    let (mut labels, mut rest, mut at) = (Labels::new(), Vec::new(), 0);
    for mut statement in statements {
        while let Some((label, after)) = statement.split_once(':') {
            labels.insert(label.trim(), at);
            statement = after.trim();
        }
        if !statement.is_empty() {
            at += if statement.starts_with("lddw") { 2 } else { 1 };
            rest.push(statement);
        }
    }
    (labels, rest)
}

fn encode(statement: &str, at: usize, labels: &Labels<'_>) -> Encoded {
    let (mnemonic, rest) = statement.split_once(char::is_whitespace).unwrap_or((statement, ""));
    let operands: Vec<&str> = rest.split(',').map(str::trim).filter(|s| !s.is_empty()).collect();
    let statement = Statement { at, labels, operands };
    if let Some(insns) = statement.special(mnemonic, rest.trim()) {
        return insns;
    }
    // `mov32` is `mov` at 32 bits, and so on.
    let (name, narrow) = match mnemonic.strip_suffix("32") {
        Some(name) => (name, true),
        None => (mnemonic, false),
    };
    let insn = if let Some(op) = AluOp::ALL.iter().find(|op| op.mnemonic() == name) {
        statement.alu(*op, narrow)
    } else if let Some(cond) = Cond::ALL.iter().find(|cond| cond.mnemonic() == name) {
        statement.branch(*cond, narrow)
    } else {
        statement.sized(mnemonic)
    };
    Ok(vec![insn?])
}

struct Statement<'a> {
    at: usize,
    labels: &'a Labels<'a>,
    operands: Vec<&'a str>,
}

impl Statement<'_> {
    fn operand(&self, n: usize) -> Result<&str, &'static str> {
        self.operands.get(n).copied().ok_or("operand missing")
    }

    fn reg(&self, n: usize) -> Result<u8, &'static str> {
        register(self.operand(n)?).ok_or("not a register")
    }

    /// Register or immediate: source bit, source register, immediate.
    fn source(&self, n: usize) -> Result<(u8, u8, i32), &'static str> {
        let text = self.operand(n)?;
        match register(text) {
            Some(reg) => Ok((code::X, reg, 0)),
            None => Ok((0, 0, number32(text)?)),
        }
    }

    /// `[r1+8]`.
    fn place(&self, n: usize) -> Result<(u8, i16), &'static str> {
        let inner = self.operand(n)?.strip_prefix('[').and_then(|s| s.strip_suffix(']'));
        let inner = inner.ok_or("not a memory operand")?;
        let split = inner.find(['+', '-']).unwrap_or(inner.len());
        let base = register(inner[..split].trim()).ok_or("not a register")?;
        let off = if split == inner.len() { 0 } else { number(&inner[split..])? };
        Ok((base, i16::try_from(off).map_err(|_| "offset too large")?))
    }

    /// Slots from the next instruction to a label or `+n`.
    fn distance(&self, text: &str) -> Result<i32, &'static str> {
        match self.labels.get(text) {
            Some(slot) => Ok(*slot as i32 - self.at as i32 - 1),
            None => number32(text).map_err(|_| "unknown label"),
        }
    }

    /// Statements that are not of the regular shapes.
    fn special(&self, mnemonic: &str, rest: &str) -> Option<Encoded> {
        let one = |insn: Result<Insn, &'static str>| Some(insn.map(|insn| vec![insn]));
        match mnemonic {
            "exit" => one(Ok(Insn::new(code::EXIT, 0, 0, 0, 0))),
            "ja" => one(self.short_jump(rest)),
            "ja32" => one(self.distance(rest).map(|n| Insn::new(code::JA32, 0, 0, 0, n))),
            "neg" => one(self.reg(0).map(|dst| Insn::new(code::ALU64 | code::NEG, dst, 0, 0, 0))),
            "neg32" => one(self.reg(0).map(|dst| Insn::new(code::ALU | code::NEG, dst, 0, 0, 0))),
            "call" => one(self.call(rest)),
            "lock" => one(self.atomic(rest)),
            "raw" => one(raw(rest)),
            "lddw" => Some(self.lddw()),
            _ => None,
        }
    }

    fn short_jump(&self, to: &str) -> Result<Insn, &'static str> {
        let off = i16::try_from(self.distance(to)?).map_err(|_| "jump too far")?;
        Ok(Insn::new(code::JA, 0, 0, off, 0))
    }

    fn call(&self, rest: &str) -> Result<Insn, &'static str> {
        match rest.strip_prefix("local") {
            Some(label) => Ok(Insn::new(code::CALL, 0, code::PSEUDO_CALL, 0, self.distance(label.trim())?)),
            None => Ok(Insn::new(code::CALL, 0, 0, 0, number32(rest)?)),
        }
    }

    fn lddw(&self) -> Encoded {
        let (dst, text) = (self.reg(0)?, self.operand(1)?);
        let pair = |src, low: i32, high: i32| {
            Ok(vec![Insn::new(code::LDDW, dst, src, 0, low), Insn::new(0, 0, 0, 0, high)])
        };
        match text.split_once(' ') {
            Some(("map", fd)) => pair(code::PSEUDO_MAP_FD, number32(fd)?, 0),
            Some(("map_idx", idx)) => pair(code::PSEUDO_MAP_IDX, number32(idx)?, 0),
            Some(("value", place)) => {
                let (fd, off) = place.split_once('+').unwrap_or((place, "0"));
                pair(code::PSEUDO_MAP_VALUE, number32(fd)?, number32(off)?)
            }
            Some(("func", label)) => pair(code::PSEUDO_FUNC, self.distance(label.trim())?, 0),
            _ => {
                let value = number(text)?;
                pair(0, value as i32, (value >> 32) as i32)
            }
        }
    }

    fn alu(&self, op: AluOp, narrow: bool) -> Result<Insn, &'static str> {
        let (dst, (x, src, imm)) = (self.reg(0)?, self.source(1)?);
        let class = if narrow { code::ALU } else { code::ALU64 };
        Ok(Insn::new(class | x | (op.bits() as u8), dst, src, (op.bits() >> 8) as i16, imm))
    }

    fn branch(&self, cond: Cond, narrow: bool) -> Result<Insn, &'static str> {
        let (dst, (x, src, imm)) = (self.reg(0)?, self.source(1)?);
        let class = if narrow { code::JMP32 } else { code::JMP };
        let off = i16::try_from(self.distance(self.operand(2)?)?).map_err(|_| "jump too far")?;
        Ok(Insn::new(class | x | cond.bits(), dst, src, off, imm))
    }

    fn atomic(&self, rest: &str) -> Result<Insn, &'static str> {
        let (mnemonic, _) = rest.split_once(' ').ok_or("operand missing")?;
        let (name, size) = match mnemonic.strip_suffix("32") {
            Some(name) => (name, Size::W),
            None => (mnemonic, Size::Dw),
        };
        let (name, fetch) = match name.strip_prefix("fetch_") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let op = AtomicOp::ALL.iter().find(|op| op.mnemonic() == name).ok_or("unknown atomic")?;
        let fetch = if fetch || op.always_fetches() { code::FETCH } else { 0 };
        // The first operand still has the mnemonic in front.
        let place = self.operand(0)?.split_once('[').map(|(_, place)| format!("[{place}"));
        let operands = vec![place.as_deref().ok_or("not a memory operand")?];
        let (base, off) = Statement { at: self.at, labels: self.labels, operands }.place(0)?;
        let opcode = code::STX | code::ATOMIC | size.bits();
        Ok(Insn::new(opcode, base, self.reg(1)?, off, i32::from(op.bits()) | fetch))
    }

    /// Mnemonics that end in a size: `ldxw`, `stb`, `be16`, `movsx8_32`.
    fn sized(&self, mnemonic: &str) -> Result<Insn, &'static str> {
        if let Some(bits) = mnemonic.strip_prefix("movsx") {
            return self.movsx(bits);
        }
        for op in SwapOp::ALL {
            if let Some(bits) = mnemonic.strip_prefix(op.mnemonic()) {
                return Ok(Insn::new(op.bits(), self.reg(0)?, 0, 0, number32(bits)?));
            }
        }
        let sized = |prefix: &str| {
            let suffix = mnemonic.strip_prefix(prefix)?;
            Size::ALL.iter().find(|size| size.mnemonic() == suffix).map(|size| size.bits())
        };
        if let Some(size) = sized("ldxs") {
            return self.load(code::LDX | code::MEMSX | size);
        }
        if let Some(size) = sized("ldx") {
            return self.load(code::LDX | code::MEM | size);
        }
        let (base, off) = if mnemonic.starts_with("st") { self.place(0)? } else { (0, 0) };
        if let Some(size) = sized("stx") {
            return Ok(Insn::new(code::STX | code::MEM | size, base, self.reg(1)?, off, 0));
        }
        let size = sized("st").ok_or("unknown instruction")?;
        Ok(Insn::new(code::ST | code::MEM | size, base, 0, off, number32(self.operand(1)?)?))
    }

    fn load(&self, opcode: u8) -> Result<Insn, &'static str> {
        let (base, off) = self.place(1)?;
        Ok(Insn::new(opcode, self.reg(0)?, base, off, 0))
    }

    fn movsx(&self, bits: &str) -> Result<Insn, &'static str> {
        let (class, bits) = match bits.strip_suffix("_32") {
            Some(bits) => (code::ALU, bits),
            None => (code::ALU64, bits),
        };
        let opcode = class | code::X | AluOp::Mov.bits() as u8;
        let off = number32(bits)? as i16;
        Ok(Insn::new(opcode, self.reg(0)?, self.reg(1)?, off, 0))
    }
}

fn raw(rest: &str) -> Result<Insn, &'static str> {
    let numbers: Result<Vec<i64>, _> = rest.split_whitespace().map(number).collect();
    match numbers?.as_slice() {
        [code, dst, src, off, imm] => {
            Ok(Insn::new(*code as u8, *dst as u8, *src as u8, *off as i16, *imm as i32))
        }
        _ => Err("raw takes code dst src off imm"),
    }
}

fn register(text: &str) -> Option<u8> {
    let text = text.strip_prefix('%').unwrap_or(text);
    text.strip_prefix('r')?.parse().ok().filter(|number| *number < 16)
}

/// Decimal or hex, signed; 64-bit hex may use the top bit.
fn number(text: &str) -> Result<i64, &'static str> {
    let text = text.trim().replace('_', "");
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(&text)),
    };
    let magnitude = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    let magnitude = magnitude.map_err(|_| "not a number")? as i64;
    Ok(if negative { magnitude.wrapping_neg() } else { magnitude })
}

/// A number that fits a 32-bit field, signed or unsigned.
fn number32(text: &str) -> Result<i32, &'static str> {
    let value = number(text)?;
    if i32::try_from(value).is_ok() || u32::try_from(value).is_ok() {
        Ok(value as i32)
    } else {
        Err("immediate too large")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_count_both_slots_of_lddw() {
        let insns = assemble("ja end; lddw r0, 1; end: exit # comment").unwrap();
        assert_eq!((insns.len(), insns[0].off), (4, 2));
    }

    #[test]
    fn numbers_in_every_notation() {
        let imm = |text: &str| assemble(&format!("mov r0, {text}")).map(|insns| insns[0].imm);
        assert_eq!(imm("-0x10"), Ok(-16));
        assert_eq!(imm("1_000"), Ok(1000));
        assert_eq!(imm("0xffff_ffff"), Ok(-1));
        assert_eq!(imm("0x1_0000_0000").map_err(|e| e.what), Err("immediate too large"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let what = |text| assemble(text).map_err(|e| (e.statement, e.what));
        assert_eq!(what("exit; frob r1"), Err(("frob r1".into(), "unknown instruction")));
        assert_eq!(what("ja nowhere"), Err(("ja nowhere".into(), "unknown label")));
        assert_eq!(what("mov r16, 1"), Err(("mov r16, 1".into(), "not a register")));
        assert_eq!(what("mov r1"), Err(("mov r1".into(), "operand missing")));
    }
}
