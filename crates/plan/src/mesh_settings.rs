//! Which mesh-wide settings are in effect: those that the control plane was started with, or those of the ConfigMap `istio` in
//! the root namespace, which takes their place whole.

use api::mesh_config::MeshConfig;
use api::object::{Body, Kind, Object, ObjectKey};
use api::problem::{Problem, Severity};

/// The settings and what is wrong with the newest text of them.
#[derive(Clone, Debug)]
pub(crate) struct MeshSettings {
    /// Name of the ConfigMap.
    name: String,
    given: MeshConfig,
    effective: MeshConfig,
    problems: Vec<Problem>,
}

impl MeshSettings {
    /// The settings that the control plane was started with.
    pub(crate) fn new(given: MeshConfig) -> Self {
        Self { name: "istio".to_owned(), effective: given.clone(), given, problems: Vec::new() }
    }

    /// The same for another revision of the control plane.
    pub(crate) fn of_revision(self, revision: &str) -> Self {
        let name = if revision == "default" { "istio".to_owned() } else { format!("istio-{revision}") };
        Self { name, ..self }
    }

    /// Other settings from the start, under the same name.
    pub(crate) fn with(&self, given: MeshConfig) -> Self {
        Self { name: self.name.clone(), ..Self::new(given) }
    }

    /// The settings in effect.
    pub(crate) fn effective(&self) -> &MeshConfig {
        &self.effective
    }

    /// What is wrong with the ConfigMap's text.
    pub(crate) fn problems(&self) -> &[Problem] {
        &self.problems
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
        let (settings, problems) = MeshConfig::parse(text, &object.origin.file);
        self.problems = problems
            .into_iter()
            .map(|problem| Problem {
                object: object.reference(),
                origin: object.origin.clone(),
                field: format!("data.mesh.{}", problem.field).trim_end_matches('.').to_owned(),
                ..problem
            })
            .collect();
        if !self.problems.iter().any(|problem| problem.severity == Severity::Error) {
            self.effective = settings;
        }
    }

    /// The ConfigMap is gone.
    pub(crate) fn forget(&mut self) {
        self.effective = self.given.clone();
        self.problems.clear();
    }
}
