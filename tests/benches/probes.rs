//! What probes cost, against the kernel in the same run where root allows. Figures, no verdicts: machines are noisy.
//!
//! `cargo bench -p bpftime-tests` after `scripts/build`.

use bpftime_tests::{Running, Scratch, dist, kernel_is_oracle};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Which side runs the programs.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Bpftime,
    Kernel,
}

/// ns per call of the target's function while `script` (with PROBED for the function) is attached.
fn per_call(s: &Scratch, exe: &Path, side: Side, script: Option<&str>) -> String {
    let tool = script.map(|script| {
        let script = script.replace("PROBED", &format!("{}:probed", exe.display()));
        let mut cmd = if side == Side::Bpftime { s.tool("bpftrace") } else { s.command("bpftrace") };
        cmd.args(["-e", &format!("BEGIN {{ printf(\"READY\\n\"); }} {script}")]).stderr(Stdio::null());
        let mut tool = Running::start(cmd);
        tool.wait_for("READY");
        // bpftrace runs BEGIN before it attaches the rest.
        std::thread::sleep(Duration::from_millis(500));
        tool
    });
    let mut cmd = if side == Side::Bpftime { s.target(exe) } else { s.command(exe) };
    if side == Side::Kernel && script.is_some() {
        cmd.args(["21", "20000"]);
    }
    let mut target = Running::start(cmd);
    target.wait_for("RUNNING");
    target.say("go");
    let result = target.wait_for("RESULT");
    if let Some(tool) = tool {
        tool.signal(libc::SIGINT);
        tool.finish(Duration::from_secs(20));
    }
    result.trim_start_matches("RESULT ").to_string()
}

/// Milliseconds of `runs` runs: median, least, most.
fn wall(runs: usize, mut make: impl FnMut() -> Command) -> String {
    let mut ms: Vec<f64> = (0..runs)
        .map(|_| {
            let mut cmd = make();
            let start = Instant::now();
            let _ = cmd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    ms.sort_by(f64::total_cmp);
    format!("{:.1} {:.1} {:.1}", ms[runs / 2], ms[0], ms[runs - 1])
}

/// Resident memory of a process, KiB.
fn rss(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn resident(cmd: Command) -> u64 {
    let mut target = Running::start(cmd);
    target.wait_for("RUNNING");
    let kib = rss(target.pid());
    target.say("go");
    target.finish(Duration::from_secs(60));
    kib
}

const SCRIPTS: &[(&str, &str)] = &[
    ("uprobe {}", "uprobe:PROBED { }"),
    ("uprobe @=count()", "uprobe:PROBED { @=count(); }"),
    ("uretprobe {}", "uretprobe:PROBED { }"),
    ("uretprobe @=count()", "uretprobe:PROBED { @=count(); }"),
    (
        "both, latency histogram",
        "uprobe:PROBED { @s[tid]=nsecs; } uretprobe:PROBED /@s[tid]/ { @=hist(nsecs-@s[tid]); delete(@s[tid]); }",
    ),
];

fn main() {
    let s = Scratch::new();
    let exe = s.compile("targets/calls.c", "calls", &["-fno-omit-frame-pointer"]);
    let kernel = kernel_is_oracle();
    println!("ns per call: median least most of 21");
    println!("{:<28} {:<26} kernel", "", "bpftime");
    println!(
        "{:<28} {:<26} {}",
        "unprobed, agent loaded",
        per_call(&s, &exe, Side::Bpftime, None),
        per_call(&s, &exe, Side::Kernel, None)
    );
    for (name, script) in SCRIPTS {
        let ours = per_call(&s, &exe, Side::Bpftime, Some(script));
        let theirs =
            if kernel { per_call(&s, &exe, Side::Kernel, Some(script)) } else { "(needs root)".into() };
        println!("{name:<28} {ours:<26} {theirs}");
    }
    println!("\nms: median least most of 11");
    let script = ["-e", "BEGIN { exit() }"];
    let ours = wall(11, || {
        let mut c = s.tool("bpftrace");
        c.args(script);
        c
    });
    let theirs = wall(11, || {
        let mut c = s.command("bpftrace");
        c.args(script);
        c
    });
    println!("{:<28} {ours:<26} {theirs}", "bpftrace BEGIN { exit() }");
    let mut sleeper = s.command("sleep").arg("1000").spawn().expect("sleep");
    let pid = sleeper.id().to_string();
    let inject = |pid: &str| {
        let mut c = s.command(dist("bin/bpftime-agent"));
        c.args(["inject", "--pid", pid]);
        c
    };
    let once = wall(1, || inject(&pid));
    println!("{:<28} {once}", "inject into a sleeper");
    let _ = sleeper.kill();
    let _ = sleeper.wait();
    let (plain, with) = (resident(s.command(&exe)), resident(s.target(&exe)));
    println!("\nKiB: resident without agent {plain}, with {with}: +{}", with.saturating_sub(plain));
    for lib in ["lib/libbpftime-agent.so", "lib/libbpftime-syscall.so"] {
        println!("KiB: {lib} {}", dist(lib).metadata().map_or(0, |m| m.len() / 1024));
    }
}
