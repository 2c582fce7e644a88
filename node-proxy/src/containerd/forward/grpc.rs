//! Messages and answers of gRPC over HTTP/2, where a call is looked into.
//!
//! Source: gRPC over HTTP2, `doc/PROTOCOL-HTTP2.md` of grpc.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::Incoming;
use prost::Message;
use tonic::{Code, Status};

use super::{Body, Failed};

/// Flag and length before each message.
const PREFIX: usize = 5;

/// The single message of a request, at most `most` bytes of it.
///
/// # Errors
/// What the client hears: it is longer, compressed, cut, or more than one.
pub(super) async fn message(mut body: Incoming, most: usize) -> Result<Bytes, Status> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::cancelled(format!("the request broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > most + PREFIX {
                return Err(Status::resource_exhausted(format!("the request has more than {most} bytes")));
            }
            bytes.put(data);
        }
    }
    single(bytes.freeze())
}

/// Takes the prefix off.
fn single(mut bytes: Bytes) -> Result<Bytes, Status> {
    if bytes.len() < PREFIX {
        return Err(Status::internal("the request ends before its message"));
    }
    if bytes.get_u8() != 0 {
        return Err(Status::unimplemented("the request's message is compressed"));
    }
    if bytes.get_u32() as usize != bytes.len() {
        return Err(Status::internal("the request's message has another length than it says"));
    }
    Ok(bytes)
}

/// A message as it travels.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX + message.len());
    out.put_u8(0);
    // Callers bound messages far below this.
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

/// A request's body of one message.
pub(super) fn body(message: &[u8]) -> Body {
    http_body_util::Full::new(framed(message)).map_err(|never| match never {}).boxed_unsync()
}

/// An answer without a message.
pub(super) fn refusal(status: &Status) -> Response<Body> {
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if status.add_header(answer.headers_mut()).is_err() {
        answer.headers_mut().insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    answer
}

/// An answer of messages, one after the other, and how it ends.
pub(super) fn answer(messages: impl futures::Stream<Item = Result<Bytes, Status>> + Send + 'static) -> Response<Body> {
    use futures::StreamExt as _;
    let mut ended = false;
    let frames = messages.map(Some).chain(futures::stream::once(async { None })).filter_map(move |message| {
        let frame = match message {
            _ if ended => None,
            Some(Ok(message)) => Some(Frame::data(framed(&message))),
            Some(Err(status)) => {
                ended = true;
                Some(Frame::trailers(trailers(&status)))
            }
            None => Some(Frame::trailers(trailers(&Status::ok("")))),
        };
        std::future::ready(frame.map(Ok::<_, Failed>))
    });
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

/// An answer of one message.
pub(super) fn reply(message: &impl Message) -> Response<Body> {
    let bytes = Bytes::from(message.encode_to_vec());
    answer(futures::stream::once(async move { Ok(bytes) }))
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    trailers
}

/// Whether an answer is this refusal, without a message before it. What was read to see it is put back.
pub(super) async fn is_refused(answer: Response<Body>, code: Code) -> (bool, Response<Body>) {
    let says = |headers: &HeaderMap| {
        headers.get("grpc-status").is_some_and(|said| said.as_bytes() == (code as i32).to_string().as_bytes())
    };
    if answer.headers().contains_key("grpc-status") {
        return (says(answer.headers()), answer);
    }
    let (head, mut body) = answer.into_parts();
    let Some(first) = body.frame().await else { return (false, Response::from_parts(head, body)) };
    let refused = first.as_ref().is_ok_and(|frame| frame.trailers_ref().is_some_and(says));
    let again = futures::stream::once(async { first });
    let rest = futures::stream::unfold(body, |mut body| async move { Some((body.frame().await?, body)) });
    let whole = StreamBody::new(futures::StreamExt::chain(again, rest)).boxed_unsync();
    (refused, Response::from_parts(head, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_goes_and_comes_and_what_is_none_is_refused() {
        let framed = framed(b"words");
        assert_eq!(single(framed.clone()).unwrap(), "words");
        assert_eq!(single(Bytes::from_static(&[0, 0, 0, 0, 0])).unwrap(), "");
        assert_eq!(single(framed.slice(..4)).unwrap_err().code(), Code::Internal);
        assert_eq!(single(framed.slice(..7)).unwrap_err().code(), Code::Internal, "cut");
        let two = Bytes::from([&framed[..], &framed[..]].concat());
        assert_eq!(single(two).unwrap_err().code(), Code::Internal, "two of them");
        assert_eq!(single(Bytes::from_static(&[1, 0, 0, 0, 0])).unwrap_err().code(), Code::Unimplemented);
    }

    #[tokio::test]
    async fn an_answer_ends_with_its_first_error() {
        let said = [Ok(Bytes::from_static(b"one")), Err(Status::data_loss("gone")), Ok(Bytes::from_static(b"two"))];
        let whole = answer(futures::stream::iter(said)).into_body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["grpc-status"], "15");
        assert_eq!(whole.to_bytes(), framed(b"one"));
        let whole =
            answer(futures::stream::iter([Ok(Bytes::from_static(b"one"))])).into_body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
    }

    #[tokio::test]
    async fn a_refusal_is_seen_in_headers_and_in_trailers_and_nothing_of_an_answer_is_lost() {
        let (refused, _) = is_refused(refusal(&Status::not_found("it")), Code::NotFound).await;
        assert!(refused);
        let (refused, _) = is_refused(refusal(&Status::internal("it")), Code::NotFound).await;
        assert!(!refused);
        let late = answer(futures::stream::iter([Err(Status::not_found("it"))]));
        assert!(is_refused(late, Code::NotFound).await.0);
        let said = [Ok(Bytes::from_static(b"one")), Err(Status::not_found("it"))];
        let (refused, answer) = is_refused(answer(futures::stream::iter(said)), Code::NotFound).await;
        assert!(!refused, "there was a message before");
        let whole = answer.into_body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["grpc-status"], "5");
        assert_eq!(whole.to_bytes(), framed(b"one"));
    }
}
