//! The words of the command line.

pub mod operator;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::print::Format;
use operator::{
    AdminCommand, BugReportArguments, CheckInjectArguments, DashboardCommand, EndpointArguments, StatsArguments,
    ValidateArguments, VersionArguments, Words,
};

/// Works with the mesh: what is wrong, what proxies hold, why a request failed.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// Where the mesh is.
    #[command(flatten)]
    pub reach: Reach,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where the mesh is.
#[derive(Clone, Debug, Args)]
pub struct Reach {
    /// The control plane's readiness and debug port; without it the cluster's control plane is asked if a cluster is
    /// configured, else 127.0.0.1:8080.
    #[arg(long, env = "MESHD", global = true, value_name = "HOST:PORT")]
    pub meshd: Option<String>,
    /// Namespace of the control plane.
    #[arg(
        short = 'i',
        long = "istioNamespace",
        visible_alias = "istio-namespace",
        global = true,
        default_value = "istio-system"
    )]
    pub istio_namespace: String,
    /// How to reach the cluster.
    #[arg(short = 'c', long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Which of the kubeconfig's clusters.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the e-commerce sample through the mesh on this machine, and show what the mesh does.
    Demo(DemoArguments),
    /// Install the mesh into a cluster, or change an installation; twice is once.
    #[command(visible_aliases = ["apply", "upgrade"])]
    Install(InstallArguments),
    /// Take an installation away.
    Uninstall(UninstallArguments),
    /// The objects that an installation consists of.
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// What each proxy holds, compared with what it should hold.
    #[command(visible_aliases = ["proxy-status", "ps"])]
    Status {
        /// Only this proxy: NAME, NAME.NAMESPACE, or KIND/NAME.NAMESPACE of a workload.
        proxy: Option<String>,
        /// Namespace, if the name has none.
        #[arg(short, long)]
        namespace: Option<String>,
        /// How to print.
        #[arg(short, long, default_value = "table")]
        output: Format,
    },
    /// What a proxy has in effect.
    #[command(visible_aliases = ["proxy-config", "pc"], subcommand)]
    Config(ConfigCommand),
    /// Check objects, in files or folders, as the control plane would.
    Analyze(AnalyzeArguments),
    /// Whether the cluster is fit for the mesh, and whether what is installed works.
    #[command(visible_alias = "precheck")]
    Check(CheckArguments),
    /// Whether what is installed is whole and works: fails if nothing is.
    VerifyInstall(CheckArguments),
    /// What the mesh does for a pod or a service, in sentences.
    #[command(subcommand)]
    Describe(DescribeCommand),
    /// Names for revisions, which namespaces can be labelled with in place of the revision.
    #[command(subcommand)]
    Tag(TagCommand),
    /// Commands that istioctl has under this name.
    #[command(visible_aliases = ["x", "exp"], subcommand, hide = true)]
    Experimental(ExperimentalCommand),
    /// Give the pods of manifests their proxy, as the control plane would when they are made.
    #[command(visible_alias = "kube-inject")]
    Inject(InjectArguments),
    /// What the proxies of a workload print, with their access logs; without a workload, the control plane.
    #[command(visible_alias = "log")]
    Logs(LogsArguments),
    /// Why a request failed: by its x-request-id, or the last failures.
    Why(WhyArguments),
    /// Tokens with which workloads prove who they are.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Versions of this program and of the control plane.
    Version(VersionArguments),
    /// Check objects in files by themselves, as they are checked when they are applied.
    #[command(visible_alias = "v")]
    Validate(ValidateArguments),
    /// The control plane itself.
    #[command(visible_alias = "istiod", subcommand)]
    Admin(AdminCommand),
    /// A page of a pod, on this machine: a proxy's admin interface, the control plane's debug pages, add-ons.
    #[command(visible_aliases = ["dash", "d"], subcommand)]
    Dashboard(DashboardCommand),
    /// All that helps to understand what is wrong, in one archive: versions, objects, states, logs; no secrets.
    BugReport(BugReportArguments),
    /// Not built: several clusters.
    #[command(hide = true)]
    RemoteClusters(Words),
    /// Not built: several clusters.
    #[command(hide = true)]
    CreateRemoteSecret(Words),
    /// Not built: ambient.
    #[command(hide = true)]
    Waypoint(Words),
    /// Not built: ambient.
    #[command(hide = true, visible_alias = "zc")]
    ZtunnelConfig(Words),
    /// Completion for a shell.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// What to install.
