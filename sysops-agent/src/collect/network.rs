//! Network interfaces: counters from /proc/net/dev, state from /sys/class/net. Sockets and protocols are left to
//! others.

mod link;

use std::time::Duration;

use self::link::{Attribute, Link};
use super::bytes::{complete, lines, next_u64, text, trim};
use super::{CollectError, Collector, Entry, Outcome, interval};
use crate::host::{Host, Source};
use crate::model::{Batch, Desc, Metric, Unit};
use crate::spec::Key;

static RECEIVE: Metric<1> = Metric::gauge(
    "network_receive_bytes_per_second",
    Unit::BytesPerSecond,
    "Bytes received. As all network_ rates, not for lo and veth.",
    &["device"],
);
static TRANSMIT: Metric<1> =
    Metric::gauge("network_transmit_bytes_per_second", Unit::BytesPerSecond, "Bytes sent.", &["device"]);
static RECEIVE_PACKETS: Metric<1> =
    Metric::gauge("network_receive_packets_per_second", Unit::PerSecond, "Packets received.", &["device"]);
static TRANSMIT_PACKETS: Metric<1> =
    Metric::gauge("network_transmit_packets_per_second", Unit::PerSecond, "Packets sent.", &["device"]);
static DROPS: Metric<1> = Metric::gauge(
    "network_drops_per_second",
    Unit::PerSecond,
    "Packets that were dropped, received and sent together.",
    &["device"],
);
static ERROR_RATIO: Metric<1> = Metric::gauge(
    "network_error_ratio",
    Unit::Ratio,
    "Share of packets with errors in all packets, received and sent together.",
    &["device"],
);
static DROPPED: Metric<0> = Metric::gauge(
    "network_devices_dropped",
    Unit::Count,
    "Interfaces that were not read, as there are more than collector.max_network_devices.",
    &[],
);
static MAX_DEVICES: Key<i64> = Key::int(
    "collector.max_network_devices",
    512,
    1,
    100_000,
    "Most network interfaces that are read. Those that come after are counted in network_devices_dropped.",
);

const FILE: &str = "/proc/net/dev";

/// In the list of collectors.
pub(super) static ENTRY: Entry = Entry {
    name: "network",
    metrics: &METRICS,
    keys: &[interval::NETWORK.spec(), MAX_DEVICES.spec()],
    interval: &interval::NETWORK,
    deadline: Duration::from_secs(5),
    new: |host, values| {
        let max_devices = usize::try_from(values.get(&MAX_DEVICES)).unwrap_or(usize::MAX);
        Box::new(Network::new(host, max_devices))
    },
};

struct Network {
    dev: Source,
    /// `dev` is that of process 1, and may not be there.
    of_init: bool,
    max_devices: usize,
    links: Vec<Link>,
    attribute: Attribute,
}

impl Network {
    fn new(host: &Host, max_devices: usize) -> Self {
        // /proc/net is that of the reader: in a container it is not the host's, and that of process 1 is.
        let of_init = host.files.is_foreign();
        let dev = Source::new(host.files.proc(if of_init { "1/net/dev" } else { "net/dev" }));
        Self { dev, of_init, max_devices, links: Vec::new(), attribute: Attribute::new(host) }
    }
}

