//! Events that the kernel counts (page faults, context switches, what a processor counts, watchpoints): their programs run
//! in the thread and at the instruction where they happen.
//!
//! Each thread has an event of the kernel's that answers every so many occurrences with a SIGTRAP in that very thread,
//! before its next instruction (perf_event_attr.sigtrap, Linux 5.13). Nothing is asked for that an ordinary user may not
//! have of his own processes; where he may not see what happens in the kernel, that is left out. Several occurrences in
//! one system call are one signal.
//!
//! Threads that are made later have the events from their first instruction on, by inheritance. One that was made while
//! events were being opened may have inherited one and be given its own as well: a signal says whose event it is of, and a
//! thread with events of its own takes no other's. So an event stays open when its thread is gone.

use super::timers::sampled_threads;
use super::{Sampler, run_samplers};
use crate::arch::sys;
use crate::hook::ThreadBlock;
use crate::run::enter::{Entry, send_signals};
use crate::run::process;
use crate::signals;
use bpftime_abi::perf::{self, PerfEventAttr};
use bpftime_shm::session::wire::{Counter, CounterEvent};
use rustix::fd::{FromRawFd, OwnedFd};
use rustix::io::Errno;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};

/// How often it is looked whether a debugger came or went, and which threads are gone.
pub const LOOK: Duration = Duration::from_secs(1);
/// How often threads are listed until none is new.
const ROUNDS: usize = 32;

/// The programs of one event of the kernel's.
struct Group {
    id: u32,
    counter: Counter,
    samplers: Vec<Sampler>,
}

/// What handlers look at. Immutable once published.
#[derive(Default)]
struct Published {
    groups: Vec<Group>,
}

/// Threads with an event of their own, and which; sorted. Immutable once published.
type Own = Vec<(i32, u32)>;

static GROUPS: AtomicPtr<Published> = AtomicPtr::new(std::ptr::null_mut());
static OWN: AtomicPtr<Own> = AtomicPtr::new(std::ptr::null_mut());

/// What a published pointer leads to.
fn read<T>(published: &AtomicPtr<T>) -> Option<&'static T> {
    // Acquire: pairs with the Release in `replace`; the list is complete.
    // SAFETY: null, or a list that lives until no thread in a callback reads it; the caller is in one.
    unsafe { published.load(Ordering::Acquire).as_ref() }
}

/// Marks the data of our signals; then 22 bits of thread and 26 of event.
const MARK: u64 = 0xb9f8 << 48;
const MARK_MASK: u64 = 0xffff << 48;
const ID_BITS: u32 = 26;

fn data_of(tid: i32, id: u32) -> u64 {
    MARK | (tid as u64) << ID_BITS | u64::from(id)
}

/// The fields of `siginfo_t` for `TRAP_PERF` (`asm-generic/siginfo.h`).
#[repr(C)]
struct PerfInfo {
    signo: i32,
    errno: i32,
    code: i32,
    pad: i32,
    addr: u64,
    data: u64,
    kind: u32,
    flags: u32,
}

/// A SIGTRAP that an event of the kernel's sent. False when it is not one of ours.
///
/// # Safety
/// The arguments are those the kernel passed to the calling signal handler, and `si_code` is `TRAP_PERF`.
pub(crate) unsafe fn on_event(info: *const libc::siginfo_t, uc: &libc::ucontext_t) -> bool {
    // SAFETY: the kernel's siginfo has these fields for TRAP_PERF.
    let info = unsafe { &*info.cast::<PerfInfo>() };
    if info.data & MARK_MASK != MARK {
        return false;
    }
    // What happens in our own code is nobody's event; above all not the faults of what follows here.
    if signals::is_own_code(uc.uc_mcontext.gregs[libc::REG_RIP as usize] as usize) {
        return true;
    }
    if let Some(block) = ThreadBlock::current()
        && block.mute.load(Ordering::Relaxed) == 0
        && block.depth() == 0
    {
        block.enter();
        run(block, info, uc);
        send_signals(block);
        block.leave();
    }
    true
}

fn run(block: &ThreadBlock, info: &PerfInfo, uc: &libc::ucontext_t) {
    let id = info.data as u32 & ((1 << ID_BITS) - 1);
    let of = (info.data >> ID_BITS) as u32 & ((1 << (48 - ID_BITS)) - 1);
    let tid = process::tid(block, process::pid());
    let has_own = |own: &Own| own.binary_search(&(tid as i32, id)).is_ok();
    if of != tid && read(&OWN).is_some_and(has_own) {
        return;
    }
    let group = read(&GROUPS).and_then(|p| p.groups.iter().find(|g| g.id == id));
    if let Some(group) = group {
        run_samplers(block, &group.samplers, (group.counter.period, info.addr), 1, uc);
    }
}

