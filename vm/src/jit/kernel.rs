//! Many iterations of a straight-line loop at once, on vector registers: sums and other reductions over arrays, sums of
//! such sums (checksums), copies, fills and element-wise maps. Does as many whole groups as leave at least one iteration,
//! which the loop itself then does with the rest.

use super::translate::Translator;
use crate::isa::{AluOp, Operand, Reg, Size, Width};
use crate::opt::summary::{Address, Id, Node, Sum, Summary};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8X16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value};
use cranelift_frontend::Variable;

/// Bytes of a vector.
const VECTOR: u32 = 16;

fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

fn lanes(size: Size) -> Type {
    match size {
        Size::B => I8X16,
        Size::H => I16X8,
        Size::W => I32X4,
        Size::Dw => I64X2,
    }
}

fn lane_of(width: Width) -> Size {
    if width == Width::W32 { Size::W } else { Size::Dw }
}

/// What is kept while the kernel runs.
pub(super) struct Kernel<'s> {
    summary: &'s Summary,
    /// Vectors of each array per group.
    vectors: u32,
    /// The address that each load or store of a group starts at, by the node of the address.
    pub(super) pointers: Vec<(Id, Variable)>,
    /// Partial results of each sum.
    partial: Vec<Vec<Variable>>,
    /// Of each sum of sums, the sums of what those were before each group.
    before: Vec<Vec<Variable>>,
}

impl Kernel<'_> {
    pub(super) fn new(summary: &Summary, vectors: u32) -> Kernel<'_> {
        Kernel { summary, vectors, pointers: vec![], partial: vec![], before: vec![] }
    }

    fn pointer(&self, addr: Id) -> Option<Variable> {
        self.pointers.iter().find(|(id, _)| *id == addr).map(|(_, pointer)| *pointer)
    }

    /// Iterations per group, as a power of two.
    pub(super) fn shift(&self) -> u32 {
        (self.vectors * VECTOR / self.summary.size.bytes()).trailing_zeros()
    }
}

/// Whether every lane of a vector can compute this value at this size as the scalar code does.
fn fits(summary: &Summary, id: Id, lane: Size) -> bool {
    match summary.nodes[id] {
        Node::Init(_) | Node::Num(_) | Node::Load { .. } => true,
        Node::Bin { op, width, a, b } => {
            // Lower bits of these depend on lower bits only; a narrow result in a wide lane would need cutting.
            let closed = matches!(op, AluOp::Add | AluOp::Sub | AluOp::And | AluOp::Or | AluOp::Xor);
            let cut =
                width == Width::W32 && lane == Size::Dw && !matches!(op, AluOp::And | AluOp::Or | AluOp::Xor);
            closed
                && !cut
                && fits(summary, a, lane)
                && fits(summary, b, lane)
                && !negative(summary, width, lane, b)
        }
    }
}

/// Whether a narrow operation sees a constant whose upper half it would cut off.
fn negative(summary: &Summary, width: Width, lane: Size, id: Id) -> bool {
    width == Width::W32
        && lane == Size::Dw
        && !matches!(summary.nodes[id], Node::Load { .. })
        && !matches!(summary.nodes[id], Node::Num(n) if n <= u64::from(u32::MAX))
}

/// Narrow bitwise operations keep clear upper halves clear only if both sides have them.
fn starts_narrow(summary: &Summary, id: Id) -> bool {
    match summary.nodes[id] {
        Node::Bin { width: Width::W32, a, b, .. } => narrow(summary, a) && narrow(summary, b),
        Node::Bin { a, b, .. } => starts_narrow(summary, a) && starts_narrow(summary, b),
        _ => true,
    }
}

fn narrow(summary: &Summary, id: Id) -> bool {
    match summary.nodes[id] {
        Node::Load { size, .. } => size != Size::Dw,
        Node::Num(n) => n <= u64::from(u32::MAX),
        Node::Init(_) => false,
        Node::Bin { a, b, .. } => narrow(summary, a) && narrow(summary, b),
    }
}

fn is_vectorisable(summary: &Summary) -> bool {
    let sum = |sum: &Sum| {
        let lane = lane_of(sum.width);
        summary.size.bytes() <= lane.bytes()
            && fits(summary, sum.value, lane)
            && (lane == Size::W || starts_narrow(summary, sum.value))
    };
    summary.sums.iter().all(sum)
        && summary.stores.iter().all(|(_, value)| {
            fits(summary, *value, summary.size) && summary.size != Size::Dw
                || summary.size == Size::Dw
                    && fits(summary, *value, Size::Dw)
                    && starts_narrow(summary, *value)
        })
        && summary.sums.len() + summary.running.len() + summary.stores.len() <= 4
}

