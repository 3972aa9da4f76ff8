//! Formatting as the kernel's bpf_bprintf does it, without the C library: nothing is allocated, strings are read piece by
//! piece into the output.
//!
//! Walked twice: once to see that everything is there and how long it gets, once to write. In userspace a plain `%p` is
//! printed as it is, where the kernel prints a hash of it: there is nothing to hide from whom it belongs to.

use super::probe;
use crate::run::Run;
use bpftime_abi::format::{Kind, Piece, Spec, pieces};
use rustix::io::Errno;

/// `MAX_BPRINTF_BIN_ARGS`: bytes that all values of a call may take, strings included.
const ROOM: usize = 512;
/// Bytes of a string that are read at a time.
const CHUNK: usize = 64;

/// Part of the output.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// One byte, so many times.
    Fill(u8, usize),
}

impl Part<'_> {
    /// How many bytes it is.
    pub fn len(&self) -> usize {
        match self {
            Part::Bytes(bytes) => bytes.len(),
            Part::Fill(_, n) => *n,
        }
    }
}

/// Length of the text, as if there were room for it. `EINVAL` for a bad format or too few values, `ENOSPC` for too long
/// strings.
pub fn measure(run: &mut Run, format: &[u8], values: &[u64]) -> Result<usize, Errno> {
    let mut len = 0usize;
    walk(run, format, values, &mut |part| len += part.len())?;
    Ok(len)
}

/// Hands out the text, part by part.
pub fn walk(
    run: &mut Run,
    format: &[u8],
    values: &[u64],
    put: &mut dyn FnMut(Part<'_>),
) -> Result<(), Errno> {
    let mut out = Output { run, put, room: ROOM };
    let mut values = values.iter();
    for piece in pieces(format).map_err(|_| Errno::INVAL)? {
        match piece.map_err(|_| Errno::INVAL)? {
            Piece::Text(text) => (out.put)(Part::Bytes(text)),
            Piece::Value(spec) => out.value(&spec, *values.next().ok_or(Errno::INVAL)?)?,
        }
    }
    Ok(())
}

struct Output<'a> {
    run: &'a mut Run,
    put: &'a mut dyn FnMut(Part<'_>),
    room: usize,
}

