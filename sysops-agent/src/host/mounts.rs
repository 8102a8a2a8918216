//! Lines of /proc/PID/mountinfo (proc_pid_mountinfo(5)). Which mounts matter is left to the reader.

use std::borrow::Cow;

use super::bytes::{fields, u64};

/// One mount, as the kernel prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Number of the mount, its own until it is unmounted.
    pub id: u64,
    /// Where it is mounted, with `\040` and its like read back.
    pub point: Cow<'a, [u8]>,
    /// Options of this mount, as `ro,relatime`.
    pub options: &'a [u8],
    /// Type of the file system, as `ext4`, `fuse.sshfs`.
    pub fstype: Cow<'a, [u8]>,
    /// What is mounted: a device, `server:/export`, or a word.
    pub source: Cow<'a, [u8]>,
    /// Options of the file system, as `rw,errors=continue`. A file system that the kernel set read-only after an error
    /// says `ro` here and `rw` in the mount's own options.
    pub super_options: &'a [u8],
}

impl Mount<'_> {
    /// True when the mount or its file system is read-only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        let has_ro = |options: &[u8]| options.split(|&byte| byte == b',').any(|option| option == b"ro");
        has_ro(self.options) || has_ro(self.super_options)
    }
}

/// Reads one line; `None` when it is none.
///
/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: the fields before ` - ` end in
/// any number of optional ones.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Mount<'_>> {
    let mut columns = fields(line);
    let id = u64(columns.next()?)?;
    let mut columns = columns.skip(3);
    let point = unescape(columns.next()?);
    let options = columns.next()?;
    columns.find(|&field| field == b"-")?;
    let fstype = unescape(columns.next()?);
    let rest: [&[u8]; 2] = [columns.next()?, columns.next().unwrap_or_default()];
    // A source that is an empty word leaves two blanks in a row, so that the options stand in its place.
    let (source, super_options) = if rest[1].is_empty() { (&b""[..], rest[0]) } else { (rest[0], rest[1]) };
    Some(Mount { id, point, options, fstype, source: unescape(source), super_options })
}

/// Reads `\040` (three octal digits) back; the kernel writes blank, tab, newline, `\` and `#` so.
fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\\') {
        return Cow::Borrowed(text);
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_one_without() {
        let mount = parse(b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue");
        let mount = mount.expect("the line of the manual page");
        assert_eq!(mount.id, 36);
        assert_eq!((&*mount.point, &*mount.source, &*mount.fstype), (&b"/mnt2"[..], &b"/dev/root"[..], &b"ext3"[..]));
        assert_eq!((mount.options, mount.super_options), (&b"rw,noatime"[..], &b"rw,errors=continue"[..]));
        let mount = parse(b"27 1 254:0 / / rw - ext4 /dev/vda ro,discard").expect("a line");
        assert!(mount.is_read_only(), "the file system went read-only");
        assert!(!parse(b"27 1 254:0 / / rw - ext4 /dev/vda rw,errors=remount-ro").expect("a line").is_read_only());
    }

    #[test]
    fn escapes_and_an_empty_source() {
        let mount = parse(br"1 1 0:1 / /a\040b\011\134\012\043\04 rw - fuse.x\040y  rw").expect("a line");
        assert_eq!(&*mount.point, b"/a b\t\\\n#\\04");
        assert_eq!((&*mount.fstype, &*mount.source, mount.super_options), (&b"fuse.x y"[..], &b""[..], &b"rw"[..]));
    }

    #[test]
    fn no_line_panics() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let source = line.windows(4).position(|word| word == b"/dev").expect("it stands there");
        for end in 0..line.len() {
            // Cut before the source, it is no mount.
            assert_eq!(parse(&line[..end]).is_some(), end > source, "{end}");
        }
        assert_eq!(parse(b"\xff\xfe \0 \0"), None);
    }
}
