//! The plug-in: called by the container runtime for each pod, after the plug-ins that give it its network (CNI specification 1.1).
//! It lives for the moment of one answer, runs as root on the node, and asks nobody: no API server, no agent.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use super::NAME;
use super::decide::{Config, Decision, Pod, decide};
use crate::capture;

/// Versions of the protocol in which there is a result to hand on.
const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Longest time for a pod; the runtime waits for it, and the kubelet tries again.
const LIMIT: Duration = Duration::from_secs(20);

/// Codes of the specification, and of ours (100 and above).
const INCOMPATIBLE: u32 = 1;
const WRONG_VARIABLES: u32 = 4;
const INPUT: u32 = 5;
const NOT_JSON: u32 = 6;
const WRONG_CONFIG: u32 = 7;
const UNAVAILABLE: u32 = 50;
const WRONG_ANNOTATION: u32 = 100;
const NOT_CAPTURED: u32 = 101;
const TOO_LATE: u32 = 102;

/// Why a pod cannot start: `kubectl describe pod` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    code: u32,
    message: String,
}

fn failure(code: u32, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}

impl Failure {
    /// As the specification has it. Runtimes show `msg` only.
    fn json(&self, version: &str) -> Value {
        let version = if version.is_empty() { "1.0.0" } else { version };
        json!({"cniVersion": version, "code": self.code, "msg": format!("{NAME}: {}", self.message)})
    }
}

/// What the runtime asks.
#[derive(Clone, Debug, Default)]
struct Call {
    command: String,
    network: String,
    pod: Pod,
    input: String,
}

/// Whether the program was started under the plug-in's name.
pub fn is_called(program: Option<&OsStr>) -> bool {
    program.and_then(|program| Path::new(program).file_name()).is_some_and(|name| name == NAME)
}

/// Answers the runtime.
pub fn run() -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut call = Call {
        command: variable("CNI_COMMAND"),
        network: variable("CNI_NETNS"),
        pod: Pod::parse(&variable("CNI_ARGS")),
        input: String::new(),
    };
    let read = std::io::stdin().read_to_string(&mut call.input);
    let read = read.map_err(|error| failure(INPUT, format!("the standard input cannot be read: {error}")));
    let version = version(&call.input);
    let (late, place) = (version.clone(), format!("{}/{}", call.pod.namespace, call.pod.name));
    // Ends with the program.
    std::thread::spawn(move || {
        std::thread::sleep(LIMIT);
        let told = format!("the rules of pod {place} were not installed in {} s; it is tried again", LIMIT.as_secs());
        println!("{}", failure(TOO_LATE, told).json(&late));
        std::process::exit(1);
    });
    match read.and_then(|_| answer(&call)) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{}", failure.json(&version));
            ExitCode::FAILURE
        }
    }
}

/// The version that an input speaks, as far as it can be read.
fn version(input: &str) -> String {
    let value: Value = serde_json::from_str(input).unwrap_or_default();
    value["cniVersion"].as_str().unwrap_or_default().to_owned()
}

fn answer(call: &Call) -> Result<String, Failure> {
    if call.command == "VERSION" {
        let spoken = version(&call.input);
        let spoken = if spoken.is_empty() { "1.1.0".to_owned() } else { spoken };
        return Ok(json!({"cniVersion": spoken, "supportedVersions": VERSIONS}).to_string());
    }
    let config: Config = serde_json::from_str(&call.input).map_err(|error| {
        failure(NOT_JSON, format!("the configuration on the standard input cannot be read: {error}"))
    })?;
    if !VERSIONS.contains(&config.cni_version.as_str()) {
        let told = format!("cniVersion {:?} is none of {}", config.cni_version, VERSIONS.join(", "));
        return Err(failure(INCOMPATIBLE, told));
    }
    match call.command.as_str() {
        "ADD" => add(call, &config),
        "CHECK" => check(call, &config).map(|()| String::new()),
        // The rules went with the pod's network.
        "DEL" | "GC" => Ok(String::new()),
        "STATUS" => match capture::can_be_asked() {
            true => Ok(String::new()),
            false => Err(failure(UNAVAILABLE, "neither nft nor iptables is installed on this node")),
        },
        "" => Err(failure(WRONG_VARIABLES, "CNI_COMMAND is not set: container runtimes call this program")),
        other => Err(failure(WRONG_VARIABLES, format!("CNI_COMMAND is {other}, which is not known"))),
    }
}

fn decided(call: &Call, config: &Config) -> Result<Decision, Failure> {
    decide(config, &call.pod).map_err(|wrong| {
        let told = format!(
            "pod {}/{}: {wrong}. Let the pod be injected anew: delete it, or correct the manifest that it is made from",
            call.pod.namespace, call.pod.name
        );
        failure(WRONG_ANNOTATION, told)
    })
}

