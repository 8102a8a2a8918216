//! Bounded memory of samples: every series has a row of small chunks, all chunks come from one pool with a byte
//! budget. When the budget is used up the oldest chunk of the whole store goes, whatever series it belongs to.

use std::collections::VecDeque;
use std::time::Duration;

/// Samples in a chunk. Small, because a host has hundreds of series and the last chunk of each is half empty.
const CHUNK_SAMPLES: usize = 32;

/// Time stamps are milliseconds after the chunk's first; a chunk spans at most 49 days.
#[derive(Debug)]
struct Chunk {
    start: Duration,
    len: usize,
    offsets_ms: [u32; CHUNK_SAMPLES],
    values: [f64; CHUNK_SAMPLES],
}

/// Bytes of a chunk with its place in a row.
const CHUNK_BYTES: usize = size_of::<Chunk>() + size_of::<Box<Chunk>>();

/// The samples of one series, oldest first.
#[derive(Debug, Default)]
pub struct Ring {
    chunks: VecDeque<Box<Chunk>>,
    samples: usize,
}

impl Ring {
    /// Samples with their monotonic time, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Duration, f64)> + '_ {
        self.chunks.iter().flat_map(|chunk| {
            (0..chunk.len)
                .map(|i| (chunk.start + Duration::from_millis(u64::from(chunk.offsets_ms[i])), chunk.values[i]))
        })
    }

    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples
    }

    /// True when nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    fn oldest(&self) -> Option<Duration> {
        self.chunks.front().map(|chunk| chunk.start)
    }
}

/// Where chunks come from and go back to.
#[derive(Debug)]
pub struct Pool {
    #[expect(clippy::vec_box, reason = "a chunk moves between here and a ring without being copied")]
    free: Vec<Box<Chunk>>,
    in_use: usize,
    max_chunks: usize,
    max_samples: usize,
}

impl Pool {
    /// A pool of at most `max_bytes` for all rings, of which none holds more than about `max_samples`
    /// (whole chunks are dropped, so up to one chunk less).
    #[must_use]
    pub fn new(max_bytes: usize, max_samples: usize) -> Self {
        Self { free: Vec::new(), in_use: 0, max_chunks: max_bytes / CHUNK_BYTES, max_samples }
    }

    /// Bytes in use by samples.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.in_use + self.free.len()) * CHUNK_BYTES
    }

    /// Adds a sample. False when there is no room for one more chunk: the caller drops the oldest
    /// ([`Pool::drop_oldest`]) and tries again.
    #[must_use]
    pub fn push(&mut self, ring: &mut Ring, at: Duration, value: f64) -> bool {
        if let Some(chunk) = ring.chunks.back_mut()
            && chunk.len < CHUNK_SAMPLES
            && let Ok(offset_ms) = u32::try_from(at.saturating_sub(chunk.start).as_millis())
        {
            chunk.offsets_ms[chunk.len] = offset_ms;
            chunk.values[chunk.len] = value;
            chunk.len += 1;
            ring.samples += 1;
            return true;
        }
        if ring.samples + CHUNK_SAMPLES > self.max_samples {
            self.drop_oldest(ring);
        }
        let mut chunk = match self.free.pop() {
            Some(chunk) => chunk,
            None if self.in_use < self.max_chunks => {
                Box::new(Chunk { start: at, len: 0, offsets_ms: [0; CHUNK_SAMPLES], values: [0.0; CHUNK_SAMPLES] })
            }
            None => return false,
        };
        self.in_use += 1;
        chunk.start = at;
        chunk.len = 1;
        chunk.offsets_ms[0] = 0;
        chunk.values[0] = value;
        ring.chunks.push_back(chunk);
        ring.samples += 1;
        true
    }

    /// Takes the oldest chunk of `ring` back; false when it has none.
    pub fn drop_oldest(&mut self, ring: &mut Ring) -> bool {
        let Some(chunk) = ring.chunks.pop_front() else { return false };
        ring.samples -= chunk.len;
        self.in_use -= 1;
        self.free.push(chunk);
        true
    }

    /// Takes everything of `ring` back.
    pub fn reclaim(&mut self, ring: &mut Ring) {
        while self.drop_oldest(ring) {}
    }
}

/// The ring with the oldest sample of all, to make room.
pub fn oldest<'a>(rings: impl Iterator<Item = &'a mut Ring>) -> Option<&'a mut Ring> {
    rings.filter(|ring| !ring.is_empty()).min_by_key(|ring| ring.oldest())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(pool: &mut Pool, ring: &mut Ring, count: u64) {
        for second in 0..count {
            assert!(pool.push(ring, Duration::from_secs(second), f64::from(u32::try_from(second).unwrap())));
        }
    }

    #[test]
    fn samples_come_back_in_order() {
        let (mut pool, mut ring) = (Pool::new(1 << 20, 1000), Ring::default());
        fill(&mut pool, &mut ring, 100);
        let seconds: Vec<u64> = ring.iter().map(|(at, _)| at.as_secs()).collect();
        assert_eq!(seconds, (0..100).collect::<Vec<_>>());
        assert!(ring.iter().all(|(at, value)| (at.as_secs_f64() - value).abs() < 1e-9));
    }

    #[test]
    fn a_ring_is_bounded_by_samples() {
        let (mut pool, mut ring) = (Pool::new(1 << 20, 100), Ring::default());
        fill(&mut pool, &mut ring, 1000);
        assert!((68..=100).contains(&ring.len()), "{}", ring.len());
        assert_eq!(ring.iter().next_back().map(|(at, _)| at.as_secs()), Some(999));
    }

    #[test]
    fn all_rings_together_are_bounded_by_bytes_and_the_oldest_goes_first() {
        let mut pool = Pool::new(CHUNK_BYTES * 3, 10_000);
        let (mut old, mut new) = (Ring::default(), Ring::default());
        fill(&mut pool, &mut old, 96);
        assert!(!pool.push(&mut new, Duration::from_secs(96), 1.0), "no room");
        let victim = oldest([&mut old, &mut new].into_iter()).expect("one has samples");
        assert!(pool.drop_oldest(victim));
        assert!(pool.push(&mut new, Duration::from_secs(96), 1.0));
        assert_eq!((old.len(), new.len()), (64, 1));
        assert!(pool.bytes() <= CHUNK_BYTES * 3);
    }
}
