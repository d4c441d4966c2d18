//! Where generator, device under test and sink are, and how they are connected.
//!
//! ```text
//! generator gen0 ------ in  device  out ------ snk0 sink
//! ```
//!
//! Clients are 10.64.0.0/12 behind the generator, backends 10.128.0.0/9 behind the sink; routes and permanent neighbours
//! lead there, so nothing is asked for while something is measured.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use testbed::{Namespace, Scratch, Undo, run};

use crate::LIMIT;

/// First client.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
/// First VIP.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// First backend.
pub(crate) const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
/// What translates sources takes these addresses.
pub(crate) const SNAT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 2, 0, 200), Ipv4Addr::new(10, 2, 0, 203)];
/// Port of the services.
pub(crate) const PORT: u16 = 80;
/// Port of the backends.
pub(crate) const BACKEND_PORT: u16 = 8080;

/// The interfaces of a laboratory that is not made of namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wires {
    /// The generator's.
    pub(crate) generator: String,
    /// The sink's; the generator's own where one port and a switch serve both.
    pub(crate) sink: String,
    /// The device's two, where it is on this machine.
    pub(crate) device: Option<[String; 2]>,
    /// The MAC address to send to, where the device is elsewhere.
    pub(crate) device_mac: Option<String>,
}

/// How it is all connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Topology {
    /// Namespaces of this machine and veth pairs, made for the purpose.
    Namespaces,
    /// Interfaces that there are.
    Wires(Wires),
}

/// Where something runs.
#[derive(Debug)]
pub(crate) enum Place {
    Namespace(Namespace),
    /// The namespace that the lab itself runs in.
    Here,
}

impl Place {
    /// A command that runs there; the process id is the program's own.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match self {
            Self::Namespace(namespace) => namespace.command(program),
            Self::Here => Command::new(program),
        }
    }

    /// What a program says that ends by itself. An error with what it wrote where it fails.
    pub(crate) fn said(&self, words: &[&str]) -> Result<String> {
        let (program, args) = words.split_first().context("an empty command")?;
        let said = run(self.command(program).args(args), LIMIT)?;
        ensure!(said.status.success(), "{}: {}", words.join(" "), said.err.trim());
        Ok(said.out)
    }

    fn ip(&self, line: &str) -> Result<()> {
        let words: Vec<&str> = std::iter::once("ip").chain(line.split_whitespace()).collect();
        self.said(&words).map(drop)
    }
}

/// A change that this command takes back, to be made after this call.
pub(crate) fn undone_by(command: &Command, environment: &[(String, String)]) -> Undo {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    Undo::change(&words.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), environment)
}

/// An interface.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) mac: String,
}

impl Port {
    fn find(place: &Place, name: &str) -> Result<Self> {
        let path = format!("/sys/class/net/{name}/address");
        let mac = place.said(&["cat", &path]).with_context(|| format!("no interface {name}"))?;
        Ok(Self { name: name.to_owned(), mac: mac.trim().to_owned() })
    }
}

/// The device's side, where it is on this machine.
#[derive(Debug)]
pub(crate) struct Middle {
    pub(crate) place: Place,
    /// Towards the generator, towards the sink.
    pub(crate) ports: [Port; 2],
}

/// A connected laboratory, gone when dropped.
#[derive(Debug)]
pub(crate) struct Network {
    /// Generator.
    pub(crate) near: Place,
    pub(crate) near_port: Port,
    /// Sink.
    pub(crate) far: Place,
    pub(crate) far_port: Port,
    /// The device under test, if there is one on this machine.
    pub(crate) middle: Option<Middle>,
    /// A device elsewhere: where to send to.
    pub(crate) device_mac: Option<String>,
    /// For configurations, sockets and logs.
    pub(crate) scratch: Scratch,
    /// Before the interfaces: the last field is dropped last, and undoing needs them.
    _changes: Vec<Undo>,
}

impl Network {
    /// Generator and sink with a place for a device of so many workers between them. Where frames come back by the generator's interface,
    /// there are queues to send by and others to receive from, for a queue has one socket. There are no more than are served,
    /// for the kernel spreads what it sends over all that there are.
    pub(crate) fn with_device(topology: &Topology, workers: usize, returns: bool) -> Result<Self> {
        match topology {
            Topology::Namespaces => {
                Self::namespaces(true, if returns { 2 * workers } else { workers }, workers)
            }
            Topology::Wires(wires) => {
                let both = |there: bool| if there { 2 * workers } else { workers };
                let one_port = wires.generator == wires.sink;
                Self::wires(wires, workers, [both(returns || one_port), both(one_port)])
            }
        }
    }

