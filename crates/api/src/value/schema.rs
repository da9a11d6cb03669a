//! What the leaf values look like in the schemas of CustomResourceDefinitions.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{Duration, NumberOrName, Percent, StringMatch};

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    /// A text; Go's own syntax is checked, so that a wrong one is refused where the user stands and not later.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 64,
            "pattern": r"^(0|([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+)$",
        })
    }
}

impl JsonSchema for Percent {
    fn schema_name() -> Cow<'static, str> {
        "Percent".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "properties": {
                "value": {
                    "type": "number", "format": "double", "minimum": 0, "maximum": 100,
                    "description": "Percent, with fractions: from 0 to 100.",
                },
            },
        })
    }
}

impl JsonSchema for StringMatch {
    fn schema_name() -> Cow<'static, str> {
        "StringMatch".into()
    }

    /// Nothing given is allowed: then the thing must only be there.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "properties": {
                "exact": {"type": "string", "description": "The whole text."},
                "prefix": {"type": "string", "description": "Its beginning."},
                "regex": {
                    "type": "string",
                    "description": "A regular expression (RE2 syntax) that must match the whole text.",
                },
            },
            "oneOf": crate::schema::at_most_one(&["exact", "prefix", "regex"]),
        })
    }
}

impl JsonSchema for NumberOrName {
    fn schema_name() -> Cow<'static, str> {
        "NumberOrName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true})
    }
}
