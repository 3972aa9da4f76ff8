//! Memory for thunks, near enough for a 5-byte jump, and at addresses that a jump may be made to spell.
//!
//! An arena is one sparse read-execute mapping, cut up as needed; it is written through /proc/self/mem, so it is
//! never writable. It is private: after a fork each process has its own.

use super::maps::Maps;
use crate::arch::sys;
use std::collections::BTreeMap;
use std::ops::Range;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
/// How far a thunk may be from its site: 2 GiB less the size of a big module, whose data the displaced
/// instructions refer to.
const REACH: i64 = 0x7000_0000;
const INT3: u8 = 0xcc;

/// Which bytes of the jump's displacement (little endian) must read int3.
pub(super) type Fixed = [bool; 4];

struct Arena {
    range: Range<usize>,
    used: BTreeMap<usize, usize>,
    /// By which bytes are fixed: where the last search ended. Below it little is free, and looking again at each piece
    /// in use would cost as much as there are.
    hints: [usize; 16],
}

/// All arenas of the process.
pub(super) struct Near {
    arenas: Vec<Arena>,
    /// What [`Near::anywhere`] gave out.
    others: Vec<Range<usize>>,
    /// Each piece gets its own pages, for the time of writing only: where /proc/self/mem does not work.
    pub paged: bool,
}

impl Near {
    /// No arena yet; `paged` as above.
    pub fn new(paged: bool) -> Self {
        Self { arenas: Vec::new(), others: Vec::new(), paged }
    }

    /// `len` bytes at an address whose distance from `from` (the end of the jump) has int3 in its `fixed` bytes.
    pub fn place(&mut self, maps: &mut Maps, from: usize, fixed: Fixed, len: usize) -> Option<usize> {
        let len = if self.paged { len.next_multiple_of(PAGE) } else { len };
        let reach = disp_range(from, fixed);
        if let Some(at) = self.arenas.iter_mut().find_map(|a| a.take(from, &reach, fixed, len, self.paged)) {
            return Some(at);
        }
        *maps = Maps::read();
        for range in homes(maps, from, &reach) {
            let Some(mut arena) = Arena::map(range) else { continue };
            let at = arena.take(from, &reach, fixed, len, self.paged);
            if at.is_some() {
                self.arenas.push(arena);
                return at;
            }
            arena.unmap();
        }
        None
    }

    /// `len` bytes anywhere: for sites that are entered by int3 only.
    pub fn anywhere(&mut self, len: usize) -> Option<usize> {
        let prot = (libc::PROT_READ | libc::PROT_EXEC) as usize;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
        // SAFETY: a new anonymous mapping touches nothing that exists.
        let p = unsafe {
            sys::syscall(libc::SYS_mmap, [0, len.next_multiple_of(PAGE), prot, flags, usize::MAX, 0])
        };
        let p = usize::try_from(p).ok().filter(|p| *p != 0)?;
        self.others.push(p..p + len.next_multiple_of(PAGE));
        Some(p)
    }

    /// All memory that is ours.
    pub fn all(&self) -> impl Iterator<Item = &Range<usize>> {
        self.arenas.iter().map(|a| &a.range).chain(&self.others)
    }
}

/// Addresses that the constraint allows, coarsely: the top displacement byte picks 16 MiB.
fn disp_range(from: usize, fixed: Fixed) -> Range<usize> {
    let low = i32::from_le_bytes([0, 0, 0, INT3]) as i64;
    let (lo, hi) = if fixed[3] { (low, low + (1 << 24)) } else { (-REACH, REACH) };
    let at = |d: i64| (from as i64).saturating_add(d).max(0) as usize;
    at(lo)..at(hi)
}

/// Where to put a new arena, best first. The 16 MiB that a punned jump needs serve every other site of the module
/// too, with room for its neighbours. Above a program grows its heap: there we stay at the far end.
fn homes(maps: &Maps, from: usize, reach: &Range<usize>) -> Vec<Range<usize>> {
    let punned = disp_range(from, [false, false, false, true]);
    let favourite = punned.start.saturating_sub(16 * MIB)..punned.end + 16 * MIB;
    let clip = |a: &Range<usize>, b: &Range<usize>| {
        let r = a.start.max(b.start).next_multiple_of(PAGE)..a.end.min(b.end) & !(PAGE - 1);
        (r.start < r.end).then_some(r)
    };
    // Close to null, a dereference that should fault would read our code: last of all.
    const LOW: usize = 16 * MIB;
    let mut out: Vec<_> = maps.gaps().filter_map(|g| clip(&g, &favourite)).collect();
    let below = maps.gaps().rev().filter(|g| g.start < from).filter_map(|g| clip(&g, reach));
    let above = maps.gaps().rev().filter(|g| g.start >= from).filter_map(|g| clip(&g, reach));
    let top = |g: Range<usize>| g.end.saturating_sub(32 * MIB).max(g.start)..g.end;
    out.extend(below.map(top));
    out.extend(above.map(top));
    out.sort_by_key(|r| r.start < LOW); // stable
    out
}

