//! Requests through the router, as any client would send them.

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request};
use serde_json::{Value, json};
use shoal_base::drain;
use tower::ServiceExt as _;

use super::*;
use crate::clusters;
use crate::identity;
use crate::nodes::{self, Registration, Role};
use crate::preheat::{self, Preheats};
use crate::store::MemoryStore;
use crate::swarm::{self, Swarm};

mod bad_input;
mod changes;
mod described;
mod live;
mod preheats;

struct Rest {
    router: Router,
    identity: Arc<Identity>,
    described: described::Described,
    nodes: Arc<Nodes>,
    swarm: Arc<Swarm>,
    preheats: Arc<Preheats>,
    trigger: drain::Trigger,
    /// What requests show; empty: nothing.
    token: String,
    _dir: tempfile::TempDir,
}

const ADMIN: &str = "an admin's token that is long enough";

async fn rest() -> Rest {
    rest_on(Arc::new(MemoryStore::default())).await
}

async fn rest_on(store: Arc<MemoryStore>) -> Rest {
    let config = clusters::Config { default_cluster: "default".into() };
    let clusters = Arc::new(Clusters::open(store.clone(), &config, clusters::Metrics::default()).await.unwrap());
    let (access, _) = Access::open(store.clone(), Some(ADMIN)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let authority = identity::Authority::open(dir.path(), "shoal".parse().unwrap()).unwrap();
    let counted = identity::Metrics::default();
    let identity = Identity::open(identity::Config::default(), authority, store.clone(), counted).await.unwrap();
    let feed = Arc::new(Feed::default());
    let swarm = Arc::new(Swarm::new(swarm::Metrics::default()).followed(feed.clone()));
    // Nobody sends heartbeats here.
    let patient = nodes::Config { lease: Duration::from_secs(600), ..nodes::Config::default() };
    let watcher = Arc::new((swarm.clone(), feed.clone()));
    let nodes = Nodes::new(patient, clusters.watch(), watcher, nodes::Metrics::default());
    let nodes = Arc::new(nodes);
    let (trigger, drain) = drain::channel();
    tokio::spawn(nodes.clone().run(drain.clone()));
    tokio::spawn(feed.clone().run(&clusters, drain.clone()));
    let registry = Arc::new(Registry::new("shoal"));
    let access = Arc::new(access.followed(feed.clone()));
    let identity = Arc::new(identity.followed(feed.clone()));
    let shapes = Arc::default();
    let (nodes_of, swarm_of) = (nodes.clone(), swarm.clone());
    let preheats = Preheats::open(store, nodes.clone(), preheat::Metrics::default()).await.unwrap();
    preheats.followed_by(feed.clone());
    tokio::spawn(preheats.clone().run(drain.clone()));
    let parts = Parts {
        access,
        identity: Some(identity.clone()),
        clusters,
        nodes: nodes_of,
        swarm: swarm_of,
        preheats: preheats.clone(),
        feed,
        shapes,
        registry,
        drain,
    };
    let (router, described) = (router(parts), described::Described::new());
    Rest { router, identity, described, nodes, swarm, preheats, trigger, token: ADMIN.into(), _dir: dir }
}

/// By a key of its own.
fn signing_request() -> identity::SigningRequest {
    let pair = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&pair).unwrap();
    identity::SigningRequest::parse(request.der()).unwrap()
}

struct Answer {
    status: u16,
    etag: Option<String>,
    kind: String,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The fields that a problem names.
    fn faults(&self) -> Vec<String> {
        assert_eq!(self.kind, "application/problem+json", "{}", self.text);
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|fault| fault["field"].as_str().unwrap().to_owned()).collect()
    }
}