impl Translator<'_, '_> {
    /// Does groups of the iterations that are left, if the loop is one of those above. `back_edges` of them follow
    /// the first one.
    pub(super) fn kernel(&mut self, summary: &Summary, back_edges: Value) {
        if !is_vectorisable(summary) || self.in_cells(&summary.accesses()) {
            return;
        }
        let vectors = match summary.sums.first() {
            Some(sum) => (8 * summary.size.bytes() / lane_of(sum.width).bytes() / 2).clamp(1, 4),
            None => 2,
        };
        let mut kernel = Kernel::new(summary, vectors);
        let (start, done) = (self.b.create_block(), self.b.create_block());
        let groups = self.b.ins().ushr_imm_u(back_edges, i64::from(kernel.shift()));
        self.b.ins().brif(groups, start, &[], done, &[]);
        self.b.switch_to_block(start);
        self.point(&mut kernel);
        let apart = self.apart(&kernel);
        if let Some(apart) = apart {
            let go_on = self.b.create_block();
            self.b.ins().brif(apart, go_on, &[], done, &[]);
            self.b.switch_to_block(go_on);
        }
        self.groups(&mut kernel, groups);
        self.finish(&kernel, groups);
        self.b.ins().jump(done, &[]);
        self.b.switch_to_block(done);
    }

    /// Whether some access goes to stack that lives in variables, or where cannot be said.
    pub(super) fn in_cells(&self, accesses: &[Option<Address>]) -> bool {
        accesses.iter().any(|at| at.as_ref().is_none_or(|(regs, _)| regs.contains(&Reg::FP)))
    }

    /// The address of each access at the first iteration.
    pub(super) fn point(&mut self, kernel: &mut Kernel<'_>) {
        let summary = kernel.summary;
        let loads = summary.nodes.iter().filter_map(|node| match node {
            Node::Load { addr, .. } => Some(*addr),
            _ => None,
        });
        for addr in loads.chain(summary.stores.iter().map(|store| store.0)) {
            if kernel.pointer(addr).is_some() {
                continue;
            }
            let (regs, off) = summary.address(addr).unwrap_or_default();
            let mut value = self.b.ins().iconst(I64, off);
            for reg in regs {
                let reg = self.get(reg);
                value = self.b.ins().iadd(value, reg);
            }
            let pointer = self.b.declare_var(I64);
            self.b.def_var(pointer, value);
            kernel.pointers.push((addr, pointer));
        }
    }

