//! What the control connection of FTP says about data connections (RFC 959, section 4.1.2; RFC 2428).
//!
//! A command or reply is looked for at the start of a segment only, and has to be whole in it, as real peers send it.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

/// Where data will be expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The address, if one was said.
    pub addr: Option<IpAddr>,
    /// The port; never 0.
    pub port: u16,
    /// Where in the payload address and port stand.
    pub text: Range<usize>,
}

/// What a client says by `PORT` or `EPRT`: that the server is to connect to it there.
pub fn active(payload: &[u8]) -> Option<Place> {
    let (command, _) = payload.split_at_checked(5)?;
    let line = line(payload)?;
    let text = 5..line.len();
    let said = line.get(text.clone())?;
    if command.eq_ignore_ascii_case(b"PORT ") {
        let (addr, port) = six_numbers(said)?;
        return Some(Place { addr: Some(addr.into()), port, text });
    }
    if !command.eq_ignore_ascii_case(b"EPRT ") {
        return None;
    }
    let [family, addr, port] = three_parts(said)?;
    let addr: IpAddr = std::str::from_utf8(addr).ok()?.parse().ok()?;
    let family_fits = family == if addr.is_ipv6() { b"2" } else { b"1" };
    family_fits.then_some(Place { addr: Some(addr), port: number(port)?, text })
}

/// What a server says by 227 or 229: that the client is to connect to it there.
pub fn passive(payload: &[u8]) -> Option<Place> {
    let line = line(payload)?;
    let open = line.iter().position(|byte| *byte == b'(')?;
    let inner = line.get(open + 1..)?;
    let len = inner.iter().position(|byte| *byte == b')')?;
    let (said, text) = (inner.get(..len)?, open + 1..open + 1 + len);
    match line.get(..4)? {
        b"227 " => {
            let (addr, port) = six_numbers(said)?;
            Some(Place { addr: Some(addr.into()), port, text })
        }
        b"229 " => match three_parts(said)? {
            [b"", b"", port] => Some(Place { addr: None, port: number(port)?, text }),
            _ => None,
        },
        _ => None,
    }
}

/// The text of a 227 reply's place: 11 to 23 bytes.
pub fn spelled(addr: Ipv4Addr, port: u16) -> arrayvec::ArrayVec<u8, 24> {
    let mut text = arrayvec::ArrayVec::new();
    let bytes = addr.octets().into_iter().chain(port.to_be_bytes());
    for (place, byte) in bytes.enumerate() {
        if place > 0 {
            text.push(b',');
        }
        for (divisor, least) in [(100, 100), (10, 10), (1, 0)] {
            if byte >= least {
                text.push(b'0' + byte / divisor % 10);
            }
        }
    }
    text
}

/// The first line, without its end.
fn line(payload: &[u8]) -> Option<&[u8]> {
    let end = payload.iter().position(|byte| *byte == b'\n')?;
    let line = payload.get(..end)?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

/// `h1,h2,h3,h4,p1,p2`.
fn six_numbers(text: &[u8]) -> Option<(Ipv4Addr, u16)> {
    let mut parts = text.split(|byte| *byte == b',').map(|part| u8::try_from(number(part)?).ok());
    let mut next = || parts.next().flatten();
    let addr = Ipv4Addr::new(next()?, next()?, next()?, next()?);
    let port = u16::from_be_bytes([next()?, next()?]);
    (parts.next().is_none() && port != 0).then_some((addr, port))
}

/// `|a|b|c|` with any delimiter that is a visible character.
fn three_parts(text: &[u8]) -> Option<[&[u8]; 3]> {
    let (delimiter, rest) = text.split_first()?;
    let mut parts = rest.split(|byte| byte == delimiter);
    let found = [parts.next()?, parts.next()?, parts.next()?];
    let ends = parts.next() == Some(b"") && parts.next().is_none();
    (ends && delimiter.is_ascii_graphic()).then_some(found)
}

/// Up to five digits; `None` for what is no port. 0 for `0`, which addresses may have.
fn number(text: &[u8]) -> Option<u16> {
    let has_digits = (1..=5).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    if has_digits { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_are_read_as_the_two_sides_say_them() {
        for (name, said, want) in [
            ("port", "PORT 10,0,0,1,4,1\r\n", Some((Some("10.0.0.1"), 1025))),
            (
                "small letters, and more behind",
                "port 10,0,0,1,4,1\r\nRETR x\r\n",
                Some((Some("10.0.0.1"), 1025)),
            ),
            ("eprt", "EPRT |1|10.0.0.1|1025|\r\n", Some((Some("10.0.0.1"), 1025))),
            ("eprt of IPv6", "EPRT !2!fd00::1!1025!\r\n", Some((Some("fd00::1"), 1025))),
            ("227", "227 Entering Passive Mode (10,1,0,1,195,80).\r\n", Some((Some("10.1.0.1"), 50_000))),
            ("229", "229 Extended (|||6446|)\r\n", Some((None, 6446))),
            ("five numbers", "PORT 10,0,0,1,4\r\n", None),
            ("seven numbers", "PORT 10,0,0,1,4,1,1\r\n", None),
            ("a number too large", "PORT 10,0,0,256,4,1\r\n", None),
            ("port 0", "PORT 10,0,0,1,0,0\r\n", None),
            ("no end", "PORT 10,0,0,1,4,1", None),
            ("the wrong family", "EPRT |2|10.0.0.1|1025|\r\n", None),
            ("a sign", "227 (10,1,0,1,+5,80)\r\n", None),
            ("no parenthesis", "227 Entering Passive Mode 10,1,0,1,195,80\r\n", None),
            ("an address in 229", "229 (|1|10.0.0.1|6446|)\r\n", None),
            ("another reply", "220 (10,1,0,1,195,80)\r\n", None),
            ("nothing", "", None),
        ] {
            let place = active(said.as_bytes()).or_else(|| passive(said.as_bytes()));
            let want =
                want.map(|(addr, port): (Option<&str>, _)| (addr.map(|addr| addr.parse().unwrap()), port));
            assert_eq!(place.map(|place| (place.addr, place.port)), want, "{name}");
        }
    }

    #[test]
    fn a_place_is_spelled_as_it_is_read() {
        for (addr, port) in
            [([10, 1, 0, 1], 50_000), ([255; 4], u16::MAX), ([1, 20, 100, 9], 256), ([0, 0, 0, 0], 1)]
        {
            let text = spelled(addr.into(), port);
            let reply = [b"227 Entering Passive Mode (", &*text, b").\r\n"].concat();
            let place = passive(&reply).unwrap();
            assert_eq!((place.addr, place.port), (Some(IpAddr::from(addr)), port));
            assert_eq!(reply[place.text], *text);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_said_names_a_place_within_it_or_none(
            said in "(PORT |EPRT |227 |229 )?[\\(0-9,|)]{0,30}(\r?\n)?.{0,8}",
        ) {
            for place in [active(said.as_bytes()), passive(said.as_bytes())].into_iter().flatten() {
                prop_assert!(place.port != 0 && said.as_bytes().get(place.text).is_some());
            }
        }
    }
}