impl Rest {
    async fn send(&self, mut request: Request<Body>) -> Answer {
        if !self.token.is_empty() {
            let shown = format!("Bearer {}", self.token).parse().unwrap();
            request.headers_mut().insert(header::AUTHORIZATION, shown);
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let (status, etag) = (response.status().as_u16(), header(header::ETAG));
        let kind = header(header::CONTENT_TYPE).unwrap_or_default();
        let text = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let answer = Answer { status, etag, kind, text: String::from_utf8(text.to_vec()).unwrap() };
        self.described.check(&method, &path, &answer);
        answer
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn ask(&self, method: Method, path: &str, version: Option<&str>, body: &Value) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
        let changes = [Method::PUT, Method::PATCH, Method::DELETE].contains(request.method_ref().unwrap())
            || path.ends_with("/revoke");
        if let Some(version) = version.or(changes.then_some("*")) {
            request = request.header(header::IF_MATCH, version);
        }
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    /// Makes a node a member, by a key and a token of its own.
    async fn admit(&self, node: &str) {
        let new = identity::NewJoinToken { cluster: None, seed: false, life: Duration::from_secs(60), uses: 1 };
        let (_, token) = self.identity.make_token(new, "test").await.unwrap();
        self.identity.join(&token, node.parse().unwrap(), &signing_request()).await.unwrap();
    }

    fn join(&self, name: &str, ip: &str, idc: &str) {
        self.nodes.register(Registration {
            node: name.parse().unwrap(),
            instance: 1,
            name: format!("host-{name}"),
            version: "0.1.0".into(),
            facts: Facts::parse(ip, idc, "").unwrap(),
            peer_port: 5081,
            pin: None,
            bound: None,
            role: Role::Node,
            takes_orders: true,
        });
    }
}

const CLUSTERS: &str = "/api/v1/clusters";

#[tokio::test]
async fn a_cluster_is_made_read_changed_and_deleted() {
    let rest = rest().await;
    let body = json!({"name": "b", "idc": "west|east", "cidrs": ["10.1.2.3/16"]});
    let made = rest.ask(Method::POST, CLUSTERS, None, &body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.json()["cidrs"], json!(["10.1.0.0/16"]), "host bits are masked");
    let (etag, id) = (made.etag.clone().unwrap(), made.json()["id"].as_str().unwrap().to_owned());
    for path in [format!("{CLUSTERS}/b"), format!("{CLUSTERS}/{id}")] {
        let shown = rest.get(&path).await;
        assert_eq!((shown.status, shown.etag.as_deref()), (200, Some(etag.as_str())));
    }
    let path = format!("{CLUSTERS}/b");
    let edited = rest.ask(Method::PATCH, &path, Some(&etag), &json!({"idc": "north"})).await;
    assert_eq!((edited.status, edited.json()["idc"].as_str()), (200, Some("north")));
    assert_eq!(edited.json()["cidrs"], json!(["10.1.0.0/16"]), "what is not given stays");
    let late = rest.ask(Method::PATCH, &path, Some(&etag), &json!({"idc": "south"})).await;
    assert_eq!(late.status, 412, "two operators must not overwrite each other");
    let replaced = rest.ask(Method::PUT, &path, edited.etag.as_deref(), &json!({"name": "b", "location": "eu"})).await;
    assert_eq!((replaced.json()["idc"].as_str(), replaced.json()["location"].as_str()), (Some(""), Some("eu")));
    let gone = rest.ask(Method::DELETE, &path, None, &json!(null)).await;
    assert_eq!((gone.status, rest.get(&path).await.status), (204, 404));
}

#[tokio::test]
async fn what_is_wrong_is_named_by_field() {
    let rest = rest().await;
    for (body, fields) in [
        (json!({"name": "b", "cidrs": ["10.0.0.0/33", "nonsense"]}), vec!["cidrs[0]", "cidrs[1]"]),
        (json!({"name": "b", "idc": "a||b", "location": "x||y"}), vec!["idc", "location"]),
        (json!({"name": "DEFAULT"}), vec!["name"]),
    ] {
        let refused = rest.ask(Method::POST, CLUSTERS, None, &body).await;
        let mut named = refused.faults();
        named.sort();
        assert_eq!((refused.status, named), (400, fields.into_iter().map(String::from).collect()), "{body}");
    }
    let unknown = rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idcs": "x"})).await;
    assert_eq!((unknown.status, unknown.faults()), (400, vec!["idcs".to_owned()]));
    let known = "is not known; known are cidrs, default, idc, location, name";
    assert_eq!(unknown.json()["errors"][0]["reason"], known);
    let unknown = rest.get("/api/v1/explain?ip=10.0.0.1&idcs=x").await;
    assert_eq!(unknown.json()["errors"][0]["reason"], "is not known; known are idc, ip, location, pin");
    // In a set all of them at once: what is not known, of a wrong kind, or missing; then what scopes are refused for.
    let set = json!({"clusters": [{"name": "a", "cidr": ["10.0.0.0/8"]}, {"name": 7, "default": "yes"}, {"idc": "x"}]});
    for query in ["", "?dry_run=true"] {
        let refused = rest.ask(Method::PUT, &format!("{CLUSTERS}{query}"), None, &set).await;
        let mut named = refused.faults();
        named.sort();
        assert_eq!(named, ["clusters[0].cidr", "clusters[1].default", "clusters[1].name", "clusters[2].name"]);
        assert!(refused.text.contains(&format!("clusters[0].cidr: {known}")), "{}", refused.text);
    }
    let set = json!({"clusters": [
        {"name": "a", "default": true, "idc": "x||y", "cidrs": ["10.0.0.0/33", "10.0.0.0/8", "z"]},
        {"name": "b", "default": true, "location": "|", "cidrs": ["10.0.0.0/8"]},
        {"name": "A"},
    ]});
    let refused = rest.ask(Method::PUT, CLUSTERS, None, &set).await;
    let mut named = refused.faults();
    named.sort();
    assert_eq!(named, ["cidrs", "cidrs[0]", "cidrs[2]", "default", "idc", "location", "name"], "{}", refused.text);
    let one = json!({"name": " ", "idc": "x||y", "location": "|", "cidrs": ["10.0.0.0/33", "z"]});
    let refused = rest.ask(Method::PUT, &format!("{CLUSTERS}/default"), None, &one).await;
    let mut named = refused.faults();
    named.sort();
    assert_eq!(named, ["cidrs[0]", "cidrs[1]", "idc", "location", "name"], "{}", refused.text);
    let patch = rest.ask(Method::PATCH, &format!("{CLUSTERS}/default"), Some("7"), &json!({})).await;
    assert_eq!((patch.status, patch.faults()), (400, vec!["If-Match".to_owned()]));
    let explain = rest.get("/api/v1/explain?ip=nonsense&idc=a%7Cb&location=x%7C%7Cy").await;
    let mut named = explain.faults();
    named.sort();
    assert_eq!((explain.status, named), (400, ["idc", "ip", "location"].map(String::from).to_vec()));
    assert_eq!(rest.get("/api/v1/explain?ip=10.0.0.1&colour=red").await.status, 400);
    assert_eq!(rest.get("/api/v1/explain").await.status, 400);
}

#[tokio::test]
async fn a_body_that_a_browser_could_send_unasked_is_refused() {
    let rest = rest().await;
    let request = Request::post(CLUSTERS).header(header::CONTENT_TYPE, "text/plain");
    let refused = rest.send(request.body(Body::from(r#"{"name":"b"}"#)).unwrap()).await;
    assert_eq!(refused.status, 415);
    assert_eq!(rest.get(&format!("{CLUSTERS}/b")).await.status, 404);
    let large = json!({"name": "b", "idc": "x".repeat(2 << 20)});
    assert_eq!(rest.ask(Method::POST, CLUSTERS, None, &large).await.status, 413);
}

#[tokio::test]
async fn a_declared_set_is_applied_once() {
    let rest = rest().await;
    let set = json!({"clusters": [{"name": "default", "default": true}, {"name": "b", "idc": "cluster-2"}]});
    let dry = rest.ask(Method::PUT, &format!("{CLUSTERS}?dry_run=true"), None, &set).await;
    assert_eq!(dry.json()["changes"][0]["action"], "create");
    let first = rest.ask(Method::PUT, CLUSTERS, None, &set).await;
    assert_eq!(first.json()["changes"].as_array().unwrap().len(), 1, "the dry run made nothing: {}", first.text);
    let second = rest.ask(Method::PUT, CLUSTERS, None, &set).await;
    assert_eq!(second.json()["changes"], json!([]));
}

#[tokio::test]
async fn nodes_are_listed_with_their_cluster_and_keep_it_from_being_deleted() {
    let rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "cluster-2"})).await;
    rest.join("n1", "10.0.0.1", "cluster-2");
    rest.join("n2", "10.0.0.2", "");
    let nodes = rest.get("/api/v1/nodes").await.json();
    let listed: Vec<_> = nodes["items"].as_array().unwrap().iter().map(|n| (&n["id"], &n["cluster"])).collect();
    assert_eq!(listed, [(&json!("n1"), &json!("b")), (&json!("n2"), &json!("default"))]);
    let refused = rest.ask(Method::DELETE, &format!("{CLUSTERS}/b"), None, &json!(null)).await;
    assert_eq!(refused.status, 409);
    assert!(refused.json()["detail"].as_str().unwrap().contains("force"));
    assert_eq!(rest.ask(Method::DELETE, &format!("{CLUSTERS}/b?force=true"), None, &json!(null)).await.status, 204);
}

#[tokio::test]
async fn explain_says_what_matched_and_what_lost() {
    let rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "cidrs": ["10.1.0.0/16"]})).await;
    let said = rest.get("/api/v1/explain?ip=10.1.2.3").await.json();
    assert_eq!(said["cluster"], "b");
    assert!(said["reason"].as_str().unwrap().contains("10.1.0.0/16"), "{said}");
    assert_eq!(rest.get("/api/v1/explain?ip=192.0.2.1").await.json()["cluster"], "default");
    let pinned = rest.get("/api/v1/explain?ip=10.1.2.3&pin=nowhere").await.json();
    assert_eq!(pinned["cluster"], Value::Null);
}

