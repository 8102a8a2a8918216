//! Makes NATS messages on time. What waits is `queue`'s, the way out `link`'s.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::link::Link;
use super::queue::{Kind, Message, Queue, Reason};
use super::{
    BATCH_SIZE, HEARTBEAT_INTERVAL, INVENTORY_INTERVAL, MAX_RECONNECT_ATTEMPTS, METRICS_INTERVAL, RECONNECT_DELAY,
};
use crate::deliver::export::{Context, Exporter, telemetry};
use crate::deliver::nats::SUBJECT_PREFIX;
use crate::deliver::nats::access::Access;
use crate::deliver::nats::encoding::{Encoded, Encoder};
use crate::deliver::nats::subject::{check_prefix, subject};
use crate::model::Batch;
use crate::spec::Values;

/// Kept free of what the server takes, for headers and for the little by which zstd may make a text longer.
const PAYLOAD_RESERVE_BYTES: usize = 4096;

/// How long the queue has to leave when the agent stops.
const DRAIN: Duration = Duration::from_secs(2);

/// How soon an inventory is asked for again that is not complete yet.
const INVENTORY_RETRY: Duration = Duration::from_secs(2);

/// `[nats]`, running.
pub(super) struct Publisher {
    shared: Rc<Shared>,
    access: Access,
    produce: JoinHandle<()>,
    link: JoinHandle<()>,
}

/// What the publisher and its link both see.
pub(super) struct Shared {
    pub(super) queue: RefCell<Queue>,
    /// Something was queued, or it is time to stop.
    pub(super) wake: Notify,
    /// `stop_by` was set.
    pub(super) stop: Notify,
    /// When the last message must be gone; none while the agent runs.
    pub(super) stop_by: Cell<Option<Instant>>,
    pub(super) connected: Cell<bool>,
    /// The most that the server takes in one message.
    pub(super) max_payload: Cell<usize>,
    /// What is wrong now, in one sentence.
    pub(super) problem: RefCell<Option<String>>,
    /// Ends the attempts of async-nats, which knows no other way while it has no connection.
    pub(super) abandoned: Arc<AtomicBool>,
    encoder: RefCell<Encoder>,
}

impl Publisher {
    /// Starts the tasks. It returns at once: the server may come later.
    pub(super) fn start(values: &Values, context: &Context) -> Result<Self, String> {
        let prefix = values.get(&SUBJECT_PREFIX);
        check_prefix(&prefix)?;
        let subjects = Kind::ALL.map(|kind| subject(&prefix, &context.hostname, kind.name()));
        let access = Access::from_values(values)?;
        let shared = Rc::new(Shared {
            queue: RefCell::default(),
            wake: Notify::new(),
            stop: Notify::new(),
            stop_by: Cell::new(None),
            connected: Cell::new(false),
            max_payload: Cell::new(1 << 20),
            problem: RefCell::new(Some(format!("nats: no connection to {access} yet"))),
            abandoned: Arc::default(),
            encoder: RefCell::new(Encoder::new(values)?),
        });
        let attempts = usize::try_from(values.get(&MAX_RECONNECT_ATTEMPTS)).ok().filter(|attempts| *attempts > 0);
        let link =
            Link::new(&access, &context.hostname, subjects, attempts, values.get(&RECONNECT_DELAY), shared.clone())?;
        let times = Times {
            metrics: ticks(values.get(&METRICS_INTERVAL)),
            inventory: ticks(values.get(&INVENTORY_INTERVAL)),
            heartbeat: ticks(values.get(&HEARTBEAT_INTERVAL)),
        };
        let entries = usize::try_from(values.get(&BATCH_SIZE)).unwrap_or(usize::MAX);
        Ok(Self {
            produce: tokio::task::spawn_local(produce(shared.clone(), context.clone(), times, entries)),
            link: tokio::task::spawn_local(link.run()),
            access,
            shared,
        })
    }
}

impl Exporter for Publisher {
    fn report(&self, out: &mut Batch) {
        self.shared.queue.borrow().report(self.shared.connected.get(), out);
    }

    fn problem(&self) -> Option<String> {
        self.shared.problem.borrow().clone()
    }

    /// A credentials file that cannot be read now is no reason to give up a connection that stands.
    fn is_outdated(&self, values: &Values) -> bool {
        Access::from_values(values).is_ok_and(|access| access != self.access)
    }

    fn stop(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            self.produce.abort();
            self.shared.stop_by.set(Some(Instant::now() + DRAIN));
            self.shared.stop.notify_one();
            self.shared.wake.notify_one();
            let _ = self.link.await;
            self.shared.abandoned.store(true, Ordering::Relaxed);
        })
    }
}

impl Shared {
    /// Compresses a document and queues it; never waits.
    fn submit(&self, kind: Kind, document: &[u8]) {
        let encoded = match kind {
            Kind::Heartbeat => Encoded::plain(document),
            _ => self.encoder.borrow_mut().encode(document),
        };
        let message = Message { kind, encoded };
        self.queue.borrow_mut().push(message);
        self.wake.notify_one();
    }
}

struct Times {
    metrics: Interval,
    inventory: Interval,
    heartbeat: Interval,
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    // A thread that was late (or a machine that slept) makes no burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn produce(shared: Rc<Shared>, context: Context, mut times: Times, entries: usize) {
    let Context { hostname, feed } = context;
    loop {
        tokio::select! {
            _ = times.heartbeat.tick() => {
                shared.submit(Kind::Heartbeat, &telemetry::heartbeat(&hostname, feed.now(), feed.health()));
            }
            _ = times.metrics.tick() => {
                let bytes = shared.max_payload.get().saturating_sub(PAYLOAD_RESERVE_BYTES);
                let limits = telemetry::Limits { entries, bytes };
                feed.readings(&mut |readings| {
                    let submit = &mut |document: &[u8]| shared.submit(Kind::Metrics, document);
                    let too_large = telemetry::metrics(&hostname, readings, limits, submit);
                    shared.queue.borrow_mut().count_dropped(Kind::Metrics, Reason::TooLarge, too_large);
                });
            }
            _ = times.inventory.tick() => match feed.inventory() {
                Some(inventory) => shared.submit(Kind::Inventory, inventory.to_string().as_bytes()),
                None => times.inventory.reset_after(INVENTORY_RETRY.min(times.inventory.period())),
            },
        }
    }
}
