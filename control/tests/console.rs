//! The console through its router, over the real API, as a browser asks it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, header};
use control::api::rest::{self, Feed, Parts};
use control::clusters::{self, Clusters, Facts};
use control::identity::{self, Access, Identity};
use control::nodes::{self, Nodes, Registration, Role};
use control::preheat::{self, Preheats};
use control::store::MemoryStore;
use control::swarm::{self, Swarm};
use shoal_base::{drain, metrics};
use tower::ServiceExt as _;

#[path = "console/join.rs"]
mod join;

const ADMIN: &str = "an admin's token that is long enough";
const HOSTILE: &str = "<script>alert(1)</script>";

struct Stage {
    api: Router,
    pages: Router,
    nodes: Arc<Nodes>,
    _trigger: drain::Trigger,
    _dir: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

/// Somebody with a browser: what it keeps.
#[derive(Default)]
struct Browser {
    cookie: String,
    csrf: String,
}

async fn stage(secure: bool) -> Stage {
    stage_of(secure, true).await
}

/// `certified`: nodes show certificates, as control is set up by itself.
async fn stage_of(secure: bool, certified: bool) -> Stage {
    let config = clusters::Config { default_cluster: "default".into() };
    let store = Arc::new(MemoryStore::default());
    let clusters = Arc::new(Clusters::open(store.clone(), &config, clusters::Metrics::default()).await.unwrap());
    let (access, _) = Access::open(store.clone(), Some(ADMIN)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let authority = identity::Authority::open(dir.path(), "shoal".parse().unwrap()).unwrap();
    let counted = identity::Metrics::default();
    let identity = Identity::open(identity::Config::default(), authority, store.clone(), counted).await.unwrap();
    let feed = Arc::new(Feed::default());
    let swarm = Arc::new(Swarm::new(swarm::Metrics::default()).followed(feed.clone()));
    let patient = nodes::Config { lease: Duration::from_secs(600), ..nodes::Config::default() };
    let watcher = Arc::new((swarm.clone(), feed.clone()));
    let nodes = Arc::new(Nodes::new(patient, clusters.watch(), watcher, nodes::Metrics::default()));
    let (trigger, drain) = drain::channel();
    tokio::spawn(nodes.clone().run(drain.clone()));
    tokio::spawn(feed.clone().run(&clusters, drain.clone()));
    let preheats = Preheats::open(store, nodes.clone(), preheat::Metrics::default()).await.unwrap();
    let api = rest::router(Parts {
        access: Arc::new(access),
        identity: certified.then(|| Arc::new(identity)),
        clusters,
        nodes: nodes.clone(),
        swarm,
        preheats,
        feed,
        shapes: Arc::default(),
        registry: Arc::new(metrics::Registry::new("shoal")),
        drain,
    });
    let pages = api.clone().merge(control::console::router(api.clone(), secure, 16080));
    Stage { api, pages, nodes, _trigger: trigger, _dir: dir }
}

fn header_of(headers: &HeaderMap, name: header::HeaderName) -> String {
    headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

/// The value of the first field of that name in a page.
fn field(page: &str, name: &str) -> String {
    let mark = format!("name=\"{name}\" value=\"");
    let (_, rest) = page.split_once(&mark).unwrap_or_else(|| panic!("no {name} in {page}"));
    rest.split('"').next().unwrap().replace("&#34;", "\"")
}

fn form(fields: &[(&str, &str)]) -> String {
    let byte = |b: u8| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") };
    let value = |text: &str| text.bytes().map(byte).collect::<String>();
    fields.iter().map(|(name, text)| format!("{name}={}", value(text))).collect::<Vec<_>>().join("&")
}

impl Stage {
    async fn send(&self, request: Request<Body>) -> Answer {
        let path = request.uri().path().to_owned();
        let response = self.pages.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = String::from_utf8(to_bytes(response.into_body(), 1 << 22).await.unwrap().to_vec()).unwrap();
        if path.starts_with("/console") {
            let policy = header_of(&headers, header::CONTENT_SECURITY_POLICY);
            assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"), "{path}: {policy}");
            assert!(!policy.contains("unsafe"), "{path}");
            assert_eq!(header_of(&headers, header::CACHE_CONTROL), "no-store", "{path}");
            assert_eq!(header_of(&headers, header::X_CONTENT_TYPE_OPTIONS), "nosniff", "{path}");
            for foreign in ["http://", "https://", "src=\"//", "href=\"//", " style=", " onclick=", "<style"] {
                // The address of control in a config is for a node, and the name of SVG's language is no place.
                let own = ["https://control.test:16080", "http://control.test", "http://www.w3.org/2000/svg"];
                let ours = own.iter().fold(text.clone(), |text, own| text.replace(own, ""));
                assert!(!ours.contains(foreign), "{path} has {foreign}");
            }
        }
        Answer { status, headers, text }
    }

    async fn get(&self, browser: &Browser, path: &str) -> Answer {
        let request = Request::get(path).header(header::HOST, "control.test").header(header::COOKIE, &browser.cookie);
        self.send(request.body(Body::empty()).unwrap()).await
    }

    async fn post_with(&self, browser: &Browser, path: &str, fields: &[(&str, &str)], more: &[(&str, &str)]) -> Answer {
        let mut request = Request::post(path)
            .header(header::HOST, "control.test")
            .header(header::COOKIE, &browser.cookie)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(form(fields))).unwrap()).await
    }

    async fn post(&self, browser: &Browser, path: &str, fields: &[(&str, &str)]) -> Answer {
        let fields = [&[("csrf", browser.csrf.as_str())], fields].concat();
        self.post_with(browser, path, &fields, &[("origin", "https://control.test")]).await
    }

    /// What a sign-in with that token is answered.
    async fn try_sign_in(&self, token: &str) -> Answer {
        let page = self.get(&Browser::default(), "/console/sign-in").await;
        let cookie = header_of(&page.headers, header::SET_COOKIE).split(';').next().unwrap().to_owned();
        let csrf = field(&page.text, "csrf");
        self.post(&Browser { cookie, csrf }, "/console/sign-in", &[("token", token)]).await
    }

    async fn sign_in(&self, token: &str) -> Browser {
        let answer = self.try_sign_in(token).await;
        assert_eq!(answer.status, 303, "{}", answer.text);
        let cookie = header_of(&answer.headers, header::SET_COOKIE).split(';').next().unwrap().to_owned();
        let mut browser = Browser { cookie, csrf: String::new() };
        browser.csrf = field(&self.get(&browser, "/console/").await.text, "csrf");
        browser
    }

    /// A token of that role, made over the API. Its id and it.
    async fn token(&self, role: &str) -> (String, String) {
        self.token_for(role, "null").await
    }

    /// The same, kept to some clusters, as a JSON list of their names.
    async fn token_for(&self, role: &str, clusters: &str) -> (String, String) {
        let body = format!("{{\"name\":\"a {role}\",\"role\":\"{role}\",\"clusters\":{clusters}}}");
        let request = Request::post("/api/v1/api-tokens")
            .header(header::AUTHORIZATION, format!("Bearer {ADMIN}"))
            .header(header::CONTENT_TYPE, "application/json");
        let answer = self.api.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let bytes = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let made: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
    }

    fn join(&self, node: &str, name: &str, ip: &str) {
        self.nodes.register(Registration {
            node: node.parse().unwrap(),
            instance: 1,
            name: name.into(),
            version: "0.1.0".into(),
            facts: Facts::parse(ip, "", "").unwrap(),
            peer_port: 5081,
            pin: None,
            bound: None,
            role: Role::Node,
            takes_orders: true,
        });
    }

    /// Makes a cluster. Its page.
    async fn cluster(&self, browser: &Browser, name: &str, cidr: &str) -> String {
        let fields = [("do", "save"), ("name", name), ("cidrs", cidr)];
        let made = self.post(browser, "/console/clusters", &fields).await;
        assert_eq!(made.status, 303, "{}", made.text);
        header_of(&made.headers, header::LOCATION).strip_suffix("/join").unwrap().to_owned()
    }
}

const PAGES: [&str; 13] = [
    "/console/",
    "/console/clusters",
    "/console/clusters/new",
    "/console/nodes",
    "/console/blobs",
    "/console/images",
    "/console/flights",
    "/console/preheats",
    "/console/tokens",
    "/console/members",
    "/console/audit",
    "/console/explain",
    "/console/explain?ip=10.1.2.3",
];

#[tokio::test]
async fn signing_in_takes_a_good_token_and_signing_out_ends_it() {
    let stage = stage(false).await;
    assert_eq!(header_of(&stage.get(&Browser::default(), "/").await.headers, header::LOCATION), "/console/");
    let refused = stage.try_sign_in("a token that nobody made").await;
    assert_eq!(refused.status, 401);
    assert!(refused.text.contains("is not known"), "{}", refused.text);
    let browser = stage.sign_in(ADMIN).await;
    assert!(!stage.get(&browser, "/console/").await.text.contains(ADMIN), "the token is not on the page");
    assert_eq!(stage.post(&browser, "/console/sign-out", &[]).await.status, 303);
    let after = stage.get(&browser, "/console/").await;
    assert_eq!((after.status, header_of(&after.headers, header::LOCATION).as_str()), (303, "/console/sign-in"));
}

#[tokio::test]
async fn whoever_asked_for_a_page_gets_it_after_signing_in_and_nobody_is_led_elsewhere() {
    let stage = stage(false).await;
    let asked = stage.get(&Browser::default(), "/console/nodes?role=seed&name=a%26b").await;
    let to = header_of(&asked.headers, header::LOCATION);
    assert_eq!(to, "/console/sign-in?to=%2Fconsole%2Fnodes%3Frole%3Dseed%26name%3Da%2526b");
    let form = stage.get(&Browser::default(), &to).await;
    assert_eq!(field(&form.text, "to").replace("&#38;", "&"), "/console/nodes?role=seed&name=a%26b");
    for (to, leads) in [
        ("/console/nodes?role=seed&name=a%26b", "/console/nodes?role=seed&name=a%26b"),
        ("", "/console/"),
        ("//evil.test", "/console/"),
        ("https://evil.test/console/", "/console/"),
        ("/console/../../evil", "/console/"),
        ("/console/\\evil", "/console/"),
        ("/console/\r\nSet-Cookie: x", "/console/"),
        ("/console/sign-in", "/console/"),
        ("/console/events", "/console/"),
        ("/api/v1/whoami", "/console/"),
    ] {
        let form = stage.get(&Browser::default(), "/console/sign-in").await;
        let cookie = header_of(&form.headers, header::SET_COOKIE).split(';').next().unwrap().to_owned();
        let browser = Browser { cookie, csrf: field(&form.text, "csrf") };
        let done = stage.post(&browser, "/console/sign-in", &[("token", ADMIN), ("to", to)]).await;
        assert_eq!((done.status, header_of(&done.headers, header::LOCATION).as_str()), (303, leads), "{to:?}");
        // A wrong token leads to the same form, which still knows.
        let wrong = stage.post(&browser, "/console/sign-in", &[("token", "wrong"), ("to", to)]).await;
        assert_eq!(wrong.text.contains("name=\"to\""), leads != "/console/", "{to:?}");
    }
}

#[tokio::test]
async fn who_may_not_do_something_is_told_why_instead_of_shown_a_form_for_it() {
    let stage = stage(false).await;
    let admin = stage.sign_in(ADMIN).await;
    let cluster = stage.cluster(&admin, "west", "10.1.0.0/16").await;
    let viewer = stage.sign_in(&stage.token("viewer").await.1).await;
    for (path, why) in [
        ("/console/clusters", "To make a cluster takes an operator"),
        (cluster.as_str(), "To change it takes an operator"),
        ("/console/tokens", "To see and make them takes an operator"),
        ("/console/members", "To take a node out takes an operator"),
    ] {
        let page = stage.get(&viewer, path).await;
        let form = format!("method=\"post\" action=\"{path}");
        assert!(page.status == 200 && page.text.contains(why) && !page.text.contains(&form), "{path}: {}", page.text);
    }
    let kept = stage.sign_in(&stage.token_for("operator", "[\"west\"]").await.1).await;
    let kept_to = "takes an API token that reaches all clusters; a operator is kept to west.";
    for path in ["/console/clusters", "/console/explain", &cluster] {
        let page = stage.get(&kept, path).await.text;
        assert!(page.contains(kept_to), "{path}: {page}");
    }
    assert_eq!(stage.get(&kept, "/console/clusters/new").await.status, 403);
    assert!(!stage.get(&kept, "/console/clusters").await.text.contains("/console/clusters/new"));
    assert!(!stage.get(&kept, "/console/explain").await.text.contains("Facts of a node"));
    // What they may do they can: the form keeps what they may not change.
    let page = stage.get(&kept, &cluster).await.text;
    assert!(!page.contains("type=\"checkbox\"") && page.contains("type=\"hidden\" name=\"default\" value=\"false\""));
    let version = field(&page, "version");
    let fields =
        [("do", "save"), ("name", "west"), ("cidrs", "10.1.0.0/16"), ("default", "false"), ("version", &version)];
    let fields = [&fields[..], &[("location", "eu")]].concat();
    assert_eq!(stage.post(&kept, &cluster, &fields).await.status, 303);
    let tokens = stage.get(&kept, "/console/tokens").await.text;
    assert!(tokens.contains("<option value=\"west\"") && !tokens.contains("value=\"default\""), "{tokens}");
    let made =
        stage.post(&kept, "/console/tokens", &[("do", "make-join"), ("role", "node"), ("cluster", "west")]).await;
    assert!(made.text.contains("shown this once"), "{}", made.text);
    // What would leave nodes in a cluster that is not theirs can't be confirmed.
    stage.join("n1", "host-one", "10.1.0.1");
    let delete = stage.get(&kept, &format!("{cluster}/delete")).await.text;
    assert!(delete.contains("Not possible") && !delete.contains("Delete this cluster"), "{delete}");
    let admin_of_west = stage.sign_in(&stage.token_for("admin", "[\"west\"]").await.1).await;
    let tokens = stage.get(&admin_of_west, "/console/tokens").await;
    assert!(tokens.status == 200 && tokens.text.contains("a admin is kept to west."), "{}", tokens.text);
    assert!(!tokens.text.contains("/console/audit"), "a page that is refused is not in the menu");
}

#[tokio::test]
async fn the_cookie_is_kept_from_scripts_and_other_sites_and_with_tls_from_plain_http() {
    for secure in [false, true] {
        let answer = stage(secure).await.try_sign_in(ADMIN).await;
        let cookie = header_of(&answer.headers, header::SET_COOKIE);
        for attribute in ["; HttpOnly", "; SameSite=Strict", "; Path=/"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        assert_eq!(cookie.contains("; Secure"), secure, "{cookie}");
        assert!(!cookie.contains(ADMIN), "{cookie}");
    }
}

#[tokio::test]
async fn a_change_without_the_forms_token_or_from_another_site_is_refused() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    let fields = [("do", "save"), ("name", "west")];
    for csrf in ["", "0000", &"0".repeat(64)] {
        let fields = [&[("csrf", csrf)][..], &fields].concat();
        assert_eq!(stage.post_with(&browser, "/console/clusters", &fields, &[]).await.status, 403, "{csrf:?}");
    }
    let fields = [&[("csrf", browser.csrf.as_str())][..], &fields].concat();
    for foreign in [("origin", "https://evil.test"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
        let answer = stage.post_with(&browser, "/console/clusters", &fields, &[foreign]).await;
        assert_eq!(answer.status, 403, "{foreign:?}");
    }
    assert!(!stage.get(&browser, "/console/clusters").await.text.contains("west"));
    assert_eq!(
        stage.post_with(&browser, "/console/clusters", &fields, &[]).await.status,
        303,
        "it was the token alone"
    );
}

#[tokio::test]
async fn a_token_that_is_taken_away_ends_its_sessions() {
    let stage = stage(false).await;
    let (id, token) = stage.token("operator").await;
    let browser = stage.sign_in(&token).await;
    let admin = stage.sign_in(ADMIN).await;
    let gone = stage.post(&admin, "/console/tokens", &[("do", "delete-api"), ("id", &id)]).await;
    assert_eq!(gone.status, 200, "{}", gone.text);
    let after = stage.get(&browser, "/console/nodes").await;
    assert_eq!(header_of(&after.headers, header::LOCATION), "/console/sign-in?to=%2Fconsole%2Fnodes");
}

#[tokio::test]
async fn what_was_not_chosen_is_not_revoked_deleted_or_guessed() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    stage.join("n1", "a1", "10.1.2.3");
    for (path, what) in
        [("/console/members", "revoke"), ("/console/members", "forget"), ("/console/tokens", "delete-api")]
    {
        let answer = stage.post(&browser, path, &[("do", what), ("id", "")]).await;
        assert_eq!(answer.status, 400, "{path} {what}");
        // Without certificates there are no members to choose from, and no form that could say so.
        assert!(path == "/console/members" || answer.text.contains("-fault"), "the field says so: {path} {what}");
    }
    let base = [("do", "make"), ("image", "registry.example/nobody:7"), ("cluster", "default"), ("target", "all")];
    for more in [("percent", "20"), ("nodes", "a1")] {
        let answer = stage.post(&browser, "/console/preheats", &[&base[..], &[more]].concat()).await;
        assert_eq!(answer.status, 400, "{more:?}");
        assert!(answer.text.contains(&format!("field-{}-fault", more.0)), "{more:?}: {}", answer.text);
    }
    assert!(!stage.get(&browser, "/console/preheats").await.text.contains("registry.example/nobody:7"), "none began");
}

#[tokio::test]
async fn a_viewer_sees_no_changes_and_is_refused_them() {
    let stage = stage(false).await;
    let (_, token) = stage.token("viewer").await;
    let browser = stage.sign_in(&token).await;
    assert!(!stage.get(&browser, "/console/clusters").await.text.contains("/console/clusters/new"));
    assert!(!stage.get(&browser, "/console/preheats").await.text.contains("New preheat"));
    let tried = stage.post(&browser, "/console/clusters", &[("do", "save"), ("name", "west")]).await;
    assert_eq!(tried.status, 403);
    assert!(tried.text.contains("role=\"alert\""), "{}", tried.text);
    assert_eq!(stage.get(&browser, "/console/audit").await.status, 403);
}

#[tokio::test]
async fn every_page_shows_nothing_and_hostile_names_alike() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    for path in PAGES {
        let page = stage.get(&browser, path).await;
        assert_eq!(page.status, 200, "{path}: {}", page.text);
        assert!(page.text.contains("<main id=\"content\""), "{path}");
        assert_eq!(page.text.matches("<h1>").count(), 1, "{path}");
    }
    stage.join("n1", HOSTILE, "10.1.0.1");
    let cluster = stage.cluster(&browser, HOSTILE, "10.1.0.0/16").await;
    let (join, delete) = (format!("{cluster}/join"), format!("{cluster}/delete"));
    for path in PAGES.iter().copied().chain([cluster.as_str(), &join, &delete, "/console/nodes/n1"]) {
        let page = stage.get(&browser, path).await;
        assert_eq!(page.status, 200, "{path}: {}", page.text);
        assert!(!page.text.contains(HOSTILE), "{path} does not escape");
    }
    assert!(stage.get(&browser, "/console/nodes").await.text.contains("&#60;script&#62;alert(1)"));
    for path in ["/console/assets/console.css", "/console/assets/console.js", "/console/assets/icon.svg"] {
        assert_eq!(stage.get(&Browser::default(), path).await.status, 200, "{path}");
    }
    assert_eq!(stage.get(&browser, "/console/nowhere").await.status, 404);
}

