//! Takes out of an ELF file what unwinding needs: where its segments belong, its build id, its unwind tables. The file
//! may be anything: every size is held against a bound before memory is taken. Reading the tables is left to `table`.

use std::fs::File;

use object::elf::{
    FileHeader64, PF_X, PT_LOAD, ProgramHeader64, SHN_UNDEF, SHT_DYNSYM, SHT_NOBITS, SHT_SYMTAB, STT_FUNC, Sym64,
};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym};
use object::{LittleEndian, ReadCache, ReadRef, SectionIndex};

/// Most bytes that one table of a file may have: the largest unwind tables, those of browsers, have 30 MB.
const PART_BYTES_MAX: u64 = 48 << 20;
/// Segments that a file may have; files in use have about a dozen.
const SEGMENTS_MAX: usize = 256;
/// A GNU build id has 20 bytes, and never more than a hash has.
const BUILD_ID_BYTES_MAX: usize = 64;

type Header = FileHeader64<LittleEndian>;

/// What is needed of a file.
#[derive(Debug, Default)]
pub(super) struct Elf {
    /// Executable segments: place in the file, length there, address.
    pub code: Vec<Code>,
    /// GNU build id.
    pub build_id: Option<Box<[u8]>>,
    /// `.eh_frame`.
    pub frames: Option<Section>,
    /// `.eh_frame_hdr`, the index to it.
    pub index: Option<Section>,
    /// Address of `.text`, which some tables count from.
    pub text: u64,
    /// Go's compiler made it: no unwind tables, but frame pointers everywhere.
    pub go: bool,
}

/// An executable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length there.
    pub length: u64,
    /// The address of its beginning, as the file has it.
    pub address: u64,
}

/// A section that was read.
#[derive(Debug)]
pub(super) struct Section {
    /// Its address, as the file has it.
    pub address: u64,
    /// Its content.
    pub data: Vec<u8>,
}

impl Elf {
    /// Reads the file.
    ///
    /// # Errors
    /// Says why it is no ELF file of this machine, or what is wrong with it.
    pub(super) fn read(file: &File) -> Result<Self, String> {
        let cache = ReadCache::new(file);
        parse(Bounded(&cache))
    }

    /// The address, as the file has it, of what lies at `offset` of it.
    #[must_use]
    pub(super) fn address(&self, offset: u64) -> Option<u64> {
        // Mappings begin at pages, segments where they like.
        let holds = |code: &&Code| {
            let start = code.offset & !0xfff;
            offset >= start && offset < code.offset.saturating_add(code.length)
        };
        let code = self.code.iter().find(holds)?;
        Some(code.address.wrapping_add(offset).wrapping_sub(code.offset))
    }

    /// Where in the file the code at an address lies.
    #[must_use]
    fn offset(&self, address: u64) -> Option<u64> {
        let within = |code: &Code| address.checked_sub(code.address).filter(|within| *within < code.length);
        self.code.iter().find_map(|code| code.offset.checked_add(within(code)?))
    }
}

/// Where in the file the functions `names` begin, each where it has that one. Only the file itself is asked, no other that it
/// names.
///
/// # Errors
/// Says why it is no ELF file of this machine, or what is wrong with it.
pub(in crate::kernel) fn functions(file: &File, names: &[&str]) -> Result<Vec<Option<u64>>, String> {
    let cache = ReadCache::new(file);
    let data = Bounded(&cache);
    let text = |error: object::Error| error.to_string();
    let segments = parse(data)?;
    let header = Header::parse(data).map_err(text)?;
    let endian = header.endian().map_err(text)?;
    let sections = header.sections(endian, data).map_err(text)?;
    let mut found = vec![None; names.len()];
    for kind in [SHT_DYNSYM, SHT_SYMTAB] {
        for section in sections.iter().filter(|section| section.sh_type(endian) == kind) {
            let Ok(symbols) = section.data_as_array::<Sym64<LittleEndian>, _>(endian, data) else { continue };
            let strings = sections.section(SectionIndex(section.sh_link(endian) as usize));
            let Ok(strings) = strings.and_then(|strings| strings.data(endian, data)) else { continue };
            for symbol in symbols {
                let is_here = symbol.st_type() == STT_FUNC && symbol.st_shndx(endian) != SHN_UNDEF;
                let Some(name) = strings.get(symbol.st_name(endian) as usize..).filter(|_| is_here) else { continue };
                let named =
                    |wanted: &&str| name.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0));
                if let Some(index) = names.iter().position(named).filter(|&index| found[index].is_none()) {
                    found[index] = segments.offset(symbol.st_value(endian));
                }
            }
        }
    }
    Ok(found)
}

/// The part of a file that is read at once is bounded, whatever its headers say.
#[derive(Clone, Copy)]
struct Bounded<R>(R);

