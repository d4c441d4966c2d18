//! What a driver offers, by the kernel's generic netlink families `ethtool` and `netdev`.

use std::collections::BTreeSet;

use netlink_bindings::ethtool::{self, IterableBitset, IterableFlow, RxfhFields};
use netlink_bindings::netdev::{self, QueueType, XdpAct, XskFlags};

use super::genl::Genetlink;
use super::{HashesPorts, Napi, Nic, Queues, Rings, Rss, XdpFeatures};

/// Commands of the family `ethtool` (`enum ETHTOOL_MSG_USER_*` of linux/ethtool_netlink.h). The bindings number commands
/// and answers in one row, which the kernel does not; attributes are as they say.
const FEATURES_GET: u8 = 11;
const RINGS_GET: u8 = 15;
const CHANNELS_GET: u8 = 17;
const RSS_GET: u8 = 38;

/// Asks the kernel. Each question is answered at once, or not at all: by kernels that do not know it and by drivers that
/// do not answer it.
#[derive(Debug, Default)]
pub(super) struct Asker {
    kernel: Genetlink,
}

impl Asker {
    /// Adds what can be asked to what the link itself has told.
    pub(super) fn fill_in(&mut self, nic: &mut Nic) {
        let ifindex = nic.ifindex;
        if let Some(queues) = self.channels(ifindex) {
            nic.queues = queues;
        }
        if let Some(peer) = &mut nic.peer {
            peer.tx_queues = self.channels(peer.ifindex).and_then(|queues| queues.tx);
        }
        nic.rings = self.rings(ifindex);
        nic.rss = self.rss(ifindex);
        nic.offloads = self.offloads(ifindex);
        nic.xdp = self.xdp(ifindex);
        (nic.napis, nic.bound_queues) = self.napis(ifindex);
    }

    /// How many queues the interface uses.
    pub(super) fn channels(&mut self, ifindex: u32) -> Option<Queues> {
        let mut request = ethtool::Request::new().op_channels_get_do();
        request.header_mut().cmd = CHANNELS_GET;
        request.encode().nested_header().push_dev_index(ifindex);
        let answer = self.kernel.ask(&request)?;
        let channels = answer.one()?;
        // What a driver does not have it leaves out, or says that there are none.
        let sum = |own: Option<u32>, combined: Option<u32>| match own.unwrap_or(0) + combined.unwrap_or(0) {
            0 => None,
            sum => Some(sum),
        };
        let combined = channels.get_combined_count().ok();
        Some(Queues {
            rx: sum(channels.get_rx_count().ok(), combined),
            tx: sum(channels.get_tx_count().ok(), combined),
            rx_max: channels.get_rx_max().ok().max(channels.get_combined_max().ok()),
        })
    }

    fn rings(&mut self, ifindex: u32) -> Option<Rings> {
        let mut request = ethtool::Request::new().op_rings_get_do();
        request.header_mut().cmd = RINGS_GET;
        request.encode().nested_header().push_dev_index(ifindex);
        let answer = self.kernel.ask(&request)?;
        let rings = answer.one()?;
        Some(Rings {
            rx: rings.get_rx().ok()?,
            rx_max: rings.get_rx_max().ok()?,
            tx: rings.get_tx().ok()?,
            tx_max: rings.get_tx_max().ok()?,
        })
    }

    /// How the interface spreads frames over its queues.
    pub(super) fn rss(&mut self, ifindex: u32) -> Option<Rss> {
        let mut request = ethtool::Request::new().op_rss_get_do();
        request.header_mut().cmd = RSS_GET;
        request.encode().nested_header().push_dev_index(ifindex);
        let answer = self.kernel.ask(&request)?;
        let rss = answer.one()?;
        let key = rss.get_hkey().unwrap_or_default();
        let (entries, _) = rss.get_indir().unwrap_or_default().as_chunks();
        let table: Vec<u32> = entries.iter().map(|entry| u32::from_ne_bytes(*entry)).collect();
        // A driver without such a table may still answer.
        (!table.is_empty()).then(|| Rss {
            key: key.iter().map(|byte| format!("{byte:02x}")).collect(),
            table,
            function: rss.get_hfunc().ok().map(function),
            symmetric: rss.get_input_xfrm().is_ok_and(|transformed| transformed != 0),
            hashes_ports: rss.get_flow_hash().ok().map(|fields| hashes_ports(&fields)),
        })
    }

    fn offloads(&mut self, ifindex: u32) -> Option<BTreeSet<String>> {
        let mut request = ethtool::Request::new().op_features_get_do();
        request.header_mut().cmd = FEATURES_GET;
        request.encode().nested_header().push_dev_index(ifindex);
        let answer = self.kernel.ask(&request)?;
        let features = answer.one()?;
        Some(set_bits(&features.get_active().ok()?))
    }

