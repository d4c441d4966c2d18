//! Rules that give marks -> what the kernel's map holds for each block of destinations. Pure.
//!
//! The map finds the longest prefix of a destination, and that one has to have every rule that can match: its own, and
//! those of the larger blocks that it lies in. The first rule that matches decides, so their order stays.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::abi::{MAX_RULES, Prefix, RuleLine, RuleLines, masked};
use crate::ours::Rule;

const ANY_V4: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
const ANY_V6: (IpAddr, u8) = (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// The content of the map.
pub(crate) fn lines(rules: &[Rule]) -> HashMap<Prefix, Arc<RuleLines>> {
    let blocks = rules.iter().flat_map(|rule| {
        let of_family = |any: (IpAddr, u8)| {
            let src = rule.src.is_none_or(|(src, _)| src.is_ipv4() == any.0.is_ipv4());
            src.then_some(any)
        };
        match rule.dst {
            Some(dst) => [Some(dst), None],
            None => [of_family(ANY_V4), of_family(ANY_V6)],
        }
    });
    let blocks: Vec<_> = blocks.flatten().collect();
    let line = |block: &(IpAddr, u8)| (Prefix::new(block.0, block.1), Arc::new(about(*block, rules)));
    // A block without any service is the kernel's, as if it were not there; inside another one it keeps that one's away.
    blocks.iter().map(line).collect()
}

/// The rules about packets to a block of destinations.
fn about(block: (IpAddr, u8), rules: &[Rule]) -> RuleLines {
    let (addr, _) = block;
    let same_family =
        |rule: &&Rule| rule.src.or(rule.dst).is_none_or(|(other, _)| other.is_ipv4() == addr.is_ipv4());
    let around =
        rules.iter().filter(same_family).filter(|rule| rule.dst.is_none_or(|dst| lies_in(block, dst)));
    let mut all = around.map(|rule| line(rule, addr.is_ipv6()));
    let mut lines = RuleLines { count: 0, list: [RuleLine::default(); MAX_RULES] };
    for (place, line) in lines.list.iter_mut().zip(&mut all) {
        *place = line;
        lines.count += 1;
    }
    // What does not fit becomes one rule with the last place: wide enough for all that these would give a service.
    let beyond: Vec<_> = all.collect();
    if let Some(last) = lines.list.last_mut().filter(|_| !beyond.is_empty()) {
        let start = RuleLine { ours: 0, ..*last };
        let ours = [*last].into_iter().chain(beyond).filter(|line| line.ours != 0);
        *last = ours.fold(start, widened);
    }
    lines
}

/// One rule that matches what either of two matches.
fn widened(wide: RuleLine, with: RuleLine) -> RuleLine {
    if wide.ours == 0 {
        return with;
    }
    let same_source = (wide.src, wide.src_mask) == (with.src, with.src_mask);
    RuleLine {
        src: if same_source { wide.src } else { [0; 16] },
        src_mask: if same_source { wide.src_mask } else { [0; 16] },
        dport_low: wide.dport_low.min(with.dport_low),
        dport_high: wide.dport_high.max(with.dport_high),
        sport_low: wide.sport_low.min(with.sport_low),
        sport_high: wide.sport_high.max(with.sport_high),
        port: if wide.port == with.port { wide.port } else { RuleLine::ANY_PORT },
        protos: wide.protos | with.protos,
        ours: 1,
    }
}

fn line(rule: &Rule, v6: bool) -> RuleLine {
    let (src, src_mask) = rule.src.map_or(([0; 16], [0; 16]), |(addr, length)| masked(addr, length));
    let [v4, of_v6] = rule.ours;
    RuleLine {
        src,
        src_mask,
        dport_low: *rule.dports.start(),
        dport_high: *rule.dports.end(),
        sport_low: *rule.sports.start(),
        sport_high: *rule.sports.end(),
        port: rule.port.map_or(RuleLine::ANY_PORT, u16::from),
        protos: rule.protos.iter().fold(0, |set, proto| set | proto.bit()),
        ours: u8::from(if v6 { of_v6 } else { v4 }),
    }
}

/// Whether all addresses of `block` are in `other`.
fn lies_in(block: (IpAddr, u8), other: (IpAddr, u8)) -> bool {
    let ((addr, length), (of, shorter)) = (block, other);
    let ((bits, _), (of_bits, mask)) = (masked(addr, 0), masked(of, shorter));
    let within = bits.iter().zip(of_bits).zip(mask).all(|((a, b), mask)| (a ^ b) & mask == 0);
    addr.is_ipv4() == of.is_ipv4() && shorter <= length && within
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ours::Proto;

    fn rule(dst: Option<(&str, u8)>, port: u16) -> Rule {
        Rule {
            src: None,
            dst: dst.map(|(addr, length)| (addr.parse().unwrap(), length)),
            protos: vec![Proto::Tcp, Proto::Sctp],
            dports: port..=port,
            sports: 0..=u16::MAX,
            port: None,
            ours: [true, false],
        }
    }

    /// The destination ports of the rules about a block, by precedence.
    fn ports(lines: &HashMap<Prefix, Arc<RuleLines>>, addr: &str, length: u8) -> Option<Vec<u16>> {
        let lines = lines.get(&Prefix::new(addr.parse().unwrap(), length))?;
        Some(lines.list.iter().take(lines.count as usize).map(|line| line.dport_low).collect())
    }

    #[test]
    fn a_block_has_the_rules_of_those_around_it_in_their_order() {
        let lines = lines(&[
            rule(Some(("10.1.0.0", 16)), 1),
            rule(Some(("10.0.0.0", 8)), 2),
            rule(Some(("10.1.2.3", 32)), 3),
            rule(None, 4),
            rule(Some(("fd00::", 8)), 5),
            rule(Some(("10.2.0.0", 16)), 6),
        ]);
        assert_eq!(lines.len(), 7);
        for (addr, length, want) in [
            ("10.1.2.3", 32, vec![1, 2, 3, 4]),
            ("10.1.0.0", 16, vec![1, 2, 4]),
            ("10.2.0.0", 16, vec![2, 4, 6]),
            ("10.0.0.0", 8, vec![2, 4]),
            ("0.0.0.0", 0, vec![4]),
            ("fd00::", 8, vec![4, 5]),
            ("::", 0, vec![4]),
        ] {
            assert_eq!(ports(&lines, addr, length), Some(want), "{addr}/{length}");
        }
    }

    #[test]
    fn a_rule_about_sources_has_their_family_alone() {
        let src = Some(("fd00:1::".parse().unwrap(), 32));
        let lines = lines(&[Rule { src, ..rule(None, 1) }]);
        assert_eq!((ports(&lines, "::", 0), ports(&lines, "0.0.0.0", 0)), (Some(vec![1]), None));
    }

    #[test]
    fn what_is_past_the_limit_becomes_one_wide_rule() {
        let most = u16::try_from(MAX_RULES).unwrap();
        let mut rules: Vec<_> = (0..most + 10).map(|port| rule(None, port)).collect();
        let kept = lines(&rules);
        let of = |lines: &HashMap<Prefix, Arc<RuleLines>>| {
            *lines.get(&Prefix::new(ANY_V4.0, 0)).unwrap().list.last().unwrap()
        };
        let wide = of(&kept);
        assert_eq!((wide.dport_low, wide.dport_high, wide.ours), (most - 1, most + 9, 1));
        rules[usize::from(most) - 1].ours = [false; 2];
        rules[usize::from(most)] = Rule { src: Some((ANY_V4.0, 8)), ..rule(None, 9000) };
        let wide = of(&lines(&rules));
        assert_eq!((wide.dport_low, wide.dport_high), (most + 1, 9000));
        assert_eq!(wide.src_mask, [0; 16], "not every one has a source");
        rules.iter_mut().for_each(|rule| rule.ours = [false; 2]);
        assert_eq!(of(&lines(&rules)).ours, 0);
    }
}
