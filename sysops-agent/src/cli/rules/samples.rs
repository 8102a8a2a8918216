//! Samples of a series in short: `80x6 95x12 _x3 80+1x10`.

/// Samples that one series may have.
const SAMPLES_MAX: usize = 100_000;

/// The samples, each word of which gives some: a value; `_` for none; `80+1` for 80, 81, 82, … as often as `x` says.
///
/// # Errors
/// With the word that is none of these.
pub(super) fn parse(text: &str) -> Result<Vec<Option<f64>>, String> {
    let mut samples = Vec::new();
    for word in text.split_whitespace() {
        let Piece { start, step, count } = piece(word).ok_or_else(|| {
            format!("{word:?}: expected a value as 80, 80x6 (six times), 80+1x6 (80, 81, …), _ (no sample)")
        })?;
        if samples.len() + count > SAMPLES_MAX {
            return Err(format!("expected at most {SAMPLES_MAX} samples"));
        }
        #[expect(clippy::cast_precision_loss, reason = "at most 100,000")]
        samples.extend((0..count).map(|i| start.map(|start| start + step * i as f64)));
    }
    if samples.is_empty() { Err("expected samples, as 80x6 95x12".to_owned()) } else { Ok(samples) }
}

struct Piece {
    start: Option<f64>,
    step: f64,
    count: usize,
}

fn piece(word: &str) -> Option<Piece> {
    let (value, count) = match word.split_once('x') {
        Some((value, count)) => (value, count.parse().ok().filter(|count| *count > 0)?),
        None => (word, 1),
    };
    if value == "_" {
        return Some(Piece { start: None, step: 0.0, count });
    }
    // A sign begins the step, unless it is the number's own or its exponent's.
    let bytes = value.as_bytes();
    let sign = (1..bytes.len()).find(|&at| matches!(bytes[at], b'+' | b'-') && !matches!(bytes[at - 1], b'e' | b'E'));
    let (start, step) = value.split_at(sign.unwrap_or(value.len()));
    let step = if step.is_empty() { Some(0.0) } else { number(step) };
    Some(Piece { start: Some(number(start)?), step: step?, count })
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form() {
        let samples = |text| parse(text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(samples("80x2 _ 95"), [Some(80.0), Some(80.0), None, Some(95.0)]);
        assert_eq!(samples("80+1x3"), [80.0, 81.0, 82.0].map(Some));
        assert_eq!(samples("-1-0.5x2"), [-1.0, -1.5].map(Some));
        assert_eq!(samples("1e-1x1 1e3+1e2x2"), [0.1, 1000.0, 1100.0].map(Some));
        assert_eq!(samples("_x3"), [None; 3]);
    }

    #[test]
    fn what_is_no_sample_is_named() {
        for word in ["x", "x3", "80x", "80x0", "80x-1", "80y", "__", "inf", "nan", "1+", "+", "80+x2", "0x10x2"] {
            assert!(parse(word).is_err_and(|error| error.starts_with(&format!("{word:?}: expected"))), "{word}");
        }
        assert!(parse(" ").is_err() && parse("1x100001").is_err() && parse("1x99999999999999999999").is_err());
        assert_eq!(parse("1x100000").map(|samples| samples.len()), Ok(100_000));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-+_x0-9e. ]{0,20}") {
            drop(parse(&text));
        }
    }
}
