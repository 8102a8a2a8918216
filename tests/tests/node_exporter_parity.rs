//! Names, labels and values of the `node_` families against prometheus-node-exporter on the machine that runs the
//! test. Skipped where it is not installed, but not when `CI` is `true`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sysops_agent::collect::{self, Collector};
use sysops_agent::host::{Host, Roots};
use sysops_agent::model::{Batch, Reading, batch::label_values};
use sysops_agent::spec::Values;

/// Debian's build has defaults of its own: these are upstream's of version 1.12.
const FLAGS: [&str; 5] = [
    "--collector.filesystem.mount-points-exclude=^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)",
    "--collector.filesystem.fs-types-exclude=^(autofs|binfmt_misc|bpf|cgroup2?|configfs|debugfs|devpts|devtmpfs|erofs|fusectl|hugetlbfs|iso9660|mqueue|nsfs|overlay|proc|procfs|pstore|rpc_pipefs|securityfs|selinuxfs|squashfs|sysfs|tracefs)$",
    r"--collector.diskstats.device-exclude=^(z?ram|loop|fd|(h|s|v|xv)d[a-z]|nvme\d+n\d+p)\d+$",
    "--collector.netdev.device-exclude=^$",
    "--collector.processes",
];

/// Families that version 1.5 does not know.
const NEWER: [&str; 1] = ["node_pressure_irq_stalled_seconds_total"];

/// Families of the same sources that belong to the inventory or to nobody.
const NOT_GIVEN: [&str; 21] = [
    "node_cpu_core_throttles_total",
    "node_cpu_package_throttles_total",
    "node_disk_info",
    "node_network_address_assign_type",
    "node_network_carrier_changes_total",
    "node_network_carrier_down_changes_total",
    "node_network_carrier_up_changes_total",
    "node_network_device_id",
    "node_network_dormant",
    "node_network_flags",
    "node_network_iface_id",
    "node_network_iface_link",
    "node_network_iface_link_mode",
    "node_network_info",
    "node_network_name_assign_type",
    "node_network_net_dev_group",
    "node_network_protocol_type",
    // Not in /proc/net/dev.
    "node_network_receive_nohandler_total",
    "node_network_transmit_queue_length",
    "node_disk_ata_write_cache",
    "node_disk_ata_write_cache_enabled",
];

const FAMILIES: [&str; 13] = [
    "node_boot_time_",
    "node_context_switches_",
    "node_cpu_",
    "node_disk_",
    "node_filesystem_",
    "node_forks_",
    "node_intr_",
    "node_load",
    "node_memory_",
    "node_network_",
    "node_pressure_",
    "node_procs_",
    "node_vmstat_",
];

type Series = BTreeMap<String, f64>;

#[test]
fn the_same_names_labels_and_values() {
    let Some(exporter) = Exporter::start() else {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must have prometheus-node-exporter");
        println!("skipped: prometheus-node-exporter is not installed");
        return;
    };
    let host = Host::live(&Roots { root: Some("/".into()) });
    let mut collectors: Vec<_> = collect::ALL.iter().map(|entry| (entry.new)(&host, &Values::default())).collect();
    // The machine moves between two readings: a value must lie between our own before and after, in one round of many.
    let mut unmatched: Option<BTreeSet<String>> = None;
    let mut difference = String::new();
    for _ in 0..20 {
        let before = ours(&mut collectors, &host);
        let theirs = exporter.scrape();
        let after = ours(&mut collectors, &host);
        difference = compare_names(&after, &theirs);
        let off = |name: &&String| {
            let (Some(a), Some(b), Some(their)) = (before.get(*name), after.get(*name), theirs.get(*name)) else {
                return true;
            };
            let slack = slack(family(name)) + 1e-9 * their.abs();
            *their < a.min(*b) - slack || *their > a.max(*b) + slack
        };
        let off: BTreeSet<String> = after.keys().filter(off).cloned().collect();
        let known =
            |name: &String| !NEWER.contains(&family(name)) && (theirs.contains_key(name) || !comes_and_goes(name));
        let off: BTreeSet<String> = off.into_iter().filter(known).collect();
        let left = unmatched.map_or(off.clone(), |left| left.intersection(&off).cloned().collect());
        let done = left.is_empty() && difference.is_empty();
        println!("{} series of ours, {} never equal yet", after.len(), left.len());
        unmatched = Some(left);
        if done {
            assert!(after.len() > 150, "too few to say anything: {}", after.len());
            return;
        }
    }
    assert_eq!((difference, unmatched), (String::new(), Some(BTreeSet::new())), "only one has it; never equal");
}

