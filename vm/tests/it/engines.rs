//! Runs a program on interpreter and compiler with the same helpers, maps and memory, and insists that
//! they agree on r0, memory and running out of fuel.

use bpftime_vm::asm::assemble;
use bpftime_vm::exec::Code;
use bpftime_vm::interp::{self, Callback};
use bpftime_vm::isa::TAIL_CALL;
use bpftime_vm::verify::Verified;
use bpftime_vm::{
    BpfFn, DecodeOptions, Dialect, Host, Image, Insn, LoadEnv, LoadError, MapIdx, Options, Program, Resolve,
    RunHeader, Trap, compile, decode_with,
};

pub const FUEL: i64 = 1 << 20;

/// Maps have fds from here, this many values' bytes and this handle.
pub const FIRST_FD: i32 = 3;
pub const VALUE_LEN: usize = 64;
pub const MAP_HANDLE: u64 = 0x1111_0000_0000;

/// Helper ids of the tests.
pub const SUM: u32 = 1;
pub const SUM_BYTES: u32 = 2;
pub const FIRST: u32 = 5;
pub const LOOP: u32 = 181;
pub const KNOWN: [u32; 5] = [SUM, SUM_BYTES, FIRST, TAIL_CALL, LOOP];

pub struct Env;

impl LoadEnv for Env {
    fn map_by_fd(&mut self, fd: i32) -> Option<MapIdx> {
        (FIRST_FD..FIRST_FD + 2).contains(&fd).then_some(MapIdx((fd - FIRST_FD) as u32))
    }
    fn map_by_index(&mut self, idx: i32) -> Option<MapIdx> {
        self.map_by_fd(idx.checked_add(FIRST_FD)?)
    }
    fn map_value_len(&self, map: MapIdx) -> Option<u32> {
        (map == MapIdx(0)).then_some(VALUE_LEN as u32)
    }
    fn helper_exists(&self, id: u32) -> bool {
        KNOWN.contains(&id)
    }
    fn helper_name(&self, id: u32) -> Option<&'static str> {
        (id == 160).then_some("bpf_ktime_get_coarse_ns")
    }
}

pub fn load(source: &str) -> Result<Program, LoadError> {
    load_insns(&assemble(source).unwrap_or_else(|e| panic!("{e}")))
}

/// With RFC 9669's immediates, as the tests want to reach those edges.
pub fn load_insns(insns: &[Insn]) -> Result<Program, LoadError> {
    decode_with(insns, &mut Env, DecodeOptions { dialect: Dialect::Rfc9669, ..DecodeOptions::default() })
}

/// A program of these tests, as the compiler takes it.
pub fn trusted(program: Program) -> Verified {
    // SAFETY: test programs stay inside of the memory they are given.
    unsafe { Verified::unchecked(program) }
}

/// Maps of one engine.
struct World {
    value: Vec<u8>,
}

impl World {
    fn value_addr(&self) -> u64 {
        self.value.as_ptr().expose_provenance() as u64
    }
}

fn sum(args: [u64; 5]) -> u64 {
    args.iter().fold(0, |sum, arg| sum.wrapping_add(*arg))
}

/// Sum of the `len` bytes at `addr`.
fn sum_bytes(addr: u64, len: u64) -> u64 {
    // SAFETY: the tests pass their own stack or memory.
    let bytes = unsafe {
        std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(addr as usize), len as usize)
    };
    bytes.iter().map(|b| u64::from(*b)).sum()
}

/// What the tail call helper finds at index 0: a program that returns its context's first byte plus 1000.
extern "C" fn tail_target(ctx: u64, r2: u64, r3: u64, r4: u64, r5: u64, _: *mut RunHeader) -> u64 {
    assert_eq!([r2, r3, r4, r5], [0; 4], "a tail call passes the context only");
    sum_bytes(ctx, 1) + 1000
}

impl Host for World {
    fn helper(&self, id: u32, args: [u64; 5], call: &mut Callback<'_>) -> Result<u64, Trap> {
        match id {
            SUM => Ok(sum(args)),
            SUM_BYTES => Ok(sum_bytes(args[0], args[1])),
            FIRST => Ok(args[0]),
            TAIL_CALL => Ok(u64::from(args[2] == 0)),
            LOOP => {
                for i in 0..args[0] {
                    if call(args[1], [i, args[2], 0, 0, 0])? != 0 {
                        return Ok(i + 1);
                    }
                }
                Ok(args[0])
            }
            _ => Err(Trap::NoHelper(id)),
        }
    }
    fn map(&self, map: MapIdx) -> u64 {
        MAP_HANDLE + u64::from(map.0)
    }
    fn map_value(&self, _map: MapIdx) -> u64 {
        self.value_addr()
    }
    fn tail_call(&self, _target: u64, ctx: u64) -> Result<u64, Trap> {
        Ok(sum_bytes(ctx, 1) + 1000)
    }
}

extern "C" fn native_sum(r1: u64, r2: u64, r3: u64, r4: u64, r5: u64, _: *mut RunHeader) -> u64 {
    sum([r1, r2, r3, r4, r5])
}

extern "C" fn native_sum_bytes(r1: u64, r2: u64, _: u64, _: u64, _: u64, _: *mut RunHeader) -> u64 {
    sum_bytes(r1, r2)
}

extern "C" fn native_first(r1: u64, _: u64, _: u64, _: u64, _: u64, _: *mut RunHeader) -> u64 {
    r1
}

extern "C" fn native_tail_call(_: u64, _: u64, index: u64, _: u64, _: u64, _: *mut RunHeader) -> u64 {
    if index == 0 { tail_target as *const () as u64 } else { 0 }
}

