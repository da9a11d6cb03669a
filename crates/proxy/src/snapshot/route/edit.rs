//! Changes of headers (Envoy `HeaderValueOption`, `*_headers_to_remove`).

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::telemetry::format::{Facts, Format};

/// Changes of a request's and an answer's headers at one level.
#[derive(Debug, Default)]
pub struct HeaderEdits {
    /// Of the request.
    pub request: Edits,
    /// Of the answer.
    pub response: Edits,
}

/// Changes of one header map; removals come first, as in Envoy.
#[derive(Debug, Default)]
pub struct Edits {
    /// Removed.
    pub remove: Vec<HeaderName>,
    /// Added or set, in order.
    pub add: Vec<Edit>,
    /// The authority is set to this (`:authority` or `host` among the added).
    pub authority: Option<HeaderValue>,
}

/// One added or set header.
#[derive(Debug)]
pub struct Edit {
    /// Name.
    pub name: HeaderName,
    /// Value.
    pub value: Value,
    /// What if it exists.
    pub when: When,
}

/// A header's value.
#[derive(Debug)]
pub enum Value {
    /// This.
    Literal(HeaderValue),
    /// With `%OPERATORS%`, as in access logs.
    Format(Format),
}

/// What happens if the header exists or does not (Envoy `HeaderAppendAction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Another one is added.
    Append,
    /// Only if it is not there.
    IfAbsent,
    /// It is replaced or added.
    Overwrite,
    /// Only if it is there, it is replaced.
    IfPresent,
}

impl Edits {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Makes the changes; `facts` gives what operators ask for.
    pub fn apply<'f>(&self, headers: &mut HeaderMap, of_request: bool, facts: &dyn Fn() -> Facts<'f>) {
        for name in &self.remove {
            headers.remove(name);
        }
        for edit in &self.add {
            let value = match &edit.value {
                Value::Literal(value) => value.clone(),
                Value::Format(format) => {
                    // Rare: a copy of the headers lets operators read what is being changed.
                    let kept: Vec<_> = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
                    let mut facts: Facts<'_> = facts();
                    if of_request {
                        facts.request = &kept;
                    } else {
                        facts.response = &kept;
                    }
                    let mut text = String::new();
                    format.write(&facts, &mut text);
                    let Ok(value) = HeaderValue::from_str(&text) else { continue };
                    value
                }
            };
            let name = edit.name.clone();
            match edit.when {
                When::Append => {
                    headers.append(name, value);
                }
                When::IfAbsent if headers.contains_key(&name) => {}
                When::IfPresent if !headers.contains_key(&name) => {}
                When::IfAbsent | When::IfPresent | When::Overwrite => {
                    headers.insert(name, value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_comes_first_and_each_action_keeps_its_word() {
        let edit = |name: &'static str, value: &'static str, when| Edit {
            name: HeaderName::from_static(name),
            value: Value::Literal(HeaderValue::from_static(value)),
            when,
        };
        let edits = Edits {
            remove: vec![HeaderName::from_static("gone")],
            add: vec![
                edit("many", "2", When::Append),
                edit("old", "new", When::IfAbsent),
                edit("none", "x", When::IfPresent),
                edit("set", "2", When::Overwrite),
                edit("gone", "back", When::IfAbsent),
            ],
            authority: None,
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [("gone", "1"), ("many", "1"), ("old", "old"), ("set", "1")] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        edits.apply(&mut headers, true, &Facts::default);
        let all = |name: &str| {
            headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            (all("many"), all("old"), all("set"), all("gone")),
            (vec!["1".into(), "2".into()], vec!["old".into()], vec!["2".into()], vec!["back".into()])
        );
        assert!(!headers.contains_key("none"));
    }
}
