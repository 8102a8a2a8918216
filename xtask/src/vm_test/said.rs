//! What a guest said on its serial line: sections between marks, and what became of a test or of a look at the agent.
//! What all guests together mean is left to `matrix`.

use serde_json::Value;

/// Before the name of a section.
pub(crate) const BEGIN: &str = "@@begin ";
/// Before the exit status that ends a section, and the time of it.
pub(crate) const END: &str = "@@end ";
/// The guest came to its end.
pub(crate) const DONE: &str = "@@done";

/// What was said about one thing.
pub(crate) struct Section {
    /// `test kernel_fd some_name`.
    pub(crate) name: String,
    /// Between the marks.
    pub(crate) body: String,
    /// None: the guest ended before.
    pub(crate) status: Option<i32>,
    /// The guest's own seconds at its end.
    pub(crate) uptime: Option<f64>,
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ran, and all of it was so.
    Passed,
    /// It could not run, for this reason.
    NotRun(String),
    /// It failed, with its first words about it.
    Failed(String),
}

/// Where a probe stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Its name.
    pub(crate) probe: String,
    /// The rung's word.
    pub(crate) rung: String,
    /// Why no better one.
    pub(crate) reason: String,
}

/// All sections, and whether the guest came to its end.
pub(crate) fn sections(said: &str) -> (Vec<Section>, bool) {
    let mut sections: Vec<Section> = Vec::new();
    let mut open = false;
    for line in said.lines().map(|line| line.trim_end_matches('\r')) {
        if let Some(name) = line.strip_prefix(BEGIN) {
            sections.push(Section { name: name.to_owned(), body: String::new(), status: None, uptime: None });
            open = true;
        } else if let (Some(section), true) = (sections.last_mut(), open) {
            let mut end = line.strip_prefix(END).unwrap_or_default().split(' ');
            if let Some(status) = end.next().and_then(|status| status.parse().ok()) {
                section.status = Some(status);
                section.uptime = end.next().and_then(|seconds| seconds.parse().ok());
                open = false;
            } else {
                section.body.push_str(line);
                section.body.push('\n');
            }
        }
    }
    (sections, !open && said.lines().any(|line| line.trim_end_matches('\r') == DONE))
}

impl Section {
    /// What became of a test that was run alone.
    pub(crate) fn outcome(&self) -> Outcome {
        let Some(status) = self.status else { return Outcome::Failed("the guest ended before it".to_owned()) };
        if status != 0 {
            let panic = self.body.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
            let why = panic.map_or_else(|| format!("status {status}"), str::to_owned);
            return Outcome::Failed(why);
        }
        if let Some(reason) = self.skipped() {
            return Outcome::NotRun(reason);
        }
        if self.body.contains("test result: ok. 1 passed") {
            return Outcome::Passed;
        }
        Outcome::Failed("it ended well and ran no test".to_owned())
    }

    /// Why it could not be run. Without capture a test's words follow its name on the same line.
    pub(crate) fn skipped(&self) -> Option<String> {
        self.body.lines().find_map(|line| line.split_once("skipped: ")).map(|(_, reason)| reason.trim().to_owned())
    }

    /// Where the probes stand, as `doctor --json` prints it.
    pub(crate) fn standings(&self) -> Option<Vec<Standing>> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        // The log comes before it, on the same line of communication.
        let start = if self.body.starts_with("{\n") { 0 } else { self.body.find("\n{\n")? + 1 };
        let end = start + self.body.get(start..)?.find("\n}\n")? + 3;
        let report: Value = serde_json::from_str(self.body.get(start..end)?).ok()?;
        report["probes"]
            .as_array()?
            .iter()
            .map(|probe| {
                Some(Standing {
                    probe: text(&probe["name"])?,
                    rung: text(&probe["rung"])?,
                    reason: text(&probe["reason"])?,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "insmod: noise before\r\n@@begin kernel\r\nLinux version 6.1\r\n\r\n@@end 0 3.25\r\n\
        @@begin forced tp_btf\nWARN something\n{\n  \"probes\": [{\"name\": \"fd\", \"rung\": \"off\", \"reason\": \"why\"}]\n}\n\n@@end 1\n\
        @@begin test a works\ntest works ... ok\n\ntest result: ok. 1 passed; 0 failed\n@@end 0\n\
        @@begin test a lacks\ntest lacks ... skipped: needs root\nok\ntest result: ok. 1 passed; 0 failed\n@@end 0\n\
        @@begin test a fails\nthread 'fails' panicked at tests/a.rs:1:\nassertion failed\n@@end 101\n\
        @@begin test a renamed\ntest result: ok. 0 passed; 0 failed; 3 filtered out\n@@end 0\n\
        @@begin test a hangs\n@@end 137\n";

    #[test]
    fn sections_are_told_apart() {
        let (sections, done) = sections(&format!("{SAID}@@done\r\n"));
        assert!(done);
        assert_eq!(sections.len(), 7);
        assert_eq!((sections[0].name.as_str(), sections[0].body.trim()), ("kernel", "Linux version 6.1"));
        assert_eq!((sections[0].status, sections[0].uptime), (Some(0), Some(3.25)));
        assert_eq!((sections[1].status, sections[1].uptime), (Some(1), None));
        let expected = Standing { probe: "fd".into(), rung: "off".into(), reason: "why".into() };
        assert_eq!(sections[1].standings(), Some(vec![expected]));
        let outcomes: Vec<Outcome> = sections[2..].iter().map(Section::outcome).collect();
        let failed = |why: &str| Outcome::Failed(why.to_owned());
        assert_eq!(
            outcomes,
            [
                Outcome::Passed,
                Outcome::NotRun("needs root".to_owned()),
                failed("assertion failed"),
                failed("it ended well and ran no test"),
                failed("status 137")
            ]
        );
    }

    #[test]
    fn a_guest_that_stopped_has_no_end() {
        let (sections, done) = sections("@@begin test a b\ntest b ... ");
        assert!(!done);
        assert_eq!(sections[0].outcome(), Outcome::Failed("the guest ended before it".to_owned()));
        assert_eq!(sections[0].standings(), None);
    }

    #[test]
    fn a_mark_in_the_middle_of_a_line_is_no_mark() {
        let (sections, _) = sections("@@begin a\nsome @@end 0\n@@end x\n@@end 3\n");
        assert_eq!((sections.len(), sections[0].status, sections[0].body.lines().count()), (1, Some(3), 2));
    }
}
