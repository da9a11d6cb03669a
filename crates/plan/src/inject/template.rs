//! The users' own templates: Go's template language with Istio's and the usual functions, over the data that Istio gives them. The
//! result is YAML, which is merged onto the pod.

mod data;

use gotmpl::Template;
use serde_json::Value;

use super::build::Request;
use crate::go_template;

/// Whether the text can be parsed. A function that nobody knows is found when it is called.
///
/// # Errors
/// What is wrong and where, not yet a sentence.
pub(super) fn check(name: &str, text: &str) -> Result<(), String> {
    parsed(name, text).map(|_| ())
}

fn parsed(name: &str, text: &str) -> Result<Template, String> {
    let template = Template::new(name).funcs(go_template::functions());
    template.parse(text).map_err(|error| one_line(&error.to_string()))
}

/// Renders one template over the pod as it is so far.
///
/// # Errors
/// One sentence: the template cannot be rendered, or what it gives is no YAML of a map.
pub(super) fn overlay(name: &str, pod: &Value, request: &Request<'_>) -> Result<Value, String> {
    let text = request.settings.templates.get(name).map(String::as_str).unwrap_or_default();
    let wrong = |error: String| format!("The injection template {name} cannot be used: {error}.");
    let rendered = parsed(name, text)
        .map_err(wrong)?
        .execute_to_string(&data::of(pod, request))
        .map_err(|error| wrong(one_line(&error.to_string())))?;
    if rendered.trim().is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let overlay: Value = serde_saphyr::from_str(&rendered)
        .map_err(|error| wrong(format!("what it gives is not YAML: {}", one_line(&error.to_string()))))?;
    match overlay {
        Value::Object(_) => Ok(overlay),
        Value::Null => Ok(Value::Object(serde_json::Map::new())),
        _ => Err(wrong("what it gives is not a map".to_owned())),
    }
}

fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_parsed_is_told() {
        assert!(check("a", "spec: {{ toJSON .Spec }}").is_ok());
        assert!(check("a", "{{ if }}").is_err());
    }
}
