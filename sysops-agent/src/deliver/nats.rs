//! What telemetry and alerts share on their way to a NATS server: the keys of `[nats]` that say where it is and what is sent there,
//! who the agent is there, subjects, compression. Connections are left to those who send.

#[cfg(feature = "nats")]
pub(super) mod access;
#[cfg(feature = "nats")]
pub(super) mod encoding;
#[cfg(feature = "nats")]
pub(super) mod subject;

use crate::spec::{Key, Secret};

pub(super) static ENABLED: Key<bool> = Key::switch("nats.enabled", false, "Sends telemetry to a NATS server.");
pub(super) static URL: Key<String> = Key::text(
    "nats.url",
    "nats://127.0.0.1:4222",
    "Address of the server: `nats://host:port`, or `tls://host:port` for TLS at all times. Not used when `urls` is set.",
);
pub(super) static URLS: Key<Vec<String>> = Key::list("nats.urls", &[], "Addresses of the servers of a cluster.");
pub(super) static CREDENTIAL_FILE: Key<Option<String>> = Key::optional(
    "nats.credential_file",
    "File with a user's JWT and NKey seed, as `nsc` writes it. Keep it readable by the agent's user alone.",
);
pub(super) static TOKEN: Key<Option<Secret>> = Key::secret("nats.token", "Token, when the server asks for one.");
pub(super) static USER: Key<Option<String>> = Key::optional("nats.user", "User name; goes with `password`.");
pub(super) static PASSWORD: Key<Option<Secret>> = Key::secret("nats.password", "Password of `user`.");
pub(super) static SUBJECT_PREFIX: Key<String> = Key::text(
    "nats.subject_prefix",
    "sysops",
    "First part of the subjects: `<prefix>.<host>.metrics`, `.alerts`, `.inventory`, `.heartbeat`.",
);
pub(super) static INCLUDE_ALERTS: Key<bool> =
    Key::switch("nats.include_alerts", true, "Sends alerts too, as the channel `nats`.");
pub(super) static COMPRESSION: Key<bool> = Key::switch(
    "nats.compression",
    true,
    "Compresses all but heartbeats with zstd; such a message has the header `Content-Encoding: zstd`.",
);
