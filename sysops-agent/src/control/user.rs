//! Names users by their numbers, as /etc/passwd of the watched machine has them. Numbers come from the kernel alone.

use crate::host::Files;
use crate::model::shown;

/// Name of the user `uid`; `uid 1000` when the machine has none for it.
#[must_use]
pub fn user_name(files: &Files, uid: u32) -> String {
    let users = files.read_text(&files.root("/etc/passwd"));
    users.ok().and_then(|users| find(&users, uid)).unwrap_or_else(|| format!("uid {uid}"))
}

fn find(users: &str, uid: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| shown(name, 64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\n# +::\n:x:7::\nann:x:1000:1000::/home/ann:/bin/sh\nbob\x1b:x:1001:\n";
        assert_eq!(find(users, 0).as_deref(), Some("root"));
        assert_eq!(find(users, 1000).as_deref(), Some("ann"));
        assert_eq!(find(users, 1001).as_deref(), Some("bob\\u{1b}"));
        assert_eq!((find(users, 7), find(users, 2), find("", 0)), (None, None, None));
    }
}
