//! gRPC messages as frames of an HTTP/2 body. tonic's own encoder keeps the room of the largest message for as long as a stream
//! lives; the first message to a proxy is as large as the mesh.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Response};
use http_body::{Body, Frame};
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;

/// A stream of responses, ended by the status.
pub struct Messages<T> {
    messages: mpsc::Receiver<Result<T, Status>>,
    ended: bool,
}

/// The answer that carries them.
pub fn respond<T: Message + 'static>(messages: mpsc::Receiver<Result<T, Status>>) -> Response<tonic::body::Body> {
    let mut response = Response::new(tonic::body::Body::new(Messages { messages, ended: false }));
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

impl<T: Message> Body for Messages<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(self.messages.poll_recv(context)) {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(framed(&message))))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// One byte that says "not compressed", the length, the message (gRPC over HTTP/2, "Length-Prefixed-Message").
fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(length + 5);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn messages_are_framed_and_the_status_ends_them() {
        let (send, messages) = mpsc::channel(2);
        send.send(Ok("abc".to_owned())).await.unwrap();
        send.send(Err(Status::unavailable("later"))).await.unwrap();
        let collected = respond(messages).into_body().collect().await.unwrap();
        let trailers = collected.trailers().unwrap().clone();
        assert_eq!(collected.to_bytes(), &b"\0\0\0\0\x05\x0a\x03abc"[..]);
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"14".parse().unwrap(), &"later".parse().unwrap())
        );
    }
}
