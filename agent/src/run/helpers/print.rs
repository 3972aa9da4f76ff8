//! Text: helpers 6, 165 and 177.

use super::format::{Part, measure, walk};
use super::{EINVAL, errno, helper};
use crate::run::{Run, clock};
use bpftime_abi::format::{MAX_ARGS, MAX_PRINTK_ARGS};
use bpftime_shm::session::text::{Sink, TextRing};

/// # Safety
/// `ptr` has `len` bytes by the helper's contract, or `len` is 0.
unsafe fn bytes<'a>(ptr: u64, len: u64) -> &'a [u8] {
    let len = len as u32 as usize;
    if len == 0 {
        return &[];
    }
    // SAFETY: see above.
    unsafe { std::slice::from_raw_parts(ptr as *const u8, len) }
}

/// The values that a program hands over as an array: at most [`MAX_ARGS`], 8 bytes each.
struct Values([u64; MAX_ARGS], usize);

impl Values {
    /// # Safety
    /// `ptr` has `len` bytes by the helper's contract, or is null and `len` is 0.
    unsafe fn read(ptr: u64, len: u64) -> Option<Values> {
        let len = len as u32 as usize;
        if !len.is_multiple_of(8) || len > MAX_ARGS * 8 || (len > 0 && ptr == 0) {
            return None;
        }
        let mut values = [0; MAX_ARGS];
        // SAFETY: len bytes on both sides.
        unsafe { std::ptr::copy_nonoverlapping(ptr as *const u8, values.as_mut_ptr().cast::<u8>(), len) };
        Some(Values(values, len / 8))
    }

    fn all(&self) -> &[u64] {
        &self.0[..self.1]
    }
}

/// One line into the session's text. The length, as if there were room for all of it.
fn print(run: &mut Run, format: &[u8], values: &[u64]) -> u64 {
    let len = match measure(run, format, values) {
        Ok(len) => len,
        Err(e) => return errno(e),
    };
    let comm = super::task::comm();
    let (owner, tid, cpu) = (run.owner.owner(), run.tid(), run.cpu());
    let text: *const TextRing = run.page().text();
    // SAFETY: the session outlives the run.
    let text = unsafe { &*text };
    let wake = text.print_with(owner, tid, cpu, clock::monotonic(), &comm, |line: &mut Sink| {
        // What was good a moment ago; a string that changed since is cut where the line ends.
        let _ = walk(run, format, values, &mut |part| match part {
            Part::Bytes(bytes) => line.push(bytes),
            Part::Fill(byte, n) => (0..n.min(line.room())).for_each(|_| line.push(&[byte])),
        });
    });
    if wake {
        text.wake();
    }
    len as u64
}

helper! {
    /// 6 `trace_printk(fmt, fmt_size, value, value, value)`.
    fn trace_printk(run, fmt, size, a, b, c) {
        // SAFETY: fmt has size bytes by the helper's contract.
        let format = unsafe { bytes(fmt, size) };
        let values: [u64; MAX_PRINTK_ARGS] = [a, b, c];
        print(run, format, &values)
    }
}

helper! {
    /// 177 `trace_vprintk(fmt, fmt_size, values, len)`.
    fn trace_vprintk(run, fmt, size, values, len) {
        // SAFETY: fmt has size bytes, values has len bytes by the helper's contract.
        let (format, values) = unsafe { (bytes(fmt, size), Values::read(values, len)) };
        match values {
            Some(values) => print(run, format, values.all()),
            None => EINVAL,
        }
    }
}

helper! {
    /// 165 `snprintf(str, str_size, fmt, values, len)`: the length with its terminator, as if there were room.
    fn snprintf(run, dst, size, fmt, values, len) {
        // SAFETY: values has len bytes by the helper's contract.
        let Some(values) = (unsafe { Values::read(values, len) }) else { return EINVAL };
        // SAFETY: a constant string that the verifier saw the end of.
        let format = unsafe { std::ffi::CStr::from_ptr(fmt as *const _) }.to_bytes_with_nul();
        let total = match measure(run, format, values.all()) {
            Ok(total) => total,
            Err(e) => return errno(e),
        };
        let size = size as u32 as usize;
        let mut at = 0;
        let written = walk(run, format, values.all(), &mut |part| {
            let n = part.len().min(size.saturating_sub(1 + at));
            // SAFETY: at + n < size, and dst has room for size bytes by the helper's contract.
            unsafe {
                let to = (dst as *mut u8).add(at);
                match part {
                    Part::Bytes(bytes) => std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, n),
                    Part::Fill(byte, _) => std::ptr::write_bytes(to, byte, n),
                }
            }
            at += n;
        });
        if size > 0 {
            // SAFETY: at < size.
            unsafe { *(dst as *mut u8).add(at) = 0 };
        }
        match written {
            Ok(()) => total as u64 + 1,
            Err(e) => errno(e),
        }
    }
}
