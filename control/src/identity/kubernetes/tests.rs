use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::*;

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Who issues tokens, as an API server does.
pub(in super::super) struct Signer {
    pub(in super::super) jwk: Value,
    key: EncodingKey,
    algorithm: Algorithm,
    kid: String,
}

fn signer(key: EncodingKey, algorithm: Algorithm, kid: &str) -> Signer {
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap();
    (jwk["kid"], jwk["use"]) = (kid.into(), "sig".into());
    Signer { jwk, key, algorithm, kid: kid.into() }
}

pub(in super::super) fn rsa(kid: &str) -> Signer {
    // Made once: it takes a second.
    static KEY: OnceLock<Vec<u8>> = OnceLock::new();
    let der = KEY.get_or_init(|| {
        let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
        rsa::pkcs1::EncodeRsaPrivateKey::to_pkcs1_der(&key).unwrap().as_bytes().to_vec()
    });
    signer(EncodingKey::from_rsa_der(der), Algorithm::RS256, kid)
}

pub(in super::super) fn ec(kid: &str) -> Signer {
    signer(EncodingKey::from_ec_der(&KeyPair::generate().unwrap().serialize_der()), Algorithm::ES256, kid)
}

impl Signer {
    pub(in super::super) fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What a bound token says since Kubernetes 1.30.
pub(in super::super) fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": ["shoal"], "sub": "system:serviceaccount:shoal:shoal-node",
        "iat": now(), "nbf": now(), "exp": now() + 3600, "jti": "5e5ad4e8-0f63-4a8c-9a35-a4b5f3f3e3f3",
        "kubernetes.io": {
            "namespace": "shoal",
            "node": { "name": "worker-1", "uid": "1" }, "pod": { "name": "shoal-node-x7k2p", "uid": "2" },
            "serviceaccount": { "name": "shoal-node", "uid": "3" }
        }
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

pub(in super::super) fn config(file: &Path) -> Config {
    Config {
        name: "prod".into(),
        at: "identity.kubernetes[0]".into(),
        issuer: ISSUER.into(),
        audience: "shoal".into(),
        jwks_file: file.to_owned(),
        accounts: ["shoal:shoal-node".to_owned()].into(),
        cluster: None,
        seed: false,
    }
}

/// Puts another set in the place of a file's, as the kubelet does.
pub(in super::super) fn publish(file: &Path, signers: &[&Signer]) {
    let keys: Vec<&Value> = signers.iter().map(|signer| &signer.jwk).collect();
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, json!({ "keys": keys }).to_string()).unwrap();
    std::fs::rename(fresh, file).unwrap();
}

struct Stage {
    dir: tempfile::TempDir,
    kubernetes: Kubernetes,
}

impl Stage {
    async fn new(signers: &[&Signer]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        publish(&dir.path().join("jwks"), signers);
        let kubernetes = Kubernetes::open(vec![config(&dir.path().join("jwks"))]).await.unwrap();
        Self { dir, kubernetes }
    }

    async fn why(&self, token: &str) -> Unvouched {
        self.kubernetes.check(token).await.map(|vouched| vouched.account).unwrap_err()
    }

    /// Nothing is told to the bearer, and this to the log.
    async fn hidden(&self, token: &str) -> &'static str {
        let why = self.why(token).await;
        assert!(why.to_string().contains("not signed"), "{why}");
        why.hidden().unwrap()
    }
}

#[tokio::test]
async fn tokens_of_rsa_and_of_ec_keys_count_and_tell_of_node_and_pod() {
    let (rsa, ec) = (rsa("r"), ec("e"));
    let stage = Stage::new(&[&rsa, &ec]).await;
    for signer in [&rsa, &ec] {
        let token = signer.sign(&claims());
        let vouched = stage.kubernetes.check(&token).await.unwrap();
        assert_eq!((vouched.by.name.as_str(), vouched.account.as_str()), ("prod", "shoal:shoal-node"));
        assert_eq!((vouched.node.as_deref(), vouched.pod.as_deref()), (Some("worker-1"), Some("shoal-node-x7k2p")));
        stage.kubernetes.check(&token).await.expect("it may be shown again");
    }
    let unbound = stage.kubernetes.check(&ec.sign(&without("kubernetes.io"))).await.unwrap().node;
    assert_eq!(unbound, None);
    let one = ec.sign(&with("aud", "shoal".into()));
    stage.kubernetes.check(&one).await.expect("one audience may stand alone");
}

#[tokio::test]
async fn what_is_signed_and_not_for_us_is_refused_with_its_reason() {
    let ec = ec("e");
    let stage = Stage::new(&[&ec]).await;
    for (claims, why) in [
        (with("iss", "https://elsewhere".into()), Unvouched::Issuer),
        (with("aud", json!(["https://kubernetes.default.svc"])), Unvouched::Audience("shoal".into())),
        (with("aud", json!([])), Unvouched::Audience("shoal".into())),
        (with("exp", (now() - LEEWAY - 5).into()), Unvouched::Over),
        (with("nbf", (now() + LEEWAY + 5).into()), Unvouched::Early),
        (without("exp"), Unvouched::Lacks("exp".into())),
        (without("aud"), Unvouched::Lacks("aud".into())),
        (without("iss"), Unvouched::Lacks("iss".into())),
        (with("exp", "never".into()), Unvouched::Lacks("exp".into())),
        (with("sub", "system:serviceaccount:shoal:other".into()), Unvouched::Account("shoal:other".into())),
        (with("sub", "system:serviceaccount:other:shoal-node".into()), Unvouched::Account("other:shoal-node".into())),
        (with("sub", "shoal:shoal-node".into()), Unvouched::Account("shoal:shoal-node".into())),
    ] {
        assert_eq!(stage.why(&ec.sign(&claims)).await, why, "{claims}");
    }
    for (name, seconds) in [("exp", now() - 3), ("nbf", now() + 3)] {
        stage.kubernetes.check(&ec.sign(&with(name, seconds.into()))).await.expect("clocks differ a little");
    }
}