impl<'a, R: ReadRef<'a>> ReadRef<'a> for Bounded<R> {
    fn len(self) -> Result<u64, ()> {
        self.0.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        if size > PART_BYTES_MAX { Err(()) } else { self.0.read_bytes_at(offset, size) }
    }

    fn read_bytes_at_until(self, range: std::ops::Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        self.0.read_bytes_at_until(range, delimiter)
    }
}

fn parse<'a>(data: impl ReadRef<'a>) -> Result<Elf, String> {
    let text = |error: object::Error| error.to_string();
    let header = Header::parse(data).map_err(text)?;
    let endian = header.endian().map_err(text)?;
    let machine = if cfg!(target_arch = "aarch64") { object::elf::EM_AARCH64 } else { object::elf::EM_X86_64 };
    if header.e_machine.get(endian) != machine {
        return Err("it is of another machine".into());
    }
    let mut found = Elf::default();
    for segment in header.program_headers(endian, data).map_err(text)?.iter().take(SEGMENTS_MAX) {
        segment_into(segment, endian, data, &mut found);
    }
    if found.code.is_empty() {
        return Err("it has no code".into());
    }
    // Without sections there are no tables, but the code is still known by its place.
    if let Ok(sections) = header.sections(endian, data) {
        sections_into(&sections, endian, data, &mut found);
    }
    Ok(found)
}

fn segment_into<'a>(
    segment: &ProgramHeader64<LittleEndian>,
    endian: LittleEndian,
    data: impl ReadRef<'a>,
    found: &mut Elf,
) {
    if segment.p_type(endian) == PT_LOAD && segment.p_flags(endian) & PF_X != 0 {
        found.code.push(Code {
            offset: segment.p_offset(endian),
            length: segment.p_filesz(endian),
            address: segment.p_vaddr(endian),
        });
    }
    let Ok(Some(mut notes)) = segment.notes(endian, data) else { return };
    for _ in 0..SEGMENTS_MAX {
        let Ok(Some(note)) = notes.next() else { return };
        let is_id = note.name() == object::elf::ELF_NOTE_GNU && note.n_type(endian) == object::elf::NT_GNU_BUILD_ID;
        if is_id && note.desc().len() <= BUILD_ID_BYTES_MAX {
            found.build_id = Some(note.desc().into());
        }
    }
}

fn sections_into<'a, R: ReadRef<'a>>(
    sections: &SectionTable<'a, Header, R>,
    endian: LittleEndian,
    data: R,
    found: &mut Elf,
) {
    let take = |name: &[u8]| {
        let (_, section) = sections.section_by_name(endian, name)?;
        if section.sh_type(endian) == SHT_NOBITS {
            return None;
        }
        let bytes = section.data(endian, data).ok().filter(|bytes| !bytes.is_empty())?;
        Some(Section { address: section.sh_addr(endian), data: bytes.to_vec() })
    };
    found.frames = take(b".eh_frame");
    found.index = take(b".eh_frame_hdr");
    found.text = sections.section_by_name(endian, b".text").map_or(0, |(_, section)| section.sh_addr(endian));
    found.go = sections.section_by_name(endian, b".gopclntab").is_some()
        || sections.section_by_name(endian, b".go.buildinfo").is_some();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The beginning of this very program, with its headers.
    fn own() -> Vec<u8> {
        let mut head = vec![0; 200_000];
        let file = crate::host::files::open_file("/proc/self/exe".as_ref()).expect("a test is a program");
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0).expect("programs are larger");
        head
    }

    #[test]
    fn a_program_has_code_and_tables() {
        let file = crate::host::files::open_file("/proc/self/exe".as_ref()).expect("a test is a program");
        let found = Elf::read(&file).expect("it is of this machine");
        let code = found.code[0];
        assert_eq!(found.address(code.offset), Some(code.address));
        assert_eq!(found.address(code.offset + code.length), None);
        assert!(found.frames.is_some() && found.index.is_some() && !found.go);
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for data in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01", &[0; 4096]] {
            assert!(parse(data).is_err());
        }
        let mut other = own();
        other[18] = 0x28;
        assert_eq!(parse(&other[..]).err().as_deref(), Some("it is of another machine"));
    }

    #[test]
    fn a_part_that_is_too_large_is_not_read() {
        // A sparse file: the whole would take more memory than there is.
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(1 << 40).expect("it is sparse");
        let cache = ReadCache::new(&file);
        assert!(Bounded(&cache).read_bytes_at(0, PART_BYTES_MAX + 1).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn mangled_headers_are_no_panic(flips in prop::collection::vec((0..4096_usize, any::<u8>()), 1..20), keep in 0..200_000_usize) {
            let mut data = own();
            data.truncate(keep.max(64));
            for (at, value) in flips {
                let at = at % data.len();
                data[at] = value;
            }
            if let Ok(found) = parse(&data[..]) {
                let _ = found.address(0x1000);
            }
        }
    }
}
