//! One timer per thread and period: the control thread's side.

use super::{MARK, PERIOD, Samplers, publish};
use crate::arch::sys;
use crate::hook::threads::{blocks_trap, is_debugged, is_muted, tids};
use crate::signals;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How often new threads are looked for, by the number of threads: often while it changes, less and less while not.
const GLANCES: std::ops::RangeInclusive<Duration> = Duration::from_millis(8)..=Duration::from_millis(64);
/// How often each thread is looked at: a number can stay the same while threads come and go.
const LOOK: Duration = Duration::from_secs(1);
/// How many glances look again at threads that were just found to block SIGTRAP: the C library has new ones begin so.
const AGAIN: u8 = 4;

/// Programs and the timers that run them.
#[derive(Default)]
pub struct Timers {
    samplers: Option<Box<Samplers>>,
    /// Lists that a thread may still be reading.
    #[expect(clippy::vec_box, reason = "threads hold the address of the list, so it must not move")]
    retired: Vec<Box<Samplers>>,
    /// Kernel ids of timers, by thread and period.
    armed: BTreeMap<(i32, u64), i32>,
    /// Links of /proc/self/task when the threads were last listed.
    links: u64,
    looked: Option<Instant>,
    pace: Duration,
    /// Threads that blocked SIGTRAP then, and how often those are still looked at soon.
    passed_over: BTreeSet<i32>,
    again: u8,
}

impl Timers {
    /// Makes the programs what `samplers` says, in all threads.
    pub fn set(&mut self, samplers: Samplers) {
        let new = (!samplers.0.is_empty()).then(|| Box::new(samplers));
        publish(new.as_deref());
        self.retired.extend(std::mem::replace(&mut self.samplers, new));
        self.look();
    }

    /// Whether threads have to be followed.
    pub fn active(&self) -> bool {
        self.samplers.is_some()
    }

    /// Follows threads that came and went. Cheap when nothing changed: one stat.
    pub fn follow(&mut self) {
        if !self.active() {
            return;
        }
        let changed = self.links != task_links() || self.again > 0;
        self.again = self.again.saturating_sub(1);
        self.pace = if changed { *GLANCES.start() } else { (self.pace() * 2).min(*GLANCES.end()) };
        if changed || self.looked.is_none_or(|t| t.elapsed() >= LOOK) {
            self.look();
        }
    }

    /// When to call [`Timers::follow`] next.
    pub fn pace(&self) -> Duration {
        self.pace.max(*GLANCES.start())
    }

    /// The child side of fork: timers stay with the parent.
    pub fn forget(&mut self) {
        self.armed.clear();
        self.passed_over.clear();
        self.looked = None;
    }

    /// What may be freed once no thread is in a callback that began before now.
    pub fn collect_garbage(&mut self) {
        self.retired.clear();
    }

    /// Whether something waits for [`Timers::collect_garbage`].
    pub fn has_garbage(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Takes every timer down, for good.
    pub fn abandon(mut self) {
        publish(None);
        std::mem::take(&mut self.armed).into_values().for_each(delete);
        std::mem::forget((self.samplers, self.retired));
    }

    /// Gives every thread that can be sampled the timers that are wanted, and takes down all others.
    fn look(&mut self) {
        (self.links, self.looked) = (task_links(), Some(Instant::now()));
        let periods = self.samplers.as_ref().map_or(Vec::new(), |s| s.periods());
        let (threads, passed_over) = if periods.is_empty() { Default::default() } else { threads() };
        if !passed_over.is_subset(&self.passed_over) {
            self.again = AGAIN;
        }
        self.passed_over = passed_over;
        let wanted: BTreeSet<_> =
            threads.iter().flat_map(|tid| periods.iter().map(|period| (*tid, *period))).collect();
        self.armed.retain(|key, timer| {
            let keep = wanted.contains(key);
            if !keep {
                delete(*timer);
            }
            keep
        });
        for key in wanted {
            if let std::collections::btree_map::Entry::Vacant(place) = self.armed.entry(key)
                && let Some(timer) = create(key.0, key.1)
            {
                place.insert(timer);
            }
        }
    }
}

/// Threads that take a signal now: not ours, not those that block SIGTRAP. A debugger would stop at each sample.
pub(super) fn sampled_threads() -> BTreeSet<i32> {
    threads().0
}

/// The same, and the threads that block SIGTRAP.
fn threads() -> (BTreeSet<i32>, BTreeSet<i32>) {
    signals::reassert();
    if is_debugged() {
        return Default::default();
    }
    tids().into_iter().filter(|tid| !is_muted(*tid)).partition(|tid| !blocks_trap(*tid))
}

/// Two plus the number of threads; 0 without /proc.
fn task_links() -> u64 {
    rustix::fs::stat("/proc/self/task").map_or(0, |st| st.st_nlink)
}

/// The kernel's `struct sigevent`.
#[repr(C)]
struct SigEvent {
    value: u64,
    signo: i32,
    notify: i32,
    tid: i32,
    pad: [i32; 11],
}
const _: () = assert!(size_of::<SigEvent>() == 64);

/// The clock of a thread's processor time (`pthread_getcpuclockid`; CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED).
fn clock_of(tid: i32) -> i32 {
    !tid << 3 | 4 | 2
}

/// A running timer; `None` when the thread is gone or the kernel refuses.
fn create(tid: i32, period: u64) -> Option<i32> {
    let event = SigEvent {
        value: MARK | period & PERIOD,
        signo: libc::SIGTRAP,
        notify: libc::SIGEV_THREAD_ID,
        tid,
        pad: [0; 11],
    };
    let mut timer = 0i32;
    let args = [clock_of(tid) as usize, &raw const event as usize, &raw mut timer as usize, 0, 0, 0];
    // SAFETY: the event and the id are ours; the signal is answered by our handler.
    if unsafe { sys::syscall(libc::SYS_timer_create, args) } != 0 {
        return None;
    }
    let span = [(period / 1_000_000_000) as i64, (period % 1_000_000_000) as i64];
    let spec = [span, span];
    let args = [timer as usize, 0, &raw const spec as usize, 0, 0, 0];
    // SAFETY: `spec` is a struct itimerspec: interval, then first expiry.
    if unsafe { sys::syscall(libc::SYS_timer_settime, args) } != 0 {
        delete(timer);
        return None;
    }
    Some(timer)
}

fn delete(timer: i32) {
    // SAFETY: takes no pointer; the id is one that `create` got.
    unsafe { sys::syscall(libc::SYS_timer_delete, [timer as usize, 0, 0, 0, 0, 0]) };
}
