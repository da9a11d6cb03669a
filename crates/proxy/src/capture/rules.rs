//! Which packets go where: pure, in the order in which they are asked.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use crate::go_value::{parse_bool, parse_duration};

/// What is captured. Flags and defaults are Istio's.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Port that captured outbound connections are sent to.
    #[arg(short = 'p', long = "envoy-port", default_value_t = api::port::OUTBOUND)]
    pub outbound_port: u16,
    /// Port that captured inbound connections are sent to.
    #[arg(short = 'z', long = "inbound-capture-port", default_value_t = api::port::INBOUND)]
    pub inbound_port: u16,
    /// Port of tunnelled connections, which are not captured.
    #[arg(short = 'e', long = "inbound-tunnel-port", default_value_t = 15008)]
    pub tunnel_port: u16,
    /// User ids of the proxy, whose own connections are not captured.
    #[arg(short = 'u', long = "proxy-uid", value_delimiter = ',', default_values_t = [api::port::PROXY_UID])]
    pub uids: Vec<u32>,
    /// Group ids of the proxy.
    #[arg(short = 'g', long = "proxy-gid", value_delimiter = ',', default_values_t = [api::port::PROXY_UID])]
    pub gids: Vec<u32>,
    /// How inbound connections come to the proxy: REDIRECT, or TPROXY, with which the application sees its caller's address.
    #[arg(short = 'm', long = "istio-inbound-interception-mode", default_value = "REDIRECT")]
    pub mode: String,
    /// With TPROXY: the mark of packets that stay on this host [default: 1337].
    #[arg(short = 't', long = "istio-inbound-tproxy-mark")]
    pub tproxy_mark: Option<u32>,
    /// With TPROXY: the routing table of those packets [default: 133].
    #[arg(short = 'r', long = "istio-inbound-tproxy-route-table")]
    pub tproxy_table: Option<u32>,
    /// Inbound ports to capture; `*` is all, empty is none.
    #[arg(short = 'b', long = "istio-inbound-ports", value_delimiter = ',', default_value = "*")]
    pub inbound_ports: Vec<String>,
    /// Inbound ports to leave alone.
    #[arg(short = 'd', long = "istio-local-exclude-ports", value_delimiter = ',', default_value = "")]
    pub inbound_exclude: Vec<String>,
    /// Networks whose traffic is captured on its way out; `*` is all.
    #[arg(short = 'i', long = "istio-service-cidr", value_delimiter = ',', default_value = "*")]
    pub outbound_networks: Vec<String>,
    /// Networks to leave alone.
    #[arg(short = 'x', long = "istio-service-exclude-cidr", value_delimiter = ',', default_value = "")]
    pub outbound_exclude: Vec<String>,
    /// Ports captured on the way out even outside of those networks.
    #[arg(short = 'q', long = "istio-outbound-ports", value_delimiter = ',', default_value = "")]
    pub outbound_ports: Vec<String>,
    /// Ports to leave alone on the way out.
    #[arg(short = 'o', long = "istio-local-outbound-ports-exclude", value_delimiter = ',', default_value = "")]
    pub outbound_ports_exclude: Vec<String>,
    /// Interfaces to leave alone.
    #[arg(short = 'c', long = "istio-exclude-interfaces", value_delimiter = ',', default_value = "")]
    pub exclude_interfaces: Vec<String>,
    /// Interfaces of virtual machines, whose traffic is outbound traffic of this pod.
    #[arg(short = 'k', long = "kube-virt-interfaces", value_delimiter = ',', default_value = "")]
    pub virtual_interfaces: Vec<String>,
    /// Send the workload's DNS queries to the name servers of `resolv.conf` to the proxy.
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", num_args = 0..=1, default_value = "false",
          default_missing_value = "true", value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub redirect_dns: bool,
    /// Send those to any name server there.
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true",
          value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub capture_all_dns: bool,
    /// Drop packets that belong to no connection, in place of letting them through.
    #[arg(long, env = "INVALID_DROP", num_args = 0..=1, default_value = "false", default_missing_value = "true",
          value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub drop_invalid: bool,
    /// Name servers of the workload, from `resolv.conf`.
    #[arg(skip)]
    pub name_servers: Vec<IpAddr>,
    /// Print the rules, install nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Remove the rules.
    #[arg(long)]
    pub cleanup_only: bool,
    /// Try the rules with a connection through them; if they do not work, end with 126.
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true",
          value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub run_validation: bool,
    /// Install nothing: whoever else does has done so.
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true",
          value_parser = parse_bool, action = clap::ArgAction::Set)]
    pub skip_rule_apply: bool,
    /// Port that the rules are tried with.
    #[arg(long = "iptables-probe-port", default_value_t = 15002)]
    pub probe_port: u16,
    /// How long the rules may take to work.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub probe_timeout: Duration,
    /// Flags of Istio's that do nothing here.
    #[command(flatten)]
    pub idle: Idle,
    /// Flags of Istio's whose behaviour is not built.
    #[command(flatten)]
    pub not_built: NotBuilt,
}

