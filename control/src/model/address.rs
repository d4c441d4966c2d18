//! Addresses and runs of addresses.

use std::net::IpAddr;

use dataplane::flow::key;
use thiserror::Error;

/// Addresses that one SNAT pool holds at most.
pub const POOL_ADDRESSES_MAX: usize = 4096;

/// An address that one host can have: what VIPs, backends, SNAT and node addresses are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unicast(IpAddr);

/// Why an address is not [`Unicast`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotUnicast {
    /// 0.0.0.0 or ::.
    #[error("{0} is the unspecified address")]
    Unspecified(IpAddr),
    /// 127.0.0.0/8 or ::1.
    #[error("{0} is a loopback address")]
    Loopback(IpAddr),
    /// 224.0.0.0/4 or ff00::/8.
    #[error("{0} is a multicast address")]
    Multicast(IpAddr),
    /// 255.255.255.255.
    #[error("{0} is the broadcast address")]
    Broadcast(IpAddr),
    /// fe80::/10: says nothing without an interface.
    #[error("{0} is a link-local address")]
    LinkLocal(IpAddr),
    /// ::ffff:0:0/96: never on the wire.
    #[error("{0} is an IPv4 address in IPv6 form")]
    Mapped(IpAddr),
}

impl Unicast {
    /// The address, if one host can have it and a route can lead to it.
    pub fn new(addr: IpAddr) -> Result<Self, NotUnicast> {
        if addr.is_unspecified() {
            return Err(NotUnicast::Unspecified(addr));
        }
        if addr.is_loopback() {
            return Err(NotUnicast::Loopback(addr));
        }
        if addr.is_multicast() {
            return Err(NotUnicast::Multicast(addr));
        }
        match addr {
            IpAddr::V4(v4) if v4.is_broadcast() => Err(NotUnicast::Broadcast(addr)),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Err(NotUnicast::LinkLocal(addr)),
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(NotUnicast::Mapped(addr)),
            _ => Ok(Self(addr)),
        }
    }

    /// Any address, as IPVS takes it for a service: to one that no host can have, no packets come.
    pub fn unchecked(addr: IpAddr) -> Self {
        Self(addr)
    }

    /// The plain address.
    pub fn ip(self) -> IpAddr {
        self.0
    }

    /// Its family.
    pub fn family(self) -> Family {
        Family::of(self.0)
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// The name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// A run of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    family: Family,
    first: u128,
    count: usize,
}

/// Why two addresses are not the ends of an [`AddressRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadRange {
    /// An address of each family.
    #[error("{0} and {1} are not of one family")]
    Families(IpAddr, IpAddr),
    /// The end lies before the start.
    #[error("{1} is before {0}")]
    Backwards(IpAddr, IpAddr),
    /// More than a pool can hold.
    #[error("{0} to {1} are more than {POOL_ADDRESSES_MAX} addresses")]
    TooLong(IpAddr, IpAddr),
    /// An address in it cannot be a host's.
    #[error(transparent)]
    NotUnicast(#[from] NotUnicast),
}

impl AddressRange {
    /// The addresses from `first` to `last`, both included.
    pub fn new(first: IpAddr, last: IpAddr) -> Result<Self, BadRange> {
        let ((low, v6), (high, _)) = (key::bits(first), key::bits(last));
        let family = Family::of(first);
        if family != Family::of(last) {
            return Err(BadRange::Families(first, last));
        }
        let more = high.checked_sub(low).ok_or(BadRange::Backwards(first, last))?;
        let count = usize::try_from(more).ok().and_then(|more| more.checked_add(1));
        let count =
            count.filter(|count| *count <= POOL_ADDRESSES_MAX).ok_or(BadRange::TooLong(first, last))?;
        for bits in low..=high {
            Unicast::new(key::address(bits, v6))?;
        }
        Ok(Self { family, first: low, count })
    }

    /// The family of all addresses.
    pub fn family(&self) -> Family {
        self.family
    }

    /// How many addresses there are, at least 1.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether the address is one of them.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let (bits, _) = key::bits(addr);
        let at = bits.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        Family::of(addr) == self.family && at.is_some_and(|at| at < self.count)
    }

    /// The addresses, ascending.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v6 = self.family == Family::V6;
        (self.first..).take(self.count).map(move |bits| key::address(bits, v6))
    }
}
