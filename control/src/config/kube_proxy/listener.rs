//! Where something is served.

use std::net::SocketAddr;

use crate::source::kubernetes::object::sloppy;

/// `address:port` with a port other than 0, IPv6 in brackets; the error says what is wrong.
pub(super) fn parse(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => text.split_once(':').filter(|(_, port)| !port.contains(':')),
    }
    .ok_or_else(|| format!("{text:?} is not an address with a port such as 0.0.0.0:10256 or [::]:10256"))?;
    let addr = sloppy::address(host).ok_or_else(|| format!("{host:?} is not an IP address"))?;
    match port.parse() {
        Ok(port @ 1..) => Ok(SocketAddr::new(addr, port)),
        _ => Err(format!("{port:?} is not a port from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let read = parse(text).map(|addr| addr.to_string());
            assert_eq!(read.as_deref().map_err(String::as_str), want, "{text}");
        }
    }
}
