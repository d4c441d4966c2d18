//! The order in which ipvsadm lists services and servers.
//!
//! Its comparisons take the difference of two numbers of 32 bits for a signed one, so `200.0.0.1` stands before
//! `10.0.0.1`, and three addresses can each come before the next. Then the algorithm decides: that of the C library is
//! a merge sort, so this is one too.

use std::net::IpAddr;

use control::ipvs::command::{Key, ServerKey};

/// Sorts `list` by the sign of `compare`, stable where that is 0. It need not be an order.
pub(super) fn sort<T>(list: &mut Vec<T>, compare: impl Fn(&T, &T) -> i32 + Copy) {
    if list.len() < 2 {
        return;
    }
    let mut right = list.split_off(list.len() / 2);
    sort(list, compare);
    sort(&mut right, compare);
    let (mut left, mut right) = (std::mem::take(list).into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let next = if compare(a, b) <= 0 { left.next() } else { right.next() };
        list.extend(next);
    }
    list.extend(left.chain(right));
}

/// By mark, family, protocol, address, port.
pub(super) fn services(a: Key, b: Key) -> i32 {
    let parts = |key| match key {
        Key::Mark { mark, v6 } => (mark.get(), v6, 0, IpAddr::from([0; 4]), 0),
        Key::Address { protocol, addr, port } => {
            (0, addr.is_ipv6(), u32::from(protocol.number()), addr, port)
        }
    };
    let ((mark_a, v6_a, protocol_a, addr_a, port_a), (mark_b, v6_b, protocol_b, addr_b, port_b)) =
        (parts(a), parts(b));
    first_difference([
        difference(mark_a, mark_b),
        difference(v6_a.into(), v6_b.into()),
        difference(protocol_a, protocol_b),
        addresses(addr_a, addr_b),
        difference(port_a.into(), port_b.into()),
    ])
}

/// By address and port.
pub(super) fn servers((addr_a, port_a): ServerKey, (addr_b, port_b): ServerKey) -> i32 {
    first_difference([addresses(addr_a, addr_b), difference(port_a.into(), port_b.into())])
}

fn first_difference<const N: usize>(differences: [i32; N]) -> i32 {
    differences.into_iter().find(|difference| *difference != 0).unwrap_or(0)
}

fn difference(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b).cast_signed()
}

/// Word by word if the first is of IPv6, else by the first word alone.
fn addresses(a: IpAddr, b: IpAddr) -> i32 {
    let (words_a, words_b) = (words(a), words(b));
    let count = if a.is_ipv6() { 4 } else { 1 };
    let differences = words_a.into_iter().zip(words_b).take(count).map(|(a, b)| difference(a, b));
    differences.into_iter().find(|difference| *difference != 0).unwrap_or(0)
}

fn words(addr: IpAddr) -> [u32; 4] {
    match addr {
        IpAddr::V4(addr) => [addr.to_bits(), 0, 0, 0],
        IpAddr::V6(addr) => {
            let word = |shift: u32| u32::try_from(addr.to_bits() >> shift & 0xffff_ffff).unwrap_or(0);
            [word(96), word(64), word(32), word(0)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_apart_addresses_are_the_wrong_way_round() {
        let mut list: Vec<ServerKey> =
            ["10.0.0.2", "10.0.0.1", "200.0.0.1", "fd00::1"].map(|addr| (addr.parse().unwrap(), 80)).into();
        sort(&mut list, |a, b| servers(*a, *b));
        let text: Vec<_> = list.iter().map(|(addr, _)| addr.to_string()).collect();
        assert_eq!(text, ["200.0.0.1", "fd00::1", "10.0.0.1", "10.0.0.2"]);
    }

    #[test]
    fn equal_ones_keep_their_order_and_the_rest_is_sorted() {
        let mut list: Vec<(i32, usize)> = [3, 1, 2, 3, 1, 2, 0].into_iter().zip(0..).collect();
        sort(&mut list, |a, b| a.0 - b.0);
        assert_eq!(list, [(0, 6), (1, 1), (1, 4), (2, 2), (2, 5), (3, 0), (3, 3)]);
    }
}