#[tokio::test]
async fn a_token_that_nobody_signed_or_another_one_did_is_refused_without_a_word() {
    let (ours, rsa_ours) = (ec("e"), rsa("r"));
    let stage = Stage::new(&[&ours, &rsa_ours]).await;
    assert_eq!(stage.hidden(&ec("e").sign(&claims())).await, "its signature is not that of the key that it names");
    assert!(stage.hidden(&ec("x").sign(&claims())).await.contains("no configured"));
    assert!(stage.hidden(&ec("x").sign(&with("iss", "other".into()))).await.contains("no configured"));

    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let none = format!("{}.{}.", part(&json!({ "alg": "none", "kid": "e" })), part(&claims()));
    assert!(stage.hidden(&none).await.contains("algorithm"));
    // What is public is no secret: neither the key as it stands in the set, nor as PEM, nor its numbers.
    let modulus = URL_SAFE_NO_PAD.decode(rsa_ours.jwk["n"].as_str().unwrap()).unwrap();
    for (kid, secret) in [("r", modulus), ("r", rsa_ours.jwk.to_string().into()), ("e", ours.jwk.to_string().into())] {
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::HS256) };
        let forged = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(&secret)).unwrap();
        assert!(stage.hidden(&forged).await.contains("algorithm"));
    }
    // A key of one kind under the name of one of the other.
    let crossed = Signer { kid: "r".into(), ..ec("e") }.sign(&claims());
    assert!(stage.hidden(&crossed).await.contains("algorithm"));
    let nameless = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims(), &ours.key).unwrap();
    assert_eq!(stage.hidden(&nameless).await, "it names no key");
    let extended = Header { kid: Some("e".into()), crit: Some(vec!["b64".into()]), ..Header::new(Algorithm::ES256) };
    let extended = jsonwebtoken::encode(&extended, &claims(), &ours.key).unwrap();
    assert_eq!(stage.hidden(&extended).await, "its header has extensions");

    let good = ours.sign(&claims());
    let (body, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = body.split_once('.').unwrap();
    let altered = format!("{header}.{}.{signature}", part(&with("exp", (now() + 9999).into())));
    assert!(stage.hidden(&altered).await.contains("signature"));
    for bad in ["", ".", "..", "a.b.c", &good[..good.len() - 3], &format!("{body}.")] {
        assert!(stage.why(bad).await.hidden().is_some(), "{bad}");
    }
}

#[tokio::test(start_paused = true)]
async fn new_keys_are_found_within_seconds_and_old_ones_are_forgotten() {
    let (old, new) = (ec("old"), ec("new"));
    let stage = Stage::new(&[&old]).await;
    let file = stage.dir.path().join("jwks");
    publish(&file, &[&new]);
    assert!(stage.hidden(&new.sign(&claims())).await.contains("no configured"), "the file is not read at every word");
    tokio::time::advance(keys::AGAIN).await;
    stage.kubernetes.check(&new.sign(&claims())).await.unwrap();
    assert!(stage.hidden(&old.sign(&claims())).await.contains("no configured"));
    std::fs::write(&file, "{}").unwrap();
    tokio::time::advance(keys::AGAIN).await;
    assert_eq!(
        stage.why(&new.sign(&claims())).await,
        Unvouched::Keys,
        "nobody joins by keys that may have been withdrawn"
    );
    publish(&file, &[&new]);
    tokio::time::advance(keys::AGAIN + Duration::from_secs(1)).await;
    stage.kubernetes.check(&new.sign(&claims())).await.unwrap();
}

#[tokio::test]
async fn clusters_that_share_an_issuer_are_told_apart_by_their_keys() {
    let (one, two) = (ec("a"), ec("b"));
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    publish(&first, &[&one]);
    publish(&second, &[&two]);
    let other = Config { name: "test".into(), audience: "shoal-test".into(), ..config(&second) };
    let kubernetes = Kubernetes::open(vec![config(&first), other]).await.unwrap();
    assert_eq!(kubernetes.check(&one.sign(&claims())).await.unwrap().by.name, "prod");
    assert_eq!(kubernetes.check(&two.sign(&with("aud", "shoal-test".into()))).await.unwrap().by.name, "test");
    let why = kubernetes.check(&two.sign(&claims())).await.map(drop).unwrap_err();
    assert_eq!(why, Unvouched::Audience("shoal-test".into()));
}

#[tokio::test]
async fn a_file_without_keys_is_named_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwks");
    for text in [None, Some("nonsense"), Some("{\"keys\": []}")] {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let error = Kubernetes::open(vec![config(&file)]).await.map(drop).unwrap_err();
        assert!(error.starts_with("identity.kubernetes[0].jwks_file: ") && error.contains("jwks"), "{error}");
    }
}
