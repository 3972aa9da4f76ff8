//! The input makes the decisions of the program generator: compiled code of what is accepted does what the
//! interpreter does, and touches nothing but its own memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| {
    bpftime_vm_fuzz::fuzz::jit(script);
});
