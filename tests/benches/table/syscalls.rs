//! System call events: what they add to a call that is traced, and to one that is not.

use crate::row::{Row, Stat};
use crate::{Side, attached, end};
use bpftime_tests::{Running, Scratch};
use std::path::Path;
use std::process::{Command, Stdio};

/// Calls getppid and getuid in rounds; says the least of each, in ns per call.
const TARGET: &str = r#"
#include <stdio.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
#define MEASURE(call) do { double least = 1e9; for (int r = 0; r < 31; r++) { double t = now(); \
  for (int i = 0; i < 20000; i++) call; t = (now() - t) / 20000; if (t < least) least = t; } \
  printf(" %.1f", least); } while (0)
int main(void) { printf("RESULT"); MEASURE(getppid()); MEASURE(getuid()); puts(""); return 0; }
"#;

/// Programs at getppid: what it costs there, and what a call costs that nobody watches.
const SCRIPTS: &[(&str, &str)] = &[
    ("agent loaded", ""),
    ("sys_enter { }", "tracepoint:syscalls:sys_enter_getppid { }"),
    ("sys_enter count()", "tracepoint:syscalls:sys_enter_getppid { @ = count(); }"),
    ("sys_exit count()", "tracepoint:syscalls:sys_exit_getppid { @ = count(); }"),
    (
        "both, count()",
        "tracepoint:syscalls:sys_enter_getppid { @a = count(); } tracepoint:syscalls:sys_exit_getppid { @b = count(); }",
    ),
];

/// Puts tracefs where bpftrace looks for it, in a mount namespace of its own.
const WITH_TRACEFS: &str = "mount --make-rprivate / && { [ -e /sys/kernel/tracing/events ] || \
                            mount -t tracefs nodev /sys/kernel/tracing; } && exec bpftrace \"$@\"";

/// ns of the call that `script` traces, and of the other.
fn calls(s: &Scratch, exe: &Path, side: Option<Side>, script: &str) -> [f64; 2] {
    let bpftrace = |side| match side {
        Side::Bpftime => s.tool("bpftrace"),
        Side::Kernel => {
            let mut cmd = s.command("unshare");
            cmd.args(["-m", "sh", "-c", WITH_TRACEFS, "sh"]);
            cmd
        }
    };
    let tool = side.filter(|_| !script.is_empty()).map(|side| attached(bpftrace(side), script));
    let mut target = if side == Some(Side::Bpftime) { s.target(exe) } else { s.command(exe) };
    target.stdin(Stdio::null());
    let result = Running::start(target).wait_for("RESULT");
    end(tool);
    let mut words = result.split(' ').skip(1).map(|w| w.parse().unwrap_or(f64::NAN));
    [words.next().unwrap_or(f64::NAN), words.next().unwrap_or(f64::NAN)]
}

pub fn rows(rounds: usize) -> Vec<Row> {
    let s = Scratch::new();
    let (source, exe) = (s.path("getppid.c"), s.path("getppid"));
    std::fs::write(&source, TARGET).expect("source");
    let built = Command::new("gcc").args(["-O2", "-o"]).arg(&exe).arg(&source).status().expect("gcc");
    assert!(built.success(), "the target does not compile");
    let mut rows = Vec::new();
    for (name, script) in SCRIPTS {
        let mut added = vec![[vec![], vec![]]; Side::all().len()];
        for _ in 0..rounds {
            let plain = calls(&s, &exe, None, "");
            for (side, added) in Side::all().iter().zip(&mut added) {
                let now = calls(&s, &exe, Some(*side), script);
                added
                    .iter_mut()
                    .zip(now.iter().zip(plain))
                    .for_each(|(to, (now, plain))| to.push(now - plain));
            }
        }
        for (call, what) in ["traced", "other"].iter().enumerate() {
            let cells =
                Side::all().iter().zip(&added).map(|(s, added)| (s.name(), Stat::of(added[call].clone())));
            rows.push(Row::new("system calls, added", format!("{name}, {what} call"), "ns/call", cells));
        }
    }
    rows
}
