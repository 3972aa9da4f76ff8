//! The verifier's log buffer. What is stored, and which error wins, is as asked from a 6.18 kernel
//! (tests/e2e/guards.rs).

use crate::user;
use bpftime_abi::attr::ProgLoad;
use rustix::io::Errno;

/// Where a load's log goes.
pub struct LogBuffer {
    /// `attr.log_level`.
    pub level: u32,
    size: u32,
    addr: u64,
}

/// `BPF_LOG_FIXED`: what does not fit is cut off at the end, not at the beginning.
const FIXED: u32 = 8;
/// `BPF_LOG_MASK`: two level bits, the statistics bit and [`FIXED`].
const LEVEL_MASK: u32 = 7 | FIXED;

impl LogBuffer {
    /// Checks the log fields as the kernel does.
    pub fn new(a: &ProgLoad) -> Result<Self, Errno> {
        let mismatch = (a.log_buf != 0) != (a.log_size != 0);
        let no_level = a.log_buf != 0 && a.log_level == 0;
        if mismatch || no_level || a.log_level & !LEVEL_MASK != 0 || a.log_size > u32::MAX >> 2 {
            return Err(Errno::INVAL);
        }
        Ok(Self { level: a.log_level, size: a.log_size, addr: a.log_buf })
    }

    /// `attr.log_true_size` for this text: the buffer that holds all of it.
    pub fn true_size(&self, text: &str) -> u32 {
        if self.level == 0 { 0 } else { u32::try_from(text.len() + 1).unwrap_or(u32::MAX) }
    }

    /// Stores the log. `ENOSPC` when the buffer was too small: then it holds as much of the end (or of the beginning) as
    /// there is room for.
    pub fn store(&self, text: &str) -> Result<(), Errno> {
        if self.level == 0 || self.addr == 0 {
            return Ok(());
        }
        let room = self.size as usize - 1;
        let cut = text.len().saturating_sub(room);
        let kept = if self.level & FIXED != 0 { 0..text.len() - cut } else { cut..text.len() };
        let mut bytes = text.as_bytes()[kept].to_vec();
        bytes.push(0);
        user::write(self.addr, &bytes)?;
        if cut > 0 { Err(Errno::NOSPC) } else { Ok(()) }
    }
}
