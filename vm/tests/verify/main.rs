//! The verifier against the kernel's: same programs, same maps, same verdict and the same words.

mod corpus;
mod differential;
mod env;
mod fuzz;
mod generate;
mod guarded;
mod kernel;
mod machine;
mod programs;
mod twins;
