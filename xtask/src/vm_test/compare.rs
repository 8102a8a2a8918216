//! `cargo xtask vm-test --compare [6.1 7.x]`: the same faults in one guest before the agent, the CO-RE tools of bcc (libbpf-tools)
//! and bpftrace's scripts, all three as the kernel's own Debian release has them; and a table of what each saw. Reading what
//! they print is left to `compared`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::compared::{self, KILLS, READS, WRITES};
use super::kernels::{self, Kernel};
use super::packages::{Unpacked, World, remove};
use super::payload::{self, AGENT};
use super::{guest, init, said};
use crate::program;

const PACKAGES: &[&str] = &["libbpf-tools", "bpftrace"];
const PROGRAMS: &[&str] = &["oomkill", "biolatency", "bpftrace", "oomkill.bt", "biolatency.bt"];
const LOADER: &str = "ld-linux-x86-64.so.2";
/// A compiler comes with bpftrace.
const MEMORY_MIB: u32 = 3072;
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// A kernel of bookworm, which is that of most machines, and the newest.
const USUAL: &[&str] = &["6.1", "7.x"];

/// Prints the table of each kernel; of the `kept` what its guest said when it ran last.
///
/// # Errors
/// When something cannot be had, a guest does not come to its end, or the agent did not see what happened.
pub(super) fn main(names: &[&str], dev: bool, kept: bool) -> Result<()> {
    let names = if names.is_empty() { USUAL } else { names };
    if !kept {
        guest::ensure_qemu()?;
        let agent = payload::agent(dev)?;
        for name in names {
            let (kernel, tools) = (kernels::get(name)?, tools(kernels::suite(name)?)?);
            program::step(&format!("guest {name} with other tools"), || boot(&kernel, &agent, &tools))?;
        }
    }
    let mut failures = Vec::new();
    for name in names {
        let file = guests().join(format!("{name}.said"));
        let said = std::fs::read(&file).with_context(|| format!("{}: has its guest run?", file.display()))?;
        let (sections, done) = said::sections(&String::from_utf8_lossy(&said));
        if !done {
            bail!("{name}: the guest did not come to its end: {}", file.display());
        }
        let compared = compared::of(&sections);
        print!("{}", compared.text);
        failures.extend(compared.failures.into_iter().map(|failure| format!("{name}: {failure}")));
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

fn guests() -> PathBuf {
    kernels::home().join("compare")
}

fn boot(kernel: &Kernel, agent: &Path, tools: &Path) -> Result<()> {
    let mut files = payload::alone(&[(agent, AGENT), (&program::find("dd").context("dd is missing")?, "/usr/bin/dd")])?;
    for entry in std::fs::read_dir(tools).with_context(|| tools.display().to_string())? {
        let file = entry?.path();
        let name = file.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        files.push((format!("/tools/{name}"), std::fs::read(&file).with_context(|| file.display().to_string())?));
    }
    files.push(("/bin/busybox".to_owned(), std::fs::read(kernels::busybox()?)?));
    files.push(("/etc/agent.toml".to_owned(), CONFIGURATION.as_bytes().to_vec()));
    let dir = guests();
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let initramfs = dir.join(format!("{}.cpio", kernel.series));
    std::fs::write(&initramfs, payload::archive(&files, kernel, &script())?)?;
    guest::run(kernel, &initramfs, &dir, kernel.series, MEMORY_MIB, DEADLINE)?;
    std::fs::remove_file(&initramfs).with_context(|| initramfs.display().to_string())
}

const CONFIGURATION: &str = "[agent]\ndata_dir = \"/tmp/agent\"\ncollect_interval_secs = 1\n\
     [collector]\ndisk_interval_secs = 1\n[prometheus]\nenabled = true\n";

/// Faults and tools. A tool is ready when it holds a BPF link or a perf event; one that has ended by then could not begin.
fn script() -> String {
    format!(
        r#"{preamble}mount -t debugfs debugfs /sys/kernel/debug; mkdir /tmp/agent
tool() {{ program=$1; shift; exec /tools/{LOADER} --library-path /tools /tools/$program "$@"; }}
run() {{ name=$1; shift; "$@" >/tmp/$name.out 2>/tmp/$name.err & echo $! >/tmp/$name.pid; }}
runs() {{ kill -0 $(cat /tmp/$1.pid) 2>/dev/null; }}
ready() {{ n=0; while runs $1 && [ $n -lt 300 ]; do eval "$2" && break; sleep 0.5; n=$((n+1)); done; sleep 2; }}
holds() {{ ls -l /proc/$(cat /tmp/$1.pid)/fd 2>/dev/null | grep -q -e bpf_link -e bpf-link -e perf_event; }}
stop() {{ kill -$2 $(cat /tmp/$1.pid) 2>/dev/null; n=0; while runs $1 && [ $n -lt 60 ]; do sleep 0.5; n=$((n+1)); done; kill -KILL $(cat /tmp/$1.pid) 2>/dev/null; }}
tell() {{ section "$1" cat /tmp/$2.out /tmp/$2.err; }}
metrics() {{ sleep 3; section "$1" wget -q -O - http://127.0.0.1:9100/metrics; }}
victim() {{ mkdir -p $1; echo 16M >$1/memory.max; echo 0 >$1/memory.swap.max 2>/dev/null; }}
asks='echo "$$ $1" >>/tmp/victims; echo $$ >/sys/fs/cgroup/$1/cgroup.procs; exec dd if=/dev/zero of=/dev/null bs=64M count=1'
waits='echo "$$ $1" >>/tmp/victims; echo $$ >/sys/fs/cgroup/$1/cgroup.procs; exec sleep 1000'

run events {AGENT} --config /etc/agent.toml events --json --kind oom_kill
run oomkill tool oomkill
run oomkill.bt tool bpftrace -B line /tools/oomkill.bt
ready events 'grep -q watching: /tmp/events.err'
ready oomkill.bt 'grep -q Tracing /tmp/oomkill.bt.out'
ready oomkill 'holds oomkill'
cd /sys/fs/cgroup; killed=0
for i in $(seq {KILLS}); do victim one-$i; sh -c "$asks" sh one-$i 2>/dev/null; done
victim group; echo 1 >group/memory.oom.group
for i in 1 2 3 4; do sh -c "$waits" sh group & done
while [ $(wc -l <group/cgroup.procs) -lt 4 ]; do sleep 0.1; done
sh -c "$asks" sh group 2>/dev/null; sleep 5; cd /
section 'oom truth' sh -c 'for f in /sys/fs/cgroup/*/memory.events; do echo "$f $(grep "^oom_kill " $f)"; done'
section victims cat /tmp/victims
stop events TERM; tell 'oom events' events
for t in oomkill oomkill.bt; do stop $t INT; tell "oom $t" $t; done

disk=/sys/block/nullb0
modprobe null_blk nr_devices=1 gb=1 queue_mode=2 irqmode=2 completion_nsec=2000000
run agent {AGENT} --config /etc/agent.toml
ready agent 'wget -q -O - http://127.0.0.1:9100/metrics | grep -q kernel_probe_rung'
for stats in 1 0; do
echo $stats >$disk/queue/iostats
run biolatency tool biolatency -D
run biolatency.bt tool bpftrace -B line /tools/biolatency.bt
ready biolatency.bt 'grep -q Tracing /tmp/biolatency.bt.out'
ready biolatency 'holds biolatency'
metrics "io$stats before"; section "io$stats truth before" cat $disk/stat
dd if=/dev/zero of=/dev/nullb0 bs=4k count={WRITES} oflag=direct 2>/dev/null
dd if=/dev/nullb0 of=/dev/null bs=4k count={READS} iflag=direct 2>/dev/null
section "io$stats truth after" cat $disk/stat; metrics "io$stats after"
for t in biolatency biolatency.bt; do stop $t INT; tell "io$stats $t" $t; done
done
stop agent TERM
{end}"#,
        preamble = init::preamble(),
        end = init::end(),
    )
}

/// A folder with the tools of a suite, their loader and libraries; the kept one, else fetched.
fn tools(suite: &str) -> Result<PathBuf> {
    let dir = kernels::home().join("tools").join(suite);
    if !dir.is_dir() {
        program::step(&format!("{} of {suite}: fetching", PACKAGES.join(", ")), || fetch(suite, &dir))?;
    }
    Ok(dir)
}

fn fetch(suite: &str, dir: &Path) -> Result<()> {
    let unpacked = Unpacked::with_dependencies(&World::new(suite)?, PACKAGES)?;
    let new = dir.with_extension("new");
    remove(&new)?;
    std::fs::create_dir_all(&new).with_context(|| new.display().to_string())?;
    // Newer releases tell them from bcc's own by an ending.
    let named = |name: &str| {
        let names = [name.to_owned(), format!("{name}-libbpf")];
        let found = unpacked.find(|path| {
            path.file_name().is_some_and(|file| names.iter().any(|name| file.to_string_lossy() == name.as_str()))
        })?;
        found.with_context(|| format!("{suite}: no {name} in {}", PACKAGES.join(", ")))
    };
    let loader = named(LOADER)?;
    let folders: Vec<String> = ["lib", "usr/lib"]
        .iter()
        .map(|folder| unpacked.dir().join(folder).join("x86_64-linux-gnu").display().to_string())
        .collect();
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        let file = named(program)?;
        std::fs::copy(&file, new.join(program)).with_context(|| file.display().to_string())?;
        if !program.ends_with(".bt") {
            let list = Command::new(&loader).args(["--library-path", &folders.join(":"), "--list"]).arg(&file).output();
            let list = list.with_context(|| loader.display().to_string())?;
            libraries.extend(payload::paths(&String::from_utf8_lossy(&list.stdout)));
        }
    }
    for library in libraries.iter().map(PathBuf::from).chain([loader]) {
        let name = library.file_name().context("a library has a name")?;
        std::fs::copy(&library, new.join(name)).with_context(|| library.display().to_string())?;
    }
    std::fs::rename(&new, dir).with_context(|| dir.display().to_string())
}
