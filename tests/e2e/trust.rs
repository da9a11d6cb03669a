//! Who may speak to whom: STRICT against pods outside, a move into the mesh one namespace at a time, and policies that name callers.

use anyhow::{Context, Result, bail, ensure};

use mesh_tests::tokens::{Key, key_set, seconds};
use serde_json::json;

use crate::kubectl::Cluster;
use crate::pods;
use crate::shop::SHOP;

const USER: &str = "http://user-service.ecommerce:8080/api/v1/users/1";
const OUTSIDE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: outsider, namespace: outside}
spec:
  containers: [{name: workload, image: 'mesh/workload:TAG', args: [serve]}]
";
const MIGRATION: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: migration}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: migration}
spec:
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server, namespace: migration}
spec:
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      containers:
      - name: workload
        image: mesh/workload:TAG
        args: [serve]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
";
const SERVER: &str = "http://server.migration/";
/// The header in which a server sees who called.
const CALLER: &str = "x-forwarded-client-cert";

fn mode(namespace: &str, mode: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: {namespace}}}
spec: {{mtls: {{mode: {mode}}}}}
"
    )
}

/// A pod without a sidecar.
pub(crate) fn outsider(cluster: &Cluster, url: &str) -> Result<String> {
    cluster.exec("outside", "outsider", "workload", &["/usr/local/bin/workload", "get", url])
}

pub(crate) fn start_outsider(cluster: &Cluster) -> Result<()> {
    cluster.apply(&OUTSIDE.replace("TAG", &cluster.tag))?;
    cluster.kubectl("wait -n outside --for=condition=Ready pod/outsider --timeout=60s").map(drop)
}

/// Refused by the proxy, that is: there was a server, and it did not answer.
fn refused(cluster: &Cluster, url: &str) -> Result<()> {
    match outsider(cluster, url) {
        Ok(text) => bail!("a pod outside was served: {text}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains(url) && !text.contains("status"), "it was not refused: {text}");
            Ok(())
        }
    }
}

/// STRICT refuses whoever has no certificate, PERMISSIVE serves them; pods of the mesh notice neither.
pub(crate) fn strict(cluster: &Cluster) -> Result<String> {
    pods::start_caller(cluster)?;
    start_outsider(cluster)?;
    refused(cluster, USER)?;
    pods::call(cluster, USER)?;
    cluster.apply(&mode(SHOP, "PERMISSIVE"))?;
    cluster.until("PERMISSIVE serves a pod outside", || outsider(cluster, USER))?;
    pods::call(cluster, USER)?;
    cluster.apply(&mode(SHOP, "STRICT"))?;
    cluster.until("STRICT refuses a pod outside", || refused(cluster, USER))?;
    pods::call(cluster, USER)?;
    Ok(String::new())
}

/// kube-proxy, on which a pod outside relies, follows a rollout only after a moment.
fn from_outside(cluster: &Cluster) -> Result<String> {
    cluster.until("a pod outside is served", || outsider(cluster, SERVER))
}

/// A server moves into the mesh; callers inside and outside are served all the way, until STRICT ends it for those outside.
pub(crate) fn migration(cluster: &Cluster) -> Result<String> {
    pods::start_caller(cluster)?;
    start_outsider(cluster)?;
    cluster.apply(&MIGRATION.replace("TAG", &cluster.tag))?;
    cluster.rolled_out("migration")?;
    let plain = cluster.until("a server without a sidecar serves the mesh", || pods::call(cluster, SERVER))?;
    ensure!(!plain.contains("spiffe://"), "without a sidecar nobody is known: {plain}");
    from_outside(cluster)?;

    cluster.kubectl("label namespace migration istio-injection=enabled --overwrite")?;
    cluster.kubectl("rollout restart deployment -n migration")?;
    cluster.rolled_out("migration")?;
    let caller = format!("spiffe://cluster.local/ns/{}/sa/default", pods::NAMESPACE);
    cluster.until("the caller is known", || {
        let text = pods::call(cluster, SERVER)?;
        ensure!(text.contains(CALLER) && text.contains(&caller), "{text}");
        Ok(())
    })?;
    let text = from_outside(cluster)?;
    ensure!(!text.contains("spiffe://cluster.local/ns/outside"), "a pod outside has a name: {text}");

    cluster.apply(&mode("migration", "STRICT"))?;
    cluster.until("STRICT refuses a pod outside", || refused(cluster, SERVER))?;
    pods::call(cluster, SERVER)?;
    cluster.kubectl("delete namespace migration --wait=false")?;
    Ok(String::new())
}

