//! Reads a struct out of a JSON value and notes the fields that the struct does not know, with their paths. Null is
//! absent, everywhere; errors carry the path of the field.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_json::{Map, Value};

/// A field that a struct does not know.
pub(super) struct UnknownField {
    pub(super) path: String,
    pub(super) name: String,
    pub(super) known: &'static [&'static str],
}

/// A value of another type than expected.
#[derive(Debug)]
pub(super) struct TypeError {
    /// Empty until the innermost reader that knows it adds it.
    pub(super) path: Option<String>,
    pub(super) message: String,
}

/// Reads a `T` at `path`.
pub(super) fn read<T: de::DeserializeOwned>(value: &Value, path: &str) -> Result<(T, Vec<UnknownField>), TypeError> {
    let unknown = RefCell::new(Vec::new());
    let read = T::deserialize(At { value, path: Path::Root(path), known: &[], unknown: &unknown })?;
    Ok((read, unknown.into_inner()))
}

#[derive(Clone, Copy)]
enum Path<'a> {
    Root(&'a str),
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root(text) => out.write_str(text),
            Path::Field(Path::Root(""), name) => out.write_str(name),
            Path::Field(parent, name) if name.contains(['.', '/']) => write!(out, "{parent}[{name:?}]"),
            Path::Field(parent, name) => write!(out, "{parent}.{name}"),
            Path::Index(parent, index) => write!(out, "{parent}[{index}]"),
        }
    }
}

impl fmt::Display for TypeError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for TypeError {}

impl de::Error for TypeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: None, message: message.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format!("expected {}, found {}", wanted(expected), plain(&found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format!("expected {}, found {}", wanted(expected), plain(&found)))
    }

    fn unknown_variant(found: &str, allowed: &'static [&'static str]) -> Self {
        Self::custom(format!("{found:?} is not one of {}", allowed.join(", ")))
    }

    fn invalid_length(length: usize, expected: &dyn de::Expected) -> Self {
        Self::custom(format!("expected {}, found {length} of them", wanted(expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("the field {field} is missing"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::custom(format!("the field {field} is there twice"))
    }
}

/// What serde calls a type of Rust, as a user would say it.
fn wanted(expected: &dyn de::Expected) -> String {
    let text = expected.to_string();
    let whole = |least: i128, most: i128| format!("a whole number from {least} to {most}");
    match text.as_str() {
        "u8" => whole(0, u8::MAX.into()),
        "u16" => whole(0, u16::MAX.into()),
        "u32" => whole(0, u32::MAX.into()),
        "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i8" => whole(i8::MIN.into(), i8::MAX.into()),
        "i16" => whole(i16::MIN.into(), i16::MAX.into()),
        "i32" => whole(i32::MIN.into(), i32::MAX.into()),
        "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "a borrowed string" | "string or identifier" => "text".to_owned(),
        "a character" => "one character".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a group of fields".to_owned(),
        "unit" => "nothing".to_owned(),
        _ => text,
    }
}

fn plain(found: &Unexpected<'_>) -> String {
    match found {
        Unexpected::Unit | Unexpected::Option => "nothing".into(),
        Unexpected::Map => "a group of fields".into(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Str(text) => format!("the text {text:?}"),
        Unexpected::Bool(truth) => format!("{truth}"),
        Unexpected::Unsigned(number) => format!("the number {number}"),
        Unexpected::Signed(number) => format!("the number {number}"),
        Unexpected::Float(number) => format!("the number {number}"),
        other => other.to_string(),
    }
}

/// A value with its path.
struct At<'a> {
    value: &'a Value,
    path: Path<'a>,
    /// Fields of the struct that holds this value, for the case that the value is of none of them.
    known: &'static [&'static str],
    unknown: &'a RefCell<Vec<UnknownField>>,
}

impl At<'_> {
    fn place<T>(&self, result: Result<T, TypeError>) -> Result<T, TypeError> {
        result.map_err(|mut error| {
            if error.path.is_none() {
                error.path = Some(self.path.to_string());
            }
            error
        })
    }

    fn unexpected(&self) -> Unexpected<'_> {
        match self.value {
            Value::Null => Unexpected::Unit,
            Value::Bool(truth) => Unexpected::Bool(*truth),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => Unexpected::Unsigned(number),
                (_, Some(number)) => Unexpected::Signed(number),
                _ => Unexpected::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => Unexpected::Str(text),
            Value::Array(_) => Unexpected::Seq,
            Value::Object(_) => Unexpected::Map,
        }
    }

    fn map<'de, V: Visitor<'de>>(&self, known: &'static [&'static str], visitor: V) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Object(map) => visitor.visit_map(Fields {
                map: map.iter(),
                current: None,
                path: &self.path,
                known,
                unknown: self.unknown,
            }),
            Value::Null => {
                let nothing = Map::new();
                visitor.visit_map(Fields {
                    map: nothing.iter(),
                    current: None,
                    path: &self.path,
                    known,
                    unknown: self.unknown,
                })
            }
            _ => Err(de::Error::invalid_type(self.unexpected(), &"a group of fields")),
        }
    }
}

