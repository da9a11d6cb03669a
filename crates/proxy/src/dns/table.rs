//! The table of names, and what it has for a question: pure.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::xds::nds::NameTable;

/// What shorter spellings of names depend on.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// Namespace of the workload.
    pub(super) namespace: String,
    /// What follows the namespace in the names of services: `svc.cluster.local`.
    pub(super) domain: String,
    /// The suffix that programs try first.
    pub(super) search: Option<String>,
}

/// Names in lower case, without a dot at the end.
#[derive(Debug, Default)]
pub(super) struct Table {
    names: HashMap<Box<str>, Entry>,
    has_wildcards: bool,
}

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) four: Box<[Ipv4Addr]>,
    pub(super) six: Box<[Ipv6Addr]>,
    /// A Kubernetes Service has shorter names too.
    kubernetes: bool,
}

/// What the table has for a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found<'a> {
    pub(super) entry: &'a Entry,
    /// The name that was meant, where the one asked for is that with a suffix.
    pub(super) meant: Option<&'a str>,
}

impl Table {
    /// Reads the control plane's table.
    ///
    /// # Errors
    /// An address is none; a sentence.
    pub(super) fn new(written: NameTable) -> Result<Self, String> {
        let mut table = Self::default();
        let mut others = Vec::new();
        for (name, info) in written.table {
            let (mut four, mut six) = (Vec::new(), Vec::new());
            for text in &info.ips {
                match text.parse() {
                    Ok(IpAddr::V4(address)) => four.push(address),
                    Ok(IpAddr::V6(address)) => six.push(address),
                    Err(_) => return Err(format!("the name {name:?} has {text:?}, which is not an IP address")),
                }
            }
            if four.is_empty() && six.is_empty() {
                continue;
            }
            let kubernetes = info.registry == "Kubernetes";
            let entry = || Entry { four: four.clone().into(), six: six.clone().into(), kubernetes };
            others.extend(info.alt_hosts.iter().map(|other| (spelled(other), entry())));
            table.names.insert(spelled(&name), entry());
        }
        // A name of its own counts over another's further spelling.
        for (name, entry) in others {
            table.names.entry(name).or_insert(entry);
        }
        table.has_wildcards = table.names.keys().any(|name| name.starts_with("*."));
        Ok(table)
    }

    /// How many names.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// What it has for a name in lower case without a dot at the end.
    pub(super) fn find<'a>(&'a self, name: &'a str, own: &Own) -> Option<Found<'a>> {
        // Programs that take a name for a part try it with suffixes first: they are told the whole one at once.
        let suffixed = || {
            let search = own.search.as_deref()?;
            name.strip_suffix(search)?.strip_suffix('.')
        };
        if let Some(entry) = self.exactly(name, own) {
            return Some(Found { entry, meant: None });
        }
        let meant = suffixed();
        if let Some((meant, entry)) = meant.and_then(|meant| Some((meant, self.exactly(meant, own)?))) {
            return Some(Found { entry, meant: Some(meant) });
        }
        if !self.has_wildcards {
            return None;
        }
        if let Some((meant, entry)) = meant.and_then(|meant| Some((meant, self.by_wildcard(meant)?))) {
            return Some(Found { entry, meant: Some(meant) });
        }
        Some(Found { entry: self.by_wildcard(name)?, meant: None })
    }

    /// A name as it stands in the table, or a shorter one of a Kubernetes Service: `NAME`, `NAME.NAMESPACE`,
    /// `NAME.NAMESPACE.svc`.
    fn exactly(&self, name: &str, own: &Own) -> Option<&Entry> {
        if let Some(entry) = self.names.get(name) {
            return Some(entry);
        }
        let (first, rest) = own.domain.split_once('.').unwrap_or((&own.domain, ""));
        let longer = |whole: String| self.names.get(whole.as_str()).filter(|entry| entry.kubernetes);
        let in_cluster = || {
            let is_cut = !rest.is_empty() && name.strip_suffix(first).is_some_and(|name| name.ends_with('.'));
            is_cut.then(|| longer(format!("{name}.{rest}"))).flatten()
        };
        longer(format!("{name}.{}", own.domain))
            .or_else(in_cluster)
            .or_else(|| longer(format!("{name}.{}.{}", own.namespace, own.domain)))
    }

