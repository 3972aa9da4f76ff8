//! What the name of a section says about its programs (libbpf's "program types and ELF sections").

use bpftime_abi::prog_type::*;

/// Section name up to the first slash or dot suffix, and the program type.
const SECTIONS: &[(&str, u32)] = &[
    ("socket", BPF_PROG_TYPE_SOCKET_FILTER),
    ("kprobe", BPF_PROG_TYPE_KPROBE),
    ("kretprobe", BPF_PROG_TYPE_KPROBE),
    ("uprobe", BPF_PROG_TYPE_KPROBE),
    ("uretprobe", BPF_PROG_TYPE_KPROBE),
    ("ksyscall", BPF_PROG_TYPE_KPROBE),
    ("kretsyscall", BPF_PROG_TYPE_KPROBE),
    ("usdt", BPF_PROG_TYPE_KPROBE),
    ("tracepoint", BPF_PROG_TYPE_TRACEPOINT),
    ("tp", BPF_PROG_TYPE_TRACEPOINT),
    ("raw_tracepoint", BPF_PROG_TYPE_RAW_TRACEPOINT),
    ("raw_tp", BPF_PROG_TYPE_RAW_TRACEPOINT),
    ("perf_event", BPF_PROG_TYPE_PERF_EVENT),
    ("syscall", BPF_PROG_TYPE_SYSCALL),
    ("xdp", BPF_PROG_TYPE_XDP),
    ("tc", BPF_PROG_TYPE_SCHED_CLS),
    ("classifier", BPF_PROG_TYPE_SCHED_CLS),
    ("action", BPF_PROG_TYPE_SCHED_ACT),
    ("cgroup_skb", BPF_PROG_TYPE_CGROUP_SKB),
    ("fentry", BPF_PROG_TYPE_TRACING),
    ("fexit", BPF_PROG_TYPE_TRACING),
    ("fmod_ret", BPF_PROG_TYPE_TRACING),
    ("tp_btf", BPF_PROG_TYPE_TRACING),
    ("iter", BPF_PROG_TYPE_TRACING),
];

/// The program type of a section; `.s`, `.multi`, `.session` and `.w` say more, but not another type
/// (but for `.w`, which makes a raw tracepoint writable). A leading `?` means "do not load by default".
pub fn prog_type(name: &str) -> Option<u32> {
    let name = name.strip_prefix('?').unwrap_or(name);
    let kind = name.split('/').next().unwrap_or(name);
    let (kind, suffix) = kind.split_once('.').unwrap_or((kind, ""));
    let row = SECTIONS.iter().find(|(prefix, _)| *prefix == kind)?;
    Some(match (row.1, suffix) {
        (BPF_PROG_TYPE_RAW_TRACEPOINT, "w") => BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE,
        (prog_type, _) => prog_type,
    })
}

/// Whether programs of a section may sleep.
pub fn sleeps(name: &str) -> bool {
    let kind = name.strip_prefix('?').unwrap_or(name).split('/').next().unwrap_or(name);
    kind == "syscall" || kind.split('.').skip(1).any(|suffix| suffix == "s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_type() {
        let types =
            ["kprobe/do_exit", "?uprobe.multi//bin/sh:main", "tp/sched/sched_switch", "raw_tp.w/x", ".text"];
        let want = [Some(2), Some(2), Some(5), Some(24), None];
        assert_eq!(types.map(prog_type), want);
        let names = ["uprobe.s//bin/sh:main", "uprobe", "syscall", "uprobe.multi.s/x:y", "kprobe/a.s"];
        assert_eq!(names.map(sleeps), [true, false, true, true, false]);
    }
}
