//! Questions to the kernel's families of generic netlink. The bindings encode and decode them; this carries them.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_bindings::nlctrl;
use netlink_bindings::traits::{NetlinkRequest, Protocol};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};

/// Bytes of an answer at most. The longest is about the queues of an interface: Linux has 4096 each way, of some 60 bytes.
const ANSWER_LIMIT: usize = 4 << 20;
/// Bytes of `struct nlmsghdr` (linux/netlink.h).
const HEADER_LEN: usize = 16;
/// Each question has a socket of its own, so that nothing of an earlier one is left in it.
const SEQUENCE: u32 = 1;

/// The kernel, with what is known of its families.
#[derive(Debug, Default)]
pub(super) struct Genetlink {
    ids: BTreeMap<&'static [u8], u16>,
}

/// What the kernel has answered to an `R`.
#[derive(Debug)]
pub(super) struct Answer<R> {
    payloads: Vec<Vec<u8>>,
    request: PhantomData<R>,
}

impl Genetlink {
    /// The whole answer; `None` where the kernel refuses, does not know the family, or answers in part only.
    pub(super) fn ask<R: NetlinkRequest>(&mut self, request: &R) -> Option<Answer<R>> {
        let kind = match request.protocol() {
            Protocol::Generic(name) => self.id(name)?,
            Protocol::Raw { protonum, request_type } => {
                (i32::from(protonum) == libc::NETLINK_GENERIC).then_some(request_type)?
            }
        };
        let socket = open().ok()?;
        let message = encode(kind, request.flags(), request.payload())?;
        send(socket.as_raw_fd(), &message, MsgFlags::empty()).ok()?;
        let mut payloads = Vec::new();
        let mut left = ANSWER_LIMIT;
        loop {
            let datagram = receive(&socket, left)?;
            left = left.checked_sub(datagram.len())?;
            if let Progress::Complete = gather(&datagram, &mut payloads)? {
                return Some(Answer { payloads, request: PhantomData });
            }
        }
    }

    /// The number that this kernel has given a family.
    fn id(&mut self, name: &'static [u8]) -> Option<u16> {
        if let Some(id) = self.ids.get(name) {
            return Some(*id);
        }
        let mut request = nlctrl::Request::new().op_getfamily_do();
        request.encode().push_family_name_bytes(name);
        let id = self.ask(&request)?.one()?.get_family_id().ok()?;
        self.ids.insert(name, id);
        Some(id)
    }
}

impl<R: NetlinkRequest> Answer<R> {
    /// All replies: one a thing of a dump.
    pub(super) fn replies(&self) -> impl Iterator<Item = R::ReplyType<'_>> {
        self.payloads.iter().map(|payload| R::decode_reply(payload))
    }

    /// The first reply.
    pub(super) fn one(&self) -> Option<R::ReplyType<'_>> {
        self.replies().next()
    }
}

/// A socket that takes messages from the kernel alone.
fn open() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkGeneric)?;
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// A message that asks for an acknowledgement, by which the end of the answer is known.
fn encode(kind: u16, flags: u16, payload: &[u8]) -> Option<Vec<u8>> {
    let flags = u32::from(flags) | (libc::NLM_F_REQUEST | libc::NLM_F_ACK).cast_unsigned();
    let len = u32::try_from(HEADER_LEN + payload.len()).ok()?;
    let mut message = Vec::with_capacity(HEADER_LEN + payload.len());
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(u16::try_from(flags).ok()?.to_ne_bytes());
    message.extend(SEQUENCE.to_ne_bytes());
    // The kernel knows the port.
    message.extend(0u32.to_ne_bytes());
    message.extend(payload);
    Some(message)
}

/// The next datagram, of `limit` bytes at most. The kernel answers before `send` returns and dumps on while it is read, so
/// where nothing is there nothing will come.
fn receive(socket: &OwnedFd, limit: usize) -> Option<Vec<u8>> {
    let ask_len = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
    let len = recv(socket.as_raw_fd(), &mut [], ask_len).ok()?;
    let mut datagram = vec![0; (len <= limit).then_some(len)?];
    let read = recv(socket.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC).ok()?;
    (read == len).then_some(datagram)
}

