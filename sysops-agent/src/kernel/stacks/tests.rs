//! Rules of programs whose code is known, and of such as are no programs any more.
#![expect(clippy::disallowed_methods, reason = "a test compiles programs and reads them")]

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use object::{Object, ObjectSymbol};
use proptest::prelude::*;
use sysops_common::stack::{COPY_MAX, Copied, FRAMES_MAX, Rule, Walk, way};

use super::elf::{Elf, Section};
use super::images::Images;
use super::space::{Access, End, Space};
use super::table::{Context, Said, Table};
use crate::host::{Host, Roots};

const SOURCE: &str = "\
#include <fcntl.h>
#include <signal.h>
__attribute__((noinline)) int leaf(int n) { return open(\"/dev/null\", n); }
__attribute__((noinline)) int caller(int n) { volatile char room[240]; room[0] = n; return leaf(n) + room[0]; }
static void on_signal(int n) { caller(n); }
int main(int n, char **words) { signal(SIGUSR1, on_signal); return caller(n); }
";

/// A static program: signal trampoline and start are its own.
fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (source, program) = (directory.path().join("a.c"), directory.path().join("a"));
        std::fs::write(&source, SOURCE).expect("the temporary directory is writable");
        let flags = ["-O1", "-static", "-fomit-frame-pointer"];
        let built = Command::new("cc").args(flags).arg(&source).arg("-o").arg(&program).status().expect("cc");
        assert!(built.success());
        std::fs::read(&program).expect("it was compiled")
    })
}

fn elf(data: &[u8]) -> Result<Elf, String> {
    let file = tempfile::tempfile().expect("a temporary file");
    std::io::Write::write_all(&mut &file, data).expect("it is writable");
    Elf::read(&file)
}

fn say(table: &Table, address: u64) -> Said {
    table.say(address, &mut Context::new())
}

fn address(name: &str) -> (u64, u64) {
    let file = object::File::parse(program()).expect("an ELF file");
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).expect("it has that function");
    (symbol.address(), symbol.size())
}

const fn rule(ways: u32, sp: i32, ra: i32, bp: i32) -> Said {
    Said::Rule(Rule { ways, sp, ra, bp })
}

#[cfg(target_arch = "x86_64")]
#[test]
fn rules_are_those_of_the_code() {
    let mut with_index = elf(program()).expect("a program");
    let mut without = elf(program()).expect("a program");
    without.index = None;
    for table in [Table::new(&mut with_index), Table::new(&mut without)] {
        let table = table.expect("it has tables");
        let at = |name: &str, plus: u64| say(&table, address(name).0 + plus);
        // Before its first instruction a function has nothing on the stack but where it returns to.
        assert_eq!(at("caller", 0), rule(way::BP_SAME, 8, -8, 0));
        let (start, size) = address("caller");
        let inner = (start..start + size).filter_map(|address| match say(&table, address) {
            Said::Rule(rule) => Some(rule.sp),
            _ => None,
        });
        assert!(inner.max().is_some_and(|most| most > 240), "its room is reckoned with");
        // What a signal interrupted is in the frame of the signal (struct ucontext on x86_64).
        let expected = rule(way::SP_IN_MEMORY | way::RA_FROM_SP | way::BP_FROM_SP | way::SIGNAL, 160, 168, 120);
        assert_eq!(at("__restore_rt", 0), expected);
        let last = say(&table, address("_start").0);
        assert!(matches!(last, Said::Rule(Rule { ways: way::LAST, .. })), "{last:?}");
        assert_eq!(say(&table, 1), Said::Nothing);
    }
}

/// Expressions of entries that are written by hand: `frames` is one CIE and one FDE for 0x1000 to 0x2000.
fn by_hand(instructions: &[u8]) -> Said {
    let mut frames = Vec::new();
    let mut entry = |body: &[u8]| {
        let length = body.len().next_multiple_of(4);
        frames.extend(u32::try_from(length).expect("short").to_le_bytes());
        frames.extend(body);
        frames.resize(frames.len() + length - body.len(), 0);
    };
    // Version 1, augmentation "", factors 1 and -8, return address in register 16; CFA = r7 + 8, r16 at CFA - 8.
    entry(&[0, 0, 0, 0, 1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1]);
    let mut fde = Vec::new();
    // From this field back to the CIE.
    fde.extend(24_u32.to_le_bytes());
    fde.extend(0x1000_u64.to_le_bytes());
    fde.extend(0x1000_u64.to_le_bytes());
    fde.extend(instructions);
    entry(&fde);
    let mut elf = Elf { frames: Some(Section { address: 0, data: frames }), ..Elf::default() };
    say(&Table::new(&mut elf).expect("it has a table"), 0x1800)
}

