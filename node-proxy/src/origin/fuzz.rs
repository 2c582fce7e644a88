//! What holds for any challenge: the fuzz target of `integration/fuzz`, and the test that plays its corpus.

use http::HeaderValue;

use super::challenge::{Bearer, bearer};

/// Challenges of one answer. What is read of them is read again from the plainest form of it, and a challenge before
/// it of a scheme that nobody knows changes nothing.
///
/// # Panics
/// When that does not hold.
pub(crate) fn challenge(challenges: &[HeaderValue]) {
    let Some(found) = bearer(challenges) else { return };
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let Bearer { realm, service } = &found;
    let mut plainest = format!("Bearer realm={}", quoted(realm));
    if let Some(service) = service {
        plainest.push_str(&format!(",service={}", quoted(service)));
    }
    for text in [plainest.clone(), format!("Other x=\"Bearer realm=\\\"no\\\"\", {plainest}")] {
        let header = HeaderValue::from_str(&text).expect("it came out of a header");
        assert_eq!(bearer([&header]).as_ref(), Some(&found), "{text}");
    }
}
