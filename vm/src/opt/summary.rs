//! What one iteration of a straight-line loop does, as expressions over the registers at its start: which registers
//! count, which collect a sum, what is loaded and stored where. The basis of doing many iterations together.

use super::loops::Counted;
use crate::isa::{AluOp, Const, Op, Operand, Reg, Size, Width};
use crate::program::Program;

/// Index of a node.
pub(crate) type Id = usize;
/// The registers whose sum an address is, and what is added.
pub(crate) type Address = (Vec<Reg>, i64);

/// An expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// A register at the start of the iteration.
    Init(Reg),
    Num(u64),
    /// Zero-extended.
    Load {
        size: Size,
        addr: Id,
    },
    Bin {
        op: AluOp,
        width: Width,
        a: Id,
        b: Id,
    },
}

/// A register that collects: `reg = reg op value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sum {
    pub reg: Reg,
    /// Add, Xor, Or or And.
    pub op: AluOp,
    pub width: Width,
    pub value: Id,
}

/// A register that collects what another sum is at each iteration, `reg = reg + sum`: the second half of a Fletcher checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub reg: Reg,
    /// Of both.
    pub width: Width,
    /// Index of the sum.
    pub of: usize,
    /// Whether the sum has its value of this iteration already.
    pub updated: bool,
}

/// A register that moves by a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counter {
    pub reg: Reg,
    pub width: Width,
    pub by: i64,
}

/// What a register does over the iterations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Fixed,
    Counts(Counter),
    Sums(Sum),
    /// Is computed anew each time.
    Temporary,
}

/// One iteration.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub nodes: Vec<Node>,
    pub sums: Vec<Sum>,
    /// Sums of those.
    pub running: Vec<Running>,
    /// Address and value, in order.
    pub stores: Vec<(Id, Id)>,
    pub counters: Vec<Counter>,
    /// The registers that stay the same.
    fixed: Vec<Reg>,
    /// Size of all loads and stores.
    pub size: Size,
}

impl Summary {
    /// `None` when the loop does something that cannot be done to many elements at once: branches, calls, values
    /// that depend on those of the iteration before, accesses that do not follow each other in memory.
    pub(crate) fn of(program: &Program, counted: &Counted) -> Option<Summary> {
        let mut walk = Walk::new();
        for at in counted.head..counted.test {
            walk.op(&program.ops()[at])?;
        }
        walk.summary()
    }

    /// Where every load and store goes; `None` for what is not that simple.
    pub(crate) fn accesses(&self) -> Vec<Option<Address>> {
        let loads = self.nodes.iter().filter_map(|node| match node {
            Node::Load { addr, .. } => Some(*addr),
            _ => None,
        });
        loads.chain(self.stores.iter().map(|store| store.0)).map(|addr| self.address(addr)).collect()
    }

    /// What an address is made of, if it is that simple.
    pub(crate) fn address(&self, id: Id) -> Option<Address> {
        match self.nodes[id] {
            Node::Init(reg) => Some((vec![reg], 0)),
            Node::Num(n) => Some((vec![], n as i64)),
            Node::Bin { op: AluOp::Add, width: Width::W64, a, b } => {
                let ((mut regs, x), (more, y)) = (self.address(a)?, self.address(b)?);
                regs.extend(more);
                Some((regs, x.wrapping_add(y)))
            }
            _ => None,
        }
    }

    /// Every load that a value is made of.
    pub(crate) fn loads(&self, id: Id, into: &mut Vec<Id>) {
        match self.nodes[id] {
            Node::Load { .. } if !into.contains(&id) => into.push(id),
            Node::Bin { a, b, .. } => {
                self.loads(a, into);
                self.loads(b, into);
            }
            _ => {}
        }
    }
}

/// One iteration as far as it has been looked at.
pub(super) struct Walk {
    pub(super) nodes: Vec<Node>,
    pub(super) regs: [Id; Reg::COUNT],
    stores: Vec<(Id, Id)>,
    size: Option<Size>,
}

impl Walk {
    pub(super) fn new() -> Walk {
        let nodes = (0..Reg::COUNT as u8).filter_map(Reg::new).map(Node::Init).collect();
        Walk { nodes, regs: std::array::from_fn(|reg| reg), stores: vec![], size: None }
    }

