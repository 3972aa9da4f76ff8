//! Numbers from text: helpers 105 and 106.

use super::{EINVAL, errno, helper};
use crate::run::Run;
use rustix::io::Errno;

/// `BPF_STRTOX_BASE_MASK`.
const BASE_MASK: u64 = 0x1f;
/// Characters that are looked at from the first digit on.
const LONGEST: usize = 63;

/// A number in text: its sign, its size, and the characters up to its end.
#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    negative: bool,
    value: u64,
    consumed: usize,
}

fn parse(text: &[u8], flags: u64) -> Result<Parsed, Errno> {
    let base = flags & BASE_MASK;
    if flags & !BASE_MASK != 0 || !matches!(base, 0 | 8 | 10 | 16) {
        return Err(Errno::INVAL);
    }
    let space = |b: &&u8| matches!(**b, b' ' | b'\t'..=b'\r');
    let mut at = text.iter().take_while(space).count();
    let negative = text.get(at) == Some(&b'-');
    at += usize::from(negative);
    let rest = &text[at..(at + LONGEST).min(text.len())];
    let (base, skip) = radix(rest, base);
    let (value, digits) = digits(&rest[skip..], base)?;
    if digits == 0 {
        return Err(Errno::INVAL);
    }
    Ok(Parsed { negative, value, consumed: at + skip + digits })
}

/// The base, and the characters that say so.
fn radix(text: &[u8], base: u64) -> (u64, usize) {
    let at = |n: usize| text.get(n).copied().unwrap_or(0);
    let hex = at(0) == b'0' && at(1) | 0x20 == b'x';
    match base {
        0 if hex && at(2).is_ascii_hexdigit() => (16, 2),
        0 if at(0) == b'0' => (8, 0),
        0 => (10, 0),
        16 if hex => (16, 2),
        base => (base, 0),
    }
}

/// The number that leading digits make, and how many they are.
fn digits(text: &[u8], base: u64) -> Result<(u64, usize), Errno> {
    let (mut value, mut n, mut overflow) = (0u64, 0, false);
    for byte in text {
        let Some(digit) = (*byte as char).to_digit(base as u32) else { break };
        let next = value.checked_mul(base).and_then(|v| v.checked_add(digit.into()));
        overflow |= next.is_none();
        value = next.unwrap_or(value);
        n += 1;
    }
    if overflow { Err(Errno::RANGE) } else { Ok((value, n)) }
}

/// # Safety
/// `text` has `len` bytes and `res` is an aligned u64 by the helper's contract.
unsafe fn convert(
    text: u64,
    len: u64,
    flags: u64,
    res: u64,
    of: fn(Parsed) -> Result<(u64, usize), Errno>,
) -> u64 {
    // SAFETY: see above.
    let text = unsafe { std::slice::from_raw_parts(text as *const u8, len as u32 as usize) };
    let (value, ret) = match parse(text, flags).and_then(of) {
        Ok((value, consumed)) => (value, consumed as u64),
        Err(e) => (0, errno(e)),
    };
    // SAFETY: see above.
    unsafe { *(res as *mut u64) = value };
    ret
}

fn signed(p: Parsed) -> Result<(u64, usize), Errno> {
    let limit = i64::MAX as u64 + u64::from(p.negative);
    if p.value > limit {
        return Err(Errno::RANGE);
    }
    Ok((if p.negative { p.value.wrapping_neg() } else { p.value }, p.consumed))
}

fn unsigned(p: Parsed) -> Result<(u64, usize), Errno> {
    if p.negative { Err(Errno::INVAL) } else { Ok((p.value, p.consumed)) }
}

helper! {
    /// 105 `strtol(buf, len, flags, res)`: characters up to the end of the number, or -EINVAL, -ERANGE.
    fn strtol(run, text, len, flags, res) {
        if len as u32 == 0 {
            return EINVAL;
        }
        // SAFETY: the helper's contract.
        unsafe { convert(text, len, flags, res, signed) }
    }
}

helper! {
    /// 106 `strtoul(buf, len, flags, res)`.
    fn strtoul(run, text, len, flags, res) {
        if len as u32 == 0 {
            return EINVAL;
        }
        // SAFETY: the helper's contract.
        unsafe { convert(text, len, flags, res, unsigned) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, flags: u64) -> Result<(u64, usize), Errno> {
        parse(text.as_bytes(), flags).and_then(signed)
    }

    #[test]
    fn the_base_comes_from_the_prefix_if_it_is_not_given() {
        assert_eq!(value("  42x", 0), Ok((42, 4)));
        assert_eq!(value("0x1Fg", 0), Ok((31, 4)));
        assert_eq!(value("017", 0), Ok((15, 3)));
        assert_eq!(value("0x1f", 16), Ok((31, 4)));
        assert_eq!(value("0xg", 0), Ok((0, 1)));
    }

    #[test]
    fn numbers_that_do_not_fit_are_out_of_range() {
        assert_eq!(value("-9223372036854775808", 10), Ok((1 << 63, 20)));
        assert_eq!(value("9223372036854775808", 10), Err(Errno::RANGE));
        assert_eq!(value("99999999999999999999", 10), Err(Errno::RANGE));
        assert_eq!(value("-", 10), Err(Errno::INVAL));
        assert_eq!(value("1", 7), Err(Errno::INVAL));
        assert_eq!(value("1", 1 << 8), Err(Errno::INVAL));
    }
}
