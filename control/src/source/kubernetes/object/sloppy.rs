//! Addresses and networks as Kubernetes reads them: decimal numbers with leading zeros are taken, and an IPv4 address in
//! IPv6 form is an IPv4 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The address that `text` is.
pub fn address(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return v4(text).map(IpAddr::V4);
    }
    let plain = match text.rsplit_once(':') {
        Some((front, last)) if last.contains('.') => {
            let [a, b, c, d] = v4(last)?.octets().map(u16::from);
            format!("{front}:{:x}:{:x}", a << 8 | b, c << 8 | d)
        }
        _ => text.to_owned(),
    };
    let addr: Ipv6Addr = plain.parse().ok()?;
    Some(IpAddr::V6(addr).to_canonical())
}

/// The network that `text`, blanks around it aside, is in; its host bits need not be 0.
pub fn network(text: &str) -> Option<IpNet> {
    let (addr, len) = text.trim().split_once('/')?;
    let mapped = addr.contains(':');
    let addr = address(addr)?;
    let len: u8 = digits(len)?.try_into().ok()?;
    // The length of a network that was written in IPv6 form counts 96 bits more.
    let len = if mapped && addr.is_ipv4() { len.checked_sub(96)? } else { len };
    IpNet::new(addr, len).ok().map(|network| network.trunc())
}

fn v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = digits(parts.next()?)?.try_into().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

fn digits(text: &str) -> Option<u32> {
    let decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    decimal.then(|| text.parse().ok()).flatten()
}
