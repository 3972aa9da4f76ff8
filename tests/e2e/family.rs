//! Who is traced: threads, children of every making, programs that replace one another, libraries that come and go.
//! Needs scripts/build.

use bpftime_tests::{Running, Scratch, kernel_is_oracle, symbol_offset};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

struct Pieces {
    s: Scratch,
    family: PathBuf,
    plugin: PathBuf,
    probe: PathBuf,
}

impl Pieces {
    fn new() -> Self {
        let s = Scratch::new();
        let family = s.compile("targets/family.c", "family", &["-ldl"]);
        let plugin = s.compile("targets/plugin.c", "plugin.so", &["-shared", "-fPIC"]);
        let probe = s.compile("tools/probe.c", "probe", &["-w"]);
        Self { s, family, plugin, probe }
    }

    /// Counts of entries and returns of work(), of entries in the library, and what the target says its calls were.
    fn run(&self, mut tool: Command, mut target: Command) -> (Vec<u64>, u64) {
        let at = |file: &Path, symbol: &str| symbol_offset(file, symbol).to_string();
        tool.arg("count");
        for (kind, file, symbol) in [
            ("entry", &self.family, "work"),
            ("ret", &self.family, "work"),
            ("entry", &self.plugin, "in_library"),
        ] {
            tool.arg(kind).arg(file).arg(at(file, symbol));
        }
        target.arg(&self.plugin);
        let mut target = Running::start(target);
        target.wait_for("READY");
        let mut tool = Running::start(tool);
        tool.wait_for("READY");
        target.say("go");
        let calls = target.wait_for("CALLS ");
        assert!(target.finish(LIMIT).status.success());
        tool.signal(libc::SIGTERM);
        let f = tool.finish(LIMIT);
        let counts = f.stdout.lines().filter_map(|l| l.strip_prefix("COUNT ")?.parse().ok()).collect();
        (counts, calls["CALLS ".len()..].parse().unwrap())
    }
}

#[test]
fn every_call_of_the_family_counts_once() {
    let p = Pieces::new();
    let (counts, calls) = p.run(p.s.tool(&p.probe), p.s.target(&p.family));
    assert_eq!(counts, [calls, calls, 21]);
    if kernel_is_oracle() {
        assert_eq!(p.run(p.s.command(&p.probe), p.s.command(&p.family)), (counts, calls));
    }
}

#[test]
fn a_library_that_is_closed_and_loaded_again_is_probed_each_time_from_many_tools() {
    let p = Pieces::new();
    let offset = symbol_offset(&p.plugin, "in_library").to_string();
    let mut tools: Vec<Running> = (0..3)
        .map(|_| {
            let mut cmd = p.s.tool(&p.probe);
            cmd.args(["count", "entry"]).arg(&p.plugin).arg(&offset).arg("ret").arg(&p.plugin).arg(&offset);
            let mut run = Running::start(cmd);
            run.wait_for("READY");
            run
        })
        .collect();
    let mut cmd = p.s.target(&p.family);
    cmd.arg(&p.plugin);
    let mut target = Running::start(cmd);
    target.wait_for("READY");
    target.say("go");
    target.wait_for("CALLS ");
    assert!(target.finish(LIMIT).status.success());
    for tool in tools.drain(..) {
        tool.signal(libc::SIGTERM);
        assert_eq!(tool.finish(LIMIT).stdout, "COUNT 21\nCOUNT 21\n");
    }
}
