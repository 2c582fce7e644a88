//! One question to a registry: sent, redirected, and its answer judged.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::connect::Refusal;
use super::metrics::Asked;
use super::site::Site;
use super::{Access, Origin, OriginError, Target, Who};

/// Registries redirect once, to their storage; five leave room for a proxy's own.
const MOST_REDIRECTS: usize = 5;
/// Retry-After is believed up to an hour.
const LONGEST_RETRY: u64 = 3600;

/// A request without a body and without a credential.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) url: Uri,
    pub(super) headers: HeaderMap,
    /// Whether redirects are followed.
    pub(super) follow: bool,
}

/// An answer, whatever its status.
pub(super) struct Sent {
    pub(super) response: Response<Incoming>,
    /// It came from another origin than the registry, after a redirect: its 401 and 403 are not the registry's.
    pub(super) away: bool,
}

impl Origin {
    /// Asks on somebody's behalf, within the time for headers. What the answer says of who may read the repository is
    /// remembered.
    pub(super) async fn ask(
        &self,
        asked: Asked,
        target: &Target,
        site: &Site,
        request: Outgoing,
        who: &Who,
    ) -> Result<Response<Incoming>, OriginError> {
        let since = Instant::now();
        let limit = self.config.headers_timeout;
        let leave = self.silence.ask(&target.registry).inspect_err(|error| {
            self.metrics.asked::<()>(asked, &Err(error.clone()), Duration::ZERO);
        })?;
        let spoke = AtomicBool::new(false);
        let asking = async {
            let sent = match who {
                Who::Anybody => self.send_anonymous(site, target, request).await?,
                Who::Caller(credential) => self.send(site, request, Some(credential.0.clone())).await?,
                Who::Own => self.send_own(site, target, request).await?,
            };
            spoke.store(true, Ordering::Relaxed);
            tracing::Span::current().record("http.status_code", sent.response.status().as_u16());
            if sent.response.status().is_success() || (!sent.away && sent.response.status().is_redirection()) {
                return Ok(sent.response);
            }
            Err(judge(site, &sent, Some(who)))
        };
        let result = tokio::time::timeout(limit, asking)
            .await
            .unwrap_or_else(|_| Err(unreachable(site, &format!("no headers within {limit:?}"))));
        self.metrics.asked(asked, &result, since.elapsed());
        if leave.learn(&result, spoke.into_inner(), limit) {
            tracing::warn!(registry = %target.registry, waited = ?since.elapsed(), "the registry is silent; it is left alone for a while");
        }
        if let Who::Caller(credential) = who {
            match &result {
                Ok(_) => self.callers.learn(target, credential, Ok(())),
                Err(error @ (OriginError::Unauthorized { .. } | OriginError::Denied { .. })) => {
                    self.callers.learn(target, credential, Err(error.clone()));
                }
                Err(_) => {}
            }
            if result.is_ok() {
                self.access.note_reader(target);
            }
        }
        let tell = match (who, &result) {
            (Who::Anybody, Ok(_)) => self.access.learn(target, Access::Public),
            (Who::Anybody, Err(OriginError::Unauthorized { challenges, .. })) => {
                self.access.learn(target, Access::Private { challenges: challenges.clone() })
            }
            _ => false,
        };
        if tell {
            self.witness.saw_public(target, None);
        }
        result
    }

    /// Sends and follows redirects. The credential goes no further than the first origin.
    pub(super) async fn send(
        &self,
        site: &Site,
        request: Outgoing,
        mut credential: Option<HeaderValue>,
    ) -> Result<Sent, OriginError> {
        let Outgoing { method, mut url, headers, follow } = request;
        let mut away = false;
        for _ in 0..=MOST_REDIRECTS {
            self.permit(site, &url)?;
            let response = self.send_once(site, &method, &url, &headers, credential.as_ref()).await?;
            let status = response.status();
            let redirects = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
            if !redirects || !follow {
                return Ok(Sent { response, away });
            }
            let next = response
                .headers()
                .get(LOCATION)
                .and_then(|location| resolve(&url, location.to_str().ok()?))
                .ok_or_else(|| nonsense(site, "a redirect without a usable Location"))?;
            if !same_origin(&url, &next) {
                credential = None;
                away = true;
            }
            url = next;
        }
        Err(nonsense(site, "too many redirects"))
    }

