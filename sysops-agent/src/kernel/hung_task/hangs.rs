//! The sleeps that are followed: since when each lasts, which have been told, which are over. Pure; looking at the
//! machine is left to `sleepers`, making events to the probe.

use std::collections::HashMap;
use std::time::Duration;

use super::sleepers::Sleeper;
use crate::model::Event;
use crate::model::event::Outcome;

/// Sleeps that are followed at once. One of more than that is told when others have ended.
const SLEEPS_MAX: usize = 16 << 10;
/// Hangs that are told one by one at once: more threads than that hang for one reason.
pub(super) const TOLD_MAX: usize = 512;

/// One sleep of one thread: the same thread has run more often when it sleeps again, and a thread that got its
/// number later has another start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sleep {
    /// Thread id.
    pub tid: u32,
    /// Start of the thread in clock ticks after boot, as far as it is known.
    pub start: Option<u64>,
    /// How often it had run.
    pub switches: u64,
}

impl Sleep {
    /// True when both are one sleep, as far as is known.
    #[must_use]
    pub(super) fn is(&self, other: &Self) -> bool {
        let starts = self.start.zip(other.start);
        self.tid == other.tid && self.switches == other.switches && starts.is_none_or(|(mine, its)| mine == its)
    }
}

/// A hang that has been told.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// Which.
    pub sleep: Sleep,
    /// Since when it is known to last, on the monotonic clock.
    pub since: Duration,
    /// How it was told.
    pub event: Box<Event>,
}

/// A hang that is over.
#[derive(Debug)]
pub(super) struct Ended {
    /// What had been told.
    pub told: Told,
    /// For how long it was seen to last; `None` when the agent did not see its end.
    pub lasted: Option<Duration>,
    /// What became of the thread, if something is known already.
    pub outcome: Option<Outcome>,
    /// False where the hang may go on and nobody looks.
    pub is_watched: bool,
}

/// All sleeps that are followed.
#[derive(Debug, Default)]
pub(super) struct Hangs {
    known: HashMap<u32, Known>,
    /// Number of the look that is going on.
    look: u64,
    told: usize,
    /// The told hangs are others than at the last [`Self::take_changed`].
    changed: bool,
    /// Were told in an earlier life of the agent, and not yet taken.
    restored: Vec<Event>,
}

#[derive(Debug)]
struct Known {
    sleeper: Sleeper,
    since: Duration,
    seen: Duration,
    look: u64,
    /// Looked at and found to be no hang.
    harmless: bool,
    told: Option<Box<Event>>,
    /// A program told it, and not the log alone.
    by_probe: bool,
    /// Was told in an earlier life of the agent and has not been seen in this one.
    restored: bool,
}

impl Hangs {
    /// Begins a look at the machine.
    pub(super) fn begin_look(&mut self) {
        self.look += 1;
    }

    /// A thread is asleep at `now`. Gives the hang of the same thread that this shows to be over.
    pub(super) fn see(&mut self, sleeper: &Sleeper, now: Duration) -> Option<Ended> {
        let look = self.look;
        if let Some(known) = self.known.get_mut(&sleeper.sleep.tid)
            && known.sleeper.sleep.is(&sleeper.sleep)
        {
            let seen = known.seen.max(now);
            (known.sleeper, known.seen, known.look, known.restored) = (*sleeper, seen, look, false);
            return None;
        }
        let before = self.remove(sleeper.sleep.tid, |before| {
            let same_thread = before.start.zip(sleeper.sleep.start).map(|(old, new)| old == new);
            same_thread.map(|same| if same { Outcome::Ran } else { Outcome::Exited })
        });
        if self.known.len() < SLEEPS_MAX {
            self.known.insert(sleeper.sleep.tid, Known { look, ..Known::new(*sleeper, now) });
        }
        before
    }

