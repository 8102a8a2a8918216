//! Records of the spool as bytes: a head with length and checksums, then one of three kinds. Whatever a file holds, reading
//! it ends, takes no more memory than the file, and finds every whole record. Files are `segment`'s.

use std::time::Duration;

/// Bytes before each record: mark, length, checksum of the body, checksum of these three.
pub(super) const HEAD: usize = 16;

/// Longest body. What is longer is not kept on disk.
pub(crate) const BODY_MAX: usize = 4 << 20;

/// Begins every record, so that the next whole one is found behind one that is not.
const MARK: [u8; 4] = *b"\xa5REC";

/// Most alerts of one notice that keep their order, and most channels of one notice.
const ALERTS_MAX: usize = 1024;
const CHANNELS_MAX: usize = 64;

/// What the outbox must know of a notice while its text stays on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// Names it within the spool; rises.
    pub(crate) number: u64,
    /// When it was accepted, from the Unix epoch.
    pub(crate) accepted: Duration,
    /// Digest of its id.
    pub(crate) id: u64,
    /// How much it matters: what is given up first has the lowest.
    pub(crate) rank: u8,
    /// It is over.
    pub(crate) resolved: bool,
    /// Fingerprints of its alerts.
    pub(crate) alerts: Box<[u64]>,
    /// Channels that it waits for.
    pub(crate) channels: Vec<String>,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// A notice that was accepted: its envelope and the notice as JSON.
    Notice(Envelope, &'a [u8]),
    /// It does not wait for this channel any more.
    Done {
        /// Of which notice.
        number: u64,
        /// Which channel.
        channel: String,
    },
    /// Digests of ids that were accepted, oldest first.
    Seen(Vec<u64>),
}

const NOTICE: u8 = 1;
const DONE: u8 = 2;
const SEEN: u8 = 3;

impl Record<'_> {
    /// Appends the record. False, and nothing is appended, when it is longer than a record may be.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.extend([0; HEAD]);
        match self {
            Self::Notice(envelope, json) => {
                out.push(NOTICE);
                out.extend(envelope.number.to_le_bytes());
                out.extend(u64::try_from(envelope.accepted.as_millis()).unwrap_or(u64::MAX).to_le_bytes());
                out.extend(envelope.id.to_le_bytes());
                out.extend([envelope.rank, u8::from(envelope.resolved)]);
                let alerts = &envelope.alerts[..envelope.alerts.len().min(ALERTS_MAX)];
                out.extend(u16::try_from(alerts.len()).unwrap_or(0).to_le_bytes());
                out.extend(alerts.iter().flat_map(|alert| alert.to_le_bytes()));
                let channels = &envelope.channels[..envelope.channels.len().min(CHANNELS_MAX)];
                out.push(u8::try_from(channels.len()).unwrap_or(0));
                channels.iter().for_each(|channel| name(channel, out));
                out.extend(*json);
            }
            Self::Done { number, channel } => {
                out.push(DONE);
                out.extend(number.to_le_bytes());
                name(channel, out);
            }
            Self::Seen(ids) => {
                out.push(SEEN);
                out.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
            }
        }
        let length = out.len() - start - HEAD;
        if length > BODY_MAX {
            out.truncate(start);
            return false;
        }
        let body = crc32fast::hash(&out[start + HEAD..]);
        let head = &mut out[start..start + HEAD];
        head[..4].copy_from_slice(&MARK);
        head[4..8].copy_from_slice(&u32::try_from(length).unwrap_or(0).to_le_bytes());
        head[8..12].copy_from_slice(&body.to_le_bytes());
        let check = crc32fast::hash(&head[..12]);
        head[12..].copy_from_slice(&check.to_le_bytes());
        true
    }

    /// Reads a body whose checksum is right; `None` for a kind or a layout that is not known.
    fn decode(body: &[u8]) -> Option<Record<'_>> {
        let mut rest = body;
        match take::<1>(&mut rest)? {
            [NOTICE] => {
                let number = u64::from_le_bytes(take(&mut rest)?);
                let accepted = Duration::from_millis(u64::from_le_bytes(take(&mut rest)?));
                let id = u64::from_le_bytes(take(&mut rest)?);
                let [rank, resolved] = take(&mut rest)?;
                let count = usize::from(u16::from_le_bytes(take(&mut rest)?)).min(ALERTS_MAX);
                let alerts = (0..count).map(|_| take(&mut rest).map(u64::from_le_bytes)).collect::<Option<_>>()?;
                let [count] = take(&mut rest)?;
                let channels = (0..count).map(|_| taken_name(&mut rest)).collect::<Option<_>>()?;
                let resolved = resolved != 0;
                Some(Record::Notice(Envelope { number, accepted, id, rank, resolved, alerts, channels }, rest))
            }
            [DONE] => {
                let number = u64::from_le_bytes(take(&mut rest)?);
                Some(Record::Done { number, channel: taken_name(&mut rest)? })
            }
            [SEEN] => Some(Record::Seen(
                rest.chunks_exact(8).filter_map(|id| id.try_into().ok()).map(u64::from_le_bytes).collect(),
            )),
            [_] => None,
        }
    }
}

fn name(channel: &str, out: &mut Vec<u8>) {
    // Names are those of the list of channels: short words.
    let length = u8::try_from(channel.len()).unwrap_or(0);
    out.push(length);
    out.extend(&channel.as_bytes()[..usize::from(length)]);
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

fn taken_name(rest: &mut &[u8]) -> Option<String> {
    let [length] = take(rest)?;
    let (name, after) = rest.split_at_checked(usize::from(length))?;
    *rest = after;
    Some(std::str::from_utf8(name).ok()?.to_owned())
}

/// What a look through bytes came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// Where the last whole record ends.
    pub(super) end: usize,
    /// Records, or stretches, that were not understood and have a whole record behind them.
    pub(super) damaged: u64,
}

