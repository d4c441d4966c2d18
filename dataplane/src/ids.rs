//! Ids of what the tables hold. All are indices into slabs and stay the same across generations.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $int);

        impl $name {
            /// The id as an index into its slab.
            #[inline]
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

id! {
    /// An interface that Weir serves, in the order of the configuration.
    PortId(u8)
}
id! {
    /// A worker: one core, one queue index on every port.
    WorkerId(u8)
}
id! {
    /// A service: virtual address, port and protocol.
    ServiceId(u32)
}
id! {
    /// A backend of one service (IPVS: real server). The same address in two services has two ids.
    BackendId(u32)
}
id! {
    /// A layer-2 next hop: interface, VLAN and MAC address of a neighbour.
    HopId(u32)
}
id! {
    /// A SNAT pool.
    PoolId(u16)
}

/// A backend id that no backend has.
pub const NO_BACKEND: BackendId = BackendId(u32::MAX);
