//! Public keys in a file (RFC 7517), read again while they are used.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Between two looks at the file, whoever asks: a stranger that names keys that are not there makes us read no more often.
pub(super) const AGAIN: Duration = Duration::from_secs(3);
/// NIST SP 800-131A: shorter ones are not to be believed.
const SHORTEST_RSA_BYTES: usize = 256;

/// How a key may sign. Never HMAC: what is public would be the secret.
const RSA: &[Algorithm] =
    &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];
const P256: &[Algorithm] = &[Algorithm::ES256];
const P384: &[Algorithm] = &[Algorithm::ES384];

/// A key, and how it may sign.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) key: DecodingKey,
    pub(super) algorithms: &'static [Algorithm],
}

type Known = HashMap<String, Arc<Key>>;

#[derive(Debug)]
pub(super) struct Keys {
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    looked: Instant,
    known: Result<Known, String>,
}

impl Keys {
    /// Reads them for the first time.
    ///
    /// # Errors
    /// Why the file can't be used.
    pub(super) async fn open(file: PathBuf) -> Result<Self, String> {
        let known = read(&file).await?;
        Ok(Self { file, state: Mutex::new(State { looked: Instant::now(), known: Ok(known) }) })
    }

    /// The key of that id, as the file had it within the last [`AGAIN`]. `Err`: the file can't be used any more; said in the log.
    pub(super) async fn find(&self, kid: &str) -> Result<Option<Arc<Key>>, ()> {
        let mut state = self.state.lock().await;
        if state.looked.elapsed() >= AGAIN {
            let known = read(&self.file).await;
            if let Err(why) = &known
                && state.known.as_ref().err() != Some(why)
            {
                let file = self.file.display();
                tracing::error!(%file, why, "no service account can join: the keys of Kubernetes can't be read");
            }
            *state = State { looked: Instant::now(), known };
        }
        state.known.as_ref().map(|known| known.get(kid).cloned()).map_err(drop)
    }
}

async fn read(file: &PathBuf) -> Result<Known, String> {
    parse(&tokio::fs::read(file).await.map_err(|error| error.to_string())?)
}

/// Keys that are of no use for signatures are passed over; keys that must not be believed are not.
fn parse(text: &[u8]) -> Result<Known, String> {
    let set: JwkSet = serde_json::from_slice(text).map_err(|error| format!("is no JSON Web Key Set: {error}"))?;
    let mut known = Known::new();
    for jwk in &set.keys {
        let Some((kid, algorithms)) = jwk.common.key_id.clone().zip(algorithms(jwk)?) else { continue };
        let key = DecodingKey::from_jwk(jwk).map_err(|error| format!("key {kid:?}: {error}"))?;
        if known.insert(kid.clone(), Arc::new(Key { key, algorithms })).is_some() {
            return Err(format!("key {kid:?} is there twice"));
        }
    }
    if known.is_empty() {
        return Err("holds no key with a kid that signatures can be checked with (RSA, or EC on P-256 or P-384)".into());
    }
    Ok(known)
}

/// `None`: it is of no use here.
fn algorithms(jwk: &Jwk) -> Result<Option<&'static [Algorithm]>, String> {
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return Ok(None);
    }
    let all = match &jwk.algorithm {
        AlgorithmParameters::RSA(key) => {
            let modulus = URL_SAFE_NO_PAD.decode(&key.n).map_err(|error| format!("an RSA key: {error}"))?;
            if modulus.iter().skip_while(|byte| **byte == 0).count() < SHORTEST_RSA_BYTES {
                return Err("an RSA key has fewer than 2048 bits".into());
            }
            RSA
        }
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => P256,
            EllipticCurve::P384 => P384,
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(match jwk.common.key_algorithm.map(Algorithm::try_from) {
        None => Some(all),
        // The key's own word narrows it down.
        Some(Ok(one)) => all.iter().position(|algorithm| *algorithm == one).map(|at| &all[at..=at]),
        Some(Err(_)) => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{Signer, ec, rsa};
    use super::*;

    fn set(keys: &[serde_json::Value]) -> Result<Known, String> {
        parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn keys_of_both_kinds_are_read_and_what_is_of_no_use_is_passed_over() {
        let (rsa, ec): (Signer, Signer) = (rsa("r"), ec("e"));
        let secret = json!({ "kty": "oct", "kid": "s", "k": "AAAA" });
        let mut nameless = ec.jwk.clone();
        nameless.as_object_mut().unwrap().remove("kid");
        let mut hides = ec.jwk.clone();
        (hides["kid"], hides["use"]) = ("h".into(), "enc".into());
        let known = set(&[rsa.jwk, ec.jwk.clone(), secret.clone(), nameless, hides]).unwrap();
        let mut names: Vec<_> = known.keys().cloned().collect();
        names.sort();
        assert_eq!(names, ["e", "r"]);
        assert_eq!(known["r"].algorithms, [Algorithm::RS256], "what the key itself says");
        assert_eq!(known["e"].algorithms, P256);
        assert!(set(&[secret]).unwrap_err().contains("no key"));
        assert!(set(&[ec.jwk.clone(), ec.jwk]).unwrap_err().contains("twice"));
    }

    #[test]
    fn a_weak_key_is_not_believed() {
        let short = URL_SAFE_NO_PAD.encode([0xff; 128]);
        let error = set(&[json!({ "kty": "RSA", "kid": "w", "n": short, "e": "AQAB" })]).unwrap_err();
        assert!(error.contains("2048"), "{error}");
    }
}
