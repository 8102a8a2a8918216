//! Embeds the BPF objects that lie in `SYSOPS_BPF_DIR`, else in `target/bpf` of the workspace. It never builds them: that is
//! `cargo xtask build-ebpf`. Where there are none the agent is built without, and every probe says so.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[expect(clippy::disallowed_methods, reason = "a build script reads its own surroundings")]
fn main() {
    println!("cargo::rerun-if-env-changed=SYSOPS_BPF_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let ours = manifest.join("../target/bpf");
    let directory = env::var("SYSOPS_BPF_DIR").map_or(ours, PathBuf::from);
    // Watched even while it is empty: a directory that does not exist would make cargo run this every time.
    if fs::create_dir_all(&directory).is_ok() {
        println!("cargo::rerun-if-changed={}", directory.display());
    }
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    fs::write(out.join("objects.rs"), list(&directory)).expect("cargo's own directory can be written");
}

/// `static OBJECTS: &[(&str, &[u8])]`, each aligned as an ELF file must be.
#[expect(clippy::disallowed_methods, reason = "a build script reads its own surroundings")]
fn list(directory: &Path) -> String {
    let entries = fs::read_dir(directory).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut objects: Vec<PathBuf> = entries.unwrap_or_else(|error| {
        println!("cargo::warning={}: {error}: the agent is built without probes", directory.display());
        Vec::new()
    });
    objects.retain(|path| path.extension().is_some_and(|extension| extension == "o"));
    objects.sort();
    let mut text =
        String::from("/// The objects, by the names of their probes.\nstatic OBJECTS: &[(&str, &[u8])] = &[\n");
    for path in objects {
        let path = fs::canonicalize(&path).unwrap_or(path);
        let name = path.file_stem().expect("a name that ends in .o").to_string_lossy();
        writeln!(text, "    ({name:?}, ::aya::include_bytes_aligned!({path:?})),").expect("text grows");
        println!("cargo::rerun-if-changed={}", path.display());
    }
    text + "];\n"
}
