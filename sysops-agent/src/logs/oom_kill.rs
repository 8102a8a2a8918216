//! OOM kills in the kernel's text, from 3.10 to 7.x: the report of a kill goes over many records, of which this takes
//! the header, the summary and the lines of the killed. Reading records is left to `kmsg`.
//!
//! All of it is printed under the kernel's `oom_lock`, so reports do not mix. But the report is rate limited (ten in
//! five seconds) and the `Killed process` line is not: a kill takes facts of a report only where the report names it.
//! Where none is printed a group's line may also be the first of the next group, which only the record behind it tells:
//! it is held until that is there.
//!
//! `Killed process N` is the thread that held the memory: the process id, unless the first thread has ended before
//! the others. The kills of a group share the incident; their cgroup is the group's or one below it, which the log does
//! not tell, so `oom_group` names the group and /proc is asked for the rest. `Kill process N (…) sharing same memory` (before 4.x) is no event: the process of the report is.

use std::collections::VecDeque;

use super::Sighting;
use super::record::{Record, find, leading_number, lossy, rfind, whole_number};
use crate::model::event::OomKill;
use crate::model::{Detail, Event, Source};

/// Longest pause between two lines of one group kill, on a machine whose CPUs have other things to do.
const GROUP_GAP_MICROS: u64 = 10_000_000;
/// The same where the report of another kill may have been left out, so that its line stands behind those of the group.
const LIMITED_GAP_MICROS: u64 = 100_000;
/// As many reports are printed in `LIMIT_MICROS` at most (DEFAULT_RATELIMIT_BURST).
const BURST: usize = 10;
/// DEFAULT_RATELIMIT_INTERVAL, and as long as the line of a kill may come after the decision not to report it.
const LIMIT_MICROS: u64 = 5_000_000 + GROUP_GAP_MICROS;
/// So long after its line another one of that id and name is of another process: the task for which a group is killed is named
/// twice, and whoever is dying when the next kill is decided may be named again.
const TWICE_MICROS: u64 = 10_000_000;
/// As many of the last killed are remembered.
const REMEMBERED: usize = 64;
const MEMCG: &str = "CONSTRAINT_MEMCG";

/// What is known of the kill that is being printed or was printed last.
#[derive(Debug, Default)]
pub struct Parser {
    report: Report,
    /// A kill of the group, if the next record does not make it the first of another.
    held: Option<Sighting>,
    /// The last killed and when they were named, the oldest first.
    told: VecDeque<(u32, String, u64)>,
    /// When the last reports were printed, the oldest first; 0 before there were so many.
    printed: [u64; BURST],
}

#[derive(Debug, Default)]
struct Report {
    trigger: Option<Trigger>,
    /// 3.10: cgroups of the chosen task and of the limit.
    limit: Option<(String, String)>,
    /// From 5.0: the `oom-kill:` line.
    summary: Option<Summary>,
    /// Before 5.1: the chosen task of `Kill process N (…) score S or sacrifice child`; its child may be killed.
    chosen: Option<Chosen>,
    /// The killed task.
    victim: Option<(u32, String)>,
    /// The task of the last line of the killed: the same, or one of its group.
    last: Option<(u32, String)>,
    /// From `memory: usage 49152kB, limit 49152kB, failcnt 97`: of the cgroup whose limit was reached.
    memory: Memory,
    /// What the victim's event says of the cgroup whose limit was reached, for the rest of its group.
    oom_memcg: Option<String>,
    /// Names the decision to kill.
    incident: Option<String>,
    /// Set from `Tasks in … are going to be killed`: whose tasks all die.
    group: Option<String>,
    micros: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    usage_bytes: Option<u64>,
    limit_bytes: Option<u64>,
}

