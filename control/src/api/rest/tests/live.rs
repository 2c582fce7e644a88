//! What lives in memory: nodes, blobs, flights, shares of images, and events.

use futures::StreamExt as _;
use shoal_proto::Digest;

use super::*;
use crate::preheat::{Said, State as How};
use crate::swarm::{Announced, Ask, Grant, Meta, Signature, Tell};

const MIB: u64 = 1 << 20;

fn digest(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

impl Rest {
    fn holds(&self, node: &str, blobs: &[(u8, u64)]) {
        let meta = |size| Meta { size, root: [1; 32], media_type: "application/octet-stream".into() };
        let held = blobs.iter().map(|(n, size)| (digest(*n), meta(*size), Signature::new())).collect();
        self.swarm.announce(&node.parse().unwrap(), Announced { held, ..Announced::default() });
    }

    /// Begins a flight that has so many blocks.
    fn flies(&self, node: &str, n: u8, blocks: u32) -> crate::swarm::FinderId {
        let ask = Ask {
            digest: digest(n),
            size: Some(8 * MIB),
            registry: "r.example".into(),
            repository: "app".into(),
            kind: shoal_proto::Kind::Blob,
            may_read_origin: true,
            blocks,
            permit: Grant::default(),
            runs: true,
        };
        self.swarm.find(node.parse().unwrap(), ask).0
    }

    /// All items of a list, in pages of that size.
    async fn all(&self, path: &str, limit: u32) -> Vec<Value> {
        let (mut items, mut after) = (Vec::new(), String::new());
        let join = if path.contains('?') { '&' } else { '?' };
        loop {
            let page = self.get(&format!("{path}{join}limit={limit}{after}")).await;
            assert_eq!(page.status, 200, "{}", page.text);
            let page = page.json();
            let these = page["items"].as_array().unwrap();
            assert!(these.len() <= limit as usize);
            items.extend(these.clone());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return items,
            }
        }
    }
}

fn texts(items: &[Value], key: &str) -> Vec<String> {
    items.iter().map(|item| item[key].as_str().unwrap_or("null").to_owned()).collect()
}

#[tokio::test]
async fn lists_come_in_pages_and_are_the_same_whatever_their_size() {
    let rest = rest().await;
    for n in 0..7 {
        rest.ask(Method::POST, CLUSTERS, None, &json!({"name": format!("c{n}"), "idc": format!("i{n}")})).await;
        rest.join(&format!("n{n}"), &format!("10.0.0.{n}"), &format!("i{}", n % 3));
        rest.holds(&format!("n{n}"), &[(n, MIB), (n + 100, MIB)]);
        rest.flies(&format!("n{n}"), 50 + n % 2, 0);
        rest.ask(Method::POST, "/api/v1/join-tokens", None, &json!({})).await;
        rest.token(&format!("t{n}"), "viewer", None).await;
    }
    for (path, least) in [
        (CLUSTERS, 8),
        ("/api/v1/nodes", 7),
        ("/api/v1/blobs", 14),
        ("/api/v1/flights", 7),
        ("/api/v1/join-tokens", 7),
        ("/api/v1/api-tokens", 8),
        ("/api/v1/audit", 22),
        ("/api/v1/members", 0),
        (&format!("/api/v1/blobs/{}/holders", digest(3)), 1),
    ] {
        // Only what does not change with the time is compared.
        let strip = |items: Vec<Value>| {
            let strip = |mut item: Value| {
                item.as_object_mut().unwrap().remove("heartbeat_age_seconds");
                item.to_string()
            };
            items.into_iter().map(strip).collect::<Vec<_>>()
        };
        let whole = strip(rest.all(path, 1000).await);
        assert!(whole.len() >= least, "{path}: {}", whole.len());
        for limit in [1, 3, whole.len().max(1) as u32] {
            assert_eq!(strip(rest.all(path, limit).await), whole, "{path} by {limit}");
        }
        for bad in ["limit=0", "limit=1001", "limit=-1", "limit=x", "limit=", "after=nonsense", "limit=1&limit=2"] {
            let refused = rest.get(&format!("{path}?{bad}")).await;
            let field = bad.split('=').next().unwrap();
            assert_eq!((refused.status, refused.faults()), (400, vec![field.to_owned()]), "{path}?{bad}");
        }
    }
}

