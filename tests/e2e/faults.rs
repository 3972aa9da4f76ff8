//! When something runs out: the tool gets an errno and goes on, the target does not notice. Needs scripts/build.

use bpftime_tests::many::{Many, count};
use bpftime_tests::tools::{Tool, all_attached, is_there};
use bpftime_tests::{Finished, Running, Scratch, symbol_offset};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// What a call may say when something is short.
const SHORTAGE: [i32; 5] = [libc::ENOMEM, libc::EMFILE, libc::ENOSPC, libc::EAGAIN, libc::EFBIG];

/// `faults RESOURCE AMOUNT WHEN` on bpftime.
fn short_of(s: &Scratch, resource: &str, amount: u64, when: &str) -> Finished {
    let exe = s.compile("tools/faults.c", "faults", &["-w"]);
    let mut cmd = s.tool(&exe);
    cmd.args([resource, &amount.to_string(), when]).arg(symbol_offset(&exe, "main").to_string());
    Running::start(cmd).finish(LIMIT)
}

/// The errors in the lines between two headings.
fn errors(f: &Finished, from: &str, to: &str) -> Vec<(String, i32)> {
    assert!(f.status.success() && f.stdout.ends_with("END\n"), "{f:?}");
    let part = f.stdout.split(from).nth(1).and_then(|rest| rest.split(to).next()).expect("two headings");
    let lines = part.lines().filter_map(|l| l.rsplit_once(' '));
    let all = lines.map(|(name, errno)| (name.to_owned(), errno.parse().expect("a number")));
    all.filter(|(_, errno)| *errno != 0).collect()
}

/// The tool says why, lives, and has everything again when there is enough. How many steps failed.
fn survives(s: &Scratch, resource: &str, amount: u64, when: &str) -> usize {
    let f = short_of(s, resource, amount, when);
    let short = errors(&f, "SHORT", "AGAIN");
    for (step, errno) in &short {
        assert!(SHORTAGE.contains(errno), "{resource} {amount} {when}: {step} says {errno}: {f:?}");
    }
    assert_eq!(errors(&f, "AGAIN", "END"), [], "{resource} {amount} {when}: {f:?}");
    short.len()
}

#[test]
fn a_tool_that_runs_out_of_memory_is_told_so() {
    let s = Scratch::new();
    for when in ["early", "late"] {
        let failed: Vec<usize> =
            [0, 1024, 8192, 24_000, 1 << 20].map(|kib| survives(&s, "memory", kib, when)).into();
        assert!(failed[0] > 5, "{failed:?}");
    }
}

#[test]
fn a_tool_that_runs_out_of_descriptors_is_told_so() {
    let s = Scratch::new();
    for when in ["early", "late"] {
        let failed: Vec<usize> = [3, 6, 12, 20].map(|n| survives(&s, "files", n, when)).into();
        assert!(failed[0] > 5, "{failed:?}");
    }
}

#[test]
fn limits_that_do_not_concern_maps_do_not_touch_them() {
    let s = Scratch::new();
    for when in ["early", "late"] {
        assert_eq!(survives(&s, "locked", 0, when), 0);
        assert_eq!(survives(&s, "writes", 0, when), 0);
        survives(&s, "tasks", 0, when);
    }
}

/// `bpftrace` on calls of `work` in a program: a count per process, kept in two kinds of maps, and one of all.
fn counts_by_process(s: &Scratch, exe: &Path) -> Tool {
    let script = "{ @n[pid] = count(); @m[pid]++; @all = count(); }";
    let mut tool = [Tool::start(
        s,
        &["bpftrace".into(), "-e".into(), format!("uprobe:{}:work {script}", exe.display())],
        &[],
    )];
    all_attached(s, &mut tool);
    let [tool] = tool;
    tool
}

