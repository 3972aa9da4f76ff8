//! /proc/self/maps, as far as the engine cares.

use std::ops::Range;

/// One mapping.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    pub range: Range<usize>,
    pub prot: i32,
    pub stack: bool,
}

/// The address space at one moment.
#[derive(Debug, Default)]
pub(super) struct Maps(pub Vec<Mapping>);

impl Maps {
    pub fn read() -> Self {
        let text = std::fs::read_to_string("/proc/thread-self/maps").unwrap_or_default();
        Self(text.lines().filter_map(parse).collect())
    }

    fn find(&self, addr: usize) -> Option<&Mapping> {
        let i = self.0.partition_point(|m| m.range.end <= addr);
        self.0.get(i).filter(|m| m.range.contains(&addr))
    }

    pub fn executable(&self, addr: usize) -> bool {
        self.find(addr).is_some_and(|m| m.prot & libc::PROT_EXEC != 0)
    }

    /// PROT_* of the page at `addr`.
    pub fn protection(&self, addr: usize) -> Option<i32> {
        self.find(addr).map(|m| m.prot)
    }

    /// Unmapped ranges that we may use, ascending. Not the one below the main stack, which grows into it.
    pub fn gaps(&self) -> impl DoubleEndedIterator<Item = Range<usize>> + '_ {
        /// vm.mmap_min_addr is 64 KiB by default; a null dereference must keep faulting well above it.
        const LOWEST: usize = 0x11_0000;
        const HIGHEST: usize = 0x7fff_ffff_0000;
        let starts = std::iter::once(LOWEST).chain(self.0.iter().map(|m| m.range.end.max(LOWEST)));
        let ends =
            self.0.iter().map(|m| (m.range.start, m.stack)).chain([(HIGHEST, false)]).collect::<Vec<_>>();
        let starts = starts.collect::<Vec<_>>();
        starts.into_iter().zip(ends).filter(|(s, (e, stack))| s < e && !stack).map(|(s, (e, _))| s..e)
    }
}

fn parse(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let perms = fields.next()?.as_bytes();
    let bit = |i: usize, c: u8, v: i32| if perms.get(i) == Some(&c) { v } else { 0 };
    Some(Mapping {
        range: usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?,
        prot: bit(0, b'r', libc::PROT_READ) | bit(1, b'w', libc::PROT_WRITE) | bit(2, b'x', libc::PROT_EXEC),
        stack: line.ends_with("[stack]"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_below_the_stack_is_not_offered() {
        let maps = Maps(
            ["00400000-00401000 r-xp 0 0:0 0 /bin/a", "7ffff000-80000000 rw-p 0 0:0 0 [stack]"]
                .iter()
                .filter_map(|l| parse(l))
                .collect(),
        );
        let gaps: Vec<_> = maps.gaps().collect();
        assert_eq!(gaps, [0x11_0000..0x40_0000, 0x8000_0000..0x7fff_ffff_0000]);
        assert!(maps.executable(0x40_0fff) && !maps.executable(0x40_1000));
    }
}
