//! How the library reaches the target: by path, as a memory file, and what is said when it does not.

mod inject_support;

use std::fs;
use std::process::Command;

use bpftime_agent::inject::{InjectError, Options, Route, inject};
use inject_support::{Dir, Target, is_root};

#[test]
fn a_visible_library_is_loaded_by_its_path() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent("PLAIN"));
    let mut target = Target::start(&program, &["read"]);
    assert_eq!(dir.inject(target.pid(), &agent).unwrap().route, Route::Path);
    let maps = fs::read_to_string(format!("/proc/{}/maps", target.pid())).unwrap();
    assert!(maps.contains("libinject_plain.so"));
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
}

#[test]
fn nothing_but_the_library_stays_in_the_target() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent("PLAIN"));
    let mut target = Target::start(&program, &["read"]);
    dir.inject(target.pid(), &agent).unwrap();
    let mapped = |pid: i32| fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let fds = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let (maps, open) = (mapped(target.pid()), fds(target.pid()));
    dir.inject(target.pid(), &agent).unwrap();
    assert_eq!(mapped(target.pid()), maps);
    assert_eq!(fds(target.pid()), open);
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
}

#[test]
fn a_library_hidden_by_a_mount_namespace_travels_as_a_memory_file() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent("PLAIN"));
    let hidden = dir.path("hidden");
    fs::create_dir(&hidden).unwrap();
    let library = hidden.join("libhidden.so");
    fs::copy(agent, &library).unwrap();
    let script = "mount -t tmpfs none \"$1\" && exec \"$2\" read";
    let flags = if is_root() { "-m" } else { "-rm" };
    let mut cmd = Command::new("unshare");
    cmd.args([flags, "sh", "-c", script, "sh"]).arg(&hidden).arg(&program);
    if !Command::new("unshare").args([flags, "true"]).status().is_ok_and(|s| s.success()) {
        println!("skipped: this machine gives no mount namespace to an ordinary user");
        return;
    }
    let mut target = Target::spawn(&mut cmd);
    assert_eq!(dir.inject(target.pid(), &library).unwrap().route, Route::Memfd);
    assert_eq!(dir.inject(target.pid(), &library).unwrap().route, Route::AlreadyLoaded);
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
    assert_eq!(dir.starts(), 2);
}

#[test]
fn a_library_in_a_directory_closed_to_the_target_travels_as_a_memory_file() {
    if !is_root() {
        println!("skipped: needs root to run a target as another user");
        return;
    }
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent("PLAIN"));
    let closed = dir.path("closed");
    fs::create_dir(&closed).unwrap();
    let library = closed.join("libclosed.so");
    fs::copy(agent, &library).unwrap();
    Command::new("chmod").arg("700").arg(&closed).status().unwrap();
    Command::new("chmod").arg("777").arg(&dir.0).status().unwrap();
    let mut cmd = Command::new("setpriv");
    cmd.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg("read");
    let mut target = Target::spawn(&mut cmd);
    assert_eq!(dir.inject(target.pid(), &library).unwrap().route, Route::Memfd);
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
}

#[test]
fn an_agent_whose_file_was_replaced_is_started_from_memory() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent("PLAIN"));
    let library = dir.path("libbpftime-agent.so");
    fs::copy(&agent, &library).unwrap();
    let mut target = Target::start(&program, &["read"]);
    dir.inject(target.pid(), &library).unwrap();
    fs::remove_file(&library).unwrap();
    fs::copy(&agent, &library).unwrap();
    assert!(dir.inject(target.pid(), &library).unwrap().already());
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
    assert_eq!(dir.starts(), 2);
}

#[test]
fn a_musl_program_is_injected_with_a_musl_agent() {
    let dir = Dir::new();
    let Some(program) = dir.cc("musl-gcc", "inject_spin.c", "musl_spin", &[]) else {
        println!("skipped: no musl-gcc");
        return;
    };
    let agent = dir.agent_with("musl-gcc", "PLAIN", &[]).unwrap();
    for threads in ["1", "4"] {
        let target = Target::start(&program, &[threads]);
        for _ in 0..5 {
            dir.inject(target.pid(), &agent).unwrap();
        }
        assert_eq!(target.finish(), "ok\n");
    }
}

#[test]
fn a_library_without_the_entry_is_refused_before_the_target_is_touched() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent_with("gcc", "PLAIN", &["-DNO_ENTRY"]));
    let mut target = Target::start(&program, &["read"]);
    let e = dir.inject(target.pid(), &agent.unwrap()).unwrap_err();
    assert!(e.to_string().contains("bpftime_agent_start"), "{e}");
    assert_eq!(e.exit_code(), 7);
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
}

#[test]
fn a_library_that_the_target_cannot_link_gives_the_loaders_words() {
    let dir = Dir::new();
    let program = dir.target("inject_blocked");
    let stub = dir.cc("gcc", "inject_agent.c", "libgone.so", &["-shared", "-fPIC", "-DMODE=PLAIN"]).unwrap();
    let here = format!("-L{}", dir.0.display());
    let agent = dir.agent_with("gcc", "PLAIN", &["-Wl,--no-as-needed", &here, "-lgone"]).unwrap();
    fs::remove_file(stub).unwrap();
    let mut target = Target::start(&program, &["read"]);
    let e = dir.inject(target.pid(), &agent).unwrap_err();
    assert!(matches!(&e, InjectError::Dlopen { message } if message.contains("libgone.so")), "{e}");
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
}

#[test]
fn an_agent_that_refuses_to_start_says_why() {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent("REFUSE"));
    let mut target = Target::start(&program, &["read"]);
    let e = dir.inject(target.pid(), &agent).unwrap_err();
    assert!(e.to_string().contains("Permission denied"), "{e}");
    assert_eq!((e.errno(), e.exit_code()), (libc::EACCES, 9));
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
}

#[test]
fn a_missing_library_is_named() {
    let dir = Dir::new();
    let mut target = Target::start(&dir.target("inject_blocked"), &["read"]);
    let opts = Options { library: Some("/nonexistent/lib.so".into()), ..Options::default() };
    let e = inject(target.pid(), &opts).unwrap_err();
    assert!(e.to_string().contains("/nonexistent/lib.so"), "{e}");
    assert_eq!((e.errno(), e.exit_code()), (libc::ENOENT, 7));
    target.write(b"x");
    assert_eq!(target.finish(), "ok\n");
}
