//! The agent's binary: arguments in, exit status out.

fn main() {}
