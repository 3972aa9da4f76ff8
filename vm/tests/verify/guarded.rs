//! A program in a child process, on the interpreter and as compiled code, with all of its memory (context, map
//! values, records) against pages that fault: first the ends, then the beginnings of the regions. Both engines
//! must give the same r0, records and map contents; a child that dies is an access where none may be.

use super::env::{ARRAY, World};
use bpftime_vm::exec::Code;
use bpftime_vm::interp::{self, Callback};
use bpftime_vm::verify::Verified;
use bpftime_vm::{ArrayLayout, BpfFn, Host, MapIdx, MapLayout, Options, Resolve, RunHeader, Trap, compile};
use std::cell::{Cell, UnsafeCell};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

const PAGE: usize = 4096;
/// A page that is not there and one for a region.
const STEP: usize = 2 * PAGE;
const CTX_LEN: usize = 168;
/// Ring buffer records of one run.
const RECORDS: usize = 64;
const FUEL: i64 = 1 << 18;
/// Seconds after which a child is killed.
const PATIENCE: u32 = 30;
const RDONLY_PROG: u32 = 1 << 7;

/// Which end of a region lies against a page that is not there. Regions begin at multiples of 8, as the real ones.
#[derive(Clone, Copy, Debug)]
enum Side {
    End,
    Start,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// `None` when fuel ran out.
    r0: Option<u64>,
    records: u64,
    memory: u64,
}

/// What the child says: how many runs ended, and what they gave.
#[derive(Clone, Copy, Debug, Default)]
struct Report {
    runs: usize,
    outcomes: [Outcome; 4],
}

const RUNS: [(Side, &str); 4] = [
    (Side::End, "interpreter"),
    (Side::End, "compiled code"),
    (Side::Start, "interpreter"),
    (Side::Start, "compiled code"),
];

/// Runs a program; the error says what went wrong.
pub fn compare(program: &Verified, world: &World, seed: u64) -> Result<(), String> {
    let arena = Arena::new(world).map_err(|e| format!("memory: {e}"))?;
    let layouts: Vec<_> =
        world.maps.iter().map(|map| layout(map.facts.map_type, map.facts.max_entries)).collect();
    let options = Options { kernel_helpers: true, maps: &layouts, ..Options::default() };
    let image = compile(program, &options).map_err(|e| e.to_string())?;
    let link =
        |side| Code::link(image.borrow(), &Setting { arena: &arena, world, side }).map_err(|e| e.to_string());
    let codes = [link(Side::End)?, link(Side::Start)?];
    let status = in_child(|| {
        for (n, (side, _)) in RUNS.into_iter().enumerate() {
            let setting = Setting { arena: &arena, world, side };
            let outcome = Run::new(setting, program, seed).outcome((n % 2 == 1).then_some(&codes[n / 2]));
            arena.report(n, outcome);
        }
    })
    .map_err(|e| format!("fork: {e}"))?;
    let report = arena.reported();
    if status != 0 {
        let (signal, exit) = (status & 0x7f, status >> 8);
        return Err(format!("{:?} ends with signal {signal}, status {exit}", RUNS.get(report.runs)));
    }
    for pair in report.outcomes.chunks(2) {
        if pair[0] != pair[1] {
            return Err(format!("interpreter and compiled code differ: {pair:x?}"));
        }
    }
    Ok(())
}

/// Each element has a page of its own.
fn layout(map_type: u32, entries: u32) -> Option<MapLayout> {
    (map_type == ARRAY).then_some(MapLayout::Array(ArrayLayout {
        entries,
        value_size: STEP as u32,
        stride: STEP as u32,
        cpu_stride: None,
    }))
}

/// The wait status of a child that does this.
fn in_child(f: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: the child runs code that allocates nothing and takes no lock, then ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: calls that a child may make at once.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
            libc::alarm(PATIENCE);
        }
        let result = catch_unwind(AssertUnwindSafe(f));
        // SAFETY: ends the child without the parent's exit handlers.
        unsafe { libc::_exit(i32::from(result.is_err())) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call; the child is ours.
    while pid > 0 && unsafe { libc::waitpid(pid, &raw mut status, 0) } == -1 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if pid > 0 { Ok(status) } else { Err(io::Error::last_os_error()) }
}

