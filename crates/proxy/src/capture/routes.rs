//! Routes of TPROXY, by rtnetlink(7): packets with the mark are this host's, whatever their destination. The same as
//! `ip rule add fwmark MARK lookup TABLE` and `ip route add local default dev lo table TABLE`.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::IpAddr;

use nix::libc;
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use super::rules::Family;

/// Attributes of rules and what a rule does (Linux `fib_rules.h`).
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FR_ACT_TO_TABLE: u8 = 1;
/// Where the rule stands: before the main table's. Rules that differ in this are different ones.
const PRIORITY: u32 = 32765;
/// Length of a message's own head and of what an error says, bytes.
const HEAD: usize = 16;
const NUMBER: usize = 4;

/// Which packets, and by which table they are routed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marked {
    pub(super) mark: u32,
    pub(super) table: u32,
    pub(super) family: Family,
}

impl Marked {
    /// Sets rule and route. Twice is once.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn install(self) -> Result<()> {
        let new = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        for (kind, body) in [(libc::RTM_NEWROUTE, self.route()?), (libc::RTM_NEWRULE, self.rule())] {
            match request(kind, new, &body) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes both, as far as they are there.
    pub(super) fn remove(self) {
        let _ = request(libc::RTM_DELRULE, 0, &self.rule());
        let _ = self.route().and_then(|route| request(libc::RTM_DELROUTE, 0, &route));
    }

    /// Whether a marked packet to this address would be this host's.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn keeps(self, address: IpAddr) -> Result<bool> {
        let mut body = self.head(if address.is_ipv4() { 32 } else { 128 });
        match address {
            IpAddr::V4(four) => attribute(&mut body, libc::RTA_DST, &four.octets()),
            IpAddr::V6(six) => attribute(&mut body, libc::RTA_DST, &six.octets()),
        }
        attribute(&mut body, libc::RTA_MARK, &self.mark.to_ne_bytes());
        let answer = request(libc::RTM_GETROUTE, 0, &body)?;
        // The kind of a route stands behind family, two lengths, type of service, table, protocol and scope.
        Ok(answer.get(7) == Some(&libc::RTN_LOCAL))
    }

    fn word(self) -> u8 {
        // Both numbers are small.
        let family = if self.family == Family::Four { libc::AF_INET } else { libc::AF_INET6 };
        family.to_le_bytes()[0]
    }

    /// What routes begin with: family, length of the destination, and nothing said of the rest.
    fn head(self, length: u8) -> Vec<u8> {
        vec![self.word(), length, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    fn route(self) -> Result<Vec<u8>> {
        let mut body = self.head(0);
        (body[5], body[6], body[7]) = (libc::RTPROT_BOOT, libc::RT_SCOPE_HOST, libc::RTN_LOCAL);
        attribute(&mut body, libc::RTA_TABLE, &self.table.to_ne_bytes());
        attribute(&mut body, libc::RTA_OIF, &if_nametoindex("lo")?.to_ne_bytes());
        Ok(body)
    }

    fn rule(self) -> Vec<u8> {
        let mut body = self.head(0);
        body[7] = FR_ACT_TO_TABLE;
        attribute(&mut body, FRA_PRIORITY, &PRIORITY.to_ne_bytes());
        attribute(&mut body, FRA_FWMARK, &self.mark.to_ne_bytes());
        attribute(&mut body, FRA_TABLE, &self.table.to_ne_bytes());
        body
    }
}

/// All values are of whole words: there is nothing to fill up.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

/// Asks the kernel; what it answers, without the message's head.
fn request(kind: u16, flags: libc::c_int, body: &[u8]) -> Result<Vec<u8>> {
    let protocol = Protocol::from(libc::NETLINK_ROUTE);
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
    // What is asked for answers by itself, all else only if told to.
    let told = if kind == libc::RTM_GETROUTE { 0 } else { libc::NLM_F_ACK };
    let flags = u16::try_from(libc::NLM_F_REQUEST | told | flags).unwrap_or_default();
    let mut message = Vec::with_capacity(HEAD + body.len());
    message.extend(u32::try_from(HEAD + body.len()).unwrap_or_default().to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Number and sender: there is only this message on this socket.
    message.extend([0; 8]);
    message.extend(body);
    // Netlink takes a message as a whole or not at all.
    let _ = socket.write(&message)?;
    let mut answer = vec![0; 4096];
    let length = socket.read(&mut answer)?;
    answer.truncate(length);
    let answered = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    if answered.map(libc::c_int::from) == Some(libc::NLMSG_ERROR) {
        let number = answer.get(HEAD..HEAD + NUMBER).and_then(|number| number.try_into().ok());
        let number = number.map(i32::from_ne_bytes).ok_or(ErrorKind::UnexpectedEof)?;
        if number != 0 {
            return Err(Error::from_raw_os_error(-number));
        }
    }
    answer.get(HEAD..).map(<[u8]>::to_vec).ok_or_else(|| ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_where_packets_go() {
        let of = |family| Marked { mark: 0x5eed, table: 133, family };
        assert!(of(Family::Four).keeps([127, 0, 0, 1].into()).unwrap());
        assert!(of(Family::Six).keeps(std::net::Ipv6Addr::LOCALHOST.into()).unwrap_or(true));
        // No host has a route there that ends at itself.
        assert!(!matches!(of(Family::Four).keeps([192, 0, 2, 1].into()), Ok(true)));
    }

    #[test]
    fn messages_are_as_long_as_they_say() {
        let rule = Marked { mark: 1337, table: 133, family: Family::Six }.rule();
        assert_eq!((rule.len(), rule[0], rule[7]), (12 + 3 * 8, 10, 1));
        assert_eq!(rule[20..24], [8u16.to_ne_bytes(), FRA_FWMARK.to_ne_bytes()].concat());
        assert_eq!(rule[24..28], 1337u32.to_ne_bytes());
    }
}
