//! The rules as nftables or iptables read them.

use std::fmt::Write;

use super::rules::{Chain, Family, Options, Owner, Rule, Transport, Verdict, rules};

/// Our table in nftables.
pub(super) const TABLE: &str = "istio-proxy-nat";

/// Who takes the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `nft -f -`
    Nft,
    /// `iptables-restore --noflush`, `ip6tables-restore --noflush`
    Iptables,
    /// The same for kernels without nf_tables, under the name that distributions give it.
    IptablesLegacy,
}

impl Program {
    /// Its name.
    pub fn name(self, family: Family) -> &'static str {
        match (self, family) {
            (Program::Nft, _) => "nft",
            (Program::Iptables, Family::Four) => "iptables-restore",
            (Program::Iptables, Family::Six) => "ip6tables-restore",
            (Program::IptablesLegacy, Family::Four) => "iptables-legacy-restore",
            (Program::IptablesLegacy, Family::Six) => "ip6tables-legacy-restore",
        }
    }

    /// The program that takes and shows single rules.
    pub(super) fn single(self, family: Family) -> &'static str {
        match (self, family) {
            (Program::Nft, _) => "nft",
            (Program::Iptables, Family::Four) => "iptables",
            (Program::Iptables, Family::Six) => "ip6tables",
            (Program::IptablesLegacy, Family::Four) => "iptables-legacy",
            (Program::IptablesLegacy, Family::Six) => "ip6tables-legacy",
        }
    }
}

/// A table of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Nat,
    Raw,
    Mangle,
}

impl Table {
    /// Its name.
    pub(super) fn word(self) -> &'static str {
        match self {
            Table::Nat => "nat",
            Table::Raw => "raw",
            Table::Mangle => "mangle",
        }
    }
}

/// The chains that are not the system's.
pub(super) const OURS: [(Table, Chain); 12] = [
    (Table::Nat, Chain::Inbound),
    (Table::Nat, Chain::InRedirect),
    (Table::Nat, Chain::Out),
    (Table::Nat, Chain::Redirect),
    (Table::Nat, Chain::Dns),
    (Table::Raw, Chain::RawQueries),
    (Table::Raw, Chain::RawAnswers),
    (Table::Mangle, Chain::Invalid),
    (Table::Mangle, Chain::MangleInbound),
    (Table::Mangle, Chain::MangleOut),
    (Table::Mangle, Chain::Divert),
    (Table::Mangle, Chain::Tproxy),
];

fn table(chain: Chain) -> Table {
    match chain {
        Chain::RawPrerouting | Chain::RawOutput | Chain::RawAnswers | Chain::RawQueries => Table::Raw,
        Chain::ManglePrerouting
        | Chain::Invalid
        | Chain::MangleOutput
        | Chain::MangleInbound
        | Chain::MangleOut
        | Chain::Divert
        | Chain::Tproxy => Table::Mangle,
        _ => Table::Nat,
    }
}

/// A chain's name in iptables.
pub(super) fn name(chain: Chain) -> &'static str {
    match chain {
        Chain::Prerouting | Chain::RawPrerouting | Chain::ManglePrerouting => "PREROUTING",
        Chain::Output | Chain::RawOutput | Chain::MangleOutput => "OUTPUT",
        Chain::Inbound | Chain::MangleInbound => "ISTIO_INBOUND",
        Chain::InRedirect => "ISTIO_IN_REDIRECT",
        Chain::Out | Chain::MangleOut => "ISTIO_OUTPUT",
        Chain::Divert => "ISTIO_DIVERT",
        Chain::Tproxy => "ISTIO_TPROXY",
        Chain::Redirect => "ISTIO_REDIRECT",
        Chain::Dns | Chain::RawQueries => "ISTIO_OUTPUT_DNS",
        Chain::RawAnswers => "ISTIO_PREROUTING_DNS",
        Chain::Invalid => "ISTIO_DROP",
    }
}

/// A chain's name in nftables, where all of ours stand in one table.
fn nft_name(chain: Chain) -> String {
    match table(chain) {
        Table::Nat => name(chain).to_owned(),
        other => format!("{}_{}", name(chain), other.word().to_uppercase()),
    }
}