/// The result of the plug-ins before is ours: rules are no interface.
fn add(call: &Call, config: &Config) -> Result<String, Failure> {
    let Some(before) = &config.prev_result else {
        let told = "there is no prevResult: this plug-in has to follow the one that gives pods their network";
        return Err(failure(WRONG_CONFIG, told));
    };
    if let Decision::Capture(options) = decided(call, config)? {
        enter(call)?;
        capture::run(&options).map_err(|error| {
            let told = format!(
                "the traffic of pod {}/{} cannot be captured: {error:#}. The plug-in calls nft or iptables of the node, one of which must be installed there; without the plug-in an init container does it (values.pilot.cni.enabled=false)",
                call.pod.namespace, call.pod.name
            );
            failure(NOT_CAPTURED, told)
        })?;
    }
    Ok(before.to_string())
}

fn check(call: &Call, config: &Config) -> Result<(), Failure> {
    let Decision::Capture(options) = decided(call, config)? else { return Ok(()) };
    enter(call)?;
    if capture::is_installed(&options) {
        return Ok(());
    }
    let told = format!(
        "the traffic of pod {}/{} is not captured: the rules are not there; delete the pod",
        call.pod.namespace, call.pod.name
    );
    Err(failure(NOT_CAPTURED, told))
}

/// From here on, this thread and the programs that it starts are in the pod's network.
fn enter(call: &Call) -> Result<(), Failure> {
    if call.network.is_empty() {
        return Err(failure(WRONG_VARIABLES, "CNI_NETNS is not set"));
    }
    let wrong = |error: String| failure(WRONG_VARIABLES, format!("CNI_NETNS {}: {error}", call.network));
    let file = File::open(&call.network).map_err(|error| wrong(error.to_string()))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| wrong(format!("it cannot be entered: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(command: &str, input: Value) -> Result<String, Failure> {
        let pod = Pod { namespace: "shop".into(), name: "web".into() };
        answer(&Call { command: command.into(), network: "/nowhere/netns".into(), pod, input: input.to_string() })
    }

    #[test]
    fn the_program_goes_by_its_name() {
        assert!(is_called(Some(OsStr::new("/opt/cni/bin/istio-cni"))));
        assert!(!is_called(Some(OsStr::new("proxy"))) && !is_called(None));
    }

    #[test]
    fn versions_are_told() {
        let told: Value = serde_json::from_str(&call("VERSION", json!({"cniVersion": "0.4.0"})).unwrap()).unwrap();
        assert_eq!(told, json!({"cniVersion": "0.4.0", "supportedVersions": VERSIONS}));
        let other = call("ADD", json!({"cniVersion": "0.2.0", "prevResult": {}})).unwrap_err();
        assert_eq!(other.code, INCOMPATIBLE);
    }

    #[test]
    fn the_result_of_those_before_is_handed_on() {
        let before = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}], "dns": {}});
        let added = call("ADD", json!({"cniVersion": "1.0.0", "prevResult": before})).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&added).unwrap(), before);
        assert_eq!(call("ADD", json!({"cniVersion": "1.0.0"})).unwrap_err().code, WRONG_CONFIG);
        for command in ["DEL", "GC", "CHECK"] {
            assert_eq!(call(command, json!({"cniVersion": "1.0.0", "prevResult": before})).unwrap(), "");
        }
    }

    #[test]
    fn failures_say_which_pod_and_what_to_do() {
        let with = |status: &str| {
            json!({"cniVersion": "1.0.0", "prevResult": {}, "runtimeConfig": {
                "io.kubernetes.cri.pod-annotations": {"sidecar.istio.io/status": status}}})
        };
        let wrong = call("ADD", with("{")).unwrap_err();
        assert!(wrong.code == WRONG_ANNOTATION && wrong.message.contains("pod shop/web"), "{wrong:?}");
        let lost = call("ADD", with("{\"capture\": []}")).unwrap_err();
        assert!(lost.code == WRONG_VARIABLES && lost.message.contains("/nowhere/netns"), "{lost:?}");
        let told = lost.json("0.4.0");
        assert_eq!((&told["cniVersion"], &told["code"]), (&json!("0.4.0"), &json!(4)));
        assert!(told["msg"].as_str().unwrap().starts_with("istio-cni: CNI_NETNS"));
        assert_eq!(call("DANCE", json!({"cniVersion": "1.0.0"})).unwrap_err().code, WRONG_VARIABLES);
        assert_eq!(call("", json!({"cniVersion": "1.0.0"})).unwrap_err().code, WRONG_VARIABLES);
        let call = Call { command: "ADD".into(), input: "{".into(), ..Call::default() };
        assert_eq!(answer(&call).unwrap_err().code, NOT_JSON);
    }
}
