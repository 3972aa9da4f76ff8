//! How many instructions a probe adds to a call, counted one by one: what no noise of the machine touches. Needs
//! scripts/build.
//!
//! Not by callgrind: valgrind 3.19 cannot run this path. It offers no rseq, so a run asks for its CPU by `lsl`, which VEX
//! does not decode ("unhandled instruction bytes: 0xF 0x3 0xC1"): the target dies of SIGILL at its first hit, `{ }` too. And
//! what it ran would be another path than the one without it. A single step is what the processor does.

use bpftime_tests::{Running, Scratch};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A traced thread, single-stepped.
struct Stepped(i32);

impl Stepped {
    fn attach(pid: i32) -> Self {
        // SAFETY: a child of ours.
        let rc = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
        Self(pid)
    }

    /// Waits for the next stop by `signal`, and lets others pass.
    fn wait_for(&self, signal: i32) {
        let begun = Instant::now();
        loop {
            let mut status = 0;
            // SAFETY: `status` is an int.
            let got = unsafe { libc::waitpid(self.0, &mut status, libc::__WALL | libc::WNOHANG) };
            assert!(begun.elapsed() < Duration::from_secs(60), "no stop by signal {signal}");
            if got == 0 {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            assert!(libc::WIFSTOPPED(status), "the target ended: {status:#x}");
            if libc::WSTOPSIG(status) == signal {
                return;
            }
            self.go(libc::PTRACE_CONT, libc::WSTOPSIG(status));
        }
    }

    fn go(&self, how: libc::c_uint, signal: i32) {
        // SAFETY: a stopped tracee.
        let rc = unsafe { libc::ptrace(how, self.0, 0, signal) };
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    }

    fn rip(&self) -> u64 {
        let at = std::mem::offset_of!(libc::user_regs_struct, rip);
        // SAFETY: a stopped tracee.
        unsafe { libc::ptrace(libc::PTRACE_PEEKUSER, self.0, at, 0) as u64 }
    }

    fn step(&self) -> u64 {
        self.go(libc::PTRACE_SINGLESTEP, 0);
        let mut status = 0;
        // SAFETY: `status` is an int.
        unsafe { libc::waitpid(self.0, &mut status, libc::__WALL) };
        assert!(libc::WIFSTOPPED(status), "the target ended: {status:#x}");
        self.rip()
    }

    /// Instructions between two addresses, the next time the thread comes by.
    fn count(&self, from: u64, to: u64) -> u32 {
        while self.step() != from {}
        let mut n = 1;
        while self.step() != to {
            n += 1;
        }
        n
    }
}

/// Instructions while `script` is attached, of one call of the target's function and of one system call: the least of some,
/// since the vDSO reads a clock again that is moved on while it reads, and a single-stepped read lasts.
fn instructions(s: &Scratch, exe: &Path, script: Option<&str>) -> [u32; 2] {
    let tool = script.map(|script| {
        let mut cmd = s.tool("bpftrace");
        let script = script.replace("PROBED", &format!("{}:probed", exe.display()));
        cmd.args(["-e", &format!("BEGIN {{ printf(\"READY\\n\"); }} {script}")]).stderr(Stdio::null());
        let mut tool = Running::start(cmd);
        tool.wait_for("READY");
        // bpftrace runs BEGIN before it attaches the rest.
        std::thread::sleep(Duration::from_millis(500));
        tool
    });
    let mut target = Running::start(s.target(exe));
    let line = target.wait_for("RUNNING");
    let at: Vec<_> = line.split(' ').skip(1).map(|w| u64::from_str_radix(w, 16).unwrap()).collect();
    let stepped = Stepped::attach(target.pid());
    target.say("go");
    let mut counts: Vec<_> = (0..5)
        .map(|_| {
            stepped.wait_for(libc::SIGSTOP);
            let n = [stepped.count(at[0], at[1]), stepped.count(at[2], at[3])];
            stepped.go(libc::PTRACE_CONT, 0);
            n
        })
        .collect();
    drop(target);
    if let Some(tool) = tool {
        tool.signal(libc::SIGINT);
        tool.finish(Duration::from_secs(20));
    }
    [0, 1].map(|which| {
        counts.sort_unstable_by_key(|c| c[which]);
        counts[0][which]
    })
}

/// What each probe may add to what it probes, in instructions, and what it did add when this was written. A little more is let pass:
/// compilers differ. Much less means that the table should be brought up to date.
const COSTS: &[(&str, u32)] = &[
    ("uprobe:PROBED { }", 78),
    ("uprobe:PROBED { @=count(); }", 156),
    ("uretprobe:PROBED { }", 161),
    ("uretprobe:PROBED { @=count(); }", 239),
    // In seconds: a single-stepped call lasts anything, and is to stay in one bucket.
    (
        "uprobe:PROBED { @s[tid]=nsecs; } \
         uretprobe:PROBED /@s[tid]/ { @=hist((nsecs-@s[tid])/1000000000); delete(@s[tid]); }",
        1068,
    ),
    ("tracepoint:syscalls:sys_enter_getppid { }", 119),
    ("tracepoint:syscalls:sys_enter_getppid { @=count(); }", 197),
    ("tracepoint:syscalls:sys_exit_getppid { @=count(); }", 269),
];

#[test]
fn a_probe_costs_no_more_instructions_than_it_did() {
    let s = Scratch::new();
    let exe = s.compile("targets/steps.c", "steps", &["-O2"]);
    let plain = instructions(&s, &exe, None);
    let mut dearer = Vec::new();
    for (script, recorded) in COSTS {
        let traced = instructions(&s, &exe, Some(script));
        let which = usize::from(script.starts_with("tracepoint"));
        let cost = traced[which] - plain[which];
        println!("{cost:>5} (recorded {recorded}) {script}");
        if cost > recorded + recorded / 33 {
            dearer.push(format!("{script}: {cost} instructions, recorded are {recorded}"));
        }
    }
    assert!(dearer.is_empty(), "{dearer:#?}");
}
