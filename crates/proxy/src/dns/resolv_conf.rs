//! `resolv.conf`: who is asked for names, and what is tried after names that are not whole (resolv.conf(5)).

use std::net::IpAddr;

/// Where programs find it.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What programs go by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers, in the order in which they are asked.
    pub servers: Vec<IpAddr>,
    /// Suffixes, in the order in which they are tried, in lower case and without a dot at the end.
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Reads the file's text. Lines that are not understood are left out, as by the C library.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
            match words.next() {
                // A scope (`fe80::1%eth0`) is of no use without its interface.
                Some("nameserver") => conf.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok())),
                // The last of these lines counts.
                Some("search" | "domain") => {
                    let whole = |word: &str| word.trim_end_matches('.').to_ascii_lowercase();
                    conf.search = words.map(whole).filter(|word| !word.is_empty()).collect();
                }
                _ => {}
            }
        }
        conf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_suffixes_are_found() {
        let text = "# by the kubelet\nsearch old\nnameserver 10.96.0.10\n nameserver\tfd00::a\nnameserver none\n\
                    search Shop.svc.cluster.local. svc.cluster.local\noptions ndots:5\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(conf.servers, ["10.96.0.10".parse::<IpAddr>().unwrap(), "fd00::a".parse().unwrap()]);
        assert_eq!(conf.search, ["shop.svc.cluster.local", "svc.cluster.local"]);
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
    }
}
