//! Text to objects. Total: whatever the text, the answer is objects and problems, never a panic, and one broken document
//! does not cost its neighbours.

mod typed;
mod lines;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::crd::AuthorizationPolicy;
use crate::object::{Body, KINDS, Kind, Metadata, Object, ObjectKey, WrittenMetadata, digest};
use crate::problem::{Code, ObjectRef, Origin, Problem, Severity, nearest};

/// What a text held.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// The objects that can be taken.
    pub objects: Vec<Object>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Objects whose text was readable enough to know which they are, but not to take them: their last good version stays.
    pub rejected: Vec<ObjectKey>,
}

/// Reads a stream of YAML or JSON documents; a `List` is unfolded.
pub fn documents(text: &[u8], file: &str, default_namespace: &str) -> Decoded {
    let mut decoded = Decoded::default();
    let Ok(text) = std::str::from_utf8(text) else {
        decoded.problems.push(unreadable(file, 1, "The file is not UTF-8 text."));
        return decoded;
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (first_line, document) in split(text) {
        match parse(document) {
            Ok(Value::Null) => {}
            Ok(value) => {
                let mut reader =
                    Reader { file, default_namespace, document, first_line, lines: None, decoded: &mut decoded };
                reader.value(&value, "");
            }
            Err((line, message)) => {
                decoded.problems.push(unreadable(file, first_line + line.saturating_sub(1), &message));
            }
        }
    }
    decoded
}

/// One document of a text, whatever it holds.
#[derive(Clone, Debug)]
pub struct Document<'a> {
    /// Its first line, from 1.
    pub line: u32,
    /// As it is written.
    pub text: &'a str,
    /// What it holds; null if nothing.
    pub value: Value,
}

/// The documents of a stream of YAML or JSON, for those that pass on what they do not know.
///
/// # Errors
/// The first document that cannot be read.
pub fn plain_documents<'a>(text: &'a [u8], file: &str) -> Result<Vec<Document<'a>>, Box<Problem>> {
    let text = std::str::from_utf8(text).map_err(|_| Box::new(unreadable(file, 1, "The file is not UTF-8 text.")))?;
    let read = |(line, text)| match parse(text) {
        Ok(value) => Ok(Document { line, text, value }),
        Err((inside, message)) => Err(Box::new(unreadable(file, line + inside.saturating_sub(1), &message))),
    };
    split(text.strip_prefix('\u{feff}').unwrap_or(text)).into_iter().map(read).collect()
}

/// Line of a field of the object that stands at `origin` in this text, from 1; the object's own line if it cannot be found.
/// For problems that are told long after the text was read: objects do not carry their text.
pub fn line_of(text: &[u8], origin: &Origin, field: &str) -> u32 {
    let text = match std::str::from_utf8(text) {
        Ok(text) if !field.is_empty() => text.strip_prefix('\u{feff}').unwrap_or(text),
        _ => return origin.line,
    };
    let Some((first, document)) = split(text).into_iter().take_while(|(first, _)| *first <= origin.line).last() else {
        return origin.line;
    };
    let lines = lines::Lines::of(document);
    let inside = lines.holder(origin.line + 1 - first);
    lines.find(&format!("{inside}{field}")).map_or(origin.line, |line| origin.line.max(first + line.saturating_sub(1)))
}

/// One already parsed object, as the Kubernetes API sends it.
pub fn object(value: &Value, file: &str, default_namespace: &str) -> Decoded {
    let mut decoded = Decoded::default();
    let mut reader =
        Reader { file, default_namespace, document: "", first_line: 0, lines: None, decoded: &mut decoded };
    reader.value(value, "");
    decoded
}

/// Reads settings that are not an object of their own.
pub(crate) fn settings<T: DeserializeOwned + Default>(text: &str, file: &str, kind: &str) -> (T, Vec<Problem>) {
    let mut decoded = Decoded::default();
    let reference = ObjectRef { kind: kind.to_owned(), ..ObjectRef::default() };
    let read = match parse(text) {
        Ok(value) => {
            let mut reader = Reader {
                file,
                default_namespace: "",
                document: text,
                first_line: 1,
                lines: None,
                decoded: &mut decoded,
            };
            reader.part(Some(&value), "", Unknown::Told, &reference, "")
        }
        Err((line, message)) => {
            decoded.problems.push(Problem { object: reference, ..unreadable(file, line, &message) });
            None
        }
    };
    (read.unwrap_or_default(), decoded.problems)
}

