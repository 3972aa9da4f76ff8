//! The verifier log, in the shape that tools parse.

use std::fmt::Write;

/// `BPF_LOG_LEVEL1`: instructions and states.
const LEVEL1: u32 = 1;
/// `BPF_LOG_LEVEL2`: more of them.
const LEVEL2: u32 = 2;
/// Text that is kept; the oldest goes first, as a reader wants the end.
const KEPT: usize = 16 << 20;

/// Collects the text of one load. The reason of a refusal and the statistics are there at any level but 0.
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
    /// A log of `attr.log_level`: 1 and 2 are instructions with states, 4 only the closing statistics.
    pub fn new(level: u32) -> Log {
        Log { level, ..Log::default() }
    }

    /// Whether instructions are wanted.
    pub fn wants_insns(&self) -> bool {
        self.level & (LEVEL1 | LEVEL2) != 0
    }

    /// Whether states are wanted with every instruction.
    pub fn wants_all(&self) -> bool {
        self.level & LEVEL2 != 0
    }

    /// Adds a line, unless nothing is wanted.
    pub fn line(&mut self, line: &str) {
        if self.wants_insns() {
            self.push(line);
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

    pub(super) fn finish(&mut self, stats: &Stats) {
        if self.level == 0 {
            return;
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
