//! What the kernel counts in the targets' threads: page faults, watchpoints. Needs scripts/build.

use bpftime_tests::{Running, Scratch, kernel_is_oracle};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Whether this user may have software events of his own processes, and the kernel sends them as signals.
fn may_count() -> bool {
    let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let level: i32 = paranoid.trim().parse().unwrap_or(i32::MAX);
    // SAFETY: geteuid has no failure.
    let root = unsafe { libc::geteuid() } == 0;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (root || level <= 2) && version >= (5, 13)
}

fn started(mut target: Command) -> (Running, u64) {
    target.stdin(std::process::Stdio::piped());
    let mut target = Running::start(target);
    let line = target.wait_for("READY 0x");
    let address = u64::from_str_radix(line.trim_start_matches("READY 0x"), 16).expect("address");
    (target, address)
}

/// Runs `script` with bpftrace, `words` with the target; what getrusage says of each, and what the script counted.
fn counted(mut tool: Command, script: &str, target: &mut Running, words: &[&str]) -> (Vec<u64>, u64) {
    // Printed when everything is attached.
    let script = format!("{script} interval:ms:20 {{ printf(\"READY\\n\"); }}");
    tool.args(["-e", &script]);
    let mut tool = Running::start(tool);
    tool.wait_for("READY");
    let ask = |word: &&str| {
        target.say(word);
        target.wait_for("DONE").trim_start_matches("DONE ").parse().expect("DONE n")
    };
    let done = words.iter().map(ask).collect();
    tool.signal(libc::SIGINT);
    let f = tool.finish(LIMIT);
    let count = f.stdout.lines().find_map(|l| l.strip_prefix("@: "));
    (done, count.unwrap_or("0").parse().unwrap_or_else(|_| panic!("{f:?}")))
}

/// The kernel, where it can be asked, counts the same by the same script.
fn on_both(flags: &[&str], check: impl Fn(&str, &dyn Fn() -> Command, Command)) {
    if !may_count() {
        println!("skipped: the kernel does not let this user count page faults");
        return;
    }
    let s = Scratch::new();
    let exe = s.compile("targets/faults.c", "faults", flags);
    check("bpftime", &|| s.tool("bpftrace"), s.target(&exe));
    if kernel_is_oracle() {
        check("kernel", &|| s.command("bpftrace"), s.command(&exe));
    }
}

#[test]
fn page_faults_are_counted_in_every_thread_from_its_first_instruction_on() {
    on_both(&[], |side, tool, target| {
        let (mut target, _) = started(target);
        let pid = target.pid();
        let script = format!("software:page-faults:1 /pid == {pid}/ {{ @ = count(); }}");
        let (done, count) = counted(tool(), &script, &mut target, &["pages 1000", "threads 500"]);
        let all: u64 = done.iter().sum();
        assert!(done[0] >= 1000 && done[1] >= 2000, "{side}: {done:?}");
        // The faults of the waiting around it, and those that a user does not see because the kernel took them.
        assert!(count + 64 >= all && count <= all + 64, "{side}: {count} of {all}");
        assert!(target.finish(LIMIT).status.success());
    });
}

#[test]
fn a_period_takes_one_in_so_many() {
    on_both(&[], |side, tool, target| {
        let (mut target, _) = started(target);
        let pid = target.pid();
        let script = format!("software:minor-faults:100 /pid == {pid}/ {{ @ = count(); }}");
        let (_, count) = counted(tool(), &script, &mut target, &["pages 3000"]);
        assert!((29..=32).contains(&count), "{side}: {count}");
        assert!(target.finish(LIMIT).status.success());
    });
}

#[test]
fn a_watchpoint_sees_every_write() {
    on_both(&["-no-pie"], |side, tool, target| {
        let (mut target, address) = started(target);
        let mut tool = tool();
        tool.args(["-p", &target.pid().to_string()]);
        let script = format!("watchpoint:{address:#x}:8:w {{ @ = count(); }}");
        let (_, count) = counted(tool, &script, &mut target, &["write 700"]);
        assert_eq!(count, 700, "{side}");
        assert!(target.finish(LIMIT).status.success());
    });
}

#[test]
fn counted_events_answer_as_the_kernels_do() {
    if !kernel_is_oracle() {
        println!("skipped: only root may ask the kernel for other processes' events");
        return;
    }
    let s = Scratch::new();
    let exe = s.compile("tools/events.c", "events", &["-w"]);
    let run = |mut cmd: Command| {
        cmd.arg("counted");
        Running::start(cmd).finish(LIMIT).stdout
    };
    let (ours, theirs) = (run(s.tool(&exe)), run(s.command(&exe)));
    assert!(theirs.contains("page faults 0"), "{theirs}");
    assert_eq!(ours, theirs);
}
