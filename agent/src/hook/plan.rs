//! Which bytes a probe may replace. Pure: bytes in, plan out.
#![forbid(unsafe_code)]

use super::near::Fixed;
use crate::arch::flow;
use iced_x86::Instruction;

/// `jmp rel32`.
pub(super) const JUMP: usize = 5;
/// `jmp rel8`.
pub(super) const SHORT: usize = 2;

/// What a 5-byte jump at the address would cover.
#[derive(Debug)]
pub(super) struct Window {
    /// The instructions it covers, the last one possibly in part.
    pub insns: Vec<Instruction>,
}

impl Window {
    /// The instructions in the first 5 bytes. `None` where the window would cover another function: past the end of
    /// this one only padding may follow.
    pub fn at(code: &[u8], addr: u64) -> Option<Self> {
        let mut insns: Vec<Instruction> = Vec::new();
        let mut ended = false;
        for insn in flow::decode(code, addr) {
            if (insn.ip() - addr) as usize >= JUMP {
                break;
            }
            if ended && !flow::is_padding(&insn) {
                return None;
            }
            ended |= flow::ends_flow(&insn);
            insns.push(insn);
        }
        (insns.last()?.next_ip() - addr >= JUMP as u64).then_some(Self { insns })
    }

    /// Offsets of the covered instructions after the first.
    pub fn boundaries(&self) -> Vec<usize> {
        let addr = self.insns[0].ip();
        self.insns.iter().skip(1).map(|i| (i.ip() - addr) as usize).collect()
    }

    /// Which displacement bytes lie on an instruction boundary.
    pub fn fixed(&self) -> Fixed {
        let b = self.boundaries();
        std::array::from_fn(|k| b.contains(&(k + 1)))
    }

    /// True when no direct branch of the function enters the window behind its start, and there is no indirect jump
    /// that could. Then the jump may replace the boundaries, once every thread was seen outside.
    pub fn never_entered(&self, code: &[u8]) -> bool {
        const LIMIT: usize = 20_000;
        let addr = self.insns[0].ip();
        let ends = self.insns.iter().any(flow::ends_flow);
        let found = flow::branches(code, addr, LIMIT);
        !ends && found.complete && found.targets.range(addr + 1..addr + JUMP as u64).next().is_none()
    }
}

/// A place for a 5-byte jump, within reach of a 2-byte one at `addr`: bytes behind an instruction that ends flow,
/// which nothing executes. `free(start)` says that nobody else uses the 5 bytes.
///
/// Runs of int3 qualify. Of nops, only a single long one that starts off a 16-byte boundary and that no branch in
/// sight names: a function may begin with a nop (patchable entries: one-byte nops, or a 5-byte one at an aligned
/// address), and its first bytes must stay whole.
pub(super) fn padding(code: &[u8], addr: u64, free: impl Fn(usize) -> bool) -> Option<usize> {
    const REACH: u64 = 127;
    const LONG: usize = 6;
    let insns: Vec<_> = flow::decode(code, addr).collect();
    let named = |at: u64| insns.iter().any(|i| i.near_branch_target() == at);
    let reachable = |at: u64| (SHORT as u64..=SHORT as u64 + REACH).contains(&(at - addr));
    let mut ended = false;
    let mut int3s = 0;
    for insn in &insns {
        int3s = if insn.mnemonic() == iced_x86::Mnemonic::Int3 { int3s + 1 } else { 0 };
        let at = if int3s >= JUMP { insn.next_ip() - JUMP as u64 } else { insn.ip() };
        let long = insn.mnemonic() == iced_x86::Mnemonic::Nop && insn.len() >= LONG && at % 16 != 0;
        if ended && (long || int3s >= JUMP) && !named(at) && reachable(at) && free(at as usize) {
            return Some(at as usize);
        }
        ended = flow::ends_flow(insn) || (ended && flow::is_padding(insn));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_stops_at_the_next_function() {
        assert!(Window::at(&[0xc3, 0x89, 0xf8, 0xc3, 0x31, 0xc0, 0xc3], 0x1000).is_none());
        let padded = Window::at(&[0xc3, 0x66, 0x90, 0x0f, 0x1f, 0x40, 0x00], 0x1000).unwrap();
        assert_eq!(padded.boundaries(), [1, 3]);
        let push = Window::at(&[0x55, 0x48, 0x89, 0xe5, 0x53, 0x90], 0x1000).unwrap();
        assert_eq!((push.boundaries(), push.fixed()), (vec![1, 4], [true, false, false, true]));
    }

    #[test]
    fn padding_is_a_long_nop_behind_a_ret_and_not_a_functions_first() {
        let nop9 = [0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];
        let code = [&[0x89, 0xf8, 0xc3][..], &nop9, &[0x90; 8]].concat();
        assert_eq!(padding(&code, 0x1004, |_| true), Some(0x1007));
        assert_eq!(padding(&code, 0x100d, |_| true), None, "a function could start at 0x1010");
        assert_eq!(padding(&code, 0x1004, |_| false), None);
        let running = [&[0x89, 0xf8][..], &nop9, &[0xc3]].concat();
        assert_eq!(padding(&running, 0x1004, |_| true), None, "execution runs into it");
    }

    #[test]
    fn a_branch_into_the_window_forbids_replacing_it() {
        // push rbx; L: dec edi; jg L; pop rbx; ret
        let looped = [0x53, 0xff, 0xcf, 0x7f, 0xfc, 0x5b, 0xc3];
        assert!(!Window::at(&looped, 0x1000).unwrap().never_entered(&looped));
        let straight = [0x53, 0xff, 0xcf, 0x89, 0xfb, 0x5b, 0xc3];
        assert!(Window::at(&straight, 0x1000).unwrap().never_entered(&straight));
    }
}
