//! What /proc says of the tool's descriptors, and of where BPF file systems are: as if the kernel had the objects.

use super::bpffs;
use crate::object::{self, MapObject, Object, ProgObject};
use crate::stats;
use rustix::fd::RawFd;
use rustix::fs::{Mode, OFlags};
use std::ffi::CStr;
use std::fmt::Write;
use std::io::Read;

/// The number in `/proc/self/KIND/N`, or in that of this process by its id.
fn number(path: &str, kind: &str) -> Option<RawFd> {
    let (who, rest) = path.strip_prefix("/proc/")?.split_once('/')?;
    let mine = who == "self" || who == "thread-self" || who.parse() == Ok(std::process::id());
    rest.strip_prefix(kind)?.strip_prefix('/')?.parse().ok().filter(|_| mine)
}

/// The object whose `/proc/self/KIND/N` a path is.
fn object_of(path: &CStr, kind: &str) -> Option<Object> {
    // Over quickly for every other path.
    if !object::any() || !path.to_bytes().starts_with(b"/proc/") {
        return None;
    }
    object::find(number(path.to_str().ok()?, kind)?).ok()
}

/// Whether a file's contents are ours.
pub fn is(path: &CStr) -> bool {
    path.to_bytes() == b"/proc/mounts" || object_of(path, "fdinfo").is_some()
}

/// Contents of a file that [`is`] ours.
pub fn contents(path: &str) -> Option<Vec<u8>> {
    if path == "/proc/mounts" {
        return mounts();
    }
    let fd = number(path, "fdinfo")?;
    let text = kernels(&format!("/proc/thread-self/fdinfo/{fd}"))?;
    let head =
        text.lines().filter(|l| ["pos:", "flags:", "mnt_id:", "ino:"].iter().any(|k| l.starts_with(k)));
    let mut out: String = head.flat_map(|line| [line, "\n"]).collect();
    describe(&mut out, &object::find(fd).ok()?).ok()?;
    Some(out.into_bytes())
}

/// The kernel's own file: by a system call, since the C library's function is ours.
fn kernels(path: &str) -> Option<String> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = String::new();
    std::fs::File::from(fd).read_to_string(&mut text).ok()?;
    Some(text)
}

/// With our BPF file system, unless the kernel's is there.
fn mounts() -> Option<Vec<u8>> {
    let text = kernels("/proc/self/mounts")?;
    let is_there = text.lines().any(|l| l.split(' ').nth(1) == Some(bpffs::MOUNT));
    let ours = format!("bpf {} bpf rw,relatime,mode=700 0 0\n", bpffs::MOUNT);
    Some(if is_there { text.into_bytes() } else { (text + &ours).into_bytes() })
}

fn describe(out: &mut String, object: &Object) -> std::fmt::Result {
    match object {
        Object::Map(map) => map_lines(out, map),
        Object::Prog(prog) => prog_lines(out, prog),
        Object::Link(link) => {
            let name = crate::cmd::link_info::type_name(link.link_type);
            writeln!(out, "link_type:\t{name}\nlink_id:\t{}", link.id)?;
            writeln!(out, "prog_tag:\t{}\nprog_id:\t{}", hex(&link.prog.tag), link.prog.spec.prog)
        }
        Object::Btf(btf) => writeln!(out, "btf_id:\t{}", btf.id),
        Object::Perf(_) => Ok(()),
    }
}

fn map_lines(out: &mut String, map: &MapObject) -> std::fmt::Result {
    let def = map.def();
    writeln!(out, "map_type:\t{}\nkey_size:\t{}", def.map_type, def.key_size)?;
    writeln!(out, "value_size:\t{}\nmax_entries:\t{}", def.value_size, def.max_entries)?;
    writeln!(out, "map_flags:\t{:#x}\nmap_extra:\t{:#x}", def.map_flags, def.map_extra)?;
    let memory = rustix::fs::fstat(&map.memfd).map_or(0, |st| st.st_blocks as u64 * 512);
    let frozen = u32::from(map.handle.map.is_frozen());
    writeln!(out, "memlock:\t{memory}\nmap_id:\t{}\nfrozen:\t{frozen}", map.id)?;
    match map.prog_type.get() {
        Some(owner) => writeln!(out, "owner_prog_type:\t{owner}\nowner_jited:\t1"),
        None => Ok(()),
    }
}

fn prog_lines(out: &mut String, prog: &ProgObject) -> std::fmt::Result {
    writeln!(out, "prog_type:\t{}\nprog_jited:\t1\nprog_tag:\t{}", prog.spec.prog_type, hex(&prog.tag))?;
    let memory = rustix::fs::fstat(&prog.image).map_or(0, |st| st.st_blocks as u64 * 512);
    let runs = stats::runs_of(prog);
    writeln!(out, "memlock:\t{memory}\nprog_id:\t{}\nrun_time_ns:\t{}", prog.spec.prog, runs.nanos)?;
    let insns = prog.insns.len() / 8;
    writeln!(out, "run_cnt:\t{}\nrecursion_misses:\t{}\nverified_insns:\t{insns}", runs.count, runs.missed)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What readlink(2) of a descriptor's entry in /proc says of an object.
pub fn link_text(path: &CStr) -> Option<&'static [u8]> {
    Some(match object_of(path, "fd")? {
        Object::Map(_) => b"anon_inode:bpf-map",
        Object::Prog(_) => b"anon_inode:bpf-prog",
        // As that of one got by path or id, which bpftool knows; the first one of a link is `bpf_link`.
        Object::Link(_) => b"anon_inode:bpf-link",
        Object::Btf(_) => b"anon_inode:btf",
        Object::Perf(_) => b"anon_inode:[perf_event]",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_process_s_own_entries_are_meant() {
        assert_eq!(number("/proc/self/fdinfo/7", "fdinfo"), Some(7));
        assert_eq!(number(&format!("/proc/{}/fd/3", std::process::id()), "fd"), Some(3));
        for other in ["/proc/1/fd/3", "/proc/self/fd", "/proc/self/fd/x", "/proc/self/fdinfo/3"] {
            assert_eq!(number(other, "fd"), None, "{other}");
        }
    }
}
