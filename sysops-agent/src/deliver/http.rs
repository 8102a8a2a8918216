//! One HTTP client for all: TLS, timeout, bounded answers, no redirects.
