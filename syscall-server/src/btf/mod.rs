//! The BTF that tools take for the running kernel's: the kernel's own where it can be read, else a small one of ours.

pub mod fields;
pub mod parse;

pub use parse::is_sound;

use bpftime_abi::task::{FIELDS, Row};
use bpftime_abi::{config, helper};
use parse::Btf;
use rustix::fs::{Mode, OFlags};
use std::io::Read;
use std::sync::OnceLock;

/// What the kernel tells of its own types.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Made from `btf/vmlinux.c` by `scripts/btf`.
static OURS: &[u8] = include_bytes!("../../btf/vmlinux.btf");

/// Whether tools see our BTF in place of the kernel's.
pub fn is_ours() -> bool {
    static OURS: OnceLock<bool> = OnceLock::new();
    hides_kernels() || *OURS.get_or_init(|| open_kernels().is_none())
}

/// Whether the kernel's is hidden though it is there.
pub fn hides_kernels() -> bool {
    static OFF: OnceLock<bool> = OnceLock::new();
    *OFF.get_or_init(|| std::env::var_os(config::KERNEL_BTF).is_some_and(|v| v == "off"))
}

/// The kernel's file. By the system call: our own open() would serve ours.
fn open_kernels() -> Option<std::fs::File> {
    let fd = rustix::fs::open(KERNEL_BTF, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    Some(fd.into())
}

/// What tools see in [`KERNEL_BTF`].
pub fn kernel() -> Vec<u8> {
    let mut data = Vec::new();
    match open_kernels().filter(|_| !is_ours()).map(|mut file| file.read_to_end(&mut data)) {
        Some(Ok(_)) => data,
        _ => OURS.to_vec(),
    }
}

/// The contents of `path`, if it is the kernel's BTF and ours is to be served.
pub fn contents(path: &str) -> Option<Vec<u8>> {
    (path == KERNEL_BTF && is_ours()).then(|| OURS.to_vec())
}

/// Whether `path` is a directory that has to be there for [`contents`].
pub fn is_directory(path: &str) -> bool {
    path.trim_end_matches('/') == "/sys/kernel/btf" && is_ours()
}

/// Where the members of the task's shadow stand in the BTF that tools see. Nowhere for a tool that compiles against the
/// headers of another kernel: its offsets are theirs, and zero is better than another member.
pub fn task_layout() -> &'static [Row] {
    static LAYOUT: OnceLock<Vec<Row>> = OnceLock::new();
    if crate::files::headers::in_use() {
        return &[];
    }
    LAYOUT.get_or_init(|| {
        let data = kernel();
        Btf::parse(&data).map(|btf| rows(&btf)).unwrap_or_default()
    })
}

/// What stands for the kernel function of this id in the BTF that tools see; `None` for one that bpftime does not have.
pub fn kernel_function(id: u32) -> Option<u32> {
    static KNOWN: OnceLock<Vec<(u32, u32)>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let data = kernel();
        Btf::parse(&data).map(|btf| kernel_functions(&btf)).unwrap_or_default()
    });
    known.iter().find(|(btf_id, _)| *btf_id == id).map(|(_, helper)| *helper)
}

/// BTF id and number of each kernel function that bpftime has.
fn kernel_functions(btf: &Btf) -> Vec<(u32, u32)> {
    btf.functions().filter_map(|(id, name)| Some((id, helper::kfunc(name)?))).collect()
}

fn rows(btf: &Btf) -> Vec<Row> {
    let place = |(i, f): (usize, &bpftime_abi::task::Field)| {
        // A string has no struct around it.
        let offset = if f.in_struct.is_empty() { Some(0) } else { btf.member(f.in_struct, f.member) };
        Some(Row { field: i as u16, offset: u16::try_from(offset?).ok()? })
    };
    FIELDS.iter().enumerate().filter_map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bpftime_abi::task::Object;

    /// `struct` and member of a row, for messages.
    fn name(i: usize) -> String {
        format!("{}.{}", FIELDS[i].in_struct, FIELDS[i].member)
    }

    #[test]
    fn our_blob_has_every_member_of_the_shadow() {
        let rows = rows(&Btf::parse(OURS).expect("our blob parses"));
        let has = |i: usize| rows.iter().any(|r| r.field as usize == i);
        let missing: Vec<_> = (0..FIELDS.len()).filter(|i| !has(*i)).map(name).collect();
        assert_eq!(missing, ["task_struct.real_start_time"], "the old name of start_boottime");
    }

    #[test]
    fn our_blob_has_the_kernel_functions() {
        let found = kernel_functions(&Btf::parse(OURS).expect("our blob parses"));
        let all = helper::NAMES.iter().filter(|(id, _)| *id >= helper::KFUNC_FIRST);
        for (id, name) in all {
            assert!(found.iter().any(|(_, h)| h == id), "{name} is missing: scripts/btf");
        }
    }

    #[test]
    fn members_do_not_overlap() {
        let rows = rows(&Btf::parse(OURS).expect("our blob parses"));
        for (i, a) in rows.iter().enumerate() {
            for b in &rows[i + 1..] {
                let (fa, fb) = (&FIELDS[a.field as usize], &FIELDS[b.field as usize]);
                let apart = a.offset as u32 + fa.size <= b.offset as u32
                    || b.offset as u32 + fb.size <= a.offset as u32;
                assert!(apart || fa.object != fb.object, "{} {}", fa.member, fb.member);
            }
        }
    }

    /// Offsets of the running kernel, as `bpftool` prints its types, would need bpftool; that the way to a parent's name
    /// is there is what tools need.
    #[test]
    fn the_running_kernels_btf_is_understood() {
        let Some(mut file) = open_kernels() else {
            println!("skipped: {KERNEL_BTF} cannot be read here");
            return;
        };
        let mut data = Vec::new();
        file.read_to_end(&mut data).expect("sysfs");
        let rows = rows(&Btf::parse(&data).expect("the kernel's BTF parses"));
        let found = |object, member| {
            rows.iter().any(|r| {
                let f = &FIELDS[r.field as usize];
                f.object == object && f.member == member
            })
        };
        for member in ["pid", "tgid", "comm", "real_parent", "group_leader", "cred", "nsproxy", "cgroups"] {
            assert!(found(Object::Task, member), "{member}");
        }
        for (object, member) in [(Object::Cred, "uid"), (Object::PidNs, "ns.inum"), (Object::Cgroup, "kn")] {
            assert!(found(object, member), "{member}");
        }
    }

    /// The checked-in blob is what its source makes. Compilers of other versions may order types differently, so what is
    /// compared is what each says about every struct of the shadow, and its length.
    #[test]
    fn the_blob_is_made_from_its_source() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let fresh = std::env::temp_dir().join(format!("bpftime-btf-{}", std::process::id()));
        let made = std::process::Command::new(root.join("scripts/btf")).arg(&fresh).output();
        if !made.as_ref().is_ok_and(|o| o.status.success()) {
            println!("skipped: scripts/btf needs clang: {made:?}");
            return;
        }
        let data = std::fs::read(&fresh).expect("made by scripts/btf");
        let _ = std::fs::remove_file(&fresh);
        let (fresh, kept) = (Btf::parse(&data).expect("BTF"), Btf::parse(OURS).expect("BTF"));
        assert_eq!(rows(&fresh), rows(&kept), "run scripts/btf");
        assert_eq!(fresh.names(), kept.names(), "run scripts/btf");
    }
}
