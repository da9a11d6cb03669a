//! The rules as nftables or iptables read them.

use std::fmt::Write;

use super::rules::{Chain, Family, Options, Owner, Rule, Verdict, rules};

/// Our table in nftables.
pub(super) const TABLE: &str = "istio-proxy-nat";

/// Who takes the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `nft -f -`
    Nft,
    /// `iptables-restore --noflush`, `ip6tables-restore --noflush`
    Iptables,
}

impl Program {
    /// Its name.
    pub fn name(self, family: Family) -> &'static str {
        match (self, family) {
            (Program::Nft, _) => "nft",
            (Program::Iptables, Family::Four) => "iptables-restore",
            (Program::Iptables, Family::Six) => "ip6tables-restore",
        }
    }
}

const OURS: [Chain; 4] = [Chain::Inbound, Chain::InRedirect, Chain::Out, Chain::Redirect];

fn name(chain: Chain) -> &'static str {
    match chain {
        Chain::Prerouting => "PREROUTING",
        Chain::Output => "OUTPUT",
        Chain::Inbound => "ISTIO_INBOUND",
        Chain::InRedirect => "ISTIO_IN_REDIRECT",
        Chain::Out => "ISTIO_OUTPUT",
        Chain::Redirect => "ISTIO_REDIRECT",
    }
}

/// The text for a program. Installing it twice is installing it once.
pub fn render(options: &Options, program: Program, family: Family) -> String {
    let rules = rules(options, family);
    match program {
        Program::Nft => nft(&rules, family),
        Program::Iptables => iptables(&rules),
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
    // What is jumped to stands first.
    for chain in [Chain::Redirect, Chain::InRedirect, Chain::Inbound, Chain::Out, Chain::Prerouting, Chain::Output] {
        let _ = writeln!(text, "  chain {} {{", name(chain));
        match chain {
            // -100 is where destinations are rewritten (`dstnat`); nft knows that word for prerouting only.
            Chain::Prerouting => text += "    type nat hook prerouting priority -100; policy accept;\n",
            Chain::Output => text += "    type nat hook output priority -100; policy accept;\n",
            _ => {}
        }
        for rule in rules.iter().filter(|rule| rule.chain == chain) {
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
    words.extend(rule.port.as_ref().map(|(is, port)| format!("tcp dport {}{port}", if *is { "" } else { "!= " })));
    if rule.tcp && rule.port.is_none() {
        words.push("meta l4proto tcp".to_owned());
    }
    words.extend(rule.owner.map(|owner| match owner {
        Owner::Uid(uid) => format!("meta skuid {uid}"),
        Owner::NotUid(uid) => format!("meta skuid != {uid}"),
        Owner::Gid(gid) => format!("meta skgid {gid}"),
        Owner::NotGid(gid) => format!("meta skgid != {gid}"),
    }));
    words.push(match rule.verdict {
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {}", name(chain)),
        Verdict::RedirectTo(port) => format!("redirect to :{port}"),
    });
    words.join(" ")
}

fn iptables(rules: &[Rule]) -> String {
    let mut text = "*nat\n".to_owned();
    for chain in OURS {
        let _ = writeln!(text, ":{} - [0:0]", name(chain));
    }
    for rule in rules {
        let _ = writeln!(text, "-A {}{}", name(rule.chain), iptables_rule(rule));
    }
    text + "COMMIT\n"
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
    if rule.tcp {
        text += " -p tcp";
    }
    if let Some((is, port)) = rule.port {
        let _ = write!(text, " -m tcp{} --dport {port}", not(is));
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
    fn flags_that_cannot_be_honoured_are_refused() {
        for (line, word) in [
            ("-m TPROXY", "TPROXY"),
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
