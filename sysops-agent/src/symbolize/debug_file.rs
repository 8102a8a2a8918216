//! The file with what was stripped from a program: found by the program's build id among the files of the agent's own root,
//! never by what the program says of itself. Reading it is left to `elf_names`.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use object::elf::FileHeader64;
use object::read::elf::{ElfFile64, FileHeader};
use object::{LittleEndian, Object, ReadCache};

use crate::host::files::open_file;
use crate::host::os;

/// A shorter build id tells nothing apart.
const BUILD_ID_BYTES_MIN: usize = 8;
/// The section that names another file.
const LINK: &[u8] = b".gnu_debuglink";

/// The file of the program with this build id below `directory`, if one is there that only root or the agent's own user may
/// write to.
#[must_use]
pub(super) fn find(directory: &Path, build_id: &[u8]) -> Option<File> {
    if build_id.len() < BUILD_ID_BYTES_MIN {
        return None;
    }
    let mut name = String::from(".build-id/");
    for (index, byte) in build_id.iter().enumerate() {
        _ = write!(name, "{byte:02x}{}", if index == 0 { "/" } else { "" });
    }
    let file = open_file(&directory.join(name + ".debug")).ok()?;
    let is_regular = file.metadata().is_ok_and(|about| about.is_file());
    (is_regular && is_owned(&file) && has_build_id(&file, build_id)).then_some(file)
}

/// The file names another file, or it cannot be told whether it does.
#[must_use]
pub(super) fn names_another(file: &File) -> bool {
    has_link(file).unwrap_or(true)
}

/// Only root or the agent's own user may write to it.
#[must_use]
pub(super) fn is_owned(file: &File) -> bool {
    const OTHERS_WRITE: u32 = 0o022;
    file.metadata().is_ok_and(|about| {
        (about.uid() == 0 || about.uid() == os::effective_user()) && about.mode() & OTHERS_WRITE == 0
    })
}

fn has_link(file: &File) -> Result<bool, object::Error> {
    let cache = ReadCache::new(file);
    let header = FileHeader64::<LittleEndian>::parse(&cache)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, &cache)?;
    for section in sections.iter() {
        if sections.section_name(endian, section)? == LINK {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_build_id(file: &File, build_id: &[u8]) -> bool {
    let cache = ReadCache::new(file);
    let parsed = ElfFile64::<LittleEndian, _>::parse(&cache);
    parsed.is_ok_and(|elf| elf.build_id().is_ok_and(|found| found == Some(build_id)))
}
