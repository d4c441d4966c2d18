//! What becomes of a frame, and why.

use crate::ids::{PortId, WorkerId};

/// What the I/O does with a frame after the engine has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Rewritten; sent by this port, in pieces where [`Frame::split`] says so.
    ///
    /// [`Frame::split`]: crate::frame::Frame::split
    Tx(PortId),
    /// Answered in place (ARP, neighbour discovery, ICMP, TCP RST); sent by the port it came in by. The reason
    /// is there where the answer stands for a refusal.
    Reply(Option<DropReason>),
    /// Belongs to a flow of another worker; unchanged.
    Handoff(WorkerId),
    /// Not Weir's; unchanged, for the kernel.
    Kernel,
    /// The MAC address of its next hop is not known and is being asked for; unchanged. Whoever can keeps it for a
    /// moment and gives it to the engine again, once there are new tables; else it is dropped as
    /// [`DropReason::NoNeighbour`].
    Unresolved,
    /// A later fragment, and what becomes of its packet is not known yet; unchanged. Whoever can keeps it for a moment and
    /// gives it to the engine again once other fragments have come, at last with [`Frame::overdue`] set; else it is
    /// dropped as [`DropReason::FragmentUnmatched`].
    ///
    /// [`Frame::overdue`]: crate::frame::Frame::overdue
    Early,
    /// A segment of a client whose backend has not answered yet; unchanged. Whoever can keeps it for a moment and gives it to
    /// the engine again once a backend has answered, at last with [`Frame::overdue`] set; else it is dropped as
    /// [`DropReason::BackendSilent`].
    ///
    /// [`Frame::overdue`]: crate::frame::Frame::overdue
    Unanswered,
    /// Not delivered.
    Drop(DropReason),
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a packet was not delivered: return type, metric label and test expectation at once.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The reason's name as counters, JSON and documentation have it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    /// A header runs past the end of the frame.
    Truncated => "truncated",
    /// A length field contradicts the frame or another field.
    BadLength => "bad_length",
    /// A field has a value that the protocol forbids (version, IHL, data offset, more than two VLAN tags).
    BadHeader => "bad_header",
    /// The IPv4 header checksum or an ICMP checksum is wrong.
    BadChecksum => "bad_checksum",
    /// TTL or hop limit is used up.
    TtlExceeded => "ttl_exceeded",
    /// The source address cannot be a sender's: multicast, broadcast, loopback or unspecified.
    BadSource => "bad_source",
    /// The source address is one of Weir's own VIPs or SNAT addresses.
    SourceIsVip => "source_is_vip",
    /// Source and destination are the same address and port.
    Land => "land",
    /// A fragment of what Weir does not carry in fragments: ICMP, another protocol, a translation between IPv4 and IPv6.
    Fragment => "fragment",
    /// A fragment that cuts a transport header off, or starts inside of one.
    TinyFragment => "tiny_fragment",
    /// A later fragment whose first one did not come, or came long ago.
    FragmentUnmatched => "fragment_unmatched",
    /// An IP protocol or ICMP type that Weir does not carry for this address.
    Unsupported => "unsupported",
    /// The client is in none of the networks that may use the service.
    SourceRange => "source_range",
    /// The service has no backend that takes new flows.
    NoBackend => "no_backend",
    /// The service has no backend that takes new flows from here, where others have some: nobody is told.
    NoLocalBackend => "no_local_backend",
    /// The address is a service's, and none has it on this port.
    NoServicePort => "no_service_port",
    /// The address is in a network of virtual addresses, and no service has it.
    UnallocatedAddress => "unallocated_address",
    /// The flow's backend was removed, and the settings have such flows end (`drop_removed`).
    BackendRemoved => "backend_removed",
    /// A packet in the middle of a flow that nobody knows.
    NoFlow => "no_flow",
    /// A segment in the middle of a flow that nobody knows, of a service that may answer SYNs by cookies: it repeats none, or
    /// an old one.
    BadCookie => "bad_cookie",
    /// A segment of a client whose backend does not answer.
    BackendSilent => "backend_silent",
    /// The flow table is full.
    FlowTableFull => "flow_table_full",
    /// More flows would be opened in a second than the limit allows (`new_flows_per_s`).
    NewFlowLimit => "new_flow_limit",
    /// Memory is short, and this packet, which would open a flow, is one of those that `drop_packet` drops.
    DropPacket => "drop_packet",
    /// No SNAT port is free towards this backend.
    SnatExhausted => "snat_exhausted",
    /// The client's address and port already lead to this backend for another service (`nat` keeps both).
    TupleInUse => "tuple_in_use",
    /// The backend chosen is the client itself, and there is no SNAT pool to tell the two ends apart (`nat`).
    Hairpin => "hairpin",
    /// No route to the next address.
    NoRoute => "no_route",
    /// The neighbour's MAC address is not known, and did not become known while the frame was kept.
    NoNeighbour => "no_neighbour",
    /// Weir has no address of its own in the backend's family that a tunnel could begin at.
    NoSource => "no_source",
    /// The route leads by an interface that Weir does not serve.
    NoPort => "no_port",
    /// Larger than the MTU of its path, and not to be fragmented.
    MtuExceeded => "mtu_exceeded",
    /// No room left in the frame's chunk for what had to be added.
    NoHeadroom => "no_headroom",
    /// An ICMP error about a flow that nobody knows.
    IcmpNoFlow => "icmp_no_flow",
    /// An ICMP error about a packet in a tunnel quotes too little of it to tell whose it is.
    IcmpShortQuote => "icmp_short_quote",
    /// A received frame is larger than the MTU of every interface when Weir started.
    FrameTooLarge => "frame_too_large",
    /// The ring to the worker that owns the flow is full.
    HandoffFull => "handoff_full",
    /// The frame is larger than a handoff slot or a chunk of the owner.
    HandoffTooLarge => "handoff_too_large",
    /// The kernel's, but there is no path to hand it over (`kernel_path: none`).
    NoKernelPath => "no_kernel_path",
    /// The egress interface's TX ring is full, or has no room for all pieces of a packet.
    TxRingFull => "tx_ring_full",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_name_and_number() {
        let names: std::collections::BTreeSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (number, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
        }
    }
}
