//! System calls of targets, by every way a program makes them, and the tasks it makes: as the kernel sees them.

use bpftime_tests::{Running, Scratch, kernel_is_oracle};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Counts what each mode of targets/syscalls.c does between its two marks.
const COUNT: &str = r#"
interval:ms:50 { printf("READY\n"); }
tracepoint:raw_syscalls:sys_enter {
  if (args->id == 501) { @on[comm] = 1; }
  if (@on[comm]) { @enter[comm, args->id] = count(); }
  if (args->id == 502) { @on[comm] = 0; }
}
tracepoint:raw_syscalls:sys_exit { if (@on[comm]) { @exit[comm, args->id] = count(); } }
"#;

const READ: i64 = 0;
const MPROTECT: i64 = 10;
const SIGACTION: i64 = 13;
const SIGRETURN: i64 = 15;
const GETPID: i64 = 39;
const FORK: i64 = 57;
const VFORK: i64 = 58;
const EXECVE: i64 = 59;
const EXIT: i64 = 60;
const WAIT4: i64 = 61;
const GETPPID: i64 = 110;
const CLOCK_GETTIME: i64 = 228;
const EXIT_GROUP: i64 = 231;
const CLONE3: i64 = 435;

/// A system call's number, its beginnings and its ends.
type Call = (i64, u64, u64);

/// By mode. What else a mode does depends on the C library's state (memory, lazy loading). One read of `restarted` is left
/// by a jump out of the handler: JUMPED_OUT.
const EXPECTED: &[(&str, &[Call])] = &[
    ("inlined", &[(READ, 100, 100), (GETPPID, 2000, 2000), (CLOCK_GETTIME, 10, 10), (500, 2, 2)]),
    ("generated", &[(MPROTECT, 4, 4), (GETPPID, 1000, 1000), (GETPID, 200, 200)]),
    ("stubs", &[(GETPPID, 801, 801)]),
    ("restarted", &[(READ, 8, 8), (SIGRETURN, 4, 0), (-1, 0, 4), (SIGACTION, 6, 6)]),
    ("masked", &[(SIGRETURN, 20, 0), (14, 3, 3)]),
    ("sigsys", &[(GETPPID, 200, 200), (SIGACTION, 3, 3), (SIGRETURN, 1, 0)]),
    ("threads", &[(GETPPID, 8000, 8000), (CLONE3, 4, 8), (EXIT, 4, 0)]),
    ("cancelled", &[(EXIT, 1, 0)]),
    (
        "children",
        &[
            (FORK, 1, 2),
            (VFORK, 1, 2),
            (CLONE3, 2, 4),
            (56, 1, 2),
            (EXECVE, 4, 1),
            (WAIT4, 5, 5),
            (GETPPID, 20, 20),
            (EXIT_GROUP, 2, 0),
        ],
    ),
    ("raw_threads", &[(CLONE3, 20, 40), (GETPPID, 3000, 3000), (EXIT, 20, 0)]),
    ("closed", &[(3, 1021, 1021), (GETPPID, 200, 200)]),
];

/// The mode and call of which the kernel reports one end more than we do: a handler's jump out of it leaves nothing behind.
const JUMPED_OUT: (&str, i64) = ("restarted", READ);

/// Modes that are run for what they do, not for what is counted: a filter that kills forbids to ask for more.
const UNCOUNTED: &[&str] = &["filtered"];

type Counts = BTreeMap<(String, String, i64), u64>;

/// A tool on the kernel, with tracefs mounted for it alone where it is not readable.
fn kernel_tool(s: &Scratch, program: &str) -> Command {
    let mut cmd = s.command("unshare");
    let mount = "mount --make-rprivate / && { [ -e /sys/kernel/tracing/events ] || \
                 mount -t tracefs nodev /sys/kernel/tracing; } && exec \"$0\" \"$@\"";
    cmd.args(["-m", "sh", "-c", mount, program]);
    cmd
}

fn started(mut cmd: Command, script: &str) -> Running {
    cmd.args(["-e", script]);
    let mut tool = Running::start(cmd);
    // Shown when everything is attached.
    tool.wait_for("READY");
    tool
}

