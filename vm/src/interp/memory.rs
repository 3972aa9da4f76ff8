//! Raw host memory for the interpreter: the only place of it that dereferences anything.

use crate::alu;
use crate::isa::{AtomicOp, Size, Width};
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// Reads `size` bytes, zero-extended.
///
/// # Safety
/// `addr` is readable for `size` bytes. Any alignment.
pub unsafe fn read(size: Size, addr: u64) -> u64 {
    let addr = addr as usize;
    // SAFETY: the caller vouches for the range; unaligned reads are allowed for.
    unsafe {
        match size {
            Size::B => u64::from(with_exposed_provenance::<u8>(addr).read()),
            Size::H => u64::from(with_exposed_provenance::<u16>(addr).read_unaligned()),
            Size::W => u64::from(with_exposed_provenance::<u32>(addr).read_unaligned()),
            Size::Dw => with_exposed_provenance::<u64>(addr).read_unaligned(),
        }
    }
}

/// Writes the low `size` bytes of `value`.
///
/// # Safety
/// `addr` is writable for `size` bytes. Any alignment.
pub unsafe fn write(size: Size, addr: u64, value: u64) {
    let addr = addr as usize;
    // SAFETY: the caller vouches for the range; unaligned writes are allowed for.
    unsafe {
        match size {
            Size::B => with_exposed_provenance_mut::<u8>(addr).write(value as u8),
            Size::H => with_exposed_provenance_mut::<u16>(addr).write_unaligned(value as u16),
            Size::W => with_exposed_provenance_mut::<u32>(addr).write_unaligned(value as u32),
            Size::Dw => with_exposed_provenance_mut::<u64>(addr).write_unaligned(value),
        }
    }
}

/// What an atomic leaves in memory, given the old value. `expected` is r0 and only matters to `Cmpxchg`.
fn updated(op: AtomicOp, width: Width, old: u64, operand: u64, expected: u64) -> u64 {
    match op {
        AtomicOp::Add => alu::alu(crate::isa::AluOp::Add, width, old, operand),
        AtomicOp::Or => old | operand,
        AtomicOp::And => old & operand,
        AtomicOp::Xor => old ^ operand,
        AtomicOp::Xchg => operand,
        AtomicOp::Cmpxchg if old == expected => operand,
        AtomicOp::Cmpxchg => old,
    }
}

/// Read-modify-write; returns the old value, zero-extended. Atomic when `addr` is aligned. Unaligned
/// atomics, which the kernel's verifier refuses, are done in two steps.
///
/// # Safety
/// `addr` is readable and writable for `size` bytes, and whoever shares it accesses it atomically.
pub unsafe fn modify(op: AtomicOp, size: Size, addr: u64, operand: u64, expected: u64) -> u64 {
    let wide = size == Size::Dw;
    let width = if wide { Width::W64 } else { Width::W32 };
    let (operand, expected) = (alu::zero_extend(size, operand), alu::zero_extend(size, expected));
    let new = |old: u64| updated(op, width, old, operand, expected);
    if !addr.is_multiple_of(u64::from(size.bytes())) {
        // SAFETY: the caller vouches for the range.
        unsafe {
            let old = read(size, addr);
            write(size, addr, new(old));
            return old;
        }
    }
    if wide {
        // SAFETY: valid as the caller says, and aligned as just checked.
        let cell = unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(addr as usize)) };
        fetched(cell.fetch_update(SeqCst, SeqCst, |old| Some(new(old))))
    } else {
        // SAFETY: valid as the caller says, and aligned as just checked.
        let cell = unsafe { AtomicU32::from_ptr(with_exposed_provenance_mut(addr as usize)) };
        u64::from(fetched(cell.fetch_update(SeqCst, SeqCst, |old| Some(new(u64::from(old)) as u32))))
    }
}

/// The closures above never decline, so both arms hold the old value.
fn fetched<T>(result: Result<T, T>) -> T {
    match result {
        Ok(old) | Err(old) => old,
    }
}
