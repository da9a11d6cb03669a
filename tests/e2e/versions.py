"""Writes a VirtualService in each version that Istio serves and reads it back in each, with Kubernetes' client for Python."""

from kubernetes import client, config

VERSIONS = ["v1alpha3", "v1beta1", "v1"]
PLACE = {"group": "networking.istio.io", "namespace": "default", "plural": "virtualservices"}

config.load_kube_config()
api = client.CustomObjectsApi()

for written in VERSIONS:
    name = f"written-in-{written}"
    spec = {
        "hosts": [f"{written}.example.com"],
        "http": [{"timeout": "1.5s", "route": [{"destination": {"host": "user-service", "port": {"number": 8080}}}]}],
    }
    body = {
        "apiVersion": f"networking.istio.io/{written}",
        "kind": "VirtualService",
        "metadata": {"name": name},
        "spec": spec,
    }
    api.create_namespaced_custom_object(version=written, body=body, **PLACE)
    for read in VERSIONS:
        held = api.get_namespaced_custom_object(version=read, name=name, **PLACE)
        assert held["apiVersion"] == f"networking.istio.io/{read}", held
        assert held["spec"] == spec, held
    api.patch_namespaced_custom_object(version="v1", name=name, body={"spec": {"hosts": ["patched.example.com"]}}, **PLACE)
    held = api.get_namespaced_custom_object(version=written, name=name, **PLACE)
    assert held["spec"]["hosts"] == ["patched.example.com"] and held["spec"]["http"] == spec["http"], held
    api.delete_namespaced_custom_object(version=written, name=name, **PLACE)

# What cannot be right is refused, with a sentence.
try:
    body = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "wrong"},
        "spec": {"hosts": ["a.example.com"], "http": [{"timeout": "soon", "route": [{"destination": {"host": "b"}}]}]},
    }
    api.create_namespaced_custom_object(version="v1", body=body, **PLACE)
except client.ApiException as error:
    assert error.status in (400, 422) and "timeout" in error.body, error
else:
    raise AssertionError("a timeout that is no time was taken")
print("ok")