fn counts(tool: Running) -> Counts {
    tool.signal(libc::SIGINT);
    let f = tool.finish(LIMIT);
    let row = |l: &str| {
        let (key, value) = l.strip_prefix('@')?.split_once("]: ")?;
        let (map, key) = key.split_once('[')?;
        let (comm, nr) = key.split_once(", ")?;
        Some(((map.to_string(), comm.to_string(), nr.parse().ok()?), value.parse().ok()?))
    };
    let counts: Counts = f.stdout.lines().filter_map(row).collect();
    assert!(!counts.is_empty(), "{f:?}");
    counts
}

fn modes() -> Vec<&'static str> {
    EXPECTED.iter().map(|e| e.0).chain(UNCOUNTED.iter().copied()).collect()
}

fn run_mode(mut cmd: Command, mode: &str) {
    cmd.arg(mode);
    let f = Running::start(cmd).finish(LIMIT);
    assert!(f.status.success() && f.stdout == "ok\n", "{mode}: {f:?}");
}

fn check(counts: &Counts, side: &str) {
    let all = EXPECTED.iter().flat_map(|(mode, calls)| calls.iter().map(move |call| (mode, call)));
    for (mode, (nr, enter, exit)) in all {
        let get = |map: &str| counts.get(&(map.into(), mode.to_string(), *nr)).copied().unwrap_or(0);
        let lost = u64::from(side == "bpftime" && (*mode, *nr) == JUMPED_OUT);
        assert_eq!((get("enter"), get("exit")), (*enter, exit - lost), "{side}: {mode}, call {nr}");
    }
}

#[test]
fn calls_by_every_way_are_counted_exactly() {
    let s = Scratch::new();
    let exe = s.compile("targets/syscalls.c", "syscalls", &[]);
    let tool = started(s.tool("bpftrace"), COUNT);
    modes().into_iter().for_each(|mode| run_mode(s.target(&exe), mode));
    check(&counts(tool), "bpftime");
    if kernel_is_oracle() {
        let tool = started(kernel_tool(&s, "bpftrace"), COUNT);
        modes().into_iter().for_each(|mode| run_mode(s.command(&exe), mode));
        check(&counts(tool), "kernel");
    }
}

#[test]
fn a_tool_that_comes_later_sees_generated_code_too() {
    let s = Scratch::new();
    let exe = s.compile("targets/syscalls.c", "syscalls", &[]);
    let start = |mode: &str| {
        let mut cmd = s.target(&exe);
        cmd.args([mode, "wait"]);
        Running::start(cmd)
    };
    let mut targets: Vec<_> =
        ["generated", "threads", "raw_threads", "masked", "closed"].map(|m| (m, start(m))).into();
    std::thread::sleep(Duration::from_millis(300));
    let tool = started(s.tool("bpftrace"), COUNT);
    for (mode, target) in &mut targets {
        target.say("");
        assert_eq!(target.line(), "ok", "{mode}");
    }
    let counts = counts(tool);
    let of = |mode: &str| counts.get(&("enter".into(), mode.into(), GETPPID)).copied();
    assert_eq!(of("generated"), Some(1000));
    assert_eq!(of("threads"), Some(8000));
    assert_eq!(of("raw_threads"), Some(3000));
    assert_eq!(of("closed"), Some(200));
    for (mode, target) in targets {
        assert!(target.finish(LIMIT).status.success(), "{mode}");
    }
}

/// The answers are the kernel's, which tells of everybody's programs: not asked here, since other tests may have some.
#[test]
fn the_programs_of_an_event_are_told_as_by_the_kernel() {
    let expected = "none 0 count 0 ids 00\none 0 count 1 ids 10\nby the other event 0 count 1 ids 10\n\
                    two 0 count 2 ids 11\ntwo without room 0 count 2 ids 00\n\
                    two with room for one 28 count 2 ids 10\ntoo much room 7 count -1 ids 00\n\
                    a clock 22 count -1 ids 00\nwild 14\nmodify 22\n";
    let s = Scratch::new();
    let exe = s.compile("tools/events.c", "events", &["-w"]);
    let mut cmd = s.tool(&exe);
    cmd.arg("query");
    assert_eq!(Running::start(cmd).finish(LIMIT).stdout, expected);
}

