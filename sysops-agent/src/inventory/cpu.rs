//! Reads /proc/cpuinfo: which processors there are and what they can do. How they sit in sockets is `cpu_topology`'s.

use std::collections::BTreeSet;

use serde::Serialize;

use super::cpu_topology::{self, Topology};
use super::read::{Amount, number, said};
use crate::host::{Host, bytes};

/// Flags that are kept: kernels know some 400.
const FLAGS_MAX: usize = 1024;

/// The processors. All sockets are taken to hold the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// `Intel(R) Xeon(R) Gold 6348 CPU @ 2.60GHz`. On ARM the core's name, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `GenuineIntel`, `AuthenticAMD`, `ARM`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Sockets with at least one CPU online.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets: Option<usize>,
    /// Cores in a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores_per_socket: Option<usize>,
    /// Threads of a core; where cores differ, of those that have most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads_per_core: Option<usize>,
    /// CPUs online.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_threads: Option<usize>,
    /// Base frequency; where the kernel does not tell it, the highest one, and without cpufreq that of the moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mhz: Option<u64>,
    /// L3 cache of a socket in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_l3_mb: Option<Amount>,
    /// What it can do, as the kernel spells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<String>>,
    /// Revision of the microcode, `0xd0003b9`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub microcode: Option<String>,
}

pub(super) fn collect(host: &Host) -> Cpu {
    let cpuinfo = host.files.read(&host.files.proc("cpuinfo")).unwrap_or_default();
    let facts = parse(&cpuinfo);
    // Where /sys is not to be seen, cpuinfo knows a part of it, on x86 only.
    let Topology { sockets, cores_per_socket, threads_per_core } =
        cpu_topology::collect(host).unwrap_or_else(|| facts.topology());
    Cpu {
        cache_l3_mb: cpu_topology::l3_kib(host)
            .map(|kib| Amount::of(kib / u64::try_from(sockets.unwrap_or(1)).unwrap_or(1), 1024)),
        sockets,
        cores_per_socket,
        threads_per_core,
        mhz: frequency_mhz(host).or(facts.mhz),
        total_threads: Some(facts.processors).filter(|&processors| processors > 0),
        flags: facts.flags,
        model: facts.model.or_else(|| arm_name(ARM_CORES, &[facts.implementer?, facts.part?])),
        vendor: facts.vendor.or_else(|| arm_name(ARM_VENDORS, &[facts.implementer?])),
        microcode: facts.microcode,
    }
}

/// What cpuinfo tells.
#[derive(Debug, Default)]
struct Facts {
    model: Option<String>,
    vendor: Option<String>,
    microcode: Option<String>,
    mhz: Option<u64>,
    flags: Option<Vec<String>>,
    processors: usize,
    packages: BTreeSet<u64>,
    cores: Option<usize>,
    siblings: Option<usize>,
    implementer: Option<u64>,
    part: Option<u64>,
}

impl Facts {
    fn topology(&self) -> Topology {
        Topology {
            sockets: Some(self.packages.len()).filter(|&packages| packages > 0),
            cores_per_socket: self.cores,
            threads_per_core: self.siblings.zip(self.cores).and_then(|(all, cores)| all.checked_div(cores)),
        }
    }
}

