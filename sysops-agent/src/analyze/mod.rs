//! Pure analyzers: what the store remembers in, findings out.
