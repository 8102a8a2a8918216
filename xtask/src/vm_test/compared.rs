//! Reads what the agent and other tools printed about the same faults, and holds it against what the kernel counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::Value;

use super::said::Section;

/// Kills of one process each; the group has five.
pub(super) const KILLS: usize = 20;
/// Of 4 KiB each, one after the other.
pub(super) const WRITES: u64 = 1000;
/// Of 4 KiB each, one after the other.
pub(super) const READS: u64 = 500;

/// A table, and what the agent should have seen and did not.
pub(super) struct Compared {
    /// Markdown.
    pub(super) text: String,
    /// One line each.
    pub(super) failures: Vec<String>,
}

/// The table of a guest.
pub(super) fn of(sections: &[Section]) -> Compared {
    let mut compared = Compared { text: String::new(), failures: Vec::new() };
    let kernel = body(sections, "kernel").lines().next().unwrap_or_default();
    let release = kernel.strip_prefix("Linux version ").and_then(|rest| rest.split(' ').next()).unwrap_or("?");
    let _ = writeln!(compared.text, "\n{release}\n");
    let _ = writeln!(
        compared.text,
        "| what happened | times | the kernel's own count | sysops-agent | libbpf-tools | bpftrace |"
    );
    let _ = writeln!(compared.text, "| --- | --- | --- | --- | --- | --- |");
    compared.kills(sections);
    for (stats, what) in [("io1", ""), ("io0", ", `queue/iostats` = 0")] {
        compared.requests(sections, stats, what);
    }
    compared
}

impl Compared {
    fn row(&mut self, what: &str, times: u64, kernel: &str, tools: [&str; 3]) {
        let _ = writeln!(self.text, "| {what} | {times} | {kernel} | {} |", tools.join(" | "));
    }

    fn kills(&mut self, sections: &[Section]) {
        let victims: BTreeMap<u64, String> = body(sections, "victims")
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(pid, cgroup)| Some((pid.parse().ok()?, format!("/{}", cgroup.trim()))))
            .collect();
        let truth = kernel_kills(body(sections, "oom truth"));
        let events = events(body(sections, "oom events"));
        let texts = ["oom oomkill", "oom oomkill.bt"].map(|name| (body(sections, name), killed(body(sections, name))));
        for (what, group) in [
            ("kills by memory cgroups, one process each".to_owned(), false),
            ("processes killed as one group (`memory.oom.group`)".to_owned(), true),
        ] {
            let of_row = |cgroup: &str| (cgroup == "/group") == group;
            let ours: BTreeSet<u64> =
                victims.iter().filter(|(_, cgroup)| of_row(cgroup)).map(|(pid, _)| *pid).collect();
            let truth: u64 = truth.iter().filter(|(cgroup, _)| of_row(cgroup)).map(|(_, count)| count).sum();
            let named = events.iter().filter(|(pid, _)| ours.contains(pid));
            let right = named.clone().filter(|(pid, cgroup)| victims.get(pid) == Some(cgroup)).count();
            let seen = named.map(|(pid, _)| pid).collect::<BTreeSet<_>>().len();
            // The kernel's own count has the first victim of a group twice.
            if seen != ours.len() || right != seen {
                self.failures.push(format!("{what}: {seen} events, {right} with the right cgroup, of {}", ours.len()));
            }
            let cells = texts.each_ref().map(|(text, killed)| {
                let of_row = || killed.iter().filter(|(pid, _)| ours.contains(pid));
                let right = of_row()
                    .filter(|(pid, line)| victims.get(pid).is_some_and(|cgroup| line.contains(&format!("{cgroup}\""))));
                let seen = of_row().map(|(pid, _)| pid).collect::<BTreeSet<_>>().len();
                match (killed.is_empty(), text.contains("CGROUP ")) {
                    (true, _) => nothing(text),
                    (false, false) => format!("{seen}, no cgroup"),
                    (false, true) => format!("{seen}, cgroup right in {}", right.count()),
                }
            });
            let agent = format!("{seen}, cgroup right in {right}");
            self.row(&what, ours.len() as u64, &truth.to_string(), [&agent, &cells[0], &cells[1]]);
        }
        let strangers = |pids: &[u64]| pids.iter().filter(|pid| !victims.contains_key(pid)).count().to_string();
        let agent = strangers(&events.iter().map(|(pid, _)| *pid).collect::<Vec<_>>());
        let texts = texts.map(|(_, killed)| strangers(&killed.iter().map(|(pid, _)| *pid).collect::<Vec<_>>()));
        self.row("kills told of others", 0, "–", [&agent, &texts[0], &texts[1]]);
    }

    fn requests(&mut self, sections: &[Section], stats: &str, with: &str) {
        let of = |what: &str, when: &str| body(sections, &format!("{stats} {what}{when}"));
        let truth = |when: &str| disk(of("truth ", when));
        let (before, after) = (metric(of("", "before")), metric(of("", "after")));
        let seen = after.saturating_sub(before);
        let (asked, kernel) =
            (WRITES + READS, truth("after").zip(truth("before")).map(|(after, before)| after - before));
        if seen != asked {
            self.failures.push(format!("{stats}: {seen} requests measured of {asked}"));
        }
        let cells = ["biolatency", "biolatency.bt"].map(|tool| {
            let text = of(tool, "");
            let (total, median) = histogram(text);
            if total == 0 { nothing(text) } else { format!("{total}, median in {median}") }
        });
        let agent = format!("{seen}, median in {}", median(of("", "before"), of("", "after")));
        let what = format!("direct requests, answered after 2 ms{with}");
        self.row(
            &what,
            asked,
            &kernel.map_or_else(|| "?".to_owned(), |count| count.to_string()),
            [&agent, &cells[0], &cells[1]],
        );
    }
}

