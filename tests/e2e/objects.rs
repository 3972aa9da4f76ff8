//! Descriptors of BPF objects: pins, access modes, run statistics. The same tool on bpftime and, where it may be asked, on
//! the kernel, in a mount namespace of its own. Needs scripts/build.

use bpftime_tests::{Finished, Running, Scratch, kernel_is_oracle, symbol_offset};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
/// The longest a listing may take, also on a busy machine: the two seconds that a stopped tool is waited for, and some.
const ANSWER: Duration = Duration::from_secs(10);
const PINS: &str = "/sys/fs/bpf";

fn tool(s: &Scratch) -> PathBuf {
    s.compile("tools/objects.c", "objects", &["-w"])
}

/// A command on the kernel that finds a BPF file system of its own.
fn with_bpffs(s: &Scratch, program: &Path) -> Command {
    let mut cmd = s.command("unshare");
    cmd.args(["-m", "sh", "-c", "mount -t bpf bpf /sys/fs/bpf && exec \"$@\"", "sh"]).arg(program);
    cmd
}

/// What `objects ARGS` prints on bpftime; the same as on the kernel here.
fn same_as_kernel(args: &[&str]) -> String {
    let s = Scratch::new();
    let tool = tool(&s);
    let print = |mut cmd: Command| {
        cmd.args(args);
        let f = Running::start(cmd).finish(LIMIT);
        assert!(f.status.success(), "{f:?}");
        f.stdout
    };
    let ours = print(s.tool(&tool));
    if kernel_is_oracle() {
        let kernels = print(with_bpffs(&s, &tool));
        for (ours, kernels) in ours.lines().zip(kernels.lines()) {
            assert_eq!(ours, kernels, "ours, then the kernel's");
        }
        assert_eq!(ours, kernels);
    }
    holder_ends(&s);
    ours
}

/// Waits until `done`, watched by the limit of the whole test.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Pids of the processes that hold the pins of `s`, by their sockets.
fn holders(s: &Scratch) -> Vec<i32> {
    let names = std::fs::read_dir(s.path("run")).expect("runtime directory").flatten();
    let pid = |e: std::fs::DirEntry| e.file_name().to_str()?.strip_suffix(".pins")?.parse().ok();
    names.filter_map(pid).collect()
}

/// Nothing is pinned any more, so nothing runs for it.
fn holder_ends(s: &Scratch) {
    wait_until("the holder stays although nothing is pinned", || holders(s).is_empty());
    // A tool that looks at it at the very end makes it anew.
    let pins = std::fs::read_dir(s.path("run/bpffs")).into_iter().flatten();
    assert_eq!(pins.count(), 0, "pins stay behind");
}

fn pin(s: &Scratch, name: &str) -> PathBuf {
    s.path("run/bpffs").join(name)
}

#[test]
fn pins_answer_as_the_kernels() {
    let out = same_as_kernel(&["pins", PINS]);
    assert!(out.contains("pin map 0 again -17 twice 0 prog 0 link 0 ring 0"), "{out}");
}

#[test]
fn descriptors_for_reading_or_writing_answer_as_the_kernels() {
    let out = same_as_kernel(&["access"]);
    assert!(out.contains("array 8 mode 0: lookup 0 update -1"), "{out}");
}

/// A target and the tool `objects hold` on its function `other`.
struct Traced {
    s: Scratch,
    target: Running,
}

impl Traced {
    fn new() -> Self {
        let s = Scratch::new();
        let exe = s.compile("targets/threads.c", "threads", &[]);
        let mut cmd = s.target(exe);
        cmd.arg("0");
        let mut target = Running::start(cmd);
        target.wait_for("RUNNING");
        Self { s, target }
    }

    fn hold(&self, more: &[&str]) -> Running {
        let mut cmd = self.s.tool(tool(&self.s));
        let exe = self.s.path("threads");
        cmd.arg("hold").arg(&exe).arg(symbol_offset(&exe, "other").to_string()).args(more);
        Running::start(cmd)
    }

    fn pinned_by_it(&self) -> Running {
        let mut cmd = self.s.tool(tool(&self.s));
        cmd.args(["from", PINS]);
        Running::start(cmd)
    }

