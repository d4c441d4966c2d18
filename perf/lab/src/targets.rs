//! What is wanted, and whether it is so.

use crate::results::{Quantity, Report};

/// A target beside what was measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) text: String,
    /// The ratio; `None` where one of the two was not measured.
    pub(crate) ratio: Option<f64>,
    pub(crate) met: Option<bool>,
    /// Whether the two are known to be of one run.
    pub(crate) of_one_run: bool,
}

impl Target {
    /// What there is to say of it, for people.
    pub(crate) fn verdict(&self) -> &'static str {
        match (self.met, self.of_one_run) {
            (Some(true), true) => "met",
            (Some(false), true) => "missed",
            (Some(true), false) => "met, by figures of several runs",
            (Some(false), false) => "missed, by figures of several runs",
            (None, _) => "not measured",
        }
    }
}

/// A ratio of two devices that has a limit.
struct Wanted {
    text: &'static str,
    quantity: Quantity,
    packets: &'static str,
    over: &'static str,
    under: &'static str,
    /// The ratio is this at most, or at least.
    limit: Limit,
}

enum Limit {
    Most(f64),
    Least(f64),
}

const WANTED: [Wanted; 6] = [
    Wanted {
        text: "Weir's CPU a packet at most 1.15 times the bare AF_XDP forwarder's",
        quantity: Quantity::Cost,
        packets: "established",
        over: "weir-fullnat",
        under: "bare",
        limit: Limit::Most(1.15),
    },
    Wanted {
        text: "Established flows at least 1.8 times cheaper than by nftables in kube-proxy's style",
        quantity: Quantity::Cost,
        packets: "established",
        over: "nftables",
        under: "weir-fullnat",
        limit: Limit::Least(1.8),
    },
    Wanted {
        text: "New flows at least 4 times cheaper than by nftables in kube-proxy's style",
        quantity: Quantity::Cost,
        packets: "new",
        over: "nftables",
        under: "weir-fullnat",
        limit: Limit::Least(4.0),
    },
    Wanted {
        text: "Weir's CPU a packet at most half of kernel IPVS's",
        quantity: Quantity::Cost,
        packets: "established",
        over: "weir-fullnat",
        under: "ipvs",
        limit: Limit::Most(0.5),
    },
    Wanted {
        text: "99th percentile of latency at half load at most 1.5 times the bare forwarder's",
        quantity: Quantity::LatencyP99,
        packets: "established",
        over: "weir-fullnat",
        under: "bare",
        limit: Limit::Most(1.5),
    },
    Wanted {
        text: "The same in the middle tenth of a second at most 1.5 times",
        quantity: Quantity::LatencyP99Tenth,
        packets: "established",
        over: "weir-fullnat",
        under: "bare",
        limit: Limit::Most(1.5),
    },
];

/// All targets.
pub(crate) fn all(report: &Report) -> Vec<Target> {
    WANTED.iter().map(|wanted| wanted.judge(report)).collect()
}

impl Wanted {
    fn judge(&self, report: &Report) -> Target {
        let half = self.quantity.is_latency().then_some(50);
        let ratio = report.figures.iter().find_map(|over| {
            let key = &over.key;
            let fits = key.quantity == self.quantity
                && key.packets == self.packets
                && key.device == self.over
                && key.load_percent == half
                && key.is_usual();
            let mut other = key.clone();
            self.under.clone_into(&mut other.device);
            let under = report.figure(&other).filter(|_| fits)?;
            let of_one_run = over.run_unix_s.is_some() && over.run_unix_s == under.run_unix_s;
            Some((over.median() / under.median(), of_one_run))
        });
        let (ratio, of_one_run) = (ratio.map(|(ratio, _)| ratio), ratio.is_some_and(|(_, one)| one));
        let met = ratio.map(|ratio| match self.limit {
            Limit::Most(most) => ratio <= most,
            Limit::Least(least) => ratio >= least,
        });
        Target { text: self.text.to_owned(), ratio, met, of_one_run }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{figure, report};

    #[test]
    fn a_target_is_met_missed_or_not_measured() {
        let cost = |device, packets, ns: f64| figure(Quantity::Cost, device, packets, &[ns]);
        let targets = all(&report(vec![
            cost("bare", "established", 100.0),
            cost("weir-fullnat", "established", 115.0),
            cost("nftables", "established", 200.0),
            cost("weir-fullnat", "new", 100.0),
            cost("nftables", "new", 500.0),
        ]));
        let met: Vec<_> = targets.iter().map(|target| target.met).collect();
        assert_eq!(met, [Some(true), Some(false), Some(true), None, None, None]);
        assert_eq!(targets[2].ratio, Some(5.0));
        assert_eq!(targets[2].verdict(), "met");
    }

    #[test]
    fn a_ratio_of_two_runs_or_of_few_services_is_not_taken_for_one() {
        let cost = |device, ns: f64| figure(Quantity::Cost, device, "established", &[ns]);
        let (bare, mut later, mut few) =
            (cost("bare", 100.0), cost("weir-fullnat", 100.0), cost("weir-fullnat", 1.0));
        later.run_unix_s = Some(1_800_000_000);
        few.key.services = 1;
        let first = |figures| all(&report(figures)).into_iter().next().unwrap();
        let target = first(vec![bare.clone(), few.clone(), later]);
        assert_eq!((target.ratio, target.verdict()), (Some(1.0), "met, by figures of several runs"));
        let mut bare_few = bare;
        bare_few.key.services = 1;
        assert_eq!(first(vec![bare_few, few]).met, None);
    }
}