/// Forks, new programs and ends of `sh -c 'true; /bin/true & wait; exit 3'` under this script.
const TASKS: &str = r#"
interval:ms:50 { printf("READY\n"); }
tracepoint:sched:sched_process_fork /comm == "tasks"/ { @fork[str(args->parent_comm), args->parent_pid == tid] = count(); }
tracepoint:sched:sched_process_exec /comm == "tasks" || comm == "true"/ { @exec[str(args->filename), args->pid == pid] = count(); }
tracepoint:sched:sched_process_exit /comm == "tasks" || comm == "true"/ {
  @exit[args->comm, args->pid == tid, args->prio, args->group_dead] = count();
}
"#;

#[test]
fn tasks_come_and_go_as_in_the_kernel() {
    let s = Scratch::new();
    let shell = s.path("tasks");
    std::fs::copy("/bin/bash", &shell).expect("a shell of that name");
    let run = |mut cmd: Command| {
        cmd.args(["-c", "/bin/true; (exit 5); echo $?; /bin/true & wait; exit 3"]);
        let f = Running::start(cmd).finish(LIMIT);
        assert_eq!((f.status.code(), f.stdout.as_str()), (Some(3), "5\n"), "{f:?}");
    };
    let rows = |tool: Running| {
        tool.signal(libc::SIGINT);
        let f = tool.finish(LIMIT);
        let mut rows: Vec<_> = f.stdout.lines().filter(|l| l.starts_with('@')).map(str::to_owned).collect();
        rows.sort();
        assert!(!rows.is_empty(), "{f:?}");
        rows
    };
    let tool = started(s.tool("bpftrace"), TASKS);
    run(s.target(&shell));
    let ours = rows(tool);
    let name = shell.display();
    // SAFETY: takes no pointer; 0 is this process.
    let prio = 120 + unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let expected = [
        "@exec[/bin/true, 1]: 2".to_string(),
        format!("@exec[{name}, 1]: 1"),
        format!("@exit[tasks, 1, {prio}, 1]: 2"),
        format!("@exit[true, 1, {prio}, 1]: 2"),
        "@fork[tasks, 1]: 3".to_string(),
    ];
    assert_eq!(ours, expected);
    if kernel_is_oracle() {
        let tool = started(kernel_tool(&s, "bpftrace"), TASKS);
        run(s.command(&shell));
        assert_eq!(rows(tool), expected, "the kernel");
    }
}

/// Everything a program does, seen; what it says, unchanged.
const EVERYTHING: &str = r#"
interval:ms:50 { printf("READY\n"); }
tracepoint:raw_syscalls:sys_enter { @enter[comm, args->id] = count(); }
tracepoint:raw_syscalls:sys_exit { @exit[comm, args->id] = count(); }
"#;

/// Output and status of a program with and without the agent, under a full trace.
fn same_under_trace(s: &Scratch, program: &str, args: &[&str]) {
    let run = |mut cmd: Command| {
        cmd.args(args);
        let f = Running::start(cmd).finish(LIMIT);
        (f.stdout, f.stderr, f.status)
    };
    let plain = run(s.command(program));
    assert!(plain.2.success(), "{program} itself: {plain:?}");
    assert_eq!(run(s.target(program)), plain, "{program}");
}

fn installed(program: &str) {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain([Path::new("/usr/sbin").into()])
        .any(|d| d.join(program).exists());
    assert!(found, "{program} is not installed: scripts/test installs what the tests need");
}

