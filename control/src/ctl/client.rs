//! A client of REST.

use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Method, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;

use super::Error;

/// Every request is answered from memory or with one small write; what takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Of a connection, shorter, so that a wrong address shows soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Items of a page: the most that the server gives.
const PAGE: &str = "1000";

/// Of a stream of events: nobody looks on for longer.
const STREAM: Duration = Duration::from_secs(365 * 24 * 3600);

/// What comes after a collection in an address, as the help calls it.
const ARGUMENTS: [(&str, &str); 7] = [
    ("clusters", "CLUSTER"),
    ("nodes", "NODE"),
    ("members", "NODE"),
    ("preheats", "PREHEAT"),
    ("blobs", "DIGEST"),
    ("join-tokens", "ID"),
    ("api-tokens", "TOKEN"),
];

/// What REST says of an address that it does not have. Those of this client are there in its own release.
const NO_ADDRESS: &str = "there is nothing at this address";

/// A page of a list.
#[derive(Deserialize)]
struct Page {
    items: Vec<Value>,
    next: Option<String>,
}

pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
}

/// A problem document, as much of it as is printed.
#[derive(Deserialize)]
struct Problem {
    detail: String,
}

impl Client {
    pub(super) fn new(server: &str, ca_file: Option<&Path>, token: Option<String>) -> Result<Self, Error> {
        let base: Url =
            server.parse().map_err(|error| Error::Refused(format!("--server {server:?} is not a URL: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(Error::Refused(format!("--server {server:?} is not http://host:port or https://host:port")));
        }
        // Whoever names an authority believes that the token is shown to nobody else.
        if ca_file.is_some() && base.scheme() == "http" {
            return Err(Error::Refused(format!(
                "--ca-file is there, and --server {server:?} is http://; say https://"
            )));
        }
        // The only provider that the build has on purpose; a second call finds the first one's.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder();
        if let Some(path) = ca_file {
            let refused = |why: String| Error::Refused(format!("--ca-file {}: {why}", path.display()));
            let text = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
            let trusted = Certificate::from_pem_bundle(&text).map_err(|error| refused(error.to_string()))?;
            if trusted.is_empty() {
                return Err(refused("holds no certificate in PEM".into()));
            }
            http = http.tls_certs_only(trusted);
        }
        let http = http
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            // Control is inside the operator's network; a proxy for the world outside is not the way to it.
            .no_proxy()
            .build()
            .map_err(|error| Error::Failed(format!("make an HTTP client: {error}")))?;
        Ok(Self { http, base, token })
    }

    /// A request to `/api/v1/<path>`, each part as one segment, whatever is in it.
    pub(super) fn request(&self, method: Method, path: &[&str]) -> Request<'_> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        let changes = method != Method::GET;
        let request = self.http.request(method, url);
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        Request { client: self, request, changes, fault: unaddressable(path) }
    }
}

pub(super) struct Request<'a> {
    client: &'a Client,
    request: reqwest::RequestBuilder,
    /// The server may do something by it.
    changes: bool,
    /// Why it is not sent at all.
    fault: Option<String>,
}

impl Request<'_> {
    /// Nothing is changed by it, whatever its method is.
    pub(super) fn only_asks(self) -> Self {
        Self { changes: false, ..self }
    }

    /// Only to say what would change.
    pub(super) fn dry_run(self) -> Self {
        self.query(&[("dry_run", "true")]).only_asks()
    }

    pub(super) fn json(self, body: &Value) -> Self {
        Self { request: self.request.json(body), ..self }
    }

    pub(super) fn query(self, query: &[(&str, &str)]) -> Self {
        Self { request: self.request.query(query), ..self }
    }

    /// Only if the thing is in the state of this tag; `None`: whatever it is like, said openly.
    pub(super) fn if_match(self, tag: Option<&str>) -> Self {
        let tag = tag.map_or_else(|| "*".to_owned(), |tag| format!("\"{tag}\""));
        Self { request: self.request.header("if-match", tag), ..self }
    }

    /// A stream, which is open for as long as somebody looks on.
    pub(super) async fn stream(self, last: Option<&str>) -> Result<reqwest::Response, Error> {
        let request = self.request.header("accept", "text/event-stream").timeout(STREAM);
        let request = match last {
            Some(last) => request.header("last-event-id", last),
            None => request,
        };
        if let Some(fault) = self.fault {
            return Err(Error::Refused(fault));
        }
        let response = request.send().await.map_err(|error| self.client.unanswered(&error, false))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, body) = (response.status(), response.bytes().await.unwrap_or_default());
        Err(self.client.problem(status, &body))
    }

    /// Sends it. An answer without a body is null.
    pub(super) async fn send(self) -> Result<Value, Error> {
        Ok(self.read().await?.0)
    }

    /// Sends it. Beside the answer, the tag of the state that it tells of, if it has one.
    pub(super) async fn read(self) -> Result<(Value, Option<String>), Error> {
        let Self { client, request, changes, fault } = self;
        if let Some(fault) = fault {
            return Err(Error::Refused(fault));
        }
        let response = request.send().await.map_err(|error| client.unanswered(&error, changes))?;
        let status = response.status();
        let tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok());
        let tag = tag.map(|tag| tag.trim_matches('"').to_owned());
        let body = response.bytes().await.map_err(|error| client.unanswered(&error, changes))?;
        if status.is_success() {
            if body.is_empty() {
                return Ok((Value::Null, tag));
            }
            return serde_json::from_slice(&body)
                .map(|value| (value, tag))
                .map_err(|error| Error::Failed(format!("the server's answer is not JSON: {error}")));
        }
        Err(client.problem(status, &body))
    }
}