    /// The longest wildcard that covers a name.
    fn by_wildcard(&self, name: &str) -> Option<&Entry> {
        let mut rest = name;
        while let Some((_, after)) = rest.split_once('.') {
            if let Some(entry) = self.names.get(format!("*.{after}").as_str()) {
                return Some(entry);
            }
            rest = after;
        }
        None
    }
}

fn spelled(name: &str) -> Box<str> {
    name.trim_end_matches('.').to_ascii_lowercase().into()
}

#[cfg(test)]
mod tests {
    use api::xds::nds::name_table::NameInfo;

    use super::*;

    fn own() -> Own {
        Own {
            namespace: "shop".into(),
            domain: "svc.cluster.local".into(),
            search: Some("shop.svc.cluster.local".into()),
        }
    }

    fn table() -> Table {
        let info = |ips: &str, registry: &str, others: &str| NameInfo {
            ips: ips.split_whitespace().map(str::to_owned).collect(),
            registry: registry.to_owned(),
            alt_hosts: others.split_whitespace().map(str::to_owned).collect(),
            ..NameInfo::default()
        };
        let names = [
            ("cart.shop.svc.cluster.local", info("10.96.0.1 fd00::1", "Kubernetes", "")),
            ("cart.other.svc.cluster.local", info("10.96.0.2", "Kubernetes", "")),
            ("db-0.db.shop.svc.cluster.local", info("10.1.0.7", "Kubernetes", "")),
            ("api.example.com", info("240.240.0.1", "External", "api.example.net")),
            ("*.example.com", info("240.240.0.2", "External", "")),
            ("*.deep.example.com", info("240.240.0.3", "External", "")),
            ("empty.example.com", info("", "External", "")),
        ];
        Table::new(NameTable { table: names.into_iter().map(|(name, info)| (name.to_owned(), info)).collect() })
            .unwrap()
    }

    #[test]
    fn every_spelling_leads_to_its_name() {
        let (table, own) = (table(), own());
        for (asked, first, meant) in [
            ("cart", "10.96.0.1", None),
            ("cart.shop", "10.96.0.1", None),
            ("cart.shop.svc", "10.96.0.1", None),
            ("cart.shop.svc.cluster.local", "10.96.0.1", None),
            ("cart.other", "10.96.0.2", None),
            ("cart.other.svc", "10.96.0.2", None),
            ("db-0.db", "10.1.0.7", None),
            ("db-0.db.shop.svc", "10.1.0.7", None),
            // With the suffix that programs add.
            ("cart.other.shop.svc.cluster.local", "10.96.0.2", Some("cart.other")),
            ("cart.shop.svc.cluster.local.shop.svc.cluster.local", "10.96.0.1", Some("cart.shop.svc.cluster.local")),
            ("api.example.com.shop.svc.cluster.local", "240.240.0.1", Some("api.example.com")),
            ("x.example.com.shop.svc.cluster.local", "240.240.0.2", Some("x.example.com")),
            ("api.example.com", "240.240.0.1", None),
            ("api.example.net", "240.240.0.1", None),
            // The longest wildcard, of any number of labels.
            ("a.b.example.com", "240.240.0.2", None),
            ("a.deep.example.com", "240.240.0.3", None),
            ("deep.example.com", "240.240.0.2", None),
        ] {
            let found = table.find(asked, &own).unwrap_or_else(|| panic!("{asked} is not found"));
            assert_eq!((found.entry.four[0].to_string().as_str(), found.meant), (first, meant), "{asked}");
        }
        assert_eq!(table.find("cart", &own).unwrap().entry.six.len(), 1);
    }

    #[test]
    fn other_names_are_left_to_others() {
        let (table, own) = (table(), own());
        for asked in
            ["", "example.com", "com", "cart.third", "cart.shop.svc.cluster", "cluster.local", "shop.svc.cluster.local"]
        {
            assert_eq!(table.find(asked, &own), None, "{asked}");
        }
        // Another namespace's own short name is not ours.
        let other = Own { namespace: "other".into(), ..own };
        assert_eq!(table.find("cart", &other).unwrap().entry.four[0].to_string(), "10.96.0.2");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let info = NameInfo { ips: vec!["10.0.0.0/8".into()], ..NameInfo::default() };
        let refused = Table::new(NameTable { table: [("a".to_owned(), info)].into() }).unwrap_err();
        assert!(refused.contains("10.0.0.0/8"), "{refused}");
    }
}
