//! What /proc tells of the task that an event names, read at once, as the task may be gone the next moment. What cannot
//! be told any more is absent.

use std::path::PathBuf;
use std::time::Duration;

use crate::host::{Host, MemoryPath, os};

/// The kernel's flag of a task that is on its way out (include/linux/sched.h).
const PF_EXITING: u64 = 0x4;
/// Since 5.16: of one that is on its way out and no part of a core dump any more.
const PF_POSTCOREDUMP: u64 = 0x8;

/// A task in /proc.
pub(super) struct Process<'a> {
    host: &'a Host,
    directory: PathBuf,
}

impl<'a> Process<'a> {
    /// The thread `tid`, whichever process it belongs to. /proc shows threads that it does not list.
    #[must_use]
    pub(super) fn thread(host: &'a Host, tid: u32) -> Self {
        Self { host, directory: host.files.proc(&tid.to_string()) }
    }

    /// The thread that asks.
    #[must_use]
    pub(super) fn own(host: &'a Host) -> Self {
        Self { host, directory: host.files.proc("thread-self") }
    }

    /// The number after `name:` in status, the first if there are several.
    #[must_use]
    pub(super) fn status(&self, name: &str) -> Option<u32> {
        number_in_status(&self.text("status")?, name)?.try_into().ok()
    }

    /// Its name without blanks around it.
    #[must_use]
    pub(super) fn comm(&self) -> Option<String> {
        self.text("comm")
    }

    /// Its name, as the kernel keeps it.
    #[must_use]
    pub(super) fn name(&self) -> Option<String> {
        let text = self.host.files.read(&self.directory.join("comm")).ok()?;
        Some(String::from_utf8_lossy(text.strip_suffix(b"\n").unwrap_or(&text)).into_owned())
    }

    /// When it started, in clock ticks after boot.
    #[must_use]
    pub(super) fn start_ticks(&self) -> Option<u64> {
        stat_field(&self.text("stat")?, 22)
    }

    /// Its state as stat has it: `D` in uninterruptible sleep, `Z` when it has ended.
    #[must_use]
    pub(super) fn state(&self) -> Option<char> {
        state(&self.text("stat")?)
    }

    /// True when it had started before that instant of CLOCK_MONOTONIC: else the number is another's by now.
    #[must_use]
    pub(super) fn was_there_at(&self, monotonic: Duration) -> bool {
        let (now, ticks_per_second) = (self.host.clock.now(), os::ticks_per_second());
        // /proc counts from boot, sleep included.
        let boottime = now.boottime.saturating_sub(now.monotonic.saturating_sub(monotonic));
        let ticks = boottime.as_nanos().saturating_mul(u128::from(ticks_per_second)) / 1_000_000_000;
        self.start_ticks().is_some_and(|start| u128::from(start) < ticks)
    }

    /// Whether it is a task of the kernel itself (PF_KTHREAD in the flags).
    #[must_use]
    pub(super) fn is_kernel_thread(&self) -> Option<bool> {
        Some(stat_field(&self.text("stat")?, 9)? & 0x0020_0000 != 0)
    }

    /// Whether it waits for another thread of its process, which dumps core: up to 6.10 in uninterruptible sleep. The function
    /// in which it does so is no sign, as it has had several names and may be the one in which a task waits for a lock.
    #[must_use]
    pub(super) fn waits_for_core_dump(&self) -> bool {
        let flags = || stat_field(&self.text("stat")?, 9);
        let is_leaving = || flags().is_some_and(|flags| flags & (PF_EXITING | PF_POSTCOREDUMP) != 0);
        self.status("CoreDumping") == Some(1) && is_leaving()
    }

    /// Its path in the memory controller's hierarchy, as far as /proc can tell of a task that is on its way out.
    #[must_use]
    pub(super) fn memory_path(&self) -> Option<MemoryPath> {
        let found = MemoryPath::parse(&self.text("cgroup")?)?;
        if found.is_of_any_that_exit() {
            let flags = stat_field(&self.text("stat")?, 9)?;
            if flags & PF_EXITING != 0 {
                return None;
            }
        }
        Some(found)
    }

    /// Its paths in all hierarchies, as they stand in /proc.
    #[must_use]
    pub(super) fn cgroups(&self) -> Option<String> {
        self.text("cgroup")
    }

