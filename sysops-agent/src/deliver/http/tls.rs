//! TLS by whichever feature was built in: rustls (ring) before the machine's own OpenSSL. Both trust what the machine
//! trusts.

#[cfg(any(feature = "tls-rustls", feature = "tls-native"))]
use hyper_util::client::legacy::connect::HttpConnector;

#[cfg(feature = "tls-rustls")]
pub(super) type Connector = hyper_rustls::HttpsConnector<HttpConnector>;

#[cfg(all(feature = "tls-native", not(feature = "tls-rustls")))]
pub(super) type Connector = hyper_tls::HttpsConnector<HttpConnector>;

#[cfg(not(any(feature = "tls-rustls", feature = "tls-native")))]
pub(super) const MISSING: &str = "https:// needs a build with the feature tls-rustls or tls-native";

/// The machine's certificates are read once for all channels: there are some hundred and fifty of them.
#[cfg(feature = "tls-rustls")]
pub(super) fn connector() -> Result<Connector, String> {
    static CONFIG: std::sync::OnceLock<Result<rustls::ClientConfig, String>> = std::sync::OnceLock::new();
    let config = CONFIG.get_or_init(config).clone()?;
    Ok(hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build())
}

#[cfg(feature = "tls-rustls")]
fn config() -> Result<rustls::ClientConfig, String> {
    use hyper_rustls::ConfigBuilderExt as _;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let roots = versions.map_err(|error| error.to_string())?.with_native_roots();
    let roots = roots.map_err(|error| format!("this machine trusts no certificate authority: {error}"))?;
    Ok(roots.with_no_client_auth())
}

#[cfg(all(feature = "tls-native", not(feature = "tls-rustls")))]
#[expect(clippy::unnecessary_wraps, reason = "the rustls twin can fail")]
pub(super) fn connector() -> Result<Connector, String> {
    let mut connector = Connector::new();
    connector.https_only(true);
    Ok(connector)
}
