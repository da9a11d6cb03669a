//! Which mesh-wide settings are in effect: those that the control plane was started with, or those of the ConfigMap `istio` in
//! the root namespace, which takes their place whole.

use api::mesh_config::MeshConfig;
use api::object::{Body, Kind, Object, ObjectKey};
use api::problem::{Code, ObjectRef, Origin, Problem, Severity};

/// The settings and what is wrong with the newest text of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MeshSettings {
    /// Name of the ConfigMap.
    name: String,
    given: MeshConfig,
    effective: MeshConfig,
    /// The trust domain that identities are certified for, where that is decided already.
    certified: Option<String>,
    /// Of the settings given, then of the ConfigMap.
    problems: [Vec<Problem>; 2],
}

impl MeshSettings {
    /// The settings that the control plane was started with.
    pub(crate) fn new(given: MeshConfig) -> Self {
        Self {
            name: "istio".to_owned(),
            effective: given.clone(),
            given,
            certified: None,
            problems: Default::default(),
        }
    }

    /// The same for another revision of the control plane.
    pub(crate) fn of_revision(self, revision: &str) -> Self {
        let name = if revision == "default" { "istio".to_owned() } else { format!("istio-{revision}") };
        Self { name, ..self }
    }

    /// The same where the authority certifies identities of the trust domain that is set now: another one in the settings would
    /// have all callers take each other for strangers.
    pub(crate) fn certified(self) -> Self {
        Self { certified: Some(self.given.trust_domain.clone()), ..self }
    }

    /// Puts the trust domain back that identities are certified for; what there is to say of it.
    fn keep_trust_domain(&self, settings: &mut MeshConfig, file: &str) -> Option<Problem> {
        let certified = self.certified.as_ref().filter(|certified| **certified != settings.trust_domain)?;
        settings.trust_domain.clone_from(certified);
        Some(Problem {
            object: ObjectRef { kind: "MeshConfig".into(), ..ObjectRef::default() },
            origin: Origin { file: file.to_owned(), line: 0 },
            field: "trustDomain".to_owned(),
            code: Code::MeaningTaken,
            severity: Severity::Warning,
            message: format!(
                "The control plane certifies for the trust domain {certified}, with which it was started. Another one is taken at its start alone: from this ConfigMap in a cluster, from --mesh-config elsewhere."
            ),
        })
    }

    /// Takes another text of the settings given; one that cannot be read leaves the last good ones. `is_replaced`: those of a
    /// ConfigMap are in effect and stay so. Says whether anything is other than before.
    pub(crate) fn reread(&mut self, text: &str, file: &str, is_replaced: bool) -> bool {
        let before = self.clone();
        let (mut settings, mut problems) = MeshConfig::parse(text, file);
        problems.extend(self.keep_trust_domain(&mut settings, file));
        if !problems.iter().any(|problem| problem.severity == Severity::Error) {
            self.given = settings;
            if !is_replaced {
                self.effective = self.given.clone();
            }
        }
        self.problems[0] = problems;
        *self != before
    }

    /// The settings in effect.
    pub(crate) fn effective(&self) -> &MeshConfig {
        &self.effective
    }

    /// What is wrong with the text of the settings given, and with the ConfigMap's.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().flatten()
    }

    /// Whether this is the ConfigMap of the settings. The namespace is that of the settings given at the start: a ConfigMap
    /// cannot move itself.
    pub(crate) fn is_source(&self, key: &ObjectKey) -> bool {
        key.kind == Kind::ConfigMap && key.name == self.name && key.namespace == self.given.root_namespace
    }

    /// Takes the ConfigMap's text; one that cannot be read leaves the last good settings in effect.
    pub(crate) fn take(&mut self, object: &Object) {
        let Body::ConfigMap(map) = &object.body else { return };
        let Some(text) = map.data.get("mesh") else { return self.forget() };
        let (mut settings, problems) = MeshConfig::parse(text, &object.origin.file);
        let kept = self.keep_trust_domain(&mut settings, &object.origin.file);
        let problems: Vec<Problem> = problems
            .into_iter()
            .chain(kept)
            .map(|problem| Problem {
                object: object.reference(),
                origin: object.origin.clone(),
                field: format!("data.mesh.{}", problem.field).trim_end_matches('.').to_owned(),
                ..problem
            })
            .collect();
        if !problems.iter().any(|problem| problem.severity == Severity::Error) {
            self.effective = settings;
        }
        self.problems[1] = problems;
    }

    /// The ConfigMap is gone.
    pub(crate) fn forget(&mut self) {
        self.effective = self.given.clone();
        self.problems[1].clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_text_takes_effect_and_a_bad_one_leaves_the_last_good() {
        let mut settings = MeshSettings::new(MeshConfig::default());
        assert!(settings.reread("proxyHttpPort: 15080", "m", false));
        assert_eq!(settings.effective().proxy_http_port, 15080);
        assert!(!settings.reread("proxyHttpPort: 15080", "m", false), "nothing is new");
        assert!(settings.reread("proxyHttpPort: many", "m", false), "the problem is new");
        assert_eq!(settings.effective().proxy_http_port, 15080);
        assert_eq!(settings.problems().count(), 1);
        assert!(settings.reread("proxyHttpPort: 1", "m", true));
        assert_eq!(settings.effective().proxy_http_port, 15080, "the ConfigMap's count");
        assert_eq!(settings.problems().count(), 0);
        settings.forget();
        assert_eq!(settings.effective().proxy_http_port, 1);
    }

    #[test]
    fn the_trust_domain_stays_the_one_that_is_certified() {
        let mut free = MeshSettings::new(MeshConfig::default());
        assert!(free.reread("trustDomain: other", "m", false));
        assert_eq!(free.effective().trust_domain, "other");
        let mut settings = MeshSettings::new(MeshConfig::default()).certified();
        assert!(settings.reread("trustDomain: other", "m", false));
        assert_eq!(settings.effective().trust_domain, "cluster.local");
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'trustDomain: third'}";
        let object = api::decode::documents(text.as_bytes(), "c", "istio-system").objects.remove(0);
        settings.take(&object);
        assert_eq!(settings.effective().trust_domain, "cluster.local");
        let told: Vec<_> = settings.problems().map(|problem| problem.field.as_str()).collect();
        assert_eq!(told, ["trustDomain", "data.mesh.trustDomain"]);
    }
}
