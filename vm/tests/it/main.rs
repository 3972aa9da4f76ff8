//! Programs on every engine: interpreter, compiler and, where the machine allows it, the kernel.
//! One binary, because linking the compiler dominates the build.

mod alu;
mod atomics;
mod calls;
mod engines;
mod hash_maps;
mod images;
mod intrinsics;
mod jumps;
mod kernel;
mod load_errors;
mod loads;
mod loops;
mod plugin;
mod random;
mod scans;
mod tables;
