//! Real tools, unchanged, against a target whose events are known: each must report exactly as many.
//!
//! Tools of a group run at the same time against one run of the target, so a group takes as long as its slowest start.

use crate::{Running, Scratch, dist};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
/// For what tools print at once, or at their interval of a second.
const PRINT: Duration = Duration::from_secs(5);
/// Starting many compilers at once on a busy machine.
const START: Duration = Duration::from_secs(150);

/// What a tool's output must say. `EXE` and `PID` stand for the target, as in the command.
pub enum Says {
    /// So many lines contain all these words, as soon as it happened.
    Lines(&'static [&'static str], usize),
    /// The same of a tool that reports when it is interrupted.
    Finally(&'static [&'static str], usize),
    /// The last number of the line with this word.
    Number(&'static str, u64),
    /// The counts of a histogram add up to this.
    Histogram(u64),
    /// Of the lines with the first word, of which a tool that reports again and again prints many, the last has the second.
    Last(&'static str, &'static str),
}
use Says::{Finally, Histogram, Last, Lines, Number};

/// A tool, its arguments (`EXE` stands for the target's file, `PID` for its pid) and what it must say.
pub struct Row {
    command: &'static [&'static str],
    says: Says,
    /// Left out unless all are asked for.
    rare: bool,
}

/// A row that always runs.
pub const fn row(command: &'static [&'static str], says: Says) -> Row {
    Row { command, says, rare: false }
}

/// A row that runs when BPFTIME_TOOLS=all.
pub const fn rare(command: &'static [&'static str], says: Says) -> Row {
    Row { command, says, rare: true }
}

/// Whether the program is installed.
pub fn is_there(name: &str) -> bool {
    path().split(':').any(|dir| Path::new(dir).join(name).exists())
}

fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// A running tool, its output in a file.
pub struct Tool {
    name: String,
    child: Child,
    out: PathBuf,
}

