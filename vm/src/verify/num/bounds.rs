//! Intervals of numbers `bits` wide, unsigned and signed at once. Widths are a parameter, so that tests can
//! try every interval of a narrow number.

use super::tnum::{Tnum, low};

/// What is known of the size of a number. Both intervals hold; either may be the sharper one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Unsigned minimum.
    pub umin: u64,
    /// Unsigned maximum.
    pub umax: u64,
    /// Signed minimum.
    pub smin: i64,
    /// Signed maximum.
    pub smax: i64,
}

/// The value of the lower bits as a signed number.
pub const fn signed(x: u64, bits: u32) -> i64 {
    ((x << (64 - bits)) as i64) >> (64 - bits)
}

const fn least(bits: u32) -> i64 {
    i64::MIN >> (64 - bits)
}

const fn greatest(bits: u32) -> i64 {
    i64::MAX >> (64 - bits)
}

impl Bounds {
    /// Every number of this width.
    pub const fn full(bits: u32) -> Bounds {
        Bounds { umin: 0, umax: low(bits), smin: least(bits), smax: greatest(bits) }
    }

    /// One number.
    pub const fn of(x: u64, bits: u32) -> Bounds {
        let s = signed(x, bits);
        Bounds { umin: x, umax: x, smin: s, smax: s }
    }

    /// An unsigned interval.
    pub const fn unsigned(umin: u64, umax: u64, bits: u32) -> Bounds {
        Bounds { umin, umax, ..Bounds::full(bits) }
    }

    /// Whether `x` is inside of both intervals.
    pub const fn contains(&self, x: u64, bits: u32) -> bool {
        let s = signed(x, bits);
        self.umin <= x && x <= self.umax && self.smin <= s && s <= self.smax
    }

    /// Whether both intervals of `other` lie inside of these.
    pub const fn includes(&self, other: &Bounds) -> bool {
        self.umin <= other.umin
            && self.umax >= other.umax
            && self.smin <= other.smin
            && self.smax >= other.smax
    }

    /// Numbers in both; the result may be empty.
    pub fn meet(&self, other: &Bounds) -> Bounds {
        Bounds {
            umin: self.umin.max(other.umin),
            umax: self.umax.min(other.umax),
            smin: self.smin.max(other.smin),
            smax: self.smax.min(other.smax),
        }
    }

    /// Whether an interval has no number.
    pub const fn is_empty(&self) -> bool {
        self.umin > self.umax || self.smin > self.smax
    }

    /// Sharpens by the known bits: with the sign bit unknown, the least has it set and the greatest clear.
    pub fn learn_bits(&mut self, bits_known: Tnum, bits: u32) {
        let sign = 1 << (bits - 1);
        let (min, max) = bits_known.bounds();
        self.umin = self.umin.max(min);
        self.umax = self.umax.min(max);
        self.smin = self.smin.max(signed(min | bits_known.mask & sign, bits));
        self.smax = self.smax.min(signed(max & !(bits_known.mask & sign), bits));
    }

    /// Each interval sharpens the other when it does not cross the place where the other one wraps.
    pub fn exchange(&mut self, bits: u32) {
        let (lo, hi) = (signed(self.umin, bits), signed(self.umax, bits));
        if lo <= hi {
            self.smin = self.smin.max(lo);
            self.smax = self.smax.min(hi);
        }
        let (lo, hi) = (self.smin as u64 & low(bits), self.smax as u64 & low(bits));
        if lo <= hi {
            self.umin = self.umin.max(lo);
            self.umax = self.umax.min(hi);
        }
    }

    /// `self + other`.
    pub fn add(&self, other: &Bounds, bits: u32) -> Bounds {
        self.sums(
            (i128::from(self.umin) + i128::from(other.umin), i128::from(self.umax) + i128::from(other.umax)),
            (i128::from(self.smin) + i128::from(other.smin), i128::from(self.smax) + i128::from(other.smax)),
            bits,
        )
    }

    /// `self - other`.
    pub fn sub(&self, other: &Bounds, bits: u32) -> Bounds {
        self.sums(
            (i128::from(self.umin) - i128::from(other.umax), i128::from(self.umax) - i128::from(other.umin)),
            (i128::from(self.smin) - i128::from(other.smax), i128::from(self.smax) - i128::from(other.smin)),
            bits,
        )
    }

    /// Exact intervals, wrapped if both ends wrap equally often, else given up.
    fn sums(&self, unsigned: (i128, i128), sum: (i128, i128), bits: u32) -> Bounds {
        let mut result = Bounds::full(bits);
        if unsigned.0 >> bits == unsigned.1 >> bits {
            (result.umin, result.umax) = (unsigned.0 as u64 & low(bits), unsigned.1 as u64 & low(bits));
        }
        let half = 1i128 << (bits - 1);
        if (sum.0 + half) >> bits == (sum.1 + half) >> bits {
            (result.smin, result.smax) = (signed(sum.0 as u64, bits), signed(sum.1 as u64, bits));
        }
        result
    }

    /// `self * other`, if it cannot wrap.
    pub fn mul(&self, other: &Bounds, bits: u32) -> Bounds {
        let mut result = Bounds::full(bits);
        if u128::from(self.umax) * u128::from(other.umax) <= u128::from(low(bits)) {
            (result.umin, result.umax) = (self.umin * other.umin, self.umax * other.umax);
        }
        let product = |a: i64, b: i64| i128::from(a) * i128::from(b);
        let corners = [
            product(self.smin, other.smin),
            product(self.smin, other.smax),
            product(self.smax, other.smin),
            product(self.smax, other.smax),
        ];
        let (min, max) = corners.iter().fold((i128::MAX, i128::MIN), |(lo, hi), p| (lo.min(*p), hi.max(*p)));
        if min >= i128::from(least(bits)) && max <= i128::from(greatest(bits)) {
            (result.smin, result.smax) = (min as i64, max as i64);
        }
        result
    }

    /// `self & other`: no greater than either. The rest comes from the known bits.
    pub fn and(&self, other: &Bounds, bits: u32) -> Bounds {
        Bounds::unsigned(0, self.umax.min(other.umax), bits)
    }

    /// `self | other`: no smaller than either. The rest comes from the known bits.
    pub fn or(&self, other: &Bounds, bits: u32) -> Bounds {
        Bounds::unsigned(self.umin.max(other.umin), low(bits), bits)
    }

    /// `self << by`, each interval if it does not wrap.
    pub fn lsh(&self, by: u32, bits: u32) -> Bounds {
        let mut result = Bounds::full(bits);
        if self.umax <= low(bits) >> by {
            (result.umin, result.umax) = (self.umin << by, self.umax << by);
        }
        if self.smin >= least(bits) >> by && self.smax <= greatest(bits) >> by {
            (result.smin, result.smax) = (self.smin << by, self.smax << by);
        }
        result
    }

    /// `self >> by`.
    pub fn rsh(&self, by: u32, bits: u32) -> Bounds {
        Bounds::unsigned(self.umin >> by, self.umax >> by, bits)
    }

    /// `self >> by`, signed.
    pub fn arsh(&self, by: u32, bits: u32) -> Bounds {
        Bounds { smin: self.smin >> by, smax: self.smax >> by, ..Bounds::full(bits) }
    }
}
