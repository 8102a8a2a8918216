//! What cross-layer tests share: one file for each thing. The tests themselves are in `tests/tests`.

pub mod agent;
pub mod busy;
pub mod credentials;
pub mod events;
pub mod falsified_btf;
pub mod feed;
pub mod frozen_mount;
pub mod http;
pub mod http_far_end;
pub mod injection;
pub mod leaderless;
pub mod leak_corpus;
pub mod loop_device;
pub mod memory_cgroup;
pub mod notify_socket;
pub mod one_probe;
pub mod own_namespace;
pub mod require;
pub mod schema;
pub mod servers;
pub mod silent_mount;
pub mod source;
pub mod stacked_disk;
pub mod subscriber;
pub mod user;
pub mod values;