impl Output<'_> {
    fn value(&mut self, spec: &Spec, value: u64) -> Result<(), Errno> {
        match spec.kind {
            Kind::Signed { long } => {
                self.take(if long { 8 } else { 4 })?;
                let value = if long { value as i64 } else { i64::from(value as i32) };
                let sign = match value {
                    ..0 => "-",
                    _ if spec.plus => "+",
                    _ if spec.space => " ",
                    _ => "",
                };
                self.number(spec, sign, value.unsigned_abs(), 10, false);
            }
            Kind::Unsigned { long, base, upper } => {
                self.take(if long { 8 } else { 4 })?;
                let value = if long { value } else { u64::from(value as u32) };
                self.number(spec, "", value, base, upper);
            }
            Kind::Char => {
                self.take(4)?;
                self.padded(spec, 1, |out| (out.put)(Part::Bytes(&[value as u8])));
            }
            Kind::Str { padded } => self.string(spec, value, padded)?,
            Kind::Pointer => {
                self.take(8)?;
                let whole = Spec { width: 16, zero: !spec.left, ..*spec };
                self.number(if spec.width == 0 { &whole } else { spec }, "", value, 16, false);
            }
            Kind::Symbol => {
                self.take(8)?;
                let plain = Spec { zero: false, ..*spec };
                self.number(&plain, "0x", value, 16, false);
            }
            Kind::Ipv4 { lead } => self.ipv4(value, lead)?,
            Kind::Ipv6 { colons } => self.ipv6(value, colons)?,
        }
        Ok(())
    }

    /// Counts bytes of the kernel's buffer, which are fewer than there are values in the worst case.
    fn take(&mut self, bytes: usize) -> Result<(), Errno> {
        self.room = self.room.checked_sub(bytes).ok_or(Errno::NOSPC)?;
        Ok(())
    }

    fn number(&mut self, spec: &Spec, prefix: &str, value: u64, base: u64, upper: bool) {
        let mut digits = [0u8; 20];
        let digits = digits_of(value, base, upper, &mut digits);
        let len = prefix.len() + digits.len();
        if spec.zero && !spec.left {
            (self.put)(Part::Bytes(prefix.as_bytes()));
            (self.put)(Part::Fill(b'0', (spec.width as usize).saturating_sub(len)));
            (self.put)(Part::Bytes(digits));
            return;
        }
        self.padded(spec, len, |out| {
            (out.put)(Part::Bytes(prefix.as_bytes()));
            (out.put)(Part::Bytes(digits));
        });
    }

    fn padded(&mut self, spec: &Spec, len: usize, body: impl FnOnce(&mut Self)) {
        let fill = Part::Fill(b' ', (spec.width as usize).saturating_sub(len));
        if !spec.left {
            (self.put)(fill);
        }
        body(self);
        if spec.left {
            (self.put)(fill);
        }
    }

    fn string(&mut self, spec: &Spec, addr: u64, padded: bool) -> Result<(), Errno> {
        let limit = self.room.checked_sub(1).ok_or(Errno::NOSPC)?;
        let len = self.read(addr, limit, false);
        self.take(len + 1)?;
        let spec = if padded { *spec } else { Spec { width: 0, ..*spec } };
        self.padded(&spec, len, |out| {
            out.read(addr, len, true);
        });
        Ok(())
    }

    /// Length of the string at `addr`, up to `limit`; 0 for one that cannot be read. `show` puts it out.
    fn read(&mut self, addr: u64, limit: usize, show: bool) -> usize {
        let mut chunk = [0u8; CHUNK + 1];
        let mut done = 0;
        while done < limit {
            let want = CHUNK.min(limit - done);
            let got = probe::read_str(
                self.run,
                chunk.as_mut_ptr() as u64,
                want as u64 + 1,
                addr.wrapping_add(done as u64),
            ) as i64;
            let Some(len) = usize::try_from(got - 1).ok() else { return 0 };
            if show {
                (self.put)(Part::Bytes(&chunk[..len]));
            }
            done += len;
            if len < want {
                break;
            }
        }
        done
    }

    /// Bytes at `addr`; zeroes if they cannot be read.
    fn bytes<const N: usize>(&mut self, addr: u64) -> [u8; N] {
        let mut bytes = [0u8; N];
        probe::read(self.run, bytes.as_mut_ptr() as u64, N as u64, addr);
        bytes
    }

    fn ipv4(&mut self, addr: u64, lead: bool) -> Result<(), Errno> {
        let bytes: [u8; 4] = self.bytes(addr);
        let mut len = 0;
        for (n, byte) in bytes.into_iter().enumerate() {
            let mut digits = [0u8; 20];
            let digits = digits_of(byte.into(), 10, false, &mut digits);
            let zeroes = if lead { 3 - digits.len() } else { 0 };
            let dot: &[u8] = if n > 0 { b"." } else { b"" };
            len += dot.len() + zeroes + digits.len();
            (self.put)(Part::Bytes(dot));
            (self.put)(Part::Fill(b'0', zeroes));
            (self.put)(Part::Bytes(digits));
        }
        self.take(len + 1)
    }

    fn ipv6(&mut self, addr: u64, colons: bool) -> Result<(), Errno> {
        let bytes: [u8; 16] = self.bytes(addr);
        for (n, byte) in bytes.into_iter().enumerate() {
            if colons && n > 0 && n.is_multiple_of(2) {
                (self.put)(Part::Bytes(b":"));
            }
            let digit = |d: u8| b"0123456789abcdef"[usize::from(d & 15)];
            (self.put)(Part::Bytes(&[digit(byte >> 4), digit(byte)]));
        }
        self.take(if colons { 40 } else { 33 })
    }
}

/// The digits of a number, in the end of `room`.
fn digits_of(mut value: u64, base: u64, upper: bool, room: &mut [u8; 20]) -> &[u8] {
    let letters: &[u8; 16] = if upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
    let mut at = room.len();
    loop {
        at -= 1;
        room[at] = letters[(value % base) as usize];
        value /= base;
        if value == 0 || at == 0 {
            return &room[at..];
        }
    }
}
