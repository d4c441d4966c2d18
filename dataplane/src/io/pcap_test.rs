//! Captures as they come, whole and broken.

use proptest::prelude::*;

use super::*;

type Row = (u64, u64, Vec<u8>, u32);

fn read(bytes: &[u8]) -> Result<Vec<Row>, String> {
    let text = |error: PcapError| error.to_string();
    let mut reader = Reader::new("c.pcap", io::Cursor::new(bytes.to_vec())).map_err(text)?;
    let mut rows = Vec::new();
    while let Some(packet) = reader.next().map_err(text)? {
        rows.push((packet.number, packet.time_ns, packet.bytes.to_vec(), packet.wire_len));
    }
    Ok(rows)
}

fn written(packets: &[(u64, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new("out.pcap", &mut bytes).unwrap();
    for (time_ns, packet) in packets {
        writer.write(*time_ns, packet).unwrap();
    }
    writer.finish().unwrap();
    bytes
}

/// A classic capture of one packet of 3 bytes, of 60 on the wire, at 7 s and 5 units.
fn classic(magic: u32, link_type: u32, big_endian: bool) -> Vec<u8> {
    let words =
        [magic, if big_endian { 2 << 16 | 4 } else { 4 << 16 | 2 }, 0, 0, 65535, link_type, 7, 5, 3, 60];
    let bytes = |word: u32| if big_endian { word.to_be_bytes() } else { word.to_le_bytes() };
    [words.map(bytes).as_flattened(), b"abc"].concat()
}

/// A pcapng block.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let len = (padded as u32 + 12).to_le_bytes();
    let mut block = [&kind.to_le_bytes(), &len, body].concat();
    block.resize(8 + padded, 0);
    block.extend(len);
    block
}

fn words(words: &[u32], bytes: &[u8]) -> Vec<u8> {
    [words.iter().flat_map(|word| word.to_le_bytes()).collect(), bytes.to_vec()].concat()
}

fn section() -> Vec<u8> {
    block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX], &[]))
}

/// An interface with a timestamp resolution of ten to the minus `digits` seconds.
fn interface(link_type: u32, digits: u8) -> Vec<u8> {
    block(1, &words(&[link_type, 65535], &[9, 0, 1, 0, digits, 0, 0, 0, 0, 0, 0, 0]))
}

fn enhanced(interface: u32, time: u64, packet: &[u8]) -> Vec<u8> {
    let len = packet.len() as u32;
    block(6, &words(&[interface, (time >> 32) as u32, time as u32, len, len], packet))
}

#[test]
fn what_is_written_is_read() {
    let packets: [(u64, &[u8]); 3] = [(0, &[1; 60]), (1_700_000_000_123_456_789, &[2; 1514]), (5, &[])];
    let want: Vec<_> =
        (1..).zip(packets).map(|(n, (ns, bytes))| (n, ns, bytes.to_vec(), bytes.len() as u32)).collect();
    assert_eq!(read(&written(&packets)).unwrap(), want);
    assert_eq!(read(&written(&[])).unwrap(), []);
}

#[test]
fn classic_captures_of_all_kinds_are_read() {
    for (name, magic, big_endian, time_ns) in [
        ("microseconds", 0xa1b2_c3d4, false, 7_000_005_000),
        ("nanoseconds", 0xa1b2_3c4d, false, 7_000_000_005),
        ("microseconds, the other byte order", 0xa1b2_c3d4, true, 7_000_005_000),
        ("nanoseconds, the other byte order", 0xa1b2_3c4d, true, 7_000_000_005),
    ] {
        assert_eq!(
            read(&classic(magic, 1, big_endian)),
            Ok(vec![(1, time_ns, b"abc".to_vec(), 60)]),
            "{name}"
        );
    }
}

#[test]
fn pcapng_has_interfaces_with_their_own_time() {
    let file = [
        section(),
        interface(1, 6),
        interface(1, 9),
        enhanced(0, 7_000_005, b"abcde"),
        block(0xbad, b"unknown"),
        enhanced(1, 8_000_000_005, b"f"),
        block(3, &words(&[3], b"ghi")),
        section(),
        interface(1, 3),
        enhanced(0, 9_001, b"jkl"),
    ]
    .concat();
    let want = [
        (1, 7_000_005_000, &b"abcde"[..]),
        (2, 8_000_000_005, b"f"),
        (3, 8_000_000_005, b"ghi"),
        (4, 9_001_000_000, b"jkl"),
    ];
    let want: Vec<_> = want.map(|(n, ns, bytes)| (n, ns, bytes.to_vec(), bytes.len() as u32)).into();
    assert_eq!(read(&file), Ok(want));
}

#[test]
fn what_cannot_be_read_is_named_with_its_packet() {
    let two = written(&[(1, &[1; 60]), (2, &[2; 60])]);
    let ng = |blocks: &[Vec<u8>]| [vec![section()], blocks.to_vec()].concat().concat();
    for (name, file, want) in [
        ("empty", Vec::new(), "c.pcap: neither pcap nor pcapng"),
        ("text", b"interfaces: [{name: eth0}]\n".to_vec(), "c.pcap: neither pcap nor pcapng"),
        (
            "ends in a packet",
            two[..two.len() - 1].to_vec(),
            "c.pcap: packet 2: the file ends in the middle of it",
        ),
        (
            "ends in a packet's header",
            two[..24 + 76 + 3].to_vec(),
            "c.pcap: packet 2: the file ends in the middle of it",
        ),
        (
            "not Ethernet",
            classic(0xa1b2_c3d4, 113, false),
            "c.pcap: packet 1: link type 113 is not Ethernet (1)",
        ),
        (
            "a packet of 2 GB",
            [&two[..24], &words(&[0, 0, 1 << 31, 1 << 31], &[0; 100])].concat(),
            "c.pcap: packet 1: larger than a mebibyte",
        ),
        (
            "an interface that is not described",
            ng(&[interface(1, 6), enhanced(1, 0, b"abc")]),
            "c.pcap: packet 1: no such interface in the file",
        ),
        (
            "another section's interface",
            ng(&[interface(1, 6), section(), enhanced(0, 0, b"abc")]),
            "c.pcap: packet 1: no such interface in the file",
        ),
        (
            "a resolution of 10^-200 s",
            ng(&[interface(1, 100), enhanced(0, 5, b"abc")]),
            "c.pcap: packet 1: its time makes no sense",
        ),
        (
            "a time past the year 2554",
            ng(&[interface(1, 0), enhanced(0, u64::MAX, b"abc")]),
            "c.pcap: packet 1: its time makes no sense",
        ),
    ] {
        assert_eq!(read(&file).unwrap_err(), want, "{name}");
    }
    let error = Reader::open("/nonexistent/c.pcap").map(drop).unwrap_err();
    assert_eq!(error.to_string(), "/nonexistent/c.pcap: No such file or directory (os error 2)");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_broken_capture_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), ng: bool) {
        let mut file = if ng {
            [section(), interface(1, 6), enhanced(0, 1, &[1; 60]), block(3, &words(&[3], b"abc")), enhanced(0, 1, &[2; 7])].concat()
        } else {
            written(&[(1, &[1; 60]), (2, &[2; 60])])
        };
        for (place, value) in changes {
            let place = place.index(file.len());
            file[place] = value;
        }
        let _ = read(&file);
    }
}
