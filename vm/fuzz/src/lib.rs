//! What the fuzz targets do, which is what the tests of bpftime-vm do in `cargo test` (tests/verify/twins.rs): the
//! same files. An input that a fuzzer finds becomes a test there.

#[path = "../../tests/verify/env.rs"]
pub mod env;
#[path = "../../tests/verify/fuzz.rs"]
pub mod fuzz;
#[path = "../../tests/verify/generate.rs"]
pub mod generate;
#[path = "../../tests/verify/guarded.rs"]
pub mod guarded;
#[path = "../../tests/verify/machine.rs"]
pub mod machine;