#[tokio::test]
async fn a_preview_names_the_nodes_that_move_and_changes_nothing() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    stage.join("n1", "host-one", "10.1.0.1");
    let fields = [("do", "preview"), ("name", "west"), ("cidrs", "10.1.0.0/16")];
    let page = stage.post(&browser, "/console/clusters", &fields).await;
    assert_eq!(page.status, 200, "{}", page.text);
    assert!(page.text.contains("1 live node would move."), "{}", page.text);
    assert!(page.text.contains("host-one"));
    assert!(!stage.get(&browser, "/console/clusters").await.text.contains("west"));
    let wrong = [("do", "save"), ("name", "west"), ("cidrs", "10.1.0.0/16\nnonsense")];
    let page = stage.post(&browser, "/console/clusters", &wrong).await;
    assert_eq!(page.status, 400);
    assert!(page.text.contains("id=\"field-cidrs-fault\""), "{}", page.text);
    assert!(page.text.contains("aria-describedby=\"field-cidrs-fault field-cidrs-hint\""));
}

#[tokio::test]
async fn the_default_is_taken_by_the_form_and_the_preview_says_from_whom() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    let cluster = stage.cluster(&browser, "west", "10.1.0.0/16").await;
    stage.join("n1", "host-one", "192.0.2.1");
    let version = field(&stage.get(&browser, &cluster).await.text, "version");
    let fields = |act: &'static str| {
        [("do", act), ("name", "west"), ("cidrs", "10.1.0.0/16"), ("default", "true"), ("version", version.as_str())]
    };
    let page = stage.post(&browser, &cluster, &fields("preview")).await;
    assert_eq!(page.status, 200, "{}", page.text);
    assert!(page.text.contains("1 live node would move."), "{}", page.text);
    let (_, changes) = page.text.split_once("<caption>Clusters that would change").unwrap();
    let rows = changes.split_once("</table>").unwrap().0;
    let row = |name: &str, is: &str, would: &str| {
        format!("<th scope=\"row\">{name}</th><td>Default</td><td>{is}</td><td>{would}</td>")
    };
    for row in [row("default", "yes", "no"), row("west", "no", "yes")] {
        assert!(rows.contains(&row), "{row} is not in {rows}");
    }
    assert_eq!(rows.matches("scope=\"row\"").count(), 2, "nothing else would: {rows}");
    assert_eq!(stage.post(&browser, &cluster, &fields("save")).await.status, 303);
    assert!(stage.get(&browser, "/console/clusters/default").await.text.contains("<dt>Default</dt><dd>no</dd>"));
}

