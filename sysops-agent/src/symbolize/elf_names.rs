//! Names of addresses in an ELF file, from its symbols and its DWARF: the sole import of blazesym.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolizer};

use super::{Named, Trust};
use crate::host::os;
use crate::model::Image;

/// The largest file of another user that is copied to be read.
const COPY_BYTES_MAX: u64 = 256 << 20;

/// The functions at each of `offsets`, innermost first; none where none is known.
///
/// # Errors
/// Says why the file cannot be read.
pub(super) fn names(image: &Image, offsets: &[u64], trust: Trust) -> Result<Vec<Vec<Named>>, String> {
    let trusted = trust == Trust::All || is_owned(&image.file);
    // It is mapped into memory: who cuts the file off in the meantime would end the agent.
    let copy = if trusted { None } else { Some(copied(&image.file)?) };
    let file = copy.as_ref().unwrap_or(&image.file);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let source = Source::Elf(Elf { debug_syms: trusted, ..Elf::new(path) });
    // Made anew each time: what it keeps of a file is larger than all names that are asked for.
    let symbolizer = Symbolizer::builder().enable_code_info(trusted).enable_inlined_fns(trusted).build();
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

/// Only root or the agent's own user may write to it.
fn is_owned(file: &File) -> bool {
    const OTHERS_WRITE: u32 = 0o022;
    file.metadata().is_ok_and(|about| {
        (about.uid() == 0 || about.uid() == os::effective_user()) && about.mode() & OTHERS_WRITE == 0
    })
}

fn copied(file: &File) -> Result<File, String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length > COPY_BYTES_MAX {
        return Err(format!("{length} bytes of another user's: not read"));
    }
    os::copy_to_memory(file, length).map_err(|error| format!("it cannot be copied: {error}"))
}
