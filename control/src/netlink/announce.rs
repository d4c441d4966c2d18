//! Telling the neighbours where the owned addresses are, and the interfaces which solicitations to let in.
//!
//! Answers to ARP and neighbour solicitations are the workers'. What is left for control: a gratuitous ARP request
//! (RFC 5227, section 3) or an unsolicited neighbour advertisement (RFC 4861, section 7.2.6) when an address becomes
//! Weir's or its link comes up, and membership of the solicited-node groups (RFC 4291, section 2.7.1), without which
//! an interface's multicast filter may discard the solicitations. An address is announced by the link whose network
//! it lies in; one that is routed to Weir needs no announcement.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use dataplane::snapshot::Net;
use dataplane::snapshot::net::{Hop, Link, Port};
use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv6Header, Icmpv6Type, IpNumber, Ipv6Header,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SetSockOpt, SockFlag, SockType, SockaddrLike, bind, send, socket,
};
use nix::{setsockopt_impl, sockopt_impl};

use super::compile;

/// Solicited-node groups an interface joins one by one; past that it lets all multicast in.
const GROUPS: usize = 64;

sockopt_impl!(
    /// Lets multicast in on an interface, as long as the socket is open (packet(7)).
    AddMembership,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_ADD_MEMBERSHIP,
    libc::packet_mreq
);
sockopt_impl!(
    /// Takes one membership back.
    DropMembership,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_DROP_MEMBERSHIP,
    libc::packet_mreq
);

/// What an interface's multicast filter has to let in.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
enum Groups {
    #[default]
    None,
    Some(BTreeSet<[u8; 6]>),
    All,
}

/// A packet socket on one served interface. It receives nothing; its memberships end with it.
#[derive(Debug)]
struct PortSocket {
    socket: OwnedFd,
    ifindex: u32,
    joined: Groups,
}

/// The sockets and the announcements still to be sent.
#[derive(Debug, Default)]
pub struct Announcer {
    sockets: Vec<Option<PortSocket>>,
    owned: BTreeSet<IpAddr>,
    /// The groups in which owned addresses are asked for, and how many in each.
    solicited: BTreeMap<[u8; 6], u32>,
    pending: VecDeque<(u32, IpAddr)>,
}

impl Announcer {
    /// Opens a socket on each port, in the network namespace of the calling thread.
    pub fn open(ports: &[Port]) -> io::Result<Self> {
        let sockets =
            ports.iter().map(|port| PortSocket::open(port.ifindex).map(Some)).collect::<io::Result<_>>()?;
        Ok(Self { sockets, ..Self::default() })
    }

    /// Weir answers for these addresses now, or no longer: new ones are announced, and groups joined and left.
    pub fn follow(&mut self, net: &Net, owned: impl IntoIterator<Item = (IpAddr, bool)>) {
        let mut groups_changed = false;
        for (addr, is_owned) in owned {
            let has_changed = if is_owned { self.owned.insert(addr) } else { self.owned.remove(&addr) };
            if !has_changed {
                continue;
            }
            if is_owned {
                self.pending.extend(compile::on_link(net, addr).map(|link| (link, addr)));
            }
            groups_changed |= self.count_group(addr, is_owned);
        }
        if groups_changed {
            let groups = groups(self.solicited.keys());
            for socket in self.sockets.iter_mut().flatten() {
                socket.join(&groups);
            }
        }
    }

    /// Counts an address in its group. Returns whether there is one group more or less.
    fn count_group(&mut self, addr: IpAddr, is_owned: bool) -> bool {
        let Some(group) = group(addr) else { return false };
        let members = self.solicited.entry(group).or_default();
        if is_owned {
            *members += 1;
            return *members == 1;
        }
        *members -= 1;
        if *members == 0 {
            self.solicited.remove(&group);
            return true;
        }
        false
    }

    /// Announces again what is reached by another link than before, or by one that has come up, or whose port has
    /// another MAC address.
    pub fn net_changed(&mut self, old: &Net, new: &Net) {
        let mac = |net: &Net, link: &u32| Some(net.port(net.links.get(link)?.port)?.mac);
        for addr in &self.owned {
            let before = compile::on_link(old, *addr);
            let is_new = |link: &u32| before != Some(*link) || mac(old, link) != mac(new, link);
            self.pending.extend(compile::on_link(new, *addr).filter(is_new).map(|link| (link, *addr)));
        }
    }

