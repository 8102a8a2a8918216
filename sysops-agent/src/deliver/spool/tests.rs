//! The spool against a list in memory: whatever is written, crashes and rots, what was synced is found again.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const CHANNELS: [&str; 3] = ["a", "b", "c"];

/// Memory is a faster disk where there is one.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder of our own")
}

fn envelope(number: u64, channels: u8) -> Envelope {
    Envelope {
        number,
        accepted: Duration::from_secs(number),
        id: number.wrapping_mul(31),
        rank: 1,
        resolved: false,
        alerts: [number % 3].into(),
        channels: CHANNELS[..usize::from(channels)].iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn notice(number: u64, channels: u8, json: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert!(Record::Notice(envelope(number, channels), json).encode(&mut bytes));
    bytes
}

fn done(number: u64, channel: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert!(Record::Done { number, channel: channel.to_owned() }.encode(&mut bytes));
    bytes
}

#[derive(Clone, Debug)]
enum Action {
    Add {
        channels: u8,
        size: u16,
        sync: bool,
    },
    Done {
        which: usize,
        channel: usize,
    },
    /// The power fails; this part of what was not synced is there afterwards.
    Crash {
        part: u8,
    },
    /// One bit changes, and the agent is started again.
    Rot {
        file: usize,
        at: usize,
    },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (1..=3_u8, any::<u16>(), any::<bool>()).prop_map(|(channels, size, sync)| Action::Add { channels, size, sync }),
        6 => (any::<usize>(), 0..3_usize).prop_map(|(which, channel)| Action::Done { which, channel }),
        1 => any::<u8>().prop_map(|part| Action::Crash { part }),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(file, at)| Action::Rot { file, at }),
    ]
}

#[derive(Clone, Debug)]
enum What {
    Added(u64, u8),
    Done(u64, String),
}

/// What was written, where it ends, and up to where each segment is synced.
#[derive(Default)]
struct Model {
    written: Vec<(What, u64, u64)>,
    synced: BTreeMap<u64, u64>,
    next: u64,
}

type Waiting = BTreeMap<u64, Vec<String>>;

fn replay<'a>(written: impl Iterator<Item = &'a What>) -> Waiting {
    let mut waiting = Waiting::new();
    for what in written {
        match what {
            What::Added(number, channels) => _ = waiting.insert(*number, envelope(*number, *channels).channels),
            What::Done(number, channel) => {
                if let Some(channels) = waiting.get_mut(number) {
                    channels.retain(|name| name != channel);
                }
            }
        }
    }
    waiting.retain(|_, channels| !channels.is_empty());
    waiting
}

impl Model {
    fn waiting(&self) -> Waiting {
        replay(self.written.iter().map(|(what, ..)| what))
    }

    /// True when `found` is what waits but for one record at most.
    fn allows(&self, found: &Waiting) -> bool {
        let without = |index: usize| self.written.iter().enumerate().filter(move |(at, _)| *at != index);
        *found == self.waiting()
            || (0..self.written.len()).any(|index| replay(without(index).map(|(_, (what, ..))| what)) == *found)
    }

    fn wrote(&mut self, spool: &mut Spool, what: What, bytes: &[u8], sync: bool) {
        let (segment, offset) = spool.append(bytes, sync, Vec::new).expect("there is room");
        let end = offset + bytes.len() as u64;
        self.synced.entry(segment).or_insert(offset);
        if sync {
            self.synced.insert(segment, end);
        }
        self.written.push((what, segment, end));
    }

    /// The disk keeps `part` of 256 of what was not synced.
    fn crash(&mut self, dir: &Path, part: u8) {
        for (&segment, synced) in &mut self.synced {
            let path = segment::path(dir, segment);
            let Ok(file) = std::fs::metadata(&path) else { continue };
            let kept = *synced + (file.len() - *synced) * u64::from(part) / 256;
            segment::options().write(true).open(&path).and_then(|file| file.set_len(kept)).expect("our own file");
            self.written.retain(|(_, of, end)| *of != segment || *end <= kept);
            *synced = kept;
        }
    }
}

fn found(found: &Found) -> Waiting {
    found.waiting.iter().map(|(envelope, _)| (envelope.number, envelope.channels.clone())).collect()
}

