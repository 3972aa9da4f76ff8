//! Format strings of bpf_trace_printk, bpf_trace_vprintk and bpf_snprintf: what they may hold, piece by piece. The
//! verifier checks constant ones with it at load, the helpers print with it.

/// `MAX_BPRINTF_VARARGS`: values that one call may print.
pub const MAX_ARGS: usize = 12;
/// `MAX_TRACE_PRINTK_VARARGS`: values that bpf_trace_printk may print.
pub const MAX_PRINTK_ARGS: usize = 3;
/// `FIELD_WIDTH_MAX`.
const MAX_WIDTH: u32 = (1 << 23) - 1;

/// A part of a format string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes that are printed as they are.
    Text(&'a [u8]),
    /// The next value.
    Value(Spec),
}

/// How a value is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// `-`.
    pub left: bool,
    /// `+`.
    pub plus: bool,
    /// A space.
    pub space: bool,
    /// `0`.
    pub zero: bool,
    /// Least characters; 0 if none are asked for.
    pub width: u32,
    /// Of what.
    pub kind: Kind,
}

/// What is printed of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `%d`, `%i`; `long` for the forms with l.
    Signed {
        /// 64 bits.
        long: bool,
    },
    /// `%u`, `%x`, `%X`.
    Unsigned {
        /// 64 bits.
        long: bool,
        /// 10 or 16.
        base: u64,
        /// Letters of base 16 in upper case.
        upper: bool,
    },
    /// `%c`.
    Char,
    /// `%s`, `%pks`, `%pus`: the string at this address.
    Str {
        /// Whether the width counts: the kernel ignores it behind `p`.
        padded: bool,
    },
    /// `%p`, `%px`, `%pK`: an address.
    Pointer,
    /// `%ps`, `%pS`, `%pB`: a place in code.
    Symbol,
    /// `%pi4`, `%pI4`: the four bytes at this address.
    Ipv4 {
        /// Three digits each.
        lead: bool,
    },
    /// `%pi6`, `%pI6`: the sixteen bytes at this address.
    Ipv6 {
        /// Colons between.
        colons: bool,
    },
}

/// A format string that the kernel refuses, with -EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFormat;

/// The pieces of a format string without its terminator.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    rest: &'a [u8],
}

/// The pieces of a terminated format string.
pub fn pieces(format: &[u8]) -> Result<Pieces<'_>, BadFormat> {
    let end = format.iter().position(|b| *b == 0).ok_or(BadFormat)?;
    Ok(Pieces { rest: &format[..end] })
}

/// How many values a format string prints, if it is a good one.
pub fn count(format: &[u8]) -> Result<usize, BadFormat> {
    pieces(format)?.try_fold(0, |n, piece| Ok(n + usize::from(matches!(piece?, Piece::Value(_)))))
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>, BadFormat>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = *self.rest.first()?;
        let piece = if first == b'%' { self.percent() } else { self.text() };
        if piece.is_err() {
            self.rest = &[];
        }
        Some(piece)
    }
}

