//! A certificate authority of a test's own, and what it signs for servers and clients.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::ring};

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    /// A new one, which nobody trusts.
    ///
    /// # Panics
    /// When no certificate can be made.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("it signs itself");
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// Its own certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A server of the name `name`; it asks for certificates of this authority when `asks_clients`.
    ///
    /// # Panics
    /// When no certificate can be made.
    #[must_use]
    pub fn server(&self, name: &str, asks_clients: bool) -> ServerConfig {
        let (certificate, key) = self.sign(name, ExtendedKeyUsagePurpose::ServerAuth);
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let config = config.with_safe_default_protocol_versions().expect("ring has them");
        let config = if asks_clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.der().clone()).expect("it is a certificate");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            config.with_client_cert_verifier(verifier.build().expect("it has a root"))
        } else {
            config.with_no_client_auth()
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        config
            .with_single_cert(vec![CertificateDer::from(certificate)], key)
            .expect("key and certificate belong together")
    }

    /// Writes a client's certificate and key to files.
    ///
    /// # Panics
    /// When they cannot be made or written.
    pub fn client(&self, certificate: &Path, key: &Path) {
        let (der, pair) = self.sign("agent", ExtendedKeyUsagePurpose::ClientAuth);
        std::fs::write(certificate, der.pem()).expect("the file can be written");
        std::fs::write(key, pair.serialize_pem()).expect("the file can be written");
    }

    fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name or an address");
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("it signs"), key)
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
