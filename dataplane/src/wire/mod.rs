//! Headers as they lie on the wire: one type a header, laid over the bytes it was read from. No policy.
//!
//! Every type is a plain layout of bytes and big-endian integers, so any bytes are a valid value and reading a
//! field cannot fail. [`view`] and [`view_mut`] prove the length once; the same type serves to read and to rewrite.

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod ftp;
pub mod gre;
pub mod gue;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod sctp;
pub mod sip;
pub mod tcp;
pub mod tcp_options;
pub mod udp;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The bytes end before the header does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

/// A header of fixed size that may lie anywhere in a frame.
pub trait Header: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned {}
impl<T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned> Header for T {}

/// The header of type `H` that starts `offset` bytes into `bytes`.
#[inline]
pub fn view<H: Header>(bytes: &[u8], offset: usize) -> Result<&H, Truncated> {
    let (header, _) = bytes.get(offset..).and_then(|rest| H::ref_from_prefix(rest).ok()).ok_or(Truncated)?;
    Ok(header)
}

/// [`view`], to be rewritten in place.
#[inline]
pub fn view_mut<H: Header>(bytes: &mut [u8], offset: usize) -> Result<&mut H, Truncated> {
    let (header, _) =
        bytes.get_mut(offset..).and_then(|rest| H::mut_from_prefix(rest).ok()).ok_or(Truncated)?;
    Ok(header)
}