#[test]
fn shells_and_interpreters_do_their_work_under_a_full_trace() {
    for program in ["bash", "python3", "sqlite3"] {
        installed(program);
    }
    let s = Scratch::new();
    let tool = started(s.tool("bpftrace"), EVERYTHING);
    let script = "for i in $(seq 20); do x=$(echo $i | tr 0-9 a-j); [ $((i % 7)) = 0 ] && (echo $x; exit 3); done; \
                  trap 'echo caught' USR1; kill -USR1 $$; cat <<< done | sort | uniq -c; sleep 0.05 & wait; \
                  printf '%s\\n' /etc/pass*d | head -1";
    same_under_trace(&s, "bash", &["-c", script]);
    let script = "import subprocess, threading, signal, os, time, tempfile\n\
        t = [threading.Thread(target=lambda: time.sleep(0.01)) for _ in range(8)]\n\
        [x.start() for x in t]; [x.join() for x in t]\n\
        signal.signal(signal.SIGALRM, lambda *a: print('alarm'))\n\
        signal.setitimer(signal.ITIMER_REAL, 0.02); time.sleep(0.1)\n\
        print(subprocess.run(['sh', '-c', 'echo out; exit 4'], capture_output=True))\n\
        with tempfile.TemporaryFile() as f: f.write(b'x' * 100000); print(f.tell())\n\
        p = os.fork()\n\
        if p == 0: os._exit(9)\n\
        print(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]), time.process_time() > 0)\n\
        import ctypes; print(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 5)())\n";
    same_under_trace(&s, "python3", &["-c", script]);
    let database = s.path("db");
    let sql = "pragma journal_mode=wal; create table t(x); \
               with recursive c(n) as (select 1 union all select n + 1 from c where n < 5000) insert into t select n from c; \
               select count(*), sum(x) from t; pragma wal_checkpoint; pragma integrity_check;";
    let fresh = "rm -f \"$0\"*; exec sqlite3 \"$0\" \"$1\"";
    same_under_trace(&s, "sh", &["-c", fresh, database.to_str().expect("path"), sql]);
    let counts = counts(tool);
    let total = |comm: &str| {
        counts.iter().filter(|(k, _)| k.0 == "enter" && k.1 == comm).map(|(_, n)| n).sum::<u64>()
    };
    for comm in ["bash", "python3", "sqlite3", "sort"] {
        assert!(total(comm) > 20, "{comm}: {counts:?}");
    }
}

/// A port that nobody uses.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    listener.local_addr().expect("address").port()
}

/// Waits until somebody listens.
fn listening(port: u16) {
    for _ in 0..200 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("nobody listens on {port}");
}

fn get(port: u16, path: &str) -> String {
    use std::io::{Read, Write};
    let mut c = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connect");
    write!(c, "GET {path} HTTP/1.0\r\n\r\n").expect("request");
    let mut text = String::new();
    c.read_to_string(&mut text).expect("answer");
    text
}

#[test]
fn a_web_server_serves_under_a_full_trace() {
    installed("nginx");
    let s = Scratch::new();
    let dir = s.path("www");
    std::fs::create_dir_all(&dir).expect("directory");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&dir, open).expect("mode");
    let body = "x".repeat(300_000);
    std::fs::write(dir.join("a.txt"), &body).expect("file");
    let port = free_port();
    let d = dir.display();
    let config = format!(
        "daemon off; worker_processes 2; pid {d}/pid; error_log {d}/error; events {{ worker_connections 64; }} \
         http {{ access_log {d}/access; client_body_temp_path {d}; proxy_temp_path {d}; fastcgi_temp_path {d}; \
         uwsgi_temp_path {d}; scgi_temp_path {d}; sendfile on; \
         server {{ listen 127.0.0.1:{port}; root {d}; location /deny {{ return 403; }} }} }}"
    );
    std::fs::write(dir.join("conf"), format!("user root; {config}")).expect("configuration");
    let tool = started(s.tool("bpftrace"), EVERYTHING);
    let mut cmd = s.target("/usr/sbin/nginx");
    cmd.arg("-c").arg(dir.join("conf")).arg("-p").arg(&dir);
    let server = Running::start(cmd);
    listening(port);
    for _ in 0..50 {
        let answer = get(port, "/a.txt");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&body));
    }
    assert!(get(port, "/nothing").starts_with("HTTP/1.1 404"));
    assert!(get(port, "/deny").starts_with("HTTP/1.1 403"));
    // New workers, then an orderly end.
    server.signal(libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(500));
    assert!(get(port, "/a.txt").ends_with(&body));
    server.signal(libc::SIGQUIT);
    let f = server.finish(LIMIT);
    assert!(f.status.success(), "{f:?}");
    let counts = counts(tool);
    let sendfile = counts.get(&("enter".into(), "nginx".into(), 40)).copied().unwrap_or(0);
    assert!(sendfile >= 51, "{counts:?}");
}

