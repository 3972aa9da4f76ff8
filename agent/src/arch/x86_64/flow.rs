//! What a function's bytes say about control flow and flags. Pure: bytes in, facts out.
#![forbid(unsafe_code)]

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, RflagsBits};
use std::collections::{BTreeSet, HashMap};

/// CF, PF, AF, ZF, SF, OF.
const STATUS: u32 =
    RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;

/// Decodes `bytes`, which start at `addr`, instruction after instruction; stops at bytes that are none.
pub fn decode(bytes: &[u8], addr: u64) -> impl Iterator<Item = Instruction> + '_ {
    let mut decoder = Decoder::with_ip(64, bytes, addr, DecoderOptions::NONE);
    std::iter::from_fn(move || {
        if !decoder.can_decode() {
            return None;
        }
        let insn = decoder.decode();
        (!insn.is_invalid()).then_some(insn)
    })
}

/// True when execution never falls through to the next instruction.
pub fn ends_flow(insn: &Instruction) -> bool {
    matches!(
        insn.flow_control(),
        FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch
    ) || matches!(insn.mnemonic(), iced_x86::Mnemonic::Ud2 | iced_x86::Mnemonic::Hlt)
}

/// A byte that only fills a gap: part of a nop, or int3.
pub fn is_padding(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), iced_x86::Mnemonic::Nop | iced_x86::Mnemonic::Int3)
}

/// True when a status flag may be read before it is written, from the first instruction on. Says true when in doubt.
pub fn status_flags_live(bytes: &[u8], addr: u64) -> bool {
    let mut unknown = STATUS;
    for insn in decode(bytes, addr) {
        if insn.rflags_read() & unknown != 0 {
            return true;
        }
        unknown &= !insn.rflags_modified();
        if unknown == 0 {
            return false;
        }
        // Past a call, jump or return someone else decides: hand-written code passes and returns flags.
        if insn.flow_control() != FlowControl::Next {
            return true;
        }
    }
    true
}

fn near_target(insn: &Instruction) -> Option<u64> {
    matches!(insn.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32 | OpKind::NearBranch16)
        .then(|| insn.near_branch_target())
}

/// Where the function that starts at `addr` branches to, as far as direct branches tell.
#[derive(Debug, Default)]
pub struct Branches {
    /// Targets of direct jumps (not calls) in the code reachable from the start.
    pub targets: BTreeSet<u64>,
    /// False when there is an indirect jump, undecodable code, or more than we read.
    pub complete: bool,
}

/// Follows the function that starts at `addr` through `bytes`, at most `limit` instructions.
pub fn branches(bytes: &[u8], addr: u64, limit: usize) -> Branches {
    let mut found = Branches { complete: true, ..Default::default() };
    let mut seen: HashMap<u64, ()> = HashMap::new();
    let mut todo = vec![addr];
    while let Some(start) = todo.pop() {
        let Some(code) = start.checked_sub(addr).and_then(|off| bytes.get(off as usize..)) else {
            found.complete = false; // outside what was read: it may come back
            continue;
        };
        let mut ended = false;
        for insn in decode(code, start) {
            if seen.insert(insn.ip(), ()).is_some() {
                ended = true;
                break;
            }
            if seen.len() > limit {
                found.complete = false;
                return found;
            }
            match insn.flow_control() {
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                    if let Some(target) = near_target(&insn) {
                        found.targets.insert(target);
                        todo.push(target);
                    } else {
                        found.complete = false;
                    }
                }
                FlowControl::IndirectBranch | FlowControl::XbeginXabortXend => found.complete = false,
                _ => {}
            }
            if ends_flow(&insn) {
                ended = true;
                break;
            }
        }
        found.complete &= ended;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_dead_before_a_full_write_and_live_before_adc() {
        assert!(!status_flags_live(&[0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10], 0x1000));
        assert!(status_flags_live(&[0x83, 0xd7, 0x00], 0x1000));
        assert!(status_flags_live(&[0x89, 0xf8, 0xc3], 0x1000), "a ret may carry flags out");
        assert!(status_flags_live(&[0xff, 0xc0, 0x72, 0x00], 0x1000), "inc leaves CF");
    }

    #[test]
    fn a_backward_branch_is_found() {
        // dec edi; jg -4; ret
        let b = branches(&[0xff, 0xcf, 0x7f, 0xfc, 0xc3], 0x1000, 100);
        assert!(b.complete && b.targets.contains(&0x1000));
    }

    #[test]
    fn an_indirect_jump_leaves_the_picture_incomplete() {
        assert!(!branches(&[0xff, 0xe0], 0x1000, 100).complete);
    }
}