/// Flags of Istio's `istio-iptables` that are taken: what they ask for happens anyway, or does not exist here.
#[derive(Clone, Debug, Default, Args)]
pub struct Idle {
    /// The log is a few lines on standard error.
    #[arg(long = "log_output_level", hide = true)]
    log_output_level: Option<String>,
    /// As above.
    #[arg(long = "log_as_json", hide = true, num_args = 0..=1, default_missing_value = "true")]
    log_as_json: Option<String>,
    /// Rules that differ are always replaced.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    reconcile: Option<String>,
    /// As above.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    force_apply: Option<String>,
    /// nftables is tried first.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    native_nftables: Option<String>,
    /// IPv6 is captured where the pod has it.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    dual_stack: Option<String>,
    /// The kernel decides which program takes the rules.
    #[arg(long, hide = true)]
    force_iptables_binary: Option<String>,
}

/// Flags of Istio's `istio-iptables` that are refused.
#[derive(Clone, Debug, Default, Args)]
pub struct NotBuilt {
    /// Work from outside of the pod.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    cni_mode: Option<bool>,
    /// As above.
    #[arg(long, hide = true)]
    network_namespace: Option<String>,
}

impl NotBuilt {
    fn asked(&self) -> Option<&'static str> {
        let flags = [
            ("--cni-mode", self.cni_mode),
            ("--network-namespace", self.network_namespace.as_ref().map(|name| !name.is_empty())),
        ];
        flags.iter().find(|(_, value)| *value == Some(true)).map(|(flag, _)| *flag)
    }
}

impl Options {
    /// Whether all flags can be honoured.
    ///
    /// # Errors
    /// One sentence on the first that cannot.
    pub fn check(&self) -> Result<(), String> {
        if let Some(flag) = self.not_built.asked() {
            return Err(format!("{flag}: this is not built"));
        }
        if self.mode != "REDIRECT" && !self.is_transparent() {
            return Err(format!("-m {}: the mode is neither REDIRECT nor TPROXY", self.mode));
        }
        for (flag, number) in [("-t", self.mark()), ("-r", self.table())] {
            if number == 0 {
                return Err(format!("{flag} 0: a mark or table of 0 is that of all packets"));
            }
        }
        let lists = [
            ("-b", &self.inbound_ports),
            ("-d", &self.inbound_exclude),
            ("-q", &self.outbound_ports),
            ("-o", &self.outbound_ports_exclude),
        ];
        for (flag, list) in lists {
            if let Some(wrong) = given(list).find(|port| *port != "*" && port.parse::<u16>().is_err()) {
                return Err(format!("{flag} {wrong}: not a port from 0 to 65535"));
            }
        }
        for (flag, list) in [("-i", &self.outbound_networks), ("-x", &self.outbound_exclude)] {
            if let Some(wrong) = given(list).find(|network| *network != "*" && network.parse::<IpNet>().is_err()) {
                return Err(format!("{flag} {wrong}: not a network such as 10.0.0.0/8 or fd00::/8"));
            }
        }
        let is_name = |name: &str| {
            name.len() < 16 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte))
        };
        for (flag, list) in [("-c", &self.exclude_interfaces), ("-k", &self.virtual_interfaces)] {
            if let Some(wrong) = given(list).find(|name| !is_name(name)) {
                return Err(format!("{flag} {wrong}: not the name of an interface"));
            }
        }
        Ok(())
    }

    /// Inbound connections keep their addresses (TPROXY).
    pub fn is_transparent(&self) -> bool {
        self.mode == "TPROXY"
    }

    /// The mark of packets that stay on this host.
    pub fn mark(&self) -> u32 {
        self.tproxy_mark.unwrap_or(api::port::TPROXY_MARK)
    }

    /// The routing table of those packets.
    pub fn table(&self) -> u32 {
        self.tproxy_table.unwrap_or(TABLE)
    }

    /// What may not work as it is asked for. The proxy's own calls have the mark that its control plane names, and `meshd` names
    /// one only, as Istio does.
    pub fn doubt(&self) -> Option<String> {
        let (mark, usual) = (self.mark(), api::port::TPROXY_MARK);
        (self.is_transparent() && mark != usual).then(|| {
            format!(
                "-t {mark}: meshd has proxies mark their calls with {usual}; under it, answers of the application do not come back with another mark"
            )
        })
    }

    /// The flags given that do nothing here.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let idle = &self.idle;
        let flags = [
            ("--log_output_level", &idle.log_output_level),
            ("--log_as_json", &idle.log_as_json),
            ("--reconcile", &idle.reconcile),
            ("--force-apply", &idle.force_apply),
            ("--native-nftables", &idle.native_nftables),
            ("--dual-stack", &idle.dual_stack),
            ("--force-iptables-binary", &idle.force_iptables_binary),
        ];
        let given = flags.iter().map(|(flag, value)| (*flag, value.is_some()));
        let marks = [("-t", self.tproxy_mark), ("-r", self.tproxy_table)];
        let marks = marks.iter().map(|(flag, value)| (*flag, value.is_some() && !self.is_transparent()));
        given.chain(marks).filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
    }
}

