//! The verifier's log buffer.

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

/// `BPF_LOG_MASK`: two level bits and the statistics bit.
const LEVEL_MASK: u32 = 7;

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

    /// Stores the log. `ENOSPC` when the buffer was too small: then it holds the end, as the kernel's rotating log.
    pub fn store(&self, text: &str) -> Result<(), Errno> {
        if self.level == 0 || self.addr == 0 {
            return Ok(());
        }
        let room = self.size as usize - 1;
        let cut = text.len().saturating_sub(room);
        let mut bytes = text.as_bytes()[cut..].to_vec();
        bytes.push(0);
        user::write(self.addr, &bytes)?;
        if cut > 0 { Err(Errno::NOSPC) } else { Ok(()) }
    }
}
