//! `meshctl why`: the reason of a failure, from the proxies that saw it.

use std::process::ExitCode;

use anyhow::Result;
use api::debug::Why;
use serde::Serialize;

use crate::cli::{WhyArguments, in_namespace};
use crate::mesh::Mesh;
use crate::print::{Format, reason, structured};

/// How many different failures `--last` lists.
const LISTED: usize = 10;

/// Failures that are alike but for their time and the request's own words.
#[derive(Debug, Serialize)]
struct Alike {
    /// The newest.
    #[serde(flatten)]
    newest: Why,
    /// How many are remembered.
    times: usize,
    /// When the oldest of them was, RFC 3339.
    since: String,
}

pub(super) async fn run(mesh: &Mesh, arguments: WhyArguments) -> Result<ExitCode> {
    let namespace = arguments.namespace.as_deref();
    let named = arguments.last.as_deref().filter(|name| !name.is_empty()).map(|name| in_namespace(name, namespace));
    let (path, only) = match (&arguments.request_id, named.as_deref()) {
        (Some(id), _) => (format!("/why?request_id={}", encode(id)), None),
        (None, only) => ("/why?last=256".to_owned(), only),
    };
    let (mut found, silent) = mesh.failures(&path, only).await?;
    found.retain(|why| is_of(&why.proxy, namespace.filter(|_| only.is_none())));
    for sentence in silent {
        eprintln!("not asked: {sentence}");
    }
    // A request has its reason; who asks for the last failures also wants to hear of rules that are not in effect.
    let refusals = if arguments.request_id.is_some() { Vec::new() } else { mesh.refusals(only).await? };
    let last = arguments.request_id.is_none();
    if arguments.output != Format::Table {
        let text =
            if last { structured(arguments.output, &folded(found))? } else { structured(arguments.output, &found)? };
        print!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() && refusals.is_empty() {
        let what = arguments
            .request_id
            .map_or("No failure is remembered".to_owned(), |id| format!("No failure of request {id} is remembered"));
        eprintln!("{what} by any connected proxy; each keeps the last 256.");
        return Ok(ExitCode::FAILURE);
    }
    let refused = |sentence: &String| format!("{sentence}\n  its last good form, if there was one, stays in effect\n");
    let mut told: Vec<String> = refusals.iter().map(refused).collect();
    if last {
        // What is not in effect explains what failed: it comes first.
        told.extend(folded(found).iter().map(entry));
    } else {
        told = found.iter().map(reason).collect();
    }
    print!("{}", told.join("\n"));
    Ok(ExitCode::SUCCESS)
}

/// Whether a proxy `NAME.NAMESPACE` is of the namespace, if one is asked for.
fn is_of(proxy: &str, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|wanted| proxy.split_once('.').is_some_and(|(_, namespace)| namespace == wanted))
}

/// The newest first, those that are alike once, as many as are listed. `found` has the oldest first.
fn folded(found: Vec<Why>) -> Vec<Alike> {
    let mut listed: Vec<Alike> = Vec::new();
    for why in found.into_iter().rev() {
        match listed.iter_mut().find(|alike| key(&alike.newest) == key(&why)) {
            Some(alike) => {
                alike.times += 1;
                alike.since = why.time;
            }
            None => listed.push(Alike { times: 1, since: why.time.clone(), newest: why }),
        }
    }
    listed.truncate(LISTED);
    listed
}

/// What makes failures alike: who saw what of which destination, and why.
fn key(why: &Why) -> impl PartialEq + '_ {
    (
        [&why.proxy, &why.direction, &why.failure, &why.flag, &why.details],
        why.status,
        [&why.object, &why.route, &why.cluster],
    )
}

/// A failure of the list in three lines.
fn entry(alike: &Alike) -> String {
    let Alike { newest: why, times, since } = alike;
    let words = |parts: &[&str]| {
        let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
        parts.join(" ")
    };
    let status = if why.status == 0 { String::new() } else { why.status.to_string() };
    let often = if *times > 1 { format!("{times} times since {since}") } else { String::new() };
    let place = if why.place.is_empty() { String::new() } else { format!(", {}", why.place) };
    let asked = if why.request_id.is_empty() { String::new() } else { format!("request id {}", why.request_id) };
    let from = [format!("{}{place}", why.object), asked].into_iter().filter(|part| !part.is_empty());
    format!(
        "{}\n  {}\n  {}\n",
        words(&[
            &why.time,
            &why.proxy,
            &format!("({})", why.direction),
            &why.request,
            &status,
            &why.flag,
            &why.details,
            &often
        ]),
        why.sentence,
        from.collect::<Vec<_>>().join("; ")
    )
}

/// Percent-encodes all but unreserved characters (RFC 3986, 2.3).
fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(time: &str, failure: &str, request: &str) -> Why {
        Why { time: time.into(), failure: failure.into(), request: request.into(), ..Why::default() }
    }

    #[test]
    fn the_newest_comes_first_and_what_is_alike_comes_once() {
        let mut found = vec![failed("1", "a", "GET /1"), failed("2", "b", "GET /2"), failed("3", "a", "GET /3")];
        let list = folded(found.clone());
        let seen: Vec<_> = list.iter().map(|one| (one.newest.time.as_str(), one.times, one.since.as_str())).collect();
        assert_eq!(seen, [("3", 2, "1"), ("2", 1, "2")]);
        assert!(entry(&list[0]).contains("GET /3 2 times since 1") && !entry(&list[1]).contains("times"));
        found.extend((10..30).map(|number| failed(&number.to_string(), &format!("kind {number}"), "")));
        assert_eq!(folded(found).len(), LISTED);
    }

    #[test]
    fn ids_are_encoded() {
        assert_eq!(encode("a-b c/é"), "a-b%20c%2F%C3%A9");
    }
}
