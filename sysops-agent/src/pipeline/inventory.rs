//! Collects the inventory now and then on a thread of its own: it reads hundreds of files of /sys, some of which ask
//! hardware.

use std::future::pending;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use super::sleep_for;
use crate::host::Host;
use crate::inventory::{self, Options};
use crate::spec::Values;

/// The inventory's cadence.
pub(super) struct Inventory {
    host: Host,
    hostname: String,
    options: Options,
    next: Duration,
    running: Option<oneshot::Receiver<Value>>,
}

impl Inventory {
    /// The first inventory is collected at once.
    pub(super) fn new(host: &Host, values: &Values, hostname: &str) -> Self {
        Self {
            host: host.clone(),
            hostname: hostname.to_owned(),
            options: Options::new(values),
            next: Duration::ZERO,
            running: None,
        }
    }

    /// Waits for the next inventory. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Value {
        if !self.options.enabled {
            return pending().await;
        }
        loop {
            if let Some(running) = &mut self.running {
                let value = running.await;
                self.running = None;
                match value {
                    Ok(value) => return value,
                    Err(_) => tracing::error!("inventory: its thread has panicked; that is a bug"),
                }
            }
            sleep_for(Some(self.next.saturating_sub(self.host.clock.now().monotonic))).await;
            self.next = self.host.clock.now().monotonic + self.options.interval;
            self.start();
        }
    }

    fn start(&mut self) {
        let (host, hostname, options) = (self.host.clone(), self.hostname.clone(), self.options);
        let (sender, receiver) = oneshot::channel();
        let work = move || {
            let inventory = inventory::collect(&host, &hostname, &options, &host.clock.now());
            match serde_json::to_value(inventory) {
                Ok(value) => _ = sender.send(value),
                Err(error) => tracing::error!("inventory: no JSON form: {error}; that is a bug"),
            }
        };
        match std::thread::Builder::new().name("inventory".to_owned()).spawn(work) {
            Ok(_) => self.running = Some(receiver),
            Err(error) => tracing::warn!("inventory: no thread: {error}; tried again at its next turn"),
        }
    }
}
