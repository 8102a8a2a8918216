//! Reads the configuration file: one small text file, and whoever may read it. What stands in it is left to `check`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::problem::{Problem, Problems};

/// Largest configuration: no one writes more by hand, and anything larger is another file by mistake.
const MAX_BYTES: u64 = 1 << 20;

/// Others may read it (`o+r` of chmod(1)).
const WORLD_READABLE: u32 = 0o004;

/// A configuration file as it was read.
pub(super) struct Text {
    /// Its path, for messages.
    pub(super) name: String,
    /// What stands in it.
    pub(super) text: String,
    mode: u32,
}

/// Reads the file at `path`.
pub(super) fn read(path: &Path) -> Result<Text, Problems> {
    let name = path.display().to_string();
    let refuse = |message: String, help: Option<&str>| {
        Problems::one(Problem::of_file(&name, message, help.map(ToOwned::to_owned)))
    };
    let mut file = open(path).map_err(|error| {
        let help = match error.kind() {
            io::ErrorKind::NotFound => Some("`sysops-agent config default` prints one to start from"),
            io::ErrorKind::PermissionDenied => Some("the agent's user must be able to read it"),
            _ => None,
        };
        refuse(format!("cannot open the configuration: {error}"), help)
    })?;
    let unreadable = |error: io::Error| refuse(format!("cannot read the configuration: {error}"), None);
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(refuse("expected a file, found a directory".to_owned(), Some("name the file in it")));
    }
    if !metadata.is_file() {
        return Err(refuse("expected a file, found a device, pipe or socket".to_owned(), None));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large, whatever its metadata say.
    (&mut file).take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refuse("larger than 1 MiB: this is no configuration".to_owned(), None));
    }
    match text(bytes) {
        Ok(text) => Ok(Text { name, text, mode: metadata.mode() }),
        Err(message) => Err(refuse(message, Some("expected TOML, which is UTF-8 text"))),
    }
}

/// A warning when the file holds secrets and everyone on the machine may read it.
pub(super) fn exposed(file: &Text, secrets: &[&str]) -> Option<Problem> {
    if file.mode & WORLD_READABLE == 0 || secrets.is_empty() {
        return None;
    }
    let message = format!("every user of this machine can read the secrets in this file: {}", secrets.join(", "));
    Some(Problem::of_file(&file.name, message, Some(format!("chmod 640 {}", file.name))))
}

/// The configuration is the agent's own file, not one of the watched machine: it does not go through `host`.
fn open(path: &Path) -> io::Result<File> {
    // O_NONBLOCK: a FIFO in the place of the file must not stop the agent. It means nothing to a regular file.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    let line_of = |offset: usize, bytes: &[u8]| bytes[..offset].iter().filter(|&&byte| byte == b'\n').count() + 1;
    if let Some(offset) = bytes.iter().position(|&byte| byte == 0) {
        return Err(format!("binary file: NUL byte at offset {offset}, line {}", line_of(offset, &bytes)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let line = line_of(offset, error.as_bytes());
        format!("not UTF-8: byte 0x{:02x} at offset {offset}, line {line}", error.as_bytes()[offset])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_is_taken() {
        assert_eq!(text(b"a = 1\n".to_vec()), Ok("a = 1\n".into()));
        assert_eq!(text(b"a\n\x7fELF\0".to_vec()), Err("binary file: NUL byte at offset 6, line 2".into()));
        assert_eq!(text(b"a\nb = \"\xe9\"".to_vec()), Err("not UTF-8: byte 0xe9 at offset 7, line 2".into()));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        for (path, expected) in [
            ("/", "expected a file, found a directory"),
            ("/dev/null", "found a device"),
            ("/nonexistent/config.toml", "No such file"),
        ] {
            let problems = read(Path::new(path)).err().expect("it is refused").to_string();
            assert!(problems.contains(expected), "{problems}");
        }
    }
}
