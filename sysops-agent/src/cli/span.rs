//! Spans of time as people write and read them: `90s`, `15m`, `1h30m`, `3d`; `2 h 5 min`.

use std::time::{Duration, SystemTime};

use jiff::{Span, SpanRelativeTo};

/// A span from a command line, of at most `max`. A day has 24 hours.
///
/// # Errors
/// With what was expected.
pub fn parse(text: &str, max: Duration) -> Result<Duration, String> {
    let span: Option<Span> = text.parse().ok();
    let length = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    let length = length.and_then(|length| Duration::try_from(length).ok());
    let length = length.filter(|length| length.as_secs() > 0).ok_or("expected a time as 90s, 15m, 2h, 1h30m or 3d")?;
    if length > max {
        return Err(format!("expected at most {}", text_of(max)));
    }
    Ok(length)
}

/// A span in its two largest units: `3 d 4 h`, `2 h 5 min`, `45 s`.
#[must_use]
pub fn text_of(length: Duration) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];
    let secs = length.as_secs();
    let largest = UNITS.iter().position(|(_, size)| secs >= *size).unwrap_or(UNITS.len() - 1);
    let (name, size) = UNITS[largest];
    let (count, rest) = (secs / size, secs % size);
    match UNITS.get(largest + 1).map(|(name, size)| (name, rest / size)) {
        Some((next, more)) if more > 0 => format!("{count} {name} {more} {next}"),
        _ => format!("{count} {name}"),
    }
}

/// The time from `earlier` to `later`, as [`text_of`]; nothing when it is not later.
#[must_use]
pub fn between(earlier: SystemTime, later: SystemTime) -> String {
    text_of(later.duration_since(earlier).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_as_people_write_them() {
        let month = Duration::from_secs(30 * 86_400);
        for (text, secs) in [
            ("90s", 90),
            ("15m", 900),
            ("2h", 7200),
            ("1h30m", 5400),
            ("3d", 259_200),
            ("1w", 604_800),
            ("30d", 2_592_000),
        ] {
            assert_eq!(parse(text, month), Ok(Duration::from_secs(secs)), "{text}");
        }
        for text in ["", "2", "0s", "-2h", "2h ago", "1mo", "1y", "h", "2x", "500ms", "9999999999999d"] {
            assert!(parse(text, month).is_err_and(|error| error.starts_with("expected a time as 90s")), "{text}");
        }
        assert_eq!(parse("31d", month), Err("expected at most 30 d".to_owned()));
    }

    #[test]
    fn spans_as_people_read_them() {
        for (secs, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (7500, "2 h 5 min"),
            (3605, "1 h"),
            (273_600, "3 d 4 h"),
        ] {
            assert_eq!(text_of(Duration::from_secs(secs)), text);
        }
    }
}
