//! Real tools, unchanged, against a target whose events are known: each must report exactly as many.
//!
//! Tools of a group run at the same time against one run of the target, so a group takes as long as its slowest start.
//! BPFTIME_TOOLS=all runs every row; without it those that cost little.

use bpftime_tests::{Running, Scratch, dist};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
/// Starting many compilers at once on a busy machine.
const START: Duration = Duration::from_secs(150);

/// What a tool's output must say.
enum Says {
    /// So many lines contain all these words.
    Lines(&'static [&'static str], usize),
    /// The line with this word has this number.
    Number(&'static str, u64),
    /// The counts of a histogram add up to this.
    Histogram(u64),
}
use Says::{Histogram, Lines, Number};

/// A tool, its arguments (`EXE` stands for the target) and what it must say.
struct Row {
    command: &'static [&'static str],
    says: Says,
    /// Left out unless all are asked for.
    rare: bool,
}

const fn row(command: &'static [&'static str], says: Says) -> Row {
    Row { command, says, rare: false }
}

const fn rare(command: &'static [&'static str], says: Says) -> Row {
    Row { command, says, rare: true }
}

const BCC: &[Row] = &[
    row(&["killsnoop-bpfcc"], Lines(&["events"], 3)),
    row(&["opensnoop-bpfcc"], Lines(&["/nonexistent/events"], 5)),
    row(&["execsnoop-bpfcc"], Lines(&["/bin/true", "events-child"], 2)),
    row(&["mountsnoop-bpfcc"], Lines(&["umount(\"/nonexistent/m\"", "ENOENT"], 2)),
    row(&["funccount-bpfcc", "EXE:work"], Number("work", 7)),
    row(&["trace-bpfcc", "EXE:work \"hit %d\", arg1"], Lines(&["hit"], 7)),
    rare(&["shmsnoop-bpfcc"], Lines(&["SHMGET"], 2)),
    rare(&["syncsnoop-bpfcc"], Lines(&["sync()"], 1)),
    rare(&["statsnoop-bpfcc"], Lines(&["events"], 2)),
    rare(&["funclatency-bpfcc", "EXE:work"], Histogram(7)),
    rare(&["funcslower-bpfcc", "-m", "1", "EXE:doze"], Lines(&["events", "EXE:doze"], 2)),
    rare(&["funcinterval-bpfcc", "EXE:work"], Histogram(6)),
    rare(&["argdist-bpfcc", "-C", "r:EXE:work():int:$retval#returned"], Lines(&["$retval ="], 7)),
    rare(&["stackcount-bpfcc", "EXE:work"], Number("    7", 7)),
    rare(&["gethostlatency-bpfcc"], Lines(&["localhost"], 2)),
    rare(&["syscount-bpfcc", "-T", "500"], Number("kill", 3)),
    rare(&["exitsnoop-bpfcc"], Lines(&["true "], 2)),
    rare(&["threadsnoop-bpfcc"], Lines(&["events", "thread"], 3)),
];

const LIBBPF: &[Row] = &[
    row(&["opensnoop"], Lines(&["/nonexistent/events"], 5)),
    row(&["execsnoop"], Lines(&["/bin/true", "events-child"], 2)),
    row(&["mountsnoop"], Lines(&["umount(\"/nonexistent/m\"", "ENOENT"], 2)),
    row(&["sigsnoop", "-k"], Lines(&["events"], 3)),
    row(&["funclatency", "EXE:work"], Histogram(7)),
    row(&["gethostlatency"], Lines(&["localhost"], 2)),
    rare(&["syscount", "-T", "500"], Number("kill", 3)),
    rare(&["exitsnoop"], Lines(&["true "], 2)),
];

const BPFTRACE: &[Row] = &[
    row(&["bpftrace", "/usr/sbin/naptime.bt"], Lines(&["tools-", "events", "0.001"], 2)),
    row(&["bpftrace", "/usr/sbin/killsnoop.bt"], Lines(&["events"], 3)),
    rare(&["bpftrace", "/usr/sbin/opensnoop.bt"], Lines(&["/nonexistent/events"], 5)),
    rare(&["bpftrace", "/usr/sbin/execsnoop.bt"], Lines(&["true events-child"], 2)),
    rare(&["bpftrace", "/usr/sbin/statsnoop.bt"], Lines(&["events", "/dev"], 2)),
    rare(&["bpftrace", "/usr/sbin/syncsnoop.bt"], Lines(&["events", "sys_enter_sync"], 1)),
    rare(&["bpftrace", "/usr/sbin/setuids.bt"], Lines(&["events", "setuid"], 2)),
    rare(&["bpftrace", "/usr/sbin/gethostlatency.bt"], Lines(&["localhost"], 2)),
];