/// Memory that parent and child share: the report, the context, records, then the elements of each map.
struct Arena {
    base: *mut libc::c_void,
    slots: usize,
    /// First slot of each map.
    maps: Vec<usize>,
}

const CTX: usize = 1;
const FIRST_RECORD: usize = 2;

impl Arena {
    fn new(world: &World) -> io::Result<Arena> {
        let mut slots = FIRST_RECORD + RECORDS;
        let mut maps = vec![];
        for map in &world.maps {
            maps.push(slots);
            slots += if map.facts.value_size == 0 { 0 } else { map.facts.max_entries as usize };
        }
        let (len, flags) = (slots * STEP + PAGE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping replaces nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        base.expose_provenance();
        let arena = Arena { base, slots, maps };
        arena.protect(0, libc::PROT_READ | libc::PROT_WRITE);
        Ok(arena)
    }

    fn page(&self, slot: usize) -> usize {
        self.base.addr() + slot * STEP + PAGE
    }

    fn protect(&self, slot: usize, prot: libc::c_int) {
        // SAFETY: a page of our own mapping, to which nobody holds a reference.
        let result = unsafe { libc::mprotect(with_exposed_provenance_mut(self.page(slot)), PAGE, prot) };
        assert_eq!(result, 0, "mprotect");
    }

    /// Where a region of this length lies in its page.
    fn place(&self, slot: usize, len: usize, side: Side) -> u64 {
        let len = len.next_multiple_of(8);
        assert!(len <= PAGE, "a region of {len} bytes");
        match side {
            Side::End => (self.page(slot) + PAGE - len) as u64,
            Side::Start => self.page(slot) as u64,
        }
    }

    /// Fills the page of a slot.
    fn fill(&self, slot: usize, prot: libc::c_int, bytes: impl Iterator<Item = u8>, at: u64) {
        self.protect(slot, libc::PROT_READ | libc::PROT_WRITE);
        for (n, byte) in bytes.enumerate() {
            // SAFETY: inside of the page that was just opened: `place` checked the length.
            unsafe { with_exposed_provenance_mut::<u8>(at as usize + n).write(byte) };
        }
        self.protect(slot, prot);
    }

    fn report(&self, run: usize, outcome: Outcome) {
        // SAFETY: the first slot is for this, and aligned; the parent reads when the child is gone.
        let report = unsafe { &mut *with_exposed_provenance_mut::<Report>(self.page(0)) };
        report.outcomes[run] = outcome;
        report.runs = run + 1;
    }

    fn reported(&self) -> Report {
        // SAFETY: as above; zeroes are a report, too.
        unsafe { with_exposed_provenance::<Report>(self.page(0)).read() }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: our own mapping; programs linked against it have run.
        unsafe { libc::munmap(self.base, self.slots * STEP + PAGE) };
    }
}

#[derive(Clone, Copy)]
struct Setting<'a> {
    arena: &'a Arena,
    world: &'a World,
    side: Side,
}

impl Setting<'_> {
    fn element(&self, map: usize, index: usize) -> u64 {
        let len = self.world.maps[map].facts.value_size as usize;
        self.arena.place(self.arena.maps[map] + index, len, self.side)
    }
}

/// How a map is known to helpers.
const HANDLE: u64 = 0xe0 << 56;

impl Resolve for Setting<'_> {
    fn map(&self, map: MapIdx) -> Option<u64> {
        Some(HANDLE + u64::from(map.0))
    }
    fn map_value(&self, map: MapIdx) -> Option<u64> {
        Some(self.element(map.0 as usize, 0))
    }
    fn map_elements(&self, map: MapIdx) -> Option<u64> {
        self.map_value(map)
    }
    fn helper(&self, id: u32) -> Option<u64> {
        let helper: BpfFn = match id {
            1 => native::<1>,
            7 => native::<7>,
            16 => native::<16>,
            113 => native::<113>,
            115 => native::<115>,
            131 => native::<131>,
            132 => native::<132>,
            133 => native::<133>,
            181 => native::<181>,
            _ => return None,
        };
        Some(helper as usize as u64)
    }
}

