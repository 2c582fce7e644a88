//! Requests through the router, as any client would send them.

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request};
use serde_json::{Value, json};
use shoal_base::drain;
use tower::ServiceExt as _;

use super::*;
use crate::clusters;
use crate::nodes::{self, Registration, Role};
use crate::store::MemoryStore;
use crate::swarm::{self, Swarm};

struct Rest {
    router: Router,
    nodes: Arc<Nodes>,
    trigger: drain::Trigger,
}

async fn rest() -> Rest {
    let config = clusters::Config { default_cluster: "default".into() };
    let store = Arc::new(MemoryStore::default());
    let clusters = Arc::new(Clusters::open(store, &config, clusters::Metrics::default()).await.unwrap());
    let swarm = Arc::new(Swarm::new(swarm::Metrics::default()));
    let nodes = Nodes::new(nodes::Config::default(), clusters.watch(), swarm, nodes::Metrics::default());
    let nodes = Arc::new(nodes);
    let (trigger, drain) = drain::channel();
    tokio::spawn(nodes.clone().run(drain.clone()));
    let registry = Arc::new(Registry::new("shoal"));
    let router = router(Parts { clusters, nodes: nodes.clone(), registry, drain });
    Rest { router, nodes, trigger }
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
    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let (status, etag) = (response.status().as_u16(), header(header::ETAG));
        let kind = header(header::CONTENT_TYPE).unwrap_or_default();
        let text = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        Answer { status, etag, kind, text: String::from_utf8(text.to_vec()).unwrap() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn ask(&self, method: Method, path: &str, version: Option<&str>, body: &Value) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
        if let Some(version) = version {
            request = request.header(header::IF_MATCH, version);
        }
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
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
            role: Role::Node,
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
        (json!({"name": "b", "default": true}), vec!["default"]),
    ] {
        let refused = rest.ask(Method::POST, CLUSTERS, None, &body).await;
        let mut named = refused.faults();
        named.sort();
        assert_eq!((refused.status, named), (400, fields.into_iter().map(String::from).collect()), "{body}");
    }
    let unknown = rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idcs": "x"})).await;
    assert_eq!((unknown.status, unknown.faults()), (400, vec!["idcs".to_owned()]));
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
    let listed: Vec<_> = nodes["nodes"].as_array().unwrap().iter().map(|n| (&n["id"], &n["cluster"])).collect();
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
