//! The verifier's log buffer.

use crate::user;
use bpftime_abi::attr::ProgLoad;
use rustix::io::Errno;

/// Where a load's log goes.
pub struct Log {
    level: u32,
    size: u32,
    buf: u64,
    text: String,
}

/// `BPF_LOG_MASK`: two level bits and the statistics bit.
const LEVEL_MASK: u32 = 7;

impl Log {
    /// Checks the log fields as the kernel does.
    pub fn new(a: &ProgLoad) -> Result<Self, Errno> {
        let mismatch = (a.log_buf != 0) != (a.log_size != 0);
        let no_level = a.log_buf != 0 && a.log_level == 0;
        if mismatch || no_level || a.log_level & !LEVEL_MASK != 0 || a.log_size > u32::MAX >> 2 {
            return Err(Errno::INVAL);
        }
        Ok(Self { level: a.log_level, size: a.log_size, buf: a.log_buf, text: String::new() })
    }

    /// Adds a line.
    pub fn line(&mut self, line: &str) {
        if self.level != 0 {
            self.text.push_str(line);
            self.text.push('\n');
        }
    }

    /// The statistics line every log ends with.
    pub fn finish(&mut self, insns: usize) {
        self.line(&format!(
            "processed {insns} insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0"
        ));
    }

    /// Stores the log. `ENOSPC` when the buffer was too small: then it holds the end, as the kernel's rotating log.
    pub fn store(&self) -> Result<(), Errno> {
        if self.level == 0 || self.buf == 0 {
            return Ok(());
        }
        let mut bytes = self.text.clone().into_bytes();
        let room = self.size as usize - 1;
        let cut = bytes.len().saturating_sub(room);
        bytes.drain(..cut);
        bytes.push(0);
        user::write(self.buf, &bytes)?;
        if cut > 0 { Err(Errno::NOSPC) } else { Ok(()) }
    }
}
