//! Where a module's `syscall` instructions are. Pure: bytes in, addresses out.
//!
//! Two bytes that look like one may be data or the inside of another instruction, so only functions that the unwind
//! table names are decoded, each from its first byte.
#![forbid(unsafe_code)]

use crate::arch::flow;
use crate::hook::{Call, fits_a_line};
use iced_x86::{Code, FlowControl, Instruction, OpKind, Register};
use std::collections::HashSet;
use std::ops::Range;

/// A `syscall` instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What to rewrite; `None` where no jump fits without being entered in the middle.
    pub call: Option<Call>,
    /// Its address.
    pub at: usize,
    /// Its number, where the instruction before says.
    pub nr: Option<u32>,
}

/// All `syscall` instructions in `code`, which is mapped at `addr`, within `functions` (ascending).
pub fn find(code: &[u8], addr: usize, functions: &[Range<usize>]) -> Vec<Found> {
    let mut out = Vec::new();
    let mut next = 0;
    while let Some(at) = candidate(code, next) {
        next = at + 1;
        let i = functions.partition_point(|f| f.start <= addr + at);
        let Some(f) = i.checked_sub(1).map(|i| &functions[i]).filter(|f| f.start >= addr) else { continue };
        let limit = functions.get(i).map_or(usize::MAX, |next| next.start);
        let end = (f.end + TAIL).min(limit).min(addr + code.len());
        if addr + at >= end {
            continue;
        }
        out.extend(in_function(&code[f.start - addr..end - addr], f));
        next = end - addr;
    }
    out
}

fn candidate(code: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += code.get(at..)?.iter().position(|b| *b == 0x0f)?;
        if code.get(at + 1) == Some(&0x05) {
            return Some(at);
        }
        at += 1;
    }
}

/// How far behind its end a function is followed. glibc ends the unwind information of clone, clone3 and vfork right
/// before their `syscall`, since it would be wrong in the child.
const TAIL: usize = 32;

fn in_function(code: &[u8], function: &Range<usize>) -> Vec<Found> {
    let mut insns: Vec<Instruction> = flow::decode(code, function.start as u64).collect();
    // Behind the end only what execution runs into.
    let inside = insns.partition_point(|i| (i.next_ip() as usize) < function.end);
    let stop = insns.iter().skip(inside).position(|i| !falls_through(i));
    insns.truncate(stop.map_or(insns.len(), |n| inside + n + 1).max(inside));
    let targets: HashSet<u64> = insns
        .iter()
        .filter(|i| i.op0_kind() == OpKind::NearBranch64)
        .map(Instruction::near_branch_target)
        .collect();
    let calls = insns.iter().enumerate().filter(|(_, i)| i.code() == Code::Syscall);
    calls.map(|(i, insn)| found(&insns[..i], insn, &targets)).collect()
}

fn found(before: &[Instruction], insn: &Instruction, targets: &HashSet<u64>) -> Found {
    let at = insn.ip() as usize;
    let nr = before.last().filter(|_| !targets.contains(&insn.ip())).and_then(number);
    Found { call: window(before, at, targets), at, nr }
}

/// Execution goes on behind it, and comes there by this way only.
fn falls_through(insn: &Instruction) -> bool {
    let call = insn.code() == Code::Syscall;
    call || matches!(insn.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch)
}

/// The number that an instruction puts into eax.
fn number(insn: &Instruction) -> Option<u32> {
    let eax = insn.op0_register() == Register::EAX;
    match insn.code() {
        Code::Mov_r32_imm32 if eax => Some(insn.immediate32()),
        Code::Mov_rm64_imm32 if insn.op0_register() == Register::RAX => Some(insn.immediate32()),
        Code::Xor_r32_rm32 | Code::Xor_rm32_r32 if eax && insn.op1_register() == Register::EAX => Some(0),
        _ => None,
    }
}

/// As few instructions as hold a 5-byte jump, up to the `syscall`. What comes in by a branch, or by returning from a
/// call, comes in at the first of them.
fn window(before: &[Instruction], at: usize, targets: &HashSet<u64>) -> Option<Call> {
    const JUMP: usize = 5;
    let mut end = at;
    for insn in before.iter().rev() {
        let from = insn.ip() as usize;
        if !falls_through(insn)
            || insn.code() == Code::Syscall
            || insn.next_ip() as usize != end
            || targets.contains(&(end as u64))
        {
            return None;
        }
        let alone = end == at && insn.len() >= JUMP;
        // More than one: the system call itself may be covered, but only just, so that the threads in it come back
        // to an instruction that is whole.
        if (alone || at + 2 - from >= JUMP) && fits_a_line(from) {
            return Some(Call { from, at });
        }
        end = from;
    }
    None
}

