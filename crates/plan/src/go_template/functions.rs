//! The functions of templates: Istio's (`pkg/kube/inject/template.go`) and the ones that users of Go templates expect (sprig). Those that
//! ask a clock, dice or the environment are not there, or give their default.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gotmpl::{FuncMap, Template, TemplateError, Value as Data, ValueFunc};
use serde_json::Value;

use super::{data as plain, json as json_of, map};

/// The words of a list, without the blanks around them.
fn words(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|word| !word.is_empty())
}

type Given = Result<Data, TemplateError>;

/// All of them.
pub(super) fn all() -> FuncMap {
    let mut all = istio();
    all.extend(texts());
    all.extend(lists());
    all.extend(numbers());
    all.insert("render".to_owned(), Arc::new(render));
    all
}

/// A function by its name.
type Row = (&'static str, fn(&[Data]) -> Given);

fn table(rows: Vec<Row>) -> FuncMap {
    rows.into_iter().map(|(name, function)| (name.to_owned(), Arc::new(function) as ValueFunc)).collect()
}

fn at(arguments: &[Data], place: usize) -> Result<&Data, TemplateError> {
    arguments.get(place).ok_or_else(|| TemplateError::Exec(format!("argument {} is missing", place + 1)))
}

/// An argument as text: what is no text is written out, nothing is empty.
fn words_of(arguments: &[Data], place: usize) -> Result<String, TemplateError> {
    Ok(written(at(arguments, place)?))
}

fn written(data: &Data) -> String {
    match data {
        Data::Nil => String::new(),
        Data::String(text) => text.to_string(),
        other => other.to_string(),
    }
}

fn whole(arguments: &[Data], place: usize) -> Result<i64, TemplateError> {
    let data = at(arguments, place)?;
    let read = match data {
        Data::Float(number) => Some(*number as i64),
        Data::Bool(truth) => Some(i64::from(*truth)),
        Data::String(text) => text.trim().parse().ok(),
        other => other.as_int(),
    };
    read.ok_or_else(|| TemplateError::Exec(format!("{data} is not a whole number")))
}

fn entries(data: &Data) -> BTreeMap<Arc<str>, Data> {
    match data {
        Data::Map(fields) => BTreeMap::clone(fields),
        _ => BTreeMap::new(),
    }
}

fn items(data: &Data) -> Vec<Data> {
    match data {
        Data::List(items) => items.to_vec(),
        _ => Vec::new(),
    }
}

fn list(items: Vec<Data>) -> Data {
    Data::List(items.into())
}

fn text(value: impl Into<String>) -> Given {
    Ok(Data::String(value.into().into()))
}

fn yaml(data: &Data) -> Result<String, TemplateError> {
    let text = serde_saphyr::to_string(&json_of(data)).map_err(|error| TemplateError::Exec(error.to_string()))?;
    Ok(text.trim_end_matches('\n').to_owned())
}

fn from_json(arguments: &[Data]) -> Given {
    let value: Value = serde_json::from_str(&words_of(arguments, 0)?)
        .map_err(|error| TemplateError::Exec(format!("not JSON: {error}")))?;
    Ok(plain(&value))
}

fn to_json(arguments: &[Data]) -> Given {
    text(json_of(at(arguments, 0)?).to_string())
}

fn indented(width: i64, text: &str) -> String {
    let blanks = " ".repeat(usize::try_from(width).unwrap_or(0));
    text.split('\n').map(|line| format!("{blanks}{line}")).collect::<Vec<_>>().join("\n")
}

/// The ports of the containers that are not the proxy.
fn container_ports(data: &Data) -> String {
    let containers =
        items(data).into_iter().filter(|one| one.field("Name").map(written).as_deref() != Some("istio-proxy"));
    let ports = containers.flat_map(|one| one.field("Ports").map(items).unwrap_or_default());
    let ports: Vec<String> = ports
        .filter(|port| matches!(port.field("Protocol").map(written).as_deref(), None | Some("" | "TCP")))
        .filter_map(|port| Some(written(port.field("ContainerPort")?)))
        .collect();
    ports.join(",")
}

fn istio() -> FuncMap {
    table(vec![
        ("toJSON", to_json),
        ("structToJSON", to_json),
        ("protoToJSON", to_json),
        ("toJson", to_json),
        ("fromJSON", from_json),
        ("fromJson", from_json),
        ("toJsonMap", |given| {
            let mut all = BTreeMap::new();
            given.iter().for_each(|one| all.extend(entries(one)));
            text(json_of(&Data::Map(Arc::new(all))).to_string())
        }),
        ("toYaml", |given| text(yaml(at(given, 0)?)?)),
        ("fromYaml", |given| {
            let value: Value = serde_saphyr::from_str(&words_of(given, 0)?)
                .map_err(|error| TemplateError::Exec(format!("not YAML: {error}")))?;
            Ok(plain(&value))
        }),
        ("isset", |given| Ok(Data::Bool(at(given, 0)?.field(&words_of(given, 1)?).is_some()))),
        ("annotation", |given| {
            let own =
                at(given, 0)?.field("Annotations").and_then(|all| all.field(&words_of(given, 1).unwrap_or_default()));
            text(match own {
                Some(own) => written(own),
                None => words_of(given, 2)?,
            })
        }),
        ("valueOrDefault", |given| {
            let value = at(given, 0)?;
            let empty = matches!(value, Data::Nil) || value.as_str() == Some("");
            if empty { at(given, 1).cloned() } else { Ok(value.clone()) }
        }),
        ("directory", |given| {
            let path = words_of(given, 0)?;
            text(path.rsplit_once('/').map_or(String::new(), |(directory, _)| format!("{directory}/")))
        }),
        ("contains", |given| Ok(Data::Bool(words_of(given, 1)?.contains(&words_of(given, 0)?)))),
        ("excludeInboundPort", |given| {
            let (port, excluded) = (words_of(given, 0)?, words_of(given, 1)?);
            let mut ports: Vec<&str> = words(&excluded).collect();
            if !port.is_empty() && port != "0" && !ports.contains(&port.as_str()) {
                ports.push(&port);
            }
            text(ports.join(","))
        }),
        ("includeInboundPorts", |given| text(container_ports(at(given, 0)?))),
        ("applicationPorts", |given| text(container_ports(at(given, 0)?))),
        ("kubevirtInterfaces", |given| text(words(&words_of(given, 0)?).collect::<Vec<_>>().join(","))),
        ("excludeInterfaces", |given| text(words(&words_of(given, 0)?).collect::<Vec<_>>().join(","))),
        ("formatDuration", |given| text(words_of(given, 0)?)),
        ("env", |given| at(given, 1).cloned()),
        ("strdict", dict),
        ("dict", dict),
        ("omit", |given| {
            let mut fields = entries(at(given, 0)?);
            given.iter().skip(1).for_each(|key| {
                fields.remove(written(key).as_str());
            });
            Ok(Data::Map(Arc::new(fields)))
        }),
        ("omitNil", |given| {
            let fields = entries(at(given, 0)?).into_iter().filter(|(_, value)| !matches!(value, Data::Nil));
            Ok(Data::Map(Arc::new(fields.collect())))
        }),
        ("mergeMaps", |given| {
            let mut all = BTreeMap::new();
            given.iter().for_each(|one| all.extend(entries(one)));
            Ok(Data::Map(Arc::new(all)))
        }),
    ])
}

fn dict(given: &[Data]) -> Given {
    if given.len() % 2 == 1 {
        return Err(TemplateError::Exec("a dict takes pairs".to_owned()));
    }
    Ok(map(given.chunks(2).map(|pair| (written(&pair[0]), pair[1].clone()))))
}

/// A text that is a template itself.
fn render(given: &[Data]) -> Given {
    let source = words_of(given, 0)?;
    let data = given.get(1).cloned().unwrap_or(Data::Nil);
    text(Template::new("render").funcs(all()).parse(&source)?.execute_to_string(&data)?)
}

fn texts() -> FuncMap {
    table(vec![
        ("toLower", |given| text(words_of(given, 0)?.to_lowercase())),
        ("lower", |given| text(words_of(given, 0)?.to_lowercase())),
        ("upper", |given| text(words_of(given, 0)?.to_uppercase())),
        ("trim", |given| text(words_of(given, 0)?.trim())),
        ("trimAll", |given| {
            let letters = words_of(given, 0)?;
            text(words_of(given, 1)?.trim_matches(|letter| letters.contains(letter)))
        }),
        ("trimPrefix", |given| {
            let whole = words_of(given, 1)?;
            text(whole.strip_prefix(words_of(given, 0)?.as_str()).unwrap_or(&whole))
        }),
        ("trimSuffix", |given| {
            let whole = words_of(given, 1)?;
            text(whole.strip_suffix(words_of(given, 0)?.as_str()).unwrap_or(&whole))
        }),
        ("hasPrefix", |given| Ok(Data::Bool(words_of(given, 1)?.starts_with(&words_of(given, 0)?)))),
        ("hasSuffix", |given| Ok(Data::Bool(words_of(given, 1)?.ends_with(&words_of(given, 0)?)))),
        ("replace", |given| text(words_of(given, 2)?.replace(&words_of(given, 0)?, &words_of(given, 1)?))),
        ("repeat", |given| text(words_of(given, 1)?.repeat(usize::try_from(whole(given, 0)?.min(1000)).unwrap_or(0)))),
        ("trunc", |given| {
            let (width, whole) = (whole(given, 0)?, words_of(given, 1)?);
            let count = whole.chars().count();
            let wanted = usize::try_from(width.unsigned_abs()).unwrap_or(count);
            let skip = if width < 0 { count.saturating_sub(wanted) } else { 0 };
            text(whole.chars().skip(skip).take(wanted).collect::<String>())
        }),
        ("quote", |given| {
            let quoted = given.iter().filter(|one| !matches!(one, Data::Nil)).map(|one| format!("{:?}", written(one)));
            text(quoted.collect::<Vec<_>>().join(" "))
        }),
        ("squote", |given| {
            let quoted = given.iter().filter(|one| !matches!(one, Data::Nil)).map(|one| format!("'{}'", written(one)));
            text(quoted.collect::<Vec<_>>().join(" "))
        }),
        ("cat", |given| text(given.iter().map(written).collect::<Vec<_>>().join(" "))),
        ("indent", |given| text(indented(whole(given, 0)?, &words_of(given, 1)?))),
        ("nindent", |given| text(format!("\n{}", indented(whole(given, 0)?, &words_of(given, 1)?)))),
        ("toString", |given| text(words_of(given, 0)?)),
        ("b64enc", |given| text(STANDARD.encode(words_of(given, 0)?))),
        ("b64dec", |given| {
            let bytes = STANDARD.decode(words_of(given, 0)?).map_err(|error| TemplateError::Exec(error.to_string()))?;
            text(String::from_utf8_lossy(&bytes).into_owned())
        }),
        ("regexMatch", |given| {
            let pattern = pattern(&words_of(given, 0)?)?;
            Ok(Data::Bool(pattern.is_match(&words_of(given, 1)?)))
        }),
        ("regexReplaceAll", |given| {
            let pattern = pattern(&words_of(given, 0)?)?;
            text(pattern.replace_all(&words_of(given, 1)?, words_of(given, 2)?.as_str()).into_owned())
        }),
    ])
}

fn pattern(text: &str) -> Result<regex::Regex, TemplateError> {
    regex::Regex::new(text).map_err(|error| TemplateError::Exec(error.to_string()))
}

fn lists() -> FuncMap {
    table(vec![
        ("list", |given| Ok(list(given.to_vec()))),
        ("default", |given| {
            let value = given.get(1).cloned().unwrap_or(Data::Nil);
            if value.is_truthy() { Ok(value) } else { at(given, 0).cloned() }
        }),
        ("empty", |given| Ok(Data::Bool(!at(given, 0)?.is_truthy()))),
        ("coalesce", |given| Ok(given.iter().find(|one| one.is_truthy()).cloned().unwrap_or(Data::Nil))),
        ("ternary", |given| at(given, if at(given, 2)?.is_truthy() { 0 } else { 1 }).cloned()),
        ("fail", |given| Err(TemplateError::Exec(words_of(given, 0)?))),
        ("required", |given| match at(given, 1)? {
            value if value.is_truthy() => Ok(value.clone()),
            _ => Err(TemplateError::Exec(words_of(given, 0)?)),
        }),
        ("get", |given| {
            Ok(at(given, 0)?.field(&words_of(given, 1)?).cloned().unwrap_or_else(|| Data::String("".into())))
        }),
        ("hasKey", |given| Ok(Data::Bool(at(given, 0)?.field(&words_of(given, 1)?).is_some()))),
        ("keys", |given| Ok(list(entries(at(given, 0)?).into_keys().map(Data::String).collect()))),
        ("values", |given| Ok(list(entries(at(given, 0)?).into_values().collect()))),
        ("merge", |given| {
            // The first that has a key wins.
            let mut all = BTreeMap::new();
            given.iter().rev().for_each(|one| all.extend(entries(one)));
            Ok(Data::Map(Arc::new(all)))
        }),
        ("first", |given| Ok(items(at(given, 0)?).into_iter().next().unwrap_or(Data::Nil))),
        ("last", |given| Ok(items(at(given, 0)?).pop().unwrap_or(Data::Nil))),
        ("rest", |given| Ok(list(items(at(given, 0)?).into_iter().skip(1).collect()))),
        ("append", |given| {
            let mut all = items(at(given, 0)?);
            all.push(at(given, 1)?.clone());
            Ok(list(all))
        }),
        ("concat", |given| Ok(list(given.iter().flat_map(items).collect()))),
        ("has", |given| Ok(Data::Bool(items(at(given, 1)?).contains(at(given, 0)?)))),
        ("uniq", |given| {
            let mut all: Vec<Data> = Vec::new();
            for one in items(at(given, 0)?) {
                if !all.contains(&one) {
                    all.push(one);
                }
            }
            Ok(list(all))
        }),
        ("sortAlpha", |given| {
            let mut all: Vec<String> = items(at(given, 0)?).iter().map(written).collect();
            all.sort();
            Ok(list(all.into_iter().map(|one| Data::String(one.into())).collect()))
        }),
        ("join", |given| {
            let all: Vec<String> = items(at(given, 1)?).iter().map(written).collect();
            text(all.join(&words_of(given, 0)?))
        }),
        ("splitList", |given| {
            let (separator, whole) = (words_of(given, 0)?, words_of(given, 1)?);
            Ok(list(whole.split(separator.as_str()).map(|part| Data::String(part.into())).collect()))
        }),
        ("split", |given| {
            let (separator, whole) = (words_of(given, 0)?, words_of(given, 1)?);
            let parts = whole.split(separator.as_str()).enumerate();
            Ok(map(parts.map(|(place, part)| (format!("_{place}"), Data::String(part.into())))))
        }),
    ])
}

fn numbers() -> FuncMap {
    table(vec![
        ("int", |given| Ok(Data::Int(whole(given, 0).unwrap_or(0)))),
        ("int64", |given| Ok(Data::Int(whole(given, 0).unwrap_or(0)))),
        ("atoi", |given| Ok(Data::Int(whole(given, 0)?))),
        ("add", |given| {
            let all = (0..given.len()).map(|place| whole(given, place)).collect::<Result<Vec<_>, _>>()?;
            Ok(Data::Int(all.into_iter().fold(0, i64::saturating_add)))
        }),
        ("sub", |given| Ok(Data::Int(whole(given, 0)?.saturating_sub(whole(given, 1)?)))),
        ("mul", |given| Ok(Data::Int(whole(given, 0)?.saturating_mul(whole(given, 1)?)))),
        ("div", |given| divided(given, i64::checked_div)),
        ("mod", |given| divided(given, i64::checked_rem)),
        ("max", |given| Ok(Data::Int(whole(given, 0)?.max(whole(given, 1)?)))),
        ("min", |given| Ok(Data::Int(whole(given, 0)?.min(whole(given, 1)?)))),
    ])
}

fn divided(given: &[Data], how: fn(i64, i64) -> Option<i64>) -> Given {
    let result = how(whole(given, 0)?, whole(given, 1)?);
    result.map(Data::Int).ok_or_else(|| TemplateError::Exec("division by zero".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str) -> String {
        let data = plain(&serde_json::json!({"m": {"a": "1", "b": 2}, "l": ["x", "y"], "e": ""}));
        Template::new("t").funcs(all()).parse(source).unwrap().execute_to_string(&data).unwrap()
    }

    #[test]
    fn functions_do_what_gos_do() {
        for (source, wanted) in [
            ("{{ toJSON .m }}", r#"{"a":"1","b":2}"#),
            ("{{ (fromJSON `{\"k\":[1]}`).k }}", "[1]"),
            ("{{ valueOrDefault .e `d` }}", "d"),
            ("{{ .e | default `d` | quote }}", "\"d\""),
            ("{{ toYaml .m | nindent 2 }}", "\n  a: \"1\"\n  b: 2"),
            ("{{ excludeInboundPort 15020 `80` }}", "80,15020"),
            ("{{ contains `b` `abc` }}", "true"),
            ("{{ isset .m `a` }}{{ isset .m `z` }}", "truefalse"),
            ("{{ directory `/a/b/c` }}", "/a/b/"),
            ("{{ join `,` .l }}", "x,y"),
            ("{{ render `{{ .a }}` .m }}", "1"),
            ("{{ (strdict `k` `v`).k }}", "v"),
            ("{{ env `HOME` `none` }}", "none"),
            ("{{ if or .e .m.a }}yes{{ end }}", "yes"),
            ("{{ add 1 2 (int `3`) }} {{ trunc 2 `abc` }} {{ ternary `a` `b` false }}", "6 ab b"),
            ("{{ omit .m `a` | toJson }}", r#"{"b":2}"#),
        ] {
            assert_eq!(rendered(source), wanted, "{source}");
        }
    }
}