#[tokio::test]
async fn health_means_it() {
    let rest = rest().await;
    assert_eq!((rest.get("/livez").await.status, rest.get("/readyz").await.status), (200, 200));
    assert_eq!(rest.get("/nothing").await.status, 404);
    assert_eq!(rest.ask(Method::DELETE, "/api/v1/nodes", None, &json!(null)).await.status, 405);
    rest.trigger.fire();
    assert_eq!((rest.get("/livez").await.status, rest.get("/readyz").await.status), (200, 503));
}

#[tokio::test]
async fn a_path_that_is_no_text_is_refused_as_a_problem() {
    let rest = rest().await;
    for method in [Method::GET, Method::DELETE, Method::PATCH] {
        let answer = rest.ask(method, "/api/v1/clusters/%00%ff", None, &json!({})).await;
        assert_eq!(answer.status, 400);
        assert!(answer.faults().is_empty(), "{}", answer.text);
    }
}

/// Every route below `/api`, and the least that it needs.
const ROUTES: [(Method, &str, &str); 28] = [
    (Method::GET, CLUSTERS, "viewer"),
    (Method::POST, CLUSTERS, "operator"),
    (Method::PUT, CLUSTERS, "operator"),
    (Method::GET, "/api/v1/clusters/default", "viewer"),
    (Method::PUT, "/api/v1/clusters/default", "operator"),
    (Method::PATCH, "/api/v1/clusters/default", "operator"),
    (Method::DELETE, "/api/v1/clusters/default", "operator"),
    (Method::GET, "/api/v1/nodes", "viewer"),
    (Method::GET, "/api/v1/explain?ip=10.0.0.1", "viewer"),
    (Method::GET, "/api/v1/nodes/x", "viewer"),
    (Method::GET, "/api/v1/blobs", "viewer"),
    (Method::GET, "/api/v1/blobs/x", "viewer"),
    (Method::GET, "/api/v1/blobs/x/holders", "viewer"),
    (Method::GET, "/api/v1/flights", "viewer"),
    (Method::POST, "/api/v1/images/share", "viewer"),
    (Method::GET, "/api/v1/join-tokens/x", "operator"),
    (Method::GET, "/api/v1/members/x", "viewer"),
    (Method::GET, "/api/v1/api-tokens/x", "admin"),
    (Method::DELETE, "/api/v1/api-tokens/x", "admin"),
    (Method::GET, "/api/v1/join-tokens", "operator"),
    (Method::POST, "/api/v1/join-tokens", "operator"),
    (Method::DELETE, "/api/v1/join-tokens/x", "operator"),
    (Method::GET, "/api/v1/members", "viewer"),
    (Method::POST, "/api/v1/members/x/revoke", "operator"),
    (Method::GET, "/api/v1/ca", "viewer"),
    (Method::GET, "/api/v1/api-tokens", "admin"),
    (Method::POST, "/api/v1/api-tokens", "admin"),
    (Method::GET, "/api/v1/audit", "admin"),
];

