//! A configuration against the machine that it shall run on.

use super::Config;
use super::fault::{Faults, Sink};
use crate::nic::judge::{self, Weight, Wish};
use crate::nic::{Machine, Nic, ReadError};

/// What this machine has not, or has otherwise than the configuration lets expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostReport {
    /// What keeps Weir from starting here.
    pub faults: Faults,
    /// What Weir can start with, although traffic may pass it or a service by.
    pub warnings: Faults,
    /// Whether frames of a served interface may be larger than a page, so that they come in several buffers.
    pub large_frames: bool,
    /// Whether a served interface has [buffers of whole KiB](Nic::has_whole_kib_buffers).
    pub whole_kib: bool,
    /// Served interfaces of which a driver that has zero-copy [lacks buffers](judge::lacks_buffers) for it.
    pub copied: Vec<String>,
}

/// What the machine has.
#[derive(Debug)]
struct Host {
    machine: Machine,
    nics: Result<Vec<Nic>, ReadError>,
}

/// Asks the kernel. Needs no privilege.
pub(super) fn check(config: &Config) -> HostReport {
    let is_served = |name: &str| config.settings.interfaces.iter().any(|served| served.as_str() == name);
    Host { machine: Machine::read(), nics: Nic::read(is_served) }.check(config)
}

impl Host {
    fn check(&self, config: &Config) -> HostReport {
        let (faults, warnings) = (Sink::new(&config.file), Sink::new(&config.file));
        for warning in config.warnings.iter() {
            warnings.add(warning.at, &warning.path, &warning.reason);
        }
        self.check_cores(config, &faults);
        let nics = match &self.nics {
            Ok(nics) => nics.as_slice(),
            Err(error) => {
                faults.add(None, "interfaces", error);
                return HostReport {
                    faults: faults.into_faults(),
                    warnings: warnings.into_faults(),
                    large_frames: false,
                    whole_kib: false,
                    copied: Vec::new(),
                };
            }
        };
        let large_frames = nics.iter().any(|nic| nic.mtu > judge::NATIVE_MTU);
        let whole_kib = nics.iter().any(Nic::has_whole_kib_buffers);
        let wish = Wish::new(&config.settings, &self.machine, nics);
        let copied =
            nics.iter().filter(|nic| judge::lacks_buffers(nic, &wish)).map(|nic| nic.name.clone()).collect();
        let interfaces = config.settings.interfaces.iter().zip(&config.interface_marks);
        for (index, (name, at)) in interfaces.enumerate() {
            let (name, at, path) = (name.as_str(), Some(*at), format!("interfaces[{index}].name"));
            let Some(nic) = nics.iter().find(|nic| nic.name == name) else {
                faults.add(at, path, format_args!("there is no interface {name}"));
                continue;
            };
            for finding in judge::nic(nic, &wish, &self.machine) {
                match finding.weight {
                    Weight::Refuses => faults.add(at, &path, finding.text),
                    Weight::Costs => warnings.add(at, &path, finding.text),
                    Weight::Notes => {}
                }
            }
        }
        let (faults, warnings) = (faults.into_faults(), warnings.into_faults());
        HostReport { faults, warnings, large_frames, whole_kib, copied }
    }