#[tokio::test]
async fn nodes_are_filtered_and_shown_alone() {
    let rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "west"})).await;
    for (name, idc) in [("n1", "west"), ("n2", "west"), ("m1", "")] {
        rest.join(name, "10.0.0.1", idc);
    }
    for (query, found) in [
        ("cluster=b", vec!["n1", "n2"]),
        ("cluster=B&name=host-n2", vec!["n2"]),
        ("name=m", vec!["m1"]),
        ("role=seed", vec![]),
        ("role=node&state=connected", vec!["n1", "n2", "m1"]),
        ("state=lost", vec![]),
        ("version=0.1.0&cluster=default", vec!["m1"]),
        ("cluster=", vec![]),
    ] {
        assert_eq!(texts(&rest.all(&format!("/api/v1/nodes?{query}"), 10).await, "id"), found, "{query}");
    }
    for (query, field) in [("cluster=nowhere", "cluster"), ("role=king", "role"), ("state=fine", "state")] {
        assert_eq!(rest.get(&format!("/api/v1/nodes?{query}")).await.faults(), [field]);
    }
    assert_eq!(rest.get("/api/v1/nodes/n1").await.json()["name"], "host-n1");
    assert_eq!(rest.get("/api/v1/nodes/nobody").await.status, 404);
}

#[tokio::test]
async fn a_blob_is_shown_with_who_holds_and_who_fetches_it_and_what_another_cluster_has_is_not_mixed_in() {
    let mut rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "west"})).await;
    for (name, idc) in [("n1", "west"), ("n2", "west"), ("m1", "")] {
        rest.join(name, "10.0.0.1", idc);
    }
    rest.holds("n1", &[(1, 8 * MIB), (2, MIB)]);
    rest.holds("m1", &[(1, 8 * MIB)]);
    let finder = rest.flies("n2", 1, 0);
    rest.swarm.tell(finder, Tell::Progress { blocks: 4, origin_bytes: 0, fed: Vec::new() });

    let blob = rest.get(&format!("/api/v1/blobs/{}", digest(1))).await.json();
    let clusters = blob["clusters"].as_array().unwrap();
    assert_eq!(texts(clusters, "cluster"), ["b", "default"]);
    let seen = |c: &Value| (c["holders"].clone(), c["flights"].clone(), c["size"].clone());
    assert_eq!(seen(&clusters[0]), (json!(1), json!(1), json!(8 * MIB)));
    assert_eq!(seen(&clusters[1]), (json!(1), json!(0), json!(8 * MIB)));
    let path = format!("/api/v1/blobs/{}/holders", digest(1));
    let holders = rest.all(&path, 2).await;
    assert_eq!(texts(&holders, "node"), ["m1", "n1", "n2"]);
    assert_eq!((&holders[2]["complete"], &holders[2]["bytes"]), (&json!(false), &json!(MIB)));
    assert_eq!(texts(&rest.all(&format!("{path}?cluster=default"), 2).await, "name"), ["host-m1"]);
    assert_eq!(rest.all("/api/v1/blobs?digest=sha256:01", 10).await.len(), 2);
    assert_eq!(rest.all("/api/v1/blobs?digest=sha256:02&cluster=b", 10).await.len(), 1);
    assert_eq!(rest.all("/api/v1/blobs?digest=sha2", 10).await.len(), 3);
    for bad in ["sha512:", "sha256:0G", "x"] {
        assert_eq!(rest.get(&format!("/api/v1/blobs?digest={bad}")).await.faults(), ["digest"]);
    }
    assert_eq!(rest.get(&format!("/api/v1/blobs/{}", digest(9))).await.status, 404);
    assert_eq!(rest.get("/api/v1/blobs/nonsense").await.faults(), ["digest"]);
    assert_eq!(rest.get("/api/v1/blobs/nonsense/holders").await.faults(), ["digest"]);

    rest.token = rest.token("default only", "viewer", Some(&["default"])).await;
    let blob = rest.get(&format!("/api/v1/blobs/{}", digest(1))).await.json();
    assert_eq!(texts(blob["clusters"].as_array().unwrap(), "cluster"), ["default"]);
    assert_eq!(rest.get(&format!("/api/v1/blobs/{}", digest(2))).await.status, 404);
    assert_eq!(texts(&rest.all(&path, 2).await, "node"), ["m1"]);
    assert_eq!(rest.all("/api/v1/flights", 2).await, Vec::<Value>::new());
    assert_eq!(rest.get("/api/v1/blobs?cluster=b").await.faults(), ["cluster"], "it is not there for this token");
}

