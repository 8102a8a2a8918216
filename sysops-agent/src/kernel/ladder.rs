//! The ladder of a probe: which rungs could stand, which is taken, and why no better one. Pure but for `climb`, which
//! calls back to attach. What makes a rung stand is left to the probe.

use super::Rung;
use crate::spec::{Key, Values};

/// Why a rung does not stand, and what an operator can do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Why.
    pub reason: String,
    /// What to do; empty when there is nothing to do.
    pub remedy: String,
}

impl Refusal {
    /// A reason with its remedy.
    #[must_use]
    pub(super) fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into() }
    }
}

/// One rung and whether it stands as far as facts tell, without having tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The rung.
    pub rung: Rung,
    /// Nothing against it, or the first thing that is.
    pub stands: Result<(), Refusal>,
}

/// What facts and configuration come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// The rung to take.
    pub rung: Rung,
    /// Why no better one; empty on the best.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
    /// The configuration asked for a rung that cannot stand.
    pub forced_and_failed: bool,
}

/// The words of the key `kernel.<probe>.rung`.
pub(super) const WORDS: &[&str] =
    &["auto", "fentry", "kprobe", "tp_btf", "raw_tracepoint", "tracepoint", "iter", "kmsg", "proc", "off"];

/// The rung that the configuration asks for; `None` for `auto`.
#[must_use]
pub(super) fn forced(values: &Values, key: &'static Key<String>) -> Option<Rung> {
    let word = values.get(key);
    Rung::ALL.into_iter().find(|rung| rung.word() == word)
}

/// Takes the first step that stands, or the one that is forced.
#[must_use]
pub(super) fn choose(steps: &[Step], forced: Option<Rung>) -> Choice {
    match forced {
        Some(Rung::Off) => Choice {
            rung: Rung::Off,
            reason: "turned off in the configuration".into(),
            remedy: String::new(),
            forced_and_failed: false,
        },
        Some(rung) => choose_forced(steps, rung),
        None => {
            let place = steps.iter().position(|step| step.stands.is_ok());
            let (reason, remedy) = explain(&steps[..place.unwrap_or(steps.len())]);
            let rung = place.map_or(Rung::Off, |place| steps[place].rung);
            Choice { rung, reason, remedy, forced_and_failed: false }
        }
    }
}

fn choose_forced(steps: &[Step], rung: Rung) -> Choice {
    let refused = |refusal: Refusal| Choice {
        rung: Rung::Off,
        reason: format!("{} is asked for, but: {}", rung.word(), refusal.reason),
        remedy: refusal.remedy,
        forced_and_failed: true,
    };
    match steps.iter().find(|step| step.rung == rung) {
        None => refused(Refusal::new("this probe has no such rung", "")),
        Some(Step { stands: Err(refusal), .. }) => refused(refusal.clone()),
        Some(_) => Choice {
            rung,
            reason: "asked for in the configuration".into(),
            remedy: String::new(),
            forced_and_failed: false,
        },
    }
}

/// Chooses, attaches, and on failure goes on to the next rung, with the failure as one more reason. `Kmsg`,
/// `Proc` and `Off` attach nothing.
pub(super) fn climb(
    mut steps: Vec<Step>,
    forced: Option<Rung>,
    mut attach: impl FnMut(Rung) -> Result<(), Refusal>,
) -> Choice {
    loop {
        let choice = choose(&steps, forced);
        if matches!(choice.rung, Rung::Kmsg | Rung::Proc | Rung::Off) {
            return choice;
        }
        match attach(choice.rung) {
            Ok(()) => return choice,
            Err(refusal) => {
                for step in &mut steps {
                    if step.rung == choice.rung {
                        step.stands = Err(refusal.clone());
                    }
                }
            }
        }
    }
}

/// All refusals as one text, rungs that were refused for the same reason together; and their remedies.
fn explain(refused: &[Step]) -> (String, String) {
    let mut reasons: Vec<(Vec<&str>, &str)> = Vec::new();
    let mut remedies: Vec<&str> = Vec::new();
    for step in refused {
        let Err(refusal) = &step.stands else { continue };
        match reasons.iter_mut().find(|(_, reason)| *reason == refusal.reason) {
            Some((rungs, _)) => rungs.push(step.rung.word()),
            None => reasons.push((vec![step.rung.word()], &refusal.reason)),
        }
        if !refusal.remedy.is_empty() && !remedies.contains(&refusal.remedy.as_str()) {
            remedies.push(&refusal.remedy);
        }
    }
    let reasons: Vec<String> =
        reasons.iter().map(|(rungs, reason)| format!("{}: {reason}", rungs.join(", "))).collect();
    (reasons.join("; "), remedies.join("; "))
}

/// What decides where a probe on one tracepoint stands. Each part is a fact on its own; a test takes away one at a time.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    /// The object is in this binary.
    pub object: Result<(), Refusal>,
    /// The kernel lets this process load programs.
    pub privilege: Result<(), Refusal>,
    /// BTF has the tracepoint with the arguments and the members that the program needs.
    pub types: Result<(), Refusal>,
    /// tracefs has the tracepoint with the fields that the program needs.
    pub format: Result<(), Refusal>,
    /// The kernel's log tells of it and can be read; `None` when the log says nothing of the kind.
    pub log: Option<Result<(), Refusal>>,
}

