//! Every row of `abi/src/helper.rs`: a program of progs/every.bpf.c calls the helper in a target. A row without a program,
//! or whose program does not call it, fails here. Every other helper of the kernel is refused when a program is loaded.

use bpftime_abi::helper;
use bpftime_tests::{Running, Scratch, kernel_is_oracle, root, symbol_offset};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Helpers that the kernel of the golden file has not, or not for programs in uprobes: it is locked down.
const OURS_ALONE: [(&str, &str); 3] =
    [("override_return", "1 0 0"), ("probe_write_user", "1 0 -14"), ("ktime_get_coarse_ns", "1 1 0")];

/// `(name, number)` of every row that is a helper, as the programs are named. Kernel functions have sessions.rs.
fn rows() -> impl Iterator<Item = (&'static str, u32)> {
    let helpers = helper::NAMES.iter().filter(|(id, _)| *id < helper::KFUNC_FIRST);
    helpers.map(|(id, name)| (name.strip_prefix("bpf_").unwrap_or(name), *id))
}

/// What the target and the tool say after one call of the function; the tool's lines are `NAME RAN VALUE MORE`.
fn run(ours: bool, helpers: &[(&str, u32)]) -> (String, Vec<String>) {
    let s = Scratch::new();
    let exe = s.compile("targets/every.c", "target", &[]);
    let tool = s.compile("tools/every.c", "every", &["-Wl,--no-as-needed", "-lbpf"]);
    let object = s.compile_bpf("progs/every.bpf.c");
    let mut target = Running::start(if ours { s.target(&exe) } else { s.command(&exe) });
    target.wait_for("RUNNING");
    let mut cmd = if ours { s.tool(&tool) } else { s.command(&tool) };
    cmd.arg(&object).arg(&exe).arg(symbol_offset(&exe, "hit").to_string());
    cmd.args(helpers.iter().map(|(name, id)| format!("{name}:{id}")));
    let mut tool = Running::start(cmd);
    tool.wait_for("READY");
    target.say("");
    let said = target.line();
    tool.say("");
    let without_number = |line: String| {
        let (name, answer) = line.split_once(' ').unwrap_or_default();
        format!("{} {answer}", name.split(':').next().unwrap_or_default())
    };
    let lines = std::iter::from_fn(|| Some(tool.line()).filter(|l| !l.is_empty() && l != "END"));
    (said, lines.map(without_number).collect())
}

#[test]
fn every_helper_answers_in_a_target_as_the_kernels() {
    let helpers: Vec<_> = rows().collect();
    let (said, mut ours) = run(true, &helpers);
    assert_eq!(said, "result 4321 text wordwordWROTEord of the target signals 1 1");
    assert_eq!(ours.pop().as_deref(), Some("samples 1"));
    let called: Vec<_> = ours.iter().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(
        called,
        helpers.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        "not called by its program"
    );
    for (name, answer) in OURS_ALONE {
        assert!(ours.contains(&format!("{name} {answer}")), "{name} {answer}: {ours:#?}");
    }
    ours.retain(|line| !OURS_ALONE.iter().any(|(name, _)| line.starts_with(name)));
    let golden = root().join("tests/kernel-golden/every-helper");
    let recorded = std::fs::read_to_string(&golden).expect("recorded answers");
    // SAFETY: neither has a failure.
    let own = unsafe { u64::from(libc::geteuid()) | u64::from(libc::getegid()) << 32 };
    let recorded = recorded.replace("get_current_uid_gid 1 0", &format!("get_current_uid_gid 1 {own}"));
    assert_eq!(
        ours,
        recorded.lines().collect::<Vec<_>>(),
        "recorded from the kernel in {}",
        golden.display()
    );
    if kernel_is_oracle() {
        let there: Vec<_> =
            rows().filter(|(name, _)| !OURS_ALONE.iter().any(|(ours, _)| ours == name)).collect();
        let (said, mut kernels) = run(false, &there);
        assert_eq!(said, "result 196 text wordwordwordword of the target signals 1 1");
        assert_eq!(kernels.pop().as_deref(), Some("samples 1"));
        assert_eq!(ours, kernels, "ours, then the kernel's");
    }
}

#[test]
fn every_other_helper_of_the_kernel_is_refused_by_name_when_a_program_is_loaded() {
    let s = Scratch::new();
    let tool = s.compile("tools/every.c", "every", &["-Wl,--no-as-needed", "-lbpf"]);
    let others: Vec<u32> = (1..=helper::KERNEL_HELPER_MAX).filter(|id| !helper::exists(*id)).collect();
    let mut cmd = s.tool(&tool);
    cmd.arg("refused").args(others.iter().map(u32::to_string));
    let f = Running::start(cmd).finish(LIMIT);
    for (n, line) in f.stdout.lines().enumerate() {
        let id = others[n / 4];
        let name = helper::full_name(id).expect("a helper of the kernel");
        let wanted = format!("-22 program of this type cannot use helper {name}#{id}");
        assert!(line.starts_with(&format!("{id} ")) && line.ends_with(&wanted), "{line}: not {wanted}");
    }
    assert_eq!(f.stdout.lines().count(), others.len() * 4, "{f:?}");
}

/// What `every room` says while the target's function is called whenever the tool waits for room.
fn rooms(ours: bool) -> Vec<String> {
    let s = Scratch::new();
    let exe = s.compile("targets/every.c", "target", &[]);
    let tool = s.compile("tools/every.c", "every", &["-Wl,--no-as-needed", "-lbpf"]);
    let mut target = Running::start(if ours { s.target(&exe) } else { s.command(&exe) });
    target.wait_for("RUNNING");
    let mut cmd = if ours { s.tool(&tool) } else { s.command(&tool) };
    cmd.arg("room")
        .arg(s.compile_bpf("progs/every.bpf.c"))
        .arg(&exe)
        .arg(symbol_offset(&exe, "hit").to_string());
    let mut tool = Running::start(cmd);
    let mut said = Vec::new();
    for line in std::iter::from_fn(|| Some(tool.line()).filter(|l| !l.is_empty())) {
        if line.starts_with("sent") {
            target.say("");
            target.line();
        }
        said.push(line);
    }
    said
}

#[test]
fn a_user_ring_buffer_is_writable_while_it_has_room_and_a_program_that_drains_it_wakes_the_tool() {
    let ours = rooms(true);
    const POLLOUT: i16 = libc::POLLOUT;
    assert_eq!(ours[0], format!("writable {POLLOUT}"));
    assert_eq!(ours[1], "sent 256, No space left on device, writable 0 0");
    // How many it has room for later depends on how far the program is by then.
    let full = |lines: &[String]| {
        lines.iter().filter(|l| l.ends_with(", No space left on device, writable 0 0")).count()
    };
    assert_eq!(full(&ours), 3, "{ours:#?}");
    assert_eq!(ours.iter().filter(|l| *l == "room 1").count(), 3, "{ours:#?}");
    if kernel_is_oracle() {
        let kernels = rooms(false);
        assert_eq!((&kernels[..2], full(&kernels)), (&ours[..2], 3), "{kernels:#?}");
    }
}