#[tokio::test]
async fn flights_say_who_feeds_whom() {
    let rest = rest().await;
    for name in ["n1", "n2", "n3"] {
        rest.join(name, "10.0.0.1", "");
    }
    rest.holds("n1", &[(1, 8 * MIB)]);
    let finder = rest.flies("n2", 1, 0);
    let fed = vec![("n1".parse().unwrap(), MIB), ("n9".parse().unwrap(), 5)];
    rest.swarm.tell(finder, Tell::Progress { blocks: 4, origin_bytes: 0, fed });
    let fed = vec![("n1".parse().unwrap(), 2 * MIB)];
    rest.swarm.tell(finder, Tell::Progress { blocks: 8, origin_bytes: 0, fed });
    rest.flies("n3", 7, 0);
    let flights = rest.all("/api/v1/flights", 1).await;
    assert_eq!(texts(&flights, "node"), ["n2", "n3"]);
    let fed = &flights[0];
    // One that it was told of, and one that gave it something and is gone.
    let parents = fed["parents"].as_array().unwrap();
    assert_eq!(texts(parents, "node"), ["n1", "n9"]);
    assert_eq!((&parents[0]["name"], &parents[0]["bytes"]), (&json!("host-n1"), &json!(2 * MIB)));
    assert_eq!((&parents[1]["name"], &parents[1]["bytes"]), (&Value::Null, &json!(5)));
    assert_eq!((&fed["size"], &fed["bytes"], &fed["reads_origin"]), (&json!(8 * MIB), &json!(2 * MIB), &json!(false)));
    assert_eq!((&fed["registry"], &fed["repository"]), (&json!("r.example"), &json!("app")));
    // Control just started: it grants no permit, and says so.
    assert!(flights[1]["waiting"].as_str().unwrap().contains("just started"), "{}", flights[1]);
    assert_eq!(rest.all(&format!("/api/v1/flights?digest={}", digest(7)), 9).await.len(), 1);
    assert_eq!(texts(&rest.all("/api/v1/flights?node=n2&cluster=default", 9).await, "node"), ["n2"]);
    assert_eq!(rest.get("/api/v1/flights?node=N!").await.faults(), ["node"]);
    assert_eq!(rest.get("/api/v1/flights?digest=x").await.faults(), ["digest"]);
    rest.swarm.ended(finder, true);
    assert_eq!(rest.all("/api/v1/flights?node=n2", 9).await.len(), 0);
}

