//! The saved profiles: what is measured, in which order, and how long that takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;

use crate::device::{Device, Kind, Services};
use crate::measure::{Bench, Lab, open_rate_pps};
use crate::network::{Topology, Wires};
use crate::results::{Key, Quantity, Report, Sample, number};
use crate::traffic::{Cores, Load, Pace, Packets};

/// What the short form measures beside generator and sink.
pub(crate) const SHORT_DEVICES: [&str; 4] = ["bare", "weir-fullnat", "nftables", "ip-forward"];

/// Frames under way where a device is kept busy: less than any ring of an AF_XDP socket on the way holds.
const WINDOW: u32 = 1024;
/// The rate at which frames come a few at a time: what the slowest peer carries on one core of a small machine.
const PACED_PPS: f64 = 100_000.0;
/// New flows in one measurement: the kernel tracks not many more, and would then end those that are half-open.
const NEW_FLOWS: u32 = 150_000;
/// Backends of each service.
const BACKENDS: u32 = 10;
/// Services, where their number is not what is varied.
const SERVICES: u32 = 1000;
/// Rules of peers beyond this number take minutes to set up.
const PEER_SERVICES: u32 = 10_000;
/// Connections that the kernel tracks by default are not many more.
const PEER_FLOWS: u32 = 100_000;
/// Flows at most, but for one device: opening more takes minutes.
const MOST_FLOWS: u32 = 1_000_000;
/// The least that Weir has room for, and the step of its room.
const ROOM: u32 = 1 << 20;

/// Something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Profile {
    /// CPU a packet, of established and of new flows.
    Cost,
    /// The highest rate, without loss and with 0.001 % (in the manner of RFC 2544), and latency at 10, 50 and 90 % of it.
    Rate,
    /// Whole TCP connections a second.
    Connections,
    /// CPU a packet against the number of services.
    Services,
    /// CPU a packet against the number of flows.
    Flows,
    /// Throughput against the number of workers.
    Workers,
}

impl Profile {
    pub(crate) const ALL: [Self; 6] =
        [Self::Cost, Self::Rate, Self::Connections, Self::Services, Self::Flows, Self::Workers];
}

impl std::fmt::Display for Profile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value();
        formatter.write_str(value.as_ref().map_or("", clap::builder::PossibleValue::get_name))
    }
}

/// What is done with a device once it is set up.
#[derive(Clone, Debug)]
enum Job {
    Cost(Load),
    /// Throughput with frames of a size, and latency at so many percent of it.
    Rate {
        size: &'static str,
        seconds: f64,
        loads: &'static [u32],
    },
    Connections {
        seconds: f64,
    },
}

impl Job {
    /// Flows that are open meanwhile.
    fn flows(&self) -> u32 {
        if let Self::Cost(load) = self { load.flows } else { 0 }
    }
}

/// A device set up in one way, and what is measured of it.
#[derive(Clone, Debug)]
struct Step {
    profile: Profile,
    device: Device,
    services: Services,
    workers: usize,
    jobs: Vec<Job>,
}

/// All that is to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    steps: Vec<Step>,
    repeats: usize,
    notes: Vec<String>,
}

impl Plan {
    /// The steps of these profiles for these devices.
    pub(crate) fn new(
        profiles: &[Profile],
        devices: Vec<Device>,
        short: bool,
        repeats: usize,
        topology: &Topology,
        cores: &Cores,
    ) -> Self {
        let mut plan = Self { steps: Vec::new(), repeats, notes: Vec::new() };
        let mut all = devices;
        let elsewhere = matches!(topology, Topology::Wires(Wires { device: None, .. }));
        if !elsewhere {
            // First, for the others' costs are net of it.
            all.insert(0, Device::Nothing);
        }
        for profile in Profile::ALL.into_iter().filter(|profile| profiles.contains(profile)) {
            for device in &all {
                plan.add(profile, device, short, cores);
            }
        }
        plan.measure_once();
        plan
    }

    /// Leaves out what an earlier profile measures already, so that all figures have as many measurements. What generator and sink
    /// cost by themselves is taken for each profile: the nearer in time, the better.
    fn measure_once(&mut self) {
        let mut known: Vec<(String, Services, usize, Load)> = Vec::new();
        for step in self.steps.iter_mut().filter(|step| !matches!(step.device, Device::Nothing)) {
            let Step { device, services, workers, jobs, .. } = step;
            jobs.retain(|job| {
                let Job::Cost(load) = job else { return true };
                let case = (device.name().to_owned(), *services, *workers, load.clone());
                let new = !known.contains(&case);
                known.extend(new.then_some(case));
                new
            });
        }
        self.steps.retain(|step| !step.jobs.is_empty());
    }

