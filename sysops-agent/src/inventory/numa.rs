//! Reads /sys/devices/system/node: which CPUs and how much memory each NUMA node has.

use serde::Serialize;

use super::read::{bound, numbered};
use crate::host::{Host, bytes};

/// The NUMA nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Numa {
    /// How many there are.
    pub nodes: usize,
    /// Each of them.
    pub topology: Vec<Node>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its number.
    pub node: u32,
    /// Its CPUs, `0-27,56-83`; empty for a node of memory alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// Its memory in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
}

pub(super) fn collect(host: &Host, omitted: &mut usize) -> Option<Numa> {
    let mut numbers = numbered(host, &host.files.sys("devices/system/node"), "node").filter(|list| !list.is_empty())?;
    let nodes = numbers.len();
    bound(&mut numbers, omitted);
    let node = |node| {
        let file = |name: &str| host.files.sys(&format!("devices/system/node/node{node}/{name}"));
        Node {
            node,
            cpus: host.files.read_text(&file("cpulist")).ok().filter(|list| is_cpu_list(list)),
            memory_mb: host.files.read(&file("meminfo")).ok().and_then(|text| memory_kb(&text)).map(|kb| kb / 1024),
        }
    };
    Some(Numa { nodes, topology: numbers.into_iter().map(node).collect() })
}

/// The number in `Node 0 MemTotal:        475612 kB`.
fn memory_kb(meminfo: &[u8]) -> Option<u64> {
    bytes::lines(meminfo).find_map(|line| {
        let mut fields = bytes::fields(line).skip_while(|field| *field != b"MemTotal:").skip(1);
        bytes::u64(fields.next()?)
    })
}

/// `0-27,56-83`, or nothing at all. At 8,192 CPUs each on its own the list has 40,000 characters.
fn is_cpu_list(list: &str) -> bool {
    list.len() <= 65_536 && list.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b','))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_node() {
        assert_eq!(memory_kb(b"\nNode 1 MemTotal:         494184 kB\nNode 1 MemFree: 1 kB\n"), Some(494_184));
        for bad in [&b""[..], b"MemTotal:", b"Node 0 MemTotal: x kB", b"Node 0 MemFree: 3 kB", b"\xff\0"] {
            assert_eq!(memory_kb(bad), None);
        }
        assert!(is_cpu_list("") && is_cpu_list("0-27,56-83") && !is_cpu_list("0-3\n\u{1b}"));
    }
}
