//! What /proc says about a process, as values.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;

/// The lines of /proc/PID/status and /proc/PID/stat that decide whether a process can be traced.
#[derive(Debug, Clone, Default)]
pub(super) struct Status {
    pub(super) name: String,
    /// R, S, D, T (stopped), t (tracing stop), Z, X, I.
    pub(super) state: char,
    pub(super) tgid: i32,
    pub(super) tracer: i32,
    /// Real, effective, saved, filesystem.
    pub(super) uids: [u32; 4],
    pub(super) gids: [u32; 4],
    pub(super) cap_permitted: u64,
    pub(super) cap_effective: u64,
    /// 0 none, 1 strict, 2 filter.
    pub(super) seccomp: u32,
    /// Signals that have a handler, bit n-1 for signal n.
    pub(super) sig_caught: u64,
    pub(super) kernel_thread: bool,
}

impl Status {
    /// Reads both files. `who` is a pid, a tid or "self".
    pub(super) fn read(who: &str) -> io::Result<Self> {
        let mut status = Self::parse(&fs::read_to_string(format!("/proc/{who}/status"))?);
        status.kernel_thread = is_kernel_thread(&fs::read_to_string(format!("/proc/{who}/stat"))?);
        Ok(status)
    }

    fn parse(text: &str) -> Self {
        let mut s = Self::default();
        for (key, value) in text.lines().filter_map(|l| l.split_once(':')) {
            let value = value.trim();
            match key {
                "Name" => s.name = value.to_owned(),
                "State" => s.state = value.chars().next().unwrap_or('?'),
                "Tgid" => s.tgid = value.parse().unwrap_or(0),
                "TracerPid" => s.tracer = value.parse().unwrap_or(0),
                "Uid" => s.uids = four(value),
                "Gid" => s.gids = four(value),
                "CapPrm" => s.cap_permitted = hex(value),
                "CapEff" => s.cap_effective = hex(value),
                "Seccomp" => s.seccomp = value.parse().unwrap_or(0),
                "SigCgt" => s.sig_caught = hex(value),
                _ => {}
            }
        }
        s
    }

    pub(super) fn catches(&self, signal: i32) -> bool {
        self.sig_caught & mask_of(signal) != 0
    }
}

/// The bit of a signal in a kernel signal set.
pub(super) const fn mask_of(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn four(value: &str) -> [u32; 4] {
    let mut it = value.split_whitespace().map(|v| v.parse().unwrap_or(u32::MAX));
    std::array::from_fn(|_| it.next().unwrap_or(u32::MAX))
}

fn hex(value: &str) -> u64 {
    u64::from_str_radix(value, 16).unwrap_or(0)
}

/// PF_KTHREAD (`linux/sched.h`) in the flags of /proc/PID/stat, the 9th field.
fn is_kernel_thread(stat: &str) -> bool {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let flags = after_name.split_whitespace().nth(6).and_then(|f| f.parse::<u64>().ok());
    flags.is_some_and(|f| f & PF_KTHREAD != 0)
}

/// What a thread does in the kernel, from /proc/PID/task/TID/syscall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// On a CPU or ready for one.
    Running,
    /// Blocked in this system call.
    Syscall(i64),
    /// Not readable, or blocked elsewhere (a page fault).
    Unknown,
}

/// Reads what a thread is doing.
pub(super) fn doing(pid: i32, tid: i32) -> Doing {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")) else {
        return Doing::Unknown;
    };
    let first = text.split_whitespace().next().unwrap_or("");
    match (first, first.parse::<i64>()) {
        ("running", _) => Doing::Running,
        (_, Ok(nr)) if nr >= 0 => Doing::Syscall(nr),
        _ => Doing::Unknown,
    }
}

/// Thread ids of a process, the main thread first.
pub(super) fn threads(pid: i32) -> Vec<i32> {
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut tids: Vec<i32> =
        dir.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).filter(|&t| t != pid).collect();
    tids.sort_unstable();
    tids.insert(0, pid);
    tids
}

/// One line of /proc/PID/maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) executable: bool,
    pub(super) offset: u64,
    /// "major:minor" and the inode number, as printed.
    pub(super) file: (String, u64),
    /// Without " (deleted)".
    pub(super) path: String,
}