/// A list on the command line may be empty text.
pub(super) fn given(list: &[String]) -> impl Iterator<Item = &str> {
    list.iter().map(|word| word.trim()).filter(|word| !word.is_empty())
}

/// A chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Packets that come in.
    Prerouting,
    /// Packets that leave this host's programs.
    Output,
    /// Ours: what comes in.
    Inbound,
    /// Ours: to the inbound port.
    InRedirect,
    /// Ours: what leaves.
    Out,
    /// Ours: to the outbound port.
    Redirect,
    /// Ours: DNS queries over UDP.
    Dns,
    /// Packets that come in, before they are known to belong to a connection.
    RawPrerouting,
    /// Packets that leave this host's programs, before that.
    RawOutput,
    /// Ours, before that: answers of name servers.
    RawAnswers,
    /// Ours, before that: queries, and the proxy's answers.
    RawQueries,
    /// Packets that come in, before they are routed.
    ManglePrerouting,
    /// Ours: what belongs to no connection.
    Invalid,
    /// Packets that leave this host's programs, before they are routed for good.
    MangleOutput,
    /// Ours: what comes in and keeps its addresses.
    MangleInbound,
    /// Ours: of connections that are known.
    Divert,
    /// Ours: of new connections, to the inbound port.
    Tproxy,
    /// Ours: what the proxy sends in its clients' names, and the answers to it.
    MangleOut,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing more in this chain.
    Return,
    /// On with that chain.
    Jump(Chain),
    /// To this port of this host.
    RedirectTo(u16),
    /// Counts as a connection of this zone: in different ones, equal addresses and ports are no clash.
    Zone(u16),
    /// Nowhere.
    Drop,
    /// To whoever takes foreign connections on this port, with its addresses as they are, and marked.
    TproxyTo {
        /// The port.
        port: u16,
        /// The mark.
        mark: u32,
    },
    /// Marked.
    Mark(u32),
    /// The packet's mark is the connection's from now on.
    SaveMark,
    /// The connection's mark is the packet's.
    RestoreMark,
    /// Past all further rules of this table.
    Accept,
}

/// Whose packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This user's.
    Uid(u32),
    /// Any other user's.
    NotUid(u32),
    /// This group's.
    Gid(u32),
    /// Any other group's.
    NotGid(u32),
}

/// One rule: all conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it stands.
    pub chain: Chain,
    /// Only this.
    pub transport: Option<Transport>,
    /// Came in by this interface.
    pub input: Option<String>,
    /// Leaves by this interface.
    pub out: Option<String>,
    /// From this network.
    pub source: Option<String>,
    /// To this network, or to any but it.
    pub destination: Option<(bool, String)>,
    /// To one of these ports, or to any but them.
    pub ports: Option<(bool, Vec<u16>)>,
    /// From this port.
    pub source_port: Option<u16>,
    /// Belongs to no connection.
    pub invalid: bool,
    /// Belongs to a connection that is known.
    pub known: bool,
    /// Marked so.
    pub mark: Option<u32>,
    /// Of a connection marked so.
    pub connection_mark: Option<u32>,
    /// Whose.
    pub owner: Option<Owner>,
    /// Then what.
    pub verdict: Verdict,
}

