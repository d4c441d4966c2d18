//! The names of the schedulers and of their flags.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// The schedulers of IPVS.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $variant,)*
        }

        impl Kind {
            /// Every scheduler.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name that ipvsadm and the configuration use.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

kinds! {
    /// Round robin.
    Rr => "rr",
    /// Weighted round robin.
    Wrr => "wrr",
    /// Least connections.
    Lc => "lc",
    /// Weighted least connections.
    Wlc => "wlc",
    /// Locality-based least connections.
    Lblc => "lblc",
    /// Locality-based least connections with replication.
    Lblcr => "lblcr",
    /// Destination hashing.
    Dh => "dh",
    /// Source hashing.
    Sh => "sh",
    /// Shortest expected delay.
    Sed => "sed",
    /// Never queue.
    Nq => "nq",
    /// Weighted failover.
    Fo => "fo",
    /// Weighted overflow.
    Ovf => "ovf",
    /// Maglev hashing.
    Mh => "mh",
    /// Power of two choices.
    Twos => "twos",
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// No scheduler has this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown scheduler {0:?}")]
pub struct UnknownScheduler(pub String);

impl FromStr for Kind {
    type Err = UnknownScheduler;

    fn from_str(name: &str) -> Result<Self, UnknownScheduler> {
        let found = Self::ALL.iter().find(|kind| kind.name() == name);
        found.copied().ok_or_else(|| UnknownScheduler(name.to_owned()))
    }
}

/// Scheduler flags (ipvsadm: `-b`): three bits that every scheduler has, and of which sh and mh use two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Flags {
    /// `sh-fallback`, `mh-fallback`, `flag-1`: where the backend that the hash names takes no new flows, another does.
    pub fallback: bool,
    /// `sh-port`, `mh-port`, `flag-2`: the source port belongs to the hash, not the source address alone.
    pub port: bool,
    /// `flag-3`: nobody uses it.
    pub third: bool,
}

/// A flag that a scheduler cannot have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FlagError {
    /// No flag has this name.
    #[error("unknown scheduler flag {0:?}")]
    Unknown(String),
    /// It is another scheduler's.
    #[error("scheduler flag {flag} is not one of {kind}'s")]
    Incompatible {
        /// The flag.
        flag: &'static str,
        /// The scheduler.
        kind: Kind,
    },
}

/// The flags by the names that every scheduler takes, in the order of their bits.
const PLAIN: [&str; 3] = ["flag-1", "flag-2", "flag-3"];
const SH: [&str; 3] = ["sh-fallback", "sh-port", "flag-3"];
const MH: [&str; 3] = ["mh-fallback", "mh-port", "flag-3"];

impl Flags {
    /// What this scheduler's flags are called, in ipvsadm's order.
    pub fn known(kind: Kind) -> [&'static str; 3] {
        match kind {
            Kind::Sh => SH,
            Kind::Mh => MH,
            _ => PLAIN,
        }
    }

    /// These flags and the one called `name`, for a scheduler of `kind`.
    pub fn with(mut self, kind: Kind, name: &str) -> Result<Self, FlagError> {
        let of = |names: [&'static str; 3]| names.into_iter().zip(0..).find(|(known, _)| *known == name);
        match of(Self::known(kind)).or(of(PLAIN)) {
            Some((_, 0)) => self.fallback = true,
            Some((_, 1)) => self.port = true,
            Some(_) => self.third = true,
            None => {
                let other = of(SH).or(of(MH)).map(|(flag, _)| FlagError::Incompatible { flag, kind });
                return Err(other.unwrap_or_else(|| FlagError::Unknown(name.to_owned())));
            }
        }
        Ok(self)
    }

    /// Reads names parted by commas, as ipvsadm takes them.
    pub fn parse(kind: Kind, names: &str) -> Result<Self, FlagError> {
        names.split(',').try_fold(Self::default(), |flags, name| flags.with(kind, name))
    }

    /// The names of the flags that are set, in ipvsadm's order.
    pub fn names(self, kind: Kind) -> impl Iterator<Item = &'static str> {
        let set = [self.fallback, self.port, self.third];
        Self::known(kind).into_iter().zip(set).filter_map(|(name, set)| set.then_some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Scheduler;
    use super::*;

    #[test]
    fn every_scheduler_is_found_by_its_name() {
        assert_eq!(Kind::ALL.len(), 14);
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(*kind));
        }
        assert_eq!("RR".parse::<Kind>(), Err(UnknownScheduler("RR".to_owned())));
    }

    #[test]
    fn every_scheduler_compiles() {
        for kind in Kind::ALL {
            assert_eq!(Scheduler::compile(*kind, Flags::default(), &[]).kind(), *kind);
        }
    }

    #[test]
    fn flags_are_read_as_they_are_written() {
        let flags = |fallback, port, third| Ok(Flags { fallback, port, third });
        let foreign = |flag, kind| Err(FlagError::Incompatible { flag, kind });
        for (kind, text, want) in [
            (Kind::Sh, "sh-port", flags(false, true, false)),
            (Kind::Sh, "sh-fallback,sh-port", flags(true, true, false)),
            (Kind::Sh, "sh-port,flag-1", flags(true, true, false)),
            (Kind::Sh, "mh-port", foreign("mh-port", Kind::Sh)),
            (Kind::Mh, "mh-fallback", flags(true, false, false)),
            (Kind::Mh, "sh-fallback", foreign("sh-fallback", Kind::Mh)),
            (Kind::Rr, "flag-1,flag-3", flags(true, false, true)),
            (Kind::Rr, "sh-port", foreign("sh-port", Kind::Rr)),
            (Kind::Sh, "sh-port,", Err(FlagError::Unknown(String::new()))),
            (Kind::Mh, "mh", Err(FlagError::Unknown("mh".to_owned()))),
        ] {
            assert_eq!(Flags::parse(kind, text), want, "{kind} {text}");
        }
        let all = Flags { fallback: true, port: true, third: true };
        for kind in Kind::ALL {
            assert_eq!(all.names(*kind).collect::<Vec<_>>(), Flags::known(*kind));
        }
    }
}