    /// Whether there is no device to measure.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.device, Device::Nothing))
    }

    fn add(&mut self, profile: Profile, device: &Device, short: bool, cores: &Cores) {
        let balances = device.kind() == Kind::Balancer;
        let weir = matches!(device, Device::Weir(..));
        let seconds = if short { 2.0 } else { 5.0 };
        let mut step = |count: u32, workers: usize, jobs: Vec<Job>| {
            let flows = jobs.iter().map(Job::flows).max().unwrap_or(0).max(ROOM).next_multiple_of(ROOM);
            let services = Services { count, backends: BACKENDS, flows };
            self.steps.push(Step { profile, device: device.clone(), services, workers, jobs });
        };
        let nothing = matches!(device, Device::Nothing);
        match profile {
            // What tuning does is told by cost and latency.
            Profile::Connections | Profile::Services | Profile::Flows | Profile::Workers
                if device.is_untuned() => {}
            Profile::Cost => {
                let mut loads = vec![established(1000, "60", seconds), new()];
                if !short {
                    loads.extend(["imix", "1514"].map(|size| established(1000, size, seconds)));
                    // Few at a time: what wakes up for each burst pays for it here.
                    loads.push(Load { pace: Pace::Rate(PACED_PPS), ..established(1000, "60", seconds) });
                }
                step(SERVICES, 1, loads.into_iter().map(Job::Cost).collect());
            }
            Profile::Rate if nothing => {}
            Profile::Rate if short => {
                if let "bare" | "weir-fullnat" = device.name() {
                    step(SERVICES, 1, vec![Job::Rate { size: "60", seconds: 0.4, loads: &[50] }]);
                }
            }
            Profile::Rate => {
                let sizes: &[_] = if device.is_untuned() { &["60"] } else { &["60", "imix", "1514"] };
                let jobs = sizes.iter().map(|size| Job::Rate {
                    size,
                    seconds: 2.0,
                    loads: if *size == "60" { &[10, 50, 90] } else { &[] },
                });
                step(SERVICES, 1, jobs.collect());
            }
            Profile::Connections if short || nothing => {}
            Profile::Connections if device.kind() == Kind::Reflector => {}
            Profile::Connections => step(SERVICES, 1, vec![Job::Connections { seconds: 2.0 }]),
            Profile::Services | Profile::Flows if short || !(balances || nothing) => {}
            Profile::Services => {
                let counts: &[u32] = if nothing { &[SERVICES] } else { &[1, 100, 1000, 10_000, 50_000] };
                // Of a peer's many services the rules alone would take longer than all the rest.
                for count in counts.iter().filter(|count| **count <= PEER_SERVICES || weir) {
                    let jobs = vec![Job::Cost(established(1000, "60", seconds)), Job::Cost(new())];
                    step(*count, 1, jobs);
                }
            }
            Profile::Flows if nothing => step(SERVICES, 1, vec![Job::Cost(established(1000, "60", seconds))]),
            Profile::Flows => {
                let most = match device.name() {
                    "weir-fullnat" => u32::MAX,
                    _ if weir => MOST_FLOWS,
                    _ => PEER_FLOWS,
                };
                for flows in [1000, 10_000, 100_000, 1_000_000, 10_000_000] {
                    if flows <= most {
                        step(SERVICES, 1, vec![Job::Cost(established(flows, "60", seconds))]);
                    }
                }
            }
            Profile::Workers if short || !matches!(device, Device::Bare(_) | Device::Weir(..)) => {}
            Profile::Workers if cores.device.len() < 2 => {
                let note = "scaling over workers is left out: the device has one core";
                if !self.notes.iter().any(|noted| noted == note) {
                    self.notes.push(note.to_owned());
                }
            }
            Profile::Workers => {
                let counts = (0..).map(|power| 1 << power).take_while(|count| *count <= cores.device.len());
                for workers in counts.collect::<Vec<_>>() {
                    step(SERVICES, workers, vec![Job::Rate { size: "60", seconds: 2.0, loads: &[] }]);
                }
            }
        }
    }

    /// How long it all takes, about.
    fn estimate(&self) -> Duration {
        let once: f64 = self.steps.iter().map(Step::estimate_s).sum();
        Duration::from_secs_f64(once * self.repeats as f64)
    }

    /// Says what is about to be done.
    pub(crate) fn announce(&self) {
        println!(
            "{} devices set up {} times in all, {} measurements: about {}",
            self.steps.iter().map(|step| step.device.name()).collect::<std::collections::BTreeSet<_>>().len(),
            self.steps.len() * self.repeats,
            self.steps.iter().map(|step| step.jobs.len()).sum::<usize>() * self.repeats,
            spoken(self.estimate()),
        );
        self.notes.iter().for_each(|note| println!("{note}"));
    }

    /// Measures it, devices in turns, so that what disturbs one repeat disturbs all devices alike.
    pub(crate) fn run(&self, lab: &Lab, report: &mut Report) -> Result<()> {
        let begun = Instant::now();
        let on_one = Lab { cores: lab.cores.one(), ..lab.clone() };
        let total = self.steps.len() * self.repeats;
        let mut done = 0;
        for _ in 0..self.repeats {
            // What generator and sink cost in this repeat.
            let mut ends = BTreeMap::new();
            for step in &self.steps {
                done += 1;
                let left = self.estimate().saturating_sub(begun.elapsed());
                println!(
                    "[{done}/{total}, about {} left] {}: {}, {} services",
                    spoken(left),
                    step.profile,
                    step.device.name(),
                    step.services.count
                );
                let lab = if step.on_one_core(lab) { &on_one } else { lab };
                let mut bench = Bench::new(lab, &step.device, step.services, step.workers)?;
                for job in &step.jobs {
                    let mut run = Run { step, bench: &mut bench, report, ends: &mut ends };
                    run.job(job)?;
                }
                report.conditions.modes.extend(bench.modes());
                if let Some(interfaces) = bench.interfaces()? {
                    report.conditions.weir_interfaces = interfaces;
                }
            }
        }
        Ok(())
    }
}