    /// Whether generator and sink have one interface.
    pub(crate) fn has_one_port(&self) -> bool {
        matches!(self.near, Place::Here) && self.near_port.name == self.far_port.name
    }

    /// Generator and sink with nothing between them: what they cost by themselves. On wires the generator then has the device's
    /// interface towards the sink. `None` where the device is elsewhere.
    pub(crate) fn direct(topology: &Topology) -> Result<Option<Self>> {
        match topology {
            Topology::Namespaces => Self::namespaces(false, 1, 1).map(Some),
            Topology::Wires(Wires { device: None, .. }) => Ok(None),
            Topology::Wires(Wires { generator: usual, sink, device: Some([_, generator]), .. }) => {
                let wanted = [1, if usual == sink { 2 } else { 1 }];
                let [generator, sink] = [generator, sink].map(Clone::clone);
                Self::wires(&Wires { generator, sink, device: None, device_mac: None }, 1, wanted).map(Some)
            }
        }
    }

    fn namespaces(device: bool, near_queues: usize, far_queues: usize) -> Result<Self> {
        let scratch = Scratch::new()?;
        let [near, far] = [Namespace::of_role("generator")?, Namespace::of_role("sink")?];
        let middle = device.then(|| Namespace::of_role("device")).transpose()?;
        let veth = |from: &Namespace, name: &str, to: &Namespace, peer: &str, queues: usize| {
            let queues = format!("numtxqueues {queues} numrxqueues {queues}");
            from.ip(&format!(
                "link add {name} {queues} type veth peer name {peer} netns {} {queues}\n",
                to.name()
            ))
        };
        match &middle {
            Some(middle) => {
                veth(&near, "gen0", middle, "in", near_queues)?;
                veth(middle, "out", &far, "snk0", far_queues)?;
            }
            None => veth(&near, "gen0", &far, "snk0", near_queues)?,
        }
        near.ip("link set gen0 addrgenmode none up\n")?;
        far.ip("link set snk0 addrgenmode none up\n")?;
        let (near, far) = (Place::Namespace(near), Place::Namespace(far));
        let (near_port, far_port) = (Port::find(&near, "gen0")?, Port::find(&far, "snk0")?);
        let middle = match middle {
            Some(namespace) => {
                let place = Place::Namespace(namespace);
                let ports = [Port::find(&place, "in")?, Port::find(&place, "out")?];
                Some(Middle { place, ports })
            }
            None => None,
        };
        if let Some(middle) = &middle {
            address(middle, &near_port, &far_port, false)?;
        }
        Ok(Self { near, near_port, far, far_port, middle, device_mac: None, scratch, _changes: Vec::new() })
    }

    /// On interfaces that have to have so many queues, the generator's and the sink's, of which a worker's worth is served.
    fn wires(wires: &Wires, workers: usize, wanted: [usize; 2]) -> Result<Self> {
        let scratch = Scratch::new()?;
        let (near_port, far_port) =
            (Port::find(&Place::Here, &wires.generator)?, Port::find(&Place::Here, &wires.sink)?);
        for (name, wanted) in [&wires.generator, &wires.sink].into_iter().zip(wanted) {
            ReceiveQueues::read(name)?.serve(name, workers, wanted)?;
        }
        for name in wires.device.iter().flatten() {
            ReceiveQueues { table: None, ..ReceiveQueues::read(name)? }.serve(name, workers, workers)?;
        }
        let mut changes = Vec::new();
        let middle = match &wires.device {
            Some([first, second]) => {
                let ports = [Port::find(&Place::Here, first)?, Port::find(&Place::Here, second)?];
                let middle = Middle { place: Place::Here, ports };
                changes = address(&middle, &near_port, &far_port, true)?;
                for port in &middle.ports {
                    changes.extend(accept_all(&middle.place, port)?);
                }
                Some(middle)
            }
            None => None,
        };
        Ok(Self {
            near: Place::Here,
            near_port,
            far: Place::Here,
            far_port,
            middle,
            device_mac: wires.device_mac.clone(),
            scratch,
            _changes: changes,
        })
    }
}

/// Where the frames go that an interface receives.
#[derive(Clone, Debug, Default)]
struct ReceiveQueues {
    count: usize,
    /// The queue of each value of the hash, where the driver tells.
    table: Option<Vec<u32>>,
}

