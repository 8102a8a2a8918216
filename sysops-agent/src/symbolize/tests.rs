//! Programs whose names are known: this one, and small ones in C.
#![expect(clippy::disallowed_methods, reason = "a test compiles programs and reads them")]

use std::path::Path;
use std::process::Command;

use object::{Object, ObjectSymbol};

use super::*;

const SOURCE: &str = "\
static int __attribute__((noinline)) outer(int value);
static inline int __attribute__((always_inline)) inner(int value) {
    return value * value + outer(value);
}
static int __attribute__((noinline)) outer(int value) {
    return value > 0 ? inner(value - 1) + 1 : value;
}
int main(int count, char **words) {
    return outer(count);
}
";

fn compiled(directory: &Path, flags: &[&str]) -> Arc<Image> {
    let source = directory.join("named.c");
    let program = directory.join("named");
    std::fs::write(&source, SOURCE).expect("the temporary directory is writable");
    let built = Command::new("cc").arg(&source).arg("-o").arg(&program).args(flags).status().expect("cc");
    assert!(built.success());
    image(&program)
}

fn image(path: &Path) -> Arc<Image> {
    let file = std::fs::File::open(path).expect("it is there");
    Arc::new(Image { path: path.to_string_lossy().into_owned(), build_id: None, file })
}

/// Address of a function, and of the first call in it that `object` knows nothing of: only its start.
fn address(path: &str, name: &str) -> u64 {
    let data = std::fs::read(path).expect("it is there");
    let file = object::File::parse(&*data).expect("an ELF file");
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).expect("it has that function");
    symbol.address()
}

fn named(symbolizer: &mut Symbolizer, image: &Arc<Image>, offset: u64) -> Vec<Frame> {
    let mut frames = vec![Frame { offset, image: Some(Arc::clone(image)), ..Frame::default() }];
    symbolizer.name([&mut frames]);
    frames
}

#[test]
fn functions_have_names_files_and_lines() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = compiled(directory.path(), &["-g", "-O0"]);
    let offset = address(&image.path, "outer");
    let mut symbolizer = Symbolizer::new(Trust::All);
    for _ in 0..2 {
        let found = named(&mut symbolizer, &image, offset);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].function.as_deref(), Some("outer"));
        assert!(found[0].file.as_deref().is_some_and(|file| file.ends_with("/named.c")), "{found:?}");
        assert_eq!(found[0].line, Some(5));
    }
}

#[test]
fn inlined_functions_are_frames_of_their_own() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = compiled(directory.path(), &["-g", "-O1", "-fno-inline-functions"]);
    let start = address(&image.path, "outer");
    let mut symbolizer = Symbolizer::new(Trust::All);
    let stacks: Vec<Vec<Frame>> = (start..start + 64).map(|offset| named(&mut symbolizer, &image, offset)).collect();
    let names =
        |frames: &Vec<Frame>| frames.iter().map(|frame| frame.function.clone().unwrap_or_default()).collect::<Vec<_>>();
    let nested = stacks.iter().find(|frames| names(frames) == ["inner", "outer"]).expect("it is inlined somewhere");
    assert_eq!((nested[0].line, nested[1].line), (Some(3), Some(6)), "each where it stands in its own function");
}

#[test]
fn without_a_table_of_names_the_offset_remains() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = compiled(directory.path(), &["-s", "-O1"]);
    let frame = Frame { offset: 0x1139, image: Some(image), module: Some("named".into()), ..Frame::default() };
    let mut frames = vec![frame.clone(), Frame { offset: 7, ..Frame::default() }];
    let expected = frames.clone();
    Symbolizer::new(Trust::All).name([&mut frames]);
    assert_eq!(frames, expected);
}

#[test]
fn of_a_file_that_others_may_write_only_functions_are_told() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = compiled(directory.path(), &["-g", "-O0"]);
    let offset = address(&image.path, "outer");
    let owned = named(&mut Symbolizer::new(Trust::Owned), &image, offset);
    assert_eq!(owned[0].line, Some(5));
    std::fs::set_permissions(&image.path, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    let open = named(&mut Symbolizer::new(Trust::Owned), &image, offset);
    assert_eq!((open[0].function.as_deref(), open[0].line), (Some("outer"), None));
}

fn run(program: &str, words: &[&std::ffi::OsStr]) {
    let status = Command::new(program).args(words).status().expect("it comes with cc");
    assert!(status.success(), "{program} {words:?}");
}

/// The build id that the linker was told.
const BUILD_ID: [u8; 20] = [0xab; 20];

/// A program in two files, as distributions ship it: without names, and below `debug` what was stripped.
fn stripped(directory: &Path, debug: &Path) -> Arc<Image> {
    let id: String = BUILD_ID.iter().map(|byte| format!("{byte:02x}")).collect();
    let image = compiled(directory, &["-g", "-O0", &format!("-Wl,--build-id=0x{id}")]);
    let name = debug.join(format!(".build-id/ab/{}.debug", &id[2..]));
    std::fs::create_dir_all(name.parent().expect("it has one")).expect("the temporary directory is writable");
    run("objcopy", &["--only-keep-debug".as_ref(), image.path.as_ref(), name.as_os_str()]);
    run("strip", &[image.path.as_ref()]);
    let image = self::image(Path::new(&image.path));
    Arc::new(Image { build_id: Some(Box::new(BUILD_ID)), ..Arc::into_inner(image).expect("it is new") })
}

