//! The input makes the decisions of the program generator: the verifier judges each program without a panic, and
//! what it accepts makes no bad access in an interpreter that checks all of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| bpftime_vm_fuzz::fuzz::verify(script));