impl ReceiveQueues {
    fn read(name: &str) -> Result<Self> {
        let path = std::path::Path::new("/sys/class/net").join(name);
        let ifindex =
            std::fs::read_to_string(path.join("ifindex")).with_context(|| format!("no interface {name}"))?;
        let (count, rss) = control::nic::receives(ifindex.trim().parse()?);
        let count = match count {
            Some(count) => usize::try_from(count)?,
            None => {
                let all = std::fs::read_dir(path.join("queues"))?.flatten();
                all.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"rx-")).count()
            }
        };
        Ok(Self { count, table: rss.map(|rss| rss.table).filter(|table| !table.is_empty()) })
    }

    /// An error where there are not as many as are wanted, or frames come to others than the first ones that are served: they would
    /// count as lost. Where nobody tells how frames are spread, they may come to all that there are.
    fn serve(&self, name: &str, served: usize, wanted: usize) -> Result<()> {
        let Self { count, table } = self;
        ensure!(
            *count >= wanted,
            "{name} has {count} receive queues, {wanted} are needed: ethtool -L {name} combined {wanted}"
        );
        let used = match table {
            Some(table) => table.iter().max().map_or(0, |most| *most as usize + 1),
            None if wanted > served => served,
            None => *count,
        };
        let less = match (table, wanted) {
            (Some(_), _) => format!("ethtool -X {name} equal {served}"),
            (None, _) => format!("ethtool -L {name} combined {wanted}"),
        };
        ensure!(
            used <= served,
            "{name} spreads frames over {used} queues, of which {served} are looked at: {less}"
        );
        Ok(())
    }
}

/// Gives the device addresses, neighbours and routes. What is to be undone, where the place outlives the lab; there it refuses
/// what is there already, which undoing would take away.
fn address(middle: &Middle, near: &Port, far: &Port, undo: bool) -> Result<Vec<Undo>> {
    let Middle { place, ports: [first, second] } = middle;
    let changes: Vec<Change> =
        [Change::of(1, first, near, "10.64.0.0/12"), Change::of(2, second, far, "10.128.0.0/9")]
            .into_iter()
            .flatten()
            .collect();
    if undo {
        // All of them before the first change: with an interface's last address its neighbours go, too.
        for Change { there, .. } in &changes {
            vacant(place, there)?;
        }
    } else {
        for Port { name, .. } in [first, second] {
            place.ip(&format!("link set {name} addrgenmode none up"))?;
        }
    }
    let mut made = Vec::new();
    for Change { add, back, .. } in &changes {
        if undo {
            made.push(undone_by(place.command("ip").args(back.split_whitespace()), &[]));
        }
        place.ip(add)?;
    }
    Ok(made)
}

/// Has an interface take in frames for others, as those are that a bridge hands on. What is to be undone, where it did not.
fn accept_all(place: &Place, Port { name, .. }: &Port) -> Result<Option<Undo>> {
    // IFF_PROMISC of include/uapi/linux/if.h.
    const PROMISCUOUS: u32 = 0x100;
    let said = place.said(&["cat", &format!("/sys/class/net/{name}/flags")])?;
    let flags = u32::from_str_radix(said.trim().trim_start_matches("0x"), 16)
        .with_context(|| format!("flags of {name}: {said}"))?;
    if flags & PROMISCUOUS != 0 {
        return Ok(None);
    }
    let undo = undone_by(place.command("ip").args(["link", "set", name, "promisc", "off"]), &[]);
    place.ip(&format!("link set {name} promisc on"))?;
    Ok(Some(undo))
}

/// Arguments of `ip`.
struct Change {
    /// What shows whether somebody else has made it.
    there: String,
    add: String,
    back: String,
}

impl Change {
    /// Address, neighbour and route of one of the device's interfaces.
    fn of(subnet: u8, port: &Port, peer: &Port, network: &str) -> [Self; 3] {
        let Port { name, .. } = port;
        let (own, next) = (format!("10.{subnet}.0.1"), format!("10.{subnet}.0.2"));
        [
            Self {
                there: format!("-4 -o address show dev {name} to {own}/32"),
                add: format!("address add {own}/24 dev {name}"),
                back: format!("address del {own}/24 dev {name}"),
            },
            Self {
                // What the kernel found out by itself it finds out again.
                there: format!("neighbour show {next} dev {name} nud permanent"),
                add: format!("neighbour replace {next} lladdr {} dev {name} nud permanent", peer.mac),
                back: format!("neighbour del {next} dev {name}"),
            },
            Self {
                there: format!("route show exact {network}"),
                add: format!("route add {network} via {next} dev {name}"),
                back: format!("route del {network} via {next} dev {name}"),
            },
        ]
    }
}

