//! Which addresses may be connected to: public ones, and those that the environment lists.
//!
//! A name is no defence: whoever controls its DNS zone can make it mean this machine, the cloud's metadata service or a
//! database next door. So what counts is the address, looked at when the connection is made.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use farrier_model::{Failure, FailureKind};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::names::{Names, System};

/// A range of addresses: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads `ADDRESS/LENGTH` or `ADDRESS`.
    pub fn parse(text: &str) -> Option<Network> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits.parse().ok()?,
            Some(_) => return None,
            None => longest,
        };
        (prefix <= longest).then_some(Network { address, prefix })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let same = |one: u128, other: u128, bits: u32| {
            let shift = bits - u32::from(self.prefix);
            one.checked_shr(shift).unwrap_or(0) == other.checked_shr(shift).unwrap_or(0)
        };
        match (self.address, address) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                same(u128::from(u32::from(one)), u128::from(u32::from(other)), 32)
            }
            (IpAddr::V6(one), IpAddr::V6(other)) => same(u128::from(one), u128::from(other), 128),
            _ => false,
        }
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Network, D::Error> {
        let text = String::deserialize(deserializer)?;
        Network::parse(&text).ok_or_else(|| {
            D::Error::custom(format!("`{text}` is neither an address nor a network such as `10.0.0.0/8`"))
        })
    }
}

impl JsonSchema for Network {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "network".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": ["10.0.0.0/8"] })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The addresses that are allowed although they are not public.
#[derive(Debug, Clone, Default)]
pub struct Networks(Vec<Network>);

impl Networks {
    /// The environment's list, with what the host of its own address says by itself: an address that is written out is
    /// meant, and `localhost` is this machine.
    pub fn new(listed: &[Network], host: &url::Host<&str>) -> Networks {
        let mut networks = listed.to_vec();
        let own = |address: IpAddr| Network { prefix: if address.is_ipv4() { 32 } else { 128 }, address };
        match host {
            url::Host::Ipv4(address) => networks.push(own(IpAddr::V4(*address))),
            url::Host::Ipv6(address) => networks.push(own(IpAddr::V6(*address))),
            url::Host::Domain(name) if name.eq_ignore_ascii_case("localhost") => {
                networks.push(Network { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 8 });
                networks.push(own(IpAddr::V6(Ipv6Addr::LOCALHOST)));
            }
            url::Host::Domain(_) => {}
        }
        Networks(networks)
    }

    /// Whether a connection to `address` may be made.
    pub fn allow(&self, address: IpAddr) -> bool {
        let address = plain(address);
        self.0.iter().any(|network| network.contains(address)) || is_public(address)
    }

    /// The addresses of `host` that may be connected to.
    ///
    /// # Errors
    /// [`FailureKind::Unreachable`] when the name is not known, [`FailureKind::Denied`] when none may.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        self.resolve_with(&System, host, port).await
    }

    /// The same as somebody else answers for names.
    pub(crate) async fn resolve_with(
        &self,
        names: &dyn Names,
        host: &str,
        port: u16,
    ) -> Result<Vec<SocketAddr>, Failure> {
        let found = names.addresses(host, port).await.map_err(|error| {
            Failure::new(FailureKind::Unreachable, format!("cannot resolve `{host}`: {error}"))
        })?;
        self.allowed(host, &found)
    }

    fn allowed(&self, host: &str, found: &[SocketAddr]) -> Result<Vec<SocketAddr>, Failure> {
        let allowed: Vec<_> = found.iter().copied().filter(|address| self.allow(address.ip())).collect();
        match (allowed.is_empty(), found.first()) {
            (false, _) => Ok(allowed),
            (true, Some(address)) => Err(not_allowed(host, address.ip())),
            (true, None) => Err(Failure::new(FailureKind::Unreachable, format!("`{host}` has no address"))),
        }
    }
}

/// The place is not one that this environment allows.
fn not_allowed(host: &str, address: IpAddr) -> Failure {
    let is = if host.parse::<IpAddr>().is_ok() { "is" } else { "resolves to" };
    Failure::new(
        FailureKind::Denied,
        format!("`{host}` {is} {address}, which is neither a public address nor listed in `networks`"),
    )
    .help(format!("if this is the right place, add `networks: [{address}]` to the target"))
}

