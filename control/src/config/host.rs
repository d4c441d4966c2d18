//! A configuration against the machine that it shall run on.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::Config;
use super::fault::{Faults, Sink};

/// What this machine has not, or has otherwise than the configuration lets expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostReport {
    /// What keeps Weir from starting here.
    pub faults: Faults,
    /// What Weir can start with, although traffic may pass it or a service by.
    pub warnings: Faults,
}

/// A network interface as the kernel tells it to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    index: usize,
    mac: Option<[u8; 6]>,
}

/// What the machine has.
#[derive(Debug)]
struct Host<'a> {
    class_net: &'a Path,
    links: HashMap<String, Link>,
    /// The cores that this process may run on.
    cores: Vec<usize>,
}

/// Asks the kernel. Needs no privilege.
pub(super) fn check(config: &Config) -> HostReport {
    let own = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let links = getifaddrs().into_iter().flatten().filter_map(|entry| {
        let address = entry.address?;
        let link = address.as_link_addr()?;
        Some((entry.interface_name, Link { index: link.ifindex(), mac: link.addr() }))
    });
    let host = Host {
        class_net: Path::new("/sys/class/net"),
        links: links.collect(),
        cores: (0..CpuSet::count()).filter(|core| own.is_set(*core).unwrap_or(false)).collect(),
    };
    host.check(config)
}

impl Host<'_> {
    fn check(&self, config: &Config) -> HostReport {
        let (faults, warnings) = (Sink::new(&config.file), Sink::new(&config.file));
        for warning in config.warnings.iter() {
            warnings.add(warning.at, &warning.path, &warning.reason);
        }
        self.check_cores(config, &faults);
        let workers = usize::from(config.settings.workers.count.get());
        let interfaces = config.settings.interfaces.iter().zip(&config.interface_marks);
        for (index, (name, at)) in interfaces.enumerate() {
            let (name, at, path) = (name.as_str(), Some(*at), format!("interfaces[{index}].name"));
            let Some(link) = self.links.get(name) else {
                faults.add(at, path, format_args!("there is no interface {name}"));
                continue;
            };
            match rx_queues(&self.class_net.join(name), *link) {
                Err(error) => {
                    faults.add(at, path, format_args!("the queues of {name} cannot be read: {error}"))
                }
                Ok(Some(queues)) if queues < workers => {
                    let reason =
                        format_args!("{workers} workers need {workers} RX queues, {name} has {queues}");
                    faults.add(at, path, reason);
                }
                Ok(Some(queues)) if queues > workers => {
                    let reason = format_args!(
                        "{name} has {queues} RX queues for {workers} workers: what arrives on queues {workers} and up \
                         passes Weir by"
                    );
                    warnings.add(at, path, reason);
                }
                Ok(_) => {}
            }
        }
        HostReport { faults: faults.into_faults(), warnings: warnings.into_faults() }
    }

    fn check_cores(&self, config: &Config, faults: &Sink) {
        let workers = &config.settings.workers;
        match &workers.cores {
            Some(named) => {
                for core in named.iter().filter(|core| !self.cores.contains(&usize::from(**core))) {
                    let reason = format_args!("Weir may not run on core {core}, or there is none");
                    faults.add(None, "workers.cores", reason);
                }
            }
            None if usize::from(workers.count.get()) > self.cores.len() => {
                let (workers, cores) = (workers.count, self.cores.len());
                let reason = format_args!("{workers} workers need as many cores, Weir may run on {cores}");
                faults.add(None, "workers.count", reason);
            }
            None => {}
        }
    }
}

