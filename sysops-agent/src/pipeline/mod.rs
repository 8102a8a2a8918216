//! Knows every layer: builds, wires, reloads, shuts down.