#[tokio::test]
async fn more_than_a_page_is_counted_and_leads_on() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    for n in 0..1201 {
        stage.join(&format!("n{n:04}"), &format!("host-{n:04}"), "192.0.2.1");
    }
    let overview = stage.get(&browser, "/console/").await.text;
    for fact in ["<dt>Live nodes</dt><dd>1201</dd>", "<dt>Connected</dt><dd>1201</dd>", "<dt>Clusters</dt><dd>1</dd>"] {
        assert!(overview.contains(fact), "{fact}: {overview}");
    }
    // From page to page, each node once, until all were there.
    let (mut path, mut seen) = ("/console/nodes?limit=500".to_owned(), 0);
    loop {
        let page = stage.get(&browser, &path).await.text;
        let rows = page.matches("href=\"/console/nodes/n").count();
        assert!(page.contains(&format!("{rows} of 1201 are shown.")), "{path}");
        seen += rows;
        let Some((before, _)) = page.split_once("\">Next page</a>") else { break };
        path = before.rsplit("href=\"").next().unwrap().replace("&#38;", "&");
    }
    assert_eq!(seen, 1201);
    for _ in 0..201 {
        assert_eq!(stage.post(&browser, "/console/tokens", &[("do", "make-join"), ("role", "node")]).await.status, 200);
    }
    let tokens = stage.get(&browser, "/console/tokens").await.text;
    assert!(tokens.contains("200 of 201 are shown."), "{tokens}");
    let (before, _) = tokens.split_once("\">Next page</a>").unwrap();
    let next = before.rsplit("href=\"").next().unwrap().replace("&#38;", "&");
    let second = stage.get(&browser, &next).await.text;
    assert!(second.contains("1 of 201 are shown.") && second.contains("API tokens"), "{second}");
}

