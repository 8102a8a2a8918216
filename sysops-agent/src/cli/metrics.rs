//! `metrics`: the catalogue of everything that the agent measures.

use super::{MetricsFormat, output};
use crate::catalog::documents;

/// Prints the catalogue and gives the exit status.
#[must_use]
pub fn run(format: MetricsFormat) -> u8 {
    let text = match format {
        MetricsFormat::Text => documents::metrics_text(),
        MetricsFormat::Markdown => documents::metrics_markdown(),
        MetricsFormat::Json => documents::metrics_json(),
    };
    output::stdout(|out| out.write_all(text.as_bytes()))
}
