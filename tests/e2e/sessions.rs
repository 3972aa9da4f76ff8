//! Uprobe sessions: one program at a function's entry and again at its return. Needs scripts/build.

use bpftime_tests::{Running, Scratch, kernel_is_oracle, root, symbol_offset};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn has_btf() -> bool {
    Path::new("/sys/kernel/btf/vmlinux").exists()
}

#[test]
fn what_loading_and_attaching_answers_is_what_the_kernel_answers() {
    let s = Scratch::new();
    let target = s.compile("targets/sessions.c", "target", &[]);
    let tool = s.compile("tools/sessions.c", "tool", &["-w"]);
    let offset = symbol_offset(&target, "deep").to_string();
    let run = |mut cmd: Command| {
        cmd.arg("cases").arg(&target).arg(&offset);
        Running::start(cmd).finish(LIMIT).stdout
    };
    let golden = std::fs::read_to_string(root().join("tests/kernel-golden/sessions")).unwrap();
    assert_eq!(run(s.tool(&tool)), golden);
    // Without the kernel's BTF the functions are those of ours.
    let mut ours = s.tool(&tool);
    ours.env("BPFTIME_KERNEL_BTF", "off");
    assert_eq!(run(ours), golden, "our own BTF");
    if kernel_is_oracle() && has_btf() && run(s.command(&tool)) != golden {
        panic!("the kernel answers otherwise than tests/kernel-golden/sessions");
    }
}

/// Attaches, lets the target do what `words` say, and gives what the tool counted.
fn traced(mut tool: Command, mut target: Command, how: &str, exe: &Path, words: &[&str]) -> String {
    tool.arg(how).arg(exe).arg(symbol_offset(exe, "deep").to_string());
    let mut tool = Running::start(tool);
    tool.wait_for("READY");
    target.stdin(std::process::Stdio::piped());
    let mut target = Running::start(target);
    target.wait_for("RUNNING");
    for word in words {
        target.say(word);
        assert_eq!(target.line(), "done");
    }
    assert!(target.finish(LIMIT).status.success());
    tool.signal(libc::SIGTERM);
    tool.finish(LIMIT).stdout
}

fn on_both(how: &str, words: &[&str], expected: &str) {
    let s = Scratch::new();
    let exe = s.compile("targets/sessions.c", "target", &[]);
    let tool = s.compile("tools/sessions.c", "tool", &["-w"]);
    assert_eq!(traced(s.tool(&tool), s.target(&exe), how, &exe, words), expected);
    if kernel_is_oracle() && has_btf() {
        assert_eq!(traced(s.command(&tool), s.command(&exe), how, &exe, words), expected, "the kernel");
    }
}

#[test]
fn a_session_remembers_each_call_and_has_the_returns_it_wants() {
    // 11 + 4 + 4 x 50 x 8 calls that return, and 6 that are left by longjmp.
    let expected = "some entries 1621 returns 808 cookies 2432\n\
                    all entries 1621 returns 1615 cookies 5661\n\
                    plain entries 1621 returns 1615\n";
    on_both("trace", &["10", "3", "jump 5", "threads 7"], expected);
}

#[test]
fn the_result_alone_says_whether_the_return_is_wanted() {
    on_both("loose", &["10"], "skips 11 stays 22\n");
}
