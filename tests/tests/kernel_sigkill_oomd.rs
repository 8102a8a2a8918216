//! systemd-oomd itself: who it kills is told with it as the sender.

use std::process::Child;
use std::time::Duration;

use sysops_agent::host::{Host, Roots};
use sysops_agent::kernel::Rung;
use sysops_agent::model::event::Sigkill;
use sysops_agent::model::{Detail, Event};
use sysops_agent::spec::Values;
use sysops_tests::events::take_until;
use sysops_tests::loop_device::LoopDevice;
use sysops_tests::managed_oom::ManagedOom;
use sysops_tests::memory_cgroup::MemoryCgroup;
use sysops_tests::one_probe::OneProbe;
use sysops_tests::require::{self, require};

#[test]
#[ignore = "systemd-oomd takes the place of the machine's own; run by vm-test without --quick"]
fn the_real_systemd_oomd_is_known() {
    let missing = || require::programs(&["sh", "dd", "systemd-oomd"]).or_else(LoopDevice::missing);
    if !require(MemoryCgroup::groups_missing().or_else(ManagedOom::missing).or_else(missing)) {
        return;
    }
    let host = Host::live(&Roots::default());
    let mut probe = OneProbe::start(&host, "sigkill", "auto", Values::default());
    if probe.standing().rung == Rung::Off {
        let _ = require(Some(probe.standing().reason));
        return;
    }
    // It kills only where memory is taken back for others: this disk has eight times as much as there is room for.
    let (disk, cgroup) = (LoopDevice::new("oomd"), MemoryCgroup::new("sysops-oomd", 8 << 20));
    let mut victims = [cgroup.start("sleep 1000"), cgroup.start("sleep 1000"), cgroup.start("sleep 1000")];
    let mut reader = cgroup.start(&format!("sh -c 'while :; do dd if={} of=/dev/null bs=64k; done'", disk.path()));
    let oomd = ManagedOom::start(&cgroup.path);
    let events = take_until(probe.source(), &host, Duration::from_secs(120), |events| {
        victims.iter().all(|victim| about(events, victim).is_some())
    });
    // Where it killed none they end here.
    for child in victims.iter_mut().chain([&mut reader]) {
        let _ = child.kill();
        let _ = child.wait();
    }
    for victim in &victims {
        let kill = about(&events, victim).unwrap_or_else(|| panic!("none about {}: {events:#?}", victim.id()));
        assert_eq!(
            (kill.sender_pid, kill.sender_comm.as_deref()),
            (Some(oomd.pid()), Some("systemd-oomd")),
            "{kill:?}"
        );
        assert_eq!((kill.killer.as_deref(), kill.for_memory), (Some("systemd-oomd"), true), "{kill:?}");
    }
}

fn about<'a>(events: &'a [Event], child: &Child) -> Option<&'a Sigkill> {
    events.iter().filter(|event| event.tid == Some(child.id())).find_map(|event| match &event.detail {
        Detail::Sigkill(kill) => Some(kill),
        _ => None,
    })
}
