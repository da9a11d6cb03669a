//! Which workloads an object speaks about. Networking kinds write `labels`, security kinds and Kubernetes `matchLabels`.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::schema::{plain_keys, plain_value};
use crate::value::Labels;

/// `workloadSelector` of Sidecar, ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// All of these must be on the workload; empty selects all workloads of the namespace.
    #[schemars(extend("maxProperties" = 256, "additionalProperties" = plain_value(), "x-kubernetes-validations" = plain_keys()))]
    pub labels: Labels,
}

/// `selector` of security kinds, `workloadSelector` of DestinationRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MatchLabels {
    /// All of these must be on the workload; empty selects all workloads of the namespace.
    #[schemars(extend("maxProperties" = 4096, "additionalProperties" = plain_value(), "x-kubernetes-validations" = plain_keys()))]
    pub match_labels: Labels,
}

/// Whether a workload's labels hold all that are wanted.
pub fn selects(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_labels_must_agree() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Labels>()
        };
        let have = labels(&[("app", "a"), ("version", "v1")]);
        assert!(selects(&labels(&[("app", "a")]), &have) && selects(&Labels::new(), &have));
        assert!(!selects(&labels(&[("app", "a"), ("version", "v2")]), &have));
    }
}
