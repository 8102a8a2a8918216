//! A guest's first file system: an archive in cpio's newc format, as the kernel unpacks it (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst). What goes in is left to `payload`.

use std::collections::BTreeSet;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive that grows.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// Adds a folder with those above it; one that is there stays.
    pub(crate) fn folder(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        if !path.is_empty() && self.names.insert(path.to_owned()) {
            self.entry(path, FOLDER, &[]);
        }
    }

    /// Adds a file that may be run; one that is there stays.
    pub(crate) fn file(&mut self, path: &str, bytes: &[u8]) {
        self.leaf(path, PROGRAM, bytes);
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.leaf(path, LINK, target.as_bytes());
    }

    /// True when something of that path is in it.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.names.contains(path.trim_matches('/'))
    }

    /// The archive with its end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn leaf(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        let path = path.trim_matches('/');
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
        if self.names.insert(path.to_owned()) {
            self.entry(path, mode, bytes);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        // Inode, mode, uid, gid, links, mtime, size, two device numbers twice, length of the name with its end, checksum.
        let fields = [self.names.len(), mode as usize, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, path.len() + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// Header and content each begin at a multiple of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive as the kernel does: name, mode and content of each entry.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let (mut at, mut found) = (0, Vec::new());
        loop {
            assert_eq!((&bytes[at..at + 6], at % 4), (&b"070701"[..], 0));
            let field = |place: usize| {
                let digits = &bytes[at + 6 + place * 8..at + 14 + place * 8];
                usize::from_str_radix(std::str::from_utf8(digits).expect("digits"), 16).expect("hexadecimal")
            };
            let (mode, size, name) = (field(1), field(6), field(11));
            let start = at + 110;
            assert_eq!(bytes[start + name - 1], 0, "the name has an end");
            let text = String::from_utf8_lossy(&bytes[start..start + name - 1]).into_owned();
            let content = (start + name).next_multiple_of(4);
            if text == "TRAILER!!!" {
                assert_eq!(content, bytes.len());
                return found;
            }
            found.push((text, u32::try_from(mode).expect("a mode"), bytes[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
    }

    #[test]
    fn an_archive_is_read_back() {
        let mut archive = Archive::default();
        archive.file("/usr/bin/odd", b"12345");
        archive.file("/usr/bin/odd", b"a second one of that name is not taken");
        archive.link("bin", "usr/bin");
        archive.folder("/usr/bin");
        assert!(archive.has("/usr/bin/odd") && !archive.has("/usr/bin/even"));
        let expected = [
            ("usr".to_owned(), FOLDER, Vec::new()),
            ("usr/bin".to_owned(), FOLDER, Vec::new()),
            ("usr/bin/odd".to_owned(), PROGRAM, b"12345".to_vec()),
            ("bin".to_owned(), LINK, b"usr/bin".to_vec()),
        ];
        assert_eq!(read(&archive.finish()), expected);
    }

    #[test]
    fn an_empty_archive_has_an_end() {
        assert!(read(&Archive::default().finish()).is_empty());
    }
}
