//! Targets that run, allocate, take signals or use other threads while the agent is loaded.

mod inject_support;

use std::process::Stdio;
use std::time::Duration;

use bpftime_agent::inject::{InjectError, Options, inject};
use inject_support::{Dir, Target, bpftime_agent, until};

#[test]
fn a_cpu_spinner_keeps_registers_red_zone_and_errno() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_spin"), dir.agent("PLAIN"));
    let target = Target::start(&program, &["1"]);
    for i in 0..50 {
        let report = dir.inject(target.pid(), &agent).unwrap();
        assert_eq!(report.already(), i > 0);
    }
    assert_eq!(target.finish(), "ok\n");
    assert_eq!(dir.starts(), 50);
}

#[test]
fn many_threads_go_on_while_one_is_borrowed() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_spin"), dir.agent("PLAIN"));
    let target = Target::start(&program, &["8"]);
    for _ in 0..10 {
        let report = dir.inject(target.pid(), &agent).unwrap();
        assert_eq!(report.tid, target.pid(), "the thread that blocks in read is the one to borrow");
    }
    assert_eq!(target.finish(), "ok\n");
}

fn heap_stays_whole(threads: &str) {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_malloc"), dir.agent("PLAIN"));
    let target = Target::start(&program, &[threads]);
    for _ in 0..20 {
        dir.inject(target.pid(), &agent).unwrap();
    }
    target.kill(libc::SIGTERM);
    assert_eq!(target.finish(), "ok\n");
    assert_eq!(dir.starts(), 20);
}

#[test]
fn a_single_thread_that_only_allocates_is_caught_outside_malloc() {
    heap_stays_whole("1");
}

#[test]
fn four_threads_that_only_allocate_are_caught_outside_malloc() {
    heap_stays_whole("4");
}

#[test]
fn no_signal_is_lost_and_no_disposition_changes() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_signals"), dir.agent("PLAIN"));
    let target = Target::start(&program, &[]);
    let pid = target.pid();
    let sender =
        std::thread::spawn(move || (1..=2000).filter(|&i| queue(pid, i)).map(i64::from).sum::<i64>());
    let mut injections = 0;
    while !sender.is_finished() || injections < 5 {
        dir.inject(pid, &agent).unwrap();
        injections += 1;
    }
    let sum = sender.join().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    target.kill(libc::SIGTERM);
    assert_eq!(target.finish(), format!("rt 2000 sum {sum} ticking 1 trap_ignored 1 mask 1\n"));
}

/// Queues a realtime signal; retries while the target's queue is full.
fn queue(pid: i32, value: i32) -> bool {
    let value = libc::sigval { sival_ptr: value as usize as *mut libc::c_void };
    // SAFETY: a plain system call.
    until(|| unsafe { libc::sigqueue(pid, libc::SIGRTMIN(), value) } == 0);
    std::thread::sleep(Duration::from_micros(100));
    true
}

#[test]
fn a_stop_signal_during_injection_stops_the_target_afterwards() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent("SLOW"));
    let mut target = Target::start(&program, &["read"]);
    let pid = target.pid();
    let (opts, lib) = (dir.options(&agent), agent.clone());
    let injector = std::thread::spawn(move || inject(pid, &Options { library: Some(lib), ..opts }));
    until(|| dir.starts() == 1);
    target.kill(libc::SIGSTOP);
    injector.join().unwrap().unwrap();
    target.await_state("T");
    target.kill(libc::SIGCONT);
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
}

#[test]
fn an_injector_killed_in_the_middle_leaves_the_target_running() {
    for (name, arg) in [("inject_spin", "1"), ("inject_blocked", "read")] {
        let dir = Dir::new();
        let (program, agent) = (dir.target(name), dir.agent("SLOW"));
        let mut target = Target::start(&program, &[arg]);
        let pid = target.pid().to_string();
        let mut args = vec!["inject", "--pid", &pid, "--library", agent.to_str().unwrap()];
        args.extend(["--runtime-dir", dir.0.to_str().unwrap()]);
        let mut injector = bpftime_agent(&args).stdin(Stdio::null()).spawn().unwrap();
        until(|| dir.starts() == 1);
        injector.kill().unwrap();
        injector.wait().unwrap();
        until(|| target.tracer() == "0");
        // It still has to come back from the call, which takes 400 ms.
        std::thread::sleep(Duration::from_millis(600));
        target.write(b"x");
        assert_eq!(target.finish(), "ok\n", "{name}");
    }
}

