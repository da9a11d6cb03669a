//! Schemas of our types for CustomResourceDefinitions: from what a Rust type gives to what the API server takes:
//! structural (Kubernetes' word), that is, each node has its type said once, outside of `oneOf` and its like, and nothing
//! is a reference. And the rules that types and fields add to theirs.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// Mark on a field: further names under which it is read.
const ALIASES: &str = "x-aliases";
/// Mark on a struct: fields that people write although there are none. They have no effect, but they must reach us: the API
/// server drops what a schema does not name (kubectl even refuses it), and then nobody could say what was meant.
const MISTAKEN: &str = "x-mistaken";

/// The structural schema of a type.
pub(crate) fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    structural(settings.into_generator().into_root_schema_for::<T>().to_value())
}

/// Rule of a duration that may not be 0: Istio takes none below a millisecond there.
pub(crate) fn at_least_1ms() -> Value {
    json!([{"rule": "duration(self) >= duration('1ms')", "message": "must be a valid duration of at least 1ms"}])
}

/// Rules of labels to select by: they are compared as they are, `*` has no meaning.
pub(crate) fn plain_keys() -> Value {
    json!([
        {"rule": "self.all(key, !key.contains('*'))", "message": "wildcard not allowed in label key match"},
        {"rule": "self.all(key, key.size() != 0)", "message": "key must not be empty"},
    ])
}

/// The same for the values; those of Kubernetes' labels are no longer than this.
pub(crate) fn plain_value() -> Value {
    json!({
        "type": "string",
        "maxLength": 63,
        "x-kubernetes-validations": [
            {"rule": "!self.contains('*')", "message": "wildcard not allowed in label value match"},
        ],
    })
}

/// The `oneOf` that lets none or one of the fields be given.
pub(crate) fn at_most_one(fields: &[&str]) -> Value {
    let given: Vec<Value> = fields.iter().map(|field| json!({"required": [field]})).collect();
    let mut choices = vec![json!({"not": {"anyOf": given}})];
    choices.extend(given.iter().cloned());
    json!(choices)
}

fn structural(schema: Value) -> Value {
    let Value::Object(mut node) = schema else {
        // `true`: anything goes, as in a field of type `serde_json::Value`.
        return anything(None);
    };
    for gone in ["$schema", "title", "default"] {
        node.remove(gone);
    }
    take_the_optional(&mut node);
    take_the_words(&mut node);
    take_the_type(&mut node);
    take_the_number(&mut node);
    let mistaken = node.remove(MISTAKEN);
    if let Some(Value::Object(fields)) = node.remove("properties") {
        let mut fields = properties(fields);
        for name in mistaken.iter().flat_map(|names| names.as_array()).flatten().filter_map(Value::as_str) {
            fields[name] = anything(Some(json!("Not a field, and without effect; a warning says what may be meant.")));
        }
        node.insert("properties".to_owned(), fields);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(value) = node.remove(inner).filter(|value| *value != Value::Bool(false)) {
            node.insert(inner.to_owned(), structural(value));
        }
    }
    let typed = node.contains_key("type") || node.contains_key("x-kubernetes-int-or-string");
    if typed { Value::Object(node) } else { anything(node.remove("description")) }
}

/// A node whose content nobody looks at here.
fn anything(description: Option<Value>) -> Value {
    let mut node = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    if let Some(description) = description {
        node["description"] = description;
    }
    node
}

/// Each field, and again under each further name.
fn properties(fields: Map<String, Value>) -> Value {
    let mut all = Map::new();
    for (name, mut field) in fields {
        let aliases = field.as_object_mut().and_then(|field| field.remove(ALIASES));
        let schema = structural(field);
        for alias in aliases.iter().flat_map(|aliases| aliases.as_array()).flatten().filter_map(Value::as_str) {
            let mut other = schema.clone();
            other["description"] = json!(format!("Deprecated spelling of {name}."));
            all.insert(alias.to_owned(), other);
        }
        all.insert(name, schema);
    }
    Value::Object(all)
}

/// An optional thing is the thing: what may be left out says the parent's `required`.
fn take_the_optional(node: &mut Map<String, Value>) {
    if node.contains_key("x-kubernetes-int-or-string") {
        return;
    }
    let Some(Value::Array(choices)) = node.get("anyOf") else { return };
    let Some(Value::Object(thing)) = choices.iter().find(|choice| choice["type"] != "null").cloned() else { return };
    node.remove("anyOf");
    for (key, value) in thing {
        // What stands on the field says more than what stands on its type.
        node.entry(key).or_insert(value);
    }
}

/// A choice of words, each with its meaning, becomes a text with a list of words; the meanings join the description.
fn take_the_words(node: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = node.get("oneOf") else { return };
    let words: Vec<Value> = choices
        .iter()
        .flat_map(|choice| match choice.get("const") {
            Some(word) => vec![word.clone()],
            None => choice.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
        })
        .collect();
    if words.is_empty() {
        return;
    }
    let meanings = choices
        .iter()
        .filter_map(|choice| Some(format!("{}: {}", choice.get("const")?.as_str()?, choice["description"].as_str()?)))
        .collect::<Vec<_>>()
        .join(" ");
    let description = node.get("description").and_then(Value::as_str).unwrap_or_default();
    let description = format!("{description} {meanings}").trim().to_owned();
    node.remove("oneOf");
    node.insert("description".to_owned(), json!(description));
    node.insert("type".to_owned(), json!("string"));
    node.insert("enum".to_owned(), json!(words));
}

/// One type, without null: whoever writes null to the API server is told so by it.
fn take_the_type(node: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = node.get("type") {
        let one = types.iter().find(|one| *one != "null").cloned().unwrap_or_default();
        node.insert("type".to_owned(), one);
    }
    if let Some(Value::Array(words)) = node.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
}

/// Bounds in place of the formats that Kubernetes does not know.
fn take_the_number(node: &mut Map<String, Value>) {
    let largest = match node.get("format").and_then(Value::as_str) {
        Some("uint8") => Some(u64::from(u8::MAX)),
        Some("uint16") => Some(u64::from(u16::MAX)),
        Some("uint32") => Some(u64::from(u32::MAX)),
        Some("uint64" | "uint") => None,
        _ => return,
    };
    node.remove("format");
    if let Some(largest) = largest {
        node.insert("maximum".to_owned(), json!(largest));
    }
}