/// An error where `ip` has something to show.
fn vacant(place: &Place, show: &str) -> Result<()> {
    let words: Vec<&str> = std::iter::once("ip").chain(show.split_whitespace()).collect();
    let found = place.said(&words)?;
    ensure!(found.trim().is_empty(), "the lab does not replace what is there already: {}", found.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_that_nobody_looks_at_are_refused() {
        let table = |queues: &[u32]| Some(queues.to_vec());
        for (name, count, table, served, wanted, want) in [
            ("one", 1, None, 1, 1, None),
            (
                "too few",
                1,
                None,
                1,
                2,
                Some("eth2 has 1 receive queues, 2 are needed: ethtool -L eth2 combined 2"),
            ),
            (
                "others, too",
                16,
                None,
                1,
                1,
                Some(
                    "eth2 spreads frames over 16 queues, of which 1 are looked at: ethtool -L eth2 combined 1",
                ),
            ),
            (
                "others by the table",
                16,
                table(&[0, 1, 0, 3]),
                2,
                2,
                Some("eth2 spreads frames over 4 queues, of which 2 are looked at: ethtool -X eth2 equal 2"),
            ),
            ("the first ones by the table", 16, table(&[0, 1, 0, 1]), 2, 4, None),
            ("of two for both ends, nobody tells which", 2, None, 1, 2, None),
        ] {
            let said = ReceiveQueues { count, table }.serve("eth2", served, wanted);
            assert_eq!(said.err().map(|error| error.to_string()).as_deref(), want, "{name}");
        }
        assert!(ReceiveQueues::read("none0").is_err());
        assert_eq!(ReceiveQueues::read("lo").unwrap().count, 1);
    }

    #[test]
    fn an_interface_takes_in_frames_for_others_until_that_is_undone() {
        if !testbed::is_root() {
            eprintln!(
                "an_interface_takes_in_frames_for_others_until_that_is_undone did not run: it needs root"
            );
            return;
        }
        let place = Place::Namespace(Namespace::of_role("promiscuous").unwrap());
        place.ip("link add in0 type veth peer name out0").unwrap();
        let port = Port { name: "in0".to_owned(), mac: "02:00:00:00:00:01".to_owned() };
        let takes = || place.said(&["ip", "link", "show", "in0"]).unwrap().contains("PROMISC");
        let undo = accept_all(&place, &port).unwrap();
        assert!(takes());
        assert!(accept_all(&place, &port).unwrap().is_none(), "it did already, so there is nothing to undo");
        drop(undo);
        assert!(!takes());
    }

    #[test]
    fn what_is_there_already_is_refused_and_stays() {
        if !testbed::is_root() {
            eprintln!("what_is_there_already_is_refused_and_stays did not run: it needs root");
            return;
        }
        for (name, before, show, want) in [
            ("nothing", "link set in0 up", "address show", None),
            ("address", "address add 10.1.0.1/24 dev in0", "address show", Some("inet 10.1.0.1/24")),
            (
                "neighbour",
                "neighbour add 10.1.0.2 lladdr 02:00:00:00:00:02 dev in0 nud permanent",
                "neighbour show nud permanent",
                Some("10.1.0.2 dev in0 lladdr 02:00:00:00:00:02"),
            ),
            ("route", "route add 10.64.0.0/12 dev in0", "route show", Some("10.64.0.0/12 dev in0")),
            (
                "route by another interface",
                "route add 10.128.0.0/9 dev in0",
                "route show",
                Some("10.128.0.0/9 dev in0"),
            ),
        ] {
            let place = Place::Namespace(Namespace::of_role("device").unwrap());
            for line in ["link add in0 up type veth peer name out0", "link set out0 up", before] {
                place.ip(line).unwrap();
            }
            let ports = ["in0", "out0"]
                .map(|port| Port { name: port.to_owned(), mac: "02:00:00:00:00:01".to_owned() });
            let middle = Middle { place, ports };
            let shown = || {
                let words: Vec<&str> = std::iter::once("ip").chain(show.split_whitespace()).collect();
                middle.place.said(&words).unwrap()
            };
            let [near, far] = &middle.ports;
            let made = address(&middle, near, far, true);
            match want {
                None => {
                    assert!(shown().contains("10.1.0.1/24"), "{name}");
                    drop(made.unwrap());
                    assert!(!shown().contains("10.1.0.1/24"), "{name}");
                }
                Some(want) => {
                    let error = format!("{:#}", made.unwrap_err());
                    assert!(error.contains("is there already"), "{name}: {error}");
                    assert!(shown().contains(want), "{name}: {}", shown());
                }
            }
        }
    }
}