#[tokio::test]
async fn what_changes_by_itself_on_the_page_of_a_cluster_is_in_its_live_part_and_the_form_is_not() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    let cluster = stage.cluster(&browser, "west", "10.1.0.0/16").await;
    stage.join("n1", "host-one", "10.1.0.1");
    let page = stage.get(&browser, &cluster).await.text;
    let (_, from) = page.split_once("<div id=\"live\"").unwrap();
    let (live, rest) = from.split_once("</div>\n\n<form").unwrap_or_else(|| panic!("no form after it in {from}"));
    for part in ["<dt>Live nodes</dt><dd>1</dd>", "<dt>Version</dt><dd>1</dd>", "host-one"] {
        assert!(live.contains(part), "{part} is not in {live}");
    }
    assert!(!live.contains("<form") && rest.contains("name=\"cidrs\""), "{live}");
}

#[tokio::test]
async fn the_audit_log_is_filtered_by_a_form_that_keeps_what_was_asked_and_names_what_is_wrong() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    stage.cluster(&browser, "west", "10.1.0.0/16").await;
    stage.cluster(&browser, "east", "10.2.0.0/16").await;
    let page =
        stage.get(&browser, "/console/audit?action=cluster&subject=west&who=&since=2020-01-01T00%3A00%3A00Z").await;
    assert!(page.status == 200 && page.text.contains("<td>west</td>"), "{}", page.text);
    assert!(
        !page.text.contains("<td>east</td>") && page.text.contains("name=\"subject\" type=\"text\" value=\"west\"")
    );
    let wrong = stage.get(&browser, "/console/audit?since=yesterday&until=tomorrow").await;
    assert_eq!(wrong.status, 400);
    for field in ["since", "until"] {
        assert!(wrong.text.contains(&format!("id=\"field-{field}-fault\"")), "{field}: {}", wrong.text);
    }
    let wrong = stage.get(&browser, "/console/members?cluster=nowhere").await;
    assert!(wrong.status == 400 && wrong.text.contains("id=\"filter-field-cluster-fault\""), "{}", wrong.text);
    assert_eq!(stage.get(&browser, "/console/members?revoked=true&role=seed&cluster=west").await.status, 200);
}