#[derive(Debug)]
struct Trigger {
    comm: Vec<u8>,
    pid: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Chosen {
    pid: u64,
    is_memcg: bool,
}

#[derive(Debug)]
struct Summary {
    pid: u64,
    uid: Option<u32>,
    constraint: String,
    /// Everything between constraint and pid; it ends in the hostile name of the task.
    middle: Vec<u8>,
}

impl Parser {
    /// Takes the next record of the kernel (facility 0) and gives the kill that was held, if it is sure now, and the
    /// one that the record tells of.
    pub fn feed(&mut self, record: &Record<'_>) -> [Option<Sighting>; 2] {
        let text = record.text;
        if let Some(killed) = Killed::parse(text) {
            let held = self.held.take();
            return [held, self.killed(record, killed)];
        }
        if let Some(summary) = text.strip_prefix(b"oom-kill:constraint=") {
            self.open_report().summary = Summary::parse(summary);
        } else if let Some(tasks) = text.strip_prefix(b"Task in /") {
            self.open_report().limit = limit_3_10(tasks);
        } else if let Some(memory) = text.strip_prefix(b"memory: usage ") {
            self.open_report().memory = Memory::parse(memory);
        } else if let Some(chosen) = chosen_3_10(text) {
            self.open_report().chosen = Some(chosen);
        } else if let Some(group) = group(text) {
            if self.report.victim.is_some() && self.is_near(record) {
                return [self.begin_group(record, group), None];
            }
        } else if let Some(at) = find(text, b" invoked oom-killer: gfp_mask=") {
            self.printed.rotate_left(1);
            self.printed[BURST - 1] = record.micros;
            let trigger = Trigger { comm: text[..at].to_vec(), pid: None };
            self.report = Report { trigger: Some(trigger), micros: record.micros, ..Report::default() };
            return [self.held.take(), None];
        } else if let Some(Trigger { comm, pid: pid @ None }) = &mut self.report.trigger
            && self.report.victim.is_none()
        {
            *pid = cpu_line(text, comm);
        }
        [None, None]
    }

    /// Sequence of the record of a kill that is held.
    #[must_use]
    pub fn held(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.sequence)
    }

    /// Gives a kill that is held: nothing came behind it.
    pub fn flush(&mut self) -> Option<Sighting> {
        self.held.take()
    }

    /// Records are missing in front of the one that was printed at `micros`. A report that has not named its victim may have
    /// ended among them, and the next lines be of another: only the summary names the victim itself. There may have been
    /// any number of reports. Gives a kill that is held.
    pub fn pass_gap(&mut self, micros: u64) -> Option<Sighting> {
        self.printed = [micros; BURST];
        if self.report.victim.is_none() {
            self.report = Report { summary: self.report.summary.take(), ..Report::default() };
        }
        self.held.take()
    }

    /// The next lines are those of `group`. The last killed is the one for which it was chosen, also when it was taken
    /// for one of the group before.
    fn begin_group(&mut self, record: &Record<'_>, group: String) -> Option<Sighting> {
        if self.report.last != self.report.victim {
            let victim = self.report.last.take();
            let incident = Some(incident(record));
            self.report = Report { last: victim.clone(), victim, incident, ..Report::default() };
        }
        self.report.group = Some(group);
        self.report.micros = record.micros;
        let mut held = self.held.take()?;
        if let Detail::OomKill(kill) = &mut held.event.detail {
            kill.incident.clone_from(&self.report.incident);
            (kill.oom_memcg, kill.oom_group) = (None, None);
            (kill.trigger_pid, kill.trigger_comm) = (None, None);
            (kill.oom_memcg_limit_bytes, kill.oom_memcg_usage_bytes) = (None, None);
        }
        Some(held)
    }

    /// The report that is being printed: a new one when the last has its victim.
    fn open_report(&mut self) -> &mut Report {
        if self.report.victim.is_some() {
            self.report = Report::default();
        }
        &mut self.report
    }

    /// No more time has passed than may between two lines of a group.
    fn is_near(&self, record: &Record<'_>) -> bool {
        let oldest = self.printed[0];
        let is_limited = oldest != 0 && record.micros.saturating_sub(oldest) <= LIMIT_MICROS;
        let gap = if is_limited { LIMITED_GAP_MICROS } else { GROUP_GAP_MICROS };
        record.micros.saturating_sub(self.report.micros) <= gap
    }

