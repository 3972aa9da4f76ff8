//! Places that a program can be attached to: `uprobe:PATH:SYMBOL[+OFFSET]`, `uretprobe:PATH:SYMBOL` and
//! `tracepoint:CATEGORY:NAME`.

use crate::failure::Failure;
use object::{Object, ObjectSegment, ObjectSymbol};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const IOC_ENABLE: libc::c_ulong = 0x2400;
const IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
/// `PERF_FLAG_FD_CLOEXEC`.
const CLOEXEC: usize = 8;
/// `perf_event_attr` up to config2 (PERF_ATTR_SIZE_VER1 and more): what the kernel of uprobes wants.
const ATTR_LEN: usize = 112;

/// `PERF_TYPE_TRACEPOINT`.
const TRACEPOINT: u32 = 2;

/// A place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Probe {
    Function(Function),
    Tracepoint { category: String, name: String },
}

/// In a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Function {
    is_return: bool,
    path: String,
    symbol: String,
    offset: u64,
}

impl Probe {
    /// `None` when the text is none.
    pub fn parse(text: &str) -> Option<Probe> {
        let (kind, place) = text.split_once([':', '/'])?;
        match kind {
            "uprobe" => Function::parse(false, place).map(Probe::Function),
            "uretprobe" => Function::parse(true, place).map(Probe::Function),
            "tracepoint" | "tp" => {
                let (category, name) = place.split_once([':', '/'])?;
                let plain = |part: &str| !part.is_empty() && !part.contains([':', '/']);
                let (whole, category, name) = (plain(category) && plain(name), category.into(), name.into());
                whole.then_some(Probe::Tracepoint { category, name })
            }
            _ => None,
        }
    }

    /// Whether programs of this section are for places of this kind.
    pub fn is_for(&self, section: &str) -> bool {
        let kind = section.trim_start_matches('?').split(['/', '.', '+']).next().unwrap_or_default();
        match self {
            Probe::Function(function) if function.is_return => kind.contains("ret"),
            Probe::Function(_) => !kind.contains("ret") && !matches!(kind, "tracepoint" | "tp"),
            Probe::Tracepoint { .. } => matches!(kind, "tracepoint" | "tp"),
        }
    }

    /// Attaches a loaded program for as long as the result lives: to one process, or to all.
    pub fn attach(&self, prog: &OwnedFd, pid: Option<i32>) -> Result<OwnedFd, Failure> {
        match self {
            Probe::Function(function) => function.attach(prog, pid),
            Probe::Tracepoint { category, name } => tracepoint(category, name)
                .and_then(|id| {
                    let mut attr = attribute(TRACEPOINT);
                    attr[8..16].copy_from_slice(&id.to_le_bytes());
                    Event::attached(&attr, prog, pid)
                })
                .map_err(|e| Failure::new(1, format_args!("{category}:{name}: {e}; see `bpftime doctor`"))),
        }
    }
}

/// The number of a tracepoint.
fn tracepoint(category: &str, name: &str) -> io::Result<u64> {
    let read = |root: &str| std::fs::read_to_string(format!("{root}/events/{category}/{name}/id"));
    let text = read("/sys/kernel/tracing").or_else(|_| read("/sys/kernel/debug/tracing"))?;
    text.trim().parse().map_err(io::Error::other)
}

fn attribute(kind: u32) -> [u8; ATTR_LEN] {
    let mut attr = [0u8; ATTR_LEN];
    attr[0..4].copy_from_slice(&kind.to_le_bytes());
    attr[4..8].copy_from_slice(&(ATTR_LEN as u32).to_le_bytes());
    attr
}

impl Function {
    fn parse(is_return: bool, place: &str) -> Option<Function> {
        let (path, symbol) = place.rsplit_once(':')?;
        let (symbol, offset) = match symbol.split_once('+') {
            Some((symbol, offset)) => (symbol, parse_number(offset)?),
            None => (symbol, 0),
        };
        let whole = !path.is_empty() && !symbol.is_empty();
        whole.then(|| Function { is_return, path: path.into(), symbol: symbol.into(), offset })
    }

    fn attach(&self, prog: &OwnedFd, pid: Option<i32>) -> Result<OwnedFd, Failure> {
        let name = format!("{}:{}", self.path, self.symbol);
        let offset = self.file_offset().map_err(|why| Failure::new(1, format_args!("{name}: {why}")))?;
        self.open(offset, prog, pid)
            .map_err(|e| Failure::new(1, format_args!("{name}: {e}; see `bpftime doctor`")))
    }

