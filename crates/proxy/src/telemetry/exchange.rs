//! The bytes with which the two ends of a TCP connection tell each other who they are, before anything else, where TLS
//! negotiated `istio-peer-exchange` (Istio `metadata_exchange`): a magic number and a length, both of four bytes, big end
//! first; then so many bytes of a `google.protobuf.Any`, which holds a `Struct`.

use api::xds::{Any, Struct};
use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::google::protobuf::Value;
use envoy_types::pb::google::protobuf::value::Kind;
use prost::Message;

const MAGIC: u32 = 0x3D23_0467;
/// Bytes of the magic number and the length.
pub const HEAD: usize = 8;
/// Metadata is labels and names. What claims to be longer is no metadata, and nobody makes us wait or keep more.
const LONGEST: usize = 64 * 1024;
const METADATA: &str = "x-envoy-peer-metadata";
const ID: &str = "x-envoy-peer-metadata-id";
const STRUCT: &str = "type.googleapis.com/google.protobuf.Struct";

/// What an end of a connection tells first.
pub fn preface(metadata: &Struct, node_id: &str) -> Bytes {
    let value = |kind| Value { kind: Some(kind) };
    let told = Struct {
        fields: [
            (METADATA.to_owned(), value(Kind::StructValue(metadata.clone()))),
            (ID.to_owned(), value(Kind::StringValue(node_id.to_owned()))),
        ]
        .into_iter()
        .collect(),
    };
    let any = Any { type_url: STRUCT.to_owned(), value: told.encode_to_vec() }.encode_to_vec();
    if any.len() > LONGEST {
        return Bytes::new();
    }
    let mut bytes = BytesMut::with_capacity(HEAD + any.len());
    bytes.put_u32(MAGIC);
    bytes.put_u32(any.len() as u32);
    bytes.put_slice(&any);
    bytes.freeze()
}

/// What stands at the beginning of what the other end sends.
#[derive(Debug, PartialEq)]
pub enum Heard {
    /// More bytes must come before it can be told.
    More,
    /// No exchange: the application's bytes, all of them.
    Nothing,
    /// So many bytes are the exchange's; the metadata, if that could be read.
    Told(usize, Option<Struct>),
}

/// Reads the beginning of a connection.
pub fn hear(bytes: &[u8]) -> Heard {
    let magic = MAGIC.to_be_bytes();
    let known = bytes.len().min(magic.len());
    if bytes[..known] != magic[..known] {
        return Heard::Nothing;
    }
    let Some(&[_, _, _, _, a, b, c, d]) = bytes.first_chunk::<HEAD>() else { return Heard::More };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > LONGEST {
        return Heard::Nothing;
    }
    match bytes.get(HEAD..HEAD + length) {
        None => Heard::More,
        Some(told) => Heard::Told(HEAD + length, metadata(told)),
    }
}

fn metadata(told: &[u8]) -> Option<Struct> {
    let any = Any::decode(told).ok()?;
    if any.type_url != STRUCT {
        return None;
    }
    let told = Struct::decode(any.value.as_slice()).ok()?;
    match told.fields.get(METADATA)?.kind.clone() {
        Some(Kind::StructValue(metadata)) => Some(metadata),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::xds::json_to_struct;

    fn own() -> Struct {
        json_to_struct(&serde_json::json!({
            "WORKLOAD_NAME": "a-v1", "NAMESPACE": "shop", "CLUSTER_ID": "east", "LABELS": {"app": "a", "version": "v1"}
        }))
    }

    #[test]
    fn what_is_told_is_heard_at_every_cut_of_the_bytes() {
        let told = preface(&own(), "sidecar~1.1.1.1~a.shop~shop.svc.cluster.local");
        let mut all = told.to_vec();
        all.extend(b"application");
        for end in 0..=all.len() {
            match hear(&all[..end]) {
                Heard::More => assert!(end < told.len(), "{end}"),
                Heard::Told(length, Some(metadata)) => {
                    assert!(end >= told.len(), "{end}");
                    assert_eq!((length, metadata), (told.len(), own()));
                }
                other => panic!("{end}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_exchange_is_the_applications() {
        let told = preface(&own(), "id");
        // As soon as one byte of the magic number differs.
        for place in 0..4 {
            let mut other = told.to_vec();
            other[place] ^= 1;
            assert_eq!(hear(&other[..=place]), Heard::Nothing, "{place}");
            assert_eq!(hear(&other), Heard::Nothing, "{place}");
        }
        // A length that is not believed is known for it at once.
        for length in [LONGEST as u32 + 1, u32::MAX] {
            let mut long = MAGIC.to_be_bytes().to_vec();
            long.extend(length.to_be_bytes());
            assert_eq!(hear(&long), Heard::Nothing, "{length}");
        }
    }

    #[test]
    fn metadata_that_cannot_be_read_is_skipped() {
        for body in [&b""[..], b"\xff\xff\xff", &Any { type_url: "x/y".into(), value: vec![] }.encode_to_vec()] {
            let mut bytes = MAGIC.to_be_bytes().to_vec();
            bytes.extend((body.len() as u32).to_be_bytes());
            bytes.extend(body);
            bytes.extend(b"application");
            assert_eq!(hear(&bytes), Heard::Told(HEAD + body.len(), None));
        }
    }

    #[test]
    fn more_than_the_other_end_would_believe_is_not_told() {
        let long = json_to_struct(&serde_json::json!({"LABELS": {"a": "x".repeat(LONGEST)}}));
        assert!(preface(&long, "id").is_empty());
    }
}
