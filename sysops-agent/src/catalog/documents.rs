//! Renders the documents that are generated from the declarations. `tests/tests/generated_docs.rs` holds the files in
//! the repository against them.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{Component, TABLES, keys, metrics};
use crate::model::{Desc, Kind};
use crate::settings::write;
use crate::spec::{Fallback, KeySpec, Shape};

/// A generated file.
#[derive(Debug)]
pub struct Document {
    /// Its path from the repository's root.
    pub path: &'static str,
    /// What stands in it.
    pub text: String,
}

/// All generated files.
#[must_use]
pub fn all() -> Vec<Document> {
    vec![
        Document { path: "config/agent.toml", text: agent_toml() },
        Document { path: "config/agent.schema.json", text: schema() },
        Document { path: "docs/CONFIGURATION.md", text: configuration() },
        Document { path: "docs/METRICS.md", text: metrics_markdown() },
    ]
}

/// The commented configuration: every key with its default or an example, all commented out.
#[must_use]
pub fn agent_toml() -> String {
    let mut out = String::from(
        "#:schema agent.schema.json\n\
         # Configuration of sysops-agent. Every key is shown with its default, or an example where it has none.\n\
         # Texts may hold ${NAME}, ${NAME:-default} and ${NAME:?message}, taken from the environment.\n\
         # Check it with `sysops-agent --config FILE --validate`; `kill -HUP` makes a running agent read it again.\n",
    );
    let mut table = "";
    for key in keys() {
        if key.table() != table {
            table = key.table();
            out.push('\n');
            comment(&mut out, about(table).unwrap_or_default());
            if !table.is_empty() {
                // Writing to a String cannot fail, here and below.
                let _ = writeln!(out, "[{table}]");
            }
        }
        match key.shape {
            // A list at the top is written as tables of their own, which may stand anywhere in a file.
            Shape::TableList(inner) if table.is_empty() => {
                let _ = writeln!(out, "#[[{}]]", key.name());
                inner.iter().for_each(|key| sample(&mut out, key));
            }
            _ => sample(&mut out, key),
        }
    }
    out
}

/// A key as it may be set, commented out.
fn sample(out: &mut String, key: &KeySpec) {
    let _ = write!(out, "\n{}", prose(key).lines().fold(String::new(), |text, line| text + "# " + line + "\n"));
    let _ = writeln!(out, "#{} = {}", key.name(), write::sample(key));
}

/// JSON schema (draft 2020-12) of the configuration, for editors.
#[must_use]
pub fn schema() -> String {
    let mut root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sysops-agent",
        "description": "Configuration of sysops-agent.",
        "type": "object",
        "additionalProperties": false,
        "properties": {}
    });
    for key in keys() {
        let mut path = String::new();
        let mut node = &mut root;
        for name in key.table().split('.').filter(|name| !name.is_empty()) {
            path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let table = json!({
                "type": "object", "description": about(&path).unwrap_or_default(),
                "additionalProperties": false, "properties": {}
            });
            node = properties(node).entry(name).or_insert(table);
        }
        properties(node).insert(key.name().to_owned(), key_schema(key));
    }
    pretty(&root)
}

/// docs/CONFIGURATION.md.
#[must_use]
pub fn configuration() -> String {
    let mut out = String::from(CONFIGURATION_HEAD);
    let mut table = "";
    for key in keys() {
        if key.table() != table {
            table = key.table();
            let title = if table.is_empty() { "Lists at the top".to_owned() } else { format!("`[{table}]`") };
            let _ = write!(out, "\n## {title}\n\n");
            if let Some(about) = about(table) {
                let _ = write!(out, "{about}\n\n");
            }
            out.push_str("| key | takes | default | |\n|---|---|---|---|\n");
        }
        row(&mut out, &format!("`{}`", key.name()), key);
        if let Shape::TableList(inner) = key.shape {
            inner.iter().for_each(|one| row(&mut out, &format!("`{}` of each `{}`", one.name(), key.name()), one));
        }
    }
    out
}

