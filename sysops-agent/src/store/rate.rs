//! Turns rising values into rates, once, so that a reset is handled once.