    /// Ends the look: what it did not find is over.
    pub(super) fn end_look(&mut self, mut over: impl FnMut(Ended)) {
        let look = self.look;
        // Most sleeps are short and were never told: they go without being copied.
        let (told, changed) = (&mut self.told, &mut self.changed);
        self.known.retain(|_, known| {
            let stays = known.look == look;
            if !stays && let Some(ended) = known.end(None) {
                *told -= 1;
                *changed = true;
                over(ended);
            }
            stays
        });
    }

    /// Sleeps that have lasted for `limit` and are not told yet.
    pub(super) fn due(&self, limit: Duration, now: Duration) -> impl Iterator<Item = (Sleeper, Duration)> {
        let room = TOLD_MAX.saturating_sub(self.told);
        let lasted = move |known: &Known| now.saturating_sub(known.since);
        let due = move |known: &&Known| known.told.is_none() && !known.harmless && lasted(known) >= limit;
        self.known.values().filter(due).take(room).map(move |known| (known.sleeper, lasted(known)))
    }

    /// When the next sleep will have lasted for `limit`.
    #[must_use]
    pub(super) fn next_due(&self, limit: Duration) -> Option<Duration> {
        if self.told >= TOLD_MAX {
            return None;
        }
        let waiting = self.known.values().filter(|known| known.told.is_none() && !known.harmless);
        waiting.map(|known| known.since + limit).min()
    }

    /// Marks a sleep as none that anyone need know of.
    pub(super) fn set_harmless(&mut self, tid: u32) {
        if let Some(known) = self.known.get_mut(&tid) {
            known.harmless = true;
        }
    }

    /// True when this sleep has been told by a program.
    #[must_use]
    pub(super) fn is_told_by_probe(&self, sleep: &Sleep) -> bool {
        self.known.get(&sleep.tid).is_some_and(|known| known.by_probe && known.sleeper.sleep.is(sleep))
    }

    /// True when a hang of this thread has been told by a program and is not known to be over.
    #[must_use]
    pub(super) fn is_thread_told_by_probe(&self, tid: u32) -> bool {
        self.known.get(&tid).is_some_and(|known| known.by_probe && known.told.is_some())
    }

    /// Notes that this sleep, which lasts since `since` at least and did so at `now`, is told by `event`. Gives the hang of the
    /// same thread that this shows to be over.
    pub(super) fn tell(
        &mut self,
        sleep: Sleep,
        since: Duration,
        now: Duration,
        event: &Event,
        by_probe: bool,
    ) -> Option<Ended> {
        let sleeper = match self.known.get(&sleep.tid) {
            Some(known) if known.sleeper.sleep.is(&sleep) => known.sleeper,
            _ => Sleeper::new(sleep),
        };
        let ended = self.see(&sleeper, now);
        if self.told >= TOLD_MAX {
            return ended;
        }
        if let Some(known) = self.known.get_mut(&sleep.tid) {
            known.since = known.since.min(since);
            known.by_probe |= by_probe;
            if known.told.is_none() {
                known.told = Some(Box::new(event.clone()));
                self.told += 1;
                self.changed = true;
            }
        }
        ended
    }

    /// True when the end of this sleep will be told.
    #[must_use]
    pub(super) fn is_followed(&self, sleep: &Sleep) -> bool {
        self.known.get(&sleep.tid).is_some_and(|known| known.told.is_some() && known.sleeper.sleep.is(sleep))
    }

    /// Forgets all hangs that were told, and gives them: nobody looks at them any more.
    pub(super) fn give_up(&mut self) -> Vec<Ended> {
        let tids: Vec<u32> = self.told_tids().collect();
        self.restored.clear();
        let ended = tids.into_iter().filter_map(|tid| self.remove(tid, |_| None));
        ended.map(|ended| Ended { lasted: None, is_watched: false, ..ended }).collect()
    }