impl Ground {
    /// The ladder.
    #[must_use]
    pub(super) fn steps(&self) -> Vec<Step> {
        let program = |facts: &Result<(), Refusal>| self.object.clone().and(self.privilege.clone()).and(facts.clone());
        let mut steps = vec![
            Step { rung: Rung::TpBtf, stands: program(&self.types) },
            Step { rung: Rung::RawTracepoint, stands: program(&self.types) },
            Step { rung: Rung::Tracepoint, stands: program(&self.format) },
        ];
        if let Some(log) = &self.log {
            steps.push(Step { rung: Rung::Kmsg, stands: log.clone() });
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(reason: &str) -> Result<(), Refusal> {
        Err(Refusal::new(reason, format!("mend {reason}")))
    }

    fn capable() -> Ground {
        Ground { object: Ok(()), privilege: Ok(()), types: Ok(()), format: Ok(()), log: Some(Ok(())) }
    }

    fn rung(ground: &Ground) -> Rung {
        choose(&ground.steps(), None).rung
    }

    #[test]
    fn a_capable_host_stands_on_the_best_rung_without_a_reason() {
        let choice = choose(&capable().steps(), None);
        assert_eq!((choice.rung, choice.reason.as_str(), choice.remedy.as_str()), (Rung::TpBtf, "", ""));
    }

    #[test]
    fn each_fact_taken_away_gives_the_next_rung_that_does_without() {
        assert_eq!(rung(&Ground { types: refusal("BTF"), ..capable() }), Rung::Tracepoint);
        assert_eq!(rung(&Ground { types: refusal("BTF"), format: refusal("tracefs"), ..capable() }), Rung::Kmsg);
        assert_eq!(rung(&Ground { format: refusal("tracefs"), ..capable() }), Rung::TpBtf);
        assert_eq!(rung(&Ground { privilege: refusal("caps"), ..capable() }), Rung::Kmsg);
        assert_eq!(rung(&Ground { object: refusal("objects"), ..capable() }), Rung::Kmsg);
        assert_eq!(rung(&Ground { privilege: refusal("caps"), log: None, ..capable() }), Rung::Off);
        assert_eq!(rung(&Ground { privilege: refusal("caps"), log: Some(refusal("log")), ..capable() }), Rung::Off);
    }

    #[test]
    fn reasons_are_told_once_with_all_rungs_that_they_refuse() {
        let ground = Ground { types: refusal("no BTF"), format: refusal("no tracefs"), ..capable() };
        let choice = choose(&ground.steps(), None);
        assert_eq!(choice.reason, "tp_btf, raw_tracepoint: no BTF; tracepoint: no tracefs");
        assert_eq!(choice.remedy, "mend no BTF; mend no tracefs");
    }

    #[test]
    fn a_forced_rung_that_cannot_stand_is_an_error_and_no_fallback() {
        let ground = Ground { format: refusal("no tracefs"), ..capable() };
        let choice = choose(&ground.steps(), Some(Rung::Tracepoint));
        assert_eq!((choice.rung, choice.forced_and_failed), (Rung::Off, true));
        assert!(choice.reason.contains("no tracefs") && choice.remedy == "mend no tracefs", "{choice:?}");
        let choice = choose(&Ground { log: None, ..capable() }.steps(), Some(Rung::Kmsg));
        assert!(choice.forced_and_failed && choice.reason.contains("no such rung"), "{choice:?}");
    }

    #[test]
    fn off_is_no_failure() {
        let choice = choose(&capable().steps(), Some(Rung::Off));
        assert_eq!((choice.rung, choice.forced_and_failed), (Rung::Off, false));
    }

    #[test]
    fn a_failure_to_attach_falls_to_the_next_rung_and_keeps_the_reason() {
        let mut tried = Vec::new();
        let choice = climb(capable().steps(), None, |rung| {
            tried.push(rung);
            if rung == Rung::Tracepoint { Ok(()) } else { refusal(rung.word()) }
        });
        assert_eq!(tried, [Rung::TpBtf, Rung::RawTracepoint, Rung::Tracepoint]);
        assert_eq!(choice.rung, Rung::Tracepoint);
        assert_eq!(choice.reason, "tp_btf: tp_btf; raw_tracepoint: raw_tracepoint");
        assert_eq!(climb(capable().steps(), None, |_| refusal("verifier")).rung, Rung::Kmsg);
    }

    #[test]
    fn a_forced_rung_that_fails_to_attach_is_an_error() {
        let choice = climb(capable().steps(), Some(Rung::RawTracepoint), |_| refusal("EPERM"));
        assert_eq!((choice.rung, choice.forced_and_failed), (Rung::Off, true));
        assert!(choice.reason.contains("EPERM"), "{choice:?}");
    }
}
