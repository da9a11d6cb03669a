//! `meshctl why`: the reason of a failure, from the proxies that saw it.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::WhyArguments;
use crate::mesh::Mesh;
use crate::print::{Format, reason, structured};

pub(super) async fn run(mesh: &Mesh, arguments: WhyArguments) -> Result<ExitCode> {
    let (path, only) = match (&arguments.request_id, arguments.last.as_deref()) {
        (Some(id), _) => (format!("/why?request_id={}", encode(id)), None),
        (None, Some("") | None) => ("/why?last=10".to_owned(), None),
        (None, Some(proxy)) => ("/why?last=1".to_owned(), Some(proxy)),
    };
    let (found, silent) = mesh.failures(&path, only).await?;
    for sentence in silent {
        eprintln!("not asked: {sentence}");
    }
    // A request has its reason; who asks for the last failures also wants to hear of rules that are not in effect.
    let refusals = if arguments.request_id.is_some() { Vec::new() } else { mesh.refusals(only).await? };
    if arguments.output != Format::Table {
        print!("{}", structured(arguments.output, &found)?);
    } else if found.is_empty() && refusals.is_empty() {
        let what = arguments
            .request_id
            .map_or("No failure is remembered".to_owned(), |id| format!("No failure of request {id} is remembered"));
        eprintln!("{what} by any connected proxy; each keeps the last 256.");
        return Ok(ExitCode::FAILURE);
    }
    if arguments.output == Format::Table {
        let refused =
            |sentence: &String| format!("{sentence}\n  its last good form, if there was one, stays in effect\n");
        let told: Vec<String> = found.iter().map(reason).chain(refusals.iter().map(refused)).collect();
        print!("{}", told.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Percent-encodes all but unreserved characters (RFC 3986, 2.3).
fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_encoded() {
        assert_eq!(encode("a-b c/é"), "a-b%20c%2F%C3%A9");
    }
}
