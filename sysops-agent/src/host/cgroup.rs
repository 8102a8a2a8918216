//! /proc/PID/cgroup (cgroups(7)): where a task is in the hierarchy that counts memory.

/// A path in the hierarchy of the memory controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPath {
    /// The path. Hostile, but for a newline, which the kernel refuses.
    pub path: String,
    /// It is of the first version of cgroups.
    pub v1: bool,
}

impl MemoryPath {
    /// Reads the file: the line of the first version's memory hierarchy if there is one, else that of the unified one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut unified = None;
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            // A cgroup that was removed under its zombies is shown as "/path (deleted)".
            let path = path.strip_suffix(" (deleted)").unwrap_or(path);
            if controllers.split(',').any(|controller| controller == "memory") {
                return Some(Self { path: path.to_owned(), v1: true });
            }
            if id == "0" && controllers.is_empty() {
                unified = Some(Self { path: path.to_owned(), v1: false });
            }
        }
        unified
    }

    /// The first version shows `/` for a task that is on its way out, wherever it was: of such a task it is no answer.
    #[must_use]
    pub fn is_of_any_that_exit(&self) -> bool {
        self.v1 && self.path == "/"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Option<(String, bool)> {
        MemoryPath::parse(text).map(|found| (found.path, found.v1))
    }

    #[test]
    fn the_memory_controllers_own_hierarchy_goes_before_the_unified_one() {
        assert_eq!(path("9:name=systemd:/\n4:memory:/a/36\n3:cpuset:/\n0::/unified\n"), Some(("/a/36".into(), true)));
        assert_eq!(path("4:memory:/a:b\n1:name=systemd:/x\n0::/u\n"), Some(("/a:b".into(), true)));
        assert_eq!(path("0::/a b:c\n"), Some(("/a b:c".into(), false)));
        assert_eq!(path("2:cpu:/\n"), None);
        assert_eq!(path("garbage\n0::/u\n"), Some(("/u".into(), false)));
    }

    #[test]
    fn a_removed_cgroup_has_its_path_still() {
        assert_eq!(path("5:cpu,memory:/x (deleted)\n"), Some(("/x".into(), true)));
        assert_eq!(path("0::/group/b (deleted)\n"), Some(("/group/b".into(), false)));
    }

    #[test]
    fn the_root_of_the_first_version_is_that_of_any_that_exit() {
        let is = |text| MemoryPath::parse(text).map(|found| found.is_of_any_that_exit());
        assert_eq!(is("4:memory:/\n0::/u\n"), Some(true));
        assert_eq!(is("4:memory:/a\n0::/\n"), Some(false));
        assert_eq!(is("0::/\n"), Some(false));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text: String, lines in "([0-9]{0,2}:[a-z,=]{0,9}:/[a-z()/]{0,9}\n){0,5}") {
            for text in [&text, &lines] {
                let _ = MemoryPath::parse(text);
            }
        }
    }
}
