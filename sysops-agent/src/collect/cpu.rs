//! CPU time, context switches, forks and interrupts from /proc/stat. Usage over an interval is computed by the store
//! from the rising totals that are given here.

mod stat;

use std::time::Duration;

use self::stat::{FILE, GUEST_MODES, MODES, Rest, Times};
use super::bytes::u64;
use super::{CollectError, Collector, Entry, Outcome, interval};
use crate::host::{Host, Source, os};
use crate::model::{Batch, Metric, Unit};
use crate::spec::{Fallback, Key, NotBuilt, Shape};

static USAGE: Metric<0> = Metric::gauge(
    "cpu_usage_percent",
    Unit::Percent,
    "CPU time that was not idle, of all CPUs. Waiting for I/O is idle, time that the hypervisor took is not.",
    &[],
);
static USER: Metric<0> = Metric::gauge(
    "cpu_user_percent",
    Unit::Percent,
    "CPU time in programs, at any nice value, with that of guests.",
    &[],
);
static SYSTEM: Metric<0> =
    Metric::gauge("cpu_system_percent", Unit::Percent, "CPU time in the kernel, with that of interrupts.", &[]);
static IOWAIT: Metric<0> =
    Metric::gauge("cpu_iowait_percent", Unit::Percent, "CPU time that was idle while a task waited for I/O.", &[]);
static STEAL: Metric<0> =
    Metric::gauge("cpu_steal_percent", Unit::Percent, "CPU time that the hypervisor gave to others.", &[]);
static CORE_USAGE: Metric<1> =
    Metric::gauge("cpu_core_usage_percent", Unit::Percent, "As cpu_usage_percent, of one CPU.", &["cpu"]);
static SOCKET_USAGE: Metric<1> = Metric::gauge(
    "cpu_socket_usage_percent",
    Unit::Percent,
    "As cpu_usage_percent, of the CPUs of one socket.",
    &["socket"],
);
static NODE_SECONDS: Metric<2> =
    Metric::counter("node_cpu_seconds_total", Unit::Seconds, "Seconds the CPUs spent in each mode.", &["cpu", "mode"]);
static NODE_GUEST: Metric<2> = Metric::counter(
    "node_cpu_guest_seconds_total",
    Unit::Seconds,
    "Seconds the CPUs spent in guests (VMs) for each mode; they are also in node_cpu_seconds_total.",
    &["cpu", "mode"],
);
static NODE_BOOT: Metric<0> =
    Metric::gauge("node_boot_time_seconds", Unit::Seconds, "Node boot time, in unixtime.", &[]);
static NODE_SWITCHES: Metric<0> =
    Metric::counter("node_context_switches_total", Unit::Count, "Total number of context switches.", &[]);
static NODE_FORKS: Metric<0> = Metric::counter("node_forks_total", Unit::Count, "Total number of forks.", &[]);
static NODE_INTR: Metric<0> =
    Metric::counter("node_intr_total", Unit::Count, "Total number of interrupts serviced.", &[]);
static NODE_RUNNING: Metric<0> =
    Metric::gauge("node_procs_running", Unit::Count, "Number of processes in runnable state.", &[]);
static NODE_BLOCKED: Metric<0> =
    Metric::gauge("node_procs_blocked", Unit::Count, "Number of processes blocked waiting for I/O to complete.", &[]);

static PER_SOCKET: Key<bool> = Key::switch("cpu.per_socket_monitoring", true, "Gives the usage of each CPU socket.");
static ECC: Key<NotBuilt> =
    Key::later("cpu.ecc_monitoring", Shape::Bool, Fallback::Bool(true), "Counts memory errors that ECC found (EDAC).");

/// In the list of collectors.
pub(super) static ENTRY: Entry = Entry {
    name: "cpu",
    metrics: &[
        USAGE.desc(),
        USER.desc(),
        SYSTEM.desc(),
        IOWAIT.desc(),
        STEAL.desc(),
        CORE_USAGE.desc(),
        SOCKET_USAGE.desc(),
        NODE_SECONDS.desc(),
        NODE_GUEST.desc(),
        NODE_BOOT.desc(),
        NODE_SWITCHES.desc(),
        NODE_FORKS.desc(),
        NODE_INTR.desc(),
        NODE_RUNNING.desc(),
        NODE_BLOCKED.desc(),
    ],
    keys: &[interval::CPU.spec(), PER_SOCKET.spec(), ECC.spec()],
    interval: &interval::CPU,
    deadline: Duration::from_secs(5),
    new: |host, values| Box::new(Cpu::new(host, values.get(&PER_SOCKET))),
};