#[derive(Debug, Args)]
pub struct InstallWish {
    /// File with an IstioOperator; later ones over earlier ones.
    #[arg(short, long, value_name = "FILE")]
    pub filename: Vec<PathBuf>,
    /// A setting, `PATH=VALUE`: profile=demo, meshConfig.accessLogFile=/dev/stdout, values.pilot.replicaCount=2, …
    #[arg(short, long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Name of this control plane, where a cluster has several.
    #[arg(short, long)]
    pub revision: Option<String>,
    /// Go on with settings that have no effect.
    #[arg(long)]
    pub force: bool,
}

/// `meshctl install …`
#[derive(Debug, Args)]
pub struct InstallArguments {
    #[command(flatten)]
    pub wish: InstallWish,
    /// Do not ask.
    #[arg(short = 'y', long)]
    pub skip_confirmation: bool,
    /// Have the API server try it, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Longest time to wait for each part, in seconds.
    #[arg(long, default_value = "300", value_parser = seconds)]
    pub readiness_timeout: u64,
}

/// `300`, `300s` or `5m`.
fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    number.parse::<u64>().map(|number| number * unit).map_err(|_| format!("{text:?} is not a time like 300s or 5m"))
}

/// `meshctl uninstall …`
#[derive(Debug, Args)]
pub struct UninstallArguments {
    /// Which control plane [default: the one without a name].
    #[arg(short, long)]
    pub revision: Option<String>,
    /// Everything: all revisions, the kinds with all objects of them, the root certificate.
    #[arg(long)]
    pub purge: bool,
    /// Do not ask.
    #[arg(short = 'y', long)]
    pub skip_confirmation: bool,
    /// Only tell what would be taken away.
    #[arg(long)]
    pub dry_run: bool,
}

/// `meshctl manifest …`
#[derive(Debug, Subcommand)]
pub enum ManifestCommand {
    /// Print them as YAML.
    Generate(GenerateArguments),
    /// Not built: commands of Helm.
    #[command(hide = true)]
    Translate(Words),
}

/// `meshctl manifest generate …`
#[derive(Debug, Args)]
pub struct GenerateArguments {
    #[command(flatten)]
    pub wish: InstallWish,
    /// Folder for a file of each component, in place of standard output.
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Only these components: Base, Pilot, IngressGateways, EgressGateways.
    #[arg(long, value_delimiter = ',', value_name = "COMPONENT")]
    pub filter: Vec<String>,
}

/// A proxy by its name.
#[derive(Debug, Args)]
pub struct ProxyName {
    /// The proxy: NAME, NAME.NAMESPACE, or KIND/NAME.NAMESPACE of a workload.
    proxy: String,
    /// Namespace, if the name has none.
    #[arg(short, long)]
    namespace: Option<String>,
}

impl ProxyName {
    /// The name, with the namespace if one was given.
    pub fn full(&self) -> String {
        in_namespace(&self.proxy, self.namespace.as_deref())
    }
}

/// A name that has no namespace gets this one.
pub fn in_namespace(name: &str, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) if !name.contains('.') => format!("{name}.{namespace}"),
        _ => name.to_owned(),
    }
}

