//! What the running kernel wants of the maps in an object.

use std::borrow::Cow;

use object::{Object as _, ObjectSection as _};

use super::super::ladder::Refusal;
use super::refusal::{no_such, refused};

/// Since this kernel hash maps of all programs may take memory as they fill.
const MAY_GROW: (u64, u64) = (6, 1);

/// A map in the section `maps` (`struct bpf_map_def`): type, size of key and of value, entries, flags, id, pinning.
const DEFINITION: usize = 28;
const FLAGS: usize = 16;
/// `BPF_MAP_TYPE_HASH` (include/uapi/linux/bpf.h).
const HASH: u32 = 1;
/// `BPF_F_NO_PREALLOC`, the same.
const NO_PREALLOC: u32 = 1;

/// `object` as the kernel takes it without a word. Before 6.1 it warns, and stops where `panic_on_warn` is set, when a program on a
/// tracepoint or a probe has a hash map that takes memory as it fills (kernel/bpf/verifier.c, `check_map_prog_compatibility`).
///
/// # Errors
/// When it is no ELF file, or has no such section.
pub(super) fn for_kernel(object: &[u8], kernel: Option<(u64, u64)>) -> Result<Cow<'_, [u8]>, Refusal> {
    if kernel.is_some_and(|kernel| kernel >= MAY_GROW) {
        return Ok(Cow::Borrowed(object));
    }
    let parsed = object::File::parse(object).map_err(|error| refused("load", &error))?;
    let range = parsed.section_by_name("maps").and_then(|section| section.file_range());
    let place = range.and_then(|(start, size)| Some(usize::try_from(start).ok()?..usize::try_from(start + size).ok()?));
    let mut object = object.to_vec();
    let maps = place.and_then(|place| object.get_mut(place)).ok_or_else(|| no_such("section", "maps"))?;
    for map in maps.chunks_exact_mut(DEFINITION) {
        let number = |at: usize| u32::from_ne_bytes([map[at], map[at + 1], map[at + 2], map[at + 3]]);
        if number(0) == HASH {
            let flags = number(FLAGS) & !NO_PREALLOC;
            map[FLAGS..FLAGS + 4].copy_from_slice(&flags.to_ne_bytes());
        }
    }
    Ok(Cow::Owned(object))
}

#[cfg(test)]
mod tests {
    use aya_obj::Object;

    use super::*;
    use crate::kernel::loader::OBJECTS;

    #[test]
    fn before_6_1_no_hash_map_takes_memory_as_it_fills() {
        let mut growing = 0;
        for (name, bytes) in OBJECTS {
            let flags = |bytes: &[u8]| {
                let maps = Object::parse(bytes).expect("it loads").maps;
                let hashes = maps.values().filter(|map| map.map_type() == HASH);
                hashes.filter(|map| map.map_flags() & NO_PREALLOC != 0).count()
            };
            growing += flags(bytes);
            for kernel in [None, Some((5, 10)), Some((6, 0))] {
                assert_eq!(flags(&for_kernel(bytes, kernel).expect("an ELF file")), 0, "{name}");
            }
            assert_eq!(&*for_kernel(bytes, Some((6, 1))).expect("an ELF file"), *bytes, "{name}");
        }
        assert!(growing > 0 || OBJECTS.is_empty(), "nothing was shown");
    }
}
