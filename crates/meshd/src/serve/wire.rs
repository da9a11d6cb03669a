//! Responses as frames of an HTTP/2 body, written piece by piece from the resources that all streams share, as fast as the client
//! takes them: the first response to a proxy is as large as the mesh, and many proxies may come at once. (tonic's own encoder
//! wants a copy of every resource in one message, and keeps the room of the largest for as long as a stream lives.)

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Response};
use http_body::{Body, Frame};
use plan::Named;
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use tokio::sync::mpsc;
use tonic::Status;

use super::session::{Answer, Variant, version};

/// Size of a piece.
const PIECE: usize = 32 * 1024;
/// Field of the resources in both kinds of response.
const RESOURCES: u32 = 2;

/// A response on its way.
#[derive(Debug)]
pub struct Push {
    answer: Answer,
    variant: Variant,
    /// Frame header and all fields but the resources, until they are sent.
    head: Bytes,
    length: usize,
    sent: usize,
}

impl Push {
    /// Of an answer.
    pub fn new(mut answer: Answer, variant: Variant) -> Self {
        let entries = std::mem::take(&mut answer.entries);
        let fields = match variant {
            Variant::Delta => answer.clone().into_delta().encode_to_vec(),
            Variant::StateOfTheWorld => answer.clone().into_state_of_the_world().encode_to_vec(),
        };
        answer.entries = entries;
        let resources = answer.entries.iter().map(|entry| field_length(resource_length(entry, variant)));
        let length = fields.len() + resources.sum::<usize>();
        let mut head = BytesMut::with_capacity(fields.len() + 5);
        // Not compressed, the length, the message (gRPC over HTTP/2, "Length-Prefixed-Message").
        head.put_u8(0);
        head.put_u32(length as u32);
        head.put_slice(&fields);
        Self { answer, variant, head: head.freeze(), length, sent: 0 }
    }

    /// Bytes of the message.
    pub fn encoded_len(&self) -> usize {
        self.length
    }

    fn next(&mut self) -> Option<Bytes> {
        if self.head.is_empty() && self.sent == self.answer.entries.len() {
            return None;
        }
        let mut piece = BytesMut::with_capacity(PIECE.min(self.length + 5));
        piece.put_slice(&std::mem::take(&mut self.head));
        while let Some(entry) = self.answer.entries.get(self.sent) {
            put_resource(&mut piece, entry, self.variant);
            self.sent += 1;
            if piece.len() >= PIECE {
                break;
            }
        }
        Some(piece.freeze())
    }
}

/// A field with a length: all of ours have numbers that fit into one byte.
fn field_length(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn any_length(entry: &Named) -> usize {
    field_length(entry.type_url().len()) + field_length(entry.length())
}

fn resource_length(entry: &Named, variant: Variant) -> usize {
    match variant {
        Variant::StateOfTheWorld => any_length(entry),
        Variant::Delta => {
            field_length(version(entry.version).len())
                + field_length(any_length(entry))
                + field_length(entry.name.len())
        }
    }
}

fn put_field(out: &mut BytesMut, number: u32, length: usize) {
    encode_varint(u64::from(number << 3 | 2), out);
    encode_varint(length as u64, out);
}

fn put_any(out: &mut BytesMut, entry: &Named) {
    put_field(out, 1, entry.type_url().len());
    out.put_slice(entry.type_url().as_bytes());
    put_field(out, 2, entry.length());
    entry.pieces().iter().for_each(|piece| out.put_slice(piece));
}

/// `google.protobuf.Any` or `envoy.service.discovery.v3.Resource`, as a field of the response.
fn put_resource(out: &mut BytesMut, entry: &Named, variant: Variant) {
    let length = resource_length(entry, variant);
    out.reserve(length + 16);
    put_field(out, RESOURCES, length);
    if variant == Variant::StateOfTheWorld {
        return put_any(out, entry);
    }
    let version = version(entry.version);
    put_field(out, 1, version.len());
    out.put_slice(version.as_bytes());
    put_field(out, 2, any_length(entry));
    put_any(out, entry);
    put_field(out, 3, entry.name.len());
    out.put_slice(entry.name.as_bytes());
}

/// A stream of responses, ended by the status.
struct Pushes {
    pushes: mpsc::Receiver<Result<Push, Status>>,
    current: Option<Push>,
    ended: bool,
}

/// The answer that carries them.
pub fn respond(pushes: mpsc::Receiver<Result<Push, Status>>) -> Response<tonic::body::Body> {
    let mut response = Response::new(tonic::body::Body::new(Pushes { pushes, current: None, ended: false }));
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

impl Body for Pushes {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(piece) = self.current.as_mut().and_then(Push::next) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.current = None;
            let status = match ready!(self.pushes.poll_recv(context)) {
                Some(Ok(push)) => {
                    self.current = Some(push);
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.ended = true;
            let mut trailers = http::HeaderMap::new();
            status.add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::xds::{Any, ResourceKind};
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
    use http_body_util::BodyExt;

    use super::*;

    fn answer(resources: usize) -> Answer {
        let body = |number: usize| Any { type_url: "type/x".into(), value: vec![number as u8; number * 7] };
        let entries =
            (0..resources).map(|number| Arc::new(Named::new(&format!("n-{number}"), number as u64, body(number))));
        Answer {
            kind: ResourceKind::Cluster,
            entries: entries.collect(),
            removed: vec!["gone".into()],
            nonce: "1f".into(),
        }
    }

    #[tokio::test]
    async fn what_is_written_in_pieces_is_the_message() {
        for resources in [0, 1, 2, 300] {
            for variant in [Variant::Delta, Variant::StateOfTheWorld] {
                let (send, pushes) = mpsc::channel(2);
                send.send(Ok(Push::new(answer(resources), variant))).await.unwrap();
                send.send(Err(Status::unavailable("later"))).await.unwrap();
                let collected = respond(pushes).into_body().collect().await.unwrap();
                let trailers = collected.trailers().unwrap().clone();
                assert_eq!(trailers["grpc-status"], "14");
                let bytes = collected.to_bytes();
                assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize, bytes.len() - 5);
                match variant {
                    Variant::Delta => {
                        assert_eq!(
                            DeltaDiscoveryResponse::decode(&bytes[5..]).unwrap(),
                            answer(resources).into_delta()
                        );
                    }
                    Variant::StateOfTheWorld => {
                        let wanted = answer(resources).into_state_of_the_world();
                        assert_eq!(DiscoveryResponse::decode(&bytes[5..]).unwrap(), wanted);
                    }
                }
            }
        }
    }
}
