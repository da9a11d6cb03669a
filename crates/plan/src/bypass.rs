//! Containers that go around their own sidecar: what runs as the proxy's user or group is not captured, else the proxy's own
//! connections would come back to it.

use api::kube::PodSpec;
use api::port::PROXY_UID;

/// Containers that are the mesh's own.
const OWN: [&str; 2] = ["istio-proxy", "istio-validation"];

/// Each container of the application that runs as the proxy's user or group, with its field and a sentence. Init containers are
/// left out: they run so in order to reach the network before the proxy does.
pub fn bypassing(spec: &PodSpec) -> Vec<(String, String)> {
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let mut found = Vec::new();
    for (index, container) in spec.containers.iter().enumerate().filter(|(_, one)| !OWN.contains(&one.name.as_str())) {
        let own = container.security_context.clone().unwrap_or_default();
        let pairs = [
            ("user", "runAsUser", own.run_as_user, of_pod.run_as_user),
            ("group", "runAsGroup", own.run_as_group, of_pod.run_as_group),
        ];
        let Some((what, field, own, _)) =
            pairs.into_iter().find(|(_, _, own, of_pod)| own.or(*of_pod) == Some(i64::from(PROXY_UID)))
        else {
            continue;
        };
        let place = match own {
            Some(_) => format!("spec.containers[{index}].securityContext.{field}"),
            None => format!("spec.securityContext.{field}"),
        };
        let sentence = format!(
            "The container {} runs as {what} {PROXY_UID}, which is the proxy's: what it sends is not captured, so it goes around \
             mutual TLS, routes and metrics. Give it another.",
            container.name
        );
        found.push((place, sentence));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_as_the_proxy_is_told() {
        let of = |spec: serde_json::Value| {
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            bypassing(&spec).into_iter().map(|(field, _)| field).collect::<Vec<_>>()
        };
        let two = |own: serde_json::Value, pod: serde_json::Value| {
            serde_json::json!({"securityContext": pod, "containers": [
                {"name": "app", "securityContext": own}, {"name": "istio-proxy", "securityContext": {"runAsUser": 1337}},
            ]})
        };
        let none = || serde_json::json!({});
        let (user, group) =
            (|uid: i64| serde_json::json!({"runAsUser": uid}), || serde_json::json!({"runAsGroup": 1337}));
        assert_eq!(of(two(none(), none())), [""; 0]);
        assert_eq!(of(two(user(1337), none())), ["spec.containers[0].securityContext.runAsUser"]);
        assert_eq!(of(two(none(), user(1337))), ["spec.securityContext.runAsUser"]);
        assert_eq!(of(two(user(1000), user(1337))), [""; 0], "the container's own counts");
        assert_eq!(of(two(group(), none())), ["spec.containers[0].securityContext.runAsGroup"]);
    }
}
