//! From the start of `bpftime load` to the first hit of its probe in a process that runs already.
//!
//! `scripts/build && cargo bench -p bpftime-tests --bench first_hit -- [RUNS]`: milliseconds, median (least, most), to the
//! hit and to the line that says that the probe is there; beside them what this machine needs to run /bin/true twice, since
//! `bpftime load` is two programs. The hit is timed by the program itself (bpf_ktime_get_ns).

use bpftime_tests::{Running, Scratch, dist};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// The clock of bpf_ktime_get_ns.
fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid timespec for the kernel to fill; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn compiled(s: &Scratch) -> std::path::PathBuf {
    let image = s.path("first.img");
    let mut compile = Command::new(dist("bin/bpftime"));
    compile
        .arg("compile")
        .arg(s.compile_bpf("targets/first.bpf.c"))
        .args(["--cpu", "native", "-o"])
        .arg(&image);
    assert!(compile.output().expect("bpftime").status.success());
    image
}

/// Nanoseconds to the first hit, and to the end of attaching.
fn run(s: &Scratch, image: &Path, exe: &Path) -> (u64, u64) {
    let mut load = s.command(dist("bin/bpftime"));
    load.arg("load").arg(image).arg("--attach").arg(format!("uprobe:{}:probed", exe.display()));
    let start = now();
    let mut load = Running::start(load);
    load.wait_for("attached");
    let attached = now();
    std::thread::sleep(Duration::from_millis(20));
    load.signal(libc::SIGINT);
    let done = load.finish(LIMIT);
    let hit = done.stdout.trim().strip_prefix("first[0] ").and_then(|ns| ns.parse::<u64>().ok());
    let hit = hit.unwrap_or_else(|| panic!("no hit: {}{}", done.stdout, done.stderr));
    (hit - start, attached - start)
}

/// Nanoseconds to run two programs that do nothing.
fn nothing() -> u64 {
    let start = now();
    for _ in 0..2 {
        assert!(Command::new("/bin/true").status().expect("/bin/true").success());
    }
    now() - start
}

fn shown(mut ns: Vec<u64>) -> String {
    ns.sort_unstable();
    let ms = |n: usize| ns[n] as f64 / 1e6;
    format!("{:.2} ({:.2} to {:.2})", ms(ns.len() / 2), ms(0), ms(ns.len() - 1))
}

fn main() {
    let runs = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(31);
    let s = Scratch::new();
    let (image, exe) = (compiled(&s), s.compile("targets/first.c", "first", &[]));
    let mut target = Running::start(s.target(&exe));
    target.wait_for("RUNNING");
    let (mut hits, mut attached, mut nothings) = (vec![], vec![], vec![]);
    for _ in 0..runs {
        let (hit, done) = run(&s, &image, &exe);
        hits.push(hit);
        attached.push(done);
        nothings.push(nothing());
    }
    println!("ms from start to first hit: {}; to attached: {}", shown(hits), shown(attached));
    println!("ms to run /bin/true twice: {}", shown(nothings));
    target.finish(LIMIT);
}