    /// True when the process was told of already, and no report says that it was killed now; it is remembered.
    fn is_told(&mut self, killed: &Killed, micros: u64) -> bool {
        let is_it = |told: &(u32, String, u64)| told.0 == killed.pid && told.1 == killed.comm;
        let is_reported = self.report.trigger.is_some() && self.report.victim.is_none();
        if !is_reported && self.told.iter().any(|told| is_it(told) && micros.saturating_sub(told.2) <= TWICE_MICROS) {
            return true;
        }
        if self.told.len() == REMEMBERED {
            self.told.pop_front();
        }
        self.told.push_back((killed.pid, killed.comm.clone(), micros));
        false
    }

    fn killed(&mut self, record: &Record<'_>, killed: Killed) -> Option<Sighting> {
        let last = (killed.pid, killed.comm.clone());
        if self.is_told(&killed, record.micros) {
            self.report.micros = record.micros;
            self.report.last = Some(last);
            return None;
        }
        let is_member = self.report.group.is_some() && self.is_near(record);
        let (constraint, cgroup, uid) = if is_member {
            (killed.is_memcg.then(|| MEMCG.to_owned()), None, None)
        } else {
            let report = self.open_report();
            let facts = report.facts(&killed);
            report.incident = Some(incident(record));
            report.victim = Some(last.clone());
            facts
        };
        self.report.micros = record.micros;
        self.report.last = Some(last);
        let trigger = self.report.trigger.as_ref();
        let memory = self.report.oom_memcg.as_ref().map(|_| self.report.memory).unwrap_or_default();
        let detail = OomKill {
            constraint,
            oom_memcg: self.report.oom_memcg.clone(),
            trigger_pid: trigger.and_then(|trigger| trigger.pid),
            trigger_comm: trigger.map(|trigger| lossy(&trigger.comm)),
            incident: self.report.incident.clone(),
            already_exiting: Some(false),
            oom_memcg_limit_bytes: memory.limit_bytes,
            oom_memcg_usage_bytes: memory.usage_bytes,
            oom_group: self.report.group.clone(),
            ..killed.detail
        };
        let event = Event {
            schema: Event::SCHEMA,
            time: String::new(),
            source: vec![Source::Kmsg],
            pid: Some(killed.pid),
            tid: Some(killed.pid),
            comm: Some(killed.comm),
            uid: killed.uid.or(uid),
            cgroup,
            detail: Detail::OomKill(detail),
            monotonic_ns: 0,
        };
        let sighting = Sighting { sequence: record.sequence, micros: record.micros, event };
        if is_member {
            self.held = Some(sighting);
            return None;
        }
        Some(sighting)
    }
}

/// The name of a decision, by the first record that tells of it. Those of one time, of which a kernel with coarse clocks has
/// many, differ in their numbers.
fn incident(record: &Record<'_>) -> String {
    format!("{:x}", record.micros.saturating_mul(1000).saturating_add(record.sequence % 1000))
}

impl Report {
    /// Constraint, cgroup and user of the killed task, as far as this report is about it; what is of another kill is
    /// forgotten.
    fn facts(&mut self, killed: &Killed) -> (Option<String>, Option<String>, Option<u32>) {
        let is_memcg = killed.is_memcg || self.chosen.is_some_and(|chosen| chosen.is_memcg);
        let memcg = is_memcg.then(|| MEMCG.to_owned());
        let pid = u64::from(killed.pid);
        if let Some(summary) = &self.summary
            && (summary.pid == pid || self.chosen.is_some_and(|chosen| chosen.pid == summary.pid))
        {
            let (oom_memcg, task_memcg) = summary.paths(&killed.comm);
            self.oom_memcg = oom_memcg;
            // A child that was sacrificed may be another user's and in another cgroup.
            let own = summary.pid == pid;
            let cgroup = task_memcg.filter(|_| own);
            return (Some(summary.constraint.clone()), cgroup, summary.uid.filter(|_| own));
        }
        let Some(chosen) = self.chosen else {
            *self = Self::default();
            return (memcg, None, None);
        };
        let Some((task, limit)) = &self.limit else { return (memcg, None, None) };
        self.oom_memcg = Some(limit.clone());
        (memcg, (chosen.pid == pid).then(|| task.clone()), None)
    }
}

