//! The part of sysfs that describes the event sources `uprobe` and `kprobe`, where the kernel was built without them.

use bpftime_abi::perf::{KPROBE_PMU_OURS, UPROBE_PMU_DEFAULT};

const ROOT: &str = "/sys/bus/event_source/devices/";

/// The type number that the kernel gives to its event source of this name.
pub fn kernels_type(name: &str) -> Option<u32> {
    // By the system call: our own open() would serve ours.
    let path = format!("{ROOT}{name}/type");
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).ok()?;
    std::io::read_to_string(std::fs::File::from(fd)).ok()?.trim().parse().ok()
}

/// The contents of a file below the event sources.
pub fn contents(path: &str) -> Option<Vec<u8>> {
    let (source, file) = path.strip_prefix(ROOT)?.split_once('/')?;
    let own_type = match source {
        "uprobe" => UPROBE_PMU_DEFAULT,
        "kprobe" => KPROBE_PMU_OURS,
        _ => return None,
    };
    match (source, file) {
        (_, "type") => Some(format!("{own_type}\n").into_bytes()),
        (_, "format/retprobe") => Some(b"config:0\n".to_vec()),
        ("uprobe", "format/ref_ctr_offset") => Some(b"config:32-63\n".to_vec()),
        _ => None,
    }
}

/// Whether `path` is a directory of the tree that [`contents`] serves.
pub fn is_directory(path: &str) -> bool {
    let below = path.trim_end_matches('/').strip_prefix(ROOT).unwrap_or_default();
    ["uprobe", "uprobe/format", "kprobe", "kprobe/format"].contains(&below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_of_probes_are_described() {
        let kprobe = contents("/sys/bus/event_source/devices/kprobe/type");
        assert_eq!(kprobe, Some(format!("{KPROBE_PMU_OURS}\n").into_bytes()));
        assert!(contents("/sys/bus/event_source/devices/uprobe/format/ref_ctr_offset").is_some());
        assert!(contents("/sys/bus/event_source/devices/cpu/type").is_none());
        assert!(is_directory("/sys/bus/event_source/devices/kprobe/"));
        assert!(!is_directory("/sys/bus/event_source/devices/cpu"));
    }
}
