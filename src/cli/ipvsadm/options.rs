//! The words of the command line: commands, options, and which go together.

/// A command: the first option of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    AddService,
    EditService,
    DeleteService,
    Flush,
    List,
    AddServer,
    DeleteServer,
    EditServer,
    SetTimeouts,
    StartDaemon,
    StopDaemon,
    Restore,
    Save,
    Zero,
}

impl Command {
    /// The name as messages have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AddService => "add-service",
            Self::EditService => "edit-service",
            Self::DeleteService => "delete-service",
            Self::Flush => "flush",
            Self::List => "list",
            Self::AddServer => "add-server",
            Self::DeleteServer => "delete-server",
            Self::EditServer => "edit-server",
            Self::SetTimeouts => "set",
            Self::StartDaemon => "start-daemon",
            Self::StopDaemon => "stop-daemon",
            Self::Restore => "restore",
            Self::Save => "save",
            Self::Zero => "zero",
        }
    }

    /// How the command stands to an option.
    fn rule(self, option: Opt) -> Rule {
        use Opt as O;
        use Rule::{Exclusive, Illegal, Needed, Optional};
        let service = matches!(option, O::Service);
        match self {
            Self::AddService | Self::EditService => match option {
                O::Service => Needed,
                O::Scheduler | O::Persistent | O::Netmask | O::OnePacket | O::Engine | O::SchedulerFlags => {
                    Optional
                }
                _ => Illegal,
            },
            Self::DeleteService if service => Needed,
            Self::AddServer | Self::EditServer => match option {
                O::Service | O::Server => Needed,
                O::Forward
                | O::Weight
                | O::Upper
                | O::Lower
                | O::TunType
                | O::TunPort
                | O::TunNoChecksum
                | O::TunChecksum
                | O::TunRemoteChecksum => Optional,
                _ => Illegal,
            },
            Self::DeleteServer if matches!(option, O::Service | O::Server) => Needed,
            Self::List => match option {
                O::Connection | O::Service | O::Timeout | O::Daemon => Exclusive,
                O::Numeric
                | O::Stats
                | O::Rate
                | O::Thresholds
                | O::PersistentConn
                | O::NoSort
                | O::SyncId
                | O::Exact
                | O::TunInfo => Optional,
                _ => Illegal,
            },
            Self::StartDaemon => match option {
                O::McastInterface
                | O::SyncId
                | O::McastGroup
                | O::McastPort
                | O::McastTtl
                | O::SyncMaxlen => Optional,
                _ => Illegal,
            },
            Self::StopDaemon if matches!(option, O::SyncId) => Optional,
            Self::Save if matches!(option, O::Numeric) => Optional,
            Self::Zero if service => Optional,
            _ => Illegal,
        }
    }
}

/// How a command stands to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Needed,
    Illegal,
    Exclusive,
    Optional,
}

