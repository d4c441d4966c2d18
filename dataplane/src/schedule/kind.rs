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

impl Kind {
    /// Whether [`Scheduler::compile`](super::Scheduler::compile) knows it.
    pub fn is_available(self) -> bool {
        matches!(self, Self::Rr | Self::Wrr | Self::Lc | Self::Wlc | Self::Sh)
    }
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

/// Scheduler flags (ipvsadm: `-b`). A scheduler ignores those that are not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Flags {
    /// sh: the source port belongs to the hash, not the source address alone.
    pub sh_port: bool,
    /// sh: where the backend that the hash names takes no new flows, another one does.
    pub sh_fallback: bool,
}

/// No flag has this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown scheduler flag {0:?}")]
pub struct UnknownFlag(pub String);

impl Flags {
    /// Every flag's name.
    pub const NAMES: [&'static str; 2] = ["sh-fallback", "sh-port"];

    /// These flags and the one called `name`.
    pub fn with(mut self, name: &str) -> Result<Self, UnknownFlag> {
        match name {
            "sh-port" => self.sh_port = true,
            "sh-fallback" => self.sh_fallback = true,
            _ => return Err(UnknownFlag(name.to_owned())),
        }
        Ok(self)
    }

    /// The names of the flags that are set, in ipvsadm's order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let set = [self.sh_fallback, self.sh_port];
        Self::NAMES.into_iter().zip(set).filter_map(|(name, set)| set.then_some(name))
    }
}

impl FromStr for Flags {
    type Err = UnknownFlag;

    /// Names parted by commas, as ipvsadm takes them.
    fn from_str(names: &str) -> Result<Self, UnknownFlag> {
        names.split(',').try_fold(Self::default(), Self::with)
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
    fn what_is_available_compiles_and_nothing_else_does() {
        for kind in Kind::ALL {
            let compiled = Scheduler::compile(*kind, Flags::default(), &[]);
            assert_eq!(compiled.map(|scheduler| scheduler.kind()), kind.is_available().then_some(*kind));
        }
    }

    #[test]
    fn flags_are_read_as_they_are_written() {
        let both = Flags { sh_port: true, sh_fallback: true };
        for (text, want) in [
            ("sh-port", Ok(Flags { sh_port: true, sh_fallback: false })),
            ("sh-port,sh-fallback", Ok(both)),
            ("sh-fallback,sh-port", Ok(both)),
            ("sh-port,", Err(UnknownFlag(String::new()))),
            ("mh-port", Err(UnknownFlag("mh-port".to_owned()))),
        ] {
            assert_eq!(text.parse::<Flags>(), want, "{text}");
        }
        assert_eq!(both.names().collect::<Vec<_>>(), Flags::NAMES);
    }
}
