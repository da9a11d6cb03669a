//! The one currency for "this configuration is wrong": what the log, `analyze`, the webhook and the object's status share.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::Hostname;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum Severity {
    /// Nothing is wrong, but the user may want to know.
    Info,
    /// The object is in effect, though not as its author may believe.
    Warning,
    /// The object, or the named part of it, is not in effect; its last good version stays.
    Error,
}

/// Where an object was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// File's path as the user would write it, or empty when the object came from a cluster.
    pub file: String,
    /// Line on which the object (or, in a Problem, the field) starts, from 1; 0 when unknown.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => out.write_str(&self.file),
            line => write!(out, "{}:{line}", self.file),
        }
    }
}

/// The name of an object, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Kind as written (`VirtualService`); empty if the document could not be read so far.
    pub kind: String,
    /// Namespace; empty for cluster-wide kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.namespace.as_str(), self.name.as_str()) {
            (_, "") => out.write_str(&self.kind),
            ("", name) => write!(out, "{} {name}", self.kind),
            (namespace, name) => write!(out, "{} {namespace}/{name}", self.kind),
        }
    }
}

/// One thing that is wrong with one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Which object.
    pub object: ObjectRef,
    /// Where it was read.
    #[serde(default)]
    pub origin: Origin,
    /// Path of the field inside the object, `spec.http[0].route[1].destination.host`; empty for the whole object.
    #[serde(default)]
    pub field: String,
    /// Stable code; Istio's (`IST0101`) where one exists, else `MESHnnnn`.
    pub code: Code,
    /// How bad.
    pub severity: Severity,
    /// One plain sentence: what, and what to do.
    pub message: String,
}

impl Problem {
    /// What an admission webhook answers: kubectl writes "Warning:" or "denied" before it, so that only what is graver than a
    /// warning and yet does not refuse the object needs a word of its own.
    pub fn admission_text(&self, is_refusal: bool) -> String {
        let text = self.to_string();
        let rest = text.split_once(' ').map_or(text.as_str(), |(_, rest)| rest);
        match self.severity {
            Severity::Error if !is_refusal => rest.replacen(']', ", error]", 1),
            _ => rest.to_owned(),
        }
    }
}

impl fmt::Display for Problem {
    /// As `istioctl analyze` prints: `Error [IST0101] (VirtualService shop/a file.yaml:3) sentence`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What cannot be read has no kind: then the file is all there is to name.
        let object = self.object.to_string();
        let origin = if self.origin.file.is_empty() { String::new() } else { self.origin.to_string() };
        let place = [object, origin].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        write!(out, "{:?} [{}] ({place})", self.severity, self.code.id())?;
        if !self.field.is_empty() {
            write!(out, " {}:", self.field)?;
        }
        write!(out, " {}", self.message)
    }
}

macro_rules! codes {
    ($($variant:ident = $id:literal: $doc:literal;)*) => {
        /// Stable names for what can be wrong. `ISTnnnn` are the codes of Istio's analysis messages.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Code { $(#[doc = $doc] #[serde(rename = $id)] $variant),* }

        impl Code {
            /// All codes.
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The code as users see it.
            pub fn id(self) -> &'static str {
                match self { $(Code::$variant => $id),* }
            }

            /// What the code stands for.
            pub fn doc(self) -> &'static str {
                match self { $(Code::$variant => $doc),* }
            }
        }
    };
}

