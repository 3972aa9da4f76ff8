//! Waiting on rings: makes the tool's descriptors readable while a ring has records, as the kernel's poll does.
//!
//! A ring's descriptor is one end of a socket pair. Before the tool waits ([`before_wait`]) every ring is armed, and its
//! end is made readable at once if records are there already; a producer that writes into an armed ring wakes the
//! waker thread, which makes the end readable. What was signalled is taken back at the next wait, so a ring that was
//! drained is not readable, and one that was not still is: level-triggered, like the kernel's.
//!
//! Of a user ring buffer, which the tool fills, the end is writable while there is room. A program that drained it wakes
//! the waker; the tool itself fills it, so that a look before it waits is enough.

use crate::fds;
use crate::object::{Events, MapObject, PerfObject};
use bpftime_agent::run::enter::Session as RunSession;
use bpftime_shm::UserRing;
use rustix::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Duration;

/// A ring with a waiting side.
#[derive(Clone)]
pub enum Ring {
    /// A BPF_MAP_TYPE_RINGBUF map.
    Map(Weak<MapObject>),
    /// A BPF_OUTPUT perf event.
    Perf(Weak<PerfObject>),
}

static RINGS: Mutex<Vec<Ring>> = Mutex::new(Vec::new());

/// Whether there are rings of other sessions, and a thread that looks at them.
static FOREIGN: AtomicBool = AtomicBool::new(false);
static WATCHING: AtomicBool = AtomicBool::new(false);
/// How often such rings are looked at: their producers wake the tools of their own sessions.
const FOREIGN_LOOK: Duration = Duration::from_millis(20);

/// Has a ring of another session looked after, from the tool's first wait on.
pub fn register_foreign(map: &Arc<MapObject>) {
    register(Ring::Map(Arc::downgrade(map)));
    FOREIGN.store(true, Ordering::Relaxed);
}

fn watch_foreign() {
    let body = || {
        std::mem::forget(bpftime_agent::hook::Mute::new());
        loop {
            std::thread::sleep(FOREIGN_LOOK);
            raise_ready();
        }
    };
    if bpftime_agent::lifecycle::spawn_quiet("bpftime-rings", body).is_err() {
        WATCHING.store(false, Ordering::Relaxed);
    }
}

/// Has a ring looked after.
pub fn register(ring: Ring) {
    RINGS.lock().unwrap_or_else(PoisonError::into_inner).push(ring);
}

/// The rings. In a forked child the lock may be held for ever by a thread that only its parent has.
fn rings() -> Option<MutexGuard<'static, Vec<Ring>>> {
    if crate::broker::is_ours() {
        return Some(RINGS.lock().unwrap_or_else(PoisonError::into_inner));
    }
    match RINGS.try_lock() {
        Ok(rings) => Some(rings),
        Err(TryLockError::Poisoned(p)) => Some(p.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Calls `f` for every live ring: its events, how to arm it, whether it has data. User rings are seen to on the way.
fn each(f: impl Fn(&Events, &dyn Fn() -> bool, &dyn Fn())) {
    let Some(mut rings) = rings() else { return };
    rings.retain(|ring| match ring {
        Ring::Map(w) => w.upgrade().is_some_and(|m| {
            if let (Some(events), Some(ring)) = (&m.events, m.handle.map.user_ring()) {
                show_room(events, ring);
            }
            if let (Some(events), Some(ring)) = (&m.events, m.handle.map.ringbuf()) {
                f(events, &|| ring.has_data(), &|| ring.armed().arm());
            }
            true
        }),
        Ring::Perf(w) => w.upgrade().is_some_and(|p| {
            if let (Some(events), Some((_, ring))) = (&p.events, p.ring.get()) {
                f(events, &|| ring.has_data(), &|| ring.armed().arm());
            }
            true
        }),
    });
}

/// Makes the end of a user ring writable if there is room, and unwritable if not.
fn show_room(events: &Events, ring: &UserRing) {
    loop {
        let full = !ring.has_room();
        if events.signalled.swap(full, Ordering::AcqRel) == full {
            return;
        }
        // Looked at again: a program may have drained meanwhile, and the waker have found nothing to do.
        fds::set_full(events.tool.as_fd(), &events.ours, full);
    }
}

/// Called at the start of every wait of the tool.
pub fn before_wait() {
    if FOREIGN.load(Ordering::Relaxed) && !WATCHING.swap(true, Ordering::Relaxed) {
        watch_foreign();
    }
    each(|events, has_data, arm| {
        // Armed before the look: a record written after the look finds the ring armed.
        arm();
        if has_data() {
            raise(events);
        } else if events.signalled.swap(false, Ordering::AcqRel) {
            fds::drain(events.tool.as_fd());
            if has_data() {
                raise(events);
            }
        }
    });
}

fn raise(events: &Events) {
    if !events.signalled.swap(true, Ordering::AcqRel) {
        fds::signal(&events.ours);
    }
}

fn raise_ready() {
    each(|events, has_data, _| {
        if has_data() {
            raise(events);
        }
    });
}

/// Starts the thread that turns producers' wakeups into readable descriptors.
pub fn start_waker(session: Arc<RunSession>) {
    let body = move || {
        std::mem::forget(bpftime_agent::hook::Mute::new());
        loop {
            let seq = session.page.wake_seq();
            raise_ready();
            session.page.wait(seq, Duration::from_secs(3600));
        }
    };
    if bpftime_agent::lifecycle::spawn_quiet("bpftime-waker", body).is_err() {
        tracing::error!("no thread for wakeups: events are seen at the tool's own timeouts only");
    }
}