impl Tool {
    /// Starts a tool on bpftime, with `more` in its environment.
    pub fn start(s: &Scratch, args: &[String], more: &[(&str, &str)]) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let out = s.path(&format!("tool-{n}.out"));
        let file = std::fs::File::create(&out).expect("output file");
        let mut cmd = s.tool(&args[0]);
        cmd.args(&args[1..]).env("PATH", path()).env("PYTHONUNBUFFERED", "1").envs(more.iter().copied());
        cmd.stdin(Stdio::null()).stderr(file.try_clone().expect("output file")).stdout(file);
        let child = cmd.spawn().unwrap_or_else(|e| panic!("{args:?}: {e}"));
        Self { name: args.join(" "), child, out }
    }

    /// What it has printed.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.out).expect("output")).into_owned()
    }

    /// Ends it as its user does; Python may lose a signal that comes while it is in a C function.
    pub fn interrupt(&mut self) {
        let end = Instant::now() + LIMIT;
        while self.child.try_wait().expect("wait").is_none() {
            assert!(Instant::now() < end, "{} does not end: {}", self.name, self.output());
            // SAFETY: the child is ours and not yet waited for.
            unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) };
            for _ in 0..30 {
                if self.child.try_wait().expect("wait").is_some() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
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
pub fn all_attached(s: &Scratch, tools: &mut [Tool]) {
    let end = Instant::now() + START;
    let (mut before, mut since) = (Vec::new(), Instant::now());
    loop {
        for t in tools.iter_mut() {
            let ended = t.child.try_wait().expect("wait");
            assert!(ended.is_none(), "{} ended with {ended:?}: {}", t.name, t.output());
        }
        let now = links(s);
        let attached = |t: &&Tool| now.iter().any(|(p, n)| *n > 0 && *p == t.child.id().to_string());
        let waiting: Vec<_> = tools.iter().filter(|t| !attached(t)).collect();
        if now != before {
            (before, since) = (now.clone(), Instant::now());
        }
        if waiting.is_empty() && since.elapsed() >= Duration::from_secs(1) {
            return;
        }
        let late: Vec<_> = waiting.iter().map(|t| (&t.name, t.output())).collect();
        assert!(Instant::now() < end, "not attached: {late:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What a row's words stand for.
struct Names {
    exe: String,
    pid: String,
}

impl Names {
    fn of(&self, words: &[&str]) -> Vec<String> {
        words.iter().map(|w| w.replace("EXE", &self.exe).replace("PID", &self.pid)).collect()
    }
}

/// What is wrong with the output, if anything.
fn complaint(row: &Row, output: &str, names: &Names) -> Option<String> {
    let has = |words: &[&str], line: &str| names.of(words).iter().all(|w| line.contains(w.as_str()));
    let (got, wanted) = match row.says {
        Lines(words, n) | Finally(words, n) => {
            (output.lines().filter(|l| has(words, l)).count() as u64, n as u64)
        }
        Number(word, n) => {
            let line = output.lines().find(|l| has(&[word], l) && !l.contains("Tracing"));
            let mut numbers = line.unwrap_or_default().split_whitespace().filter_map(|w| w.parse().ok());
            (numbers.next_back().unwrap_or(0), n)
        }
        Histogram(n) => {
            // "  512 -> 1023  : 7  |****|"
            let rows = output.lines().filter(|l| l.contains("->") && l.contains('|'));
            let counts =
                rows.filter_map(|l| l.split(':').nth(1)?.split('|').next()?.trim().parse::<u64>().ok());
            (counts.sum(), n)
        }
        Last(which, words) => {
            let last = output.lines().rfind(|l| has(&[which], l));
            (last.is_some_and(|l| has(&[words], l)).into(), 1)
        }
    };
    (got != wanted).then(|| format!("{:?}: {got} instead of {wanted}:\n{output}\n", row.command))
}

/// What bpftrace says at its end when it has closed one of its own events: libbcc closes an uninitialised number when it looks
/// for a perf map. It does so on the kernel, too; what is counted then is no news of ours.
const CLOSED_ITSELF: &str = "ioctl(PERF_EVENT_IOC_DISABLE) failed: Bad file descriptor";

/// Runs the tools of `rows`, with `more` in their environment, against a `target`, whose file is `exe`. Rows that name a PID
/// need a target that runs already; without such rows it starts when all are attached. Returns the target's last line.
pub fn group(
    s: &Scratch,
    rows: &'static [Row],
    more: &[(&str, &str)],
    exe: &Path,
    target: impl Fn() -> Command,
) -> String {
    let all = std::env::var_os("BPFTIME_TOOLS").is_some_and(|v| v == "all");
    let chosen = rows.iter().filter(|r| all || !r.rare);
    let (there, missing): (Vec<_>, Vec<_>) = chosen.partition(|r| is_there(r.command[0]));
    for r in missing {
        println!("skipped: {} is not installed", r.command[0]);
    }
    const ROUNDS: u32 = 3;
    for round in 1..=ROUNDS {
        match run(s, &there, more, exe, target()) {
            Ok(said) => return said,
            Err(outputs) if round < ROUNDS && outputs.contains(CLOSED_ITSELF) => {
                println!("a tool has closed its own event, again: {outputs}");
            }
            Err(outputs) => panic!("{outputs}"),
        }
    }
    unreachable!("the last round returns or panics")
}

/// One round: the target's last line, or what is wrong with what tools printed.
fn run(
    s: &Scratch,
    there: &[&Row],
    more: &[(&str, &str)],
    exe: &Path,
    target: Command,
) -> Result<String, String> {
    let mut target = Some(target);
    let first = there.iter().any(|r| r.command.contains(&"PID"));
    let mut running = if first { target.take().map(ready) } else { None };
    let pid = running.as_ref().map(|r| r.pid().to_string()).unwrap_or_default();
    let names = Names { exe: exe.to_str().expect("a path in UTF-8").into(), pid };
    let mut tools: Vec<Tool> = there.iter().map(|r| Tool::start(s, &names.of(r.command), more)).collect();
    all_attached(s, &mut tools);
    let mut running = running.take().or_else(|| target.take().map(ready)).expect("a target");
    running.say("go");
    let said = running.wait_for("done");
    await_lines(there, &tools, &names);
    tools.iter_mut().for_each(Tool::interrupt);
    let complaints: Vec<_> =
        there.iter().zip(&tools).filter_map(|(r, t)| complaint(r, &t.output(), &names)).collect();
    assert!(running.finish(LIMIT).status.success());
    if complaints.is_empty() { Ok(said) } else { Err(complaints.join("\n")) }
}

/// Waits until those that print at once have printed what they must; more than that would come soon after.
fn await_lines(rows: &[&Row], tools: &[Tool], names: &Names) {
    let end = Instant::now() + PRINT;
    let at_once = |row: &Row| matches!(row.says, Lines(..) | Last(..));
    let missing =
        |(row, tool): (&&Row, &Tool)| at_once(row) && complaint(row, &tool.output(), names).is_some();
    while rows.iter().zip(tools).any(missing) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(200));
}

/// The target when it waits for its line.
fn ready(target: Command) -> Running {
    let mut running = Running::start(target);
    running.wait_for("READY");
    running
}
