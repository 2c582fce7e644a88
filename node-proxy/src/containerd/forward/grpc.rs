//! Messages and answers of gRPC over HTTP/2, where a call is looked into.
//!
//! Source: gRPC over HTTP2, `doc/PROTOCOL-HTTP2.md` of grpc.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use prost::Message;
use tonic::{Code, Status};

use super::{Body, Failed};

/// Flag and length before each message.
const PREFIX: usize = 5;

/// A request's body that was looked into.
pub(super) struct Looked {
    /// Its single message. `None`: it is compressed, cut, longer than it may be, or not alone, and containerd's to answer.
    pub(super) message: Option<Bytes>,
    /// All of it, as it came and as it goes on to come.
    pub(super) body: Body,
}

/// Looks for the single message of a request, of at most `most` bytes.
pub(super) async fn look<B>(mut body: B, most: usize) -> Looked
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Failed>,
{
    let (mut frames, mut bytes) = (Vec::new(), BytesMut::new());
    let over = loop {
        let Some(frame) = body.frame().await else { break true };
        let frame = frame.map_err(Into::into);
        let end = match &frame {
            Ok(frame) => {
                if let Some(data) = frame.data_ref() {
                    bytes.put_slice(data);
                }
                bytes.len() > most + PREFIX
            }
            Err(_) => true,
        };
        frames.push(frame);
        if end {
            break false;
        }
    };
    let message = over.then(|| single(bytes.freeze())).flatten();
    let rest = futures::stream::unfold(body, |mut body| async move {
        let frame = body.frame().await?;
        Some((frame.map_err(Into::into), body))
    });
    let whole = StreamBody::new(futures::StreamExt::chain(futures::stream::iter(frames), rest)).boxed_unsync();
    Looked { message, body: whole }
}

/// Takes the prefix off.
fn single(mut bytes: Bytes) -> Option<Bytes> {
    let framed = bytes.len() >= PREFIX && bytes.get_u8() == 0 && bytes.get_u32() as usize == bytes.len();
    framed.then_some(bytes)
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

    /// A body that comes in these parts, and then breaks off or ends.
    fn coming(
        parts: &[&[u8]],
        breaks: bool,
    ) -> impl http_body::Body<Data = Bytes, Error = Failed> + Send + Unpin + 'static {
        let parts: Vec<_> = parts.iter().map(|part| Ok(Frame::data(Bytes::copy_from_slice(part)))).collect();
        let end = breaks.then(|| Err(Failed::from("broke off")));
        StreamBody::new(futures::stream::iter(parts.into_iter().chain(end)))
    }

    #[tokio::test]
    async fn a_message_is_seen_and_whatever_it_is_goes_on_as_it_came() {
        let framed = framed(b"words");
        let two = [&framed[..], &framed[..]].concat();
        let compressed = [&[1][..], &framed[1..]].concat();
        let empty = [0; 5];
        let cases: [(&[u8], Option<&[u8]>); 7] = [
            (&framed, Some(b"words")),
            (&empty, Some(b"")),
            (&framed[..4], None),
            (&framed[..7], None),
            (&two, None),
            (&compressed, None),
            (b"", None),
        ];
        for (bytes, message) in cases {
            for cut in [0, bytes.len() / 2, bytes.len()] {
                let looked = look(coming(&[&bytes[..cut], &bytes[cut..]], false), 5).await;
                assert_eq!(looked.message.as_deref(), message, "{bytes:?}");
                assert_eq!(looked.body.collect().await.unwrap().to_bytes(), bytes);
            }
        }
        // Longer than what is looked into: no more is kept than that, and the rest follows.
        let long = self::framed(&[7; 100]);
        let looked = look(coming(&[&long[..50], &long[50..]], false), 20).await;
        assert!(looked.message.is_none());
        assert_eq!(looked.body.collect().await.unwrap().to_bytes(), long);
        // One that breaks off does so for containerd too.
        let mut looked = look(coming(&[&framed], true), 20).await;
        assert!(looked.message.is_none());
        assert_eq!(looked.body.frame().await.unwrap().unwrap().into_data().unwrap(), framed);
        assert!(looked.body.frame().await.unwrap().is_err());
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