    fn call(&mut self, times: u32) {
        self.target.say(&format!("c {times}"));
        assert_eq!(self.target.line(), format!("called {times} errors 0"));
    }
}

fn said(tool: &mut Running, command: &str) -> String {
    tool.say(command);
    tool.line()
}

#[test]
fn a_pinned_link_counts_on_when_its_tool_is_killed_and_until_the_pin_is_removed() {
    let mut t = Traced::new();
    let mut first = t.hold(&[PINS]);
    let ready = first.wait_for("READY");
    t.call(1000);
    assert_eq!(said(&mut first, "count"), "count 1000", "once per call while tool and holder have the link");
    first.signal(libc::SIGKILL);
    drop(first);
    t.call(1000);
    let mut second = t.pinned_by_it();
    assert_eq!(second.wait_for("READY"), ready, "the same ids");
    t.call(1000);
    assert_eq!(said(&mut second, "count"), "count 3000");
    std::fs::remove_file(pin(&t.s, "link")).expect("pin");
    t.call(1000);
    assert_eq!(said(&mut second, "count"), "count 4000", "the second tool's descriptor keeps the link");
    assert!(said(&mut second, "close").starts_with("closed 0"));
    wait_until("the link is still attached", || {
        let before = said(&mut second, "count");
        t.call(10);
        said(&mut second, "count") == before
    });
    for name in ["map", "prog"] {
        std::fs::remove_file(pin(&t.s, name)).expect("pin");
    }
    holder_ends(&t.s);
    assert!(said(&mut second, "count").starts_with("count 4"), "its map is its own");
}

#[test]
fn no_call_is_counted_twice_or_lost_while_a_pinned_link_changes_hands() {
    let mut t = Traced::new();
    let mut tool = t.hold(&[PINS]);
    tool.wait_for("READY");
    t.target.say("c 3000000");
    // In the midst of the calls, or before or after them: right either way.
    assert!(said(&mut tool, "close").starts_with("closed 0"));
    assert_eq!(t.target.line(), "called 3000000 errors 0");
    assert_eq!(said(&mut tool, "count"), "count 3000000");
    drop(tool);
    t.call(5);
    let mut later = t.pinned_by_it();
    later.wait_for("READY");
    assert_eq!(said(&mut later, "count"), "count 3000005");
    drop(later);
    std::fs::remove_dir_all(t.s.path("run/bpffs")).expect("pins");
    holder_ends(&t.s);
}

#[test]
fn pins_of_a_holder_that_was_killed_are_gone_and_not_in_the_way() {
    let t = Traced::new();
    let mut tool = t.hold(&[PINS]);
    tool.wait_for("READY");
    let holder = holders(&t.s)[0];
    // SAFETY: the process that this test's tool started.
    unsafe { libc::kill(holder, libc::SIGKILL) };
    wait_until("the holder lives", || !Path::new(&format!("/proc/{holder}/fd/0")).exists());
    let f = t.pinned_by_it().finish(LIMIT);
    assert!(f.stderr.contains("map: No such file or directory"), "{f:?}");
    assert!(!pin(&t.s, "map").exists(), "a pin that stands for nothing stays");
    std::fs::remove_dir_all(t.s.path("run/bpffs")).expect("pins");
    let mut again = t.hold(&[PINS]);
    again.wait_for("READY");
    std::fs::remove_dir_all(t.s.path("run/bpffs")).expect("pins");
    holder_ends(&t.s);
}

#[test]
fn a_pinned_ring_buffer_wakes_its_reader_in_another_tool() {
    let s = Scratch::new();
    let start = |how: &str| {
        let mut cmd = s.tool(tool(&s));
        cmd.args([how, PINS]);
        let mut running = Running::start(cmd);
        running.wait_for("READY");
        running
    };
    let mut writer = start("ring-write");
    let mut reader = start("ring-read");
    for _ in 0..3 {
        assert_eq!(said(&mut writer, ""), "wrote 0");
        assert_eq!(reader.line(), "record 4711");
    }
    std::fs::remove_file(pin(&s, "ring")).expect("pin");
    holder_ends(&s);
}

