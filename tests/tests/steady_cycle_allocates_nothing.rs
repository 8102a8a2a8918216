//! A steady cycle of each collector takes no memory: shown with an allocator that counts, on the machine that runs
//! the test.

#![expect(unsafe_code, reason = "a global allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use sysops_agent::collect;
use sysops_agent::host::{Host, Roots};
use sysops_agent::model::Batch;
use sysops_agent::spec::Values;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn steady_cycles_allocate_nothing() {
    let host = Host::live(&Roots { root: Some("/".into()) });
    let mut failed = Vec::new();
    for entry in collect::ALL {
        let mut collector = (entry.new)(&host, &Values::default());
        let mut batch = Batch::default();
        let mut cycle = || {
            batch.clear();
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let outcome = collector.collect(&host, &mut batch);
            let count = ALLOCATIONS.load(Ordering::Relaxed) - before;
            (count, matches!(outcome, Ok(collect::Outcome::Data)))
        };
        let (first, is_data) = cycle();
        // The machine is not still: a process, a mount or an interface that comes in between may cost memory once.
        let least = (0..50).map(|_| cycle().0).min().unwrap_or(usize::MAX);
        println!("{}: {first} allocations in the first cycle, {least} in a steady one", entry.name);
        if is_data && least > 0 {
            failed.push((entry.name, least));
        }
    }
    assert!(failed.is_empty(), "collectors that allocate in every cycle: {failed:?}");
    assert!(collect::ALL.len() >= 10 && ALLOCATIONS.load(Ordering::Relaxed) > 0, "the counter counts");
}