impl Client {
    /// All items of a list, page by page.
    pub(super) async fn list(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, Error> {
        let (mut items, mut after) = (Vec::new(), None::<String>);
        loop {
            let mut request = self.request(Method::GET, path).query(query).query(&[("limit", PAGE)]);
            if let Some(after) = &after {
                request = request.query(&[("after", after)]);
            }
            let Page { items: more, next } = super::understand(&request.send().await?)?;
            items.extend(more);
            match next {
                Some(next) => after = Some(next),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    /// What is there, and the tag of its state.
    ///
    /// # Errors
    /// [`Error::Failed`] also for an answer without a tag.
    pub(super) async fn seen(&self, path: &[&str]) -> Result<(Value, String), Error> {
        let (value, tag) = self.request(Method::GET, path).read().await?;
        let tag = tag.ok_or_else(|| Error::Failed("the server does not say which state this is (ETag)".to_owned()))?;
        Ok((value, tag))
    }

    /// Whoever has no connection has asked for nothing. Anybody else may have been heard.
    fn unanswered(&self, error: &reqwest::Error, changes: bool) -> Error {
        let (server, reason) = (self.base.to_string(), reason(error));
        if error.is_connect() {
            return Error::Unreachable { server, reason };
        }
        let done = if changes { "; it may have been done all the same: look before you repeat it" } else { "" };
        Error::NoAnswer(format!("{server} was asked: {reason}{done}"))
    }

    fn problem(&self, status: StatusCode, body: &[u8]) -> Error {
        let detail = match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => problem.detail,
            Err(_) => format!("the server answered {status}; is {} a shoal-control?", self.base),
        };
        match status {
            StatusCode::UNAUTHORIZED if self.token.is_none() => {
                Error::NotAllowed(format!("{detail}; say --token-file FILE, or set SHOAL_TOKEN"))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::NotAllowed(detail),
            StatusCode::NOT_FOUND if detail == NO_ADDRESS && self.base.path() != "/" => Error::NotFound(format!(
                "the shoal-control at {} does not know this: it is an older one, or {:?} does not belong in --server",
                self.base,
                self.base.path()
            )),
            StatusCode::NOT_FOUND if detail == NO_ADDRESS => {
                Error::NotFound(format!("the shoal-control at {} does not know this: it is an older one", self.base))
            }
            StatusCode::NOT_FOUND => Error::NotFound(detail),
            StatusCode::CONFLICT => Error::Conflict(detail),
            StatusCode::PRECONDITION_FAILED => Error::Conflict(format!(
                "{detail}; nothing was done: look at what it is now, and run this again if that is still right"
            )),
            status if status.is_client_error() => Error::Refused(detail),
            status if status.is_server_error() => Error::Server(detail),
            _ => Error::Failed(detail),
        }
    }
}

/// What of a path can't be in an address: nothing, and what addresses are shortened by (RFC 3986 section 5.2.4).
fn unaddressable(path: &[&str]) -> Option<String> {
    let at = path.iter().position(|segment| matches!(*segment, "" | "." | ".."))?;
    let before = at.checked_sub(1).map(|before| path[before]);
    let known = ARGUMENTS.iter().find(|(collection, _)| Some(*collection) == before);
    let what = known.map_or("an argument", |(_, argument)| argument);
    Some(match path[at] {
        "" => format!("{what} is empty"),
        dots => format!("{what} is {dots:?}, which nothing can be named"),
    })
}

/// The innermost cause says most: "connection refused" rather than "error sending request".
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        let what = if error.is_connect() { "no connection" } else { "nothing came" };
        return format!("{what} in time");
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes connections and says nothing.
    async fn silent() -> (tokio::net::TcpListener, Client) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()), None, None).unwrap();
        (listener, client)
    }

    #[tokio::test]
    async fn what_was_asked_and_not_answered_in_time_may_have_been_done() {
        let (_listener, client) = silent().await;
        for (method, path, changes) in
            [(Method::GET, "nodes", false), (Method::POST, "clusters", true), (Method::PUT, "clusters", true)]
        {
            let request = client.request(method.clone(), &[path]);
            let soon = request.request.timeout(Duration::from_millis(50));
            let error = Request { request: soon, ..request }.send().await.unwrap_err();
            assert_eq!(error.exit_code(), 9, "{method}: {error}");
            let text = error.to_string();
            assert!(text.contains("in time") && !text.contains("can't reach"), "{text}");
            assert_eq!(text.contains("may have been done") && text.contains("look before"), changes, "{text}");
        }
    }

    #[tokio::test]
    async fn a_dry_run_has_done_nothing_whatever_becomes_of_it() {
        let (_listener, client) = silent().await;
        let request = client.request(Method::DELETE, &["clusters", "b"]).dry_run();
        let soon = request.request.timeout(Duration::from_millis(50));
        let error = Request { request: soon, ..request }.send().await.unwrap_err().to_string();
        assert!(error.contains("no answer") && !error.contains("may have been done"), "{error}");
    }

    #[test]
    fn what_can_not_be_in_an_address_is_named() {
        assert_eq!(unaddressable(&["clusters", "a/b"]), None);
        assert_eq!(unaddressable(&["clusters", ""]).unwrap(), "CLUSTER is empty");
        assert_eq!(
            unaddressable(&["preheats", "..", "retry"]).unwrap(),
            "PREHEAT is \"..\", which nothing can be named"
        );
        assert_eq!(unaddressable(&["api-tokens", "."]).unwrap(), "TOKEN is \".\", which nothing can be named");
    }
}
