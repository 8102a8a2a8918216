//! Stands in for `elf_names` in a build without the feature `ebpf`, in which nothing captures stacks.

use super::{Named, Trust};
use crate::model::Image;

/// Knows none.
///
/// # Errors
/// Always.
pub(super) fn names(_image: &Image, _offsets: &[u64], _trust: Trust) -> Result<Vec<Vec<Named>>, String> {
    Err("built without the feature ebpf".into())
}