/// How many RX queues the interface with this directory has; `None` where the directory is another interface's: sysfs
/// shows the network namespace that it was mounted in, which need not be this process's.
fn rx_queues(directory: &Path, link: Link) -> io::Result<Option<usize>> {
    let read = |file| fs::read_to_string(directory.join(file)).map(|text| text.trim().to_owned());
    let same = |index: &str, mac: &str| {
        let bytes = link.mac.unwrap_or_default().map(|byte| format!("{byte:02x}"));
        index == link.index.to_string() && (link.mac.is_none() || mac == bytes.join(":"))
    };
    match (read("ifindex"), read("address")) {
        (Ok(index), Ok(mac)) if same(&index, &mac) => {}
        _ => return Ok(None),
    }
    let mut queues = 0;
    for entry in fs::read_dir(directory.join("queues"))? {
        queues += usize::from(entry?.file_name().to_string_lossy().starts_with("rx-"));
    }
    Ok(Some(queues))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::parse;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

    /// A folder of its own as `/sys/class/net`, removed at the end.
    struct ClassNet(PathBuf);

    impl ClassNet {
        /// Interfaces with their indices and numbers of RX queues.
        fn new(name: &str, interfaces: &[(&str, usize, usize)]) -> Self {
            let root = std::env::temp_dir().join(format!("weir-host-{}-{name}", std::process::id()));
            for (interface, index, queues) in interfaces {
                let folder = root.join(interface);
                fs::create_dir_all(folder.join("queues/tx-0")).unwrap();
                fs::write(folder.join("ifindex"), format!("{index}\n")).unwrap();
                fs::write(folder.join("address"), "02:00:00:00:00:fe\n").unwrap();
                for queue in 0..*queues {
                    fs::create_dir_all(folder.join(format!("queues/rx-{queue}"))).unwrap();
                }
            }
            Self(root)
        }

        fn host(&self, links: &[(&str, usize)], cores: &[usize]) -> Host<'_> {
            let link =
                |(name, index): &(&str, usize)| ((*name).to_owned(), Link { index: *index, mac: Some(MAC) });
            Host { class_net: &self.0, links: links.iter().map(link).collect(), cores: cores.to_vec() }
        }
    }

    impl Drop for ClassNet {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_the_machine_lacks_is_a_fault_and_what_passes_weir_by_a_warning() {
        let host = ClassNet::new("lacks", &[("one", 1, 1), ("two", 2, 2), ("four", 4, 4)]);
        let text = "interfaces:\n  - name: one\n  - name: two\n  - name: four\n  - name: none\nworkers: {count: 2}\n";
        let links = [("one", 1), ("two", 2), ("four", 4)];
        let report = host.host(&links, &[0, 1]).check(&parse("f", text).unwrap());
        assert_eq!(
            report.faults.to_string(),
            "f:2:11: interfaces[0].name: 2 workers need 2 RX queues, one has 1\n\
             f:5:11: interfaces[3].name: there is no interface none"
        );
        assert_eq!(
            report.warnings.to_string(),
            "f:4:11: interfaces[2].name: four has 4 RX queues for 2 workers: what arrives on queues 2 and up passes \
             Weir by"
        );
    }

    #[test]
    fn a_service_of_a_mark_that_no_rule_gives_is_a_warning() {
        let text = "interfaces: [{name: two}]\nmatch_rules: [{mark: 7, sources: [10.0.0.0/8]}]\nservices:\n  \
                    - {name: a, mark: 7}\n  - {name: b, mark: 7, family: ipv6}\n  - {name: c, mark: 8}\n";
        let sysfs = ClassNet::new("marks", &[("two", 2, 1)]);
        let report = sysfs.host(&[("two", 2)], &[0]).check(&parse("f", text).unwrap());
        assert_eq!(report.faults.count(), 0);
        assert_eq!(
            report.warnings.to_string(),
            "f:5:21: services[1].mark: no rule gives IPv6 packets mark 7\n\
             f:6:21: services[2].mark: no rule gives IPv4 packets mark 8"
        );
    }

    #[test]
    fn queues_are_not_counted_on_an_interface_of_another_network_namespace() {
        let sysfs = ClassNet::new("other", &[("a", 1, 1)]);
        let config = parse("f", "interfaces: [{name: a}]\nworkers: {count: 2}\n").unwrap();
        let mut host = sysfs.host(&[("a", 1)], &[0, 1]);
        assert_eq!(host.check(&config).faults.count(), 1);
        for other in [Link { index: 7, mac: Some(MAC) }, Link { index: 1, mac: Some([2; 6]) }] {
            host.links.insert("a".to_owned(), other);
            assert_eq!(host.check(&config).faults.count(), 0);
        }
    }

    #[test]
    fn workers_need_cores_that_weir_may_run_on() {
        let sysfs = ClassNet::new("cores", &[("two", 2, 2)]);
        for (workers, cores, want) in [
            ("{count: 2}", &[0, 1][..], ""),
            ("{count: 2}", &[3], "f: workers.count: 2 workers need as many cores, Weir may run on 1"),
            ("{cores: [1, 5]}", &[1, 5], ""),
            ("{cores: [1, 5]}", &[1, 2], "f: workers.cores: Weir may not run on core 5, or there is none"),
        ] {
            let text = format!("interfaces: [{{name: two}}]\nworkers: {workers}\n");
            let report = sysfs.host(&[("two", 2)], cores).check(&parse("f", &text).unwrap());
            assert_eq!(
                (report.faults.to_string(), report.warnings.count()),
                (want.to_owned(), 0),
                "{workers}"
            );
        }
    }

    #[test]
    fn this_machine_has_a_loopback_interface_and_a_core() {
        let report = check(&parse("f", "interfaces: [{name: lo}, {name: not-here}]\n").unwrap());
        assert_eq!(report.faults.to_string(), "f:1:33: interfaces[1].name: there is no interface not-here");
    }
}
