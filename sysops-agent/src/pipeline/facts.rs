//! What the inventory says of the host, in the few words that stand in every alert.

use serde_json::Value;

use crate::model::shown;

/// Facts, name and text, each where it is known.
pub(super) fn of(inventory: &Value) -> Vec<(String, String)> {
    let text = |pointer: &str| inventory.pointer(pointer).and_then(Value::as_str).map(|text| shown(text, 64));
    let number = |pointer: &str| inventory.pointer(pointer).and_then(Value::as_f64);
    let system = match (text("/os/distro"), text("/os/version")) {
        (Some(distro), Some(version)) => Some(format!("{distro} {version}")),
        (distro, _) => distro,
    };
    let facts = [
        ("system", system),
        ("kernel", text("/os/kernel")),
        ("cpus", number("/cpu/total_threads").map(|count| format!("{count:.0}"))),
        ("memory", number("/memory/total_gb").map(|count| format!("{count:.1} GiB"))),
    ];
    facts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out() {
        let inventory = serde_json::json!({
            "os": { "distro": "Debian GNU/Linux", "version": "12", "kernel": "6.1.0" }, "cpu": { "total_threads": 4 },
        });
        let facts: Vec<String> = of(&inventory).iter().map(|(name, text)| format!("{name} {text}")).collect();
        assert_eq!(facts, ["system Debian GNU/Linux 12", "kernel 6.1.0", "cpus 4"]);
        assert_eq!(of(&Value::Null), []);
    }
}
