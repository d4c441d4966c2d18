//! What applies to all services: timeouts, and what IPVS has as sysctls.

use dataplane::snapshot::{Defence, Settings, Timeouts};

use super::reader::{Field, Map};
use crate::model::SECONDS_MAX;

/// Keys of `timeouts.tcp`, in the order of the states' numbers.
pub(super) const TCP_STATES: [&str; 11] = [
    "none_s",
    "established_s",
    "syn_sent_s",
    "syn_recv_s",
    "fin_wait_s",
    "time_wait_s",
    "close_s",
    "close_wait_s",
    "last_ack_s",
    "listen_s",
    "synack_s",
];
/// Keys of `timeouts.sctp`, likewise.
pub(super) const SCTP_STATES: [&str; 14] = [
    "none_s",
    "init1_s",
    "init_s",
    "cookie_sent_s",
    "cookie_replied_s",
    "cookie_wait_s",
    "cookie_s",
    "cookie_echoed_s",
    "established_s",
    "shutdown_sent_s",
    "shutdown_received_s",
    "shutdown_ack_sent_s",
    "rejected_s",
    "closed_s",
];
/// Packets of which one is dropped, at most.
const DROP_RATE_MAX: u32 = 1_000_000;

pub(super) fn read_timeouts(document: &Map<'_, '_>) -> Timeouts {
    let mut timeouts = Timeouts::default();
    let section = document.optional("timeouts");
    let Some(map) = section.as_ref().and_then(|field| field.map(&["tcp", "udp_s", "sctp"])) else {
        return timeouts;
    };
    timeouts.udp_s = map.optional("udp_s").and_then(|field| seconds(&field)).unwrap_or(timeouts.udp_s);
    read_states(&map, "tcp", &TCP_STATES, &mut timeouts.tcp_s);
    read_states(&map, "sctp", &SCTP_STATES, &mut timeouts.sctp_s);
    timeouts
}

fn read_states(
    timeouts: &Map<'_, '_>,
    protocol: &'static str,
    states: &'static [&'static str],
    of_states: &mut [u32],
) {
    let section = timeouts.optional(protocol);
    let Some(map) = section.as_ref().and_then(|field| field.map(states)) else { return };
    for (state, timeout) in states.iter().zip(of_states) {
        *timeout = map.optional(state).and_then(|field| seconds(&field)).unwrap_or(*timeout);
    }
}

fn seconds(field: &Field<'_, '_>) -> Option<u32> {
    field.number(1..=SECONDS_MAX)
}

pub(super) fn read_settings(document: &Map<'_, '_>) -> Settings {
    let mut settings = Settings::default();
    let section = document.optional("ipvs");
    if let Some(map) = section.as_ref().and_then(|field| {
        field.map(&[
            "conn_reuse_mode",
            "expire_nodest_conn",
            "expire_quiescent_template",
            "sloppy_tcp",
            "sloppy_sctp",
            "drop_entry",
            "drop_packet",
            "secure_tcp",
            "am_droprate",
            "amemthresh",
            "drop_removed",
            "lblc_expiration",
            "lblcr_expiration",
        ])
    }) {
        read_ipvs(&map, &mut settings);
    }
    let section = document.optional("floods");
    if let Some(map) = section.as_ref().and_then(|field| field.map(&["half_open", "new_flows_per_s"])) {
        read_number(&map, "half_open", 0..=u32::MAX, &mut settings.half_open);
        read_number(&map, "new_flows_per_s", 0..=u32::MAX, &mut settings.new_flows_per_s);
    }
    settings
}

fn read_ipvs(map: &Map<'_, '_>, settings: &mut Settings) {
    read_number(map, "conn_reuse_mode", 0..=3, &mut settings.conn_reuse_mode);
    read_number(map, "am_droprate", 1..=DROP_RATE_MAX, &mut settings.am_droprate);
    read_number(map, "amemthresh", 0..=u32::MAX, &mut settings.amemthresh);
    read_number(map, "lblc_expiration", 0..=SECONDS_MAX, &mut settings.lblc_expiration_s);
    read_number(map, "lblcr_expiration", 0..=SECONDS_MAX, &mut settings.lblcr_expiration_s);
    for (key, flag) in [
        ("expire_nodest_conn", &mut settings.expire_nodest_conn),
        ("expire_quiescent_template", &mut settings.expire_quiescent_template),
        ("sloppy_tcp", &mut settings.sloppy_tcp),
        ("sloppy_sctp", &mut settings.sloppy_sctp),
        ("drop_removed", &mut settings.drop_removed),
    ] {
        *flag = map.optional(key).and_then(|field| field.flag()).unwrap_or(*flag);
    }
    for (key, defence) in [
        ("drop_entry", &mut settings.drop_entry),
        ("drop_packet", &mut settings.drop_packet),
        ("secure_tcp", &mut settings.secure_tcp),
    ] {
        let number = map.optional(key).and_then(|field| field.number(0..=3_u8));
        *defence = number.and_then(read_defence).unwrap_or(*defence);
    }
}

fn read_defence(number: u8) -> Option<Defence> {
    let all = [Defence::Off, Defence::Automatic, Defence::Engaged, Defence::Always];
    all.get(usize::from(number)).copied()
}

fn read_number<T>(map: &Map<'_, '_>, key: &'static str, range: std::ops::RangeInclusive<T>, value: &mut T)
where
    T: Copy + Into<u64> + TryFrom<u64>,
{
    *value = map.optional(key).and_then(|field| field.number(range)).unwrap_or(*value);
}