#[tokio::test]
async fn the_share_of_an_image_counts_what_is_there_and_what_is_coming() {
    let rest = rest().await;
    for name in ["n1", "n2", "n3", "n4"] {
        rest.join(name, "10.0.0.1", "");
    }
    rest.holds("n1", &[(1, 8 * MIB), (2, 2 * MIB)]);
    rest.holds("n2", &[(2, 2 * MIB)]);
    let finder = rest.flies("n3", 1, 0);
    rest.swarm.tell(finder, Tell::Progress { blocks: 16, origin_bytes: 0, fed: Vec::new() });
    let blob = |n: u8| json!({ "digest": digest(n).to_string() });
    let ask = |blobs: Vec<Value>| json!({ "blobs": blobs });
    let path = "/api/v1/images/share";
    let share = rest.ask(Method::POST, path, None, &ask(vec![blob(1), blob(2), blob(2), blob(9)])).await.json();
    assert_eq!((&share["blobs"], &share["bytes"]), (&json!(3), &json!(10 * MIB)));
    assert_eq!(share["unknown"], json!([digest(9).to_string()]));
    let items = share["nodes"]["items"].as_array().unwrap();
    let of = |n: usize| {
        (items[n]["node"].as_str().unwrap(), items[n]["blobs"].as_u64().unwrap(), items[n]["share"].as_f64().unwrap())
    };
    assert_eq!((items.len(), of(0), of(1), of(2)), (3, ("n1", 2, 1.0), ("n2", 1, 0.2), ("n3", 0, 0.4)));
    let sized = json!({ "digest": digest(9).to_string(), "size": 10 * MIB });
    let share =
        rest.ask(Method::POST, &format!("{path}?limit=1"), None, &ask(vec![blob(1), blob(2), sized])).await.json();
    assert_eq!((&share["bytes"], &share["unknown"]), (&json!(20 * MIB), &json!([])));
    assert_eq!((&share["nodes"]["items"][0]["share"], share["nodes"]["next"].is_string()), (&json!(0.5), true));
    for (body, field) in [
        (ask(vec![]), "blobs"),
        (ask(vec![json!({"digest": "sha256:x"})]), "blobs[0].digest"),
        (ask(vec![blob(1), json!({"digest": digest(1).to_string().to_uppercase()})]), "blobs[1].digest"),
        (ask(vec![json!({"digest": digest(1).to_string(), "size": -1})]), "blobs[0].size"),
        (ask(vec![json!({"digest": digest(1).to_string(), "colour": 1})]), "blobs[0].colour"),
        (json!({"blobs": [blob(1)], "cluster": "nowhere"}), "cluster"),
    ] {
        let refused = rest.ask(Method::POST, path, None, &body).await;
        assert_eq!((refused.status, refused.faults()), (400, vec![field.to_owned()]), "{body}");
    }
    let upper = |n: u8| json!({"digest": digest(n).to_string().to_uppercase()});
    let refused = rest.ask(Method::POST, path, None, &ask(vec![upper(1), blob(2), upper(3)])).await;
    assert_eq!(refused.faults(), ["blobs[0].digest", "blobs[2].digest"], "all of them at once");
}

#[tokio::test]
async fn everything_is_counted_here_and_by_whom_it_concerns() {
    let mut rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "west"})).await;
    for (name, idc) in [("n1", "west"), ("n2", "west"), ("m1", "")] {
        rest.join(name, "10.0.0.1", idc);
    }
    rest.holds("n1", &[(1, 8 * MIB), (2, MIB)]);
    rest.holds("m1", &[(1, 8 * MIB)]);
    rest.flies("n2", 1, 0);
    let of = |summary: Value| {
        let keys = ["clusters", "nodes", "connected", "seeds", "alone", "flights", "blobs"];
        keys.map(|key| summary[key].as_u64().unwrap())
    };
    assert_eq!(of(rest.get("/api/v1/summary").await.json()), [2, 3, 3, 0, 0, 1, 3]);
    assert_eq!(of(rest.get("/api/v1/summary?cluster=b").await.json()), [1, 2, 2, 0, 0, 1, 2]);
    assert_eq!(rest.get("/api/v1/summary?cluster=nowhere").await.faults(), ["cluster"]);
    // Lists say it too, whatever the page, and of what a filter leaves.
    for (path, total) in [
        ("/api/v1/nodes?limit=1", 3),
        ("/api/v1/nodes?limit=1&cluster=b", 2),
        ("/api/v1/blobs?limit=1", 3),
        ("/api/v1/blobs?limit=1&cluster=default", 1),
        ("/api/v1/flights?limit=1", 1),
        ("/api/v1/clusters?limit=1", 2),
    ] {
        let first = rest.get(path).await.json();
        assert_eq!(first["total"], total, "{path}");
        if let Some(next) = first["next"].as_str() {
            assert_eq!(rest.get(&format!("{path}&after={next}")).await.json()["total"], total, "{path}, second page");
        }
    }
    rest.nodes.disconnected(&rest.nodes.session_of(&"n2".parse().unwrap()).unwrap(), false);
    assert_eq!(rest.get("/api/v1/summary").await.json()["connected"], 2);
    rest.token = rest.token("default only", "viewer", Some(&["default"])).await;
    assert_eq!(of(rest.get("/api/v1/summary").await.json()), [1, 1, 1, 0, 0, 0, 1]);
}

