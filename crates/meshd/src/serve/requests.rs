//! Requests out of the frames of an HTTP/2 body. A stream keeps no room between two requests: tonic's own decoder keeps that of
//! the longest, in which a proxy told the names of all clusters, for as long as the stream lives.

use bytes::{Buf, BytesMut};
use futures_util::Stream;
use futures_util::stream::try_unfold;
use http_body_util::BodyExt;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

/// Flag and length before each message (gRPC over HTTP/2, "Length-Prefixed-Message").
const HEAD: usize = 5;

/// The messages of a body, until it ends; none may have more than `longest` bytes. Only what is not compressed is taken: no
/// compression is offered.
pub fn of<In: Message + Default>(body: Body, longest: usize) -> impl Stream<Item = Result<In, Status>> {
    try_unfold((body, BytesMut::new()), move |(mut body, mut read)| async move {
        loop {
            if let Some(message) = first(&mut read, longest)? {
                return Ok(Some((message, (body, read))));
            }
            let Some(frame) = body.frame().await.transpose()? else { break };
            if let Ok(data) = frame.into_data() {
                read.extend_from_slice(&data);
            }
        }
        match read.is_empty() {
            true => Ok(None),
            false => Err(Status::internal("the stream ended within a message")),
        }
    })
}

/// Takes the first message if all of it is there.
fn first<In: Message + Default>(read: &mut BytesMut, longest: usize) -> Result<Option<In>, Status> {
    let Some((head, _)) = read.split_first_chunk::<HEAD>() else { return Ok(None) };
    let [compressed, length @ ..] = *head;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 {
        return Err(Status::unimplemented("the message is compressed, which was not agreed on"));
    }
    if length > longest {
        return Err(Status::out_of_range(format!("the message has {length} bytes; {longest} are allowed")));
    }
    if read.len() < HEAD + length {
        read.reserve(HEAD + length - read.len());
        return Ok(None);
    }
    let message = In::decode(&read[HEAD..HEAD + length]);
    read.advance(HEAD + length);
    if read.is_empty() {
        *read = BytesMut::new();
    }
    message.map(Some).map_err(|error| Status::internal(format!("the message cannot be decoded: {error}")))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
    use futures_util::StreamExt;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn message(names: usize) -> (DeltaDiscoveryRequest, Vec<u8>) {
        let names = (0..names).map(|number| format!("name-{number}")).collect();
        let request = DeltaDiscoveryRequest { resource_names_subscribe: names, ..DeltaDiscoveryRequest::default() };
        let body = request.encode_to_vec();
        let mut framed = vec![0];
        framed.extend((body.len() as u32).to_be_bytes());
        framed.extend(body);
        (request, framed)
    }

    async fn read(bytes: &[u8], piece: usize, longest: usize) -> Vec<Result<DeltaDiscoveryRequest, tonic::Code>> {
        let frames: Vec<_> =
            bytes.chunks(piece).map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
        of(body, longest).map(|message| message.map_err(|status| status.code())).collect().await
    }

    #[tokio::test]
    async fn messages_come_out_as_they_went_in_however_they_are_cut() {
        let (messages, framed): (Vec<_>, Vec<_>) = [0, 3, 500, 1].into_iter().map(message).unzip();
        let (bytes, expected) = (framed.concat(), messages.into_iter().map(Ok).collect::<Vec<_>>());
        for piece in [1, 4, 5, 6, 7, 1000, usize::MAX] {
            assert_eq!(read(&bytes, piece, 1 << 20).await, expected, "pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_stream_with_a_status() {
        let (_, whole) = message(3);
        assert_eq!(read(&whole[..whole.len() - 1], 9, 1 << 20).await, [Err(tonic::Code::Internal)]);
        assert_eq!(read(&whole, 9, 8).await, [Err(tonic::Code::OutOfRange)]);
        assert_eq!(read(&[1, 0, 0, 0, 0], 9, 8).await, [Err(tonic::Code::Unimplemented)]);
        assert_eq!(read(&[0, 0, 0, 0, 1, 255], 9, 8).await, [Err(tonic::Code::Internal)]);
    }
}
