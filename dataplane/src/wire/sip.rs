//! The header of a SIP message that says which call it belongs to (RFC 3261, sections 7.3, 20.8 and 25.1).

/// Bytes of a message that are looked through: as many as a usual datagram has.
const REACH: usize = 1500;

/// The longest Call-ID that counts, in bytes (`IP_VS_PEDATA_MAXLEN`).
pub const CALL_ID_MAX: usize = 255;

/// The Call-ID of a message: what the first header of that name says, or of its short form `i`, on any line but the
/// first. `None` where that is no Call-ID (`word [ "@" word ]`), is longer than [`CALL_ID_MAX`], or is not followed by
/// the end of its line.
pub fn call_id(message: &[u8]) -> Option<&[u8]> {
    let mut rest = message.get(..REACH).unwrap_or(message);
    loop {
        // CR, LF or both end a line: between the two of both there is an empty one.
        let end = rest.iter().position(|byte| is_line_end(*byte))?;
        rest = rest.get(end + 1..)?;
        if let Some(value) = value(rest) {
            return identifier(value);
        }
    }
}

/// What the header at the start of a line says, if it is a Call-ID.
fn value(line: &[u8]) -> Option<&[u8]> {
    let behind = [&b"call-id"[..], b"i"].into_iter().find_map(|name| {
        let (start, behind) = line.split_at_checked(name.len())?;
        start.eq_ignore_ascii_case(name).then_some(behind)
    })?;
    Some(past_blanks(past_blanks(behind).strip_prefix(b":")?))
}

/// What follows blanks, and line ends that a blank follows.
fn past_blanks(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..]
    | [b'\r', b'\n', b' ' | b'\t', rest @ ..]
    | [b'\r' | b'\n', b' ' | b'\t', rest @ ..] = text
    {
        text = rest;
    }
    text
}

fn identifier(value: &[u8]) -> Option<&[u8]> {
    let local = word(value);
    let len = match value.get(local..)?.strip_prefix(b"@").map(word) {
        Some(0) => return None,
        Some(host) => local + 1 + host,
        None => local,
    };
    let (identifier, rest) = value.split_at_checked(len)?;
    let is_ended = rest.first().is_some_and(|byte| is_line_end(*byte));
    (local > 0 && len <= CALL_ID_MAX && is_ended).then_some(identifier)
}

/// How long the word is that stands in front.
fn word(text: &[u8]) -> usize {
    let is_of_word = |byte: &u8| byte.is_ascii_alphanumeric() || br#"-.!%*_+`'~()<>:\"/[]?{}"#.contains(byte);
    text.iter().position(|byte| !is_of_word(byte)).unwrap_or(text.len())
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_id_is_what_its_header_says() {
        let long = format!("INVITE sip:a@b SIP/2.0\r\ni: {}\r\n", "x".repeat(CALL_ID_MAX));
        let longer = long.replace(": ", ": x");
        let beyond = format!("INVITE sip:a@b SIP/2.0\r\nVia: {}\r\nCall-ID: a\r\n", "x".repeat(REACH));
        for (name, message, want) in [
            (
                "a request",
                "INVITE sip:a@b SIP/2.0\r\nVia: x\r\nCall-ID: a84b@pc33.example\r\n\r\n",
                Some("a84b@pc33.example"),
            ),
            ("a response", "SIP/2.0 200 OK\r\nCALL-ID:f81d4fae\r\n", Some("f81d4fae")),
            (
                "the short form",
                "BYE sip:a@b SIP/2.0\ni : 1@[2001:db8::1]:5060\n",
                Some("1@[2001:db8::1]:5060"),
            ),
            (
                "another header that starts alike",
                "BYE sip:a@b SIP/2.0\r\nIdentity: x\r\nCall-ID: y\r\n",
                Some("y"),
            ),
            ("folded", "BYE sip:a@b SIP/2.0\r\nCall-ID:\r\n\t z\r\n", Some("z")),
            (
                "on a line that continues another",
                "BYE sip:a@b SIP/2.0\r\nSubject: s\r\n Call-ID: z\r\n",
                None,
            ),
            ("on the first line", "Call-ID: a\r\n", None),
            ("without an end", "BYE sip:a@b SIP/2.0\r\nCall-ID: a", None),
            ("with more behind it", "BYE sip:a@b SIP/2.0\r\nCall-ID: a, b\r\n", None),
            ("without a value", "BYE sip:a@b SIP/2.0\r\nCall-ID:\r\nVia: x\r\n", None),
            ("without a host", "BYE sip:a@b SIP/2.0\r\nCall-ID: a@\r\n", None),
            ("without a local part", "BYE sip:a@b SIP/2.0\r\nCall-ID: @b\r\n", None),
            ("as long as may be", &long, long.get(27..27 + CALL_ID_MAX)),
            ("longer", &longer, None),
            ("out of reach", &beyond, None),
            ("none", "\r\n\r\n", None),
            ("nothing", "", None),
        ] {
            assert_eq!(call_id(message.as_bytes()), want.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn no_bytes_are_too_much_for_it() {
        let alphabet = b"\r\n\t i:@aCALL-ID\0\xff";
        let mut state = 1_u64;
        for len in 0..2000 {
            let message: Vec<u8> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    alphabet[(state >> 33) as usize % alphabet.len()]
                })
                .collect();
            if let Some(id) = call_id(&message) {
                assert!((1..=CALL_ID_MAX).contains(&id.len()));
            }
        }
    }
}
