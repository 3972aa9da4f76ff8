//! A thread borrowed while it is blocked in a system call goes on as though nothing had happened.

mod inject_support;

use inject_support::{Dir, Target};

/// Blocks the target in a call, injects twice (the second time the library is there), lets it end.
fn injected_while_in(call: &str, mode: &str, input: &[u8]) {
    let dir = Dir::new();
    let (program, agent) = (dir.target("inject_blocked"), dir.agent(mode));
    let mut target = Target::start(&program, &[call]);
    target.await_state("S");
    std::thread::sleep(std::time::Duration::from_millis(100));
    let first = dir.inject(target.pid(), &agent).unwrap();
    let second = dir.inject(target.pid(), &agent).unwrap();
    assert!(!first.already() && second.already());
    assert_eq!(dir.starts(), 2);
    assert_eq!(target.tracer(), "0");
    if !input.is_empty() {
        target.write(input);
    }
    assert_eq!(target.finish(), "ok\n");
    println!("{call}: injected in {:?}, again in {:?}", first.elapsed, second.elapsed);
}

macro_rules! cases {
    ($($name:ident: $call:literal $mode:literal $input:literal;)*) => {
        $(#[test] fn $name() { injected_while_in($call, $mode, $input) })*
    };
}

cases! {
    read_gets_its_byte: "read" "PLAIN" b"x";
    epoll_wait_gets_its_event: "epoll_wait" "PLAIN" b"x";
    epoll_wait_times_out: "epoll_timeout" "PLAIN" b"";
    nanosleep_sleeps_its_time: "nanosleep" "PLAIN" b"";
    clock_nanosleep_sleeps_its_time: "clock_nanosleep" "PLAIN" b"";
    poll_times_out: "poll" "PLAIN" b"";
    ppoll_keeps_the_signal_mask: "ppoll" "PLAIN" b"";
    select_times_out: "select" "PLAIN" b"";
    futex_times_out: "futex" "PLAIN" b"";
    sigtimedwait_times_out: "sigtimedwait" "PLAIN" b"";
    semtimedop_times_out: "semtimedop" "PLAIN" b"";
    recv_with_timeout_times_out: "recv" "PLAIN" b"";
    wait4_reaps_its_child: "wait4" "PLAIN" b"";
    read_survives_an_agent_that_sleeps: "read" "NAP" b"x";
}
