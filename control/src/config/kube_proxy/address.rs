//! Addresses and networks as Kubernetes reads them: IPv4 with leading zeros, which are decimal, and IPv4-mapped IPv6
//! addresses, which are IPv4.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

/// The address.
pub fn parse(text: &str) -> Option<IpAddr> {
    let strict = text.parse::<IpAddr>().ok().map(|addr| addr.to_canonical());
    strict.or_else(|| parse_v4(text).map(IpAddr::V4))
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| octets.into())
}

/// The network that the address before the `/` lies in: bits behind the prefix may be set.
pub fn parse_net(text: &str) -> Option<IpNet> {
    let (addr, length) = text.split_once('/')?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let addr = parse(addr)?;
    Some(IpNet::new(addr, length.parse().ok()?).ok()?.trunc())
}

/// `address:port` with a port other than 0, IPv6 in brackets; the error says what is wrong.
pub(super) fn parse_listener(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => text.split_once(':').filter(|(_, port)| !port.contains(':')),
    }
    .ok_or_else(|| format!("{text:?} is not an address with a port such as 0.0.0.0:10256 or [::]:10256"))?;
    let addr = parse(host).ok_or_else(|| format!("{host:?} is not an IP address"))?;
    match port.parse() {
        Ok(port @ 1..) => Ok(SocketAddr::new(addr, port)),
        _ => Err(format!("{port:?} is not a port from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        for (text, want) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.08", Some("10.0.0.8")),
            ("0000.0.0.0", Some("0.0.0.0")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("10.0.0.256", None),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10..0.1", None),
            ("+1.0.0.1", None),
            (" 10.0.0.1", None),
            ("fe80::1%eth0", None),
            ("", None),
        ] {
            assert_eq!(parse(text).map(|addr| addr.to_string()).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn networks_may_have_bits_behind_their_prefix() {
        for (text, want) in [
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("010.0.0.0/08", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::1/64", Some("fd00::/64")),
            ("10.0.0.0", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("x/8", None),
        ] {
            assert_eq!(parse_net(text).map(|net| net.to_string()).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn a_listener_is_an_address_with_a_port() {
        for (text, want) in [
            ("0.0.0.0:10256", Ok("0.0.0.0:10256")),
            ("[::1]:1", Ok("[::1]:1")),
            (
                "127.0.0.1",
                Err("\"127.0.0.1\" is not an address with a port such as 0.0.0.0:10256 or [::]:10256"),
            ),
            ("::1:80", Err("\"::1:80\" is not an address with a port such as 0.0.0.0:10256 or [::]:10256")),
            ("[::1]", Err("\"[::1]\" is not an address with a port such as 0.0.0.0:10256 or [::]:10256")),
            ("localhost:80", Err("\"localhost\" is not an IP address")),
            (":80", Err("\"\" is not an IP address")),
            ("10.0.0.1:0", Err("\"0\" is not a port from 1 to 65535")),
            ("10.0.0.1:65536", Err("\"65536\" is not a port from 1 to 65535")),
            ("10.0.0.1:http", Err("\"http\" is not a port from 1 to 65535")),
        ] {
            let read = parse_listener(text).map(|addr| addr.to_string());
            assert_eq!(read.as_deref().map_err(String::as_str), want, "{text}");
        }
    }
}