const PAYMENT: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: policies, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: payment, namespace: policies}
spec:
  selector: {app: payment}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp, port: 7070}
";
const MEMBER: &str = "---
apiVersion: v1
kind: ServiceAccount
metadata: {name: NAME, namespace: policies}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: policies}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      serviceAccountName: NAME
      containers:
      - name: workload
        image: mesh/workload:TAG
        args: [serve]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
";
const ONLY_ORDERS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: payment, namespace: policies}
spec:
  selector: {matchLabels: {app: payment}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/policies/sa/order]}}]
";
const BOTH: &str = r#"[{"op": "add", "path": "/spec/rules/0/from/0/source/principals/-", "value": "cluster.local/ns/policies/sa/report"}]"#;
/// An attribute that no proxy knows.
const UNREADABLE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: unreadable, namespace: policies}
spec: {rules: [{when: [{key: custom.decision, values: [allow]}]}]}
";

/// A policy lets in one account and refuses another, over HTTP and bytes; an edit counts at once; the API server refuses a policy that
/// could not be decided.
pub(crate) fn policies(cluster: &Cluster) -> Result<String> {
    let members = ["payment", "order", "report"].map(|name| MEMBER.replace("NAME", name)).concat();
    cluster.apply(&format!("{PAYMENT}{members}").replace("TAG", &cluster.tag))?;
    cluster.rolled_out("policies")?;
    let call = |who: &str, url: &str| {
        let words = ["/usr/local/bin/workload", "get", url];
        cluster.exec("policies", &format!("deploy/{who}"), "workload", &words)
    };
    let (http, bytes) = ("http://payment/", "http://payment:7070/");
    let served = |who: &str| call(who, http).map(drop);
    // The server of bytes speaks first, and no HTTP: hearing it is what counts.
    let heard = |who: &str| match call(who, bytes) {
        Err(error) if format!("{error:#}").contains("Parse") => Ok(()),
        other => bail!("{who} has not heard the server: {other:?}"),
    };
    let forbidden = |who: &str| {
        let said = match call(who, http) {
            Ok(text) => bail!("{who} was served: {text}"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(said.contains("403 Forbidden"), "{who} was not refused: {said}");
        ensure!(heard(who).is_err(), "{who} was heard by the server of bytes");
        Ok(())
    };
    for who in ["order", "report"] {
        cluster.until("everybody is served", || served(who).and_then(|()| heard(who)))?;
    }
    cluster.apply(ONLY_ORDERS)?;
    cluster.until("another account is refused", || forbidden("report"))?;
    served("order")?;
    heard("order")?;
    let pods = cluster.get("pods -n policies -l app=payment")?;
    let pod = pods["items"][0]["metadata"]["name"].as_str().context("payment has no pod")?;
    let why = cluster.meshctl(&format!("why --last {pod}.policies"))?;
    ensure!(why.contains("AuthorizationPolicy policies/payment"), "meshctl why says: {why}");
    cluster.kubectl_words(&["patch", "-n", "policies", "authorizationpolicy", "payment", "--type=json", "-p", BOTH])?;
    cluster.until("the edit lets it in", || served("report").and_then(|()| heard("report")))?;
    match cluster.once(&["apply"], UNREADABLE) {
        Ok(text) => bail!("a policy that cannot be decided was taken: {text}"),
        Err(error) => ensure!(format!("{error:#}").contains("custom.decision"), "{error:#}"),
    }
    cluster.kubectl("delete namespace policies --wait=false")?;
    Ok(String::new())
}

const ACCOUNTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: tokens, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: account, namespace: tokens}
spec:
  selector: {app: account}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: account, namespace: tokens}
spec:
  selector: {matchLabels: {app: account}}
  template:
    metadata: {labels: {app: account}}
    spec:
      containers:
      - name: workload
        image: mesh/workload:TAG
        args: [serve]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: customers, namespace: tokens}
