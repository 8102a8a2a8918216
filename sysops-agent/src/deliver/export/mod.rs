//! Ways to machines: Prometheus asks, NATS is told.
