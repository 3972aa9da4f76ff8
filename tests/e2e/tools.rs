//! Real tools, unchanged, against a target whose events are known: each must report exactly as many.
//!
//! Tools of a group run at the same time against one run of the target, so a group takes as long as its slowest start.
//! BPFTIME_TOOLS=all runs every row; without it those that cost little.

use bpftime_tests::tools::Says::{Finally, Histogram, Last, Lines, Number};
use bpftime_tests::tools::{Row, Tool, all_attached, group, is_there, rare, row};
use bpftime_tests::{Running, Scratch, root};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

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
    rare(&["argdist-bpfcc", "-C", "r:EXE:work():int:$retval#returned"], Finally(&["$retval ="], 7)),
    rare(&["stackcount-bpfcc", "EXE:work"], Number("    7", 7)),
    rare(&["gethostlatency-bpfcc"], Lines(&["localhost"], 2)),
    rare(&["syscount-bpfcc", "-T", "500"], Number("kill", 3)),
    rare(&["exitsnoop-bpfcc"], Lines(&["true "], 2)),
    rare(&["threadsnoop-bpfcc"], Lines(&["events", "thread"], 3)),
    rare(&["funccount-bpfcc", "-r", "EXE:^(work|doze)$"], Number("work", 7)),
];

const LIBBPF: &[Row] = &[
    row(&["opensnoop"], Lines(&["/nonexistent/events"], 5)),
    row(&["execsnoop"], Lines(&["/bin/true", "events-child"], 2)),
    row(&["mountsnoop"], Lines(&["umount(\"/nonexistent/m\"", "ENOENT"], 2)),
    row(&["sigsnoop", "-k"], Lines(&["events"], 3)),
    rare(&["killsnoop"], Lines(&["events"], 3)),
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
    rare(&["bpftrace", "/usr/sbin/syscount.bt"], Number("@syscall[110]:", 500)),
    rare(&["bpftrace", "/usr/sbin/gethostlatency.bt"], Lines(&["localhost"], 2)),
];

/// Tools for databases and language runtimes, against `targets/dialects.c`.
const DIALECTS: &[Row] = &[
    row(&["mysqld_qslower-bpfcc", "PID", "1"], Lines(&["select slow"], 3)),
    row(&["javagc", "-p", "PID", "-t", "1"], Lines(&["PID"], 2)),
    rare(&["dbslower-bpfcc", "mysql", "-p", "PID", "-m", "1"], Lines(&["select slow"], 3)),
    rare(&["dbstat-bpfcc", "mysql", "-p", "PID", "-u"], Histogram(7)),
    rare(&["ucalls", "-l", "ruby", "PID"], Number("Shape.area", 6)),
    rare(&["uflow", "-l", "ruby", "PID"], Lines(&["Shape."], 24)),
    rare(&["ugc", "-l", "ruby", "PID"], Lines(&["GC "], 6)),
    rare(&["uobjnew", "-l", "ruby", "PID"], Number("b'string'", 60)),
    rare(&["uobjnew", "-l", "c", "PID"], Number("block size 12345", 123_450)),
    rare(&["uthreads", "-l", "java", "PID"], Lines(&["Worker"], 6)),
    rare(&["memleak-bpfcc", "-p", "PID", "-o", "0", "1"], Last("bytes in", "123450 bytes in 10 allocations")),
    rare(&["trace-bpfcc", "-p", "PID", "u:EXE:query__start \"asked %s\", arg1"], Lines(&["asked select"], 7)),
];

/// Tools for Python, against the real one.
const PYTHON: &[Row] = &[
    // Python 3.11 has no entry event for functions that its interpreter calls itself, on the kernel neither.
    row(&["uflow", "-l", "python", "PID"], Lines(&["<- ", "calls.py.area"], 24)),
    rare(&["ugc", "-l", "python", "PID"], Lines(&["None"], 2)),
];

const BASH: &[Row] = &[
    row(&["bashreadline"], Lines(&["echo typed"], 2)),
    row(&["bpftrace", "/usr/sbin/bashreadline.bt"], Lines(&["echo typed"], 2)),
    rare(&["bashreadline-bpfcc"], Lines(&["echo typed"], 2)),
];

const TLS: &[Row] = &[
    row(&["bpftrace", "/usr/sbin/sslsnoop.bt"], Lines(&["tls", "SSL_"], 9)),
    row(&["bpftrace", "/usr/sbin/ssllatency.bt"], Finally(&["@stat[", "count 2,"], 3)),
];

/// A group against `targets/events.c`.
fn events(rows: &'static [Row], more: &[(&str, &str)]) {
    let s = Scratch::new();
    let exe = s.compile("targets/events.c", "events", &[]);
    group(&s, rows, more, &exe, || s.target(&exe));
}

#[test]
fn bccs_tools_count_what_happens() {
    events(BCC, &[]);
}

