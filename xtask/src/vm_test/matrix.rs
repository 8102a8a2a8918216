//! What all guests said as tables: probe × rung × kernel, conditions, tests, and the reasons behind them; and what of it
//! is a failure.

use std::fmt::Write;

use super::said::{Outcome, Section, Standing};
use super::suites;

/// What one kernel said.
pub(crate) struct Guest {
    /// `6.12`.
    pub(crate) series: &'static str,
    /// In the order in which it was said.
    pub(crate) sections: Vec<Section>,
    /// Why it did not come to its end, if so.
    pub(crate) stopped: Option<String>,
    /// Programs can be attached to its kernel.
    pub(crate) attaches: bool,
}

/// A probe with the rungs that can be forced.
type Probe = (String, Vec<String>);

/// The tables as text, and what of them must not be.
pub(crate) struct Matrix {
    /// Markdown.
    pub(crate) text: String,
    /// One line each.
    pub(crate) failures: Vec<String>,
}

/// The tables of `guests`; `probes` are those of the agent with the rungs that can be forced.
pub(crate) fn of(guests: &[Guest], probes: &[Probe]) -> Matrix {
    let mut tables = Tables { guests, probes, notes: Vec::new(), failures: Vec::new() };
    let mut text = tables.kernels();
    text += &tables.rungs();
    text += &tables.conditions();
    text += &tables.tests();
    for (place, note) in tables.notes.iter().enumerate() {
        let _ = writeln!(text, "({}) {note}", place + 1);
    }
    Matrix { text, failures: tables.failures }
}

struct Tables<'a> {
    guests: &'a [Guest],
    probes: &'a [Probe],
    notes: Vec<String>,
    failures: Vec<String>,
}