/// Where the system calls a chain; none for chains that are jumped to. -300, -150 and -100 are where connections are not yet
/// known, where packets are changed (`mangle`) and where destinations are rewritten (`dstnat`).
fn hook(chain: Chain) -> Option<&'static str> {
    match chain {
        Chain::Prerouting => Some("type nat hook prerouting priority -100; policy accept;"),
        Chain::Output => Some("type nat hook output priority -100; policy accept;"),
        Chain::RawPrerouting => Some("type filter hook prerouting priority -300; policy accept;"),
        Chain::RawOutput => Some("type filter hook output priority -300; policy accept;"),
        Chain::ManglePrerouting => Some("type filter hook prerouting priority -150; policy accept;"),
        // A packet whose mark changes there is routed again.
        Chain::MangleOutput => Some("type route hook output priority -150; policy accept;"),
        _ => None,
    }
}

/// The text for a program. Installing it twice is installing it once.
pub fn render(options: &Options, program: Program, family: Family) -> String {
    let rules = rules(options, family);
    match program {
        Program::Nft => nft(&rules, family),
        Program::Iptables | Program::IptablesLegacy => iptables(&rules),
    }
}

/// What nft calls a family, also in rules.
pub(super) fn word(family: Family) -> &'static str {
    match family {
        Family::Four => "ip",
        Family::Six => "ip6",
    }
}

fn nft(rules: &[Rule], family: Family) -> String {
    let word = word(family);
    // Made, then removed, then made: one transaction, whether it was there before or not.
    let mut text = format!("table {word} {TABLE} {{}}\ndelete table {word} {TABLE}\ntable {word} {TABLE} {{\n");
    let nat = [Chain::Prerouting, Chain::Output];
    let system = [Chain::RawPrerouting, Chain::RawOutput, Chain::ManglePrerouting, Chain::MangleOutput];
    // What is jumped to stands first.
    let first = [Chain::Redirect, Chain::InRedirect, Chain::Inbound, Chain::Out];
    let rest = [Chain::Dns, Chain::RawQueries, Chain::RawAnswers, Chain::Invalid];
    let transparent = [Chain::Divert, Chain::Tproxy, Chain::MangleInbound, Chain::MangleOut];
    for chain in first.into_iter().chain(rest).chain(transparent).chain(nat).chain(system) {
        let of_chain = || rules.iter().filter(|rule| rule.chain == chain);
        if table(chain) != Table::Nat && of_chain().next().is_none() {
            continue;
        }
        let _ = writeln!(text, "  chain {} {{", nft_name(chain));
        if let Some(hook) = hook(chain) {
            let _ = writeln!(text, "    {hook}");
        }
        for rule in of_chain() {
            let _ = writeln!(text, "    {}", nft_rule(rule, word));
        }
        text += "  }\n";
    }
    text + "}\n"
}

fn nft_rule(rule: &Rule, family: &str) -> String {
    let mut words = Vec::new();
    words.extend(rule.input.as_ref().map(|name| format!("iifname \"{name}\"")));
    words.extend(rule.out.as_ref().map(|name| format!("oifname \"{name}\"")));
    words.extend(rule.source.as_ref().map(|network| format!("{family} saddr {network}")));
    words.extend(
        rule.destination
            .as_ref()
            .map(|(is, network)| format!("{family} daddr {}{network}", if *is { "" } else { "!= " })),
    );
    let transport = rule.transport.map(transport);
    words.extend(rule.source_port.map(|port| format!("{} sport {port}", transport.unwrap_or("tcp"))));
    words.extend(rule.ports.as_ref().map(|(is, ports)| {
        let list = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        let list = if ports.len() == 1 { list } else { format!("{{ {list} }}") };
        format!("{} dport {}{list}", transport.unwrap_or("tcp"), if *is { "" } else { "!= " })
    }));
    if let (Some(transport), None, None) = (transport, &rule.ports, rule.source_port) {
        words.push(format!("meta l4proto {transport}"));
    }
    if rule.invalid {
        words.push("ct state invalid".to_owned());
    }
    if rule.known {
        words.push("ct state established,related".to_owned());
    }
    words.extend(rule.mark.map(|mark| format!("meta mark {mark}")));
    words.extend(rule.connection_mark.map(|mark| format!("ct mark {mark}")));
    words.extend(rule.owner.map(|owner| match owner {
        Owner::Uid(uid) => format!("meta skuid {uid}"),
        Owner::NotUid(uid) => format!("meta skuid != {uid}"),
        Owner::Gid(gid) => format!("meta skgid {gid}"),
        Owner::NotGid(gid) => format!("meta skgid != {gid}"),
    }));
    words.push(match rule.verdict {
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {}", nft_name(chain)),
        Verdict::RedirectTo(port) => format!("redirect to :{port}"),
        Verdict::Zone(zone) => format!("ct zone set {zone}"),
        Verdict::Drop => "drop".to_owned(),
        Verdict::TproxyTo { port, mark } => format!("tproxy to :{port} meta mark set {mark} accept"),
        Verdict::Mark(mark) => format!("meta mark set {mark}"),
        Verdict::SaveMark => "ct mark set meta mark".to_owned(),
        Verdict::RestoreMark => "meta mark set ct mark".to_owned(),
        Verdict::Accept => "accept".to_owned(),
    });
    words.join(" ")
}

fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

fn iptables(rules: &[Rule]) -> String {
    let mut text = String::new();
    for table_of in [Table::Nat, Table::Raw, Table::Mangle] {
        let of_table: Vec<&Rule> = rules.iter().filter(|rule| table(rule.chain) == table_of).collect();
        if of_table.is_empty() {
            continue;
        }
        let _ = writeln!(text, "*{}", table_of.word());
        // Most of those in `mangle` are for one of several purposes.
        let is_wanted = |chain: Chain| table_of != Table::Mangle || rules.iter().any(|rule| rule.chain == chain);
        for (_, chain) in OURS.iter().filter(|(table, chain)| *table == table_of && is_wanted(*chain)) {
            let _ = writeln!(text, ":{} - [0:0]", name(*chain));
        }
        for rule in of_table {
            let _ = writeln!(text, "-A {}{}", name(rule.chain), iptables_rule(rule));
        }
        text += "COMMIT\n";
    }
    text
}

fn iptables_rule(rule: &Rule) -> String {
    let mut text = String::new();
    let not = |is: bool| if is { "" } else { " !" };
    if let Some(name) = &rule.input {
        let _ = write!(text, " -i {name}");
    }
    if let Some(name) = &rule.out {
        let _ = write!(text, " -o {name}");
    }
    if let Some(network) = &rule.source {
        let _ = write!(text, " -s {network}");
    }
    if let Some((is, network)) = &rule.destination {
        let _ = write!(text, "{} -d {network}", not(*is));
    }
    let transport = rule.transport.map(transport);
    if let Some(transport) = transport {
        let _ = write!(text, " -p {transport}");
    }
    if let Some(port) = rule.source_port {
        let _ = write!(text, " -m {} --sport {port}", transport.unwrap_or("tcp"));
    }
    match &rule.ports {
        Some((is, ports)) if ports.len() == 1 => {
            let _ = write!(text, " -m {}{} --dport {}", transport.unwrap_or("tcp"), not(*is), ports[0]);
        }
        Some((is, ports)) => {
            let list = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
            let _ = write!(text, " -m multiport{} --dports {list}", not(*is));
        }
        None => {}
    }
    if rule.invalid {
        text += " -m conntrack --ctstate INVALID";
    }
    if rule.known {
        text += " -m conntrack --ctstate RELATED,ESTABLISHED";
    }
    if let Some(mark) = rule.mark {
        let _ = write!(text, " -m mark --mark {mark}");
    }
    if let Some(mark) = rule.connection_mark {
        let _ = write!(text, " -m connmark --mark {mark}");
    }
    match rule.owner {
        Some(Owner::Uid(uid)) => text += &format!(" -m owner --uid-owner {uid}"),
        Some(Owner::NotUid(uid)) => text += &format!(" -m owner ! --uid-owner {uid}"),
        Some(Owner::Gid(gid)) => text += &format!(" -m owner --gid-owner {gid}"),
        Some(Owner::NotGid(gid)) => text += &format!(" -m owner ! --gid-owner {gid}"),
        None => {}
    }
    match rule.verdict {
        Verdict::Return => text + " -j RETURN",
        Verdict::Jump(chain) => text + " -j " + name(chain),
        Verdict::RedirectTo(port) => text + &format!(" -j REDIRECT --to-ports {port}"),
        Verdict::Zone(zone) => text + &format!(" -j CT --zone {zone}"),
        Verdict::Drop => text + " -j DROP",
        Verdict::TproxyTo { port, mark } => {
            text + &format!(" -j TPROXY --on-port {port} --tproxy-mark {mark}/0xffffffff")
        }
        Verdict::Mark(mark) => text + &format!(" -j MARK --set-mark {mark}"),
        Verdict::SaveMark => text + " -j CONNMARK --save-mark",
        Verdict::RestoreMark => text + " -j CONNMARK --restore-mark",
        Verdict::Accept => text + " -j ACCEPT",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &str) -> Options {
        Line::try_parse_from(std::iter::once("init").chain(line.split_whitespace())).unwrap().options
    }

    fn of_chain(text: &str, chain: &str) -> Vec<String> {
        let start = format!("-A {chain} ");
        text.lines().filter_map(|line| line.strip_prefix(&start)).map(str::to_owned).collect()
    }

    #[test]
    fn the_injected_pods_rules_stand_in_istios_order() {
        let text = render(
            &options("-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -b * -d 15090,15021,15020"),
            Program::Iptables,
            Family::Four,
        );
        assert_eq!(
            of_chain(&text, "ISTIO_INBOUND"),
            [
                "-p tcp -m tcp --dport 15008 -j RETURN",
                "-p tcp -m tcp --dport 15090 -j RETURN",
                "-p tcp -m tcp --dport 15021 -j RETURN",
                "-p tcp -m tcp --dport 15020 -j RETURN",
                "-p tcp -j ISTIO_IN_REDIRECT"
            ]
        );
        let out = of_chain(&text, "ISTIO_OUTPUT");
        assert_eq!(out[0], "-o lo -s 127.0.0.6/32 -j RETURN");
        assert_eq!(
            out[1],
            "-o lo ! -d 127.0.0.1/32 -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT"
        );
        assert_eq!(out[2], "-o lo -m owner ! --uid-owner 1337 -j RETURN");
        assert_eq!(out[3], "-m owner --uid-owner 1337 -j RETURN");
        assert_eq!(out[7], "-d 127.0.0.1/32 -j RETURN");
        assert_eq!(out.last().unwrap(), "-p tcp -j ISTIO_REDIRECT");
    }

    #[test]
    fn exclusions_come_before_what_captures() {
        let text = render(&options("-o 25 -x 10.1.0.0/16 -q 99 -i 10.0.0.0/8"), Program::Nft, Family::Four);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} is not in {text}"));
        assert!(at("tcp dport 25 return") < at("ip daddr 10.1.0.0/16 return"));
        assert!(at("ip daddr 10.1.0.0/16 return") < at("tcp dport 99 jump ISTIO_REDIRECT"));
        assert!(
            at("tcp dport 99 jump ISTIO_REDIRECT") < at("ip daddr 10.0.0.0/8 meta l4proto tcp jump ISTIO_REDIRECT")
        );
    }

    #[test]
    fn each_family_has_its_own_networks_and_loopback() {
        let options = options("-x 10.1.0.0/16,fd01::/16 -i 10.0.0.0/8,fd00::/8");
        let (four, six) = (render(&options, Program::Nft, Family::Four), render(&options, Program::Nft, Family::Six));
        for (text, own, other) in [
            (&four, ["ip daddr 10.1.0.0/16 return", "ip saddr 127.0.0.6/32 return"], "fd0"),
            (&six, ["ip6 daddr fd01::/16 return", "ip6 saddr ::6/128 return"], "10."),
        ] {
            own.iter().for_each(|part| assert!(text.contains(part), "{part} is not in {text}"));
            assert!(!text.contains(other), "{text}");
        }
        assert!(
            six.contains("ip6 daddr != ::1/128 tcp dport != 15008 meta skuid 1337 jump ISTIO_IN_REDIRECT"),
            "{six}"
        );
        // All of one family only: nothing of the other is captured.
        let only_four = render(&super::tests::options("-i 10.0.0.0/8"), Program::Iptables, Family::Six);
        assert!(
            of_chain(&only_four, "ISTIO_OUTPUT").iter().all(|rule| !rule.contains("ISTIO_REDIRECT")),
            "{only_four}"
        );
    }

    #[test]
    fn queries_to_name_servers_come_to_the_proxy_but_for_its_own() {
        let mut options = options("--redirect-dns");
        options.name_servers = vec!["10.96.0.10".parse().unwrap(), "fd96::a".parse().unwrap()];
        let text = render(&options, Program::Iptables, Family::Four);
        let (nat, raw) = text.split_once("*raw\n").unwrap();
        assert_eq!(
            of_chain(nat, "ISTIO_OUTPUT_DNS"),
            [
                "-p udp -m udp --dport 53 -m owner --uid-owner 1337 -j RETURN",
                "-p udp -m udp --dport 53 -m owner --gid-owner 1337 -j RETURN",
                "-d 10.96.0.10/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053",
            ]
        );
        let out = of_chain(nat, "ISTIO_OUTPUT");
        assert_eq!(
            out[1],
            "-o lo ! -d 127.0.0.1/32 -p tcp -m multiport ! --dports 53,15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT"
        );
        assert_eq!(out[2], "-o lo -p tcp -m tcp ! --dport 53 -m owner ! --uid-owner 1337 -j RETURN");
        assert_eq!(out[7], "-d 10.96.0.10/32 -p tcp -m tcp --dport 53 -j REDIRECT --to-ports 15053");
        assert_eq!(out[8], "-d 127.0.0.1/32 -j RETURN");
        let queries = of_chain(raw, "ISTIO_OUTPUT_DNS");
        assert_eq!(queries[0], "-p udp -m udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1");
        assert_eq!(queries[2], "-p udp -m udp --sport 15053 -m owner --uid-owner 1337 -j CT --zone 2");
        assert_eq!(queries[6], "-d 10.96.0.10/32 -p udp -m udp --dport 53 -j CT --zone 2");
        assert_eq!(of_chain(raw, "ISTIO_PREROUTING_DNS"), ["-s 10.96.0.10/32 -p udp -m udp --sport 53 -j CT --zone 1"]);
        let six = render(&options, Program::Nft, Family::Six);
        for part in [
            "ip6 daddr fd96::a/128 udp dport 53 redirect to :15053",
            "ip6 saddr fd96::a/128 udp sport 53 ct zone set 1",
        ] {
            assert!(six.contains(part), "{part} is not in {six}");
        }
        // Whatever the name server.
        let all = render(&super::tests::options("--redirect-dns --capture-all-dns"), Program::Nft, Family::Four);
        assert!(all.contains("    udp dport 53 redirect to :15053\n"), "{all}");
        assert!(all.contains("    tcp dport 53 redirect to :15053\n"), "{all}");
        // Not asked for, there is nothing of it.
        let none = render(&super::tests::options(""), Program::Nft, Family::Four);
        assert!(!none.contains("15053") && !none.contains("ct zone"), "{none}");
    }

    #[test]
    fn packets_without_a_connection_are_dropped_if_asked_for() {
        let options = options("--drop-invalid");
        let text = render(&options, Program::Iptables, Family::Four);
        assert!(text.contains("*mangle\n:ISTIO_DROP - [0:0]\n-A PREROUTING -m conntrack --ctstate INVALID -j ISTIO_DROP\n-A ISTIO_DROP -j DROP\nCOMMIT"), "{text}");
        assert!(render(&options, Program::Nft, Family::Six).contains("ct state invalid jump ISTIO_DROP_MANGLE"));
    }

    #[test]
    fn with_tproxy_inbound_connections_keep_their_addresses() {
        let options = options("-m TPROXY -d 15090 -c cni1 -k vm1 --drop-invalid");
        let text = render(&options, Program::Iptables, Family::Four);
        let (nat, mangle) = text.split_once("*mangle\n").unwrap();
        assert!(!nat.contains("-A PREROUTING -p tcp") && of_chain(nat, "ISTIO_INBOUND").is_empty(), "{nat}");
        assert_eq!(of_chain(mangle, "ISTIO_DIVERT"), ["-j MARK --set-mark 1337", "-j ACCEPT"]);
        assert_eq!(
            of_chain(mangle, "ISTIO_TPROXY"),
            ["! -d 127.0.0.1/32 -p tcp -j TPROXY --on-port 15006 --tproxy-mark 1337/0xffffffff"]
        );
        // What belongs to no connection is dropped before it could be taken for a new one.
        let first = of_chain(mangle, "PREROUTING");
        assert_eq!(first, ["-m conntrack --ctstate INVALID -j ISTIO_DROP", "-p tcp -j ISTIO_INBOUND"]);
        assert_eq!(
            of_chain(mangle, "ISTIO_INBOUND"),
            [
                "-i cni1 -j RETURN",
                "-i vm1 -j RETURN",
                "-i lo -j RETURN",
                "-p tcp -m tcp --dport 15008 -j RETURN",
                "-p tcp -m tcp --dport 15090 -j RETURN",
                "-p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT",
                "-p tcp -j ISTIO_TPROXY",
            ]
        );
        assert_eq!(
            of_chain(mangle, "ISTIO_OUTPUT"),
            [
                "-o cni1 -p tcp -j RETURN",
                "-p tcp -m mark --mark 1337 -j CONNMARK --save-mark",
                "-p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark",
            ]
        );
        // Root of the proxy's group is the proxy: what is known by its group comes before what is not known by its user.
        let out = of_chain(nat, "ISTIO_OUTPUT");
        assert_eq!(out[1], "-m mark --mark 1337 -j RETURN");
        let at = |part: &str| out.iter().position(|rule| rule.contains(part)).unwrap();
        assert!(at("--gid-owner 1337 -j ISTIO_IN_REDIRECT") < at("! --uid-owner 1337 -j RETURN"), "{out:?}");
        assert!(at("-m owner --gid-owner 1337 -j RETURN") < at("-p tcp -j ISTIO_REDIRECT"), "{out:?}");
    }

    #[test]
    fn tproxy_is_written_for_nftables_with_the_given_mark_and_ports() {
        let text = render(&options("-m TPROXY -t 7 -r 9 -z 2 -b 80,81"), Program::Nft, Family::Six);
        for part in [
            "ip6 daddr != ::1/128 meta l4proto tcp tproxy to :2 meta mark set 7 accept",
            "tcp dport 80 ct state established,related jump ISTIO_DIVERT_MANGLE\n    tcp dport 80 jump ISTIO_TPROXY_MANGLE",
            "tcp dport 81 jump ISTIO_TPROXY_MANGLE",
            "type route hook output priority -150; policy accept;\n    meta l4proto tcp jump ISTIO_OUTPUT_MANGLE",
            "meta l4proto tcp meta mark 7 ct mark set meta mark",
            "meta l4proto tcp ct mark 7 meta mark set ct mark",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        // Without TPROXY there is nothing of it, and marks are told to be without effect.
        let redirect = options("-t 7 -r 9");
        let text = render(&redirect, Program::Nft, Family::Six);
        assert!(!text.contains("mark") && !text.contains("tproxy") && !text.contains("MANGLE"), "{text}");
        assert_eq!(redirect.without_effect(), ["-t", "-r"]);
        assert_eq!(options("-m TPROXY -t 7 -r 9").without_effect(), [""; 0]);
        assert!(options("-m TPROXY -t 7").doubt().is_some_and(|sentence| sentence.contains("1337")));
        for sure in ["-m TPROXY", "-m TPROXY -t 1337 -r 9", "-m REDIRECT -t 7"] {
            assert_eq!(options(sure).doubt(), None, "{sure}");
        }
    }

    #[test]
    fn flags_that_cannot_be_honoured_are_refused() {
        for (line, word) in [
            ("-m NONE", "TPROXY"),
            ("-m TPROXY -t 0", "mark"),
            ("-b x", "port"),
            ("-x 10.0.0.0/99", "network"),
            ("-c a;b", "interface"),
            ("-d 70000", "port"),
        ] {
            assert!(options(line).check().unwrap_err().contains(word), "{line}");
        }
        assert!(options("").check().is_ok());
    }
}
