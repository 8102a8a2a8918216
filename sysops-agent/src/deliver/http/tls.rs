//! TLS by whichever feature was built in: rustls (ring) before the machine's own OpenSSL. Both trust what the machine
//! trusts.

#[cfg(any(feature = "tls-rustls", feature = "tls-native"))]
use hyper_util::client::legacy::connect::HttpConnector;

#[cfg(feature = "tls-rustls")]
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

#[cfg(feature = "tls-rustls")]
type Trusting = rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>;

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

/// With files of the user's own; an error names the key at fault.
#[cfg(feature = "tls-rustls")]
pub(super) fn connector_with(files: &super::TlsFiles) -> Result<Connector, String> {
    let trusting = match &files.ca {
        Some(path) => {
            versions()?.with_root_certificates(authorities(path).map_err(|error| format!("ca_file: {error}"))?)
        }
        None => trusting_the_machine()?,
    };
    let config = match (&files.certificate, &files.key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate).map_err(|error| format!("cert_file: {error}"))?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("key_file: {key}: {error}"))?;
            trusting.with_client_auth_cert(chain, key).map_err(|error| format!("key_file: {error}"))?
        }
        (Some(_), None) => return Err("cert_file: needs key_file with its private key".to_owned()),
        (None, Some(_)) => return Err("key_file: needs cert_file with its certificate".to_owned()),
        (None, None) => trusting.with_no_client_auth(),
    };
    Ok(hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build())
}

#[cfg(feature = "tls-rustls")]
fn config() -> Result<rustls::ClientConfig, String> {
    Ok(trusting_the_machine()?.with_no_client_auth())
}

#[cfg(feature = "tls-rustls")]
fn trusting_the_machine() -> Result<Trusting, String> {
    use hyper_rustls::ConfigBuilderExt as _;
    let roots = versions()?.with_native_roots();
    roots.map_err(|error| format!("this machine trusts no certificate authority: {error}"))
}

#[cfg(feature = "tls-rustls")]
fn versions() -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>, String> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    versions.map_err(|error| error.to_string())
}

#[cfg(feature = "tls-rustls")]
fn authorities(path: &str) -> Result<rustls::RootCertStore, String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(roots)
}

#[cfg(feature = "tls-rustls")]
fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = read.map_err(|error| format!("{path}: {error}"))?;
    if all.is_empty() { Err(format!("{path}: expected certificates in PEM, found none")) } else { Ok(all) }
}

#[cfg(all(feature = "tls-native", not(feature = "tls-rustls")))]
#[expect(clippy::unnecessary_wraps, reason = "the rustls twin can fail")]
pub(super) fn connector() -> Result<Connector, String> {
    let mut connector = Connector::new();
    connector.https_only(true);
    Ok(connector)
}
