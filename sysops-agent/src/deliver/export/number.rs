//! Numbers as both JSON and the Prometheus text format read them.

use std::fmt;

/// A finite number: whole numbers without a fraction, the rest in the shortest form that reads back the same.
pub(super) struct Number(pub(super) f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value) = *self;
        #[expect(clippy::cast_possible_truncation, reason = "whether it is whole and fits is what is asked")]
        let whole = value as i64;
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        if whole as f64 == value && whole.unsigned_abs() < 1 << 53 {
            // Most readings are whole, and whole numbers are written in a fraction of the time.
            return fmt::Display::fmt(&whole, f);
        }
        let size = value.abs();
        // Display of f64 never uses an exponent: 1e300 would have 301 digits.
        if !(1e-5..1e16).contains(&size) { write!(f, "{value:e}") } else { write!(f, "{value}") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whole_numbers_have_no_fraction() {
        let texts: Vec<String> = [0.0, 2.0, 45.2, -0.5, 1e16, 9_007_199_254_740_991.0, 1e-7, f64::MAX]
            .map(|value| Number(value).to_string())
            .into();
        assert_eq!(texts, ["0", "2", "45.2", "-0.5", "1e16", "9007199254740991", "1e-7", "1.7976931348623157e308"]);
    }

    proptest! {
        #[test]
        fn every_finite_number_reads_back(value in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL | proptest::num::f64::ZERO) {
            let text = Number(value).to_string();
            prop_assert_eq!(text.parse::<f64>().expect("Rust reads it"), value);
            // serde_json itself may be off by the last bit, so only its syntax is asked for.
            prop_assert!(serde_json::from_str::<f64>(&text).is_ok(), "{text}");
        }
    }
}
