//! An interpreter that checks every access: memory is a list of regions, an address outside of them (or in
//! one that is gone) is an error. What the verifier accepts must never be one.

use super::env::World;
use super::generate::Random;
use bpftime_vm::MapIdx;
use bpftime_vm::alu;
use bpftime_vm::isa::{AtomicOp, Callee, Const, Op, Operand, Reg};
use bpftime_vm::verify::{Moment, Place, Recorded, Region as Proved, Verified};

/// Regions lie this far apart.
const STEP: u64 = 1 << 32;
const FUNC: u64 = 0xf0 << 56;
const MAP: u64 = 0xe0 << 56;

struct Region {
    bytes: Vec<u8>,
    live: bool,
    writable: bool,
    place: Place,
    /// Of a stack: bytes that were written, or that the verifier says must be cleared.
    written: Option<Vec<bool>>,
}

pub struct Machine<'a> {
    program: &'a Verified,
    world: &'a World,
    regions: Vec<Region>,
    /// Region of each map's direct value.
    values: Vec<usize>,
    random: Random,
    fuel: usize,
    records: usize,
    /// Stacks, outermost first.
    stacks: Vec<usize>,
    /// The states that were walked; a run's must be among them.
    recorded: Option<&'a Recorded>,
}

type Run<T> = Result<T, String>;

/// Why a run stopped early without harm.
pub const OUT_OF_FUEL: &str = "out of fuel";
/// Another one: a mangled program may call any helper.
pub const NO_HELPER: &str = "the machine has no such helper";