impl Memory {
    /// `49152kB, limit 49152kB, failcnt 97`. A cgroup without a limit has one of 2^63 bytes, to the page.
    fn parse(text: &[u8]) -> Self {
        let mut fields = text.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        let usage_bytes = fields.next().and_then(kilobytes);
        let limit_bytes = fields.next().and_then(|field| kilobytes(field.strip_prefix(b"limit ")?));
        Self { usage_bytes, limit_bytes: limit_bytes.filter(|bytes| *bytes < 1 << 62) }
    }
}

impl Summary {
    /// `CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=dd,pid=92,uid=1000`,
    /// from both ends towards the names, which may hold anything.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii_end();
        let (rest, uid) = text.split_at(rfind(text, b",uid=")?);
        let (rest, pid) = rest.split_at(rfind(rest, b",pid=")?);
        let constraint = &rest[..find(rest, b",")?];
        Some(Self {
            pid: whole_number(&pid[5..])?,
            uid: whole_number(&uid[5..]).and_then(|uid| u32::try_from(uid).ok()),
            constraint: lossy(constraint),
            middle: rest[constraint.len()..].to_vec(),
        })
    }

    /// The cgroup whose limit was reached, if any, and that of the task. The name of a cpuset stands before them and
    /// has no slash in it, the paths begin with one.
    fn paths(&self, comm: &str) -> (Option<String>, Option<String>) {
        let mut rest = self.middle.as_slice();
        let named = format!(",task={comm}");
        if let Some(end) = rest.strip_suffix(named.as_bytes()) {
            rest = end;
        } else if let Some(at) = rfind(rest, b",task=") {
            rest = &rest[..at];
        }
        let global = find(rest, b",global_oom,task_memcg=/").unwrap_or(usize::MAX);
        match find(rest, b",oom_memcg=/") {
            Some(at) if at < global => {
                let (limit, task) = pair(&rest[at + 11..], b",task_memcg=");
                (Some(limit), task)
            }
            _ => (None, (global != usize::MAX).then(|| lossy(&rest[global + 23..]))),
        }
    }
}

/// Two paths with `between` between them. Either may hold `between`, but the one of the task is below the other.
fn pair(text: &[u8], between: &[u8]) -> (String, Option<String>) {
    let mut from = 0;
    let mut first = None;
    while let Some(at) = find(&text[from..], between).map(|at| at + from) {
        let (limit, task) = (&text[..at], &text[at + between.len()..]);
        if task.starts_with(limit) {
            return (lossy(limit), Some(lossy(task)));
        }
        first.get_or_insert((limit, task));
        from = at + 1;
    }
    first.map_or_else(|| (lossy(text), None), |(limit, task)| (lossy(limit), Some(lossy(task))))
}

/// 3.10: `Task in /a/b killed as a result of limit of /a`, without `Task in /`.
fn limit_3_10(text: &[u8]) -> Option<(String, String)> {
    let between = b" killed as a result of limit of ";
    let text = text.trim_ascii_end();
    let mut found = None;
    let mut from = 0;
    while let Some(at) = find(&text[from..], between).map(|at| at + from) {
        let task = [b"/", &text[..at]].concat();
        let limit = &text[at + between.len()..];
        let is_below = task.starts_with(limit);
        found = Some((lossy(&task), lossy(limit)));
        if is_below {
            break;
        }
        from = at + 1;
    }
    found
}

/// Before 5.1: `Out of memory: Kill process 21945 (java) score 956 or sacrifice child`.
fn chosen_3_10(text: &[u8]) -> Option<Chosen> {
    let (is_memcg, rest) = sentence(text, b": Kill process ")?;
    let (pid, rest) = leading_number(rest)?;
    (rest.starts_with(b" (") && rest.trim_ascii_end().ends_with(b" or sacrifice child"))
        .then_some(Chosen { pid, is_memcg })
}

/// `Tasks in /db are going to be killed due to memory.oom.group set`.
fn group(text: &[u8]) -> Option<String> {
    let path = text.strip_prefix(b"Tasks in ")?;
    path.trim_ascii_end().strip_suffix(b" are going to be killed due to memory.oom.group set").map(lossy)
}

