//! The address rule (DESIGN section 7): where a name from outside must not lead us. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Addresses at which clouds answer with credentials of the machine, outside link-local: AWS and GCP over IPv6, Alibaba,
/// Azure's wire server, Oracle.
const METADATA: [IpAddr; 5] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// What the operator named: networks, and the one address and port of an endpoint that is written as an address.
#[derive(Debug, Clone, Default)]
pub(super) struct Named {
    pub(super) networks: Vec<IpNet>,
    pub(super) endpoint: Option<SocketAddr>,
}

/// Why an address is refused, or `None` when it may be connected to.
pub(super) fn refusal(addr: SocketAddr, named: &Named) -> Option<&'static str> {
    let ip = plain(addr.ip());
    let is_named = named.networks.iter().any(|network| network.contains(&ip) || network.contains(&addr.ip()))
        || named.endpoint.is_some_and(|endpoint| plain(endpoint.ip()) == ip && endpoint.port() == addr.port());
    if is_named {
        return None;
    }
    if METADATA.contains(&ip) {
        return Some("a metadata address");
    }
    match ip {
        IpAddr::V4(ip) => refusal_v4(ip),
        IpAddr::V6(ip) if ip.is_loopback() => Some("a loopback address"),
        IpAddr::V6(ip) if ip.is_unspecified() => Some("the unspecified address"),
        IpAddr::V6(ip) if ip.is_multicast() => Some("a multicast address"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(_) => None,
    }
}

fn refusal_v4(ip: Ipv4Addr) -> Option<&'static str> {
    if ip.is_loopback() {
        Some("a loopback address")
    } else if ip.is_link_local() {
        Some("a link-local address")
    } else if ip.octets()[0] == 0 {
        // 0.0.0.0/8: Linux takes it for this host.
        Some("the unspecified address")
    } else if ip.is_multicast() || ip.is_broadcast() {
        Some("a multicast address")
    } else {
        None
    }
}

/// An IPv4 address in IPv6 clothes (mapped, or by the well-known NAT64 prefix of RFC 6052) is the IPv4 address.
fn plain(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => match v6.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            _ => IpAddr::V6(v6),
        },
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(ip: &str, named: &Named) -> bool {
        refusal(SocketAddr::new(ip.parse().unwrap(), 443), named).is_some()
    }

    #[test]
    fn refuses_what_is_of_this_machine_or_link() {
        for ip in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "169.254.1.1",
            "fe80::1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "ff02::1",
            "fd00:ec2::254",
            "100.100.100.200",
        ] {
            assert!(refused(ip, &Named::default()), "{ip}");
        }
    }

    #[test]
    fn allows_private_and_public_addresses() {
        for ip in ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "8.8.8.8", "2001:db8::1", "fd00::1"] {
            assert!(!refused(ip, &Named::default()), "{ip}");
        }
    }

    #[test]
    fn allows_what_is_named_and_nothing_beside_it() {
        let named = Named { networks: vec!["127.0.0.2/32".parse().unwrap()], endpoint: None };
        assert!(!refused("127.0.0.2", &named));
        assert!(!refused("::ffff:127.0.0.2", &named));
        assert!(refused("127.0.0.1", &named));
        let named = Named { networks: vec![], endpoint: Some("127.0.0.1:5000".parse().unwrap()) };
        assert_eq!(refusal("127.0.0.1:5000".parse().unwrap(), &named), None);
        assert!(refusal("127.0.0.1:5001".parse().unwrap(), &named).is_some());
    }
}
