//! The process that the kernel kills for the bench: it waits for a byte, then takes memory until its cgroup has no more.

use std::io::Read;

use anyhow::{Result, bail};

/// The hidden command by which the bench starts itself as a victim.
pub(crate) const COMMAND: &str = "bench-victim";

/// Takes memory, 1 MiB at a time, up to 1 GiB: then the limit did not hold.
pub(crate) fn main() -> Result<()> {
    let mut byte = [0];
    std::io::stdin().read_exact(&mut byte)?;
    let mut taken = Vec::new();
    for _ in 0..1024 {
        taken.push(vec![byte[0] | 1; 1 << 20]);
    }
    bail!("took {} MiB and still lives", taken.len());
}