#[test]
fn what_was_stripped_is_found_by_the_build_id() {
    let (directory, debug) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("another"));
    let image = stripped(directory.path(), debug.path());
    let file = debug.path().join(format!(".build-id/ab/{}.debug", "ab".repeat(19)));
    let offset = address(&file.to_string_lossy(), "outer");
    let with = |trust| Symbolizer { debug_files: debug.path().to_owned(), ..Symbolizer::new(trust) };
    for trust in [Trust::All, Trust::Owned] {
        let found = named(&mut with(trust), &image, offset);
        assert_eq!((found[0].function.as_deref(), found[0].line), (Some("outer"), Some(5)), "{trust:?}");
    }
    // Of another program, or written by who likes: neither is asked.
    let other = Arc::new(Image { build_id: Some(Box::new([0xcd; 20])), ..image_of(&image) });
    let place = debug.path().join(format!(".build-id/cd/{}.debug", "cd".repeat(19)));
    std::fs::create_dir_all(place.parent().expect("it has one")).expect("it is ours");
    std::fs::copy(&file, &place).expect("it is ours");
    assert_eq!(named(&mut with(Trust::All), &other, offset)[0].function, None);
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("it is ours");
    assert_eq!(named(&mut with(Trust::All), &image, offset)[0].function, None);
    // Nor does what is no file keep anyone waiting.
    std::fs::remove_file(&file).expect("it is ours");
    run("mkfifo", &[file.as_os_str()]);
    assert_eq!(named(&mut with(Trust::All), &image, offset)[0].function, None);
}

fn image_of(image: &Image) -> Image {
    Arc::into_inner(self::image(Path::new(&image.path))).expect("it is new")
}

#[test]
fn a_link_to_another_file_is_not_followed() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = compiled(directory.path(), &["-g", "-O0"]);
    let (pipe, link) = (directory.path().join("pipe"), directory.path().join("link"));
    run("mkfifo", &[pipe.as_os_str()]);
    let mut content = pipe.to_string_lossy().into_owned().into_bytes();
    content.resize((content.len() + 1).next_multiple_of(4) + 4, 0);
    std::fs::write(&link, content).expect("it is ours");
    let section = format!(".gnu_debuglink={}", link.display());
    run("objcopy", &["--add-section".as_ref(), section.as_ref(), image.path.as_ref()]);
    let offset = address(&image.path, "outer");
    for mode in [0o755, 0o777] {
        std::fs::set_permissions(&image.path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
        for trust in [Trust::All, Trust::Owned] {
            let image = self::image(Path::new(&image.path));
            let (done, names) = std::sync::mpsc::channel();
            // Who waits for the other end of the pipe waits for ever.
            std::thread::spawn(move || done.send(named(&mut Symbolizer::new(trust), &image, offset)));
            let found = names.recv_timeout(std::time::Duration::from_secs(30));
            assert_eq!(found.expect("it is not followed")[0].function.as_deref(), Some("outer"), "{mode:o} {trust:?}");
        }
    }
}

#[test]
fn what_is_no_program_names_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("text");
    std::fs::write(&path, "#!/bin/sh\n").expect("the temporary directory is writable");
    for trust in [Trust::All, Trust::Owned] {
        assert_eq!(named(&mut Symbolizer::new(trust), &image(&path), 1)[0].function, None);
    }
}

#[test]
fn endless_names_are_cut() {
    let long = Named { function: "x".repeat(100_000), file: Some("é".repeat(600)), line: None }.bounded();
    assert_eq!((long.function.len(), long.file.map(|file| file.len())), (NAME_BYTES_MAX, Some(NAME_BYTES_MAX)));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(60))]

    #[test]
    fn a_mangled_program_is_no_panic(flips in proptest::collection::vec((0..1_000_000_usize, proptest::prelude::any::<u8>()), 1..200)) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let image = compiled_once(&flips, directory.path());
        let mut frames: Vec<Frame> = (0..64)
            .map(|step| Frame { offset: 0x1000 + step * 8, image: Some(Arc::clone(&image)), ..Frame::default() })
            .collect();
        Symbolizer::new(Trust::All).name([&mut frames]);
    }
}

/// The same program for all cases, each with its own damage.
fn compiled_once(flips: &[(usize, u8)], directory: &Path) -> Arc<Image> {
    static PROGRAM: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::read(&compiled(directory.path(), &["-g", "-O1"]).path).expect("it was compiled")
    });
    let mut data = program.clone();
    for (at, value) in flips {
        let at = at % data.len();
        data[at] = *value;
    }
    let path = directory.join("mangled");
    std::fs::write(&path, data).expect("the temporary directory is writable");
    image(&path)
}
