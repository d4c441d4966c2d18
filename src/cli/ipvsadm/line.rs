//! One command line, read and checked as ipvsadm does: same order, same messages.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use control::ipvs::command::{
    Forward, Key, Netmask, Protocol, SchedulerFlags, Server, Service, SyncRole, Timeouts, TunnelChecksum,
    TunnelKind,
};

use super::numbers::{ipv4, number, place};
use super::options::{Command, Opt, Options, Word};
use super::sync;
use super::words::Words;

/// 31 days: the longest idle time and persistence, in seconds.
const TIMEOUT_MAX: i64 = 31 * 86_400;
/// Persistence where `-p` names no time, in seconds.
const PERSISTENCE: u32 = 360;
/// Bytes of a scheduler's or an engine's name at most, as the kernel has it.
const NAME_MAX: usize = 15;

/// Why a line is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The program ends with this status and message.
    Fail(u8, String),
    /// No command: the program ends with a hint on the help.
    Try,
    /// A word is misspelt: the line counts as failed, and a restoration goes on with the next.
    Misspelt(String),
}

/// What a line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Help,
    Version,
    Restore,
    /// `-L` and `-S`.
    List(Listing),
    Change(control::ipvs::command::Command),
}

/// What is listed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) subject: Subject,
    pub(super) options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// All services as lines that `-R` takes.
    Rules,
    Table,
    One(Key),
    Connections,
    Timeouts,
    Daemon,
}

fn fail(message: impl Into<String>) -> Fault {
    Fault::Fail(2, message.into())
}

/// Reads a line without the program's name.
pub(super) fn read(line: &[String]) -> Result<Line, Fault> {
    let mut words = Words::new(line);
    let command = match words.next() {
        Ok(Some((Word::Command(command), argument))) => (command, argument),
        Ok(Some((Word::Help, _))) => return Ok(Line::Help),
        Ok(Some((Word::Version, _))) => return Ok(Line::Version),
        _ => return Err(Fault::Try),
    };
    let (command, argument) = command;
    let role = match command {
        Command::StartDaemon => sync::role(argument, "illegal start-daemon parameter specified")?,
        // Spelt so by ipvsadm.
        Command::StopDaemon => sync::role(argument, "illegal start_daemon specified")?,
        _ => SyncRole::Master,
    };
    let mut entry = Entry::new();
    loop {
        match words.next() {
            Ok(None) => break,
            Ok(Some((word, argument))) => {
                entry.take(word, argument.unwrap_or_default(), argument.is_some(), &words)?
            }
            Err(fault) => return Err(Fault::Misspelt(format!("{}: {}", fault.at, fault.what))),
        }
    }
    let mut others = words.others();
    let mut timeouts = [0; 3];
    if command == Command::SetTimeouts {
        let given = [others.next(), others.next(), others.next()];
        for (timeout, text) in timeouts.iter_mut().zip(given) {
            let text = text.filter(|_| given.iter().all(Option::is_some));
            let text = text.ok_or_else(|| fail("--set option requires 3 timeout values"))?;
            *timeout = seconds(text, 0)?;
        }
    }
    if let Some(other) = others.next() {
        return Err(fail(format!("unexpected argument {other}")));
    }
    // Before it is known whether the command has any.
    let flags = scheduler_flags(&entry.scheduler, &entry.flags)?;
    entry.finish(command, role, timeouts, flags)
}

/// What the words of a line have said so far.
#[derive(Debug)]
struct Entry {
    options: Options,
    /// Protocol, address and port of `-t` and its like.
    address: Option<(Protocol, IpAddr, u16)>,
    mark: Option<NonZeroU32>,
    mark_v6: bool,
    netmask: Netmask,
    scheduler: String,
    flags: String,
    persistent_s: Option<u32>,
    one_packet: bool,
    engine: String,
    server: Option<(IpAddr, u16)>,
    forward: Option<Word>,
    weight: u32,
    upper: u32,
    lower: u32,
    tunnel: TunnelKind,
    tunnel_port: u16,
}