/// How far an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// There is more to come.
    More,
    /// That was all.
    Complete,
}

/// Adds a datagram's payloads to an answer; `None` where the kernel tells of an error, or a message is cut.
fn gather(mut datagram: &[u8], payloads: &mut Vec<Vec<u8>>) -> Option<Progress> {
    while !datagram.is_empty() {
        let (len, rest) = datagram.split_first_chunk()?;
        let (kind, rest) = rest.split_first_chunk()?;
        let (_flags, rest) = rest.split_first_chunk::<2>()?;
        let sequence = rest.first_chunk()?;
        let len = usize::try_from(u32::from_ne_bytes(*len)).ok()?;
        let payload = datagram.get(HEADER_LEN..len)?;
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        if u32::from_ne_bytes(*sequence) != SEQUENCE {
            continue;
        }
        match i32::from(u16::from_ne_bytes(*kind)) {
            libc::NLMSG_NOOP => {}
            libc::NLMSG_OVERRUN => return None,
            // The end of a dump, and of another answer: both begin with an error's number or 0.
            libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                return (i32::from_ne_bytes(*payload.first_chunk()?) == 0).then_some(Progress::Complete);
            }
            _ => payloads.push(payload.to_vec()),
        }
    }
    Some(Progress::More)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use netlink_bindings::ethtool;

    use super::*;

    /// Index of the loopback interface in every network namespace.
    const LOOPBACK: u32 = 1;

    /// `ETH_SS_FEATURES`, `ETH_SS_LINK_MODES` and more of linux/ethtool.h that are no device's own.
    const STRING_SETS: [u32; 10] = [4, 5, 6, 8, 9, 10, 11, 12, 13, 14];

    fn string_sets(ifindex: u32) -> ethtool::OpStrsetGetDo<'static> {
        let mut request = ethtool::Request::new().op_strset_get_do();
        let mut sets =
            request.encode().nested_header().push_dev_index(ifindex).end_nested().nested_stringsets();
        for set in STRING_SETS {
            sets = sets.nested_stringset().push_id(set).end_nested();
        }
        drop(sets);
        request
    }

    /// The ids of the string sets in a reply whose strings are all there.
    fn whole_sets(reply: &ethtool::IterableStrset<'_>) -> BTreeSet<u32> {
        let Ok(sets) = reply.get_stringsets() else { return BTreeSet::new() };
        let is_whole = |set: &ethtool::IterableStringset<'_>| {
            // Not `get_strings`: it ends at the first attribute of another type.
            let strings = (*set).filter_map(|attribute| match attribute {
                Ok(ethtool::Stringset::Strings(strings)) => Some(strings.get_string().count()),
                _ => None,
            });
            let strings: usize = strings.sum();
            set.get_count().is_ok_and(|count| strings > 0 && usize::try_from(count) == Ok(strings))
        };
        sets.get_stringset().filter(is_whole).filter_map(|set| set.get_id().ok()).collect()
    }

    #[test]
    fn a_reply_of_more_than_8_kib_is_whole() {
        let answer = Genetlink::default().ask(&string_sets(LOOPBACK)).unwrap();
        let lens: Vec<_> = answer.payloads.iter().map(Vec::len).collect();
        assert!(lens.len() == 1 && lens[0] > 8192, "{lens:?}");
        assert_eq!(whole_sets(&answer.one().unwrap()), STRING_SETS.into());
    }

    #[test]
    fn a_cut_payload_has_less_and_is_no_panic() {
        let answer = Genetlink::default().ask(&string_sets(LOOPBACK)).unwrap();
        let payload = &answer.payloads[0];
        for len in (0..payload.len()).step_by(7) {
            let reply = <ethtool::OpStrsetGetDo<'_> as NetlinkRequest>::decode_reply(&payload[..len]);
            assert!(whole_sets(&reply).len() < STRING_SETS.len(), "{len} bytes");
        }
    }

    #[test]
    fn a_dump_is_read_to_its_end() {
        let answer = Genetlink::default().ask(&nlctrl::Request::new().op_getfamily_dump()).unwrap();
        let names: BTreeSet<_> = answer
            .replies()
            .filter_map(|family| Some(family.get_family_name().ok()?.to_str().unwrap().to_owned()))
            .collect();
        assert!(names.contains("nlctrl") && names.contains("ethtool"), "{names:?}");
    }

    #[test]
    fn what_the_kernel_refuses_has_no_answer_and_does_no_harm_to_the_next_question() {
        let mut kernel = Genetlink::default();
        assert!(kernel.ask(&string_sets(i32::MAX.cast_unsigned())).is_none(), "no such interface");
        assert!(kernel.id(b"no-such-family").is_none());
        assert!(kernel.ask(&string_sets(LOOPBACK)).is_some());
    }

    #[test]
    fn an_answer_ends_with_done_or_error_and_nothing_cut_is_taken() {
        let message = |len: u32, kind: i32, sequence: u32, payload: &[u8]| {
            let kind = u16::try_from(kind).unwrap();
            let header =
                [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 2], &sequence.to_ne_bytes(), &[0; 4]];
            [header.concat().as_slice(), payload].concat()
        };
        let data =
            |payload: &[u8]| message(16 + u32::try_from(payload.len()).unwrap(), 20, SEQUENCE, payload);
        let end = |kind, code: i32| message(20, kind, SEQUENCE, &code.to_ne_bytes());
        let (done, error) = (libc::NLMSG_DONE, libc::NLMSG_ERROR);
        let (more, complete) = (Some(Progress::More), Some(Progress::Complete));
        for (name, datagram, want, payloads) in [
            ("nothing", vec![], more, 0),
            ("data", data(b"abcd"), more, 1),
            ("data that is padded", [data(b"abcde"), vec![0; 3], data(b"fghi")].concat(), more, 2),
            ("data that is not padded at the end", data(b"abcde"), more, 1),
            ("data and its acknowledgement", [data(b"abcd"), end(error, 0)].concat(), complete, 1),
            ("the end of a dump", [data(b"abcd"), data(b"efgh"), end(done, 0)].concat(), complete, 2),
            ("what follows the end is not looked at", [end(done, 0), vec![1; 5]].concat(), complete, 0),
            ("an error", end(error, -libc::EOPNOTSUPP), None, 0),
            ("an error at the end of a dump", end(done, -libc::EINVAL), None, 0),
            ("another question's", message(20, 20, SEQUENCE + 1, b"abcd"), more, 0),
            ("another question's end", message(20, done, SEQUENCE + 1, &[0; 4]), more, 0),
            ("no operation", message(16, libc::NLMSG_NOOP, SEQUENCE, b""), more, 0),
            ("overrun", message(16, libc::NLMSG_OVERRUN, SEQUENCE, b""), None, 0),
            ("half a header", data(b"")[..9].to_vec(), None, 0),
            ("a header without its port", data(b"")[..12].to_vec(), None, 0),
            ("length 0", message(0, 20, SEQUENCE, b"abcd"), None, 0),
            ("length below the header's", message(15, 20, SEQUENCE, b"abcd"), None, 0),
            ("length beyond the datagram", message(21, 20, SEQUENCE, b"abcd"), None, 0),
            ("the greatest length", message(u32::MAX, 20, SEQUENCE, b"abcd"), None, 0),
            ("an end without a number", message(19, error, SEQUENCE, &[0; 3]), None, 0),
        ] {
            let mut gathered = Vec::new();
            assert_eq!(gather(&datagram, &mut gathered), want, "{name}");
            assert_eq!(gathered.len(), payloads, "{name}");
        }
    }

    #[test]
    fn an_answer_beyond_the_limit_is_not_taken() {
        let socket = open().unwrap();
        let request = nlctrl::Request::new().op_getfamily_dump();
        let message =
            encode(libc::GENL_ID_CTRL.try_into().unwrap(), request.flags(), request.payload()).unwrap();
        send(socket.as_raw_fd(), &message, MsgFlags::empty()).unwrap();
        assert!(receive(&socket, 64).is_none());
        assert!(receive(&socket, ANSWER_LIMIT).is_some_and(|datagram| datagram.len() > 64));
    }
}
