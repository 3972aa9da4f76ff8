//! The walk over all paths: depth first, one state per path, the taken side of a branch kept for later.

use super::error::{Check, Errno, Fail, Refusal};
use super::facts::{Access, Loaded, Proved};
use super::live::Liveness;
use super::log::{Log, Stats};
use super::need::Needs;
use super::num::Scalar;
use super::prune::Checkpoint;
use super::record::Recorded;
use super::state::{Frame, State};
use super::value::{Kind, Val};
use super::{MapFacts, VerifyEnv};
use crate::disasm;
use crate::isa::{MapIdx, Op, Reg};
use crate::program::Program;
use bpftime_abi::helper;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// `BPF_COMPLEXITY_LIMIT_INSNS`.
const MAX_PROCESSED: usize = 1_000_000;
/// `BPF_COMPLEXITY_LIMIT_JMP_SEQ`.
const MAX_PENDING: usize = 8192;
/// No load may block its caller longer than this.
const MAX_TIME: Duration = Duration::from_secs(2);

/// Walks after which every number counts as mattering where it could.
const ROUNDS: usize = 3;

/// Where a path goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// At this slot.
    At(usize),
    /// Nowhere: the program returned.
    Done,
}

/// A path that is yet to be walked.
struct Pending {
    state: State,
    at: usize,
    from: usize,
    /// What of the trail leads to it. Later paths only replace what is behind that: the last path that was
    /// put aside is the first one that is taken up.
    jumps: usize,
    steps: usize,
    /// The log's end.
    log: u64,
}

/// The way that the current path took: where it did not go straight on.
#[derive(Default)]
struct Trail {
    /// After how many steps, and to where.
    jumps: Vec<(usize, usize)>,
    steps: usize,
}

/// Steps of a refused path that are told.
const TOLD: usize = 4096;

impl Trail {
    /// The last steps' slots.
    fn slots(&self, program: &Program) -> Vec<usize> {
        let (mut at, mut slots) = (0, std::collections::VecDeque::new());
        let mut jumps = self.jumps.iter().peekable();
        for step in 1..=self.steps {
            if slots.len() == TOLD {
                slots.pop_front();
            }
            slots.push_back(at);
            at += program.ops().get(at).map_or(1, Op::slots);
            while let Some((_, to)) = jumps.next_if(|(after, _)| *after <= step) {
                at = *to;
            }
        }
        slots.into()
    }
}

/// A walk.
pub(super) struct Verifier<'a> {
    pub program: &'a Program,
    pub env: &'a dyn VerifyEnv,
    pub log: &'a mut Log,
    pub live: Liveness,
    pub need: Needs,
    /// Slots where a number decided a comparison or moved an address.
    decisive: Vec<bool>,
    /// Whether one was found that `need` does not know of.
    outdated: bool,
    /// Whether a path was cut short because some numbers do not matter.
    pub lenient: bool,
    /// States seen at a slot.
    pub checkpoints: Vec<Vec<Checkpoint>>,
    /// Checkpoints on the current path, outermost first: slot, number, and how many paths were pending
    /// when it was made. Once fewer are left, all that follows from it has been walked.
    pub open: Vec<(usize, u64, usize)>,
    pending: Vec<Pending>,
    trail: Trail,
    /// States with which callbacks were entered, by slot of the helper's call.
    pub entries: Vec<Vec<State>>,
    pub stats: Stats,
    pub proved: Proved,
    /// Every state of the walk, if a test asked for them.
    states: Option<Vec<Vec<State>>>,
    last_id: u32,
    started: Instant,
}

