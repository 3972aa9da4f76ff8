//! Where a file's bytes are mapped in this process.

use rustix::fs;
use std::io::Read;

/// One line of /proc/self/maps that maps a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: usize,
    /// One past the last address.
    pub end: usize,
    /// Offset in the file of the first byte.
    pub offset: u64,
    /// Mapped executable.
    pub exec: bool,
    /// Mapped private and writable.
    pub writable: bool,
    /// Device as maps prints it.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Path as maps prints it.
    pub path: String,
}

/// The file mappings of this process.
pub fn mappings() -> std::io::Result<Vec<Mapping>> {
    read("/proc/self/maps")
}

/// The file mappings of another process.
pub fn mappings_of(pid: i32) -> std::io::Result<Vec<Mapping>> {
    read(&format!("/proc/{pid}/maps"))
}

fn read(maps: &str) -> std::io::Result<Vec<Mapping>> {
    // Room for most: a file of /proc has no size, and growing as one reads takes a dozen system calls.
    let mut text = Vec::with_capacity(32 << 10);
    std::fs::File::open(maps)?.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(parse_line).collect())
}

/// `55d0-55d4 r-xp 00001000 fe:01 1234    /bin/app`; None for mappings without a file.
fn parse_line(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let perms = fields.next()?;
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let ino: u64 = fields.next()?.parse().ok()?;
    if ino == 0 {
        return None;
    }
    let dev = fs::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    Some(Mapping {
        start: usize::from_str_radix(start, 16).ok()?,
        end: usize::from_str_radix(end, 16).ok()?,
        offset,
        exec: perms.as_bytes().get(2) == Some(&b'x'),
        writable: perms.as_bytes().get(1) == Some(&b'w') && perms.ends_with('p'),
        dev,
        ino,
        path: fields.next().unwrap_or("").trim_start().to_string(),
    })
}

/// Whether `m` maps the file that stat calls (`dev`, `ino`). On btrfs and overlayfs maps prints another device than
/// stat does, so a device that differs is settled by asking stat about the mapped path.
pub fn is_file(m: &Mapping, dev: u64, ino: u64) -> bool {
    m.ino == ino
        && (m.dev == dev || fs::stat(m.path.as_str()).is_ok_and(|st| st.st_dev == dev && st.st_ino == ino))
}

/// Where byte `offset` of the file is in a mapping of it.
pub fn address(m: &Mapping, offset: u64) -> Option<usize> {
    let at = offset.checked_sub(m.offset).filter(|at| *at < (m.end - m.start) as u64)?;
    Some(m.start + at as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_line_parses_and_an_anonymous_one_does_not() {
        let m = parse_line("7f00-7f02 r-xp 00002000 fe:01 42                 /lib/with space.so").unwrap();
        assert_eq!((m.start, m.end, m.offset, m.exec, m.ino), (0x7f00, 0x7f02, 0x2000, true, 42));
        assert_eq!(m.path, "/lib/with space.so");
        assert_eq!(parse_line("7f00-7f02 rw-p 00000000 00:00 0 [heap]"), None);
        assert_eq!(parse_line("garbage"), None);
    }

    #[test]
    fn this_test_finds_its_own_code() {
        let maps = mappings().unwrap();
        let me = this_test_finds_its_own_code as fn() as usize;
        let m = maps.iter().find(|m| m.exec && (m.start..m.end).contains(&me)).unwrap();
        let st = fs::stat(m.path.as_str()).unwrap();
        assert!(is_file(m, st.st_dev, st.st_ino));
        assert_eq!(address(m, m.offset + (me - m.start) as u64), Some(me));
        assert_eq!(address(m, m.offset + (m.end - m.start) as u64), None);
    }
}
