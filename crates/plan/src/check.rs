//! What is wrong with the objects: all that each has in itself (`intrinsic`), and what is wrong among them. Problems are the
//! only result; nothing is changed here.

mod cross;

use api::problem::{Code, ObjectRef, Origin, Problem, Severity};

use std::sync::Arc;

use crate::intrinsic::intrinsic;
use crate::snapshot::Snapshot;
use crate::world::World;

impl Snapshot {
    /// Resolves all relations of the world, and tells what is wrong. What did not change is taken over from `previous`.
    pub fn build(world: &World, previous: Option<&Arc<Snapshot>>) -> Arc<Snapshot> {
        let mut snapshot = Snapshot::assemble(world, previous);
        let problems = all(world, &snapshot);
        snapshot.add_problems(problems);
        Arc::new(snapshot)
    }
}

/// Everything that is wrong.
fn all(world: &World, snapshot: &Snapshot) -> Vec<Problem> {
    let mut problems: Vec<Problem> = world.refused.values().flatten().cloned().collect();
    problems.extend(world.objects.values().flat_map(|object| intrinsic(object)));
    problems.extend(world.settings.problems().iter().cloned());
    problems.extend(mesh_config(world));
    cross::all(world, snapshot, &mut problems);
    problems
}

/// Mesh-wide settings that are read but not built yet.
fn mesh_config(world: &World) -> Vec<Problem> {
    let mesh = world.mesh();
    let rows = [
        ("localityLbSetting", mesh.locality_lb_setting.is_some()),
        ("extensionProviders", !mesh.extension_providers.is_empty()),
        ("defaultConfig", mesh.default_config.is_some()),
        ("defaultProviders", mesh.default_providers.is_some()),
        ("discoverySelectors", !mesh.discovery_selectors.is_empty()),
        ("serviceSettings", !mesh.service_settings.is_empty()),
        ("caCertificates", !mesh.ca_certificates.is_empty()),
        ("meshMTLS", mesh.mesh_mtls.is_some()),
        ("outboundTrafficPolicy.egressProxy", mesh.outbound_traffic_policy.egress_proxy.is_some()),
    ];
    let tell = |(field, used): (&str, bool)| {
        used.then(|| Problem {
            object: ObjectRef { kind: "MeshConfig".into(), ..ObjectRef::default() },
            origin: Origin::default(),
            field: field.to_owned(),
            code: Code::NotBuilt,
            severity: Severity::Warning,
            message: format!("{field} is not built yet; it has no effect on the proxies' configuration."),
        })
    };
    rows.into_iter().filter_map(tell).collect()
}

#[cfg(test)]
mod tests {
    use api::mesh_config::MeshConfig;

    use super::*;

    #[test]
    fn settings_without_effect_are_told() {
        let (mesh, problems) =
            MeshConfig::parse("defaultProviders: {metrics: [prometheus]}\ntrustDomain: td\n", "mesh");
        assert_eq!(problems, []);
        let found = mesh_config(&World::new(mesh, "cluster.local"));
        assert_eq!(found.iter().map(|problem| problem.field.as_str()).collect::<Vec<_>>(), ["defaultProviders"]);
    }
}
