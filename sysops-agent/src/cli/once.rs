//! `once`: everything read twice, a second apart so that rates exist, and printed.

use std::time::Duration;

use super::output::Style;
use super::{OnceFormat, exit, output, overview};
use crate::catalog::lint;
use crate::collect;
use crate::deliver::export::{exposition, telemetry};
use crate::host::Host;
use crate::model::Batch;
use crate::schedule::Scheduler;
use crate::settings::Settings;
use crate::store::{Store, view::View};

/// The time between the two readings.
const BETWEEN: Duration = Duration::from_secs(1);

/// Reads twice, prints, and gives the exit status.
pub async fn run(host: &Host, settings: &Settings, hostname: &str, format: OnceFormat) -> u8 {
    let mut scheduler = match Scheduler::new(host, &settings.values, collect::ALL, Some(BETWEEN)) {
        Ok(scheduler) => scheduler,
        Err(error) => {
            output::say(&format_args!("error: no thread for the collectors: {error}"));
            return exit::UNAVAILABLE;
        }
    };
    // One component more than there are collectors: the scheduler's own readings.
    let mut store = Store::new(&settings.values, collect::ALL.len() + 1);
    let mut tick = host.clock.now();
    let mut rounds = 0;
    while rounds < 2 {
        let finished = scheduler.next().await;
        store.ingest(finished.job, &finished.batch, finished.tick);
        scheduler.recycle(finished.job, finished.batch);
        rounds += u32::from(finished.round_over);
        tick = finished.tick;
    }
    let mut own = Batch::default();
    scheduler.collect(&mut own);
    store.ingest(collect::ALL.len(), &own, tick);
    let view = View::new(&store);
    match format {
        OnceFormat::Json => {
            let document = telemetry::metrics_document(hostname, &view);
            output::document(&format!("{}\n", String::from_utf8_lossy(&document)))
        }
        OnceFormat::Prometheus => {
            let mut text = String::new();
            exposition::render_some(&view, &lint::passes, &mut text);
            output::document(&text)
        }
        OnceFormat::Text => {
            let style = Style::stdout(&crate::settings::environment);
            output::stdout(|out| overview::table(&view, style, out))
        }
    }
}