/// The numbers after the words that begin lines.
fn numbers(output: &str, what: &str) -> u64 {
    let line = output.lines().find_map(|l| l.strip_prefix(what)?.strip_prefix(": "));
    line.and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn a_hundred_processes_on_one_map_lose_nothing_though_some_are_killed() {
    const CALLS: u64 = 300;
    if !is_there("bpftrace") {
        println!("skipped: bpftrace is not installed");
        return;
    }
    let s = Scratch::new();
    let exe = s.compile("targets/crowd.c", "crowd", &[]);
    let mut tool = counts_by_process(&s, &exe);
    let mut cmd = s.target(&exe);
    cmd.args(["100", &CALLS.to_string()]);
    let mut target = Running::start(cmd);
    target.wait_for("READY");
    target.say("go");
    let lines: Vec<String> = (0..100).map(|_| target.wait_for("CHILD ")).collect();
    target.wait_for("done");
    tool.interrupt();
    let output = tool.output();
    let mut sum = 0;
    for (i, line) in lines.iter().enumerate() {
        let [pid, begun, returned]: [u64; 3] = line
            .split(' ')
            .skip(1)
            .map(|n| n.parse().expect("a number"))
            .collect::<Vec<_>>()
            .try_into()
            .expect("three");
        let [percpu, shared] = ["n", "m"].map(|map| numbers(&output, &format!("@{map}[{pid}]")));
        assert!((returned..=begun).contains(&percpu), "{line}: counted {percpu}");
        assert!((returned..=begun).contains(&shared), "{line}: counted {shared}");
        assert!(i % 10 == 0 || percpu == CALLS, "{line}: counted {percpu}");
        sum += percpu;
    }
    // A process may be killed between two of the program's three updates.
    let all = numbers(&output, "@all");
    assert!((sum.saturating_sub(10)..=sum).contains(&all), "{all} of {sum}");
    assert!(target.finish(LIMIT).status.success());
}

/// A target that has hardly anything, and a tool that attaches to it.
fn target_short_of(p: &Many, resource: u32, amount: u64) {
    let mut tool = p.tool("pulse", &[p.first], &[]);
    assert_eq!(tool.line(), "READY");
    let mut cmd = p.s.target(&p.exe);
    let limit = libc::rlimit { rlim_cur: amount, rlim_max: amount };
    // SAFETY: setrlimit may be called between fork and exec.
    unsafe {
        cmd.pre_exec(move || {
            if libc::setrlimit(resource, &limit) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        })
    };
    let mut target = Running::start(cmd);
    target.wait_for("RUNNING");
    for _ in 0..3 {
        assert_eq!(target.ask("v"), "value 2");
        assert_eq!(target.ask("a"), "called errors 0");
    }
    // A tool that comes later must not disturb it either.
    let mut later = p.tool("multi", &[p.first, 32, 500], &[]);
    later.wait_for("READY");
    assert_eq!(target.ask("a"), "called errors 0");
    assert!(count(&mut tool, "count") <= 7);
    later.signal(libc::SIGTERM);
    assert!(later.finish(LIMIT).status.success());
    let f = target.finish(LIMIT);
    assert!(f.status.success() && f.stderr.is_empty(), "{f:?}");
}

#[test]
fn a_target_that_has_hardly_any_memory_does_not_notice() {
    let p = Many::new();
    for mib in [16, 24, 48, 64] {
        target_short_of(&p, libc::RLIMIT_AS, mib << 20);
    }
}

#[test]
fn a_target_that_may_open_start_or_write_nothing_does_not_notice() {
    let p = Many::new();
    target_short_of(&p, libc::RLIMIT_NOFILE, 4);
    target_short_of(&p, libc::RLIMIT_NPROC, 0);
    target_short_of(&p, libc::RLIMIT_FSIZE, 0);
    target_short_of(&p, libc::RLIMIT_SIGPENDING, 0);
    target_short_of(&p, libc::RLIMIT_MEMLOCK, 0);
}

/// A runtime directory on a file system of its own with no room, where that may be made.
#[test]
fn a_full_disk_is_told_to_the_tool() {
    let s = Scratch::new();
    let exe = s.compile("tools/faults.c", "faults", &["-w"]);
    let offset = symbol_offset(&exe, "main").to_string();
    let full = s.path("full");
    std::fs::create_dir(&full).expect("directory");
    let script = "mount -t tmpfs -o size=16k,nr_inodes=20 bpftime-test $0 && mount -t tmpfs -o size=64k bpftime-shm /dev/shm && \
                  mkdir -m 700 $0/run && { dd if=/dev/zero of=$0/file 2>/dev/null; touch $0/{1..20} 2>/dev/null; } ; \
                  LD_PRELOAD=$1 BPFTIME_RUNTIME_DIR=$0/run exec $2 none 0 early $3";
    let mut cmd = s.command("unshare");
    // SAFETY: geteuid has no failure.
    if unsafe { libc::geteuid() } != 0 {
        cmd.arg("--map-root-user");
    }
    cmd.args(["--mount", "bash", "-c", script]).arg(&full);
    cmd.arg(bpftime_tests::dist("lib/libbpftime-syscall.so")).arg(&exe).arg(offset);
    let f = Running::start(cmd).finish(LIMIT);
    if !f.stdout.contains("SHORT") {
        println!("skipped: no mount namespace of one's own: {}", f.stderr.trim_end());
        return;
    }
    for (step, errno) in errors(&f, "SHORT", "AGAIN") {
        assert_eq!(errno, libc::ENOSPC, "{step}: {f:?}");
    }
    assert!(f.stdout.contains(&format!("attach {}", libc::ENOSPC)), "{f:?}");
}
