//! Who may see a page, and who may send a form.

use axum::extract::{Form, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts as Head;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Redirect, Response};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::ask::{self, Answer};
use super::session;
use super::view::{self, Shell};
use super::{Console, Fields};

pub(super) const SESSION_COOKIE: &str = "shoal_session";
pub(super) const FORM_COOKIE: &str = "shoal_form";
pub(super) const THEME_COOKIE: &str = "shoal_theme";

/// Where whoever signed in goes that asked for nothing else.
pub(super) const HOME: &str = "/console/";

/// A page of this console that an address names, if it does: nobody is led elsewhere by a link, nor to sign in again.
pub(super) fn local(address: &str) -> Option<&str> {
    let ours = address.starts_with(HOME)
        && address.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
        && !address.contains("..")
        && !["/console/sign-in", "/console/events", "/console/assets"].iter().any(|other| address.starts_with(other));
    ours.then_some(address)
}

/// The sign-in page, from which it goes on to that one.
fn sign_in_at(back: &str) -> String {
    match local(back) {
        Some(back) if back != HOME => format!("/console/sign-in?to={}", ask::encoded(back)),
        _ => "/console/sign-in".to_owned(),
    }
}

/// An answer instead of the page that was asked for.
pub(super) struct Stop(Box<Response>);

impl IntoResponse for Stop {
    fn into_response(self) -> Response {
        *self.0
    }
}

impl From<Response> for Stop {
    fn from(response: Response) -> Self {
        Self(Box::new(response))
    }
}

impl Console {
    pub(super) fn cookie(&self, name: &str, value: &str) -> String {
        let secure = if self.secure { "; Secure" } else { "" };
        format!("{name}={value}; HttpOnly; SameSite=Strict; Path=/{secure}")
    }
}

/// The cookie of that name.
pub(super) fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

/// The theme that was chosen; empty: as the system says.
pub(super) fn theme(headers: &HeaderMap) -> String {
    cookie(headers, THEME_COOKIE).filter(|theme| ["light", "dark"].contains(&theme.as_str())).unwrap_or_default()
}

/// Refuses a change that another site made a browser send, as far as the browser says whose page it was.
pub(super) async fn same_site(request: Request, next: Next) -> Response {
    if is_foreign(&request) {
        return (StatusCode::FORBIDDEN, "This form was sent by a page of another site.\n").into_response();
    }
    next.run(request).await
}

fn is_foreign(request: &Request) -> bool {
    if [Method::GET, Method::HEAD].contains(request.method()) {
        return false;
    }
    let said = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = said("host").or_else(|| request.uri().authority().map(|host| host.as_str()));
    let origin = said("origin").is_some_and(|origin| origin.split_once("://").map(|(_, place)| place) != host);
    origin || said("sec-fetch-site").is_some_and(|site| !["same-origin", "none"].contains(&site))
}

/// Somebody with a session whose API token is still good.
pub(super) struct Signed {
    pub(super) console: Console,
    pub(super) id: String,
    pub(super) token: String,
    /// Fires when the session ends.
    pub(super) over: CancellationToken,
    csrf: String,
    name: String,
    role: String,
    /// The only clusters that the token reaches; `None`: all.
    kept: Option<Vec<String>>,
    theme: String,
    /// The page that is looked at.
    back: String,
    host: String,
}

impl FromRequestParts<Console> for Signed {
    type Rejection = Stop;

    async fn from_request_parts(head: &mut Head, console: &Console) -> Result<Self, Stop> {
        let back =
            if head.method == Method::GET { head.uri.path_and_query().map(|back| back.to_string()) } else { None };
        let back = back.unwrap_or_else(|| HOME.to_owned());
        let leave = || Stop::from(Redirect::to(&sign_in_at(&back)).into_response());
        let id = cookie(&head.headers, SESSION_COOKIE).ok_or_else(leave)?;
        let session = console.sessions.find(&id).ok_or_else(leave)?;
        let who = ask::ask(&console.api, &session.token, Method::GET, "/api/v1/whoami", None, None).await;
        if who.status != StatusCode::OK {
            console.sessions.end(&id);
            return Err(leave());
        }
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let clusters = who.body["clusters"].as_array();
        let kept = clusters.map(|names| names.iter().map(|name| ask::text(name, "")).collect());
        Ok(Self {
            console: console.clone(),
            id,
            token: session.token,
            over: session.over,
            csrf: session.csrf,
            name: ask::text(&who.body["name"], ""),
            role: ask::text(&who.body["role"], ""),
            theme: theme(&head.headers),
            kept,
            back,
            host: host.to_owned(),
        })
    }
}

impl Signed {
    /// May change clusters and preheats, and let nodes in.
    pub(super) fn operates(&self) -> bool {
        self.role == "operator" || self.role == "admin"
    }