fn unreadable(file: &str, line: u32, message: &str) -> Problem {
    Problem {
        object: ObjectRef::default(),
        origin: Origin { file: file.to_owned(), line },
        field: String::new(),
        code: Code::NotYaml,
        severity: Severity::Error,
        message: message.to_owned(),
    }
}

/// Documents with the number of their first line. In YAML, `---` at the start of a line ends a document wherever it
/// stands, even in a block of text.
fn split(text: &str) -> Vec<(u32, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1_u32, 0);
    for (number, line) in (1_u32..).zip(text.split_inclusive('\n')) {
        let is_marker = line.starts_with("---") && line[3..].chars().next().is_none_or(char::is_whitespace);
        if is_marker {
            documents.push((start_line, &text[start..offset]));
            // What follows on the marker's line belongs to the document after it.
            start = offset + 3;
            start_line = number;
        }
        offset += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        budget: serde_saphyr::budget! { max_documents: 1_000_000, max_nodes: 2_000_000, max_events: 8_000_000 },
    }
}

fn parse(document: &str) -> Result<Value, (u32, String)> {
    if document.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_saphyr::from_str_with_options(document, options()).map_err(|error| {
        let line = error.location().map_or(1, |location| u32::try_from(location.line()).unwrap_or(1));
        let message = error.without_snippet().to_string();
        let message = message.lines().next().unwrap_or_default();
        (line, format!("Not readable as YAML: {message}."))
    })
}

/// What becomes of fields that a kind does not have.
#[derive(Clone, Copy)]
enum Unknown {
    /// Nothing: the kind is not ours, and we read only a part of it.
    Passed,
    /// They are told.
    Told,
    /// They are an Error: without them a policy would let in more than was written.
    Refused,
}

const CLOSED: &str = "The last good version of the policy stays; where there is none, nobody is let in.";

struct Reader<'a> {
    file: &'a str,
    default_namespace: &'a str,
    document: &'a str,
    first_line: u32,
    /// Lines of all fields; made when the first problem asks.
    lines: Option<lines::Lines>,
    decoded: &'a mut Decoded,
}