impl<'a> Pieces<'a> {
    fn text(&mut self) -> Result<Piece<'a>, BadFormat> {
        let len = self.rest.iter().position(|b| *b == b'%').unwrap_or(self.rest.len());
        let text = self.take(len);
        // Bytes beyond ASCII pass: UTF-8 does.
        let printable = |b: &u8| !b.is_ascii() || !b.is_ascii_control() || matches!(b, b'\t'..=b'\r');
        if text.iter().all(printable) { Ok(Piece::Text(text)) } else { Err(BadFormat) }
    }

    fn percent(&mut self) -> Result<Piece<'a>, BadFormat> {
        self.take(1);
        if self.rest.first() == Some(&b'%') {
            return Ok(Piece::Text(self.take(1)));
        }
        let mut spec =
            Spec { left: false, plus: false, space: false, zero: false, width: 0, kind: Kind::Char };
        while let Some(flag) = self.rest.first() {
            match flag {
                b'-' => spec.left = true,
                b'+' => spec.plus = true,
                b' ' => spec.space = true,
                b'0' => spec.zero = true,
                _ => break,
            }
            self.take(1);
        }
        while let Some(digit @ b'0'..=b'9') = self.rest.first() {
            spec.width = spec.width.saturating_mul(10).saturating_add(u32::from(digit - b'0')).min(MAX_WIDTH);
            self.take(1);
        }
        spec.kind = self.kind()?;
        Ok(Piece::Value(spec))
    }

    fn kind(&mut self) -> Result<Kind, BadFormat> {
        match self.rest.first().ok_or(BadFormat)? {
            b'p' => self.pointer(),
            b's' => {
                self.take(1);
                self.string(true)
            }
            b'c' => {
                self.take(1);
                Ok(Kind::Char)
            }
            _ => self.number(),
        }
    }

    fn number(&mut self) -> Result<Kind, BadFormat> {
        let mut longs = 0;
        while longs < 2 && self.rest.first() == Some(&b'l') {
            self.take(1);
            longs += 1;
        }
        let long = longs > 0;
        let kind = match self.rest.first().ok_or(BadFormat)? {
            b'd' | b'i' => Kind::Signed { long },
            b'u' => Kind::Unsigned { long, base: 10, upper: false },
            b'x' => Kind::Unsigned { long, base: 16, upper: false },
            b'X' => Kind::Unsigned { long, base: 16, upper: true },
            _ => return Err(BadFormat),
        };
        self.take(1);
        Ok(kind)
    }

    fn pointer(&mut self) -> Result<Kind, BadFormat> {
        self.take(1);
        let at = |n: usize| self.rest.get(n).copied().unwrap_or(0);
        let kind = match (at(0), at(1)) {
            (b'k' | b'u', b's') => {
                self.take(2);
                return self.string(false);
            }
            (b's' | b'S' | b'B', _) => Kind::Symbol,
            (b'x' | b'K', _) => Kind::Pointer,
            (i @ (b'i' | b'I'), b'4') => Kind::Ipv4 { lead: i == b'i' },
            (i @ (b'i' | b'I'), b'6') => Kind::Ipv6 { colons: i == b'I' },
            (next, _) if ends(next) => Kind::Pointer,
            _ => return Err(BadFormat),
        };
        // The kernel takes letters and digits behind a pointer for its modifiers, and drops them.
        let letters = self.rest.iter().take_while(|b| b.is_ascii_alphanumeric()).count();
        self.take(letters);
        Ok(kind)
    }

    fn string(&mut self, padded: bool) -> Result<Kind, BadFormat> {
        let next = self.rest.first().copied().unwrap_or(0);
        if ends(next) { Ok(Kind::Str { padded }) } else { Err(BadFormat) }
    }

    fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(n);
        self.rest = rest;
        taken
    }
}

/// Whether a word ends before this byte.
fn ends(next: u8) -> bool {
    next == 0 || next.is_ascii_whitespace() || next == 0x0b || next.is_ascii_punctuation()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_of(text: &str) -> Result<usize, BadFormat> {
        count(format!("{text}\0").as_bytes())
    }

    #[test]
    fn what_the_kernel_takes_is_taken() {
        let good = ["%5d|%-5d|%05d", "%i %x %X", "%+d % d %  d", "%5c|%c", "%10s %-10s", "%lld %llu %lX"];
        for (text, n) in good.iter().zip([3, 3, 3, 2, 2, 3]) {
            assert_eq!(count_of(text), Ok(n), "{text}");
        }
        for text in
            ["%pks", "%pus", "%pks|", "%px", "%pK", "%pB", "%p", "%p,", "%pi4", "%pI6c", "%pxabc|", "%-05d"]
        {
            assert_eq!(count_of(text), Ok(1), "{text}");
        }
        assert_eq!(count_of("100%%\t\u{e9}\n"), Ok(0));
    }

    #[test]
    fn what_the_kernel_refuses_is_refused() {
        let bad = [
            "%", "%#x", "%o", "%lc", "%ls", "%lp", "%.2s", "%.3d", "%pz", "%pabc", "%pksx", "%pk", "%l",
            "%hd", "%zd", "%*d", "%llld", "%l d", "%5%", "%sx", "%\u{e9}", "\x01", "\x7f", "%# x",
        ];
        for text in bad {
            assert_eq!(count_of(text), Err(BadFormat), "{text}");
        }
        assert_eq!(count(b"not terminated"), Err(BadFormat));
    }

    #[test]
    fn pieces_carry_flags_and_width() {
        let mut pieces = pieces(b"a%-+07lx%%\0").unwrap();
        assert_eq!(pieces.next(), Some(Ok(Piece::Text(b"a"))));
        let kind = Kind::Unsigned { long: true, base: 16, upper: false };
        let spec = Spec { left: true, plus: true, space: false, zero: true, width: 7, kind };
        assert_eq!(pieces.next(), Some(Ok(Piece::Value(spec))));
        assert_eq!(pieces.next(), Some(Ok(Piece::Text(b"%"))));
        assert_eq!(pieces.next(), None);
    }
}