    fn file_offset(&self) -> Result<u64, String> {
        let bytes = std::fs::read(&self.path).map_err(|e| format!("{e}; check the path"))?;
        let file = object::File::parse(bytes.as_slice()).map_err(|e| format!("{e}; give an ELF file"))?;
        let is_it = |symbol: &object::Symbol<'_, '_>| {
            symbol.is_definition() && symbol.name() == Ok(self.symbol.as_str())
        };
        let found = file.symbols().find(is_it).or_else(|| file.dynamic_symbols().find(is_it));
        let address = found.ok_or("no such function; see `nm`")?.address();
        let segment = file.segments().find(|s| (s.address()..s.address() + s.size()).contains(&address));
        let segment = segment.ok_or("its address is in no segment")?;
        Ok(address - segment.address() + segment.file_range().0 + self.offset)
    }

    fn open(&self, offset: u64, prog: &OwnedFd, pid: Option<i32>) -> io::Result<OwnedFd> {
        let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
        let kind: u32 = kind.trim().parse().map_err(io::Error::other)?;
        let path = CString::new(self.path.as_str())?;
        let mut attr = attribute(kind);
        // config: bit 0 is "retprobe"; config1 and config2 at 56 and 64: path and offset.
        attr[8] = self.is_return.into();
        attr[56..64].copy_from_slice(&(path.as_ptr() as u64).to_le_bytes());
        attr[64..72].copy_from_slice(&offset.to_le_bytes());
        Event::attached(&attr, prog, pid)
    }
}

struct Event(OwnedFd);

impl Event {
    /// An event with a program on it, in one process or in all.
    fn attached(attr: &[u8; ATTR_LEN], prog: &OwnedFd, pid: Option<i32>) -> io::Result<OwnedFd> {
        let (pid, cpu) = pid.map_or((-1, 0), |pid| (pid as isize, -1));
        let event = Event::open(attr, pid, cpu)?;
        event.ioctl(IOC_SET_BPF, prog.as_raw_fd())?;
        event.ioctl(IOC_ENABLE, 0)?;
        Ok(event.0)
    }

    fn open(attr: &[u8; ATTR_LEN], pid: isize, cpu: isize) -> io::Result<Event> {
        let group: isize = -1;
        // SAFETY: the attribute and the path it points to live in the caller's frame.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), pid, cpu, group, CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made, and nobody else's.
        Ok(Event(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    fn ioctl(&self, request: libc::c_ulong, arg: i32) -> io::Result<()> {
        // SAFETY: both requests take a number.
        let ret = unsafe { libc::ioctl(self.0.as_raw_fd(), request, libc::c_ulong::from(arg as u32)) };
        if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_a_kind_a_path_and_a_symbol() {
        let probe = |is_return, path: &str, symbol: &str, offset| {
            Some(Probe::Function(Function { is_return, path: path.into(), symbol: symbol.into(), offset }))
        };
        assert_eq!(Probe::parse("uprobe:/bin/a:main"), probe(false, "/bin/a", "main", 0));
        assert_eq!(Probe::parse("uretprobe:./a:f"), probe(true, "./a", "f", 0));
        assert_eq!(Probe::parse("uprobe//bin/a:main+0x10"), probe(false, "/bin/a", "main", 16));
        for text in
            ["kprobe:/bin/a:f", "uprobe:/bin/a", "uprobe", "uprobe:/bin/a:", "uprobe::f", "uprobe:a:f+x"]
        {
            assert_eq!(Probe::parse(text), None, "{text}");
        }
        let tracepoint = |category: &str, name: &str| {
            Some(Probe::Tracepoint { category: category.into(), name: name.into() })
        };
        let open = tracepoint("syscalls", "sys_enter_openat");
        assert_eq!(Probe::parse("tracepoint:syscalls:sys_enter_openat"), open);
        assert_eq!(Probe::parse("tp/syscalls/sys_enter_openat"), open);
        for text in ["tracepoint:syscalls", "tracepoint::x", "tracepoint:a:", "tracepoint:a:b:c"] {
            assert_eq!(Probe::parse(text), None, "{text}");
        }
    }
}
