//! Stands in for `elf_names` in a build without the feature `ebpf`, in which nothing captures stacks.

use std::path::Path;

use super::{Named, Trust};
use crate::model::Image;

/// Nothing is looked for.
pub(super) const DEBUG_FILES: &str = "";

/// Knows none.
///
/// # Errors
/// Always.
pub(super) fn names(
    _image: &Image,
    _offsets: &[u64],
    _trust: Trust,
    _debug_files: &Path,
) -> Result<Vec<Vec<Named>>, String> {
    Err("built without the feature ebpf".into())
}
