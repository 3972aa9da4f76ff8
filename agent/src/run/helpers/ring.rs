//! Events to the tool: helpers 25 and 130-134.

use super::map::map_of;
use super::{EINVAL, errno, helper};
use crate::run::{MapHandle, Run};
use bpftime_abi::perf::PERF_SAMPLE_RAW;
use bpftime_shm::RingBuf;
use bpftime_shm::ring::{Posted, Sample};
use rustix::io::Errno;

/// `BPF_F_INDEX_MASK`, and its value for "the CPU this runs on".
const INDEX_MASK: u64 = 0xffff_ffff;

/// Wakes the tool when a ring says that its consumer waits.
#[inline]
fn wake_if(run: &Run, wake: bool) {
    if wake {
        run.page().wake_tool();
    }
}

helper! {
    /// 25 `perf_event_output(ctx, map, flags, data, size)`: one sample into a perf buffer of the map.
    fn perf_event_output(run, ctx, map, flags, data, size) {
        if flags & !(INDEX_MASK | 0xfffff << 32) != 0 {
            return EINVAL;
        }
        // SAFETY: a linked constant of the program.
        let Some(array) = (unsafe { map_of(map).map.perf_event_array() }) else { return EINVAL };
        let index = if flags & INDEX_MASK == INDEX_MASK { run.cpu() } else { flags as u32 };
        // SAFETY: rings taken out of the array are not freed while programs that name it are linked.
        let ring = match unsafe { array.ring(index) } {
            Ok(ring) => ring,
            Err(e) => return errno(e),
        };
        // Another CPU's buffer has another producer; the kernel refuses it too.
        if index != run.cpu() {
            return errno(Errno::OPNOTSUPP);
        }
        // SAFETY: data has size bytes by the helper's contract.
        let raw = unsafe { std::slice::from_raw_parts(data as *const u8, size as u32 as usize) };
        let sample = Sample { sample_type: PERF_SAMPLE_RAW, ..Sample::default() };
        // SAFETY: this run owns the CPU slot, hence the ring.
        let Posted { ret, wake } = unsafe { ring.output(&sample, &[raw]) };
        wake_if(run, wake);
        ret as u64
    }
}

/// The ring that `sample` was reserved on, one of the running programs' maps.
fn ring_of(run: &Run, sample: u64) -> Option<&RingBuf> {
    run.maps().find_map(|m| m.ring_holding(sample as *const u8))
}

helper! {
    /// 130 `ringbuf_output(map, data, size, flags)`.
    fn ringbuf_output(run, map, data, size, flags) {
        // SAFETY: a linked constant of the program.
        let Some(ring) = (unsafe { map_of(map).map.ringbuf() }) else { return EINVAL };
        // SAFETY: data has size bytes by the helper's contract.
        let Posted { ret, wake } = unsafe { ring.output(data as *const u8, size, flags, run.lock_id()) };
        wake_if(run, wake);
        ret as u64
    }
}

/// A record that the run holds from now on; 0 if there is none to be had.
pub(super) fn reserve(run: &mut Run, map: &MapHandle, size: u64, flags: u64) -> u64 {
    let Some(ring) = map.map.ringbuf().filter(|_| run.held.has_room()) else { return 0 };
    let record = ring.reserve(size, flags, run.lock_id()) as u64;
    if record != 0 {
        run.held.add(record);
    }
    record
}

/// Gives a record of the run to the consumer.
pub(super) fn submit(run: &mut Run, record: u64, flags: u64) {
    run.held.remove(record);
    if let Some(ring) = ring_of(run, record) {
        // SAFETY: the record comes from a reserve of this run.
        let wake = unsafe { ring.submit(record as *mut u8, flags) };
        wake_if(run, wake);
    }
}

/// Takes a record of the run back.
pub fn discard(run: &mut Run, record: u64, flags: u64) {
    run.held.remove(record);
    if let Some(ring) = ring_of(run, record) {
        // SAFETY: as above.
        let wake = unsafe { ring.discard(record as *mut u8, flags) };
        wake_if(run, wake);
    }
}

helper! {
    /// 131 `ringbuf_reserve(map, size, flags)`: a record to fill, or null.
    fn ringbuf_reserve(run, map, size, flags) {
        // SAFETY: a linked constant of the program.
        reserve(run, unsafe { map_of(map) }, size, flags)
    }
}

helper! {
    /// 132 `ringbuf_submit(record, flags)`.
    fn ringbuf_submit(run, record, flags) {
        submit(run, record, flags);
        0
    }
}

helper! {
    /// 133 `ringbuf_discard(record, flags)`.
    fn ringbuf_discard(run, record, flags) {
        discard(run, record, flags);
        0
    }
}

helper! {
    /// 134 `ringbuf_query(map, what)`.
    fn ringbuf_query(run, map, what) {
        // SAFETY: a linked constant of the program.
        unsafe { map_of(map).map.ringbuf() }.map_or(0, |r| r.query(what))
    }
}
