//! Where a process has code: the executable lines of /proc/<pid>/maps. Which file that is, is left to `images`.

/// Pieces of code that are told apart; a process with more is known as far as these go.
const MAPPINGS_MAX: usize = 8192;

/// A piece of code in the memory of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct Mapping {
    /// Address of the first byte.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// The device of the file: major and minor number.
    pub device: (u32, u32),
    /// Number of the file on its device; 0 without a file.
    pub inode: u64,
    /// Path as the process sees it, without the mark of a file that was deleted. Hostile.
    pub path: String,
}

impl Mapping {
    /// It is a file, not memory of the process or of the kernel.
    #[must_use]
    pub(in crate::kernel) fn is_file(&self) -> bool {
        self.inode != 0 && self.path.starts_with('/')
    }
}

/// Reads the executable lines, lowest address first. A line that is not as it should be is left out.
#[must_use]
pub(in crate::kernel) fn parse(text: &[u8]) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = text.split(|&byte| byte == b'\n').filter_map(line).take(MAPPINGS_MAX).collect();
    found.sort_unstable_by_key(|mapping| mapping.start);
    found
}

/// `55d0c0a00000-55d0c0a01000 r-xp 00001000 fe:00 1234      /usr/bin/cat`
fn line(text: &[u8]) -> Option<Mapping> {
    let mut parts = text.splitn(6, |&byte| byte == b' ');
    let (range, modes, offset) = (parts.next()?, parts.next()?, parts.next()?);
    let (device, inode, path) = (parts.next()?, parts.next()?, parts.next().unwrap_or_default());
    if modes.get(2) != Some(&b'x') {
        return None;
    }
    let (start, end) = std::str::from_utf8(range).ok()?.split_once('-')?;
    let path = String::from_utf8_lossy(path.trim_ascii_start()).into_owned();
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    let number = |digits: &str| u32::from_str_radix(digits, 16).ok();
    let mapping = Mapping {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(std::str::from_utf8(offset).ok()?)?,
        device: (number(major)?, number(minor)?),
        inode: std::str::from_utf8(inode).ok()?.parse().ok()?,
        path: path.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(path),
    };
    (mapping.start < mapping.end).then_some(mapping)
}

/// The device is mounted from a program of a user (/proc/<pid>/mountinfo says so). To open a file of it is to ask that
/// program, which need not answer.
#[must_use]
pub(super) fn is_of_a_program(mountinfo: &[u8], (major, minor): (u32, u32)) -> bool {
    let device = format!("{major}:{minor}");
    mountinfo.split(|&byte| byte == b'\n').any(|line| {
        let mut words = line.split(|&byte| byte == b' ');
        let same = words.nth(2) == Some(device.as_bytes());
        let kind = words.skip_while(|word| *word != b"-").nth(1);
        same && kind.is_some_and(|kind| kind.starts_with(b"fuse"))
    })
}

/// The path leads through a mount of a program of a user.
#[must_use]
pub(super) fn leads_through_a_program(mountinfo: &[u8], path: &str) -> bool {
    mountinfo.split(|&byte| byte == b'\n').any(|line| {
        let mut words = line.split(|&byte| byte == b' ');
        let Some(point) = words.nth(4) else { return false };
        let kind = words.skip_while(|word| *word != b"-").nth(1);
        let below = path.as_bytes().strip_prefix(point);
        let is_below = below.is_some_and(|rest| rest.starts_with(b"/") || point.ends_with(b"/"));
        is_below && kind.is_some_and(|kind| kind.starts_with(b"fuse"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_programs_are_told() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
            40 35 0:52 / /run/user/0/x rw,nosuid shared:9 - fuse.sshfs host:/ rw,user_id=0\n\nx\n";
        assert!(is_of_a_program(text, (0, 52)));
        assert!(!is_of_a_program(text, (98, 0)) && !is_of_a_program(text, (0, 5)) && !is_of_a_program(b"", (0, 0)));
        assert!(leads_through_a_program(text, "/run/user/0/x/lib/a.so"));
        for path in ["/run/user/0/xy", "/run/user/0/x", "/mnt2/a", "", "/"] {
            assert!(!leads_through_a_program(text, path), "{path}");
        }
    }

    const TEXT: &[u8] = b"\
55d0c09ff000-55d0c0a00000 r--p 00000000 fe:00 1234                       /usr/bin/cat
55d0c0a00000-55d0c0a05000 r-xp 00001000 fe:00 1234                       /usr/bin/cat
7f0000000000-7f0000021000 rwxp 00000000 00:00 0 \n\
7f1200000000-7f1200100000 r-xp 00026000 fe:00 99                         /srv/a b\\012c (deleted)
7ffd0a1f2000-7ffd0a1f4000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

    #[test]
    fn only_code_is_told() {
        let found = parse(TEXT);
        let names: Vec<&str> = found.iter().map(|mapping| mapping.path.as_str()).collect();
        assert_eq!(names, ["/usr/bin/cat", "", "/srv/a b\\012c", "[vdso]", "[vsyscall]"]);
        let cat = Mapping {
            start: 0x55d0_c0a0_0000,
            end: 0x55d0_c0a0_5000,
            offset: 0x1000,
            device: (0xfe, 0),
            inode: 1234,
            path: "/usr/bin/cat".into(),
        };
        assert_eq!(found[0], cat);
        assert_eq!(found.iter().map(Mapping::is_file).collect::<Vec<_>>(), [true, false, true, false, false]);
    }

    #[test]
    fn a_broken_line_costs_itself_only() {
        for text in [&b"x"[..], b"1-0 r-xp 0 0 0 x", b"zz-ff r-xp 0 0 0", b"1-2 r-xp 0 0", b""] {
            assert_eq!(parse(text), [], "{}", String::from_utf8_lossy(text));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text: Vec<u8>, line in "[0-9a-f]{0,17}-[0-9a-f]{0,17} r-xp [0-9a-f]{0,9} 0:0 [0-9]{0,21} .{0,9}") {
            let _ = (parse(&text), parse(line.as_bytes()), is_of_a_program(&text, (0, 1)));
        }
    }
}
