//! Captures: classic pcap and pcapng to read, classic pcap with nanoseconds to write; Ethernet only.
//!
//! A capture brings its own time, so it is no [`super::Io`]: whoever replays one gives each packet to the engine at the
//! packet's time.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, InterfaceDescriptionBlock, Linktype, PcapBlockOwned, create_reader};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Bytes read ahead: more than any packet with its headers.
const BUFFER: usize = 1 << 20;

/// Why a capture cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PcapError {
    /// The file cannot be opened or made.
    #[error("{}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no capture.
    #[error("{}: neither pcap nor pcapng", path.display())]
    NoCapture {
        /// The file.
        path: PathBuf,
    },
    /// Its packets are not Ethernet frames.
    #[error("{}: packet {number}: link type {link_type} is not Ethernet (1)", path.display())]
    LinkType {
        /// The file.
        path: PathBuf,
        /// Number of the packet, from 1.
        number: u64,
        /// The link type (www.tcpdump.org/linktypes.html).
        link_type: i32,
    },
    /// It ends in the middle, or its structure is wrong.
    #[error("{}: packet {number}: {what}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Number of the packet, from 1.
        number: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// It cannot be written.
    #[error("writing {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A packet of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Its number in the capture, from 1.
    pub number: u64,
    /// When it was captured, in nanoseconds since 1970. A packet without a time has that of the one before.
    pub time_ns: u64,
    /// What was captured of it, from the Ethernet header on.
    pub bytes: &'a [u8],
    /// Its length on the wire in bytes.
    pub wire_len: u32,
}

/// What a packet block belongs to.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link_type: Linktype,
    /// Units of a timestamp in a second; 0 where the file has a resolution that makes no sense.
    units: u64,
    offset_s: i64,
}

impl Interface {
    /// The time of `units` units, in nanoseconds.
    fn time_ns(&self, units: u64) -> Option<u64> {
        let ns = u128::from(units) * u128::from(NS_PER_SECOND)
            / u128::from(std::num::NonZero::new(self.units)?.get());
        let offset_ns = i128::from(self.offset_s) * i128::from(NS_PER_SECOND);
        u64::try_from(i128::try_from(ns).ok()?.checked_add(offset_ns)?).ok()
    }
}

/// Reads a capture packet by packet.
pub struct Reader {
    path: PathBuf,
    blocks: Box<dyn PcapReaderIterator + Send>,
    /// pcapng: of the present section. Classic pcap: the one that the header describes.
    interfaces: Vec<Interface>,
    number: u64,
    time_ns: u64,
    bytes: Vec<u8>,
}

/// What a block was.
enum Found {
    Packet { wire_len: u32 },
    Other,
}