/// Of which proxy, and how to print.
#[derive(Debug, Args)]
pub struct OfProxy {
    /// The proxy: NAME, NAME.NAMESPACE, or KIND/NAME.NAMESPACE of a workload.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    proxy: Option<String>,
    /// Namespace, if the name has none.
    #[arg(short, long)]
    namespace: Option<String>,
    /// In place of a proxy, what one has told before (`config dump NAME -o json`); `-` is standard input.
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    /// How to print.
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

impl OfProxy {
    /// The proxy's name, with the namespace if one was given.
    pub fn full(&self) -> String {
        in_namespace(self.proxy.as_deref().unwrap_or_default(), self.namespace.as_deref())
    }
}

/// `meshctl config …`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Where requests can go.
    #[command(visible_aliases = ["cluster", "c"])]
    Clusters {
        #[command(flatten)]
        of: OfProxy,
        /// Only clusters of hosts that hold this.
        #[arg(long)]
        fqdn: Option<String>,
        /// Only inbound or outbound.
        #[arg(long, value_parser = ["inbound", "outbound"])]
        direction: Option<String>,
        /// Only this port.
        #[arg(long)]
        port: Option<u16>,
        /// Only this subset.
        #[arg(long)]
        subset: Option<String>,
    },
    /// Where the proxy listens.
    #[command(visible_aliases = ["listener", "l"])]
    Listeners {
        #[command(flatten)]
        of: OfProxy,
        /// Only this port.
        #[arg(long)]
        port: Option<u16>,
        /// Only this address.
        #[arg(long)]
        address: Option<String>,
        /// Only those of this type: HTTP, TCP, HTTP+TCP or UNKNOWN.
        #[arg(long = "type", ignore_case = true, value_parser = ["HTTP", "TCP", "HTTP+TCP", "UNKNOWN"])]
        kind: Option<String>,
        /// Each match with its destination; `--verbose=false` prints a line for each listener.
        #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
        verbose: bool,
    },
    /// How requests are routed.
    #[command(visible_aliases = ["route", "r"])]
    Routes {
        #[command(flatten)]
        of: OfProxy,
        /// Only this route configuration.
        #[arg(long)]
        name: Option<String>,
        /// Each route; `--verbose=false` prints a line for each route configuration.
        #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
        verbose: bool,
    },
    /// Addresses of each cluster, as the proxy sees them now.
    #[command(visible_aliases = ["endpoint", "ep"])]
    Endpoints(EndpointArguments),
    /// Addresses of each cluster, as the control plane has sent them.
    Eds(EndpointArguments),
    /// Certificates and trust roots; keys are never shown.
    #[command(visible_aliases = ["secret", "s"])]
    Secrets {
        #[command(flatten)]
        of: OfProxy,
    },
    /// What the proxy was started with.
    #[command(visible_aliases = ["b"])]
    Bootstrap {
        #[command(flatten)]
        of: OfProxy,
    },
    /// Extensions that the proxy has been sent; this one is sent none.
    #[command(visible_aliases = ["extensions", "ec"])]
    Ecds {
        #[command(flatten)]
        of: OfProxy,
    },
    /// The level of the proxy's log, or another one from now on.
    #[command(visible_aliases = ["o"])]
    Log {
        #[command(flatten)]
        proxy: ProxyName,
        /// trace, debug, info, warning, error, or off; or a filter such as `info,proxy::tls=debug`.
        #[arg(long)]
        level: Option<String>,
        /// Back to the level that it started with.
        #[arg(short, long, conflicts_with = "level")]
        reset: bool,
    },
    /// Everything, as JSON.
    #[command(visible_aliases = ["all", "a"])]
    Dump {
        #[command(flatten)]
        of: OfProxy,
    },
    /// Whether two proxies trust the same authorities: if not, they cannot speak to each other.
    #[command(visible_aliases = ["rc"])]
    RootcaCompare {
        /// One: NAME, NAME.NAMESPACE, or KIND/NAME.NAMESPACE of a workload.
        first: String,
        /// The other.
        second: String,
        /// Namespace, if a name has none.
        #[arg(short, long)]
        namespace: Option<String>,
    },
}