#[test]
fn runs_are_counted_while_a_tool_wants_it_over_all_processes_and_never_else() {
    let mut t = Traced::new();
    let mut cmd = t.s.target(t.s.path("threads"));
    cmd.arg("0");
    let mut other = Running::start(cmd);
    other.wait_for("RUNNING");
    let mut tool = t.hold(&[]);
    tool.wait_for("READY");
    let mut call_both = |t: &mut Traced| {
        other.say("c 1000");
        t.call(1000);
        assert_eq!(other.line(), "called 1000 errors 0");
    };
    call_both(&mut t);
    assert_eq!(said(&mut tool, "runs"), "runs 0 missed 0 time no");
    assert_eq!(said(&mut tool, "on"), "on 0");
    call_both(&mut t);
    assert_eq!(said(&mut tool, "runs"), "runs 2000 missed 0 time yes");
    // A second tool wants it as well: it stays on until that one is gone, too.
    let mut second = t.hold(&[]);
    second.wait_for("READY");
    assert_eq!(said(&mut second, "on"), "on 0");
    assert_eq!(said(&mut tool, "off"), "off 0");
    call_both(&mut t);
    assert_eq!(said(&mut tool, "runs"), "runs 4000 missed 0 time yes");
    assert_eq!(said(&mut second, "runs"), "runs 2000 missed 0 time yes");
    assert_eq!(said(&mut second, "off"), "off 0");
    call_both(&mut t);
    assert_eq!(said(&mut tool, "runs"), "runs 4000 missed 0 time yes");
    assert_eq!(said(&mut tool, "count"), "count 8000");
    // Killed, it wants nothing any more.
    assert_eq!(said(&mut second, "on again"), "on 0");
    second.signal(libc::SIGKILL);
    drop(second);
    wait_until("runs are counted although nobody wants it", || {
        let before = said(&mut tool, "runs");
        t.call(10);
        said(&mut tool, "runs") == before
    });
}

/// bpftool with these arguments, on bpftime.
fn bpftool(s: &Scratch, args: &[&str]) -> Finished {
    let mut cmd = s.tool("/usr/sbin/bpftool");
    cmd.args(args).stdin(Stdio::null());
    Running::start(cmd).finish(LIMIT)
}

fn prints(s: &Scratch, args: &[&str]) -> String {
    let f = bpftool(s, args);
    assert!(f.status.success(), "bpftool {args:?}: {f:?}");
    f.stdout
}

/// How many uprobe programs `bpftool prog list` names; it takes its time, but not for ever. None without bpftool.
fn listed(s: &Scratch) -> Option<usize> {
    if !Path::new("/usr/sbin/bpftool").exists() {
        println!("skipped: bpftool is not installed");
        return None;
    }
    let begun = Instant::now();
    let f = bpftool(s, &["prog", "list"]);
    assert!(f.status.success() && begun.elapsed() < ANSWER, "{f:?}");
    Some(f.stdout.lines().filter(|l| l.contains(": kprobe")).count())
}

#[test]
fn a_tool_that_attaches_answers_those_who_ask_meanwhile() {
    let t = Traced::new();
    let mut cmd = t.s.tool(t.s.compile("tools/probe.c", "probe", &["-w"]));
    let exe = t.s.path("threads");
    cmd.args(["churn", "400"]).arg(&exe).arg(symbol_offset(&exe, "other").to_string());
    let mut attaching = Running::start(cmd);
    attaching.wait_for("READY");
    let mut asked = 0;
    while !attaching.has_ended() {
        let Some(_) = listed(&t.s) else { return };
        asked += 1;
    }
    let f = attaching.finish(LIMIT);
    assert!(asked > 0 && f.stdout.contains("DONE"), "{asked} {f:?}");
}

#[test]
fn a_stopped_tool_keeps_nobody_waiting_for_long() {
    let mut t = Traced::new();
    let mut stopped = t.hold(&[]);
    stopped.wait_for("READY");
    let mut other = t.hold(&[]);
    other.wait_for("READY");
    stopped.signal(libc::SIGSTOP);
    let Some(shown) = listed(&t.s) else { return };
    assert_eq!(shown, 1, "the stopped tool's is left out");
    stopped.signal(libc::SIGCONT);
    t.call(10);
    assert_eq!(said(&mut stopped, "count"), "count 10");
    assert_eq!(listed(&t.s), Some(2));
}