#[cfg(target_arch = "x86_64")]
#[test]
fn expressions_are_followed_as_far_as_the_kernel_can() {
    assert_eq!(by_hand(&[]), rule(way::BP_SAME, 8, -8, 0));
    // CFA = r6 + 16, r6 at CFA - 16: frame pointers.
    assert_eq!(by_hand(&[0x0c, 6, 16, 0x86, 2]), rule(way::SP_FROM_BP, 16, -8, -16));
    // CFA = *(r6 - 8): a stack that was aligned anew; r6 at r6 + 0.
    let aligned = by_hand(&[0x0f, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0]);
    assert_eq!(aligned, rule(way::SP_FROM_BP | way::SP_IN_MEMORY | way::BP_FROM_BP, -8, -8, 0));
    // CFA = r10: a register that is not kept; **r7; a division by zero; a jump onto itself.
    for too_much in [
        &[0x0c, 10, 0][..],
        &[0x0f, 4, 0x77, 0, 0x06, 0x06],
        &[0x0f, 3, 0x31, 0x30, 0x1b],
        &[0x0f, 3, 0x2f, 0xfd, 0xff],
    ] {
        assert_eq!(by_hand(too_much), Said::TooMuch, "{too_much:?}");
    }
}

/// A stack that was copied at `base`, with these words from there on.
fn copied(words: &[u64], walk: &Walk) -> Box<Copied> {
    let mut bytes = [0; COPY_MAX];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    Box::new(Copied { walk: *walk, bytes })
}

fn walk(ip: u64, sp: u64, bp: u64, copied: u32) -> Walk {
    Walk {
        reference: 0,
        monotonic_ns: 0,
        start_boottime_ns: 0,
        identity: 1,
        epoch: 0,
        tgid: 1,
        tid: 1,
        frames: 0,
        ips: [0; FRAMES_MAX],
        ip,
        sp,
        bp,
        lr: 0,
        base: sp,
        copied,
        first: 1,
    }
}

