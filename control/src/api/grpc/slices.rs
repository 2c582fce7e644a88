//! A request's body in small slices, so that what decodes it needs no more room than one message.
//!
//! tonic appends each DATA frame to what it has not decoded yet, in a buffer that never shrinks: after one full frame of announcements it is
//! 32 KiB, for the weeks that a session lives. With ten thousand sessions that is more than all that they hold.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// Bytes of one slice: what a node says every second fits into one; what is longer comes in several.
const SLICE: usize = 512;

struct Slices {
    inner: Body,
    left: Bytes,
}

impl http_body::Body for Slices {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.left.is_empty() {
            let Some(frame) = ready!(Pin::new(&mut this.inner).poll_frame(cx)?) else { return Poll::Ready(None) };
            match frame.into_data() {
                Ok(data) => this.left = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let size = this.left.len().min(SLICE);
        Poll::Ready(Some(Ok(Frame::data(this.left.split_to(size)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // What is left of a frame comes too.
        let (rest, left) = (self.inner.size_hint(), self.left.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + left);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + left);
        }
        hint
    }
}

/// The same request, whose body comes in slices.
pub(super) fn cut(request: Request<Body>) -> Request<Body> {
    request.map(|inner| Body::new(Slices { inner, left: Bytes::new() }))
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    #[tokio::test]
    async fn what_comes_in_long_frames_goes_on_in_slices_and_whole_and_its_trailers_come_last() {
        let long: Vec<u8> = (0..5000_u32).map(|byte| byte as u8).collect();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let frames = [
            Frame::data(Bytes::from(long.clone())),
            Frame::data(Bytes::new()),
            Frame::data(Bytes::from_static(b"end")),
        ];
        let frames = frames.into_iter().chain([Frame::trailers(trailers)]).map(Ok::<_, Status>);
        let body = cut(Request::new(Body::new(StreamBody::new(futures::stream::iter(frames))))).into_body();
        let mut body = std::pin::pin!(body);
        let (mut data, mut last) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            let frame = frame.unwrap();
            assert!(last.is_none(), "nothing comes behind trailers");
            match frame.into_data() {
                Ok(slice) => {
                    assert!(slice.len() <= SLICE);
                    data.extend_from_slice(&slice);
                }
                Err(frame) => last = frame.into_trailers().ok(),
            }
        }
        assert_eq!(data, [&long[..], b"end"].concat());
        assert_eq!(last.unwrap()["grpc-status"], "0");
    }

    #[tokio::test]
    async fn an_error_goes_on_as_it_is() {
        let frames = [Ok(Frame::data(Bytes::from_static(b"a"))), Err(Status::cancelled("gone"))];
        let body = cut(Request::new(Body::new(StreamBody::new(futures::stream::iter(frames))))).into_body();
        let mut body = std::pin::pin!(body);
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(body.frame().await.unwrap().unwrap_err().code(), tonic::Code::Cancelled);
    }
}
