//! Bytes that cannot change any more: program images and BTF as sealed memfds.

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{self, MemfdFlags, SealFlags};
use rustix::io::Errno;

/// No program or BTF is larger; bounds what a reader allocates.
const LEN_MAX: u64 = 64 << 20;

/// A memfd that holds `bytes` for ever.
pub fn create(name: &str, bytes: &[u8]) -> Result<OwnedFd, Errno> {
    let fd = fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    crate::region::file_of(bytes.len() as u64, || write_all(&fd, bytes))?;
    fs::fcntl_add_seals(&fd, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

fn write_all(fd: &OwnedFd, bytes: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        done += rustix::io::pwrite(fd, &bytes[done..], done as u64)?;
    }
    Ok(())
}

/// The bytes behind `fd`; `EPERM` unless it is sealed against writing.
pub fn read(fd: BorrowedFd) -> Result<Vec<u8>, Errno> {
    if !fs::fcntl_get_seals(fd)?.contains(SealFlags::WRITE | SealFlags::SHRINK) {
        return Err(Errno::PERM);
    }
    let len = fs::fstat(fd)?.st_size as u64;
    if len > LEN_MAX {
        return Err(Errno::FBIG);
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len as usize).map_err(|_| Errno::NOMEM)?;
    bytes.resize(len as usize, 0);
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(fd, &mut bytes[done..], done as u64)? {
            0 => return Err(Errno::IO),
            n => done += n,
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;

    #[test]
    fn sealed_bytes_come_back_and_cannot_be_written() {
        let fd = create("t", b"image").unwrap();
        assert_eq!(read(fd.as_fd()).unwrap(), b"image");
        assert_eq!(rustix::io::pwrite(&fd, b"x", 0), Err(Errno::PERM));
    }

    #[test]
    fn an_unsealed_file_is_refused() {
        let fd = fs::memfd_create("t", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(read(fd.as_fd()), Err(Errno::PERM));
    }
}
