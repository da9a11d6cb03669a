//! Reading and writing places of a pod that may not be there.

use serde_json::{Map, Value};

use super::Texts;

/// The text at a JSON pointer; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A map of texts.
pub(super) fn texts(value: &Value, pointer: &str) -> Texts {
    let map = value.pointer(pointer).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// A list; empty if there is none.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The containers of both lists.
pub(super) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(pod, "/spec/initContainers").iter().chain(list(pod, "/spec/containers"))
}

/// The containers of both lists, to be changed.
pub(super) fn containers_mut(pod: &mut Value) -> impl Iterator<Item = &mut Value> {
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut);
    let lists = spec.into_iter().flatten().filter(|(key, _)| *key == "initContainers" || *key == "containers");
    lists.filter_map(|(_, list)| list.as_array_mut()).flatten()
}

/// Whether it has this name.
pub(super) fn is_named(value: &Value, name: &str) -> bool {
    text(value, "/name") == name
}

/// A map below a value, made if it is not there.
pub(super) fn map_mut<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut at = value;
    for key in path {
        at = object(at).entry((*key).to_owned()).or_insert(Value::Null);
    }
    object(at)
}

/// A list below a value, made if it is not there.
pub(super) fn list_mut<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Vec<Value> {
    let Some((last, above)) = path.split_last() else { return array(value) };
    array(map_mut(value, above).entry((*last).to_owned()).or_insert(Value::Null))
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object"),
    }
}

fn array(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it was made a list"),
    }
}

/// Removes maps and lists that became empty.
pub(super) fn drop_empty(value: &mut Value, path: &[&str]) {
    let Some((last, above)) = path.split_last() else { return };
    let pointer: String = above.iter().map(|key| format!("/{key}")).collect();
    let Some(map) = value.pointer_mut(&pointer).and_then(Value::as_object_mut) else { return };
    let is_empty =
        |value: &Value| value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty);
    if map.get(*last).is_some_and(is_empty) {
        map.remove(*last);
    }
}
