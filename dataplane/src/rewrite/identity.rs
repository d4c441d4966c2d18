//! How a backend learns whose packets it gets: the PROXY protocol's header, version 2, in front of the data, or a TCP
//! option (TOA).
//!
//! PROXY protocol: haproxy.org, proxy-protocol.txt, section 2.2. TOA has no standard; its form is that of the Linux module
//! of that name: kind 254, then the client's port and address.

use crate::flow::key::{FlowKey, TCP};

/// Bytes of the longest header.
const LONGEST_HEADER: usize = 52;
/// Bytes of the longest option.
const LONGEST_OPTION: usize = 20;
/// Kind of the option.
const TOA: u8 = 254;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, on behalf of another.
const PROXY: u8 = 0x21;

/// Bytes of the header of a flow of this family.
#[inline]
pub fn header_len(v6: bool) -> u8 {
    if v6 { 52 } else { 28 }
}

/// Bytes, at most the longest of their kind.
#[derive(Clone, Copy, Debug)]
pub struct Short<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Short<N> {
    const EMPTY: Self = Self { bytes: [0; N], len: 0 };

    /// Appends `bytes`, as far as there is room.
    fn add(mut self, bytes: &[u8]) -> Self {
        if let Some(room) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
        self
    }

    /// An address as it goes on the wire.
    fn add_address(self, bits: u128, v6: bool) -> Self {
        let bytes = bits.to_be_bytes();
        self.add(if v6 { &bytes } else { bytes.get(12..).unwrap_or_default() })
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The header that tells of the client and the VIP in `key`, TCP or UDP.
pub fn header(key: &FlowKey) -> Short<LONGEST_HEADER> {
    let family = if key.v6 { 0x20 } else { 0x10 };
    let transport = if key.proto == TCP { 1 } else { 2 };
    let rest = u16::from(header_len(key.v6)) - 16;
    Short::EMPTY
        .add(&SIGNATURE)
        .add(&[PROXY, family | transport])
        .add(&rest.to_be_bytes())
        .add_address(key.src, key.v6)
        .add_address(key.dst, key.v6)
        .add(&key.sport.to_be_bytes())
        .add(&key.dport.to_be_bytes())
}

/// The option that tells of the client in `key`.
pub fn option(key: &FlowKey) -> Short<LONGEST_OPTION> {
    let len = if key.v6 { 20 } else { 8 };
    Short::EMPTY.add(&[TOA, len]).add(&key.sport.to_be_bytes()).add_address(key.src, key.v6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::key::UDP;

    #[test]
    fn the_header_is_as_its_specification_has_it() {
        let key =
            FlowKey { src: 0xc000_0201, dst: 0x0a00_0064, sport: 51_000, dport: 443, proto: TCP, v6: false };
        let want = [
            0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11, 0, 12, 192,
            0, 2, 1, 10, 0, 0, 100, 0xc7, 0x38, 0x01, 0xbb,
        ];
        assert_eq!(header(&key).bytes(), want);
        assert_eq!(header(&FlowKey { proto: UDP, ..key }).bytes()[13], 0x12);
        let wide = FlowKey { v6: true, src: 1 << 120 | 2, dst: 3, ..key };
        let bytes = header(&wide);
        assert_eq!(bytes.bytes()[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(bytes.bytes()[16..48], [(1u128 << 120 | 2).to_be_bytes(), 3u128.to_be_bytes()].concat());
        for key in [key, wide] {
            assert_eq!(header(&key).bytes().len(), usize::from(header_len(key.v6)));
        }
    }

    #[test]
    fn the_option_holds_port_and_address() {
        let key = FlowKey { src: 0xc000_0201, sport: 51_000, proto: TCP, ..FlowKey::default() };
        assert_eq!(option(&key).bytes(), [254, 8, 0xc7, 0x38, 192, 0, 2, 1]);
        let wide = option(&FlowKey { v6: true, ..key });
        assert_eq!((wide.bytes().len(), &wide.bytes()[..4]), (20, &[254, 20, 0xc7, 0x38][..]));
    }
}
