//! Maps whose values hold locks, timers and pointers: the same tool on bpftime and, where it may be asked, on the kernel.

use bpftime_tests::{Running, Scratch, kernel_is_oracle};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// What `values WHAT` prints: on bpftime, and on the kernel here.
fn printed(what: &str) -> (String, Option<String>) {
    printed_by("values", what)
}

fn printed_by(tool: &str, what: &str) -> (String, Option<String>) {
    let s = Scratch::new();
    let tool = s.compile(&format!("tools/{tool}.c"), tool, &["-Wl,--no-as-needed", "-lbpf"]);
    let print = |mut cmd: std::process::Command| {
        cmd.arg(what);
        let f = Running::start(cmd).finish(LIMIT);
        assert!(f.status.success(), "{f:?}");
        f.stdout
    };
    (print(s.tool(&tool)), kernel_is_oracle().then(|| print(s.command(&tool))))
}

/// Ours; the lines are the kernel's but for those that `differs` knows.
fn same_as_kernel(what: &str, differs: fn(&str) -> bool) -> String {
    let (ours, kernels) = printed(what);
    if let Some(kernels) = kernels {
        let wrong: Vec<_> = ours
            .lines()
            .zip(kernels.lines())
            .filter(|(ours, kernels)| ours != kernels && !differs(kernels))
            .collect();
        assert!(wrong.is_empty(), "ours, then the kernel's: {wrong:#?}");
        assert_eq!(ours.lines().count(), kernels.lines().count());
    }
    ours
}

#[test]
fn values_of_every_form_are_taken_or_refused_as_by_the_kernel() {
    let out = same_as_kernel("create", |_| false);
    let row = |name: &str| out.lines().find(|l| l.starts_with(name)).unwrap_or_default().to_string();
    assert!(row("lock:").starts_with("lock: btf 0 hash 0 array 0 percpu_hash -95 "), "{out}");
    assert!(
        row("timer:").contains(" lru 0 lru_percpu -95 lpm -95 ") && row("lock_two:").ends_with(" btf -7"),
        "{out}"
    );
}

#[test]
fn what_is_no_data_is_never_copied_and_the_lock_flag_is_for_values_with_a_lock() {
    let out = same_as_kernel("elements", |_| false);
    let lock = "array of lock: 0\n  locked update of none 0, update 0, noexist -17, locked -17, exist 0, locked 0, odd -22";
    assert!(out.contains(lock), "{out}");
    assert!(out.contains("lookup 0 ffffffff ffffffff 00000000 ffffffff"), "{out}");
}

#[test]
fn programs_that_name_such_maps_are_judged_as_by_the_kernel() {
    // The objects behind pointers have no types here.
    let out = same_as_kernel("programs", |kernels| {
        kernels.starts_with("kptr")
            && (kernels.contains(", follow") || kernels.contains("invalid kptr access, R1"))
    });
    assert!(out.contains("kprobe lock: -22 tracing progs cannot use bpf_spin_lock yet"), "{out}");
    assert!(out.contains("tracepoint timer: -22 tracing progs cannot use bpf_timer yet"), "{out}");
    assert!(out.contains("bpf_timer cannot be accessed directly by load/store"), "{out}");
    assert!(out.contains("kptr, 8 bytes at 0, store: -13 store to referenced kptr disallowed"), "{out}");
}

#[test]
fn programs_are_run_by_test_run_under_the_kernels_conditions() {
    let (ours, kernels) = printed_by("testrun", "");
    assert!(ours.contains("syscall 2: 0\n") && ours.contains("  context 0 retval 5 ctx 5 4d\n"), "{ours}");
    kernels.into_iter().for_each(|kernels| assert_eq!(ours, kernels, "ours, then the kernel's"));
}

#[test]
fn a_locked_value_is_never_seen_half_written_and_a_killed_holder_blocks_nobody() {
    assert_eq!(printed_by("locked", "").0, "map of type 2: torn 0\nmap of type 1: torn 0\n");
}