spec:
  selector: {matchLabels: {app: account}}
  jwtRules: [{issuer: customers.example, audiences: [shop], jwksUri: 'http://issuer.issuer.svc.cluster.local/keys'}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: admins, namespace: tokens}
spec:
  selector: {matchLabels: {app: account}}
  rules:
  - {from: [{source: {requestPrincipals: ['customers.example/*']}}], when: [{key: 'request.auth.claims[role]', values: [admin]}]}
";
const ISSUER: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: issuer}
---
apiVersion: v1
kind: Service
metadata: {name: issuer, namespace: issuer}
spec:
  selector: {app: issuer}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: issuer, namespace: issuer, labels: {app: issuer}}
spec:
  containers:
  - {name: workload, image: 'mesh/workload:TAG', args: [serve], env: [{name: KEYS, value: 'VALUE'}]}
";

/// Tokens of an issuer that is not there at first: the object says so and tokens are refused; then good ones are let in as policies
/// say, bad ones are not, and the proxy can tell why.
pub(crate) fn tokens(cluster: &Cluster) -> Result<String> {
    let key = Key::rsa("one");
    cluster.apply(&ACCOUNTS.replace("TAG", &cluster.tag))?;
    cluster.rolled_out("tokens")?;
    let claims = |role: &str, ends: i64| json!({"iss": "customers.example", "sub": "alice", "aud": "shop", "role": role, "exp": seconds(ends)});
    let status = |token: &str| {
        let header = format!("authorization: Bearer {token}");
        let mut words = vec!["/usr/local/bin/workload", "get", "http://account/"];
        if !token.is_empty() {
            words.push(&header);
        }
        match cluster.exec("tokens", "deploy/account", "workload", &words) {
            Ok(_) => Ok(200),
            Err(error) => {
                let text = format!("{error:#}");
                let status = text.split("status ").nth(1).and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
                status.with_context(|| format!("no answer: {text}"))
            }
        }
    };
    let becomes = |what: &str, token: &str, right: u16| {
        cluster.until(what, || {
            let found = status(token)?;
            ensure!(found == right, "{found} in place of {right}");
            Ok(())
        })
    };
    let (admin, guest) = (key.token(&claims("admin", 3600)), key.token(&claims("guest", 3600)));
    becomes("a token whose keys nobody has is refused", &admin, 401)?;
    cluster.until("the object says why", || {
        let object = cluster.get("requestauthentication customers -n tokens")?;
        let text = object["status"].to_string();
        ensure!(text.contains("could not be fetched"), "{text}");
        Ok(())
    })?;
    cluster.apply(&ISSUER.replace("TAG", &cluster.tag).replace("VALUE", &key_set(&[&key])))?;
    becomes("a good token is let in", &admin, 200)?;
    ensure!(status(&guest)? == 403, "a guest was let in");
    ensure!(status("")? == 403, "somebody without a token was let in");
    let expired = key.token(&claims("admin", -600));
    ensure!(status(&expired)? == 401, "an old token was let in");
    ensure!(status(&Key::rsa("one").token(&claims("admin", 3600)))? == 401, "another's token was let in");
    let pods = cluster.get("pods -n tokens -l app=account")?;
    let pod = pods["items"][0]["metadata"]["name"].as_str().context("account has no pod")?;
    let why = cluster.meshctl(&format!("why --last {pod}.tokens"))?;
    ensure!(why.contains("RequestAuthentication tokens/customers"), "meshctl why says: {why}");
    cluster.kubectl("delete namespace tokens issuer --wait=false")?;
    Ok(String::new())
}

const DECIDERS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: decisions, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: deciders, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: payment-service, namespace: decisions}
spec:
  selector: {app: payment-service}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: payment-service, namespace: decisions}
spec:
  selector: {matchLabels: {app: payment-service}}
  template:
    metadata: {labels: {app: payment-service}}
    spec:
      containers:
      - name: workload
        image: mesh/workload:TAG
        args: [serve]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: opa, namespace: deciders}
spec:
  selector: {app: opa}
  ports: [{name: grpc, port: 9191, targetPort: 9090}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: opa, namespace: deciders}
spec:
  selector: {matchLabels: {app: opa}}
  template:
    metadata: {labels: {app: opa}}
    spec:
      containers:
      - name: workload
        image: mesh/workload:TAG
        args: [serve]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