const TCP: Option<Transport> = Some(Transport::Tcp);
const UDP: Option<Transport> = Some(Transport::Udp);
/// Port of name servers.
const DNS: u16 = 53;
/// Zone of what the proxy asks name servers.
const PROXYS: u16 = 1;
/// Zone of what the workload asks the proxy.
const WORKLOADS: u16 = 2;
/// Istio's routing table of packets that stay on this host.
const TABLE: u32 = 133;

fn rule(chain: Chain, verdict: Verdict) -> Rule {
    Rule {
        chain,
        transport: None,
        input: None,
        out: None,
        source: None,
        destination: None,
        ports: None,
        source_port: None,
        invalid: false,
        known: false,
        mark: None,
        connection_mark: None,
        owner: None,
        verdict,
    }
}

/// A family of addresses: each has rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Four,
    /// IPv6.
    Six,
}

impl std::fmt::Display for Family {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(if *self == Family::Four { "IPv4" } else { "IPv6" })
    }
}

impl Family {
    /// Address from which the inbound proxy calls the application, so that its calls are told from the application's own.
    pub fn passthrough_source(self) -> &'static str {
        match self {
            Family::Four => "127.0.0.6/32",
            Family::Six => "::6/128",
        }
    }

    fn loopback(self) -> &'static str {
        match self {
            Family::Four => "127.0.0.1/32",
            Family::Six => "::1/128",
        }
    }

    /// The networks of this family in a list; `*` is of both.
    fn networks(self, list: &[String]) -> impl Iterator<Item = &str> {
        given(list).filter(move |network| {
            *network == "*"
                || network.parse::<IpNet>().is_ok_and(|network| network.addr().is_ipv6() == (self == Family::Six))
        })
    }
}

/// All rules of a family, in order.
pub fn rules(options: &Options, family: Family) -> Vec<Rule> {
    let mut rules = Vec::new();
    for interface in given(&options.exclude_interfaces) {
        rules.push(Rule { input: Some(interface.to_owned()), ..rule(Chain::Prerouting, Verdict::Return) });
        rules.push(Rule { out: Some(interface.to_owned()), ..rule(Chain::Output, Verdict::Return) });
    }
    virtual_machines(options, family, &mut rules);
    rules.push(Rule { transport: TCP, ..rule(Chain::Redirect, Verdict::RedirectTo(options.outbound_port)) });
    rules.push(Rule { transport: TCP, ..rule(Chain::InRedirect, Verdict::RedirectTo(options.inbound_port)) });
    if !options.is_transparent() {
        inbound(options, Chain::Prerouting, Chain::Inbound, &[Chain::InRedirect], &mut rules);
    }
    rules.push(rule(Chain::Output, Verdict::Jump(Chain::Out)));
    outbound(options, family, &mut rules);
    if options.redirect_dns {
        datagrams_of_dns(options, family, &mut rules);
        zones_of_dns(options, family, &mut rules);
    }
    if options.drop_invalid {
        rules.push(Rule { invalid: true, ..rule(Chain::ManglePrerouting, Verdict::Jump(Chain::Invalid)) });
        rules.push(rule(Chain::Invalid, Verdict::Drop));
    }
    if options.is_transparent() {
        transparent(options, family, &mut rules);
    }
    rules
}

/// Inbound connections with their addresses as they are. The proxy calls the application from its client's address, with a mark:
/// the connection keeps it, so that the answers, which are for a host elsewhere, are routed to this one.
fn transparent(options: &Options, family: Family, rules: &mut Vec<Rule>) {
    let mark = options.mark();
    let loopback = Some((false, family.loopback().to_owned()));
    let to_proxy = Verdict::TproxyTo { port: options.inbound_port, mark };
    rules.push(rule(Chain::Divert, Verdict::Mark(mark)));
    rules.push(rule(Chain::Divert, Verdict::Accept));
    rules.push(Rule { transport: TCP, destination: loopback, ..rule(Chain::Tproxy, to_proxy) });
    // What comes from this host is no inbound traffic; the proxy's own calls to it are redirected as they leave.
    let elsewhere = given(&options.exclude_interfaces).chain(given(&options.virtual_interfaces)).chain(["lo"]);
    rules.extend(
        elsewhere.map(|name| Rule { input: Some(name.to_owned()), ..rule(Chain::MangleInbound, Verdict::Return) }),
    );
    inbound(options, Chain::ManglePrerouting, Chain::MangleInbound, &[Chain::Divert, Chain::Tproxy], rules);
    rules.push(Rule { transport: TCP, ..rule(Chain::MangleOutput, Verdict::Jump(Chain::MangleOut)) });
    let out = |verdict| Rule { transport: TCP, ..rule(Chain::MangleOut, verdict) };
    rules.extend(
        given(&options.exclude_interfaces).map(|name| Rule { out: Some(name.to_owned()), ..out(Verdict::Return) }),
    );
    rules.push(Rule { mark: Some(mark), ..out(Verdict::SaveMark) });
    rules.push(Rule { connection_mark: Some(mark), ..out(Verdict::RestoreMark) });
}

