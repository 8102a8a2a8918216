//! `--inventory-dump`: what this machine is, as JSON.

use super::{exit, output};
use crate::host::Host;
use crate::inventory::{self, Options};
use crate::settings::Settings;

/// Prints the inventory and gives the exit status.
#[must_use]
pub fn run(host: &Host, settings: &Settings, hostname: &str) -> u8 {
    let inventory = inventory::collect(host, hostname, &Options::new(&settings.values), &host.clock.now());
    match serde_json::to_string_pretty(&inventory) {
        Ok(text) => output::stdout(|out| writeln!(out, "{text}")),
        Err(error) => {
            output::say(&format_args!("error: the inventory has no JSON form: {error}; that is a bug"));
            exit::SOFTWARE
        }
    }
}
