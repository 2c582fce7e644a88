use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// Bits before the IPv4 address in an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2).
const MAPPED_BITS: u8 = 96;

/// A CIDR with its host bits masked; one that is written as IPv4-mapped IPv6 becomes IPv4.
///
/// # Errors
/// What is wrong, to be read after the text itself.
pub(super) fn parse_network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let net: IpNet = text.parse().map_err(|_| not_a_cidr(text))?;
    // ipnet reads 010.0.0.0 as 10.0.0.0, others read it as octal 8.0.0.0: whoever writes it is asked to be clear.
    if text.split_once('/').is_none_or(|(ip, _)| ip.parse::<IpAddr>().is_err()) {
        return Err(not_a_cidr(text));
    }
    let IpNet::V6(six) = net else { return Ok(net.trunc()) };
    let Some(four) = six.addr().to_ipv4_mapped() else { return Ok(net.trunc()) };
    let Some(len) = six.prefix_len().checked_sub(MAPPED_BITS) else {
        return Err(format!(
            "{text:?} is written as IPv4 inside IPv6, where a prefix is at least /{MAPPED_BITS}; write {four}/n instead"
        ));
    };
    let four = Ipv4Net::new(four, len).expect("at most 128 - 96 = 32");
    Ok(IpNet::V4(four).trunc())
}

fn not_a_cidr(text: &str) -> String {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        return format!("{text:?} is not a CIDR: the prefix length is missing, write {ip}/{bits} for one address");
    }
    let Some((ip, len)) = text.split_once('/') else { return format!("{text:?} is not a CIDR like 10.1.0.0/16") };
    match ip.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => format!("{text:?} is not a CIDR: {len:?} is not a prefix length from 0 to 32"),
        Ok(IpAddr::V6(_)) => format!("{text:?} is not a CIDR: {len:?} is not a prefix length from 0 to 128"),
        Err(_) => format!("{text:?} is not a CIDR: {ip:?} is not an IP address"),
    }
}

/// The address as a number, with the count of bits it has.
pub(super) fn bits(ip: IpAddr) -> (u128, u8) {
    match ip {
        IpAddr::V4(four) => (u128::from(u32::from(four)), 32),
        IpAddr::V6(six) => (u128::from(six), 128),
    }
}