impl Collector for Network {
    fn collect(&mut self, host: &Host, out: &mut Batch) -> Result<Outcome, CollectError> {
        let file = match self.dev.read() {
            Err(error) if self.of_init && (error.is_denied() || error.is_gone()) => {
                self.of_init = false;
                self.dev = Source::new(host.files.proc("net/dev"));
                self.dev.read()
            }
            other => other,
        }?;
        let mut rows = lines(complete(file, FILE)?);
        for start in [&b"Inter-|"[..], b" face |"] {
            if !rows.next().is_some_and(|line| line.starts_with(start)) {
                return Err(CollectError::parse(FILE, "first lines", "a header of two lines", file));
            }
        }
        let (mut at, mut dropped) = (0, 0);
        let mut failed = None;
        for line in rows {
            match parse(line) {
                Ok(_) if at == self.max_devices => dropped += 1,
                Ok(row) => {
                    row.emit(out);
                    Link::find(&mut self.links, at, row.device).emit(host, &mut self.attribute, out);
                    at += 1;
                }
                // One interface that is not understood does not cost the others.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        self.links.truncate(at);
        out.gauge(&DROPPED, [], f64::from(dropped));
        failed.map_or(Ok(Outcome::Data), Err)
    }
}

const COLUMNS: usize = 16;
const RX_BYTES: usize = 0;
const RX_PACKETS: usize = 1;
const RX_ERRS: usize = 2;
const RX_DROP: usize = 3;
const TX_BYTES: usize = 8;
const TX_PACKETS: usize = 9;
const TX_ERRS: usize = 10;
const TX_DROP: usize = 11;

/// In the file's order.
static COLUMN: [Metric<1>; COLUMNS] = [
    bytes("node_network_receive_bytes_total", "Network device statistic receive_bytes."),
    things("node_network_receive_packets_total", "Network device statistic receive_packets."),
    things("node_network_receive_errs_total", "Network device statistic receive_errs."),
    things("node_network_receive_drop_total", "Network device statistic receive_drop."),
    things("node_network_receive_fifo_total", "Network device statistic receive_fifo."),
    things("node_network_receive_frame_total", "Network device statistic receive_frame."),
    things("node_network_receive_compressed_total", "Network device statistic receive_compressed."),
    things("node_network_receive_multicast_total", "Network device statistic receive_multicast."),
    bytes("node_network_transmit_bytes_total", "Network device statistic transmit_bytes."),
    things("node_network_transmit_packets_total", "Network device statistic transmit_packets."),
    things("node_network_transmit_errs_total", "Network device statistic transmit_errs."),
    things("node_network_transmit_drop_total", "Network device statistic transmit_drop."),
    things("node_network_transmit_fifo_total", "Network device statistic transmit_fifo."),
    things("node_network_transmit_colls_total", "Network device statistic transmit_colls."),
    things("node_network_transmit_carrier_total", "Network device statistic transmit_carrier."),
    things("node_network_transmit_compressed_total", "Network device statistic transmit_compressed."),
];

const fn things(name: &'static str, help: &'static str) -> Metric<1> {
    Metric::counter(name, Unit::Count, help, &["device"])
}

const fn bytes(name: &'static str, help: &'static str) -> Metric<1> {
    Metric::counter(name, Unit::Bytes, help, &["device"])
}

static OTHERS: [&Metric<1>; 10] = [
    &RECEIVE,
    &TRANSMIT,
    &RECEIVE_PACKETS,
    &TRANSMIT_PACKETS,
    &DROPS,
    &ERROR_RATIO,
    &link::CARRIER,
    &link::MTU,
    &link::SPEED,
    &link::UP,
];

static METRICS: [&Desc; COLUMNS + OTHERS.len() + 1] = {
    let mut metrics = [DROPPED.desc(); COLUMNS + OTHERS.len() + 1];
    let mut at = 0;
    while at < COLUMNS {
        metrics[at] = COLUMN[at].desc();
        at += 1;
    }
    while at < COLUMNS + OTHERS.len() {
        metrics[at] = OTHERS[at - COLUMNS].desc();
        at += 1;
    }
    metrics
};

struct Row<'a> {
    device: &'a [u8],
    values: [u64; COLUMNS],
}

impl Row<'_> {
    fn emit(&self, out: &mut Batch) {
        let device = &*text(self.device);
        for (metric, value) in COLUMN.iter().zip(self.values) {
            out.counter(metric, [device], value as f64);
        }
        if self.device == b"lo" || self.device.starts_with(b"veth") {
            return;
        }
        let sum = |columns: [usize; 2]| columns.iter().map(|&column| self.values[column] as f64).sum::<f64>();
        out.per_second(&RECEIVE, [device], self.values[RX_BYTES] as f64);
        out.per_second(&TRANSMIT, [device], self.values[TX_BYTES] as f64);
        out.per_second(&RECEIVE_PACKETS, [device], self.values[RX_PACKETS] as f64);
        out.per_second(&TRANSMIT_PACKETS, [device], self.values[TX_PACKETS] as f64);
        out.per_second(&DROPS, [device], sum([RX_DROP, TX_DROP]));
        let errors = sum([RX_ERRS, TX_ERRS]);
        // Drivers count a packet with an error as an error only.
        out.ratio(&ERROR_RATIO, [device], errors, sum([RX_PACKETS, TX_PACKETS]) + errors);
    }
}