/// The functions that an `.eh_frame_hdr` at `addr` names; `read` reads the module's memory.
pub fn functions(addr: usize, read: &mut dyn FnMut(usize, usize) -> Vec<u8>) -> Vec<Range<usize>> {
    /// Version 1, count as udata4, table as datarel sdata4: what every linker writes.
    const USUAL: [u8; 3] = [1, 0x03, 0x3b];
    const MOST: usize = 1 << 20;
    let head = read(addr, 12);
    if head.len() < 12 || [head[0], head[2], head[3]] != USUAL {
        return Vec::new();
    }
    let count = (word(&head, 8) as u32 as usize).min(MOST);
    let table = read(addr + 12, count * 8);
    let offset = |v: i32| (addr as i64 + v as i64) as usize;
    let rows: Vec<_> =
        table.chunks_exact(8).map(|row| (offset(word(row, 0)), offset(word(row, 4)))).collect();
    let Some(low) = rows.iter().map(|r| r.1).min() else { return Vec::new() };
    let high = rows.iter().map(|r| r.1).max().unwrap_or(low) + 16;
    // CIEs stand before their FDEs, and the table before both: what is between is mapped.
    const BEFORE: usize = 4096;
    let start_of = if addr < low && low - addr < 64 << 20 { addr } else { low.saturating_sub(BEFORE) };
    let frames = read(start_of, (high - start_of).min(64 << 20));
    let len = |start: usize, fde: usize| len_of(start, start_of, fde, &frames);
    rows.iter().filter_map(|(start, fde)| Some(*start..start + len(*start, *fde)?)).collect()
}

/// The length of the function of the FDE at `addr` in `frames`, which begin at `base`: if that has the usual encoding,
/// its start must come out right. Not those of signal frames, which begin a byte before their code.
fn len_of(start: usize, base: usize, addr: usize, frames: &[u8]) -> Option<usize> {
    let at = addr - base;
    let fde = frames.get(at..at + 16)?;
    let begin = (addr as i64 + 8 + word(fde, 8) as i64) as usize;
    let cie = (at + 4).checked_sub(word(fde, 4) as u32 as usize)?;
    let augmentation = frames.get(cie + 9..)?.iter().take(8).take_while(|b| **b != 0);
    let usual = begin == start && augmentation.into_iter().all(|b| *b != b'S');
    usual.then(|| word(fde, 12) as u32 as usize)
}

fn word(bytes: &[u8], at: usize) -> i32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(code: &[u8]) -> Vec<Found> {
        find(code, 0x1000, std::slice::from_ref(&(0x1000..0x1000 + code.len())))
    }

    #[test]
    fn a_wrapper_is_patched_at_its_number() {
        // mov eax, 62; syscall; ret
        let found = all(&[0xb8, 62, 0, 0, 0, 0x0f, 0x05, 0xc3]);
        assert_eq!(
            found,
            [Found { call: Some(Call { from: 0x1000, at: 0x1005 }), at: 0x1005, nr: Some(62) }]
        );
    }

    #[test]
    fn short_instructions_before_it_are_taken_together() {
        // test eax,eax; jne; xor eax,eax; syscall; ret
        let found = all(&[0x85, 0xc0, 0x75, 0x05, 0x31, 0xc0, 0x0f, 0x05, 0xc3]);
        assert_eq!(found, [Found { call: Some(Call { from: 0x1002, at: 0x1006 }), at: 0x1006, nr: Some(0) }]);
    }

    #[test]
    fn one_that_is_jumped_to_is_left_alone() {
        // mov eax, 60; L: syscall; jmp L
        let found = all(&[0xb8, 60, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xfc]);
        assert_eq!(found, [Found { call: None, at: 0x1005, nr: None }]);
    }

    #[test]
    fn one_behind_the_end_counts_if_execution_runs_into_it() {
        // mov eax, 56 | syscall; ret
        let clone = [0xb8, 56, 0, 0, 0, 0x0f, 0x05, 0xc3];
        assert_eq!(find(&clone, 0x1000, std::slice::from_ref(&(0x1000..0x1005))).len(), 1);
        // ret | mov eax, 56; syscall
        let after = [0xc3, 0xb8, 56, 0, 0, 0, 0x0f, 0x05];
        assert_eq!(find(&after, 0x1000, std::slice::from_ref(&(0x1000..0x1001))), []);
    }

    #[test]
    fn bytes_inside_an_instruction_are_none() {
        // mov eax, 0x050f; ret
        assert_eq!(all(&[0xb8, 0x0f, 0x05, 0, 0, 0xc3]), []);
    }
}