codes! {
    Deprecated = "IST0002": "A deprecated field or value is used; it still works.";
    ReferencedResourceNotFound = "IST0101": "The object names another object that does not exist.";
    SchemaValidation = "IST0106": "A field has a value that its type does not allow.";
    ConflictingMeshGatewayVirtualServiceHosts = "IST0109": "Two VirtualServices name the same host for sidecars; the oldest is in effect.";
    ConflictingSidecarWorkloadSelectors = "IST0110": "Two Sidecars select the same workload; the oldest is in effect.";
    MultipleSidecarsWithoutWorkloadSelectors = "IST0111": "Two Sidecars of one namespace have no selector; the oldest is in effect.";
    VirtualServiceDestinationPortSelectorRequired = "IST0112": "The destination has several ports and the route names none.";
    PortNameIsNotUnderNamingConvention = "IST0118": "The port's name does not tell its protocol.";
    NoMatchingWorkloadsFound = "IST0127": "The selector matches no workload.";
    NoServerCertificateVerification = "IST0128": "The server's certificate is not verified.";
    UnreachableRoute = "IST0130": "An earlier rule takes all requests of this one.";
    DuplicateMatch = "IST0131": "The same match stands in an earlier rule.";
    HostNotFoundInGateway = "IST0132": "The host is not among the hosts of the gateway.";
    InvalidRegex = "IST0119": "The regular expression cannot be compiled.";
    ConflictingGateways = "IST0145": "Two gateways claim the same port and host.";
    UnknownField = "MESH0001": "The field is not part of the kind; it has no effect.";
    UnknownKind = "MESH0002": "The kind is not one that the mesh reads.";
    NotYaml = "MESH0003": "The text is not readable as YAML or JSON.";
    DuplicateObject = "MESH0004": "The same object stands twice.";
    NotBuilt = "MESH0005": "The behaviour is not built yet; the object or field has no effect.";
    MissingField = "MESH0006": "A required field is missing.";
    SubsetNotFound = "MESH0007": "The route names a subset that no DestinationRule defines.";
    MeaningTaken = "MESH0008": "The object is ambiguous or unusual; the meaning taken is told.";
    SidecarBypassed = "MESH0009": "A container goes around its pod's own sidecar.";
    NeverMatches = "MESH0010": "The value can match nothing that there is.";
    KeysNotFetched = "MESH0011": "The keys that tokens are checked with could not be fetched.";
}

/// The known word that is nearest to a misspelt one, if it is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let fold = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    let folded = fold(word);
    known
        .into_iter()
        .map(|candidate| {
            let other = fold(candidate);
            let contained = other.len() > folded.len() && folded.len() >= 4 && other.ends_with(&folded);
            (if contained { 0.85 } else { strsim::jaro_winkler(&folded, &other) }, candidate)
        })
        .filter(|(likeness, _)| *likeness >= 0.82)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The known host that is nearest to a misspelt one.
pub fn nearest_host<'a>(word: &Hostname, known: impl IntoIterator<Item = &'a Hostname>) -> Option<&'a str> {
    nearest(word.as_str(), known.into_iter().map(Hostname::as_str))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_documented() {
        assert_eq!(Code::ALL.iter().map(|code| code.id()).collect::<HashSet<_>>().len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| code.doc().ends_with('.')));
    }

    #[test]
    fn a_near_name_is_suggested() {
        assert_eq!(
            nearest("keepAlive", ["maxConnections", "connectTimeout", "tcpKeepalive", "idleTimeout"]),
            Some("tcpKeepalive")
        );
        assert_eq!(nearest("host", ["hosts", "gateways"]), Some("hosts"));
        assert_eq!(nearest("zebra", ["hosts", "gateways"]), None);
    }

    #[test]
    fn admission_says_no_severity_twice() {
        let mut problem = Problem {
            object: ObjectRef { kind: "VirtualService".into(), namespace: "shop".into(), name: "a".into() },
            origin: Origin::default(),
            field: "spec.hosts[0]".into(),
            code: Code::ReferencedResourceNotFound,
            severity: Severity::Error,
            message: "No such host.".into(),
        };
        let refusal = "[IST0101] (VirtualService shop/a) spec.hosts[0]: No such host.";
        assert_eq!(problem.admission_text(true), refusal);
        assert_eq!(
            problem.admission_text(false),
            "[IST0101, error] (VirtualService shop/a) spec.hosts[0]: No such host."
        );
        problem.severity = Severity::Warning;
        assert_eq!(problem.admission_text(false), refusal);
    }

    #[test]
    fn reads_like_istioctl() {
        let problem = Problem {
            object: ObjectRef { kind: "VirtualService".into(), namespace: "shop".into(), name: "a".into() },
            origin: Origin { file: "vs.yaml".into(), line: 3 },
            field: "spec.http[0]".into(),
            code: Code::ReferencedResourceNotFound,
            severity: Severity::Error,
            message: "No such host.".into(),
        };
        assert_eq!(
            problem.to_string(),
            "Error [IST0101] (VirtualService shop/a vs.yaml:3) spec.http[0]: No such host."
        );
    }
}