    fn check_cores(&self, config: &Config, faults: &Sink) {
        let workers = &config.settings.workers;
        match &workers.cores {
            Some(named) => {
                for core in named.iter().filter(|core| !self.machine.has(**core)) {
                    let reason = format_args!("Weir may not run on core {core}, or there is none");
                    faults.add(None, "workers.cores", reason);
                }
            }
            None if usize::from(workers.count.get()) > self.machine.cores.len() => {
                let (workers, cores) = (workers.count, self.machine.cores.len());
                let reason = format_args!("{workers} workers need as many cores, Weir may run on {cores}");
                faults.add(None, "workers.count", reason);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use crate::nic::{Queues, XdpFeatures};

    /// A machine with interfaces of so many RX queues and with cores.
    fn host(interfaces: &[(&str, u32)], cores: &[u16]) -> Host {
        let nic = |(name, queues): &(&str, u32)| Nic {
            name: (*name).to_owned(),
            kind: Some("veth".to_owned()),
            ethernet: true,
            mtu: 1500,
            up: true,
            carrier: true,
            queues: Queues { rx: Some(*queues), ..Queues::default() },
            ..Nic::default()
        };
        let cores = cores.iter().map(|core| (*core, None)).collect();
        Host {
            machine: Machine { cores, ..Machine::default() },
            nics: Ok(interfaces.iter().map(nic).collect()),
        }
    }

    #[test]
    fn what_the_machine_lacks_is_a_fault_and_what_passes_weir_by_a_warning() {
        let mut host = host(&[("one", 1), ("two", 2), ("four", 4)], &[0, 1]);
        let text = "interfaces:\n  - name: one\n  - name: two\n  - name: four\n  - name: none\nworkers: {count: 2}\n";
        let config = parse("f", text).unwrap();
        let report = host.check(&config);
        assert_eq!(
            report.faults.to_string(),
            "f:2:11: interfaces[0].name: 2 workers need 2 RX queues, one has 1: a veth gets them when it is made\n\
             f:5:11: interfaces[3].name: there is no interface none"
        );
        assert_eq!(
            report.warnings.to_string(),
            "f:4:11: interfaces[2].name: four has 4 RX queues for 2 workers: what arrives on queues 2 and up passes \
             Weir by (run more workers, or make it with fewer queues)"
        );
        host.nics = Err(ReadError::Open(std::io::Error::from_raw_os_error(libc::EMFILE)));
        let report = host.check(&config);
        assert_eq!(report.faults.count(), 1);
        assert!(
            report.faults.to_string().starts_with("f: interfaces: cannot open a netlink socket"),
            "{}",
            report.faults
        );
    }

    #[test]
    fn zero_copy_that_is_required_is_refused_for_frames_of_more_buffers_than_it_has() {
        let mut host = host(&[("large", 1), ("small", 1)], &[0]);
        host.machine.kernel = "6.18".to_owned();
        if let Ok([large, small]) = host.nics.as_deref_mut() {
            let xdp = |segments| {
                let (native, redirect, zero_copy, multi_buffer) = (true, true, true, true);
                let zero_copy_segments = Some(segments);
                Some(XdpFeatures {
                    native,
                    redirect,
                    zero_copy,
                    multi_buffer,
                    zero_copy_segments,
                    tx_checksum: false,
                })
            };
            large.mtu = 9000;
            (large.xdp, small.xdp) = (xdp(8), xdp(1));
        }
        for (mode, faults, warnings) in [("require", 1, 1), ("auto", 0, 2), ("never", 0, 1)] {
            let text =
                format!("interfaces: [{{name: large}}, {{name: small}}]\nxdp: {{zero_copy: {mode}}}\n");
            let report = host.check(&parse("f", &text).unwrap());
            let of_small = "f:1:36: interfaces[1].name: frames of an MTU of 9000 take 3 buffers, and veth has 1 for each";
            let found = [&report.faults, &report.warnings].map(|found| found.to_string());
            assert_eq!(
                (report.faults.count(), report.warnings.count()),
                (faults, warnings),
                "{mode}: {found:?}"
            );
            let found = found.map(|found| found.contains(of_small));
            assert_eq!(found, [mode == "require", mode == "auto"], "{mode}");
            assert_eq!(report.copied, ["small"], "{mode}");
        }
    }

    #[test]
    fn a_service_of_a_mark_that_no_rule_gives_is_a_warning() {
        let text = "interfaces: [{name: two}]\nmatch_rules: [{mark: 7, sources: [10.0.0.0/8]}]\nservices:\n  \
                    - {name: a, mark: 7}\n  - {name: b, mark: 7, family: ipv6}\n  - {name: c, mark: 8}\n";
        let report = host(&[("two", 1)], &[0]).check(&parse("f", text).unwrap());
        assert_eq!(report.faults.count(), 0);
        assert_eq!(
            report.warnings.to_string(),
            "f:5:21: services[1].mark: no rule gives IPv6 packets mark 7\n\
             f:6:21: services[2].mark: no rule gives IPv4 packets mark 8"
        );
    }

    #[test]
    fn workers_need_cores_that_weir_may_run_on() {
        for (workers, cores, want) in [
            ("{count: 2}", &[0, 1][..], ""),
            ("{count: 2}", &[3], "f: workers.count: 2 workers need as many cores, Weir may run on 1"),
            ("{cores: [1, 5]}", &[1, 5], ""),
            ("{cores: [1, 5]}", &[1, 2], "f: workers.cores: Weir may not run on core 5, or there is none"),
        ] {
            let text = format!("interfaces: [{{name: two}}]\nworkers: {workers}\n");
            let report = host(&[("two", 2)], cores).check(&parse("f", &text).unwrap());
            assert_eq!(
                (report.faults.to_string(), report.warnings.count()),
                (want.to_owned(), 0),
                "{workers}"
            );
        }
    }

    #[test]
    fn the_interfaces_of_this_machine_are_asked_for() {
        let report = check(&parse("f", "interfaces: [{name: lo}, {name: not-here}]\n").unwrap());
        assert_eq!(
            report.faults.to_string(),
            "f:1:21: interfaces[0].name: lo is not Ethernet\n\
             f:1:33: interfaces[1].name: there is no interface not-here"
        );
    }
}
