//! How answers end: whole, an error before the first byte, or a FIN (I7).

use super::*;

/// The registry gives this many bytes and ends the connection.
fn breaking(rig: &Rig, bytes: &Bytes, after: usize) {
    let bytes = bytes.clone();
    rig.shelf.instead(move |seen| {
        let head = seen.method == http::Method::HEAD || seen.path.starts_with("/token");
        let whole = seen.header("range").is_none();
        (!head).then(|| match whole {
            true => Reply::status(200).content(Content::Broken(bytes.slice(..after), bytes.len() as u64)),
            false => Reply::status(503),
        })
    });
}

#[tokio::test]
async fn i7_a_body_that_breaks_ends_in_a_fin_and_the_reopened_range_is_served() {
    let rig = Rig::start().await;
    let bytes = content(5);
    let digest = rig.shelve(&bytes, "");
    breaking(&rig, &bytes, 1 << 20);
    let got = rig.blob(&digest, &[]).await;
    assert_eq!((got.status, got.end), (200, End::Fin), "cut after {} bytes", got.body.len());
    assert_eq!(got.header("content-length"), Some(bytes.len().to_string().as_str()));
    let given = got.body.len();
    assert!((1..=1 << 20).contains(&given) && got.body == bytes[..given], "{given} bytes, all of them right");
    rig.shelf.as_before();
    let before = rig.server.seen().len();
    let got = rig.blob(&digest, &[("range", &format!("bytes={given}-"))]).await;
    assert_eq!((got.status, got.end), (206, End::Fin));
    assert_eq!(got.body, bytes[given..]);
    // What was verified before is not read again.
    let asked = rig.server.seen().split_off(before);
    let range = asked.iter().find_map(|seen| seen.header("range")).expect("a read of the rest").to_owned();
    let first: usize = range.trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap();
    assert!(first >= given - given % (256 << 10), "read again from {first}");
}

#[tokio::test]
async fn i7_the_rest_of_a_blob_that_the_origin_cuts_again_and_again_is_left_to_the_registry() {
    let rig = Rig::start().await;
    let bytes = content(12);
    let digest = rig.shelve(&bytes, "");
    let (whole, size) = (bytes.clone(), bytes.len());
    // Half of whatever is asked for, and then the connection ends.
    rig.shelf.instead(move |seen| {
        let head = seen.method == http::Method::HEAD || seen.path.starts_with("/token");
        let from = seen.header("range").and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
        let from: usize = from.unwrap_or(0);
        let left = size - from;
        let reply = Reply::status(if from > 0 { 206 } else { 200 });
        let reply =
            if from > 0 { reply.with("content-range", format!("bytes {from}-{}/{size}", size - 1)) } else { reply };
        (!head).then(|| reply.content(Content::Broken(whole.slice(from..from + left / 2), left as u64)))
    });
    let mut have = rig.blob(&digest, &[]).await.body;
    let mut answers = Vec::new();
    for _ in 0..6 {
        let got = rig.blob(&digest, &[("range", &format!("bytes={}-", have.len()))]).await;
        assert_eq!(got.end, End::Fin);
        answers.push(got.status);
        if got.status == 503 {
            break;
        }
        have.extend(got.body);
    }
    assert_eq!(answers, [206, 503], "one more try, and then containerd must go on by itself");
    assert_eq!(have, bytes[..have.len()]);
    rig.shelf.as_before();
    assert_eq!(rig.blob(&digest, &[]).await.status, 200, "from its start it is given as ever");
}

#[tokio::test]
async fn i7_nothing_is_answered_before_verified_bytes_are_in_hand() {
    let rig = Rig::start().await;
    let bytes = content(6);
    let digest = rig.shelve(&bytes, "");
    for broken in [0, 1000] {
        breaking(&rig, &bytes, broken);
        let got = rig.blob(&digest, &[]).await;
        assert_eq!((got.status, got.code().as_str(), got.end), (503, "UNAVAILABLE", End::Fin), "after {broken} bytes");
    }
}

#[tokio::test]
async fn i1_wrong_bytes_never_make_a_complete_body_and_the_digest_is_refused_then() {
    let rig = Rig::start().await;
    let bytes = content(7);
    let digest = rig.shelve(&bytes, "");
    let mut wrong = bytes.to_vec();
    wrong[1_500_000] ^= 1;
    rig.shelf.content.lock().insert(digest.to_string(), (wrong.into(), ""));
    let got = rig.blob(&digest, &[]).await;
    assert_eq!((got.status, got.end), (200, End::Fin));
    assert!(got.body.len() < bytes.len(), "a complete body of wrong bytes");
    let again = rig.blob(&digest, &[]).await;
    assert_eq!((again.status, again.code().as_str()), (404, "BLOB_UNKNOWN"));
    assert!(rig.store.held(&digest).is_none());
    assert!(rig.engine.offer(&digest).await.is_none());
}

#[tokio::test]
async fn i7_past_the_first_byte_a_range_is_passed_through_even_for_a_refused_digest() {
    let rig = Rig::start().await;
    let bytes = content(8);
    let digest = rig.shelve(&bytes, "");
    let mut wrong = bytes.to_vec();
    wrong[0] ^= 1;
    rig.shelf.content.lock().insert(digest.to_string(), (wrong.into(), ""));
    rig.blob(&digest, &[]).await;
    rig.shelve(&bytes, "");
    assert_eq!(rig.blob(&digest, &[]).await.status, 404);
    let got = rig.blob(&digest, &[("range", "bytes=1000000-")]).await;
    assert_eq!((got.status, got.body.as_slice()), (206, &bytes[1_000_000..]));
}

#[tokio::test]
async fn a_busy_registry_is_503_and_never_429_or_408() {
    let rig = Rig::start().await;
    let digest = rig.shelve(&content(9), "");
    for status in [429, 408, 500, 503] {
        rig.shelf.instead(move |_| Some(Reply::status(status).with("retry-after", "7")));
        for got in [rig.blob(&digest, &[]).await, rig.manifest("1", &[]).await] {
            assert!(matches!(got.status, 502 | 503), "{status} became {}", got.status);
            assert_eq!(got.header("retry-after"), None);
        }
    }
}

#[tokio::test]
async fn i8_a_registry_that_says_nothing_is_503_within_the_budget() {
    let rig = Rig::start().await;
    let bytes = content(10);
    let digest = rig.shelve(&bytes, "");
    // Known to be public first, so that the silence falls on the bytes.
    assert_eq!(rig.head("blobs", digest, &[]).await.status, 200);
    let size = bytes.len() as u64;
    rig.shelf.instead(move |seen| {
        let bytes = seen.method == http::Method::GET && !seen.path.starts_with("/token");
        bytes.then(|| Reply::status(200).content(Content::Silent(Bytes::new(), size)))
    });
    let since = std::time::Instant::now();
    let got = rig.blob(&digest, &[]).await;
    assert_eq!((got.status, got.code().as_str()), (503, "UNAVAILABLE"));
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_client_that_goes_away_ends_nothing_for_the_next() {
    let rig = Rig::start().await;
    let bytes = content(11);
    let digest = rig.shelve(&bytes, "");
    for _ in 0..5 {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        let request = format!("GET /v2/lab/app/blobs/{digest}?{NS} HTTP/1.1\r\nhost: m\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut some = [0; 100];
        let _ = stream.read(&mut some).await.unwrap();
        drop(stream);
    }
    let got = rig.blob(&digest, &[]).await;
    assert_eq!((got.status, got.body.len()), (200, bytes.len()));
    assert_eq!(rig.gets(), 1, "one flight for all");
}
