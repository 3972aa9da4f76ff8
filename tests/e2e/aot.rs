//! Programs compiled ahead of time, from the object file to what their maps hold.

use bpftime_tests::{Finished, Running, Scratch, dist, pin_to};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

fn object(s: &Scratch) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("targets/aot.bpf.c");
    let out = s.path("aot.bpf.o");
    let mut clang = Command::new("clang");
    clang.args([
        "-g",
        "-O2",
        "-target",
        "bpf",
        "-D__TARGET_ARCH_x86",
        "-I/usr/include/x86_64-linux-gnu",
        "-c",
    ]);
    assert!(clang.arg(source).arg("-o").arg(&out).status().expect("clang").success());
    out
}

fn bpftime(s: &Scratch, args: &[&str]) -> Command {
    let mut cmd = s.command(dist("bin/bpftime"));
    cmd.args(args);
    cmd
}

/// The CPUs that this test may run on, four of them if there are more: the first and the last among them.
fn allowed_cpus() -> Vec<usize> {
    // SAFETY: a set of our own, of the size that is given.
    let all: Vec<usize> = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&set), &raw mut set), 0);
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
    };
    let chosen =
        std::collections::BTreeSet::from([0, 1, all.len() / 2, all.len() - 1].map(|n| n.min(all.len() - 1)));
    chosen.into_iter().map(|n| all[n]).collect()
}

/// Lets the command run on this CPU only.
fn pin(cmd: &mut Command, cpu: usize) {
    // SAFETY: all that the child does before exec is a system call.
    unsafe { cmd.pre_exec(move || pin_to(cpu)) };
}

fn end(cmd: Command) -> Finished {
    Running::start(cmd).finish(LIMIT)
}

/// The compiled file.
fn compiled(s: &Scratch, more: &[&str]) -> PathBuf {
    let (object, image) = (object(s), s.path("aot.img"));
    let mut cmd = bpftime(s, &["compile"]);
    cmd.arg(object).arg("-o").arg(&image).args(more);
    let done = end(cmd);
    assert!(done.status.success(), "{}", done.stderr);
    image
}

#[test]
fn a_compiled_file_counts_exactly_and_prints_its_maps() {
    let s = Scratch::new();
    let (image, exe) = (compiled(&s, &["--cpu", "native"]), s.compile("targets/calls.c", "calls", &[]));
    let place = |kind: &str| format!("{kind}:{}:probed", exe.display());
    let mut load = bpftime(&s, &["load"]);
    load.arg(image).args(["--attach", &place("uprobe"), "--attach", &place("uretprobe")]);
    let mut load = Running::start(load);
    load.wait_for("attached 2 probes");
    // Each CPU has values of its own.
    let cpus = allowed_cpus();
    for cpu in &cpus {
        let mut cmd = s.target(&exe);
        cmd.args(["3", "1001"]);
        pin(&mut cmd, *cpu);
        let mut target = Running::start(cmd);
        target.wait_for("RUNNING");
        target.say("go");
        assert!(target.finish(LIMIT).status.success());
    }
    load.signal(libc::SIGINT);
    let done = load.finish(LIMIT);
    // For each, 10000 calls to warm up, then 3 times 1001 from 0 on: one odd number less than even ones each time.
    let of = |calls: usize| calls * cpus.len();
    let mut lines: Vec<&str> = done.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            format!("by_arg[0] {}", of(6503)),
            format!("by_arg[1] {}", of(6500)),
            format!("calls[0] {}", of(13003)),
            format!("calls[1] {}", of(13003)),
        ],
        "{}",
        done.stderr
    );
    assert!(done.status.success());
}

/// Where there is nothing but the loader and the agent: no compiler, no library to preload.
#[test]
fn the_loader_needs_only_the_agent_and_has_no_compiler() {
    let s = Scratch::new();
    let has = |file: &Path, what: &[u8]| {
        let bytes = std::fs::read(file).expect("a file of ours");
        bytes.windows(what.len()).any(|w| w == what)
    };
    let (loader, agent) = (dist("bin/bpftime-load"), dist("lib/libbpftime-agent.so"));
    assert!(has(&dist("bin/bpftime"), b"cranelift") && !has(&loader, b"cranelift"));
    let (bin, lib) = (s.path("bin"), s.path("lib"));
    for (file, dir) in [(&loader, &bin), (&agent, &lib)] {
        std::fs::create_dir(dir).expect("scratch directory");
        std::fs::copy(file, dir.join(file.file_name().expect("a name"))).expect("copy");
    }
    let image = s.path("tracepoint.img");
    let mut compile = bpftime(&s, &["compile"]);
    compile.arg(s.compile_bpf("targets/tracepoint.bpf.c")).arg("-o").arg(&image);
    let done = end(compile);
    assert!(done.status.success(), "{}", done.stderr);
    // The section says where.
    let mut load = s.command(bin.join("bpftime-load"));
    load.arg(image);
    let mut load = Running::start(load);
    load.wait_for("attached 1 probes");
    let mut target = s.target("/usr/bin/python3");
    target.args(["-c", "import os\nfor _ in range(1234): os.getppid()"]);
    assert!(end(target).status.success());
    load.signal(libc::SIGINT);
    let done = load.finish(LIMIT);
    assert_eq!(done.stdout.trim(), "calls[7] 1234", "{}", done.stderr);
    assert!(done.status.success());
}

#[test]
fn files_that_do_not_fit_are_refused_in_words() {
    let s = Scratch::new();
    let image = compiled(&s, &[]);
    let bytes = std::fs::read(&image).expect("the file that was just written");
    let refusal = |at: usize, new: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = new;
        let changed = s.path("changed.img");
        std::fs::write(&changed, bytes).expect("scratch file");
        let mut load = bpftime(&s, &["load", "--attach", "uprobe:/bin/true:main"]);
        load.arg(changed);
        let done = end(load);
        assert_eq!(done.status.code(), Some(1), "{}", done.stderr);
        done.stderr
    };
    for (at, new, words) in [
        (0, b'X', "not compiled by bpftime"),
        (8, 99, "layout version 99"),
        (12, 99, "ABI version 99"),
        (22, 1, "CPU features that this machine lacks"),
        (bytes.len() - 1, bytes[bytes.len() - 1] ^ 1, "damaged"),
    ] {
        assert!(refusal(at, new).contains(words), "byte {at}");
    }
}

#[test]
fn a_place_that_is_none_is_refused_before_anything_runs() {
    let s = Scratch::new();
    let image = compiled(&s, &[]);
    for (place, words) in [
        ("kprobe:x", "no place"),
        ("nobody=uprobe:/bin/true:main", "count returned"),
        ("uprobe:/nonexistent:main", "No such file"),
        ("uprobe:/bin/true:no_such_function", "no such function"),
    ] {
        let mut load = bpftime(&s, &["load", "--attach", place]);
        load.arg(&image);
        let done = end(load);
        assert!(!done.status.success() && done.stderr.contains(words), "{place}: {}", done.stderr);
    }
}
