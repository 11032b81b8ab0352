//! Verified mode: beside the peer's word, the edge's signed token must name the same user. It is checked with keys of a
//! configured set, never with one that the token itself names or brings.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::Section;
use crate::outcome::Refusal;

/// How often a file is looked at, and a set fetched.
const FILE_INTERVAL: Duration = Duration::from_secs(10);
const URL_INTERVAL: Duration = Duration::from_secs(600);

/// A set that could not be fetched is asked for again this soon.
const RETRY: Duration = Duration::from_secs(15);

/// Tokens that were found good, so that a page of a hundred requests is one verification.
const REMEMBERED: usize = 4096;

#[derive(Debug)]
pub struct Tokens {
    source: Source,
    audience: String,
    issuer: String,
    keys: RwLock<Vec<Key>>,
    /// Digest of a good token to whom it names and until when.
    good: Mutex<HashMap<[u8; 32], Good>>,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Url(String),
}

struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

#[derive(Clone, Debug)]
struct Good {
    user: String,
    expires: u64,
}

#[derive(Deserialize)]
struct Claims {
    preferred_username: String,
    exp: u64,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    /// `None` where no key set is configured. A file is read now; an address is fetched by [`Self::keep_fresh`], and until
    /// then no token is good.
    pub fn new(section: &Section) -> anyhow::Result<Option<Self>> {
        let source = match (&section.jwks_file, &section.jwks_url) {
            (None, None) => return Ok(None),
            (Some(file), None) => Source::File(file.clone()),
            (None, Some(url)) => Source::Url(url.clone()),
            (Some(_), Some(_)) => {
                anyhow::bail!("[dispatch] names a jwks_file and a jwks_url; keep one of them")
            }
        };
        let (Some(audience), Some(issuer)) = (&section.token_audience, &section.token_issuer) else {
            anyhow::bail!(
                "with a JWKS alone a token for another application of the edge would count too; write [dispatch] token_audience and token_issuer"
            );
        };
        let tokens = Self {
            source,
            audience: audience.clone(),
            issuer: issuer.clone(),
            keys: RwLock::default(),
            good: Mutex::default(),
        };
        if let Source::File(file) = &tokens.source {
            let text =
                std::fs::read(file).with_context(|| format!("cannot read the JWKS in {}", file.display()))?;
            tokens.take(&text).with_context(|| format!("the JWKS in {}", file.display()))?;
        }
        Ok(Some(tokens))
    }