fn rot(dir: &Path, file: usize, at: usize) {
    let numbers = segment::numbers(dir).expect("our own folder");
    let Some(number) = numbers.get(file % numbers.len().max(1)) else { return };
    let path = segment::path(dir, *number);
    let (mut bytes, _) = segment::read(&path).expect("our own file");
    if bytes.is_empty() {
        return;
    }
    let at = at % bytes.len();
    // A version of its own is no damage.
    if (8..12).contains(&at) {
        return;
    }
    bytes[at] ^= 4;
    std::fs::write(&path, bytes).expect("our own file");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn what_was_synced_is_found_again(actions in proptest::collection::vec(action(), 0..64)) {
        let dir = folder();
        let mut model = Model { next: 1, ..Model::default() };
        let (mut spool, _) = Spool::open(dir.path(), BYTES_MIN).expect("a new one");
        for action in actions {
            match action {
                Action::Add { channels, size, sync } => {
                    let number = model.next;
                    model.next += 1;
                    let json = vec![b'x'; usize::from(size)];
                    model.wrote(&mut spool, What::Added(number, channels), &notice(number, channels, &json), sync);
                }
                Action::Done { which, channel } => {
                    let waiting = model.waiting();
                    let Some(number) = waiting.keys().nth(which % waiting.len().max(1)) else { continue };
                    let channel = CHANNELS[channel];
                    model.wrote(&mut spool, What::Done(*number, channel.to_owned()), &done(*number, channel), false);
                }
                Action::Crash { part } => {
                    drop(spool);
                    model.crash(dir.path(), part);
                    let (again, was) = Spool::open(dir.path(), BYTES_MIN).expect("it opens whatever is in it");
                    prop_assert_eq!(found(&was), model.waiting());
                    prop_assert_eq!(was.damaged, 0, "a torn tail is no damage");
                    for (envelope, place) in &was.waiting {
                        let record = Spool::read(dir.path(), *place).expect("our own file");
                        prop_assert!(Spool::notice(&record, envelope.number).is_some());
                    }
                    spool = again;
                }
                Action::Rot { file, at } => {
                    drop(spool);
                    rot(dir.path(), file, at);
                    let (again, was) = Spool::open(dir.path(), BYTES_MIN).expect("it opens whatever is in it");
                    prop_assert!(model.allows(&found(&was)), "{:?} of {:?}", was, model.written);
                    // From here on that is what there is.
                    drop(again);
                    std::fs::remove_dir_all(dir.path()).expect("our own folder");
                    model = Model { next: model.next, ..Model::default() };
                    spool = Spool::open(dir.path(), BYTES_MIN).expect("a new one").0;
                }
            }
        }
    }

    #[test]
    fn any_file_opens(noise in proptest::collection::vec(any::<u8>(), 0..600), with_header in any::<bool>()) {
        let dir = folder();
        let (mut spool, _) = Spool::open(dir.path(), BYTES_MIN).expect("a new one");
        spool.append(&notice(1, 3, b"{}"), true, Vec::new).expect("there is room");
        drop(spool);
        let path = segment::path(dir.path(), 1);
        let (bytes, _) = segment::read(&path).expect("our own file");
        let kept = if with_header { &bytes[..segment::HEADER] } else { &[] };
        std::fs::write(&path, [kept, &noise].concat()).expect("our own file");
        let (mut spool, _) = Spool::open(dir.path(), BYTES_MIN).expect("it opens whatever is in it");
        spool.append(&notice(2, 3, b"{}"), true, Vec::new).expect("there is room");
    }
}

#[test]
fn a_newer_version_is_left_as_it_is() {
    let dir = folder();
    let at = dir.path().join("outbox");
    let (mut spool, _) = Spool::open(&at, BYTES_MIN).expect("a new one");
    spool.append(&notice(1, 3, b"{}"), true, Vec::new).expect("there is room");
    drop(spool);
    let path = segment::path(&at, 1);
    let (mut bytes, _) = segment::read(&path).expect("our own file");
    bytes[8] = 7;
    let check = crc32fast::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&check.to_le_bytes());
    std::fs::write(&path, &bytes).expect("our own file");
    let (spool, was) = Spool::open(&at, BYTES_MIN).expect("a fresh one");
    assert_eq!((was.waiting.len(), was.damaged), (0, 0));
    let (aside, version) = was.newer.expect("it was found");
    assert_eq!((version, aside.file_name().and_then(|name| name.to_str())), (7, Some("outbox.version-7.1")));
    assert_eq!(segment::read(&segment::path(&aside, 1)).expect("it is there").0, bytes);
    drop(spool);
}

#[test]
fn two_agents_do_not_share_a_folder() {
    let dir = folder();
    let first = Spool::open(dir.path(), BYTES_MIN).expect("a new one");
    assert!(matches!(Spool::open(dir.path(), BYTES_MIN), Err(OpenError::Taken(_))));
    drop(first);
    assert!(Spool::open(dir.path(), BYTES_MIN).is_ok());
}

#[test]
fn segments_go_when_nothing_in_them_waits_and_ids_stay() {
    let dir = folder();
    let (mut spool, _) = Spool::open(dir.path(), BYTES_MIN).expect("a new one");
    let json = vec![b'x'; 100_000];
    let mut places = Vec::new();
    for number in 1..=12 {
        let bytes = notice(number, 1, &json);
        let (segment, offset) = spool.append(&bytes, true, || (1..number).collect()).expect("there is room");
        let place = Place { segment, offset, length: u32::try_from(bytes.len()).expect("short") };
        spool.keep(place);
        places.push(place);
    }
    let files = || segment::numbers(dir.path()).expect("our own folder").len();
    assert_eq!(files(), 4);
    places[3..].iter().for_each(|place| spool.release(*place));
    spool.trim();
    assert_eq!(files(), 4, "the first keeps what is behind it, where it may be said that it is done");
    places[..3].iter().for_each(|place| spool.release(*place));
    spool.trim();
    assert_eq!(files(), 1);
    drop(spool);
    let (_, was) = Spool::open(dir.path(), BYTES_MIN).expect("ours");
    assert_eq!(was.seen[..9], [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn parked_texts_are_bounded_and_the_newest_are_kept() {
    let dir = folder();
    let (mut spool, _) = Spool::open(dir.path(), BYTES_MIN).expect("a new one");
    for number in 0..10_000 {
        spool
            .park(format!("{{\"number\":{number},\"text\":\"{}\"}}", "x".repeat(100)).as_bytes())
            .expect("there is room");
    }
    let path = dir.path().join("parked.jsonl");
    assert!(std::fs::metadata(&path).expect("it is there").len() <= BYTES_MIN / 16);
    let (bytes, _) = segment::read(&path).expect("it is there");
    let text = String::from_utf8(bytes).expect("text");
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    assert!(text.lines().last().is_some_and(|line| line.starts_with("{\"number\":9999,")));
}