impl Reader<'_> {
    /// Line of a field, from 1 in the file; the document's if it cannot be found.
    fn line(&mut self, path: &str) -> u32 {
        if self.first_line == 0 {
            return 0;
        }
        let document = self.document;
        let lines = self.lines.get_or_insert_with(|| lines::Lines::of(document));
        self.first_line + lines.find(path).unwrap_or_else(|| lines.first()).saturating_sub(1)
    }

    /// `inside` is the path of the object in the document: empty, or `items[3]`.
    fn value(&mut self, value: &Value, inside: &str) {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind_name) = (text("apiVersion").to_owned(), text("kind").to_owned());
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let namespace =
            value.pointer("/metadata/namespace").and_then(Value::as_str).filter(|namespace| !namespace.is_empty());
        let mut reference = ObjectRef {
            kind: kind_name.clone(),
            namespace: namespace.unwrap_or(self.default_namespace).to_owned(),
            name: name.clone(),
        };
        if !value.is_object() {
            self.problem(
                &reference,
                inside,
                "",
                Code::NotYaml,
                Severity::Error,
                "The document is not an object with fields.",
            );
            return;
        }
        if kind_name.is_empty() {
            let found =
                if value.get("kind").is_some() { "The field kind is not a text." } else { "The document has no kind." };
            self.problem(&reference, inside, "kind", Code::MissingField, Severity::Error, found);
            return;
        }
        if kind_name.ends_with("List") && value.get("items").is_some_and(Value::is_array) {
            for (index, item) in value["items"].as_array().into_iter().flatten().enumerate() {
                self.value(item, &format!("{inside}{}items[{index}]", if inside.is_empty() { "" } else { "." }));
            }
            return;
        }
        let Some(kind) = Kind::of(group, &kind_name) else {
            self.unknown_kind(&reference, inside, group, &kind_name);
            return;
        };
        let row = kind.row();
        if !row.namespaced {
            reference.namespace.clear();
        }
        let is_served = row.versions.contains(&version);
        if !is_served {
            let message =
                format!("Version {version:?} of {kind} is not served; write {}.", served(row.group, row.versions));
            self.problem(&reference, inside, "apiVersion", Code::SchemaValidation, Severity::Error, &message);
            if kind != Kind::AuthorizationPolicy {
                return;
            }
        }
        if name.is_empty() {
            self.problem(
                &reference,
                inside,
                "metadata.name",
                Code::MissingField,
                Severity::Error,
                "The object has no name.",
            );
            return;
        }
        let key = ObjectKey { kind, namespace: reference.namespace.clone(), name };
        match is_served.then(|| self.typed(kind, value, &reference, inside)).flatten() {
            Some(object) => self.decoded.objects.push(object),
            None if kind == Kind::AuthorizationPolicy => {
                let object = self.unread_policy(value, &reference, inside);
                self.decoded.objects.push(object);
            }
            None => self.decoded.rejected.push(key),
        }
    }

    fn typed(&mut self, kind: Kind, value: &Value, reference: &ObjectRef, inside: &str) -> Option<Object> {
        let written: WrittenMetadata =
            self.part(value.get("metadata"), "metadata", Unknown::Passed, reference, inside)?;
        let mut meta = Metadata::from(written);
        meta.namespace = reference.namespace.clone();
        let body = self.body(kind, value, reference, inside)?;
        let origin = Origin { file: self.file.to_owned(), line: self.line(inside) };
        let digest = digest(kind, &meta, value);
        Some(Object { kind, meta, origin, body, digest, raw: value.clone() })
    }

    fn body(&mut self, kind: Kind, value: &Value, reference: &ObjectRef, inside: &str) -> Option<Body> {
        let spec = value.get("spec");
        macro_rules! spec {
            ($kind:ident) => {
                Body::$kind(self.part(spec, "spec", Unknown::Told, reference, inside)?)
            };
        }
        macro_rules! whole {
            ($kind:ident) => {
                Body::$kind(self.part(Some(value), "", Unknown::Passed, reference, inside)?)
            };
        }
        macro_rules! raw {
            ($kind:ident) => {
                match spec {
                    None | Some(Value::Null) => Body::$kind(Value::Object(serde_json::Map::new())),
                    Some(Value::Object(_)) => Body::$kind(spec.cloned().unwrap_or_default()),
                    Some(_) => {
                        self.problem(
                            reference,
                            inside,
                            "spec",
                            Code::SchemaValidation,
                            Severity::Error,
                            "Expected a group of fields.",
                        );
                        return None;
                    }
                }
            };
        }
        if kind.row().strict {
            self.top_level(value, reference, inside);
        }
        Some(match kind {
            Kind::VirtualService => spec!(VirtualService),
            Kind::DestinationRule => spec!(DestinationRule),
            Kind::Gateway => spec!(Gateway),
            Kind::ServiceEntry => spec!(ServiceEntry),
            Kind::WorkloadEntry => spec!(WorkloadEntry),
            Kind::WorkloadGroup => spec!(WorkloadGroup),
            Kind::Sidecar => spec!(Sidecar),
            Kind::PeerAuthentication => spec!(PeerAuthentication),
            Kind::EnvoyFilter => raw!(EnvoyFilter),
            Kind::ProxyConfig => raw!(ProxyConfig),
            Kind::RequestAuthentication => spec!(RequestAuthentication),
            Kind::AuthorizationPolicy => Body::AuthorizationPolicy(self.policy(spec, reference, inside)?),
            Kind::Telemetry => raw!(Telemetry),
            Kind::WasmPlugin => raw!(WasmPlugin),
            Kind::TrafficExtension => raw!(TrafficExtension),
            Kind::Namespace => Body::Namespace,
            Kind::Service => whole!(Service),
            Kind::Endpoints => whole!(Endpoints),
            Kind::EndpointSlice => whole!(EndpointSlice),
            Kind::Pod => whole!(Pod),
            Kind::Node => Body::Node,
            Kind::Secret => whole!(Secret),
            Kind::ConfigMap => whole!(ConfigMap),
            Kind::ServiceAccount => Body::ServiceAccount,
        })
    }

    fn top_level(&mut self, value: &Value, reference: &ObjectRef, inside: &str) {
        const KNOWN: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
        let unknown: Vec<String> = value
            .as_object()
            .into_iter()
            .flat_map(|map| map.keys())
            .filter(|key| !KNOWN.contains(&key.as_str()))
            .cloned()
            .collect();
        for name in unknown {
            let message = format!("The name {name} is not a field of {}; it has no effect.", reference.kind);
            self.problem(reference, inside, &name, Code::UnknownField, Severity::Warning, &message);
        }
    }

    /// Reads an AuthorizationPolicy whole or not at all.
    fn policy(&mut self, spec: Option<&Value>, reference: &ObjectRef, inside: &str) -> Option<AuthorizationPolicy> {
        let before = self.decoded.problems.len();
        let read = self.part(spec, "spec", Unknown::Refused, reference, inside)?;
        (self.decoded.problems.len() == before).then_some(read)
    }

    /// What stands for an AuthorizationPolicy that cannot be read: it is for the same workloads if that much can be read, for all of
    /// its namespace if not, and lets nobody in.
    fn unread_policy(&mut self, value: &Value, reference: &ObjectRef, inside: &str) -> Object {
        let written = value.get("metadata").and_then(|metadata| typed::read(metadata, "").ok());
        let mut meta = written.map_or_else(Metadata::default, |(written, _): (WrittenMetadata, _)| written.into());
        meta.name.clone_from(&reference.name);
        meta.namespace.clone_from(&reference.namespace);
        let mut scope = value.get("spec").cloned().unwrap_or_default();
        if let Some(fields) = scope.as_object_mut() {
            fields.retain(|name, _| !["rules", "action", "provider"].contains(&name.as_str()));
        }
        let scope = match typed::read(&scope, "spec") {
            Ok((scope, unknown)) if unknown.is_empty() => scope,
            _ => AuthorizationPolicy::default(),
        };
        let body = Body::AuthorizationPolicy(AuthorizationPolicy { is_unread: true, ..scope });
        let origin = Origin { file: self.file.to_owned(), line: self.line(inside) };
        let digest = digest(Kind::AuthorizationPolicy, &meta, value);
        Object { kind: Kind::AuthorizationPolicy, meta, origin, body, digest, raw: value.clone() }
    }

    /// Reads one part of the object.
    fn part<T: DeserializeOwned>(
        &mut self,
        value: Option<&Value>,
        path: &str,
        unknown_are: Unknown,
        reference: &ObjectRef,
        inside: &str,
    ) -> Option<T> {
        match typed::read(value.unwrap_or(&Value::Null), path) {
            Ok((read, unknown)) => {
                let (severity, effect) = match unknown_are {
                    Unknown::Passed => return Some(read),
                    Unknown::Told => (Severity::Warning, "It has no effect."),
                    Unknown::Refused => (Severity::Error, CLOSED),
                };
                for field in &unknown {
                    let hint = nearest(&field.name, field.known.iter().copied())
                        .map_or_else(|| ".".to_owned(), |meant| format!("; did you mean {meant}?"));
                    let message =
                        format!("The name {} is not a field of {}{hint} {effect}", field.name, reference.kind);
                    self.problem(reference, inside, &field.path, Code::UnknownField, severity, &message);
                }
                Some(read)
            }
            Err(error) => {
                let path = error.path.unwrap_or_else(|| path.to_owned());
                let message = match unknown_are {
                    Unknown::Refused => format!("{}. {CLOSED}", error.message),
                    _ => format!("{}.", error.message),
                };
                self.problem(reference, inside, &path, Code::SchemaValidation, Severity::Error, &message);
                None
            }
        }
    }

    fn unknown_kind(&mut self, reference: &ObjectRef, inside: &str, group: &str, kind: &str) {
        let ours = group.ends_with("istio.io") || group.is_empty();
        if let Some(row) = KINDS.iter().find(|row| row.name == kind && ours) {
            let message = format!("The kind {kind} is of {}, not of {group:?}.", served(row.group, row.versions));
            self.problem(reference, inside, "apiVersion", Code::SchemaValidation, Severity::Error, &message);
        } else if group.ends_with("istio.io") {
            let names = KINDS.iter().filter(|row| row.group == group).map(|row| row.name);
            let message = match nearest(kind, names) {
                Some(meant) => format!("The name {kind} is not a kind of {group}; did you mean {meant}?"),
                None => format!("The name {kind} is not a kind of {group}."),
            };
            self.problem(reference, inside, "kind", Code::UnknownKind, Severity::Warning, &message);
        } else {
            let message = format!("The kind {kind} is not read by the mesh.");
            self.problem(reference, inside, "kind", Code::UnknownKind, Severity::Info, &message);
        }
    }

    fn problem(
        &mut self,
        reference: &ObjectRef,
        inside: &str,
        field: &str,
        code: Code,
        severity: Severity,
        message: &str,
    ) {
        let dot = if inside.is_empty() || field.is_empty() { "" } else { "." };
        let line = self.line(&format!("{inside}{dot}{field}"));
        self.decoded.problems.push(Problem {
            object: reference.clone(),
            origin: Origin { file: self.file.to_owned(), line },
            field: field.to_owned(),
            code,
            severity,
            message: message.to_owned(),
        });
    }
}

fn served(group: &str, versions: &[&str]) -> String {
    let slash = if group.is_empty() { "" } else { "/" };
    versions.iter().map(|version| format!("{group}{slash}{version}")).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests;