impl Mapping {
    /// The last component of the path; "libc.so.6", "memfd:name", "" when anonymous.
    pub(super) fn base_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or("")
    }

    fn parse(line: &str) -> Option<Self> {
        let mut rest = line;
        let mut field = || {
            let (head, tail) = rest.split_once(' ').unwrap_or((rest, ""));
            rest = tail.trim_start();
            head
        };
        let (range, perms, offset, dev, inode) = (field(), field(), field(), field(), field());
        let (start, end) = range.split_once('-')?;
        Some(Self {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            executable: perms.contains('x'),
            offset: u64::from_str_radix(offset, 16).ok()?,
            file: (dev.to_owned(), inode.parse().ok()?),
            path: rest.strip_suffix(" (deleted)").unwrap_or(rest).to_owned(),
        })
    }
}

/// All mappings of a process, in address order.
///
/// Errors: EACCES when we may not look into the process, ENOENT when it is gone.
pub(super) fn maps(pid: i32) -> io::Result<Vec<Mapping>> {
    let text = fs::read(format!("/proc/{pid}/maps"))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(Mapping::parse).collect())
}

/// The AT_SECURE entry of the auxiliary vector, when it can be read.
pub(super) fn at_secure(pid: i32) -> Option<bool> {
    let auxv = fs::read(format!("/proc/{pid}/auxv")).ok()?;
    // Entry types are small: a 64-bit vector begins with a word whose upper half is zero.
    let width = if auxv.get(4..8) == Some(&[0; 4]) { 8 } else { 4 };
    let mut words = auxv.chunks_exact(width).map(|w| {
        let mut word = [0; 8];
        word[..width].copy_from_slice(w);
        u64::from_le_bytes(word)
    });
    while let (Some(kind), Some(value)) = (words.next(), words.next()) {
        if kind == libc::AT_SECURE {
            return Some(value != 0);
        }
    }
    Some(false)
}

/// The memory of a process (/proc/PID/mem). Writes go through page protection as a debugger's do.
#[derive(Debug)]
pub(super) struct Memory(fs::File);

impl Memory {
    pub(super) fn open(pid: i32) -> io::Result<Self> {
        fs::File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).map(Self)
    }

    /// Fills `buf` or fails.
    pub(super) fn read(&self, addr: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, addr)
    }

    /// As much of `len` bytes as is mapped.
    pub(super) fn read_some(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        let mut got = 0;
        while got < len {
            match self.0.read_at(&mut buf[got..], addr + got as u64) {
                Ok(n) if n > 0 => got += n,
                _ => break,
            }
        }
        buf.truncate(got);
        buf
    }

    pub(super) fn read_u64(&self, addr: u64) -> io::Result<u64> {
        let mut buf = [0; 8];
        self.read(addr, &mut buf)?;
        Ok(u64::from_ne_bytes(buf))
    }

    /// A NUL-terminated string of at most `max` bytes, lossy.
    pub(super) fn read_str(&self, addr: u64, max: usize) -> String {
        let bytes = self.read_some(addr, max);
        let len = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    pub(super) fn write(&self, addr: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maps_line_with_spaces_in_the_path_parses() {
        let m =
            Mapping::parse("7f00-7f10 r-xp 00000010 fe:01 1234                       /a b/lib.so (deleted)");
        let want = Mapping {
            start: 0x7f00,
            end: 0x7f10,
            executable: true,
            offset: 16,
            file: ("fe:01".into(), 1234),
            path: "/a b/lib.so".into(),
        };
        assert_eq!(m, Some(want));
    }

    #[test]
    fn an_anonymous_maps_line_parses() {
        assert_eq!(Mapping::parse("1000-2000 rw-p 00000000 00:00 0 ").map(|m| m.path), Some(String::new()));
    }

    #[test]
    fn a_process_name_with_parentheses_does_not_confuse_stat() {
        assert!(is_kernel_thread("2 (k) S (x) S 0 0 0 0 -1 2129984 0 0"));
        assert!(!is_kernel_thread("2 (a) b) S 0 0 0 0 -1 4194304 0 0"));
    }

    #[test]
    fn our_own_status_reads() {
        let s = Status::read("self").unwrap();
        assert_eq!(s.tgid, std::process::id() as i32);
        assert!(!s.kernel_thread);
        assert_eq!(at_secure(s.tgid), Some(false));
    }
}