/// `meshctl analyze …`
#[derive(Debug, Args)]
pub struct AnalyzeArguments {
    /// Files or folders; `-` is standard input. Without any, the cluster's objects are checked.
    pub paths: Vec<PathBuf>,
    /// The objects of the cluster too: files are checked as if they were applied to it.
    #[arg(short = 'k', long)]
    pub use_kube: bool,
    /// Namespace of objects that name none; of the cluster's, only what is wrong in this namespace is told.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// All namespaces of the cluster, as without a namespace.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// All that is looked for, with its code; nothing is checked.
    #[arg(short = 'L', long)]
    pub list_analyzers: bool,
    /// Taken for istioctl's sake: folders are always read with all that is in them.
    #[arg(short = 'R', long, hide = true)]
    pub recursive: bool,
    /// Mesh-wide settings.
    #[arg(long, visible_alias = "meshConfigFile")]
    pub mesh_config: Option<PathBuf>,
    /// DNS domain of services.
    #[arg(long, default_value = "cluster.local")]
    pub domain: String,
    /// Print what is at least so bad: info, warning, error.
    #[arg(long, default_value = "info", value_parser = severity)]
    pub output_threshold: api::problem::Severity,
    /// End with code 79 if something is at least so bad.
    #[arg(long, default_value = "error", value_parser = severity)]
    pub failure_threshold: api::problem::Severity,
    /// Do not report this code (IST0101), or this code of one object (IST0101=VirtualService/NAME.NAMESPACE).
    #[arg(short = 'S', long)]
    pub suppress: Vec<String>,
    /// How to print.
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

fn severity(text: &str) -> Result<api::problem::Severity, String> {
    use api::problem::Severity;
    match text.to_ascii_lowercase().as_str() {
        "info" => Ok(Severity::Info),
        "warning" => Ok(Severity::Warning),
        "error" => Ok(Severity::Error),
        _ => Err(format!("{text:?} is not info, warning or error")),
    }
}

/// `meshctl check`
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Which control plane [default: the one without a name].
    #[arg(short, long)]
    pub revision: Option<String>,
    /// How to print.
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

/// `meshctl describe …`
#[derive(Debug, Subcommand)]
pub enum DescribeCommand {
    /// Of a pod.
    #[command(visible_alias = "po")]
    Pod {
        /// NAME, or NAME.NAMESPACE.
        name: String,
        /// Namespace, if the name has none.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Of a service.
    #[command(visible_alias = "svc")]
    Service {
        /// NAME, or NAME.NAMESPACE.
        name: String,
        /// Namespace, if the name has none.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
}

/// `meshctl experimental …`
#[derive(Debug, Subcommand)]
pub enum ExperimentalCommand {
    /// Whether the cluster is fit for the mesh.
    Precheck(CheckArguments),
    /// What the mesh does for a pod or a service.
    #[command(subcommand)]
    Describe(DescribeCommand),
    /// Which injector takes a pod, and why.
    CheckInject(CheckInjectArguments),
    /// The counters of a proxy.
    #[command(visible_alias = "es")]
    EnvoyStats(StatsArguments),
    /// Which policies a proxy decides by.
    #[command(subcommand)]
    Authz(AuthzCommand),
    /// A debug page of each replica of the control plane, such as syncz.
    InternalDebug {
        /// The page.
        page: String,
    },
    /// Whatever else istioctl has there.
    #[command(external_subcommand)]
    Other(Vec<String>),
}

/// `meshctl experimental authz …`
#[derive(Debug, Subcommand)]
pub enum AuthzCommand {
    /// The AuthorizationPolicies that a proxy has been sent, with the number of their rules.
    Check {
        #[command(flatten)]
        of: OfProxy,
    },
}

/// What a tag stands for.
#[derive(Debug, Args)]
pub struct TagArguments {
    /// The tag.
    pub name: String,
    /// The revision that it stands for.
    #[arg(short, long)]
    pub revision: String,
    /// Take the tag from the revision that has it.
    #[arg(long)]
    pub overwrite: bool,
    /// Have pods join in namespaces that say nothing, too.
    #[arg(long = "auto-inject-namespaces")]
    pub auto_inject_namespaces: bool,
}

/// `meshctl tag …`
#[derive(Debug, Subcommand)]
pub enum TagCommand {
    /// Make a tag, or move it to another revision.
    Set(TagArguments),
    /// Print what `set` would apply.
    Generate(TagArguments),
    /// All tags, and the namespaces that have them.
    #[command(visible_alias = "show")]
    List {
        /// How to print.
        #[arg(short, long, default_value = "table")]
        output: Format,
    },
    /// Take a tag away.
    #[command(visible_alias = "delete")]
    Remove {
        /// The tag.
        name: String,
        /// Do not ask.
        #[arg(short = 'y', long)]
        skip_confirmation: bool,
    },
}

/// `meshctl inject …`
#[derive(Debug, Args)]
pub struct InjectArguments {
    /// Files with objects; `-` is standard input. May be given several times.
    #[arg(short, long = "filename", required = true)]
    pub files: Vec<PathBuf>,
    /// Take the settings that the cluster's control plane has; without it and without files, those of a default install.
    #[arg(short = 'k', long)]
    pub use_kube: bool,
    /// Where the objects are written; standard output if it is not given.
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    /// Namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// The key `config` of the ConfigMap `istio-sidecar-injector`, or the whole ConfigMap.
    #[arg(long, visible_alias = "injectConfigFile")]
    pub inject_config: Option<PathBuf>,
    /// The key `values` of that ConfigMap.
    #[arg(long, visible_alias = "valuesFile")]
    pub values: Option<PathBuf>,
    /// Mesh-wide settings: the key `mesh` of the ConfigMap `istio`.
    #[arg(long, visible_alias = "meshConfigFile")]
    pub mesh_config: Option<PathBuf>,
    /// Revision of the control plane that the proxies will follow.
    #[arg(short, long, default_value = "")]
    pub revision: String,
    /// Whether the cluster runs sidecars as init containers that stay; if it is not given, the cluster's version tells
    /// (Kubernetes 1.29 and newer do), and without a cluster they are taken to.
    #[arg(long)]
    pub native_sidecars: Option<bool>,
}

/// `meshctl logs …`
#[derive(Debug, Args)]
pub struct LogsArguments {
    /// A pod, a workload or a service: NAME, NAME.NAMESPACE, or KIND/NAME such as deployment/user.
    pub of: Option<String>,
    /// Namespace, if the name has none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Go on with new lines.
    #[arg(short, long)]
    pub follow: bool,
    /// How many of the last lines; -1 is all.
    #[arg(long, default_value_t = 20, allow_negative_numbers = true)]
    pub tail: i64,
    /// Only lines that are not older: seconds, or 10m, 1h.
    #[arg(long, value_parser = lifetime)]
    pub since: Option<i64>,
    /// Of the container before the last restart.
    #[arg(short, long)]
    pub previous: bool,
    /// Another container than istio-proxy, or discovery of the control plane.
    #[arg(long)]
    pub container: Option<String>,
}

/// `meshctl why …`
#[derive(Debug, Args)]
pub struct WhyArguments {
    /// The request's x-request-id.
    #[arg(required_unless_present = "last")]
    pub request_id: Option<String>,
    /// The last failures, of one proxy or of all.
    #[arg(long, value_name = "PROXY", num_args = 0..=1, default_missing_value = "", conflicts_with = "request_id")]
    pub last: Option<String>,
    /// Namespace of the proxy, if its name has none; without a name, only proxies of this namespace.
    #[arg(short, long, requires = "last")]
    pub namespace: Option<String>,
    /// How to print.
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

/// `meshctl token …`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token for a service account; whoever holds it can be that service account until it expires.
    Create {
        /// The workload's namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// The workload's service account.
        #[arg(short = 's', long, default_value = "default")]
        service_account: String,
        /// The control plane's state folder; reading its key is what permits making tokens.
        #[arg(long, env = "MESHD_STATE_DIR", default_value = "meshd-state")]
        state_dir: PathBuf,
        /// How long it can be used: seconds, or 10m, 1h.
        #[arg(long, default_value = "10m", value_parser = lifetime)]
        ttl: i64,
    },
}

fn lifetime(text: &str) -> Result<i64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{text:?} is not a time such as 90s, 10m or 1h")),
    };
    number
        .parse::<i64>()
        .ok()
        .and_then(|number| number.checked_mul(seconds))
        .ok_or_else(|| format!("{text:?} is not a time such as 90s, 10m or 1h"))
}

/// `meshctl demo …`
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Leave the mesh running afterwards, and print where to look, until ctrl-C.
    #[arg(long, conflicts_with = "once")]
    pub keep: bool,
    /// Show everything once, and end with an error if a claim did not hold.
    #[arg(long)]
    pub once: bool,
    /// The sample's folder (examples/ecommerce of the source).
    #[arg(long, env = "MESH_DEMO_DIR")]
    pub sample: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_words_fit_together_and_istioctls_spellings_work() {
        Cli::command().debug_assert();
        for line in [
            "meshctl ps",
            "meshctl pc c user-v1.ecommerce",
            "meshctl proxy-config endpoint x -o json",
            "meshctl why --last",
            "meshctl logs",
            "meshctl logs user.shop -f --tail -1",
            "meshctl logs deploy/user -n shop --since 10m",
            "meshctl why --last pod",
            "meshctl pc log user-v1.shop --level debug",
            "meshctl x describe pod user-v1.shop",
            "meshctl describe svc user -n shop",
            "meshctl x precheck",
            "meshctl verify-install",
            "meshctl tag set prod --revision 1-2 --overwrite",
            "meshctl tag show",
            "meshctl tag delete prod -y",
            "meshctl version --short",
            "meshctl version -s -o json",
            "meshctl version --short=false --remote=false",
            "meshctl manifest generate -o out --filter Base,Pilot",
            "meshctl pc eds a.b --status healthy --port 80",
            "meshctl pc ep a.b --cluster outbound|80||x --address 10.0.0.1 -o short",
            "meshctl pc l a.b --type http --address 0.0.0.0 --port 80 --verbose=false",
            "meshctl pc r a.b --name 80 --verbose=false",
            "meshctl pc c a.b --fqdn x --direction outbound --subset v1 --port 80 -o yaml",
            "meshctl validate -f a.yaml -f b",
            "meshctl admin log --level ads:debug",
            "meshctl istiod l -r",
            "meshctl dashboard envoy pod.ns --port 1 --browser=false",
            "meshctl d controlz",
            "meshctl bug-report --include a,b --duration 1h",
            "meshctl x check-inject pod -n a",
            "meshctl x check-inject -l app=x",
            "meshctl x es pod.ns -o prom-merged",
            "meshctl waypoint apply -n a --for all",
            "meshctl zc workload --node x",
            "meshctl x authz check a -n b",
            "meshctl x authz check -f dump.json",
            "meshctl pc c -f dump.json",
            "meshctl pc rc a b -n c",
            "meshctl why --last pod -n shop",
            "meshctl analyze -L",
            "meshctl analyze -R folder",
            "meshctl x metrics a",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in ["meshctl why", "meshctl why -n shop", "meshctl pc c", "meshctl pc c a -f dump.json"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn lifetimes_are_read() {
        assert_eq!(lifetime("10m"), Ok(600));
        assert_eq!(lifetime("90"), Ok(90));
        assert!(lifetime("1d").is_err() && lifetime("").is_err() && lifetime("m").is_err());
    }
}
