//! Trees of comparisons of one register with constants: what BPF compilers make of a switch, having no jump
//! tables. A tree is turned inside out, into the ranges of values that lead to each of its leaves.

use crate::isa::{AluOp, Cond, Op, Operand, Reg, Width};
use crate::program::Program;

/// Comparisons that the way to a leaf must have on average to be worth an indirect jump, which is harder to guess
/// than each of them.
const DEEP: usize = 6;
/// Comparisons that are looked at.
const MOST: usize = 256;
/// Moves between comparisons that one path may have.
const MOVES: usize = 4;

/// Where a range of values leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Slots of the moves on the way, in order.
    pub moves: Vec<usize>,
    /// Slot to go on at.
    pub target: usize,
}

/// All values of a register at a width, cut into ranges.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub reg: Reg,
    pub width: Width,
    /// First value of each range and its leaf, ascending; the first one begins at 0.
    pub ranges: Vec<(u64, Leaf)>,
    /// Slots of its branches.
    pub branches: Vec<usize>,
}

type Span = (u64, u64);

impl Tree {
    /// The tree whose root is the branch at this slot.
    pub(crate) fn at(program: &Program, at: usize) -> Option<Tree> {
        let Op::Branch { width, dst: reg, src: Operand::Imm(_), .. } = program.ops()[at] else { return None };
        let mut walk = Walk { program, reg, width, branches: vec![], leaves: vec![], depths: 0 };
        let most = if width == Width::W32 { u64::from(u32::MAX) } else { u64::MAX };
        walk.node(at, vec![(0, most)], &[], 0)?;
        if walk.depths < DEEP * walk.leaves.len() {
            return None;
        }
        walk.leaves.sort_by_key(|(start, _)| *start);
        walk.leaves.dedup_by(|later, earlier| later.1 == earlier.1);
        Some(Tree { reg, width, ranges: walk.leaves, branches: walk.branches })
    }
}

struct Walk<'a> {
    program: &'a Program,
    reg: Reg,
    width: Width,
    branches: Vec<usize>,
    leaves: Vec<(u64, Leaf)>,
    /// Sum of the leaves' depths.
    depths: usize,
}

impl Walk<'_> {
    /// Sorts the values that arrive at a slot. `None` when the tree is too large.
    fn node(&mut self, entry: usize, values: Vec<Span>, moves: &[usize], depth: usize) -> Option<()> {
        if values.is_empty() {
            return Some(());
        }
        let Some((branch, inner)) = self.next_branch(entry, moves) else {
            let leaf = Leaf { moves: moves.to_vec(), target: entry };
            self.depths += depth * values.len();
            self.leaves.extend(values.iter().map(|(start, _)| (*start, leaf.clone())));
            return Some(());
        };
        self.branches.push(branch);
        let Op::Branch { cond, src: Operand::Imm(imm), target, .. } = self.program.ops()[branch] else {
            return None;
        };
        if self.branches.len() > MOST {
            return None;
        }
        let holds = spans(cond, self.width, imm)?;
        self.node(target, intersect(&values, &holds), &inner, depth + 1)?;
        self.node(branch + 1, intersect(&values, &complement(&holds, self.width)), &inner, depth + 1)
    }

    /// The comparison of our register that a slot leads to by moves and forward jumps only, and all moves so far.
    fn next_branch(&self, entry: usize, moves: &[usize]) -> Option<(usize, Vec<usize>)> {
        let (mut at, mut moves) = (entry, moves.to_vec());
        loop {
            if !self.program.is_reachable(at) || moves.len() > MOVES {
                return None;
            }
            match self.program.ops()[at] {
                Op::Branch { cond, width, dst, src: Operand::Imm(imm), target }
                    if dst == self.reg && width == self.width && target > at =>
                {
                    return spans(cond, width, imm).map(|_| (at, moves));
                }
                Op::Alu { op: AluOp::Mov, dst, .. } if dst != self.reg => {
                    moves.push(at);
                    at += 1;
                }
                Op::Jump { target } if target > at => at = target,
                _ => return None,
            }
        }
    }
}

/// The values for which a condition holds, as unsigned ranges. `None` for bit tests.
fn spans(cond: Cond, width: Width, imm: i32) -> Option<Vec<Span>> {
    let (most, sign) = match width {
        Width::W32 => (u64::from(u32::MAX), 1 << 31),
        Width::W64 => (u64::MAX, 1 << 63),
    };
    let c = i64::from(imm) as u64 & most;
    // Signed order is unsigned order with the sign bit turned over.
    let signed = |spans: Vec<Span>| -> Vec<Span> {
        let halves = [(0, sign - 1), (sign, most)];
        let cut = intersect(&spans, &halves);
        cut.into_iter().map(|(lo, hi)| (lo ^ sign, hi ^ sign)).collect()
    };
    let above = |c: u64| if c == most { vec![] } else { vec![(c + 1, most)] };
    let below = |c: u64| if c == 0 { vec![] } else { vec![(0, c - 1)] };
    Some(match cond {
        Cond::Eq => vec![(c, c)],
        Cond::Ne => complement(&[(c, c)], width),
        Cond::Ugt => above(c),
        Cond::Uge => vec![(c, most)],
        Cond::Ult => below(c),
        Cond::Ule => vec![(0, c)],
        Cond::Sgt => signed(above(c ^ sign)),
        Cond::Sge => signed(vec![(c ^ sign, most)]),
        Cond::Slt => signed(below(c ^ sign)),
        Cond::Sle => signed(vec![(0, c ^ sign)]),
        Cond::Set => return None,
    })
}

fn intersect(a: &[Span], b: &[Span]) -> Vec<Span> {
    let pairs = a.iter().flat_map(|x| b.iter().map(move |y| (x.0.max(y.0), x.1.min(y.1))));
    pairs.filter(|(lo, hi)| lo <= hi).collect()
}

fn complement(spans: &[Span], width: Width) -> Vec<Span> {
    let most = if width == Width::W32 { u64::from(u32::MAX) } else { u64::MAX };
    let mut sorted = spans.to_vec();
    sorted.sort_unstable();
    let (mut rest, mut next) = (vec![], Some(0));
    for (lo, hi) in sorted {
        if let Some(start) = next
            && start < lo
        {
            rest.push((start, lo - 1));
        }
        next = if hi == most { None } else { Some(hi + 1) };
    }
    rest.extend(next.map(|start| (start, most)));
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alu;

    #[test]
    fn ranges_of_a_condition_hold_exactly_where_it_does() {
        let points = [0, 1, 2, 4, 5, 6, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_fffe, 0xffff_ffff];
        for width in Width::ALL {
            for cond in Cond::ALL.iter().filter(|cond| **cond != Cond::Set) {
                for imm in [0, 1, 5, -1, -5, i32::MAX, i32::MIN] {
                    let spans = spans(*cond, width, imm).unwrap();
                    let rest = complement(&spans, width);
                    for x in points.into_iter().chain(points.map(|x| x | !0xffff_ffff)) {
                        let x = if width == Width::W32 { x & 0xffff_ffff } else { x };
                        let inside = |spans: &[Span]| spans.iter().any(|s| s.0 <= x && x <= s.1);
                        let holds = alu::holds(*cond, width, x, i64::from(imm) as u64);
                        assert_eq!((inside(&spans), inside(&rest)), (holds, !holds), "{x:#x} {cond:?} {imm}");
                    }
                }
            }
        }
    }
}
