//! The hash by which network cards choose a frame's RX queue (Toeplitz; Microsoft: RSS Hashing Functions).
//!
//! The hash of a packet is the exclusive or of one word for each bit of its addresses and ports that is set: the 32 bits of
//! the key from that bit's place on. So what each byte adds is a table, and what source, destination address and destination
//! port add can be found one by one.

use std::array;

use crate::flow::key::FlowKey;

/// Bytes of a key that the hash of TCP or UDP over IPv6 uses, which is the longest. Of longer keys the rest is for hashes
/// of other things.
pub const KEY_LEN: usize = 40;
/// Bytes that are hashed of TCP or UDP over IPv6: both addresses, both ports.
const INPUT_LEN: usize = 36;

/// Where addresses and ports lie among what is hashed.
struct Layout {
    dst: usize,
    sport: usize,
    dport: usize,
}

const V4: Layout = Layout { dst: 4, sport: 8, dport: 10 };
const V6: Layout = Layout { dst: 16, sport: 32, dport: 34 };

/// The hash with one key: 36 KiB.
#[derive(Clone, Debug)]
pub struct Toeplitz {
    /// What each value of each byte adds.
    words: Box<[[u32; 256]]>,
}

impl Toeplitz {
    /// The hash with this key; `None` for one of less than [`KEY_LEN`] bytes.
    pub fn new(key: &[u8]) -> Option<Self> {
        let key: &[u8; KEY_LEN] = key.first_chunk()?;
        let words = (0..INPUT_LEN).map(|place| {
            let window = key.iter().skip(place).take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            // Fewer than eight bytes are left only where the last of them count for nothing.
            let window = window << (8 * 8usize.saturating_sub(KEY_LEN - place));
            array::from_fn(|value| {
                let is_set = |bit: &usize| value >> (7 - bit) & 1 == 1;
                (0..8).filter(is_set).fold(0, |hash, bit| hash ^ (window << bit >> 32) as u32)
            })
        });
        Some(Self { words: words.collect() })
    }

    /// The hash of a packet with this key, if the card hashes addresses and ports of its protocol.
    pub fn hash(&self, key: &FlowKey) -> u32 {
        self.of_source(key.src, key.v6, key.sport)
            ^ self.of_destination(key.dst, key.v6)
            ^ self.of_destination_port(key.dport, key.v6)
    }

    /// What the source adds.
    #[inline]
    pub fn of_source(&self, addr: u128, v6: bool, port: u16) -> u32 {
        let sport = if v6 { V6.sport } else { V4.sport };
        self.of_address(0, addr, v6) ^ self.of(sport, port.to_be_bytes())
    }

    /// What the destination address adds.
    pub fn of_destination(&self, addr: u128, v6: bool) -> u32 {
        self.of_address(if v6 { V6.dst } else { V4.dst }, addr, v6)
    }

    /// What the destination port adds.
    pub fn of_destination_port(&self, port: u16, v6: bool) -> u32 {
        self.of(if v6 { V6.dport } else { V4.dport }, port.to_be_bytes())
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "IPv4 addresses are the low 32 bits")]
    fn of_address(&self, place: usize, addr: u128, v6: bool) -> u32 {
        if v6 { self.of(place, addr.to_be_bytes()) } else { self.of(place, (addr as u32).to_be_bytes()) }
    }

    #[inline]
    fn of<const LEN: usize>(&self, place: usize, bytes: [u8; LEN]) -> u32 {
        let words = self.words.get(place..).unwrap_or_default();
        words
            .iter()
            .zip(bytes)
            .fold(0, |hash, (words, byte)| hash ^ words.get(usize::from(byte)).copied().unwrap_or_default())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::flow::key::{self, TCP};

    /// The key of Microsoft's "Verifying the RSS hash calculation".
    pub(crate) const KEY: [u8; KEY_LEN] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn packet(src: &str, dst: &str) -> FlowKey {
        let [src, dst]: [SocketAddr; 2] = [src, dst].map(|text| text.parse().unwrap());
        let ((from, v6), (to, _)) = (key::bits(src.ip()), key::bits(dst.ip()));
        FlowKey { src: from, dst: to, sport: src.port(), dport: dst.port(), proto: TCP, v6 }
    }

    #[test]
    fn hashes_are_those_that_microsoft_publishes() {
        let toeplitz = Toeplitz::new(&KEY).unwrap();
        for (src, dst, addresses, with_ports) in [
            ("66.9.149.187:2794", "161.142.100.80:1766", 0x323e_8fc2, 0x51cc_c178),
            ("199.92.111.2:14230", "65.69.140.83:4739", 0xd718_262a, 0xc626_b0ea),
            ("24.19.198.95:12898", "12.22.207.184:38024", 0xd2d0_a5de, 0x5c2b_394a),
            ("38.27.205.30:48228", "209.142.163.6:2217", 0x8298_9176, 0xafc7_327f),
            ("153.39.163.191:44251", "202.188.127.2:1303", 0x5d18_09c5, 0x10e8_28a2),
            ("[3ffe:2501:200:1fff::7]:2794", "[3ffe:2501:200:3::1]:1766", 0x2cc1_8cd5, 0x4020_7d3d),
            ("[3ffe:501:8::260:97ff:fe40:efab]:14230", "[ff02::1]:4739", 0x0f0c_461c, 0xdde5_1bbf),
            (
                "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251",
                "[fe80::200:f8ff:fe21:67cf]:38024",
                0x4b61_e985,
                0x02d1_feef,
            ),
        ] {
            let packet = packet(src, dst);
            assert_eq!(toeplitz.hash(&packet), with_ports, "{src} {dst}");
            // Ports of 0 add nothing.
            let without = FlowKey { sport: 0, dport: 0, ..packet };
            assert_eq!(toeplitz.hash(&without), addresses, "{src} {dst} without ports");
        }
    }

    #[test]
    fn a_key_has_forty_bytes_at_least_and_more_change_nothing() {
        assert!(Toeplitz::new(&KEY[..KEY_LEN - 1]).is_none());
        let long = [&KEY[..], &[0xff; 12]].concat();
        let packet = packet("[fd00::1]:1", "[fd00::2]:65535");
        let [short, long] = [&KEY[..], &long].map(|key| Toeplitz::new(key).unwrap().hash(&packet));
        assert_eq!(short, long);
    }
}