/// Linux can be built for 8,192 CPUs at most.
const MAX_CPUS: usize = 8192;

struct Core {
    id: u64,
    label: String,
    /// Index of its socket. `None` where the topology is not told, as for virtual CPUs of some machines.
    socket: Option<usize>,
    times: Times,
    online: bool,
}

struct Cpu {
    stat: Source,
    ticks_per_second: u64,
    per_socket: bool,
    /// Every CPU that was ever seen, in order of its number. Those that went offline keep their times, so that the
    /// total of their socket, and that of all, does not step.
    cores: Vec<Core>,
    sockets: Vec<String>,
}

impl Cpu {
    fn new(host: &Host, per_socket: bool) -> Self {
        Self {
            stat: Source::single(host.files.proc("stat")),
            ticks_per_second: os::ticks_per_second(),
            per_socket,
            cores: Vec::new(),
            sockets: Vec::new(),
        }
    }
}

impl Collector for Cpu {
    fn collect(&mut self, host: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        let Self { stat, cores, sockets, .. } = self;
        for core in cores.iter_mut() {
            core.online = false;
        }
        let ticks = self.ticks_per_second;
        let rest = stat::parse(stat.read()?, &mut |id, times| {
            // The kernel's own line of all steps back by minutes when a CPU goes, as its idle time is then another one.
            let Some(id) = id else { return Ok(()) };
            let at = match cores.binary_search_by_key(&id, |core| core.id) {
                Ok(at) => at,
                Err(_) if cores.len() >= MAX_CPUS => {
                    return Err(CollectError::parse(FILE, format!("cpu{id}"), "at most 8192 CPUs", b""));
                }
                Err(at) => {
                    let socket = if self.per_socket { socket_of(host, id, sockets) } else { None };
                    cores.insert(at, Core { id, label: id.to_string(), socket, times, online: true });
                    at
                }
            };
            cores[at].times.advance(times, ticks);
            cores[at].online = true;
            Ok(())
        })?;
        self.emit_usage(out);
        self.emit_cores(out);
        emit_rest(&rest, out);
        Ok(Outcome::Data)
    }
}

impl Cpu {
    fn emit_usage(&self, out: &mut Batch) {
        let of_all = |of: fn(&Times) -> u64| self.cores.iter().map(|core| of(&core.times) as f64).sum::<f64>();
        let whole = of_all(Times::total);
        let sum = |columns: &[usize]| {
            let of_core = |core: &Core| columns.iter().map(|&column| core.times.get(column) as f64).sum::<f64>();
            self.cores.iter().map(of_core).sum::<f64>()
        };
        out.percent(&USAGE, [], of_all(Times::busy), whole);
        out.percent(&USER, [], sum(&[0, 1]), whole);
        out.percent(&SYSTEM, [], sum(&[2, 5, 6]), whole);
        for (metric, column) in [(&IOWAIT, 4), (&STEAL, 7)] {
            if self.cores.iter().any(|core| core.times.0[column].is_some()) {
                out.percent(metric, [], sum(&[column]), whole);
            }
        }
        for (socket, label) in self.sockets.iter().enumerate() {
            let here = || self.cores.iter().filter(|core| core.socket == Some(socket));
            if here().any(|core| core.online) {
                let sum = |of: fn(&Times) -> u64| here().map(|core| of(&core.times) as f64).sum::<f64>();
                out.percent(&SOCKET_USAGE, [label], sum(Times::busy), sum(Times::total));
            }
        }
    }