fn row(out: &mut String, name: &str, key: &KeySpec) {
    let default = write::fallback(&key.fallback).map_or_else(|| "not set".to_owned(), |text| format!("`{text}`"));
    let cells = [name.to_owned(), key.shape.to_string(), default, prose(key)];
    let _ = writeln!(out, "| {} |", cells.map(|cell| markdown_cell(&cell)).join(" | "));
}

/// docs/METRICS.md.
#[must_use]
pub fn metrics_markdown() -> String {
    let mut out = String::from(METRICS_HEAD);
    let mut last = "";
    for (component, metric) in metrics() {
        if component.name != last {
            last = component.name;
            let _ = write!(out, "\n## {} ({})\n\n", component.name, component.layer);
            out.push_str("| name | type | unit | labels | |\n|---|---|---|---|---|\n");
        }
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let cells = [
            format!("`{}`", metric.name),
            type_name(metric.kind).to_owned(),
            metric.unit.name().to_owned(),
            labels.join(", "),
            metric.help.to_owned(),
        ];
        let _ = writeln!(out, "| {} |", cells.map(|cell| markdown_cell(&cell)).join(" | "));
    }
    out
}

/// The metrics as one JSON document, `"schema": 1`.
#[must_use]
pub fn metrics_json() -> String {
    let one = |(component, metric): (Component, &Desc)| {
        json!({
            "name": metric.name, "type": type_name(metric.kind), "unit": metric.unit.name(),
            "labels": metric.labels, "help": metric.help, "component": component.name
        })
    };
    let all: Vec<Value> = metrics().into_iter().map(one).collect();
    pretty(&json!({ "schema": 1, "metrics": all }))
}

/// The value as it is written to a file or a terminal.
fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("a JSON value has a JSON form") + "\n"
}

