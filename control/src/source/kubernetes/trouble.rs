//! What goes wrong between Weir and the API server.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use kube::core::Status;

/// Of a message that came from the server so much is told.
const MESSAGE_MAX: usize = 300;

/// Kinds of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// What says where the server is, or who asks, cannot be used.
    Credentials,
    /// No connection, or one that broke.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404: the server does not have this resource.
    Missing,
    /// 410: what was asked for is too old.
    Gone,
    /// 429.
    Throttled,
    /// 500 and above.
    Server,
    /// What came is not what was asked for.
    Malformed,
    /// Anything else.
    Other,
}

impl Kind {
    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Missing => "missing",
            Self::Gone => "gone",
            Self::Throttled => "throttled",
            Self::Server => "server",
            Self::Malformed => "malformed",
            Self::Other => "other",
        }
    }

    /// Whether it is about the server as a whole, so that every resource meets it.
    pub(super) fn is_of_server(self) -> bool {
        match self {
            Self::Credentials | Self::Unreachable | Self::Timeout => true,
            Self::Unauthorized | Self::Throttled | Self::Server => true,
            Self::Forbidden | Self::Missing | Self::Gone | Self::Malformed | Self::Other => false,
        }
    }
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What kind of thing.
    pub kind: Kind,
    /// What exactly, for people.
    pub message: String,
    /// How long the server wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Trouble {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }

    /// An error with all that it came from.
    pub(super) fn caused(kind: Kind, error: &dyn Error) -> Self {
        Self::new(kind, chain(error))
    }

    /// What a `Status` says.
    pub(super) fn status(status: &Status) -> Self {
        Self::answered(status.code, status.message.as_bytes())
    }

    pub(super) fn malformed(what: impl fmt::Display) -> Self {
        Self::new(Kind::Malformed, what.to_string())
    }

    /// Of a code with the text that came with it, which is a `Status` or anything.
    pub(super) fn answered(code: u16, text: &[u8]) -> Self {
        let kind = match code {
            401 => Kind::Unauthorized,
            403 => Kind::Forbidden,
            404 => Kind::Missing,
            410 => Kind::Gone,
            429 => Kind::Throttled,
            500.. => Kind::Server,
            _ => Kind::Other,
        };
        let said = match serde_json::from_slice::<Status>(text) {
            Ok(status) if !status.message.is_empty() => status.message,
            _ => String::from_utf8_lossy(text).into_owned(),
        };
        let said = plain(&said);
        let message = if said.is_empty() { format!("HTTP {code}") } else { format!("HTTP {code}: {said}") };
        Self::new(kind, message)
    }
}

/// Text of the server's on one line, and not all of a long one.
fn plain(text: &str) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > MESSAGE_MAX {
            let end = line.floor_char_boundary(MESSAGE_MAX);
            line.truncate(end);
            line.push_str("..");
            break;
        }
    }
    line
}

/// An error and its causes; each but once, since many errors say their cause themselves.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    plain(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_what_the_server_said_in_a_line() {
        let status =
            br#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"services is
            forbidden","reason":"Forbidden","code":403}"#;
        let long = "x".repeat(1000);
        for (name, code, text, kind, message) in [
            ("a status", 403, &status[..], Kind::Forbidden, "HTTP 403: services is forbidden"),
            ("text", 429, b"Too many requests\n", Kind::Throttled, "HTTP 429: Too many requests"),
            ("a page", 502, b"<html>\n<b>no</b>", Kind::Server, "HTTP 502: <html> <b>no</b>"),
            ("nothing", 401, b"", Kind::Unauthorized, "HTTP 401"),
            ("no text", 404, b"\xff\x1b[31m", Kind::Missing, "HTTP 404: \u{fffd} [31m"),
            ("a long text", 400, long.as_bytes(), Kind::Other, &format!("HTTP 400: {}..", "x".repeat(300))),
        ] {
            let status = String::from_utf8_lossy(text).replace("\n            ", " ");
            let text = if name == "a status" { status.as_bytes() } else { text };
            let trouble = Trouble::answered(code, text);
            assert_eq!((trouble.kind, &*trouble.message), (kind, message), "{name}");
        }
    }

    #[test]
    fn an_error_is_told_with_its_causes_once_each() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read: {0}")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk is gone"));
        assert_eq!(Trouble::caused(Kind::Other, &error).message, "cannot read: disk is gone");
    }
}
