//! Mails as Python's own parsers of mail and HTML see them: they know nothing of how these mails were made.

#![expect(clippy::disallowed_methods, reason = "tests run programs; the agent does not")]

use std::process::Command;

use serde_json::Value;

use crate::servers::Scratch;

const SCRIPT: &str = r#"
import email, email.policy, html.parser, json, sys
class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []
    def handle_starttag(self, tag, attributes):
        self.tags.append([tag, attributes])
    def handle_data(self, data):
        self.text.append(data)
    def handle_comment(self, data):
        self.tags.append(["comment", data])
mails = []
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        mail = email.message_from_binary_file(file, policy=email.policy.default)
    parts = [part for part in mail.walk() if not part.is_multipart()]
    content = {part.get_content_type(): part.get_content() for part in parts}
    tags = Tags()
    tags.feed(content.get("text/html", ""))
    tags.close()
    mails.append({
        "headers": [[name, str(value)] for name, value in mail.items()],
        "types": [part.get_content_type() for part in mail.walk()],
        "defects": [str(defect) for part in mail.walk() for defect in part.defects],
        "plain": content.get("text/plain"), "html": content.get("text/html"),
        "tags": tags.tags, "text": "".join(tags.text),
    })
json.dump(mails, sys.stdout)
"#;

/// One mail.
#[derive(Debug)]
pub struct Read(Value);

impl Read {
    /// Names of its headers, in order.
    #[must_use]
    pub fn header_names(&self) -> Vec<&str> {
        self.pairs().map(|(name, _)| name).collect()
    }

    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.pairs().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The text part.
    #[must_use]
    pub fn plain(&self) -> &str {
        self.0["plain"].as_str().unwrap_or_default()
    }

    /// The HTML part.
    #[must_use]
    pub fn html(&self) -> &str {
        self.0["html"].as_str().unwrap_or_default()
    }

    /// The text between the HTML part's tags.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0["text"].as_str().unwrap_or_default()
    }

    /// Content types, defects and HTML tags with their attributes: what no text from outside may change.
    #[must_use]
    pub fn shape(&self) -> Value {
        serde_json::json!([self.header_names(), self.0["types"], self.0["defects"], self.0["tags"]])
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let headers = self.0["headers"].as_array().into_iter().flatten();
        headers.filter_map(|pair| Some((pair[0].as_str()?, pair[1].as_str()?)))
    }
}

/// Reads mails as they were sent.
///
/// # Panics
/// When Python is not there, or one of them is no mail.
#[must_use]
pub fn read(mails: &[String]) -> Vec<Read> {
    let scratch = Scratch::new();
    let paths = mails.iter().enumerate().map(|(index, mail)| scratch.file(&format!("{index}.eml"), mail));
    let output = Command::new("python3").args(["-c", SCRIPT]).args(paths).output().expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Vec<Value> = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    read.into_iter().map(Read).collect()
}