impl Entry {
    fn new() -> Self {
        Self {
            options: Options::default(),
            address: None,
            mark: None,
            mark_v6: false,
            netmask: Netmask::V4(Ipv4Addr::BROADCAST),
            scheduler: String::new(),
            flags: String::new(),
            persistent_s: None,
            one_packet: false,
            engine: String::new(),
            server: None,
            forward: None,
            weight: 1,
            upper: 0,
            lower: 0,
            tunnel: TunnelKind::default(),
            tunnel_port: 0,
        }
    }

    /// Takes a word with its argument, empty where it has none.
    fn take(&mut self, word: Word, text: &str, is_given: bool, words: &Words<'_>) -> Result<(), Fault> {
        let counted = match word {
            Word::Address(_) | Word::Mark => Some(Opt::Service),
            Word::Masquerading | Word::Tunneling | Word::Gatewaying => Some(Opt::Forward),
            Word::Option(option) => Some(option),
            Word::Command(_) | Word::Help | Word::Version | Word::Ipv6 | Word::Sort => None,
        };
        if let Some(option) = counted {
            self.options.add(option).map_err(fail)?;
        }
        match word {
            Word::Command(_) | Word::Help | Word::Version => {
                return Err(fail(format!("invalid option `{}'", words.last())));
            }
            Word::Address(protocol) => self.take_address(protocol, text)?,
            Word::Mark => self.mark = Some(mark(text)?),
            Word::Ipv6 if self.mark.is_some() => {
                self.mark_v6 = true;
                self.netmask = Netmask::V6(128);
            }
            Word::Ipv6 => return Err(fail("-6 used before -f\n")),
            Word::Sort => {}
            Word::Masquerading | Word::Tunneling | Word::Gatewaying => self.forward = Some(word),
            Word::Option(option) => self.take_option(option, text, is_given)?,
        }
        Ok(())
    }

    fn take_address(&mut self, protocol: Protocol, text: &str) -> Result<(), Fault> {
        let place = place(text, Some(protocol));
        let place = place.ok_or_else(|| fail("illegal virtual server address[:port] specified"))?;
        if place.addr.is_ipv6() {
            self.netmask = Netmask::V6(128);
        }
        self.address = Some((protocol, place.addr, place.port.unwrap_or(0)));
        Ok(())
    }

    fn take_option(&mut self, option: Opt, text: &str, is_given: bool) -> Result<(), Fault> {
        let ranged = |low, high, what: &str| {
            let number = number(text, low, high).and_then(|number| u32::try_from(number).ok());
            number.ok_or_else(|| fail(format!("illegal {what} specified")))
        };
        let most = i32::MAX.into();
        match option {
            Opt::Scheduler => self.scheduler = shortened(text),
            Opt::Persistent => {
                self.persistent_s = Some(if is_given { seconds(text, 1)? } else { PERSISTENCE });
            }
            Opt::Netmask => self.netmask = self.netmask_of(text)?,
            Opt::Engine => self.engine = shortened(text),
            Opt::SchedulerFlags => self.flags = text.to_owned(),
            Opt::OnePacket => self.one_packet = true,
            Opt::Server => self.take_server(text)?,
            Opt::Weight => self.weight = ranged(0, most, "weight")?,
            Opt::Upper => self.upper = ranged(0, most, "u_threshold")?,
            Opt::Lower => self.lower = ranged(0, most, "l_threshold")?,
            Opt::TunType => {
                self.tunnel = match text {
                    "ipip" => TunnelKind::Ipip,
                    "gue" => TunnelKind::Gue,
                    "gre" => TunnelKind::Gre,
                    _ => return Err(fail("illegal tunnel type specified")),
                };
            }
            Opt::TunPort => {
                let port = ranged(1, u16::MAX.into(), "tunnel port")?;
                self.tunnel_port = u16::try_from(port).unwrap_or_default();
            }
            option => sync::check(option, text).map_err(fail)?,
        }
        Ok(())
    }

    fn is_v6(&self) -> bool {
        self.mark_v6 || self.address.is_some_and(|(_, addr, _)| addr.is_ipv6())
    }

