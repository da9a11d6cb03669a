//! xDS messages as JSON and back, through descriptors: what config dumps, golden files and tools show.

mod canonical;

use std::sync::OnceLock;

use base64::Engine;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};

use crate::xds::Any;

/// The descriptors of the messages that the mesh writes or reads and all that they hold; made by `cargo xtask codegen`.
const DESCRIPTORS: &[u8] = include_bytes!("json/descriptors.bin");

fn pool() -> Option<&'static DescriptorPool> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(DESCRIPTORS).ok()).as_ref()
}

/// A message as JSON with `@type`, field names as in the `.proto` files. A message of a type that is not known becomes
/// `{"@type": …, "value": base64}`, also inside others.
///
/// # Errors
/// Bytes that are not such a message.
pub fn to_json(any: &Any) -> Result<Value, String> {
    let type_name = any.type_url.rsplit('/').next().unwrap_or_default();
    let Some(descriptor) = pool().and_then(|pool| pool.get_message_by_name(type_name)) else { return Ok(opaque(any)) };
    let message = DynamicMessage::decode(descriptor, any.value.as_slice())
        .map_err(|error| format!("{} cannot be decoded: {error}", any.type_url))?;
    let mut value = dynamic::to_json(&message)?;
    if let Value::Object(map) = &mut value {
        map.insert("@type".into(), Value::String(any.type_url.clone()));
    }
    Ok(value)
}

/// The message of such JSON.
///
/// # Errors
/// No `@type`, a type that is not known, or fields that the type does not have.
pub fn from_json(value: &Value) -> Result<Any, String> {
    let type_url = value.get("@type").and_then(Value::as_str).ok_or("the message has no @type")?;
    let mut inner = value.clone();
    if let Value::Object(map) = &mut inner {
        map.remove("@type");
    }
    let type_name = type_url.rsplit('/').next().unwrap_or_default();
    let Some(descriptor) = pool().and_then(|pool| pool.get_message_by_name(type_name)) else {
        let text =
            inner.get("value").and_then(Value::as_str).ok_or_else(|| format!("{type_url} is not a known type"))?;
        let value = base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| error.to_string())?;
        return Ok(Any { type_url: type_url.to_owned(), value });
    };
    let message = DynamicMessage::deserialize(descriptor, inner).map_err(|error| format!("{type_url}: {error}"))?;
    Ok(Any { type_url: type_url.to_owned(), value: prost::Message::encode_to_vec(&message) })
}

/// The same message with the entries of all its maps in the order of their keys, so that equal messages are equal bytes.
pub fn canonical(mut any: Any) -> Any {
    let by_url = |url: &str| pool()?.get_message_by_name(url.rsplit('/').next()?);
    if let Some(descriptor) = by_url(&any.type_url) {
        canonical::sort_maps(&mut any.value, &descriptor, &by_url);
    }
    any
}

fn opaque(any: &Any) -> Value {
    json!({"@type": any.type_url, "value": base64::engine::general_purpose::STANDARD.encode(&any.value)})
}

mod dynamic {
    //! The walk through a message; prost-reflect's own stops at the first `Any` of an unknown type.

    use base64::Engine;
    use prost_reflect::{DynamicMessage, Kind, MapKey, ReflectMessage, SerializeOptions, Value as Field};
    use serde_json::{Map, Value};

    use crate::xds::Any;

    pub(super) fn to_json(message: &DynamicMessage) -> Result<Value, String> {
        let name = message.descriptor().full_name().to_owned();
        if name == "google.protobuf.Any" {
            return super::to_json(&nested(message));
        }
        if name.starts_with("google.protobuf.") {
            return plain(message);
        }
        let mut map = Map::new();
        for (field, value) in message.fields() {
            map.insert(field.name().to_owned(), value_to_json(value, &field.kind())?);
        }
        Ok(Value::Object(map))
    }