#[tokio::test]
async fn a_change_of_a_stale_version_shows_both_and_saves_nothing() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    let cluster = stage.cluster(&browser, "west", "10.1.0.0/16").await;
    let version = field(&stage.get(&browser, &cluster).await.text, "version");
    let save = |idc: &'static str, version: String| {
        let (stage, browser, cluster) = (&stage, &browser, &cluster);
        async move {
            let fields = [("do", "save"), ("name", "west"), ("idc", idc), ("version", version.as_str())];
            stage.post(browser, cluster, &fields).await
        }
    };
    assert_eq!(save("theirs", version.clone()).await.status, 303);
    let late = save("mine", version).await;
    assert_eq!(late.status, 412, "{}", late.text);
    assert!(late.text.contains("<dd>theirs</dd>") && late.text.contains("value=\"mine\""), "{}", late.text);
    assert!(!stage.get(&browser, &cluster).await.text.contains("mine"));
    assert_eq!(save("mine", field(&late.text, "version")).await.status, 303, "now they know");
}

#[tokio::test]
async fn the_theme_is_kept_and_leads_back_to_pages_of_the_console_alone() {
    let stage = stage(false).await;
    let mut browser = stage.sign_in(ADMIN).await;
    for (back, to) in
        [("/console/nodes", "/console/nodes"), ("//evil.test", "/console/"), ("/console/\r\nx", "/console/")]
    {
        let set = stage.post(&browser, "/console/theme", &[("theme", "dark"), ("back", back)]).await;
        assert_eq!(header_of(&set.headers, header::LOCATION), to);
        assert!(header_of(&set.headers, header::SET_COOKIE).starts_with("shoal_theme=dark;"));
    }
    browser.cookie.push_str("; shoal_theme=dark");
    assert!(stage.get(&browser, "/console/").await.text.contains("data-theme=\"dark\""));
}