/// A process whose only code it made itself: by frame pointers.
fn with_own_code(test: impl FnOnce(&mut Space, &mut Access<'_>)) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir_all(directory.path().join("proc/1")).expect("it is writable");
    std::fs::write(directory.path().join("proc/1/maps"), "1000-9000 r-xp 00000000 00:00 0 \n").expect("it is writable");
    let host = Host::fixture(directory.path());
    let mut space = Space::read(&host, 1, 1, 1).expect("it has code");
    let (mut images, mut context) = (Images::default(), Context::new());
    test(&mut space, &mut Access { host: &host, pid: 1, images: &mut images, context: &mut context, complete: true });
}

#[test]
fn frame_pointers_are_followed_to_their_end() {
    with_own_code(|space, access| {
        let words = [0, 0, 0x8030, 0x2000, 0, 0, 0, 0x3000];
        let followed = space.follow(&copied(&words, &walk(0x1000, 0x8000, 0x8010, 64)), 64, access);
        assert_eq!((followed.ips, followed.end), (vec![0x1000, 0x2000, 0x3000], End::Reached));
        assert_eq!(followed.made.len(), 3);
    });
}

#[test]
fn a_stack_that_leads_nowhere_ends_there() {
    with_own_code(|space, access| {
        let words = [0, 0, 0x8030, 0xdead_0000];
        access.complete = false;
        let followed = space.follow(&copied(&words, &walk(0x1000, 0x8000, 0x8010, 64)), 64, access);
        assert_eq!((followed.ips, followed.end), (vec![0x1000], End::Strange));
        access.complete = true;
        let followed = space.follow(&copied(&words, &walk(0x1000, 0x8000, 0x8010, 64)), 64, access);
        assert_eq!((followed.ips, followed.end), (vec![0x1000], End::Reached));
    });
}

/// A process with a library whose file is `path` in its root, as maps tell it with that number.
fn with_library(inode: u64, prepare: impl FnOnce(&Path), test: impl FnOnce(&Host, &mut Space, &mut Access<'_>)) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |path: &str| directory.path().join(path);
    std::fs::create_dir_all(at("proc/1/root/lib")).expect("it is writable");
    std::fs::create_dir_all(at("lib")).expect("it is writable");
    prepare(directory.path());
    let device = std::os::unix::fs::MetadataExt::dev(&directory.path().metadata().expect("it is there"));
    let device = format!("{:02x}:{:02x}", rustix::fs::major(device), rustix::fs::minor(device));
    let maps = format!("400000-401000 r-xp 00001000 {device} {inode} /lib/x.so\n1000-9000 r-xp 0 00:00 0 \n");
    std::fs::write(at("proc/1/maps"), maps).expect("it is writable");
    std::fs::write(at("proc/1/mountinfo"), "").expect("it is writable");
    let host = Host::fixture(directory.path());
    let mut space = Space::read(&host, 1, 1, 1).expect("it has code");
    let (mut images, mut context) = (Images::default(), Context::new());
    test(
        &host,
        &mut space,
        &mut Access { host: &host, pid: 1, images: &mut images, context: &mut context, complete: true },
    );
}

#[test]
fn a_file_that_was_replaced_makes_no_stack() {
    let put = |root: &Path| std::fs::write(root.join("proc/1/root/lib/x.so"), program()).expect("it is writable");
    with_library(1, put, |_, space, access| {
        let followed = space.follow(&copied(&[], &walk(0x40_0010, 0x8000, 0x8010, 0)), 64, access);
        assert_eq!(followed.end, End::Reached, "the kernel need not hand it over again");
        assert!(space.places(&followed.ips, access).is_err(), "it would stand for all its callers");
    });
}

#[test]
fn a_file_is_found_below_the_roots_of_the_process_and_of_the_agent() {
    for place in ["proc/1/root/lib/x.so", "lib/x.so"] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let library = directory.path().join("x.so");
        std::fs::write(&library, program()).expect("it is writable");
        let inode = std::os::unix::fs::MetadataExt::ino(&library.metadata().expect("it is there"));
        let put = |root: &Path| {
            std::fs::create_dir_all(root.join("proc/self")).expect("it is writable");
            std::fs::write(root.join("proc/self/mountinfo"), "").expect("it is writable");
            std::fs::hard_link(&library, root.join(place)).expect("one file system");
        };
        with_library(inode, put, |_, space, access| {
            let places = space.places(&[0x40_0010], access).expect("it can be read");
            assert!(places[0].loaded.is_some(), "{place}");
        });
    }
}

#[test]
fn what_is_no_file_or_behind_a_link_is_not_opened() {
    use rustix::fs::inotify;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pipe = directory.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("coreutils");
    assert!(made.success());
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).expect("inotify");
    inotify::add_watch(&watch, &pipe, inotify::WatchFlags::OPEN).expect("it is there");
    let inode = std::os::unix::fs::MetadataExt::ino(&pipe.metadata().expect("it is there"));
    let put = |root: &Path| std::fs::hard_link(&pipe, root.join("proc/1/root/lib/x.so")).expect("one file system");
    with_library(inode, put, |_, space, access| assert!(space.places(&[0x40_0010], access).is_err()));
    let mut events = [std::mem::MaybeUninit::uninit(); 256];
    let mut reader = inotify::Reader::new(&watch, &mut events);
    let opened = reader.next();
    assert!(matches!(opened, Err(rustix::io::Errno::AGAIN)), "{opened:?}");
    // A link that was put in the place of a directory.
    let library = directory.path().join("x.so");
    std::fs::write(&library, program()).expect("it is writable");
    let inode = std::os::unix::fs::MetadataExt::ino(&library.metadata().expect("it is there"));
    let put = |root: &Path| {
        std::fs::remove_dir(root.join("proc/1/root/lib")).expect("it is empty");
        std::os::unix::fs::symlink(directory.path(), root.join("proc/1/root/lib")).expect("it is writable");
    };
    with_library(inode, put, |_, space, access| assert!(space.places(&[0x40_0010], access).is_err()));
}

