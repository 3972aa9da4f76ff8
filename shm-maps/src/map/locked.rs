//! Values with parts that are no data, and the lock that BPF_F_LOCK takes.
//!
//! Nothing here ever uses those parts in place: programs that could are refused at load, and the lock is the map's, in
//! its header. So the parts are zero at any time, and what is copied in either direction is data and zeros.
//!
//! | who | how it names itself in the lock | who frees it after a death |
//! |---|---|---|
//! | a traced process | its index in the session, its thread | [`Map::recover`] |
//! | a tool | its thread and when that began | whoever waits ([`began`]) |

use super::Map;
use super::ops::Ops as _;
use super::table::with_kind;
use crate::ring::{LockId, OwnedLock};
use crate::uapi::BPF_F_LOCK;
use crate::{copy, neg, round8};
use bpftime_abi::field::{Fields, SPIN_LOCK};
use core::sync::atomic::Ordering::Relaxed;
use rustix::io::Errno;
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// A holder copies one value. One that is stopped meanwhile must not stop others for good.
const PATIENCE: Duration = Duration::from_secs(1);
/// In the upper half of a lock's word: a tool's thread, with the time it began instead of an index.
const TOOL: u32 = 1 << 31;

/// The lock, taken.
pub(super) struct Locked<'a>(&'a OwnedLock);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

impl Map {
    /// Takes the lock if `flags` ask for it.
    ///
    /// # Errors
    /// EINVAL when values have no lock. EBUSY when this thread holds it (we are in its signal handler), or the holder
    /// lives and does not go on for a second.
    pub(super) fn lock_if(&self, flags: u64) -> Result<Option<Locked<'_>>, Errno> {
        if flags & BPF_F_LOCK == 0 {
            return Ok(None);
        }
        if !self.def.fields.has(SPIN_LOCK) {
            return Err(Errno::INVAL);
        }
        let (lock, me) = (&self.state().lock, this_tool_thread());
        let end = Instant::now() + PATIENCE;
        while !lock.try_lock(me) {
            match lock.holder() {
                Some(holder) if holder == me => return Err(Errno::BUSY),
                Some(holder) if is_dead(holder) => lock.take_from(holder),
                _ if Instant::now() > end => return Err(Errno::BUSY),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        }
        Ok(Some(Locked(lock)))
    }

    /// Zeroes what is no data in values that the tool gets.
    pub(super) fn clear_parts(&self, values: &mut [u8]) {
        if !self.def.fields.is_empty() {
            values.chunks_mut(self.one_of(values.len())).for_each(|value| self.def.fields.clear(value));
        }
    }

    /// The tool's values with zeros where there is no data.
    pub(super) fn data_of<'v>(&self, values: &'v [u8]) -> Cow<'v, [u8]> {
        let mut data = Cow::Borrowed(values);
        if !self.def.fields.is_empty() {
            self.clear_parts(data.to_mut());
        }
        data
    }

    /// Bytes of one CPU's value among `len`.
    fn one_of(&self, len: usize) -> usize {
        let one = round8(self.def.value_size as usize);
        if len > one { one } else { len.max(1) }
    }

    /// bpf_map_update_elem of a map whose values have such parts, or with BPF_F_LOCK.
    ///
    /// The parts are zeroed behind the update. A program that reads a pointer there in between gets what the update
    /// wrote: a number, which is all that the verifier takes it for.
    ///
    /// # Safety
    /// As for [`Map::update`].
    #[cold]
    pub(super) unsafe fn update_parts(&self, key: *const u8, value: *const u8, flags: u64, cpu: u32) -> i64 {
        let lock = &self.state().lock;
        let locked = flags & BPF_F_LOCK != 0;
        if locked && !self.def.fields.has(SPIN_LOCK) {
            return neg(Errno::INVAL);
        }
        if locked && !lock.try_lock(LockId::of_thread(self.owner.load(Relaxed).into())) {
            return neg(Errno::BUSY);
        }
        let _guard = locked.then(|| Locked(lock));
        // SAFETY: the caller's promise.
        let done = with_kind!(&self.kind, m => unsafe { m.update(key, value, flags & !BPF_F_LOCK, cpu) });
        if done == 0 {
            // SAFETY: as above.
            unsafe { zero_parts(&self.def.fields, self.lookup(key, cpu)) };
        }
        done
    }

    /// BPF_MAP_UPDATE_ELEM of a TASK_STORAGE, of the thread `tid`; `now` in nanoseconds since boot.
    ///
    /// # Errors
    /// EINVAL for unknown flags, EEXIST, ENOENT, ENOMEM; those of the lock.
    pub fn set_storage(&self, tid: u32, value: &[u8], now: u64, flags: u64) -> Result<(), Errno> {
        let storage = self.task_storage().ok_or(Errno::INVAL)?;
        let _lock = self.lock_if(flags)?;
        storage.set(tid, &self.data_of(value), now, flags & !BPF_F_LOCK)
    }
}

