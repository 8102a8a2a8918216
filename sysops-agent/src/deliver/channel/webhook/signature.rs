//! Signatures as <https://www.standardwebhooks.com> has them: HMAC-SHA256 over id, time and body, so that a receiver knows who
//! sent a request, and that it is no old one.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::spec::Secret;

/// Holds the key.
pub(super) struct Signer {
    hmac: Hmac<Sha256>,
}

impl Signer {
    /// With the key as the standard writes it, `whsec_` and base64, or any other text as the key itself.
    pub(super) fn new(secret: &Secret) -> Result<Self, String> {
        let text = secret.expose();
        let key = match text.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).map_err(|_| "expected base64 behind whsec_")?,
            None => text.as_bytes().to_vec(),
        };
        if key.is_empty() {
            return Err("expected a key, found nothing".to_owned());
        }
        let hmac = Hmac::new_from_slice(&key).map_err(|error| error.to_string())?;
        Ok(Self { hmac })
    }

    /// The headers for one request, signed now: receivers refuse what is some minutes old.
    pub(super) fn headers(&self, id: &str, body: &[u8]) -> [(&'static str, String); 3] {
        #[expect(clippy::disallowed_methods, reason = "a signature is of the moment at which a request goes out")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.headers_at(id, now, body)
    }

    fn headers_at(&self, id: &str, unix_secs: u64, body: &[u8]) -> [(&'static str, String); 3] {
        let mut hmac = self.hmac.clone();
        hmac.update(format!("{id}.{unix_secs}.").as_bytes());
        hmac.update(body);
        let signature = format!("v1,{}", STANDARD.encode(hmac.finalize().into_bytes()));
        [("webhook-id", id.to_owned()), ("webhook-timestamp", unix_secs.to_string()), ("webhook-signature", signature)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the standard's own reference libraries.
    #[test]
    fn the_standards_example_is_signed_as_it_says() {
        let signer = Signer::new(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned())).expect("a key");
        let [id, time, signature] =
            signer.headers_at("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!((id.1.as_str(), time.1.as_str()), ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330"));
        assert_eq!(signature.1, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
