//! Bytecode and images come from files and from other processes: no bytes may make the loader panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bpftime_vm_fuzz::fuzz::decode(bytes));
