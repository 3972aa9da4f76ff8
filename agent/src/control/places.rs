//! Which points of which links are at which addresses. A process may have tens of thousands of them, nearly all idle, so
//! this is as small as it gets: sorted, sixteen bytes each.
#![forbid(unsafe_code)]

use bpftime_shm::session::wire::Point;
use std::collections::HashSet;

/// A point of a link, in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Where it is.
    pub addr: usize,
    /// [`Link::serial`](super::session::Link::serial).
    pub link: u32,
    /// Which of the link's points.
    pub point: u32,
}

/// All places of a process.
#[derive(Default)]
pub struct Places(Vec<Place>);

impl Places {
    /// Tells how many are coming at the most.
    pub fn expect(&mut self, more: usize) {
        if self.0.capacity() - self.0.len() < more {
            self.0.reserve_exact(more.max(self.0.len() / 8));
        }
    }

    /// Adds those that are not there yet, and gives them.
    pub fn add(&mut self, mut new: Vec<Place>) -> Vec<Place> {
        new.sort_unstable();
        new.dedup();
        new.retain(|place| self.0.binary_search(place).is_err());
        self.expect(new.len());
        // From the end, so that only those move that come behind the first new one.
        let (mut old, mut left) = (self.0.len(), new.len());
        self.0.extend(&new);
        while left > 0 {
            let next = new[left - 1];
            if old > 0 && self.0[old - 1] > next {
                old -= 1;
                self.0[old + left] = self.0[old];
            } else {
                left -= 1;
                self.0[old + left] = next;
            }
        }
        new
    }

    /// Those at an address.
    pub fn at(&self, addr: usize) -> &[Place] {
        let first = self.0.partition_point(|place| place.addr < addr);
        let len = self.0[first..].iter().take_while(|place| place.addr == addr).count();
        &self.0[first..first + len]
    }

    /// Those of links.
    pub fn of<'a>(&'a self, links: &'a HashSet<u32>) -> impl Iterator<Item = Place> + 'a {
        self.0.iter().copied().filter(|place| links.contains(&place.link))
    }

    /// Takes away those for which `gone` says so, and gives them.
    pub fn take(&mut self, gone: impl Fn(&Place) -> bool) -> Vec<Place> {
        let gone: Vec<_> = self.0.extract_if(.., |place| gone(place)).collect();
        if self.0.len() < self.0.capacity() / 2 {
            self.0.shrink_to_fit();
        }
        gone
    }

    /// Takes away those at an address, and gives them.
    pub fn take_at(&mut self, addr: usize) -> Vec<Place> {
        let first = self.0.partition_point(|place| place.addr < addr);
        let len = self.at(addr).len();
        self.0.drain(first..first + len).collect()
    }
}

/// The points of a link, of which most have neither cookie nor semaphore.
pub struct Points {
    offsets: Box<[u64]>,
    /// Empty: all 0. As the next.
    cookies: Box<[u64]>,
    semaphores: Box<[u64]>,
}

impl Points {
    /// From the tool's words.
    pub fn new(points: &[Point]) -> Self {
        let rare = |of: fn(&Point) -> u64| {
            let any = points.iter().any(|p| of(p) != 0);
            if any { points.iter().map(of).collect() } else { Box::default() }
        };
        Self {
            offsets: points.iter().map(|p| p.offset).collect(),
            cookies: rare(|p| p.cookie),
            semaphores: rare(|p| p.ref_ctr_offset),
        }
    }

    /// Where in the file they are.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// What bpf_get_attach_cookie returns at one of them.
    pub fn cookie(&self, point: u32) -> u64 {
        self.cookies.get(point as usize).copied().unwrap_or(0)
    }

    /// File offset of its semaphore, or 0.
    pub fn semaphore(&self, point: u32) -> u64 {
        self.semaphores.get(point as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(of: &[(usize, u32, u32)]) -> Vec<Place> {
        of.iter().map(|(addr, link, point)| Place { addr: *addr, link: *link, point: *point }).collect()
    }

    #[test]
    fn what_is_there_is_not_added_again() {
        let mut all = Places::default();
        let first = places(&[(30, 1, 0), (10, 1, 1), (10, 2, 0)]);
        assert_eq!(all.add(first.clone()).len(), 3);
        assert_eq!(all.add([first, places(&[(20, 1, 2)])].concat()), places(&[(20, 1, 2)]));
        let many: Vec<_> = (0..100).map(|i| (i, 3, i as u32)).collect();
        assert_eq!(all.add(places(&many)).len(), 100);
        assert!(all.0.is_sorted());
        assert_eq!(all.at(10), places(&[(10, 1, 1), (10, 2, 0), (10, 3, 10)]));
        assert_eq!(all.at(1000), []);
    }

    #[test]
    fn what_is_taken_is_given() {
        let mut all = Places::default();
        all.add(places(&[(1, 1, 0), (1, 2, 0), (2, 1, 1), (3, 2, 1)]));
        assert_eq!(all.of(&HashSet::from([2])).collect::<Vec<_>>(), places(&[(1, 2, 0), (3, 2, 1)]));
        assert_eq!(all.take(|p| p.link == 1), places(&[(1, 1, 0), (2, 1, 1)]));
        assert_eq!(all.take_at(1), places(&[(1, 2, 0)]));
        assert_eq!(all.0, places(&[(3, 2, 1)]));
    }

    #[test]
    fn points_without_cookies_are_their_offsets() {
        let point = |offset, cookie| Point { offset, ref_ctr_offset: 0, cookie };
        let plain = Points::new(&[point(8, 0), point(16, 0)]);
        assert_eq!((plain.offsets(), plain.cookie(1), plain.semaphore(1)), (&[8, 16][..], 0, 0));
        assert_eq!(Points::new(&[point(8, 0), point(16, 7)]).cookie(1), 7);
    }
}
