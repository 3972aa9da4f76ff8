//! Loads, stores and atomics: which memory an address is in, and whether the access stays inside.

use super::error::{Check, access};
use super::explore::{Verifier, loaded};
use super::facts::{Access, Region};
use super::state::State;
use super::value::{Kind, Object, Val};
use crate::isa::{AtomicOp, MapIdx, Op, Operand, Reg, Size};

/// `BPF_F_RDONLY_PROG` and `BPF_F_WRONLY_PROG`.
pub(super) const RDONLY_PROG: u32 = 1 << 7;
const WRONLY_PROG: u32 = 1 << 8;

/// What an access does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Write,
}

/// Bytes from an address: `size` of them, at `off` from what the register holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub reg: usize,
    pub ptr: Val,
    pub off: i64,
    pub size: i64,
}

impl Span {
    /// An access by an instruction.
    fn of(reg: Reg, ptr: Val, off: i16, size: Size) -> Span {
        Span { reg: reg.index(), ptr, off: i64::from(off), size: i64::from(size.bytes()) }
    }

    /// The constant part of the first byte's offset.
    pub fn fixed(&self) -> i64 {
        i64::from(self.ptr.off) + self.off
    }

    /// The offset of the first byte, if it is known.
    pub fn start(&self) -> Option<i64> {
        self.ptr.num.constant().map(|var| self.fixed().wrapping_add(var as i64))
    }

    /// Lowest and highest offset of the first byte.
    pub fn range(&self) -> (i64, i64) {
        let var = &self.ptr.num.wide;
        (self.fixed().saturating_add(var.smin), self.fixed().saturating_add(var.smax))
    }

    fn access(&self, region: Region) -> Access {
        let (min, max) = self.range();
        let zeros = self.alignment_bits().trailing_zeros().min(3);
        Access { region, min, max: max + self.size, align: 1 << zeros }
    }

    /// Bits that may be set in the offset of the first byte.
    fn alignment_bits(&self) -> u64 {
        let var = self.ptr.num.bits;
        var.value.wrapping_add(self.fixed() as u64) | var.mask
    }
}

impl Verifier<'_> {
    pub fn load(&mut self, state: &mut State, at: usize, op: Op) -> Check {
        let Op::Load { size, signed, dst, base, off } = op else { return Ok(()) };
        let span = Span::of(base, self.read(state, base)?, off, size);
        let val = match span.ptr.kind {
            Kind::Stack(_) => {
                self.prove_loaded(at, None);
                self.stack_read(state, &span, signed)?
            }
            _ => {
                self.check(at, &span, Use::Read)?;
                let known = self.read_only(&span).map(|x| extended(x, size, signed));
                self.prove_loaded(at, known);
                known.map_or(Val::scalar(loaded(size.bits_wide(), signed)), Val::constant)
            }
        };
        self.prove_span(at, &span);
        state.set(dst, val);
        Ok(())
    }

    pub fn store(&mut self, state: &mut State, at: usize, op: Op) -> Check {
        let Op::Store { size, base, off, src } = op else { return Ok(()) };
        let ptr = self.read(state, base)?;
        let mut val = self.operand(state, src)?;
        let span = Span::of(base, ptr, off, size);
        match ptr.kind {
            Kind::Stack(_) => {
                if let Operand::Reg(reg) = src
                    && base != reg
                {
                    val = self.linked_copy(state, src)?;
                }
                self.stack_write(state, &span, Some(&val))?;
            }
            _ => self.check(at, &span, Use::Write)?,
        }
        self.prove_span(at, &span);
        Ok(())
    }

    pub fn atomic(&mut self, state: &mut State, at: usize, op: Op) -> Check {
        let Op::Atomic { op, fetch, size, base, off, src } = op else { return Ok(()) };
        self.read(state, src)?;
        if op == AtomicOp::Cmpxchg {
            self.read(state, Reg::R0)?;
        }
        let ptr = self.read(state, base)?;
        if ptr.kind == Kind::Ctx {
            return access(format!("BPF_ATOMIC stores into R{} ctx is not allowed", base.index()));
        }
        let span = Span::of(base, ptr, off, size);
        let mut old = Val::scalar(loaded(size.bits_wide(), false));
        match ptr.kind {
            Kind::Stack(_) => {
                let found = self.stack_read(state, &span, false)?;
                if found.is_scalar() {
                    old = Val::scalar(found.num);
                }
                self.stack_write(state, &span, None)?;
            }
            _ => {
                self.aligned(&span, "value ")?;
                self.check(at, &span, Use::Read)?;
                self.check(at, &span, Use::Write)?;
            }
        }
        self.prove_span(at, &span);
        if fetch {
            state.set(if op == AtomicOp::Cmpxchg { Reg::R0 } else { src }, old);
        }
        Ok(())
    }

    fn prove_span(&mut self, at: usize, span: &Span) {
        let region = match span.ptr.kind {
            Kind::Stack(_) => Region::Stack,
            Kind::Ctx => Region::Ctx,
            Kind::MapValue(map) => Region::MapValue(map),
            Kind::MapKey(map) => Region::MapKey(map),
            Kind::Record(_) => Region::Record,
            _ => Region::Several,
        };
        self.prove(at, span.access(region));
    }

    /// The contents of frozen, read-only data.
    fn read_only(&self, span: &Span) -> Option<u64> {
        let Kind::MapValue(map) = span.ptr.kind else { return None };
        let facts = self.map(map);
        if !facts.frozen || facts.flags & RDONLY_PROG == 0 {
            return None;
        }
        let off = u32::try_from(span.start()?).ok()?;
        self.env.rodata(map, off, span.size as u32)
    }

    /// Bytes of any memory but the stack.
    pub fn check(&mut self, at: usize, span: &Span, usage: Use) -> Check {
        let (reg, ptr) = (span.reg, &span.ptr);
        if ptr.nullable {
            return access(format!("R{reg} invalid mem access '{}'", ptr.type_name()));
        }
        match ptr.kind {
            Kind::Ctx => self.context(at, span, usage),
            Kind::MapValue(map) => {
                self.permitted(map, span, usage)?;
                let limit = i64::from(self.map(map).value_size);
                inside(span, limit, |off, size| {
                    format!("invalid access to map value, value_size={limit} off={off} size={size}")
                })?;
                self.spares_parts(at, map, span, usage)
            }
            Kind::MapKey(map) => {
                if usage == Use::Write {
                    return access(format!("write to change key R{reg} not allowed"));
                }
                let limit = i64::from(self.map(map).key_size);
                inside(span, limit, |off, size| {
                    format!("invalid access to map key, key_size={limit} off={off} size={size}")
                })
            }
            Kind::Record(limit) | Kind::Slice(limit) => inside(span, i64::from(limit), |off, size| {
                format!("invalid access to memory, mem_size={limit} off={off} size={size}")
            }),
            Kind::Object(object) => read_object(object, span, usage),
            Kind::Stack(_)
            | Kind::NotInit
            | Kind::Scalar
            | Kind::Map(_)
            | Kind::Func(_)
            | Kind::Dynptr(_)
            | Kind::DynptrAddr => access(format!("R{reg} invalid mem access '{}'", ptr.type_name())),
        }
    }

    fn permitted(&self, map: MapIdx, span: &Span, usage: Use) -> Check {
        let facts = self.map(map);
        let place = || {
            let (size, off, bytes) = (facts.value_size, span.fixed(), span.size);
            format!("value_size={size} off={off} size={bytes}")
        };
        match usage {
            Use::Write if facts.flags & RDONLY_PROG != 0 => {
                access(format!("write into map forbidden, {}", place()))
            }
            Use::Read if facts.flags & WRONLY_PROG != 0 => {
                access(format!("read from map forbidden, {}", place()))
            }
            _ => Ok(()),
        }
    }

    /// Whether every possible address is a multiple of the size.
    pub fn aligned(&self, span: &Span, what: &str) -> Check {
        if span.alignment_bits() & (span.size as u64 - 1) == 0 {
            return Ok(());
        }
        let var = span.ptr.num.bits;
        let var = if span.ptr.num.constant() == Some(0) {
            "0".to_string()
        } else {
            format!("({:#x}; {:#x})", var.value, var.mask)
        };
        let (off, fixed, size) = (span.ptr.off, span.off, span.size);
        access(format!("misaligned {what}access off {var}+{off}+{fixed} size {size}"))
    }
}