impl Step {
    /// Costs are taken with everything on one core: two busy cores take caches, and where they are two threads of one, execution
    /// units from each other, which would count against what works on two. Where packets come from a NIC, it is the NIC's
    /// interrupts that say which core works.
    fn on_one_core(&self, lab: &Lab) -> bool {
        let cost = matches!(self.profile, Profile::Cost | Profile::Services | Profile::Flows);
        cost && lab.topology == Topology::Namespaces
    }

    /// Seconds, about.
    fn estimate_s(&self) -> f64 {
        let setup = 1.0
            + if self.device.kind() == Kind::Balancer {
                f64::from(self.services.count) / 1000.0
            } else {
                0.0
            };
        let jobs = self.jobs.iter().map(|job| match job {
            Job::Cost(load) => 1.0 + load.seconds + f64::from(load.flows) / open_rate_pps(&self.device),
            // Some twelve trials.
            Job::Rate { seconds, loads, .. } => {
                12.0 * (seconds + 0.7) + (1.5 + LATENCY_S) * loads.len() as f64
            }
            Job::Connections { seconds } => 12.0 * (seconds + 1.0),
        });
        setup + jobs.sum::<f64>()
    }
}

/// How long new flows may take.
const NEW_S: f64 = 3.0;
/// How long latencies are taken at each load.
const LATENCY_S: f64 = 4.0;

fn established(flows: u32, size: &'static str, seconds: f64) -> Load {
    let (packets, pace) = (Packets::Established, Pace::Window(WINDOW));
    Load { packets, flows, size, pace, seconds, count: u32::MAX }
}

fn new() -> Load {
    let (packets, pace) = (Packets::New, Pace::Window(WINDOW));
    Load { packets, flows: 0, size: "60", pace, seconds: NEW_S, count: NEW_FLOWS }
}

