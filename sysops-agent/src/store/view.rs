//! The store, read-only.