impl Reader {
    /// Opens the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PcapError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| PcapError::Open { path: path.into(), source })?;
        Self::new(path, file)
    }

    /// Reads from `source`; `path` is what messages call it.
    pub fn new(path: impl Into<PathBuf>, source: impl Read + Send + 'static) -> Result<Self, PcapError> {
        let path = path.into();
        let Ok(blocks) = create_reader(BUFFER, source) else { return Err(PcapError::NoCapture { path }) };
        Ok(Self { path, blocks, interfaces: Vec::new(), number: 0, time_ns: 0, bytes: Vec::new() })
    }

    /// The next packet; `None` at the end.
    #[expect(clippy::should_implement_trait, reason = "a packet borrows the reader")]
    pub fn next(&mut self) -> Result<Option<Packet<'_>>, PcapError> {
        use pcap_parser::PcapError as Parse;
        loop {
            let (len, found) = match self.blocks.next() {
                Ok((len, block)) => {
                    (len, Self::take(block, &mut self.interfaces, &mut self.time_ns, &mut self.bytes))
                }
                Err(Parse::Eof) => return Ok(None),
                Err(Parse::Incomplete(_)) => {
                    self.refill()?;
                    continue;
                }
                Err(Parse::UnexpectedEof) => return Err(self.broken("the file ends in the middle of it")),
                Err(Parse::BufferTooSmall) => return Err(self.broken("larger than a mebibyte")),
                Err(_) => return Err(self.broken("malformed")),
            };
            self.blocks.consume(len);
            match found {
                Ok(Found::Other) => {}
                Ok(Found::Packet { wire_len }) => {
                    self.number += 1;
                    let Self { number, time_ns, .. } = *self;
                    return Ok(Some(Packet { number, time_ns, bytes: &self.bytes, wire_len }));
                }
                Err(Fault::LinkType(link_type)) => {
                    let (path, number) = (self.path.clone(), self.number + 1);
                    return Err(PcapError::LinkType { path, number, link_type });
                }
                Err(Fault::Broken(what)) => return Err(self.broken(what)),
            }
        }
    }

    fn refill(&mut self) -> Result<(), PcapError> {
        let result = self.blocks.refill().map_err(|_| ());
        result.map_err(|()| self.broken("the file cannot be read"))
    }

    fn broken(&self, what: &'static str) -> PcapError {
        PcapError::Broken { path: self.path.clone(), number: self.number + 1, what }
    }

    fn take(
        block: PcapBlockOwned<'_>,
        interfaces: &mut Vec<Interface>,
        time_ns: &mut u64,
        bytes: &mut Vec<u8>,
    ) -> Result<Found, Fault> {
        let (interface, units, data, wire_len) = match &block {
            PcapBlockOwned::LegacyHeader(header) => {
                let units =
                    if header.is_nanosecond_precision() { NS_PER_SECOND } else { NS_PER_SECOND / 1000 };
                interfaces.push(Interface { link_type: header.network, units, offset_s: 0 });
                return Ok(Found::Other);
            }
            PcapBlockOwned::Legacy(packet) => {
                let units = interfaces.first().map_or(0, |interface| interface.units);
                let time = u64::from(packet.ts_sec) * units + u64::from(packet.ts_usec);
                (0, Some(time), packet.data, packet.origlen)
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                interfaces.clear();
                return Ok(Found::Other);
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                interfaces.push(described(interface));
                return Ok(Found::Other);
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let time = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                (packet.if_id, Some(time), packet.packet_data(), packet.orig_len())
            }
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                (0, None, packet.packet_data(), packet.orig_len())
            }
            PcapBlockOwned::NG(_) => return Ok(Found::Other),
        };
        let interface =
            interfaces.get(interface as usize).ok_or(Fault::Broken("no such interface in the file"))?;
        if interface.link_type != Linktype::ETHERNET {
            return Err(Fault::LinkType(interface.link_type.0));
        }
        if let Some(units) = units {
            *time_ns = interface.time_ns(units).ok_or(Fault::Broken("its time makes no sense"))?;
        }
        bytes.clear();
        bytes.extend_from_slice(data);
        Ok(Found::Packet { wire_len })
    }
}

enum Fault {
    LinkType(i32),
    Broken(&'static str),
}

fn described(block: &InterfaceDescriptionBlock<'_>) -> Interface {
    let units = block.ts_resolution().unwrap_or(0);
    Interface { link_type: block.linktype, units, offset_s: block.ts_offset() }
}

/// Writes a classic pcap file with timestamps in nanoseconds.
#[derive(Debug)]
pub struct Writer<W: Write = BufWriter<File>> {
    path: PathBuf,
    out: W,
}

impl Writer {
    /// Makes the file, or empties it.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, PcapError> {
        let path = path.as_ref();
        let file = File::create(path).map_err(|source| PcapError::Open { path: path.into(), source })?;
        Self::new(path, BufWriter::new(file))
    }
}

impl<W: Write> Writer<W> {
    /// Writes to `out`; `path` is what messages call it.
    pub fn new(path: impl Into<PathBuf>, out: W) -> Result<Self, PcapError> {
        let mut writer = Self { path: path.into(), out };
        // Magic number of nanoseconds, version 2.4, no zone, no accuracy, longest packet (pcap-savefile(5)).
        writer.words(&[0xa1b2_3c4d, 4 << 16 | 2, 0, 0, 1 << 18, 1])?;
        Ok(writer)
    }

    /// Adds a packet, captured whole at `time_ns` nanoseconds since 1970.
    pub fn write(&mut self, time_ns: u64, bytes: &[u8]) -> Result<(), PcapError> {
        let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let len = word(bytes.len() as u64);
        self.words(&[word(time_ns / NS_PER_SECOND), word(time_ns % NS_PER_SECOND), len, len])?;
        self.bytes(bytes)
    }

    /// Writes out what is still buffered.
    pub fn finish(mut self) -> Result<(), PcapError> {
        self.out.flush().map_err(|source| PcapError::Write { path: self.path, source })
    }

    fn words(&mut self, words: &[u32]) -> Result<(), PcapError> {
        words.iter().try_for_each(|word| self.bytes(&word.to_le_bytes()))
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), PcapError> {
        self.out.write_all(bytes).map_err(|source| PcapError::Write { path: self.path.clone(), source })
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test numbers are small")]
#[path = "pcap_test.rs"]
mod tests;
