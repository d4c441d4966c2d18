//! What an interface's RSS settings say of the queue that a frame arrives on, for choosing SNAT ports by it.

use dataplane::flow::suited::{Spread, TABLE_LIMIT};
use dataplane::flow::toeplitz::KEY_LEN;
use dataplane::snapshot::steering::{Claim, Class};

use super::Rss;

/// Why SNAT ports cannot be chosen by an interface's hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclaimed {
    /// No indirection table.
    #[error("its driver tells no indirection table")]
    Untold,
    /// Another function, or one that is not told.
    #[error("its hash function is {}, not toeplitz", .0.as_deref().unwrap_or("not told"))]
    Function(Option<String>),
    /// The same hash in both directions.
    #[error("its hash is symmetric (input_xfrm), which Weir does not compute")]
    Symmetric,
    /// No key.
    #[error("its driver tells no RSS key")]
    NoKey,
    /// Too short a key.
    #[error("its RSS key has {0} bytes, not {min} or more", min = KEY_LEN)]
    Key(usize),
    /// A table whose places are not bits of the hash.
    #[error("its indirection table has {0} entries, not a power of two up to {max}", max = TABLE_LIMIT)]
    Table(usize),
    /// It hashes addresses alone.
    #[error("it hashes no ports of TCP or UDP (ethtool -N INTERFACE rx-flow-hash tcp4 sdfn)")]
    NoPorts,
}

/// The claim that an interface makes by its settings.
pub fn claim(rss: Option<&Rss>) -> Result<Claim, Unclaimed> {
    let rss = rss.ok_or(Unclaimed::Untold)?;
    if rss.function.as_deref() != Some("toeplitz") {
        return Err(Unclaimed::Function(rss.function.clone()));
    }
    if rss.symmetric {
        return Err(Unclaimed::Symmetric);
    }
    if rss.key.is_empty() {
        return Err(Unclaimed::NoKey);
    }
    let key = bytes(&rss.key);
    if key.len() < KEY_LEN {
        return Err(Unclaimed::Key(key.len()));
    }
    if Spread::new(&key, &rss.table).is_none() {
        return Err(Unclaimed::Table(rss.table.len()));
    }
    // Where it is not told (before Linux 6.17) it is found out by looking at frames.
    let is_hashed = |class: &Class| rss.hashes_ports.is_none_or(|of| of.has(*class));
    let claim =
        Claim { key, table: rss.table.clone(), classes: Class::ALL.into_iter().filter(is_hashed).collect() };
    if claim.classes.is_empty() { Err(Unclaimed::NoPorts) } else { Ok(claim) }
}

/// Bytes from hexadecimal digits, up to what is none.
fn bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map_while(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::HashesPorts;
    use super::*;

    fn rss() -> Rss {
        Rss {
            key: "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
                .to_owned(),
            table: vec![0, 1, 0, 1],
            function: Some("toeplitz".to_owned()),
            symmetric: false,
            hashes_ports: None,
        }
    }

    #[test]
    fn what_is_told_of_a_hash_is_a_claim_or_has_a_reason_not_to_be() {
        let (all, none) =
            (HashesPorts { tcp4: true, udp4: true, tcp6: true, udp6: true }, HashesPorts::default());
        let function = |name: Option<&str>| Unclaimed::Function(name.map(str::to_owned));
        for (name, rss, want) in [
            ("not told of ports", rss(), Ok(&Class::ALL[..])),
            ("all ports", Rss { hashes_ports: Some(all), ..rss() }, Ok(&Class::ALL[..])),
            (
                "UDP by addresses",
                Rss { hashes_ports: Some(HashesPorts { udp4: false, udp6: false, ..all }), ..rss() },
                Ok(&[Class::Tcp4, Class::Tcp6][..]),
            ),
            ("addresses alone", Rss { hashes_ports: Some(none), ..rss() }, Err(Unclaimed::NoPorts)),
            ("another function", Rss { function: Some("xor".into()), ..rss() }, Err(function(Some("xor")))),
            ("an untold function", Rss { function: None, ..rss() }, Err(function(None))),
            ("symmetric", Rss { symmetric: true, ..rss() }, Err(Unclaimed::Symmetric)),
            ("no key", Rss { key: String::new(), ..rss() }, Err(Unclaimed::NoKey)),
            ("a key that is none", Rss { key: "6d5ax".into(), ..rss() }, Err(Unclaimed::Key(2))),
            ("an odd table", Rss { table: vec![0, 1, 0], ..rss() }, Err(Unclaimed::Table(3))),
        ] {
            let claimed = claim(Some(&rss));
            let want = want.map(|classes| Claim {
                key: bytes(&rss.key),
                table: rss.table.clone(),
                classes: classes.iter().copied().collect(),
            });
            assert_eq!(claimed, want, "{name}");
        }
        assert_eq!(claim(None), Err(Unclaimed::Untold));
    }
}
