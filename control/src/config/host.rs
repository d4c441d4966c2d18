//! A configuration against the machine that it shall run on.

use std::fs;
use std::io;
use std::path::Path;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::Config;
use super::fault::{Faults, Sink};

/// What this machine has not, or has otherwise than the configuration lets expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostReport {
    /// What keeps Weir from starting here.
    pub faults: Faults,
    /// What Weir can start with, although traffic may pass it by.
    pub warnings: Faults,
}

/// Reads `/sys/class/net` and the process's own affinity. Needs no privilege.
pub(super) fn check(config: &Config) -> HostReport {
    let own = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let cores = (0..CpuSet::count()).filter(|core| own.is_set(*core).unwrap_or(false)).collect::<Vec<_>>();
    check_against(config, Path::new("/sys/class/net"), &cores)
}

fn check_against(config: &Config, class_net: &Path, cores: &[usize]) -> HostReport {
    let faults = Sink::new(&config.file);
    let warnings = Sink::new(&config.file);
    let workers = usize::from(config.settings.workers.count.get());
    match &config.settings.workers.cores {
        None if workers > cores.len() => {
            let cores = cores.len();
            faults.add(
                None,
                "workers.count",
                format_args!("{workers} workers, but Weir may run on {cores} cores"),
            );
        }
        None => {}
        Some(named) => {
            for core in named.iter().filter(|core| !cores.contains(&usize::from(**core))) {
                faults.add(
                    None,
                    "workers.cores",
                    format_args!("Weir may not run on core {core}, or there is none"),
                );
            }
        }
    }
    for (index, (name, at)) in config.settings.interfaces.iter().zip(&config.interface_marks).enumerate() {
        let path = format!("interfaces[{index}].name");
        let name = name.as_str();
        match rx_queues(&class_net.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                faults.add(Some(*at), path, format_args!("there is no interface {name}"));
            }
            Err(error) => faults.add(Some(*at), path, format_args!("{name} cannot be looked at: {error}")),
            Ok(queues) if queues < workers => faults.add(
                Some(*at),
                path,
                format_args!("{name} has no RX queue {queues}: {workers} workers need {workers} queues, it has {queues}"),
            ),
            Ok(queues) if queues > workers => warnings.add(
                Some(*at),
                path,
                format_args!(
                    "{name} has {queues} RX queues for {workers} workers: what arrives on queues {workers} and up \
                     passes Weir by"
                ),
            ),
            Ok(_) => {}
        }
    }
    HostReport { faults: faults.into_faults(), warnings: warnings.into_faults() }
}

/// How many RX queues the interface with this directory has.
fn rx_queues(interface: &Path) -> io::Result<usize> {
    let mut queues = 0;
    for entry in fs::read_dir(interface.join("queues"))? {
        queues += usize::from(entry?.file_name().to_string_lossy().starts_with("rx-"));
    }
    Ok(queues)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::parse;

    /// A folder of its own as `/sys/class/net`, removed at the end.
    struct ClassNet(PathBuf);

    impl ClassNet {
        fn new(name: &str, interfaces: &[(&str, usize)]) -> Self {
            let root = std::env::temp_dir().join(format!("weir-host-{}-{name}", std::process::id()));
            for (interface, queues) in interfaces {
                let folder = root.join(interface).join("queues");
                fs::create_dir_all(folder.join("tx-0")).unwrap();
                (0..*queues)
                    .for_each(|queue| fs::create_dir_all(folder.join(format!("rx-{queue}"))).unwrap());
            }
            Self(root)
        }
    }

    impl Drop for ClassNet {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_the_machine_lacks_is_a_fault_and_what_passes_weir_by_a_warning() {
        let host = ClassNet::new("lacks", &[("one", 1), ("two", 2), ("four", 4)]);
        let text = "interfaces:\n  - name: one\n  - name: two\n  - name: four\n  - name: none\nworkers: {count: 2}\n";
        let report = check_against(&parse("f", text).unwrap(), &host.0, &[0, 1]);
        assert_eq!(
            report.faults.to_string(),
            "f:2:11: interfaces[0].name: one has no RX queue 1: 2 workers need 2 queues, it has 1\n\
             f:5:11: interfaces[3].name: there is no interface none"
        );
        assert_eq!(
            report.warnings.to_string(),
            "f:4:11: interfaces[2].name: four has 4 RX queues for 2 workers: what arrives on queues 2 and up passes \
             Weir by"
        );
    }

    #[test]
    fn workers_need_cores_that_weir_may_run_on() {
        let host = ClassNet::new("cores", &[("two", 2)]);
        for (workers, cores, want) in [
            ("{count: 2}", &[0, 1][..], ""),
            ("{count: 2}", &[3], "f: workers.count: 2 workers, but Weir may run on 1 cores"),
            ("{cores: [1, 5]}", &[1, 5], ""),
            ("{cores: [1, 5]}", &[1, 2], "f: workers.cores: Weir may not run on core 5, or there is none"),
        ] {
            let text = format!("interfaces: [{{name: two}}]\nworkers: {workers}\n");
            let report = check_against(&parse("f", &text).unwrap(), &host.0, cores);
            assert_eq!(
                (report.faults.to_string(), report.warnings.count()),
                (want.to_owned(), 0),
                "{workers}"
            );
        }
    }

    #[test]
    fn this_machine_has_a_loopback_interface_and_a_core() {
        let report = check(&parse("f", "interfaces: [{name: lo}]\n").unwrap());
        assert_eq!(report.faults.to_string(), "");
    }
}