impl Tables<'_> {
    fn kernels(&mut self) -> String {
        let mut text = String::new();
        for guest in self.guests {
            let version = guest.section("kernel").and_then(|section| version(&section.body));
            let version = version.unwrap_or_else(|| "it did not say which".to_owned());
            let seconds = guest.sections.iter().rev().find_map(|section| section.uptime);
            let took = seconds.map_or_else(String::new, |seconds| format!(", {seconds:.0} s"));
            let _ = writeln!(text, "{:<5} {version}: {} sections{took}", guest.series, guest.sections.len());
            if let Some(why) = &guest.stopped {
                self.failures.push(format!("{}: {why}", guest.series));
            }
        }
        text
    }

    /// A rung is passed when the probe stood on it and every test of it that ran was so.
    fn rungs(&mut self) -> String {
        let mut rows = Vec::new();
        let guests = self.guests;
        for (probe, rungs) in self.probes {
            for rung in rungs {
                let cells: Vec<String> = guests.iter().map(|guest| self.rung(guest, probe, rung)).collect();
                if cells.iter().any(|cell| cell != "–") {
                    rows.push((format!("{probe} | {rung}"), cells));
                }
            }
            for (place, guest) in guests.iter().enumerate().filter(|(_, guest)| guest.attaches) {
                let mine = rows.iter().filter(|(name, _)| name.split(" | ").next() == Some(probe));
                if !mine.clone().any(|(_, cells)| cells[place].starts_with("passed")) {
                    self.failures.push(format!("{}: {probe} passed on no rung", guest.series));
                }
            }
        }
        for guest in guests.iter().filter(|guest| !guest.attaches) {
            self.unattached(guest);
        }
        self.table("probe | rung forced", &rows)
    }

    /// Where nothing can be attached no probe has a program, and each says why.
    fn unattached(&mut self, guest: &Guest) {
        let standings = guest.section("condition nothing special").and_then(Section::standings).unwrap_or_default();
        let without =
            |standing: &&Standing| !["off", "kmsg", "proc"].contains(&&*standing.rung) || standing.reason.is_empty();
        for Standing { probe, rung, .. } in standings.iter().filter(without) {
            self.failures.push(format!("{}: {probe} stands on {rung}, or does not say why", guest.series));
        }
    }

    fn rung(&mut self, guest: &Guest, probe: &str, rung: &str) -> String {
        let standings = guest.section(&format!("forced {rung}")).and_then(Section::standings);
        let Some(standing) = standings.as_deref().and_then(|all| all.iter().find(|one| one.probe == probe)) else {
            self.failures.push(format!("{}: no word about {probe} on {rung}", guest.series));
            return "no answer".to_owned();
        };
        if standing.rung != rung {
            if standing.reason.ends_with("this probe has no such rung") {
                return "–".to_owned();
            }
            let reason = standing.reason.split_once("is asked for, but: ").map_or(&*standing.reason, |(_, why)| why);
            return format!("refused {}", self.note(reason));
        }
        let outcomes: Vec<Outcome> = guest
            .tests()
            .filter(|(suite, name, _)| covers(suites::probe_of(suite, self.probes), name, probe, rung))
            .map(|(_, _, section)| section.outcome())
            .collect();
        let passed = outcomes.iter().filter(|outcome| **outcome == Outcome::Passed).count();
        let not_run = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::NotRun(reason) => Some(reason.clone()),
            Outcome::Passed | Outcome::Failed(_) => None,
        });
        if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed(_))) {
            return "FAILED".to_owned();
        }
        match (passed, not_run) {
            (0, None) => "stands".to_owned(),
            (0, Some(reason)) => format!("stands; tests not run {}", self.note(&reason)),
            (1, _) => "passed (1 test)".to_owned(),
            (more, _) => format!("passed ({more} tests)"),
        }
    }

    fn conditions(&mut self) -> String {
        let guests = self.guests;
        let Some(first) = guests.first() else { return String::new() };
        let mut rows = Vec::new();
        for condition in first.sections.iter().filter_map(|section| section.name.strip_prefix("condition ")) {
            let cells = guests.iter().map(|guest| self.condition(guest, condition)).collect();
            rows.push((condition.to_owned(), cells));
        }
        self.table("condition", &rows)
    }

    /// Rungs with the probes that chose them, and reasons that were not there already when nothing was special.
    fn condition(&mut self, guest: &Guest, condition: &str) -> String {
        let Some(section) = guest.section(&format!("condition {condition}")) else { return "no answer".to_owned() };
        let Some(standings) = section.standings() else {
            if let Some(reason) = section.skipped() {
                return format!("not made {}", self.note(&reason));
            }
            self.failures.push(format!("{}: no word under the condition {condition}", guest.series));
            return "no answer".to_owned();
        };
        let mut rungs: Vec<(&str, Vec<&Standing>)> = Vec::new();
        for standing in &standings {
            match rungs.iter_mut().find(|(rung, _)| *rung == standing.rung) {
                Some((_, probes)) => probes.push(standing),
                None => rungs.push((&standing.rung, vec![standing])),
            }
        }
        let cells = rungs.iter().map(|(rung, probes)| {
            let mut cell = if rungs.len() == 1 { format!("all {rung}") } else { String::new() };
            for standing in probes {
                let note = if worth_a_note(standing) { self.note(&standing.reason) } else { String::new() };
                if rungs.len() > 1 {
                    let _ = write!(cell, "{}{} {rung}", if cell.is_empty() { "" } else { ", " }, standing.probe);
                }
                if !note.is_empty() && !cell.ends_with(&note) {
                    let _ = write!(cell, " {note}");
                }
            }
            cell
        });
        cells.collect::<Vec<_>>().join(", ")
    }

    fn tests(&mut self) -> String {
        let guests = self.guests;
        let mut names: Vec<(&str, &str)> = Vec::new();
        for (suite, name, _) in guests.iter().flat_map(Guest::tests) {
            if !names.contains(&(suite, name)) {
                names.push((suite, name));
            }
        }
        let mut rows = Vec::new();
        for (suite, name) in names {
            let cells = guests.iter().map(|guest| {
                let section =
                    guest.tests().find(|found| (found.0, found.1) == (suite, name)).map(|(_, _, section)| section);
                match section.map(Section::outcome) {
                    Some(Outcome::Passed) => "passed".to_owned(),
                    Some(Outcome::NotRun(reason)) => format!("not run {}", self.note(&reason)),
                    Some(Outcome::Failed(why)) => {
                        self.failures.push(format!("{}: {suite} {name}: {why}", guest.series));
                        "FAILED".to_owned()
                    }
                    None => "no answer".to_owned(),
                }
            });
            rows.push((format!("{suite} | {name}"), cells.collect()));
        }
        self.table("tests | name", &rows)
    }

    /// The mark of a reason, which stands once below the tables.
    fn note(&mut self, reason: &str) -> String {
        let place = self.notes.iter().position(|note| note == reason).unwrap_or_else(|| {
            self.notes.push(reason.to_owned());
            self.notes.len() - 1
        });
        format!("({})", place + 1)
    }

    fn table(&self, head: &str, rows: &[(String, Vec<String>)]) -> String {
        if rows.is_empty() {
            return String::new();
        }
        let series: Vec<&str> = self.guests.iter().map(|guest| guest.series).collect();
        let mut lines: Vec<Vec<String>> = vec![head.split(" | ").chain(series).map(str::to_owned).collect()];
        lines.extend(
            rows.iter().map(|(name, cells)| name.split(" | ").map(str::to_owned).chain(cells.clone()).collect()),
        );
        let columns = lines[0].len();
        let width =
            |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = "\n".to_owned();
        for (place, line) in lines.iter().enumerate() {
            let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            let _ = writeln!(text, "| {} |", cells.join(" | "));
            if place == 0 {
                let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
                let _ = writeln!(text, "| {} |", rule.join(" | "));
            }
        }
        text + "\n"
    }
}

