//! Joining by the service account of a Kubernetes cluster whose API server these tests are.

use std::time::{SystemTime, UNIX_EPOCH};

use control::identity::kubernetes;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use node_proxy::control::Authority as Pinned;
use serde_json::json;

use super::*;

const KEY: &str = "jwks-key";

/// A cluster whose key is in a directory, beside the set that control reads.
pub(super) fn configured(dir: &Path) -> Vec<kubernetes::Config> {
    let (key, jwks_file) = (dir.join(KEY), dir.join("jwks.json"));
    if !key.exists() {
        let pair = rcgen::KeyPair::generate().unwrap().serialize_der();
        let mut jwk = Jwk::from_encoding_key(&EncodingKey::from_ec_der(&pair), Algorithm::ES256).unwrap();
        jwk.common.key_id = Some("one".into());
        std::fs::write(&jwks_file, json!({ "keys": [jwk] }).to_string()).unwrap();
        std::fs::write(key, pair).unwrap();
    }
    vec![kubernetes::Config {
        name: "prod".into(),
        at: "identity.kubernetes[0]".into(),
        issuer: "https://k8s".into(),
        audience: "shoal".into(),
        jwks_file,
        accounts: ["shoal:node".to_owned()].into(),
        cluster: Some("B".into()),
        seed: false,
    }]
}

impl Secured {
    /// A token as the kubelet puts it into a pod.
    fn project(&self, account: &str, life: i64) -> PathBuf {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let claims = json!({
            "iss": "https://k8s", "aud": ["shoal"], "sub": format!("system:serviceaccount:shoal:{account}"),
            "iat": now, "nbf": now, "exp": now + life,
            "kubernetes.io": { "namespace": "shoal", "node": { "name": "worker-1" }, "pod": { "name": "shoal-node-1" } }
        });
        let key = EncodingKey::from_ec_der(&std::fs::read(self.dir.path().join(KEY)).unwrap());
        let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::ES256) };
        let path = self.dir.path().join(format!("projected-{account}"));
        std::fs::write(&path, jsonwebtoken::encode(&header, &claims, &key).unwrap()).unwrap();
        path
    }

    fn by_account(&self, state: &Path, token: PathBuf, authority: Pinned) -> Config {
        Config { join: Some(JoinBy::ServiceAccount { token, authority }), ..self.config(state, "", None) }
    }

    fn pinned(&self) -> Pinned {
        Pinned::Sha256(self.identity.authority().pin())
    }
}

#[tokio::test]
async fn a_node_joins_by_the_token_of_its_service_account_and_comes_again_by_its_key() {
    let secured = secured(Duration::from_secs(1)).await;
    let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token = secured.project("node", 600);
    let authority = Pinned::File(secured.dir.path().join("ca.pem"));
    let node = started(secured.by_account(state.path(), token.clone(), authority.clone()), &[1]);
    node.connected().await;
    assert_eq!(cluster(&node).as_deref(), Some("b"), "it is bound to the cluster that the settings name");
    eventually("control knows what is held", || secured.control.swarm.counts().holdings == 1).await;
    let member = secured.identity.members().await.unwrap().remove(0);
    assert_eq!((member.joined_by.as_str(), member.seed), ("kubernetes:prod:shoal:node", false));
    drop(node);
    // The token may be shown again, by other nodes too, and is not needed by whoever has joined.
    started(secured.by_account(other.path(), token.clone(), authority.clone()), &[]).connected().await;
    std::fs::remove_file(&token).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    started(secured.by_account(state.path(), token, authority), &[]).connected().await;
    assert_eq!(secured.identity.members().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_token_that_is_over_or_of_another_account_lets_nobody_in_and_a_new_one_is_read() {
    let secured = secured(DAY).await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let stale = secured.project("node", -60);
    let node = started(secured.by_account(one.path(), stale, secured.pinned()), &[]);
    let stranger = started(secured.by_account(two.path(), secured.project("default", 600), secured.pinned()), &[]);
    eventually("control refuses both", || secured.refused(Reason::BadToken) > 3).await;
    assert!(secured.identity.members().await.unwrap().is_empty());
    secured.project("node", 600);
    node.connected().await;
    assert!(!stranger.client.is_connected());
}

#[tokio::test]
async fn a_control_of_another_authority_does_not_see_the_token() {
    let (real, impostor) = (secured(DAY).await, secured(DAY).await);
    let state = tempfile::tempdir().unwrap();
    let lured = impostor.by_account(state.path(), real.project("node", 600), real.pinned());
    let node = started(lured, &[]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!node.client.is_connected());
    assert_eq!(impostor.refused(Reason::BadToken), 0, "the token was not shown to it");
}