/// Whether the program is installed, and what it needs beside itself.
fn is_there(name: &str) -> bool {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    path.split(':').any(|dir| std::path::Path::new(dir).join(name).exists())
}

/// A running tool, its output in a file.
struct Tool {
    row: &'static Row,
    child: std::process::Child,
    out: std::path::PathBuf,
}

fn start(s: &Scratch, row: &'static Row, n: usize, exe: &str, more: &[(&str, &str)]) -> Tool {
    let out = s.path(&format!("tool-{n}.out"));
    let file = std::fs::File::create(&out).expect("output file");
    let args: Vec<String> = row.command.iter().map(|a| a.replace("EXE", exe)).collect();
    let mut cmd = s.tool(&args[0]);
    cmd.args(&args[1..]).env("PYTHONUNBUFFERED", "1").envs(more.iter().copied());
    cmd.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    cmd.stdin(Stdio::null()).stderr(file.try_clone().expect("output file")).stdout(file);
    Tool { row, child: cmd.spawn().unwrap_or_else(|e| panic!("{args:?}: {e}")), out }
}

impl Tool {
    fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.out).expect("output")).into_owned()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Links in each session, as `bpftime ps` lists them.
fn links(s: &Scratch) -> Vec<(String, usize)> {
    let out = s.command(dist("bin/bpftime")).arg("ps").stdin(Stdio::null()).output().expect("bpftime ps");
    let mut sessions: Vec<(String, usize)> = Vec::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        match (line.strip_prefix("session of pid "), sessions.last_mut()) {
            (Some(rest), _) => sessions.push((rest.split(':').next().unwrap_or_default().into(), 0)),
            (None, Some(last)) if line.starts_with("  link ") => last.1 += 1,
            _ => {}
        }
    }
    sessions.sort();
    sessions
}

