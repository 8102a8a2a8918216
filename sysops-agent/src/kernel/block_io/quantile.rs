//! Quantiles of times that were counted in buckets.

use sysops_common::block_io::{BOUNDS, Buckets};

use super::series::BOUNDS_SECONDS;

/// Those that are given, as the label has them.
pub(super) const QUANTILES: [(&str, f64); 3] = [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99)];

/// The time in seconds which the `share` of all does not exceed, as if times lay evenly between the bounds of their
/// bucket; that of the last bound when it is above. `zeros` of the first bucket are known to be zero. `None` of nothing.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts below 2^53 are exact")]
pub(super) fn quantile(counts: &Buckets, zeros: u64, share: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = total as f64 * share;
    if rank <= zeros as f64 {
        return Some(0.0);
    }
    let mut below = zeros as f64;
    for (place, &count) in counts.iter().enumerate().take(BOUNDS) {
        let count = if place == 0 { count.saturating_sub(zeros) } else { count } as f64;
        if rank <= below + count {
            let least = if place == 0 { 0.0 } else { BOUNDS_SECONDS[place - 1] };
            return Some(least + (BOUNDS_SECONDS[place] - least) * (rank - below) / count);
        }
        below += count;
    }
    BOUNDS_SECONDS.last().copied()
}

#[cfg(test)]
mod tests {
    use sysops_common::block_io::BUCKETS;

    use super::*;

    fn counts(filled: &[(usize, u64)]) -> Buckets {
        let mut counts = [0; BUCKETS];
        for &(place, count) in filled {
            counts[place] = count;
        }
        counts
    }

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(quantile(&counts(&[]), 0, 0.5), None);
    }

    #[test]
    fn times_lie_evenly_within_their_bucket() {
        let near =
            |found: Option<f64>, us: f64| assert!(found.is_some_and(|s| (s * 1e6 - us).abs() < 1e-6), "{found:?}");
        // From 4 to 8 us.
        near(quantile(&counts(&[(3, 100)]), 0, 0.5), 6.0);
        near(quantile(&counts(&[(3, 100)]), 0, 0.99), 7.96);
        near(quantile(&counts(&[(0, 50), (4, 50)]), 0, 0.5), 1.0);
        near(quantile(&counts(&[(0, 50), (4, 50)]), 0, 0.75), 12.0);
    }

    #[test]
    fn what_is_zero_is_zero() {
        assert_eq!(quantile(&counts(&[(0, 100)]), 100, 0.99), Some(0.0));
        assert_eq!(quantile(&counts(&[(0, 90), (3, 10)]), 90, 0.9), Some(0.0));
        assert!(quantile(&counts(&[(0, 90), (3, 10)]), 90, 0.99).is_some_and(|seconds| seconds > 4e-6));
    }

    #[test]
    fn what_is_above_all_bounds_is_at_the_last() {
        assert_eq!(quantile(&counts(&[(BOUNDS, 3)]), 0, 0.5), Some(BOUNDS_SECONDS[BOUNDS - 1]));
    }
}