extern "C" fn native_loop(n: u64, func: u64, ctx: u64, _: u64, _: u64, run: *mut RunHeader) -> u64 {
    // SAFETY: the program passed the address of one of its functions.
    let func = unsafe { std::mem::transmute::<usize, BpfFn>(func as usize) };
    for i in 0..n {
        // SAFETY: the run we were given, and nobody else's.
        unsafe { (*run).fuel -= 1 };
        // SAFETY: as above.
        if unsafe { (*run).fuel } < 0 {
            return 0;
        }
        // SAFETY: a function of the running program, called as the contract says.
        if unsafe { func(i, ctx, 0, 0, 0, run) } != 0 {
            return i + 1;
        }
    }
    n
}

impl Resolve for World {
    fn map(&self, map: MapIdx) -> Option<u64> {
        Some(Host::map(self, map))
    }
    fn map_value(&self, _map: MapIdx) -> Option<u64> {
        Some(self.value_addr())
    }
    fn helper(&self, id: u32) -> Option<u64> {
        let helper: BpfFn = match id {
            SUM => native_sum,
            SUM_BYTES => native_sum_bytes,
            FIRST => native_first,
            TAIL_CALL => native_tail_call,
            LOOP => native_loop,
            _ => return None,
        };
        Some(helper as usize as u64)
    }
}

/// For programs that need neither maps nor helpers.
pub struct Nothing;

impl Resolve for Nothing {
    fn map(&self, _: MapIdx) -> Option<u64> {
        None
    }
    fn map_value(&self, _: MapIdx) -> Option<u64> {
        None
    }
    fn helper(&self, _: u32) -> Option<u64> {
        None
    }
}

/// What a run leaves behind. `r0` is `None` when it was cut short.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub r0: Option<u64>,
    pub memory: Vec<u8>,
    pub value: Vec<u8>,
}

/// A program ready to run on both engines.
pub struct Engines {
    program: Verified,
    world: World,
    code: Code,
    pub image: Image,
}

impl Engines {
    pub fn new(program: Program) -> Engines {
        let program = trusted(program);
        let image = compile(&program, &Options::default()).unwrap();
        let world = World { value: vec![0; VALUE_LEN] };
        // Through bytes, as it travels to a target.
        let image = Image::parse(&image.to_bytes()).unwrap();
        let code = Code::link(image.borrow(), &world).unwrap();
        Engines { program, world, code, image }
    }

    pub fn assemble(source: &str) -> Engines {
        Engines::new(load(source).unwrap_or_else(|e| panic!("{source}: {} at {}", e, e.insn)))
    }

    /// r1 = memory, r2 = its length. Both engines, same result.
    pub fn run(&mut self, memory: &[u8]) -> Outcome {
        self.run_with_fuel(memory, FUEL)
    }

    pub fn run_with_fuel(&mut self, memory: &[u8], fuel: i64) -> Outcome {
        let interpreted = self.outcome(memory, |program, world, _, args| {
            // SAFETY: test programs stay inside of the memory they are given.
            unsafe { interp::run(program, args, world, fuel as u64) }.ok()
        });
        let compiled = self.outcome(memory, |_, _, code, [r1, r2, r3, r4, r5]| {
            let mut run = RunHeader::with_fuel(fuel);
            // SAFETY: as above; `code` outlives the call.
            let r0 = unsafe { code.entry()(r1, r2, r3, r4, r5, &mut run) };
            assert!(run.fuel >= 0 || r0 == 0, "a run cut short returns 0");
            (run.fuel >= 0).then_some(r0)
        });
        assert_eq!(interpreted, compiled, "interpreter (left) and compiler (right)");
        compiled
    }

    fn outcome(
        &mut self,
        memory: &[u8],
        run: impl FnOnce(&Program, &World, &Code, [u64; 5]) -> Option<u64>,
    ) -> Outcome {
        self.world.value.fill(0);
        // Eight-aligned, so that atomics are aligned where the test says so.
        let mut words = vec![0u64; memory.len().div_ceil(8)];
        let start = words.as_mut_ptr().cast::<u8>();
        // SAFETY: the words cover the length; they live until the copy below.
        unsafe { std::ptr::copy_nonoverlapping(memory.as_ptr(), start, memory.len()) };
        let args = [start.expose_provenance() as u64, memory.len() as u64, 0, 0, 0];
        let r0 = run(&self.program, &self.world, &self.code, args);
        // SAFETY: as above.
        let memory = unsafe { std::slice::from_raw_parts(start, memory.len()) }.to_vec();
        Outcome { r0, memory, value: self.world.value.clone() }
    }
}

/// The usual test: source, memory, r0.
#[track_caller]
pub fn on_every_engine(source: &str, memory: &[u8], expect: u64) {
    let outcome = Engines::assemble(source).run(memory);
    let r0 = outcome.r0;
    assert_eq!(r0, Some(expect), "{source}: got {:#x}, want {expect:#x}", r0.unwrap_or(0));
}

/// Values at which something changes: shift counts, sign bits of every width, carries.
pub const BOUNDARIES: &[u64] = &[
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    33,
    63,
    64,
    65,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_8000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_8000_0000,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
    0x0123_4567_89ab_cdef,
    0xdead_beef_1234_5678,
];

/// Immediates at which something changes.
pub const IMMEDIATES: &[i32] =
    &[0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 65, 1000, 0x7fff_ffff, i32::MIN, -1, -2, -7, 0x1234_5678];

/// Two operands as the first sixteen bytes of memory, then room for a result.
pub fn operands(a: u64, b: u64) -> Vec<u8> {
    [a.to_le_bytes(), b.to_le_bytes(), [0; 8]].concat()
}

/// `text` with the 32-bit suffix where asked for.
pub fn narrowed(text: &str, bits: u32) -> String {
    if bits == 32 { format!("{text}32") } else { text.to_string() }
}