    fn netmask_of(&self, text: &str) -> Result<Netmask, Fault> {
        if !self.is_v6() {
            let mask = ipv4(text).ok_or_else(|| fail("illegal virtual server persistent mask specified"))?;
            return Ok(Netmask::V4(mask));
        }
        // `atoi`: what stands behind the digits does not count.
        let digits = text.trim_start().trim_start_matches('+');
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let length = digits.get(..end).and_then(|digits| digits.parse().ok());
        let length = length.filter(|length| (1..=128).contains(length));
        length.map(Netmask::V6).ok_or_else(|| fail("illegal ipv6 netmask specified"))
    }

    /// A port that is not given is the service's, where that was given before.
    fn take_server(&mut self, text: &str) -> Result<(), Fault> {
        let protocol = match (self.address, self.mark) {
            (Some((protocol, ..)), _) => Some(protocol),
            // Any will do.
            (None, Some(_)) => Some(Protocol::Tcp),
            (None, None) => None,
        };
        let place = place(text, protocol);
        let place = place.ok_or_else(|| fail("illegal real server address[:port] specified"))?;
        let port = place.port.or(self.address.map(|(.., port)| port));
        self.server = Some((place.addr, port.unwrap_or(0)));
        Ok(())
    }

    /// Checks the line as a whole.
    fn finish(
        self,
        command: Command,
        role: SyncRole,
        timeouts: [u32; 3],
        flags: SchedulerFlags,
    ) -> Result<Line, Fault> {
        use control::ipvs::command::Command as Change;
        self.options.check(command).map_err(fail)?;
        let options = self.options;
        let list = |subject| Line::List(Listing { subject, options });
        let change = match command {
            Command::List => return Ok(list(self.subject()?)),
            Command::Save => return Ok(list(Subject::Rules)),
            Command::Restore => return Ok(Line::Restore),
            Command::Flush => Change::Flush,
            Command::AddService => Change::AddService(self.service(flags)?),
            Command::EditService => Change::EditService(self.service(flags)?),
            Command::DeleteService => Change::DeleteService(self.key()?),
            Command::AddServer => Change::AddServer(self.key()?, self.server()?),
            Command::EditServer => Change::EditServer(self.key()?, self.server()?),
            Command::DeleteServer => Change::DeleteServer(self.key()?, self.server.ok_or(Fault::Try)?),
            Command::Zero if self.options.has(Opt::Service) => Change::Zero(Some(self.key()?)),
            Command::Zero => Change::Zero(None),
            Command::SetTimeouts => {
                let [tcp_s, tcp_fin_s, udp_s] = timeouts;
                Change::SetTimeouts(Timeouts { tcp_s, tcp_fin_s, udp_s })
            }
            Command::StartDaemon => Change::StartDaemon(role),
            Command::StopDaemon => Change::StopDaemon(role),
        };
        Ok(Line::Change(change))
    }

    fn subject(&self) -> Result<Subject, Fault> {
        let options = self.options;
        let counts = [Opt::Stats, Opt::Rate, Opt::Thresholds];
        let other = [Opt::Timeout, Opt::Daemon];
        if options.has(Opt::Connection) && options.has_any(&counts)
            || options.has_any(&other) && (options.has_any(&counts) || options.has(Opt::PersistentConn))
        {
            return Err(fail("options conflicts in the list command"));
        }
        Ok(if options.has(Opt::Connection) {
            Subject::Connections
        } else if options.has(Opt::Service) {
            Subject::One(self.key()?)
        } else if options.has(Opt::Timeout) {
            Subject::Timeouts
        } else if options.has(Opt::Daemon) {
            Subject::Daemon
        } else {
            Subject::Table
        })
    }

    /// What the service is found by. Whoever asks has seen to it that there is one.
    fn key(&self) -> Result<Key, Fault> {
        let by_mark = self.mark.map(|mark| Key::Mark { mark, v6: self.mark_v6 });
        let by_address = self.address.map(|(protocol, addr, port)| Key::Address { protocol, addr, port });
        by_address.or(by_mark).ok_or(Fault::Try)
    }

