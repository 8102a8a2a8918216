//! Brings a probe on one tracepoint up a rung: load with its offsets, check them on the agent itself, attach.
//! Which offsets, and what else the check must hold, is each probe's.

use sysops_common::check::Check;
use sysops_common::plain::Plain;

use super::Rung;
use super::check::Own;
use super::facts::Facts;
use super::ladder::Refusal;
use super::loader::Object;
use crate::host::Host;

/// A tracepoint with the programs `on_<rung>`, and `check_<rung>` for those rungs that read the kernel by its types.
pub(super) struct Tracepoint {
    /// Name of the object.
    pub object: &'static str,
    /// Group in tracefs.
    pub group: &'static str,
    /// Name of the tracepoint.
    pub name: &'static str,
}

impl Tracepoint {
    /// Loads the object with `offsets`, lets it read the agent itself and hands what it read to `verify` beside what
    /// /proc says, and only then attaches the probe. A plain tracepoint has nothing to check: it reads no types.
    ///
    /// # Errors
    /// When the kernel refuses, or `verify` does.
    pub(super) fn attach<O: Plain, R: Plain>(
        &self,
        rung: Rung,
        host: &Host,
        facts: &Facts,
        offsets: &O,
        verify: impl FnOnce(&Check<R>, &Own) -> Result<(), Refusal>,
    ) -> Result<Object, Refusal> {
        self.attach_behind(rung, host, facts, offsets, verify, |_| Ok(()))
    }

    /// The same with a word between the check and the attachment: `prepare` attaches what must run before the probe does.
    ///
    /// # Errors
    /// When the kernel refuses, or `verify` or `prepare` does.
    pub(super) fn attach_behind<O: Plain, R: Plain>(
        &self,
        rung: Rung,
        host: &Host,
        facts: &Facts,
        offsets: &O,
        verify: impl FnOnce(&Check<R>, &Own) -> Result<(), Refusal>,
        prepare: impl FnOnce(&mut Object) -> Result<(), Refusal>,
    ) -> Result<Object, Refusal> {
        let mut object = Object::load(self.object, offsets)?;
        let typed = |name| {
            let id = facts.btf.as_ref().ok().and_then(|btf| btf.tracepoint(name));
            id.map(|id| Point::Typed(name, id)).ok_or_else(|| Refusal::new(format!("no tracepoint {name} in BTF"), ""))
        };
        let (program, point, self_check) = match rung {
            Rung::TpBtf => ("on_tp_btf", typed(self.name)?, Some(("check_tp_btf", typed(RENAME)?))),
            Rung::RawTracepoint => {
                ("on_raw_tracepoint", Point::Raw(self.name), Some(("check_raw_tracepoint", Point::Raw(RENAME))))
            }
            Rung::Tracepoint => ("on_tracepoint", Point::Plain(self.group, self.name), None),
            _ => {
                return Err(Refusal::new("nothing to attach on this rung", ""));
            }
        };
        if let Some((program, point)) = self_check {
            let look = || Own::read(host, facts.initial_pids);
            let (check, own) = object.check(program, point, facts.check_name, look)?;
            verify(&check, &own)?;
        }
        prepare(&mut object)?;
        object.attach(program, point)?;
        Ok(object)
    }
}

/// Runs whenever a task gives itself another name, so that the agent can make it run.
const RENAME: &str = "task_rename";

/// What a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point<'a> {
    /// The entry of a kernel function and the number of its type in the kernel's BTF.
    Function(&'a str, u32),
    /// The entry of a kernel function by a kprobe.
    Probe(&'a str),
    /// A tracepoint and the number of its type in the kernel's BTF.
    Typed(&'a str, u32),
    /// A raw tracepoint.
    Raw(&'a str),
    /// A tracepoint by group and name.
    Plain(&'a str, &'a str),
}