/// What a load costs generator and sink by themselves: packets, size, and whether they were paced.
type Ends = BTreeMap<(Packets, &'static str, bool), f64>;

/// A step at work.
struct Run<'a, 'b> {
    step: &'a Step,
    bench: &'a mut Bench<'b>,
    report: &'a mut Report,
    ends: &'a mut Ends,
}

impl Run<'_, '_> {
    fn job(&mut self, job: &Job) -> Result<()> {
        match job {
            Job::Cost(load) => self.cost(load),
            Job::Rate { size, seconds, loads } => self.rate(size, *seconds, loads),
            Job::Connections { seconds } => self.connections(*seconds),
        }
    }

    fn key(&self, quantity: Quantity, load: &Load, load_percent: Option<u32>) -> Key {
        Key {
            quantity,
            device: self.step.device.name().to_owned(),
            packets: word(load.packets).to_owned(),
            size: load.size.to_owned(),
            flows: load.flows,
            services: self.step.services.count,
            workers: self.step.workers,
            paced: load.pace != Pace::Window(WINDOW),
            load_percent,
        }
    }

    fn put(&mut self, key: Key, value: f64, sample: Sample) {
        let lost = match sample.loss() {
            0.0 => String::new(),
            loss => format!(", {:.3} % lost", loss * 100.0),
        };
        let damaged =
            if sample.damaged > 0 { format!(", {} damaged", sample.damaged) } else { String::new() };
        let scaled = number(value / key.quantity.scale());
        println!(
            "    {}, {}: {scaled} {}{lost}{damaged}",
            key.quantity.title(),
            key.case(),
            key.quantity.unit()
        );
        self.report.push(key, value, sample);
    }

    fn cost(&mut self, load: &Load) -> Result<()> {
        let sample = self.bench.sample(load)?;
        let ends = (load.packets, load.size, load.pace == Pace::Window(WINDOW));
        if matches!(self.step.device, Device::Nothing) {
            let case = self.key(Quantity::Cost, load, None).case();
            println!("    generator and sink alone, {case}: {} ns", number(sample.gross_ns));
            self.ends.insert(ends, sample.gross_ns);
            return Ok(());
        }
        // With a device elsewhere there is nothing to compare with, but then nothing of it runs in the name of generator and
        // sink either.
        let ends_ns = self.ends.get(&ends).copied().unwrap_or(sample.ends_ns);
        self.put(self.key(Quantity::Cost, load, None), sample.gross_ns - ends_ns, sample);
        Ok(())
    }

    /// The highest rate by doubling and halving, then latencies at shares of it.
    fn rate(&mut self, size: &'static str, seconds: f64, loads: &[u32]) -> Result<()> {
        const LOST_AT_MOST: f64 = 1e-5;
        let base = established(1000, size, seconds);
        let try_at = |run: &mut Self, rate_pps: f64| {
            run.bench.sample(&Load { pace: Pace::Rate(rate_pps), ..base.clone() })
        };
        let found = search(25_000.0, |rate| {
            let sample = try_at(self, rate)?;
            Ok((kept_up(rate, &sample) && sample.loss() <= LOST_AT_MOST).then_some(sample))
        })?;
        let Some((rate, sample)) = found else {
            println!("    loses frames at any rate");
            return Ok(());
        };
        let paced = Load { pace: Pace::Rate(rate), ..base.clone() };
        self.put(self.key(Quantity::Throughput, &paced, None), sample.rate_pps, sample);
        // Without any loss: from there downwards.
        const TRIALS: i32 = 12;
        let rates = (0..TRIALS).map(|trial| rate * 0.9_f64.powi(trial));
        let mut lossless = None;
        for rate in rates {
            let sample = try_at(self, rate)?;
            if kept_up(rate, &sample) && sample.loss() == 0.0 {
                lossless = Some(sample);
                break;
            }
        }
        match lossless {
            Some(sample) => {
                self.put(self.key(Quantity::ThroughputLossless, &paced, None), sample.rate_pps, sample);
            }
            None => println!("    loses frames down to {:.0} % of that", 90.0 * 0.9_f64.powi(TRIALS - 2)),
        }
        for percent in loads {
            let timed = Pace::Timed(rate * f64::from(*percent) / 100.0);
            let timed = Load { pace: timed, seconds: LATENCY_S, ..base.clone() };
            let sample = self.bench.sample(&timed)?;
            let Some(times) = sample.latency else { continue };
            let p99_ns = times.p99_ns as f64;
            self.put(self.key(Quantity::LatencyP99, &timed, Some(*percent)), p99_ns, sample);
            if let Some(tenths) = sample.latency_tenths {
                let key = self.key(Quantity::LatencyP99Tenth, &timed, Some(*percent));
                self.put(key, tenths.p99_ns as f64, sample);
            }
        }
        Ok(())
    }

    fn connections(&mut self, seconds: f64) -> Result<()> {
        let mut best = None;
        search(1000.0, |rate| {
            let (said, window) = self.bench.connections(rate, seconds)?;
            let lost = said.started.saturating_sub(said.closed);
            let well = lost * 1000 <= said.started && said.seconds < seconds * 1.1 + 0.5;
            if !well {
                return Ok(None);
            }
            let each_ns = |spent_s: f64| spent_s * 1e9 / said.started.max(1) as f64;
            let sample = Sample {
                rate_pps: said.closed as f64 / seconds,
                sent: said.started,
                received: said.closed,
                damaged: said.strange,
                flow_loss: crate::traffic::FlowLoss::default(),
                latency: said.latency,
                latency_tenths: None,
                gross_ns: each_ns(window.charged_s + window.softirq_s),
                ends_ns: each_ns(said.cpu_s()),
                window,
            };
            best = Some(sample);
            Ok(Some(sample))
        })?;
        let Some(sample) = best else {
            println!("    loses connections at any rate");
            return Ok(());
        };
        let load = new();
        let key = Key { packets: "connections".to_owned(), ..self.key(Quantity::Connections, &load, None) };
        self.put(key, sample.rate_pps, sample);
        Ok(())
    }
}

/// Whether the generator sent about as fast as it should have.
fn kept_up(rate: f64, sample: &Sample) -> bool {
    sample.rate_pps >= rate * 0.97
}

/// The highest rate that does, to a sixteenth: doubled until one does not, then by halves. `None` where not even the
/// first one does.
fn search<T>(first: f64, mut does: impl FnMut(f64) -> Result<Option<T>>) -> Result<Option<(f64, T)>> {
    const MOST: f64 = 1e8;
    let (mut good, mut bad) = (None, first);
    while bad <= MOST {
        match does(bad)? {
            Some(done) => good = Some((bad, done)),
            None => break,
        }
        bad *= 2.0;
    }
    let Some((mut rate, mut done)) = good else { return Ok(None) };
    while bad - rate > rate / 16.0 {
        let middle = f64::midpoint(rate, bad);
        match does(middle)? {
            Some(more) => (rate, done) = (middle, more),
            None => bad = middle,
        }
    }
    Ok(Some((rate, done)))
}

fn word(packets: Packets) -> &'static str {
    match packets {
        Packets::Established => "established",
        Packets::New => "new",
    }
}

