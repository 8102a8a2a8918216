//! Remembers over restarts which hangs were told, so that none is told twice and each has its end.

use std::fmt::Write as _;
use std::time::Duration;

use super::hangs::{Sleep, TOLD_MAX, Told};
use crate::host::{Host, StateFiles};
use crate::model::Event;

const NAME: &str = "hung_task.told";

/// The file with the hangs that were told.
#[derive(Debug)]
pub(super) struct Kept {
    files: StateFiles,
    boot: String,
}

impl Kept {
    /// The file `hung_task.told`, and what it says of this boot. `None` where the boot has no name: nothing can be kept then.
    #[must_use]
    pub(super) fn open(host: &Host, files: &StateFiles) -> Option<(Self, Vec<Told>)> {
        let boot = host.files.read_text(&host.files.proc("sys/kernel/random/boot_id")).ok()?;
        let text = files.read(&host.files, NAME).unwrap_or_else(|error| {
            tracing::warn!("{error}: {}; hangs that were told before may be told again", error.source);
            None
        });
        let told = parse(&text.unwrap_or_default(), &boot);
        Some((Self { files: files.clone(), boot }, told))
    }

    /// Puts these in the place of those that are kept. It is not synced to the disk: with a power cut the boot ends too.
    pub(super) fn save(&mut self, told: impl Iterator<Item = Told>) {
        let mut text = format!("{}\n", self.boot);
        for told in told {
            let Sleep { tid, start, switches } = told.sleep;
            let start = start.map_or_else(|| "-".to_owned(), |start| start.to_string());
            let Ok(event) = serde_json::to_string(&told.event) else { continue };
            // Text grows without an error.
            let _ = writeln!(text, "{tid} {start} {switches} {} {event}", told.since.as_nanos());
        }
        self.files.write(NAME, text.into_bytes(), "after a restart hung tasks may be told twice");
    }
}

/// A line that is not understood is passed over.
fn parse(text: &str, boot: &str) -> Vec<Told> {
    let mut lines = text.lines();
    if boot.is_empty() || lines.next() != Some(boot) {
        return Vec::new();
    }
    lines.filter_map(line).take(TOLD_MAX).collect()
}

fn line(text: &str) -> Option<Told> {
    let mut parts = text.splitn(5, ' ');
    let tid: u32 = parts.next()?.parse().ok()?;
    let start = match parts.next()? {
        "-" => None,
        start => Some(start.parse().ok()?),
    };
    let switches = parts.next()?.parse().ok()?;
    let since = Duration::from_nanos(parts.next()?.parse().ok()?);
    let mut event: Event = serde_json::from_str(parts.next()?).ok()?;
    if let crate::model::Detail::HungTask(hang) = &mut event.detail {
        hang.switches = Some(switches);
    }
    (event.tid == Some(tid) && event.hang().is_some()).then(|| Told {
        sleep: Sleep { tid, start, switches },
        since,
        event: Box::new(event),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::{HungTask, Tier};
    use crate::model::{Detail, Source};

    fn told(tid: u32) -> Told {
        let hang = HungTask { tier: Some(Tier::Early), switches: Some(5), ..HungTask::default() };
        let event = Event {
            schema: Event::SCHEMA,
            time: "2026-02-22T16:30:00.000000000Z".to_owned(),
            source: vec![Source::TaskIter],
            pid: Some(tid),
            tid: Some(tid),
            comm: Some("a b\n\u{1b}[2J".to_owned()),
            uid: None,
            cgroup: Some("/x".to_owned()),
            detail: Detail::HungTask(hang),
            monotonic_ns: 0,
        };
        let sleep = Sleep { tid, start: (tid == 7).then_some(9), switches: 5 };
        Told { sleep, since: Duration::from_nanos(11), event: Box::new(event) }
    }

    #[test]
    fn what_is_saved_is_found_again_in_the_same_boot_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let boot = dir.path().join("proc/sys/kernel/random");
        std::fs::create_dir_all(&boot).expect("writable");
        std::fs::write(boot.join("boot_id"), "b00\n").expect("writable");
        let host = Host::fixture(dir.path());
        let files = StateFiles::within(Some(dir.path()));
        let (mut kept, none) = Kept::open(&host, &files).expect("the boot has a name");
        assert!(none.is_empty());
        kept.save([told(7), told(8)].into_iter());
        files.settle(Duration::from_secs(10));
        let (_, found) = Kept::open(&host, &files).expect("as before");
        for (found, saved) in found.iter().zip([told(7), told(8)]) {
            assert_eq!((found.sleep, found.since, &found.event), (saved.sleep, saved.since, &saved.event));
        }
        assert_eq!(found.len(), 2);
        std::fs::write(boot.join("boot_id"), "b01\n").expect("writable");
        assert!(Kept::open(&host, &files).expect("as before").1.is_empty());
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        let good = serde_json::to_string(&told(7).event).expect("an event is JSON");
        let text = format!("b00\n\nx\n7 - 5 11 {{}}\n8 - 5 11 {good}\n7 - 5 11 {good}\n7 - - 11 {good}");
        assert_eq!(parse(&text, "b00").len(), 1);
        assert!(parse(&text, "").is_empty() && parse("", "").is_empty());
    }
}