#[tokio::test]
async fn whoever_listens_to_events_hears_nothing_after_signing_out() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    let request = Request::get("/console/events").header(header::COOKIE, &browser.cookie).body(Body::empty()).unwrap();
    let answer = stage.pages.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let listening = tokio::spawn(to_bytes(answer.into_body(), 1 << 20));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!listening.is_finished());
    assert_eq!(stage.post(&browser, "/console/sign-out", &[]).await.status, 303);
    tokio::time::timeout(Duration::from_secs(5), listening).await.expect("the stream ends").unwrap().unwrap();
}

#[tokio::test]
async fn a_preheat_is_begun_cancelled_and_tried_again_and_its_password_is_on_no_page() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    stage.join("n1", "a1", "10.1.2.3");
    let fields = [
        ("do", "make"),
        ("image", "registry.example/app:1"),
        ("cluster", "default"),
        ("target", "all"),
        ("user", "robot"),
        ("password", "hunter-2-hunter"),
    ];
    let made = stage.post(&browser, "/console/preheats", &fields).await;
    assert_eq!(made.status, 303, "{}", made.text);
    let at = header_of(&made.headers, header::LOCATION);
    let page = stage.get(&browser, &at).await.text;
    assert!(page.contains("registry.example/app:1") && page.contains("a1") && page.contains("Cancel"), "{page}");
    assert_eq!(stage.post(&browser, &at, &[("do", "cancel"), ("version", "\"1\"")]).await.status, 303);
    let page = stage.get(&browser, &at).await.text;
    assert!(
        page.contains("cancelled") && page.contains("Retry what failed") && !page.contains("value=\"cancel\""),
        "{page}"
    );
    let again = stage.post(&browser, &at, &[("do", "cancel"), ("version", "\"2\"")]).await;
    assert!(again.status >= 400 && again.text.contains("Error:"), "{}", again.text);
    // Decided on what somebody else has changed since.
    let late = stage.post(&browser, &at, &[("do", "retry"), ("version", "\"1\"")]).await;
    assert!(late.status == 412 && late.text.contains("was changed since"), "{}", late.text);
    let login = [("do", "retry"), ("version", "\"2\""), ("user", "robot"), ("password", "hunter-2-hunter")];
    assert_eq!(stage.post(&browser, &at, &login).await.status, 303);
    let page = stage.get(&browser, &at).await.text;
    assert!(page.contains("Cancel") && !page.contains("Retry what failed"), "{page}");
    // Nor is a login needed.
    assert_eq!(stage.post(&browser, &at, &[("do", "cancel"), ("version", "\"3\"")]).await.status, 303);
    assert_eq!(stage.post(&browser, &at, &[("do", "retry"), ("version", "\"4\"")]).await.status, 303);
    assert_eq!(
        stage.get(&browser, "/console/preheats?state=cancelled").await.text.matches("registry.example/app:1<").count(),
        0
    );
    assert!(
        stage
            .get(&browser, "/console/preheats?state=waiting&cluster=default")
            .await
            .text
            .contains("registry.example/app:1<")
    );
    let odd = stage.get(&browser, "/console/preheats?state=gone").await;
    assert!(odd.text.contains("must be one of waiting, running"), "{}", odd.text);
    for page in ["/console/preheats", &at, "/console/audit"] {
        assert!(!stage.get(&browser, page).await.text.contains("hunter-2"), "{page}");
    }
}

#[tokio::test]
async fn an_images_spread_is_asked_by_its_manifest_and_what_is_none_is_told() {
    let stage = stage(false).await;
    let browser = stage.sign_in(ADMIN).await;
    let digest = format!("sha256:{}", "0f".repeat(32));
    let manifest = format!(r#"{{"config":{{"digest":"{digest}","size":7}},"layers":[]}}"#);
    for (text, status, words) in [
        (manifest.as_str(), 200, "7 B"),
        (digest.as_str(), 200, "Of unknown size"),
        ("{\"manifests\":[]}", 422, "an index"),
        ("nonsense", 400, "Error:"),
        ("", 400, "Error:"),
    ] {
        let shown = stage.post(&browser, "/console/images", &[("manifest", text)]).await;
        assert!(shown.status == status && shown.text.contains(words), "{text:?}: {} {}", shown.status, shown.text);
    }
}
