//! One request through the proxy.
use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, LOCATION, RETRY_AFTER, USER_AGENT},
};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::{
    Asked, Entry, Fault, OURS, SIGNATURE, Shared,
    body::{Shape, shaped},
    wire::Reset,
};
use crate::http::{Body, Client, full};

/// Within the lab's network, and nobody's.
const DEAD_HOST: &str = "10.77.255.254";
/// What [`Fault::TooManyBytes`] adds.
const MORE: u64 = 64 << 10;

/// Answers, whatever becomes of it: the registry's own failure is a 502.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    from: SocketAddr,
    request: Request<Incoming>,
    reset: Reset,
) -> Response<Body> {
    let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let agent = text(USER_AGENT).to_owned();
    let asked = Asked { method: request.method(), path: request.uri().path(), ours: agent.starts_with(OURS) };
    let (fault, entry) = shared.judge(from, &asked, &agent);
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let denied = shared.gate.as_ref().is_some_and(|rights| rights.denies(shown, &entry.path));
    let answered = match fault {
        None if denied => Ok(status(StatusCode::FORBIDDEN)),
        None => hand_on(shared, request, &entry, |_| Shape::Whole).await,
        Some(fault) => {
            tracing::debug!(?fault, path = entry.path, agent, "fault proxy: hit");
            broken(shared, request, &entry, fault, reset).await
        }
    };
    let answer = answered.unwrap_or_else(|error| {
        tracing::warn!(error = %format!("{error:#}"), "fault proxy: ask the registry");
        status(StatusCode::BAD_GATEWAY)
    });
    entry.answered(answer.status());
    answer
}

async fn broken(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    entry: &Arc<Entry>,
    fault: Fault,
    reset: Reset,
) -> Result<Response<Body>> {
    let shape = |shape: fn(u64) -> Shape| move |length: u64| shape(length);
    match fault {
        Fault::Unavailable => Ok(status(StatusCode::SERVICE_UNAVAILABLE)),
        Fault::TooMany(seconds) => {
            let mut answer = status(StatusCode::TOO_MANY_REQUESTS);
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            Ok(answer)
        }
        Fault::DeadRedirect => {
            let mut answer = status(StatusCode::TEMPORARY_REDIRECT);
            let to = format!("https://{DEAD_HOST}{}?X-Amz-Signature={SIGNATURE}", entry.path);
            answer.headers_mut().insert(LOCATION, HeaderValue::try_from(to)?);
            Ok(answer)
        }
        Fault::Unauthorized => {
            // The registry itself says no, so that its challenge is a real one.
            request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer not.a.token"));
            hand_on(shared, request, entry, |_| Shape::Whole).await
        }
        Fault::Silent(pause) => {
            tokio::time::sleep(pause).await;
            hand_on(shared, request, entry, |_| Shape::Whole).await
        }
        Fault::Stalled(pause) => {
            hand_on(shared, request, entry, |length| Shape::Pause { after: length / 2, pause }).await
        }
        Fault::Fin => {
            hand_on(shared, request, entry, shape(|length| Shape::End { after: length / 2, reset: None })).await
        }
        Fault::NoByte => hand_on(shared, request, entry, shape(|_| Shape::End { after: 0, reset: None })).await,
        Fault::Rst => {
            hand_on(shared, request, entry, |length| Shape::End { after: length / 2, reset: Some(reset) }).await
        }
        Fault::TooFewBytes => {
            hand_on(shared, request, entry, shape(|length| Shape::Short { length: length / 2 })).await
        }
        Fault::TooManyBytes => hand_on(shared, request, entry, shape(|_| Shape::Long { more: MORE })).await,
        Fault::WrongByte => hand_on(shared, request, entry, shape(|length| Shape::Flip { at: length / 2 })).await,
        Fault::WrongName | Fault::Stranger => hand_on(shared, request, entry, |_| Shape::Whole).await,
    }
}

/// Asks the registry and gives its answer, the body in the shape that is chosen by its length. Only a body of known length
/// that is content (200 and 206) takes a shape.
async fn hand_on(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    entry: &Arc<Entry>,
    shape: impl FnOnce(u64) -> Shape,
) -> Result<Response<Body>> {
    let (mut parts, body) = request.into_parts();
    for hop in [HOST, CONNECTION] {
        parts.headers.remove(hop);
    }
    let head = parts.method == http::Method::HEAD;
    let body = body.map_err(std::io::Error::other).boxed();
    let registry = Client::plain(&shared.ns, shared.registry);
    let answer = registry.open(Request::from_parts(parts, body)).await.context("ask the registry")?;
    let (mut parts, body) = answer.into_parts();
    parts.headers.remove(CONNECTION);
    let content = matches!(parts.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) && !head;
    let shape = match length(&parts.headers).filter(|_| content) {
        Some(length) => shape(length),
        None => Shape::Whole,
    };
    if let (Some(is), Some(says)) = (length(&parts.headers), shape.announces(length(&parts.headers)))
        && is != says
    {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(says));
    }
    Ok(Response::from_parts(parts, shaped(body, shape, entry.clone())))
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn status(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(full("{\"errors\":[]}\n"));
    *answer.status_mut() = status;
    answer
}
