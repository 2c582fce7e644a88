use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt as _;
use parking_lot::Mutex as Cell;
use serde_json::{Value, json};
use shoal_base::drain::{self, Trigger};
use tower::ServiceExt as _;

type Outcome = Result<(), Vec<String>>;

struct Fixture {
    router: Router,
    outcome: Arc<Cell<Outcome>>,
    probes: Arc<AtomicUsize>,
    end: Trigger,
}

impl Fixture {
    fn new() -> Self {
        let outcome = Arc::new(Cell::new(Ok(())));
        let probes = Arc::new(AtomicUsize::new(0));
        let ready: Ready = Arc::new({
            let (outcome, probes) = (Arc::clone(&outcome), Arc::clone(&probes));
            move || {
                probes.fetch_add(1, Ordering::Relaxed);
                let outcome = outcome.lock().clone();
                Box::pin(async move { outcome })
            }
        });
        let mut metrics = Registry::new("shoal");
        metrics.build_info("shoal-node", "0.0.0");
        let debug: Debug = Arc::new(|| Box::pin(async { json!({"flights": 2}) }));
        let (end, drain) = drain::channel();
        let router = router(Config::default(), Arc::new(metrics), ready, debug, drain);
        Self { router, outcome, probes, end }
    }

    async fn get(&self, path: &str) -> (StatusCode, String, String) {
        get_of(&self.router, path).await
    }
}

async fn get_of(router: &Router, path: &str) -> (StatusCode, String, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let kind = response.headers().get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap().to_owned());
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, kind.unwrap_or_default(), String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_asked_to_end_is_not_ready_although_its_last_probe_was_fine() {
    let fixture = Fixture::new();
    assert_eq!(fixture.get("/readyz").await.0, StatusCode::OK);
    fixture.end.fire();
    let (status, _, body) = fixture.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body, r#"{"ready":false,"reasons":["asked to end"]}"#);
    assert_eq!(fixture.get("/livez").await.0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn ready_follows_the_probe_and_gives_every_reason() {
    let fixture = Fixture::new();
    let (status, _, body) = fixture.get("/readyz").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, r#"{"ready":true}"#));

    *fixture.outcome.lock() = Err(vec!["store: disk is gone".to_owned(), "mirror: not listening".to_owned()]);
    tokio::time::advance(Duration::from_secs(1)).await;
    let (status, kind, body) = fixture.get("/readyz").await;
    assert_eq!((status, kind.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "application/json"));
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer, json!({"ready": false, "reasons": ["store: disk is gone", "mirror: not listening"]}));
    // A node that is not ready must not be restarted for it.
    assert_eq!(fixture.get("/livez").await.0, StatusCode::OK);

    *fixture.outcome.lock() = Ok(());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(fixture.get("/readyz").await.0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn asking_in_a_loop_does_not_probe_in_a_loop() {
    let fixture = Fixture::new();
    for _ in 0..100 {
        fixture.get("/readyz").await;
    }
    assert_eq!(fixture.probes.load(Ordering::Relaxed), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    fixture.get("/readyz").await;
    assert_eq!(fixture.probes.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_means_not_ready() {
    let ready: Ready = Arc::new(|| Box::pin(std::future::pending()));
    let debug: Debug = Arc::new(|| Box::pin(async { Value::Null }));
    let router = router(Config::default(), Arc::new(Registry::new("shoal")), ready, debug, drain::channel().1);
    let (status, _, body) = get_of(&router, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("took longer than 3s"), "{body}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_without_a_reason_is_still_not_ready() {
    let fixture = Fixture::new();
    *fixture.outcome.lock() = Err(Vec::new());
    assert_eq!(fixture.get("/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn metrics_and_debug_are_shown_and_nothing_else_is() {
    let fixture = Fixture::new();
    let (status, kind, body) = fixture.get("/metrics").await;
    assert_eq!((status, kind.as_str()), (StatusCode::OK, metrics::CONTENT_TYPE));
    assert!(body.contains("shoal_build_info{binary=\"shoal-node\""), "{body}");
    let (status, _, body) = fixture.get("/debug").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, r#"{"flights":2}"#));
    assert_eq!(fixture.get("/").await.0, StatusCode::NOT_FOUND);
}
