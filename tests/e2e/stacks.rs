//! Stacks as build ids and offsets in files: in a buffer, and in a map that keeps them.

use bpftime_tests::{Running, Scratch, kernel_is_oracle, symbol_offset};
use std::process::Command;

/// What the tool saw of one call of the target's function.
fn seen(s: &Scratch, ours: bool) -> Vec<String> {
    let exe = target(s);
    let tool = s.compile("tools/stacks.c", "stacks", &["-Wl,--no-as-needed", "-lbpf"]);
    let mut target = Running::start(if ours { s.target(&exe) } else { s.command(&exe) });
    target.wait_for("RUNNING");
    let mut cmd = if ours { s.tool(&tool) } else { s.command(&tool) };
    cmd.arg(s.compile_bpf("progs/stacks.bpf.c")).arg(&exe).arg(symbol_offset(&exe, "hit").to_string());
    let mut tool = Running::start(cmd);
    tool.wait_for("READY");
    target.say("");
    target.line();
    tool.say("");
    std::iter::from_fn(|| Some(tool.line()).filter(|l| !l.is_empty() && l != "END")).collect()
}

fn target(s: &Scratch) -> std::path::PathBuf {
    s.compile("targets/every.c", "target", &["-fno-omit-frame-pointer", "-Wl,--build-id=sha1"])
}

#[test]
fn frames_are_the_build_ids_and_offsets_of_the_files_they_are_in() {
    let s = Scratch::new();
    let ours = seen(&s, true);
    let exe = target(&s);
    let notes = Command::new("readelf").arg("-n").arg(&exe).output().expect("readelf");
    let notes = String::from_utf8_lossy(&notes.stdout).into_owned();
    let id = notes.lines().find_map(|l| l.trim().strip_prefix("Build ID: ")).expect("a build id");
    let hit = format!("1 {id} {:x}", symbol_offset(&exe, "hit"));
    assert_eq!(ours[0], format!("stack {hit}"));
    assert_eq!(ours[4], format!("by id {hit}"));
    assert!(ours[1].starts_with("stack 1 ") && ours[1][5..] == ours[2][7..], "{ours:#?}");
    assert_eq!(ours[6], "1 1 1 1 -22 -22 -22 0 -22 -14");
    if kernel_is_oracle() {
        assert_eq!(ours, seen(&s, false));
    }
}
