//! The five-tuple of a packet, in host order.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of SCTP.
pub const SCTP: u8 = 132;

/// Source, destination, ports and protocol as one packet carries them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FlowKey {
    /// Source address; an IPv4 address in the low 32 bits.
    pub src: u128,
    /// Destination address; an IPv4 address in the low 32 bits.
    pub dst: u128,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Whether the addresses are IPv6.
    pub v6: bool,
}

impl FlowKey {
    /// The key of packets in the other direction.
    #[inline]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*self }
    }

    /// A keyed 64-bit hash of the tuple. `seed` is random for each process, so that nobody outside can aim at one bucket.
    #[inline]
    pub fn hash(&self, seed: u64) -> u64 {
        if !self.v6 {
            return hash_v4(self.addresses_v4(), self.ports(), self.proto, seed);
        }
        let [src, dst] = [self.src, self.dst].map(halves);
        let addresses = fold(src.0 ^ seed, src.1 ^ K0) ^ fold(dst.0 ^ K1, dst.1 ^ seed);
        mix(addresses, self.ports(), self.proto)
    }

    /// Both addresses of an IPv4 key as they lie in a header: one word in the order of the wire.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "IPv4 addresses are the low 32 bits")]
    pub fn addresses_v4(&self) -> u64 {
        ((self.src as u64) << 32 | self.dst as u64).to_be()
    }

    /// Both ports as they lie in a header: one word in the order of the wire.
    #[inline]
    pub fn ports(&self) -> u32 {
        (u32::from(self.sport) << 16 | u32::from(self.dport)).to_be()
    }

    /// Source as a standard address.
    pub fn source(&self) -> IpAddr {
        address(self.src, self.v6)
    }

    /// Destination as a standard address.
    pub fn destination(&self) -> IpAddr {
        address(self.dst, self.v6)
    }

    /// The virtual address, port and protocol that the packet is sent to.
    #[inline]
    pub fn vip(&self) -> VipKey {
        VipKey { addr: self.dst, port: self.dport, proto: self.proto, v6: self.v6 }
    }
}

/// What a service is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipKey {
    /// Virtual address; an IPv4 address in the low 32 bits.
    pub addr: u128,
    /// Port.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Whether the address is IPv6.
    pub v6: bool,
}

impl Hash for VipKey {
    /// A word of IPv4, three of IPv6.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let rest = u64::from(self.port) | u64::from(self.proto) << 16 | u64::from(self.v6) << 24;
        match u32::try_from(self.addr) {
            Ok(v4) if !self.v6 => state.write_u64(u64::from(v4) << 32 | rest),
            _ => {
                state.write_u128(self.addr);
                state.write_u64(rest);
            }
        }
    }
}

/// An address as keys hold it: the bits and whether it is IPv6.
#[inline]
pub fn bits(addr: IpAddr) -> (u128, bool) {
    match addr {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), false),
        IpAddr::V6(v6) => (v6.to_bits(), true),
    }
}

/// The inverse of [`bits`].
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "an IPv4 address is the low 32 bits by contract")]
pub fn address(bits: u128, v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::from_bits(bits).into() } else { Ipv4Addr::from_bits(bits as u32).into() }
}

/// [`FlowKey::addresses_v4`] and [`FlowKey::ports`] of a packet from one address and port to another.
#[inline]
pub fn words_v4((src, sport): (u32, u16), (dst, dport): (u32, u16)) -> (u64, u32) {
    let addresses = (u64::from(src) << 32 | u64::from(dst)).to_be();
    (addresses, (u32::from(sport) << 16 | u32::from(dport)).to_be())
}

/// [`FlowKey::hash`] of [`FlowKey::addresses_v4`], [`FlowKey::ports`] and protocol.
#[inline]
pub fn hash_v4(addresses: u64, ports: u32, proto: u8, seed: u64) -> u64 {
    mix(addresses ^ seed, ports, proto)
}

/// Tuples differ in a few bits, which one multiplication does not bring into all of the result.
#[inline]
fn mix(addresses: u64, ports: u32, proto: u8) -> u64 {
    let ports = u64::from(ports) | u64::from(proto) << 32;
    fold(fold(addresses, ports ^ K2) ^ ports, K1)
}

// Digits of pi, odd: nothing up the sleeve.
const K0: u64 = 0x243f_6a88_85a3_08d3;
const K1: u64 = 0x1319_8a2e_0370_7345;
const K2: u64 = 0xa409_3822_299f_31d1;

/// The 128-bit product of `a` and `b`, its halves folded: every bit of the result depends on all of both.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let (high, low) = halves(u128::from(a) * u128::from(b));
    high ^ low
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
fn halves(word: u128) -> (u64, u64) {
    ((word >> 64) as u64, word as u64)
}
