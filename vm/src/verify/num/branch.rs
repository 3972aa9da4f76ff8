//! What a comparison decides, and what its outcome tells about the operands.

use super::{Bounds, Dims, Scalar, Tnum, low};
use crate::isa::{Cond, Width};

/// The part of a number that a comparison of this width looks at.
fn part(s: &Scalar, width: Width, dims: Dims) -> (Tnum, Bounds, u32) {
    match width {
        Width::W64 => (s.bits, s.wide, dims.wide),
        Width::W32 => (s.bits.truncated(dims.narrow), s.narrow, dims.narrow),
    }
}

/// Whether `a cond b` holds for all members, for none, or it depends.
pub fn decide(cond: Cond, width: Width, a: &Scalar, b: &Scalar, dims: Dims) -> Option<bool> {
    let ((abits, ar, _), (bbits, br, _)) = (part(a, width, dims), part(b, width, dims));
    let order = |always: bool, never: bool| match (always, never) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    match cond {
        Cond::Eq => equal(a, b, width, dims),
        Cond::Ne => equal(a, b, width, dims).map(|eq| !eq),
        Cond::Set => order(abits.value & bbits.value != 0, abits.and(bbits) == Tnum::of(0)),
        Cond::Ugt => order(ar.umin > br.umax, ar.umax <= br.umin),
        Cond::Uge => order(ar.umin >= br.umax, ar.umax < br.umin),
        Cond::Ult => order(ar.umax < br.umin, ar.umin >= br.umax),
        Cond::Ule => order(ar.umax <= br.umin, ar.umin > br.umax),
        Cond::Sgt => order(ar.smin > br.smax, ar.smax <= br.smin),
        Cond::Sge => order(ar.smin >= br.smax, ar.smax < br.smin),
        Cond::Slt => order(ar.smax < br.smin, ar.smin >= br.smax),
        Cond::Sle => order(ar.smax <= br.smin, ar.smin > br.smax),
    }
}

fn equal(a: &Scalar, b: &Scalar, width: Width, dims: Dims) -> Option<bool> {
    let ((abits, ar, _), (bbits, br, _)) = (part(a, width, dims), part(b, width, dims));
    if let (Some(x), Some(y)) = (abits.constant(), bbits.constant()) {
        return Some(x == y);
    }
    let apart = abits.meet(bbits).is_none()
        || ar.meet(&br).is_empty()
        || (width == Width::W64 && a.narrow.meet(&b.narrow).is_empty());
    apart.then_some(false)
}

/// The condition that holds when this one does not; `Set` has none.
pub const fn negated(cond: Cond) -> Option<Cond> {
    Some(match cond {
        Cond::Eq => Cond::Ne,
        Cond::Ne => Cond::Eq,
        Cond::Set => return None,
        Cond::Ugt => Cond::Ule,
        Cond::Ule => Cond::Ugt,
        Cond::Uge => Cond::Ult,
        Cond::Ult => Cond::Uge,
        Cond::Sgt => Cond::Sle,
        Cond::Sle => Cond::Sgt,
        Cond::Sge => Cond::Slt,
        Cond::Slt => Cond::Sge,
    })
}

/// Both operands, knowing that `a cond b` is `holds`; `None` if no members make it so. That intersects
/// true statements about the operands, so nothing imprecise can make it empty.
pub fn refine(
    cond: Cond,
    width: Width,
    holds: bool,
    a: &Scalar,
    b: &Scalar,
    dims: Dims,
) -> Option<(Scalar, Scalar)> {
    let cond = match (holds, negated(cond)) {
        (true, _) => Some(cond),
        (false, negated) => negated,
    };
    let (abits, ar, bits) = part(a, width, dims);
    let (bbits, br, _) = part(b, width, dims);
    let (new_a, new_b) = match cond {
        None => clear(abits, bbits).map_or(((abits, ar), (bbits, br)), |(x, y)| ((x, ar), (y, br))),
        Some(Cond::Set) => (set(abits, bbits, ar), set(bbits, abits, br)),
        Some(Cond::Eq) => {
            let both = abits.meet(bbits).unwrap_or(abits);
            let range = ar.meet(&br);
            ((both, range), (both, range))
        }
        Some(Cond::Ne) => ((abits, without(ar, bbits, bits)), (bbits, without(br, abits, bits))),
        Some(order) => {
            let (x, y) = ordered(order, ar, br);
            ((abits, x), (bbits, y))
        }
    };
    Some((put(a, new_a, width, dims)?, put(b, new_b, width, dims)?))
}

/// `x & y == 0`: the ones of a constant are zeros of the other.
fn clear(a: Tnum, b: Tnum) -> Option<(Tnum, Tnum)> {
    let without = |t: Tnum, ones: u64| t.meet(Tnum { value: 0, mask: !ones });
    Some((without(a, b.value)?, without(b, a.value)?))
}

/// `x & y != 0`: with one bit possible in `y`, `x` has it.
fn set(x: Tnum, y: Tnum, range: Bounds) -> (Tnum, Bounds) {
    let (_, possible) = y.bounds();
    let bit = Tnum { value: possible, mask: !possible };
    let known = if possible.is_power_of_two() { x.meet(bit) } else { None };
    (known.unwrap_or(x), range)
}

/// `x != y`: a constant at an end of an interval leaves it.
fn without(mut range: Bounds, y: Tnum, bits: u32) -> Bounds {
    let Some(y) = y.constant() else { return range };
    let s = super::signed(y, bits);
    // An interval of just that number is left alone: `decide` sees it.
    if range.umin < range.umax {
        range.umin += u64::from(range.umin == y);
        range.umax -= u64::from(range.umax == y);
    }
    if range.smin < range.smax {
        range.smin += i64::from(range.smin == s);
        range.smax -= i64::from(range.smax == s);
    }
    range
}

fn ordered(cond: Cond, mut a: Bounds, mut b: Bounds) -> (Bounds, Bounds) {
    match cond {
        Cond::Ult => {
            a.umax = a.umax.min(b.umax.saturating_sub(1));
            b.umin = b.umin.max(a.umin.saturating_add(1));
        }
        Cond::Ule => {
            a.umax = a.umax.min(b.umax);
            b.umin = b.umin.max(a.umin);
        }
        Cond::Slt => {
            a.smax = a.smax.min(b.smax.saturating_sub(1));
            b.smin = b.smin.max(a.smin.saturating_add(1));
        }
        Cond::Sle => {
            a.smax = a.smax.min(b.smax);
            b.smin = b.smin.max(a.smin);
        }
        Cond::Ugt => return flip(ordered(Cond::Ult, b, a)),
        Cond::Uge => return flip(ordered(Cond::Ule, b, a)),
        Cond::Sgt => return flip(ordered(Cond::Slt, b, a)),
        Cond::Sge => return flip(ordered(Cond::Sle, b, a)),
        Cond::Eq | Cond::Ne | Cond::Set => {}
    }
    (a, b)
}

fn flip((b, a): (Bounds, Bounds)) -> (Bounds, Bounds) {
    (a, b)
}

/// Puts a refined part back into its number.
fn put(old: &Scalar, (bits, range): (Tnum, Bounds), width: Width, dims: Dims) -> Option<Scalar> {
    let mut new = *old;
    match width {
        Width::W64 => (new.bits, new.wide) = (bits.truncated(dims.wide), range),
        Width::W32 => {
            new.bits = new.bits.with_low(bits, dims.narrow);
            new.narrow = range;
        }
    }
    debug_assert_eq!(new.bits.mask & !low(dims.wide), 0);
    new.synced(dims)
}
