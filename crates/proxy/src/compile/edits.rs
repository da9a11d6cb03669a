//! Header changes.

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use http::{HeaderName, HeaderValue};

use crate::snapshot::route::edit::{Edit, Edits, HeaderEdits, Value, When};
use crate::telemetry::format::Format;

/// The changes of one level: added and removed request headers, added and removed answer headers.
pub(crate) fn header_edits(
    add: &[HeaderValueOption],
    remove: &[String],
    add_response: &[HeaderValueOption],
    remove_response: &[String],
) -> Result<HeaderEdits, String> {
    Ok(HeaderEdits { request: edits(add, remove)?, response: edits(add_response, remove_response)? })
}

fn edits(add: &[HeaderValueOption], remove: &[String]) -> Result<Edits, String> {
    let mut edits = Edits::default();
    for name in remove {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            return Err(format!("the header {name:?} cannot be removed"));
        }
        edits.remove.push(name.to_ascii_lowercase().parse().map_err(|_| format!("{name:?} is not a header's name"))?);
    }
    for option in add {
        let Some(header) = &option.header else { return Err("an added header has no name".to_owned()) };
        let text = if header.value.is_empty() {
            String::from_utf8_lossy(&header.raw_value).into_owned()
        } else {
            header.value.clone()
        };
        if header.key.eq_ignore_ascii_case("host") || header.key == ":authority" {
            edits.authority =
                Some(HeaderValue::from_str(&text).map_err(|_| format!("{text:?} cannot stand in a header"))?);
            continue;
        }
        if header.key.starts_with(':') {
            return Err(format!("the header {:?} cannot be set here", header.key));
        }
        let name: HeaderName =
            header.key.to_ascii_lowercase().parse().map_err(|_| format!("{:?} is not a header's name", header.key))?;
        let value = if text.contains('%') {
            Value::Format(Format::parse(&text).map_err(|error| format!("header {name}: {error}"))?)
        } else {
            Value::Literal(HeaderValue::from_str(&text).map_err(|_| format!("{text:?} cannot stand in a header"))?)
        };
        edits.add.push(Edit { name, value, when: when(option)? });
    }
    Ok(edits)
}

/// The deprecated `append` counts where it is set.
fn when(option: &HeaderValueOption) -> Result<When, String> {
    if let Some(append) = &option.append {
        return Ok(if append.value { When::Append } else { When::Overwrite });
    }
    match option.append_action {
        0 => Ok(When::Append),
        1 => Ok(When::IfAbsent),
        2 => Ok(When::Overwrite),
        3 => Ok(When::IfPresent),
        other => Err(format!("{other} is not an append action")),
    }
}
