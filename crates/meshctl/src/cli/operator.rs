//! The words of commands that istioctl has for operators: what helps when something is wrong, pages of pods in a browser, and those
//! that are not built here, which are refused with a sentence.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{OfProxy, ProxyName, lifetime};
use crate::print::Format;

/// Words that are taken for the sake of a sentence on why there is no such command.
#[derive(Debug, Args)]
pub struct Words {
    /// All that follows.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0.., hide = true)]
    pub rest: Vec<String>,
}

/// `meshctl version`
#[derive(Debug, Args)]
pub struct VersionArguments {
    /// Versions only; `--short=false` also tells which Istio they are compatible with.
    #[arg(short, long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    pub short: bool,
    /// Of the control plane and the proxies too, or of this program alone.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    pub remote: bool,
    /// How to print.
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

/// `meshctl validate …`
#[derive(Debug, Args)]
pub struct ValidateArguments {
    /// Files or folders with objects; `-` is standard input. May be given several times.
    #[arg(short, long = "filename", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

/// `meshctl admin …`
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// How much the control plane logs, part by part; or another level from now on.
    #[command(visible_alias = "l")]
    Log {
        /// Only this replica.
        pod: Option<String>,
        /// LEVEL, or SCOPE:LEVEL,… with the levels none, error, warn, info and debug.
        #[arg(long)]
        level: Option<String>,
        /// Back to the levels that it started with.
        #[arg(short, long, visible_alias = "log-reset", conflicts_with = "level")]
        reset: bool,
        /// How to print.
        #[arg(short, long, default_value = "table")]
        output: Format,
    },
}

/// Where a page is offered on this machine.
#[derive(Debug, Args)]
pub struct PageArguments {
    /// The pod [default: one that serves the page].
    pub pod: Option<String>,
    /// Namespace of the pod, if its name has none.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Port on this machine; 0 is any.
    #[arg(short, long, default_value_t = 0)]
    pub port: u16,
    /// Address on this machine.
    #[arg(long, default_value = "127.0.0.1")]
    pub address: std::net::IpAddr,
    /// Port of the pod [default: the page's usual one].
    #[arg(long, visible_alias = "ctrlz_port")]
    pub ui_port: Option<u16>,
    /// Taken for istioctl's sake: no browser is opened, the address is printed.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, hide = true)]
    pub browser: Option<bool>,
}

/// `meshctl dashboard …`
#[derive(Debug, Subcommand)]
pub enum DashboardCommand {
    /// The admin interface of a proxy.
    #[command(visible_alias = "proxy")]
    Envoy(PageArguments),
    /// The debug pages of the control plane, which has no ControlZ.
    #[command(visible_alias = "istiod-debug")]
    Controlz(PageArguments),
    /// Prometheus, if it is installed.
    Prometheus(PageArguments),
    /// Grafana, if it is installed.
    Grafana(PageArguments),
    /// Kiali, if it is installed.
    Kiali(PageArguments),
    /// Jaeger, if it is installed.
    Jaeger(PageArguments),
    /// Zipkin, if it is installed.
    Zipkin(PageArguments),
    /// SkyWalking, if it is installed.
    Skywalking(PageArguments),
}

/// `meshctl bug-report`
#[derive(Debug, Args)]
pub struct BugReportArguments {
    /// Folder that the archive is written to.
    #[arg(long, visible_alias = "dir", default_value = ".", value_name = "DIR")]
    pub output_dir: PathBuf,
    /// Only proxies of these namespaces.
    #[arg(long, value_delimiter = ',', value_name = "NAMESPACE")]
    pub include: Vec<String>,
    /// No proxies of these namespaces.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMESPACE",
        default_value = "kube-system,kube-public,kube-node-lease"
    )]
    pub exclude: Vec<String>,
    /// How many of the last lines of each log; -1 is all.
    #[arg(long, default_value_t = 1000, allow_negative_numbers = true)]
    pub tail: i64,
    /// Only lines of logs that are not older: seconds, or 10m, 1h.
    #[arg(long, value_parser = lifetime)]
    pub duration: Option<i64>,
}

/// `meshctl experimental check-inject`
#[derive(Debug, Args)]
pub struct CheckInjectArguments {
    /// A pod, or a workload: NAME, NAME.NAMESPACE, or KIND/NAME such as deployment/user.
    #[arg(required_unless_present = "labels")]
    pub of: Option<String>,
    /// Namespace, if the name has none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// In place of a pod, the labels that it would have: a=b,c=d.
    #[arg(short, long, conflicts_with = "of")]
    pub labels: Option<String>,
    /// How to print.
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

/// What `meshctl experimental envoy-stats` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum StatsFormat {
    /// One `name: value` a line.
    #[default]
    #[value(alias = "short")]
    Text,
    /// JSON.
    Json,
    /// As Prometheus reads it.
    Prom,
    /// The same with the application's own.
    PromMerged,
}

/// `meshctl experimental envoy-stats`
#[derive(Debug, Args)]
pub struct StatsArguments {
    #[command(flatten)]
    pub proxy: ProxyName,
    /// How to print.
    #[arg(short, long, default_value = "text")]
    pub output: StatsFormat,
    /// server or clusters.
    #[arg(short = 't', long = "type", default_value = "server", value_parser = ["server", "clusters"])]
    pub of: String,
}

/// Which endpoints.
#[derive(Debug, Args)]
pub struct EndpointArguments {
    #[command(flatten)]
    pub of: OfProxy,
    /// Only this cluster.
    #[arg(long)]
    pub cluster: Option<String>,
    /// Only this address.
    #[arg(long)]
    pub address: Option<String>,
    /// Only this port.
    #[arg(long)]
    pub port: Option<u16>,
    /// Only those that are healthy, or unhealthy.
    #[arg(long, value_parser = ["healthy", "unhealthy", "draining", "HEALTHY", "UNHEALTHY", "DRAINING"])]
    pub status: Option<String>,
}