    /// Sends at most `count` of the announcements that are due.
    pub fn send_due(&mut self, net: &Net, count: usize) {
        let count = count.min(self.pending.len());
        for (index, addr) in self.pending.drain(..count) {
            let Some(link) = net.links.get(&index) else { continue };
            let port = link.port.index();
            let (Some(port), Some(Some(socket))) = (net.ports.get(port), self.sockets.get(port)) else {
                continue;
            };
            let frame = announcement(addr, link, port.mac);
            // A link that has just gone down cannot send; it announces when it is up again.
            if let Err(error) = send(socket.socket.as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT) {
                tracing::debug!(%addr, port = %port.name, %error, "not announced");
            }
        }
    }

    /// Whether announcements are waiting.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }
}

impl PortSocket {
    fn open(ifindex: u32) -> io::Result<Self> {
        // Protocol 0: nothing is ever received.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        let is_it = |addr: &&nix::sys::socket::SockaddrStorage| {
            addr.as_link_addr().is_some_and(|link| u32::try_from(link.ifindex()) == Ok(ifindex))
        };
        let addresses: Vec<_> =
            nix::ifaddrs::getifaddrs()?.filter_map(|interface| interface.address).collect();
        let address = addresses.iter().find(is_it).ok_or(io::Error::from_raw_os_error(libc::ENODEV))?;
        debug_assert_eq!(address.family(), Some(AddressFamily::Packet));
        bind(socket.as_raw_fd(), address)?;
        Ok(Self { socket, ifindex, joined: Groups::None })
    }

    fn join(&mut self, wanted: &Groups) {
        if self.joined == *wanted {
            return;
        }
        for request in self.requests(wanted, &self.joined) {
            self.apply(AddMembership, &request);
        }
        for request in self.requests(&self.joined, wanted) {
            self.apply(DropMembership, &request);
        }
        self.joined = wanted.clone();
    }

    fn apply(&self, option: impl SetSockOpt<Val = libc::packet_mreq>, request: &libc::packet_mreq) {
        if let Err(error) = nix::sys::socket::setsockopt(&self.socket, option, request) {
            tracing::warn!(
                ifindex = self.ifindex,
                %error,
                "multicast membership: neighbour solicitations may not arrive on this interface"
            );
        }
    }

    /// What `groups` has and `but` has not, as the kernel wants it.
    fn requests(&self, groups: &Groups, but: &Groups) -> Vec<libc::packet_mreq> {
        let request = |kind, group: [u8; 6]| {
            let mut address = [0; 8];
            address.iter_mut().zip(group).for_each(|(to, from)| *to = from);
            libc::packet_mreq {
                mr_ifindex: self.ifindex.cast_signed(),
                mr_type: u16::try_from(kind).unwrap_or_default(),
                mr_alen: 6,
                mr_address: address,
            }
        };
        match (groups, but) {
            (Groups::None, _) | (Groups::All, Groups::All) => Vec::new(),
            (Groups::All, _) => vec![request(libc::PACKET_MR_ALLMULTI, [0; 6])],
            (Groups::Some(groups), but) => {
                let known = |group: &&[u8; 6]| matches!(but, Groups::Some(but) if but.contains(*group));
                let new = groups.iter().filter(|group| !known(group));
                new.map(|group| request(libc::PACKET_MR_MULTICAST, *group)).collect()
            }
        }
    }
}

/// The group in which an address is asked for, if it is IPv6.
fn group(addr: IpAddr) -> Option<[u8; 6]> {
    match addr {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => {
            let [.., a, b, c] = v6.octets();
            Some([0x33, 0x33, 0xff, a, b, c])
        }
    }
}

/// What lets these groups in.
fn groups<'g>(list: impl ExactSizeIterator<Item = &'g [u8; 6]>) -> Groups {
    match list.len() {
        0 => Groups::None,
        1..=GROUPS => Groups::Some(list.copied().collect()),
        _ => Groups::All,
    }
}

/// The frame that tells a link's neighbours that `addr` is at `mac`.
fn announcement(addr: IpAddr, link: &Link, mac: [u8; 6]) -> Vec<u8> {
    let frame = |to: [u8; 6], ether_type: EtherType| {
        let mut frame = Hop::new(link, mac, to).header.to_vec();
        frame.extend(ether_type.0.to_be_bytes());
        frame
    };
    match addr {
        IpAddr::V4(v4) => {
            let mut frame = frame([0xff; 6], EtherType::ARP);
            frame.extend(gratuitous_arp(v4, mac));
            frame
        }
        IpAddr::V6(v6) => {
            let mut frame = frame([0x33, 0x33, 0, 0, 0, 1], EtherType::IPV6);
            frame.extend(unsolicited_advertisement(v6, mac));
            frame
        }
    }
}

