//! Stacks as build ids and offsets in files: in a buffer, and in a map that keeps them.

use bpftime_tests::{Running, Scratch, kernel_is_oracle, symbol_offset};
use std::path::{Path, PathBuf};
use std::process::Command;

const FLAGS: [&str; 2] = ["-fno-omit-frame-pointer", "-Wl,--build-id=sha1"];

/// The target, and the library that it loads when it is first told to call.
fn target(s: &Scratch) -> [PathBuf; 2] {
    let library = [&FLAGS[..], &["-shared", "-fPIC", "-DLIBRARY"]].concat();
    [s.compile("targets/late.c", "late", &FLAGS), s.compile("targets/late.c", "late.so", &library)]
}

/// What the tool saw of one call of the target's function.
fn seen(s: &Scratch, ours: bool) -> Vec<String> {
    let [exe, library] = target(s);
    let tool = s.compile("tools/stacks.c", "stacks", &["-Wl,--no-as-needed", "-lbpf"]);
    let mut cmd = if ours { s.target(&exe) } else { s.command(&exe) };
    cmd.arg(library);
    let mut target = Running::start(cmd);
    target.wait_for("RUNNING");
    let mut cmd = if ours { s.tool(&tool) } else { s.command(&tool) };
    cmd.arg(s.compile_bpf("progs/stacks.bpf.c")).arg(&exe).arg(symbol_offset(&exe, "hit").to_string());
    let mut tool = Running::start(cmd);
    tool.wait_for("READY");
    target.say("");
    assert_eq!(target.line(), "result 195");
    tool.say("");
    std::iter::from_fn(|| Some(tool.line()).filter(|l| !l.is_empty() && l != "END")).collect()
}

fn build_id(file: &Path) -> String {
    let notes = Command::new("readelf").arg("-n").arg(file).output().expect("readelf");
    let notes = String::from_utf8_lossy(&notes.stdout).into_owned();
    notes.lines().find_map(|l| l.trim().strip_prefix("Build ID: ")).expect("a build id").to_string()
}

#[test]
fn frames_are_the_build_ids_and_offsets_of_the_files_they_are_in_also_of_a_library_that_came_later() {
    let s = Scratch::new();
    let ours = seen(&s, true);
    let [exe, library] = target(&s);
    let hit = format!("1 {} {:x}", build_id(&exe), symbol_offset(&exe, "hit"));
    // hit() has no frame of its own at its first instruction: whether its caller is seen is up to the compiler.
    let through = format!(" 1 {} ", build_id(&library));
    for (kind, at) in [("stack", 0), ("by id", 5)] {
        let frames = &ours[at..at + 3];
        assert_eq!(frames[0], format!("{kind} {hit}"));
        assert!(frames[1..].iter().any(|f| f.contains(&through)), "no frame in the library: {ours:#?}");
    }
    assert_eq!(ours[1]["stack".len()..], ours[3]["skipped".len()..]);
    assert_eq!(ours[8], "1 1 1 1 -22 -22 -22 0 -22 -14");
    if kernel_is_oracle() {
        assert_eq!(ours, seen(&s, false));
    }
}
