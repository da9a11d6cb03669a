//! How much the control plane logs, part by part, changed while it runs (Istio's ControlZ, `istioctl admin log`).

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use tracing_subscriber::{EnvFilter, Registry, reload};

/// A part: its name (Istio's where there is one), the modules that it stands for, and what it tells.
const SCOPES: &[(&str, &str, &str)] = &[
    ("default", "", "Everything that has no level of its own."),
    ("ads", "meshd::serve", "Proxies: who comes and goes, what they are sent and what they refuse."),
    ("authn", "meshd::authn", "Who callers are."),
    ("ca", "meshd::ca", "Certificates."),
    ("config", "meshd::source", "Objects as they are read, from a cluster or a folder."),
    ("injection", "meshd::webhook::inject", "Pods that get a proxy."),
    ("jwks", "meshd::jwks", "Keys of issuers of tokens."),
    ("leader", "meshd::writers", "What is written into the cluster."),
    ("model", "plan", "What is made of objects."),
    ("state", "meshd::state", "When it is planned anew."),
    ("validation", "meshd::webhook", "Objects that are judged before they are stored."),
];
/// Levels in Istio's words and in those of the log.
const LEVELS: &[(&str, &str)] = &[
    ("none", "off"),
    ("off", "off"),
    ("fatal", "error"),
    ("error", "error"),
    ("warn", "warn"),
    ("warning", "warn"),
    ("info", "info"),
    ("debug", "debug"),
    ("trace", "trace"),
];

/// The log's levels, if this process has a log.
pub struct Scopes {
    /// What it started with.
    start: String,
    /// Now: directives of what it started with, and those set since.
    now: Mutex<String>,
    handle: Option<reload::Handle<EnvFilter, Registry>>,
}

impl Scopes {
    pub(super) fn new(start: &str, handle: Option<reload::Handle<EnvFilter, Registry>>) -> Scopes {
        Scopes { start: start.to_owned(), now: Mutex::new(start.to_owned()), handle }
    }

    /// All parts with their levels, in Istio's keys.
    pub fn list(&self) -> Value {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let row = |(name, target, doc): &(&str, &str, &str)| json!({"name": name, "description": doc, "output_level": level_of(&now, target), "stack_trace_level": "none"});
        SCOPES.iter().map(row).collect()
    }

    /// Sets levels: `LEVEL`, or `SCOPE:LEVEL,…`.
    ///
    /// # Errors
    /// A sentence on what is no part or no level; then nothing is changed.
    pub fn set(&self, wanted: &str) -> Result<(), String> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let mut directives: Vec<String> = now.split(',').map(|one| one.trim().to_owned()).collect();
        for (target, level) in read(wanted)? {
            directives.retain(|one| directive(one).0 != target);
            directives.push(if target.is_empty() { level.to_owned() } else { format!("{target}={level}") });
        }
        let wanted = directives.join(",");
        self.apply(&wanted)?;
        *now = wanted;
        Ok(())
    }

    /// Back to the levels that it started with.
    ///
    /// # Errors
    /// This process has no log.
    pub fn reset(&self) -> Result<(), String> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.apply(&self.start)?;
        now.clone_from(&self.start);
        Ok(())
    }

    fn apply(&self, filter: &str) -> Result<(), String> {
        let handle = self.handle.as_ref().ok_or("the log of this process cannot be changed")?;
        let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    }
}

/// `SCOPE:LEVEL,…` to modules and levels.
fn read(wanted: &str) -> Result<Vec<(&'static str, &'static str)>, String> {
    let known = |list: &mut dyn Iterator<Item = &'static str>| list.collect::<Vec<_>>().join(", ");
    let one = |word: &str| {
        let (scope, level) = word.rsplit_once(':').unwrap_or(("default", word));
        let Some((_, target, _)) = SCOPES.iter().find(|(name, ..)| *name == scope.trim()) else {
            return Err(format!("{scope:?} is none of the scopes {}", known(&mut SCOPES.iter().map(|row| row.0))));
        };
        let Some((_, level)) = LEVELS.iter().find(|(name, _)| *name == level.trim()) else {
            return Err(format!("{level:?} is none of the levels {}", known(&mut LEVELS.iter().map(|row| row.0))));
        };
        Ok((*target, *level))
    };
    wanted.split(',').map(|word| one(word.trim())).collect()
}

/// A directive's module (empty: all) and level.
fn directive(text: &str) -> (&str, &str) {
    match text.trim().split_once('=') {
        Some((target, level)) => (target, level),
        None if LEVELS.iter().any(|(_, level)| *level == text.trim()) => ("", text.trim()),
        // A module alone is everything of it.
        None => (text.trim(), "trace"),
    }
}

/// The level in effect for a module: of the longest directive that it is below.
fn level_of(filter: &str, target: &str) -> String {
    let above = |own: &str| {
        own.is_empty() || target == own || target.strip_prefix(own).is_some_and(|rest| rest.starts_with("::"))
    };
    let mut directives = filter.split(',').map(directive).filter(|(own, _)| above(own)).collect::<Vec<_>>();
    directives.sort_by_key(|(own, _)| own.len());
    directives.last().map_or("error", |(_, level)| level).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_set_by_part_and_put_back() {
        let (_layer, handle) = reload::Layer::<EnvFilter, Registry>::new(EnvFilter::new("info"));
        let scopes = Scopes::new("info,meshd::ca=warn", Some(handle));
        let level = |scope: &str| {
            let all = scopes.list();
            let row = all.as_array().unwrap().iter().find(|row| row["name"] == scope).cloned().unwrap();
            row["output_level"].as_str().unwrap().to_owned()
        };
        assert_eq!((level("default"), level("ads"), level("ca")), ("info".into(), "info".into(), "warn".into()));
        scopes.set("ads:debug,validation:none").unwrap();
        assert_eq!((level("ads"), level("injection"), level("default")), ("debug".into(), "off".into(), "info".into()));
        scopes.set("warning").unwrap();
        assert_eq!((level("default"), level("state"), level("ads")), ("warn".into(), "warn".into(), "debug".into()));
        for wrong in ["loud", "ads:loud", "what:info"] {
            let error = scopes.set(wrong).unwrap_err();
            assert!(error.contains("is none of the"), "{error}");
        }
        scopes.reset().unwrap();
        assert_eq!((level("default"), level("ads"), level("ca")), ("info".into(), "info".into(), "warn".into()));
        assert!(Scopes::new("info", None).set("debug").is_err());
    }
}