    /// Takes back a hang that was told in an earlier life of the agent.
    pub(super) fn restore(&mut self, told: Told) {
        let Told { sleep, since, event } = told;
        if self.told < TOLD_MAX && !self.known.contains_key(&sleep.tid) {
            let known = Known::new(Sleeper::new(sleep), since);
            self.restored.push((*event).clone());
            self.known.insert(sleep.tid, Known { told: Some(event), by_probe: true, restored: true, ..known });
            self.told += 1;
        }
    }

    /// What was told in an earlier life of the agent, once.
    pub(super) fn take_restored(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.restored)
    }

    /// What was told of this sleep, if it was.
    pub(super) fn told_of(&mut self, sleep: &Sleep) -> Option<&mut Event> {
        self.known.get_mut(&sleep.tid).filter(|known| known.sleeper.sleep.is(sleep))?.told.as_deref_mut()
    }

    /// The hangs that have been told and last, and for how long each was seen to last.
    pub(super) fn told(&self) -> impl Iterator<Item = (Told, Duration)> {
        self.known.values().filter_map(|known| {
            let told = Told { sleep: known.sleeper.sleep, since: known.since, event: known.told.clone()? };
            Some((told, known.seen.saturating_sub(known.since)))
        })
    }

    /// Threads whose hangs have been told and last.
    pub(super) fn told_tids(&self) -> impl Iterator<Item = u32> {
        self.known.values().filter(|known| known.told.is_some()).map(|known| known.sleeper.sleep.tid)
    }

    /// Number of hangs that have been told and last.
    #[must_use]
    pub(super) const fn told_count(&self) -> usize {
        self.told
    }

    /// True, once, when other hangs are told than before.
    pub(super) const fn take_changed(&mut self) -> bool {
        std::mem::replace(&mut self.changed, false)
    }

    /// Forgets the sleep of a thread. Gives it if it was told.
    fn remove(&mut self, tid: u32, outcome: impl FnOnce(&Sleep) -> Option<Outcome>) -> Option<Ended> {
        let mut known = self.known.remove(&tid)?;
        let outcome = outcome(&known.sleeper.sleep);
        let ended = known.end(outcome)?;
        self.told -= 1;
        self.changed = true;
        Some(ended)
    }
}

impl Known {
    fn new(sleeper: Sleeper, now: Duration) -> Self {
        Self { sleeper, since: now, seen: now, look: 0, harmless: false, told: None, by_probe: false, restored: false }
    }

