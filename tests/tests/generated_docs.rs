//! The generated documents in the repository are those that the declarations render to. A stale one is written anew,
//! then the test fails: look at the difference and commit it.

#![expect(clippy::disallowed_methods, reason = "a test reads and renews the repository's own files")]

use std::fs;
use std::path::Path;

use sysops_agent::catalog::{ABSENT, documents};

#[test]
fn documents_are_up_to_date() {
    // A build without a feature knows less than the documents say.
    if !ABSENT.is_empty() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut renewed = Vec::new();
    for document in documents::all() {
        let path = root.join(document.path);
        if fs::read_to_string(&path).ok().as_deref() != Some(document.text.as_str()) {
            fs::create_dir_all(path.parent().expect("it is in a directory")).expect("the directory can be made");
            fs::write(&path, document.text).expect("the repository can be written");
            renewed.push(document.path);
        }
    }
    assert!(renewed.is_empty(), "these were stale and have been written anew: {}", renewed.join(", "));
}