impl<'a> Machine<'a> {
    pub fn new(program: &'a Verified, world: &'a World, seed: u64) -> Machine<'a> {
        let mut machine = Machine {
            program,
            world,
            regions: vec![],
            values: vec![],
            random: Random::new(seed),
            fuel: 20_000,
            records: 0,
            stacks: vec![],
            recorded: None,
        };
        for (n, map) in world.maps.iter().enumerate() {
            let mut bytes = map.contents.clone();
            if bytes.is_empty() {
                bytes = (0..map.facts.value_size).map(|_| machine.random.next() as u8).collect();
            }
            let place = Place::MapValue(MapIdx(n as u32));
            let region = machine.region(bytes, map.facts.flags & (1 << 7) == 0, place);
            machine.values.push(region);
        }
        machine
    }

    /// Checks each state of the run against those of the walk.
    pub fn among(mut self, recorded: &'a Recorded) -> Machine<'a> {
        self.recorded = Some(recorded);
        self
    }

    fn region(&mut self, bytes: Vec<u8>, writable: bool, place: Place) -> usize {
        self.regions.push(Region { bytes, live: true, writable, place, written: None });
        self.regions.len() - 1
    }

    fn address(region: usize) -> u64 {
        (region as u64 + 1) * STEP
    }

    pub fn run(&mut self) -> Run<u64> {
        let ctx: Vec<u8> = (0..168).map(|_| self.random.next() as u8).collect();
        let ctx = self.region(ctx, false, Place::Ctx);
        let result = self.call(0, [Self::address(ctx), 0, 0, 0, 0])?;
        if self.records != 0 {
            return Err("a record leaked".into());
        }
        Ok(result)
    }

    fn call(&mut self, func: usize, args: [u64; 5]) -> Run<u64> {
        let stack = self.region(vec![0; 512], true, Place::Stack(self.stacks.len()));
        self.stacks.push(stack);
        let cleared = self.program.unwritten(func);
        self.regions[stack].written = Some((-512..0).map(|off| cleared.contains(off)).collect());
        let mut regs = [0xdead_0000_0000_0000u64; Reg::COUNT];
        regs[1..=5].copy_from_slice(&args);
        regs[10] = Self::address(stack) + 512;
        // The proved depth holds whatever pointer is used.
        let reserve = u64::from(self.program.funcs()[func].stack.reserve);
        let mut at = self.program.funcs()[func].start;
        loop {
            self.fuel = self.fuel.checked_sub(1).ok_or(OUT_OF_FUEL)?;
            if !self.program.is_reachable(at) {
                return Err(format!("{at} is dead code"));
            }
            let op = self.program.ops()[at];
            let mut next = at + op.slots();
            self.as_proved(at, &op, &regs)?;
            self.among_recorded(at, &regs)?;
            let step = self.step(&op, &mut regs, &mut next);
            self.outcome_as_proved(at, &op, &regs, next)?;
            if let Some(result) =
                step.map_err(|e| if e == OUT_OF_FUEL || e == NO_HELPER { e } else { format!("{at}: {e}") })?
            {
                let region = &mut self.regions[stack];
                region.live = false;
                self.stacks.pop();
                if region.bytes[..512 - reserve as usize].iter().any(|b| *b != 0) {
                    return Err(format!("stack below {reserve} bytes was written"));
                }
                return Ok(result);
            }
            at = next;
        }
    }

    /// Whether this moment is a member of a state that was walked.
    fn among_recorded(&self, at: usize, regs: &[u64; Reg::COUNT]) -> Run<()> {
        let Some(recorded) = self.recorded else { return Ok(()) };
        if recorded.holds(at, &Now { machine: self, regs }) {
            return Ok(());
        }
        Err(format!("{at}: {regs:x?} is in none of\n{}", recorded.describe(at)))
    }

    /// Whether an access is where the verifier says that all of them are.
    fn as_proved(&self, at: usize, op: &Op, regs: &[u64; Reg::COUNT]) -> Run<()> {
        let (base, off, size) = match *op {
            Op::Load { base, off, size, .. }
            | Op::Store { base, off, size, .. }
            | Op::Atomic { base, off, size, .. } => (base, off, size),
            _ => return Ok(()),
        };
        let Some(proved) = self.program.access(at) else { return Err(format!("{at}: nothing was proved")) };
        let addr = regs[base.index()].wrapping_add_signed(i64::from(off));
        let top = if proved.region == Proved::Stack { 512 } else { 0 };
        let (start, end) = ((addr % STEP) as i64 - top, (addr % STEP) as i64 - top + i64::from(size.bytes()));
        if proved.region != Proved::Several && (start < proved.min || end > proved.max) {
            return Err(format!("{at}: {start} to {end} is not inside of {proved:?}"));
        }
        if !addr.is_multiple_of(u64::from(proved.align)) {
            return Err(format!("{at}: {addr:#x} is not aligned as {proved:?}"));
        }
        if self.program.held(at).is_none_or(|most| self.records > most as usize) {
            return Err(format!("{at}: {} records are held", self.records));
        }
        Ok(())
    }

    /// Whether a load gave, and a branch did, what the verifier says that it always does.
    fn outcome_as_proved(&self, at: usize, op: &Op, regs: &[u64; Reg::COUNT], next: usize) -> Run<()> {
        match *op {
            Op::Load { dst, .. } if self.program.known(at).is_some_and(|x| x != regs[dst.index()]) => {
                Err(format!("{at}: loaded {:#x}, not {:?}", regs[dst.index()], self.program.known(at)))
            }
            Op::Branch { target, .. } if target != at + 1 => {
                let wrong = self.program.outcome(at).is_some_and(|taken| taken != (next == target));
                if wrong { Err(format!("{at}: a dead side of a branch is taken")) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn step(&mut self, op: &Op, regs: &mut [u64; Reg::COUNT], next: &mut usize) -> Run<Option<u64>> {
        let get = |r: Reg, regs: &[u64; Reg::COUNT]| regs[r.index()];
        let value = |o: Operand, regs: &[u64; Reg::COUNT]| match o {
            Operand::Reg(r) => regs[r.index()],
            Operand::Imm(i) => i64::from(i) as u64,
        };
        match *op {
            Op::Alu { op, width, dst, src } => {
                regs[dst.index()] = alu::alu(op, width, get(dst, regs), value(src, regs));
            }
            Op::Neg { width, dst } => regs[dst.index()] = alu::neg(width, get(dst, regs)),
            Op::MovSx { width, from, dst, src } => {
                regs[dst.index()] = alu::movsx(width, from, get(src, regs))
            }
            Op::Swap { op, size, dst } => regs[dst.index()] = alu::swap(op, size, get(dst, regs)),
            Op::LoadConst { dst, value } => {
                regs[dst.index()] = match value {
                    Const::Number(x) => x,
                    Const::Map(map) => MAP + u64::from(map.0),
                    Const::MapValue(map, off) => Self::address(self.values[map.0 as usize]) + u64::from(off),
                    Const::Func(f) => FUNC + u64::from(f),
                }
            }
            Op::Load { size, signed, dst, base, off } => {
                let addr = get(base, regs).wrapping_add_signed(i64::from(off));
                let x = self.load(addr, size.bytes() as usize)?;
                regs[dst.index()] = if signed { alu::sign_extend(size, x) } else { x };
            }
            Op::Store { size, base, off, src } => {
                let addr = get(base, regs).wrapping_add_signed(i64::from(off));
                self.store(addr, size.bytes() as usize, value(src, regs))?;
            }
            Op::Atomic { op, fetch, size, base, off, src } => {
                let addr = get(base, regs).wrapping_add_signed(i64::from(off));
                let (bytes, x) = (size.bytes() as usize, get(src, regs));
                let old = self.load(addr, bytes)?;
                let new = match op {
                    AtomicOp::Add => old.wrapping_add(x),
                    AtomicOp::Or => old | x,
                    AtomicOp::And => old & x,
                    AtomicOp::Xor => old ^ x,
                    AtomicOp::Xchg => x,
                    AtomicOp::Cmpxchg if old == alu::zero_extend(size, regs[0]) => x,
                    AtomicOp::Cmpxchg => old,
                };
                self.store(addr, bytes, new)?;
                if fetch {
                    regs[if op == AtomicOp::Cmpxchg { 0 } else { src.index() }] = old;
                }
            }
            Op::Jump { target } => *next = target,
            Op::Branch { cond, width, dst, src, target } => {
                if alu::holds(cond, width, get(dst, regs), value(src, regs)) {
                    *next = target;
                }
            }
            Op::Call(callee) => {
                let args = [regs[1], regs[2], regs[3], regs[4], regs[5]];
                regs[0] = match callee {
                    Callee::Helper(id) => self.helper(id, args)?,
                    Callee::Func(f) => self.call(f as usize, args)?,
                    Callee::Poisoned(..) => return Err("poisoned call".into()),
                };
                regs[1..=5].fill(0xdead_0000_0000_0000);
            }
            Op::Exit => return Ok(Some(regs[0])),
            Op::Second => {}
        }
        Ok(None)
    }

    fn bytes(&mut self, addr: u64, len: usize, write: bool) -> Run<&mut [u8]> {
        let bad = || format!("bad access at {addr:#x}, {len} bytes, write {write}");
        let region = (addr / STEP).checked_sub(1).ok_or_else(bad)? as usize;
        let region =
            self.regions.get_mut(region).filter(|r| r.live && (r.writable || !write)).ok_or_else(bad)?;
        let start = (addr % STEP) as usize;
        if let Some(written) = region.written.as_mut().and_then(|w| w.get_mut(start..start + len)) {
            if !write && written.contains(&false) {
                return Err(format!("stack at {addr:#x} is read, {len} bytes, before it was written"));
            }
            written.fill(true);
        }
        region.bytes.get_mut(start..start + len).ok_or_else(bad)
    }

    /// Whether bytes may be written, without writing them.
    fn room(&mut self, addr: u64, len: usize) -> Run<()> {
        let at = (addr / STEP).checked_sub(1).map(|n| n as usize);
        let written = at.and_then(|at| self.regions.get(at)).and_then(|r| r.written.clone());
        self.bytes(addr, len, true)?;
        if let (Some(at), Some(written)) = (at, written) {
            self.regions[at].written = Some(written);
        }
        Ok(())
    }

    fn load(&mut self, addr: u64, len: usize) -> Run<u64> {
        Ok(self.bytes(addr, len, false)?.iter().rev().fold(0, |x, b| x << 8 | u64::from(*b)))
    }

    fn store(&mut self, addr: u64, len: usize, x: u64) -> Run<()> {
        self.bytes(addr, len, true)?.copy_from_slice(&x.to_le_bytes()[..len]);
        Ok(())
    }

    fn helper(&mut self, id: u32, args: [u64; 5]) -> Run<u64> {
        let map = || usize::try_from(args[0].wrapping_sub(MAP)).ok().filter(|m| *m < self.world.maps.len());
        match id {
            1 => {
                let map = map().ok_or("no map")?;
                let facts = self.world.maps[map].facts;
                self.bytes(args[1], facts.key_size as usize, false)?;
                if self.random.one_in(3) {
                    return Ok(0);
                }
                Ok(Self::address(self.values[map]))
            }
            7 => Ok(match self.random.below(3) {
                0 => self.random.below(100) as u64,
                1 => self.random.next() as u32 as u64,
                _ => self.random.next() >> self.random.below(64),
            }),
            16 | 113 | 115 => {
                if args[1] > 1 << 29 {
                    return Err("a helper got a negative size".into());
                }
                let byte = self.random.next() as u8;
                let len = args[1] as usize;
                self.room(args[0], len)?;
                // A string may be shorter than its buffer; nothing is written behind it.
                let len = if id == 115 && len > 0 { 1 + self.random.below(len) } else { len };
                self.bytes(args[0], len, true)?.fill(byte);
                Ok(args[1])
            }
            131 => {
                if self.random.one_in(4) {
                    return Ok(0);
                }
                self.records += 1;
                let region = self.region(vec![7; args[1] as usize], true, Place::Record);
                Ok(Self::address(region))
            }
            132 | 133 => {
                self.bytes(args[0], 1, true)?;
                if !args[0].is_multiple_of(STEP) {
                    return Err("the middle of a record is given up".into());
                }
                self.records -= 1;
                self.regions[(args[0] / STEP) as usize - 1].live = false;
                Ok(0xdead)
            }
            181 => {
                for n in 0..args[0].min(50) {
                    if self.call((args[1] - FUNC) as usize, [n, args[2], 0, 0, 0])? != 0 {
                        break;
                    }
                }
                Ok(0)
            }
            _ => Err(NO_HELPER.into()),
        }
    }
}

/// The machine between two instructions.
struct Now<'a, 'b> {
    machine: &'a Machine<'b>,
    regs: &'a [u64; Reg::COUNT],
}

impl Moment for Now<'_, '_> {
    fn frames(&self) -> usize {
        self.machine.stacks.len()
    }
    fn reg(&self, reg: usize) -> u64 {
        self.regs[reg]
    }
    fn stack(&self, off: i64) -> u8 {
        let stack = self.machine.stacks[self.machine.stacks.len() - 1];
        self.machine.regions[stack].bytes[(512 + off) as usize]
    }
    fn address(&self, x: u64) -> Option<(Place, i64)> {
        if x & 0xff << 56 == MAP {
            return Some((Place::Map(MapIdx(x as u32)), 0));
        }
        if x & 0xff << 56 == FUNC {
            return Some((Place::Func(x as u32), 0));
        }
        // An address may be outside of its region as long as nothing is accessed there.
        let region = (x + STEP / 2) / STEP;
        let place = self.machine.regions.get((region as usize).checked_sub(1)?)?.place;
        let off = x.wrapping_sub(region * STEP) as i64;
        Some((place, if matches!(place, Place::Stack(_)) { off - 512 } else { off }))
    }
}