/// Reads `  eth0: 515439627   18138 …`. Kernels before 3.0 print no blank behind the colon, and aliases have a
/// colon in their name: the last one counts.
fn parse(line: &[u8]) -> Result<Row<'_>, CollectError> {
    let Some(colon) = line.iter().rposition(|&byte| byte == b':') else {
        return Err(CollectError::parse(FILE, "line", "an interface and a colon", line));
    };
    let device = trim(&line[..colon]);
    let mut columns = super::bytes::fields(&line[colon + 1..]);
    let mut values = [0; COLUMNS];
    for (at, value) in values.iter_mut().enumerate() {
        let item = || format!("{} column {}", text(device), at + 1);
        *value = next_u64(&mut columns, FILE, item)?;
    }
    Ok(Row { device, values })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, declared, parts, read, recorded, value};
    use super::*;

    const HEADER: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n";

    #[test]
    fn a_machine_of_today() {
        let (_, batch) = read(&recorded("debian12-6.18"), &ENTRY).expect("it can be read");
        declared(&batch, &ENTRY);
        assert_eq!(value(&batch, "node_network_receive_bytes_total", &["eth0"]), Some(515_439_627.0));
        assert_eq!(value(&batch, "node_network_transmit_packets_total", &["lo"]), Some(29.0));
        assert_eq!(value(&batch, "network_receive_bytes_per_second", &["lo"]), None);
        assert_eq!(value(&batch, "network_transmit_bytes_per_second", &["eth0"]), Some(1_021_293.0));
        assert_eq!(parts(&batch, "network_error_ratio", &["eth0"]), Some((0.0, 28_743.0)));
        assert_eq!(value(&batch, "node_network_up", &["eth0"]), Some(1.0));
        assert_eq!(value(&batch, "node_network_up", &["lo"]), Some(0.0), "its state is unknown");
        assert_eq!(value(&batch, "node_network_mtu_bytes", &["eth0"]), Some(1400.0));
        assert_eq!(value(&batch, "node_network_carrier", &["eth0"]), Some(1.0));
        assert_eq!(value(&batch, "node_network_carrier", &["ifb0"]), None, "it is down");
        assert_eq!(value(&batch, "node_network_speed_bytes", &["eth0"]), None, "-1 is unknown");
    }

    #[test]
    fn five_hundred_interfaces_come_and_go() {
        let table = |devices: std::ops::Range<u32>| {
            let line = |device| format!("veth{device}: {device} 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n");
            HEADER.to_owned() + &devices.map(line).collect::<String>()
        };
        let machine = Machine::new("net-many").file("proc/1/net/dev", table(0..600));
        machine.write("sys/class/net/veth7/operstate", "up\n");
        machine.write("sys/class/net/veth7/speed", "10000\n");
        let (mut collector, mut batch) = (machine.collector(&ENTRY), Batch::default());
        collector.collect(&machine.host(), &mut batch).expect("it can be read");
        declared(&batch, &ENTRY);
        assert_eq!(value(&batch, "network_devices_dropped", &[]), Some(88.0));
        assert_eq!(value(&batch, "node_network_speed_bytes", &["veth7"]), Some(1.25e9));
        assert_eq!(value(&batch, "network_receive_bytes_per_second", &["veth7"]), None);
        // The speed is remembered, and asked for anew when the interface goes down.
        machine.write("proc/1/net/dev", table(5..8));
        machine.write("sys/class/net/veth7/speed", "-1\n");
        for (state, speed) in [("up\n", Some(1.25e9)), ("down\n", None)] {
            machine.write("sys/class/net/veth7/operstate", state);
            batch.clear();
            collector.collect(&machine.host(), &mut batch).expect("it can be read");
            assert_eq!(value(&batch, "node_network_speed_bytes", &["veth7"]), speed);
            assert_eq!(value(&batch, "node_network_receive_bytes_total", &["veth6"]), Some(6.0));
            assert_eq!(value(&batch, "node_network_receive_bytes_total", &["veth8"]), None);
        }
    }

    #[test]
    fn hostile_names_and_old_kernels() {
        let zeros = "1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0";
        let table = format!("{HEADER}eth0:1:{zeros}\n ../../etc: {zeros}\n a\x1b[31m\u{ff}: {zeros}\n");
        let machine = Machine::new("net-names").file("proc/net/dev", table);
        let batch = machine.data(&ENTRY);
        for device in ["eth0:1", "../../etc", "a\u{1b}[31m\u{ff}"] {
            assert_eq!(value(&batch, "node_network_receive_bytes_total", &[device]), Some(1.0), "{device}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_names_it() {
        let machine = Machine::new("net-bad");
        let error = |content: &[u8]| {
            machine.write("proc/net/dev", content);
            machine.collect(&ENTRY).expect_err("it is bad").to_string()
        };
        assert!(error(b"").contains("last line") && error(b"\xff\n").contains("a header of two lines"));
        let table = |line: &str| format!("{HEADER}{line}\n").into_bytes();
        assert!(error(&table("eth0")).contains("an interface and a colon"));
        let expected = "/proc/net/dev: eth0 column 3: expected a number, found \"x\"";
        assert_eq!(error(&table("eth0: 1 2 x 4 5 6 7 8 9 10 11 12 13 14 15 16")), expected);
        let whole = table("  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16");
        for end in (0..whole.len()).filter(|&end| end != HEADER.len()) {
            assert!(error(&whole[..end]).starts_with(FILE), "{end}");
        }
    }
}