/// Waits until every tool has attached something, and nothing more came for a second.
fn all_attached(s: &Scratch, tools: &mut [Tool]) {
    let end = Instant::now() + START;
    let mut before = Vec::new();
    loop {
        for t in tools.iter_mut() {
            let ended = t.child.try_wait().expect("wait");
            assert!(ended.is_none(), "{:?} ended with {ended:?}: {}", t.row.command, t.output());
        }
        let now = links(s);
        let of = |pid: u32| now.iter().find(|(p, _)| *p == pid.to_string()).map_or(0, |(_, n)| *n);
        let waiting: Vec<_> = tools.iter().filter(|t| of(t.child.id()) == 0).collect();
        if waiting.is_empty() && now == before {
            return;
        }
        let late: Vec<_> = waiting.iter().map(|t| (t.row.command, t.output())).collect();
        assert!(Instant::now() < end, "not attached: {late:?}");
        before = now;
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Ends a tool as its user does; Python may lose a signal that comes while it is in a C function.
fn interrupt(tool: &mut Tool) {
    let end = Instant::now() + LIMIT;
    while tool.child.try_wait().expect("wait").is_none() {
        assert!(Instant::now() < end, "{:?} does not end: {}", tool.row.command, tool.output());
        // SAFETY: the child is ours and not yet waited for.
        unsafe { libc::kill(tool.child.id() as i32, libc::SIGINT) };
        for _ in 0..30 {
            if tool.child.try_wait().expect("wait").is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What is wrong with the output, if anything.
fn complaint(row: &Row, output: &str, exe: &str) -> Option<String> {
    let count = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|w| w.replace("EXE", exe)).collect();
        output.lines().filter(|l| words.iter().all(|w| l.contains(w.as_str()))).count() as u64
    };
    let (got, wanted) = match row.says {
        Lines(words, n) => (count(words), n as u64),
        Number(word, n) => {
            let line =
                output.lines().find(|l| l.contains(word) && !l.contains("Tracing")).unwrap_or_default();
            let mut numbers = line.split_whitespace().filter_map(|w| w.parse().ok());
            (numbers.next_back().unwrap_or(0), n)
        }
        Histogram(n) => {
            // "  512 -> 1023  : 7  |****|"
            let rows = output.lines().filter(|l| l.contains("->") && l.contains('|'));
            let counts =
                rows.filter_map(|l| l.split(':').nth(1)?.split('|').next()?.trim().parse::<u64>().ok());
            (counts.sum(), n)
        }
    };
    (got != wanted).then(|| format!("{:?}: {got} instead of {wanted}:\n{output}\n", row.command))
}

/// Runs a group, with `more` in the tools' environment.
fn group(rows: &'static [Row], more: &[(&str, &str)]) {
    let all = std::env::var_os("BPFTIME_TOOLS").is_some_and(|v| v == "all");
    let s = Scratch::new();
    let exe = s.compile("targets/events.c", "events", &[]);
    let path = exe.to_str().expect("a path in UTF-8").to_owned();
    let chosen = rows.iter().filter(|r| all || !r.rare);
    let (there, missing): (Vec<_>, Vec<_>) = chosen.partition(|r| is_there(r.command[0]));
    for r in missing {
        println!("skipped: {} is not installed", r.command[0]);
    }
    let mut tools: Vec<Tool> =
        there.into_iter().enumerate().map(|(n, r)| start(&s, r, n, &path, more)).collect();
    all_attached(&s, &mut tools);
    let mut target = Running::start(s.target(&exe));
    target.wait_for("READY");
    target.say("go");
    target.wait_for("done");
    // What tools poll for they print within their interval.
    std::thread::sleep(Duration::from_millis(1500));
    tools.iter_mut().for_each(interrupt);
    let complaints: Vec<_> = tools.iter().filter_map(|t| complaint(t.row, &t.output(), &path)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(target.finish(LIMIT).status.success());
}

#[test]
fn bccs_tools_count_what_happens() {
    group(BCC, &[]);
}

#[test]
fn libbpf_tools_count_what_happens() {
    group(LIBBPF, &[]);
}

#[test]
fn libbpf_tools_need_no_btf_of_the_kernels() {
    group(LIBBPF, &[("BPFTIME_KERNEL_BTF", "off")]);
}

#[test]
fn bpftraces_scripts_count_what_happens() {
    group(BPFTRACE, &[]);
}

/// What bpftool prints about the sessions of `s`.
fn bpftool(s: &Scratch, args: &[&str]) -> String {
    let mut cmd: Command = s.tool("/usr/sbin/bpftool");
    let out = cmd.args(args).stdin(Stdio::null()).output().expect("bpftool");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "bpftool {args:?}: {text} {}", String::from_utf8_lossy(&out.stderr));
    text
}

#[test]
fn bpftool_sees_a_live_session_from_outside() {
    if !is_there("bpftool") || !is_there("bpftrace") {
        println!("skipped: bpftool and bpftrace are not both installed");
        return;
    }
    let s = Scratch::new();
    let exe = s.compile("targets/events.c", "events", &[]);
    let script = format!(
        "uprobe:{0}:work {{ @calls[arg0] = count(); }} uretprobe:{0}:work {{ @last = retval; }}",
        exe.display()
    );
    let file = std::fs::File::create(s.path("bt.out")).expect("output file");
    let mut cmd = s.tool("bpftrace");
    cmd.arg("-e").arg(script).stdin(Stdio::null()).stdout(file.try_clone().expect("file")).stderr(file);
    static NOTHING: Row = row(&["bpftrace"], Lines(&[], 0));
    let child = cmd.spawn().expect("bpftrace");
    let mut tool = [Tool { row: &NOTHING, child, out: s.path("bt.out") }];
    all_attached(&s, &mut tool);
    let mut target = Running::start(s.target(&exe));
    target.wait_for("READY");
    target.say("go");
    target.wait_for("done");

    let progs = bpftool(&s, &["prog", "show"]);
    assert_eq!(progs.matches(": kprobe ").count(), 2, "{progs}");
    let events = bpftool(&s, &["perf", "show"]);
    assert!(events.contains(" uprobe ") && events.contains(" uretprobe "), "{events}");
    assert!(events.contains(exe.to_str().expect("UTF-8")), "{events}");
    // Every program that an event names is one that is listed.
    for id in events.split("prog_id ").skip(1).filter_map(|r| r.split_whitespace().next()) {
        assert!(progs.lines().any(|l| l.starts_with(&format!("{id}: "))), "{id} in {progs}");
    }
    let maps = bpftool(&s, &["map", "show"]);
    let id = |name: &str| {
        let line = maps.lines().find(|l| l.contains(name)).unwrap_or_else(|| panic!("{name} in {maps}"));
        line.split(':').next().unwrap_or_default().to_owned()
    };
    let calls = bpftool(&s, &["map", "dump", "id", &id("AT_calls")]);
    assert!(calls.contains("Found 7 elements"), "{calls}");
    let last = bpftool(&s, &["map", "dump", "id", &id("AT_last")]);
    assert!(last.contains("07 00 00 00 00 00 00 00"), "{last}");
    let first = progs.split(':').next().unwrap_or_default();
    assert!(bpftool(&s, &["prog", "dump", "xlated", "id", first]).contains("exit"));
    interrupt(&mut tool[0]);
    assert_eq!(bpftool(&s, &["prog", "show"]), "", "nothing lives after its tool");
    assert!(target.finish(LIMIT).status.success());
}