/// Events as a browser reads them: id, kind, data.
struct Events(axum::body::BodyDataStream, String);

impl Events {
    async fn open(rest: &Rest, query: &str, last: Option<&str>) -> Self {
        let mut request = Request::get(format!("/api/v1/events{query}"));
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", rest.token));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = rest.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()[header::CONTENT_TYPE]),
            (StatusCode::OK, &"text/event-stream".parse().unwrap())
        );
        Self(response.into_body().into_data_stream(), String::new())
    }

    /// `None`: the stream ended.
    async fn next(&mut self) -> Option<(String, String, Value)> {
        tokio::time::timeout(Duration::from_secs(20), self.read()).await.expect("an event comes in time")
    }

    async fn read(&mut self) -> Option<(String, String, Value)> {
        loop {
            if let Some((event, rest)) = self.1.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.1 = rest;
                let field = |name: &str| {
                    event.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::to_owned)
                };
                let Some(data) = field("data") else { continue };
                return Some((field("id").unwrap(), field("event").unwrap(), serde_json::from_str(&data).unwrap()));
            }
            let chunk = self.0.next().await;
            self.1.push_str(std::str::from_utf8(&chunk?.unwrap()).unwrap());
        }
    }

    async fn kinds(&mut self, count: usize) -> Vec<String> {
        let mut kinds = Vec::new();
        for _ in 0..count {
            let (_, kind, data) = self.next().await.unwrap();
            assert_eq!(data["kind"], kind);
            kinds.push(kind);
        }
        kinds
    }
}

#[tokio::test]
async fn events_tell_of_preheats_that_begin_and_end_and_not_of_their_progress() {
    let rest = rest().await;
    rest.join("n1", "10.0.0.1", "");
    let mut events = Events::open(&rest, "?about=preheat", None).await;
    assert_eq!(events.kinds(1).await, ["reset"]);
    let body = json!({"image": "registry.test/app:1", "cluster": "default"});
    let made = rest.ask(Method::POST, "/api/v1/preheats", None, &body).await.json();
    let id = made["id"].as_str().unwrap();
    let said = |state| Said { state, refused: false, manifest: None, blobs: Vec::new() };
    let node = "n1".parse().unwrap();
    rest.preheats.heard(&node, &format!("{id}/1"), said(How::Running));
    rest.preheats.heard(&node, &format!("{id}/1"), said(How::Failed("disk full".into())));
    let (_, kind, began) = events.next().await.unwrap();
    let wanted = json!({"kind": "preheat.began", "id": id, "image": "registry.test/app:1", "cluster": "default"});
    assert_eq!((kind.as_str(), began), ("preheat.began", wanted));
    let (_, kind, ended) = events.next().await.unwrap();
    assert_eq!(
        (kind.as_str(), &ended["state"], &ended["why"]),
        ("preheat.ended", &json!("failed"), &json!("1 of 1 nodes"))
    );
    // Tried again and taken back: it begins and ends again.
    let one = format!("/api/v1/preheats/{id}");
    assert_eq!(rest.ask(Method::POST, &format!("{one}/retry"), Some("*"), &json!({})).await.status, 200);
    assert_eq!(rest.ask(Method::POST, &format!("{one}/cancel"), Some("*"), &Value::Null).await.status, 200);
    assert_eq!(events.kinds(1).await, ["preheat.began"]);
    assert_eq!(events.next().await.unwrap().2["state"], "cancelled");
}

