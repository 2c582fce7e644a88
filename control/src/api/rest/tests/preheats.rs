//! Preheats as operators make and see them.

use super::*;
use crate::preheat::{Blob, Said, State as How};

const PREHEATS: &str = "/api/v1/preheats";

fn said(state: How, bytes: u64) -> Said {
    let digest = |byte| shoal_proto::Digest::from_bytes([byte; 32]);
    Said { state, refused: false, manifest: Some(digest(1)), blobs: vec![(Blob { digest: digest(2), size: 9 }, bytes)] }
}

#[tokio::test]
async fn a_preheat_is_made_seen_taken_back_and_tried_again() {
    let rest = rest().await;
    rest.join("n1", "10.0.0.1", "");
    rest.join("n2", "10.0.0.2", "");
    let body = json!({"image": "registry.test/app:1", "cluster": "default", "platforms": ["linux/amd64"],
        "login": {"user": "u", "password": "planted-secret"}});
    let made = rest.ask(Method::POST, PREHEATS, None, &body).await;
    assert_eq!((made.status, made.etag.as_deref()), (201, Some("\"1\"")), "{}", made.text);
    assert!(!made.text.contains("planted-secret"));
    let made = made.json();
    let one = format!("{PREHEATS}/{}", made["id"].as_str().unwrap());
    assert_eq!((&made["image"], &made["state"]), (&json!("registry.test/app:1"), &json!("waiting")));
    assert_eq!(made["nodes"].as_array().unwrap().len(), 2);
    let order = format!("{}/1", made["id"].as_str().unwrap());
    rest.preheats.heard(&"n1".parse().unwrap(), &order, said(How::Running, 4));
    let shown = rest.get(&one).await.json();
    assert_eq!((&shown["state"], &shown["bytes"]), (&json!("running"), &json!(9)));
    assert_eq!(shown["nodes"][0]["blobs"], json!([4]));
    rest.preheats.heard(&"n1".parse().unwrap(), &order, said(How::Failed("no room".into()), 4));
    let (cancel, retry) = (format!("{one}/cancel"), format!("{one}/retry"));
    // Two people decide at once, and words of nodes are no decision.
    assert_eq!(rest.ask(Method::POST, &cancel, None, &Value::Null).await.status, 428);
    assert_eq!(rest.ask(Method::POST, &cancel, Some("\"7\""), &Value::Null).await.status, 412);
    let cancelled = rest.ask(Method::POST, &cancel, Some("\"1\""), &Value::Null).await;
    assert_eq!((cancelled.status, cancelled.etag.as_deref()), (200, Some("\"2\"")));
    assert_eq!(cancelled.json()["state"], "cancelled");
    assert_eq!(rest.ask(Method::POST, &cancel, Some("*"), &Value::Null).await.status, 409);
    assert_eq!(rest.ask(Method::POST, &retry, Some("\"1\""), &json!({})).await.status, 412);
    assert_eq!(rest.ask(Method::POST, &retry, None, &json!({})).await.status, 428);
    // A body is needed by nothing but a login.
    let bare = Request::post(&retry).header(header::IF_MATCH, "\"2\"").body(Body::empty()).unwrap();
    let again = rest.send(bare).await;
    assert_eq!((again.status, &again.json()["nodes"][0]["attempt"]), (200, &json!(2)), "{}", again.text);
    assert_eq!((&again.json()["version"], again.etag.as_deref()), (&json!(3), Some("\"3\"")));
    assert_eq!(rest.ask(Method::POST, &retry, Some("*"), &json!({})).await.status, 409);
    assert_eq!(rest.get(&format!("{PREHEATS}/nothing")).await.status, 404);
    let audit = rest.get("/api/v1/audit").await;
    assert!(audit.text.contains("preheat.cancel") && !audit.text.contains("planted-secret"));
}