/// What asking itself changes: sockets, and threads of the exporter that wake up.
fn slack(family: &str) -> f64 {
    match family {
        // The kernel counts open files for each CPU in lots.
        "node_filefd_allocated" => 256.0,
        "node_processes_pids" | "node_processes_threads" | "node_processes_state" => 16.0,
        _ => 0.0,
    }
}

/// Series that only one of both has.
fn compare_names(ours: &Series, theirs: &Series) -> String {
    let only_ours = ours.keys().filter(|name| !theirs.contains_key(*name) && !comes_and_goes(name));
    let only_ours = only_ours.map(|name| format!("only ours: {name}\n"));
    let is_shared = |name: &str, value: f64| {
        let family = family(name);
        // 1.5 gives -1 Mbit/s as a speed; later versions leave it out as we do.
        FAMILIES.iter().any(|prefix| family.starts_with(prefix))
            && !NOT_GIVEN.contains(&family)
            && !(family == "node_network_speed_bytes" && value < 0.0)
    };
    let only_theirs = theirs.iter().filter(|(name, value)| !ours.contains_key(*name) && is_shared(name, **value));
    only_ours.chain(only_theirs.map(|(name, value)| format!("only theirs: {name} {value}\n"))).collect()
}

/// A state is there while a process is in it: the exporter and the test see each other run.
fn comes_and_goes(name: &str) -> bool {
    NEWER.contains(&family(name)) || family(name) == "node_processes_state"
}

fn family(series: &str) -> &str {
    series.split('{').next().unwrap_or(series)
}

fn ours(collectors: &mut [Box<dyn Collector>], host: &Host) -> Series {
    let mut batch = Batch::default();
    for collector in collectors {
        collector.collect(host, &mut batch).expect("every collector of this machine works");
    }
    let mut series = Series::new();
    for (entry, key) in batch.iter().filter(|(entry, _)| entry.metric.name.starts_with("node_")) {
        let (Reading::Gauge(value) | Reading::Counter(value)) = entry.reading else { continue };
        let labels = entry.metric.labels.iter().zip(label_values(key)).filter(|(_, value)| !value.is_empty());
        let labels: BTreeSet<String> = labels.map(|(name, value)| format!("{name}={value:?}")).collect();
        assert!(series.insert(rendered(entry.metric.name, &labels), value).is_none());
    }
    series
}

fn rendered(name: &str, labels: &BTreeSet<String>) -> String {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) }
}

struct Exporter {
    child: Child,
    port: u16,
}

impl Exporter {
    #[expect(clippy::disallowed_methods, reason = "the test runs the other program")]
    fn start() -> Option<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            assert!(tries < 5, "prometheus-node-exporter does not listen");
            // The port is free when it is given; another program may take it before: then the exporter ends.
            let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
            let mut command = Command::new("prometheus-node-exporter");
            command.arg(format!("--web.listen-address=127.0.0.1:{port}")).args(FLAGS);
            let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
            let mut exporter = Self { child, port };
            for _ in 0..200 {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Some(exporter);
                }
                if exporter.child.try_wait().expect("our child").is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn scrape(&self) -> Series {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        text.lines().filter(|line| line.starts_with("node_")).map(parse).collect()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads `name{label="value",…} number`; the label values of this machine have no commas and quotes.
fn parse(line: &str) -> (String, f64) {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let value = value.parse().expect("a number");
    let Some((name, labels)) = series.split_once('{') else { return (series.to_owned(), value) };
    let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.ends_with("=\"\""));
    (rendered(name, &labels.map(str::to_owned).collect()), value)
}