fn gratuitous_arp(addr: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let addr = addr.octets();
    let ethernet = ArpHardwareId::ETHERNET;
    ArpPacket::new(ethernet, EtherType::IPV4, ArpOperation::REQUEST, &mac, &addr, &[0; 6], &addr)
        .map(|packet| packet.to_bytes().to_vec())
        .unwrap_or_default()
}

fn unsolicited_advertisement(addr: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
    let mut body = addr.octets().to_vec();
    body.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    body.extend(mac);
    let flags = NeighborAdvertisementHeader { router: false, solicited: false, r#override: true };
    let kind = Icmpv6Type::NeighborAdvertisement(flags);
    let Ok(icmp) = Icmpv6Header::with_checksum(kind, addr.octets(), ALL_NODES.octets(), &body) else {
        return Vec::new();
    };
    let header = Ipv6Header {
        payload_length: u16::try_from(icmp.header_len() + body.len()).unwrap_or_default(),
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: 255,
        source: addr.octets(),
        destination: ALL_NODES.octets(),
        ..Ipv6Header::default()
    };
    let mut packet = header.to_bytes().to_vec();
    packet.extend(icmp.to_bytes());
    packet.extend(body);
    packet
}

#[cfg(test)]
mod tests {
    use arrayvec::ArrayVec;
    use dataplane::ids::PortId;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn link(vlans: &[(u16, u16)]) -> Link {
        Link { port: PortId(0), vlans: ArrayVec::try_from(vlans).unwrap(), mtu: 1500 }
    }

    #[test]
    fn an_ipv4_address_is_announced_by_an_arp_request_for_itself() {
        for vlans in [&[][..], &[(0x8100, 7)], &[(0x88a8, 5), (0x8100, 7)]] {
            let frame = announcement(IpAddr::from([10, 0, 0, 10]), &link(vlans), MAC);
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(NetSlice::Arp(arp)) = packet.net else { panic!("no ARP in {frame:?}") };
            assert_eq!(arp.operation(), ArpOperation::REQUEST);
            assert_eq!((arp.sender_hw_addr(), arp.sender_protocol_addr()), (&MAC[..], &[10, 0, 0, 10][..]));
            assert_eq!(arp.target_protocol_addr(), [10, 0, 0, 10]);
            assert_eq!(frame[..12], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9]);
            assert_eq!(packet.link_exts.len(), vlans.len());
        }
    }

    #[test]
    fn an_ipv6_address_is_announced_by_an_unsolicited_overriding_advertisement() {
        let addr: Ipv6Addr = "fd00::10".parse().unwrap();
        let frame = announcement(addr.into(), &link(&[]), MAC);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &packet.net else { panic!("no IPv6 in {frame:?}") };
        let header = ip.header();
        assert_eq!((header.source_addr(), header.hop_limit()), (addr, 255));
        assert_eq!(header.destination_addr(), "ff02::1".parse::<Ipv6Addr>().unwrap());
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("no ICMPv6") };
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
        let flags = NeighborAdvertisementHeader { router: false, solicited: false, r#override: true };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::NeighborAdvertisement(flags));
        assert_eq!(icmp.payload()[..16], addr.octets());
        assert_eq!(icmp.payload()[16..], [2, 1, 2, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn groups_are_joined_one_by_one_up_to_a_limit() {
        let v6 = |net: u16, last: u16| IpAddr::V6(Ipv6Addr::new(net, 0, 0, 0, 0, 0, 0x00ab, last));
        let mut announcer = Announcer::default();
        let mut joined = |addresses: &[(IpAddr, bool)]| {
            announcer.follow(&Net::default(), addresses.iter().copied());
            groups(announcer.solicited.keys())
        };
        let one = Groups::Some(BTreeSet::from([[0x33, 0x33, 0xff, 0xab, 0x12, 0x34]]));
        assert_eq!(joined(&[([10, 0, 0, 1].into(), true)]), Groups::None);
        assert_eq!(joined(&[(v6(0xfd00, 0x1234), true), (v6(0xfd01, 0x1234), true)]), one);
        assert_eq!(joined(&[(v6(0xfd00, 0x1234), false), (v6(0xfd00, 0x1234), false)]), one, "one is left");
        assert_eq!(joined(&[(v6(0xfd01, 0x1234), false)]), Groups::None);
        let many: Vec<_> = (0..=64).map(|last| (v6(0xfd00, last), true)).collect();
        assert_eq!(joined(&many), Groups::All);
    }
}
