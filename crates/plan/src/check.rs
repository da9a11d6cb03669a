//! What is wrong with the objects: all that each has in itself (`intrinsic`), and what is wrong among them. Problems are the
//! only result; nothing is changed here.

mod cross;
mod tokens;
mod providers;

use std::sync::Arc;

use api::mesh_config::{MeshConfig, proxy_config_without_effect};
use api::problem::{Code, ObjectRef, Origin, Problem, Severity};

use crate::proxy::Interception;
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
    problems.extend(world.told.values().flatten().cloned());
    problems.extend(world.settings.problems().cloned());
    problems.extend(mesh_config(world));
    cross::all(world, snapshot, &mut problems);
    tokens::all(world, snapshot, &mut problems);
    providers::all(world, snapshot, &mut problems);
    problems
}

/// Mesh-wide settings that are read but not built yet. No traces are made and no metrics merged, so these two can only be
/// asked for by their defaults.
fn mesh_config(world: &World) -> Vec<Problem> {
    let (mesh, default) = (world.mesh(), MeshConfig::default());
    let rows = [
        ("localityLbSetting", mesh.locality_lb_setting.is_some()),
        ("defaultProviders", mesh.default_providers.is_some()),
        ("discoverySelectors", !mesh.discovery_selectors.is_empty()),
        ("serviceSettings", !mesh.service_settings.is_empty()),
        ("caCertificates", !mesh.ca_certificates.is_empty()),
        ("meshMTLS", mesh.mesh_mtls.is_some()),
        ("outboundTrafficPolicy.egressProxy", mesh.outbound_traffic_policy.egress_proxy.is_some()),
        ("ingressClass", mesh.ingress_class != default.ingress_class),
        ("ingressService", mesh.ingress_service != default.ingress_service),
        ("ingressSelector", mesh.ingress_selector != default.ingress_selector),
        ("ingressControllerMode", mesh.ingress_controller_mode != default.ingress_controller_mode),
    ];
    let tell = |field: String, code: Code, message: String| Problem {
        object: ObjectRef { kind: "MeshConfig".into(), ..ObjectRef::default() },
        origin: Origin::default(),
        field,
        code,
        severity: Severity::Warning,
        message,
    };
    let not_built = |field: String| {
        let message = format!("The setting {field} is not built yet; it has no effect on the proxies' configuration.");
        tell(field, Code::NotBuilt, message)
    };
    let mut problems: Vec<Problem> =
        rows.into_iter().filter(|(_, used)| *used).map(|(field, _)| not_built(field.to_owned())).collect();
    let Some(proxies) = &mesh.default_config else { return problems };
    problems.extend(proxy_config_without_effect(proxies).iter().map(|name| not_built(format!("defaultConfig.{name}"))));
    let mut wrong = |field: &str, message: String| {
        problems.push(tell(format!("defaultConfig.{field}"), Code::SchemaValidation, message));
    };
    if let Some(mode) = proxies.get("interceptionMode")
        && mode.as_str().and_then(Interception::named).is_none()
    {
        wrong("interceptionMode", format!("The value {mode} is not one of REDIRECT, TPROXY, NONE; REDIRECT is taken."));
    }
    let kept = proxies.get("proxyHeaders").and_then(|headers| headers.get("preserveHttp1HeaderCase"));
    if let Some(kept) = kept.filter(|kept| !kept.is_boolean()) {
        let message = format!("The value {kept} is neither true nor false; false is taken.");
        wrong("proxyHeaders.preserveHttp1HeaderCase", message);
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_without_effect_are_told() {
        let (mesh, problems) = MeshConfig::parse(
            "defaultProviders: {metrics: [prometheus]}\ntrustDomain: td\ningressClass: x\ndefaultConfig: {interceptionMode: NONE, configPath: x, proxyHeaders: {preserveHttp1HeaderCase: true, server: {disabled: true}}}\n",
            "mesh",
        );
        assert_eq!(problems, []);
        let found = mesh_config(&World::new(mesh, "cluster.local"));
        let fields: Vec<&str> = found.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(
            fields,
            ["defaultProviders", "ingressClass", "defaultConfig.configPath", "defaultConfig.proxyHeaders.server"]
        );
    }
}
