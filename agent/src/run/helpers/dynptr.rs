//! Dynptrs: helpers 197-203, and 209 which hands them to a callback. The verifier keeps their 16 bytes on the stack from
//! everybody else.

use super::map::map_of;
use super::walk::call;
use super::{EINVAL, errno, helper, ring};
use crate::run::Run;
use rustix::io::Errno;
use std::ops::ControlFlow;

/// `DYNPTR_MAX_SIZE`.
const MAX_SIZE: u64 = (1 << 24) - 1;
/// In `size`: nothing may be written.
const READ_ONLY: u32 = 1 << 31;

/// A dynptr, or nothing: `data` is null then.
#[repr(C)]
struct Dynptr {
    data: u64,
    size: u32,
    unused: u32,
}
const _: () = assert!(size_of::<Dynptr>() == 16);

impl Dynptr {
    const NULL: Dynptr = Dynptr { data: 0, size: 0, unused: 0 };

    fn len(&self) -> u64 {
        u64::from(self.size & !READ_ONLY)
    }

    /// The address of `len` bytes from `offset` on.
    fn part(&self, offset: u64, len: u64) -> Result<u64, Errno> {
        match self.len().checked_sub(offset) {
            _ if self.data == 0 => Err(Errno::INVAL),
            Some(left) if len <= left => Ok(self.data + offset),
            _ => Err(Errno::TOOBIG),
        }
    }
}

/// # Safety
/// `at` is where the verifier saw a dynptr, or room for one.
unsafe fn dynptr<'a>(at: u64) -> &'a mut Dynptr {
    // SAFETY: see above; slots are 8-aligned.
    unsafe { &mut *(at as *mut Dynptr) }
}

helper! {
    /// 197 `dynptr_from_mem(data, size, flags, ptr)`.
    fn dynptr_from_mem(run, data, size, flags, ptr) {
        // SAFETY: room for a dynptr by the helper's contract.
        let ptr = unsafe { dynptr(ptr) };
        *ptr = Dynptr::NULL;
        let size = u64::from(size as u32);
        if size > MAX_SIZE {
            return errno(Errno::TOOBIG);
        }
        if flags != 0 {
            return EINVAL;
        }
        *ptr = Dynptr { data, size: size as u32, unused: 0 };
        0
    }
}

helper! {
    /// 198 `ringbuf_reserve_dynptr(map, size, flags, ptr)`: what it makes must be given up even if this fails.
    fn ringbuf_reserve_dynptr(run, map, size, flags, ptr) {
        // SAFETY: room for a dynptr by the helper's contract.
        let ptr = unsafe { dynptr(ptr) };
        *ptr = Dynptr::NULL;
        let size = u64::from(size as u32);
        if flags != 0 {
            return EINVAL;
        }
        if size > MAX_SIZE {
            return errno(Errno::TOOBIG);
        }
        // SAFETY: a linked constant of the program.
        let data = ring::reserve(run, unsafe { map_of(map) }, size, 0);
        if data == 0 {
            return EINVAL;
        }
        *ptr = Dynptr { data, size: size as u32, unused: 0 };
        0
    }
}

/// Takes a record out of its dynptr.
///
/// # Safety
/// `ptr` is a dynptr by the helper's contract.
unsafe fn record_of(ptr: u64) -> Option<u64> {
    // SAFETY: see above.
    let ptr = unsafe { dynptr(ptr) };
    let data = std::mem::replace(ptr, Dynptr::NULL).data;
    (data != 0).then_some(data)
}

helper! {
    /// 199 `ringbuf_submit_dynptr(ptr, flags)`.
    fn ringbuf_submit_dynptr(run, ptr, flags) {
        // SAFETY: a dynptr by the helper's contract.
        if let Some(record) = unsafe { record_of(ptr) } {
            ring::submit(run, record, flags);
        }
        0
    }
}

helper! {
    /// 200 `ringbuf_discard_dynptr(ptr, flags)`.
    fn ringbuf_discard_dynptr(run, ptr, flags) {
        // SAFETY: a dynptr by the helper's contract.
        if let Some(record) = unsafe { record_of(ptr) } {
            ring::discard(run, record, flags);
        }
        0
    }
}

helper! {
    /// 201 `dynptr_read(dst, len, ptr, offset, flags)`.
    fn dynptr_read(run, dst, len, ptr, offset, flags) {
        // SAFETY: a dynptr by the helper's contract.
        let ptr = unsafe { dynptr(ptr) };
        let len = u64::from(len as u32);
        if flags != 0 || ptr.data == 0 {
            return EINVAL;
        }
        match ptr.part(offset, len) {
            // SAFETY: dst has room for len bytes by the helper's contract, src has them; they may overlap.
            Ok(src) => unsafe { std::ptr::copy(src as *const u8, dst as *mut u8, len as usize) },
            Err(e) => return errno(e),
        }
        0
    }
}

helper! {
    /// 202 `dynptr_write(ptr, offset, src, len, flags)`.
    fn dynptr_write(run, ptr, offset, src, len, flags) {
        // SAFETY: a dynptr by the helper's contract.
        let ptr = unsafe { dynptr(ptr) };
        let len = u64::from(len as u32);
        if flags != 0 || ptr.data == 0 || ptr.size & READ_ONLY != 0 {
            return EINVAL;
        }
        match ptr.part(offset, len) {
            // SAFETY: src has len bytes by the helper's contract, dst has room for them; they may overlap.
            Ok(dst) => unsafe { std::ptr::copy(src as *const u8, dst as *mut u8, len as usize) },
            Err(e) => return errno(e),
        }
        0
    }
}

helper! {
    /// 203 `dynptr_data(ptr, offset, len)`: the address of that part, or null.
    fn dynptr_data(run, ptr, offset, len) {
        // SAFETY: a dynptr by the helper's contract.
        let ptr = unsafe { dynptr(ptr) };
        let part = ptr.part(offset, u64::from(len as u32)).unwrap_or(0);
        if ptr.size & READ_ONLY != 0 { 0 } else { part }
    }
}

helper! {
    /// 209 `user_ringbuf_drain(map, callback, ctx, flags)`: how many samples the callback saw.
    fn user_ringbuf_drain(run, map, callback, ctx, flags) {
        // SAFETY: a linked constant of the program.
        let Some(ring) = (unsafe { map_of(map).map.user_ring() }) else { return EINVAL };
        let me = run.lock_id();
        let run: *mut Run = run;
        let posted = ring.drain(me, flags, |sample, len| {
            let mut ptr = Dynptr { data: sample as u64, size: len | READ_ONLY, unused: 0 };
            // SAFETY: a function of the program, as the verifier saw; the run is not otherwise borrowed.
            let go_on = unsafe {
                (*run).header.fuel -= 1;
                let stop = call(callback, [&raw mut ptr as u64, ctx, 0, 0], run) != 0;
                !stop && (*run).header.fuel >= 0
            };
            if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if posted.wake {
            // SAFETY: as above.
            unsafe { (*run).page().wake_tool() };
        }
        posted.ret as u64
    }
}
