//! Names of addresses in an ELF file, from its symbols and its DWARF: the sole import of blazesym.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolizer};

use super::{Named, Trust, debug_file};
use crate::host::os;
use crate::model::Image;

/// Where distributions put what they strip from programs.
pub(super) const DEBUG_FILES: &str = "/usr/lib/debug";
/// The largest file of another user that is copied to be read, and when all files are read to their depths.
const COPY_BYTES_MAX: u64 = 256 << 20;
const COPY_BYTES_MAX_ALL: u64 = 1 << 30;

/// The functions at each of `offsets`, innermost first; none where none is known. What was stripped from the file is looked
/// for below `debug_files`, by build id.
///
/// # Errors
/// Says why the file cannot be read.
pub(super) fn names(
    image: &Image,
    offsets: &[u64],
    trust: Trust,
    debug_files: &Path,
) -> Result<Vec<Vec<Named>>, String> {
    let owned = debug_file::is_owned(&image.file);
    let stripped = image.build_id.as_ref().filter(|_| owned || trust == Trust::All);
    let debug = stripped.and_then(|id| debug_file::find(debug_files, id));
    // A debug file that is broken is as good as none: the file's own names are left.
    let mut found = debug.and_then(|debug| in_file(&debug, offsets, true).ok()).unwrap_or_default();
    if found.len() == offsets.len() && found.iter().all(|functions| !functions.is_empty()) {
        return Ok(found);
    }
    let own = if owned { in_file(&image.file, offsets, true)? } else { in_file_of_another(image, offsets, trust)? };
    found.resize_with(offsets.len(), Vec::new);
    for (functions, own) in found.iter_mut().zip(own) {
        if functions.is_empty() {
            *functions = own;
        }
    }
    Ok(found)
}

/// The file is mapped into memory to be read: who cuts it off in the meantime would end the agent, and who writes to it would
/// show a link that was not there before. So a copy is read.
fn in_file_of_another(image: &Image, offsets: &[u64], trust: Trust) -> Result<Vec<Vec<Named>>, String> {
    let length = image.file.metadata().map_err(|error| error.to_string())?.len();
    let most = if trust == Trust::All { COPY_BYTES_MAX_ALL } else { COPY_BYTES_MAX };
    if length <= most {
        let copy = os::copy_to_memory(&image.file, length).map_err(|error| format!("it cannot be copied: {error}"))?;
        in_file(&copy, offsets, trust == Trust::All)
    } else if trust == Trust::All {
        in_file(&image.file, offsets, false)
    } else {
        Err(format!("{length} bytes of another user's: not read"))
    }
}

/// What one file has itself: all that it has, or its plain table of functions only.
fn in_file(file: &File, offsets: &[u64], all: bool) -> Result<Vec<Vec<Named>>, String> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // What reads DWARF follows the file's link to another first, wherever it leads and whatever is there.
    let all = all && !debug_file::names_another(file);
    let source = Source::Elf(Elf { debug_syms: all, ..Elf::new(path) });
    // Made anew each time: what it keeps of a file is larger than all names that are asked for.
    let symbolizer = Symbolizer::builder().enable_code_info(all).enable_inlined_fns(all).build();
    let found = symbolizer.symbolize(&source, Input::VirtOffset(offsets)).map_err(|error| format!("{error:#}"))?;
    Ok(found.iter().map(|found| found.as_sym().map(functions).unwrap_or_default()).collect())
}

fn functions(found: &Sym<'_>) -> Vec<Named> {
    let named = |function: &str, code: Option<&CodeInfo<'_>>| Named {
        function: function.to_owned(),
        file: code.map(|code| code.to_path().to_string_lossy().into_owned()),
        line: code.and_then(|code| code.line).filter(|line| *line > 0),
    };
    let mut functions: Vec<Named> =
        found.inlined.iter().rev().map(|inlined| named(&inlined.name, inlined.code_info.as_ref())).collect();
    functions.push(named(&found.name, found.code_info.as_deref()));
    functions
}
