//! A steady cycle of each collector takes no memory: counted on the machine that runs the test.

use sysops_agent::collect;
use sysops_agent::host::{Host, Roots};
use sysops_agent::model::Batch;
use sysops_agent::spec::Values;

#[test]
fn steady_cycles_allocate_nothing() {
    let host = Host::live(&Roots { root: Some("/".into()) });
    let (mut failed, mut counted) = (Vec::new(), 0);
    for entry in collect::ALL {
        let mut collector = (entry.new)(&host, &Values::default());
        let mut batch = Batch::default();
        let mut cycle = || {
            batch.clear();
            let mut is_data = false;
            let measured = allocation_counter::measure(|| {
                is_data = matches!(collector.collect(&host, &mut batch), Ok(collect::Outcome::Data));
            });
            (measured.count_total, is_data)
        };
        let (first, is_data) = cycle();
        // The machine is not still: a process, a mount or an interface that comes in between may cost memory once.
        let least = (0..50).map(|_| cycle().0).min().unwrap_or(u64::MAX);
        println!("{}: {first} allocations in the first cycle, {least} in a steady one", entry.name);
        counted += first;
        // Absence costs the text of its reason.
        if is_data && least > 0 {
            failed.push((entry.name, least));
        }
    }
    assert!(failed.is_empty(), "collectors that allocate in every cycle: {failed:?}");
    assert!(collect::ALL.len() >= 10 && counted > 0, "the counter counts");
}