    fn add(&mut self, node: Node) -> Id {
        // Equal expressions are one node; loops are short.
        self.nodes.iter().position(|old| *old == node).unwrap_or_else(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        })
    }

    pub(super) fn operand(&mut self, src: Operand) -> Id {
        match src {
            Operand::Reg(reg) => self.regs[reg.index()],
            Operand::Imm(imm) => self.add(Node::Num(i64::from(imm) as u64)),
        }
    }

    fn place(&mut self, base: Reg, off: i16) -> Id {
        let base = self.regs[base.index()];
        if off == 0 {
            return base;
        }
        let off = self.add(Node::Num(i64::from(off) as u64));
        self.add(Node::Bin { op: AluOp::Add, width: Width::W64, a: base, b: off })
    }

    /// Whether the upper half of a register is clear because it was loaded or computed so.
    fn is_narrow(&self, src: Operand) -> bool {
        let Operand::Reg(reg) = src else { return false };
        match self.nodes[self.regs[reg.index()]] {
            Node::Load { size, .. } => size != Size::Dw,
            Node::Bin { width, .. } => width == Width::W32,
            Node::Init(_) | Node::Num(_) => false,
        }
    }

    /// All accesses have one size.
    fn access(&mut self, size: Size) -> Option<()> {
        (*self.size.get_or_insert(size) == size).then_some(())
    }

    pub(super) fn op(&mut self, op: &Op) -> Option<()> {
        match *op {
            Op::Alu { op: AluOp::Mov, width, dst, src } if width == Width::W64 || self.is_narrow(src) => {
                self.regs[dst.index()] = self.operand(src);
            }
            Op::Alu { op, width, dst, src } => {
                let (a, b) = (self.regs[dst.index()], self.operand(src));
                self.regs[dst.index()] = self.add(Node::Bin { op, width, a, b });
            }
            Op::LoadConst { dst, value: Const::Number(n) } => self.regs[dst.index()] = self.add(Node::Num(n)),
            Op::Second => {}
            // A load behind a store might read what was stored.
            Op::Load { size, signed: false, dst, base, off } if self.stores.is_empty() => {
                self.access(size)?;
                let addr = self.place(base, off);
                self.regs[dst.index()] = self.add(Node::Load { size, addr });
            }
            Op::Store { size, base, off, src } => {
                self.access(size)?;
                let (addr, value) = (self.place(base, off), self.operand(src));
                self.stores.push((addr, value));
            }
            _ => return None,
        }
        Some(())
    }

    fn role(&self, reg: Reg) -> Role {
        let (old, new) = (reg.index(), self.regs[reg.index()]);
        match self.nodes[new] {
            _ if old == new => Role::Fixed,
            Node::Bin { op, width, a, b } if a == old || (b == old && op != AluOp::Sub) => {
                let value = if a == old { b } else { a };
                match (op, self.nodes[value]) {
                    (AluOp::Add, Node::Num(n)) => Role::Counts(Counter { reg, width, by: n as i64 }),
                    (AluOp::Sub, Node::Num(n)) => {
                        Role::Counts(Counter { reg, width, by: (n as i64).wrapping_neg() })
                    }
                    (AluOp::Add | AluOp::Xor | AluOp::Or | AluOp::And, _) => {
                        Role::Sums(Sum { reg, op, width, value })
                    }
                    _ => Role::Temporary,
                }
            }
            _ => Role::Temporary,
        }
    }

    /// What was seen, if every register is one that is known at the start of each iteration, or is computed anew
    /// in it from such ones.
    pub(super) fn finish(self) -> Option<Summary> {
        let size = self.size?;
        let regs: Vec<Reg> = (0..10).filter_map(Reg::new).collect();
        let roles: Vec<Role> = regs.iter().map(|reg| self.role(*reg)).collect();
        let (mut sums, mut counters) = (vec![], vec![]);
        for role in &roles {
            match role {
                Role::Sums(sum) => sums.push(*sum),
                Role::Counts(counter) => counters.push(*counter),
                Role::Fixed | Role::Temporary => {}
            }
        }
        let fixed = roles.iter().zip(&regs).filter(|(role, _)| **role == Role::Fixed);
        let fixed = fixed.map(|(_, reg)| *reg).collect();
        let (nodes, stores, running) = (self.nodes, self.stores, vec![]);
        let summary = Summary { nodes, sums, running, stores, counters, fixed, size };
        let is_known = |reg: &Reg| *reg == Reg::FP || roles.get(reg.index()) != Some(&Role::Temporary);
        // Temporaries are computed by the last iteration, from what the others leave.
        let known = regs.iter().all(|reg| summary.inits(self.regs[reg.index()]).iter().all(is_known));
        known.then_some(summary)
    }

    fn summary(self) -> Option<Summary> {
        let after = self.regs;
        let mut summary = self.finish()?;
        summary.set_running_aside(after)?;
        let values =
            summary.sums.iter().map(|sum| sum.value).chain(summary.stores.iter().flat_map(|s| [s.0, s.1]));
        let pure = values.collect::<Vec<_>>().into_iter().all(|id| summary.is_pure(id));
        let one_kind = summary.sums.is_empty() != summary.stores.is_empty();
        (pure && one_kind && summary.follows()).then_some(summary)
    }
}

