//! Programs that leak file descriptors, or none, made from a seed together with what is true of them. What the agent says of
//! them is judged by the tests.

mod build;
mod program;
mod spec;

pub use build::{build, missing};
pub use program::Program;
pub use spec::{Build, Language, Spec, clean, compiled, leaking};
