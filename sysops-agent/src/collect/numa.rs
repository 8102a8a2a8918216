//! Memory of each NUMA node from /sys/devices/system/node. Which CPUs belong to a node is left to the inventory.

use std::time::Duration;

use super::bytes::{complete, fields, lines, need_u64, split_once, trim, u64};
use super::{CollectError, Collector, Entry, Outcome, interval};
use crate::host::{Host, Source};
use crate::model::{Batch, Metric, Unit};
use crate::spec::Key;

static USED_PERCENT: Metric<1> = Metric::gauge(
    "memory_numa_used_percent",
    Unit::Percent,
    "Memory of the node that is neither free nor cache that can be given back (files, slab).",
    &["node"],
);
static FREE: Metric<1> =
    Metric::gauge("memory_numa_free_bytes", Unit::Bytes, "Memory of the node that is free.", &["node"]);
static TOTAL: Metric<1> = Metric::gauge("memory_numa_total_bytes", Unit::Bytes, "Memory of the node.", &["node"]);

static MONITORING: Key<bool> = Key::switch("cpu.numa_monitoring", true, "Gives the memory of each NUMA node.");

/// Linux can be built for 1,024 nodes at most (CONFIG_NODES_SHIFT = 10).
const MAX_NODES: u64 = 1024;

/// In the list of collectors.
pub(super) static ENTRY: Entry = Entry {
    name: "numa",
    metrics: &[USED_PERCENT.desc(), FREE.desc(), TOTAL.desc()],
    keys: &[MONITORING.spec()],
    interval: &interval::MEMORY,
    deadline: Duration::from_secs(2),
    new: |host, values| {
        let online = Source::single(host.files.sys("devices/system/node/online"));
        Box::new(Numa { wanted: values.get(&MONITORING), online, list: None, nodes: Vec::new() })
    },
};

struct Numa {
    wanted: bool,
    online: Source,
    /// What `online` said when `nodes` was made.
    list: Option<Vec<u8>>,
    nodes: Vec<Node>,
}

struct Node {
    label: String,
    /// For messages, as the machine itself has it.
    file: String,
    meminfo: Source,
}

impl Collector for Numa {
    fn collect(&mut self, host: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        if !self.wanted {
            return Ok(absent("cpu.numa_monitoring is off"));
        }
        let list = match self.online.read() {
            Ok(list) => list,
            Err(error) if error.is_absent() => {
                return Ok(absent("no /sys/devices/system/node: the kernel was built without CONFIG_NUMA"));
            }
            Err(error) => return Err(error.into()),
        };
        if self.list.as_deref() != Some(list) {
            self.nodes = nodes(host, list)?;
            self.list = Some(list.to_vec());
        }
        for node in &mut self.nodes {
            let Memory { total, free, cache } = parse(node.meminfo.read()?, &node.file)?;
            out.gauge(&TOTAL, [&node.label], total as f64);
            out.gauge(&FREE, [&node.label], free as f64);
            if let Some(cache) = cache.filter(|_| total > 0) {
                let used = total.saturating_sub(free).saturating_sub(cache);
                out.gauge(&USED_PERCENT, [&node.label], 100.0 * used as f64 / total as f64);
            }
        }
        Ok(Outcome::Data)
    }
}

fn absent(reason: &'static str) -> Outcome {
    Outcome::Absent { reason: reason.into(), remedy: "".into() }
}

/// The nodes of a list as `0-1,3`.
fn nodes(host: &Host, list: &[u8]) -> Result<Vec<Node>, CollectError> {
    let bad = || CollectError::parse("/sys/devices/system/node/online", "list", "node numbers below 1024", list);
    let mut nodes = Vec::new();
    for range in trim(list).split(|&byte| byte == b',') {
        let (first, last) = split_once(range, b'-').unwrap_or((range, range));
        let (first, last) = u64(first).zip(u64(last)).filter(|ends| ends.1 < MAX_NODES).ok_or_else(bad)?;
        for id in first..=last {
            let name = format!("devices/system/node/node{id}/meminfo");
            let meminfo = Source::single(host.files.sys(&name));
            nodes.push(Node { label: id.to_string(), file: format!("/sys/{name}"), meminfo });
        }
    }
    Ok(nodes)
}

struct Memory {
    total: u64,
    free: u64,
    /// Pages of files and slab that can be given back; unknown where the kernel does not tell all three of its parts.
    cache: Option<u64>,
}