#[test]
fn libbpf_tools_count_what_happens() {
    events(LIBBPF, &[]);
}

#[test]
fn libbpf_tools_need_no_btf_of_the_kernels() {
    events(LIBBPF, &[("BPFTIME_KERNEL_BTF", "off")]);
}

#[test]
fn bpftraces_scripts_count_what_happens() {
    events(BPFTRACE, &[]);
}

#[test]
fn tools_for_databases_and_runtimes_count_what_happens() {
    let s = Scratch::new();
    let exe = s.compile("targets/dialects.c", "dialects", &["-ldl"]);
    let jvm = s.compile("targets/dialects.c", "libjvm.so", &["-DJVM", "-shared", "-fPIC"]);
    let target = || {
        let mut cmd = s.target(&exe);
        cmd.arg(&jvm);
        cmd
    };
    group(&s, DIALECTS, &[], &exe, target);
}

#[test]
fn tools_for_python_count_what_happens() {
    let s = Scratch::new();
    let exe = Path::new("/usr/bin/python3");
    let target = || {
        let mut cmd = s.target(exe);
        cmd.arg(root().join("tests/targets/calls.py"));
        cmd
    };
    group(&s, PYTHON, &[], exe, target);
}

#[test]
fn what_is_typed_into_bash_is_seen() {
    let s = Scratch::new();
    let exe = s.compile("targets/typist.c", "typist", &["-lutil"]);
    group(&s, BASH, &[], &exe, || s.target(&exe));
}

#[test]
fn what_openssl_does_is_seen() {
    let s = Scratch::new();
    let exe =
        s.compile("targets/tls.c", "tls", &["-Wl,--no-as-needed", "-l:libssl.so.3", "-l:libcrypto.so.3"]);
    let said = group(&s, TLS, &[], &exe, || s.target(&exe));
    assert_eq!(said, "done 3 2", "steps of the handshake that waited and that finished it");
}

#[test]
fn cpuwalk_samples_the_processor_time_that_is_used() {
    if !is_there("bpftrace") {
        println!("skipped: bpftrace is not installed");
        return;
    }
    let s = Scratch::new();
    let mut tool = [Tool::start(&s, &["bpftrace".into(), "/usr/sbin/cpuwalk.bt".into()], &[])];
    all_attached(&s, &mut tool);
    let mut cmd = s.target(s.compile("targets/burn.c", "burn", &[]));
    cmd.args(["1", "1000"]);
    let mut target = Running::start(cmd);
    target.wait_for("READY");
    let burnt = target.ask("burn");
    let ms: u64 = burnt.split(' ').nth(3).and_then(|n| n.parse().ok()).expect("PID p CPU ms ...");
    tool[0].interrupt();
    // "[1, 2)     97 |@@@@@@@|"
    let output = tool[0].output();
    let rows = output.lines().filter(|l| l.starts_with('['));
    let n: u64 = rows.filter_map(|l| l.split_whitespace().nth(2)?.parse::<u64>().ok()).sum();
    // A thread is found some time after it began, and the tool itself works a little.
    let want = ms * 99 / 1000;
    assert!(n + want / 20 + 99 / 8 >= want && n <= want + want / 10 + 10, "{n} samples of {ms} ms: {output}");
    target.wait_for("BURNT");
    assert!(target.finish(LIMIT).status.success());
}

#[test]
fn a_process_that_is_injected_while_all_calls_are_traced_is_counted() {
    if !is_there("bpftrace") {
        println!("skipped: bpftrace is not installed");
        return;
    }
    let s = Scratch::new();
    let exe = s.compile("targets/events.c", "events", &[]);
    let mut target = Running::start(s.command(&exe));
    target.wait_for("READY");
    let mut tool = [Tool::start(&s, &["bpftrace".into(), "/usr/sbin/syscount.bt".into()], &[])];
    all_attached(&s, &mut tool);
    // The second time the agent is there already, and the thread may have its calls dispatched.
    for _ in 0..2 {
        let mut cmd = s.command(bpftime_tests::dist("bin/bpftime-agent"));
        cmd.args(["inject", "--pid", &target.pid().to_string()]);
        let f = Running::start(cmd).finish(LIMIT);
        assert!(f.status.success(), "{f:?}");
    }
    assert_eq!(target.ask("go"), "done");
    tool[0].interrupt();
    let output = tool[0].output();
    assert!(output.contains("@syscall[110]: 500\n"), "{output}");
    assert!(target.finish(LIMIT).status.success());
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
    let mut tool = [Tool::start(&s, &["bpftrace".into(), "-e".into(), script], &[])];
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
    tool[0].interrupt();
    assert_eq!(bpftool(&s, &["prog", "show"]), "", "nothing lives after its tool");
    assert!(target.finish(LIMIT).status.success());
}