#[tokio::test]
async fn preheats_come_page_by_page_and_by_state_and_cluster() {
    let rest = rest().await;
    rest.join("n1", "10.0.0.1", "");
    let mut made = Vec::new();
    for number in 0..5 {
        let body = json!({"image": format!("registry.test/app:{number}"), "cluster": "default", "percent": 50});
        let one = rest.ask(Method::POST, PREHEATS, None, &body).await.json();
        made.push(one["id"].as_str().unwrap().to_owned());
    }
    made.reverse();
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = rest.get(&format!("{PREHEATS}?limit=2{after}")).await.json();
        seen.extend(page["items"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, made);
    rest.ask(Method::POST, &format!("{PREHEATS}/{}/cancel", made[3]), Some("*"), &Value::Null).await;
    let cancelled = rest.get(&format!("{PREHEATS}?state=cancelled&cluster=default")).await.json();
    assert_eq!(cancelled["items"].as_array().unwrap().len(), 1);
    assert_eq!(cancelled["items"][0]["id"], made[3].as_str());
    assert_eq!(cancelled["items"][0]["nodes"], json!({"all": 1, "done": 0, "failed": 0}));
    // Which of them wait and which run is not on disk.
    rest.preheats.heard(&"n1".parse().unwrap(), &format!("{}/1", made[1]), said(How::Running, 4));
    let of = async |query: &str| -> Vec<String> {
        let page = rest.get(&format!("{PREHEATS}?{query}")).await.json();
        page["items"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(of("state=running").await, [made[1].as_str()]);
    assert_eq!(of("state=waiting").await, [made[0].as_str(), &made[2], &made[4]]);
    assert_eq!(of("state=waiting&limit=2").await, [made[0].as_str(), &made[2]]);
    assert_eq!(of("state=done").await, [""; 0]);
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "b"})).await;
    assert_eq!(rest.get(&format!("{PREHEATS}?cluster=b")).await.json()["items"], json!([]));
    assert_eq!(rest.get(&format!("{PREHEATS}?cluster=none")).await.faults(), ["cluster"]);
}

#[tokio::test]
async fn what_was_meant_for_a_cluster_that_is_gone_is_not_tried_again() {
    let rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "b"})).await;
    rest.join("n1", "10.0.0.1", "b");
    let made = rest.ask(Method::POST, PREHEATS, None, &json!({"image": "app", "cluster": "b"})).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let one = format!("{PREHEATS}/{}", made.json()["id"].as_str().unwrap());
    assert_eq!(rest.ask(Method::POST, &format!("{one}/cancel"), Some("*"), &Value::Null).await.status, 200);
    let before = rest.get(&one).await.json();
    assert_eq!(rest.ask(Method::DELETE, &format!("{CLUSTERS}/b?force=true"), None, &Value::Null).await.status, 204);
    let refused = rest.ask(Method::POST, &format!("{one}/retry"), Some("*"), &json!({})).await;
    assert_eq!(refused.status, 409, "{}", refused.text);
    assert!(refused.text.contains("its cluster b is gone"), "{}", refused.text);
    let after = rest.get(&one).await.json();
    assert_eq!((&after["version"], &after["state"]), (&before["version"], &json!("cancelled")));
    assert_eq!(after["nodes"][0]["attempt"], 1);
}