#[tokio::test]
async fn events_tell_what_happens_in_order_and_a_listener_goes_on_where_it_stopped() {
    let rest = rest().await;
    let mut events = Events::open(&rest, "", None).await;
    let (_, kind, _) = events.next().await.unwrap();
    assert_eq!(kind, "reset");
    rest.join("n1", "10.0.0.1", "west");
    let finder = rest.flies("n1", 1, 0);
    rest.swarm.ended(finder, true);
    assert_eq!(events.kinds(2).await, ["node.joined", "flight.began"]);
    let (last, kind, data) = events.next().await.unwrap();
    assert_eq!((kind.as_str(), &data["complete"], &data["name"]), ("flight.ended", &json!(false), &json!("host-n1")));
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "west"})).await;
    // The cluster and the move are told by two who watch the clusters; either may be first.
    let mut kinds = events.kinds(2).await;
    kinds.sort();
    assert_eq!(kinds, ["cluster.created", "node.moved"]);
    drop(events);
    rest.nodes.expel(&"n1".parse().unwrap(), "it was revoked");
    let mut again = Events::open(&rest, "?about=node", Some(&last)).await;
    let (_, kind, moved) = again.next().await.unwrap();
    assert_eq!((kind.as_str(), &moved["from"], &moved["to"]), ("node.moved", &json!("default"), &json!("b")));
    assert_eq!(again.kinds(1).await, ["node.left"]);
    for unknown in ["", "nonsense", "abc-1", "-"] {
        assert_eq!(Events::open(&rest, "", Some(unknown)).await.kinds(1).await, ["reset"], "{unknown:?}");
    }
    assert_eq!(rest.get("/api/v1/events?about=all").await.faults(), ["about"]);
    // The stream ends with the service.
    rest.trigger.fire();
    assert_eq!(again.next().await, None);
}