/// What a virtual machine in the pod sends comes in by its interface, and is outbound traffic all the same.
fn virtual_machines(options: &Options, family: Family, rules: &mut Vec<Rule>) {
    for interface in given(&options.virtual_interfaces) {
        let from = |verdict| Rule { input: Some(interface.to_owned()), ..rule(Chain::Prerouting, verdict) };
        for network in family.networks(&options.outbound_networks) {
            let destination = (network != "*").then(|| (true, network.to_owned()));
            rules.push(Rule { transport: TCP, destination, ..from(Verdict::Jump(Chain::Redirect)) });
        }
        rules.push(from(Verdict::Return));
    }
}

/// `chain` takes what comes in by `system`, and sends it on to each of `targets` that wants it.
fn inbound(options: &Options, system: Chain, chain: Chain, targets: &[Chain], rules: &mut Vec<Rule>) {
    let to = |port: u16, verdict| Rule { transport: TCP, ports: Some((true, vec![port])), ..rule(chain, verdict) };
    rules.push(to(options.tunnel_port, Verdict::Return));
    let ports: Vec<&str> = given(&options.inbound_ports).collect();
    if ports.is_empty() {
        return;
    }
    rules.push(Rule { transport: TCP, ..rule(system, Verdict::Jump(chain)) });
    let known = |target: &Chain, base: Rule| Rule { known: *target == Chain::Divert, ..base };
    if ports.contains(&"*") {
        rules.extend(numbers(&options.inbound_exclude).map(|port| to(port, Verdict::Return)));
        let jump = |target: &Chain| Rule { transport: TCP, ..rule(chain, Verdict::Jump(*target)) };
        rules.extend(targets.iter().map(|target| known(target, jump(target))));
    } else {
        for port in numbers(&options.inbound_ports) {
            rules.extend(targets.iter().map(|target| known(target, to(port, Verdict::Jump(*target)))));
        }
    }
}

fn outbound(options: &Options, family: Family, rules: &mut Vec<Rule>) {
    let out = |verdict| rule(Chain::Out, verdict);
    for port in numbers(&options.outbound_ports_exclude) {
        rules.push(Rule { transport: TCP, ports: Some((true, vec![port])), ..out(Verdict::Return) });
    }
    let lo = || Some("lo".to_owned());
    rules.push(Rule { out: lo(), source: Some(family.passthrough_source().to_owned()), ..out(Verdict::Return) });
    if options.is_transparent() {
        // The proxy calling the application for its client.
        rules.push(Rule { mark: Some(options.mark()), ..out(Verdict::Return) });
    }
    let uids = options.uids.iter().map(|uid| (Owner::Uid(*uid), Owner::NotUid(*uid)));
    let gids = options.gids.iter().map(|gid| (Owner::Gid(*gid), Owner::NotGid(*gid)));
    let mut others = Vec::new();
    for (own, other) in uids.chain(gids) {
        // The proxy calling its own workload by its service: as if it came from outside.
        let not_own = if options.redirect_dns { vec![DNS, options.tunnel_port] } else { vec![options.tunnel_port] };
        rules.push(Rule {
            transport: TCP,
            out: lo(),
            destination: Some((false, family.loopback().to_owned())),
            ports: Some((false, not_own)),
            owner: Some(own),
            ..out(Verdict::Jump(Chain::InRedirect))
        });
        // The application calling itself; a name server on this host is captured all the same.
        let itself = Rule { out: lo(), owner: Some(other), ..out(Verdict::Return) };
        let itself = match options.redirect_dns {
            true => Rule { transport: TCP, ports: Some((false, vec![DNS])), ..itself },
            false => itself,
        };
        let rest = [itself, Rule { owner: Some(own), ..out(Verdict::Return) }];
        // A proxy with TPROXY is root: known by its group, it would be another by its user.
        if options.is_transparent() { others.extend(rest) } else { rules.extend(rest) }
    }
    rules.extend(others);
    if options.redirect_dns {
        let captured = Rule { transport: TCP, ports: Some((true, vec![DNS])), ..out(TO_DNS) };
        rules.extend(name_servers(options, family).map(|destination| Rule { destination, ..captured.clone() }));
    }
    rules.push(Rule { destination: Some((true, family.loopback().to_owned())), ..out(Verdict::Return) });
    for network in family.networks(&options.outbound_exclude) {
        rules.push(Rule { destination: Some((true, network.to_owned())), ..out(Verdict::Return) });
    }
    for port in numbers(&options.outbound_ports) {
        rules.push(Rule { transport: TCP, ports: Some((true, vec![port])), ..out(Verdict::Jump(Chain::Redirect)) });
    }
    for network in family.networks(&options.outbound_networks) {
        let destination = (network != "*").then(|| (true, network.to_owned()));
        rules.push(Rule { transport: TCP, destination, ..out(Verdict::Jump(Chain::Redirect)) });
    }
}