    fn emit_cores(&self, out: &mut Batch) {
        let seconds = |ticks: u64| ticks as f64 / self.ticks_per_second as f64;
        for core in self.cores.iter().filter(|core| core.online) {
            out.percent(&CORE_USAGE, [&core.label], core.times.busy() as f64, core.times.total() as f64);
            let named = [(&NODE_SECONDS, &MODES[..], 0), (&NODE_GUEST, &GUEST_MODES[..], MODES.len())];
            for (metric, modes, first) in named {
                for (mode, ticks) in modes.iter().zip(&core.times.0[first..]) {
                    if let Some(ticks) = *ticks {
                        out.counter(metric, [&core.label, mode], seconds(ticks));
                    }
                }
            }
        }
    }
}

/// Index in `sockets` of the socket in which a CPU sits.
fn socket_of(host: &Host, cpu: u64, sockets: &mut Vec<String>) -> Option<usize> {
    let path = host.files.sys(&format!("devices/system/cpu/cpu{cpu}/topology/physical_package_id"));
    // -1 stands for unknown.
    let label = u64(host.files.attribute(&path, &mut [0; 32]).ok()?)?.to_string();
    Some(sockets.iter().position(|known| *known == label).unwrap_or_else(|| {
        sockets.push(label);
        sockets.len() - 1
    }))
}