macro_rules! opts {
    ($($variant:ident => $name:literal,)*) => {
        /// An option that is counted: it stands once a line at most. In the order in which messages look for faults.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Opt {
            $($variant,)*
        }

        impl Opt {
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name as messages have it.
            pub(super) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

opts! {
    Numeric => "numeric",
    Connection => "connection",
    Service => "service-address",
    Scheduler => "scheduler",
    Persistent => "persistent",
    Netmask => "netmask",
    Server => "real-server",
    Forward => "forwarding-method",
    Weight => "weight",
    Upper => "u-threshold",
    Lower => "l-threshold",
    McastInterface => "mcast-interface",
    Timeout => "timeout",
    Daemon => "daemon",
    Stats => "stats",
    Rate => "rate",
    Thresholds => "thresholds",
    PersistentConn => "persistent-conn",
    NoSort => "nosort",
    SyncId => "syncid",
    Exact => "exact",
    OnePacket => "ops",
    Engine => "pe",
    SchedulerFlags => "sched-flags",
    McastGroup => "mcast-group",
    McastPort => "mcast-port",
    McastTtl => "mcast-ttl",
    SyncMaxlen => "sync-maxlen",
    TunInfo => "tun-info",
    TunType => "tun-type",
    TunPort => "tun-port",
    TunNoChecksum => "tun-nocsum",
    TunChecksum => "tun-csum",
    TunRemoteChecksum => "tun-remcsum",
}

/// The options that a line has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Options(u64);

impl Options {
    /// Adds an option.
    ///
    /// # Errors
    /// The message, where the line already has it.
    pub(super) fn add(&mut self, option: Opt) -> Result<(), String> {
        if self.has(option) {
            return Err(format!("multiple '{}' options specified", option.name()));
        }
        self.0 |= 1 << option as u64;
        Ok(())
    }

    /// Whether the line has it.
    pub(super) fn has(self, option: Opt) -> bool {
        self.0 & (1 << option as u64) != 0
    }

    /// Whether the line has one of them.
    pub(super) fn has_any(self, options: &[Opt]) -> bool {
        options.iter().any(|option| self.has(*option))
    }

    /// Whether the options go with the command.
    ///
    /// # Errors
    /// The message about the first one that does not.
    pub(super) fn check(self, command: Command) -> Result<(), String> {
        self.check_by(|option| command.rule(option), command.name(), "command")
    }

    fn check_by(self, rule: impl Fn(Opt) -> Rule, name: &str, kind: &str) -> Result<(), String> {
        let mut first: Option<Opt> = None;
        for option in Opt::ALL.iter().copied() {
            let said = option.name();
            match (rule(option), self.has(option)) {
                (Rule::Needed, false) => {
                    return Err(format!("You need to supply the '{said}' option for the '{name}' {kind}"));
                }
                (Rule::Illegal, true) => {
                    return Err(format!("Illegal '{said}' option with the '{name}' {kind}"));
                }
                (Rule::Exclusive, true) => match first.replace(option) {
                    None => {}
                    Some(first) => {
                        let first = first.name();
                        return Err(format!(
                            "The option '{said}' conflicts with the '{first}' option in the '{name}' {kind}"
                        ));
                    }
                },
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the options of tunnels go with this type of tunnel.
    ///
    /// # Errors
    /// The message about the first one that does not.
    pub(super) fn check_tunnel(self, kind: control::ipvs::command::TunnelKind) -> Result<(), String> {
        use control::ipvs::command::TunnelKind::{Gre, Gue, Ipip};
        let rule = |option| match (option, kind) {
            (Opt::TunPort, Gue) => Rule::Needed,
            (Opt::TunNoChecksum | Opt::TunChecksum, Gue | Gre) | (Opt::TunRemoteChecksum, Gue) => {
                Rule::Exclusive
            }
            (Opt::TunPort | Opt::TunNoChecksum | Opt::TunChecksum | Opt::TunRemoteChecksum, _) => {
                Rule::Illegal
            }
            _ => Rule::Optional,
        };
        let name = match kind {
            Ipip => "ipip",
            Gue => "gue",
            Gre => "gre",
        };
        self.check_by(rule, name, "tunnel type")
    }
}

/// Whether a word takes an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    None,
    Needed,
    /// None where the next word begins with a dash or there is none.
    Optional,
}

/// What a word means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Command(Command),
    Help,
    Version,
    /// `-t`, `-u`, `--sctp-service`.
    Address(control::ipvs::command::Protocol),
    Mark,
    Ipv6,
    /// Neither changes anything.
    Sort,
    Masquerading,
    Tunneling,
    Gatewaying,
    Option(Opt),
}

/// A word of the command line: long name, short name, argument, meaning.
pub(super) struct Spelling {
    pub(super) long: &'static str,
    pub(super) short: Option<char>,
    pub(super) argument: Argument,
    pub(super) word: Word,
}

const fn spelling(long: &'static str, short: char, argument: Argument, word: Word) -> Spelling {
    let short = if short == ' ' { None } else { Some(short) };
    Spelling { long, short, argument, word }
}

/// Every word there is.
pub(super) const SPELLINGS: &[Spelling] = {
    use Argument::{Needed, None, Optional};
    use Word::Option as Of;
    use control::ipvs::command::Protocol;
    &[
        spelling("add-service", 'A', None, Word::Command(Command::AddService)),
        spelling("edit-service", 'E', None, Word::Command(Command::EditService)),
        spelling("delete-service", 'D', None, Word::Command(Command::DeleteService)),
        spelling("clear", 'C', None, Word::Command(Command::Flush)),
        spelling("list", 'L', None, Word::Command(Command::List)),
        spelling("list", 'l', None, Word::Command(Command::List)),
        spelling("zero", 'Z', None, Word::Command(Command::Zero)),
        spelling("add-server", 'a', None, Word::Command(Command::AddServer)),
        spelling("edit-server", 'e', None, Word::Command(Command::EditServer)),
        spelling("delete-server", 'd', None, Word::Command(Command::DeleteServer)),
        spelling("set", ' ', None, Word::Command(Command::SetTimeouts)),
        spelling("help", 'h', None, Word::Help),
        spelling("version", 'v', None, Word::Version),
        spelling("restore", 'R', None, Word::Command(Command::Restore)),
        spelling("save", 'S', None, Word::Command(Command::Save)),
        spelling("start-daemon", ' ', Needed, Word::Command(Command::StartDaemon)),
        spelling("stop-daemon", ' ', Needed, Word::Command(Command::StopDaemon)),
        spelling("tcp-service", 't', Needed, Word::Address(Protocol::Tcp)),
        spelling("udp-service", 'u', Needed, Word::Address(Protocol::Udp)),
        spelling("sctp-service", ' ', Needed, Word::Address(Protocol::Sctp)),
        spelling("fwmark-service", 'f', Needed, Word::Mark),
        spelling("ipv6", '6', None, Word::Ipv6),
        spelling("scheduler", 's', Needed, Of(Opt::Scheduler)),
        spelling("persistent", 'p', Optional, Of(Opt::Persistent)),
        spelling("netmask", 'M', Needed, Of(Opt::Netmask)),
        spelling("pe", ' ', Needed, Of(Opt::Engine)),
        spelling("sched-flags", 'b', Needed, Of(Opt::SchedulerFlags)),
        spelling("ops", 'o', None, Of(Opt::OnePacket)),
        spelling("real-server", 'r', Needed, Of(Opt::Server)),
        spelling("masquerading", 'm', None, Word::Masquerading),
        spelling("ipip", 'i', None, Word::Tunneling),
        spelling("gatewaying", 'g', None, Word::Gatewaying),
        spelling("weight", 'w', Needed, Of(Opt::Weight)),
        spelling("u-threshold", 'x', Needed, Of(Opt::Upper)),
        spelling("l-threshold", 'y', Needed, Of(Opt::Lower)),
        spelling("tun-type", ' ', Needed, Of(Opt::TunType)),
        spelling("tun-port", ' ', Needed, Of(Opt::TunPort)),
        spelling("tun-nocsum", ' ', None, Of(Opt::TunNoChecksum)),
        spelling("tun-csum", ' ', None, Of(Opt::TunChecksum)),
        spelling("tun-remcsum", ' ', None, Of(Opt::TunRemoteChecksum)),
        spelling("numeric", 'n', None, Of(Opt::Numeric)),
        spelling("connection", 'c', None, Of(Opt::Connection)),
        spelling("timeout", ' ', None, Of(Opt::Timeout)),
        spelling("daemon", ' ', None, Of(Opt::Daemon)),
        spelling("stats", ' ', None, Of(Opt::Stats)),
        spelling("rate", ' ', None, Of(Opt::Rate)),
        spelling("thresholds", ' ', None, Of(Opt::Thresholds)),
        spelling("persistent-conn", ' ', None, Of(Opt::PersistentConn)),
        spelling("tun-info", ' ', None, Of(Opt::TunInfo)),
        spelling("nosort", ' ', None, Of(Opt::NoSort)),
        spelling("sort", ' ', None, Word::Sort),
        spelling("exact", 'X', None, Of(Opt::Exact)),
        spelling("syncid", ' ', Needed, Of(Opt::SyncId)),
        spelling("sync-maxlen", ' ', Needed, Of(Opt::SyncMaxlen)),
        spelling("mcast-interface", ' ', Needed, Of(Opt::McastInterface)),
        spelling("mcast-group", ' ', Needed, Of(Opt::McastGroup)),
        spelling("mcast-port", ' ', Needed, Of(Opt::McastPort)),
        spelling("mcast-ttl", ' ', Needed, Of(Opt::McastTtl)),
    ]
};