    /// Whether doing a vector at a time is the same as one element at a time: what is stored is not loaded by one of
    /// the elements behind it in the vector, and stores do not overlap. `None` when nothing is stored.
    fn apart(&mut self, kernel: &Kernel<'_>) -> Option<Value> {
        let mut apart = None;
        let stores: Vec<Id> = kernel.summary.stores.iter().map(|store| store.0).collect();
        for (n, store) in stores.iter().enumerate() {
            for (other, _) in &kernel.pointers {
                let earlier_store = stores.iter().position(|id| id == other);
                if other == store || earlier_store.is_some_and(|at| at < n) {
                    continue;
                }
                let (Some(to), Some(from)) = (kernel.pointer(*store), kernel.pointer(*other)) else {
                    continue;
                };
                let (to, from) = (self.b.use_var(to), self.b.use_var(from));
                let way = self.b.ins().isub(to, from);
                let vector = i64::from(VECTOR);
                // Stores: 16 bytes or more either way. A load: 16 or more behind it, or anything before it.
                let (way, limit) = match earlier_store {
                    Some(_) => (self.b.ins().iadd_imm_s(way, vector - 1), 2 * vector - 2),
                    None => (self.b.ins().iadd_imm_s(way, -1), vector - 2),
                };
                let clear = self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, way, limit);
                apart = Some(apart.map_or(clear, |apart| self.b.ins().band(apart, clear)));
            }
        }
        apart
    }

    /// The loop over groups.
    fn groups(&mut self, kernel: &mut Kernel<'_>, groups: Value) {
        for sum in &kernel.summary.sums {
            let neutral = if sum.op == AluOp::And { 0xff } else { 0 };
            let parts = self.parts(kernel, sum.width, neutral);
            kernel.partial.push(parts);
        }
        for running in &kernel.summary.running {
            let parts = self.parts(kernel, running.width, 0);
            kernel.before.push(parts);
        }
        let (body, end) = (self.b.create_block(), self.b.create_block());
        let left = self.b.declare_var(I64);
        self.b.def_var(left, groups);
        self.b.ins().jump(body, &[]);
        self.b.switch_to_block(body);
        for vector in 0..kernel.vectors {
            self.vector(kernel, vector as i32);
        }
        for (_, pointer) in &kernel.pointers {
            let old = self.b.use_var(*pointer);
            let new = self.b.ins().iadd_imm_s(old, i64::from(kernel.vectors * VECTOR));
            self.b.def_var(*pointer, new);
        }
        let old = self.b.use_var(left);
        let new = self.b.ins().iadd_imm_s(old, -1);
        self.b.def_var(left, new);
        self.b.ins().brif(new, body, &[], end, &[]);
        self.b.switch_to_block(end);
    }

    /// Vectors that have a lane for each element of a group, all of whose bytes are `byte`.
    fn parts(&mut self, kernel: &Kernel<'_>, width: Width, byte: u8) -> Vec<Variable> {
        let lane = lane_of(width);
        let count = kernel.vectors * lane.bytes() / kernel.summary.size.bytes();
        let start = self.b.func.dfg.constants.insert(vec![byte; VECTOR as usize].into());
        let mut part = || {
            let part = self.b.declare_var(lanes(lane));
            let start = self.b.ins().vconst(lanes(lane), start);
            self.b.def_var(part, start);
            part
        };
        (0..count).map(|_| part()).collect()
    }

    /// One vector of each array.
    fn vector(&mut self, kernel: &Kernel<'_>, vector: i32) {
        let summary = kernel.summary;
        for (of, (sum, partial)) in summary.sums.iter().zip(&kernel.partial).enumerate() {
            let values = self.lanes(kernel, sum.value, lane_of(sum.width), vector);
            for (n, value) in values.iter().enumerate() {
                let at = vector as usize * values.len() + n;
                let part = partial[at];
                let old = self.b.use_var(part);
                for (_, before) in summary.running.iter().zip(&kernel.before).filter(|(r, _)| r.of == of) {
                    let all = self.b.use_var(before[at]);
                    let all = self.b.ins().iadd(all, old);
                    self.b.def_var(before[at], all);
                }
                let new = self.combine(sum.op, old, *value);
                self.b.def_var(part, new);
            }
        }
        // All that an element loads comes before what it stores.
        let values: Vec<Vec<Value>> =
            summary.stores.iter().map(|store| self.lanes(kernel, store.1, summary.size, vector)).collect();
        for ((addr, _), values) in summary.stores.iter().zip(values) {
            let Some(pointer) = kernel.pointer(*addr) else { continue };
            let pointer = self.b.use_var(pointer);
            self.b.ins().store(flags(), values[0], pointer, vector * VECTOR as i32);
        }
    }

    /// A value of the elements of one vector, at a lane size: more than one vector when lanes are wider than elements.
    pub(super) fn lanes(&mut self, kernel: &Kernel<'_>, id: Id, lane: Size, vector: i32) -> Vec<Value> {
        let summary = kernel.summary;
        let parts = (lane.bytes() / summary.size.bytes()).max(1) as usize;
        match summary.nodes[id] {
            Node::Load { size, addr } => {
                let Some(pointer) = kernel.pointer(addr) else { return vec![] };
                let pointer = self.b.use_var(pointer);
                let loaded = self.b.ins().load(lanes(size), flags(), pointer, vector * VECTOR as i32);
                self.widened(loaded, size, lane)
            }
            Node::Init(reg) => {
                let value = self.get(reg);
                vec![self.splat(value, lane); parts]
            }
            Node::Num(n) => {
                let value = self.b.ins().iconst(I64, n as i64);
                vec![self.splat(value, lane); parts]
            }
            Node::Bin { op, a, b, .. } => {
                let (a, b) = (self.lanes(kernel, a, lane, vector), self.lanes(kernel, b, lane, vector));
                a.into_iter().zip(b).map(|(a, b)| self.combine(op, a, b)).collect()
            }
        }
    }

    fn splat(&mut self, value: Value, lane: Size) -> Value {
        let value = match lane {
            Size::Dw => value,
            _ => self.b.ins().ireduce(lanes(lane).lane_type(), value),
        };
        self.b.ins().splat(lanes(lane), value)
    }

    /// Zero-extends lanes until they are wide enough.
    fn widened(&mut self, value: Value, from: Size, to: Size) -> Vec<Value> {
        if from.bytes() >= to.bytes() {
            return vec![value];
        }
        let (low, high) = (self.b.ins().uwiden_low(value), self.b.ins().uwiden_high(value));
        let wider = Size::from_width(2 * from.bits_wide()).unwrap_or(to);
        [low, high].into_iter().flat_map(|half| self.widened(half, wider, to)).collect()
    }

    fn combine(&mut self, op: AluOp, a: Value, b: Value) -> Value {
        match op {
            AluOp::Add => self.b.ins().iadd(a, b),
            AluOp::Sub => self.b.ins().isub(a, b),
            AluOp::And => self.b.ins().band(a, b),
            AluOp::Or => self.b.ins().bor(a, b),
            _ => self.b.ins().bxor(a, b),
        }
    }

    /// Adds to a sum of sums what it gets from the groups, while the sum that it is of still is what it was before them.
    ///
    /// Of `n` iterations from `a` on, with the elements `x`, the sums that are added are `a + x0`, `a + x0 + x1`, ...: all
    /// in all `n a + n x0 + (n - 1) x1 + ...`. So an element of a group counts once for itself and once for each that
    /// comes behind it in the group, which is the same in each group, and as often as a group has elements for each group
    /// behind. If the sum is added before the element is, each counts once less.
    fn finish_running(&mut self, kernel: &Kernel<'_>, n: usize, groups: Value) {
        let running = kernel.summary.running[n];
        let group = 1i64 << kernel.shift();
        let done = self.b.ins().imul_imm_s(groups, group);
        let sum = self.operand(running.width, Operand::Reg(kernel.summary.sums[running.of].reg));
        let done = if running.width == Width::W32 { self.b.ins().ireduce(I32, done) } else { done };
        let mut value = self.operand(running.width, Operand::Reg(running.reg));
        let start = self.b.ins().imul(sum, done);
        value = self.b.ins().iadd(value, start);
        let mut counts = group - i64::from(!running.updated);
        for (part, before) in kernel.partial[running.of].iter().zip(&kernel.before[n]) {
            let (part, before) = (self.b.use_var(*part), self.b.use_var(*before));
            for lane in 0..(VECTOR / lane_of(running.width).bytes()) as u8 {
                let own = self.b.ins().extractlane(part, lane);
                let own = self.b.ins().imul_imm_s(own, counts);
                let earlier = self.b.ins().extractlane(before, lane);
                let earlier = self.b.ins().imul_imm_s(earlier, group);
                let both = self.b.ins().iadd(own, earlier);
                value = self.b.ins().iadd(value, both);
                counts -= 1;
            }
        }
        self.set_width(running.width, running.reg, value);
    }

    /// Adds what the groups gave to the registers, and moves the counters.
    fn finish(&mut self, kernel: &Kernel<'_>, groups: Value) {
        (0..kernel.summary.running.len()).for_each(|n| self.finish_running(kernel, n, groups));
        for (sum, partial) in kernel.summary.sums.iter().zip(&kernel.partial) {
            let mut parts: Vec<Value> = partial.iter().map(|part| self.b.use_var(*part)).collect();
            while let [a, b, ..] = parts[..] {
                let both = self.combine(sum.op, a, b);
                parts.drain(..2);
                parts.push(both);
            }
            let lanes = (VECTOR / lane_of(sum.width).bytes()) as u8;
            let mut value = self.operand(sum.width, Operand::Reg(sum.reg));
            for lane in 0..lanes {
                let part = self.b.ins().extractlane(parts[0], lane);
                value = self.combine(sum.op, value, part);
            }
            self.set_width(sum.width, sum.reg, value);
        }
        let done = self.b.ins().ishl_imm_u(groups, i64::from(kernel.shift()));
        self.move_counters(kernel.summary, done);
    }

    /// Moves the counters on by this many iterations.
    pub(super) fn move_counters(&mut self, summary: &Summary, done: Value) {
        for counter in &summary.counters {
            let way = self.b.ins().imul_imm_s(done, counter.by);
            let old = self.get(counter.reg);
            let new = self.b.ins().iadd(old, way);
            let new = match counter.width {
                Width::W64 => new,
                Width::W32 => self.b.ins().ireduce(I32, new),
            };
            self.set_width(counter.width, counter.reg, new);
        }
    }
}
