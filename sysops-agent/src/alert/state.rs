//! The book as it is kept over restarts. Its time goes on over them, so that no limit, silence or wait begins anew. Where it is
//! kept is left to `pipeline`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::flaps::Turns;
use super::groups::Group;
use super::happened::Told;
use super::mutes::Held;
use super::page::Page;
use super::throttle;
use super::{Book, context::Happened};
use crate::model::{Alert, Change, Notice, Status, Tick};

/// The version that this agent writes.
const SCHEMA: u32 = 1;

/// The longest time between two lives that counts: a clock that was set far ahead must not end every silence.
const GAP_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Everything that the book knows.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    schema: u32,
    /// Boot in which it was written.
    boot: String,
    /// The book's time, and the clocks, when it was written.
    time: Duration,
    offset: Duration,
    wall_secs: u64,
    epoch: String,
    pages: Vec<(u64, Page)>,
    throttle: throttle::State,
    flaps: Vec<(u64, Turns)>,
    silences: (Vec<Held>, u64),
    groups: Vec<Group>,
    happened: Vec<Told>,
    hangs: Vec<((u32, u64), Alert)>,
    events: Vec<Happened>,
}

impl State {
    /// Of the text that [`Book::state`] gave.
    ///
    /// # Errors
    /// With what is wrong with it, or what to do where a newer agent has written it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let Version { schema } = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if schema > SCHEMA {
            return Err(format!("written by a newer agent (schema {schema}, this one knows {SCHEMA})"));
        }
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }
}

impl Book {
    /// Everything that it knows, as JSON. `boot` is the kernel's id of this boot.
    #[must_use]
    pub fn state(&self, boot: &str, now: &Tick) -> Vec<u8> {
        let state = State {
            schema: SCHEMA,
            boot: boot.to_owned(),
            time: self.time(now),
            offset: self.offset,
            wall_secs: now.wall.duration_since(UNIX_EPOCH).map_or(0, |wall| wall.as_secs()),
            epoch: self.epoch.clone(),
            pages: self.pages.iter().map(|(fingerprint, page)| (*fingerprint, page.clone())).collect(),
            throttle: self.throttle.state(),
            flaps: self.flaps.state(),
            silences: self.mutes.state(),
            groups: self.groups.state(),
            happened: self.happened.state(),
            hangs: self.hangs.state(),
            events: self.surroundings.state(),
        };
        serde_json::to_vec(&state).expect("numbers, texts and lists have a JSON form")
    }

    /// Goes on where an earlier life of the agent ended: what fires is not told again, and what is over by now will be said.
    /// Gives what is to be said at once: tasks that hung before the machine was started anew do not hang any more.
    pub fn restore(&mut self, state: State, boot: &str, now: &Tick) -> Vec<Notice> {
        let is_same_boot = state.boot == boot && !boot.is_empty();
        self.offset = if is_same_boot {
            state.offset
        } else {
            let wall = now.wall.duration_since(UNIX_EPOCH).map_or(0, |wall| wall.as_secs());
            let gap = Duration::from_secs(wall.saturating_sub(state.wall_secs)).min(GAP_MAX);
            (state.time + gap).saturating_sub(now.monotonic)
        };
        let at = self.time(now);
        self.epoch = state.epoch;
        self.pages = state.pages.into_iter().collect();
        for page in self.pages.values_mut().filter(|page| page.firing.is_some()) {
            // The time in which nobody looked does not count: who is not there now is missed from now on.
            page.seen += at.saturating_sub(state.time);
        }
        self.pages.retain(|_, page| page.firing.is_some() || is_same_boot);
        self.throttle.restore(state.throttle);
        self.flaps.restore(state.flaps);
        self.mutes.restore(state.silences);
        self.groups.restore(state.groups);
        self.happened.restore(state.happened);
        self.surroundings.restore(state.events);
        if is_same_boot {
            self.hangs.restore(state.hangs, at);
            self.has_its_hangs = true;
            return Vec::new();
        }
        let why = "It is over: the machine was started anew.";
        state.hangs.into_iter().map(|(_, alert)| self.hang_without_end(alert, why, at, now.wall)).collect()
    }

    /// Ends the alert of a hang whose end nobody will tell.
    pub(super) fn hang_without_end(&mut self, alert: Alert, why: &str, at: Duration, wall: SystemTime) -> Notice {
        self.happened.ended(alert.fingerprint);
        self.resolved += 1;
        let message = format!("{why} {}", alert.message);
        let id = format!("{}-over", alert.id);
        let over = Alert { id, message, status: Status::Resolved, change: Change::Resolved, timestamp: wall, ..alert };
        self.groups.add(over, None, at)
    }
}