#[tokio::test]
async fn a_whole_number_is_taken_however_it_is_written() {
    let rest = rest().await;
    rest.join("n1", "10.0.0.1", "");
    let ask = |percent: &str| {
        let body = format!(r#"{{"image": "app", "cluster": "default", "percent": {percent}}}"#);
        let request = Request::post(PREHEATS).header(header::CONTENT_TYPE, "application/json");
        request.body(Body::from(body)).unwrap()
    };
    for percent in ["20.0", "2e1", "20"] {
        let made = rest.send(ask(percent)).await;
        assert_eq!(made.status, 201, "{percent}: {}", made.text);
        assert_eq!(made.json()["target"], "20 % of the nodes");
    }
    let refused = rest.send(ask("20.5")).await;
    assert_eq!((refused.status, refused.faults()), (400, vec!["percent".to_owned()]));
    assert!(refused.text.contains("is 20.5") && refused.text.contains("whole number"), "{}", refused.text);
}

#[tokio::test]
async fn what_is_wrong_with_a_preheat_is_named() {
    let rest = rest().await;
    let cases = [
        (json!({"image": "a b", "cluster": "default"}), "image"),
        (json!({"image": "app", "cluster": "nowhere"}), "cluster"),
        (json!({"image": "app", "cluster": "default", "platforms": ["linux"]}), "platforms"),
        (json!({"image": "app", "cluster": "default", "percent": 0}), "percent"),
        (json!({"image": "app", "cluster": "default", "percent": 5, "seeds": true}), "percent"),
        (json!({"image": "app", "cluster": "default", "percent": 5, "nodes": ["n1"]}), "nodes"),
        (json!({"image": "app", "cluster": "default", "nodes": []}), "nodes"),
        (json!({"image": "app", "cluster": "default", "login": {"user": "a:b", "password": ""}}), "login.user"),
        (json!({"image": "app", "cluster": "default", "login": {"user": "", "password": ""}}), "login.user"),
        (json!({"image": "app", "cluster": "default", "more": 1}), "more"),
        (json!({"image": "app", "cluster": "full", "seeds": true}), "seeds"),
        (json!({"image": "app", "cluster": "full", "nodes": ["n1", "n2"]}), "nodes[1]"),
    ];
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "full", "idc": "full"})).await;
    rest.join("n1", "10.0.0.1", "full");
    for (body, field) in cases {
        let refused = rest.ask(Method::POST, PREHEATS, None, &body).await;
        assert_eq!((refused.status, refused.faults()), (400, vec![field.to_owned()]), "{body}: {}", refused.text);
    }
    // There is nobody to fetch it.
    let nobody = rest.ask(Method::POST, PREHEATS, None, &json!({"image": "app", "cluster": "default"})).await;
    assert_eq!(nobody.status, 409, "{}", nobody.text);
}

#[tokio::test]
async fn i9_what_stands_in_place_of_a_login_is_not_quoted() {
    let rest = rest().await;
    rest.join("n1", "10.0.0.1", "");
    let made = rest.ask(Method::POST, PREHEATS, None, &json!({"image": "app", "cluster": "default"})).await.json();
    let retry = format!("{PREHEATS}/{}/retry", made["id"].as_str().unwrap());
    let secret = "1234567890";
    let long = format!("{secret}{}", "x".repeat(4800));
    let user = |user: Value| json!({"user": user, "password": "p"});
    let cases = [
        (json!({"user": "ci", "password": 1_234_567_890}), "login.password", "must be a text"),
        (json!({"user": "ci", "password": long}), "login.password", "longer than 4096"),
        (json!({"user": "ci", "password": {"is": [secret]}}), "login.password", "must be a text"),
        (user(json!([secret])), "login.user", "must be a text"),
        (user(json!(long)), "login.user", "longer than 4096"),
        (json!(format!("ci:{secret}")), "login", "must be an object"),
        (json!(["ci", secret]), "login", "must be an object"),
        (json!({"user": format!("ci:{secret}"), "password": ""}), "login.user", "has a colon"),
    ];
    for (login, field, wanted) in cases {
        for path in [PREHEATS, &retry] {
            let mut body = json!({"login": login});
            if path == PREHEATS {
                body["image"] = json!("app");
                body["cluster"] = json!("default");
            }
            let refused = rest.ask(Method::POST, path, Some("*"), &body).await;
            assert_eq!((refused.status, refused.faults()), (400, vec![field.to_owned()]), "{path} {}", refused.text);
            assert!(!refused.text.contains(secret), "{path}: {}", refused.text);
            assert!(refused.json()["detail"].as_str().unwrap().contains(wanted), "{path}: {}", refused.text);
        }
    }
    // The whole of a wrong kind, with a login in it or being one; what is no secret is still told.
    for body in [json!([{"login": {"user": "ci", "password": secret}}]), json!(format!("ci:{secret}"))] {
        let refused = rest.ask(Method::POST, PREHEATS, None, &body).await;
        assert_eq!(refused.status, 400);
        assert!(!refused.text.contains(secret), "{}", refused.text);
    }
    let body = json!({"image": "app", "cluster": "default", "percent": 1234});
    assert!(rest.ask(Method::POST, PREHEATS, None, &body).await.text.contains("1234"));
}
