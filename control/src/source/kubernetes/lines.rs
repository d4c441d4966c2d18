//! The lines of an answer that goes on and on.

use std::time::Duration;

use kube::client::Body;

use super::client::next_piece;
use super::trouble::Trouble;

/// Bytes of a line at most: etcd's limit of an object is far below.
const LINE_MAX: usize = 16 << 20;

/// An answer, read line by line.
#[derive(Debug)]
pub(super) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// Where the next line begins.
    begin: usize,
    /// No line ends before.
    searched: usize,
}

impl Lines {
    pub(super) fn new(body: Body) -> Self {
        Self { body, buffer: Vec::new(), begin: 0, searched: 0 }
    }

    /// The next line, without its end, as long as nothing pauses for longer than `pause`; `None` at the end of the
    /// answer. What is behind the last line is none.
    pub(super) async fn next(&mut self, pause: Duration) -> Result<Option<&[u8]>, Trouble> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(length) = unsearched.iter().position(|byte| *byte == b'\n') {
                let end = self.searched + length;
                let line = self.begin..end;
                self.begin = end + 1;
                self.searched = self.begin;
                return Ok(Some(self.buffer.get(line).unwrap_or_default()));
            }
            self.buffer.drain(..self.begin);
            self.begin = 0;
            self.searched = self.buffer.len();
            if self.searched > LINE_MAX {
                return Err(Trouble::malformed(format_args!("a line of more than {LINE_MAX} bytes")));
            }
            match next_piece(&mut self.body, pause).await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_cut_wherever_pieces_are() {
        let body = Body::from(b"one\ntwo\n\nthree\nrest".to_vec());
        let mut lines = Lines::new(body);
        let mut read = Vec::new();
        while let Some(line) = lines.next(Duration::from_secs(1)).await.unwrap() {
            read.push(String::from_utf8(line.to_vec()).unwrap());
        }
        assert_eq!(read, ["one", "two", "", "three"]);
    }
}
