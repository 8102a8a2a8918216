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
    let words = |info: u32, name: u32| [name, info, 0].into_iter().flat_map(u32::to_ne_bytes);
    let pointer = 2 << 24;
    let types_len = id.checked_mul(12).ok_or_else(|| no_such("type", &text))?;
    let strings_len = u32::try_from(strings.len()).map_err(|error| refused("BTF", &error))?;
    let mut data = Vec::with_capacity(24 + types_len as usize + strings.len());
    for word in [0x0001_eb9f, 24, 0, types_len, types_len, strings_len] {
        data.extend(u32::to_ne_bytes(word));
    }
    for _ in 1..id {
        data.extend(words(pointer, 0));
    }
    data.extend(words(kind, 1));
    data.extend(strings.as_bytes());
    Btf::parse(&data, Endianness::default()).map_err(|error| refused("BTF", &error))
}