impl Summary {
    /// Takes the sums of sums out of the sums; `None` when one depends on others in another way. `after` is what registers
    /// are at the end of the iteration.
    fn set_running_aside(&mut self, after: [Id; Reg::COUNT]) -> Option<()> {
        let (pure, others): (Vec<Sum>, Vec<Sum>) =
            self.sums.iter().copied().partition(|sum| self.is_pure(sum.value));
        let running = |other: &Sum| {
            let (of, updated) = pure.iter().enumerate().find_map(|(n, sum)| {
                let updated = other.value == after[sum.reg.index()];
                (updated || self.nodes[other.value] == Node::Init(sum.reg)).then_some((n, updated))
            })?;
            let adds = pure[of].op == AluOp::Add && other.op == AluOp::Add && pure[of].width == other.width;
            adds.then_some(Running { reg: other.reg, width: other.width, of, updated })
        };
        self.running = others.iter().map(running).collect::<Option<_>>()?;
        self.sums = pure;
        Some(())
    }

    /// Whether an expression depends on nothing but what is known before the loop begins, and memory.
    pub(super) fn is_pure(&self, id: Id) -> bool {
        let is_known = |reg: &Reg| {
            *reg == Reg::FP || self.fixed.contains(reg) || self.counters.iter().any(|c| c.reg == *reg)
        };
        self.inits(id).iter().all(is_known)
    }

    /// The registers at the start of the iteration that an expression depends on.
    fn inits(&self, id: Id) -> Vec<Reg> {
        match self.nodes[id] {
            Node::Init(reg) => vec![reg],
            Node::Num(_) => vec![],
            Node::Load { addr, .. } => self.inits(addr),
            Node::Bin { a, b, .. } => [self.inits(a), self.inits(b)].concat(),
        }
    }

    /// Whether the next iteration uses the element behind this one.
    pub(super) fn moves_on(&self, addr: Id) -> bool {
        // One that is narrow may wrap around.
        let wide = |reg: &Reg| self.counters.iter().find(|c| c.reg == *reg && c.width == Width::W64);
        let step = |reg: &Reg| wide(reg).map_or(0, |counter| counter.by);
        self.address(addr).is_some_and(|(regs, _)| {
            regs.iter().map(step).fold(0i64, i64::wrapping_add) == i64::from(self.size.bytes())
        })
    }

    /// Whether each access is followed by the one of the next iteration in memory, and counters are used for
    /// nothing else.
    fn follows(&self) -> bool {
        let mut loads = vec![];
        self.sums.iter().for_each(|sum| self.loads(sum.value, &mut loads));
        self.stores.iter().for_each(|(_, value)| self.loads(*value, &mut loads));
        let addresses = loads.iter().filter_map(|load| match self.nodes[*load] {
            Node::Load { addr, .. } => Some(addr),
            _ => None,
        });
        let values = self.sums.iter().map(|sum| sum.value).chain(self.stores.iter().map(|store| store.1));
        addresses.chain(self.stores.iter().map(|store| store.0)).all(|addr| self.moves_on(addr))
            && values.into_iter().all(|id| !self.counts(id))
    }

    /// Whether a value depends on a counter other than through an address.
    pub(super) fn counts(&self, id: Id) -> bool {
        match self.nodes[id] {
            Node::Init(reg) => self.counters.iter().any(|counter| counter.reg == reg),
            Node::Num(_) | Node::Load { .. } => false,
            Node::Bin { a, b, .. } => self.counts(a) || self.counts(b),
        }
    }
}
