//! Holds documents against the JSON schemas of docs/schemas.
#![expect(clippy::panic, reason = "a test fails by panic")]

use std::path::Path;

use serde_json::Value;

use crate::feed::repository_file;

/// Holds `document` against docs/schemas/`name`.schema.json. A guest has the test and not the repository: there it is taken as it is.
///
/// # Panics
/// When it is not as described, with all that is wrong.
pub fn hold(name: &str, document: &Value) {
    if !Path::new(env!("CARGO_MANIFEST_DIR")).exists() {
        return;
    }
    let schema: Value = serde_json::from_str(&repository_file(&format!("docs/schemas/{name}.schema.json")))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let validator = jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
    let errors: Vec<String> =
        validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{name}: {}\n{document:#}", errors.join("\n"));
}

/// The JSON document `text`, held against a schema.
///
/// # Panics
/// When it is none, or not as described.
#[must_use]
pub fn parse(name: &str, text: &[u8]) -> Value {
    let document = serde_json::from_slice(text)
        .unwrap_or_else(|error| panic!("{name}: {error}: {}", String::from_utf8_lossy(text)));
    hold(name, &document);
    document
}