impl Arena {
    fn map(mut range: Range<usize>) -> Option<Self> {
        let prot = (libc::PROT_READ | libc::PROT_EXEC) as usize;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        loop {
            let args = [range.start, range.len(), prot, flags as usize, usize::MAX, 0];
            // SAFETY: NOREPLACE: only unmapped addresses are taken.
            let p = unsafe { sys::syscall(libc::SYS_mmap, args) };
            if p == range.start as isize {
                break;
            }
            if p > 0 {
                // SAFETY: a kernel that does not know NOREPLACE put it elsewhere.
                unsafe { sys::syscall(libc::SYS_munmap, [p as usize, range.len(), 0, 0, 0, 0]) };
            }
            // An address space limit: try less.
            let half = (range.len() / 2) & !(PAGE - 1);
            if half < PAGE {
                return None;
            }
            range = range.start + range.len() / 4 / PAGE * PAGE
                ..range.start + range.len() / 4 / PAGE * PAGE + half;
        }
        // One page per touched page: huge pages would cost 2 MiB each.
        // SAFETY: advice on our own mapping.
        unsafe {
            sys::syscall(
                libc::SYS_madvise,
                [range.start, range.len(), libc::MADV_NOHUGEPAGE as usize, 0, 0, 0],
            )
        };
        Some(Self { range, used: BTreeMap::new(), hints: [0; 16] })
    }

    fn unmap(self) {
        // SAFETY: our own mapping, nothing placed in it.
        unsafe { sys::syscall(libc::SYS_munmap, [self.range.start, self.range.len(), 0, 0, 0, 0]) };
    }

    fn take(
        &mut self,
        from: usize,
        reach: &Range<usize>,
        fixed: Fixed,
        len: usize,
        paged: bool,
    ) -> Option<usize> {
        let lo = self.range.start.max(reach.start);
        let hi = self.range.end.min(reach.end.saturating_add(len));
        let pattern = fixed.iter().enumerate().map(|(k, f)| usize::from(*f) << k).sum::<usize>();
        let hint = lo.max(self.hints[pattern]);
        let above = self.search(from, hint..hi, fixed, len, paged);
        let found =
            above.or_else(|| self.search(from, lo..hint.saturating_add(len).min(hi), fixed, len, paged));
        self.hints[pattern] = found.unwrap_or(self.hints[pattern]);
        found
    }

    /// Notes a piece, as one with its neighbours where nothing fits in between.
    fn note_used(&mut self, mut span: Range<usize>) {
        const LEAST: usize = super::thunk::room(1);
        if let Some((&start, &end)) = self.used.range(..span.start).next_back()
            && end + LEAST > span.start
        {
            span.start = start;
        }
        if let Some((&start, &end)) = self.used.range(span.end..).next()
            && span.end + LEAST > start
        {
            self.used.remove(&start);
            span.end = end;
        }
        self.used.insert(span.start, span.end);
    }

    /// Takes the first free piece in `within`.
    fn search(
        &mut self,
        from: usize,
        within: Range<usize>,
        fixed: Fixed,
        len: usize,
        paged: bool,
    ) -> Option<usize> {
        let (lo, hi) = (within.start, within.end);
        let mut at = lo;
        loop {
            at = next_match(from, at, fixed)?;
            if at < lo || at + len > hi {
                return None;
            }
            // A thunk with its own pages may start anywhere in the first.
            let span = if paged { at & !(PAGE - 1)..(at + len).next_multiple_of(PAGE) } else { at..at + len };
            match self.used.range(..span.end).next_back() {
                Some((_, &end)) if end > span.start => at = end.max(at + 1),
                _ => {
                    self.note_used(span);
                    return Some(at);
                }
            }
        }
    }
}

/// The first address from `at` on whose displacement from `from` has int3 in its fixed bytes.
fn next_match(from: usize, at: usize, fixed: Fixed) -> Option<usize> {
    let disp = i32::try_from(at as i64 - from as i64).ok()?;
    // Displacements of one sign are ordered like addresses; the step from -1 to 0 is tried as well.
    let found = next_with(disp as u32, fixed)
        .filter(|&d| disp >= 0 || d >= disp as u32)
        .or_else(|| if disp < 0 { next_with(0, fixed) } else { None })?;
    let found = found as i32;
    (found >= disp).then(|| (from as i64 + found as i64) as usize)
}

/// The least number not below `x` whose fixed bytes are int3.
fn next_with(x: u32, fixed: Fixed) -> Option<u32> {
    let mut y = x.to_le_bytes();
    for k in (0..4).rev() {
        if !fixed[k] || y[k] == INT3 {
            continue;
        }
        if y[k] > INT3 {
            // Carry into a free byte above.
            let up = (k + 1..4).find(|&j| !fixed[j] && y[j] < u8::MAX)?;
            y[up] += 1;
            (k + 1..up).filter(|&j| !fixed[j]).for_each(|j| y[j] = 0);
        }
        y[k] = INT3;
        (0..k).for_each(|j| y[j] = if fixed[j] { INT3 } else { 0 });
        break;
    }
    Some(u32::from_le_bytes(y))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(x: u32, fixed: Fixed) -> bool {
        x.to_le_bytes().iter().zip(fixed).all(|(b, f)| !f || *b == INT3)
    }

    #[test]
    fn the_next_match_is_the_least_one() {
        for mask in 0..16u32 {
            let fixed: Fixed = std::array::from_fn(|k| mask >> k & 1 == 1);
            let mut x = 0x1234_5678u32;
            for step in 0..3000u32 {
                x = x.wrapping_mul(0x9e37_79b9).wrapping_add(step);
                match next_with(x, fixed) {
                    None => {
                        let most = std::array::from_fn(|k| if fixed[k] { INT3 } else { 0xff });
                        assert!(u32::from_le_bytes(most) < x);
                    }
                    Some(y) => {
                        assert!(y >= x && matches(y, fixed), "{x:#x} {y:#x} {fixed:?}");
                        if y > x {
                            // nothing between: the predecessor of y in the free bytes is below x
                            assert!(
                                (x..y).step_by(((y - x) as usize / 64).max(1)).all(|z| !matches(z, fixed))
                            );
                        }
                    }
                }
            }
        }
    }
}
