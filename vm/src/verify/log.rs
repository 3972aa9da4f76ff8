//! The verifier log, in the shape that tools parse and people know from the kernel.
//!
//! | level | what |
//! |---|---|
//! | 1 | instructions and what they change, of the path that was refused only: one that ended well is taken back |
//! | 2 | of every path |
//! | 4 | how long it took, how deep stacks are |
//! | 8 | the buffer keeps the beginning instead of the end (the loader's business) |
//!
//! At any of them there is the reason of a refusal, and the closing line with its counts.

use std::fmt::Write;
use std::time::Duration;

/// `BPF_LOG_LEVEL1`: instructions and states.
const LEVEL1: u32 = 1;
/// `BPF_LOG_LEVEL2`: more of them.
const LEVEL2: u32 = 2;
/// `BPF_LOG_STATS`.
const STATS: u32 = 4;
/// Text that is kept; the oldest goes first, as a reader wants the end.
const KEPT: usize = 16 << 20;

/// Collects the text of one load.
#[derive(Clone, Debug, Default)]
pub struct Log {
    level: u32,
    text: String,
    dropped: u64,
}

/// What the closing line counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instructions walked over.
    pub processed: usize,
    /// Most states kept for one instruction.
    pub max_states_per_insn: usize,
    /// States kept in all.
    pub total_states: usize,
    /// Most states kept at a time.
    pub peak_states: usize,
}

impl Log {
    /// A log of `attr.log_level`.
    pub fn new(level: u32) -> Log {
        Log { level, ..Log::default() }
    }

    /// Whether instructions are wanted.
    pub fn wants_insns(&self) -> bool {
        self.level & (LEVEL1 | LEVEL2) != 0
    }

    /// Whether those of paths that ended well are wanted, too.
    pub(super) fn wants_all(&self) -> bool {
        self.level & LEVEL2 != 0
    }

    /// Adds a line about the walk, if that is wanted.
    pub(super) fn line(&mut self, line: &str) {
        if self.wants_insns() {
            self.push(line);
        }
    }

    /// An instruction and what it changed.
    pub(super) fn insn(&mut self, text: &str, change: &str) {
        if change.is_empty() {
            return self.line(text);
        }
        // Columns as in the kernel's log.
        let column = (text.len() + 5).max(40).next_multiple_of(8) - 2;
        self.line(&format!("{text:<column$}; {change}"));
    }

    /// Adds the reason of a refusal.
    pub fn reason(&mut self, reason: &str) {
        if self.level != 0 {
            self.push(reason);
        }
    }

    /// Where the text ends now.
    pub(super) fn end(&self) -> u64 {
        self.dropped + self.text.len() as u64
    }

    /// Takes back what was written after `end`.
    pub(super) fn rewind(&mut self, end: u64) {
        if !self.wants_all() {
            self.text.truncate(end.saturating_sub(self.dropped) as usize);
        }
    }

    fn push(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
        if self.text.len() > 2 * KEPT {
            let cut = self.text.len() - KEPT;
            let cut = self.text[cut..].find('\n').map_or(cut, |nl| cut + nl + 1);
            self.dropped += cut as u64;
            self.text.drain(..cut);
        }
    }

    /// The closing lines. `depths` are bytes of stack by function.
    pub fn finish(&mut self, stats: &Stats, time: Duration, depths: &[u32]) {
        if self.level == 0 {
            return;
        }
        if self.level & STATS != 0 {
            let depths: Vec<String> = depths.iter().map(u32::to_string).collect();
            self.push(&format!("verification time {} usec", time.as_micros()));
            self.push(&format!("stack depth {}", depths.join("+")));
        }
        let mut line = String::new();
        let Stats { processed, max_states_per_insn, total_states, peak_states } = stats;
        let _ = write!(line, "processed {processed} insns (limit 1000000) max_states_per_insn ");
        let _ = write!(
            line,
            "{max_states_per_insn} total_states {total_states} peak_states {peak_states} mark_read 0"
        );
        self.push(&line);
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Bytes that were dropped from the front.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