/// An IPv4 address that is wrapped in an IPv6 one, taken out.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(wrapped) = address else { return address };
    let segments = wrapped.segments();
    let last = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match segments {
        // Mapped, translated by NAT64, and 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => last(high, low),
        // Compatible, which is deprecated; `::` and `::1` are no such thing.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => last(high, low),
        _ => address,
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            let special = address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address.is_documentation()
                || a == 0
                || (a == 100 && b & 0xc0 == 64)
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && b & 0xfe == 18)
                || a >= 240;
            !special
        }
        IpAddr::V6(address) => {
            // Only 2000::/3 is given out for global use; of that, documentation and benchmarking are not.
            let segments = address.segments();
            segments[0] & 0xe000 == 0x2000
                && !(segments[0] == 0x2001 && segments[1] < 0x0200)
                && !(segments[0] == 0x2001 && segments[1] == 0x0db8)
                && segments[0] != 0x3fff
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> url::Host<String> {
        url::Host::parse(text).unwrap()
    }

    fn networks(listed: &[&str], name: &str) -> Networks {
        let listed: Vec<Network> = listed.iter().map(|text| Network::parse(text).unwrap()).collect();
        let owned = host(name);
        let borrowed = match &owned {
            url::Host::Domain(name) => url::Host::Domain(name.as_str()),
            url::Host::Ipv4(address) => url::Host::Ipv4(*address),
            url::Host::Ipv6(address) => url::Host::Ipv6(*address),
        };
        Networks::new(&listed, &borrowed)
    }

    #[test]
    fn of_a_name_with_several_addresses_only_the_allowed_ones_are_connected_to() {
        let found = |addresses: &[&str]| -> Vec<SocketAddr> {
            addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 443)).collect()
        };
        let none = networks(&[], "example.org");
        for mixed in
            [["198.35.26.96", "10.0.0.1"], ["169.254.169.254", "198.35.26.96"], ["::1", "198.35.26.96"]]
        {
            assert_eq!(
                none.allowed("example.org", &found(&mixed)).unwrap(),
                found(&["198.35.26.96"]),
                "{mixed:?}"
            );
        }
        let failure = none.allowed("example.org", &found(&["10.0.0.1", "::1"])).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Denied);
        assert_eq!(none.allowed("example.org", &[]).unwrap_err().kind, FailureKind::Unreachable);
    }

    #[test]
    fn only_public_addresses_are_allowed_by_themselves() {
        let none = networks(&[], "example.org");
        for (address, allowed) in [
            ("198.35.26.96", true),
            ("2620:0:861:ed1a::1", true),
            ("127.0.0.1", false),
            ("127.8.9.1", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("172.32.0.1", true),
            ("192.168.1.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("0.0.0.0", false),
            ("192.0.0.170", false),
            ("198.18.0.1", false),
            ("203.0.113.9", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("250.0.0.1", false),
            ("::", false),
            ("::1", false),
            ("fe80::1", false),
            ("fd00:ec2::254", false),
            ("ff02::1", false),
            ("2001:db8::1", false),
            ("2001::1", false),
            // The same forbidden addresses in the clothes of IPv6.
            ("::ffff:127.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("::7f00:1", false),
            ("::127.0.0.1", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("2002:7f00:1::", false),
            ("::ffff:198.35.26.96", true),
        ] {
            assert_eq!(none.allow(address.parse().unwrap()), allowed, "{address}");
        }
    }

    #[test]
    fn what_is_listed_or_written_out_is_allowed_and_no_more() {
        let some = networks(&["10.64.0.0/12", "fd00::1"], "example.org");
        for (address, allowed) in [
            ("10.64.0.1", true),
            ("10.79.255.255", true),
            ("10.80.0.0", false),
            ("::ffff:10.64.0.1", true),
            ("fd00::1", true),
            ("fd00::2", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(some.allow(address.parse().unwrap()), allowed, "{address}");
        }
        assert!(networks(&[], "10.0.0.5").allow("10.0.0.5".parse().unwrap()));
        assert!(!networks(&[], "10.0.0.5").allow("10.0.0.6".parse().unwrap()));
        assert!(networks(&[], "[::1]").allow("::1".parse().unwrap()));
        assert!(networks(&[], "localhost").allow("127.0.0.1".parse().unwrap()));
        assert!(!networks(&[], "localhost").allow("10.0.0.1".parse().unwrap()));
        assert!(networks(&["0.0.0.0/0"], "example.org").allow("169.254.169.254".parse().unwrap()));
        for bad in ["10.0.0.0/33", "10.0.0/8", "::/129", "a", "10.0.0.0/", "10.0.0.0/+8", ""] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_name_for_this_machine_is_refused_unless_listed() {
        let failure = networks(&[], "example.org").resolve("localhost", 80).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Denied);
        assert!(failure.message.contains("`localhost` resolves to"), "{failure}");
        assert!(
            !networks(&["127.0.0.0/8", "::1"], "x.org").resolve("localhost", 80).await.unwrap().is_empty()
        );
        let failure = networks(&[], "example.org").resolve("169.254.169.254", 80).await.unwrap_err();
        assert!(failure.message.starts_with("`169.254.169.254` is 169.254.169.254"), "{failure}");
    }
}