/// Reads `name<tab>: value` lines, a block for each CPU. The first block tells the model, as all are taken to be alike.
fn parse(cpuinfo: &[u8]) -> Facts {
    let mut facts = Facts::default();
    for line in bytes::lines(cpuinfo) {
        let Some((name, value)) = bytes::split_once(line, b':') else { continue };
        let value = bytes::trim(value);
        let text = |known: &mut Option<String>| *known = known.take().or_else(|| said(value));
        let count = || usize::try_from(bytes::u64(value)?).ok();
        match bytes::trim(name) {
            b"processor" => facts.processors += 1,
            b"model name" | b"cpu model" | b"cpu" => text(&mut facts.model),
            b"vendor_id" => text(&mut facts.vendor),
            b"microcode" => text(&mut facts.microcode),
            b"flags" | b"Features" if facts.flags.is_none() => {
                facts.flags = Some(bytes::fields(value).filter_map(said).take(FLAGS_MAX).collect());
            }
            b"cpu MHz" => facts.mhz = facts.mhz.or_else(|| whole_mhz(value)),
            b"physical id" => facts.packages.extend(bytes::u64(value)),
            b"cpu cores" => facts.cores = facts.cores.or_else(count),
            b"siblings" => facts.siblings = facts.siblings.or_else(count),
            b"CPU implementer" => facts.implementer = facts.implementer.or_else(|| bytes::hex(value)),
            b"CPU part" => facts.part = facts.part.or_else(|| bytes::hex(value)),
            // `processor 0: version = …` of s390.
            name if name.starts_with(b"processor ") => facts.processors += 1,
            _ => {}
        }
    }
    facts
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
fn whole_mhz(value: &[u8]) -> Option<u64> {
    bytes::decimal(value).map(f64::round).filter(|mhz| (1.0..1e6).contains(mhz)).map(|mhz| mhz as u64)
}

fn frequency_mhz(host: &Host) -> Option<u64> {
    let khz = |name: &str| number(host, &host.files.sys(&format!("devices/system/cpu/cpu0/cpufreq/{name}")));
    khz("base_frequency").or_else(|| khz("cpuinfo_max_freq")).map(|khz| khz / 1000).filter(|&mhz| mhz > 0)
}

/// Implementers in MIDR_EL1, as lscpu(1) names them.
const ARM_VENDORS: &[(&[u64], &str)] = &[
    (&[0x41], "ARM"),
    (&[0x42], "Broadcom"),
    (&[0x43], "Cavium"),
    (&[0x48], "HiSilicon"),
    (&[0x4e], "Nvidia"),
    (&[0x50], "APM"),
    (&[0x51], "Qualcomm"),
    (&[0x56], "Marvell"),
];

/// Implementer and part of cores that servers and common boards have; others stay unnamed.
const ARM_CORES: &[(&[u64], &str)] = &[
    (&[0x41, 0xd03], "Cortex-A53"),
    (&[0x41, 0xd07], "Cortex-A57"),
    (&[0x41, 0xd08], "Cortex-A72"),
    (&[0x41, 0xd0b], "Cortex-A76"),
    (&[0x41, 0xd0c], "Neoverse-N1"),
    (&[0x41, 0xd40], "Neoverse-V1"),
    (&[0x41, 0xd4f], "Neoverse-V2"),
    (&[0x43, 0x0af], "ThunderX2 99xx"),
];

fn arm_name(names: &[(&[u64], &str)], wanted: &[u64]) -> Option<String> {
    names.iter().find(|(ids, _)| *ids == wanted).map(|&(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_architectures() {
        let power =
            parse(b"processor\t: 0\ncpu\t\t: POWER9, altivec supported\nclock\t\t: 3800.000000MHz\n\nprocessor\t: 1\n");
        assert_eq!((power.model.as_deref(), power.processors), (Some("POWER9, altivec supported"), 2));
        let s390 =
            parse(b"vendor_id       : IBM/S390\nfeatures\t: esan3 zarch\nprocessor 0: version = 00,  machine = 8561\n");
        assert_eq!((s390.vendor.as_deref(), s390.processors), (Some("IBM/S390"), 1));
    }

    #[test]
    fn garbage_tells_nothing() {
        let facts = parse(
            b"model name\t: \ncpu MHz : inf\nphysical id : -1\ncpu cores: 0\nsiblings : 2\nCPU part: 0xzz\n\xff:\n:\n",
        );
        assert_eq!((facts.model.as_deref(), facts.mhz, facts.part), (None, None, None));
        let Topology { sockets, threads_per_core, .. } = facts.topology();
        assert_eq!((sockets, threads_per_core), (None, None));
        assert_eq!(parse(b"cpu MHz\t\t: 2299.988").mhz, Some(2300));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_met(cpuinfo: Vec<u8>) {
            parse(&cpuinfo);
        }
    }
}
