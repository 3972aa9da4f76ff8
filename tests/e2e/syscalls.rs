//! bpf(2) and perf_event_open(2) as a tool sees them: the kernel's errno, the kernel's descriptor semantics.

use bpftime_tests::{Running, Scratch, kernel_is_oracle};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

/// Output of `probe MODE` on bpftime, and on the kernel where it may be asked.
fn both(mode: &str) -> (String, Option<String>) {
    let s = Scratch::new();
    let probe = s.compile("tools/probe.c", "probe", &["-w"]);
    let run = |mut cmd: std::process::Command| {
        cmd.arg(mode);
        let f = Running::start(cmd).finish(LIMIT);
        assert!(f.status.success(), "{f:?}");
        f.stdout
    };
    let ours = run(s.tool(&probe));
    let kernel = kernel_is_oracle().then(|| run(s.command(&probe)));
    if kernel.is_none() {
        println!("no kernel BPF here: compared with the recorded answers");
    }
    (ours, kernel)
}

/// Compares with the kernel's answer where there is a kernel, and with the recorded one everywhere.
fn assert_as_kernel(mode: &str) {
    let golden = bpftime_tests::root().join(format!("tests/kernel-golden/probe-{mode}"));
    let recorded = std::fs::read_to_string(&golden).expect("recorded answers");
    let (ours, kernel) = both(mode);
    for (o, k) in ours.lines().zip(recorded.lines()) {
        assert_eq!(o, k, "recorded from the kernel in {}", golden.display());
    }
    assert_eq!(ours.lines().count(), recorded.lines().count());
    if let Some(kernel) = kernel {
        assert_eq!(kernel, recorded, "this kernel answers differently from the recorded one");
    }
}

#[test]
fn a_program_that_is_no_tool_is_as_without_the_library() {
    // Libraries whose constructors open files run them before ours: libselinux here.
    let s = Scratch::new();
    let run = |mut cmd: std::process::Command| {
        cmd.args(["-ld", "/", "/etc/passwd"]);
        Running::start(cmd).finish(LIMIT)
    };
    let (with, without) = (run(s.tool("ls")), run(s.command("ls")));
    assert!(with.status.success(), "{with:?}");
    assert_eq!((with.stdout, with.stderr), (without.stdout, without.stderr));
}

#[test]
fn malformed_attributes_get_the_kernels_errno() {
    assert_as_kernel("attr");
}

#[test]
fn descriptors_behave_as_the_kernels() {
    assert_as_kernel("objects");
}
