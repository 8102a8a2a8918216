//! Which kills belong to one decision of the kernel, and which marks are of a process that was told already. Pure.
//!
//! With `memory.oom.group` the kernel kills the chosen process first and then, out of the same call, each process of the
//! group: its stack is then deeper by the walk over the group, and the same from the decision outwards. Another decision of
//! the same task comes from the same depth as the first, or from another way, which parts from the first one further out. All of
//! it runs under one lock of the kernel, so the kills of two decisions never mix, and those of one come within moments.
//!
//! A decision is named after the process that was chosen, which no two agents see differently and which is chosen once.

use std::collections::VecDeque;

use sysops_common::oom_kill::{Record, STACK_DEPTH, known};
use sysops_common::task::known as task_known;

use crate::host::Host;

/// Frames from the program up to the call that kills, at most. In 6.1, 6.18 and 7.2 it is five on a tracepoint that is typed by BTF or
/// raw, three on a plain one; ways to a decision that are deeper part five further out at least.
const FRAMES_BEFORE: usize = 7;
/// Most frames by which the walk over a group lies deeper.
const FRAMES_BETWEEN: usize = 4;
/// Frames from the decision outwards that must be the same.
const FRAMES_SAME: usize = 3;
/// Longest time between two kills of one decision: with a slow console the kernel prints a line for each.
const PAUSE_MAX_NS: u64 = 10_000_000_000;
/// Processes that are remembered as told.
const TOLD_MAX: usize = 1024;

/// Digits of the boot's id that begin a name, so that the same process of another boot or machine has another.
const BOOT_DIGITS: usize = 8;

/// What was told.
#[derive(Debug, Default)]
pub(super) struct Incidents {
    /// The first digits of the boot's id, and a hyphen; empty where it has none.
    boot: String,
    last: Option<Decision>,
    told: VecDeque<Told>,
}

/// The last decision to kill.
#[derive(Debug)]
struct Decision {
    trigger: (u32, u32),
    stack: [u64; STACK_DEPTH],
    /// When its last kill was marked.
    at_ns: u64,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    tgid: u32,
    start: u64,
    exiting: bool,
}

impl Incidents {
    /// Of the boot of this host.
    pub(super) fn of(host: &Host) -> Self {
        let boot = host.files.read_text(&host.files.proc("sys/kernel/random/boot_id")).ok();
        let boot = boot.as_deref().and_then(|id| id.get(..BOOT_DIGITS)).map(|digits| format!("{digits}-"));
        Self { boot: boot.unwrap_or_default(), ..Self::default() }
    }

    /// The name of the incident to which a mark belongs: id and start of the process that was marked first, or the time of
    /// that mark where they are not known.
    pub(super) fn name(&mut self, read: &Record, exiting: bool) -> String {
        let trigger = (read.trigger_tgid, read.trigger_tid);
        let has_stack = read.known & known::STACK != 0;
        let is_same = |last: &Decision| {
            let is_near = read.monotonic_ns.saturating_sub(last.at_ns) <= PAUSE_MAX_NS;
            last.trigger == trigger && is_near && is_member(&last.stack, &read.stack)
        };
        if let Some(last) = self.last.as_mut().filter(|last| has_stack && !exiting && is_same(last)) {
            last.at_ns = read.monotonic_ns;
            return last.name.clone();
        }
        let name = match identity(read) {
            Some((tgid, start)) => format!("{}{tgid:x}-{start:x}", self.boot),
            None => format!("{}{:x}", self.boot, read.monotonic_ns),
        };
        if has_stack && !exiting {
            let (stack, at_ns) = (read.stack, read.monotonic_ns);
            self.last = Some(Decision { trigger, stack, at_ns, name: name.clone() });
        }
        name
    }

    /// False when the process was told already. The kernel marks threads: of one that dies it may mark several, and
    /// in a group kill the chosen one twice.
    pub(super) fn first_time(&mut self, read: &Record, exiting: bool) -> bool {
        let Some((tgid, start)) = identity(read) else { return true };
        let now = Told { tgid, start, exiting };
        let before = self.told.iter_mut().rev().find(|told| (told.tgid, told.start) == (now.tgid, now.start));
        match before {
            // It was on its way out, and then killed all the same.
            Some(told) if told.exiting && !exiting => {
                *told = now;
                true
            }
            Some(_) => false,
            None => {
                if self.told.len() == TOLD_MAX {
                    self.told.pop_front();
                }
                self.told.push_back(now);
                true
            }
        }
    }
}

