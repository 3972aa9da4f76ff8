//! A set of bytes of one frame.

use crate::isa::MAX_STACK;
use std::ops::Range;

const WORDS: usize = MAX_STACK as usize / 64;

/// Bytes of a frame, by offset from r10: -512 to -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackBytes([u64; WORDS]);

impl StackBytes {
    /// The empty set.
    pub const NONE: StackBytes = StackBytes([0; WORDS]);

    /// The `depth` bytes below r10.
    pub fn below(depth: u32) -> StackBytes {
        let mut bytes = StackBytes::NONE;
        (1..=i64::from(depth.min(MAX_STACK))).for_each(|n| bytes.insert(-n));
        bytes
    }

    /// Adds a byte; one that is no byte of a frame is ignored.
    pub fn insert(&mut self, off: i64) {
        if let Some((word, bit)) = index(off) {
            self.0[word] |= bit;
        }
    }

    /// Whether the byte is in it.
    pub fn contains(&self, off: i64) -> bool {
        index(off).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }

    /// The bytes as ranges of offsets from r10, lowest first, each as long as can be.
    pub fn ranges(&self) -> impl Iterator<Item = Range<i32>> + '_ {
        let mut next = -(MAX_STACK as i32);
        std::iter::from_fn(move || {
            let start = (next..0).find(|off| self.contains(i64::from(*off)))?;
            let end = (start..0).find(|off| !self.contains(i64::from(*off))).unwrap_or(0);
            next = end;
            Some(start..end)
        })
    }
}

fn index(off: i64) -> Option<(usize, u64)> {
    let below = usize::try_from(-1 - off).ok().filter(|n| *n < MAX_STACK as usize)?;
    Some((below / 64, 1 << (below % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_ranges() {
        let mut bytes = StackBytes::below(3);
        bytes.insert(-512);
        bytes.insert(-70);
        bytes.insert(-69);
        bytes.insert(0);
        bytes.insert(-513);
        let ranges = |bytes: StackBytes| bytes.ranges().map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(ranges(bytes), [(-512, -511), (-70, -68), (-3, 0)]);
        assert_eq!(ranges(StackBytes::NONE), []);
        assert_eq!(ranges(StackBytes::below(1000)), [(-512, 0)]);
    }
}