";
/// What the provider decides besides.
const ASKED: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asked, namespace: decisions}
spec:
  selector: {matchLabels: {app: payment-service}}
  action: CUSTOM
  provider: {name: opa}
  rules: [{to: [{operation: {paths: [/account]}}]}]
";

/// The users' own policy, which asks for the decision of a provider: closed as long as there is none, then as the provider decides, and
/// closed again when it is away. The settings of the mesh change while all runs.
pub(crate) fn decisions(cluster: &Cluster) -> Result<String> {
    cluster.apply(&DECIDERS.replace("TAG", &cluster.tag))?;
    cluster.rolled_out("decisions")?;
    cluster.rolled_out("deciders")?;
    let status = |method: &str, path: &str, decision: &str| {
        let (url, header) = (format!("http://payment-service{path}"), format!("x-decision: {decision}"));
        let words = ["/usr/local/bin/workload", "send", method, &url, &header];
        match cluster.exec("decisions", "deploy/payment-service", "workload", &words) {
            Ok(_) => Ok(200),
            Err(error) => {
                let text = format!("{error:#}");
                let status = text.split("status ").nth(1).and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
                status.with_context(|| format!("no answer: {text}"))
            }
        }
    };
    let becomes = |what: &str, (method, path, decision): (&str, &str, &str), right: u16| {
        cluster.until(what, || {
            let found = status(method, path, decision)?;
            ensure!(found == right, "{found} in place of {right}");
            Ok(())
        })
    };
    becomes("everybody is served", ("POST", "/", "none"), 200)?;
    let manifest = cluster.repository.join("examples/manifests/opa-decision.yaml").display().to_string();
    cluster.kubectl_words(&["apply", "-n", "decisions", "-f", &manifest])?;
    becomes("without a provider nobody is let in", ("POST", "/", "allow"), 403)?;
    cluster.until("the object says why", || {
        let object = cluster.get("authorizationpolicy opa-policy -n decisions")?;
        let text = object["status"].to_string();
        ensure!(text.contains("no provider"), "{text}");
        Ok(())
    })?;
    let before = cluster.get("configmap istio -n istio-system")?;
    let mesh = before["data"]["mesh"].as_str().context("the ConfigMap istio has no key mesh")?;
    let with = |mesh: &str| {
        let patch = json!({"data": {"mesh": mesh}}).to_string();
        cluster.kubectl_words(&["patch", "configmap", "istio", "-n", "istio-system", "--type=merge", "-p", &patch])
    };
    let provider = "extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: opa.deciders.svc.cluster.local, port: 9191, timeout: 2s}}]";
    with(&format!("{}\n{provider}\n", mesh.trim_end()))?;
    becomes("the provider's decision lets in", ("POST", "/", "allow"), 200)?;
    ensure!(status("POST", "/", "deny")? == 403, "a request that the provider refuses was let in");
    ensure!(status("GET", "/", "allow")? == 403, "a request that no rule matches was let in");
    let pods = cluster.get("pods -n decisions -l app=payment-service")?;
    let pod = pods["items"][0]["metadata"]["name"].as_str().context("payment-service has no pod")?;
    ensure!(status("POST", "/", "deny")? == 403, "a request that the provider refuses was let in");
    let why = cluster.meshctl(&format!("why --last {pod}.decisions"))?;
    ensure!(
        why.contains("AuthorizationPolicy decisions/opa-policy") && why.contains("The provider opa"),
        "meshctl why says: {why}"
    );
    cluster.kubectl("delete authorizationpolicy opa-policy -n decisions")?;
    cluster.apply(ASKED)?;
    becomes("the provider is asked about a path", ("GET", "/account", "deny"), 403)?;
    ensure!(status("GET", "/account", "allow")? == 200, "a request that the provider allows was refused");
    ensure!(status("GET", "/other", "deny")? == 200, "a request that nobody is asked about was refused");
    cluster.kubectl("scale deployment opa -n deciders --replicas=0")?;
    becomes("without the provider nobody is let in", ("GET", "/account", "allow"), 403)?;
    ensure!(status("GET", "/other", "deny")? == 200, "a request that nobody is asked about was refused");
    with(mesh)?;
    cluster.kubectl("delete namespace decisions deciders --wait=false")?;
    Ok(String::new())
}