    /// The sleep is over; `None` when it was never told.
    fn end(&mut self, outcome: Option<Outcome>) -> Option<Ended> {
        let lasted = (!self.restored).then(|| self.seen.saturating_sub(self.since));
        let told = Told { sleep: self.sleeper.sleep, since: self.since, event: self.told.take()? };
        Some(Ended { told, lasted, outcome, is_watched: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::HungTask;
    use crate::model::{Detail, Source};

    const LIMIT: Duration = Duration::from_secs(20);

    fn sleeper(tid: u32, start: u64, switches: u64) -> Sleeper {
        Sleeper::new(Sleep { tid, start: Some(start), switches })
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn event(tid: u32) -> Event {
        Event {
            schema: Event::SCHEMA,
            time: String::new(),
            source: vec![Source::TaskIter],
            pid: Some(tid),
            tid: Some(tid),
            comm: None,
            uid: None,
            cgroup: None,
            detail: Detail::HungTask(HungTask::default()),
            monotonic_ns: 0,
        }
    }

    /// One look that finds `sleepers`, after which what is due is told. Gives who was told and what ended.
    fn look(hangs: &mut Hangs, now: Duration, sleepers: &[Sleeper]) -> (Vec<u32>, Vec<Ended>) {
        let mut ended = Vec::new();
        hangs.begin_look();
        for sleeper in sleepers {
            ended.extend(hangs.see(sleeper, now));
        }
        hangs.end_look(|one| ended.push(one));
        let due: Vec<_> = hangs.due(LIMIT, now).collect();
        for (sleeper, lasted) in &due {
            ended.extend(hangs.tell(sleeper.sleep, now - *lasted, now, &event(sleeper.sleep.tid), true));
        }
        (due.iter().map(|(sleeper, _)| sleeper.sleep.tid).collect(), ended)
    }

    #[test]
    fn a_sleep_is_told_once_at_the_limit_and_ends_once() {
        let mut hangs = Hangs::default();
        let one = [sleeper(7, 100, 5)];
        assert_eq!(look(&mut hangs, at(0), &one).0, [0_u32; 0]);
        assert_eq!(hangs.next_due(LIMIT), Some(at(20)));
        assert_eq!(look(&mut hangs, at(19), &one).0, [0_u32; 0]);
        assert_eq!(look(&mut hangs, at(20), &one).0, [7]);
        assert!(hangs.take_changed() && !hangs.take_changed());
        for seconds in 21..60 {
            let (told, ended) = look(&mut hangs, at(seconds), &one);
            assert!(told.is_empty() && ended.is_empty());
        }
        let (told, ended) = look(&mut hangs, at(60), &[]);
        assert!(told.is_empty() && hangs.take_changed() && hangs.told_count() == 0);
        assert_eq!(ended.iter().map(|one| one.lasted).collect::<Vec<_>>(), [Some(at(59))]);
    }

    #[test]
    fn who_ran_in_between_sleeps_anew_however_long_nobody_looked() {
        let mut hangs = Hangs::default();
        look(&mut hangs, at(0), &[sleeper(7, 100, 5)]);
        assert_eq!(
            look(&mut hangs, at(3600), &[sleeper(7, 100, 6)]).0,
            [0_u32; 0],
            "the agent was stopped for an hour"
        );
        assert_eq!(look(&mut hangs, at(3620), &[sleeper(7, 100, 6)]).0, [7]);
        let (told, ended) = look(&mut hangs, at(3630), &[sleeper(7, 100, 8)]);
        assert!(told.is_empty());
        assert_eq!((ended[0].outcome, ended[0].lasted), (Some(Outcome::Ran), Some(at(20))));
        assert_eq!(look(&mut hangs, at(3650), &[sleeper(7, 100, 8)]).0, [7], "another hang");
    }

    #[test]
    fn who_slept_all_the_time_hangs_though_nobody_looked() {
        let mut hangs = Hangs::default();
        look(&mut hangs, at(0), &[sleeper(7, 100, 5)]);
        assert_eq!(look(&mut hangs, at(3600), &[sleeper(7, 100, 5)]).0, [7]);
    }

    #[test]
    fn another_thread_with_the_number_is_another_hang() {
        let mut hangs = Hangs::default();
        look(&mut hangs, at(0), &[sleeper(7, 100, 5)]);
        assert_eq!(look(&mut hangs, at(20), &[sleeper(7, 100, 5)]).0, [7]);
        let (told, ended) = look(&mut hangs, at(40), &[sleeper(7, 3000, 5)]);
        assert!(told.is_empty());
        assert_eq!(ended[0].outcome, Some(Outcome::Exited));
    }

    #[test]
    fn what_the_kernel_reports_again_is_known() {
        let mut hangs = Hangs::default();
        let sleep = sleeper(7, 100, 5).sleep;
        assert!(!hangs.is_told_by_probe(&sleep));
        assert!(hangs.tell(sleep, at(10), at(130), &event(7), true).is_none());
        assert!(hangs.is_told_by_probe(&sleep) && hangs.is_told_by_probe(&Sleep { start: None, ..sleep }));
        assert!(!hangs.is_told_by_probe(&Sleep { switches: 6, ..sleep }));
        assert_eq!(look(&mut hangs, at(131), &[sleeper(7, 100, 5)]).0, [0_u32; 0], "nor is it told as an early one");
        let (_, ended) = look(&mut hangs, at(132), &[]);
        assert_eq!(ended[0].lasted, Some(at(121)), "from when the kernel saw it");
    }

    #[test]
    fn what_the_log_told_is_not_told_early_but_by_the_probe() {
        let mut hangs = Hangs::default();
        let sleep = sleeper(7, 100, 5).sleep;
        hangs.tell(sleep, at(0), at(130), &event(7), false);
        assert_eq!(look(&mut hangs, at(140), &[sleeper(7, 100, 5)]).0, [0_u32; 0]);
        assert!(!hangs.is_told_by_probe(&sleep), "both sources are joined behind this");
    }

    #[test]
    fn a_hang_of_an_earlier_life_goes_on_untold_or_has_ended_unseen() {
        let mut hangs = Hangs::default();
        for tid in [7, 8] {
            let sleep = sleeper(tid, 100, 5).sleep;
            hangs.restore(Told { sleep, since: at(10), event: Box::new(event(tid)) });
        }
        let (told, ended) = look(&mut hangs, at(500), &[sleeper(7, 100, 5)]);
        assert!(told.is_empty());
        assert_eq!((ended.len(), ended[0].told.sleep.tid, ended[0].lasted), (1, 8, None));
        let (_, ended) = look(&mut hangs, at(501), &[]);
        assert_eq!(ended[0].lasted, Some(at(490)));
    }

    #[test]
    fn ten_thousand_sleeps_are_followed_and_a_bounded_number_told() {
        let mut hangs = Hangs::default();
        let all: Vec<Sleeper> = (1..=20_000).map(|tid| sleeper(tid, 100, 5)).collect();
        look(&mut hangs, at(0), &all);
        assert_eq!(hangs.known.len(), SLEEPS_MAX);
        assert_eq!(look(&mut hangs, at(20), &all).0.len(), TOLD_MAX);
        assert_eq!((look(&mut hangs, at(21), &all).0.len(), hangs.next_due(LIMIT)), (0, None));
        let (told, ended) = look(&mut hangs, at(22), &[]);
        assert_eq!((told.len(), ended.len(), hangs.known.len()), (0, TOLD_MAX, 0));
    }

    #[test]
    fn of_more_hangs_than_can_be_followed_the_rest_has_no_end() {
        let mut hangs = Hangs::default();
        let sleeps = (1..=520).map(|tid| sleeper(tid, 100, 5).sleep);
        sleeps.clone().for_each(|sleep| drop(hangs.tell(sleep, at(0), at(20), &event(sleep.tid), true)));
        assert_eq!(sleeps.filter(|sleep| hangs.is_followed(sleep)).count(), TOLD_MAX);
        assert!(!hangs.is_followed(&sleeper(7, 100, 6).sleep), "another sleep of that thread");
    }

    #[test]
    fn what_nobody_looks_at_any_more_is_given_up_once() {
        let mut hangs = Hangs::default();
        hangs.restore(Told { sleep: sleeper(7, 100, 5).sleep, since: at(10), event: Box::new(event(7)) });
        look(&mut hangs, at(11), &[sleeper(7, 100, 5), sleeper(8, 100, 5)]);
        let ended = hangs.give_up();
        assert_eq!((ended.len(), ended[0].is_watched, ended[0].lasted, ended[0].outcome), (1, false, None, None));
        assert!(hangs.take_changed() && hangs.give_up().is_empty() && hangs.take_restored().is_empty());
        assert_eq!(hangs.told_count(), 0);
    }

    #[test]
    fn what_is_harmless_is_not_told_until_it_sleeps_anew() {
        let mut hangs = Hangs::default();
        look(&mut hangs, at(0), &[sleeper(7, 100, 5)]);
        hangs.set_harmless(7);
        assert_eq!(look(&mut hangs, at(30), &[sleeper(7, 100, 5)]).0, [0_u32; 0]);
        look(&mut hangs, at(31), &[sleeper(7, 100, 6)]);
        assert_eq!(look(&mut hangs, at(60), &[sleeper(7, 100, 6)]).0, [7]);
    }
}
