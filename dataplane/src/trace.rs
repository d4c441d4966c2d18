//! The engine's own account of one packet, for `weir explain`. In production [`Silent`] compiles to nothing.

use crate::ids::{BackendId, HopId, ServiceId, WorkerId};
use crate::snapshot::Mode;
use crate::verdict::DropReason;

/// One decision on the path of a packet, in the order in which the engine takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The packet belongs to a known flow; `reply` where it comes from the backend.
    FlowKnown {
        /// Direction: true from the backend to the client.
        reply: bool,
        /// The flow's service.
        service: ServiceId,
        /// The flow's backend.
        backend: BackendId,
    },
    /// No worker's flow table knows the packet.
    FlowUnknown,
    /// Another worker owns the flow.
    FlowElsewhere(WorkerId),
    /// The destination is this service.
    ServiceMatched(ServiceId),
    /// The destination is no service, no SNAT address and no VIP.
    NotOurs,
    /// The destination is in a network of virtual addresses and no service; whether one has the address at all.
    NoService {
        /// Whether some service has it.
        allocated: bool,
    },
    /// The scheduler chose this backend.
    Scheduled(BackendId),
    /// A flow was opened in this mode.
    FlowOpened(Mode),
    /// A SNAT address and port were taken for the flow.
    SnatTaken {
        /// Address, IPv4 in the low 32 bits.
        address: std::net::IpAddr,
        /// Source port towards the backend.
        port: u16,
    },
    /// The frame leaves by this next hop.
    NextHop(HopId),
    /// An answer was made in place of forwarding.
    Answered(Answer),
    /// An ICMP error about a known flow was translated.
    IcmpTranslated,
    /// A later fragment goes where the first one of its packet went.
    FragmentFollows,
    /// The packet is larger than its path and leaves in so many pieces.
    Split(usize),
    /// A later fragment has come before the first one of its packet.
    FragmentEarly,
    /// The packet was refused for this reason.
    Refused(DropReason),
}

/// What was answered in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// ARP reply for an owned address.
    Arp,
    /// Neighbour advertisement for an owned address.
    NeighbourAdvertisement,
    /// Echo reply for an owned address.
    Echo,
    /// SYN-ACK with a cookie.
    Cookie,
    /// The last acknowledgement of a handshake, to the backend.
    Handshake,
    /// TCP RST.
    Reset,
    /// ICMP or ICMPv6 port unreachable.
    PortUnreachable,
    /// ICMP fragmentation needed, or ICMPv6 packet too big.
    TooBig,
    /// ICMP or ICMPv6 time exceeded.
    TimeExceeded,
}

/// Receives the steps.
pub trait Trace {
    /// Called once a decision.
    fn step(&mut self, step: Step);
}

/// Records nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Trace for Silent {
    #[inline]
    fn step(&mut self, _: Step) {}
}

impl Trace for Vec<Step> {
    fn step(&mut self, step: Step) {
        self.push(step);
    }
}
