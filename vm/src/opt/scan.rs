//! Loops that look for the first element at which something holds: comparisons of arrays, searches for a byte, ends of
//! strings. They change nothing but counters, and leave by comparing elements.

use super::loops::Counted;
use super::summary::{Id, Node, Summary, Walk};
use crate::isa::{AluOp, Cond, Op, Size};
use crate::program::Program;

/// A way out of the loop: taken when the comparison holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// An unsigned one.
    pub cond: Cond,
    pub a: Id,
    pub b: Id,
    /// Some of it is loaded only if none of the exits before it was taken: not before, because that memory need not
    /// be there.
    pub late: bool,
}

/// What such a loop does.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    pub summary: Summary,
    /// In order.
    pub exits: Vec<Exit>,
}

impl Scan {
    /// `None` for other loops.
    pub(crate) fn of(program: &Program, counted: &Counted) -> Option<Scan> {
        let (mut walk, mut exits) = (Walk::new(), vec![]);
        let mut before = None;
        for at in counted.head..counted.test {
            match program.ops()[at] {
                Op::Branch { cond, dst, src, target, .. }
                    if !(counted.head..counted.end).contains(&target) =>
                {
                    let (a, b) = (walk.regs[dst.index()], walk.operand(src));
                    exits.push((cond, a, b, before.unwrap_or(usize::MAX)));
                    before = Some(walk.nodes.len());
                }
                ref op => walk.op(op)?,
            }
        }
        let summary = walk.finish()?;
        let exits: Option<Vec<Exit>> =
            exits.into_iter().map(|(cond, a, b, before)| exit(&summary, cond, a, b, before)).collect();
        let exits = exits.filter(|exits| !exits.is_empty())?;
        let looks = summary.sums.is_empty() && summary.stores.is_empty() && summary.size != Size::Dw;
        let follows = summary.nodes.iter().all(|node| match node {
            Node::Load { addr, .. } => summary.is_pure(*addr) && summary.moves_on(*addr),
            _ => true,
        });
        (looks && follows).then_some(Scan { summary, exits })
    }
}

/// A comparison that vectors can make, if it is one. Loads from node `late` on were made behind the exit before.
fn exit(summary: &Summary, cond: Cond, a: Id, b: Id, late: Id) -> Option<Exit> {
    let (a, b) = match (cond, summary.nodes[a], summary.nodes[b]) {
        // Of two elements, as the widths show: their difference is zero where they are equal.
        (Cond::Eq | Cond::Ne, Node::Bin { op: AluOp::Sub, a, b, .. }, Node::Num(0)) => (a, b),
        _ => (a, b),
    };
    let is_unsigned = matches!(cond, Cond::Eq | Cond::Ne | Cond::Ugt | Cond::Uge | Cond::Ult | Cond::Ule);
    let mut loads = vec![];
    summary.loads(a, &mut loads);
    summary.loads(b, &mut loads);
    let fits = [a, b].into_iter().all(|id| is_exact(summary, id));
    let late = loads.iter().any(|load| *load >= late);
    (is_unsigned && fits && !loads.is_empty()).then_some(Exit { cond, a, b, late })
}

/// Whether a value is never more than an element can hold, and made of nothing but elements and constants.
fn is_exact(summary: &Summary, id: Id) -> bool {
    match summary.nodes[id] {
        Node::Load { .. } => true,
        Node::Num(n) => n <= u64::MAX >> (64 - summary.size.bits_wide()),
        Node::Bin { op: AluOp::And | AluOp::Or | AluOp::Xor, a, b, .. } => {
            is_exact(summary, a) && is_exact(summary, b)
        }
        Node::Init(_) | Node::Bin { .. } => false,
    }
}