fn emit_rest(rest: &Rest, out: &mut Batch) {
    let counters = [(&NODE_INTR, rest.intr), (&NODE_SWITCHES, rest.ctxt), (&NODE_FORKS, rest.processes)];
    for (metric, value) in counters {
        if let Some(value) = value {
            out.counter(metric, [], value as f64);
        }
    }
    let gauges = [(&NODE_BOOT, rest.btime), (&NODE_RUNNING, rest.procs_running), (&NODE_BLOCKED, rest.procs_blocked)];
    for (metric, value) in gauges {
        if let Some(value) = value {
            out.gauge(metric, [], value as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, declared, parts, read, recorded, value};
    use super::*;
    use crate::spec::{Value, Values};

    const HZ: f64 = 100.0;

    fn usage(batch: &Batch, name: &str, labels: &[&str]) -> Option<(f64, f64)> {
        parts(batch, name, labels)
    }

    fn machine(name: &str, stat: &str) -> Machine {
        let mut machine = Machine::new(name).file("proc/stat", stat);
        for (cpu, socket) in [(0, "0\n"), (1, "0\n"), (2, "1\n"), (3, "-1\n")] {
            machine = machine.file(&format!("sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"), socket);
        }
        machine
    }

    #[test]
    fn a_machine_of_today() {
        let (_, batch) = read(&recorded("debian12-6.18"), &ENTRY).expect("it can be read");
        declared(&batch, &ENTRY);
        // The sums of both CPUs, of which the line of all is rounded otherwise.
        let total = 31209.0 + 8090.0 + 235_488.0 + 2482.0 + 88.0 + 27.0;
        assert_eq!(usage(&batch, "cpu_usage_percent", &[]), Some((total - 235_488.0 - 2482.0, total)));
        assert_eq!(usage(&batch, "cpu_iowait_percent", &[]), Some((2482.0, total)));
        assert_eq!(usage(&batch, "cpu_steal_percent", &[]), Some((27.0, total)));
        assert_eq!(value(&batch, "node_cpu_seconds_total", &["1", "user"]), Some(16376.0 / HZ));
        assert_eq!(value(&batch, "node_cpu_guest_seconds_total", &["0", "nice"]), Some(0.0));
        assert_eq!(value(&batch, "node_intr_total", &[]), Some(400_284.0));
        assert_eq!(value(&batch, "node_context_switches_total", &[]), Some(662_294.0));
        assert_eq!(value(&batch, "node_forks_total", &[]), Some(15_204.0));
        assert_eq!(value(&batch, "node_boot_time_seconds", &[]), Some(1_795_250_235.0));
        assert_eq!(value(&batch, "node_procs_running", &[]), Some(3.0));
        assert_eq!(value(&batch, "node_procs_blocked", &[]), Some(0.0));
        let (part, whole) = usage(&batch, "cpu_socket_usage_percent", &["0"]).expect("both CPUs are in socket 0");
        assert!(part > 0.0 && (whole - total).abs() < 5.0, "{part} of {whole}");
    }

    #[test]
    fn a_cpu_that_is_unplugged_does_not_step_its_socket() {
        let all = "cpu  300 0 0 600 0 0 0 0 0 0\ncpu0 100 0 0 200 0 0 0 0 0 0\ncpu1 100 0 0 200 0 0 0 0 0 0\n\
                   cpu2 100 0 0 200 0 0 0 0 0 0\ncpu3 0 0 0 9 0 0 0 0 0 0\nctxt 1\n";
        let machine = machine("cpu-unplugged", all);
        let (mut collector, mut batch) = (machine.collector(&ENTRY), Batch::default());
        collector.collect(&machine.host(), &mut batch).expect("it can be read");
        assert_eq!(usage(&batch, "cpu_socket_usage_percent", &["0"]), Some((200.0, 600.0)));
        assert_eq!(usage(&batch, "cpu_socket_usage_percent", &["1"]), Some((100.0, 300.0)));
        assert_eq!(usage(&batch, "cpu_usage_percent", &[]), Some((300.0, 909.0)));
        // CPUs 1 and 2 go: the socket of 1 goes on from where it was, that of 2 has no CPU left. The kernel's own sum falls, as
        // 6.1 lets it fall.
        machine.write("proc/stat", "cpu  310 0 0 210 0 0 0 0 0 0\ncpu0 110 0 0 210 0 0 0 0 0 0\nctxt 2\n");
        batch.clear();
        collector.collect(&machine.host(), &mut batch).expect("it can be read");
        assert_eq!(usage(&batch, "cpu_socket_usage_percent", &["0"]), Some((210.0, 620.0)));
        assert_eq!(usage(&batch, "cpu_usage_percent", &[]), Some((310.0, 929.0)));
        assert_eq!(usage(&batch, "cpu_socket_usage_percent", &["1"]), None);
        assert_eq!(usage(&batch, "cpu_core_usage_percent", &["1"]), None);
        assert_eq!(value(&batch, "node_cpu_seconds_total", &["2", "idle"]), None);
        // And come back.
        machine.write("proc/stat", all.replace("cpu1 100", "cpu1 101"));
        batch.clear();
        collector.collect(&machine.host(), &mut batch).expect("it can be read");
        assert_eq!(usage(&batch, "cpu_core_usage_percent", &["1"]), Some((101.0, 301.0)));
    }

    #[test]
    fn small_steps_back_of_the_kernel_are_no_restart_and_large_ones_are() {
        let stat = |idle: u32| format!("cpu  100 0 0 {idle} 50\ncpu0 100 0 0 {idle} 50\nctxt 1\n");
        let machine = machine("cpu-back", &stat(1000));
        let (mut collector, mut batch) = (machine.collector(&ENTRY), Batch::default());
        for (idle, seconds) in [(1000, 10.0), (900, 10.0), (1001, 10.01), (5, 0.05)] {
            machine.write("proc/stat", stat(idle));
            batch.clear();
            collector.collect(&machine.host(), &mut batch).expect("it can be read");
            assert_eq!(value(&batch, "node_cpu_seconds_total", &["0", "idle"]), Some(seconds), "{idle}");
        }
        assert_eq!(value(&batch, "node_cpu_seconds_total", &["0", "irq"]), None, "an old kernel has no such column");
        assert_eq!(usage(&batch, "cpu_steal_percent", &[]), None);
    }

    #[test]
    fn sockets_can_be_switched_off_and_512_cpus_are_read() {
        let cpus: String = (0..512).map(|cpu| format!("cpu{cpu} 1 0 0 1 0 0 0 0 0 0\n")).collect();
        let interrupts = " 0".repeat(100_000);
        let stat = format!("cpu  512 0 0 512 0 0 0 0 0 0\n{cpus}intr 77{interrupts}\nctxt 1\n");
        let mut machine = machine("cpu-512", &stat);
        machine.values = Values::default();
        machine.values.set(PER_SOCKET.spec(), Value::Bool(false));
        let batch = machine.data(&ENTRY);
        declared(&batch, &ENTRY);
        assert_eq!(usage(&batch, "cpu_core_usage_percent", &["511"]), Some((1.0, 2.0)));
        assert_eq!(usage(&batch, "cpu_socket_usage_percent", &["0"]), None);
        assert_eq!(value(&batch, "node_intr_total", &[]), Some(77.0));
    }
}