impl<'a> Verifier<'a> {
    pub fn new(program: &'a Program, env: &'a dyn VerifyEnv, log: &'a mut Log) -> Verifier<'a> {
        let slots = program.ops().len();
        let sizes = |map: MapIdx| {
            let facts = env.map(map);
            (facts.key_size, facts.value_size)
        };
        let live = Liveness::of(program, &sizes);
        let decisive = vec![false; slots];
        Verifier {
            program,
            env,
            log,
            need: Needs::of(program, &live, &decisive),
            live,
            decisive,
            outdated: false,
            lenient: false,
            checkpoints: (0..slots).map(|_| Vec::new()).collect(),
            open: Vec::new(),
            pending: Vec::new(),
            trail: Trail::default(),
            entries: (0..slots).map(|_| Vec::new()).collect(),
            stats: Stats::default(),
            proved: Proved::new(program),
            states: None,
            last_id: 0,
            started: Instant::now(),
        }
    }

    /// Walks every path; again if a number turned out to matter after a path was cut short because it did
    /// not seem to. A refusal stands in any case: cutting paths short adds no states.
    pub fn run(&mut self) -> Result<(), Refusal> {
        self.all_reachable()?;
        self.may_sleep()?;
        self.may_name_maps()?;
        for round in 1.. {
            self.walk()?;
            if !(self.outdated && self.lenient) {
                break;
            }
            if round == ROUNDS {
                self.decisive.fill(true);
            }
            self.begin_again();
        }
        self.stack_fits()
    }

    fn begin_again(&mut self) {
        self.need = Needs::of(self.program, &self.live, &self.decisive);
        (self.outdated, self.lenient) = (false, false);
        self.checkpoints.iter_mut().for_each(Vec::clear);
        self.entries.iter_mut().for_each(Vec::clear);
        self.states.iter_mut().flatten().for_each(Vec::clear);
        self.open.clear();
        self.stats = Stats::default();
    }

    /// Keeps all states from now on.
    pub fn record(&mut self) {
        self.states = Some(vec![Vec::new(); self.program.ops().len()]);
    }

    /// What was proved, and the states that were kept.
    pub fn recorded(self) -> (Proved, Recorded) {
        let states = self.states.unwrap_or_default();
        // With all that was found to decide something, not only what the last walk began with.
        let need = Needs::of(self.program, &self.live, &self.decisive);
        (self.proved, Recorded { states, live: self.live, need })
    }

    /// A number decides something here.
    pub fn decides(&mut self, at: usize) {
        self.outdated |= !self.decisive[at];
        self.decisive[at] = true;
    }

    fn walk(&mut self) -> Result<(), Refusal> {
        let mut frame = Frame::new(0, 0, 0);
        frame.regs[1] = Val::pointer(Kind::Ctx);
        let state = State { frames: vec![Rc::new(frame)], references: Vec::new() };
        self.pending.push(Pending { state, at: 0, from: 0, jumps: 0, steps: 0, log: 0 });
        while let Some(path) = self.pending.pop() {
            self.close(self.pending.len() + 1);
            self.path(path)?;
        }
        Ok(())
    }

    /// Code that no jump leads to is a mistake of who made the program.
    fn all_reachable(&self) -> Result<(), Refusal> {
        let lost = (0..self.program.ops().len()).find(|at| !self.program.is_reachable(*at));
        match lost {
            Some(insn) => Err(Refusal::of_program(Errno::Invalid, insn, format!("unreachable insn {insn}"))),
            None => Ok(()),
        }
    }

    /// Writes the reason and the statistics, and hands out what was proved.
    pub fn finish(self, verdict: &Result<(), Refusal>) -> Proved {
        if let Err(refusal) = verdict {
            self.log.reason(&refusal.reason);
        } else {
            self.log.rewind(0);
        }
        self.log.finish(&self.stats, self.started.elapsed(), &self.proved.stack);
        self.proved
    }

    /// Checkpoints whose pending paths have all been walked are complete.
    fn close(&mut self, pending: usize) {
        while let Some((slot, number, depth)) = self.open.last().copied() {
            if depth < pending {
                break;
            }
            self.open.pop();
            if let Some(checkpoint) = self.checkpoints[slot].iter_mut().find(|c| c.number == number) {
                checkpoint.complete = true;
            }
        }
    }

    fn path(&mut self, path: Pending) -> Result<(), Refusal> {
        let Pending { mut state, mut at, from, jumps, steps, log } = path;
        self.log.rewind(log);
        self.trail.jumps.truncate(jumps);
        self.trail.jumps.push((steps, at));
        self.trail.steps = steps;
        if self.log.wants_insns() {
            let regs = show(&state, None);
            let line =
                if at == 0 { format!("{at}: {regs}") } else { format!("\nfrom {from} to {at}: {regs}") };
            self.log.line(&line);
        }
        loop {
            self.trail.steps += 1;
            match self.worth_walking(&mut state, at) {
                Ok(true) => {}
                Ok(false) => {
                    self.log.line(&format!("{at}: safe"));
                    return Ok(());
                }
                Err(fail) => return Err(self.refusal(fail, at, &state)),
            }
            self.budget().map_err(|fail| self.refusal(fail, at, &state))?;
            self.proved.live[at] = true;
            if let Some(states) = &mut self.states {
                Recorded::keep(states, at, &state);
            }
            self.proved.held[at] = self.proved.held[at].max(state.references.len() as u32);
            let (before, pending) = (self.log.wants_insns().then(|| state.clone()), self.pending.len());
            let next = self.step(&mut state, at);
            self.show_insn(at, before, next.is_ok().then_some(&state));
            // The instruction is on the way to what it put aside.
            let end = self.log.end();
            self.pending.iter_mut().skip(pending).for_each(|path| path.log = end);
            let next = match next {
                Ok(next) => next,
                Err(fail) => return Err(self.refusal(fail, at, &state)),
            };
            match next {
                Next::At(next) => {
                    if next != at + self.program.ops()[at].slots() {
                        self.trail.jumps.push((self.trail.steps, next));
                    }
                    at = next;
                }
                Next::Done => return Ok(()),
            }
        }
    }

    /// What the caller is told. `state` is as far as the instruction got.
    fn refusal(&self, Fail { errno, reason }: Fail, at: usize, state: &State) -> Refusal {
        let path = self.trail.slots(self.program);
        Refusal { errno, insn: at, reason, path, state: show(state, None) }
    }

    fn budget(&mut self) -> Check {
        self.stats.processed += 1;
        let too_big = |reason| Err(Fail { errno: Errno::TooBig, reason });
        if self.stats.processed > MAX_PROCESSED {
            return too_big(format!("BPF program is too large. Processed {} insn", self.stats.processed));
        }
        if self.stats.processed.is_multiple_of(1024) && self.started.elapsed() > MAX_TIME {
            let seconds = MAX_TIME.as_secs();
            return too_big(format!(
                "BPF program is too complex. Processed {} insn in {seconds} s",
                self.stats.processed
            ));
        }
        Ok(())
    }

    /// An instruction and, if it was accepted, what it changed.
    fn show_insn(&mut self, at: usize, before: Option<State>, after: Option<&State>) {
        let Some(before) = before else { return };
        let text = disasm::line_with(self.program.insns(), at, &helper::full_name);
        let same_frame = |after: &&State| before.frames.len() == after.frames.len();
        let change = after.map(|after| show(after, Some(&before).filter(|_| same_frame(&after))));
        self.log.insn(&format!("{at}: {text}"), &change.unwrap_or_default());
    }

    /// Judges one instruction and applies it.
    fn step(&mut self, state: &mut State, at: usize) -> Check<Next> {
        let op = self.program.ops()[at];
        match op {
            Op::Alu { .. } => self.alu(state, at, op)?,
            Op::Neg { width, dst } => self.neg(state, width, dst)?,
            Op::MovSx { width, from, dst, src } => self.movsx(state, width, from, dst, src)?,
            Op::Swap { op, size, dst } => self.swap(state, op, size, dst)?,
            Op::LoadConst { dst, value } => self.load_const(state, dst, value),
            Op::Load { .. } => self.load(state, at, op)?,
            Op::Store { .. } => self.store(state, at, op)?,
            Op::Atomic { .. } => self.atomic(state, at, op)?,
            Op::Jump { target } => return Ok(Next::At(target)),
            Op::Branch { .. } => return self.branch(state, at, op),
            Op::Call(callee) => return self.call(state, at, callee),
            Op::Exit => return self.exit(state, at),
            Op::Second => {}
        }
        Ok(Next::At(at + op.slots()))
    }

    /// Keeps a path for later.
    pub fn postpone(&mut self, state: State, at: usize, from: usize) -> Check {
        if self.pending.len() >= MAX_PENDING {
            let reason = format!("The sequence of {} jumps is too complex.", MAX_PENDING + 1);
            return Err(Fail { errno: Errno::Fault, reason });
        }
        let jumps = self.trail.jumps.len();
        let (steps, log) = (self.trail.steps, self.log.end());
        self.pending.push(Pending { state, at, from, jumps, steps, log });
        Ok(())
    }

    /// Paths pending now.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// An id that no value has.
    pub fn fresh_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    pub fn map(&self, map: MapIdx) -> MapFacts {
        self.env.map(map)
    }

    /// A register that may be read.
    pub fn read(&self, state: &State, reg: Reg) -> Check<Val> {
        let val = *state.reg(reg);
        if val.kind == Kind::NotInit {
            return super::error::access(format!("R{} !read_ok", reg.index()));
        }
        Ok(val)
    }

    /// Remembers what an instruction accesses.
    pub fn prove(&mut self, at: usize, access: Access) {
        let old = &mut self.proved.accesses[at];
        *old = Some(old.map_or(access, |old| old.join(access)));
    }

    /// Remembers what a load gives: always this, if it does so each time.
    pub fn prove_loaded(&mut self, at: usize, known: Option<u64>) {
        let old = &mut self.proved.loaded[at];
        *old = match (known, *old) {
            (Some(x), Loaded::Never) => Loaded::Known(x),
            (Some(x), Loaded::Known(y)) if x == y => Loaded::Known(x),
            _ => Loaded::Varies,
        };
    }
}

/// Registers and stack as the kernel's log shows them, all or those that changed.
pub(super) fn show(state: &State, before: Option<&State>) -> String {
    let frame = state.frame();
    let old = before.map(State::frame);
    let mut parts = vec![];
    for (n, val) in frame.regs.iter().enumerate() {
        let same = old.is_some_and(|old| old.regs[n] == *val);
        if val.kind != Kind::NotInit && !same {
            parts.push(format!("R{n}={val}"));
        }
    }
    for (n, slot) in frame.stack.iter().enumerate() {
        let same = old.is_some_and(|old| old.slot(n) == slot);
        if same || *slot == super::state::Slot::INVALID {
            continue;
        }
        let text = match slot.whole() {
            Some(val) => val.to_string(),
            None => slot.bytes.iter().rev().map(|b| b.letter()).collect(),
        };
        parts.push(format!("fp-{}={text}", (n + 1) * super::state::SLOT));
    }
    let refs: Vec<_> = state.references.iter().map(|r| r.id.to_string()).collect();
    if !refs.is_empty() && before.is_none_or(|old| old.references != state.references) {
        parts.push(format!("refs={}", refs.join(",")));
    }
    parts.join(" ")
}

/// Any number that a load of this many bits gives.
pub(super) fn loaded(bits: u32, signed: bool) -> Scalar {
    match (bits, signed) {
        (64, _) => Scalar::UNKNOWN,
        (_, true) => Scalar::between_signed(-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        _ => Scalar::of_width(bits),
    }
}
