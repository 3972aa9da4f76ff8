//! Running programs: what happens between a probe's thunk and the end of the last program on it.
//!
//! Everything here runs inside somebody else's function, at any instruction, possibly nested in a signal handler.
//! Rules: no allocation, no locks, no C library, no thread-local but the thread block, bounded stack; a failure loses an
//! event, never the host. Helpers share the BPF calling convention with compiled code: five arguments and the [`Run`].

pub mod build_id;
pub mod clock;
pub mod enter;
pub mod held;
pub mod helpers;
pub mod image;
pub mod process;
pub mod session;
pub mod shadow;
pub mod stack;

use crate::arch::PtRegs;
use crate::arch::frame::Kept;
use crate::hook::Site;
use bpftime_shm::map::HashParts;
use bpftime_shm::ring::LockId;
use bpftime_shm::session::page::{OwnerWord, Page};
use bpftime_shm::{Map, RingBuf};
use bpftime_vm::RunHeader;
use bpftime_vm::contract::{HashTable, MAX_TAIL_CALLS};
use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Back-edges and calls a run may take before it is ended: some milliseconds, far above what the kernel's verifier
/// lets a tracing program do, and far below what a user would call a hang.
pub const FUEL: i64 = 1 << 24;

/// What caused a run: the same for all programs of one event.
#[repr(C)]
pub struct Hit {
    /// What the programs get as their context.
    pub ctx: u64,
    /// The thread's registers; null for an event of the tool's own.
    pub regs: *const PtRegs,
    /// Address of the probed instruction, or of the function for a return probe; 0 for other events.
    pub func_ip: u64,
    /// Where the vector registers go before anything may write them; null: they are saved.
    pub(crate) vectors: *mut Kept,
    /// End of the list being run: arch/x86_64/runner.rs.
    pub(crate) end: *const enter::Entry,
    /// Whether a program has given the result in the function's place.
    pub replaced: Cell<Override>,
}

impl Hit {
    /// An event that is no probe, with the vector registers saved.
    pub fn event(ctx: u64, regs: *const PtRegs) -> Self {
        let (vectors, end) = (std::ptr::null_mut(), std::ptr::null());
        Self { ctx, regs, func_ip: 0, vectors, end, replaced: Cell::new(Override::Refused) }
    }

    /// A probe, with the vector registers saved. Where replacing is not refused, the thunk takes the result from `regs`.
    pub fn probe(site: &Site, regs: *mut PtRegs, replaced: Override) -> Self {
        Self { func_ip: site.addr as u64, replaced: Cell::new(replaced), ..Self::event(regs as u64, regs) }
    }
}

/// What bpf_override_return may do, or has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Override {
    /// No function is about to run. 0: the assembly of the probe path allows nothing else.
    Refused = 0,
    /// A function is about to run.
    Allowed,
    /// It will not.
    Done,
}

/// A program, the session it belongs to and the link it runs for: what stays the same from run to run.
#[repr(C)]
#[derive(Clone)]
pub struct Bound {
    /// Compiled code.
    pub func: image::Func,
    /// CPU slots and wakeups of the session.
    pub page: *const Page,
    /// This process's index in the session.
    pub owner: *const AtomicU32,
    /// The program, for the maps it names.
    pub program: *const image::Program,
    /// The cookie of the link.
    pub cookie: u64,
    /// Whether the registers are those at the first instruction of a function that has no frame yet.
    pub at_entry: bool,
}

/// One run of a program: the hidden last argument of every compiled function and helper.
///
/// Small, since every hit writes it: what several runs have in common stands behind two pointers.
#[repr(C)]
pub struct Run {
    /// What compiled code reads by itself: fuel, ids, cookie, function, CPU slot. Therefore first.
    pub header: RunHeader,
    pub(crate) bound: *const Bound,
    pub(crate) hit: *const Hit,
    /// This thread, for locks in shared memory.
    pub owner: OwnerWord,
    /// Whether user memory may be read by a guarded load; asked once per run.
    pub reads: Reads,
    /// The programs that took over from the one the event started.
    pub tail: TailCalls,
    /// Records that it has reserved.
    pub held: held::Held,
}