/// Reads `Node 0 MemTotal:       15558872 kB` and its like.
fn parse(text: &[u8], file: &str) -> Result<Memory, CollectError> {
    let names: [&[u8]; 5] = [b"MemTotal:", b"MemFree:", b"Active(file):", b"Inactive(file):", b"SReclaimable:"];
    let mut values = [None; 5];
    for line in lines(complete(text, file)?) {
        let mut columns = fields(line).skip(2);
        let name = columns.next().unwrap_or_default();
        if let Some(at) = names.iter().position(|known| *known == name) {
            let item = || String::from_utf8_lossy(name).trim_end_matches(':').to_owned();
            let kb = need_u64(columns.next().unwrap_or_default(), file, item)?;
            values[at] = Some(kb.saturating_mul(1024));
        }
    }
    let need =
        |at: usize, item: &str| values[at].ok_or_else(|| CollectError::parse(file, item, "a line with a number", b""));
    let cache = values[2..].iter().try_fold(0_u64, |sum, value| Some(sum.saturating_add((*value)?)));
    Ok(Memory { total: need(0, "MemTotal")?, free: need(1, "MemFree")?, cache })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, declared, read, recorded, value};
    use super::*;
    use crate::spec::Value;

    fn meminfo(node: u32, total: u64, free: u64) -> String {
        format!(
            "Node {node} MemTotal:       {total} kB\nNode {node} MemFree:        {free} kB\n\
             Node {node} Active(file):   10 kB\nNode {node} Inactive(file): 10 kB\nNode {node} SReclaimable:   5 kB\n"
        )
    }

    fn machine(name: &str) -> Machine {
        Machine::new(name)
            .file("sys/devices/system/node/online", "0,2\n")
            .file("sys/devices/system/node/node0/meminfo", meminfo(0, 100, 25))
            .file("sys/devices/system/node/node2/meminfo", meminfo(2, 0, 0))
    }

    #[test]
    fn a_machine_of_today() {
        let (_, batch) = read(&recorded("debian12-6.18"), &ENTRY).expect("it can be read");
        declared(&batch, &ENTRY);
        assert_eq!(value(&batch, "memory_numa_total_bytes", &["0"]), Some(15_558_872.0 * 1024.0));
        let used = 15_558_872.0 - 11_099_272.0 - 1_776_340.0 - 2_078_720.0 - 306_768.0;
        assert_eq!(value(&batch, "memory_numa_used_percent", &["0"]), Some(100.0 * used / 15_558_872.0));
    }

    #[test]
    fn a_node_without_memory_and_one_that_comes() {
        let machine = machine("numa");
        let (mut collector, mut batch) = (machine.collector(&ENTRY), Batch::default());
        collector.collect(&machine.host(), &mut batch).expect("it can be read");
        assert_eq!(value(&batch, "memory_numa_used_percent", &["0"]), Some(50.0));
        assert_eq!(value(&batch, "memory_numa_used_percent", &["2"]), None);
        assert_eq!(value(&batch, "memory_numa_total_bytes", &["2"]), Some(0.0));
        machine.write("sys/devices/system/node/online", "0-1\n");
        machine.write("sys/devices/system/node/node1/meminfo", meminfo(1, 100, 65));
        batch.clear();
        collector.collect(&machine.host(), &mut batch).expect("it can be read");
        assert_eq!(value(&batch, "memory_numa_used_percent", &["1"]), Some(10.0));
        assert_eq!(value(&batch, "memory_numa_total_bytes", &["2"]), None);
    }

    #[test]
    fn off_and_not_there() {
        let mut machine = machine("numa-off");
        machine.values.set(MONITORING.spec(), Value::Bool(false));
        assert!(matches!(machine.collect(&ENTRY), Ok((Outcome::Absent { reason, .. }, _)) if reason.contains("off")));
        let none = Machine::new("numa-none").collect(&ENTRY);
        assert!(matches!(none, Ok((Outcome::Absent { reason, .. }, _)) if reason.contains("CONFIG_NUMA")));
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        for list in ["", "x\n", "0-5000000000\n", "1-\n"] {
            assert!(
                machine("numa-bad").file("sys/devices/system/node/online", list).collect(&ENTRY).is_err(),
                "{list}"
            );
        }
        let whole = meminfo(0, 100, 25);
        for end in 0..whole.len() {
            let cut = &whole.as_bytes()[..end];
            assert!(cut.ends_with(b"\n") || parse(cut, "f").is_err(), "{end}");
        }
        let machine = machine("numa-bad").file("sys/devices/system/node/node2/meminfo", "Node 2 MemTotal: x kB\n");
        assert_eq!(
            machine.collect(&ENTRY).expect_err("x").to_string(),
            "/sys/devices/system/node/node2/meminfo: MemTotal: expected a number, found \"x\""
        );
        let error = parse(b"\xff\xfe\n", "f").err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("f: MemTotal: expected a line with a number, found \"\""));
    }
}
