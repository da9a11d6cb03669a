//! A proxy's own settings, as the annotation `proxy.istio.io/config` and the mesh's `defaultConfig` give them: YAML whose values must
//! be of the types of Istio's `ProxyConfig`. A value that the proxy could not read would be ignored there, or keep it from starting.

use api::value::Duration;
use serde_json::Value;

/// What a value must be: reads it, and gives it as the proxy takes it.
type Read = fn(&Value) -> Option<Value>;

/// Fields that have an effect, how they are read, and what is allowed.
const FIELDS: &[(&str, Read, &str)] = &[
    ("concurrency", count, "a whole number of 0 or more"),
    ("statusPort", port, "a port from 0 to 65535"),
    ("drainDuration", duration, "a duration such as 45s"),
    ("terminationDrainDuration", duration, "a duration such as 5s"),
    ("holdApplicationUntilProxyStarts", truth, "true or false"),
    ("interceptionMode", interception, "REDIRECT, TPROXY or NONE"),
    ("discoveryAddress", address, "an address such as istiod.istio-system.svc:15012"),
    ("proxyMetadata", texts, "a map of texts"),
];

/// Reads the text of the annotation.
///
/// # Errors
/// What is wrong and what is allowed, to be read after "NAME: VALUE …".
pub(super) fn read(text: &str) -> Result<Value, String> {
    let read = api::mesh_config::proxy_config(text);
    let mut config = read.map_err(|error| format!("cannot be read: {}", error.lines().next().unwrap_or_default()))?;
    check(&mut config)?;
    Ok(config)
}

/// Checks settings that were read, and writes numbers that stand in quotes as numbers (protobuf's JSON knows both).
///
/// # Errors
/// See [`read`].
pub fn check(config: &mut Value) -> Result<(), String> {
    for (field, read, allowed) in FIELDS {
        let Some(value) = config.get_mut(*field).filter(|value| !value.is_null()) else { continue };
        match read(value) {
            Some(good) => *value = good,
            None => return Err(format!("sets {field}: {value}, which is not {allowed}")),
        }
    }
    Ok(())
}

/// A number, or one that is written as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn count(value: &Value) -> Option<Value> {
    number(value).filter(|count| i32::try_from(*count).is_ok()).map(Value::from)
}

fn port(value: &Value) -> Option<Value> {
    number(value).filter(|port| u16::try_from(*port).is_ok()).map(Value::from)
}

fn duration(value: &Value) -> Option<Value> {
    value.as_str()?.parse::<Duration>().ok().map(|_| value.clone())
}

fn truth(value: &Value) -> Option<Value> {
    value.as_bool().map(Value::from)
}

fn interception(value: &Value) -> Option<Value> {
    Some(value.clone()).filter(|value| matches!(value.as_str(), Some("REDIRECT" | "TPROXY" | "NONE")))
}

fn address(value: &Value) -> Option<Value> {
    let (host, port) = value.as_str()?.rsplit_once(':')?;
    (!host.is_empty() && port.parse::<u16>().is_ok()).then(|| value.clone())
}

/// Numbers and truths become the texts that variables are.
fn texts(value: &Value) -> Option<Value> {
    let plain = |value: &Value| !value.is_object() && !value.is_array();
    value.as_object()?.values().all(plain).then(|| value.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_of_another_type_is_told_with_what_is_allowed() {
        for (text, told) in [
            ("concurrency: many", r#"sets concurrency: "many", which is not a whole number of 0 or more"#),
            ("concurrency: -1", "sets concurrency: -1"),
            ("statusPort: 70000", "not a port"),
            ("terminationDrainDuration: 5", "not a duration such as 5s"),
            ("drainDuration: soon", r#"sets drainDuration: "soon""#),
            ("holdApplicationUntilProxyStarts: 'yes'", "not true or false"),
            ("interceptionMode: redirect", "REDIRECT, TPROXY or NONE"),
            ("discoveryAddress: istiod", "not an address"),
            ("proxyMetadata: [A]", "not a map of texts"),
            ("proxyMetadata: {A: {b: c}}", "not a map of texts"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn good_values_pass_and_numbers_in_quotes_are_numbers() {
        let read =
            read("{concurrency: '2', statusPort: 15020, drainDuration: 1m30s, proxyMetadata: {A: true}}").unwrap();
        assert_eq!(
            read,
            json!({"concurrency": 2, "statusPort": 15020, "drainDuration": "1m30s", "proxyMetadata": {"A": true}})
        );
        assert_eq!(super::read("concurrency: null").unwrap(), json!({"concurrency": null}));
    }
}