fn spoken(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Interrupts, Mode};

    #[test]
    fn the_search_ends_close_below_the_limit() {
        for limit in [1000.0, 1234.0, 64_000.0, 777_777.0] {
            let mut tried = 0;
            let found = search(1000.0, |rate| {
                tried += 1;
                Ok((rate <= limit).then_some(rate))
            });
            let (rate, _) = found.unwrap().unwrap();
            assert!(rate <= limit && limit - rate <= rate / 15.0, "{rate} of {limit}");
            assert!(tried < 20, "{tried} trials");
        }
        assert_eq!(search(1000.0, |_| Ok(None::<()>)).unwrap(), None);
    }

    #[test]
    fn the_short_form_takes_less_than_a_minute_and_a_half() {
        let deferred = Interrupts::Deferred;
        let devices = vec![Device::Bare(deferred), Device::Weir(Mode::Fullnat, deferred)];
        let cores = Cores { generator: vec![0], sink: vec![0], device: vec![1] };
        let plan = |short, repeats| {
            Plan::new(&Profile::ALL, devices.clone(), short, repeats, &Topology::Namespaces, &cores)
        };
        assert!(plan(true, 1).estimate() < Duration::from_secs(90), "{:?}", plan(true, 1).estimate());
        assert!(plan(false, 1).estimate() > plan(true, 1).estimate());
        assert_eq!(plan(false, 3).estimate(), plan(false, 1).estimate() * 3);
        let mut measured = Vec::new();
        for step in plan(false, 1).steps.iter().filter(|step| !matches!(step.device, Device::Nothing)) {
            for job in &step.jobs {
                let case = format!("{} {:?} {} {job:?}", step.device.name(), step.services, step.workers);
                assert!(!measured.contains(&case), "{case} twice");
                measured.push(case);
            }
        }
        let none = Plan::new(&[Profile::Workers], devices.clone(), false, 1, &Topology::Namespaces, &cores);
        assert!(none.is_empty() && !plan(true, 1).is_empty());
        for profile in [Profile::Cost, Profile::Services, Profile::Flows] {
            let plan = Plan::new(&[profile], devices.clone(), false, 1, &Topology::Namespaces, &cores);
            let first = &plan.steps[0];
            assert!(matches!(first.device, Device::Nothing), "{profile}: costs are net of what comes first");
        }
    }
}
