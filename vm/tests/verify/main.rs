//! The verifier against the kernel's: same programs, same maps, same verdict and the same words.

mod corpus;
mod env;
mod kernel;
