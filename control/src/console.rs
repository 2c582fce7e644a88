//! The web pages for operators.
//!
//! Owns pages, style and script, all embedded in the binary, and the sessions of who signed in. Every figure on a page
//! comes from the routes of `/api/v1` that `shoalctl` reads, asked in this process with the caller's own API token, so
//! that a page never knows more than the API, and what a token may not do is refused there. Served on the port of REST.
//!
//! What always holds: no page loads anything from elsewhere (the Content-Security-Policy says so to the browser); text
//! is escaped by the templates; a change needs a session's cookie, its form token, and no foreign `Origin`.

mod ask;
mod clusters;
mod flights;
mod guard;
mod images;
mod nodes;
mod pages;
mod preheats;
mod search;
mod session;
mod tokens;
mod traffic;
mod view;

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Form, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use futures::StreamExt as _;

use guard::{Posted, Signed, Stop};
use session::Sessions;
use view::Shell;

/// Largest form: a cluster with some thousand networks.
const FORM_LIMIT: usize = 1 << 20;

/// Nothing from elsewhere, nothing inline, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Fields of a form; the last of several of one name.
type Fields = HashMap<String, String>;

/// What all pages share.
#[derive(Clone)]
struct Console {
    /// `/api/v1`.
    api: Router,
    sessions: Arc<Sessions>,
    /// REST has TLS, so cookies are kept to it.
    secure: bool,
    /// Where nodes speak gRPC, on the host that the browser asks.
    nodes: u16,
}

/// The console over this API. `secure`: it is served with TLS; `nodes`: the port at which nodes speak gRPC.
pub fn router(api: Router, secure: bool, nodes: u16) -> Router {
    let console = Console { api, sessions: Arc::default(), secure, nodes };
    Router::new()
        .route("/", get(|| async { Redirect::to("/console/") }))
        .route("/console", get(|| async { Redirect::to("/console/") }))
        .route("/console/", get(pages::overview))
        .route("/console/sign-in", get(sign_in_page).post(sign_in))
        .route("/console/sign-out", post(sign_out))
        .route("/console/theme", post(theme))
        .route("/console/events", get(events))
        .route("/console/clusters", get(clusters::list).post(clusters::create))
        .route("/console/clusters/new", get(clusters::new))
        .route("/console/clusters/{cluster}", get(clusters::show).post(clusters::change))
        .route("/console/clusters/{cluster}/delete", get(clusters::confirm).post(clusters::delete))
        .route("/console/clusters/{cluster}/join", get(clusters::join).post(clusters::join_token))
        .route("/console/nodes", get(nodes::list))
        .route("/console/nodes/{node}", get(nodes::show))
        .route("/console/blobs", get(pages::blobs))
        .route("/console/blobs/{digest}", get(pages::blob))
        .route("/console/flights", get(flights::show))
        .route("/console/preheats", get(preheats::list).post(preheats::create))
        .route("/console/preheats/{preheat}", get(preheats::show).post(preheats::change))
        .route("/console/images", get(images::ask).post(images::show))
        .route("/console/tokens", get(tokens::show).post(tokens::change))
        .route("/console/members", get(tokens::members).post(tokens::change_member))
        .route("/console/audit", get(pages::audit))
        .route("/console/explain", get(pages::explain))
        .route("/console/{*rest}", get(nothing))
        .route("/console/assets/console.css", get(|| asset("text/css", include_str!("../assets/console.css"))))
        .route("/console/assets/console.js", get(|| asset("text/javascript", include_str!("../assets/console.js"))))
        .route("/console/assets/icon.svg", get(|| asset("image/svg+xml", include_str!("../assets/icon.svg"))))
        .layer(DefaultBodyLimit::max(FORM_LIMIT))
        .layer(middleware::from_fn(guard::same_site))
        .layer(middleware::map_response(headers))
        .with_state(console)
}

