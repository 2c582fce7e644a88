//! What holds for any path and any `Range` header: the fuzz targets of `integration/fuzz`, and the test that plays their
//! corpora.

use http::header::{HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE};
use http::{Method, StatusCode, Uri};

use super::range::{Asked, Given};
use super::refusal::{Code, Refusal};
use super::route::{Content, Route};
use crate::origin::{OriginError, Reference};

/// A path, with its query. One that is accepted prints back to an equivalent path; one that is not is refused with a
/// status that I7 allows.
///
/// # Panics
/// When that does not hold.
pub fn route(data: &[u8]) {
    let Ok(uri) = Uri::try_from(data) else { return };
    for method in [Method::GET, Method::HEAD] {
        match Route::of(&method, &uri) {
            Ok(route) => {
                let printed = print(&route);
                let again: Uri = printed.parse().expect("what is printed is a path");
                let again = Route::of(&method, &again).expect("what is printed is accepted");
                assert_eq!(again, route, "{uri} is printed as {printed}");
            }
            Err(refusal) => {
                assert!(matches!(refusal.status.as_u16(), 400 | 404), "{uri}: {}", refusal.status);
                assert!(!refusal.message.is_empty());
            }
        }
    }
    let refused = Route::of(&Method::PUT, &uri).expect_err("a mirror only gives");
    assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
}

fn print(route: &Route) -> String {
    let Route::Pull { ns, repository, content, .. } = route else { return "/v2/".into() };
    // Nothing of these means something else in a path: whoever builds the origin's path from them relies on it.
    let plain = |text: &str| {
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-:".contains(&b)), "{text:?}");
        assert!(text.split('/').all(|part| !part.is_empty() && part != "." && part != ".."), "{text:?}");
    };
    plain(repository.as_str());
    let mut text = match content {
        Content::Blob(digest) => format!("/v2/{repository}/blobs/{digest}"),
        Content::Manifest(reference) => {
            plain(&reference.to_string());
            if let Reference::Digest(digest) = reference {
                assert_eq!(route.digest(), Some(*digest));
            }
            format!("/v2/{repository}/manifests/{reference}")
        }
    };
    if let Some(ns) = ns {
        text.push_str("?x&ns=");
        ns.bytes().for_each(|byte| text.push_str(&format!("%{byte:02x}")));
    }
    text
}

/// A size, a space and the value of a `Range` header. What is given lies within the size, starts where the header says,
/// and is what RFC 9110 says of a header in its plain form.
///
/// # Panics
/// When that does not hold.
pub fn range(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b' ').unwrap_or(data.len());
    let size = std::str::from_utf8(&data[..at]).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let Ok(value) = HeaderValue::from_bytes(data.get(at + 1..).unwrap_or_default()) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(RANGE, value.clone());
    let asked = Asked::of(&headers);
    let given = asked.within(size);
    if let Given::Part(part) = &given {
        assert!(part.start < part.end && part.end <= size, "{part:?} of {size}");
        assert!(asked.start() == part.start || matches!(asked, Asked::Last(_)), "{asked:?} starts at {part:?}");
    }
    assert_eq!(asked.is_whole(), given == Given::Whole, "{asked:?}");
    if let Some((first, last)) = value.to_str().ok().and_then(plain) {
        assert_eq!(given, within(first, last, size), "{value:?} of {size}");
    }
    // Two of them, or one with a condition that nobody can meet, count for nothing.
    headers.insert(http::header::IF_RANGE, HeaderValue::from_static("\"x\""));
    assert_eq!(Asked::of(&headers), Asked::Whole);
    headers.remove(http::header::IF_RANGE);
    headers.append(RANGE, value);
    assert_eq!(Asked::of(&headers), Asked::Whole);
}

/// The numbers of `bytes=first-last`, if it is written without anything else.
fn plain(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| match text {
        "" => Some(None),
        text if text.len() < 18 && text.bytes().all(|byte| byte.is_ascii_digit()) => Some(text.parse().ok()),
        _ => None,
    };
    match (number(first)?, number(last)?) {
        (None, None) => None,
        both => Some(both),
    }
}

/// RFC 9110 section 14.1.2, said another way than the mirror says it: by the bytes themselves.
fn within(first: Option<u64>, last: Option<u64>, size: u64) -> Given {
    let (first, after) = match (first, last) {
        (Some(0), None) => return Given::Whole,
        (Some(first), last) if last.is_some_and(|last| last < first) => return Given::Unsatisfiable,
        (Some(first), last) => (first, last.map_or(size, |last| (last + 1).min(size))),
        (None, last) => (size - last.unwrap_or(0).min(size), size),
    };
    if first < after { Given::Part(first..after) } else { Given::Unsatisfiable }
}

/// Challenges as a registry sent them, one a line: containerd gets them unchanged and in their order.
///
/// # Panics
/// When that does not hold.
pub fn challenge(data: &[u8]) {
    let challenges: Vec<HeaderValue> =
        data.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok()).collect();
    crate::origin::fuzz::challenge(&challenges);
    let error = OriginError::Unauthorized { registry: "registry.example".into(), challenges };
    let refusal = Refusal::origin(&error, Code::BlobUnknown);
    let OriginError::Unauthorized { challenges, .. } = error else { return };
    assert_eq!(refusal.status, StatusCode::UNAUTHORIZED);
    assert!(refusal.headers.get_all(WWW_AUTHENTICATE).iter().eq(&challenges));
}