#[test]
fn an_injector_killed_at_any_moment_costs_the_target_nothing() {
    let dir = Dir::new();
    let (spin, blocked) = (dir.target("inject_spin"), dir.target("inject_blocked"));
    let agent = dir.agent("PLAIN");
    for round in 0..60 {
        let (program, arg) = [(&spin, "1"), (&spin, "4"), (&blocked, "read")][round % 3];
        let mut target = Target::start(program, &[arg]);
        let pid = target.pid().to_string();
        let mut args = vec!["inject", "--pid", &pid, "--library", agent.to_str().unwrap()];
        args.extend(["--runtime-dir", dir.0.to_str().unwrap()]);
        let mut injector = bpftime_agent(&args).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(1000 + 100 * round as u64));
        injector.kill().unwrap();
        injector.wait().unwrap();
        target.write(b"x");
        assert_eq!(target.finish(), "ok\n", "killed in round {round}");
    }
}

#[test]
fn an_agent_that_hangs_is_abandoned_and_the_target_goes_on() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent("HANG"));
    let mut target = Target::start(&program, &["read"]);
    let opts = Options { timeout: Duration::from_millis(300), ..dir.options(&agent) };
    let e = inject(target.pid(), &opts).unwrap_err();
    assert!(matches!(e, InjectError::TimedOut { .. }), "{e}");
    assert_eq!((e.errno(), e.exit_code()), (libc::ETIMEDOUT, 8));
    assert_eq!(target.tracer(), "0");
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
}

#[test]
fn an_agent_that_crashes_costs_the_probe_and_not_the_target() {
    for (name, arg) in [("inject_spin", "1"), ("inject_blocked", "read")] {
        let dir = Dir::new();
        let (program, agent) = (dir.target(name), dir.agent("CRASH"));
        let mut target = Target::start(&program, &[arg]);
        let e = dir.inject(target.pid(), &agent).unwrap_err();
        assert!(e.to_string().contains("signal 11"), "{e}");
        assert_eq!(target.tracer(), "0");
        target.write(b"x");
        assert_eq!(target.finish(), "ok\n");
    }
}

#[test]
fn a_target_killed_during_injection_is_reported() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent("HANG"));
    let target = Target::start(&program, &["read"]);
    let pid = target.pid();
    let opts = dir.options(&agent);
    let injector = std::thread::spawn(move || inject(pid, &opts));
    until(|| dir.starts() == 1);
    target.kill(libc::SIGKILL);
    let e = injector.join().unwrap().unwrap_err();
    assert!(matches!(e, InjectError::Gone { .. }), "{e}");
}

#[test]
fn injectors_at_the_same_time_take_turns() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_spin"), dir.agent("PLAIN"));
    let target = Target::start(&program, &["4"]);
    let (pid, opts) = (target.pid(), dir.options(&agent));
    let work = || (0..10).for_each(|_| drop(inject(pid, &opts).unwrap()));
    std::thread::scope(|s| (0..4).for_each(|_| drop(s.spawn(work))));
    assert_eq!(target.finish(), "ok\n");
    assert_eq!(dir.starts(), 40);
}

#[test]
fn the_code_of_the_target_is_as_before() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent("PLAIN"));
    let mut target = Target::start(&program, &["read"]);
    dir.inject(target.pid(), &agent).unwrap();
    let before = code_of(target.pid());
    dir.inject(target.pid(), &agent).unwrap();
    assert!(before == code_of(target.pid()));
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
}

/// Every executable page of a process; also checked against the files that they come from.
fn code_of(pid: i32) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mem = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines().filter(|l| l.contains("r-xp") && l.contains('/')) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |s: &str| u64::from_str_radix(s, 16).unwrap();
        let (start, end) = fields[0].split_once('-').map(|(a, b)| (hex(a), hex(b))).unwrap();
        let mut code = vec![0; (end - start) as usize];
        mem.read_exact_at(&mut code, start).unwrap();
        let file = std::fs::read(fields[5]).unwrap();
        let offset = hex(fields[2]) as usize;
        let len = code.len().min(file.len() - offset);
        assert!(code[..len] == file[offset..offset + len], "{line}");
        all.extend(code);
    }
    all
}
