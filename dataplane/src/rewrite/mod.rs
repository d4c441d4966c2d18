//! What Weir changes in a frame, one file a purpose.

pub mod answer;
pub mod encap;
pub mod family;
pub mod handshake;
pub mod icmp;
pub mod identity;
pub mod l2;
pub mod mss;
pub mod nat;
pub mod segment;
pub mod split;
pub mod tunnelled;