    fn xdp(&mut self, ifindex: u32) -> Option<XdpFeatures> {
        let mut request = netdev::Request::new().op_dev_get_do();
        request.encode().push_ifindex(ifindex);
        let answer = self.kernel.ask(&request)?;
        let device = answer.one()?;
        let features = device.get_xdp_features().ok()?;
        let has = |feature: XdpAct| features & feature as u64 != 0;
        let of_sockets = device.get_xsk_features().unwrap_or(0);
        Some(XdpFeatures {
            native: has(XdpAct::Basic),
            redirect: has(XdpAct::Redirect),
            zero_copy: has(XdpAct::XskZerocopy),
            multi_buffer: has(XdpAct::RxSg),
            zero_copy_segments: device.get_xdp_zc_max_segs().ok(),
            tx_checksum: of_sockets & XskFlags::TxChecksum as u64 != 0,
        })
    }

    /// What serves the interface's queues, and the RX queues that a socket is bound to.
    pub(super) fn napis(&mut self, ifindex: u32) -> (Vec<Napi>, Vec<u32>) {
        let mut napis = self.instances(ifindex).unwrap_or_default();
        let bound = self.queues(ifindex, &mut napis).unwrap_or_default();
        (napis, bound)
    }

    /// The NAPI instances, without their queues.
    fn instances(&mut self, ifindex: u32) -> Option<Vec<Napi>> {
        let mut request = netdev::Request::new().op_napi_get_dump();
        request.encode().push_ifindex(ifindex);
        let answer = self.kernel.ask(&request)?;
        let mut napis = Vec::new();
        for napi in answer.replies() {
            napis.push(Napi {
                id: napi.get_id().ok()?,
                irq: napi.get_irq().ok(),
                defer_hard_irqs: napi.get_defer_hard_irqs().ok(),
                gro_flush_timeout_ns: napi.get_gro_flush_timeout().ok(),
                irq_suspend_timeout_ns: napi.get_irq_suspend_timeout().ok(),
                ..Napi::default()
            });
        }
        napis.sort_by_key(|napi| napi.id);
        Some(napis)
    }

    /// Notes which NAPI instance serves which queues, and tells the RX queues that a socket is bound to.
    fn queues(&mut self, ifindex: u32, napis: &mut [Napi]) -> Option<Vec<u32>> {
        let mut request = netdev::Request::new().op_queue_get_dump();
        request.encode().push_ifindex(ifindex);
        let answer = self.kernel.ask(&request)?;
        let mut bound = Vec::new();
        for queue in answer.replies() {
            let (id, receives) = (queue.get_id().ok()?, queue.get_type().ok()? == QueueType::Rx as u32);
            if receives && queue.get_xsk().is_ok() {
                bound.push(id);
            }
            let Ok(served_by) = queue.get_napi_id() else { continue };
            for napi in napis.iter_mut().filter(|napi| napi.id == served_by) {
                if receives { napi.rx_queues.push(id) } else { napi.tx_queues.push(id) }
            }
        }
        Some(bound)
    }
}

/// The name of a hash function (`ETH_RSS_HASH_*` of linux/ethtool.h, one bit each).
fn function(bits: u32) -> String {
    match bits {
        1 => "toeplitz".to_owned(),
        2 => "xor".to_owned(),
        4 => "crc32".to_owned(),
        other => format!("{other:#x}"),
    }
}

/// Of which packets exactly addresses and ports are hashed.
fn hashes_ports(fields: &IterableFlow<'_>) -> HashesPorts {
    let four = [RxfhFields::IpSrc, RxfhFields::IpDst, RxfhFields::L4B01, RxfhFields::L4B23];
    let four = four.into_iter().fold(0, |bits, field| bits | field as u32);
    HashesPorts {
        tcp4: fields.get_tcp4().is_ok_and(|hashed| hashed == four),
        udp4: fields.get_udp4().is_ok_and(|hashed| hashed == four),
        tcp6: fields.get_tcp6().is_ok_and(|hashed| hashed == four),
        udp6: fields.get_udp6().is_ok_and(|hashed| hashed == four),
    }
}

/// The names of the bits that are set, of a bitset that lists bits by name.
fn set_bits(set: &IterableBitset<'_>) -> BTreeSet<String> {
    let is_list = set.get_nomask().is_ok();
    let Ok(bits) = set.get_bits() else { return BTreeSet::new() };
    let named = bits.get_bit().filter(|bit| is_list || bit.get_value().is_ok());
    named.filter_map(|bit| Some(bit.get_name().ok()?.to_string_lossy().into_owned())).collect()
}