/// An event of `tid`, or of the calling thread for 0, that answers with a signal.
///
/// Errors: what the kernel says; it may not be asked under a seccomp filter.
fn open(tid: i32, counter: &Counter, data: u64) -> Result<OwnedFd, Errno> {
    let ours =
        perf::ATTR_INHERIT | perf::ATTR_INHERIT_THREAD | perf::ATTR_REMOVE_ON_EXEC | perf::ATTR_SIGTRAP;
    let mut attr = PerfEventAttr {
        type_: counter.type_,
        size: size_of::<PerfEventAttr>() as u32,
        config: counter.config,
        sample_period: counter.period,
        flags: counter.flags | ours,
        bp_type: counter.bp_type,
        config1: counter.config1,
        config2: counter.config2,
        sig_data: data,
        ..PerfEventAttr::default()
    };
    match open_attr(&attr, tid) {
        Err(Errno::ACCESS | Errno::PERM) => {
            attr.flags |= perf::ATTR_EXCLUDE_KERNEL | perf::ATTR_EXCLUDE_HV;
            open_attr(&attr, tid)
        }
        done => done,
    }
}

fn open_attr(attr: &PerfEventAttr, tid: i32) -> Result<OwnedFd, Errno> {
    let flags = perf::FLAG_FD_CLOEXEC as usize;
    let (any, none) = (-1isize as usize, -1isize as usize);
    let args = [std::ptr::from_ref(attr) as usize, tid as usize, any, none, flags, 0];
    // SAFETY: the kernel reads the attribute; the signals that it asks for are answered by our handler.
    let fd = unsafe { sys::syscall(libc::SYS_perf_event_open, args) };
    if fd < 0 {
        return Err(Errno::from_raw_os_error(-fd as i32));
    }
    // SAFETY: a fresh descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether the kernel lets this user have such events: its errno where it does not.
pub fn may_open(counter: &Counter) -> Result<(), Errno> {
    let off = Counter { flags: counter.flags | perf::ATTR_DISABLED, ..*counter };
    open(0, &off, MARK).map(drop)
}

/// The control thread's side.
#[derive(Default)]
pub struct Events {
    groups: Option<Box<Published>>,
    own: Box<Own>,
    /// Lists that a thread may still be reading.
    retired: Vec<Box<dyn Any + Send>>,
    /// By event and thread.
    open: BTreeMap<(u32, i32), OwnedFd>,
    next_id: u32,
    refused: bool,
    looked: Option<Instant>,
}

impl Events {
    /// Makes the programs what `wanted` says, in all threads.
    pub fn set(&mut self, wanted: Vec<(CounterEvent, Entry)>) {
        let mut groups: Vec<Group> = Vec::new();
        for (event, entry) in wanted {
            let sampler = Sampler { entry, cpu: event.cpu };
            match groups.iter_mut().find(|g| g.counter == event.counter) {
                Some(group) => group.samplers.push(sampler),
                None => {
                    let id = self.id_of(&event.counter);
                    groups.push(Group { id, counter: event.counter, samplers: vec![sampler] });
                }
            }
        }
        self.refused = false;
        let stays = |id: u32| groups.iter().any(|g| g.id == id);
        self.open.retain(|(id, _), _| stays(*id));
        let own = self.own.iter().copied().filter(|(_, id)| stays(*id)).collect();
        let list = (!groups.is_empty()).then(|| Box::new(Published { groups }));
        publish(&GROUPS, list.as_deref());
        let old = std::mem::replace(&mut self.groups, list);
        self.retired.extend(old.map(|old| old as Box<dyn Any + Send>));
        self.set_own(own);
        self.arm();
    }

    /// An event that stands keeps its number: those of its threads are open under it.
    fn id_of(&mut self, counter: &Counter) -> u32 {
        let standing = self.groups.as_deref().and_then(|p| p.groups.iter().find(|g| g.counter == *counter));
        standing.map_or_else(
            || {
                self.next_id = (self.next_id + 1) % (1 << ID_BITS);
                self.next_id
            },
            |g| g.id,
        )
    }

    fn set_own(&mut self, mut own: Own) {
        own.sort_unstable();
        let own = Box::new(own);
        publish(&OWN, Some(&*own));
        let old = std::mem::replace(&mut self.own, own);
        self.retired.push(old);
    }

    /// Opens the events that no thread has yet.
    fn arm(&mut self) {
        self.looked = Some(Instant::now());
        let counters: Vec<(u32, Counter)> =
            self.groups.iter().flat_map(|p| &p.groups).map(|g| (g.id, g.counter)).collect();
        for (id, counter) in counters {
            if self.open.range((id, i32::MIN)..=(id, i32::MAX)).next().is_none() {
                self.open_in_all(id, &counter);
            }
        }
    }

    fn open_in_all(&mut self, id: u32, counter: &Counter) {
        signals::read_seccomp();
        if signals::seccomp_filtered() {
            self.refused = true;
            return;
        }
        for _ in 0..ROUNDS {
            let has = |tid: &i32| self.own.binary_search(&(*tid, id)).is_ok();
            let fresh: Vec<i32> = sampled_threads().into_iter().filter(|tid| !has(tid)).collect();
            if fresh.is_empty() {
                return;
            }
            // Before the events are open, so that no thread takes one that it inherits in between for its own.
            self.set_own(self.own.iter().copied().chain(fresh.iter().map(|tid| (*tid, id))).collect());
            for tid in fresh {
                match open(tid, counter, data_of(tid, id)) {
                    Ok(fd) => drop(self.open.insert((id, tid), fd)),
                    Err(errno) => self.refused |= errno != Errno::SRCH,
                }
            }
        }
    }

    /// Whether events are wanted.
    pub fn active(&self) -> bool {
        self.groups.is_some()
    }

    /// Whether some are wanted that the kernel did not open.
    pub fn refused(&self) -> bool {
        self.refused
    }

    /// Follows debuggers, which would stop at each event, and threads that are gone, whose ids others may get.
    pub fn follow(&mut self) {
        if !self.active() || self.looked.is_some_and(|t| t.elapsed() < LOOK) {
            return;
        }
        let threads = crate::hook::threads::tids();
        if crate::hook::threads::is_debugged() {
            self.open.clear();
        }
        let open = |id: u32| self.open.range((id, i32::MIN)..=(id, i32::MAX)).next().is_some();
        let own: Own =
            self.own.iter().copied().filter(|(tid, id)| open(*id) && threads.contains(tid)).collect();
        if own != *self.own {
            self.set_own(own);
        }
        self.arm();
    }

    /// The child side of fork: events stay with the parent, whose descriptors they are.
    pub fn forget(&mut self) {
        std::mem::take(&mut self.open).into_values().for_each(std::mem::forget);
        self.set_own(Own::new());
        self.looked = None;
    }

    /// What may be freed once no thread is in a callback that began before now.
    pub fn collect_garbage(&mut self) {
        self.retired.clear();
    }

    /// Whether something waits for [`Events::collect_garbage`].
    pub fn has_garbage(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Closes every event, for good.
    pub fn abandon(mut self) {
        publish(&GROUPS, None);
        publish(&OWN, None);
        self.open.clear();
        std::mem::forget((self.groups, self.own, self.retired));
    }
}

/// What threads find from now on. The caller keeps it, and what was there before, until no thread in a callback can see
/// it.
fn publish<T>(place: &AtomicPtr<T>, list: Option<&T>) {
    // Release: pairs with the Acquire in `read`; the list is complete.
    place.store(list.map_or(std::ptr::null_mut(), |l| std::ptr::from_ref(l).cast_mut()), Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_a_signal_names_thread_and_event() {
        let data = data_of(4_194_303, (1 << ID_BITS) - 1);
        assert_eq!(data & MARK_MASK, MARK);
        assert_eq!((data >> ID_BITS) as u32 & ((1 << 22) - 1), 4_194_303);
        assert_eq!(data as u32 & ((1 << ID_BITS) - 1), (1 << ID_BITS) - 1);
    }

    #[test]
    fn a_hardware_event_of_a_nonsense_number_is_refused_by_the_kernel() {
        let nonsense = Counter {
            type_: perf::PERF_TYPE_HARDWARE,
            bp_type: 0,
            config: 0xffff,
            config1: 0,
            config2: 0,
            period: 1000,
            flags: 0,
        };
        assert!(may_open(&nonsense).is_err());
    }
}