    fn plain(message: &DynamicMessage) -> Result<Value, String> {
        let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
        message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|error| error.to_string())
    }

    fn nested(message: &DynamicMessage) -> Any {
        let text = |name| match message.get_field_by_name(name).as_deref() {
            Some(Field::String(text)) => text.clone(),
            _ => String::new(),
        };
        let bytes = match message.get_field_by_name("value").as_deref() {
            Some(Field::Bytes(bytes)) => bytes.to_vec(),
            _ => Vec::new(),
        };
        Any { type_url: text("type_url"), value: bytes }
    }

    fn value_to_json(value: &Field, kind: &Kind) -> Result<Value, String> {
        Ok(match value {
            Field::Bool(truth) => Value::from(*truth),
            Field::I32(number) => Value::from(*number),
            Field::I64(number) => Value::from(*number),
            Field::U32(number) => Value::from(*number),
            Field::U64(number) => Value::from(*number),
            Field::F32(number) => Value::from(*number),
            Field::F64(number) => Value::from(*number),
            Field::String(text) => Value::from(text.clone()),
            Field::Bytes(bytes) => Value::from(base64::engine::general_purpose::STANDARD.encode(bytes)),
            Field::EnumNumber(number) => match kind {
                Kind::Enum(descriptor) => match descriptor.get_value(*number) {
                    Some(value) => Value::from(value.name()),
                    None => Value::from(*number),
                },
                _ => Value::from(*number),
            },
            Field::Message(message) => to_json(message)?,
            Field::List(items) => {
                Value::Array(items.iter().map(|item| value_to_json(item, kind)).collect::<Result<Vec<_>, _>>()?)
            }
            Field::Map(entries) => {
                let value_kind = match kind {
                    Kind::Message(entry) => entry.map_entry_value_field().kind(),
                    other => other.clone(),
                };
                let mut map = Map::new();
                for (key, value) in entries {
                    map.insert(key_text(key), value_to_json(value, &value_kind)?);
                }
                map.sort_keys();
                Value::Object(map)
            }
        })
    }

    fn key_text(key: &MapKey) -> String {
        match key {
            MapKey::Bool(truth) => truth.to_string(),
            MapKey::I32(number) => number.to_string(),
            MapKey::I64(number) => number.to_string(),
            MapKey::U32(number) => number.to_string(),
            MapKey::U64(number) => number.to_string(),
            MapKey::String(text) => text.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::{core, pack};

    #[test]
    fn a_message_survives_the_way_there_and_back() {
        let node = core::Node {
            id: "a".into(),
            metadata: Some(crate::xds::json_to_struct(&json!({"x": [1, "y"]}))),
            ..core::Node::default()
        };
        let any = pack(&node);
        let value = to_json(&any).unwrap();
        assert_eq!(value, json!({"@type": any.type_url, "id": "a", "metadata": {"x": [1.0, "y"]}}));
        assert_eq!(from_json(&value).unwrap(), any);
    }

    #[test]
    fn equal_messages_become_equal_bytes() {
        let fields: serde_json::Map<String, Value> =
            (0..40).map(|number| (format!("k{number}"), json!({"a": 1, "b": [{"c": 2, "d": 3}]}))).collect();
        let make = || {
            let node = core::Node {
                metadata: Some(crate::xds::json_to_struct(&Value::Object(fields.clone()))),
                ..core::Node::default()
            };
            let holder = core::TypedExtensionConfig { name: "n".into(), typed_config: Some(pack(&node)) };
            (canonical(pack(&holder)), holder)
        };
        let (one, two) = (make(), make());
        assert_eq!(one.0, two.0);
        let back: core::TypedExtensionConfig = crate::xds::unpack(&one.0).unwrap();
        let node: core::Node = crate::xds::unpack(&back.typed_config.unwrap()).unwrap();
        assert_eq!(crate::xds::struct_to_json(&node.metadata.unwrap())["k7"], json!({"a": 1, "b": [{"c": 2, "d": 3}]}));
    }

    #[test]
    fn unknown_types_are_kept_as_bytes() {
        let unknown = Any { type_url: "type.googleapis.com/no.such.Type".into(), value: vec![1, 2, 3] };
        let value = to_json(&unknown).unwrap();
        assert_eq!(value, json!({"@type": unknown.type_url, "value": "AQID"}));
        assert_eq!(from_json(&value).unwrap(), unknown);
        let holder = core::TypedExtensionConfig { name: "n".into(), typed_config: Some(unknown) };
        assert_eq!(to_json(&pack(&holder)).unwrap()["typed_config"]["value"], "AQID");
        assert!(to_json(&Any { value: vec![0xff], ..pack(&holder) }).is_err());
    }
}