/// Id and start of the victim's process, as far as they were read.
fn identity(read: &Record) -> Option<(u32, u64)> {
    const BOTH: u32 = task_known::TGID | task_known::START;
    (read.task.known & BOTH == BOTH).then_some((read.task.tgid, read.task.start_boottime_ns))
}

/// True when `stack` is that of a kill out of the decision that killed with `chosen` before: both have come to the same call of
/// the same function, which has then called what kills by two ways.
fn is_member(chosen: &[u64; STACK_DEPTH], stack: &[u64; STACK_DEPTH]) -> bool {
    let Some(fork) = (0..=FRAMES_BEFORE).find(|&at| chosen[at] != stack[at]) else { return false };
    (1..=FRAMES_BETWEEN).any(|deeper| {
        let outer = || (fork + 1..STACK_DEPTH.saturating_sub(deeper)).map(|at| (chosen[at], stack[at + deeper]));
        outer().all(|(mine, its)| mine == its) && outer().filter(|(mine, _)| *mine != 0).count() >= FRAMES_SAME
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::record::tests::task;
    use super::super::tests::record;
    use super::*;

    /// The frames of one way into the kernel, from a page fault that is charged.
    const FAULT: [u64; 6] = [0x51, 0x52, 0x53, 0x54, 0x55, 0x56];
    /// From a read that is charged.
    const READ: [u64; 5] = [0x61, 0x62, 0x63, 0x64, 0x65];

    fn stack(parts: &[&[u64]]) -> [u64; STACK_DEPTH] {
        let mut stack = [0; STACK_DEPTH];
        stack.iter_mut().zip(parts.iter().copied().flatten()).for_each(|(to, from)| *to = *from);
        stack
    }

    /// mark_oom_victim and __oom_kill_process, then oom_kill_process.
    fn chosen(way: &[u64]) -> [u64; STACK_DEPTH] {
        stack(&[&[1, 2, 0x10], way])
    }

    /// The same two, then oom_kill_memcg_member, mem_cgroup_scan_tasks, and another place in oom_kill_process.
    fn member(way: &[u64]) -> [u64; STACK_DEPTH] {
        stack(&[&[1, 2, 0x20, 0x21, 0x11], way])
    }

    /// The mark of process `at` at that time; of the process nothing is known.
    fn mark(at: u64, trigger: u32, stack: [u64; STACK_DEPTH]) -> Record {
        let mut read =
            Record { monotonic_ns: at, trigger_tgid: trigger, trigger_tid: trigger, stack, ..record(known::STACK) };
        read.task.known = task_known::TID;
        read
    }

    #[test]
    fn the_members_of_a_group_share_the_incident_of_the_chosen_one() {
        let mut incidents = Incidents::default();
        let marks = [
            mark(1, 7, chosen(&FAULT)),
            mark(2, 7, member(&FAULT)),
            mark(3, 7, member(&FAULT)),
            // The same task again, in the same way: another decision.
            mark(4, 7, chosen(&FAULT)),
            mark(5, 7, member(&FAULT)),
            // By another way, which is deeper by one and not the same further out.
            mark(6, 7, chosen(&READ)),
            mark(7, 8, chosen(&FAULT)),
            mark(8, 8, member(&FAULT)),
            // Another task's group kill of which the first was lost.
            mark(9, 9, member(&FAULT)),
        ];
        let names: Vec<String> = marks.iter().map(|mark| incidents.name(mark, false)).collect();
        assert_eq!(names, ["1", "1", "1", "4", "4", "6", "7", "7", "9"]);
    }

    /// A task that writes into a page of its own and later, killed for by another decision, into one that it shares: the second way
    /// is deeper by the function that copies the page, and the same further out. Frames as 6.18 has them.
    #[test]
    fn a_decision_by_a_way_that_is_deeper_further_out_is_another() {
        // bpf_trace_run2, mark_oom_victim, __oom_kill_process; oom_kill_process, out_of_memory, mem_cgroup_out_of_memory,
        // try_charge_memcg, charge_memcg, __mem_cgroup_charge.
        let charge = [1, 2, 3, 4, 5, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15];
        // handle_mm_fault, do_user_addr_fault, exc_page_fault, asm_exc_page_fault, each from __handle_mm_fault.
        let fault = [0x22, 0x23, 0x24, 0x25];
        let (anonymous, copied) = (stack(&[&charge, &[0x20], &fault]), stack(&[&charge, &[0x30, 0x21], &fault]));
        let mut incidents = Incidents::default();
        assert_eq!(incidents.name(&mark(1, 7, anonymous), false), "1");
        assert_eq!(incidents.name(&mark(2, 7, copied), false), "2");
        // The same with a plain tracepoint, whose stack begins with the kernel's own functions.
        let plain = |stack: &[u64; STACK_DEPTH]| std::array::from_fn(|at| stack.get(at + 3).copied().unwrap_or(0));
        assert_eq!(incidents.name(&mark(3, 7, plain(&anonymous)), false), "3");
        assert_eq!(incidents.name(&mark(4, 7, plain(&copied)), false), "4");
    }

    #[test]
    fn kills_of_one_decision_come_within_moments() {
        let mut incidents = Incidents::default();
        let name = |at: u64, stack| incidents.name(&mark(at, 7, stack), false);
        let second = 1_000_000_000;
        let times = [(1, chosen(&FAULT)), (9 * second, member(&FAULT)), (18 * second, member(&FAULT))];
        let mut name = name;
        assert_eq!(times.map(|(at, stack)| name(at, stack)), ["1", "1", "1"]);
        let late = name(29 * second, member(&FAULT));
        assert_eq!(late, format!("{:x}", 29 * second));
    }

    #[test]
    fn an_incident_has_the_same_name_whichever_agent_saw_it() {
        let names = |late: u64| {
            let mut incidents = Incidents { boot: "5f0c2a1b-".to_owned(), ..Incidents::default() };
            let marks = [mark(1 + late, 7, chosen(&FAULT)), mark(2 + late, 7, member(&FAULT))];
            let marks = marks.into_iter().zip([0x20, 0x21]).map(|(mut read, tgid)| {
                read.task.known = task_known::TGID | task_known::START;
                (read.task.tgid, read.task.start_boottime_ns) = (tgid, 0xabc);
                read
            });
            marks.map(|read| incidents.name(&read, false)).collect::<Vec<String>>()
        };
        assert_eq!(names(0), ["5f0c2a1b-20-abc", "5f0c2a1b-20-abc"]);
        assert_eq!(names(0), names(1000));
    }

    #[test]
    fn a_stack_that_is_cut_or_missing_joins_nothing_wrongly() {
        let deep: Vec<u64> = (0x100..0x120).collect();
        let mut incidents = Incidents::default();
        assert_eq!(incidents.name(&mark(1, 7, chosen(&deep)), false), "1");
        assert_eq!(incidents.name(&mark(2, 7, member(&deep)), false), "1");
        assert_eq!(incidents.name(&mark(3, 7, [0; STACK_DEPTH]), false), "3", "nothing in common");
        let without = Record { known: 0, ..mark(4, 7, chosen(&deep)) };
        assert_eq!(incidents.name(&without, false), "4");
        assert_eq!(incidents.name(&mark(5, 7, chosen(&deep)), true), "5", "a mark without a kill stands alone");
    }

    #[test]
    fn a_process_is_told_once_however_many_threads_are_marked() {
        let mut incidents = Incidents::default();
        let of = |tgid: u32, start: u64| {
            let mut read = record(0);
            (read.task.tgid, read.task.start_boottime_ns) = (tgid, start);
            read
        };
        assert!(incidents.first_time(&of(5, 1), true));
        assert!(incidents.first_time(&of(5, 1), false), "it was exiting, and now it is killed");
        assert!(!incidents.first_time(&of(5, 1), false) && !incidents.first_time(&of(5, 1), true));
        assert!(incidents.first_time(&of(5, 2), false), "the number is another's now");
        for tgid in 10..3000 {
            assert!(incidents.first_time(&of(tgid, 1), false));
        }
        assert_eq!(incidents.told.len(), TOLD_MAX);
        let mut unknown = record(0);
        unknown.task = task(b"");
        unknown.task.known = task_known::TID;
        assert!(incidents.first_time(&unknown, false) && incidents.first_time(&unknown, false));
    }
}
