//! Go's template language as users of Istio and Helm know it: which functions there are, and how data comes in and out.

mod functions;

use std::sync::Arc;

use gotmpl::{FuncMap, Value as Data};
use serde_json::{Map, Value};

/// Where a struct keeps the JSON that it was made from, so that `toJSON` writes the names of the API.
pub(crate) const JSON: &str = "\0json";

/// The functions of templates, by name.
pub fn functions() -> FuncMap {
    functions::all()
}

/// A value as data, with its keys as they are.
pub fn data(value: &Value) -> Data {
    match value {
        Value::Object(fields) => map(fields.iter().map(|(key, value)| (key.clone(), data(value)))),
        Value::Array(items) => Data::List(items.iter().map(data).collect::<Vec<_>>().into()),
        other => leaf(other),
    }
}

pub(crate) fn map(fields: impl Iterator<Item = (String, Data)>) -> Data {
    Data::Map(Arc::new(fields.map(|(key, value)| (key.into(), value)).collect()))
}

pub(crate) fn leaf(value: &Value) -> Data {
    match value {
        Value::Bool(truth) => Data::Bool(*truth),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Data::Int(whole),
            (None, Some(real)) => Data::Float(real),
            _ => Data::Nil,
        },
        Value::String(words) => Data::String(words.as_str().into()),
        _ => Data::Nil,
    }
}

/// Data as JSON, with the names of the API.
pub fn json(data: &Data) -> Value {
    match data {
        Data::Nil | Data::Function(_) => Value::Null,
        Data::Bool(truth) => Value::from(*truth),
        Data::Int(number) => Value::from(*number),
        Data::Uint(number) => Value::from(*number),
        Data::Float(number) => Value::from(*number),
        Data::String(words) => Value::from(&**words),
        Data::List(items) => items.iter().map(json).collect(),
        Data::Map(fields) => match fields.get(JSON) {
            Some(Data::String(text)) => serde_json::from_str(text).unwrap_or_default(),
            _ => Value::Object(fields.iter().map(|(key, value)| (key.to_string(), json(value))).collect::<Map<_, _>>()),
        },
    }
}
