//! Tests of what filters told of a request (Envoy `MetadataMatcher`, `ValueMatcher`).

use serde_json::Value;

use super::text_match::TextMatch;
use crate::metadata::Metadata;

/// One test.
#[derive(Debug)]
pub struct MetadataMatch {
    /// Who told it.
    pub filter: String,
    /// Names that lead to the value.
    pub path: Vec<String>,
    /// What the value must be.
    pub value: ValueMatch,
    /// The opposite is wanted.
    pub invert: bool,
}

/// What a value must be. Nothing but [`ValueMatch::Present`] asks whether it is there; what is not there matches none of these.
#[derive(Debug)]
pub enum ValueMatch {
    /// JSON's null.
    Null,
    /// This number.
    Number(f64),
    /// A number from the first up to but without the second.
    Range(f64, f64),
    /// A text like this.
    Text(TextMatch),
    /// This truth.
    Truth(bool),
    /// It is there; `false` never matches.
    Present(bool),
    /// A list of which one element is so.
    OneOf(Box<ValueMatch>),
    /// One of these.
    Any(Vec<ValueMatch>),
}

impl MetadataMatch {
    /// Whether it holds.
    pub fn matches(&self, metadata: Option<&Metadata>) -> bool {
        let value = metadata.and_then(|metadata| metadata.at(&self.filter, &self.path));
        value.is_some_and(|value| self.value.matches(value)) != self.invert
    }
}

impl ValueMatch {
    fn matches(&self, value: &Value) -> bool {
        match self {
            ValueMatch::Null => value.is_null(),
            ValueMatch::Number(number) => value.as_f64() == Some(*number),
            ValueMatch::Range(from, to) => value.as_f64().is_some_and(|number| (*from..*to).contains(&number)),
            ValueMatch::Text(text) => value.as_str().is_some_and(|value| text.matches(value)),
            ValueMatch::Truth(truth) => value.as_bool() == Some(*truth),
            ValueMatch::Present(wanted) => *wanted,
            ValueMatch::OneOf(one) => value.as_array().is_some_and(|list| list.iter().any(|item| one.matches(item))),
            ValueMatch::Any(any) => any.iter().any(|one| one.matches(value)),
        }
    }
}