impl Rest {
    async fn token(&self, name: &str, role: &str, clusters: Option<&[&str]>) -> String {
        let body = json!({ "name": name, "role": role, "clusters": clusters });
        let made = self.ask(Method::POST, "/api/v1/api-tokens", None, &body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        made.json()["token"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn nothing_below_api_is_answered_without_a_token_and_health_is() {
    let mut rest = rest().await;
    for token in ["", "wrong", &ADMIN[1..]] {
        rest.token = token.into();
        for (method, path, _) in ROUTES {
            let answer = rest.ask(method.clone(), path, None, &json!({})).await;
            assert_eq!(answer.status, 401, "{method} {path} with {token:?}");
            assert_eq!(answer.kind, "application/problem+json");
            assert!(!answer.text.contains(token) || token.is_empty(), "{}", answer.text);
        }
        assert_eq!(rest.get("/livez").await.status, 200);
        assert_eq!(rest.get("/metrics").await.status, 200);
        assert_eq!(rest.get("/readyz").await.status, 200);
    }
}

#[tokio::test]
async fn a_role_may_do_what_it_says_and_no_more() {
    let mut rest = rest().await;
    let mut tokens = Vec::new();
    for role in ["viewer", "operator", "admin"] {
        tokens.push((role, rest.token(&format!("one {role}"), role, None).await));
    }
    let rank = |role: &str| ["viewer", "operator", "admin"].iter().position(|one| *one == role);
    for (role, token) in tokens {
        rest.token = token;
        for (method, path, least) in ROUTES {
            // A body that is refused: it must not be looked at before the role is.
            let answer = rest.ask(method.clone(), path, None, &json!({ "nonsense": 1 })).await;
            assert_eq!(answer.status == 403, rank(role) < rank(least), "{method} {path} as {role}: {}", answer.text);
            assert_ne!(answer.status, 401);
        }
    }
}

#[tokio::test]
async fn a_token_that_is_kept_to_a_cluster_reaches_no_other() {
    let mut rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "west"})).await;
    rest.join("n1", "10.0.0.1", "west");
    rest.join("n2", "10.0.0.2", "");
    rest.token = rest.token("b only", "operator", Some(&["b"])).await;
    assert_eq!(rest.get("/api/v1/whoami").await.json()["clusters"], json!(["b"]));
    let names = |answer: &Answer, list: &str, key: &str| -> Vec<Value> {
        answer.json()[list].as_array().unwrap().iter().map(|one| one[key].clone()).collect()
    };
    assert_eq!(names(&rest.get(CLUSTERS).await, "items", "name"), ["b"]);
    assert_eq!(names(&rest.get("/api/v1/nodes").await, "items", "id"), ["n1"]);
    assert_eq!(rest.get("/api/v1/clusters/default").await.status, 404);
    for (method, path, body) in [
        (Method::POST, CLUSTERS, json!({"name": "c"})),
        (Method::PUT, CLUSTERS, json!({"clusters": []})),
        (Method::PATCH, "/api/v1/clusters/default", json!({"idc": "x"})),
        (Method::DELETE, "/api/v1/clusters/default", json!(null)),
        (Method::POST, "/api/v1/join-tokens", json!({})),
        (Method::POST, "/api/v1/join-tokens", json!({"cluster": "default"})),
    ] {
        assert_eq!(rest.ask(method.clone(), path, None, &body).await.status, 403, "{method} {path} {body}");
    }
    assert_eq!(rest.ask(Method::PATCH, "/api/v1/clusters/b", None, &json!({"idc": "west|east"})).await.status, 200);
    let made = rest.ask(Method::POST, "/api/v1/join-tokens", None, &json!({"cluster": "b"})).await;
    assert_eq!((made.status, made.json()["cluster"].as_str()), (201, Some("b")));
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_with_who_and_what() {
    let rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "west"})).await;
    rest.ask(Method::PATCH, "/api/v1/clusters/b", None, &json!({"idc": "east"})).await;
    rest.ask(Method::DELETE, "/api/v1/clusters/b", None, &json!(null)).await;
    let made = rest.ask(Method::POST, "/api/v1/join-tokens", None, &json!({"ttl": "5m", "uses": 3})).await.json();
    let id = made["id"].as_str().unwrap();
    assert_eq!(rest.ask(Method::DELETE, &format!("/api/v1/join-tokens/{id}"), None, &json!(null)).await.status, 204);
    let log = rest.get("/api/v1/audit").await;
    assert!(!log.text.contains(made["token"].as_str().unwrap()));
    let log = log.json();
    let entries: Vec<_> =
        log["items"].as_array().unwrap().iter().map(|e| (&e["who"], &e["action"], &e["subject"])).collect();
    let of = |action: &str, subject: &str| (json!("admin"), json!(action), json!(subject));
    let expected = [
        of("join-token.remove", id),
        of("join-token.create", id),
        of("cluster.delete", "b"),
        of("cluster.update", "b"),
        of("cluster.create", "b"),
    ];
    for (entry, expected) in entries.iter().zip(&expected) {
        assert_eq!((entry.0, entry.1, entry.2), (&expected.0, &expected.1, &expected.2));
    }
    let update = &log["items"][3];
    assert_eq!((&update["before"]["idc"], &update["after"]["idc"]), (&json!("west"), &json!("east")));
    let oldest = log["items"].as_array().unwrap().last().unwrap();
    assert_eq!((&oldest["who"], &oldest["subject"]), (&json!("shoal-control"), &json!("default")));
    // In pages.
    let first = rest.get("/api/v1/audit?limit=2").await.json();
    let next = rest.get(&format!("/api/v1/audit?limit=2&before={}", first["items"][1]["seq"])).await.json();
    assert_eq!(next["items"][0], log["items"][2]);
    let next = rest.get(&format!("/api/v1/audit?limit=2&after={}", first["next"].as_str().unwrap())).await.json();
    assert_eq!(next["items"][0], log["items"][2]);
    assert_eq!(rest.get("/api/v1/audit?limit=0").await.faults(), ["limit"]);
    // Narrowed.
    let count = log["items"].as_array().unwrap().len();
    let of = async |query: &str| rest.get(&format!("/api/v1/audit?{query}")).await.json()["items"].clone();
    for entry in of("who=shoal-control").await.as_array().unwrap() {
        assert_eq!(entry["who"], "shoal-control");
    }
    assert_eq!(of("action=cluster.create&subject=default").await.as_array().unwrap().len(), 1);
    assert_eq!(of("who=nobody").await, json!([]));
    assert_eq!(of("since=2020-01-01T00:00:00Z").await.as_array().unwrap().len(), count);
    assert_eq!(of("until=2020-01-01T01:00:00%2B01:00").await, json!([]));
    let last = log["items"][0]["at"].as_str().unwrap();
    assert_eq!(of(&format!("since={last}&until=2999-01-01T00:00:00Z")).await[0], log["items"][0]);
    let first = rest.get("/api/v1/audit?who=admin&limit=1").await.json();
    let next = rest.get(&format!("/api/v1/audit?who=admin&limit=1&after={}", first["next"].as_str().unwrap())).await;
    assert_eq!(next.json()["items"][0], of("who=admin").await[1], "the next page is narrowed too");
    for (query, fields) in [
        ("since=yesterday", vec!["since"]),
        ("since=yesterday&until=2026-02-30T00:00:00Z", vec!["since", "until"]),
        ("since=2026-01-02T00:00:00Z&until=2026-01-02T00:00:00Z", vec!["until"]),
    ] {
        let refused = rest.get(&format!("/api/v1/audit?{query}")).await;
        assert_eq!(
            (refused.status, refused.faults()),
            (400, fields.into_iter().map(String::from).collect()),
            "{query}"
        );
    }
}