/// One run; compiled code gets the address of its header.
#[repr(C)]
struct Run<'a> {
    header: UnsafeCell<RunHeader>,
    setting: Setting<'a>,
    program: &'a Verified,
    seed: u64,
    random: Cell<u64>,
    records: Cell<usize>,
    lens: [Cell<usize>; RECORDS],
    digest: Cell<u64>,
}

fn mix(digest: u64, x: u64) -> u64 {
    (digest ^ x).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
}

impl<'a> Run<'a> {
    fn new(setting: Setting<'a>, program: &'a Verified, seed: u64) -> Run<'a> {
        Run {
            header: UnsafeCell::new(RunHeader::with_fuel(FUEL)),
            setting,
            program,
            seed,
            random: Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            records: Cell::new(0),
            lens: [const { Cell::new(0) }; RECORDS],
            digest: Cell::new(0),
        }
    }

    fn outcome(&self, code: Option<&Code>) -> Outcome {
        let ctx = self.open();
        let r0 = match code {
            // SAFETY: the program was verified, or its faults are what the child is for.
            None => unsafe { interp::run(self.program, [ctx, 0, 0, 0, 0], self, FUEL as u64) }.ok(),
            Some(code) => {
                let header = self.header.get();
                // SAFETY: as above; the header belongs to this run alone.
                let r0 = unsafe { code.entry()(ctx, 0, 0, 0, 0, header) };
                // SAFETY: nobody writes it any more.
                (unsafe { (*header).fuel } >= 0).then_some(r0)
            }
        };
        Outcome { r0, records: self.digest.get(), memory: self.memory() }
    }

    /// Fills all memory with what the seed says and closes the records; gives the context.
    fn open(&self) -> u64 {
        let Setting { arena, side, .. } = self.setting;
        let mut state = self.seed | 1;
        let mut bytes = std::iter::repeat_with(move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        });
        let ctx = arena.place(CTX, CTX_LEN, side);
        arena.fill(CTX, libc::PROT_READ, bytes.by_ref().take(CTX_LEN), ctx);
        (0..RECORDS).for_each(|n| arena.protect(FIRST_RECORD + n, libc::PROT_NONE));
        self.for_elements(|map, index, at, len| {
            let map = &self.setting.world.maps[map];
            let read_only = map.facts.flags & RDONLY_PROG != 0;
            let prot = if read_only { libc::PROT_READ } else { libc::PROT_READ | libc::PROT_WRITE };
            match map.contents.is_empty() {
                true => arena.fill(index, prot, bytes.by_ref().take(len), at),
                false => arena.fill(index, prot, map.contents.iter().copied(), at),
            }
        });
        ctx
    }

    /// Map, slot, address and bytes of each element of the maps that the program uses.
    fn for_elements(&self, mut f: impl FnMut(usize, usize, u64, usize)) {
        for map in self.program.maps_used().iter().map(|map| map.0 as usize) {
            let facts = self.setting.world.maps[map].facts;
            let elements = if facts.value_size == 0 { 0 } else { facts.max_entries as usize };
            for n in 0..elements {
                let slot = self.setting.arena.maps[map] + n;
                f(map, slot, self.setting.element(map, n), facts.value_size as usize);
            }
        }
    }

    /// A digest of all map values.
    fn memory(&self) -> u64 {
        let mut digest = 0;
        self.for_elements(|_, _, at, len| digest = mix(digest, self.sum(at, len)));
        digest
    }

    fn sum(&self, at: u64, len: usize) -> u64 {
        let byte = |n| {
            // SAFETY: an element or record of this run, which is open.
            unsafe { with_exposed_provenance::<u8>(at as usize + n).read() }
        };
        (0..len).fold(1, |sum, n| mix(sum, u64::from(byte(n))))
    }

    fn next(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    /// A helper; `None` when its callback ran out of fuel.
    fn call(
        &self,
        id: u32,
        args: [u64; 5],
        call: &mut dyn FnMut(u64, [u64; 5]) -> Option<u64>,
    ) -> Option<u64> {
        Some(match id {
            1 => self.lookup((args[0] - HANDLE) as usize, args[1]),
            7 => match self.below(3) {
                0 => self.below(100),
                1 => u64::from(self.next() as u32),
                _ => self.next() >> self.below(64),
            },
            16 | 113 | 115 => {
                let (byte, len) = (self.next() as u8, args[1]);
                // A string may be shorter than its buffer; nothing is written behind it.
                let len = if id == 115 && len > 0 { 1 + self.below(len) } else { len };
                // SAFETY: memory that the program may pass, or the child dies.
                unsafe {
                    with_exposed_provenance_mut::<u8>(args[0] as usize).write_bytes(byte, len as usize)
                };
                len
            }
            131 => self.reserve(args[1] as usize),
            132 | 133 => self.give_up(u64::from(id), args[0]),
            _ => {
                for n in 0..args[0].min(50) {
                    if call(args[1], [n, args[2], 0, 0, 0])? != 0 {
                        break;
                    }
                }
                0
            }
        })
    }

    /// An array has all its elements; another map has those whose key says so.
    fn lookup(&self, map: usize, key: u64) -> u64 {
        let facts = self.setting.world.maps[map].facts;
        // SAFETY: a key that the program may pass, or the child dies. All keys here have four bytes or more.
        let key = unsafe { with_exposed_provenance::<u32>(key as usize).read_unaligned() };
        let index = if facts.map_type == ARRAY { key } else { key % (facts.max_entries + 3) };
        if index < facts.max_entries { self.setting.element(map, index as usize) } else { 0 }
    }

    fn reserve(&self, len: usize) -> u64 {
        let n = self.records.get();
        if n == RECORDS || len > PAGE || self.seed.is_multiple_of(4) && self.below(4) == 0 {
            return 0;
        }
        self.records.set(n + 1);
        self.lens[n].set(len);
        let (arena, slot) = (self.setting.arena, FIRST_RECORD + n);
        let at = arena.place(slot, len, self.setting.side);
        arena.fill(slot, libc::PROT_READ | libc::PROT_WRITE, std::iter::repeat_n(7, len), at);
        at
    }

    /// Nothing may touch the record any more.
    fn give_up(&self, how: u64, at: u64) -> u64 {
        let arena = self.setting.arena;
        let slot = (at as usize - arena.base.addr()) / STEP;
        let sum = self.sum(at, self.lens[slot - FIRST_RECORD].get());
        self.digest.set(mix(mix(self.digest.get(), how), sum));
        arena.protect(slot, libc::PROT_NONE);
        0
    }
}

