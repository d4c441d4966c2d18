//! Addresses, ports and numbers as the C library reads them for ipvsadm.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};

use control::ipvs::command::Protocol;

/// A decimal number as `strtol` takes it (blanks and a sign may come first), if it lies within `low..=high`.
pub(super) fn number(text: &str, low: i64, high: i64) -> Option<i64> {
    let digits = text.trim_start_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    if unsigned.is_empty() || !unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|number| (low..=high).contains(number))
}

/// An IPv4 address as `inet_aton` takes it: one to four numbers, decimal, octal (0..) or hexadecimal (0x..), of which
/// the last fills what is left.
pub(super) fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let text = text.split([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']).next().unwrap_or_default();
    let mut parts = Vec::with_capacity(4);
    for part in text.split('.') {
        if parts.len() == 4 || !part.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        let (digits, radix) = match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
            Some(digits) => (digits, 16),
            None if part.len() > 1 && part.starts_with('0') => (part, 8),
            None => (part, 10),
        };
        parts.push(u32::from_str_radix(digits, radix).ok()?);
    }
    let (last, before) = parts.split_last()?;
    let mut bits = 0;
    for part in before {
        bits = bits << 8 | u32::from(u8::try_from(*part).ok()?);
    }
    let room = 8 * (4 - u32::try_from(before.len()).ok()?);
    if room < 32 && *last >> room != 0 {
        return None;
    }
    Some(Ipv4Addr::from_bits(bits.checked_shl(room).unwrap_or(0) | last))
}

/// A host's IPv4 address: a number, or a name that the system resolves.
fn host(text: &str) -> Option<Ipv4Addr> {
    ipv4(text).or_else(|| {
        (text, 0).to_socket_addrs().ok()?.find_map(|addr| match addr.ip() {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        })
    })
}

/// What `host[:port]` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) addr: IpAddr,
    pub(super) port: Option<u16>,
}

/// `host[:port]` or `[IPv6]:port`; an IPv6 address without brackets has no port. `protocol` is for ports by name, of
/// which there are none without one. A number alone could be a port, and is neither.
pub(super) fn place(text: &str, protocol: Option<Protocol>) -> Option<Place> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (name, behind) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, behind) = rest.split_once(']')?;
            (name, Some(behind.strip_prefix(':')?))
        }
        None => (text, None),
    };
    let (addr, port) = match name.parse::<Ipv6Addr>() {
        Ok(addr) => (addr.into(), behind),
        // As it is with ipvsadm: brackets around anything else hide the port.
        Err(_) => match name.rsplit_once(':') {
            Some((name, port)) => (host(name)?.into(), Some(port)),
            None => (host(name)?.into(), None),
        },
    };
    let port = match port {
        Some(port) => Some(self::port(port, protocol)?),
        None => None,
    };
    Some(Place { addr, port })
}

fn port(text: &str, protocol: Option<Protocol>) -> Option<u16> {
    match number(text, 0, u16::MAX.into()) {
        Some(port) => u16::try_from(port).ok(),
        None => super::names::port_of(text, protocol?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_strtol_has_them() {
        for (text, want) in [
            ("0", Some(0)),
            ("+5", Some(5)),
            (" 7", Some(7)),
            ("010", Some(10)),
            ("100", Some(100)),
            ("101", None),
            ("-1", None),
            ("", None),
            ("+", None),
            ("5x", None),
            ("0x5", None),
            ("1.5", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(number(text, 0, 100), want, "{text:?}");
        }
    }

    #[test]
    fn ipv4_addresses_are_as_inet_aton_has_them() {
        for (text, want) in [
            ("10.0.0.1", Some([10, 0, 0, 1])),
            ("10.0.1", Some([10, 0, 0, 1])),
            ("10.258", Some([10, 0, 1, 2])),
            ("167772260", Some([10, 0, 0, 100])),
            ("0x0a000064", Some([10, 0, 0, 100])),
            ("010.0.0.1", Some([8, 0, 0, 1])),
            ("1.2.3.4 rest", Some([1, 2, 3, 4])),
            ("24", Some([0, 0, 0, 24])),
            ("256.0.0.1", None),
            ("1.2.3.256", None),
            ("1.2.65536", None),
            ("1.2.3.4.5", None),
            ("08.0.0.1", None),
            ("1..2", None),
            ("", None),
            ("+1.2.3.4", None),
        ] {
            assert_eq!(ipv4(text).map(|addr| addr.octets()), want, "{text:?}");
        }
    }

    #[test]
    fn a_place_is_an_address_with_or_without_a_port() {
        let place = |text| super::place(text, None).map(|place| (place.addr.to_string(), place.port));
        let at = |addr: &str, port| Some((addr.to_owned(), port));
        for (text, want) in [
            ("1.2.3.4", at("1.2.3.4", None)),
            ("1.2.3.4:80", at("1.2.3.4", Some(80))),
            ("1.2.3.4:+80", at("1.2.3.4", Some(80))),
            ("[fd00::1]:80", at("fd00::1", Some(80))),
            ("fd00::1", at("fd00::1", None)),
            ("fd00::1:80", at("fd00::1:80", None)),
            ("[1.2.3.4]:80", at("1.2.3.4", None)),
            ("[fd00::1]", None),
            ("[fd00::1]:", None),
            ("[fd00::1", None),
            ("167772260", None),
            ("167772260:80", at("10.0.0.100", Some(80))),
            ("0x0a000064", at("10.0.0.100", None)),
            ("1.2.3.4:", None),
            ("1.2.3.4:65536", None),
            ("1.2.3.4:-1", None),
            ("1.2.3.4:80x", None),
            (":80", None),
        ] {
            assert_eq!(place(text), want, "{text:?}");
        }
    }
}
