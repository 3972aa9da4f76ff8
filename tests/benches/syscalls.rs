//! What system call events cost, against the kernel in the same run where root allows. Figures, no verdicts: machines
//! are noisy. The least of 31 rounds is the steadiest figure, the median what a user meets.
//!
//! `cargo bench -p bpftime-tests --bench syscalls` after `scripts/build`.

use bpftime_tests::{Running, Scratch, kernel_is_oracle};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Calls getppid and getuid in rounds; says the least and the median of each, in ns per call.
const TARGET: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
static int order(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return (x > y) - (x < y); }
#define MEASURE(call) do { for (int r = 0; r < 31; r++) { double t = now(); for (int i = 0; i < 20000; i++) call; \
  ns[r] = (now() - t) / 20000; } qsort(ns, 31, sizeof *ns, order); printf(" %.1f %.1f", ns[0], ns[15]); } while (0)
int main(void) { double ns[31]; printf("RESULT"); MEASURE(getppid()); MEASURE(getuid()); puts(""); return 0; }
"#;

/// Programs at getppid: what it costs there, and what a call costs that nobody watches.
const SCRIPTS: &[(&str, &str)] = &[
    ("sys_enter_getppid { }", "tracepoint:syscalls:sys_enter_getppid { }"),
    ("sys_enter_getppid count()", "tracepoint:syscalls:sys_enter_getppid { @ = count(); }"),
    ("sys_exit_getppid count()", "tracepoint:syscalls:sys_exit_getppid { @ = count(); }"),
    (
        "both, count()",
        "tracepoint:syscalls:sys_enter_getppid { @a = count(); } tracepoint:syscalls:sys_exit_getppid { @b = count(); }",
    ),
    ("raw sys_enter count()", "tracepoint:raw_syscalls:sys_enter { @ = count(); }"),
];

/// Least and median of the traced call, then of the other.
fn measure(mut tool: Option<Command>, script: &str, mut target: Command) -> Vec<f64> {
    let running = tool.take().map(|mut cmd| {
        cmd.args(["-e", &format!("BEGIN {{ printf(\"READY\\n\"); }} {script}")]).stderr(Stdio::null());
        let mut tool = Running::start(cmd);
        tool.wait_for("READY");
        std::thread::sleep(Duration::from_millis(700));
        tool
    });
    target.stdin(Stdio::null());
    let result = Running::start(target).wait_for("RESULT");
    if let Some(tool) = running {
        tool.signal(libc::SIGINT);
        tool.finish(Duration::from_secs(20));
    }
    result.split_whitespace().skip(1).filter_map(|w| w.parse().ok()).collect()
}

fn row(name: &str, now: &[f64], before: &[f64]) {
    let added = |i: usize| now.get(i).zip(before.get(i)).map_or(f64::NAN, |(n, b)| n - b);
    println!(
        "{name:40} traced {:6.1} (median {:6.1})   untraced {:6.1} (median {:6.1})",
        added(0),
        added(1),
        added(2),
        added(3)
    );
}

fn main() {
    let s = Scratch::new();
    let source = s.path("getppid.c");
    let exe = s.path("getppid");
    std::fs::write(&source, TARGET).expect("source");
    let built = Command::new("gcc").args(["-O2", "-o"]).arg(&exe).arg(&source).status().expect("gcc");
    assert!(built.success(), "the target does not compile");
    let plain = measure(None, "", s.command(&exe));
    println!("untraced, without the agent: {plain:?} ns (getppid least, median; getuid least, median)");
    println!("ns added per call:");
    row("agent loaded", &measure(None, "", s.target(&exe)), &plain);
    for (name, script) in SCRIPTS {
        row(name, &measure(Some(s.tool("bpftrace")), script, s.target(&exe)), &plain);
    }
    if !kernel_is_oracle() {
        return println!("no kernel BPF here to compare with");
    }
    for (name, script) in SCRIPTS {
        let mut tool = s.command("unshare");
        let mount = "mount --make-rprivate / && { [ -e /sys/kernel/tracing/events ] || \
                     mount -t tracefs nodev /sys/kernel/tracing; } && exec bpftrace \"$@\"";
        tool.args(["-m", "sh", "-c", mount, "sh"]);
        row(&format!("kernel: {name}"), &measure(Some(tool), script, s.command(&exe)), &plain);
    }
}
