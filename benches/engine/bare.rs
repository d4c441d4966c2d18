//! The bare loop: the least that any load balancer does to an established packet. Parse, hash, find the flow,
//! rewrite, update the checksums; in batches, with prefetching. No services, states, timeouts, counters, drop
//! reasons, VLAN tags, fragments, ICMP or IPv6.

use std::array;

use dataplane::flow::key::FlowKey;
use dataplane::frame::{BATCH, Frame};
use dataplane::prefetch::prefetch;

use crate::frames::HEADERS_V4;

/// A flow and what its packets become. Two to a cache line; ports 0 mark a free place.
#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Entry {
    addresses: u64,
    ports: u32,
    new_ports: u32,
    new_addresses: u64,
    header_delta: u16,
    transport_delta: u16,
}

/// Flows in one array, found by linear probing.
pub(crate) struct Bare {
    entries: Vec<Entry>,
    mask: usize,
}

/// A parsed packet.
#[derive(Clone, Copy, Default)]
struct Parsed {
    addresses: u64,
    ports: u32,
    place: usize,
}

impl Bare {
    /// A table for `limit` flows, at most half full.
    pub(crate) fn new(limit: usize) -> Self {
        let places = (limit * 2).next_power_of_two();
        let mut entries = crate::memory::reserve(places);
        entries.resize(places, Entry::default());
        Self { entries, mask: places - 1 }
    }

    /// Adds a flow: packets of `from` become packets of `to`.
    pub(crate) fn insert(&mut self, from: &FlowKey, to: &FlowKey) {
        let (addresses, ports) = words(from);
        let (new_addresses, new_ports) = words(to);
        let mut place = self.place(addresses, ports);
        while self.entries[place].ports != 0 {
            place = (place + 1) & self.mask;
        }
        // One hop less takes 0x0100 off the word that TTL and protocol share.
        let ttl = u64::from(!0x0100_u16);
        let address_delta = u64::from(fold(sum(!addresses) + sum(new_addresses)));
        self.entries[place] = Entry {
            addresses,
            ports,
            new_ports,
            new_addresses,
            header_delta: fold(address_delta + ttl),
            transport_delta: fold(address_delta + sum(u64::from(!ports)) + sum(u64::from(new_ports))),
        };
    }

    /// Rewrites a batch. Returns how many frames belonged to a flow.
    #[inline(never)]
    pub(crate) fn process(&self, frames: &mut [Frame<'_>]) -> usize {
        let mut parsed = [None; BATCH];
        for (frame, parsed) in frames.iter().zip(&mut parsed) {
            *parsed = self.parse(frame.bytes());
        }
        let mut known = 0;
        for (frame, parsed) in frames.iter_mut().zip(parsed) {
            let entry = parsed.and_then(|parsed| self.find(parsed));
            if let (Some(entry), Some(header)) = (entry, frame.bytes_mut().first_chunk_mut()) {
                rewrite(header, entry);
                known += 1;
            }
        }
        known
    }

    #[inline]
    fn parse(&self, frame: &[u8]) -> Option<Parsed> {
        let header: &[u8; HEADERS_V4] = frame.first_chunk()?;
        let total = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let unfragmented = u16::from_be_bytes([header[20], header[21]]) & 0x3fff == 0;
        let tcp4 = header[12..15] == [0x08, 0x00, 0x45] && header[23] == 6;
        if !tcp4 || !unfragmented || total < 40 || total + 14 > frame.len() || header[22] < 2 {
            return None;
        }
        let addresses = u64::from_be_bytes(array::from_fn(|at| header[26 + at]));
        let ports = u32::from_be_bytes(array::from_fn(|at| header[34 + at]));
        let place = self.place(addresses, ports);
        prefetch(&self.entries[place]);
        Some(Parsed { addresses, ports, place })
    }

    #[inline]
    fn find(&self, parsed: Parsed) -> Option<&Entry> {
        let mut place = parsed.place;
        loop {
            let entry = &self.entries[place];
            if entry.addresses == parsed.addresses && entry.ports == parsed.ports {
                return Some(entry);
            }
            if entry.ports == 0 {
                return None;
            }
            place = (place + 1) & self.mask;
        }
    }

    #[inline]
    fn place(&self, addresses: u64, ports: u32) -> usize {
        const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
        let product = u128::from(addresses ^ SEED) * u128::from(u64::from(ports) ^ SEED.rotate_left(32));
        ((product >> 64) as u64 ^ product as u64) as usize & self.mask
    }
}

#[inline]
fn rewrite(header: &mut [u8; HEADERS_V4], entry: &Entry) {
    header[..12].copy_from_slice(&[2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 8]);
    header[22] -= 1;
    update(header, 24, entry.header_delta);
    header[26..34].copy_from_slice(&entry.new_addresses.to_be_bytes());
    header[34..38].copy_from_slice(&entry.new_ports.to_be_bytes());
    update(header, 50, entry.transport_delta);
}

/// RFC 1624, equation 3, with the difference summed up beforehand.
#[inline]
fn update(header: &mut [u8; HEADERS_V4], at: usize, delta: u16) {
    let old = u16::from_be_bytes([header[at], header[at + 1]]);
    let new = !fold(u64::from(!old) + u64::from(delta));
    header[at..at + 2].copy_from_slice(&new.to_be_bytes());
}

/// Addresses and ports of an IPv4 key, each pair in one word.
fn words(key: &FlowKey) -> (u64, u32) {
    ((key.src as u64) << 32 | key.dst as u64, u32::from(key.sport) << 16 | u32::from(key.dport))
}

/// Sum of the four 16-bit words.
fn sum(words: u64) -> u64 {
    (words & 0xffff) + (words >> 16 & 0xffff) + (words >> 32 & 0xffff) + (words >> 48)
}

#[inline]
fn fold(sum: u64) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}