    /// May make API tokens and read the audit log.
    pub(super) fn is_admin(&self) -> bool {
        self.role == "admin"
    }

    /// The only clusters that the token reaches; `None`: all.
    pub(super) fn kept(&self) -> Option<&[String]> {
        self.kept.as_deref()
    }

    /// Reaches all clusters.
    pub(super) const fn reaches_all(&self) -> bool {
        self.kept.is_none()
    }

    /// Why somebody with this token is shown no form for what takes that role and, if it is about `all`, a reach to all clusters.
    /// `None`: they may.
    pub(super) fn unfit(&self, what: &str, operates: bool, all: bool) -> Option<String> {
        if operates && !self.operates() {
            return Some(format!("{what} takes an operator's API token; {} is a {}'s.", self.name, self.role));
        }
        let kept = self.kept.as_ref().filter(|_| all)?.join(", ");
        Some(format!("{what} takes an API token that reaches all clusters; {} is kept to {kept}.", self.name))
    }

    /// What forms show.
    pub(super) fn csrf(&self) -> String {
        self.csrf.clone()
    }

    /// The host by which the browser reaches this service, without its port.
    pub(super) fn host(&self) -> &str {
        let end = self.host.rfind(':').filter(|at| self.host[*at..].bytes().skip(1).all(|b| b.is_ascii_digit()));
        &self.host[..end.unwrap_or(self.host.len())]
    }

    /// The host and the port by which the browser reaches this service.
    pub(super) fn authority(&self) -> &str {
        &self.host
    }

    pub(super) fn shell(&self, title: &str, here: &'static str) -> Shell {
        Shell {
            here,
            name: self.name.clone(),
            role: self.role.clone(),
            csrf: self.csrf.clone(),
            theme: self.theme.clone(),
            back: self.back.clone(),
            admin: self.is_admin() && self.reaches_all(),
            ..Shell::titled(title)
        }
    }

    /// What the API says, whatever it is.
    ///
    /// # Errors
    /// The way to the sign-in page, when the token is not good any more.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        if_match: Option<&str>,
        body: Option<Value>,
    ) -> Result<Answer, Stop> {
        let answer = ask::ask(&self.console.api, &self.token, method, path, if_match, body).await;
        if answer.status == StatusCode::UNAUTHORIZED {
            self.console.sessions.end(&self.id);
            return Err(Redirect::to(&sign_in_at(&self.back)).into_response().into());
        }
        Ok(answer)
    }

    /// What there is at an address of the API.
    ///
    /// # Errors
    /// The page that says why not.
    pub(super) async fn get(&self, path: &str) -> Result<Answer, Stop> {
        self.done(self.ask(Method::GET, path, None, None).await?)
    }

    /// The answer, if it is a good one.
    ///
    /// # Errors
    /// The page that says what went wrong.
    pub(super) fn done(&self, answer: Answer) -> Result<Answer, Stop> {
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(self.failed(answer.status, &answer.detail()).into())
    }

    /// A page that says what went wrong.
    pub(super) fn failed(&self, status: StatusCode, why: &str) -> Response {
        let title = status.canonical_reason().unwrap_or("Error");
        let shell = Shell { error: why.to_owned(), ..self.shell(title, "") };
        (status, view::page(shell, Vec::new())).into_response()
    }

    pub(super) fn page(&self, title: &str, here: &'static str, parts: Vec<String>) -> Html<String> {
        view::page(self.shell(title, here), parts)
    }
}

/// A form that somebody who is signed in sent from a page of this session.
pub(super) struct Posted {
    pub(super) me: Signed,
    fields: Fields,
}

impl FromRequest<Console> for Posted {
    type Rejection = Stop;

    async fn from_request(request: Request, console: &Console) -> Result<Self, Stop> {
        let (mut head, body) = request.into_parts();
        let me = Signed::from_request_parts(&mut head, console).await?;
        let read = Form::<Fields>::from_request(Request::from_parts(head, body), console).await;
        let Form(fields) = read.map_err(|error| Stop::from(me.failed(error.status(), &error.body_text())))?;
        if !session::same(fields.get("csrf").map_or("", String::as_str), &me.csrf) {
            let why = "This form was not from a page of this session. Go back, reload the page and try again.";
            return Err(me.failed(StatusCode::FORBIDDEN, why).into());
        }
        Ok(Self { me, fields })
    }
}

impl Posted {
    /// A field, without space at its ends; empty when it is not there.
    pub(super) fn get(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |value| value.trim())
    }

    /// What a field lists: lines, or what commas separate.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let parts = self.get(name).split(['\n', ',']).map(str::trim).filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect()
    }
}