#[test]
fn bpftool_makes_pins_changes_and_removes_objects() {
    if !Path::new("/usr/sbin/bpftool").exists() {
        println!("skipped: bpftool is not installed");
        return;
    }
    let mut t = Traced::new();
    let s = &t.s;
    let create = ["type", "hash", "key", "4", "value", "8", "entries", "10", "name", "made"];
    prints(s, &[&["map", "create", "/sys/fs/bpf/made"], &create[..]].concat());
    let map = ["pinned", "/sys/fs/bpf/made"];
    prints(
        s,
        &[&["map", "update"], &map[..], &"key 1 0 0 0 value 2 0 0 0 0 0 0 0".split(' ').collect::<Vec<_>>()]
            .concat(),
    );
    let lookup = prints(s, &[&["map", "lookup"], &map[..], &["key", "1", "0", "0", "0"]].concat());
    assert!(lookup.contains("value: 02 00 00 00"), "{lookup}");
    assert!(prints(s, &[&["map", "getnext"], &map[..]].concat()).contains("01 00 00 00"));
    assert!(prints(s, &[&["map", "dump"], &map[..]].concat()).contains("Found 1 element"));
    prints(s, &[&["map", "delete"], &map[..], &["key", "1", "0", "0", "0"]].concat());
    assert!(prints(s, &[&["map", "dump"], &map[..]].concat()).contains("Found 0 elements"));
    let shown = prints(s, &["-f", "map", "show"]);
    assert!(shown.contains("hash  name made") && shown.contains("\tpinned /sys/fs/bpf/made\n"), "{shown}");
    let mut tool = t.hold(&[]);
    let ready = tool.wait_for("READY");
    let ids: Vec<&str> = ready.split(' ').skip(1).collect();
    for (kind, id) in ["map", "prog", "link"].into_iter().zip(&ids) {
        prints(s, &[kind, "pin", "id", id, &format!("/sys/fs/bpf/{kind}")]);
        let shown = prints(s, &["-f", kind, "show", "id", id]);
        assert!(shown.contains(&format!("pinned /sys/fs/bpf/{kind}\n")), "{shown}");
    }
    assert!(!bpftool(s, &["map", "pin", "id", ids[0], "/sys/fs/bpf/map"]).status.success());
    let link = prints(s, &["link", "show", "pinned", "/sys/fs/bpf/link"]);
    assert!(link.contains(&format!("prog {}", ids[1])), "{link}");
    drop(tool);
    t.call(100);
    let dumped = prints(&t.s, &["map", "lookup", "pinned", "/sys/fs/bpf/map", "key", "0", "0", "0", "0"]);
    assert!(dumped.contains("value: 64 00 00 00"), "the holder's link counts: {dumped}");
    let xlated = prints(&t.s, &["prog", "dump", "xlated", "pinned", "/sys/fs/bpf/prog"]);
    assert!(xlated.contains("exit"), "{xlated}");
    std::fs::remove_dir_all(t.s.path("run/bpffs")).expect("pins");
    holder_ends(&t.s);
    assert_eq!(prints(&t.s, &["map", "show"]), "");
}

#[test]
fn an_object_file_s_programs_and_maps_are_pinned_as_libbpf_does() {
    if !Path::new("/usr/sbin/bpftool").exists() {
        println!("skipped: bpftool is not installed");
        return;
    }
    let s = Scratch::new();
    let object = s.compile_bpf("tools/pinned.bpf.c");
    let object = object.to_str().expect("path");
    prints(&s, &["prog", "loadall", object, "/sys/fs/bpf/progs"]);
    assert!(pin(&s, "progs/count").exists());
    // LIBBPF_PIN_BY_NAME: a map that is pinned by its name is the one that the next load uses.
    assert!(pin(&s, "shared").exists());
    prints(&s, &["prog", "load", object, "/sys/fs/bpf/one"]);
    let maps = prints(&s, &["-f", "map", "show"]);
    assert_eq!(maps.matches("name shared").count(), 1, "{maps}");
    assert!(prints(&s, &["btf", "dump", "map", "pinned", "/sys/fs/bpf/shared"]).contains("u64"));
    std::fs::remove_dir_all(s.path("run/bpffs")).expect("pins");
    holder_ends(&s);
}
