//! Numbers as the verifier knows them: a tristate number and intervals at two widths, kept consistent.
//!
//! Every function here is a set transformer: the concrete result of concrete members is a member of the
//! result. Where that would leave nothing, which only a bug can cause outside of a branch, the answer is
//! "any number", never "unreachable". Widths are parameters ([`Dims`]) so that tests can enumerate narrow
//! numbers; programs have 64 and 32 bits.

mod arith;
mod bounds;
mod branch;
#[cfg(test)]
mod tests;
mod tnum;

pub use arith::{alu, movsx, neg, swap};
pub use bounds::{Bounds, signed};
pub use branch::{decide, negated, refine};
pub use tnum::{Tnum, low};

/// Width of a register and of its lower half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Bits of the whole.
    pub wide: u32,
    /// Bits of the lower part that 32-bit operations work on.
    pub narrow: u32,
}

/// Registers of programs.
pub const REGISTER: Dims = Dims { wide: 64, narrow: 32 };

/// A set of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scalar {
    /// Known bits.
    pub bits: Tnum,
    /// Intervals of the whole.
    pub wide: Bounds,
    /// Intervals of the lower half.
    pub narrow: Bounds,
}

impl Scalar {
    /// Any number.
    pub const UNKNOWN: Scalar =
        Scalar { bits: Tnum::UNKNOWN, wide: Bounds::full(64), narrow: Bounds::full(32) };

    /// One number.
    pub const fn of(x: u64) -> Scalar {
        Scalar::of_in(x, REGISTER)
    }

    /// One number of these dimensions.
    pub const fn of_in(x: u64, dims: Dims) -> Scalar {
        Scalar {
            bits: Tnum::of(x),
            wide: Bounds::of(x, dims.wide),
            narrow: Bounds::of(x & low(dims.narrow), dims.narrow),
        }
    }

    /// Any number of these dimensions.
    pub const fn unknown_in(dims: Dims) -> Scalar {
        Scalar {
            bits: Tnum { value: 0, mask: low(dims.wide) },
            wide: Bounds::full(dims.wide),
            narrow: Bounds::full(dims.narrow),
        }
    }

    /// Any number that fits into this many bits, unsigned.
    pub fn of_width(bits: u32) -> Scalar {
        Scalar::UNKNOWN.meet_bits(Tnum { value: 0, mask: low(bits) }, REGISTER).unwrap_or(Scalar::UNKNOWN)
    }

    /// Any number between two, unsigned.
    pub fn between(umin: u64, umax: u64) -> Scalar {
        let wide = Bounds::unsigned(umin, umax, 64);
        Scalar { wide, ..Scalar::UNKNOWN }.synced(REGISTER).unwrap_or(Scalar::UNKNOWN)
    }

    /// Any number between two, signed.
    pub fn between_signed(smin: i64, smax: i64) -> Scalar {
        let wide = Bounds { smin, smax, ..Bounds::full(64) };
        Scalar { wide, ..Scalar::UNKNOWN }.synced(REGISTER).unwrap_or(Scalar::UNKNOWN)
    }

    /// The one number, if there is only one.
    pub const fn constant(&self) -> Option<u64> {
        self.bits.constant()
    }

    /// Whether nothing is known.
    pub fn is_unknown(&self) -> bool {
        *self == Scalar::UNKNOWN
    }

    /// Whether `x` is one of the numbers.
    pub fn contains(&self, x: u64, dims: Dims) -> bool {
        self.bits.contains(x)
            && self.wide.contains(x, dims.wide)
            && self.narrow.contains(x & low(dims.narrow), dims.narrow)
    }

    /// Whether every number of `other` is one of these.
    pub fn includes(&self, other: &Scalar) -> bool {
        self.bits.includes(other.bits)
            && self.wide.includes(&other.wide)
            && self.narrow.includes(&other.narrow)
    }