/// Zeroes the parts of an element; null for none.
///
/// # Safety
/// `element` is null or a value of a map with these parts.
pub(super) unsafe fn zero_parts(fields: &Fields, element: *mut u8) {
    for field in fields.iter().filter(|_| !element.is_null()) {
        let zeros = [0u8; 16];
        // SAFETY: within the value, which is 8-aligned; no part is longer than the zeros.
        unsafe { zero(element.wrapping_add(field.at as usize), &zeros[..field.kind.size as usize]) };
    }
}

/// Stores zeros byte by byte where a part is not 8-aligned.
///
/// # Safety
/// `at` may be written for `zeros.len()` bytes.
unsafe fn zero(at: *mut u8, zeros: &[u8]) {
    if at.addr().is_multiple_of(8) {
        // SAFETY: aligned; the caller's promise.
        return unsafe { copy::to_shared(at, zeros.as_ptr(), zeros.len()) };
    }
    // SAFETY: parts are 4-aligned, and those that are not 8-aligned are four bytes; atomic.
    unsafe { (*at.cast::<core::sync::atomic::AtomicU32>()).store(0, Relaxed) };
}

/// The calling thread of a tool.
fn this_tool_thread() -> LockId {
    let me = LockId::of_thread(0);
    LockId::new(TOOL | began(me.tid()).unwrap_or(0), me.tid())
}

/// Whether the tool's thread that a lock names is gone. Of traced processes the session knows.
fn is_dead(holder: LockId) -> bool {
    holder.owner() & TOOL != 0 && began(holder.tid()).is_none_or(|began| TOOL | began != holder.owner())
}

/// When a thread began, in ticks, as far as the word has room: field 22 of its stat. An id that was given to another
/// thread meanwhile is told apart by it.
fn began(tid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    let ticks = stat.rsplit_once(')')?.1.split_whitespace().nth(22 - 3)?;
    Some(ticks.parse::<u64>().ok()? as u32 & !TOOL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MapDef;
    use crate::uapi::{BPF_ANY, BPF_MAP_TYPE_ARRAY};

    /// An array of one value: a number, a lock, a number.
    fn locked_array() -> Map {
        let mut fields = Fields::default();
        fields.push(SPIN_LOCK, 4).expect("room");
        let (map_type, key_size, value_size, max_entries) = (BPF_MAP_TYPE_ARRAY, 4, 12, 1);
        let def = MapDef { map_type, key_size, value_size, max_entries, fields, ..MapDef::default() };
        Map::create(&def, 1).expect("map").1
    }

    fn lookup(map: &Map) -> Result<[u8; 12], Errno> {
        let mut value = [0x55; 12];
        map.sys_lookup(&[0; 4], &mut value, BPF_F_LOCK).map(|()| value)
    }

    #[test]
    fn the_lock_of_a_dead_tool_is_taken_over() {
        let map = locked_array();
        map.sys_update(&[0; 4], &[0xff; 12], BPF_ANY).expect("update");
        let lock = &map.state().lock;
        let gone = std::process::Command::new("true").spawn().and_then(|mut c| c.wait().map(|_| c.id()));
        assert!(lock.try_lock(LockId::new(TOOL | 7, gone.expect("a process"))));
        assert_eq!(lookup(&map), Ok([255, 255, 255, 255, 0, 0, 0, 0, 255, 255, 255, 255]));
        // The same thread id, of a thread that began at another time.
        let me = this_tool_thread();
        assert!(lock.try_lock(LockId::new(me.owner() ^ 1, me.tid())));
        assert!(lookup(&map).is_ok() && lock.holder().is_none());
    }

    #[test]
    fn the_lock_of_the_living_is_waited_for_and_not_for_ever() {
        let map = locked_array();
        let lock = &map.state().lock;
        assert!(lock.try_lock(this_tool_thread()));
        assert_eq!(lookup(&map), Err(Errno::BUSY), "this thread's own");
        std::thread::scope(|s| {
            let other = s.spawn(|| lookup(&map));
            std::thread::sleep(Duration::from_millis(20));
            lock.unlock();
            assert_eq!(other.join().expect("thread"), Ok([0; 12]));
        });
        // A traced process's: the session frees it when it ends.
        assert!(lock.try_lock(LockId::new(5, 1)));
        assert_eq!(lookup(&map), Err(Errno::BUSY));
        assert_eq!((map.recover(6), map.recover(5)), (0, 1));
        assert!(lookup(&map).is_ok());
    }

    #[test]
    fn programs_leave_zeros_where_there_is_no_data() {
        let map = locked_array();
        let (key, value) = ([0u8; 4], [0xffu8; 12]);
        // SAFETY: key and value of the map's sizes; one CPU.
        let done = unsafe { map.update(key.as_ptr(), value.as_ptr(), BPF_F_LOCK, 0) };
        assert_eq!((done, lookup(&map)), (0, Ok([255, 255, 255, 255, 0, 0, 0, 0, 255, 255, 255, 255])));
        // SAFETY: as above.
        let element = unsafe { map.lookup(key.as_ptr(), 0).cast::<[u8; 12]>().read() };
        assert_eq!(element[4..8], [0; 4]);
    }
}
