//! Where a module's `syscall` instructions are. Pure: bytes in, addresses out.
//!
//! Two bytes that look like one may be data or the inside of another instruction, so only functions that the unwind
//! table names are decoded, each from its first byte. Bytes elsewhere may be one or not.
#![forbid(unsafe_code)]

use crate::arch::flow;
use crate::hook::{Call, fits_a_line, short_reaches};
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

/// What a module's code holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// The `syscall` instructions.
    pub found: Vec<Found>,
    /// Addresses of bytes that may be one, in code that no function covers.
    pub loose: Vec<usize>,
}

/// Looks through `code`, which is mapped at `addr`, with its `functions` (ascending).
pub fn find(code: &[u8], addr: usize, functions: &[Range<usize>]) -> Looked {
    let mut out = Looked::default();
    let mut padding = Padding::default();
    let mut next = 0;
    while let Some(at) = candidate(code, next) {
        next = at + 1;
        let i = functions.partition_point(|f| f.start <= addr + at);
        let function = i.checked_sub(1).map(|i| &functions[i]).filter(|f| f.start >= addr);
        let limit = functions.get(i).map_or(usize::MAX, |next| next.start);
        let bounds = function.map(|f| (f, (f.end + TAIL).min(limit).min(addr + code.len())));
        let Some((f, end)) = bounds.filter(|(_, end)| addr + at < *end) else {
            out.loose.push(addr + at);
            continue;
        };
        let body = Body::decode(&code[f.start - addr..end - addr], f);
        if body.end <= addr + at {
            out.loose.push(addr + at);
            continue;
        }
        padding.gather(code, addr, functions, i - 1);
        padding.inside(&body);
        out.found.extend(body.calls(&mut padding));
        next = body.end - addr;
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

/// A function, as far as execution gets.
struct Body {
    insns: Vec<Instruction>,
    targets: HashSet<u64>,
    /// Behind its last instruction.
    end: usize,
}

impl Body {
    fn decode(code: &[u8], function: &Range<usize>) -> Self {
        let mut insns: Vec<Instruction> = flow::decode(code, function.start as u64).collect();
        // Behind the end only what execution runs into.
        let inside = insns.partition_point(|i| (i.next_ip() as usize) < function.end);
        let stop = insns.iter().skip(inside).position(|i| !falls_through(i));
        insns.truncate(stop.map_or(insns.len(), |n| inside + n + 1).max(inside));
        let targets = insns
            .iter()
            .filter(|i| i.op0_kind() == OpKind::NearBranch64)
            .map(Instruction::near_branch_target)
            .collect();
        let end = insns.last().map_or(function.start, |i| i.next_ip() as usize);
        Self { insns, targets, end }
    }

    fn calls(&self, padding: &mut Padding) -> Vec<Found> {
        let calls = self.insns.iter().enumerate().filter(|(_, i)| i.code() == Code::Syscall);
        calls.map(|(i, insn)| found(&self.insns[..i], insn, &self.targets, padding)).collect()
    }
}

/// Bytes that nothing executes: between functions, and nops behind a jump away, inside of them.
#[derive(Default)]
struct Padding {
    free: Vec<Range<usize>>,
    /// Up to which function the gaps were gathered.
    functions: usize,
}

impl Padding {
    /// Adds the gaps behind the functions around number `i`; a 2-byte jump reaches no farther.
    fn gather(&mut self, code: &[u8], addr: usize, functions: &[Range<usize>], i: usize) {
        const AROUND: usize = 12;
        let first = i.saturating_sub(AROUND).max(self.functions);
        let last = (i + AROUND).min(functions.len().saturating_sub(1));
        for pair in functions.get(first..=last).unwrap_or_default().windows(2) {
            let gap = pair[0].end.max(addr)..pair[1].start.min(addr + code.len());
            // A function of assembly may go on behind its end, as far as it looks like more than padding.
            let bytes =
                code.get(gap.start.saturating_sub(addr)..gap.end.saturating_sub(addr)).unwrap_or_default();
            let decoded: Vec<_> = flow::decode(bytes, gap.start as u64).collect();
            let whole = decoded.last().is_some_and(|i| i.next_ip() as usize == gap.end);
            if whole && decoded.iter().all(flow::is_padding) {
                self.free.push(gap);
            }
        }
        self.functions = self.functions.max(last);
    }

    /// Adds the nops in a function that are not run into and not branched to.
    fn inside(&mut self, body: &Body) {
        for pair in body.insns.windows(2) {
            let (before, nop) = (&pair[0], &pair[1]);
            let is_nop = nop.mnemonic() == iced_x86::Mnemonic::Nop && !body.targets.contains(&nop.ip());
            if is_nop && flow::ends_flow(before) {
                self.free.push(nop.ip() as usize..nop.next_ip() as usize);
            }
        }
    }

    /// Takes room for a 5-byte jump in reach of `at`.
    fn take(&mut self, at: usize) -> Option<usize> {
        let piece = self.free.iter_mut().find(|r| r.len() >= JUMP && short_reaches(at, r.start))?;
        let pad = piece.start;
        piece.start += JUMP;
        Some(pad)
    }
}

/// `jmp rel32`.
const JUMP: usize = 5;

/// A call at a `syscall` of which nothing is known but its address: where five int3 in reach have room for the jump.
/// That many in a row are nobody's instructions.
pub fn beside_int3(code: &[u8], addr: usize, at: usize) -> Option<Call> {
    let pads = code.windows(JUMP).enumerate().filter(|(_, w)| **w == [0xcc; JUMP]).map(|(i, _)| addr + i);
    let pad = pads.filter(|pad| short_reaches(at, *pad)).max_by_key(|pad| *pad)?;
    Some(Call { from: at, at, pad: Some(pad) })
}

fn found(before: &[Instruction], insn: &Instruction, targets: &HashSet<u64>, padding: &mut Padding) -> Found {
    let at = insn.ip() as usize;
    let nr = before.last().filter(|_| !targets.contains(&insn.ip())).and_then(number);
    let call = window(before, at, targets)
        .or_else(|| padding.take(at).map(|pad| Call { from: at, at, pad: Some(pad) }));
    Found { call, at, nr }
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
            return Some(Call { from, at, pad: None });
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
    let functions = rows.iter().filter_map(|(start, fde)| {
        let (len, signal) = len(*start, *fde)?;
        Some(start + signal as usize..start + len)
    });
    functions.collect()
}

/// The length of the function of the FDE at `addr` in `frames`, which begin at `base`: if that has the usual encoding,
/// its start must come out right. And whether it is a signal frame, which begins a byte before its code.
fn len_of(start: usize, base: usize, addr: usize, frames: &[u8]) -> Option<(usize, bool)> {
    let at = addr - base;
    let fde = frames.get(at..at + 16)?;
    let begin = (addr as i64 + 8 + word(fde, 8) as i64) as usize;
    let cie = (at + 4).checked_sub(word(fde, 4) as u32 as usize)?;
    let mut augmentation = frames.get(cie + 9..)?.iter().take(8).take_while(|b| **b != 0);
    (begin == start).then(|| (word(fde, 12) as u32 as usize, augmentation.any(|b| *b == b'S')))
}

fn word(bytes: &[u8], at: usize) -> i32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(code: &[u8]) -> Vec<Found> {
        find(code, 0x1000, std::slice::from_ref(&(0x1000..0x1000 + code.len()))).found
    }

    fn call(from: usize, at: usize) -> Option<Call> {
        Some(Call { from, at, pad: None })
    }

    #[test]
    fn a_wrapper_is_patched_at_its_number() {
        // mov eax, 62; syscall; ret
        let found = all(&[0xb8, 62, 0, 0, 0, 0x0f, 0x05, 0xc3]);
        assert_eq!(found, [Found { call: call(0x1000, 0x1005), at: 0x1005, nr: Some(62) }]);
    }

    #[test]
    fn short_instructions_before_it_are_taken_together() {
        // test eax,eax; jne; xor eax,eax; syscall; ret
        let found = all(&[0x85, 0xc0, 0x75, 0x05, 0x31, 0xc0, 0x0f, 0x05, 0xc3]);
        assert_eq!(found, [Found { call: call(0x1002, 0x1006), at: 0x1006, nr: Some(0) }]);
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
        assert_eq!(find(&clone, 0x1000, std::slice::from_ref(&(0x1000..0x1005))).found.len(), 1);
        // ret | mov eax, 56; syscall
        let after = [0xc3, 0xb8, 56, 0, 0, 0, 0x0f, 0x05];
        let looked = find(&after, 0x1000, std::slice::from_ref(&(0x1000..0x1001)));
        assert_eq!((looked.found, looked.loose), (vec![], vec![0x1006]));
    }

    #[test]
    fn bytes_inside_an_instruction_are_none() {
        // mov eax, 0x050f; ret
        assert_eq!(all(&[0xb8, 0x0f, 0x05, 0, 0, 0xc3]), []);
    }
    #[test]
    fn one_without_room_borrows_padding() {
        // L: mov eax, edx; syscall; jmp L | nop9 | ret
        let mut code = vec![0x89, 0xd0, 0x0f, 0x05, 0xeb, 0xfa];
        code.extend([0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0]);
        code.push(0xc3);
        let looked = find(&code, 0x1000, &[0x1000..0x1006, 0x100f..0x1010]);
        let pad = Some(0x1006);
        assert_eq!(
            looked.found,
            [Found { call: Some(Call { from: 0x1002, at: 0x1002, pad }), at: 0x1002, nr: None }]
        );
    }

    #[test]
    fn bytes_that_are_not_padding_are_not_borrowed() {
        // L: mov eax, edx; syscall; jmp L | mov eax, 1 (assembly without unwind information) | ret
        let code = [0x89, 0xd0, 0x0f, 0x05, 0xeb, 0xfa, 0xb8, 1, 0, 0, 0, 0xc3];
        let looked = find(&code, 0x1000, &[0x1000..0x1006, 0x100b..0x100c]);
        assert_eq!(looked.found, [Found { call: None, at: 0x1002, nr: None }]);
    }

    #[test]
    fn int3_in_reach_take_the_jump_of_a_call_that_nothing_names() {
        let mut code = vec![0x0f, 0x05, 0xc3];
        code.resize(20, 0xcc);
        assert_eq!(
            beside_int3(&code, 0x1000, 0x1000),
            Some(Call { from: 0x1000, at: 0x1000, pad: Some(0x100f) })
        );
        assert_eq!(beside_int3(&code[..7], 0x1000, 0x1000), None);
    }
}