const TO_DNS: Verdict = Verdict::RedirectTo(api::port::DNS);

/// The name servers whose queries are captured, as destinations; none stands for all.
fn name_servers(options: &Options, family: Family) -> impl Iterator<Item = Option<(bool, String)>> {
    let own = options.name_servers.iter().filter(move |server| server.is_ipv6() == (family == Family::Six));
    let length = if family == Family::Six { 128 } else { 32 };
    let each = own.map(move |server| Some((true, format!("{server}/{length}"))));
    let all = options.capture_all_dns.then_some(None);
    each.filter(|_| !options.capture_all_dns).chain(all)
}

fn owners(options: &Options) -> impl Iterator<Item = Owner> {
    options.uids.iter().map(|uid| Owner::Uid(*uid)).chain(options.gids.iter().map(|gid| Owner::Gid(*gid)))
}

/// Queries over UDP, but for the proxy's own.
fn datagrams_of_dns(options: &Options, family: Family, rules: &mut Vec<Rule>) {
    rules.push(Rule { transport: UDP, ..rule(Chain::Output, Verdict::Jump(Chain::Dns)) });
    let query = |verdict| Rule { transport: UDP, ports: Some((true, vec![DNS])), ..rule(Chain::Dns, verdict) };
    if numbers(&options.outbound_ports_exclude).any(|port| port == DNS) {
        rules.push(query(Verdict::Return));
    }
    rules.extend(owners(options).map(|owner| Rule { owner: Some(owner), ..query(Verdict::Return) }));
    rules.extend(name_servers(options, family).map(|destination| Rule { destination, ..query(TO_DNS) }));
}

/// The workload's query and the proxy's own may have the same addresses and ports: they are kept apart.
fn zones_of_dns(options: &Options, family: Family, rules: &mut Vec<Rule>) {
    rules.push(Rule { transport: UDP, ..rule(Chain::RawOutput, Verdict::Jump(Chain::RawQueries)) });
    rules.push(Rule { transport: UDP, ..rule(Chain::RawPrerouting, Verdict::Jump(Chain::RawAnswers)) });
    let of = |chain, verdict| Rule { transport: UDP, ..rule(chain, verdict) };
    let query = |verdict| Rule { ports: Some((true, vec![DNS])), ..of(Chain::RawQueries, verdict) };
    for owner in owners(options).map(Some) {
        rules.push(Rule { owner, ..query(Verdict::Zone(PROXYS)) });
        rules.push(Rule { owner, ..query(Verdict::Return) });
        let source_port = Some(api::port::DNS);
        rules.push(Rule { owner, source_port, ..of(Chain::RawQueries, Verdict::Zone(WORKLOADS)) });
    }
    for server in name_servers(options, family) {
        rules.push(Rule { destination: server.clone(), ..query(Verdict::Zone(WORKLOADS)) });
        let source = server.map(|(_, network)| network);
        rules.push(Rule { source, source_port: Some(DNS), ..of(Chain::RawAnswers, Verdict::Zone(PROXYS)) });
    }
}

fn numbers(list: &[String]) -> impl Iterator<Item = u16> {
    given(list).filter_map(|port| port.parse().ok())
}
