//! Runs collectors on time: one worker thread, deadlines, panic isolation, metrics of its own.
