//! Memory that the tool names: copied by the kernel, so that a bad address is EFAULT and not a crash.

use bpftime_agent::arch::sys::syscall;
use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

#[repr(C)]
struct IoVec {
    base: usize,
    len: usize,
}

fn transfer(nr: i64, local: usize, remote: u64, len: usize) -> Result<(), Errno> {
    let pid = rustix::process::getpid().as_raw_nonzero().get() as usize;
    let mine = IoVec { base: local, len };
    let theirs = IoVec { base: remote as usize, len };
    // SAFETY: process_vm_{read,write}v check both vectors and never fault.
    let n = unsafe { syscall(nr, [pid, &raw const mine as usize, 1, &raw const theirs as usize, 1, 0]) };
    if n == len as isize { Ok(()) } else { Err(Errno::FAULT) }
}

/// Fills `dst` from `src`.
pub fn read_into(dst: &mut [u8], src: u64) -> Result<(), Errno> {
    if dst.is_empty() {
        return Ok(());
    }
    transfer(libc::SYS_process_vm_readv, dst.as_mut_ptr() as usize, src, dst.len())
}

/// `len` bytes at `src`.
pub fn read(src: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Errno::NOMEM)?;
    bytes.resize(len, 0);
    read_into(&mut bytes, src)?;
    Ok(bytes)
}

/// Stores `src` at `dst`.
pub fn write(dst: u64, src: &[u8]) -> Result<(), Errno> {
    if src.is_empty() {
        return Ok(());
    }
    transfer(libc::SYS_process_vm_writev, src.as_ptr() as usize, dst, src.len())
}

/// A plain value at `src`.
pub fn read_value<T: FromBytes + IntoBytes + FromZeros>(src: u64) -> Result<T, Errno> {
    let mut v = T::new_zeroed();
    read_into(v.as_mut_bytes(), src)?;
    Ok(v)
}

/// Stores a plain value at `dst`.
pub fn write_value<T: IntoBytes + Immutable + KnownLayout>(dst: u64, v: &T) -> Result<(), Errno> {
    write(dst, v.as_bytes())
}

/// The terminated string at `src`, without its terminator; at most `max` bytes.
pub fn read_str(src: u64, max: usize) -> Result<Vec<u8>, Errno> {
    let mut out = Vec::new();
    let mut at = src;
    while out.len() <= max {
        // Up to the end of the page: the next one may not be mapped.
        let room = (4096 - (at as usize & 4095)).min(max + 1 - out.len());
        if room == 0 {
            break;
        }
        let part = read(at, room)?;
        if let Some(n) = part.iter().position(|b| *b == 0) {
            out.extend_from_slice(&part[..n]);
            return Ok(out);
        }
        out.extend_from_slice(&part);
        at += room as u64;
    }
    Err(Errno::NAMETOOLONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wild_pointer_is_efault() {
        assert_eq!(read(8, 16), Err(Errno::FAULT));
        assert_eq!(read(u64::MAX - 3, 16), Err(Errno::FAULT));
        assert_eq!(write(8, b"x"), Err(Errno::FAULT));
        assert_eq!(read_str(8, 10), Err(Errno::FAULT));
    }

    #[test]
    fn values_and_strings_come_back() {
        let v = 0x1122_3344_5566_7788_u64;
        assert_eq!(read_value::<u64>(&raw const v as u64), Ok(v));
        let s = c"hello";
        assert_eq!(read_str(s.as_ptr() as u64, 10), Ok(b"hello".to_vec()));
        assert_eq!(read_str(s.as_ptr() as u64, 3), Err(Errno::NAMETOOLONG));
    }
}