/// `CPU: 1 UID: 0 PID: 118 Comm: dd Not tainted …` of the task `comm` (the line of another may come between).
fn cpu_line(text: &[u8], comm: &[u8]) -> Option<u32> {
    let (_, rest) = leading_number(text.strip_prefix(b"CPU: ")?)?;
    let rest = match rest.strip_prefix(b" UID: ") {
        Some(uid) => leading_number(uid)?.1,
        None => rest,
    };
    let (pid, rest) = leading_number(rest.strip_prefix(b" PID: ")?)?;
    let rest = rest.strip_prefix(b" Comm: ")?.strip_prefix(comm)?;
    rest.starts_with(b" ").then(|| u32::try_from(pid).ok())?
}

/// What the kernel says before `verb`: a cgroup or the machine is out of memory.
fn sentence<'a>(text: &'a [u8], verb: &[u8]) -> Option<(bool, &'a [u8])> {
    if let Some(rest) = text.strip_prefix(b"Memory cgroup out of memory") {
        return Some((true, rest.strip_prefix(verb)?));
    }
    let rest = text.strip_prefix(b"Out of memory")?;
    // `Out of memory (oom_kill_allocating_task)`
    let rest = match rest.strip_prefix(b" (") {
        Some(why) => &why[find(why, b")")? + 1..],
        None => rest,
    };
    Some((false, rest.strip_prefix(verb)?))
}

/// The line of the killed: `… Killed process 92 (dd) total-vm:207060kB, anon-rss:48724kB, …`.
struct Killed {
    is_memcg: bool,
    pid: u32,
    comm: String,
    uid: Option<u32>,
    detail: OomKill,
}

impl Killed {
    fn parse(text: &[u8]) -> Option<Self> {
        let line = text.strip_prefix(b"Killed process ").map(|rest| (false, rest));
        let (is_memcg, rest) = line.or_else(|| sentence(text, b": Killed process "))?;
        let (pid, rest) = leading_number(rest)?;
        // The numbers hold no such word, the name may: the last one is the kernel's.
        let (name, numbers) = rest.split_at(rfind(rest, b" total-vm:")?);
        let (comm, mut uid) = name_3_10(name)?;
        let mut detail = OomKill::default();
        for field in numbers.split(|&byte| byte == b' ' || byte == b',') {
            let Some(colon) = find(field, b":") else { continue };
            let (key, value) = (&field[..colon], &field[colon + 1..]);
            match key {
                b"total-vm" => detail.total_vm_bytes = kilobytes(value),
                b"anon-rss" => detail.anon_rss_bytes = kilobytes(value),
                b"file-rss" => detail.file_rss_bytes = kilobytes(value),
                b"shmem-rss" => detail.shmem_rss_bytes = kilobytes(value),
                b"pgtables" => detail.pgtables_bytes = kilobytes(value),
                b"oom_score_adj" => detail.oom_score_adj = lossy(value).parse().ok(),
                b"UID" => uid = whole_number(value).and_then(|uid| u32::try_from(uid).ok()),
                _ => {}
            }
        }
        Some(Self { is_memcg, pid: u32::try_from(pid).ok()?, comm: lossy(comm), uid, detail })
    }
}

/// ` (dd)`, or ` (dd), UID 1000,` (late 3.10 of RHEL), or `, UID 1000, (dd)` (2.6.32).
fn name_3_10(name: &[u8]) -> Option<(&[u8], Option<u32>)> {
    let uid = |text: &[u8]| whole_number(text).and_then(|uid| u32::try_from(uid).ok());
    if let Some(comm) = name.strip_prefix(b" (") {
        if let Some(comm) = comm.strip_suffix(b")") {
            return Some((comm, None));
        }
        let rest = comm.strip_suffix(b",")?;
        let at = rfind(rest, b"), UID ")?;
        return Some((&rest[..at], uid(&rest[at + 7..])));
    }
    let (number, rest) = leading_number(name.strip_prefix(b", UID ")?)?;
    Some((rest.strip_prefix(b", (")?.strip_suffix(b")")?, u32::try_from(number).ok()))
}

fn kilobytes(value: &[u8]) -> Option<u64> {
    whole_number(value.strip_suffix(b"kB")?)?.checked_mul(1024)
}
