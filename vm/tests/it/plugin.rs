//! The conformance plugin's protocol: arguments, standard input, output, exit status.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use bpftime_vm::asm::assemble;
use zerocopy::IntoBytes;

/// Hex bytes as the suite writes them: two spaces between, and at the end.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}  ")).collect()
}

fn plugin(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bpf-conformance-plugin"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A plugin that refuses its arguments may be gone already.
    let _ = child.stdin.take().unwrap().write_all(format!("{stdin}\n").as_bytes());
    child.wait_with_output().unwrap()
}

fn source(text: &str) -> String {
    hex(assemble(text).unwrap().as_bytes())
}

#[track_caller]
fn prints(args: &[&str], program: &str, expect: &str) {
    let output = plugin(args, &source(program));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), expect);
}

#[test]
fn without_memory_options_come_first() {
    for args in [&[][..], &["--jit"], &["--interp"], &["--interp", "--other"]] {
        prints(args, "mov r0, 0x2a; exit", "2a");
        prints(args, "mov r0, r1; or r0, r2; exit", "0");
    }
}

#[test]
fn memory_is_readable_writable_and_has_its_length_in_r2() {
    for engine in ["--jit", "--interp"] {
        prints(&["aa  bb  ", engine], "ldxh r0, [r1]; exit", "bbaa");
        prints(&["aa  bb  ", engine], "stb [r1+1], 7; ldxb r0, [r1+1]; lsh r0, 8; add r0, r2; exit", "702");
    }
}

#[test]
fn helper_five_returns_its_argument() {
    for engine in ["--jit", "--interp"] {
        prints(&[engine], "mov r1, 9; call 5; exit", "9");
    }
}

#[test]
fn immediates_that_only_the_kernel_refuses_run() {
    prints(&[], "mov r0, 1; lsh r0, 65; exit", "2");
    prints(&[], "mov r0, 1; div r0, 0; exit", "0");
}

#[test]
fn failures_go_to_standard_error_with_an_exit_status() {
    let bad = [
        ("zz", &[][..]),
        ("b7 00", &[]),
        ("", &[]),
        (&source("raw 0x8f 0 0 0 0; exit"), &[]),
        (&source("call 99; exit"), &["--interp"]),
        (&source("mov r0, 0; exit"), &["xyz"]),
        (&source("mov r0, 0; exit"), &["--elf"]),
    ];
    for (stdin, args) in bad {
        let output = plugin(args, stdin);
        assert_eq!(output.status.code(), Some(1), "{stdin}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{stdin}");
    }
}