    fn service(self, flags: SchedulerFlags) -> Result<Service, Fault> {
        let key = self.key()?;
        let scheduler = if self.scheduler.is_empty() { "wlc".to_owned() } else { self.scheduler };
        if let Key::Address { port: 0, .. } = key
            && self.persistent_s.is_none()
        {
            return Err(fail("Zero port specified for non-persistent service"));
        }
        if self.one_packet
            && let Key::Address { protocol: Protocol::Tcp | Protocol::Sctp, .. } = key
        {
            return Err(fail("One-Packet Scheduling is only for UDP virtual services"));
        }
        Ok(Service {
            key,
            scheduler,
            flags,
            persistent_s: self.persistent_s,
            netmask: self.netmask,
            one_packet: self.one_packet,
            engine: self.engine,
        })
    }

    fn server(&self) -> Result<Server, Fault> {
        let key = self.key()?;
        let (addr, mut port) = self.server.ok_or(Fault::Try)?;
        let tunnels = self.forward == Some(Word::Tunneling);
        // What is not translated keeps its port.
        if let Key::Address { port: service, .. } = key
            && self.forward != Some(Word::Masquerading)
        {
            port = service;
        }
        if addr.is_ipv6() != key.is_v6() && !tunnels {
            return Err(fail("Different address family is allowed only for tunneling servers"));
        }
        const TUNNEL: [Opt; 5] =
            [Opt::TunType, Opt::TunPort, Opt::TunNoChecksum, Opt::TunChecksum, Opt::TunRemoteChecksum];
        let forward = match self.forward {
            Some(Word::Tunneling) => {
                self.options.check_tunnel(self.tunnel).map_err(fail)?;
                Forward::Tunnel { kind: self.tunnel, port: self.tunnel_port, checksum: self.checksum() }
            }
            _ if self.options.has_any(&TUNNEL) => {
                return Err(fail("Tunnel options conflict with forward method"));
            }
            Some(Word::Masquerading) => Forward::Masq,
            _ => Forward::Route,
        };
        let Self { weight, upper, lower, .. } = *self;
        Ok(Server { addr, port, forward, weight, upper, lower })
    }

    fn checksum(&self) -> TunnelChecksum {
        if self.options.has(Opt::TunChecksum) {
            TunnelChecksum::Full
        } else if self.options.has(Opt::TunRemoteChecksum) {
            TunnelChecksum::Remote
        } else {
            TunnelChecksum::None
        }
    }
}

/// A name as the kernel takes it: cut, not refused.
fn shortened(name: &str) -> String {
    name.chars().take(NAME_MAX).collect()
}

fn seconds(text: &str, least: i64) -> Result<u32, Fault> {
    let seconds = number(text, least, TIMEOUT_MAX).and_then(|seconds| u32::try_from(seconds).ok());
    seconds.ok_or_else(|| fail(format!("invalid timeout value `{text}' specified")))
}

fn mark(text: &str) -> Result<NonZeroU32, Fault> {
    let mark = number(text, 1, u32::MAX.into()).and_then(|mark| u32::try_from(mark).ok());
    mark.and_then(NonZeroU32::new).ok_or_else(|| fail(format!("invalid fwmark value `{text}' specified")))
}

/// The flags by name, parted by commas. Those with the name of a scheduler are for that one alone.
fn scheduler_flags(scheduler: &str, names: &str) -> Result<SchedulerFlags, Fault> {
    let mut flags = SchedulerFlags::default();
    for name in names.split(',').filter(|name| !name.is_empty()) {
        let (of, flag) = match name {
            "flag-1" => (None, &mut flags.first),
            "flag-2" => (None, &mut flags.second),
            "flag-3" => (None, &mut flags.third),
            "sh-fallback" => (Some("sh"), &mut flags.first),
            "sh-port" => (Some("sh"), &mut flags.second),
            "mh-fallback" => (Some("mh"), &mut flags.first),
            "mh-port" => (Some("mh"), &mut flags.second),
            _ => return Err(fail(format!("invalid scheduler flag `{name}'"))),
        };
        if of.is_some_and(|of| of != scheduler) {
            return Err(fail(format!("incompatible scheduler flag `{name}'")));
        }
        *flag = true;
    }
    Ok(flags)
}
