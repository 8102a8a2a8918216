//! TOML as written becomes checked values, and every mistake is shown with its place.
