//! A place in a program, as a stack leads through it. Unwinding is left to `kernel`, names to `symbolize`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One frame. What the kernel layer fills is `image` and `offset`; the names are filled by `symbolize`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Demangled name. Hostile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Path of the program or library as its process sees it. Hostile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Address within the file as its ELF headers have it, so that addr2line takes it; without `module`, the address in
    /// memory.
    pub offset: u64,
    /// Source file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line in it, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Where the bytes of `module` can be read, for as long as anyone needs them.
    #[serde(skip)]
    pub image: Option<Arc<Image>>,
}

/// An ELF file that was mapped into a process. It is kept open, so that frames in it have names even when the process
/// and its mount namespace have gone, or a package was upgraded under it.
#[derive(Debug)]
pub struct Image {
    /// Path as the process sees it. Hostile.
    pub path: String,
    /// GNU build id, if the file has one.
    pub build_id: Option<Box<[u8]>>,
    /// The file itself.
    pub file: std::fs::File,
}

impl Frame {
    /// `leak_socket (pool.c:42)`, `libssl.so.3+0x1f2c0`, `0x7f12`: as much as is known, in few characters.
    #[must_use]
    pub fn place(&self) -> String {
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        match (&self.function, &self.file, self.line, &self.module) {
            (Some(function), Some(file), Some(line), _) => format!("{function} ({}:{line})", name(file)),
            (Some(function), ..) => function.clone(),
            (None, _, _, Some(module)) => format!("{}+{:#x}", name(module), self.offset),
            (None, _, _, None) => format!("{:#x}", self.offset),
        }
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path && self.build_id == other.build_id
    }
}

impl Eq for Image {}
