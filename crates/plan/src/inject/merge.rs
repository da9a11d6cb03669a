//! Kubernetes' strategic merge for what stands in a pod: maps are joined, lists whose items have a key are joined by it, other
//! lists are replaced, null removes.

use serde_json::{Map, Value};

/// The key of the items of a list, by the list's field.
const KEYS: &[(&str, &str)] = &[
    ("containers", "name"),
    ("initContainers", "name"),
    ("ephemeralContainers", "name"),
    ("volumes", "name"),
    ("env", "name"),
    ("imagePullSecrets", "name"),
    ("ports", "containerPort"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("hostAliases", "ip"),
    ("topologySpreadConstraints", "topologyKey"),
    ("resourceClaims", "name"),
];
/// What an item or map says about itself: `delete` or `replace`.
const DIRECTIVE: &str = "$patch";

/// Puts the overlay onto the value.
pub(super) fn merge(value: &mut Value, overlay: &Value) {
    match (&mut *value, overlay) {
        (Value::Object(below), Value::Object(above)) if directive(overlay) != Some("replace") => maps(below, above),
        _ => *value = clean(overlay),
    }
}

fn maps(below: &mut Map<String, Value>, above: &Map<String, Value>) {
    for (key, value) in above.iter().filter(|(key, _)| !key.starts_with('$')) {
        if value.is_null() || directive(value) == Some("delete") {
            below.remove(key);
            continue;
        }
        let item_key = KEYS.iter().find(|(field, _)| field == key).map(|(_, item_key)| *item_key);
        match (below.get_mut(key), value, item_key) {
            (Some(Value::Array(old)), Value::Array(new), Some(item_key)) => lists(old, new, item_key),
            (Some(old), _, None) if old.is_object() => merge(old, value),
            _ => {
                below.insert(key.clone(), clean(value));
            }
        }
    }
}

fn lists(below: &mut Vec<Value>, above: &[Value], item_key: &str) {
    if above.iter().any(|item| directive(item) == Some("replace") && item.get(item_key).is_none()) {
        *below = above.iter().filter(|item| item.get(item_key).is_some()).map(clean).collect();
        return;
    }
    for item in above {
        let place = below.iter().position(|old| old.get(item_key).is_some() && old.get(item_key) == item.get(item_key));
        match (place, directive(item)) {
            (Some(place), Some("delete")) => {
                below.remove(place);
            }
            (None, Some("delete")) => {}
            (Some(place), _) => merge(&mut below[place], item),
            (None, _) => below.push(clean(item)),
        }
    }
}

fn directive(value: &Value) -> Option<&str> {
    value.get(DIRECTIVE).and_then(Value::as_str)
}

/// Without what is meant for the merge only.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, value)| !key.starts_with('$') && !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), clean(value))).collect())
        }
        Value::Array(items) => {
            let kept = items.iter().filter(|item| directive(item) != Some("delete"));
            Value::Array(kept.map(clean).collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(mut value: Value, overlay: Value) -> Value {
        merge(&mut value, &overlay);
        value
    }

    #[test]
    fn items_are_joined_by_their_key_and_the_rest_is_replaced() {
        let pod =
            json!({"containers": [{"name": "a", "args": ["x"], "env": [{"name": "A", "value": "1"}]}, {"name": "b"}]});
        let overlay = json!({"containers": [
            {"name": "a", "args": ["y"], "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}]}, {"name": "c"}]});
        assert_eq!(
            merged(pod, overlay),
            json!({"containers": [
                {"name": "a", "args": ["y"], "env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}]},
                {"name": "b"}, {"name": "c"}]})
        );
        assert_eq!(merged(json!({"tolerations": [1]}), json!({"tolerations": [2]})), json!({"tolerations": [2]}));
    }

    #[test]
    fn null_and_directives_remove() {
        assert_eq!(merged(json!({"a": 1, "b": {"c": 2}}), json!({"a": null, "b": {"c": null}})), json!({"b": {}}));
        let gone =
            merged(json!({"env": [{"name": "A"}, {"name": "B"}]}), json!({"env": [{"name": "A", "$patch": "delete"}]}));
        assert_eq!(gone, json!({"env": [{"name": "B"}]}));
        let whole = merged(json!({"a": {"b": 1}}), json!({"a": {"$patch": "replace", "c": 2}}));
        assert_eq!(whole, json!({"a": {"c": 2}}));
        assert_eq!(merged(json!({}), json!({"a": {"b": null, "$patch": "x"}})), json!({"a": {}}));
    }

    #[test]
    fn ports_and_mounts_have_keys_of_their_own() {
        let value =
            json!({"ports": [{"containerPort": 80, "name": "a"}], "volumeMounts": [{"mountPath": "/a", "name": "v"}]});
        let overlay = json!({"ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 81}], "volumeMounts": [{"mountPath": "/a", "name": "w"}]});
        assert_eq!(
            merged(value, overlay),
            json!({"ports": [{"containerPort": 80, "name": "a", "protocol": "TCP"}, {"containerPort": 81}], "volumeMounts": [{"mountPath": "/a", "name": "w"}]})
        );
    }
}
