//! Secrets of the stand-in: pairing credentials, signed session tokens and tickets, and the ids around them (CONTRACT §2, §4).
//! All of them are worth nothing outside the base directory that made them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::clock::Millis;
use super::release::Grant;

const CREDENTIAL_ALPHABET: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";
const CREDENTIAL_LENGTH: usize = 12;

/// The key that signs; 32 bytes in `userdata/secrets`.
#[derive(Clone)]
pub struct Key(Vec<u8>);

/// What a session token says about itself.
#[derive(Serialize, Deserialize)]
pub struct SessionClaims {
    pub v: u8,
    pub kind: String,
    pub sid: String,
    pub sub: String,
    #[serde(flatten)]
    pub grant: Grant,
    pub method: String,
    pub iat: u64,
    pub exp: u64,
}

/// What a WebSocket ticket says about itself.
#[derive(Serialize, Deserialize)]
pub struct TicketClaims {
    pub v: u8,
    pub kind: String,
    pub sid: String,
    pub iat: u64,
    pub exp: u64,
}

/// Why a token was not taken, in the words of t3's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("Malformed session token.")]
    Malformed,
    #[error("Invalid session token signature.")]
    Signature,
    #[error("Invalid session token payload.")]
    Payload,
    #[error("Session token expired.")]
    Expired,
    #[error("Session token revoked.")]
    Revoked,
}

impl Key {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub fn generate() -> [u8; 32] {
        rand::random()
    }

    /// `base64url(claims) "." base64url(HMAC-SHA256)`
    pub fn sign(&self, claims: &impl Serialize) -> String {
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_string(claims).unwrap_or_default());
        let signature = URL_SAFE_NO_PAD.encode(self.mac(&body).finalize().into_bytes());
        format!("{body}.{signature}")
    }

    pub fn open<T: DeserializeOwned>(&self, token: &str) -> Result<T, Rejected> {
        let (body, signature) = token.split_once('.').ok_or(Rejected::Malformed)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Rejected::Malformed)?;
        self.mac(body).verify_slice(&signature).map_err(|_| Rejected::Signature)?;
        let claims = URL_SAFE_NO_PAD.decode(body).map_err(|_| Rejected::Malformed)?;
        serde_json::from_slice(&claims).map_err(|_| Rejected::Payload)
    }

    fn mac(&self, body: &str) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).unwrap_or_else(|_| unreachable!("HMAC takes any key"));
        mac.update(body.as_bytes());
        mac
    }
}

impl SessionClaims {
    pub fn check(self) -> Result<Self, Rejected> {
        if self.kind != "session" {
            Err(Rejected::Payload)
        } else if self.exp <= Millis::now().0 {
            Err(Rejected::Expired)
        } else {
            Ok(self)
        }
    }
}

impl TicketClaims {
    pub fn check(self) -> Result<Self, Rejected> {
        if self.kind != "websocket" {
            Err(Rejected::Payload)
        } else if self.exp <= Millis::now().0 {
            Err(Rejected::Expired)
        } else {
            Ok(self)
        }
    }
}

/// A new pairing credential: no 0, 1, I or O in it.
pub fn credential() -> String {
    let random: [u8; CREDENTIAL_LENGTH] = rand::random();
    random.iter().map(|byte| char::from(CREDENTIAL_ALPHABET[usize::from(byte % 32)])).collect()
}

/// A random version 4 UUID.
pub fn uuid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// 32 hex digits.
pub fn trace_id() -> String {
    hex(&rand::random::<[u8; 16]>())
}

/// The suffix of a loopback cookie name: 12 hex digits of the hash of a path (CONTRACT §4).
pub fn path_hash(path: &str) -> String {
    hex(&Sha256::digest(path.as_bytes()))[..12].to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> TicketClaims {
        TicketClaims { v: 1, kind: "websocket".to_owned(), sid: uuid(), iat: 1, exp: u64::MAX }
    }

    #[test]
    fn a_token_opens_with_its_own_key_only() {
        let token = Key::new(vec![1; 32]).sign(&ticket());
        assert!(Key::new(vec![1; 32]).open::<TicketClaims>(&token).is_ok());
        assert_eq!(Key::new(vec![2; 32]).open::<TicketClaims>(&token).err(), Some(Rejected::Signature));
    }

    #[test]
    fn garbage_is_malformed_and_the_other_kind_has_another_payload() {
        let key = Key::new(vec![1; 32]);
        assert_eq!(key.open::<TicketClaims>("garbage").err(), Some(Rejected::Malformed));
        assert_eq!(key.open::<SessionClaims>(&key.sign(&ticket())).err(), Some(Rejected::Payload));
    }

    #[test]
    fn the_path_hash_is_the_one_that_was_recorded() {
        assert_eq!(path_hash("/home/ann/.t3/userdata"), "147ac95aeec0");
    }

    #[test]
    fn credentials_keep_to_their_alphabet() {
        let credential = credential();
        assert_eq!(credential.len(), CREDENTIAL_LENGTH);
        assert!(credential.bytes().all(|byte| CREDENTIAL_ALPHABET.contains(&byte)));
    }
}
