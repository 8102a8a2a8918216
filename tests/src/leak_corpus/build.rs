//! Compiles the programs of the corpus, each of its builds once: a program that is there and newer than its source stays.
#![expect(clippy::disallowed_methods, reason = "tests are outside of the agent: they read files and run programs")]

use std::path::{Path, PathBuf};
use std::process::Command;

use super::spec::{Build, Language};
use crate::require;

/// What is missing to make them.
#[must_use]
pub fn missing() -> Option<String> {
    require::programs(&["cc", "rustc", "python3"])
}

/// The command line of a program of this build, without its arguments. What is compiled lies in `dir`.
///
/// # Panics
/// When the compiler refuses, with what it said.
#[must_use]
pub fn build(build: &Build, dir: &Path) -> Vec<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/leak-corpus");
    let source = sources.join(match build.language {
        Language::C | Language::Raw => "leak.c",
        Language::Rust => "leak.rs",
        Language::Python => return vec!["python3".into(), sources.join("leak.py")],
    });
    let program = dir.join(build.name);
    if !is_newer(&program, &source) {
        let mut compiler = match build.language {
            Language::Rust => Command::new("rustc"),
            _ => Command::new("cc"),
        };
        match build.language {
            Language::Rust => compiler.args(["--edition=2024", "-Cdebuginfo=0"]),
            _ => compiler.args(["-pthread", "-g0"]),
        };
        let output = compiler.args(build.flags).arg("-o").arg(&program).arg(&source).output();
        let output = output.expect("missing() was asked");
        assert!(output.status.success(), "{build:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    vec![program]
}

fn is_newer(program: &Path, source: &Path) -> bool {
    let changed = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified());
    match (changed(program), changed(source)) {
        (Ok(program), Ok(source)) => program > source,
        // Where there are only programs, in a guest, they were made for it.
        (program, Err(_)) => program.is_ok(),
        (Err(_), _) => false,
    }
}