#[tokio::test]
async fn a_token_that_is_kept_to_a_cluster_hears_of_no_other_and_a_stream_ends_with_its_token() {
    let mut rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b", "idc": "west"})).await;
    let admin = rest.token.clone();
    rest.token = rest.token("b only", "viewer", Some(&["b"])).await;
    // What happened before is told of.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let mut events = Events::open(&rest, "", None).await;
    assert_eq!(events.kinds(1).await, ["reset"]);
    rest.token = admin;
    rest.join("m1", "10.0.0.1", "");
    rest.flies("m1", 1, 0);
    rest.join("n1", "10.0.0.1", "west");
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "c"})).await;
    rest.ask(Method::PATCH, "/api/v1/clusters/b", None, &json!({"idc": "east"})).await;
    let (_, kind, data) = events.next().await.unwrap();
    assert_eq!((kind.as_str(), &data["node"]), ("node.joined", &json!("n1")));
    let mut rest_of = Vec::new();
    for _ in 0..2 {
        rest_of.push(events.next().await.unwrap());
    }
    rest_of.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!((rest_of[0].1.as_str(), &rest_of[0].2["cluster"]), ("cluster.updated", &json!("b")));
    assert_eq!((&rest_of[1].2["from"], &rest_of[1].2["to"]), (&json!("b"), &Value::Null), "it does not reach that one");
    rest.ask(Method::DELETE, "/api/v1/api-tokens/b%20only", None, &json!(null)).await;
    rest.join("n2", "10.0.0.1", "east");
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn events_tell_of_tokens_and_members_whom_they_concern() {
    let mut rest = rest().await;
    rest.ask(Method::POST, CLUSTERS, None, &json!({"name": "b"})).await;
    // Who watches the clusters hears of it before the next change.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let admin = rest.token.clone();
    let mut listeners = Vec::new();
    for (name, role, clusters) in [
        ("admin 2", "admin", None),
        ("operator", "operator", None),
        ("viewer", "viewer", None),
        ("b operator", "operator", Some(&["b"][..])),
        ("b viewer", "viewer", Some(&["b"])),
    ] {
        listeners.push((name, rest.token(name, role, clusters).await));
    }
    let mut streams = Vec::new();
    for (name, token) in listeners {
        rest.token = token;
        let mut stream = Events::open(&rest, "", None).await;
        assert_eq!(stream.kinds(1).await, ["reset"]);
        let mut only = Events::open(&rest, "?about=member", None).await;
        assert_eq!(only.kinds(1).await, ["reset"]);
        streams.push((name, stream, only));
    }
    rest.token = admin;
    let made = rest.ask(Method::POST, "/api/v1/join-tokens", None, &json!({"cluster": "b"})).await.json();
    let (id, secret) = (made["id"].as_str().unwrap(), made["token"].as_str().unwrap());
    let (token, node, request) = (secret.parse().unwrap(), || "n1".parse().unwrap(), signing_request());
    rest.identity.join(&token, node(), &request).await.unwrap();
    // It comes again with its key: it is a member already.
    rest.identity.join(&token, node(), &request).await.unwrap();
    let done = async |method: Method, path: &str| {
        let answer = rest.ask(method, path, None, &json!(null)).await;
        assert!(answer.status < 300, "{path}: {}", answer.text);
    };
    done(Method::POST, "/api/v1/members/n1/revoke").await;
    done(Method::DELETE, "/api/v1/members/n1").await;
    done(Method::DELETE, &format!("/api/v1/join-tokens/{id}")).await;
    rest.token("ci", "viewer", None).await;
    done(Method::DELETE, "/api/v1/api-tokens/ci").await;
    rest.admit("m1").await;
    // The end of what everybody hears.
    rest.ask(Method::PATCH, "/api/v1/clusters/b", None, &json!({"idc": "west"})).await;

    let members = ["member.joined", "member.revoked", "member.deleted"];
    let joins = ["join-token.created", "join-token.deleted"];
    for (name, mut stream, mut only) in streams {
        let (mut kinds, mut texts) = (Vec::new(), String::new());
        loop {
            let (_, kind, data) = stream.next().await.unwrap();
            if kind == "cluster.updated" {
                break;
            }
            texts.push_str(&data.to_string());
            kinds.push(kind);
        }
        let about_b = [joins[0], members[0], members[1], members[2], joins[1]].map(str::to_owned).to_vec();
        let (all, api) = (["join-token.created", "member.joined"], ["api-token.created", "api-token.deleted"]);
        let expected = match name {
            "admin 2" => [&about_b[..], &api.map(str::to_owned), &all.map(str::to_owned)].concat(),
            "operator" => [&about_b[..], &all.map(str::to_owned)].concat(),
            "viewer" => [&members.map(str::to_owned)[..], &["member.joined".to_owned()]].concat(),
            "b operator" => about_b,
            _ => members.map(str::to_owned).to_vec(),
        };
        assert_eq!(kinds, expected, "{name}");
        assert!(texts.contains(r#""cluster":"b""#) && texts.contains(r#""node":"n1""#), "{name}: {texts}");
        assert!(!texts.contains("shoal-join.") && !texts.contains("shoal-api."), "{name}: {texts}");
        assert_eq!(only.kinds(3).await, members, "{name}");
    }
    assert_eq!(rest.get("/api/v1/events?about=token").await.faults(), ["about"]);
}

#[tokio::test]
async fn so_many_listen_and_no_more() {
    let rest = rest().await;
    let mut all = Vec::new();
    for _ in 0..64 {
        all.push(Events::open(&rest, "", None).await);
    }
    assert_eq!(rest.get("/api/v1/events").await.status, 503);
    all.pop();
    Events::open(&rest, "", None).await;
}