impl Run {
    /// The CPU slot this run owns.
    #[inline]
    pub fn cpu(&self) -> u32 {
        self.header.cpu
    }
    /// The kernel's id of this thread.
    #[inline]
    pub fn tid(&self) -> u32 {
        self.header.pid_tgid as u32
    }
    /// The kernel's id of this process.
    #[inline]
    pub fn tgid(&self) -> u32 {
        (self.header.pid_tgid >> 32) as u32
    }
    fn bound(&self) -> &Bound {
        // SAFETY: whoever started the run keeps both alive until it ends.
        unsafe { &*self.bound }
    }
    fn hit(&self) -> &Hit {
        // SAFETY: as above.
        unsafe { &*self.hit }
    }
    /// The session the program belongs to.
    pub fn page(&self) -> &Page {
        // SAFETY: the session outlives the run.
        unsafe { &*self.bound().page }
    }
    /// The running program.
    pub fn program(&self) -> &image::Program {
        // SAFETY: the program outlives the run.
        unsafe { &*self.bound().program }
    }
    /// This thread, as locks in shared memory know it.
    #[inline]
    pub fn lock_id(&self) -> LockId {
        LockId::new(self.owner.owner(), self.owner.tid())
    }
    /// The maps of all programs of this run. A tail call from a function of a program returns to the program, so it is
    /// not only those of the last one.
    pub fn maps(&self) -> impl Iterator<Item = &MapHandle> {
        let programs = std::iter::once(self.program()).chain(self.tail.programs());
        programs.flat_map(|program| &program.maps).map(|map| &**map)
    }
    /// The process's registers at the probe; none for a program that the tool runs itself.
    pub fn regs(&self) -> Option<&PtRegs> {
        // SAFETY: null, or registers that live as long as the event.
        unsafe { self.hit().regs.as_ref() }
    }
    /// Gives the result in the probed function's place; false where none is about to run.
    pub fn override_return(&mut self, value: u64) -> bool {
        let hit = self.hit();
        if hit.replaced.get() == Override::Refused {
            return false;
        }
        hit.replaced.set(Override::Done);
        // SAFETY: where replacing is not refused these are the thunk's own copy, which it takes the result from.
        unsafe { (*hit.regs.cast_mut()).ax = value };
        true
    }
    /// See [`Bound::at_entry`].
    pub fn at_entry(&self) -> bool {
        self.bound().at_entry
    }
}

/// The tail calls of a run.
pub struct TailCalls {
    pub(crate) count: u32,
    programs: [MaybeUninit<*const image::Program>; MAX_TAIL_CALLS as usize],
}

impl TailCalls {
    /// None yet. Nothing but the count is written.
    #[inline]
    pub fn none() -> Self {
        Self { count: 0, programs: [MaybeUninit::uninit(); MAX_TAIL_CALLS as usize] }
    }

    /// Counts one; false when there were as many as a run may make.
    ///
    /// # Safety
    /// The program lives until the run ends.
    pub unsafe fn enter(&mut self, program: *const image::Program) -> bool {
        let Some(slot) = self.programs.get_mut(self.count as usize) else { return false };
        slot.write(program);
        self.count += 1;
        true
    }

    fn programs(&self) -> impl Iterator<Item = &image::Program> {
        // SAFETY: the first `count` were written, by `enter`, whose caller keeps the programs alive.
        self.programs.iter().take(self.count as usize).map(|slot| unsafe { &*slot.assume_init() })
    }
}

/// How this run may read memory that might not be there.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reads {
    /// Not asked yet.
    Unknown,
    /// The thread takes SIGSEGV, so a load that faults is fixed up.
    Guarded,
    /// The thread blocks SIGSEGV, so that a fault would kill: ask the kernel about each page first. A page that another
    /// thread unmaps in between is the one case that is left.
    Asked,
}

/// What a program's map constant points to: process-local, never in shared memory.
#[repr(C)]
pub struct MapHandle {
    /// For generated code, if it is a hash map. It points into the map, which is not moved: what is behind it lies elsewhere.
    table: UnsafeCell<HashTable>,
    /// The map.
    pub map: Map,
}

// The compiler's description of a hash map is that of shm-maps.
const _: () = {
    assert!(HashTable::MULTIPLIER == HashParts::MULTIPLIER && HashTable::DELETED == HashParts::DELETED);
    assert!(HashTable::KEY_AT as usize == HashParts::KEY_AT);
};

// SAFETY: of the table only the functions ever change, by `ready`, each in one store and to another that is as right.
unsafe impl Sync for MapHandle {}

impl MapHandle {
    /// A handle for `map`.
    pub fn new(map: Map) -> Self {
        Self { table: UnsafeCell::new(helpers::hash::table(&map)), map }
    }

    /// Before code that names the map is linked: such code calls the fastest functions that there are.
    pub fn ready(&self) {
        if self.map.hash_table().is_none() {
            return;
        }
        let table = self.table.get();
        // SAFETY: places of the table, which other threads only read; a function is a pointer.
        let places =
            unsafe { [&raw mut (*table).lookup, &raw mut (*table).update, &raw mut (*table).delete] };
        for (place, function) in places.into_iter().zip(helpers::hash::functions(&self.map)) {
            // SAFETY: as above.
            unsafe { AtomicPtr::from_ptr(place.cast::<*mut ()>()) }
                .store(function as *mut (), Ordering::Relaxed);
        }
    }

    /// The ring buffer, this one or one inside of this map-in-map, that holds a record.
    pub fn ring_holding(&self, record: *const u8) -> Option<&RingBuf> {
        let own = self.map.ringbuf().filter(|ring| ring.holds(record));
        own.or_else(|| self.inner_maps().filter_map(|m| m.map.ringbuf()).find(|ring| ring.holds(record)))
    }

    /// The maps inside of a map-in-map.
    fn inner_maps(&self) -> impl Iterator<Item = &MapHandle> {
        let members = self.map.members().filter(|_| self.map.def().inner.map_type != 0);
        // SAFETY: the members of a map-in-map are handles, which live until no program can use them.
        members.into_iter().flat_map(|m| m.iter()).map(|handle| unsafe { &*handle.cast::<MapHandle>() })
    }
}
