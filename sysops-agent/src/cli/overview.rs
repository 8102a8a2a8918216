//! Readings for people: one line for the live view, a table for `once`.

use std::fmt::Write as _;
use std::io;

use super::output::{Colour, Style};
use crate::model::{Desc, Kind, Readings, SeriesValue, Unit, bytes_text, shown};

/// One line: how the machine stands. What is unknown is left out.
#[must_use]
pub fn line(readings: &dyn Readings) -> String {
    let mut seen = Seen::default();
    readings.visit(&mut |series| {
        let SeriesValue::Number(value) = series.value else { return };
        let label = |name: &str| series.labels().find(|(label, _)| *label == name).map_or("", |(_, value)| value);
        match series.metric.name {
            "cpu_usage_percent" => seen.cpu = Some(value),
            "cpu_iowait_percent" => seen.iowait = Some(value),
            "node_load1" => seen.load = Some(value),
            "memory_used_percent" => seen.memory = Some(value),
            "swap_used_percent" => seen.swap = Some(value),
            "processes" => seen.processes = Some(value),
            "fd_used_percent" => seen.fds = Some(value),
            "disk_usage_percent" if seen.disk.as_ref().is_none_or(|(_, fullest)| value > *fullest) => {
                seen.disk = Some((shown(label("mountpoint"), 40), value));
            }
            "network_receive_bytes_per_second" => *seen.receive.get_or_insert(0.0) += value,
            "network_transmit_bytes_per_second" => *seen.transmit.get_or_insert(0.0) += value,
            "disk_read_bytes_per_second" => *seen.read.get_or_insert(0.0) += value,
            "disk_write_bytes_per_second" => *seen.written.get_or_insert(0.0) += value,
            _ => {}
        }
    });
    seen.text()
}

#[derive(Default)]
struct Seen {
    cpu: Option<f64>,
    iowait: Option<f64>,
    load: Option<f64>,
    memory: Option<f64>,
    swap: Option<f64>,
    disk: Option<(String, f64)>,
    read: Option<f64>,
    written: Option<f64>,
    receive: Option<f64>,
    transmit: Option<f64>,
    processes: Option<f64>,
    fds: Option<f64>,
}

impl Seen {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut add = |part: Option<String>| {
            if let Some(part) = part {
                text += if text.is_empty() { "" } else { "  " };
                text += &part;
            }
        };
        let percent = |name: &str, value: Option<f64>| value.map(|value| format!("{name} {value:.1}%"));
        let rate = |name: &str, value: Option<f64>| value.map(|value| format!("{name} {}/s", whole_bytes(value)));
        add(percent("cpu", self.cpu));
        add(percent("iowait", self.iowait));
        add(self.load.map(|load| format!("load {load:.2}")));
        add(percent("mem", self.memory));
        add(percent("swap", self.swap));
        add(self.disk.as_ref().map(|(mount, used)| format!("disk {mount} {used:.0}%")));
        add(rate("read", self.read));
        add(rate("write", self.written));
        add(rate("rx", self.receive));
        add(rate("tx", self.transmit));
        add(percent("fds", self.fds));
        add(self.processes.map(|count| format!("procs {count:.0}")));
        text
    }
}

/// Every series with its value, a family a block.
///
/// # Errors
/// When `out` cannot be written.
pub fn table(readings: &dyn Readings, style: Style, out: &mut dyn io::Write) -> io::Result<()> {
    let mut result = Ok(());
    let mut family: Option<&'static Desc> = None;
    readings.visit(&mut |series| {
        if result.is_err() {
            return;
        }
        let mut head = String::new();
        if !family.is_some_and(|family| std::ptr::eq(family, series.metric)) {
            family = Some(series.metric);
            let name = style.paint(Colour::Bold, series.metric.name);
            head = format!("{name}  {}\n", style.paint(Colour::Dim, series.metric.help));
        }
        let mut labels = String::new();
        for (name, value) in series.labels() {
            _ = write!(labels, "{}{name}={}", if labels.is_empty() { "" } else { " " }, shown(value, 200));
        }
        let value = value_text(series.metric, series.value);
        result = writeln!(out, "{head}  {value:>16}  {labels}");
    });
    result
}

fn value_text(metric: &Desc, value: SeriesValue<'_>) -> String {
    let value = match value {
        SeriesValue::Number(value) => value,
        SeriesValue::Histogram { counts, sum } => {
            return format!("{} in {sum:.3} s", counts.iter().sum::<u64>());
        }
    };
    match (metric.unit, metric.kind) {
        (Unit::Bytes, _) => whole_bytes(value),
        (Unit::BytesPerSecond, _) => format!("{}/s", whole_bytes(value)),
        (Unit::Percent, _) => format!("{value:.2} %"),
        (Unit::Seconds, Kind::Gauge) if value > 1e9 => format!("{value:.0}"),
        (Unit::Seconds, _) => format!("{value:.3} s"),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.3}"),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded for people; as saturates")]
fn whole_bytes(value: f64) -> String {
    bytes_text(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::catalog;
    use crate::model::Series;

    /// Every metric that the agent has, each once and without labels, with the value 1.
    struct All;

    impl Readings for All {
        fn time(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn visit(&self, each: &mut dyn FnMut(Series<'_>)) {
            for (_, metric) in catalog::metrics() {
                each(Series { metric, key: "", value: SeriesValue::Number(1.0) });
            }
        }
    }

    #[test]
    fn the_line_has_every_part_from_a_metric_that_exists() {
        assert_eq!(
            line(&All),
            "cpu 1.0%  iowait 1.0%  load 1.00  mem 1.0%  swap 1.0%  disk  1%  read 1 B/s  write 1 B/s  rx 1 B/s  \
             tx 1 B/s  fds 1.0%  procs 1"
        );
    }
}