impl<'de> Deserializer<'de> for At<'_> {
    type Error = TypeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        let result = match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(truth) => visitor.visit_bool(*truth),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (_, Some(number)) => visitor.visit_i64(number),
                _ => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_str(text),
            Value::Array(items) => {
                visitor.visit_seq(Items { items: items.iter().enumerate(), path: &self.path, unknown: self.unknown })
            }
            Value::Object(_) => self.map(&[], visitor),
        };
        self.place(result)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        let result = match self.value {
            Value::Array(items) => {
                visitor.visit_seq(Items { items: items.iter().enumerate(), path: &self.path, unknown: self.unknown })
            }
            Value::Null => {
                visitor.visit_seq(Items { items: [].iter().enumerate(), path: &self.path, unknown: self.unknown })
            }
            _ => Err(de::Error::invalid_type(self.unexpected(), &"a list")),
        };
        self.place(result)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        let result = self.map(&[], visitor);
        self.place(result)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        let result = self.map(fields, visitor);
        self.place(result)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        allowed: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        let result = match self.value {
            Value::String(text) => visitor.visit_enum(de::value::StrDeserializer::new(text)),
            _ => Err(de::Error::invalid_type(self.unexpected(), &format!("one of {}", allowed.join(", ")).as_str())),
        };
        self.place(result)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        if let Path::Field(_, name) = self.path {
            let field = UnknownField { path: self.path.to_string(), name: name.to_owned(), known: self.known };
            self.unknown.borrow_mut().push(field);
        }
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct identifier
    }
}

struct Fields<'a> {
    map: serde_json::map::Iter<'a>,
    current: Option<(&'a str, &'a Value)>,
    path: &'a Path<'a>,
    known: &'static [&'static str],
    unknown: &'a RefCell<Vec<UnknownField>>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = TypeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, TypeError> {
        // Null is absent, so that `default` applies; an unknown field is unknown even when it is null.
        let known = self.known;
        let Some((key, value)) =
            self.map.find(|(key, value)| !value.is_null() || (!known.is_empty() && !known.contains(&key.as_str())))
        else {
            return Ok(None);
        };
        self.current = Some((key, value));
        seed.deserialize(de::value::StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, TypeError> {
        let Some((key, value)) = self.current.take() else {
            return Err(de::Error::custom("a value without a key"));
        };
        seed.deserialize(At { value, path: Path::Field(self.path, key), known: self.known, unknown: self.unknown })
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
    path: &'a Path<'a>,
    unknown: &'a RefCell<Vec<UnknownField>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = TypeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, TypeError> {
        let Some((index, value)) = self.items.next() else { return Ok(None) };
        seed.deserialize(At { value, path: Path::Index(self.path, index), known: &[], unknown: self.unknown }).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    #[allow(dead_code)]
    struct All {
        port: u16,
        small: u8,
        weight: u32,
        large: u64,
        signed: i32,
        share: f64,
        on: bool,
        text: String,
        list: Vec<String>,
        map: BTreeMap<String, String>,
        inner: Inner,
        maybe: Option<u32>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[allow(dead_code)]
    struct Inner {
        needed: bool,
    }

    #[test]
    fn types_are_called_what_users_call_them() {
        for (field, value, expected) in [
            ("port", json!("http"), "expected a whole number from 0 to 65535, found the text \"http\""),
            ("port", json!(70_000), "expected a whole number from 0 to 65535, found the number 70000"),
            ("port", json!(1.5), "expected a whole number from 0 to 65535, found the number 1.5"),
            ("small", json!(-1), "expected a whole number from 0 to 255, found the number -1"),
            ("weight", json!([1]), "expected a whole number from 0 to 4294967295, found a list"),
            ("large", json!("1"), "expected a whole number, 0 or more, found the text \"1\""),
            ("signed", json!(true), "expected a whole number from -2147483648 to 2147483647, found true"),
            ("share", json!("half"), "expected a number, found the text \"half\""),
            ("on", json!("yes"), "expected true or false, found the text \"yes\""),
            ("text", json!(5), "expected text, found the number 5"),
            ("list", json!("a"), "expected a list, found the text \"a\""),
            ("list", json!([1]), "expected text, found the number 1"),
            ("map", json!(["a"]), "expected a group of fields, found a list"),
            ("map", json!({"a": 1}), "expected text, found the number 1"),
            ("inner", json!(3), "expected a group of fields, found the number 3"),
            ("inner", json!({}), "the field needed is missing"),
            ("maybe", json!("x"), "expected a whole number from 0 to 4294967295, found the text \"x\""),
        ] {
            let error = read::<All>(&json!({field: value}), "").err().map(|error| error.message);
            assert_eq!(error.as_deref(), Some(expected), "{field}");
        }
    }
}
