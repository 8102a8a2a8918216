//! The kernel's types, as far as aya has to be shown them. Which they are is told by `btf`.

use aya::{Btf, Endianness};

use super::refusal::{no_such, refused};
use crate::kernel::ladder::Refusal;

/// What aya looks a number up by.
#[derive(Clone, Copy)]
pub(super) enum BtfName<'a> {
    /// The function of that name.
    Function(&'a str),
    /// The typedef `btf_trace_<name>`.
    Tracepoint(&'a str),
}

/// A BTF in which only the type with the number `id` means anything. aya asks nothing else of it, and to read the
/// kernel's whole BTF into aya's types costs tens of megabytes.
pub(super) fn types_up_to(name: BtfName<'_>, id: u32) -> Result<Btf, Refusal> {
    let (text, kind) = match name {
        BtfName::Function(name) => (name.to_owned(), 12 << 24),
        BtfName::Tracepoint(name) => (format!("btf_trace_{name}"), 8 << 24),
    };
    let strings = format!("\0{text}\0");
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let pointer_to_nothing = words(&[0, 2 << 24, 0]);
    let types_len = id.checked_mul(12).ok_or_else(|| no_such("type", &text))?;
    let strings_len = u32::try_from(strings.len()).map_err(|error| refused("BTF", &error))?;
    let mut data = Vec::with_capacity(24 + types_len as usize + strings.len());
    data.extend(words(&[0x0001_eb9f, 24, 0, types_len, types_len, strings_len]));
    // There are a hundred thousand of them, at each program that is attached.
    data.extend(pointer_to_nothing.repeat(id.saturating_sub(1) as usize));
    data.extend(words(&[1, kind, 0]));
    data.extend(strings.as_bytes());
    Btf::parse(&data, Endianness::default()).map_err(|error| refused("BTF", &error))
}
