//! What helpers answer: progs/helpers.bpf.c, an ordinary libbpf program, against the answers of the kernel.

use bpftime_tests::{Finished, Running, Scratch, dist, kernel_is_oracle, root};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// The tool and its object file.
fn built(s: &Scratch) -> (std::path::PathBuf, std::path::PathBuf) {
    let flags = ["-Wl,--no-as-needed", "-lbpf"];
    (s.compile("tools/helpers.c", "helpers", &flags), s.compile_bpf("progs/helpers.bpf.c"))
}

fn run(mut cmd: Command, object: &std::path::Path, programs: &[&str]) -> Finished {
    cmd.arg(object).args(programs);
    let f = Running::start(cmd).finish(LIMIT);
    assert!(f.status.success(), "{f:?}");
    f
}

/// Without the padding of texts.
fn lines(text: &str) -> Vec<String> {
    text.lines().map(|l| l.trim_end().to_string()).collect()
}

#[test]
fn helpers_answer_as_the_kernels() {
    let s = Scratch::new();
    let (tool, object) = built(&s);
    let golden = root().join("tests/kernel-golden/helpers");
    let recorded = lines(&std::fs::read_to_string(&golden).expect("recorded answers"));
    let mut programs: Vec<&str> = recorded.iter().filter_map(|l| l.split(' ').next()).collect();
    programs.dedup();
    let ours = lines(&run(s.tool(&tool), &object, &programs).stdout);
    for (ours, recorded) in ours.iter().zip(&recorded) {
        assert_eq!(ours, recorded, "recorded from the kernel in {}", golden.display());
    }
    assert_eq!(ours.len(), recorded.len());
}

#[test]
fn a_process_is_told_the_same_of_itself_as_by_the_kernel() {
    let s = Scratch::new();
    let (tool, object) = built(&s);
    let ours = lines(&run(s.tool(&tool), &object, &["identity"]).stdout);
    // Ids of its own namespace are its own, those of another are refused.
    assert_eq!(ours[..4].join(","), "identity 0 0,identity 1 1,identity 2 -22,identity 3 0");
    if kernel_is_oracle() {
        assert_eq!(ours, lines(&run(s.command(&tool), &object, &["identity"]).stdout));
    }
}

#[test]
fn what_programs_print_comes_out_of_trace_pipe() {
    let s = Scratch::new();
    let (tool, object) = built(&s);
    let mut cmd = s.tool(&tool);
    cmd.arg("--wait").arg(&object).arg("prints");
    let mut running = Running::start(cmd);
    running.wait_for("prints signals");
    let mut pipe = s.command(dist("bin/bpftime"));
    pipe.args(["trace-pipe", "--dump"]);
    let printed = Running::start(pipe).finish(LIMIT);
    let texts: Vec<_> = printed.stdout.split_inclusive('\n').collect();
    let wanted = [
        "hello\n",
        "\n",
        "four 1 2 3 word\n",
        "hello\n",
        "\n",
        "one 1\n",
        "-5 word 1000000000000000\n",
        "1 2 3 4 5\n",
    ];
    let text = |l: &&str| l.split_once("bpf_trace_printk: ").map_or(l.to_string(), |(_, t)| t.to_string());
    assert_eq!(texts.iter().map(text).collect::<Vec<_>>(), wanted, "{printed:?}");
    let first: Vec<&str> = texts[0].split_whitespace().collect();
    assert_eq!(first[0], format!("helpers-{}", running.pid()));
    assert!(first[1].starts_with('[') && first[1].len() == 5, "{first:?}");
    assert!(first[3].ends_with(':') && first[3].contains('.'), "{first:?}");
    assert!(running.finish(LIMIT).status.success());
}

#[test]
fn a_tool_that_opens_trace_pipe_reads_what_its_programs_print() {
    let s = Scratch::new();
    let (tool, object) = built(&s);
    let mut cmd = s.tool(&tool);
    cmd.arg("--pipe").arg(&object).arg("prints");
    let f = Running::start(cmd).finish(LIMIT);
    assert!(f.stdout.contains("bpf_trace_printk: -5 word 1000000000000000\n"), "{f:?}");
    assert!(f.stdout.ends_with("bpf_trace_printk: 1 2 3 4 5\n"), "{f:?}");
}

#[test]
fn elements_are_visited_once_on_every_kind_of_map_also_when_callbacks_change_it() {
    let s = Scratch::new();
    let tool = s.compile("tools/helpers.c", "helpers", &["-Wl,--no-as-needed", "-lbpf"]);
    let object = s.compile_bpf("progs/each.bpf.c");
    let golden = root().join("tests/kernel-golden/each");
    let recorded = lines(&std::fs::read_to_string(&golden).expect("recorded answers"));
    let ours = lines(&run(s.tool(&tool), &object, &[]).stdout);
    assert_eq!(ours, recorded, "recorded from the kernel in {}", golden.display());
    if kernel_is_oracle() {
        assert_eq!(ours, lines(&run(s.command(&tool), &object, &[]).stdout));
    }
}

#[test]
fn a_record_that_an_ended_run_held_does_not_stall_the_consumer() {
    let s = Scratch::new();
    let (tool, object) = built(&s);
    let mut cmd = s.tool(&tool);
    cmd.arg("--ring").arg(&object).args(["exhausting", "after"]);
    let f = Running::start(cmd).finish(LIMIT);
    assert!(f.stdout.ends_with("record 2\nconsumed 1\n"), "{f:?}");
}