fn body<'a>(sections: &'a [Section], name: &str) -> &'a str {
    sections.iter().find(|section| section.name == name).map_or("", |section| section.body.as_str())
}

/// A tool that saw nothing may have said why.
fn nothing(text: &str) -> String {
    let complaint =
        |line: &&str| ["ERROR", "rror:", "ailed", "annot", "ould not"].iter().any(|word| line.contains(word));
    let why = text.lines().find(complaint).map(|line| format!(": `{}`", line.trim().replace('|', "/")));
    format!("0{}", why.unwrap_or_default())
}

/// Cgroup and kills of `…/group/memory.events oom_kill 5`.
fn kernel_kills(text: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let (file, count) = line.split_once(" oom_kill ")?;
        let cgroup = file.strip_prefix("/sys/fs/cgroup")?.strip_suffix("/memory.events")?;
        Some((cgroup.to_owned(), count.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Pid and cgroup of the agent's events.
fn events(text: &str) -> Vec<(u64, String)> {
    let event = |line: &str| {
        let event: Value = serde_json::from_str(line).ok()?;
        Some((event["pid"].as_u64()?, event["cgroup"].as_str().unwrap_or_default().to_owned()))
    };
    text.lines().filter_map(event).collect()
}

/// Pid and line of each `OOM kill of PID 12 ("dd")`, which both tools print; newer ones with the cgroup before it.
fn killed(text: &str) -> Vec<(u64, &str)> {
    let kill = |line: &'_ str| -> Option<u64> {
        line.split_once("OOM kill of PID ")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    // A script that cannot be run is printed with its complaint.
    text.lines().filter(|line| !line.starts_with("//")).filter_map(|line| Some((kill(line)?, line))).collect()
}

/// Completed reads and writes of /sys/block/…/stat.
fn disk(stat: &str) -> Option<u64> {
    let numbers: Vec<u64> = stat.split_whitespace().map_while(|word| word.parse().ok()).collect();
    Some(numbers.first()? + numbers.get(4)?)
}

/// Requests of the disk in the agent's metrics.
fn metric(text: &str) -> u64 {
    let of_disk = text.lines().filter(|line| line.contains("latency_seconds_count{") && line.contains("\"nullb0\""));
    of_disk.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// The bucket of the agent's histogram in which the middle of what was added lies.
fn median(before: &str, after: &str) -> String {
    let cumulative = |text: &str| {
        let mut sums: BTreeMap<u64, u64> = BTreeMap::new();
        for line in text.lines().filter(|line| line.contains("latency_seconds_bucket{") && line.contains("\"nullb0\""))
        {
            let bound = line.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
            let bound = bound.and_then(|bound| bound.parse::<f64>().ok()).filter(|bound| bound.is_finite());
            let count = line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok());
            if let (Some(bound), Some(count)) = (bound, count) {
                *sums.entry((bound * 1e6).round() as u64).or_default() += count;
            }
        }
        sums
    };
    let (before, mut after) = (cumulative(before), cumulative(after));
    for (bound, count) in &mut after {
        *count -= before.get(bound).copied().unwrap_or_default().min(*count);
    }
    let half = after.values().max().copied().unwrap_or_default() / 2;
    let place = after.iter().find(|(_, count)| **count > half).map(|(bound, _)| *bound);
    let lower = place.and_then(|place| after.keys().rev().find(|bound| **bound < place));
    match (lower, place) {
        (Some(lower), Some(upper)) => format!("{lower}–{upper} µs"),
        _ => "?".to_owned(),
    }
}

/// Total and the bucket of the middle of `1024 -> 2047 : 500 |***|` (libbpf-tools) and `[1K, 2K) 500 |@@@|` (bpftrace).
fn histogram(text: &str) -> (u64, String) {
    let number = |text: &str| {
        let text = text.trim();
        match text.strip_suffix('K') {
            Some(thousands) => thousands.parse::<u64>().ok().map(|count| count * 1024),
            None => text.parse().ok(),
        }
    };
    let bucket = |line: &str| {
        let (range, rest) = line.split_once(" : ").or_else(|| line.split_once(')'))?;
        let count: u64 = rest.split('|').next()?.trim().parse().ok()?;
        let range = range.trim().trim_start_matches('[');
        let (low, high) = range.split_once("->").or_else(|| range.split_once(','))?;
        let (low, high) = (number(low)?, number(high)?);
        Some((low, high + u64::from(range.contains("->")), count))
    };
    let buckets: Vec<(u64, u64, u64)> = text.lines().filter_map(bucket).collect();
    let total: u64 = buckets.iter().map(|(_, _, count)| count).sum();
    let mut below = 0;
    let middle = buckets.iter().find(|(_, _, count)| {
        below += count;
        below > total / 2
    });
    (total, middle.map_or_else(|| "?".to_owned(), |(low, high, _)| format!("{low}–{high} µs")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(name: &str, body: &str) -> Section {
        Section { name: name.to_owned(), body: body.to_owned(), status: Some(0), uptime: None }
    }

    #[test]
    fn histograms_of_both_tools_are_read() {
        let bcc = "disk = nullb0\n     usecs               : count    distribution\n      1024 -> 2047       : 10       |**  |\n      2048 -> 4095       : 1490     |****|\n";
        assert_eq!(histogram(bcc), (1500, "2048–4096 µs".to_owned()));
        let bpftrace = "Tracing\n@usecs: \n[512, 1K)              3 |@   |\n[1K, 2K)            1497 |@@@@|\n";
        assert_eq!(histogram(bpftrace), (1500, "1024–2048 µs".to_owned()));
        assert_eq!(histogram("ERROR: no such function"), (0, "?".to_owned()));
    }

    #[test]
    fn what_each_saw_is_held_against_the_kernel() {
        let event = |pid: u64, cgroup: &str| format!("{{\"pid\":{pid},\"cgroup\":\"{cgroup}\"}}\n");
        let sections = [
            section("victims", "7 one-1\n8 group\n9 group\n"),
            section(
                "oom truth",
                "/sys/fs/cgroup/one-1/memory.events oom_kill 1\n/sys/fs/cgroup/group/memory.events oom_kill 2\n",
            ),
            section("oom events", &(event(7, "/one-1") + &event(8, "/group") + "watching\n")),
            section(
                "oom oomkill",
                "12:00 Triggered by PID 7 (\"dd\"), OOM kill of PID 7 (\"dd\"), 4096 pages\nOOM kill of PID 99 (\"x\")",
            ),
            section("oom oomkill.bt", "ERROR: Could not resolve symbol: oom_kill_process\n"),
        ];
        let mut compared = Compared { text: String::new(), failures: Vec::new() };
        compared.kills(&sections);
        assert!(
            compared.text.contains("| 1 | 1 | 1, cgroup right in 1 | 1, no cgroup | 0: `ERROR: Could not"),
            "{}",
            compared.text
        );
        assert!(compared.text.contains("| 2 | 2 | 1, cgroup right in 1 | 0, no cgroup |"), "{}", compared.text);
        assert!(compared.text.contains("| kills told of others | 0 | – | 0 | 1 | 0 |"), "{}", compared.text);
        assert_eq!(compared.failures.len(), 1, "one of the group was not told: {:?}", compared.failures);
    }

    #[test]
    fn a_cgroup_that_a_tool_prints_is_held_against_the_victims() {
        let line = "Triggered by PID 7 (\"dd\"), CGROUP 5 (\"unified:/one-1\"), OOM kill of PID 7 (\"dd\"), 9 pages\n";
        let wrong = line.replace("one-1", "two").replace("PID 7", "PID 8");
        let sections =
            [section("victims", "7 one-1\n8 one-2\n"), section("oom oomkill.bt", &(line.to_owned() + &wrong))];
        let mut compared = Compared { text: String::new(), failures: Vec::new() };
        compared.kills(&sections);
        assert!(compared.text.contains("| 2, cgroup right in 1 |"), "{}", compared.text);
    }

    #[test]
    fn the_agents_histogram_has_a_middle() {
        let text = |a: u64, b: u64| {
            format!(
                "x_block_io_latency_seconds_bucket{{device=\"nullb0\",le=\"0.001024\"}} {a}\nx_block_io_latency_seconds_bucket{{device=\"nullb0\",le=\"0.002048\"}} {b}\n"
            )
        };
        assert_eq!(median(&text(5, 5), &text(6, 105)), "1024–2048 µs");
        assert_eq!(metric("x_latency_seconds_count{device=\"nullb0\",operation=\"read\"} 5\n"), 5);
        assert_eq!(disk(" 500 0 4000 9 1000 0 8000 9 0 0 0"), Some(1500));
    }
}
