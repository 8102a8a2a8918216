//! Puts names to frames: function, source file and line from what the program's file and its debug file have. Reads the
//! files that the frames hold open, so that a process that has gone is named as well. Unwinding is left to `kernel`.

#[cfg(feature = "ebpf")]
mod debug_file;
#[cfg(feature = "ebpf")]
mod elf_names;
#[cfg(not(feature = "ebpf"))]
#[path = "no_names.rs"]
mod elf_names;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::{Frame, Image, cut};

/// Addresses whose names are remembered.
const NAMES_MAX: usize = 1 << 14;
/// Bytes of a name that are kept: those of C++ and Rust may be endless.
const NAME_BYTES_MAX: usize = 512;
/// Functions that may be inlined in each other at one address.
const INLINED_MAX: usize = 32;

/// Whose files are read to their depths. What describes lines and inlined functions is a language of its own, and
/// whoever wrote the file can make it costly to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Every file: who asked waits for the answer, and nothing else does.
    All,
    /// Files that only root or the agent's own user may write to; of others the plain table of functions is read.
    Owned,
}

/// Puts names to frames, and remembers them.
pub struct Symbolizer {
    trust: Trust,
    /// Where files with what was stripped from programs are.
    debug_files: PathBuf,
    /// By file and address in it.
    names: HashMap<(usize, u64), Known>,
}

/// The functions at an address. The file is held, so that its place in memory is not another's.
struct Known {
    _image: Arc<Image>,
    functions: Box<[Named]>,
}

/// What is known of one function at an address. Of functions that are inlined in each other, the innermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Named {
    function: String,
    file: Option<String>,
    line: Option<u32>,
}

impl Symbolizer {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new(trust: Trust) -> Self {
        Self { trust, debug_files: elf_names::DEBUG_FILES.into(), names: HashMap::new() }
    }

    /// Names the frames of all `stacks`. A function that is inlined in another becomes a frame of its own before it. What
    /// has no name stays as it is: module and offset.
    pub fn name<'a>(&mut self, stacks: impl IntoIterator<Item = &'a mut Vec<Frame>>) {
        let stacks: Vec<&mut Vec<Frame>> = stacks.into_iter().collect();
        self.look_up(stacks.iter().flat_map(|frames| frames.iter()));
        for frames in stacks {
            let mut named = Vec::with_capacity(frames.len());
            for frame in frames.drain(..) {
                match frame.image.as_ref().and_then(|image| self.names.get(&key(image, frame.offset))) {
                    Some(known) if !known.functions.is_empty() => {
                        named.extend(known.functions.iter().map(|function| function.frame(&frame)));
                    }
                    _ => named.push(frame),
                }
            }
            *frames = named;
        }
    }

    /// Remembers the names of all frames, file by file.
    fn look_up<'a>(&mut self, frames: impl Iterator<Item = &'a Frame>) {
        if self.names.len() >= NAMES_MAX {
            self.names.clear();
        }
        let mut wanted: HashMap<usize, (Arc<Image>, Vec<u64>)> = HashMap::new();
        for frame in frames {
            let Some(image) = &frame.image else { continue };
            if !self.names.contains_key(&key(image, frame.offset)) {
                let (_, offsets) =
                    wanted.entry(Arc::as_ptr(image).addr()).or_insert_with(|| (Arc::clone(image), Vec::new()));
                offsets.push(frame.offset);
            }
        }
        for (image, mut offsets) in wanted.into_values() {
            offsets.sort_unstable();
            offsets.dedup();
            let (trust, debug_files) = (self.trust, &self.debug_files);
            // The files are anyone's, and the readers of their formats are large.
            let found = catch_unwind(AssertUnwindSafe(|| elf_names::names(&image, &offsets, trust, debug_files)));
            let found = found.unwrap_or_else(|_| Err("reading it failed: a bug".into()));
            let mut found = found.unwrap_or_else(|why| {
                tracing::debug!("symbolize: {:?}: {why}", image.path);
                Vec::new()
            });
            found.resize_with(offsets.len(), Vec::new);
            for (offset, functions) in offsets.into_iter().zip(found) {
                let functions = functions.into_iter().take(INLINED_MAX).map(Named::bounded).collect();
                self.names.insert(key(&image, offset), Known { _image: Arc::clone(&image), functions });
            }
        }
    }
}

impl Named {
    fn bounded(self) -> Self {
        let bounded = |text: String| cut(&text, NAME_BYTES_MAX).to_owned();
        Self { function: bounded(self.function), file: self.file.map(bounded), line: self.line }
    }

    fn frame(&self, at: &Frame) -> Frame {
        Frame {
            function: Some(self.function.clone()),
            file: self.file.clone(),
            line: self.line,
            module: at.module.clone(),
            offset: at.offset,
            image: at.image.clone(),
        }
    }
}

fn key(image: &Arc<Image>, offset: u64) -> (usize, u64) {
    (Arc::as_ptr(image).addr(), offset)
}

#[cfg(all(test, feature = "ebpf"))]
mod tests;
