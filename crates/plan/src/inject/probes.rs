//! Probes and lifecycle hooks of the application go to the proxy's status port, which asks the application in their place: the
//! kubelet has no certificate (Istio `pkg/kube/inject/app_probe.go`). The originals travel in an environment variable.

use serde_json::{Map, Value, json};

use super::access::{containers, containers_mut, list, text};

/// The variable that holds the originals, by path.
pub(super) const ORIGINALS: &str = "ISTIO_KUBE_APP_PROBERS";

/// A probe or hook, its path's last part, and whether it is a hook.
const PLACES: &[(&str, &str)] = &[
    ("/livenessProbe", "livez"),
    ("/readinessProbe", "readyz"),
    ("/startupProbe", "startupz"),
    ("/lifecycle/preStop", "prestopz"),
    ("/lifecycle/postStart", "poststartz"),
];

fn path(container: &str, last: &str) -> String {
    let kind = if last.starts_with("pre") || last.starts_with("post") { "app-lifecycle" } else { "app-health" };
    format!("/{kind}/{container}/{last}")
}

/// Rewrites what the application's containers have; the originals by path, or nothing if there are none.
pub(super) fn rewrite(pod: &mut Value, status_port: u16, is_own: impl Fn(&str) -> bool) -> Option<String> {
    let mut originals = Map::new();
    for container in containers_mut(pod) {
        let name = text(container, "/name").to_owned();
        if is_own(&name) {
            continue;
        }
        let ports = list(container, "/ports").to_vec();
        for (place, last) in PLACES {
            let Some(probe) = container.pointer_mut(place) else { continue };
            let Some(original) = original(probe, &ports) else { continue };
            let path = path(&name, last);
            redirect(probe, &path, status_port);
            originals.insert(path, original);
        }
    }
    (!originals.is_empty()).then(|| Value::Object(originals).to_string())
}

/// What the proxy must know to ask in the kubelet's place; nothing if the probe stays as it is.
fn original(probe: &Value, ports: &[Value]) -> Option<Value> {
    let mut kept = Map::new();
    let (kind, mut action) =
        ["httpGet", "tcpSocket", "grpc"].iter().find_map(|kind| Some((*kind, probe.get(*kind)?.clone())))?;
    // With a host, something else than this pod is asked.
    if !text(&action, "/host").is_empty() {
        return None;
    }
    let port = number(action.get("port")?, ports)?;
    action["port"] = Value::from(port);
    kept.insert(kind.to_owned(), action);
    kept.extend(probe.get("timeoutSeconds").map(|seconds| ("timeoutSeconds".to_owned(), seconds.clone())));
    Some(Value::Object(kept))
}

/// A port by its number or by its name in the container.
fn number(port: &Value, ports: &[Value]) -> Option<u16> {
    if let Some(number) = port.as_u64() {
        return u16::try_from(number).ok();
    }
    let name = port.as_str()?;
    let named =
        ports.iter().find(|port| text(port, "/name") == name).and_then(|port| port.get("containerPort")?.as_u64());
    named.and_then(|number| u16::try_from(number).ok()).or_else(|| name.parse().ok())
}

fn redirect(probe: &mut Value, path: &str, port: u16) {
    let Some(fields) = probe.as_object_mut() else { return };
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        fields.remove(kind);
    }
    fields.insert("httpGet".to_owned(), json!({"path": path, "port": port}));
}

/// Puts the originals back.
pub(super) fn restore(pod: &mut Value, originals: &str) {
    let Ok(Value::Object(originals)) = serde_json::from_str(originals) else { return };
    for container in containers_mut(pod) {
        let name = text(container, "/name").to_owned();
        for (place, last) in PLACES {
            let Some(Value::Object(original)) = originals.get(&path(&name, last)) else { continue };
            let Some(probe) = container.pointer_mut(place).and_then(Value::as_object_mut) else { continue };
            probe.remove("httpGet");
            probe.extend(original.clone());
        }
    }
}

/// Whether any container has a probe or hook that would be rewritten.
#[cfg(test)]
fn has_any(pod: &Value) -> bool {
    containers(pod).any(|container| PLACES.iter().any(|(place, _)| container.pointer(place).is_some()))
}

/// The value of a variable of a container.
pub(super) fn variable<'a>(pod: &'a Value, container: &str, name: &str) -> Option<&'a str> {
    let found = containers(pod).find(|one| text(one, "/name") == container)?;
    list(found, "/env").iter().find(|one| text(one, "/name") == name)?.get("value")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rewritten_can_be_put_back() {
        let pod = json!({"spec": {"containers": [{
            "name": "a",
            "ports": [{"containerPort": 8080, "name": "http"}],
            "livenessProbe": {"httpGet": {"path": "/live", "port": 8080, "scheme": "HTTPS", "httpHeaders": [{"name": "x", "value": "y"}]}, "timeoutSeconds": 3, "periodSeconds": 5},
            "readinessProbe": {"tcpSocket": {"port": 8080}},
            "startupProbe": {"grpc": {"port": 8080, "service": "s"}},
            "lifecycle": {"preStop": {"httpGet": {"path": "/stop", "port": 8080}}, "postStart": {"exec": {"command": ["x"]}}},
        }]}});
        assert!(has_any(&pod));
        let mut rewritten = pod.clone();
        let originals = rewrite(&mut rewritten, 15020, |_| false).unwrap();
        let container = &rewritten["spec"]["containers"][0];
        assert_eq!(
            container["livenessProbe"],
            json!({"httpGet": {"path": "/app-health/a/livez", "port": 15020}, "timeoutSeconds": 3, "periodSeconds": 5})
        );
        assert_eq!(container["readinessProbe"], json!({"httpGet": {"path": "/app-health/a/readyz", "port": 15020}}));
        assert_eq!(container["startupProbe"], json!({"httpGet": {"path": "/app-health/a/startupz", "port": 15020}}));
        assert_eq!(
            container["lifecycle"]["preStop"],
            json!({"httpGet": {"path": "/app-lifecycle/a/prestopz", "port": 15020}})
        );
        assert_eq!(container["lifecycle"]["postStart"], json!({"exec": {"command": ["x"]}}));
        let told: Value = serde_json::from_str(&originals).unwrap();
        assert_eq!(told["/app-health/a/livez"]["timeoutSeconds"], 3);
        restore(&mut rewritten, &originals);
        assert_eq!(rewritten, pod);
    }

    #[test]
    fn named_ports_become_numbers_and_other_hosts_stay() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a", "ports": [{"containerPort": 81, "name": "http"}], "livenessProbe": {"httpGet": {"port": "http"}}},
            {"name": "b", "livenessProbe": {"httpGet": {"port": 1, "host": "other"}}},
            {"name": "c", "livenessProbe": {"exec": {"command": ["x"]}}},
            {"name": "own", "livenessProbe": {"httpGet": {"port": 1}}},
        ]}});
        let before = pod.clone();
        let originals: Value = serde_json::from_str(&rewrite(&mut pod, 15020, |name| name == "own").unwrap()).unwrap();
        assert_eq!(originals, json!({"/app-health/a/livez": {"httpGet": {"port": 81}}}));
        for untouched in 1..4 {
            assert_eq!(pod["spec"]["containers"][untouched], before["spec"]["containers"][untouched]);
        }
    }
}