/// Release and build of /proc/version, without who compiled it with what.
fn version(text: &str) -> Option<String> {
    let release = text.strip_prefix("Linux version ")?.split_whitespace().next()?;
    Some(format!("{release} {}", text.get(text.find('#')?..)?.trim()))
}

/// A probe that stands by has a reason, and it is not one for a lower rung.
fn worth_a_note(standing: &Standing) -> bool {
    !standing.reason.is_empty() && standing.rung != "tp_btf"
}

/// True for a test `of` a probe that shows it on `rung`: its name ends in `_on_tp_btf`, or in `_on_every_rung` that has a program.
fn covers(of: Option<&str>, name: &str, probe: &str, rung: &str) -> bool {
    let every = rung != "kmsg" && name.ends_with("_on_every_rung");
    of == Some(probe) && (every || name.ends_with(&format!("_on_{rung}")))
}

impl Guest {
    fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    fn tests(&self) -> impl Iterator<Item = (&str, &str, &Section)> {
        self.sections.iter().filter_map(|section| {
            let (suite, name) = section.name.strip_prefix("test ")?.split_once(' ')?;
            Some((suite, name, section))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::said::sections;
    use super::*;

    fn guest(series: &'static str, said: &str) -> Guest {
        let (sections, done) = sections(said);
        Guest { series, sections, stopped: (!done).then(|| "it stopped".to_owned()), attaches: series != "uml" }
    }

    fn forced(rung: &str, stands: &str, reason: &str) -> String {
        format!(
            "@@begin forced {rung}\n{{\n\"probes\": [{{\"name\": \"fd\", \"rung\": \"{stands}\", \"reason\": \"{reason}\"}}]\n}}\n@@end 0\n"
        )
    }

    fn test(name: &str, passed: bool) -> String {
        let (word, status) = if passed { ("test result: ok. 1 passed", 0) } else { ("panicked at x:\nwhy", 101) };
        format!("@@begin test kernel_fd {name}\n{word}\n@@end {status}\n")
    }

    fn probes() -> Vec<(String, Vec<String>)> {
        vec![("fd".to_owned(), ["tp_btf", "tracepoint", "kmsg"].map(str::to_owned).to_vec())]
    }

    #[test]
    fn each_rung_is_passed_refused_or_has_none() {
        let said = forced("tp_btf", "tp_btf", "")
            + &forced("tracepoint", "off", "tracepoint is asked for, but: tracefs is not mounted")
            + &forced("kmsg", "off", "kmsg is asked for, but: this probe has no such rung")
            + &test("counted_on_tp_btf", true)
            + "@@done\n";
        let matrix = of(&[guest("6.1", &said)], &probes());
        assert!(matrix.failures.is_empty(), "{:?}", matrix.failures);
        assert!(matrix.text.contains("| fd    | tp_btf      | passed (1 test) |"), "{}", matrix.text);
        assert!(matrix.text.contains("| fd    | tracepoint  | refused (1)     |"), "{}", matrix.text);
        assert!(matrix.text.contains("(1) tracefs is not mounted\n"), "{}", matrix.text);
        assert!(!matrix.text.contains("| kmsg"), "no probe has it: {}", matrix.text);
    }

    #[test]
    fn a_failed_test_fails_its_rung_and_a_silent_guest_all() {
        let said = forced("tp_btf", "tp_btf", "")
            + &forced("tracepoint", "tracepoint", "")
            + &forced("kmsg", "off", "kmsg is asked for, but: this probe has no such rung")
            + &test("counted_on_tp_btf", false)
            + &test("counted_on_tracepoint", true)
            + "@@done\n";
        let matrix = of(&[guest("5.10", &said), guest("7.x", "")], &probes());
        assert!(matrix.text.contains("| fd    | tp_btf      | FAILED          | no answer |"), "{}", matrix.text);
        assert!(matrix.text.contains("| fd    | tracepoint  | passed (1 test) | no answer |"), "{}", matrix.text);
        let has = |line: &str| matrix.failures.iter().any(|failure| failure == line);
        assert!(has("5.10: kernel_fd counted_on_tp_btf: why"), "{:?}", matrix.failures);
        assert!(has("7.x: it stopped") && has("7.x: fd passed on no rung"), "{:?}", matrix.failures);
    }

    #[test]
    fn a_rung_that_only_stands_was_not_tested() {
        let said = forced("tp_btf", "tp_btf", "") + "@@done\n";
        let matrix = of(&[guest("6.1", &said)], &[("fd".to_owned(), vec!["tp_btf".to_owned()])]);
        assert!(matrix.text.contains("| stands |"), "{}", matrix.text);
        assert_eq!(matrix.failures, ["6.1: fd passed on no rung"]);
    }

    #[test]
    fn where_nothing_attaches_a_reason_is_all_that_is_wanted() {
        let standing = |rung: &str, reason: &str| {
            forced("tp_btf", rung, reason).replace("forced tp_btf", "condition nothing special")
        };
        let said = |rung: &str, reason: &str| forced("tp_btf", "off", "no BTF") + &standing(rung, reason) + "@@done\n";
        let probes = [("fd".to_owned(), vec!["tp_btf".to_owned()])];
        let failures = |rung: &str, reason: &str| of(&[guest("uml", &said(rung, reason))], &probes).failures;
        assert!(failures("kmsg", "no BTF").is_empty(), "{:?}", failures("kmsg", "no BTF"));
        assert_eq!(failures("off", ""), ["uml: fd stands on off, or does not say why"]);
        assert_eq!(failures("tp_btf", "x").len(), 1);
    }

    #[test]
    fn a_version_is_release_and_build() {
        let text = "Linux version 6.1.0-50-amd64 (someone@example.org) (gcc-12 12.2.0, GNU ld 2.40) #1 SMP Debian 6.1.176-1\n\n";
        assert_eq!(version(text).as_deref(), Some("6.1.0-50-amd64 #1 SMP Debian 6.1.176-1"));
        assert_eq!(version("nothing of the kind"), None);
    }

    #[test]
    fn a_tests_name_tells_its_rung() {
        assert!(covers(Some("fd"), "counted_on_raw_tracepoint", "fd", "raw_tracepoint"));
        assert!(!covers(Some("fd"), "counted_on_raw_tracepoint", "fd", "tracepoint"));
        assert!(!covers(Some("fd"), "counted_on_raw_tracepoint", "oom_kill", "raw_tracepoint"));
        assert!(covers(Some("hung_task"), "one_event_on_every_rung", "hung_task", "tracepoint"));
        assert!(!covers(Some("hung_task"), "one_event_on_every_rung", "hung_task", "kmsg"));
    }
}