/// Hands over every whole record of `bytes` from `start` on, with its place.
pub(super) fn scan<'a>(bytes: &'a [u8], start: usize, mut each: impl FnMut(usize, Record<'a>)) -> Scan {
    let mut scan = Scan { end: start, damaged: 0 };
    let (mut at, mut damaged, mut in_stretch) = (start, 0, false);
    while let Some((place, length, sum)) = head(bytes, at) {
        in_stretch |= place > at;
        let body = &bytes[place + HEAD..place + HEAD + length];
        match (crc32fast::hash(body) == sum).then(|| Record::decode(body)).flatten() {
            Some(record) => {
                scan.damaged += damaged + u64::from(in_stretch);
                (damaged, in_stretch) = (0, false);
                at = place + HEAD + length;
                scan.end = at;
                each(place, record);
            }
            None => {
                damaged += u64::from(in_stretch) + 1;
                in_stretch = false;
                at = place + HEAD + length;
            }
        }
    }
    scan
}

/// The next head from `at` on that is whole and whose body is there: its place, the body's length and checksum.
fn head(bytes: &[u8], mut at: usize) -> Option<(usize, usize, u32)> {
    loop {
        let rest = bytes.get(at..)?;
        let next = rest.windows(HEAD).position(|window| window[..4] == MARK)?;
        at += next;
        let head = &bytes[at..at + HEAD];
        let word = |from: usize| head[from..from + 4].try_into().map_or(0, u32::from_le_bytes);
        let length = usize::try_from(word(4)).unwrap_or(usize::MAX);
        let is_whole = crc32fast::hash(&head[..12]) == word(12) && length <= BODY_MAX;
        if is_whole && bytes.len() - at - HEAD >= length {
            return Some((at, length, word(8)));
        }
        at += 1;
    }
}

/// The JSON of the notice whose record begins `bytes`, if that is whole and bears `number`.
pub(super) fn notice(bytes: &[u8], number: u64) -> Option<&[u8]> {
    let mut found = None;
    scan(bytes, 0, |place, record| match record {
        Record::Notice(envelope, json) if place == 0 && envelope.number == number => found = Some(json),
        _ => {}
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn envelope(number: u64) -> Envelope {
        Envelope {
            number,
            accepted: Duration::from_millis(7),
            id: !number,
            rank: 3,
            resolved: true,
            alerts: [1, u64::MAX].into(),
            channels: vec!["webhook".to_owned(), "syslog".to_owned()],
        }
    }

    fn three() -> (Vec<u8>, [usize; 3]) {
        let mut bytes = Vec::new();
        assert!(Record::Notice(envelope(1), b"{\"a\":1}").encode(&mut bytes));
        let first = bytes.len();
        assert!(Record::Done { number: 1, channel: "syslog".to_owned() }.encode(&mut bytes));
        let second = bytes.len();
        assert!(Record::Seen(vec![5, 6]).encode(&mut bytes));
        let ends = [first, second, bytes.len()];
        (bytes, ends)
    }

    fn read(bytes: &[u8]) -> (Vec<Record<'_>>, Scan) {
        let mut records = Vec::new();
        let scan = scan(bytes, 0, |_, record| records.push(record));
        (records, scan)
    }

    #[test]
    fn records_come_back() {
        let (bytes, ends) = three();
        let (records, scan) = read(&bytes);
        assert_eq!(scan, Scan { end: ends[2], damaged: 0 });
        assert_eq!(records[0], Record::Notice(envelope(1), b"{\"a\":1}"));
        assert_eq!(records[1], Record::Done { number: 1, channel: "syslog".to_owned() });
        assert_eq!(records[2], Record::Seen(vec![5, 6]));
        assert_eq!(notice(&bytes, 1), Some(&b"{\"a\":1}"[..]));
        assert_eq!(notice(&bytes, 2), None);
    }

    #[test]
    fn a_torn_tail_is_no_damage_wherever_it_is_torn() {
        let (bytes, ends) = three();
        for cut in 0..bytes.len() {
            let (records, scan) = read(&bytes[..cut]);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!((records.len(), scan.damaged), (whole, 0), "cut at {cut}");
        }
    }

    #[test]
    fn one_wrong_byte_costs_one_record() {
        let (bytes, ends) = three();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            let (records, scan) = read(&bytes);
            assert_eq!(records.len(), 2, "at {at}");
            // Behind the last one there is nothing that tells damage from a torn tail.
            assert_eq!(scan.damaged, u64::from(at < ends[1]), "at {at}");
        }
    }

    #[test]
    fn what_is_too_long_is_not_written() {
        let mut bytes = vec![1];
        assert!(!Record::Notice(envelope(1), &vec![b'x'; BODY_MAX]).encode(&mut bytes));
        assert_eq!(bytes, [1]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(noise in proptest::collection::vec(any::<u8>(), 0..400), cuts in any::<(u16, u16)>()) {
            let (mut bytes, _) = three();
            let at = usize::from(cuts.0) % bytes.len();
            let more = usize::from(cuts.1) % (bytes.len() - at);
            bytes.splice(at..at + more, noise);
            let _ = read(&bytes);
        }

        #[test]
        fn any_body_is_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(&body);
        }
    }
}
