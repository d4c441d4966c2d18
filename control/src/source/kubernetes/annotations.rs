//! What a Service asks for by annotations of Weir's own, `weir.dev/...`. A faulty one is left out, and said.

use std::net::IpAddr;
use std::str::FromStr as _;

use dataplane::schedule::{Flags, Kind};
use dataplane::snapshot::{Mode, Options, Tunnel};

use super::object::{Endpoint, FaultKind, Faults, PREFIX, Service, sloppy};
use super::settings::Settings;
use crate::model::{SECONDS_MAX, Scheduling, WEIGHT_MAX, Weight};

/// Every annotation, without the prefix.
pub const NAMES: [&str; 8] =
    [DRAIN, MODE, PROXY_PROTOCOL, SCHEDULER, SCHEDULER_FLAGS, STATELESS_FALLBACK, TUNNEL_PORT, WEIGHTS];
const DRAIN: &str = "drain-cap-seconds";
const MODE: &str = "forwarding-mode";
const PROXY_PROTOCOL: &str = "proxy-protocol";
const SCHEDULER: &str = "scheduler";
const SCHEDULER_FLAGS: &str = "scheduler-flags";
const STATELESS_FALLBACK: &str = "stateless-fallback";
const TUNNEL_PORT: &str = "tunnel-port";
const WEIGHTS: &str = "weights";

/// Destination port of `gue` where nothing else is said: the one that IANA keeps for it.
const GUE_PORT: u16 = 6080;
/// Weights of one Service at most.
const WEIGHTS_MAX: usize = 4096;

/// What a Service asks for, with the settings' word where it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// How endpoints are chosen.
    pub scheduling: Scheduling,
    /// How they get their packets.
    pub mode: Mode,
    /// How they get them by a tunnel.
    pub tunnel: Tunnel,
    /// What is beyond IPVS.
    pub options: Options,
    weights: Vec<(Whose, Weight)>,
}

/// Whose weight it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whose {
    Address(IpAddr),
    /// Of the endpoint with this host name, or all those on the Node with this name.
    Name(Box<str>),
}

impl Wishes {
    /// An endpoint's weight: the one said of its address, else of its host name, else of its Node, else 1.
    pub fn weight(&self, endpoint: &Endpoint) -> Weight {
        if self.weights.is_empty() {
            return Weight::default();
        }
        let hostname = endpoint.extra.as_ref().and_then(|extra| extra.hostname.as_deref());
        let named = |name: Option<&str>| {
            let name = name?;
            let is_it = |whose: &Whose| matches!(whose, Whose::Name(known) if **known == *name);
            self.weights.iter().find(|(whose, _)| is_it(whose))
        };
        let address = self.weights.iter().find(|(whose, _)| *whose == Whose::Address(endpoint.addr));
        let found = address.or_else(|| named(hostname)).or_else(|| named(endpoint.node.as_deref()));
        found.map_or(Weight::default(), |(_, weight)| *weight)
    }
}

/// Reads a Service's annotations.
pub fn read(service: &Service, settings: &Settings, faults: &mut Faults) -> Wishes {
    let mut reader = Reader { service, faults };
    reader.refuse_unknown();
    let tunnel_port = reader.read(TUNNEL_PORT, |text| number(text, 1, u16::MAX.into()));
    let mode = reader.read(MODE, mode).unwrap_or(settings.mode);
    let port = tunnel_port.and_then(|port| u16::try_from(port).ok()).unwrap_or(GUE_PORT);
    let port = if mode == Mode::Gue { port } else { 0 };
    Wishes {
        scheduling: reader.scheduling(settings),
        mode,
        tunnel: Tunnel { port, ..Tunnel::default() },
        options: Options {
            stateless_fallback: reader.read(STATELESS_FALLBACK, flag).unwrap_or(false),
            proxy_protocol: reader.read(PROXY_PROTOCOL, flag).unwrap_or(false),
            drain_s: reader.read(DRAIN, |text| number(text, 0, SECONDS_MAX)).or(settings.drain_s),
            ..Options::default()
        },
        weights: reader.weights(),
    }
}

struct Reader<'a> {
    service: &'a Service,
    faults: &'a mut Faults,
}

impl Reader<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        let full = |key: &str| key.strip_prefix(PREFIX) == Some(name);
        self.service.annotations.iter().find(|(key, _)| full(key)).map(|(_, value)| value.trim())
    }

    fn refuse(&mut self, name: &str, reason: &str) {
        let field = format_args!("metadata.annotations[{PREFIX}{name}]");
        self.faults.push(FaultKind::Annotation, field, reason);
    }

    fn read<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let parsed = parse(self.text(name)?);
        parsed.map_err(|reason| self.refuse(name, &reason)).ok()
    }

    fn refuse_unknown(&mut self) {
        for (key, _) in &self.service.annotations {
            let Some(name) = key.strip_prefix(PREFIX).filter(|name| !NAMES.contains(name)) else { continue };
            let near = NAMES.into_iter().map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
            match near.filter(|(distance, _)| *distance <= 3) {
                Some((_, known)) => self.refuse(name, &format!("is unknown; did you mean {PREFIX}{known}?")),
                None => self.refuse(name, &format!("is unknown, known are {}", NAMES.join(", "))),
            }
        }
    }

    /// Flags go with a scheduler: those of the settings are of the scheduler there.
    fn scheduling(&mut self, settings: &Settings) -> Scheduling {
        let kind = self.read(SCHEDULER, kind);
        let of_kind = match kind {
            Some(kind) if kind != settings.scheduling.kind => Scheduling { kind, flags: Flags::default() },
            _ => settings.scheduling,
        };
        let flags = self.read(SCHEDULER_FLAGS, |text| {
            let names: Vec<_> = text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
            let parsed =
                names.iter().try_fold(Flags::default(), |flags, name| flags.with(of_kind.kind, name));
            parsed.map_err(|error| {
                format!("{error}, {} knows {}", of_kind.kind, Flags::known(of_kind.kind).join(", "))
            })
        });
        Scheduling { flags: flags.unwrap_or(of_kind.flags), ..of_kind }
    }

    fn weights(&mut self) -> Vec<(Whose, Weight)> {
        self.read(WEIGHTS, |text| {
            let items = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
            if items().count() > WEIGHTS_MAX {
                return Err(format!("has more than {WEIGHTS_MAX} weights"));
            }
            items().map(weight).collect()
        })
        .unwrap_or_default()
    }
}

fn weight(item: &str) -> Result<(Whose, Weight), String> {
    let Some((whose, weight)) = item.rsplit_once('=') else {
        return Err(format!("`{}` is not NAME=WEIGHT", item.escape_debug()));
    };
    let whose = whose.trim();
    let weight = number(weight.trim(), 0, WEIGHT_MAX)?;
    let whose = sloppy::address(whose).map_or_else(|| Whose::Name(whose.into()), Whose::Address);
    Ok((whose, Weight(weight)))
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::from_str(text).map_err(|error| {
        let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        format!("{error}, known are {}", names.join(", "))
    })
}

fn mode(text: &str) -> Result<Mode, String> {
    Mode::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| {
        let names: Vec<_> = Mode::ALL.iter().map(|mode| mode.name()).collect();
        format!("`{}` is none of {}", text.escape_debug(), names.join(", "))
    })
}

fn flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("`{}` is neither true nor false", text.escape_debug()))
}

fn number(text: &str, least: u32, most: u32) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("`{}` is no number from {least} to {most}", text.escape_debug()))
}