    /// The kernel function in which it sleeps.
    #[must_use]
    pub(super) fn wchan(&self) -> Option<String> {
        // "0": it runs, or the kernel does not tell this user.
        self.text("wchan").filter(|name| !name.is_empty() && name != "0")
    }

    /// Its kernel stack, innermost function first; empty when the kernel does not tell this user.
    #[must_use]
    pub(super) fn kernel_stack(&self) -> Vec<String> {
        self.text("stack").map(|text| kernel_stack(&text)).unwrap_or_default()
    }

    /// How often it has run.
    #[must_use]
    pub(super) fn switches(&self) -> Option<u64> {
        switches(&self.text("status")?)
    }

    fn text(&self, name: &str) -> Option<String> {
        self.host.files.read_text(&self.directory.join(name)).ok()
    }
}

/// Both counts are an `unsigned long`: a busy thread passes 2^32 within days.
fn switches(status: &str) -> Option<u64> {
    let voluntary = number_in_status(status, "voluntary_ctxt_switches")?;
    voluntary.checked_add(number_in_status(status, "nonvoluntary_ctxt_switches")?)
}

fn number_in_status(status: &str, name: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The third field of a stat line.
#[must_use]
pub(super) fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Field `number` (from 1, as proc(5) counts) of a stat line. The name may hold anything, so fields are counted
/// from its last parenthesis.
#[must_use]
pub(super) fn stat_field(stat: &str, number: usize) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// `[<0>] ext4_write+0x33/0x160 [ext4]` becomes `ext4_write+0x33/0x160 [ext4]`.
fn kernel_stack(text: &str) -> Vec<String> {
    let frame = |line: &str| line.trim().split_once("] ").map_or(line, |(_, frame)| frame).trim().to_owned();
    // An ORC stack ends in the marker that older kernels print as 0xffffffffffffffff.
    text.lines().map(frame).filter(|name| !name.is_empty() && name != "0xffffffffffffffff").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_move_the_fields_of_stat() {
        let stat = "7 (a) S 1 (b) R 1 7 7 0 -1 4194308 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(stat_field(stat, 22), Some(4711));
        assert_eq!(stat_field(stat, 9), Some(4_194_308));
        assert_eq!(stat_field("7 (cat", 22), None);
        assert_eq!(stat_field(stat, 200), None);
    }

    #[test]
    fn status_numbers_are_found_by_their_whole_name() {
        let status =
            "Name:\tx\nTgid:\t12\nUid:\t1000\t0\t0\t0\nnonvoluntary_ctxt_switches:\t3\nvoluntary_ctxt_switches:\t4";
        assert_eq!(number_in_status(status, "Tgid"), Some(12));
        assert_eq!(number_in_status(status, "Uid"), Some(1000));
        assert_eq!(number_in_status(status, "voluntary_ctxt_switches"), Some(4));
        assert_eq!(number_in_status(status, "Pid"), None);
    }

    #[test]
    fn switches_are_counted_beyond_32_bits() {
        let of = |voluntary: u64, other: u64| {
            switches(&format!("voluntary_ctxt_switches:\t{voluntary}\nnonvoluntary_ctxt_switches:\t{other}\n"))
        };
        assert_eq!(of(4_294_967_296, 7), Some(4_294_967_303));
        assert_eq!(of(7, 4_294_967_296), Some(4_294_967_303));
        assert_eq!(of(1 << 40, 1 << 40), Some(1 << 41));
        assert_eq!(of(u64::MAX, 1), None);
    }

    #[test]
    fn stack_frames_are_named_innermost_first() {
        let text = "[<0>] io_schedule+0x46/0x80\n[<ffffffff8112>] do_wait+0x1/0x2\n[<0>] 0xffffffffffffffff\n";
        assert_eq!(kernel_stack(text), ["io_schedule+0x46/0x80", "do_wait+0x1/0x2"]);
        // As Linux 5.10 writes a function of a module.
        let text = "[<0>] jbd2_write_superblock+0x18d/0x1e0 [jbd2]\n";
        assert_eq!(kernel_stack(text), ["jbd2_write_superblock+0x18d/0x1e0 [jbd2]"]);
        assert!(kernel_stack("").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text: String, field in 0..60_usize) {
            let _ = (stat_field(&text, field), number_in_status(&text, "Tgid"), kernel_stack(&text));
        }
    }
}
