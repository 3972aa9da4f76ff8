//! eBPF instruction set: bytes -> instructions -> (verified) -> native image.
//!
//! Rules that a change in this crate must respect:
//!
//! * It knows no shared memory, no processes and no kernel objects. Maps are indices, helpers are numbers;
//!   the loader says which exist ([`LoadEnv`]), the linker says where they are ([`Resolve`]).
//! * A fact of the instruction set is a row in [`isa`]; what an operation means at its edges is defined once,
//!   in [`alu`]. Interpreter and compiler agree on r0, memory and fuel, and a test runs every row on both.
//! * No input panics: not bytecode in [`mod@decode`], not bytes in [`image`]. These, `isa`, `alu` and the program
//!   itself forbid unsafe code.
//! * Without the `jit` feature nothing of the compiler is linked: that is what the agent carries into foreign
//!   processes. [`ImageRef::parse`] and [`ImageRef::link`] do not allocate.
//! * What generated code and helpers assume about each other is in [`contract`] and only there. A change of it,
//!   or of the image layout, bumps [`image::VERSION`].
//! * A compiled program always ends: every back-edge and local call burns fuel. It never reads stack that
//!   it did not write or that was not cleared.
//! * [`verify`](mod@verify) judges values and paths; its rules are at the top of that module. Only a
//!   [`Verified`](verify::Verified) program is compiled; the one way around is unsafe and says what it asks for.
//! * Messages of [`LoadError`] are read by tools (bpftrace, libbpf); keep the kernel's wording.

pub mod alu;
pub mod aot;
pub mod asm;
pub mod contract;
pub mod decode;
pub mod disasm;
#[cfg(feature = "jit")]
pub mod exec;
pub mod image;
pub mod interp;
pub mod isa;
#[cfg(feature = "jit")]
pub mod jit;
#[cfg(feature = "jit")]
mod opt;
mod program;
mod unchecked;
pub mod verify;

pub use contract::{BpfFn, RunHeader};
pub use decode::{DecodeOptions, Dialect, LoadEnv, LoadError, UnknownHelpers, decode, decode_with};
pub use image::{CpuFeatures, Image, ImageError, ImageRef, LinkError, Resolve};
pub use interp::{Host, Trap};
pub use isa::{Insn, MapIdx};
#[cfg(feature = "jit")]
pub use jit::{
    ArrayLayout, CompileError, HashLayout, MapLayout, ObjectCode, Options, compile, compile_object,
};
pub use program::{Func, Program, StackUse};
