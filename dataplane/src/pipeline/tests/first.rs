//! The short path of a first packet against the long one: tables with a rule for marks that no packet matches have all
//! packets take the long one.

use super::*;
use crate::ids::BackendId;
use crate::snapshot::marks::{MarkRule, Protocols};
use crate::snapshot::{Access, Locality, Masquerade, Networks, Service, Services};
use crate::trace::{Step, Trace};

/// The same tables, of which every first packet is asked everything.
fn asking(tables: &Snapshot) -> Snapshot {
    let rule = MarkRule {
        src: None,
        dst: None,
        protocols: Protocols::ALL,
        dports: 1..=1,
        sports: 1..=1,
        port: None,
        mark: std::num::NonZeroU32::MIN,
    };
    let services = Services::clone(&tables.services).with_rules(vec![rule]);
    Snapshot { services: Arc::new(services), ..tables.clone() }
}

/// The same tables, whose services ask where a client is: half of them may come, and some are not shown to backends.
fn choosy(tables: &Snapshot, masquerade: Masquerade) -> Snapshot {
    let low = |number| u32::try_from(crate::flow::key::bits(client(number, false).ip()).0).unwrap();
    let networks = |numbers: [u16; 2]| Networks::new([(low(numbers[0]), low(numbers[1]))], []);
    let access = Access { sources: Some(networks([0, 8])), masquerade, ..Access::default() };
    let list = tables.services.iter().map(|service| Service { access: access.clone(), ..service.clone() });
    let mut services = Services::clone(&tables.services);
    services.change(&[], list.collect());
    let services = services.with_locality(Locality { local: networks([4, 6]), ..Locality::default() });
    Snapshot { services: Arc::new(services), ..tables.clone() }
}

#[derive(Default)]
struct Steps(Vec<Step>);

impl Trace for Steps {
    fn step(&mut self, step: Step) {
        self.0.push(step);
    }
}

/// What a packet becomes, with all that can be seen of it.
fn told(engine: &mut Engine, tables: &Snapshot, bytes: &[u8]) -> (Verdict, Vec<u8>, Vec<Step>) {
    let mut wire = Wire::new(bytes, UPLINK);
    let mut frame = Frame::new(&mut wire.chunk, wire.start, wire.len, UPLINK).unwrap();
    let mut steps = Steps::default();
    let verdict = engine.process_one(&mut frame, Tick(0), tables, &mut steps);
    (verdict, frame.bytes().to_vec(), steps.0)
}

fn records(engine: &Engine) -> Vec<FlowRecord> {
    let mut records = Vec::with_capacity(1000);
    assert_eq!(engine.dump(0, usize::MAX, Tick(0), &mut records), None);
    records
}

fn counts(engine: &Engine) -> Vec<(u32, u32)> {
    let state = &engine.core.setup.state;
    (0..224).filter_map(|id| state.backend(BackendId(id))).map(|backend| backend.counts()).collect()
}

fn assert_same(short: &Engine, long: &Engine) {
    assert_eq!(records(short), records(long));
    assert_eq!(counts(short), counts(long));
    for (name, of) in [
        ("opened", (|stats| stats.flows_opened.get()) as fn(&WorkerStats) -> u64),
        ("half-open", |stats| stats.half_open.get()),
        ("forwarded", |stats| stats.forwarded.get()),
        ("evicted", |stats| stats.flows_evicted.get()),
    ] {
        assert_eq!(of(short.stats()), of(long.stats()), "{name}");
    }
    for id in (0..224).map(BackendId) {
        let [one, other] = [short, long].map(|engine| {
            let counters = engine.stats().backend(id).unwrap();
            [counters.flows.get(), counters.packets_in.get(), counters.bytes_in.get()]
        });
        assert_eq!(one, other, "{id:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_flow_is_opened_alike_whether_all_was_asked_or_not(
        workers in 1..3_u8,
        masquerade in prop_oneof![
            Just(None),
            Just(Some(Masquerade::Hairpin)),
            Just(Some(Masquerade::NotLocal)),
            Just(Some(Masquerade::Always)),
        ],
        packets in proptest::collection::vec(
            (0..12_u16, any::<bool>(), 78..84_u16, 0..6_u8, 1..4_u8, 0..4_u8),
            1..60,
        ),
    ) {
        let usual = masquerade.map_or_else(tables, |masquerade| choosy(&tables(), masquerade));
        let other = asking(&usual);
        // Few slots, so that flows have to make room.
        let [mut short, mut long] = [(); 2].map(|()| engines(workers, 24).remove(0));
        for (number, is_udp, port, flags, ttl, from_vip) in packets {
            let proto = if is_udp { UDP } else { TCP };
            let flags = [SYN, SYN, SYN, SYN | ACK, ACK, RST][usize::from(flags)];
            let from = match from_vip {
                0 => at(vip(false), 4000 + number),
                1 => at(backend(1, false), 4000 + number),
                _ => client(number, false),
            };
            let bytes = packet(proto, flags, from, at(vip(false), port), ttl);
            let (one, other) = (told(&mut short, &usual, &bytes), told(&mut long, &other, &bytes));
            prop_assert_eq!(one, other);
        }
        assert_same(&short, &long);
    }

    #[test]
    fn a_batch_of_first_packets_opens_the_flows_that_they_would_open_one_by_one(
        clients in proptest::collection::vec((0..40_u16, 80..84_u16, any::<bool>()), 1..BATCH),
    ) {
        let tables = tables();
        let [mut batched, mut single] = [(); 2].map(|()| engines(1, 64).remove(0));
        let packets = clients.iter().map(|(number, port, is_udp)| {
            packet(if *is_udp { UDP } else { TCP }, SYN, client(*number, false), at(vip(false), *port), 64)
        });
        let mut wires: Vec<_> = packets.map(|bytes| Wire::new(&bytes, UPLINK)).collect();
        let alone: Vec<_> = wires.iter().map(|wire| told(&mut single, &tables, wire.bytes())).collect();
        let mut frames: Vec<_> = wires
            .iter_mut()
            .map(|wire| Frame::new(&mut wire.chunk, wire.start, wire.len, UPLINK).unwrap())
            .collect();
        let mut verdicts = vec![Verdict::Kernel; frames.len()];
        batched.process(&mut frames, &mut verdicts, Tick(0), &tables);
        for ((frame, verdict), (alone, bytes, _)) in frames.iter().zip(verdicts).zip(alone) {
            prop_assert_eq!((verdict, frame.bytes()), (alone, &*bytes));
        }
        assert_same(&batched, &single);
    }
}

#[test]
fn a_plain_service_wants_a_backend_for_a_first_packet_and_a_client_that_may_come() {
    use crate::snapshot::{Options, Persistence};

    let options = |options| Service { options, ..Service::default() };
    let access = |access| Service { access, ..Service::default() };
    let persistence = Persistence { timeout_s: 1, mask: u128::MAX };
    for (name, service, want) in [
        ("nothing", Service::default(), true),
        ("persistence", Service { persistence: Some(persistence), ..Service::default() }, false),
        ("SIP", Service { engine: Some(crate::snapshot::Engine::Sip), ..Service::default() }, false),
        ("one packet", Service { one_packet: true, ..Service::default() }, false),
        ("an option", options(Options { toa: true, ..Options::default() }), false),
        ("ranges", access(Access { sources: Some(Networks::default()), ..Access::default() }), true),
        ("masquerade", access(Access { masquerade: Masquerade::Always, ..Access::default() }), true),
    ] {
        assert_eq!(service.is_plain(), want, "{name}");
    }
}