    fn permit(&self, site: &Site, url: &Uri) -> Result<(), OriginError> {
        let refused =
            |why: &str| Err(OriginError::Refused { registry: site.registry.to_string(), why: why.to_owned() });
        match url.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => {}
            Some(scheme) if *scheme == Scheme::HTTP && site.plain_http => {}
            Some(scheme) if *scheme == Scheme::HTTP => {
                return refused("it leads to plain HTTP, which is not configured");
            }
            _ => return refused("it leads to what is neither HTTPS nor HTTP"),
        }
        if url.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return refused("it leads to an URL with a user name");
        }
        Ok(())
    }

    async fn send_once(
        &self,
        site: &Site,
        method: &Method,
        url: &Uri,
        headers: &HeaderMap,
        credential: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, OriginError> {
        let mut retried = false;
        loop {
            let mut request = http::Request::new(Empty::<Bytes>::new());
            *request.method_mut() = method.clone();
            *request.uri_mut() = url.clone();
            *request.headers_mut() = headers.clone();
            let headers = request.headers_mut();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Ok(agent) = HeaderValue::try_from(&self.config.user_agent) {
                headers.insert(USER_AGENT, agent);
            }
            if let Some(credential) = credential {
                headers.insert(AUTHORIZATION, credential.clone());
            }
            match site.client.request(request).await {
                Ok(response) => return Ok(response),
                // The server closed an idle connection while we wrote to it. We only GET and HEAD, so again is safe.
                Err(error) if !retried && !error.is_connect() && broke_before_answer(&error) => retried = true,
                Err(error) => {
                    if let Some(refusal) = cause::<Refusal>(&error) {
                        return Err(OriginError::Refused {
                            registry: site.registry.to_string(),
                            why: refusal.to_string(),
                        });
                    }
                    return Err(unreachable(site, &chain(&error)));
                }
            }
        }
    }
}

fn broke_before_answer(error: &hyper_util::client::legacy::Error) -> bool {
    cause::<hyper::Error>(error).is_some_and(|error| error.is_incomplete_message() || error.is_closed())
        || cause::<std::io::Error>(error).is_some_and(|error| {
            matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
        })
}

fn cause<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        at = error.source();
    }
    None
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(error) = at {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        at = error.source();
    }
    text
}

/// RFC 9110 section 10.2.2, the forms that registries use: a whole URL, `//host/path`, or a path.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let whole = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.contains("://") {
        location.to_owned()
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    whole.parse::<Uri>().ok().filter(|url| url.host().is_some_and(|host| !host.is_empty()))
}

/// RFC 6454: scheme, host and port.
fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |url: &Uri| url.port_u16().unwrap_or(if url.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 });
    a.scheme() == b.scheme()
        && a.host().zip(b.host()).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
        && port(a) == port(b)
}

pub(super) fn unreachable(site: &Site, why: &str) -> OriginError {
    OriginError::Unreachable { registry: site.registry.to_string(), why: why.to_owned() }
}

pub(super) fn nonsense(site: &Site, why: &str) -> OriginError {
    OriginError::Nonsense { registry: site.registry.to_string(), why: why.to_owned() }
}

/// What a status that is no success means. `who` is `None` for a token service.
pub(super) fn judge(site: &Site, sent: &Sent, who: Option<&Who>) -> OriginError {
    let registry = site.registry.to_string();
    let headers = sent.response.headers();
    let retry_after = headers.get(RETRY_AFTER);
    match sent.response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if sent.away => {
            unreachable(site, &format!("the redirect's target says {}", sent.response.status()))
        }
        StatusCode::UNAUTHORIZED => {
            let challenges = headers.get_all(WWW_AUTHENTICATE).iter().cloned().collect();
            OriginError::Unauthorized { registry, challenges }
        }
        StatusCode::FORBIDDEN if matches!(who, Some(Who::Anybody)) => {
            OriginError::Unauthorized { registry, challenges: Vec::new() }
        }
        StatusCode::FORBIDDEN => OriginError::Denied { registry },
        StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::BAD_REQUEST => OriginError::NotFound { registry },
        StatusCode::RANGE_NOT_SATISFIABLE => OriginError::Range,
        StatusCode::TOO_MANY_REQUESTS => OriginError::Busy { registry, retry_after: wait(retry_after) },
        StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => {
            OriginError::Busy { registry, retry_after: wait(retry_after) }
        }
        status if status.is_server_error() => unreachable(site, &format!("it says {status}")),
        status => nonsense(site, &format!("it says {status}")),
    }
}

/// Retry-After in seconds; a date, or none, counts as 1 s.
fn wait(header: Option<&HeaderValue>) -> Duration {
    let seconds = header.and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok()).unwrap_or(1);
    Duration::from_secs(seconds.clamp(1, LONGEST_RETRY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_what_registries_send_as_location() {
        let base: Uri = "https://r.example:5000/v2/a/blobs/x?q=1".parse().unwrap();
        for (location, want) in [
            ("https://cdn.example/b?sig=1", "https://cdn.example/b?sig=1"),
            ("/other?x", "https://r.example:5000/other?x"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("y", "https://r.example:5000/v2/a/blobs/y"),
            ("https://cdn.example/b#frag", "https://cdn.example/b"),
        ] {
            assert_eq!(resolve(&base, location).unwrap().to_string(), want);
        }
        assert_eq!(resolve(&base, "https://"), None);
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://a/x", "https://A:443/y"));
        assert!(!same("https://a", "http://a"));
        assert!(!same("https://a", "https://a:444"));
        assert!(!same("https://a", "https://b"));
    }
}