#[test]
fn a_tls_client_talks_under_a_full_trace() {
    installed("openssl");
    let s = Scratch::new();
    let (key, cert) = (s.path("key"), s.path("cert"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-keyout",
        ])
        .args([&key, Path::new("-out"), &cert])
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{made:?}");
    let port = free_port();
    let mut cmd = s.command("openssl");
    cmd.args(["s_server", "-quiet", "-rev", "-accept", &format!("127.0.0.1:{port}"), "-key"]).arg(&key);
    cmd.arg("-cert").arg(&cert);
    let server = Running::start(cmd);
    listening(port);
    let tool = started(s.tool("bpftrace"), EVERYTHING);
    let talk = |mut cmd: Command| {
        cmd.args(["s_client", "-quiet", "-verify_quiet", "-CAfile"]).arg(&cert);
        cmd.args(["-verify_return_error", "-connect", &format!("127.0.0.1:{port}")]);
        let mut client = Running::start(cmd);
        let mut lines = vec![];
        for word in ["abc", "hello there"] {
            client.say(word);
            lines.push(client.line());
        }
        client.say("CLOSE");
        (lines, client.finish(LIMIT).status.code())
    };
    let plain = talk(s.command("openssl"));
    assert_eq!(plain.0, ["cba", "ereht olleh"]);
    assert_eq!(talk(s.target("openssl")), plain);
    server.signal(libc::SIGTERM);
    server.finish(LIMIT);
    let counts = counts(tool);
    assert!(counts.contains_key(&("exit".into(), "openssl".into(), 42)), "connect: {counts:?}");
}

#[test]
fn exitsnoop_tells_how_tasks_ended() {
    let program = "/usr/sbin/exitsnoop";
    assert!(
        Path::new(program).exists(),
        "{program} is not installed: scripts/test installs what the tests need"
    );
    let s = Scratch::new();
    let rows = |tool: Command, mut target: Command| {
        let tool = Running::start(tool);
        // It says nothing when it is ready.
        std::thread::sleep(Duration::from_millis(2500));
        target.args(["-c", "(exit 3); /bin/true; exit 4"]);
        assert_eq!(Running::start(target).finish(LIMIT).status.code(), Some(4));
        std::thread::sleep(Duration::from_millis(300));
        tool.signal(libc::SIGINT);
        let out = tool.finish(LIMIT).stdout;
        let row = |l: &str| {
            let words: Vec<_> = l.split_whitespace().map(str::to_owned).collect();
            let own = words.first().is_some_and(|w| w == "snooped" || w == "true");
            own.then(|| (words[0].clone(), words[1] == words[3], words[5..].join(" ")))
        };
        let mut rows: Vec<_> = out.lines().filter_map(row).collect();
        rows.sort();
        rows
    };
    let shell = s.path("snooped");
    std::fs::copy("/bin/bash", &shell).expect("a shell of that name");
    let ours = rows(s.tool(program), s.target(&shell));
    let row = |comm: &str, code: &str| (comm.to_string(), true, code.to_string());
    assert_eq!(ours, [row("snooped", "code 3"), row("snooped", "code 4"), row("true", "0")]);
    if kernel_is_oracle() {
        let mut kernel = rows(kernel_tool(&s, program), s.command(&shell));
        // Others on this machine end programs of that name as well.
        kernel.retain(|r| r.0 == "snooped");
        assert_eq!(kernel, ours[..2], "the kernel");
    }
}