/// The metrics as a table for a terminal.
#[must_use]
pub fn metrics_text() -> String {
    let mut rows = vec![["NAME".to_owned(), "TYPE".into(), "UNIT".into(), "LABELS".into(), "HELP".into()]];
    rows.extend(metrics().into_iter().map(|(_, metric)| {
        let (kind, unit) = (type_name(metric.kind).to_owned(), metric.unit.name().to_owned());
        [metric.name.to_owned(), kind, unit, metric.labels.join(","), metric.help.to_owned()]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let mut out = String::new();
    for [name, kind, unit, labels, help] in &rows {
        let [a, b, c, d] = widths;
        let _ = writeln!(out, "{name:a$}  {kind:b$}  {unit:c$}  {labels:d$}  {help}");
    }
    out
}

const CONFIGURATION_HEAD: &str = "\
<!-- Generated from the keys' declarations; do not edit. `cargo test -p sysops-tests --test generated_docs` renews it. -->
# Configuration

`sysops-agent --config FILE` reads one TOML file; without `--config` it is `/etc/sysops-agent/config.toml`, and where that does
not exist every key has its default. `sysops-agent config default` prints a commented file to start from,
`sysops-agent config schema` its JSON schema for editors, `sysops-agent config show` what holds with a given file.

- `sysops-agent --config FILE --validate` checks the file: exit status 0, or 78 with every mistake at once, each with file,
  line, column and what was expected. Unknown keys are mistakes.
- A running agent reads the file again on SIGHUP. A file with mistakes changes nothing: the agent says so and goes on as before.
  What a change does not concern goes on: connections, queues, probes. `[storage]` and `agent.pid_file` hold from the next start on.
- Texts may hold `${NAME}` (not set: a mistake), `${NAME:-default}` and `${NAME:?message}` (both also when NAME is empty);
  `$$` is a dollar sign. Only texts are expanded, after the file was parsed, and never twice.
- Secrets are never printed, neither by `config show` nor in messages. A file that holds secrets and that every user may read gets a
  warning: `chmod 640` it, or take the secrets from the environment.
- Keys that say *not built yet* belong to parts that come later. They are accepted, checked, and reported once.
";

const METRICS_HEAD: &str = "\
<!-- Generated from the metrics' declarations; do not edit. `cargo test -p sysops-tests --test generated_docs` renews it. -->
# Metrics

What `sysops-agent once`, NATS and alerts name. Prometheus sees the same metrics with the prefix `sysops_`, but for those that begin
with `node_`: they keep node_exporter's name, meaning and labels. A series that this machine does not have is absent, never 0.
`sysops-agent metrics` prints this list.
";

fn about(table: &str) -> Option<&'static str> {
    TABLES.iter().find(|(name, _)| *name == table).map(|&(_, about)| about)
}

/// The description with what must be known besides.
fn prose(key: &KeySpec) -> String {
    let later = if key.built { "" } else { " Not built yet." };
    let secret = if key.secret { " Secret: never printed." } else { "" };
    format!("{}{secret}{later}", key.doc)
}

fn comment(out: &mut String, text: &str) {
    for line in text.lines() {
        let _ = writeln!(out, "# {line}");
    }
}

/// A pipe would end the cell.
fn markdown_cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn properties(node: &mut Value) -> &mut Map<String, Value> {
    node["properties"].as_object_mut().expect("every node is made with properties")
}

fn key_schema(key: &KeySpec) -> Value {
    let mut schema = match key.shape {
        Shape::Bool => json!({ "type": "boolean" }),
        Shape::Int { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Shape::Float { min, max } => json!({ "type": "number", "minimum": min, "maximum": max }),
        Shape::Text => json!({ "type": "string" }),
        // A reference to the environment may stand for a word.
        Shape::Choice(words) => json!({ "anyOf": [{ "enum": words }, { "type": "string", "pattern": "\\$\\{" }] }),
        Shape::TextList => json!({ "type": "array", "items": { "type": "string" } }),
        Shape::TextMap => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Shape::TableList(inner) => {
            let inner: Map<String, Value> = inner.iter().map(|key| (key.path.to_owned(), key_schema(key))).collect();
            json!({
                "type": "array",
                "items": { "type": "object", "additionalProperties": false, "properties": inner }
            })
        }
    };
    let default = match key.fallback {
        Fallback::Absent => None,
        Fallback::Bool(value) => Some(json!(value)),
        Fallback::Int(value) => Some(json!(value)),
        Fallback::Float(value) => Some(json!(value)),
        Fallback::Text(value) => Some(json!(value)),
        Fallback::TextList(values) => Some(json!(values)),
    };
    schema["description"] = json!(prose(key));
    if let Some(default) = default {
        schema["default"] = default;
    }
    if key.secret {
        schema["writeOnly"] = json!(true);
    }
    schema
}

fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
        Kind::Histogram(_) => "histogram",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::declared;
    use crate::settings::parse;

    #[test]
    fn the_default_file_loads_and_sets_nothing() {
        let settings = parse("agent.toml", &agent_toml(), &declared(), &|_| None).expect("no mistakes");
        assert_eq!(settings.values, crate::spec::Values::default());
        assert_eq!((settings.not_built.as_slice(), settings.warnings.as_slice()), (&[][..], &[][..]));
        assert_eq!(settings.not_in_build, crate::catalog::ABSENT, "headers of tables whose feature is left out");
    }

    #[test]
    fn every_key_of_the_default_file_may_be_set_as_it_stands() {
        // A key's line begins with "#" alone, prose with "# ".
        let uncommented: String = agent_toml().lines().skip(1).fold(String::new(), |text, line| {
            let line = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
            text + line + "\n"
        });
        let declared = declared();
        let settings =
            parse("agent.toml", &uncommented, &declared, &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
        for key in declared.keys {
            assert!(settings.values.is_set(key), "{} is missing", key.path);
        }
    }

    #[test]
    fn the_schema_knows_every_key() {
        let schema: Value = serde_json::from_str(&schema()).expect("JSON");
        for key in keys() {
            let pointer: String = key.path.split('.').fold(String::new(), |path, name| path + "/properties/" + name);
            let found = schema.pointer(&pointer).unwrap_or_else(|| panic!("{} is missing", key.path));
            assert_eq!(found["description"], json!(prose(key)));
        }
    }
}
