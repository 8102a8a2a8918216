//! A NATS operator, account and user made for one test: the configuration of a server that knows them, and the
//! user's credentials file. Layout of the tokens: nats-io/jwt version 2.

use nkeys::KeyPair;
use serde_json::{Value, json};

/// What a test needs.
#[derive(Debug)]
pub struct Made {
    /// Lines for nats-server.
    pub configuration: String,
    /// The user's credentials file, as `nsc generate creds` writes it.
    pub file: String,
}

/// Makes new ones.
///
/// # Panics
/// When the machine has no randomness.
#[must_use]
pub fn make() -> Made {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let unlimited = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1
    });
    let operator_token = token(&operator, &operator, "operator", &json!({}));
    let account_token = token(&operator, &account, "account", &json!({ "limits": unlimited }));
    let user_token = token(&account, &user, "user", &json!({"subs": -1, "data": -1, "payload": -1}));
    let configuration = format!(
        "operator: {operator_token}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_token} }}",
        account.public_key()
    );
    let seed = user.seed().expect("a key pair that was made here has its seed");
    let file = format!(
        "-----BEGIN NATS USER JWT-----\n{user_token}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         NKEY Seed printed below can be used to sign and prove identity.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    Made { configuration, file }
}

fn token(issuer: &KeyPair, subject: &KeyPair, kind: &str, more: &Value) -> String {
    let mut nats = json!({"type": kind, "version": 2});
    if let (Some(nats), Some(more)) = (nats.as_object_mut(), more.as_object()) {
        nats.extend(more.clone());
    }
    let claims = json!({
        "jti": subject.public_key(), "iat": 1_771_777_800, "iss": issuer.public_key(), "name": kind,
        "sub": subject.public_key(), "nats": nats,
    });
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let signed = format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).expect("it holds its seed");
    format!("{signed}.{}", base64url(&signature))
}

/// RFC 4648, section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * index) & 63) as usize]));
        }
    }
    text
}
