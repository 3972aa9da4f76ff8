//! Who is traced, what a program may change, what a tool leaves behind. Needs scripts/build.

use bpftime_tests::many::{Many, count};
use bpftime_tests::{Running, dist, eventually};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_program_gives_the_result_in_the_functions_place() {
    let p = Many::new();
    let mut target = p.target();
    assert_eq!(target.ask("v"), "value 2");
    let mut tool = p.tool("override", &[p.first, 4242, 0], &[]);
    assert_eq!(tool.line(), "ATTACHED 0");
    assert_eq!(target.ask("v"), "value 4242");
    tool.signal(libc::SIGTERM);
    assert!(tool.finish(LIMIT).status.success());
    eventually("the function runs again", || target.ask("v") == "value 2");
    assert!(target.finish(LIMIT).status.success());
}

#[test]
fn only_a_functions_first_instruction_can_be_replaced() {
    let p = Many::new();
    let mut inside = p.tool("override", &[p.first + 4, 1, 0], &[]);
    assert_eq!(inside.line(), "ATTACHED 22");
    let mut on_return = p.tool("override", &[p.first, 1, 1], &[]);
    assert_eq!(on_return.line(), "ATTACHED 22");
}

#[test]
fn a_program_signals_the_process_it_traces() {
    let p = Many::new();
    let mut target = p.target();
    let mut tool = p.tool("signal", &[p.first, libc::SIGUSR1 as u64], &[]);
    assert_eq!(tool.line(), "ATTACHED 0");
    target.say("v");
    let f = target.finish(LIMIT);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&f.status), Some(libc::SIGUSR1), "{f:?}");
    tool.signal(libc::SIGTERM);
    assert!(tool.finish(LIMIT).status.success());
}

#[test]
fn every_process_that_maps_the_file_is_injected_when_that_is_asked_for() {
    let p = Many::new();
    let mut before = p.plain();
    let mut tool = p.tool("pulse", &[p.first], &[("BPFTIME_INJECT", "all")]);
    assert_eq!(tool.line(), "READY");
    assert_eq!(before.ask("v"), "value 2");
    assert_eq!(count(&mut tool, "count"), 1);
    let mut after = p.plain();
    let maps = format!("/proc/{}/maps", after.pid());
    let agent = dist("lib/libbpftime-agent.so");
    eventually("the later process is injected", || {
        std::fs::read_to_string(&maps).unwrap().contains(&*agent.to_string_lossy())
    });
    eventually("its calls count", || {
        after.ask("v");
        count(&mut tool, "count") > 1
    });
    assert!(before.finish(LIMIT).status.success() && after.finish(LIMIT).status.success());
}

#[test]
fn nobody_is_injected_unasked() {
    let p = Many::new();
    let mut plain = p.plain();
    let mut tool = p.tool("pulse", &[p.first], &[]);
    assert_eq!(tool.line(), "READY");
    assert_eq!(plain.ask("v"), "value 2");
    assert_eq!(count(&mut tool, "count"), 0);
    assert!(!std::fs::read_to_string(format!("/proc/{}/maps", plain.pid())).unwrap().contains("libbpftime"));
}

#[test]
fn a_child_of_a_bare_fork_counts_and_stops_counting_with_its_parent() {
    let p = Many::new();
    let mut target = p.target();
    let mut tool = p.tool("pulse", &[p.first], &[]);
    assert_eq!(tool.line(), "READY");
    assert!(target.ask("f").starts_with("child "));
    eventually("the child's calls count", || count(&mut tool, "count") > 10);
    let last = count(&mut tool, "close");
    std::thread::sleep(Duration::from_millis(300));
    // A call that was under way when the link went may have counted since.
    assert!(count(&mut tool, "count") <= last + 1);
    assert!(target.finish(LIMIT).status.success());
}

#[test]
fn a_target_may_close_every_descriptor_it_does_not_know() {
    let p = Many::new();
    let mut target = p.target();
    assert_eq!(target.ask("c"), "closed 0");
    let mut tool = p.tool("pulse", &[p.first], &[]);
    assert_eq!(tool.line(), "READY");
    assert_eq!(target.ask("c"), "closed 0");
    assert_eq!(target.ask("v"), "value 2");
    assert_eq!(count(&mut tool, "count"), 1);
    count(&mut tool, "close");
    eventually("the text is restored", || target.ask("text") == "text same");
}

#[test]
fn a_runtime_directory_that_comes_back_is_seen() {
    let p = Many::new();
    let mut target = p.target();
    let dir = p.s.path("run");
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut tool = p.tool("pulse", &[p.first], &[]);
    assert_eq!(tool.line(), "READY");
    eventually("the agent comes", || {
        target.ask("v");
        count(&mut tool, "count") > 0
    });
}

#[test]
fn what_a_tool_closes_is_let_go() {
    let p = Many::new();
    let mut cmd = p.s.tool(&p.links);
    cmd.args(["churn", "600"]);
    let f = Running::start(cmd).finish(LIMIT);
    let growth = f.stdout.strip_prefix("GROWTH ").unwrap_or_else(|| panic!("{f:?}"));
    let [descriptors, kilobytes] =
        [0, 1].map(|i| growth.split_whitespace().nth(i).unwrap().parse::<i64>().unwrap());
    assert!(descriptors < 300 && kilobytes < 8192, "{f:?}");
}

#[test]
fn a_full_descriptor_table_is_emfile_and_closing_makes_room() {
    let p = Many::new();
    let mut cmd = p.s.tool(&p.links);
    cmd.arg("full");
    let f = Running::start(cmd).finish(LIMIT);
    let expected: String = (0..3).map(|i| format!("round {i} errno 24 enough 1\n")).collect();
    assert_eq!(f.stdout, expected, "{f:?}");
}