/// What every answer says to the browser. The referrer stays within this site rather than being dropped: without it
/// browsers send `Origin: null` with every form, which can't be told from a foreign page.
async fn headers(mut response: Response) -> Response {
    let all = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in all {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn nothing(me: Signed) -> Response {
    me.failed(StatusCode::NOT_FOUND, "There is no such page.")
}

async fn sign_in_page(State(console): State<Console>, query: search::Search, headers: HeaderMap) -> Response {
    sign_in_form(&console, &headers, query.get("to"), StatusCode::OK, "")
}

/// The form, with a token of its own in a cookie: there is no session yet that could hold it.
/// `to`: the page that was asked for.
fn sign_in_form(console: &Console, headers: &HeaderMap, to: &str, status: StatusCode, error: &str) -> Response {
    let secret = session::secret();
    let (theme, back) = (guard::theme(headers), guard::local(to).unwrap_or_default().to_owned());
    let shell = Shell { theme, back, csrf: secret.clone(), error: error.into(), ..Shell::titled("Sign in") };
    let cookie = console.cookie(guard::FORM_COOKIE, &secret);
    (status, [(header::SET_COOKIE, cookie)], view::sign_in(shell)).into_response()
}

async fn sign_in(State(console): State<Console>, headers: HeaderMap, Form(fields): Form<Fields>) -> Response {
    let to = fields.get("to").map_or("", String::as_str);
    let shown = fields.get("csrf").map_or("", String::as_str);
    let known = guard::cookie(&headers, guard::FORM_COOKIE);
    if !known.is_some_and(|known| session::same(&known, shown)) {
        let why = "This form was not from here, or too old. Try again.";
        return sign_in_form(&console, &headers, to, StatusCode::FORBIDDEN, why);
    }
    let token = fields.get("token").map_or("", |token| token.trim());
    let answer = ask::ask(&console.api, token, Method::GET, "/api/v1/whoami", None, None).await;
    match answer.status {
        StatusCode::OK => {
            let id = console.sessions.begin(token.to_owned());
            let cookie = console.cookie(guard::SESSION_COOKIE, &id);
            ([(header::SET_COOKIE, cookie)], Redirect::to(guard::local(to).unwrap_or(guard::HOME))).into_response()
        }
        StatusCode::UNAUTHORIZED => sign_in_form(
            &console,
            &headers,
            to,
            StatusCode::UNAUTHORIZED,
            "This API token is not known, or its time is over.",
        ),
        status => sign_in_form(&console, &headers, to, status, &answer.detail()),
    }
}

async fn sign_out(State(console): State<Console>, posted: Posted) -> Response {
    console.sessions.end(&posted.me.id);
    let cookie = format!("{}; Max-Age=0", console.cookie(guard::SESSION_COOKIE, ""));
    ([(header::SET_COOKIE, cookie)], Redirect::to("/console/sign-in")).into_response()
}

async fn theme(State(console): State<Console>, posted: Posted) -> Response {
    let theme = match posted.get("theme") {
        known @ ("light" | "dark") => known,
        _ => "",
    };
    // Only ever a page of ours, whatever the form says.
    let back = guard::local(posted.get("back"));
    let cookie = format!("{}; Max-Age=31536000", console.cookie(guard::THEME_COOKIE, theme));
    ([(header::SET_COOKIE, cookie)], Redirect::to(back.unwrap_or(guard::HOME))).into_response()
}

/// `/api/v1/events`, as the caller's token may see them, as long as the session lasts.
async fn events(me: Signed) -> Result<Response, Stop> {
    let response = ask::send(&me.console.api, &me.token, Method::GET, "/api/v1/events", None, Body::empty()).await;
    let mut ours = Response::new(Body::empty());
    *ours.status_mut() = response.status();
    if let Some(kind) = response.headers().get(header::CONTENT_TYPE) {
        ours.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    let over = async move { _ = tokio::time::timeout(session::LONGEST, me.over.cancelled()).await };
    *ours.body_mut() = Body::from_stream(response.into_body().into_data_stream().take_until(Box::pin(over)));
    Ok(ours)
}