    /// Whether the token vouches for this identity now.
    pub fn check(&self, token: Option<&[u8]>, identity: &[u8]) -> Result<(), Refusal> {
        let token = token.ok_or(Refusal::TokenInvalid)?;
        let digest: [u8; 32] = Sha256::digest(token).into();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs());
        let remembered = self.good().get(&digest).filter(|good| good.expires > now).cloned();
        let good = match remembered {
            Some(good) => good,
            None => {
                let good = self.verify(token).ok_or(Refusal::TokenInvalid)?;
                let mut all = self.good();
                if all.len() >= REMEMBERED {
                    all.clear();
                }
                all.insert(digest, good.clone());
                good
            }
        };
        if good.user.as_bytes() == identity { Ok(()) } else { Err(Refusal::TokenInvalid) }
    }

    /// Keeps the keys as their source has them. What cannot be read leaves the last good keys in use.
    pub async fn keep_fresh(&self, stop: &CancellationToken) {
        let mut wait = Duration::ZERO;
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            let result = match &self.source {
                Source::File(file) => tokio::fs::read(file).await.map_err(anyhow::Error::from),
                Source::Url(url) => fetch(url).await.map_err(anyhow::Error::from),
            };
            wait = match result.and_then(|text| self.take(&text)) {
                Ok(()) if matches!(self.source, Source::File(_)) => FILE_INTERVAL,
                Ok(()) => URL_INTERVAL,
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "cannot read the edge's keys; the last good ones stay in use"
                    );
                    RETRY
                }
            };
        }
    }

    /// Takes a key set into use. Good tokens of keys that are gone are good no longer.
    fn take(&self, text: &[u8]) -> anyhow::Result<()> {
        let set: JwkSet = serde_json::from_slice(text).context("it is not a JSON web key set")?;
        let keys: Vec<Key> = set
            .keys
            .iter()
            .filter_map(|jwk| {
                Some(Key {
                    id: jwk.common.key_id.clone(),
                    algorithms: algorithms(&jwk.algorithm)?,
                    key: DecodingKey::from_jwk(jwk).ok()?,
                })
            })
            .collect();
        anyhow::ensure!(!keys.is_empty(), "it holds no RSA or elliptic-curve key");
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        self.good().clear();
        Ok(())
    }

    fn verify(&self, token: &[u8]) -> Option<Good> {
        let named = decode_header(token).ok()?.kid;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().filter(|key| named.is_none() || key.id.is_none() || key.id == named).find_map(|key| {
            let mut validation = Validation::new(*key.algorithms.first()?);
            // The key says which algorithms count, not the token.
            validation.algorithms.clone_from(&key.algorithms);
            validation.set_audience(&[&self.audience]);
            validation.set_issuer(&[&self.issuer]);
            validation.set_required_spec_claims(&["exp", "aud", "iss"]);
            validation.validate_nbf = true;
            let claims = decode::<Claims>(token, &key.key, &validation).ok()?.claims;
            Some(Good { user: claims.preferred_username, expires: claims.exp })
        })
    }

    fn good(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Good>> {
        self.good.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Public keys only: with a shared secret, whoever can verify can also sign.
fn algorithms(parameters: &AlgorithmParameters) -> Option<Vec<Algorithm>> {
    match parameters {
        AlgorithmParameters::RSA(_) => Some(vec![Algorithm::RS256, Algorithm::RS384, Algorithm::RS512]),
        AlgorithmParameters::EllipticCurve(_) => Some(vec![Algorithm::ES256, Algorithm::ES384]),
        _ => None,
    }
}

async fn fetch(url: &str) -> reqwest::Result<Vec<u8>> {
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()?;
    Ok(client.get(url).send().await?.error_for_status()?.bytes().await?.to_vec())
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::{Value, json};

    use super::*;

    /// A key pair made for these tests.
    const PRIVATE: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgcjEZAP94cBWRM2tfhYvpCxPDQGJYlslrwxAb0tEcufChRANCAATD2JL8y1d/q9wsY4O390Get1iSAoZLVxk008xOX4MhRfymwB23wD56ilec1Uuuen/6CUWEMaYK99E//ZeS1E7J";
    const X: &str = "w9iS_MtXf6vcLGODt_dBnrdYkgKGS1cZNNPMTl-DIUU";
    const Y: &str = "_KbAHbfAPnqKV5zVS656f_oJRYQxpgr30T_9l5LUTsk";

    fn keys(id: &str) -> Value {
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": id, "x": X, "y": Y }] })
    }

    fn tokens(set: &Value) -> Tokens {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), set.to_string()).expect("written");
        let section = Section {
            jwks_file: Some(file.path().to_owned()),
            token_audience: Some("t3".to_owned()),
            token_issuer: Some("https://auth.example.com/".to_owned()),
            ..Section::default()
        };
        Tokens::new(&section).expect("a key set").expect("configured")
    }

    fn claims() -> Value {
        json!({ "preferred_username": "ann", "aud": "t3", "iss": "https://auth.example.com/", "exp": 4_102_444_800_u64 })
    }

    fn signed(header: &Header, claims: &Value) -> String {
        let key = EncodingKey::from_ec_der(&BASE64_STANDARD.decode(PRIVATE).expect("base64"));
        encode(header, claims, &key).expect("signed")
    }

    fn with_id(id: &str) -> Header {
        Header { kid: Some(id.to_owned()), ..Header::new(Algorithm::ES256) }
    }

    #[test]
    fn a_signed_token_vouches_for_whom_it_names_and_nobody_else() {
        let tokens = tokens(&keys("k1"));
        let token = signed(&with_id("k1"), &claims());
        for _ in 0..2 {
            assert_eq!(tokens.check(Some(token.as_bytes()), b"ann"), Ok(()));
            assert_eq!(tokens.check(Some(token.as_bytes()), b"bob"), Err(Refusal::TokenInvalid));
        }
        assert_eq!(tokens.check(None, b"ann"), Err(Refusal::TokenInvalid));
    }

    #[test]
    fn a_token_that_is_not_the_edges_for_us_and_now_is_refused() {
        let tokens = tokens(&keys("k1"));
        let changed = |key: &str, value: Value| {
            let mut claims = claims();
            claims[key] = value;
            signed(&with_id("k1"), &claims)
        };
        let good = signed(&with_id("k1"), &claims());
        let (head, rest) = good.split_once('.').expect("three parts");
        let (_, signature) = rest.split_once('.').expect("three parts");
        let none = |alg: &str| {
            base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"{alg}\",\"kid\":\"k1\"}}"))
        };
        let payload = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(claims().to_string());
        let hmac = encode(
            &Header { kid: Some("k1".to_owned()), ..Header::default() },
            &claims(),
            &EncodingKey::from_secret(X.as_bytes()),
        );
        for (why, token) in [
            ("expired", changed("exp", json!(1_000_000_000))),
            ("not yet", changed("nbf", json!(4_000_000_000_u64))),
            ("another audience", changed("aud", json!("wiki"))),
            ("another issuer", changed("iss", json!("https://evil.example/"))),
            ("nobody named", changed("preferred_username", json!(null))),
            ("a key we do not have", signed(&with_id("k2"), &claims())),
            ("another payload", format!("{head}.{payload}x.{signature}")),
            ("unsigned", format!("{}.{payload}.", none("none"))),
            ("signed with our public key", hmac.expect("signed")),
            ("nothing", String::new()),
        ] {
            assert_eq!(tokens.check(Some(token.as_bytes()), b"ann"), Err(Refusal::TokenInvalid), "{why}");
        }
    }

    #[test]
    fn a_key_that_is_withdrawn_vouches_for_nobody() {
        let tokens = tokens(&keys("k1"));
        let token = signed(&with_id("k1"), &claims());
        assert_eq!(tokens.check(Some(token.as_bytes()), b"ann"), Ok(()));
        tokens.take(keys("k2").to_string().as_bytes()).expect("a key set");
        assert_eq!(tokens.check(Some(token.as_bytes()), b"ann"), Err(Refusal::TokenInvalid));
        assert!(tokens.take(b"{\"keys\":[]}").is_err() && tokens.take(b"nonsense").is_err());
    }

    #[test]
    fn a_key_set_without_an_audience_is_refused_at_the_start() {
        let section = Section { jwks_file: Some("/nowhere".into()), ..Section::default() };
        assert!(Tokens::new(&section).is_err());
        assert!(Tokens::new(&Section::default()).expect("not configured").is_none());
    }
}