impl Host for Run<'_> {
    fn helper(&self, id: u32, args: [u64; 5], call: &mut Callback<'_>) -> Result<u64, Trap> {
        Run::call(self, id, args, &mut |func, args| call(func, args).ok()).ok_or(Trap::OutOfFuel)
    }
    fn map(&self, map: MapIdx) -> u64 {
        HANDLE + u64::from(map.0)
    }
    fn map_value(&self, map: MapIdx) -> u64 {
        self.setting.element(map.0 as usize, 0)
    }
}

extern "C" fn native<const ID: u32>(r1: u64, r2: u64, r3: u64, r4: u64, r5: u64, run: *mut RunHeader) -> u64 {
    // SAFETY: the header is the first field of the run that `outcome` started.
    let this = unsafe { &*run.cast::<Run<'_>>() };
    let mut call = |func: u64, [r1, r2, r3, r4, r5]: [u64; 5]| {
        // SAFETY: nobody else uses the run during this call.
        unsafe { (*run).fuel -= 1 };
        // SAFETY: as above.
        if unsafe { (*run).fuel } < 0 {
            return None;
        }
        // SAFETY: the program passed the address of one of its functions.
        let func = unsafe { std::mem::transmute::<usize, BpfFn>(func as usize) };
        // SAFETY: called as the contract says.
        let result = unsafe { func(r1, r2, r3, r4, r5, run) };
        // SAFETY: as above.
        (unsafe { (*run).fuel } >= 0).then_some(result)
    };
    this.call(ID, [r1, r2, r3, r4, r5], &mut call).unwrap_or(0)
}