#[tokio::test]
async fn tokens_are_narrowed_on_the_server() {
    let rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b"})).await;
    for body in [json!({"cluster": "b"}), json!({"role": "seed"}), json!({})] {
        assert_eq!(rest.ask(Method::POST, "/api/v1/join-tokens", None, &body).await.status, 201);
    }
    rest.token("b viewer", "viewer", Some(&["b"])).await;
    rest.token("default viewer", "viewer", Some(&["default"])).await;
    let over = json!({"name": "over", "role": "operator", "ttl": "1s"});
    assert_eq!(rest.ask(Method::POST, "/api/v1/api-tokens", None, &over).await.status, 201);
    // Tokens end by the clock of the day, which nobody can pause.
    for _ in 0..100 {
        if rest.get("/api/v1/api-tokens?valid=false").await.json()["total"] == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (path, count) in [
        ("join-tokens?cluster=b", 1),
        ("join-tokens?cluster=default", 0),
        ("join-tokens?role=node", 2),
        ("join-tokens?role=seed&valid=true", 1),
        ("join-tokens?valid=false", 0),
        ("api-tokens?name=b", 1),
        ("api-tokens?role=viewer", 2),
        ("api-tokens?cluster=b", 3),
        ("api-tokens?valid=false", 1),
        ("api-tokens?valid=true&role=operator", 0),
        ("members?name=x", 0),
    ] {
        let page = rest.get(&format!("/api/v1/{path}")).await.json();
        let found = page["items"].as_array().unwrap_or_else(|| panic!("{path}: {page}")).len();
        assert_eq!((found, &page["total"]), (count, &json!(count)), "{path}: {page}");
    }
    for (path, field) in [
        ("join-tokens?cluster=nowhere", "cluster"),
        ("join-tokens?valid=perhaps", "valid"),
        ("api-tokens?role=king", "role"),
        ("api-tokens?cluster=nowhere", "cluster"),
        ("members?cluster=nowhere", "cluster"),
        ("members?role=king", "role"),
    ] {
        assert_eq!(rest.get(&format!("/api/v1/{path}")).await.faults(), [field], "{path}");
    }
}

#[tokio::test]
async fn bad_tokens_are_refused_by_field() {
    let rest = rest().await;
    for (path, body, field) in [
        ("/api/v1/join-tokens", json!({"uses": 0}), "uses"),
        ("/api/v1/join-tokens", json!({"ttl": "0s"}), "ttl"),
        ("/api/v1/join-tokens", json!({"ttl": "nonsense"}), "ttl"),
        ("/api/v1/join-tokens", json!({"cluster": "nowhere"}), "cluster"),
        ("/api/v1/join-tokens", json!({"role": "king"}), "role"),
        ("/api/v1/api-tokens", json!({"name": "", "role": "viewer"}), "name"),
        ("/api/v1/api-tokens", json!({"name": "admin", "role": "viewer"}), "name"),
        ("/api/v1/api-tokens", json!({"name": "x", "role": "viewer", "ttl": "0s"}), "ttl"),
        ("/api/v1/api-tokens", json!({"name": "x", "role": "viewer", "ttl": "8785h"}), "ttl"),
        ("/api/v1/api-tokens", json!({"name": "node n1", "role": "viewer"}), "name"),
        ("/api/v1/api-tokens", json!({"name": "shoal-control", "role": "viewer"}), "name"),
        ("/api/v1/api-tokens", json!({"name": "..", "role": "viewer"}), "name"),
        ("/api/v1/api-tokens", json!({"name": "x", "role": "king"}), "role"),
        ("/api/v1/api-tokens", json!({"name": "x", "role": "viewer", "clusters": []}), "clusters"),
        ("/api/v1/api-tokens", json!({"name": "x", "role": "viewer", "clusters": ["nowhere"]}), "clusters[0]"),
    ] {
        let refused = rest.ask(Method::POST, path, None, &body).await;
        assert_eq!(
            (refused.status, refused.faults()),
            (400, vec![field.to_owned()]),
            "{path} {body}: {}",
            refused.text
        );
    }
    let several = json!({"name": "x", "role": "viewer", "clusters": ["nowhere", "default", "nor here"]});
    let refused = rest.ask(Method::POST, "/api/v1/api-tokens", None, &several).await;
    assert_eq!(refused.faults(), ["clusters[0]", "clusters[2]"], "all of them at once");
    let last = rest.ask(Method::DELETE, "/api/v1/api-tokens/admin", None, &json!(null)).await;
    assert_eq!((last.status, last.faults()), (400, vec!["token".to_owned()]));
    assert_eq!(rest.ask(Method::DELETE, "/api/v1/api-tokens/nobody", None, &json!(null)).await.status, 404);
    assert_eq!(rest.ask(Method::DELETE, "/api/v1/members/nobody", None, &json!(null)).await.status, 404);
}
