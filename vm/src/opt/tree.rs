//! Trees of comparisons of one register with constants: what BPF compilers make of a switch, having no jump
//! tables. A tree is turned inside out, into the ranges of values that lead to each of its leaves.

use crate::isa::{AluOp, Cond, Const, Op, Operand, Reg, Width};
use crate::program::Program;

/// Comparisons that the way to a leaf must have on average to be worth an indirect jump, which is harder to guess
/// than each of them.
const DEEP: usize = 6;
/// Comparisons that are looked at.
const MOST: usize = 256;
/// Moves between comparisons that one path may have.
const MOVES: usize = 4;
/// Jumps back that one path may have.
const BACK: u32 = 2;

/// Where a range of values leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Slots of the moves on the way, in order.
    pub moves: Vec<usize>,
    /// Jumps back on the way. Each takes fuel.
    pub back: u32,
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
    /// The way to a leaf has so many comparisons that an indirect jump costs less.
    pub is_deep: bool,
}

type Span = (u64, u64);

impl Tree {
    /// The tree whose root is the branch at this slot. In a counted loop it does not go beyond the loop's test, nor
    /// back.
    pub(crate) fn at(program: &Program, at: usize, test: Option<usize>) -> Option<Tree> {
        let Op::Branch { width, dst: reg, src: Operand::Imm(_), .. } = program.ops()[at] else { return None };
        let mut walk = Walk { program, reg, width, test, branches: vec![], leaves: vec![], depths: 0 };
        let most = if width == Width::W32 { u64::from(u32::MAX) } else { u64::MAX };
        walk.node(Path { entry: at, moves: vec![], back: 0 }, vec![(0, most)], 0)?;
        let is_deep = walk.depths >= DEEP * walk.leaves.len();
        walk.leaves.sort_by_key(|(start, _)| *start);
        walk.leaves.dedup_by(|later, earlier| later.1 == earlier.1);
        Some(Tree { reg, width, ranges: walk.leaves, branches: walk.branches, is_deep })
    }

    /// The constants that one register gets on each way, if the tree does nothing else before all ways meet again.
    pub(crate) fn choice(&self, program: &Program, test: Option<usize>) -> Option<Choice> {
        let ways: Vec<Vec<Leaf>> = self.ranges.iter().map(|(_, leaf)| stops(program, leaf, test)).collect();
        ways.first()?.iter().find_map(|meeting| {
            let here = |way: &Vec<Leaf>| {
                let leaf =
                    way.iter().find(|leaf| (leaf.target, leaf.back) == (meeting.target, meeting.back))?;
                moved(program, &leaf.moves)
            };
            let moved: Vec<(Reg, u64)> = ways.iter().map(here).collect::<Option<_>>()?;
            let reg = moved.first()?.0;
            let values = moved.iter().map(|(_, value)| *value).collect();
            let one = moved.iter().all(|(other, _)| *other == reg);
            one.then_some(Choice { reg, values, back: meeting.back, target: meeting.target })
        })
    }
}

/// A tree that only chooses a constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The register that gets it.
    pub reg: Reg,
    /// By range of the tree.
    pub values: Vec<u64>,
    /// Jumps back that each way takes.
    pub back: u32,
    /// Slot to go on at.
    pub target: usize,
}

/// The constant that an op moves into a register.
fn constant(program: &Program, at: usize) -> Option<(Reg, u64)> {
    match program.ops()[at] {
        Op::Alu { op: AluOp::Mov, width: Width::W64, dst, src: Operand::Imm(imm) } => {
            Some((dst, i64::from(imm) as u64))
        }
        Op::Alu { op: AluOp::Mov, width: Width::W32, dst, src: Operand::Imm(imm) } => {
            Some((dst, u64::from(imm as u32)))
        }
        Op::LoadConst { dst, value: Const::Number(number) } => Some((dst, number)),
        _ => None,
    }
}

/// The one register that moves of constants write, and what they leave in it.
fn moved(program: &Program, moves: &[usize]) -> Option<(Reg, u64)> {
    let moves: Vec<(Reg, u64)> = moves.iter().map(|at| constant(program, *at)).collect::<Option<_>>()?;
    moves.last().copied().filter(|(last, _)| moves.iter().all(|(reg, _)| reg == last))
}

/// The slots behind a leaf that others may jump to as well, as leaves, for as long as there are only moves of constants
/// and jumps.
fn stops(program: &Program, leaf: &Leaf, test: Option<usize>) -> Vec<Leaf> {
    let (mut at, mut moves, mut back) = (leaf.target, leaf.moves.clone(), leaf.back);
    let mut stops = vec![leaf.clone()];
    while program.is_reachable(at) && Some(at) != test && moves.len() <= MOVES {
        match program.ops()[at] {
            Op::Jump { target } if target > at => at = target,
            Op::Jump { target } if test.is_none() && back < BACK => (at, back) = (target, back + 1),
            op if constant(program, at).is_some() => {
                moves.push(at);
                at += op.slots();
            }
            _ => break,
        }
        if program.is_target(at) {
            stops.push(Leaf { moves: moves.clone(), back, target: at });
        }
    }
    stops
}

/// Where the walk along a path is.
#[derive(Clone)]
struct Path {
    entry: usize,
    moves: Vec<usize>,
    back: u32,
}

struct Walk<'a> {
    program: &'a Program,
    reg: Reg,
    width: Width,
    test: Option<usize>,
    branches: Vec<usize>,
    leaves: Vec<(u64, Leaf)>,
    /// Sum of the leaves' depths.
    depths: usize,
}

impl Walk<'_> {
    /// Sorts the values that arrive at a slot. `None` when the tree is too large.
    fn node(&mut self, path: Path, values: Vec<Span>, depth: usize) -> Option<()> {
        if values.is_empty() {
            return Some(());
        }
        let Some((branch, inner)) = self.next_branch(&path) else {
            let Path { entry, moves, back } = path;
            let leaf = Leaf { moves, back, target: entry };
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
        let back = inner.back + u32::from(target <= branch);
        let taken = Path { entry: target, moves: inner.moves.clone(), back };
        self.node(taken, intersect(&values, &holds), depth + 1)?;
        let next = Path { entry: branch + 1, ..inner };
        self.node(next, intersect(&values, &complement(&holds, self.width)), depth + 1)
    }

    /// The comparison of our register that a path leads to by moves and jumps only, and the path to it.
    fn next_branch(&self, path: &Path) -> Option<(usize, Path)> {
        let (mut at, mut path) = (path.entry, path.clone());
        loop {
            let goes_on = path.moves.len() <= MOVES && path.back <= BACK && Some(at) != self.test;
            if !self.program.is_reachable(at) || !goes_on {
                return None;
            }
            match self.program.ops()[at] {
                Op::Branch { cond, width, dst, src: Operand::Imm(imm), target }
                    if dst == self.reg
                        && width == self.width
                        && (target > at || (self.test.is_none() && path.back < BACK)) =>
                {
                    return spans(cond, width, imm).map(|_| (at, path));
                }
                Op::Alu { op: AluOp::Mov, dst, .. } if dst != self.reg => {
                    path.moves.push(at);
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
