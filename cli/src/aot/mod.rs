//! Programs compiled ahead of time: `bpftime compile`. The file that it writes is [`bpftime_vm::aot`]'s; what reads it is
//! `bpftime-load` (`cli/loader/`).

pub(crate) mod compile;
mod emit;
