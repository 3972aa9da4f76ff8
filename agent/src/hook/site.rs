//! One probed address, as the probe path sees it.

use super::{Callbacks, thunk};
use crate::run::enter::Direct;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering::*};

/// What is wanted at an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Call [`Callbacks::entry`] before the instruction at the address.
    pub entry: bool,
    /// Call [`Callbacks::ret`] when the function that starts at the address returns.
    pub ret: bool,
}

impl Want {
    /// Entry only.
    pub const ENTRY: Self = Self { entry: true, ret: false };
    /// Return only.
    pub const RETURN: Self = Self { entry: false, ret: true };
    /// Both; the entry callback runs first.
    pub const BOTH: Self = Self { entry: true, ret: true };
}

pub(super) const ENTRY: u32 = 1;
pub(crate) const RETURN: u32 = 2;
/// For entry.rs.
pub(crate) const WANT_OFFSET: usize = std::mem::offset_of!(Site, want);
/// For entry.rs.
pub(crate) const THUNK_OFFSET: usize = std::mem::offset_of!(Site, thunk);

/// For entry.rs.
pub(crate) const DIRECT_OFFSET: usize = std::mem::offset_of!(Site, direct);

/// A probed address. Never freed: threads may be anywhere between the patch and the callback.
#[repr(C)]
pub struct Site {
    /// The probed address. First, because the assembly reads it there.
    pub addr: usize,
    /// [`ENTRY`] | [`RETURN`]; 0 makes the probe a detour without effect.
    want: AtomicU32,
    /// Where the thunk is: see thunk.rs for what is at which offset.
    thunk: AtomicUsize,
    callbacks: &'static Callbacks,
    /// The opaque list that the callbacks read. Published by the control thread with Release; what it replaced may be
    /// freed after [`super::Engine::quiesce`].
    pub programs: AtomicPtr<()>,
    /// What arch/x86_64/entry.rs and exit.rs run without calling back; they call back if it says so. As `programs`.
    pub direct: AtomicPtr<Direct>,
}

// entry.rs, and its unwind information: the word at the site is the address
const _: () = assert!(std::mem::offset_of!(Site, addr) == 0);

impl Site {
    pub(super) fn new(addr: usize, callbacks: &'static Callbacks) -> Self {
        Self {
            addr,
            want: AtomicU32::new(0),
            thunk: AtomicUsize::new(0),
            callbacks,
            programs: AtomicPtr::new(std::ptr::null_mut()),
            direct: AtomicPtr::new(Direct::long_way()),
        }
    }

    pub(super) fn set_want(&self, want: Want) {
        let bits = if want.entry { ENTRY } else { 0 } | if want.ret { RETURN } else { 0 };
        self.want.store(bits, Release);
    }

    /// Whether the assembly may run what stands here.
    pub fn is_direct(&self) -> bool {
        self.direct.load(Relaxed) != Direct::long_way()
    }

    /// What is wanted here now.
    pub fn want(&self) -> Want {
        let bits = self.wanted();
        Want { entry: bits & ENTRY != 0, ret: bits & RETURN != 0 }
    }

    #[inline(always)]
    pub(super) fn wanted(&self) -> u32 {
        self.want.load(Relaxed)
    }

    #[inline(always)]
    pub(super) fn callbacks(&self) -> &'static Callbacks {
        self.callbacks
    }

    /// Release: the thunk's bytes are in place before threads are sent there.
    pub(super) fn set_thunk(&self, at: usize) {
        self.thunk.store(at, Release);
    }

    #[inline(always)]
    pub(super) fn thunk(&self) -> usize {
        self.thunk.load(Relaxed)
    }

    /// Where the thunk goes on with the displaced instructions.
    #[inline(always)]
    pub(super) fn go_on(&self) -> usize {
        self.thunk() + thunk::GO_ON
    }

    /// Where the thunk drops the return address and jumps to the address at `sp - 8`.
    #[inline(always)]
    pub(super) fn leave(&self) -> usize {
        self.thunk() + thunk::LEAVE
    }

    /// The displaced instructions, with the stack as at the probed address.
    #[inline(always)]
    pub(super) fn copy(&self) -> usize {
        self.thunk() + thunk::COPY
    }
}
