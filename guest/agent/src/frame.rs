// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Framing of the agent channel: `<crc32 hex 8> <json>\n`, one message a line.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Longest line, newline included, in bytes. Longer ones are dropped by the reader and never sent.
pub const MAX_LINE: usize = 64 * 1024;
/// Bytes before the JSON text: eight hex digits and a space.
const HEAD: usize = 9;

/// The message cannot be sent.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// It is longer than [`MAX_LINE`].
    #[error("the message has {0} bytes, more than a line of the agent channel holds")]
    TooLong(usize),
    /// It has no JSON form.
    #[error("the message has no JSON form: {0}")]
    Json(#[from] serde_json::Error),
}

/// Makes the line for `message`, newline included.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, EncodeError> {
    let json = serde_json::to_vec(message)?;
    let len = json.len() + HEAD + 1;
    if len > MAX_LINE {
        return Err(EncodeError::TooLong(len));
    }
    let mut line = Vec::with_capacity(len);
    line.extend_from_slice(format!("{:08x} ", crc32fast::hash(&json)).as_bytes());
    line.extend_from_slice(&json);
    line.push(b'\n');
    Ok(line)
}

/// Why a line was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadLine {
    /// No eight hex digits and a space at its beginning.
    #[error("the line has no checksum")]
    NoChecksum,
    /// The checksum is another one.
    #[error("the line's checksum does not match")]
    Checksum,
    /// Not a message of the protocol, though the checksum matches: the two ends have different versions.
    #[error("the line is not a message of this version of the protocol")]
    NotAMessage,
    /// Longer than [`MAX_LINE`].
    #[error("the line is longer than 64 KiB")]
    TooLong,
}

/// One line as it came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<T> {
    /// A message.
    Message(T),
    /// A dropped line, with the request id where one could be read.
    Bad {
        /// Why.
        why: BadLine,
        /// Top-level `id` of the JSON text, if it has one.
        id: Option<u32>,
    },
}

/// Takes one line apart (without its newline).
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Line<T> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let json = line.get(HEAD..).unwrap_or_default();
    let bad = |why| Line::Bad { why, id: read_id(json) };
    let Some(crc) = checksum(line) else { return bad(BadLine::NoChecksum) };
    if crc != crc32fast::hash(json) {
        return bad(BadLine::Checksum);
    }
    match serde_json::from_slice(json) {
        Ok(message) => Line::Message(message),
        Err(_) => bad(BadLine::NotAMessage),
    }
}

/// The checksum at the head of a line.
fn checksum(line: &[u8]) -> Option<u32> {
    let head = line.get(..HEAD)?;
    if head[HEAD - 1] != b' ' || !head[..HEAD - 1].iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(&head[..HEAD - 1]).ok()?, 16).ok()
}

fn read_id(json: &[u8]) -> Option<u32> {
    let value: serde_json::Value = serde_json::from_slice(json).ok()?;
    u32::try_from(value.get("id")?.as_u64()?).ok()
}

/// Cuts a byte stream into lines. Holds at most [`MAX_LINE`] bytes; what is longer is dropped up to its newline.
#[derive(Debug, Default)]
pub struct Reader {
    partial: Vec<u8>,
    overlong: bool,
    bad: u64,
}

impl Reader {
    /// An empty reader.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lines dropped so far.
    pub fn bad(&self) -> u64 {
        self.bad
    }

    /// Takes the next bytes and hands each finished line to `on_line`. Empty lines are skipped.
    pub fn push<T: DeserializeOwned>(&mut self, mut bytes: &[u8], mut on_line: impl FnMut(Line<T>)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.take(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.partial);
            let decoded = if std::mem::take(&mut self.overlong) {
                Line::Bad { why: BadLine::TooLong, id: None }
            } else if line.is_empty() || line == b"\r" {
                continue;
            } else {
                decode(&line)
            };
            self.bad += u64::from(matches!(decoded, Line::Bad { .. }));
            on_line(decoded);
        }
        self.take(bytes);
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.partial.len() + bytes.len() >= MAX_LINE {
            self.overlong = true;
            self.partial = Vec::new();
        }
        if !self.overlong {
            self.partial.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{Op, Request};

    fn request(id: u32) -> Request {
        Request { id, bg: false, op: Op::Ping }
    }

    fn read_all(reader: &mut Reader, bytes: &[u8]) -> Vec<Line<Request>> {
        let mut lines = Vec::new();
        reader.push(bytes, |line| lines.push(line));
        lines
    }

    #[test]
    fn a_damaged_line_is_dropped_counted_and_its_id_read() {
        let mut line = encode(&request(77)).unwrap();
        line[3] = if line[3] == b'0' { b'1' } else { b'0' };
        let mut reader = Reader::new();
        let lines = read_all(&mut reader, &line);
        assert_eq!(lines, [Line::Bad { why: BadLine::Checksum, id: Some(77) }]);
        assert_eq!(reader.bad(), 1);
    }

    #[test]
    fn a_too_long_line_ends_at_its_newline() {
        let mut reader = Reader::new();
        let mut bytes = vec![b'x'; MAX_LINE * 3];
        bytes.push(b'\n');
        bytes.extend(encode(&request(1)).unwrap());
        let lines = read_all(&mut reader, &bytes);
        assert_eq!(lines, [Line::Bad { why: BadLine::TooLong, id: None }, Line::Message(request(1))]);
    }

    #[test]
    fn a_too_long_message_is_refused() {
        let op = Op::WriteSys { path: "/x".into(), text: "y".repeat(MAX_LINE) };
        assert!(matches!(encode(&Request { id: 1, bg: false, op }), Err(EncodeError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn messages_survive_garbage_lines_and_any_cutting(
            garbage in proptest::collection::vec(any::<u8>().prop_filter("no newline", |b| *b != b'\n'), 0..300),
            cut in 1usize..64,
            ids in proptest::collection::vec(any::<u32>(), 1..5),
        ) {
            let mut bytes = garbage.clone();
            bytes.push(b'\n');
            for id in &ids {
                bytes.extend(encode(&request(*id)).unwrap());
            }
            let mut reader = Reader::new();
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                seen.extend(read_all(&mut reader, piece));
            }
            let messages: Vec<u32> =
                seen.iter().filter_map(|l| match l { Line::Message(m) => Some(m.id), _ => None }).collect();
            prop_assert_eq!(messages, ids);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut reader = Reader::new();
            read_all(&mut reader, &bytes);
            let _: Line<Request> = decode(&bytes);
        }

        #[test]
        fn valid_framing_of_any_json_does_not_panic(text in "\\{\"id\":[0-9]{1,12},\"op\":\\{\"[a-z_]{1,12}\":.{0,40}") {
            let line = format!("{:08x} {text}", crc32fast::hash(text.as_bytes()));
            let _: Line<Request> = decode(line.as_bytes());
        }
    }
}
