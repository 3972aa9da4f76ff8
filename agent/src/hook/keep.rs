//! Memory for what is never freed, since a thread may come to it at any time: in large pieces, so that the allocator adds
//! nothing to each.
#![forbid(unsafe_code)]

use std::mem::{MaybeUninit, take};

/// Values of one kind.
pub(super) struct Keep<T: 'static> {
    free: &'static mut [MaybeUninit<T>],
    /// How many are coming, beyond those that there is room for.
    expected: usize,
}

impl<T> Default for Keep<T> {
    fn default() -> Self {
        Self { free: &mut [], expected: 0 }
    }
}

impl<T> Keep<T> {
    const PIECE: usize = 32;

    /// Tells how many values are coming: they get one piece.
    pub fn expect(&mut self, more: usize) {
        self.expected = more.saturating_sub(self.free.len());
    }

    /// Keeps a value for good.
    pub fn put(&mut self, value: T) -> &'static T {
        if self.free.is_empty() {
            self.free = Box::leak(Box::new_uninit_slice(take(&mut self.expected).max(Self::PIECE)));
        }
        match take(&mut self.free).split_first_mut() {
            Some((first, rest)) => {
                self.free = rest;
                first.write(value)
            }
            None => Box::leak(Box::new(value)),
        }
    }
}

/// Strings of bytes.
#[derive(Default)]
pub(super) struct KeepBytes {
    free: &'static mut [u8],
    expected: usize,
}

impl KeepBytes {
    const PIECE: usize = 1024;

    /// As for [`Keep`], in bytes.
    pub fn expect(&mut self, more: usize) {
        self.expected = more.saturating_sub(self.free.len());
    }

    /// Keeps a copy of `bytes` for good.
    pub fn put(&mut self, bytes: &[u8]) -> &'static [u8] {
        if self.free.len() < bytes.len() {
            let piece = take(&mut self.expected).max(Self::PIECE).max(bytes.len());
            self.free = Box::leak(vec![0; piece].into_boxed_slice());
        }
        let (kept, rest) = take(&mut self.free).split_at_mut(bytes.len());
        self.free = rest;
        kept.copy_from_slice(bytes);
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_stays_as_it_was() {
        let (mut values, mut bytes) = (Keep::default(), KeepBytes::default());
        values.expect(100);
        bytes.expect(5000);
        let kept: Vec<_> = (0..1000usize).map(|i| (values.put(i), bytes.put(&vec![i as u8; i]))).collect();
        for (i, (value, bytes)) in kept.into_iter().enumerate() {
            assert_eq!((*value, bytes), (i, &vec![i as u8; i][..]));
        }
    }
}