/// A read of an object that stands for one of the kernel's.
fn read_object(object: Object, span: &Span, usage: Use) -> Check {
    let (reg, name) = (span.reg, object.name());
    if usage == Use::Write {
        return access("only read is supported".into());
    }
    if span.ptr.num.constant().is_none() {
        let (off, bits) = (span.fixed(), span.ptr.num.bits);
        let var = format!("var_off=({:#x}; {:#x})", bits.value, bits.mask);
        return access(format!("R{reg} is ptr_{name} invalid variable offset: off={off}, {var}"));
    }
    let (off, size) = (span.start().unwrap_or(i64::MAX), span.size);
    if off < 0 {
        return access(format!("R{reg} is ptr_{name} invalid negative access: off={off}"));
    }
    let Some(limit) = object.size() else {
        let hint = "members of a task are read with bpf_probe_read_kernel (BPF_CORE_READ)";
        return access(format!("R{reg} invalid mem access 'ptr_{name}': {hint}"));
    };
    if off.saturating_add(size) > limit {
        return access(format!("access beyond struct {name} at off {off} size {size}"));
    }
    Ok(())
}

/// Whether all bytes of a span, wherever it begins, are inside of `limit` bytes.
pub(super) fn inside(span: &Span, limit: i64, outside: impl Fn(i64, i64) -> String) -> Check {
    let (reg, var) = (span.reg, &span.ptr.num.wide);
    let refuse = |off: i64, end: &str| {
        let why = format!("R{reg} {end} value is outside of the allowed memory range");
        access(outside(off, span.size) + "\n" + &why)
    };
    let bad = |off: i64| off < 0 || off.saturating_add(span.size) > limit;
    let (min, max) = span.range();
    if var.smin < 0 && (var.smin == i64::MIN || min < 0) {
        let hint = "either use unsigned index or do a if (index >=0) check.";
        return access(format!("R{reg} min value is negative, {hint}"));
    }
    if bad(min) {
        return refuse(min, "min");
    }
    if var.umax >= super::alu::MAX_OFF as u64 {
        return access(format!("R{reg} unbounded memory access, make sure to bounds check any such access"));
    }
    if bad(max) {
        return refuse(max, "max");
    }
    Ok(())
}

fn extended(x: u64, size: Size, signed: bool) -> u64 {
    if signed { crate::alu::sign_extend(size, x) } else { crate::alu::zero_extend(size, x) }
}