    /// Lets every part sharpen the others, up to a fixpoint; `None` when they contradict each other.
    pub fn synced(mut self, dims: Dims) -> Option<Scalar> {
        // Each round only sharpens. Three nearly always reach the fixpoint; stopping early is sound.
        for _ in 0..4 {
            let before = self;
            self.sync_once(dims)?;
            if self == before {
                break;
            }
        }
        Some(self)
    }

    fn sync_once(&mut self, dims: Dims) -> Option<()> {
        self.wide.learn_bits(self.bits, dims.wide);
        self.narrow.learn_bits(self.bits.truncated(dims.narrow), dims.narrow);
        self.wide.exchange(dims.wide);
        self.narrow.exchange(dims.narrow);
        self.narrow_from_wide(dims);
        self.wide_from_narrow(dims);
        if self.wide.is_empty() || self.narrow.is_empty() {
            return None;
        }
        let low_bits = Tnum::range(self.narrow.umin, self.narrow.umax);
        let unknown_above = Tnum { value: 0, mask: low(dims.wide) };
        self.bits = self.bits.meet(Tnum::range(self.wide.umin, self.wide.umax))?;
        self.bits = self.bits.meet(unknown_above.with_low(low_bits, dims.narrow))?;
        Some(())
    }

    /// With equal upper halves at both ends, the lower halves are an interval too.
    fn narrow_from_wide(&mut self, Dims { narrow, .. }: Dims) {
        let (lo, hi) = (self.wide.umin, self.wide.umax);
        if lo >> narrow == hi >> narrow {
            self.narrow.umin = self.narrow.umin.max(lo & low(narrow));
            self.narrow.umax = self.narrow.umax.min(hi & low(narrow));
        }
        let (lo, hi) = (self.wide.smin, self.wide.smax);
        if lo >> narrow == hi >> narrow {
            self.narrow.umin = self.narrow.umin.max(lo as u64 & low(narrow));
            self.narrow.umax = self.narrow.umax.min(hi as u64 & low(narrow));
        }
        if lo == signed(lo as u64, narrow) && hi == signed(hi as u64, narrow) {
            self.narrow.smin = self.narrow.smin.max(lo);
            self.narrow.smax = self.narrow.smax.min(hi);
        }
    }

    /// A member's upper half is at least that of the minimum: with the same one its lower half bounds it,
    /// with a greater one it is greater anyway. The same holds downwards.
    fn wide_from_narrow(&mut self, Dims { narrow, .. }: Dims) {
        let upper = !low(narrow);
        let (lo, hi) = (self.narrow.umin, self.narrow.umax);
        self.wide.umin = self.wide.umin.max(self.wide.umin & upper | lo);
        self.wide.umax = self.wide.umax.min(self.wide.umax & upper | hi);
        self.wide.smin = self.wide.smin.max((self.wide.smin as u64 & upper | lo) as i64);
        self.wide.smax = self.wide.smax.min((self.wide.smax as u64 & upper | hi) as i64);
        let fits = |x: i64| x == signed(x as u64, narrow);
        if fits(self.wide.smin) && fits(self.wide.smax) {
            self.wide.smin = self.wide.smin.max(self.narrow.smin);
            self.wide.smax = self.wide.smax.min(self.narrow.smax);
        }
    }

    /// Those with these known bits.
    pub fn meet_bits(mut self, bits: Tnum, dims: Dims) -> Option<Scalar> {
        self.bits = self.bits.meet(bits)?;
        self.synced(dims)
    }

    /// The lower half, zero-extended: what 32-bit operations leave.
    pub fn lower_half(&self, dims: Dims) -> Scalar {
        let Bounds { umin, umax, .. } = self.narrow;
        let half = Scalar {
            bits: self.bits.truncated(dims.narrow),
            wide: Bounds::unsigned(umin, umax, dims.wide),
            narrow: self.narrow,
        };
        half.synced(dims).unwrap_or(Scalar::unknown_in(dims))
    }

    /// The lower bits, zero-extended.
    pub fn truncated(&self, bits: u32) -> Scalar {
        alu(crate::isa::AluOp::And, crate::isa::Width::W64, self, &Scalar::of(low(bits)))
    }
}
