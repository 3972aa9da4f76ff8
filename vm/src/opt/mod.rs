//! What the compiler knows about a program before it translates it: analyses of the decoded ops, pure and
//! without Cranelift.
//!
//! * [`values`]: which constants and addresses registers hold before each op.
//! * [`needs`]: which words of the context the program reads.
//!
//! Everything here is optional knowledge: an analysis that cannot tell says so, and the translation of the
//! op by itself is always correct. The results hold for every run of a program that the verifier accepts,
//! on whatever path.
#![forbid(unsafe_code)]

pub(crate) mod cells;
pub(crate) mod hammock;
pub(crate) mod inline;
pub(crate) mod intrinsic;
pub(crate) mod loops;
pub(crate) mod needs;
pub(crate) mod scan;
pub(crate) mod summary;
pub(crate) mod tree;
pub(crate) mod values;
