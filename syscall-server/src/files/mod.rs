//! Kernel files that tools read and an ordinary user, or a machine without tracefs or headers, does not have.
//!
//! The real file comes first: only when the C library's call has failed is ours looked at.

pub(crate) mod bpffs;
pub(crate) mod headers;
pub(crate) mod pmu;
pub(crate) mod proc;
pub(crate) mod trace_pipe;
pub(crate) mod tracefs;

use crate::perf::kprobe;
use crate::{btf, tool};
use bpftime_shm::session::sealed;
use rustix::fd::IntoRawFd;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStringExt;

/// What is behind a path that the kernel does not give.
pub enum Answer {
    /// Another file or directory that is there.
    StandIn(CString),
    /// A file with these contents.
    Contents(Vec<u8>),
    /// A directory of ours.
    Directory,
    /// What the tool's programs print.
    TracePipe,
    /// A file in our BPF file system, whether it is there or not.
    Bpf(CString),
}

/// Where paths of ours begin, so that every other failed call is over quickly.
const PREFIXES: &[&[u8]] =
    &[b"/lib/modules/", b"/sys/kernel/", b"/sys/bus/event_source/", b"/sys/fs/bpf", b"/proc/"];

/// Files that the kernel has too, and that tools are to see as ours.
pub fn is_replaced(path: &CStr) -> bool {
    match path.to_bytes() {
        b"/proc/kallsyms" => tool::is_tool(),
        b"/sys/kernel/btf/vmlinux" => btf::hides_kernels(),
        // The kernel's takes no objects of ours.
        _ if bpffs::is(path) => true,
        _ if proc::is(path) => true,
        // The kernel's has nothing of what programs here print, and a probe that was refused here is not to end there.
        path => tool::is_tool() && (trace_pipe::is(path) || tracefs::makes_probes(path)),
    }
}

/// What is behind `path`, if it is one of ours.
pub fn answer(path: &CStr) -> Option<Answer> {
    if !PREFIXES.iter().any(|p| path.to_bytes().starts_with(p)) {
        return None;
    }
    if let Some(ours) = bpffs::stand_in(path) {
        return Some(Answer::Bpf(ours));
    }
    let path = path.to_str().ok()?;
    if trace_pipe::is(path) && tool::is_tool() {
        return Some(Answer::TracePipe);
    }
    if let Some(real) = headers::stand_in(path) {
        return CString::new(real.into_os_string().into_vec()).ok().map(Answer::StandIn);
    }
    let file = contents(path).map(Answer::Contents);
    let is_directory =
        || tracefs::directory(path).is_some() || btf::is_directory(path) || pmu::is_directory(path);
    file.or_else(|| is_directory().then_some(Answer::Directory))
}

/// Directories and files in a directory of tracefs that the kernel does not give; those of others are not listed.
pub fn names(path: &CStr) -> Option<(Vec<String>, Vec<String>)> {
    Some(tracefs::directory(path.to_str().ok()?)?.names())
}

/// The files of ours that match a pattern of glob(3).
pub fn matching(pattern: &CStr) -> Vec<CString> {
    if !tracefs::ROOTS.iter().any(|root| pattern.to_bytes().starts_with(root.as_bytes())) {
        return Vec::new();
    }
    let matches = |path: &CString| {
        // SAFETY: two terminated strings.
        unsafe { libc::fnmatch(pattern.as_ptr(), path.as_ptr(), libc::FNM_PATHNAME) == 0 }
    };
    tracefs::files().filter_map(|path| CString::new(path).ok()).filter(matches).collect()
}

fn contents(path: &str) -> Option<Vec<u8>> {
    if path == "/proc/kallsyms" {
        return Some(kprobe::symbols().into_bytes());
    }
    proc::contents(path)
        .or_else(|| tracefs::contents(path))
        .or_else(|| btf::contents(path))
        .or_else(|| pmu::contents(path))
}

/// A descriptor of a file with these contents, to be read.
pub fn serve(contents: &[u8], flags: i32) -> Option<i32> {
    if flags & libc::O_ACCMODE == libc::O_WRONLY {
        return None;
    }
    let fd = sealed::create("bpftime-file", contents).ok()?;
    if flags & libc::O_CLOEXEC == 0 {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).ok()?;
    }
    Some(fd.into_raw_fd())
}

/// What stat(2) says of a file of ours, or of a directory (`None`).
pub fn status(contents: Option<&[u8]>) -> libc::stat {
    // SAFETY: stat is plain data, for which zeroes are valid.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    st.st_mode = if contents.is_some() { libc::S_IFREG | 0o444 } else { libc::S_IFDIR | 0o555 };
    st.st_nlink = 1;
    st.st_size = contents.map_or(0, |c| c.len() as i64);
    st.st_blksize = 4096;
    st
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_to_be_written_is_not_served() {
        assert!(serve(b"", libc::O_WRONLY).is_none());
    }

    #[test]
    fn a_pattern_finds_the_events_that_it_means() {
        let found = matching(c"/sys/kernel/tracing/events/syscalls/sys_enter_sync_file_range*/format");
        assert_eq!(
            found,
            [c"/sys/kernel/tracing/events/syscalls/sys_enter_sync_file_range/format".to_owned()]
        );
        assert!(matching(c"/sys/kernel/debug/tracing/events/syscalls/sys_exit_*/id").len() > 300);
        assert!(matching(c"/etc/*").is_empty());
    }

    #[test]
    fn files_and_directories_are_told_apart() {
        let dir = answer(c"/sys/kernel/tracing/events/syscalls/sys_enter_kill");
        assert!(matches!(dir, Some(Answer::Directory)));
        let file = answer(c"/sys/kernel/tracing/events/syscalls/sys_enter_kill/id");
        assert!(matches!(file, Some(Answer::Contents(_))));
        assert!(answer(c"/etc/passwd").is_none());
    }
}