#[test]
fn functions_are_found_by_the_file_alone() {
    let file = tempfile::tempfile().expect("a temporary file");
    std::io::Write::write_all(&mut &file, program()).expect("it is writable");
    let found = super::functions(&file, &["caller", "no_such_function", "leaf"]).expect("a program");
    let expected = |name: &str| {
        let elf = object::File::parse(program()).expect("an ELF file");
        let text = Object::section_by_name(&elf, ".text").expect("it has code");
        let (start, _) = object::ObjectSection::file_range(&text).expect("it is in the file");
        Some(address(name).0 - object::ObjectSection::address(&text) + start)
    };
    assert_eq!(found, [expected("caller"), None, expected("leaf")]);
    let none = tempfile::tempfile().expect("a temporary file");
    assert!(super::functions(&none, &["caller"]).is_err());
}

#[test]
fn a_stack_that_was_not_copied_whole_is_cut() {
    with_own_code(|space, access| {
        let words = [0, 0, 0x8030, 0x2000];
        let followed = space.follow(&copied(&words, &walk(0x1000, 0x8000, 0x8010, 32)), 64, access);
        assert_eq!(followed.end, End::Cut);
        assert_eq!(followed.made.len(), 2, "the next capture comes further");
    });
}

#[test]
fn a_stack_that_leads_back_to_itself_ends() {
    with_own_code(|space, access| {
        let words = [0, 0, 0x8010, 0x1008];
        let followed = space.follow(&copied(&words, &walk(0x1000, 0x8000, 0x8010, 64)), 64, access);
        assert_eq!((followed.ips, followed.end), (vec![0x1000, 0x1008], End::Reached));
    });
}

#[test]
fn the_process_itself_has_code_and_files() {
    let host = Host::live(&Roots::default());
    let pid = std::process::id();
    let mut space = Space::read(&host, pid, 1, 1).expect("it runs");
    assert!(space.look(&host, pid), "no code went away");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    let own = std::env::current_exe().expect("a test has a path");
    let code = maps.lines().find(|line| line.contains("r-xp") && line.ends_with(&own.display().to_string()));
    let start = code.and_then(|line| line.split_once('-')).expect("it has code").0;
    let start = u64::from_str_radix(start, 16).expect("hexadecimal");
    let (mut images, mut context) = (Images::default(), Context::new());
    let mut access = Access { host: &host, pid, images: &mut images, context: &mut context, complete: true };
    let places = space.places(&[start + 64, 7], &mut access).expect("its files can be read");
    let loaded = places[0].loaded.as_ref().expect("it is a file");
    assert_eq!(Path::new(&loaded.image.path), own);
    assert_eq!(Some(places[0].offset), loaded.elf.code.first().map(|code| (code.address & !0xfff) + 64));
    assert!(places[1].loaded.is_none() && places[1].offset == 6, "no code is there");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn mangled_tables_are_no_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..60), header in prop::collection::vec((0..24_usize, any::<u8>()), 0..4)) {
        let mut elf = elf(program()).expect("a program");
        let code = elf.code[0];
        for section in [&mut elf.frames, &mut elf.index].into_iter().flatten() {
            for (at, value) in &flips {
                let at = at.index(section.data.len());
                section.data[at] = *value;
            }
            for (at, value) in &header {
                section.data[*at] = *value;
            }
        }
        if let Some(table) = Table::new(&mut elf) {
            let mut context = Context::new();
            for step in 0..256 {
                let _ = table.say(code.address + step * code.length / 256, &mut context);
            }
        }
    }

    #[test]
    fn any_stack_ends(words in prop::collection::vec(prop_oneof![0x8000..0x8400_u64, 0x1000..0x9000_u64, any::<u64>()], 128), bp: u64, near in 0x8000..0x8400_u64, length: u32, frames: u32) {
        for bp in [bp, near] {
            with_own_code(|space, access| {
                let walk = Walk { frames, ..walk(0x1000, 0x8000, bp, length) };
                let followed = space.follow(&copied(&words, &walk), 64, access);
                assert!(followed.ips.len() <= FRAMES_MAX);
            });
        }
    }
}
