//! Tristate numbers: which bits are known, and to what. The algorithms are those of Vishwanathan et al.,
//! "Sound, Precise, and Fast Abstract Interpretation with Tristate Numbers" (CGO 2022).

/// Bits in `mask` are unknown; the others are as in `value`, which is zero under the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tnum {
    /// The known bits.
    pub value: u64,
    /// The unknown ones.
    pub mask: u64,
}

/// The lower `bits` bits.
pub const fn low(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

impl Tnum {
    /// Nothing is known.
    pub const UNKNOWN: Tnum = Tnum { value: 0, mask: u64::MAX };

    /// One number.
    pub const fn of(value: u64) -> Tnum {
        Tnum { value, mask: 0 }
    }

    const fn masked(value: u64, mask: u64) -> Tnum {
        Tnum { value: value & !mask, mask }
    }

    /// The best that holds for every number of the range: the common leading bits are known.
    pub const fn range(min: u64, max: u64) -> Tnum {
        let differing = 64 - (min ^ max).leading_zeros();
        Tnum::masked(min, low(differing))
    }

    /// The one number, if there is only one.
    pub const fn constant(self) -> Option<u64> {
        if self.mask == 0 { Some(self.value) } else { None }
    }

    /// Whether `x` is one of the numbers.
    pub const fn contains(self, x: u64) -> bool {
        (x ^ self.value) & !self.mask == 0
    }

    /// Whether every number of `other` is one of these.
    pub const fn includes(self, other: Tnum) -> bool {
        other.mask & !self.mask == 0 && (other.value ^ self.value) & !self.mask == 0
    }

    /// The smallest and the greatest, unsigned.
    pub const fn bounds(self) -> (u64, u64) {
        (self.value, self.value | self.mask)
    }

    /// Numbers in both; `None` when there are none.
    pub const fn meet(self, other: Tnum) -> Option<Tnum> {
        if (self.value ^ other.value) & !self.mask & !other.mask != 0 {
            return None;
        }
        Some(Tnum::masked(self.value | other.value, self.mask & other.mask))
    }

    /// Keeps the lower bits; the upper ones are zero.
    pub const fn truncated(self, bits: u32) -> Tnum {
        Tnum { value: self.value & low(bits), mask: self.mask & low(bits) }
    }

    /// The lower bits of `lower` below the upper bits of this.
    pub const fn with_low(self, lower: Tnum, bits: u32) -> Tnum {
        let keep = !low(bits);
        let lower = lower.truncated(bits);
        Tnum { value: self.value & keep | lower.value, mask: self.mask & keep | lower.mask }
    }

    /// `self + other`.
    #[allow(clippy::should_implement_trait)] // wraps, and takes the operands as a transfer function does
    pub const fn add(self, other: Tnum) -> Tnum {
        let sum = self.value.wrapping_add(other.value);
        let most = sum.wrapping_add(self.mask.wrapping_add(other.mask));
        Tnum::masked(sum, (most ^ sum) | self.mask | other.mask)
    }

    /// `self - other`.
    #[allow(clippy::should_implement_trait)]
    pub const fn sub(self, other: Tnum) -> Tnum {
        let diff = self.value.wrapping_sub(other.value);
        let (most, least) = (diff.wrapping_add(self.mask), diff.wrapping_sub(other.mask));
        Tnum::masked(diff, (most ^ least) | self.mask | other.mask)
    }

    /// `self * other`: the sum of the shifted operand over the bits of the multiplier.
    #[allow(clippy::should_implement_trait)]
    pub const fn mul(self, other: Tnum) -> Tnum {
        let known = Tnum::of(self.value.wrapping_mul(other.value));
        let (mut a, mut b, mut unknown) = (self, other, Tnum::of(0));
        while a.value | a.mask != 0 {
            if a.mask & 1 != 0 {
                unknown = unknown.add(Tnum { value: 0, mask: b.value | b.mask });
            } else if a.value & 1 != 0 {
                unknown = unknown.add(Tnum { value: 0, mask: b.mask });
            }
            a = Tnum { value: a.value >> 1, mask: a.mask >> 1 };
            b = Tnum { value: b.value << 1, mask: b.mask << 1 };
        }
        known.add(unknown)
    }

    /// `self & other`.
    pub const fn and(self, other: Tnum) -> Tnum {
        let ones = self.value & other.value;
        let maybe = (self.value | self.mask) & (other.value | other.mask);
        Tnum { value: ones, mask: maybe & !ones }
    }

    /// `self | other`.
    pub const fn or(self, other: Tnum) -> Tnum {
        let ones = self.value | other.value;
        Tnum { value: ones, mask: (self.mask | other.mask) & !ones }
    }

    /// `self ^ other`.
    pub const fn xor(self, other: Tnum) -> Tnum {
        Tnum::masked(self.value ^ other.value, self.mask | other.mask)
    }

    /// `self << by`, of `bits` wide numbers; `by` is less than `bits`.
    pub const fn lsh(self, by: u32, bits: u32) -> Tnum {
        Tnum { value: self.value << by, mask: self.mask << by }.truncated(bits)
    }

    /// `self >> by`; `by` is less than 64.
    pub const fn rsh(self, by: u32) -> Tnum {
        Tnum { value: self.value >> by, mask: self.mask >> by }
    }

    /// `self >> by`, copying the sign bit (known or not) of `bits` wide numbers.
    pub const fn arsh(self, by: u32, bits: u32) -> Tnum {
        let up = 64 - bits;
        let value = (((self.value << up) as i64) >> (up + by)) as u64;
        let mask = (((self.mask << up) as i64) >> (up + by)) as u64;
        Tnum::masked(value, mask).truncated(bits)
    }
}
